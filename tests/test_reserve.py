"""The crash-safe set: its boundary, inverse and chords, each against a ride simulated step by step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.reserve import (
    BatteryBounds,
    Contingency,
    CrashReserve,
    ReserveRow,
    chord_slopes_s,
    crash_slope_w_per_s,
    reserve_rows,
    transient_dip_w,
)
from controller.types import Contract, Direction, LimitId, LimitStatus, Provenance, RampLimit, RateLimit, SwingLimit

MEGA = 1e6
LOCAL = Provenance("test", "2026-01-01", LimitStatus.LOCAL)


def battery(*, taper_frac: float = 0.05, energy: float = 500.0, power: float = 5.0) -> BatteryBounds:
    return BatteryBounds(
        charge_w_max=power * MEGA,
        discharge_w_max=power * MEGA,
        energy_j_min=0.02 * energy * MEGA,
        energy_j_max=energy * MEGA,
        taper_j=taper_frac * energy * MEGA,
        eta=0.95,
    )


def row(max_w: float, window_s: float, mean_s: float, *, is_filtered: bool = False) -> ReserveRow:
    slope = math.inf if is_filtered else max_w / window_s
    return ReserveRow(LimitId(f"{max_w:g}/{window_s:g}"), max_w, window_s, mean_s, is_filtered, slope)


CRASH = Contingency("full_site", 8 * MEGA, 4 * MEGA, 0.0, 1.9 * 8 * MEGA)


def ride_is_safe(
    bounds: BatteryBounds, *, surplus_w: float, energy_j: float, fall_w_per_s: float, spent_w: float
) -> bool:
    """Charge at the surplus while it is held and then falls; is any step refused by power, taper or energy?"""
    dt_s, energy, t_s = 0.05, energy_j, 0.0
    while True:
        charge_w = surplus_w - fall_w_per_s * max(0.0, t_s - spent_w / fall_w_per_s)
        if charge_w <= 0.0:
            return True
        if charge_w > bounds.charge_limit_w(energy) * (1 + 1e-9) + 1.0:
            return False
        energy += bounds.eta * charge_w * dt_s
        t_s += dt_s


@given(
    energy_frac=st.floats(0.05, 0.999),
    taper_frac=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    fall=st.floats(0.02, 1.0),
    spent=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_the_safe_surplus_survives_and_a_little_more_does_not(
    energy_frac: float, taper_frac: float, fall: float, spent: float
) -> None:
    """A stepwise ride from just inside the boundary ends well; from 3 % (and a little) outside it does not."""
    bounds = battery(taper_frac=taper_frac, energy=120.0, power=3.0)
    reserve = CrashReserve(bounds, fall * MEGA, fall * MEGA)
    energy_j = energy_frac * bounds.energy_j_max
    safe_w = reserve.surplus_safe_w(energy_j, spent_w=spent * MEGA)
    step = {"energy_j": energy_j, "fall_w_per_s": fall * MEGA, "spent_w": spent * MEGA}
    # One step of the simulated ride puts the energy of 0.05 s too early or late: stand that far from the boundary.
    nudge = 0.97 - 0.05 * fall
    assert ride_is_safe(bounds, surplus_w=nudge * safe_w - 1e3, **step)
    if safe_w < bounds.charge_w_max:
        assert not ride_is_safe(bounds, surplus_w=safe_w * 1.03 + 0.06 * fall * MEGA + 1e4, **step)


@given(
    surplus=st.floats(0.01, 5.0),
    taper_frac=st.sampled_from([0.0, 0.05, 0.3]),
    fall=st.floats(0.05, 1.0),
    spent=st.floats(0.0, 3.0),
)
def test_energy_and_surplus_are_inverse_to_each_other(
    surplus: float, taper_frac: float, fall: float, spent: float
) -> None:
    """Walking from a surplus to its energy and back ends where it began."""
    reserve = CrashReserve(battery(taper_frac=taper_frac), fall * MEGA, math.inf)
    energy_j = reserve.energy_safe_j(surplus * MEGA, spent_w=spent * MEGA)
    assert reserve.surplus_safe_w(energy_j, spent_w=spent * MEGA) == pytest.approx(surplus * MEGA, rel=1e-6)


@given(
    surplus=st.floats(0.0, 5.0),
    taper_frac=st.sampled_from([0.0, 0.05, 0.3]),
    fall=st.floats(0.08, 1.0),
    spacing=st.floats(4.0, 20.0),
)
def test_chords_are_inner_and_near(surplus: float, taper_frac: float, fall: float, spacing: float) -> None:
    """No point the chords allow is outside the set, and they give away at most spacing^2 / 16k of energy."""
    bounds = battery(taper_frac=taper_frac)
    reserve = CrashReserve(bounds, fall * MEGA, math.inf)
    chords = reserve.chords(count=16, spacing_s=spacing)
    x_w = min(surplus * MEGA, chords.x_w_max)
    allowed_j = min(offset - slope * x_w for slope, offset in zip(chords.slope_s, chords.offset_j, strict=True))
    exact_j = reserve.energy_safe_j(x_w)
    loss_j = spacing**2 / (16.0 * reserve.energy_s_per_w)
    assert exact_j - loss_j - 1.0 <= allowed_j <= exact_j + 1.0


@given(
    share=st.floats(0.05, 1.0),
    surplus=st.floats(0.0, 5.0),
    taper_frac=st.sampled_from([0.0, 0.05, 0.3]),
    fall=st.one_of(st.floats(0.03, 1.0), st.just(math.inf)),
)
def test_a_derated_battery_is_held_inside_its_own_set(
    share: float, surplus: float, taper_frac: float, fall: float
) -> None:
    """With the whole battery's taper and less energy at its top, nothing is allowed that its own taper forbids."""
    whole = CrashReserve(battery(taper_frac=taper_frac), fall * MEGA, math.inf)
    bounds = replace(whole.battery, charge_w_max=share * whole.battery.charge_w_max)
    own = replace(whole, battery=bounds)
    held = own.tapered_as(whole.taper_s)
    assert held.taper_s == pytest.approx(whole.taper_s)
    x_w = min(surplus * MEGA, bounds.charge_w_max)
    assert held.energy_safe_j(x_w) <= own.energy_safe_j(x_w) + 1.0
    assert share < 1.0 or held.battery.energy_j_max == own.battery.energy_j_max


