"""Rows S, P, C, B of the fault catalogue: meters, planner, clocks and battery of the whole site in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import piqp
import pytest

from controller.allocate import worst_case_w
from controller.estimate import LoadEstimator, LoadSource
from controller.modes import Flag
from controller.plan.solve import SHIFTS_MAX, MpcPlanner
from controller.types import AgentState, Following, MeterFlag, MeterSample, Mode, Quality, Reading
from controller.view import envelope_battery
from hil import vtime
from hil.lab_site import MW, RAMP_FROM_S, SETTLE_S, lab_scenario
from hil.matrix import row
from hil.matrix_lab import Lab
from hil.plant.site import LOAD
from tests.faults_kit import Begin, Loss, flagged, mean_at, play, step_w

GPU_PEAK_W = 700.0
SEEN_S = 0.25  # two cycles: what a meter says is acted on in the first that hears it


def altered(**changes: Any) -> Any:
    """A meter hook that replaces fields of the sample."""
    return lambda reading: replace(reading, value=replace(reading.value, **changes))


# ------------------------------------------------------------------------------------------------ meters


@row("S1")
def test_stuck_meter(state: str) -> None:
    """The meter repeats one value; nodes serve with a margin, nothing rises, and it is believed again when it moves."""

    async def react(lab: Lab, since_s: float) -> None:
        if state in ("cold", "steady"):
            lab.drop(12.0, 3.0)  # a stuck meter shows only against something that moves
        await flagged(lab, Flag.METER_STUCK, since_s=since_s, within_s=8.0)
        found_s = lab.now_s
        trace = next(t for t in lab.traces if MeterFlag.METER_STUCK in t.decision.estimate.flags)
        assert trace.decision.estimate.source is not LoadSource.METER
        if state != "cold":  # there the 12 MW are still to leave: what nodes alone do about it is no part of this row
            await lab.run(3.0)
            estimate, truth_w = lab.traces[-1].decision.estimate, lab.world.plant.now(LOAD)
            assert estimate.source is not LoadSource.METER and estimate.margin_w > 0.0
            assert abs(estimate.load_w - truth_w) < 3.0 * MW, "near the truth, which the stuck value is not"
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(found_s + SEEN_S)

    play(state, begin=lambda lab: lab.fault("meter", "stuck"), react=react)


@row("S2")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_meter_without_a_number(state: str, value: float) -> None:
    """No number: estimated within a tick or two, no raise, SHED."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_MISSING, since_s=since_s, within_s=1.0)
        await lab.run(8.0)
        assert lab.last.mode >= Mode.SHED and not lab.raised(since_s + SEEN_S)
        first = next(tick for tick in lab.since(since_s) if Flag.METER_MISSING in tick.flags)
        assert state == "cold" or (first.t_s - since_s <= SEEN_S and first.mode >= Mode.SHED)
        found = lab.traces[-1].decision.estimate
        assert math.isfinite(found.load_w) and (not math.isfinite(found.margin_w) or found.margin_w >= 0.0)

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", altered(power_w=value)), react=react)


@row("S3")
def test_spike(state: str) -> None:
    """Ten times for one sample: the load in use does not move, nothing rises on it."""
    spikes(state, count=1)


@pytest.mark.parametrize("state", ["steady", "ramp"])
def test_of_two_spikes_in_a_row_the_meter_is_at_fault(state: str) -> None:
    """Nodes serve in its place until it is borne out again."""
    spikes(state, count=2)


