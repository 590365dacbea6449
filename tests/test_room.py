"""Caps under a ceiling are steady: floors of whole clocks, a margin that does not ripple, raises that wait."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.allocate import drawn_w
from controller.fleet import Fleet, FleetBook, FleetReadings
from controller.glide import STEEPNESS
from controller.node_orders import is_settled
from controller.room import (
    MARGIN_MEMORY_S,
    HeldMargin,
    Steps,
    caught_w_max,
    dip_w_max,
    fall_w_max,
    let_go_w_max,
    softened,
    step_range_w,
    stepped,
    steps_now,
)
from controller.settings import SiteSettings
from controller.types import (
    CeilingLimit,
    EnvelopeState,
    FleetAcks,
    FloatArray,
    LimitId,
    PccRing,
    Quality,
    Reading,
    SwingLimit,
    WindowCheck,
)
from controller.unheld import Drift
from controller.view import envelope_battery, ordered_w
from tests.test_identify import TOP_MHZ, fleet_of
from tests.test_jobs import report, site
from tests.tracker_kit import HERE, sample_of, site_of

__all__ = ["site"]  # the fixture


def test_a_rippling_margin_is_planned_with_at_its_top() -> None:
    """A tenth of a load between 4 and 5 kW: once seen the top stands, and goes with what made it."""
    held = HeldMargin()
    seen = [held.step(0.5 * i, 450.0 + 50.0 * (-1.0) ** i) for i in range(200)]
    assert set(seen[1:]) == {500.0}
    later_s = 100.0 + MARGIN_MEMORY_S
    assert held.step(later_s, 300.0) == 500.0, "what is less than two minutes old may be back"
    assert held.step(later_s + MARGIN_MEMORY_S, 300.0) == 300.0


def test_the_service_floor_is_a_clock_that_commands_can_carry(site: SiteSettings) -> None:
    """A floor of 835.5 MHz would be written as 835 and refused by the envelope for being below it, every second."""
    fleet = FleetBook(replace(site, service_floor_frac=0.29971)).fleet((report("gpu-1", 4),))
    floor = fleet.table.floor_mhz
    assert (floor == np.floor(floor)).all() and (floor > fleet.table.cap_min[0]).all()


def test_raises_wait_for_lowers_where_a_ceiling_needs_them() -> None:
    """One GPU is lowered and another raised: together they fit, beside the lowered one's old cap they do not."""
    fleet = fleet_of([0, 0])
    table = fleet.table
    asked = np.array([[600.0, 1200.0], [np.inf, np.inf]])
    before = EnvelopeState(gpu_ids=table.gpu_ids, caps=np.array([[1200.0, 600.0], [np.inf, np.inf]]))
    range_w = float(table.peak_w[0] - table.idle_w[0])
    fits_w = 10.0 * (2.0 * float(table.idle_w[0]) + range_w * (600.0 + 1200.0) / TOP_MHZ) + 1.0  # each for ten

    def read_back(caps: FloatArray, fixed_w: float = np.nan, *, is_deaf: bool = False) -> FleetReadings:
        acks = FleetAcks(np.minimum(caps, table.cap_max), np.ones(2, bool), np.array([fixed_w, np.nan]))
        return FleetReadings(np.zeros(2), acks, np.ones(2, bool), is_deaf=np.array([is_deaf, False]))

    acked = read_back(before.caps)
    assert not is_settled(fleet, asked, acked, before, fits_w)
    assert is_settled(fleet, asked, acked, before, np.inf), "nobody needs to wait where nothing is due"
    written = replace(before, caps=asked)
    assert not is_settled(fleet, asked, acked, written, fits_w), "written, and not read back"
    assert is_settled(fleet, asked, read_back(asked), written, fits_w)
    assert is_settled(fleet, asked, read_back(asked, 700.0), written, fits_w), "not heard, and it may hear"
    assert not is_settled(fleet, asked, read_back(asked, 700.0, is_deaf=True), written, fits_w), "draws what it likes"


