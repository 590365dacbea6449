"""A meter that is late and stamps its samples as new: who tells, how soon, and what must not be taken for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from controller.estimate import LoadSource
from controller.estimate_delay import MeterDelay
from controller.modes import Flag
from controller.types import MeterSample, Mode, Reading
from hil.faults import Fault
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab

TICK_S, ON_TIME_S, LAG_TICKS = 0.1, 0.03, 1
NODES_S = 0.6
TARGET_W = 60e6


def calm_w(t_s: float) -> float:
    """Load with a ripple of 1 MW, period 4 s, and slow edges."""
    return 60e6 + 0.5e6 * math.sin(2.0 * math.pi * t_s / 4.0)


@dataclass
class Loop:
    """A loop that believes stamps until `watch` says otherwise, and then stands still."""

    load_w: Callable[[float], float]
    late_s: Callable[[float], float] = lambda _: 0.0
    has_nodes: bool = True
    unseen_w: Callable[[float], float] = lambda _: 0.0  # load that no node reports
    watch: MeterDelay = field(default_factory=lambda: MeterDelay(scale_w=100e6))
    battery_w: list[float] = field(default_factory=lambda: [0.0])
    found: list[tuple[float, float]] = field(default_factory=list)
    battery_stood_s: float = 0.0

    def grid_w(self, t_s: float) -> float:
        k = min(max(round(t_s / TICK_S), 0), len(self.battery_w) - 1)
        return self.load_w(t_s) + self.unseen_w(t_s) - self.battery_w[k]

    def run(self, until_s: float) -> Loop:
        return self.run_on(0.0, until_s)

    def run_on(self, from_s: float, until_s: float) -> Loop:
        for k in range(round(from_s / TICK_S) + 1, round(until_s / TICK_S) + 1):
            now_s = k * TICK_S
            power_w, battery_w = self.grid_w(now_s - self.late_s(now_s)), self.battery_w[-1]
            self.watch.sampled(now_s, power_w, battery_w=battery_w)
            if self.has_nodes and k % 2 == 0:
                times = [now_s - NODES_S + j * TICK_S for j in range(-5, 6)]
                mean_w = sum(self.load_w(t) for t in times) / len(times)
                self.watch.reported(now_s, load_w=mean_w, delay_s=NODES_S, battery_stood_s=self.battery_stood_s)
            if self.watch.late_s != (self.found[-1][1] if self.found else 0.0):
                self.found.append((now_s, self.watch.late_s))
            believed_w = power_w + battery_w
            self.battery_w.append(battery_w if self.watch.late_s else believed_w - TARGET_W)
        return self


@pytest.mark.parametrize("late_s", [0.5, 1.6, 3.2, 4.8])
def test_nodes_tell_before_the_loop_has_run_away(late_s: float) -> None:
    """Late from 10 s on: found while the battery has gone astray by a few megawatts, or before."""
    loop = Loop(calm_w, lambda t: late_s if t >= 10.0 else 0.0).run(18.0)
    assert loop.found and 10.0 < loop.found[0][0] < 12.0 + late_s
    astray_w = max(abs(w) for w in loop.battery_w)
    assert astray_w < 6e6
    assert loop.watch.late_s > 0.0 and loop.watch.has_misled
    assert loop.watch.is_in_doubt or loop.watch.is_echoed


def test_without_a_watch_the_same_loop_runs_away() -> None:
    class Blind(MeterDelay):
        late_s = 0.0  # type: ignore[assignment]

    loop = Loop(calm_w, lambda t: 3.2 if t >= 10.0 else 0.0, watch=Blind(scale_w=100e6)).run(18.0)
    assert max(abs(w) for w in loop.battery_w) > 30e6


def test_by_how_much_is_known_when_the_move_has_come_back() -> None:
    loop = Loop(calm_w, lambda t: 1.6 if t >= 10.0 else 0.0).run(16.0)
    assert loop.watch.late_s == pytest.approx(1.6, abs=0.3)


def test_on_time_again() -> None:
    """Right stamps for some seconds, however little moves, and the meter is believed again."""
    loop = Loop(calm_w, lambda t: 1.6 if 10.0 <= t < 16.0 else 0.0).run(32.0)
    assert loop.found[0][1] > 0.0 and loop.found[-1] == (pytest.approx(26.0, abs=3.0), 0.0)


@pytest.mark.parametrize("has_nodes", [True, False])
@pytest.mark.parametrize("within_s", [0.2, 2.0, 8.0])
def test_load_that_falls_is_no_late_meter(*, has_nodes: bool, within_s: float) -> None:
    def drop_w(t_s: float) -> float:
        return calm_w(t_s) - 25e6 * min(max((t_s - 12.0) / within_s, 0.0), 1.0)

    assert not Loop(drop_w, has_nodes=has_nodes).run(30.0).found


def test_load_that_no_node_reports_and_jumps_is_no_late_meter() -> None:
    """A chiller starts: our answer is on the meter at once, and that is what tells."""
    assert not Loop(calm_w, unseen_w=lambda t: 3e6 if t >= 12.0 else 0.0).run(30.0).found


@pytest.mark.parametrize("within_s", [1.0, 3.0])
def test_load_that_no_node_reports_and_ramps_may_be_taken_for_one_for_seconds(within_s: float) -> None:
    """Nothing tells the two apart while it ramps. Afterwards power is off by what no node reports, and stamps win."""
    loop = Loop(calm_w, unseen_w=lambda t: 3e6 * min(max((t - 12.0) / within_s, 0.0), 1.0)).run(40.0)
    assert loop.watch.late_s == 0.0 and all(t_s < 20.0 for t_s, _ in loop.found)
    assert max(abs(loop.grid_w(k / 5) - TARGET_W) for k in range(200)) < 3.2e6


@pytest.mark.parametrize("late_s", [0.5, 1.6, 3.2])
def test_without_nodes_the_echo_of_our_own_moves_tells(late_s: float) -> None:
    """Nothing can be known before the first move comes back; soon after, it is, and by how much."""
    loop = Loop(calm_w, lambda t: late_s if t >= 10.0 else 0.0, has_nodes=False).run(20.0)
    assert loop.found and loop.found[0][0] < 10.0 + 2.0 * late_s + 3.0
    assert loop.found[0][1] == pytest.approx(late_s, abs=0.3)


# ------------------------------------------------------------------------------------------------ the counter


@pytest.mark.parametrize("battery_stood_s", [0.0, 10.0])
def test_the_counter_is_overruled_when_stamps_explain_what_its_word_does_not(battery_stood_s: float) -> None:
    """A count from before comes by mistake, and everything else goes on in time.

    A battery that reads the same for long rests, so that no loop hangs on that word, or is stuck: then it is no witness
    (seed 1001061: 3.4 s late was dropped for a chance, 26 of 5 MW).
    """
    loop = Loop(calm_w).run(20.0)
    assert not loop.found
    for k in range(1, 60):
        loop.watch.counted(10.0 + k * TICK_S, 1e6 + 16_000.0 * k * TICK_S, power_w=57.6e6)
    loop.watch.counted(16.0, 1e6 + 16_000.0 * 4.0, power_w=57.6e6)
    assert loop.watch.late_s > 1.9
    moving = Loop(
        lambda t: calm_w(t) + 4e6 * math.sin(t),
        watch=loop.watch,
        battery_w=loop.battery_w,
        battery_stood_s=battery_stood_s,
    )
    moving.run_on(20.0, 26.0)
    assert (loop.watch.late_s > 0.0) == (battery_stood_s > 0.0)


def test_what_was_before_the_counter_spoke_does_not_overrule_it() -> None:
    """Late by 4.5 s from one sample on while power rises, and nodes speak of the time before for a second."""

    def load_w(t_s: float) -> float:
        return 57e6 + 0.4e6 * max(t_s - 10.0, 0.0)

    watch, count_wh = MeterDelay(scale_w=100e6), [0.0]
    for k in range(1, 280):
        now_s, late_ticks = k * TICK_S, 45 if k >= 200 else 0
        count_wh.append(count_wh[-1] + load_w(now_s) * TICK_S / 3600.0)
        power_w = load_w(now_s - late_ticks * TICK_S)
        watch.counted(now_s, count_wh[k - late_ticks], power_w=power_w)
        watch.sampled(now_s, power_w, battery_w=0.0)
        if k % 2 == 0:
            watch.reported(now_s, load_w=load_w(now_s - NODES_S), delay_s=NODES_S)
        watch.believed(now_s, load_w(now_s), margin_w=0.5e6)
        assert watch.late_s == pytest.approx(late_ticks * TICK_S, abs=0.05)


def test_a_mean_of_which_half_is_not_known_does_not_overrule_the_counter() -> None:
    """3.1 s late from an edge on, and what moved until then is forgotten; the job's step is as long (near seed 7015).

    Of the second around the edge the battery's later half alone was held against all of the load. That looked 3.1 s
    later as if the counter's word did not fit, while nothing moved on the meter: believed, it was answered with 38 MW.
    """

    def load_w(t_s: float) -> float:
        return TARGET_W - 2e6 + 2.6e6 * min(max(abs((t_s - 7.7) % 3.1 - 1.55) / 0.6 - 0.8, 0.0), 1.0)

    watch, count_wh = MeterDelay(scale_w=100e6), [0.0]
    for k in range(1, 200):
        now_s, late_ticks = k * TICK_S, 31 if k >= 100 else 0
        count_wh.append(count_wh[-1] + TARGET_W * TICK_S / 3600.0)
        watch.counted(now_s, count_wh[k - late_ticks], power_w=TARGET_W)
        watch.sampled(now_s, TARGET_W, battery_w=load_w(now_s) - TARGET_W)
        if k % 2 == 0:
            mean_w = sum(load_w(now_s - NODES_S + j * TICK_S) for j in range(-5, 6)) / 11.0
            watch.reported(now_s, load_w=mean_w, delay_s=NODES_S)
        watch.believed(now_s, TARGET_W, margin_w=0.5e6)
        assert watch.late_s == pytest.approx(late_ticks * TICK_S, abs=0.05), now_s


def test_the_counter_is_heard_first_and_its_word_ends_the_match() -> None:
    watch = MeterDelay(scale_w=100e6)
    for k in range(1, 60):
        watch.counted(k * TICK_S, 1e6 + 16_000.0 * k * TICK_S, power_w=57.6e6)
    watch.counted(6.0, 1e6 + 16_000.0 * 4.0, power_w=57.6e6)
    assert watch.late_s == pytest.approx(2.0, abs=0.01) and not watch.has_misled and watch.is_in_doubt
    watch.counted(6.1, 1e6 + 16_000.0 * 6.1, power_w=57.6e6)
    assert watch.late_s == 0.0 and not watch.is_in_doubt
    watch.counted(6.2, None, power_w=57.6e6)
    assert watch.late_s == 0.0


@dataclass
class Counted(Loop):
    """The same loop with a meter that counts, and a battery of no lag."""

    has_counter: bool = True
    nodes_off_s: float = 0.0  # of the lateness that nodes are believed to have
    counts_wh: list[float] = field(default_factory=lambda: [1e6])

    def run_on(self, from_s: float, until_s: float) -> Loop:
        for k in range(round(from_s / TICK_S) + 1, round(until_s / TICK_S) + 1):
            now_s, late_ticks = k * TICK_S, round(self.late_s(k * TICK_S) / TICK_S)
            self.counts_wh.append(self.counts_wh[-1] + self.grid_w(now_s) * TICK_S / 3600.0)
            power_w = self.grid_w(now_s - late_ticks * TICK_S)
            if self.has_counter and k > late_ticks:
                self.watch.counted(now_s, self.counts_wh[k - late_ticks], power_w=power_w)
            self.watch.sampled(now_s, power_w, battery_w=self.battery_w[-1])
            if k % 2 == 0:
                middle_s = now_s - NODES_S - self.nodes_off_s
                mean_w = sum(self.load_w(middle_s + j * TICK_S) for j in range(-5, 6)) / 11
                self.watch.reported(now_s, load_w=mean_w, delay_s=NODES_S)
            self.watch.believed(now_s, self.grid_w(now_s), margin_w=0.5e6)
            if self.watch.late_s != (self.found[-1][1] if self.found else 0.0):
                self.found.append((now_s, self.watch.late_s))
            believed_w = power_w + self.battery_w[-1]
            self.battery_w.append(self.battery_w[-1] if self.watch.late_s else believed_w - TARGET_W)
        return self


@pytest.mark.parametrize(("has_counter", "is_misled"), [(True, False), (False, True)])
def test_steep_edges_are_no_late_meter_where_a_counter_says_so(*, has_counter: bool, is_misled: bool) -> None:
    """Nodes are younger than believed by 0.3 s, and 35 MW come and go in a second: without a counter that is late."""

    def load_w(t_s: float) -> float:
        x_s = (t_s - 20.0) % 8.0
        gone = min(x_s, 1.0) if x_s < 4.0 else 1.0 - min(x_s - 4.0, 1.0)
        return calm_w(t_s) - (35e6 * gone if t_s >= 20.0 else 0.0)

    loop = Counted(load_w, has_counter=has_counter, nodes_off_s=-0.3).run(50.0)
    assert bool(loop.found) == is_misled


@pytest.mark.parametrize("late_s", [0.5, 1.6, 3.2])
def test_late_from_the_first_sample_on_is_told_by_nodes_whatever_the_counter_says(late_s: float) -> None:
    """Its counts are as late as ever, and so are in time; a loop that is late cannot bear them out."""
    loop = Counted(calm_w, lambda _: late_s).run(20.0)
    assert loop.found and loop.found[0][0] < 6.0 + late_s


# ------------------------------------------------------------------------------------------------ the whole site


def uncounted(reading: Reading[MeterSample]) -> Reading[MeterSample]:
    return replace(reading, value=replace(reading.value, import_wh=None))


def late_site(*, has_counter: bool) -> Lab:
    """3.2 s late for ten seconds from 26 s on, at a ripple of 2.5 MW; unwatched, the loop swings by 47 MW."""

    async def story(lab: Lab) -> None:
        lab.hooks.meter = lab.hooks.meter if has_counter else uncounted
        lab.start()
        await lab.run(20.0)
        lab.fault("meter", "wrong", 1.0)  # nothing is wrong yet, but the port remembers what it may show later
        await lab.run(6.0)
        lab.fault("meter", "delayed", 3.2, for_s=10.0)
        await lab.run(40.0)

    lab = in_lab(story, lab_scenario("steady", following="software", duration_s=70.0))
    assert lab.saw(Flag.METER_LATE, since_s=26.0) and not lab.saw(Flag.METER_LATE, since_s=65.0)
    assert not any(Flag.METER_LATE in t.flags for t in lab.ticks if t.t_s < 26.0)
    assert lab.worst_mode(26.0) <= Mode.SHED
    return lab


def test_a_late_meter_with_a_counter_breaks_no_row() -> None:
    assert late_site(has_counter=True).broken() == []


def test_a_late_meter_without_a_counter_is_stopped_at_a_fifth_of_the_swing() -> None:
    """Nodes are 0.6 s late and report means of a second: until they tell, the loop has answered itself already."""
    lab = late_site(has_counter=False)
    swing_w = next(row.worst for row in lab.verdicts().limits if row.id == "ieso-ramp.swing-15s")
    assert swing_w < 10e6


@pytest.mark.parametrize("from_s", [0.0, 0.27, 0.5, 2.0])
def test_a_meter_that_is_late_from_the_start_breaks_no_row(from_s: float) -> None:
    """3.8 s from a cold start on (seed 5322 at 0.27 s): nothing was learnt of nodes yet, and they serve."""

    async def story(lab: Lab) -> None:
        lab.plan.add(Fault("late", "meter", "delayed", from_s, from_s + 14.0, 3.764))
        lab.start()
        await lab.run(30.0)

    lab = in_lab(story, lab_scenario("steady", following="software", duration_s=40.0))
    assert lab.saw(Flag.METER_LATE) and Flag.METER_LATE not in lab.last.flags
    assert lab.broken() == []


@pytest.mark.parametrize("from_s", [24.0, 24.1, 26.8])
def test_a_job_as_regular_as_the_meter_is_late_does_not_clear_it(from_s: float) -> None:
    """3.45 s late, steps of 3.1 s: in time, it looked for 0.8 s, and its counter's word was dropped (seed 7015)."""
    work = {"compute_w": 465.63, "exchange_w": 452.624, "iteration_s": 3.104, "edge_s": 0.6208}

    async def story(lab: Lab) -> None:
        lab.plan.add(Fault("late", "meter", "delayed", from_s, from_s + 5.68, 3.45))
        lab.start()
        await lab.run(40.0)

    scenario = lab_scenario("steady", following="software", seed=7015, duration_s=46.0, workload=work, start_soc=0.612)
    assert in_lab(story, scenario).broken() == []