def spikes(state: str, *, count: int) -> None:
    left = [count]

    def spike(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        if not left[0]:
            return reading
        left[0] -= 1
        return replace(reading, value=replace(reading.value, power_w=reading.value.power_w * 10))

    async def react(lab: Lab, since_s: float) -> None:
        if state != "cold":  # before its first value the site is not seen, and says nothing of it
            await flagged(lab, Flag.METER_SPIKE, since_s=since_s, within_s=1.0)
        hit = [k for k, t in enumerate(lab.ticks) if Flag.METER_SPIKE in t.flags and t.t_s <= since_s + SEEN_S]
        assert not any(lab.ticks[k].raised_gpu for k in hit)
        ref_w = [tick.ref_w for tick in lab.ticks]
        going_w = [max(0.0, ref_w[k - 1] - ref_w[k - 2]) for k in hit if k > 1]  # the plan's own way goes on
        steps_w = [ref_w[k] - ref_w[k - 1] for k in hit if k > 1]
        assert all(step <= 1.1 * own + 1.0 for step, own in zip(steps_w, going_w, strict=True)), "raised on it"
        await lab.run(1.5)
        loads = [t.decision.estimate.load_w for t in lab.traces]
        assert max(loads) < 75 * MW, "no load of this site, and none that any cap was lowered for"
        assert lab.saw(Flag.METER_MISSING, since_s=since_s) is (count > 1 and state != "cold")
        worst = lab.worst_mode(since_s)
        assert state == "limit" or worst <= (Mode.SHED if count > 1 else Mode.DEGRADED), worst

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", spike), react=react)


@row("S4")
def test_stale_time_stamp(state: str) -> None:
    """The sample's time is five seconds ago: it counts as missing, and nothing rises."""

    def old(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        return replace(reading, t_mono_s=reading.t_mono_s - 5.0)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_STALE, Flag.METER_MISSING, since_s=since_s, within_s=1.5)
        await lab.run(5.0)
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(since_s + SEEN_S)
        assert lab.traces[-1].decision.estimate.source is not LoadSource.METER

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", old), react=react)


@row("S5")
def test_unit_error(state: str) -> None:
    """Kilowatts read as watts: locked out until an operator acts, however good it looks afterwards."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_UNIT_WRONG, since_s=since_s, within_s=4.0)
        await lab.run(5.0)
        assert lab.last.mode >= Mode.SHED and not lab.raised(since_s + SEEN_S)
        lab.heal()
        await lab.run(20.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags and lab.last.mode >= Mode.SHED
        assert lab.traces[-1].decision.estimate.source is not LoadSource.METER, "nor is it believed meanwhile"
        if state == "cold":  # refused at arming: nothing was ever written on its word
            assert all(tick.battery_w is None and math.isnan(tick.caps_mhz) for tick in lab.ticks)
            assert lab.traces[-1].decision.held_back

    play(state, begin=lambda lab: lab.fault("meter", "wrong", 1e-3), react=react, recovers=False)


@row("S6")
def test_sign_flipped(state: str) -> None:
    """Import reads as export: the only meter, so FALLBACK."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.until(lambda: lab.worst_mode(since_s) >= Mode.FALLBACK, within_s=4.0)
        assert lab.saw(Flag.METER_SIGN_WRONG, since_s=since_s) or lab.saw(Flag.METER_SIGN_SUSPECT, since_s=since_s)
        await lab.run(5.0)

    play(state, begin=lambda lab: lab.fault("meter", "wrong", -1.0), react=react)


class Meters:
    """An estimator with a site meter and one sub-meter beside it, in the load profile of a state."""

    def __init__(self, state: str) -> None:
        site = lab_scenario(state).settings.site
        assert site is not None
        self.site = replace(site, battery=None, following=Following.DEVICE)
        self.estimator = LoadEstimator(self.site)
        self.state, self.tick = state, 0

    def load_w(self, t_s: float) -> float:
        level = {"cold": 60.0, "steady": 60.0, "limit": 84.0, "ramp": 80.0 - 0.05 * t_s}
        return (level[self.state] + 0.5 * math.sin(t_s)) * MW

    def step(self, *, gain: float) -> Any:
        t_s = self.tick * 0.1
        self.tick += 1
        load_w = self.load_w(t_s)

        def at(power_w: float, name: str) -> Reading[MeterSample]:
            return Reading(MeterSample(power_w), t_s, Quality.GOOD, name)

        return self.estimator.step(
            t_s, pcc=at(load_w * gain, "pcc"), battery=None, nodes=(), meters={"sub": at(load_w, "sub")}
        )


@row("S7")
def test_slow_drift(state: str) -> None:
    """1 % an hour against a sub-meter: flagged before it is 3 %, margin grows, cleared when it is right again."""
    meters = Meters(state)
    if state != "cold":
        for _ in range(100):
            assert not meters.step(gain=1.0).flags
    for k in range(3000):  # two hours' drift in five minutes: the residual, not its speed, is what is judged
        found = meters.step(gain=1.0 - 0.02 * k / 3000)
    assert MeterFlag.METER_DRIFT in found.flags and found.margin_w > 0.01 * found.load_w
    for _ in range(4000):
        found = meters.step(gain=1.0)
    assert not found.flags and found.margin_w == 0.0


@row("S8")
def test_meters_disagree(state: str) -> None:
    """5 % apart: flagged, the higher import counts, whichever meter shows it."""
    for gain in (0.95, 1.05):
        meters = Meters(state)
        if state != "cold":
            for _ in range(100):
                assert not meters.step(gain=1.0).flags
        for _ in range(100):
            t_s = meters.tick * 0.1
            found = meters.step(gain=gain)
        assert MeterFlag.METERS_DISAGREE in found.flags
        assert found.pcc_w == pytest.approx(meters.load_w(t_s) * max(gain, 1.0))


@row("S9")
def test_slow_meter(state: str) -> None:
    """A sample every 15 s: used with its age or not at all, and never raised on."""
    held: list[Reading[MeterSample]] = []

    def slow(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        if not held or reading.t_mono_s - held[-1].t_mono_s >= 15.0:
            held.append(reading)
        return held[-1]

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(20.0)
        slow_flags = {Flag.METER_SLOW, Flag.METER_STALE, Flag.METER_MISSING}
        assert any(tick.flags & slow_flags for tick in lab.since(since_s))
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(since_s + 0.5)

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", slow), react=react)


@row("S10")
def test_counter_reset(state: str) -> None:
    """The energy counter starts again at zero: noted, power untouched."""
    base: list[float] = []

    def wrapped(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        counted = reading.value.import_wh or 0.0
        base.append(counted)
        return replace(reading, value=replace(reading.value, import_wh=counted - base[0]))

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":  # nothing was counted before the first cycle: the counter falls after it
            await lab.run(1.0)
            lab.hooks.meter = altered(import_wh=0.0)
        await flagged(lab, Flag.COUNTER_RESET, since_s=since_s, within_s=1.0)
        assert lab.worst_mode(since_s) <= (Mode.SHED if state == "limit" else Mode.NORMAL)
        await lab.run(3.0)

    begin = (lambda lab: None) if state == "cold" else (lambda lab: setattr(lab.hooks, "meter", wrapped))
    play(state, begin=begin, react=react)


# ------------------------------------------------------------------------------------------------ planner


def planner(lab: Lab) -> MpcPlanner:
    assert lab.daemon is not None
    found = lab.daemon.core.planning._planner
    assert isinstance(found, MpcPlanner)
    return found


class Sick:
    """The planner's solver, whose word is replaced and nothing else."""

    def __init__(self, solver: Any) -> None:
        self.inner = solver

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def ends_with(status: Any) -> Begin:
    """The solver ends with `status` from now on."""

    class Ends(Sick):
        def solve(self) -> Any:
            self.inner.solve()
            return status

    return lambda lab: setattr(planner(lab), "_solver", Ends(planner(lab)._solver))


def heal_solver(lab: Lab) -> None:
    sick: Any = planner(lab)._solver
    planner(lab)._solver = sick.inner


async def sheds(lab: Lab, since_s: float, state: str) -> None:
    """Shifted plans first, three at most, then the rule planner: caps and battery go on, nothing rises, SHED."""
    await flagged(lab, Flag.SOLVER_INVALID, since_s=since_s, within_s=6.0)
    found_s = lab.now_s
    await lab.run(5.0)
    assert lab.last.mode >= Mode.SHED and (lab.last.plan_policy, lab.last.plan_status) == ("mpc", "rule")
    assert lab.last.battery_w is not None and not lab.raised(found_s + SEEN_S)
    shifted_s = [tick.t_s for tick in lab.since(since_s) if tick.plan_status == "shifted"]
    assert state == "cold" or shifted_s, "the last plan is good for a while"
    assert not shifted_s or max(shifted_s) - min(shifted_s) <= SHIFTS_MAX * lab.site.planner_period_s


def solver_fails(state: str, begin: Begin) -> None:
    async def react(lab: Lab, since_s: float) -> None:
        await sheds(lab, since_s, state)

    play(state, begin=begin, react=react, heal=heal_solver, after_start=True, policy="mpc")


@row("P1")
def test_infeasible(state: str) -> None:
    """The solver finds no solution; the numbers it leaves behind are not looked at."""
    solver_fails(state, ends_with(piqp.PIQP_PRIMAL_INFEASIBLE))


@row("P2")
def test_solver_late(state: str) -> None:
    """The iteration budget is spent, however good what it has by then may be."""
    solver_fails(state, ends_with(piqp.PIQP_MAX_ITER_REACHED))


@row("P3")
def test_solution_not_finite(state: str) -> None:
    """The solver's own result holds a NaN: the real check refuses it."""

    class Poisoned(Sick):
        @property
        def result(self) -> Any:
            true = self.inner.result

            class Result:
                x = np.full(np.asarray(true.x).shape, np.nan)
                info = true.info

            return Result

    solver_fails(state, lambda lab: setattr(planner(lab), "_solver", Poisoned(planner(lab)._solver)))


@row("P4")
def test_solver_crash_ends_the_process_and_the_next_one_takes_over(state: str) -> None:
    """The solver lives in the controller's process: its crash is the controller's death, and restart is the cure."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.kill()
        await lab.run(3.0)
        await lab.restart()
        await lab.until(lambda: bool(lab.ticks) and lab.last.plan_status == "solved", within_s=10.0)
        span.append((since_s, lab.now_s))

    span: list[tuple[float, float]] = []
    lab = play(state, begin=lambda lab: None, react=react, after_start=True, policy="mpc", is_judged=False)
    assert step_w(lab, from_s=span[0][0], to_s=span[0][1]) <= 5 * MW


@row("P5")
def test_model_mismatch(state: str) -> None:
    """GPUs report more than any job could draw at their clocks: flagged, margin up, and no correction without end.

    A model that no cap tests is neither right nor wrong, so a ceiling is there where the state has none.
    """

    def above_the_model(reading: Reading[Any]) -> Reading[Any]:
        report = reading.value
        return replace(reading, value=replace(report, power_w=np.full_like(report.power_w, 0.95 * GPU_PEAK_W)))

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.MODEL_MISMATCH, since_s=since_s, within_s=30.0)
        assert lab.last.mode >= Mode.DEGRADED and lab.daemon is not None
        assert lab.daemon.core.planning.model_margin_w > 0.0
        await lab.run(10.0)
        assert float(lab.daemon.core.planning.demand.class_w.sum()) <= 1.5 * lab.site.gpu_peak_w + 1.0, "wound up"

    ceiling_megawatt = {"ramp": 46.0}.get(state, 60.0)
    target = {"t_s": 1.0, "kind": "load_target", "megawatt": ceiling_megawatt, "by_s": 30.0}
    play(
        state,
        begin=lambda lab: setattr(lab.hooks, "report", above_the_model),
        react=react,
        signals=[] if state == "limit" else [target],
    )


# ------------------------------------------------------------------------------------------------ clocks


@row("C1")
@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_wall_clock_steps(state: str, step_s: float) -> None:
    """An hour either way: control goes on, nothing rises until the dwell is over."""

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":
            await lab.run(2.0)
            lab.clock.step_wall_s(step_s)
        await flagged(lab, Flag.CLOCK_STEPPED, since_s=since_s, within_s=3.0)
        count = len(lab.ticks)
        await lab.run(5.0)
        assert len(lab.ticks) - count >= 48, "control paused"
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(lab.now_s - 4.5)

    begin = (lambda lab: None) if state == "cold" else (lambda lab: lab.clock.step_wall_s(step_s))
    play(state, begin=begin, react=react)


STALL_S = 2.5


@row("C3")
def test_event_loop_stalls(state: str) -> None:
    """2.5 s without the loop: cycles are skipped, not made up for; DEGRADED; the stalled cycle feeds no watchdog.

    Where our loop closes on the battery its set-point stands as well, so what the load does meanwhile is on the meter
    whoever controls; a row is forced where that alone, from a meter on its target, breaks it.
    """

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(0.5)
        count, at_s = len(lab.ticks), lab.now_s
        began_s.append(at_s)
        vtime.running_loop().stall_ns(round(STALL_S * 1e9))
        await lab.run(1.0)
        assert len(lab.ticks) - count <= 13, "skipped cycles were run in a burst"
        assert lab.saw(Flag.LOOP_STALLED, since_s=at_s) and lab.last.mode >= Mode.DEGRADED
        first = next(tick for tick in lab.ticks if tick.t_s > at_s + 0.2)
        assert first.t_s >= at_s + STALL_S - 0.2, "the cycle that stalled"
        assert not [t for t in lab.kicks if at_s + 0.2 < t < first.t_s + 0.05], "it feeds no watchdog"
        assert [t for t in lab.kicks if t > first.t_s + 0.05], "the next one does"

    began_s: list[float] = []
    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False)
    if broken := lab.broken():
        change_w = mean_at(lab, began_s[0]) - mean_at(lab, began_s[0] + STALL_S)
        assert abs(change_w) > 5 * MW, f"not forced: {broken}"


def test_a_battery_that_follows_by_itself_holds_through_a_stall() -> None:
    """The same stall in the same ramp: the device goes on following its last target, and every row is held."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(0.5)
        vtime.running_loop().stall_ns(round(STALL_S * 1e9))
        await lab.run(1.0)

    play("ramp", begin=lambda lab: None, react=react, after_start=True, following="device")


@row("C4")
def test_suspend_and_resume(state: str) -> None:
    """12 s of suspend: commands expire at the nodes and the battery; on resume it is noted and armed again."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(3.0)
        at_s = lab.now_s
        held_w = abs(battery(lab).power_w)
        vtime.running_loop().stall_ns(12_000_000_000)
        await lab.run(0.25)
        seen = [r.value for t in lab.traces if t.image.t_mono_s > at_s + 11.0 for r in t.image.nodes]
        fallen = {report.node_id for report in seen if report.state is AgentState.FALLBACK}
        assert fallen == set(lab.link.nodes), "caps expired at the nodes"
        before = lab.traces[-1].image.battery
        assert before is not None and (held_w < 1 * MW or abs(before.value.power_w) < held_w), "and at the battery"
        await lab.run(1.75)
        assert lab.saw(Flag.RESUMED, since_s=at_s) and lab.worst_mode(at_s) >= Mode.DEGRADED
        await lab.run(6.0)
        assert all(node.state.value == "armed" for node in lab.link.nodes.values())
        span.append((at_s, at_s + 14.0))

    span: list[tuple[float, float]] = []
    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False)
    assert step_w(lab, from_s=span[0][0], to_s=span[0][1]) <= 5 * MW


# ------------------------------------------------------------------------------------------------ battery


def battery(lab: Lab) -> Any:
    return lab.world.plant.battery


def left_of_drop_w(state: str, lab_s: float) -> float:
    """What of the ramp's 25 MW in 8 s is still to leave."""
    return 25 * MW * (1.0 - (lab_s - RAMP_FROM_S) / 8.0) if state == "ramp" else 0.0


def caps_w(lab: Lab) -> float:
    """What all GPUs may draw at their worst by the envelope's books."""
    assert lab.daemon is not None
    core = lab.daemon.core
    return worst_case_w(lab.traces[-1].decision.fleet, core._written.caps)


@row("B1")
@pytest.mark.parametrize("kind", ["local", "trip", "derate"])
def test_battery_limited(state: str, kind: str) -> None:
    """Local control, a trip, a derate to 5 %: planned without what is gone, within a period.

    What goes with the battery is on the meter whoever controls: at the limit and in the ramp the rows may be passed by
    that much, and by no more. Cold and steady every row holds.
    """

    def begin(lab: Lab) -> None:
        if kind == "local":
            battery(lab).is_remote = False
        elif kind == "trip":
            battery(lab).trip()
        else:
            battery(lab).derate_frac = 0.05

    def heal(lab: Lab) -> None:
        battery(lab).is_remote, battery(lab).derate_frac = True, 1.0
        if kind == "trip":
            battery(lab).reset()

    async def react(lab: Lab, since_s: float) -> None:
        before_w = caps_w(lab) if state == "limit" else 0.0
        await lab.run(1.0 if state != "cold" else 3.0)
        assert lab.daemon is not None and lab.daemon.core.tracker is not None
        if kind != "derate":
            assert lab.saw(Flag.BATTERY_LIMITED, since_s=since_s) and lab.last.mode >= Mode.DEGRADED
            assert not lab.saw(Flag.BATTERY_NOT_FOLLOWING, since_s=since_s), "nothing was asked of it"
        sample = lab.traces[-1].image.battery
        assert sample is not None
        usable = sample.value.is_remote and sample.value.state.value != "fault"
        bounds = lab.daemon.core.tracker.battery_now(sample.value if usable else None)
        assert bounds.discharge_w_max <= 0.05 * 12 * MW + 1.0
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w <= 0.05 * 12 * MW + 1.0, "no credit for what is gone"
        await lab.run(14.0)
        assert state != "limit" or caps_w(lab) < before_w - 2.5 * MW, "caps take over, as fast as the rows let them"

    forced = Loss(left_of_drop_w(state, SETTLE_S[state])) if state in ("limit", "ramp") else None
    play(state, begin=begin, react=react, heal=heal, loss=forced)


@row("B2")
def test_battery_does_not_follow(state: str) -> None:
    """It acknowledges and goes to nothing: seen within 3 T, no credit, caps in its place, told to stand at nothing.

    It is tried again once it did as it was told for the dwell.
    """

    def begin(lab: Lab) -> None:
        battery(lab).is_deaf = True

    def heal(lab: Lab) -> None:
        battery(lab).is_deaf = False

    async def react(lab: Lab, since_s: float) -> None:
        if state in ("cold", "steady"):
            lab.drop(8.0, 2.0)  # a battery with nothing to do cannot be found out
        await flagged(lab, Flag.BATTERY_NOT_FOLLOWING, since_s=since_s, within_s=8.0)
        assert lab.last.battery_w is not None and abs(lab.last.battery_w) < 0.1 * MW, "nothing for who follows nothing"
        await lab.run(1.0)
        assert lab.last.mode >= Mode.DEGRADED
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w == shown.spare_w == 0.0
        await lab.run(4.0)
        asked_w = [t.battery_w for t in lab.since(since_s) if Flag.BATTERY_NOT_FOLLOWING in t.flags]
        held = [w is not None and abs(w) < 0.1 * MW for w in asked_w]
        assert sum(held) >= 0.9 * len(held), "where the target is found anew the envelope bends it for one tick"

    change_w = 8.0 * MW if state in ("cold", "steady") else left_of_drop_w(state, SETTLE_S[state])
    change_w += 0.5 * MW if state == "cold" else 0.0  # of ripple, which nothing showed before the fault
    play(state, begin=begin, react=react, heal=heal, loss=Loss(change_w))


def test_a_battery_that_should_follow_by_itself_and_does_not_is_found_out_by_the_meter() -> None:
    """B2 under device following: load leaves, the meter shows it, the battery could take it and does not."""

    def begin(lab: Lab) -> None:
        battery(lab).is_deaf = True

    def heal(lab: Lab) -> None:
        battery(lab).is_deaf = False

    async def react(lab: Lab, since_s: float) -> None:
        lab.drop(8.0, 2.0)
        await flagged(lab, Flag.BATTERY_NOT_FOLLOWING, since_s=since_s, within_s=6.0)
        await lab.run(1.0)
        assert lab.last.mode >= Mode.DEGRADED
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w == shown.spare_w == 0.0
        assert lab.last.battery_w is not None and abs(lab.last.battery_w) < 0.1 * MW, "nothing for who follows nothing"

    play("steady", begin=begin, react=react, heal=heal, loss=Loss(8.0 * MW), following="device")


@pytest.mark.parametrize("gain", [0.97, 1.03])
def test_a_meter_three_percent_apart_from_the_batterys_own_is_no_disobedience(gain: float) -> None:
    def apart(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        return replace(reading, value=replace(reading.value, power_w=gain * reading.value.power_w))

    async def react(lab: Lab, since_s: float) -> None:
        lab.drop(8.0, 2.0)
        await lab.run(30.0)
        assert not lab.saw(Flag.BATTERY_NOT_FOLLOWING, since_s=since_s)

    play("steady", begin=lambda lab: setattr(lab.hooks, "meter", apart), react=react, following="device")


def test_a_battery_out_of_reach_is_no_fault_of_the_solver() -> None:
    """Without a battery the program is not asked, so it cannot have failed: DEGRADED, and caps may rise again."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(8.0)
        assert lab.last.mode is Mode.DEGRADED and not lab.saw(Flag.SOLVER_INVALID, since_s=since_s)
        assert lab.last.plan_policy == "mpc" and lab.last.plan_status == "rule"

    def begin(lab: Lab) -> None:
        battery(lab).is_remote = False

    def heal(lab: Lab) -> None:
        battery(lab).is_remote = True

    play("steady", begin=begin, react=react, heal=heal, policy="mpc")