def test_what_caps_let_go_at_once_fits_the_row_with_the_shortest_mean() -> None:
    """A follower of 23 ms leaves 23 of 200 ms of a fall on a row of 10 MW in 6 s, and 3 % of it were kept free."""
    brief = SwingLimit(LimitId("brief"), 10e6, 6.0, 0.2, HERE)
    usual = SwingLimit(LimitId("usual"), 5e6, 15.0, 1.0, HERE)
    assert dip_w_max([usual], t_eff_s=0.023) == pytest.approx(0.15e6 / 0.023)
    assert dip_w_max([usual, brief], t_eff_s=0.023) == pytest.approx(0.3e6 * 0.2 / 0.023)
    assert dip_w_max([usual, brief], t_eff_s=2.0) == pytest.approx(0.15e6), "all of a fall that stays is in every mean"
    assert dip_w_max([], t_eff_s=0.023) == np.inf


@pytest.mark.parametrize(
    ("target_w", "discharge_w_max", "is_remote", "left_w"),
    [
        (60e6, 70e6, True, 8e6),
        (63e6, 70e6, True, 8e6),
        (54e6, 70e6, True, 2e6),
        (52e6, 70e6, True, 0.0),
        (54e6, 1e6, True, 5e6),  # 2 MW of charging and 1 MW that it can give
        (54e6, 0.0, False, 8e6),  # tripped, or in local control: nobody takes it
    ],
)
def test_what_the_target_took_of_the_rows_is_not_there_for_caps_as_well(
    target_w: float, discharge_w_max: float, is_remote: bool, left_w: float
) -> None:
    """Rows leave 8 MW below the 60 that are metered; a target already 6 MW lower has its battery do that (1000054)."""
    row, site = SwingLimit(LimitId("usual"), 5e6, 15.0, 1.0, HERE), site_of()
    sample = replace(sample_of(site, -2e6, 5e10, 0.0), discharge_w_max=discharge_w_max, is_remote=is_remote)
    now: Any = SimpleNamespace(
        now_s=0.0,
        estimate=SimpleNamespace(grid_w=60e6, t_eff_s=0.15),
        image=SimpleNamespace(battery=Reading(sample, 0.0, Quality.GOOD, "battery")),
        in_force=SimpleNamespace(limits=(row,)),
        mode=SimpleNamespace(flags=frozenset()),
    )
    interval = SimpleNamespace(project=lambda times_s: (np.array([52e6]), np.array([70e6])))
    bounds = SimpleNamespace(charge_w_max=30e6)
    tracker: Any = SimpleNamespace(interval=interval, g_ref_w=target_w, battery_now=lambda sample: bounds)
    battery = envelope_battery(site, now.image, now.mode.flags)
    view: Any = SimpleNamespace(sag_w=ordered_w(now.image, now.estimate, tracker, battery=battery))
    caught_w = caught_w_max(now, tracker)
    assert caught_w == pytest.approx(1e6), "3 % of the row for 0.15 s; the battery could take 28"
    assert fall_w_max(now, view=view, low_w=52e6, caught_w=caught_w) == pytest.approx(left_w / STEEPNESS + 1e6)


def test_a_battery_takes_over_no_more_than_it_still_can() -> None:
    """It takes 30 MW and charges with 29.6: what else is let go is on the meter for good."""
    row, sample = SwingLimit(LimitId("usual"), 5e6, 15.0, 1.0, HERE), sample_of(site_of(), -29.6e6, 5e10, 0.0)
    now: Any = SimpleNamespace(
        estimate=SimpleNamespace(t_eff_s=0.15),
        image=SimpleNamespace(battery=Reading(sample, 0.0, Quality.GOOD, "battery")),
        in_force=SimpleNamespace(limits=(row,)),
    )
    tracker: Any = SimpleNamespace(battery_now=lambda sample: SimpleNamespace(charge_w_max=30e6))
    assert caught_w_max(now, tracker) == pytest.approx(0.4e6)