def test_chord_slopes_do_not_know_the_contract() -> None:
    """A tighter ramp moves the offsets and the reach, never the matrix of the program."""
    bounds = battery()
    slopes = chord_slopes_s(bounds, count=8, spacing_s=10.0)
    for fall in (0.03, 0.1, 0.7, math.inf):
        assert CrashReserve(bounds, fall * MEGA, math.inf).chords(count=8, spacing_s=10.0).slope_s == slopes


@given(cover=st.floats(0.0, 5.0), rise=st.floats(0.05, 1.0))
def test_rise_chords_are_inner(cover: float, rise: float) -> None:
    """Energy that the rise chords demand is at least what the square demands."""
    bounds = battery()
    reserve = CrashReserve(bounds, math.inf, rise * MEGA)
    chords = reserve.rise_chords(count=12, spacing_s=8.0)
    y_w = min(cover * MEGA, chords.x_w_max)
    needed_j = max(slope * y_w - offset for slope, offset in zip(chords.slope_s, chords.offset_j, strict=True))
    exact_j = bounds.energy_j_min + y_w**2 / (2.0 * rise * MEGA * bounds.eta)
    assert needed_j >= exact_j - 1.0
    assert reserve.rise_cover_w(needed_j) >= y_w - 1.0


def test_rows_of_a_contract_by_direction() -> None:
    """Ramps count in their direction, swings in both, rates beyond their threshold, filtered swings by their gain."""
    contract = Contract(
        "mixed",
        (
            RampLimit(LimitId("fall"), 20 * MEGA, 60.0, Direction.DOWN, 1.0, LOCAL),
            RampLimit(LimitId("climb"), 10 * MEGA, 60.0, Direction.UP, 1.0, LOCAL),
            SwingLimit(LimitId("plain"), 5 * MEGA, 15.0, 1.0, LOCAL),
            SwingLimit(LimitId("filtered"), 10 * MEGA, 5.0, 0.0, LOCAL, band_hz=(0.1, 55.0)),
            RateLimit(LimitId("rate"), 0.5 * MEGA, 50 * MEGA, 1.0, LOCAL),
        ),
        100 * MEGA,
    )
    down = reserve_rows(contract, direction=Direction.DOWN)
    assert [found.limit_id for found in down] == ["fall", "plain", "filtered", "rate"]
    assert crash_slope_w_per_s(down, residual_w=0.0) == pytest.approx(MEGA / 3)
    up = reserve_rows(contract, direction=Direction.UP)
    assert crash_slope_w_per_s(up, residual_w=0.0) == pytest.approx(MEGA / 6)
    assert crash_slope_w_per_s(up, residual_w=4 * MEGA) == pytest.approx(MEGA / 15)
    assert crash_slope_w_per_s(down, residual_w=0.0, slope_w_per_s_max=1e5) == 1e5


