"""Caps under a ceiling are steady: floors of whole clocks, a margin that does not ripple, raises that wait."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from controller.fleet import FleetBook, FleetReadings
from controller.glide import STEEPNESS
from controller.node_orders import is_settled
from controller.room import MARGIN_MEMORY_S, HeldMargin, dip_w_max, fall_w_max, softened
from controller.settings import SiteSettings
from controller.types import CeilingLimit, EnvelopeState, FleetAcks, FloatArray, LimitId, Quality, Reading, SwingLimit
from controller.view import envelope_battery, ordered_w
from tests.test_identify import TOP_MHZ, fleet_of
from tests.test_jobs import report, site
from tests.tracker_kit import HERE, sample_of, site_of

__all__ = ["site"]  # the fixture
CEILING = CeilingLimit(LimitId("ceiling"), 54e6, -np.inf, HERE)


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
    view: Any = SimpleNamespace(is_held=True, sag_w=ordered_w(now.image, now.estimate, tracker, battery=battery))
    assert fall_w_max(site, now, tracker, view=view) == pytest.approx(left_w / STEEPNESS + 1e6)


def test_where_nobody_holds_power_caps_have_what_the_rows_leave_and_no_margin_of_a_follower() -> None:
    """Of 5 MW but for a hundredth 3.45 are spent and 0.5 sag by themselves: the meter stands 0.2 above the target."""
    row = SwingLimit(LimitId("usual"), 5e6, 15.0, 1.0, HERE)
    now: Any = SimpleNamespace(
        now_s=0.0, estimate=SimpleNamespace(grid_w=60.2e6), in_force=SimpleNamespace(limits=(row, CEILING))
    )
    tracker: Any = SimpleNamespace(
        interval=SimpleNamespace(spent_down_w=lambda: {row.id: 3.45e6, LimitId("rate"): 9e6}), g_ref_w=60e6
    )
    view: Any = SimpleNamespace(is_held=False, sag_w=0.5e6)
    assert fall_w_max(site_of(), now, tracker, view=view) == pytest.approx(1.2e6 / STEEPNESS)
    view = SimpleNamespace(is_held=False, sag_w=2e6)
    assert fall_w_max(site_of(), now, tracker, view=view) == 0.0
    now.in_force.limits = (CEILING,)
    assert fall_w_max(site_of(), now, tracker, view=view) == np.inf


def test_a_limit_that_binds_comes_down_before_its_clock_and_to_the_next_whole_watt() -> None:
    """The worst case is at the limit; the clock bounds bursts that a limit lets through, and has time until then."""
    fleet = fleet_of([0, 0])
    table = fleet.table
    low_w = float(table.peak_w[0]) - 100.0
    written = EnvelopeState(gpu_ids=table.gpu_ids, caps=np.array([[1200.0, 1200.0], [low_w, np.inf]]))
    asked = np.array([[1000.0, 1000.0], [low_w - 20.0, np.inf]])
    by_clock_w = (float(table.peak_w[0]) - float(table.idle_w[0])) * 200.0 / TOP_MHZ
    all_w = 10.0 * (20.0 + by_clock_w)  # each stands for ten
    found = softened(fleet, asked, written, fall_w=all_w)
    assert found.tolist() == [[1200.0, 1000.0], [low_w - 20.0, np.inf]]
    assert softened(fleet, asked, replace(written, caps=found), fall_w=10.0 * by_clock_w).tolist() == asked.tolist()
    half = softened(fleet, asked, written, fall_w=0.53 * all_w)
    assert half[0].tolist() == [1200.0, np.floor(1200.0 - 0.53 * 200.0)]
    assert half[1].tolist() == [np.floor(low_w - 0.53 * 20.0), np.inf]
    free = softened(fleet, np.array([[1000.0, 1000.0], [np.inf, np.inf]]), written, fall_w=1e9)
    assert free[0].tolist() == [1000.0, 1000.0], "no limit is left to bind"
    raised = softened(fleet, np.array([[1300.0, 1200.0], [low_w - 20.0, np.inf]]), written, fall_w=1e9)
    assert raised[0].tolist() == [1300.0, 1200.0]
