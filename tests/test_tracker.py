"""The fast loop against a plant of its own, on ripple, drops, crashes, ceilings and batteries that take no orders."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.estimate import LoadEstimator
from controller.reserve import Contingency
from controller.tracker import Tracker
from controller.tracker_io import TrackerInput, TrackerOutput, Watch
from controller.types import (
    CeilingLimit,
    Direction,
    FloatArray,
    Following,
    Limit,
    LimitId,
    MeterSample,
    Mode,
    Quality,
    RampLimit,
    Reading,
    SwingLimit,
)
from tests.tracker_kit import (
    HERE,
    IESO_RAMP,
    TRUTH_S,
    Target,
    estimate_without_meter,
    quiet_input,
    run,
    sample_of,
    site_of,
    trailing_mean,
    worst_swing_w,
)

TRACE = Path(__file__).resolve().parents[2] / "shared/traces/mlperf_gpt3_175b_64node_512h100_AC_2s.csv"


def gpt3_load_w(duration_s: float, *, start_s: float = 0.0) -> FloatArray:
    """The measured training trace, 200 times over, its samples joined by lines."""
    if not TRACE.exists():
        pytest.skip("measured traces are not beside this checkout")
    with TRACE.open(encoding="utf-8") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))
    columns = [index for index, name in enumerate(rows[0]) if name.endswith("_w")]
    table = np.array([[float(row[i]) if row[i] else math.nan for i in [0, *columns]] for row in rows[1:]])
    for column in range(1, table.shape[1]):
        known = np.flatnonzero(np.isfinite(table[:, column]))
        last = np.searchsorted(known, np.arange(len(table)), side="right") - 1
        table[:, column] = table[known[np.maximum(last, 0)], column]
    at = start_s + np.arange(0.0, duration_s, TRUTH_S)
    return np.asarray(np.interp(at, table[:, 0], 200.0 * table[:, 1:].sum(axis=1)), dtype=np.float64)


def slow_mean(load_w: FloatArray, seconds: float = 300.0) -> Target:
    """A planner of one line: the load's running mean."""
    state = {"mean": float(load_w[:2000].mean())}

    def target(t_s: float, tracker: Tracker) -> float:
        del tracker
        state["mean"] += 0.05 / seconds * (float(load_w[int(t_s / TRUTH_S)]) - state["mean"])
        return state["mean"]

    return target


def ripple_w(frequency_hz: float, *, edge_s: float, seconds: float, size_w: float = 3.6e6) -> FloatArray:
    """A square wave around 60 MW whose edges take `edge_s`."""
    t_s = np.arange(0.0, seconds, TRUTH_S)
    phase = (t_s * frequency_hz) % 1.0
    edge = edge_s * frequency_hz
    up = np.clip(phase / edge, 0.0, 1.0) - np.clip((phase - 0.5) / edge, 0.0, 1.0)
    return np.asarray(60e6 + size_w * (up - 0.5), dtype=np.float64)


FULL_CRASH = Contingency("full_site", drop_w=62e6, load_left_w=28e6, ripple_w=0.0, slew_w_per_s=1.9 * 62e6)


def watching(contingency: Contingency = FULL_CRASH, **changes: bool) -> Callable[[float], tuple[Watch, ...]]:
    watch = Watch(contingency, enforces_transient=True, enforces_power=True, enforces_energy=True, enforces_rise=False)
    return lambda t_s: (replace(watch, **changes),)


def drop_w(slew_pu_per_s: float, *, at_s: float = 20.0, seconds: float = 60.0) -> FloatArray:
    t_s = np.arange(0.0, seconds, TRUTH_S)
    return np.asarray(np.maximum(28e6, 90e6 - slew_pu_per_s * 62e6 * np.maximum(0.0, t_s - at_s)), dtype=np.float64)


@pytest.mark.parametrize("following", list(Following))
def test_a_measured_training_trace_keeps_the_ramp_contract(following: Following) -> None:
    """Ten minutes of 60 to 90 MW, moving at 10 MW/s: swing and ramp rows hold on 1 s means."""
    load_w = gpt3_load_w(600.0)
    found = run(load_w, site=site_of(following=following), target=slow_mean(load_w, 120.0))
    metered = found.mean_w(1.0)
    assert worst_swing_w(metered, 15.0) <= 5e6
    assert worst_swing_w(metered, 60.0) <= 20e6
    assert worst_swing_w(trailing_mean(load_w, 1.0), 15.0) > 20e6, "the load itself breaks the row many times over"