@pytest.mark.parametrize("from_s", [16.4, 18.5, 20.6])
def test_a_meter_that_stood_still_is_believed_once_nodes_bear_it_out(from_s: float) -> None:
    """Its counter stood as well. What it showed meanwhile fits some lateness by chance, and is no witness of one."""

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(from_s - lab.now_s)
        lab.fault("meter", "stuck", for_s=3.7)
        await lab.run(3.7)
        for _ in range(100):
            await lab.run(0.1)
            if lab.traces[-1].decision.estimate.source is not LoadSource.METER:
                unbelieved_s.append(lab.now_s - from_s - 3.7)

    unbelieved_s: list[float] = []
    workload = {"compute_w": 457.0, "exchange_w": 439.0, "iteration_s": 4.711, "edge_s": 0.94}
    in_lab(story, lab_scenario("steady", following="software", duration_s=40.0, workload=workload))
    assert 1.0 < unbelieved_s[-1] < 2.5


@pytest.mark.parametrize(("late_s", "swing_w"), [(0.2, 5e6), (0.5, 10e6), (1.0, 13e6)])
def test_a_meter_later_than_declared_from_the_first_sample_on_is_known_by_our_own_moves(
    late_s: float, swing_w: float
) -> None:
    """Counter and nodes began beside it and see nothing. It answered itself with 13 to 41 MW, again and again."""
    seen: list[float] = []

    async def story(lab: Lab) -> None:
        lab.fault("meter", "delayed", value=late_s)
        lab.start()
        await lab.run(90.0)
        seen.append(lab.traces[-1].decision.estimate.delay_s)
        lab.heal()
        await lab.run(75.0)

    lab = in_lab(story, lab_scenario("steady", following="software", duration_s=170.0))
    late = [tick.t_s for tick in lab.ticks if Flag.METER_LATE in tick.flags]
    assert late and late[0] < 4.0 and Flag.METER_LATE not in lab.last.flags
    row = next(row for row in lab.verdicts().limits if row.id == "ieso-ramp.swing-15s")
    assert row.worst < swing_w and (row.worst < row.limit or row.worst_t_s < 5.0)
    assert seen[0] == pytest.approx(late_s + 0.03, abs=0.06) or seen[0] > 0.5, "at its real time, or nodes serve"
