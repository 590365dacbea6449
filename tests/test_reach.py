"""What a battery can do now, by what it says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.reach import BatteryReach
from controller.reserve import NO_BATTERY, battery_bounds
from controller.types import BatteryState
from tests.tracker_kit import sample_of, site_of

SITE = site_of()
assert SITE.battery is not None
BATTERY = SITE.battery
NAMEPLATE = battery_bounds(BATTERY)


def test_a_limit_inside_the_declared_taper_is_no_derating() -> None:
    """Near the top the battery takes less, as its nameplate says: the bounds stay the very same object."""
    reach = BatteryReach(BATTERY)
    for energy_j in (0.5 * NAMEPLATE.energy_j_max, NAMEPLATE.energy_j_max - 0.4 * NAMEPLATE.taper_j):
        sample = replace(
            sample_of(SITE, 0.0, energy_j, 0.0),
            charge_w_max=NAMEPLATE.charge_limit_w(energy_j),
            discharge_w_max=2 * NAMEPLATE.discharge_w_max,
        )
        assert reach.now(sample) == NAMEPLATE
        assert reach.now(sample) is reach.now(replace(sample, power_w=1.0))
        assert reach.energy_j(sample) == pytest.approx(energy_j)


def test_what_it_says_beyond_that_cuts_the_nameplate() -> None:
    sample = replace(
        sample_of(SITE, 0.0, 0.5 * NAMEPLATE.energy_j_max, 0.0),
        charge_w_max=0.5 * NAMEPLATE.charge_w_max,
        discharge_w_max=0.25 * NAMEPLATE.discharge_w_max,
    )
    found = BatteryReach(BATTERY).now(sample)
    assert found == replace(
        NAMEPLATE, charge_w_max=0.5 * NAMEPLATE.charge_w_max, discharge_w_max=0.25 * NAMEPLATE.discharge_w_max
    )
    assert found.can_move and not replace(found, charge_w_max=0.0, discharge_w_max=0.0).can_move


def test_one_that_takes_no_orders_reaches_nothing() -> None:
    reach, sample = BatteryReach(BATTERY), sample_of(SITE, 0.0, 0.5 * NAMEPLATE.energy_j_max, 0.0)
    for gone in (None, replace(sample, is_remote=False), *(replace(sample, state=s) for s in BatteryState)):
        is_gone = gone is None or not gone.is_remote or gone.state in (BatteryState.OFF, BatteryState.FAULT)
        assert (reach.now(gone) is NO_BATTERY) == is_gone
    assert reach.energy_j(None) == 0.0