@pytest.mark.parametrize("frequency_hz", [0.7, 1.0, 1.7, 2.0])
def test_square_ripple_is_fed_forward(frequency_hz: float) -> None:
    """3.6 MW with 0.25 s edges: once the line is known less than 1 MW stays on the raw meter."""
    found = run(ripple_w(frequency_hz, edge_s=0.25, seconds=75.0))
    late = int(50.0 / TRUTH_S)
    assert np.ptp(found.grid_w[late:]) < 1e6
    early = found.grid_w[int(5.0 / TRUTH_S) : int(15.0 / TRUTH_S)]
    assert np.ptp(early) > 2e6, "before the line is known following leaves most of it"


def test_sharp_square_ripple_leaves_hardly_more_than_its_own_edge() -> None:
    """No battery of 60 ms lag hides an edge of one sample, but its echo goes: 3.6 MW leave 4.4, not 7.2."""
    found = run(ripple_w(1.0, edge_s=TRUTH_S, seconds=75.0))
    late = found.grid_w[int(50.0 / TRUTH_S) :]
    assert np.ptp(late) < 4.5e6


def test_an_instant_drop_is_what_the_dead_time_says() -> None:
    """62 MW at once under software following: dead time and lag times the drop on 1 s means, and a broken swing row."""
    found = run(drop_w(1e6), target=lambda t_s, tracker: 90e6 if t_s < 20 else 28e6, watches=watching())
    metered = found.mean_w(1.0)
    dip_w = 90e6 - metered[: int(21.5 / TRUTH_S)].min()
    assert 6e6 < dip_w < 7.5e6
    assert worst_swing_w(metered, 15.0) > 5e6
    ahead = {margin.name: margin.value for margin in found.outputs[390].margins}
    assert ahead["transient:swing"] < 0.0, "and the margin said so before"


@pytest.mark.parametrize(
    ("following", "slew"), [(Following.DEVICE, 1e6), (Following.DEVICE, 1.9), (Following.SOFTWARE, 1.9)]
)
def test_a_crash_is_ridden_down_inside_the_contract(following: Following, slew: float) -> None:
    """Device following hides any drop, software one at 1.9 pu/s; afterwards the target falls at R_c, not in bursts."""
    site = site_of(following=following)
    assert site.battery is not None
    site = replace(site, battery=replace(site.battery, ramp_w_per_s_max=95e6))
    found = run(
        drop_w(slew, seconds=90.0),
        site=site,
        target=lambda t_s, tracker: 90e6 if t_s < 20 else 28e6,
        watches=watching(),
    )
    metered = found.mean_w(1.0)
    assert worst_swing_w(metered, 15.0) <= 5e6
    assert worst_swing_w(metered, 60.0) <= 20e6
    assert found.outputs[int(25.0 / 0.05)].is_riding_down
    fallen_w = 90e6 - found.ref_w[-1]
    assert 0.8 * 5e6 / 15.0 * 70.0 < fallen_w < 5e6 / 15.0 * 70.0


def test_the_target_stays_below_what_a_crash_would_forgive() -> None:
    """A planner that wants too much is clamped at g_safe; the battery then survives the crash within its energy."""
    site = site_of()
    assert site.battery is not None
    small = replace(site.battery, energy_j=3e9, charge_w_max=70e6)
    site = replace(site, battery=small)
    crash_s = 60.0
    load_w = np.asarray(np.minimum(drop_w(1.9, at_s=crash_s, seconds=260.0), 60e6), dtype=np.float64)
    found = run(
        load_w,
        site=site,
        target=lambda t_s, tracker: 95e6 if t_s < crash_s else 28e6,
        watches=watching(enforces_transient=False),
        soc_frac=0.4,
    )
    before = found.outputs[: int(crash_s / 0.05)]
    assert all(out.g_ref_w <= out.g_safe_w + 0.05e6 for out in before)
    assert before[-1].g_ref_w > before[-1].g_safe_w - 0.5e6, "and it goes as far as it may"
    charged_j = -np.minimum(found.battery_w, 0.0).sum() * TRUTH_S * small.eta
    discharged_j = np.maximum(found.battery_w, 0.0).sum() * TRUTH_S / small.eta
    assert 0.4 * 3e9 + charged_j - discharged_j <= 0.95 * 3e9 * 1.01
    assert np.abs((found.grid_w - found.ref_w)[int(62.0 / TRUTH_S) :]).max() < 1e6, "and never left its target"


