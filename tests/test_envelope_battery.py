"""The battery under the envelope: its power, slope, dwell and fitness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.envelope import check
from controller.types import EnvelopeBattery, Following
from tests.envelope_kit import BATTERY, NOW_S, battery, broken, command, image, state, target, view


@pytest.mark.parametrize(("wish", "result"), [(900.0, 400.0), (-900.0, -500.0)])
def test_8_power_stays_within_the_battery(wish: float, result: float) -> None:
    verdict = check(view(state=state(reference_w=0.0)), command(power=battery(wish, Following.SOFTWARE)))
    assert target(verdict) == result and broken(verdict) == {8}


@pytest.mark.parametrize(
    ("following", "wish", "result"), [(Following.DEVICE, -50.0, 0.0), (Following.SOFTWARE, 350.0, 300.0)]
)
def test_8_nothing_is_exported(following: Following, wish: float, result: float) -> None:
    seen = view(load_w=300.0, state=state(target_w=100.0))
    verdict = check(seen, command(power=battery(wish, following)))
    assert target(verdict) == result and broken(verdict) == {8}


@pytest.mark.parametrize(("ramp", "result"), [(5000.0, 1000.0), (0.0, 1000.0), (float("nan"), 1000.0), (10.0, 10.0)])
def test_8_the_slope_is_the_devices_own_at_most(ramp: float, result: float) -> None:
    verdict = check(view(), command(power=battery(1000.0, ramp_w_per_s=ramp)))
    out = verdict.command.battery
    assert out is not None and out.ramp_w_per_s == result
    assert broken(verdict) == (set() if ramp == result else {8})


def test_8_a_change_below_the_deadband_or_within_the_dwell_is_not_written() -> None:
    dead = view(battery=replace(BATTERY, deadband_w=20.0))
    assert target(check(dead, command(power=battery(1010.0)))) == 1000.0
    assert target(check(dead, command(power=battery(1020.0)))) == 1020.0
    slow = replace(BATTERY, dwell_s=10.0)
    assert (
        target(check(view(battery=slow, state=state(reference_t_s=NOW_S - 9)), command(power=battery(1500.0))))
        == 1000.0
    )
    assert (
        target(check(view(battery=slow, state=state(reference_t_s=NOW_S - 11)), command(power=battery(1500.0))))
        == 1500.0
    )


@pytest.mark.parametrize("wish", [9e9, -9e9])
@pytest.mark.parametrize(
    "bound", ["charge_w_max", "discharge_w_max", "ramp_w_per_s_max", "max_export_w", "target_step_w"]
)
def test_1_and_8_what_is_bounded_by_no_number_is_not_sent(bound: str, wish: float) -> None:
    """A limit that is reported as not-a-number is no leave for any power: nothing is sent, or what always may be."""
    none: dict[str, Any] = {bound: float("nan")}
    seen = view(battery=replace(BATTERY, **none)) if hasattr(BATTERY, bound) else view(**none)
    for following in Following:
        out = check(seen, command(power=battery(wish, following, ramp_w_per_s=9e9))).command.battery
        assert out is None or out.ramp_w_per_s <= 1000.0
        if out is not None and following is Following.SOFTWARE:
            assert -500.0 <= out.reference_w <= 400.0
        elif out is not None:  # what the target may be has no other bound below or above
            assert out.reference_w >= 0.0 and bound != "target_step_w"


@pytest.mark.parametrize(("bound", "wish"), [("charge_w_max", -100.0), ("discharge_w_max", 100.0)])
def test_8_a_limit_below_nothing_is_nothing_and_asks_for_no_power_the_other_way(bound: str, wish: float) -> None:
    below: dict[str, Any] = {bound: -9e9}
    seen = view(battery=replace(BATTERY, **below), state=state(reference_w=0.0))
    verdict = check(seen, command(power=battery(wish, Following.SOFTWARE)))
    assert target(verdict) == 0.0 and broken(verdict) == {8}


@pytest.mark.parametrize("unfit", [None, replace(BATTERY, is_eligible=False)])
def test_8_an_unfit_battery_is_not_used(unfit: EnvelopeBattery | None) -> None:
    verdict = check(view(battery=unfit), command(power=battery(1000.0)))
    assert verdict.command.battery is None and broken(verdict) == {8}


def test_8_the_dwell_counts_from_the_last_change() -> None:
    """A reference written again is no change; a new one starts the dwell anew."""
    assert check(view(), command(power=battery(1000.0))).state.reference_t_s == 0.0
    assert check(view(), command(power=battery(1001.0))).state.reference_t_s == NOW_S


def test_8_the_slope_of_a_small_battery_is_its_own() -> None:
    """Half a watt per second is a slope, if a small one."""
    verdict = check(view(), command(power=battery(1000.0, ramp_w_per_s=0.5)))
    assert verdict.command.battery is not None and verdict.command.battery.ramp_w_per_s == 0.5


@pytest.mark.parametrize(("wish_w", "is_counted"), [(400.0 + 3e-4, False), (400.0 + 1e-3, True)])
def test_8_power_beyond_the_battery_by_rounding_is_not_counted(wish_w: float, is_counted: bool) -> None:
    """Of 400 W, 0.4 mW are rounding."""
    seen = view(state=state(target_w=600.0, reference_w=400.0), image=image(600.0))
    verdict = check(seen, command(power=battery(wish_w, Following.SOFTWARE)))
    assert target(verdict) == 400.0 and (8 in broken(verdict)) is is_counted


def test_8_a_dwell_that_is_over_is_over() -> None:
    """Five seconds after the last change, with a dwell of five seconds, the next may be written."""
    slow = replace(BATTERY, dwell_s=5.0)
    for since_s, result in ((4.75, 1000.0), (5.0, 1050.0)):
        seen = view(battery=slow, state=state(reference_t_s=NOW_S - since_s))
        assert target(check(seen, command(power=battery(1050.0)))) == result


@pytest.mark.parametrize(
    ("following", "wish_w", "result_w"),
    [
        (Following.DEVICE, -80.0, -80.0),
        (Following.DEVICE, -150.0, -100.0),
        (Following.SOFTWARE, 380.0, 380.0),
        (Following.SOFTWARE, 399.0, 399.0),
        (Following.SOFTWARE, 450.0, 400.0),
    ],
)
def test_8_what_the_contract_lets_out_may_go_out(following: Following, wish_w: float, result_w: float) -> None:
    """300 W of load and 100 W of export agreed: the battery may give 400 W and the meter may stand at -100 W."""
    strong = replace(BATTERY, discharge_w_max=2000.0)
    seen = view(load_w=300.0, max_export_w=100.0, battery=strong, state=state(target_w=0.0, reference_w=0.0))
    verdict = check(seen, command(power=battery(wish_w, following)))
    assert target(verdict) == result_w and broken(verdict) == (set() if wish_w == result_w else {8})
