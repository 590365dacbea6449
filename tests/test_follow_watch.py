"""A battery that does what it is told, one that is slow by declaration, and one that only says yes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.follow_watch import FollowWatch
from controller.settings import BatterySettings
from controller.types import BatterySample, BatteryState
from hil.matrix_lab import lab_scenario

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