def test_transient_dip_of_the_two_ways_to_follow() -> None:
    """62 MW at once: software (110 ms) shows 62 MW raw and 6.8 MW on 1 s means, device (23 ms) 1.4 MW on means."""
    block = Contingency("full_site", 62 * MEGA, 20 * MEGA, 0.0, math.inf)
    assert transient_dip_w(row(5 * MEGA, 15.0, 0.0), block, t_eff_s=0.11) == 62 * MEGA
    assert transient_dip_w(row(5 * MEGA, 15.0, 1.0), block, t_eff_s=0.11) == pytest.approx(6.82 * MEGA)
    assert transient_dip_w(row(5 * MEGA, 15.0, 1.0), block, t_eff_s=0.023) == pytest.approx(1.426 * MEGA)
    slewed = Contingency("full_site", 62 * MEGA, 20 * MEGA, 0.0, 1.9 * 62 * MEGA)
    filtered = row(10 * MEGA, 5.0, 0.0, is_filtered=True)
    assert transient_dip_w(filtered, slewed, t_eff_s=0.023) == pytest.approx(1.16 * 1.9 * 62 * MEGA * 0.023)


def test_ripple_of_the_survivors_takes_power_not_energy() -> None:
    """N-1: the other jobs' dips need charging power at the worst phase, their mean decides the energy."""
    reserve = CrashReserve(battery(taper_frac=0.0), 0.1 * MEGA, 0.1 * MEGA)
    calm = Contingency("largest_job", 4 * MEGA, 8 * MEGA, 0.0, MEGA)
    restless = Contingency("largest_job", 4 * MEGA, 8 * MEGA, 1.5 * MEGA, MEGA)
    assert reserve.g_safe_w(0.0, calm) - reserve.g_safe_w(0.0, restless) == pytest.approx(1.5 * MEGA)
    full_j = reserve.energy_safe_j(1 * MEGA)
    assert reserve.g_safe_w(full_j, restless) == pytest.approx(reserve.g_safe_w(full_j, calm))


def test_a_full_battery_leaves_no_surplus() -> None:
    """At the top of the battery the target may not stand above the load a crash leaves."""
    reserve = CrashReserve(battery(), 0.1 * MEGA, 0.1 * MEGA)
    assert reserve.g_safe_w(500 * MEGA, CRASH) == CRASH.load_left_w
    assert reserve.g_safe_w(510 * MEGA, CRASH) == CRASH.load_left_w