def test_when_both_reserves_cannot_hold_the_drop_wins() -> None:
    """A rise to 100 MW asks for a high target, a crash to 28 MW for a low one: the low one it is, and said so."""
    site = site_of()
    assert site.battery is not None
    site = replace(site, battery=replace(site.battery, charge_w_max=30e6, discharge_w_max=20e6))
    found = run(
        np.full(int(30.0 / TRUTH_S), 60e6),
        site=site,
        target=lambda t_s, tracker: 60e6,
        watches=watching(enforces_rise=True, enforces_transient=False),
    )
    last = found.outputs[-1]
    assert last.g_rise_min_w > last.g_safe_w
    assert last.g_ref_w <= last.g_safe_w + 1e3
    rise = next(margin for margin in last.margins if margin.name == "rise")
    assert rise.value < 0.0


def test_a_ceiling_due_later_is_met_on_the_meter() -> None:
    """15 MW down in 60 s: waits, ramps, is there in time, and the ramp rows hold all the way."""
    ceiling = CeilingLimit(LimitId("target"), 65e6, 80.0, HERE, mean_s=1.0)
    site = site_of()
    load_w = np.full(int(110.0 / TRUTH_S), 80e6)
    tracker_limits = (*IESO_RAMP, ceiling)

    def target(t_s: float, tracker: Tracker) -> float:
        if t_s >= 15.0 and ceiling not in tracker.interval.limits:
            tracker.set_limits(tracker_limits, t_s)
        return 80e6

    found = run(load_w, site=site, target=target)
    metered = found.mean_w(1.0)
    assert metered[int(80.5 / TRUTH_S) :].max() <= 65e6
    assert found.ref_w[int(25.0 / TRUTH_S)] == pytest.approx(80e6, abs=1e4)
    assert worst_swing_w(metered, 15.0) <= 5e6


def test_a_tighter_contract_in_the_middle_holds_from_then_on() -> None:
    """ieso-ramp tightened to a fifth at 200 s: every window that begins afterwards keeps the new rows."""
    tight: tuple[Limit, ...] = (
        RampLimit(LimitId("ramp"), 6e6, 60.0, Direction.BOTH, 1.0, HERE),
        SwingLimit(LimitId("swing"), 1.5e6, 15.0, 1.0, HERE),
    )
    load_w = gpt3_load_w(400.0)
    mean = slow_mean(load_w, 60.0)

    def target(t_s: float, tracker: Tracker) -> float:
        if t_s >= 200.0 and tracker.interval.limits != tight:
            tracker.set_limits(tight, t_s)
        return mean(t_s, tracker)

    found = run(load_w, target=target)
    metered = found.mean_w(1.0)
    assert worst_swing_w(metered[: int(200.0 / TRUTH_S)], 15.0) <= 5e6
    assert worst_swing_w(metered[int(200.0 / TRUTH_S) :], 15.0) <= 1.5e6
    assert worst_swing_w(metered[int(200.0 / TRUTH_S) :], 60.0) <= 6e6


def test_a_lost_meter_holds_the_battery_and_the_fallback_walks_it_home() -> None:
    """The meter dies at 20 s; the command is held; FALLBACK then brings the battery to zero at the contract's slope."""
    t_s = np.arange(0.0, 80.0, TRUTH_S)
    load_w = np.asarray(70e6 + np.clip(t_s - 2.0, 0.0, 4.0) * 2e6, dtype=np.float64)
    found = run(
        load_w,
        target=lambda now_s, tracker: 70e6,
        meter=lambda now_s, power_w: power_w if now_s < 20.0 else None,
        mode=lambda now_s: Mode.NORMAL if now_s < 21.0 else Mode.FALLBACK,
    )
    held = found.battery_w[int(20.2 / TRUTH_S) : int(21.0 / TRUTH_S)]
    assert np.ptp(held) < 0.1e6, "nothing jumps when the meter goes"
    assert abs(found.battery_w[-1]) < 1e6
    assert worst_swing_w(found.mean_w(1.0), 15.0) <= 5e6


