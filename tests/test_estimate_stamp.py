"""A meter's value stands until its refresh: how old it was when read, told by what our own moves leave on the load."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from controller.estimate_stamp import SHARES, USUAL, SampleClock
from controller.modes import Flag
from controller.types import MeterSample, Quality, Reading
from hil.lab_site import SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab

TICK_S = 0.1


def read(clock: SampleClock, t_s: float, power_w: float, battery_at: Callable[[float], float] = lambda _: 0.0) -> float:
    """When the value of a reading of `t_s` was true."""
    reading = Reading(MeterSample(power_w=power_w), t_s, Quality.GOOD, "pcc")
    return clock.stamped(reading, battery_at=battery_at).t_mono_s


def test_a_value_keeps_its_time_until_a_refresh_must_have_been() -> None:
    """Refresh of 0.3 s, read every 0.1 s: one time for three readings, and the same value later is a new sample."""
    clock = SampleClock(0.3)
    read(clock, 1.0, 50e6)
    first = read(clock, 1.1, 60e6)
    assert first == pytest.approx(1.1 - SHARES[USUAL] * TICK_S)  # the value before was seen one reading ago
    assert [read(clock, t_s, 60e6) for t_s in (1.2, 1.3)] == [first, first]
    assert read(clock, 1.45, 60e6) > first + 0.2
    assert read(clock, 1.5, 61e6) > first + 0.3


def test_a_reading_that_comes_again_is_the_same_sample() -> None:
    clock = SampleClock(0.1)
    first = read(clock, 1.0, 60e6)
    assert read(clock, 1.0, 60e6) == first


def test_a_meter_that_refreshes_quickly_and_one_that_says_nothing_are_taken_as_they_come() -> None:
    assert read(SampleClock(0.01), 1.0, 60e6) == 1.0
    clock = SampleClock(0.1)
    assert read(clock, 1.0, math.nan) == 1.0
    missing = Reading(MeterSample(power_w=60e6), 1.0, Quality.MISSING, "pcc")
    assert clock.stamped(missing, battery_at=lambda _: 0.0) is missing


@pytest.mark.parametrize("share", SHARES)
def test_our_own_moves_tell_how_long_a_value_stood(share: float) -> None:
    """The battery swings by 5 MW; the age that is found is that of the refresh, to a quarter of it."""

    def battery_at(t_s: float) -> float:
        return 5e6 * math.sin(2.0 * math.pi * t_s / 1.5)

    clock = SampleClock(0.2)
    for k in range(100):
        t_s = 0.2 * k
        true_s = t_s - share * 0.2
        found_s = read(clock, t_s, 60e6 + 3e6 * math.sin(2.0 * math.pi * true_s / 7.0) - battery_at(true_s), battery_at)
    assert found_s == pytest.approx(true_s, abs=1e-6)


def test_without_moves_the_usual_age_counts() -> None:
    clock = SampleClock(0.1)
    for k in range(100):
        found_s = read(clock, TICK_S * k, 60e6 + 1e6 * math.sin(k))
    assert found_s == pytest.approx(TICK_S * (99 - SHARES[USUAL]))


@pytest.mark.parametrize(
    ("tick_s", "update_s", "delay_s", "lag_s"),
    [
        (0.1, 0.1, 0.03, 0.06),  # 36 MW in 60 s before values had an age
        (0.1, 0.1, 0.12, 0.01),
        (0.1, 0.025, 0.085, 0.01),
        (0.1, 0.2, 0.03, 0.06),
        (0.1, 1.0, 0.11, 0.06),
        (0.05, 0.07, 0.11, 0.01),
    ],
)
def test_a_meter_that_refreshes_slowly_is_followed_without_swinging(
    tick_s: float, update_s: float, delay_s: float, lag_s: float
) -> None:
    """A sound site, a job of 7 s a step, and a software loop: no row breaks, and nobody calls the meter late."""
    site = {
        "tracker_hz": round(1.0 / tick_s),
        "contract": ["aeso"],
        "fallback_contract": ["aeso"],
        "pcc_meter": SITE["pcc_meter"] | {"update_s": update_s, "delay_s": delay_s},
        "battery": SITE["battery"] | {"lag_s": lag_s},
    }
    workload = {"compute_w": 490.0, "exchange_w": 473.0, "iteration_s": 7.0, "edge_s": 1.4}
    flags: set[Flag] = set()

    async def story(lab: Lab) -> None:
        lab.start()
        for _ in range(60):
            await lab.run(1.0)
            flags.update(*(tick.flags for tick in lab.ticks))

    lab = in_lab(story, lab_scenario("steady", following="software", site=site, workload=workload, duration_s=120.0))
    assert not lab.broken() and not flags
