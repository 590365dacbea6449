"""The emergency path: what is armed, what the battery is told while caps take hold, and when frequency trips."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.allocate import Curves
from controller.config.site import parse_site
from controller.demand import DemandWindow
from controller.droop import DroopTrip
from controller.emergency import (
    CALL_S,
    CAP_DEAD_S,
    CAP_LAG_S,
    COMMAND_S,
    Armed,
    Bridge,
    CapPath,
    CapTable,
    Steepness,
    caps_of,
    expected_path,
)
from controller.fleet import Fleet, is_any_commandable
from controller.gpu_model import GpuCurve
from controller.limits import LimitBook
from controller.types import (
    CeilingLimit,
    ClassId,
    DroopLimit,
    FleetTable,
    GpuId,
    GridSignal,
    LimitId,
    LimitStatus,
    MeterSample,
    NodeId,
    Provenance,
    Quality,
    Reading,
    SignalKind,
)
from tests.dsx_kit import image

CURVE = GpuCurve("test", "test", 0.2, 3.0, 0.98, "made up")
SOURCE = Provenance("test", "2026-01-01", LimitStatus.LOCAL)
MW = 1e6


def fleet(*, per_class: int = 2, classes: int = 2) -> Fleet:
    """`classes` classes of `per_class` GPUs on a node each; 70 W idle, 700 W at most, 300 to 1980 MHz."""
    n = per_class * classes
    ids = tuple(GpuId(f"g{i}") for i in range(n))
    table = FleetTable(
        gpu_ids=ids,
        index={g: i for i, g in enumerate(ids)},
        spans={NodeId(f"n{k}"): slice(k * per_class, (k + 1) * per_class) for k in range(classes)},
        cap_min=np.vstack((np.full(n, 300.0), np.full(n, 200.0))),
        cap_max=np.vstack((np.full(n, 1980.0), np.full(n, 700.0))),
        floor_mhz=np.full(n, 900.0),
        idle_w=np.full(n, 70.0),
        peak_w=np.full(n, 700.0),
        stands_for=np.full(n, 1.0),
        power_exponent=1.0,
    )
    names = tuple(ClassId(f"c{k}") for k in range(classes))
    index = np.repeat(np.arange(classes), per_class)
    return Fleet(table, names, index, ("test",) * n, index, names)


def armed(priority: tuple[int, ...] = (20, 80), demand_w: tuple[float, ...] = (1300.0, 1300.0)) -> Armed:
    found = fleet(classes=len(priority))
    curves = Curves((CURVE,), np.zeros(found.count, dtype=np.int64))
    return Armed.arm(found, curves, demand_w=np.array(demand_w), other_w=100.0, ripple_up_w=50.0, priority=priority)


FREE = np.full((2, 4), np.inf)
NONE_FIXED = np.zeros(4, dtype=np.bool_)


def test_the_lower_priority_gives_first_and_to_its_floor_before_the_higher_gives_anything() -> None:
    ready = armed()
    at_w = 2600.0 - 200.0
    clocks = ready.clocks_mhz(at_w)
    assert np.all(np.isinf(clocks[2:])) and np.all(clocks[:2] < 1980.0)
    assert ready.power_w(clocks) == pytest.approx(at_w, abs=4.0)


def test_what_can_be_shed_is_what_lies_above_the_service_floors() -> None:
    """The middle of the table: every class at its floor, none below it, whatever their priorities and number."""
    for priority in ((20, 80), (80, 20), (50,), (10, 20, 30)):
        found = armed(priority, (1300.0,) * len(priority))
        floors = found.power_w(np.minimum(found.fleet.table.floor_mhz, 1980.0))
        assert found.sheddable_w == pytest.approx(1300.0 * len(priority) - floors)
        assert found.busy_gpu_w == pytest.approx(650.0)


def test_below_all_service_floors_the_lowest_priority_goes_below_its_floor_first() -> None:
    ready = armed()
    both_at_floor_w = ready.power_w(np.full(4, 900.0))
    clocks = ready.clocks_mhz(both_at_floor_w - 30.0)
    assert np.all(clocks[:2] < 900.0) and np.all(clocks[2:] >= 899.0)


@given(st.floats(min_value=0.0, max_value=4000.0))
def test_the_table_is_exact_between_its_rows_and_stays_in_range_outside(level_w: float) -> None:
    table = armed().table
    share = table.at(level_w)
    dynamic_w = np.array([1160.0, 1160.0])
    reached_w = 280.0 + float(share @ dynamic_w)
    assert np.all((share >= 0.0) & (share <= 1.0))
    assert reached_w == pytest.approx(np.clip(level_w, table.level_w[0], table.level_w[-1]), abs=1e-6)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_table_never_asks_more_of_a_class_at_a_lower_priority_level(
    priority: list[int], floor: float, least: float
) -> None:
    n = len(priority)
    table = CapTable.build(
        idle_w=np.full(n, 100.0),
        demand_w=np.full(n, 500.0),
        floor_share=np.full(n, floor),
        least_share=np.full(n, least),
        priority=priority,
    )
    assert np.all(np.diff(table.level_w) >= -1e-9) and np.all(np.diff(table.share, axis=0) >= -1e-12)


def test_caps_never_rise_and_a_clock_written_just_now_leaves_the_work_to_a_power_limit() -> None:
    ready = armed()
    last = np.vstack((np.full(4, 1500.0), np.full(4, np.inf)))
    fixed = np.array([True, False, False, False])
    caps, expected_w = caps_of(ready, gpu_w=900.0, last=last, is_clock_fixed=fixed, hard_w=math.inf)
    assert np.all(caps <= last)
    assert caps[0, 0] == 1500.0 and caps[1, 0] < 700.0
    assert caps[0, 1] < 1500.0 and math.isinf(caps[1, 1])
    assert expected_w == pytest.approx(900.0, abs=5.0)


def test_power_limits_bring_the_worst_case_down_and_leave_the_clocks_to_the_mean() -> None:
    ready = armed()
    free_caps, _ = caps_of(ready, gpu_w=2000.0, last=FREE, is_clock_fixed=NONE_FIXED, hard_w=math.inf)
    hard_caps, _ = caps_of(ready, gpu_w=2000.0, last=FREE, is_clock_fixed=NONE_FIXED, hard_w=2000.0)
    assert np.array_equal(free_caps[0], hard_caps[0])
    assert float(np.minimum(hard_caps[1], 700.0).sum()) <= 2000.0


def test_a_steeper_fleet_gets_higher_clocks_for_the_same_power() -> None:
    found = fleet()
    curves = Curves((CURVE,), np.zeros(4, dtype=np.int64))
    demand = np.array([1300.0, 1300.0])
    plain, steep = (
        Armed.arm(found, curves, demand_w=demand, other_w=0.0, ripple_up_w=0.0, priority=(1, 1), steepness=x)
        for x in (1.0, 1.5)
    )
    assert np.all(steep.clocks_mhz(2300.0)[:2] > plain.clocks_mhz(2300.0)[:2])
    assert steep.power_w(steep.clocks_mhz(2300.0)) == pytest.approx(2300.0, abs=5.0)


def test_steepness_is_learned_from_what_the_load_did() -> None:
    """The prior is too flat: what was expected at 1500 W came out at 1300 W."""
    ready, learned = armed(), Steepness()
    for _ in range(8):
        learned.watch(ready, settled_s=0.0, expected_w=1500.0)
        for k in range(20):
            learned.saw(0.05 * k, 100.0 + 1300.0)
    expected, actual = (1500.0 - 280.0) / 2320.0, (1300.0 - 280.0) / 2320.0
    assert learned.value == pytest.approx(math.log(actual) / math.log(expected), rel=0.02)


def test_samples_from_before_the_caps_took_hold_teach_nothing() -> None:
    learned = Steepness()
    learned.watch(armed(), settled_s=10.0, expected_w=1500.0)
    for k in range(40):
        learned.saw(0.05 * k, 500.0)
    assert learned.value == 1.0


# ------------------------------------------------------------------------------------------------ the battery's part


def test_the_expected_fall_starts_after_the_dead_time_and_ends_at_the_caps_power() -> None:
    path = expected_path(5.0, from_w=10.0, to_w=7.0, gpus_per_node=8)
    assert path.load_w(5.0 + COMMAND_S + CAP_DEAD_S) == 10.0
    assert path.load_w(path.settled_s) == pytest.approx(7.0, abs=0.02 * 3.0)
    times = np.linspace(5.0, 5.5, 200)
    assert np.all(np.diff([path.load_w(t) for t in times]) <= 1e-12)


def test_one_gpu_falls_first_order_and_more_take_turns() -> None:
    alone = expected_path(0.0, from_w=1.0, to_w=0.0, gpus_per_node=1)
    eight = expected_path(0.0, from_w=1.0, to_w=0.0, gpus_per_node=8)
    at_s = alone.begin_s + 0.05
    assert alone.load_w(at_s) == pytest.approx(math.exp(-0.05 / CAP_LAG_S))
    each = [math.exp(-max(0.0, at_s - eight.begin_s - u) / CAP_LAG_S) for u in np.linspace(0, 7 * CALL_S, 2001)]
    assert eight.load_w(at_s) == pytest.approx(float(np.mean(each)), abs=1e-3)


def settle(
    *,
    period_s: float = 0.01,
    lag_s: float = 0.06,
    is_led: bool = True,
    is_fed: bool = False,
    late_s: float = 0.0,
    end_w: float = 0.0,
    from_s: float = 0.1,
    until_s: float = 0.6,
) -> tuple[float, float]:
    """Worst sum below and above the target from `from_s` on, as shares of the step, with set-points every `period_s`.

    The real fall comes `late_s` after the expected one and ends `end_w` above it; a meter shows it 12 ms late.
    """
    path = expected_path(0.0, from_w=10.0, to_w=7.0, gpus_per_node=8)
    real = CapPath(path.begin_s + late_s, path.spread_s, 10.0, 7.0 + end_w)
    bridge = Bridge(path, now_s=0.0, power_w=0.0, lag_s=lag_s, ramp_w_per_s=math.inf)
    power_w = set_w = 0.0
    due_s, low, high = 0.0, math.inf, -math.inf
    sums_w: list[float] = []
    for k in range(round(until_s * 1e3)):
        t_s = k * 1e-3
        if t_s >= due_s:
            due_s += period_s
            if is_fed and k >= 12:
                bridge.saw(t_s - 0.012, sums_w[k - 12])
            if is_led:
                set_w = bridge.answers_w(t_s, target_w=7.0, charge_w_max=20.0, discharge_w_max=20.0)
            else:
                set_w = path.load_w(t_s - 0.03) - 7.0  # what a meter shows, late
        power_w += (set_w - power_w) * (1.0 - math.exp(-1e-3 / lag_s))
        sums_w.append(real.load_w(t_s) - power_w)
        if t_s >= from_s:
            off = (sums_w[-1] - 7.0) / 3.0
            low, high = min(low, off), max(high, off)
    return low, high


def test_the_led_battery_keeps_the_sum_on_target_where_following_undershoots() -> None:
    led, followed = settle(period_s=0.01, is_led=True), settle(period_s=0.05, is_led=False)
    assert led[0] > -0.05 and led[1] < 0.05
    assert followed[0] < -0.2


@pytest.mark.parametrize("late_s", [-0.01, 0.01])
def test_the_meter_tells_a_late_fall_from_an_early_one(late_s: float) -> None:
    """Caps that bite 10 ms off their time: with the meter half of the error, or less, is left after 0.1 s."""
    blind, fed = settle(late_s=late_s), settle(late_s=late_s, is_fed=True)
    assert max(-blind[0], blind[1]) > 0.07
    assert max(-fed[0], fed[1]) < 0.55 * max(-blind[0], blind[1])


@pytest.mark.parametrize("end_w", [-0.6, 0.6])
def test_a_fall_that_ends_elsewhere_is_made_good_by_what_the_meter_shows(end_w: float) -> None:
    """Caps worth a fifth of the step more or less than expected: blind, that stays; with the meter it goes."""
    blind = settle(end_w=end_w, from_s=0.16, until_s=0.18)
    fed = settle(end_w=end_w, is_fed=True, from_s=0.16, until_s=0.18)
    assert max(-blind[0], blind[1]) > 0.18
    assert max(-fed[0], fed[1]) < 0.08


def test_no_sample_and_no_late_cycle_leads_the_battery_far_astray() -> None:
    """A meter that shows ten times the load, and a lead that stays in force: both are bounded by shares of the step."""
    path = expected_path(0.0, from_w=10.0, to_w=7.0, gpus_per_node=8)
    bridge = Bridge(path, now_s=0.0, power_w=0.0, lag_s=0.06, ramp_w_per_s=math.inf)
    first_w = bridge.answers_w(0.0, target_w=7.0, charge_w_max=1e9, discharge_w_max=1e9)
    assert first_w == pytest.approx(3.0 + 0.7 * 3.0), "undoing all of the lag at once would ask for 7.6"
    for k in range(5, 16):
        bridge.saw(0.01 * k, 100.0)
        assert bridge._miss_w <= 0.4 * 3.0 + 1e-9 and bridge._late_s <= 0.012 + 1e-4
        set_w = bridge.answers_w(0.01 * k + 0.005, target_w=7.0, charge_w_max=1e9, discharge_w_max=1e9)
        assert -0.7 * 3.0 <= set_w <= 3.0 + 0.7 * 3.0 + 1e-9


@pytest.mark.parametrize("period_s", [0.005, 0.01, 0.02])
def test_cycles_that_come_early_or_late_do_not_overshoot(period_s: float) -> None:
    low, high = settle(period_s=period_s, is_led=True)
    assert low > -0.12 and high < 0.12


def test_set_points_stay_within_what_the_battery_can_do() -> None:
    path = expected_path(0.0, from_w=100.0, to_w=10.0, gpus_per_node=1)
    bridge = Bridge(path, now_s=0.0, power_w=0.0, lag_s=0.06, ramp_w_per_s=math.inf)
    found = [bridge.answers_w(0.01 * k, target_w=10.0, charge_w_max=5.0, discharge_w_max=30.0) for k in range(30)]
    assert max(found) <= 30.0 and min(found) >= -5.0


# ------------------------------------------------------------------------------------------------ frequency trips

DROOP = DroopLimit(LimitId("droop"), 0.036, 50.0 * MW, 10.0 * MW, SOURCE)


def sample(
    t_s: float, hz: float | None, power_w: float = 80.0 * MW, quality: Quality = Quality.GOOD
) -> Reading[MeterSample]:
    return Reading(MeterSample(power_w, frequency_hz=hz), t_s, quality, "pcc")


def calm() -> DroopTrip:
    trip = DroopTrip()
    for k in range(20):
        assert trip.target_w([DROOP], sample(0.05 * k, 60.0)) is None
    return trip


def test_two_samples_below_the_deadband_trip_and_one_does_not() -> None:
    trip = calm()
    assert trip.target_w([DROOP], sample(1.00, 59.8)) is None
    assert trip.target_w([DROOP], sample(1.00, 59.8)) is None, "the same sample again proves nothing"
    asked_w = 50.0 * MW * (0.2 - 0.036)
    target_w = trip.target_w([DROOP], sample(1.05, 59.8))
    assert target_w is not None
    assert 80.0 * MW - asked_w - 0.01 * 10.0 * MW <= target_w <= 80.0 * MW - asked_w


def test_the_response_follows_frequency_is_bounded_and_starts_from_the_power_before() -> None:
    trip = calm()
    trip.target_w([DROOP], sample(1.00, 59.0))
    assert trip.target_w([DROOP], sample(1.05, 59.0)) == pytest.approx(70.0 * MW)
    assert trip.target_w([DROOP], sample(1.10, 59.0, power_w=70.0 * MW)) == pytest.approx(70.0 * MW)
    assert trip.target_w([DROOP], sample(1.15, 60.3)) == pytest.approx(90.0 * MW)


def test_an_excursion_is_over_after_frequency_was_calm_for_a_while() -> None:
    trip = calm()
    trip.target_w([DROOP], sample(1.00, 59.0))
    trip.target_w([DROOP], sample(1.05, 59.0))
    assert trip.target_w([DROOP], sample(1.10, 60.0)) == pytest.approx(80.0 * MW)
    assert trip.target_w([DROOP], sample(7.0, 60.0)) is None


@pytest.mark.parametrize("bad", [sample(1.0, 0.0), sample(1.0, 600.0), sample(1.0, None), None])
def test_a_frequency_no_grid_has_changes_nothing(bad: Reading[MeterSample] | None) -> None:
    trip = calm()
    assert trip.target_w([DROOP], bad) is None
    trip.target_w([DROOP], sample(1.1, 59.0))
    target_w = trip.target_w([DROOP], sample(1.2, 59.0))
    assert target_w is not None and trip.target_w([DROOP], bad) == target_w, "nor does it end a response"


def test_samples_that_are_not_good_do_not_trip() -> None:
    trip = calm()
    for k in range(5):
        assert trip.target_w([DROOP], sample(1.0 + k, 59.0, quality=Quality.SUSPECT)) is None


def test_without_droop_rows_nothing_trips() -> None:
    trip = DroopTrip()
    assert all(trip.target_w([], sample(0.1 * k, 55.0)) is None for k in range(5))


# ------------------------------------------------------------------------------------------------ what counts as one


SITE = {
    "role": "site",
    "registered_peak_megawatt": 100,
    "limits": [{"id": "c", "kind": "ceiling", "max_megawatt": 99}],
    "load": {"gpu_peak_megawatt": 80, "gpu_idle_megawatt": 10, "gpu_fallback_megawatt": 40, "other_max_megawatt": 10},
    "mqtt": {"port": 1883},
}


def emergency(target_mw: float, power_mw: float, *, from_s: float = 10.0, meter: bool = True) -> list[float | None]:
    """What the limits say at 10 s, and at 20 s when load has risen to 95 MW, of an exempt target from `from_s` on."""
    signal = GridSignal(
        kind=SignalKind.LOAD_TARGET,
        issuer="iso",
        signal_id="x/0",
        correlation_id="x",
        feeds=("main",),
        from_s=from_s,
        until_s=100.0,
        target_w=target_mw * MW,
        limits=(),
        is_best_effort=False,
        ramp_exempt=True,
    )
    book = LimitBook(parse_site(SITE, origin="site.yaml").site)  # type: ignore[arg-type]
    seen = []
    for t_s, mw in ((10.0, power_mw), (20.0, 95.0)):
        seen_now = replace(image(t_s, mw * MW), signals=(signal,))
        found = book.in_force(seen_now if meter else replace(seen_now, pcc=None))
        rows = [r.max_w for r in found.limits if isinstance(r, CeilingLimit)]
        assert rows == [99.0 * MW, target_mw * MW], "a ceiling anyway"
        seen.append(found.exempt_target_w)
    return seen


def test_an_emergency_target_lowers_and_never_lifts() -> None:
    """Below the power when it begins it is answered at once; above, it is a ceiling like any other, also later."""
    assert emergency(60.0, 80.0) == [60.0 * MW, 60.0 * MW]
    assert emergency(90.0, 80.0) == [None, None]
    assert emergency(60.0, 80.0, from_s=15.0) == [None, 60.0 * MW]
    assert emergency(60.0, 80.0, meter=False) == [60.0 * MW, 60.0 * MW], "unknown power: answered"


@pytest.mark.parametrize(("fixed_w", "waits"), [([math.nan, 300.0], True), ([300.0, 300.0], False), ([], False)])
def test_caps_are_counted_on_only_where_some_gpu_obeys(fixed_w: list[float], waits: bool) -> None:
    """Nodes that only report: the battery answers for the whole step at once instead of leaving part of it to caps."""
    acks: Any = SimpleNamespace(fixed_w=np.array(fixed_w))
    assert is_any_commandable(acks) is waits


# ------------------------------------------------------------------------------------------------ what is learnt of it


def test_the_first_response_teaches_all_it_shows_and_later_ones_half() -> None:
    ready, learned = armed(), Steepness()
    seen = []
    for _ in range(2):
        learned.watch(ready, settled_s=0.0, expected_w=1500.0)
        for k in range(20):
            learned.saw(0.05 * k, 100.0 + 1300.0)
        seen.append(learned.value)
    expected, actual = (1500.0 - 280.0) / 2320.0, (1300.0 - 280.0) / 2320.0
    assert seen == pytest.approx([math.log(actual) / math.log(expected)] * 2)
    learned.watch(ready, settled_s=0.0, expected_w=1500.0)
    for k in range(20):
        learned.saw(0.05 * k, 100.0 + 1500.0)
    assert learned.value == pytest.approx((seen[0] + 1.0) / 2.0)


@pytest.mark.parametrize(("drawn_w", "is_learned"), [(1295.0, False), (1200.0, True)])
def test_what_a_power_limit_holds_says_nothing_of_the_clocks(drawn_w: float, is_learned: bool) -> None:
    """Four limits of 325 W: GPUs that draw 99 % of them are held by them, at 92 % by their clocks."""
    ready, learned = armed(), Steepness()
    learned.watch(ready, settled_s=0.0, expected_w=1500.0, limits_w=np.full(4, 325.0))
    for k in range(20):
        learned.saw(0.05 * k, 100.0 + drawn_w)
    assert (learned.value > 1.0) is is_learned


def test_own_caps_begin_the_window_of_demand_anew() -> None:
    """100, then our caps bring it to 60: mean and ripple are of 60 alone once it settled, and of 100 until then."""
    window = DemandWindow(peak_w=100.0)
    for k in range(20):
        window.add(0.05 * k, 100.0)
    window.begin_anew(1.2)
    for t_s, load_w in ((1.05, 90.0), (1.1, 75.0), (1.15, 62.0)):
        window.add(t_s, load_w)
    before = window.stretch()
    assert (before.mean_w, before.bottom_w) == (100.0, 100.0)
    for k in range(4):
        window.add(1.2 + 0.05 * k, 60.0)
    after = window.stretch()
    assert (after.mean_w, after.top_w, after.bottom_w) == (60.0, 60.0, 60.0)