def test_a_battery_that_takes_no_orders_gets_none() -> None:
    """Without a battery the target is what the meter says, and load must stay inside the interval."""
    site = site_of()
    tracker = Tracker(site, start_s=0.0, start_w=60e6)
    estimator = LoadEstimator(site)
    for tick in range(100):
        now_s = tick * 0.05
        estimate = estimator.step(
            now_s,
            pcc=Reading(MeterSample(60e6 + 5e3 * tick), now_s - 0.03, Quality.GOOD, "pcc"),
            battery=None,
            nodes=(),
            meters={},
        )
        found = tracker.step(
            TrackerInput(
                now_s=now_s,
                estimate=estimate,
                battery=None,
                target_w=60e6,
                mode=Mode.NORMAL,
                watches=(),
                load_rise_w=100e6,
            )
        )
    assert found.aim is None
    assert found.g_ref_w == pytest.approx(60.4e6, abs=0.2e6)
    assert found.load_w_max == pytest.approx(found.high_w)


def test_a_battery_that_falls_silent_is_still_in_what_the_meter_would_show() -> None:
    """Meter and battery are both gone; the battery holds its 10 MW, so the target stays and does not go to the load."""
    tracker = Tracker(site_of(), start_s=0.0, start_w=50e6)
    given = estimate_without_meter(load_w=60e6, grid_w=50e6)
    for tick in range(60):
        found = tracker.step(
            TrackerInput(
                now_s=tick * 0.05,
                estimate=given,
                battery=None,
                target_w=50e6,
                mode=Mode.SHED,
                watches=(),
                load_rise_w=100e6,
            )
        )
    assert found.aim is None and found.g_ref_w == pytest.approx(50e6, abs=0.1e6)


def test_what_may_not_rise_is_not_asked_to_where_a_battery_has_reached_its_limit() -> None:
    """1 MW more load than target and battery together: the envelope's refusals would keep it in doubt for ever."""
    site, known = site_of(), estimate_without_meter(load_w=121e6, grid_w=51e6)
    for may_raise in (False, True):
        tracker = Tracker(site, start_s=0.0, start_w=50e6)
        for tick in range(100):
            now_s, sample = tick * 0.05, sample_of(site, 70e6, 17e6 * 3600.0, 70e6)
            given = quiet_input(now_s, replace(known, t_s=now_s), battery=sample, target_w=50e6, mode=Mode.SHED)
            found = tracker.step(replace(given, may_raise=may_raise))
        assert (found.g_ref_w > 50e6) is may_raise


def test_a_full_battery_gives_way_and_the_reference_goes_with_the_meter() -> None:
    """Load 20 MW under the target with a charge limit of 5 MW: the target cannot stay, so history follows the meter."""
    site = site_of()
    assert site.battery is not None
    site = replace(site, battery=replace(site.battery, charge_w_max=5e6))
    t_s = np.arange(0.0, 40.0, TRUTH_S)
    load_w = np.asarray(np.where(t_s < 10.0, 60e6, 40e6), dtype=np.float64)
    found = run(load_w, site=site, target=lambda now_s, tracker: 60e6)
    assert found.outputs[-1].is_saturated or abs(found.grid_w[-1] - found.ref_w[-1]) < 1e6
    assert abs(found.ref_w[int(16.0 / TRUTH_S)] - found.grid_w[int(16.0 / TRUTH_S)]) < 2.5e6
    assert found.outputs[int(30.0 / 0.05)].residual_w[LimitId("swing")] < 2e6, "a battery at its limit is no residual"


def test_a_first_jump_finds_room_in_the_row() -> None:
    """Seconds after the start the load drops by 47 MW and comes back: no ripple was known, and the row still holds."""
    t_s = np.arange(0.0, 40.0, TRUTH_S)
    load_w = np.asarray(np.interp(t_s, [4.0, 4.25, 16.0, 16.25], [77e6, 30e6, 30e6, 85e6]), dtype=np.float64)
    found = run(load_w, site=site_of(following=Following.DEVICE), target=lambda now_s, tracker: 100e6)
    assert worst_swing_w(found.mean_w(1.0), 15.0) <= 5e6
    assert found.ref_w[-1] - found.ref_w[0] > 5e6, "careful is not still"


def test_the_same_inputs_give_the_same_outputs() -> None:
    """Nothing random, nothing timed: two runs are equal to the last bit."""
    load_w = ripple_w(1.3, edge_s=0.2, seconds=30.0)
    first, second = run(load_w), run(load_w)
    assert np.array_equal(first.battery_w, second.battery_w)
    assert first.outputs[-1] == second.outputs[-1]