@pytest.mark.parametrize(
    ("grid_w", "target_w", "ceiling_w", "let_go_w"),
    [
        (60e6, 60e6, 70e6, 8e6),
        (60e6, 60e6, 50e6, 0.0),  # the target will take all of it itself
        (60e6, 60e6, 55e6, 3e6),
        (63e6, 60e6, 50e6, 3e6),  # no battery carries what stands above the target
        (59e6, 60e6, 70e6, 8e6),
    ],
)
def test_a_plan_lets_go_what_the_target_does_not_take_itself(
    grid_w: float, target_w: float, ceiling_w: float, let_go_w: float
) -> None:
    """Rows leave the target 52 MW, and the battery takes over 0.3."""
    ceiling = CeilingLimit(LimitId("ceiling"), ceiling_w, -np.inf, HERE)
    now: Any = SimpleNamespace(
        now_s=0.0,
        estimate=SimpleNamespace(grid_w=grid_w),
        in_force=SimpleNamespace(limits=(ceiling,)),
    )
    found_w = let_go_w_max(now, target_w=target_w, low_w=52e6, caught_w=0.3e6)
    assert found_w == pytest.approx(let_go_w + 0.3e6)


def ring_of(greatest_w: list[float], least_w: list[float]) -> PccRing:
    return PccRing(1.0, 0.4, 1.0, np.array(least_w), np.array(greatest_w))


def window_of(ring: PccRing, *, up: bool = True, down: bool = True, window_s: float = 2.0) -> WindowCheck:
    return WindowCheck(LimitId("row"), window_s, 5.1e6, 0.0, 0.15e6, up, down, ring)


def steps_under(ceiling_w: float, *, sag_w: float = 0.5e6, drift: Drift | None = None) -> Steps:
    """A meter at 60.2 MW in a window whose last two seconds reach to 61 MW; the one before, half outside, to 62 MW."""
    ring = ring_of([60e6, 61e6, 62e6], [59e6, 58e6, 40e6])
    limits = (CeilingLimit(LimitId("ceiling"), ceiling_w, -np.inf, HERE),)
    now: Any = SimpleNamespace(
        now_s=0.0, estimate=SimpleNamespace(grid_w=60.2e6), in_force=SimpleNamespace(limits=limits)
    )
    view: Any = SimpleNamespace(windows=(window_of(ring),), sag_w=sag_w, swell_w=0.3e6)
    return steps_now(view, now, drift)


def test_where_nobody_holds_power_caps_have_what_the_rows_leave_and_no_margin_of_a_follower() -> None:
    """Of 5 MW but for a hundredth; by as much of a clock's chord as the envelope asks for, with its own steepness."""
    asked_w = (60.2e6 - 0.5e6 - (61e6 - 4.95e6)) / STEEPNESS
    steps = steps_under(61e6, drift=Drift(0.5e6, 1e6))
    assert (steps.fall_w, steps.steepness) == (pytest.approx(asked_w), 1.0)
    assert steps.rise_w == pytest.approx((58e6 + 4.95e6 - 60.2e6 - 1e6) / STEEPNESS)
    assert steps_under(61e6).rise_w == np.inf, "a battery holds it: rises are the plan's own"
    given = steps_under(61e6, drift=Drift(0.5e6, -6e6, is_followed=True))
    assert given.rise_w == pytest.approx(steps.rise_w + 7e6 / STEEPNESS), "a battery that can give softens a rise"
    assert steps_under(61e6, sag_w=5e6, drift=Drift(5e6, 5e6)) == Steps(0.0, STEEPNESS, 0.0)
    assert step_range_w(()) == (-np.inf, np.inf)


