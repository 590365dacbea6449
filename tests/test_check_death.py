"""`rampart check` on a controller's death: nodes, battery and bank on one line of time, against every row."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from controller.check_death import DeathStep, death_step
from controller.settings import OwnSlope, SiteSettings
from hil.lab_site import MW, SITE, lab_scenario

SLOPE = MW / 3.0  # of the lab's contract, in both rows and both ways
TTL_S, OBEYS_S = 4.8, 120.0


def site(**battery: Any) -> SiteSettings:
    """The matrix's lab: 30 MW of charging, 12 of discharging, 26.7 MW from all nodes at their peak to fallback."""
    raw = copy.deepcopy(SITE["battery"]) | battery
    found = lab_scenario("steady", site={"battery": raw}, following=raw["following"]).settings.site
    assert found is not None
    return found


def death(
    settings: SiteSettings, own_slope: OwnSlope | None = None, *, expiry_s: float | None = TTL_S
) -> tuple[float, str]:
    found: DeathStep = death_step(settings, own_slope, expiry_s=expiry_s, bank_slope=None)
    return found.step_w, found.words[0]


def slope(least: float, step: float = 0.0, *, is_shared: bool = False) -> OwnSlope:
    return OwnSlope(least * MW, step * MW, "register 1", is_shared=is_shared)


def test_in_turn_they_keep_to_the_contracts_slope_and_ripple_has_what_is_left() -> None:
    """At 5 MW in 15 s the slopes, less the 4.5 % that is always kept, leave 0.225 MW."""
    step_w, words = death(site(), slope(0.0))
    assert step_w == 0.0 and "battery before nodes" in words and "ripple may have 0.225 MW" in words
    assert death(site())[0] == death(site(), expiry_s=None)[0] == 0.0


def test_a_battery_that_obeys_longer_than_nodes_wait_moves_with_them() -> None:
    """It lets go from 120 s on for 90 s, nodes from 154.8 s on for 80.1 s: 55.2 s at both slopes, one more at one."""
    step_w, words = death(site(), expiry_s=OBEYS_S)
    assert step_w == pytest.approx(SLOPE * (60.0 + 55.2), rel=1e-3) and "within 60 s" in words
    assert death(site(), expiry_s=float("inf"))[0] == 0.0, "one that never lets go moves with nobody"


def test_a_slope_that_is_too_steep_for_the_part_that_nodes_leave_is_counted() -> None:
    """Nodes that were told not to wait use three quarters; the battery goes no slower than 0.2 MW/s: 27 of 20 MW."""
    step_w, words = death(site(), slope(0.2))
    assert step_w == pytest.approx(60.0 * (0.75 * SLOPE + 0.2 * MW)) and "nodes and battery together" in words
    assert death(site(), slope(0.08))[0] == 0.0


def test_whole_counts_that_round_to_nothing_are_no_slope() -> None:
    step_w, _ = death(site(), slope(0.0, 0.3))
    assert step_w == pytest.approx(30 * MW + 60.0 * 0.75 * SLOPE)


def test_a_battery_that_steps_does_so_beside_nodes_that_did_not_wait() -> None:
    step_w, _ = death(site(own_ramp=False))
    assert step_w == pytest.approx(30 * MW + 60.0 * 0.75 * SLOPE)


def test_a_small_battery_goes_before_the_nodes_and_breaks_nothing() -> None:
    assert death(site(charge_megawatt=5.0, discharge_megawatt=5.0), slope(0.0, 9.0))[0] == 0.0
    assert death(site(charge_megawatt=5.0, discharge_megawatt=5.1), slope(0.0, 9.0))[0] > 5 * MW


@pytest.mark.parametrize("battery", [{"following": "device"}])
def test_a_frozen_target_is_nobodys_move(battery: dict[str, Any]) -> None:
    step_w, words = death(site(**battery))
    assert step_w == 0.0 and "frozen target" in words