def test_an_exempt_target_is_reached_at_once_under_a_waiver() -> None:
    """The emergency path: a waived ramp lets the target jump 30 MW in one tick."""
    site = site_of()
    tracker = Tracker(site, start_s=0.0, start_w=80e6)
    estimator = LoadEstimator(site)
    tracker.waive_ramps(5.0, with_bands=True)

    def step(now_s: float, exempt_w: float | None) -> TrackerOutput:
        battery = sample_of(site, 0.0, 0.5 * 35e6 * 3600.0, 0.0)
        estimate = estimator.step(
            now_s,
            pcc=Reading(MeterSample(80e6), now_s - 0.03, Quality.GOOD, "pcc"),
            battery=Reading(battery, now_s, Quality.GOOD, "battery"),
            nodes=(),
            meters={},
        )
        return tracker.step(
            TrackerInput(
                now_s=now_s,
                estimate=estimate,
                battery=battery,
                target_w=80e6,
                mode=Mode.NORMAL,
                watches=(),
                load_rise_w=100e6,
                exempt_target_w=exempt_w,
            )
        )

    step(0.0, None)
    found = step(0.05, 50e6)
    assert found.g_ref_w == pytest.approx(50e6)
    assert found.aim is not None and found.aim.reference_w == pytest.approx(30e6, rel=0.02)


def random_load_w(seed: int, seconds: float = 120.0) -> FloatArray:
    """Jobs that come and go by up to 40 MW within a quarter of a second to five, and up to two square ripples."""
    rng = np.random.default_rng(seed)
    t_s = np.arange(0.0, seconds, TRUTH_S)
    at, level = [0.0], [60e6]
    while at[-1] < seconds:
        at += [at[-1] + rng.exponential(6.0) + 0.3]
        at += [at[-1] + rng.choice([0.25, 0.5, 2.0, 5.0])]
        level += [level[-1], float(np.clip(60e6 + rng.normal() * 12e6, 30e6, 92e6))]
    load_w = np.interp(t_s, at, level)
    for _ in range(rng.integers(0, 3)):
        load_w += rng.uniform(0.2, 1.5) * 1e6 * np.sign(np.sin(2 * np.pi * rng.uniform(0.4, 3.0) * t_s))
    return np.asarray(np.convolve(load_w, np.ones(10) / 10, mode="valid"), dtype=np.float64)


@pytest.mark.parametrize("seed", range(4))
def test_random_jobs_keep_the_contract_under_device_following(seed: int) -> None:
    """Load that swings three to nine times the row's allowance: what reaches the meter stays inside it."""
    load_w = random_load_w(seed)
    found = run(load_w, site=site_of(following=Following.DEVICE), target=slow_mean(load_w, 40.0))
    metered = found.mean_w(1.0)[200:]
    assert worst_swing_w(trailing_mean(load_w, 1.0), 15.0) > 15e6
    assert worst_swing_w(metered, 15.0) <= 5e6
    assert worst_swing_w(metered, 60.0) <= 20e6


@pytest.mark.parametrize(
    ("following", "load_step_w", "expected"),
    [
        (Following.SOFTWARE, 8e6, "rise"),  # it discharges, and without it grid power rises
        (Following.SOFTWARE, -8e6, "fall"),
        (Following.DEVICE, 8e6, "least"),  # what the load does until then decides
        (Following.DEVICE, -8e6, "least"),
    ],
)
def test_without_commands_the_battery_goes_back_as_fast_as_the_contract_allows_that_way(
    following: Following, load_step_w: float, expected: str
) -> None:
    """A contract that lets power fall faster than rise; nothing is kept for a crash once nobody can answer one."""
    rows = (
        RampLimit(LimitId("down"), 20e6, 60.0, Direction.DOWN, 1.0, HERE),
        RampLimit(LimitId("up"), 8e6, 60.0, Direction.UP, 1.0, HERE),
    )
    load_w = np.concatenate([np.full(1000, 60e6), np.full(400, 60e6 + load_step_w)])
    found = run(load_w, site=site_of(rows, following=following), watches=watching())
    interval = found.tracker.interval
    allowed = {"rise": interval.slope_up_w_per_s, "fall": interval.contingency_slope_w_per_s}
    allowed["least"] = min(allowed.values())
    assert allowed["fall"] > 1.5 * allowed["rise"] and allowed["fall"] > interval.slope_down_w_per_s
    aim = found.outputs[-1].aim
    assert aim is not None and aim.ramp_w_per_s == allowed[expected]