def test_what_is_above_a_ceiling_goes_by_limits_at_once_where_the_rows_surely_leave_it() -> None:
    """A limit takes off what it goes down by and no more; a clock is still held to its steepest."""
    asked_w = (60.2e6 - 0.5e6 - (61e6 - 4.95e6)) / STEEPNESS
    over = steps_under(59e6)
    assert over.fall_w == pytest.approx(1.5e6) and over.fall_w / over.steepness == pytest.approx(asked_w)
    surely = steps_under(50e6)
    assert surely.fall_w == pytest.approx(60.2e6 - 0.5e6 - (62e6 - 4.95e6))
    assert surely.fall_w / surely.steepness == pytest.approx(asked_w)


def test_each_way_is_bound_by_the_rows_that_judge_it_and_a_slope_has_more_room_the_older_it_is() -> None:
    ring = ring_of([60e6, 61e6, 70e6], [59e6, 58e6, 40e6])
    assert step_range_w((window_of(ring, up=False),)) == (pytest.approx(56.05e6), np.inf)
    assert step_range_w((window_of(ring, down=False),)) == (-np.inf, pytest.approx(62.95e6))
    assert step_range_w((window_of(ring, window_s=0.1),)) == (pytest.approx(55.05e6), pytest.approx(63.95e6))
    assert step_range_w((window_of(ring, window_s=60.0),)) == (pytest.approx(65.05e6), pytest.approx(44.95e6))
    slope = WindowCheck(LimitId("rate"), 60.0, 1e6, 5e6, 0.0, True, True, ring)
    assert step_range_w((slope,)) == (pytest.approx(58e6), pytest.approx(52e6)), "5 MW a second, as old as each is"


def test_a_limit_that_binds_comes_down_before_its_clock_and_to_the_next_whole_watt() -> None:
    """The worst case is at the limit; the clock bounds bursts that a limit lets through, and has time until then."""
    fleet = fleet_of([0, 0])
    low_w, written, by_clock_w = limited(fleet)
    asked = np.array([[1000.0, 1000.0], [low_w - 20.0, np.inf]])
    all_w = 10.0 * (20.0 + by_clock_w)  # each stands for ten
    found = softened(fleet, asked, written, steps=Steps(all_w, 1.0, 0.0))
    assert found.tolist() == [[1200.0, 1000.0], [low_w - 20.0, np.inf]]
    assert softened(fleet, asked, found, steps=Steps(10.0 * by_clock_w, 1.0, 0.0)).tolist() == asked.tolist()
    half = softened(fleet, asked, written, steps=Steps(0.53 * all_w, 1.0, 0.0))
    assert half[0].tolist() == [1200.0, np.floor(1200.0 - 0.53 * 200.0)]
    assert half[1].tolist() == [np.floor(low_w - 0.53 * 20.0), np.inf]
    least = softened(fleet, asked, written, steps=Steps(1.0, 1.0, 0.0))
    assert least.tolist() == [[1200.0, 1199.0], [low_w - 1.0, np.inf]], "to the next whole step, however little falls"
    steep = softened(fleet, asked, found, steps=Steps(10.0 * by_clock_w, 2.0, 0.0))
    assert steep[0].tolist() == [1100.0, 1000.0], "what a clock takes off is more than its part of the chord"
    free = softened(fleet, np.array([[1000.0, 1000.0], [np.inf, np.inf]]), written, steps=Steps(1e9, 1.0, 1e9))
    assert free[0].tolist() == [1000.0, 1000.0], "no limit is left to bind"


def test_a_limit_above_what_its_clock_allows_holds_nothing_yet_and_spends_nothing() -> None:
    """Free and at 990 MHz a GPU draws half of its range at most: a limit there is the first watt that counts."""
    fleet = fleet_of([0])
    table = fleet.table
    chord_w = float(table.idle_w[0]) + 0.5 * float(table.peak_w[0] - table.idle_w[0])
    last = np.array([[0.5 * TOP_MHZ], [np.inf]])
    found = softened(fleet, np.array([[0.5 * TOP_MHZ], [chord_w - 20.0]]), last, steps=Steps(10.0 * 5.0, 1.0, 0.0))
    assert found[1, 0] == np.floor(chord_w - 5.0)
    above = np.array([[0.5 * TOP_MHZ - 30.0], [chord_w + 10.0]])
    found = softened(fleet, above, last, steps=Steps(0.0, 1.0, 0.0))
    assert found.tolist() == [[0.5 * TOP_MHZ], [chord_w + 10.0]], "what holds nothing may be told at once"


