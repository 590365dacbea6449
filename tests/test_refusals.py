"""Devices that refuse: asked again for ten periods, then locked out until an operator resets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.modes import Flag
from controller.refusals import Refusals
from controller.types import (
    BatterySample,
    BatteryState,
    LoadBankSample,
    LoadBankState,
    Quality,
    Reading,
    SiteFault,
    SiteImage,
    Trouble,
)
from tests.test_health import battery, found

REFUSES = SiteFault.DEVICE_REFUSES
DEVICES = ["battery", "load_bank"]


def bank(state: LoadBankState = LoadBankState.STANDBY, *, is_remote: bool = True) -> Reading[LoadBankSample]:
    return Reading(LoadBankSample(0.0, 20e6, state, is_remote, 0.0, None), 0.0, Quality.GOOD, "load_bank")


def image(
    t_s: float,
    *troubles: Trouble,
    battery: Reading[BatterySample] = battery(),  # noqa: B008 - frozen
    load_bank: Reading[LoadBankSample] = bank(),  # noqa: B008 - frozen
) -> SiteImage:
    return SiteImage(
        t_s,
        1.8e9,
        0,
        None,
        battery=battery,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
        load_bank=load_bank,
        troubles=troubles,
    )


def takes_orders(seen: SiteImage, device: str) -> bool:
    assert seen.battery is not None and seen.load_bank is not None
    return seen.battery.value.takes_orders if device == "battery" else seen.load_bank.value.is_remote


@pytest.mark.parametrize("device", DEVICES)
def test_ten_periods_of_refusals_lock_it_out_until_a_reset(device: str) -> None:
    """And nothing else: the other device goes on, and what was locked out stays so when it refuses no more."""
    refusals, refusal, other = Refusals(period_s=2.0), Trouble(REFUSES, device), DEVICES[device == "battery"]
    for t_s in (0.0, 10.0, 19.9):
        assert takes_orders(refusals.see(image(t_s, refusal)), device) and not refusals.locked_out
    seen = refusals.see(image(20.0, refusal))
    assert refusals.locked_out == {device} and not takes_orders(seen, device) and takes_orders(seen, other)
    assert not takes_orders(refusals.see(image(100.0)), device)
    refusals.reset()
    assert takes_orders(refusals.see(image(101.0, refusal)), device), "tried again"
    assert takes_orders(refusals.see(image(120.9, refusal)), device), "for as long as before"
    assert not takes_orders(refusals.see(image(121.0, refusal)), device)


def test_one_order_taken_or_one_cycle_without_refusal_begins_the_count_anew() -> None:
    refusals, refusal = Refusals(period_s=1.0), Trouble(REFUSES, "battery")
    refusals.see(image(0.0, refusal))
    refusals.took("battery")
    refusals.see(image(9.0, refusal))
    refusals.see(image(12.0, refusal))
    assert not refusals.locked_out
    refusals.see(image(13.0))
    refusals.see(image(14.0, refusal))
    refusals.see(image(23.9, refusal))
    assert not refusals.locked_out
    refusals.see(image(24.0, refusal))
    assert refusals.locked_out == {"battery"}


@pytest.mark.parametrize(
    "well",
    [
        image(0.0, Trouble(REFUSES, "battery"), battery=battery(is_remote=False)),
        image(0.0, Trouble(REFUSES, "battery"), battery=battery(state=BatteryState.FAULT)),
        image(0.0, Trouble(REFUSES, "load_bank"), load_bank=bank(is_remote=False)),
        image(0.0, Trouble(REFUSES, "load_bank"), load_bank=bank(LoadBankState.FAULT)),
        image(0.0, Trouble(SiteFault.DEVICE_BUSY, "battery")),
        image(0.0, Trouble(SiteFault.DEVICE_TIMEOUT, "battery")),
        image(0.0, Trouble(REFUSES, "pcc")),
    ],
)
def test_who_says_why_who_is_busy_or_late_and_a_meter_are_never_locked_out(well: SiteImage) -> None:
    """Exception 6, local control, a fault of its own; what is only read is read again whenever it answers."""
    refusals = Refusals(period_s=1.0)
    for t_s in (0.0, 20.0, 60.0):
        now = replace(well, t_mono_s=t_s)
        assert refusals.see(now) is now or refusals.see(now) == now
    assert not refusals.locked_out


def test_the_lockout_is_what_is_told_and_not_local_control() -> None:
    """Control sees a device that takes no orders; people are told why."""
    local, locked = battery(is_remote=False), frozenset(DEVICES)
    assert found(battery=local, locked_out=locked) == {Flag.BATTERY_LOCKED_OUT}
    both = {Flag.BATTERY_LOCKED_OUT, Flag.LOAD_BANK_LOCKED_OUT}
    assert found(battery=local, load_bank=bank(is_remote=False), locked_out=locked) == both
