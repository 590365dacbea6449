"""What contingencies ask of the target, and how far each of their conditions is from breaking."""

from __future__ import annotations

import math

import pytest

from controller.reserve import CrashReserve
from controller.survival import Clamps, Survival, smallest
from controller.tracker_io import Watch
from tests.test_reserve import CRASH, MEGA, battery, row

RESERVE = CrashReserve(battery(), 0.1 * MEGA, 0.1 * MEGA)


def watching(*, power: bool = False, energy: bool = False, rise: bool = False) -> Watch:
    return Watch(CRASH, enforces_transient=True, enforces_power=power, enforces_energy=energy, enforces_rise=rise)


def survival(watch: Watch, *, energy_j: float = 200 * MEGA) -> Survival:
    return Survival(RESERVE, energy_j, (watch,), 12 * MEGA)


def test_margins_name_what_breaks() -> None:
    """A target beyond the battery's power shows a negative power margin and is the smallest by name."""
    found, edge = (
        survival(watching()).margins(
            target_w,
            rows=(row(5 * MEGA, 15.0, 1.0),),
            spent_by_row_w={row(5 * MEGA, 15.0, 1.0).limit_id: 1 * MEGA},
            spent_w=0.0,
            spent_up_w=0.0,
            residual_w=0.0,
            t_eff_s=0.11,
        )
        for target_w in (11 * MEGA, RESERVE.g_safe_w(200 * MEGA, CRASH))
    )
    by_name = {margin.name: margin.value for margin in found}
    assert list(by_name) == ["transient:5e+06/15", "power", "energy", "rise"]
    assert by_name["power"] == pytest.approx(-2 * MEGA)
    assert by_name["transient:5e+06/15"] == pytest.approx(5 * MEGA - 1 * MEGA - 8 * MEGA * 0.11)
    worst = smallest(found, power_scale_w=5 * MEGA, energy_scale_j=500 * MEGA)
    assert worst is not None and worst.name == "power"
    at_edge = {margin.name: margin.value for margin in edge}
    assert at_edge["power"] >= -1.0 and at_edge["energy"] >= -1.0


def test_only_what_a_watch_enforces_moves_the_target() -> None:
    """Nearly full: the energy is the lower bound, the power the higher; each counts where it is enforced alone."""
    nearly_full_j = RESERVE.energy_safe_j(2 * MEGA)
    assert survival(watching(), energy_j=nearly_full_j).clamps(spent_w=0.0, spent_up_w=0.0) == Clamps(
        math.inf, -math.inf
    )
    by_power, by_energy, by_rise = (
        survival(watch, energy_j=nearly_full_j).clamps(spent_w=0.0, spent_up_w=0.0)
        for watch in (watching(power=True), watching(energy=True), watching(rise=True))
    )
    left_w = CRASH.load_left_w
    assert by_energy.g_safe_w == pytest.approx(left_w + 2 * MEGA)
    assert by_power.g_safe_w == left_w + RESERVE.battery.charge_limit_w(nearly_full_j) > by_energy.g_safe_w
    assert by_rise.g_rise_min_w == 12 * MEGA - RESERVE.rise_cover_w(nearly_full_j)


def test_a_spent_window_takes_from_what_can_be_ridden_down_where_energy_is_kept() -> None:
    nearly_full_j = RESERVE.energy_safe_j(2 * MEGA)
    kept, free = (survival(w, energy_j=nearly_full_j) for w in (watching(energy=True), watching(power=True)))
    assert kept.ride_w(spent_w=1 * MEGA) < kept.ride_w(spent_w=0.0) < free.ride_w(spent_w=1 * MEGA)
    assert free.ride_w(spent_w=1 * MEGA) == free.ride_w(spent_w=0.0)


def test_a_crash_has_happened_when_the_battery_holds_most_of_its_surplus() -> None:
    """The target stands 8 MW above what the crash leaves: 5 MW in the battery are most of it, 4 MW are a ripple."""
    watched, target_w = survival(watching(power=True)), CRASH.load_left_w + 8 * MEGA
    assert watched.is_under_way(5 * MEGA, target_w=target_w, least_w=1 * MEGA)
    assert not watched.is_under_way(4 * MEGA, target_w=target_w, least_w=1 * MEGA)
    assert not watched.is_under_way(5 * MEGA, target_w=target_w, least_w=6 * MEGA)
    assert not survival(watching(rise=True)).is_under_way(5 * MEGA, target_w=target_w, least_w=1 * MEGA)