def test_rises_are_cut_to_one_share_by_what_the_gpus_may_draw_then() -> None:
    """A limit that was released at once let 11.7 of 5 MW come where clocks had not followed it down yet."""
    fleet = fleet_of([0, 0])
    low_w, written, _ = limited(fleet)
    asked = np.array([[1200.0, 1000.0], [np.inf, np.inf]])
    found = softened(fleet, asked, written, steps=Steps(1e9, 1.0, 10.0 * 50.0))
    assert found[0].tolist() == [1200.0, 1000.0] and low_w + 49.0 <= found[1, 0] <= low_w + 50.0
    assert softened(fleet, asked, written, steps=Steps(0.0, 1.0, 1e9))[1].tolist() == [np.inf, np.inf]
    still = softened(fleet, np.array([[1500.0, 1200.0], [low_w, np.inf]]), written, steps=Steps(0.0, 1.0, 0.0))
    assert still[0].tolist() == [1500.0, 1200.0], "under a limit that binds a clock lets nothing more be drawn"


def test_caps_of_another_fleet_go_from_what_was_read_back() -> None:
    """A controller that starts at a ceiling has written nothing yet: its first plan is no step from free GPUs."""
    fleet = fleet_of([0, 0])
    table = fleet.table
    acks = FleetAcks(
        np.array([[1200.0, float(table.cap_max[0, 1])], table.cap_max[1]]), np.ones(2, bool), np.full(2, np.nan)
    )
    window = window_of(ring_of([60e6], [59e6]))
    pcc = SimpleNamespace(grid_w=55.1e6)
    now: Any = SimpleNamespace(now_s=0.0, fleet=fleet, estimate=pcc, in_force=SimpleNamespace(limits=()))
    view: Any = SimpleNamespace(
        fleet=table, acks=acks, windows=(window,), sag_w=0.0, swell_w=0.0, state=EnvelopeState()
    )
    asked = np.array([[1000.0, 1000.0], [np.inf, np.inf]])
    by_clock_w = float(((table.peak_w - table.idle_w) * table.stands_for / table.cap_max[0])[0])
    found = stepped(asked, now, view=view, steps=steps_now(view, now, None))
    assert found.tolist() == asked.tolist(), "50 kW are room for all of it"
    pcc.grid_w = 55.05e6 + STEEPNESS * by_clock_w * 100.0
    found = stepped(asked, now, view=view, steps=steps_now(view, now, None))
    assert 1000.0 < found[0, 0] < 1200.0 and 1000.0 < found[0, 1] < table.cap_max[0, 1] and found[1, 0] == np.inf
    view.state = EnvelopeState(gpu_ids=table.gpu_ids, caps=np.array([[1000.0, 1000.0], [np.inf, np.inf]]))
    steps = steps_now(view, now, None)
    assert stepped(asked, now, view=view, steps=steps).tolist() == asked.tolist(), "written already"
    assert stepped(np.empty((2, 0)), now, view=view, steps=steps).size == 0, "before the first plan"


def limited(fleet: Fleet) -> tuple[float, FloatArray, float]:
    """Caps of two GPUs at 1200 MHz, the first under a limit that binds, and what 200 MHz are worth."""
    table = fleet.table
    low_w = float(table.idle_w[0]) + 100.0
    assert low_w < float(drawn_w(fleet, np.array([[1000.0, 1000.0], [np.inf, np.inf]]))[0])
    by_clock_w = (float(table.peak_w[0]) - float(table.idle_w[0])) * 200.0 / TOP_MHZ
    return low_w, np.array([[1200.0, 1200.0], [low_w, np.inf]]), by_clock_w
