"""A battery that does what it is told, one that is slow by declaration, and one that only says yes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controller.follow_watch import FollowWatch, HoldWatch
from controller.settings import BatterySettings
from controller.types import BatterySample, BatteryState
from hil.lab_site import lab_scenario

MW = 1e6


def nameplate(*, ramp_w_per_s: float, deadband_w: float = 0.0) -> BatterySettings:
    site = lab_scenario("steady").settings.site
    assert site is not None and site.battery is not None
    return replace(site.battery, ramp_w_per_s_max=ramp_w_per_s, deadband_w=deadband_w)


def sample(power_w: float, asked_w: float) -> BatterySample:
    return BatterySample(power_w, 0.5, 30 * MW, 12 * MW, BatteryState.RUNNING, True, asked_w, False)


def off_after_s(battery: BatterySettings, *, slope_w_per_s: float, asked_w: float) -> float | None:
    """When a battery that goes to `asked_w` at `slope_w_per_s` is called off; None in a minute of looking."""
    watch, power_w = FollowWatch(battery, period_s=1.0), 0.0
    for k in range(600):
        if watch.is_off(0.1 * k, sample(power_w, asked_w), asked_w=asked_w):
            return 0.1 * k
        power_w = min(power_w + 0.1 * slope_w_per_s, asked_w)
    return None


@pytest.mark.parametrize(
    ("declared", "real", "found_s"),
    [
        (1400 * MW, 1400 * MW, None),
        (1400 * MW, 0.0, 3.2),  # it only says yes
        (1400 * MW, 1 * MW, 3.2),  # 10 MW in ten seconds, where milliseconds were declared
        (1 * MW, 1 * MW, None),  # ten seconds on its way, as declared
        (1 * MW, 0.0, 3.8),  # due to have gone 0.6 MW, and three periods more
        (1 * MW, 0.5 * MW, 4.4),
    ],
)
def test_it_follows_as_fast_as_it_was_declared(declared: float, real: float, found_s: float | None) -> None:
    found = off_after_s(nameplate(ramp_w_per_s=declared), slope_w_per_s=real, asked_w=10 * MW)
    assert found == (None if found_s is None else pytest.approx(found_s, abs=0.15))


def test_what_a_deadband_leaves_is_not_off() -> None:
    small = nameplate(ramp_w_per_s=1400 * MW, deadband_w=1.0 * MW)
    assert off_after_s(small, slope_w_per_s=0.0, asked_w=0.9 * MW) is None
    assert off_after_s(replace(small, deadband_w=0.0), slope_w_per_s=0.0, asked_w=0.9 * MW) is not None


def test_a_silence_begins_anew() -> None:
    """Off for two seconds, silent for ten, off again: three more before it is called off."""
    watch, asked_w = FollowWatch(nameplate(ramp_w_per_s=1400 * MW), period_s=1.0), 5 * MW
    assert not any(watch.is_off(0.1 * k, sample(0.0, asked_w), asked_w=asked_w) for k in range(20))
    watch.forget()
    off = [watch.is_off(12.0 + 0.1 * k, sample(0.0, asked_w), asked_w=asked_w) for k in range(40)]
    assert not any(off[:31]) and off[-1]


def called_off_s(
    *, holds: float, ripple_w: float = 0.0, load_w: float = 60 * MW, gain: float = 1.0, ramp_w_per_s: float = 1400 * MW
) -> float | None:
    """When a battery that holds this share of the load's way from a target of 60 MW is called off; None in a minute."""
    watch, power_w = HoldWatch(nameplate(ramp_w_per_s=ramp_w_per_s), period_s=1.0), 0.0
    for k in range(600):
        load_now_w = load_w + ripple_w * math.sin(2.0 * math.pi * 0.1 * k / 2.1)
        wanted_w = min(max(holds * (load_now_w - 60 * MW), -30 * MW), 12 * MW)
        power_w += min(max(wanted_w - power_w, -0.1 * ramp_w_per_s), 0.1 * ramp_w_per_s)
        follower = replace(sample(power_w, 60 * MW), is_following=True)
        if watch.is_off(0.1 * k, follower, asked_w=60 * MW, import_w=gain * (load_now_w - power_w)):
            return 0.1 * k
    return None


@pytest.mark.parametrize("load_megawatt", [60, 45, 68, 30, 90])
def test_a_battery_that_holds_its_target_is_not_off(load_megawatt: float) -> None:
    """Also where load is beyond what it can hold, and by a meter that reads 3 % more or less than its own."""
    for gain in (0.97, 1.0, 1.03):
        assert called_off_s(holds=1.0, load_w=load_megawatt * MW, ripple_w=4 * MW, gain=gain) is None


@pytest.mark.parametrize(
    ("load_megawatt", "ripple_megawatt", "found_s"),
    [(50, 0, 1.1), (70, 0, 1.4), (60, 5, 4.0), (61, 0, None)],
)
def test_a_battery_that_leaves_load_on_the_meter_is_off(
    load_megawatt: float, ripple_megawatt: float, found_s: float | None
) -> None:
    found = called_off_s(holds=0.0, load_w=load_megawatt * MW, ripple_w=ripple_megawatt * MW)
    assert found == (None if found_s is None else pytest.approx(found_s, abs=0.5))


def test_a_follower_slow_by_declaration_is_on_its_way() -> None:
    assert called_off_s(holds=1.0, load_w=50 * MW, ramp_w_per_s=1 * MW) is None
