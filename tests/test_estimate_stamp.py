"""A meter's value stands until its refresh: how old it was when read, told by what our own moves leave on the load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from controller.estimate_stamp import RUNS, SHARES, UNKNOWN_S, USUAL, SampleClock
from controller.modes import Flag
from controller.types import MeterSample, Quality, Reading
from hil.lab_site import SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab

TICK_S, PEAK_W = 0.1, 100e6


def read(clock: SampleClock, t_s: float, power_w: float, battery_at: Callable[[float], float] = lambda _: 0.0) -> float:
    """When the value of a reading of `t_s` was true."""
    reading = Reading(MeterSample(power_w=power_w), t_s, Quality.GOOD, "pcc")
    return clock.stamped(reading, battery_at=battery_at).t_mono_s


def test_a_reading_that_comes_again_is_the_same_sample() -> None:
    clock = SampleClock(0.1, tick_s=TICK_S, scale_w=PEAK_W)
    first = read(clock, 1.0, 60e6)
    assert read(clock, 1.0, 60e6) == first


def test_a_meter_that_refreshes_quickly_and_one_that_says_nothing_are_taken_as_they_come() -> None:
    assert read(SampleClock(0.01, tick_s=TICK_S, scale_w=PEAK_W), 1.0, 60e6) == 1.0
    clock = SampleClock(0.1, tick_s=TICK_S, scale_w=PEAK_W)
    assert read(clock, 1.0, math.nan) == 1.0
    missing = Reading(MeterSample(power_w=60e6), 1.0, Quality.MISSING, "pcc")
    assert clock.stamped(missing, battery_at=lambda _: 0.0) is missing


@pytest.mark.parametrize("share", SHARES)
def test_our_own_moves_tell_how_long_a_value_stood(share: float) -> None:
    """The battery swings by 5 MW; the age that is found is that of the refresh, to a quarter of it."""

    def battery_at(t_s: float) -> float:
        return 5e6 * math.sin(2.0 * math.pi * t_s / 1.5)

    clock = SampleClock(0.2, tick_s=0.2, scale_w=PEAK_W)
    for k in range(100):
        t_s = 0.2 * k
        true_s = t_s - share * 0.2
        found_s = read(clock, t_s, 60e6 + 3e6 * math.sin(2.0 * math.pi * true_s / 7.0) - battery_at(true_s), battery_at)
    assert found_s == pytest.approx(true_s, abs=1e-6)


def test_a_meter_that_sticks_says_nothing_of_its_age() -> None:
    """The battery moves by 20 MW, and none of it is shown: that fits one age or another by chance (seed 1000133)."""

    def battery_at(t_s: float) -> float:
        return (20e6 if abs(t_s - 10.05) < 0.02 else 0.0) if t_s > 9.0 else 1e6 * math.sin(t_s)

    for is_still in (True, False):
        clock = SampleClock(0.01, tick_s=TICK_S, scale_w=PEAK_W)
        for k in range(90):
            read(clock, TICK_S * k, 60e6 - battery_at(TICK_S * k), battery_at)
        for k in range(90, 130):
            stuck = Reading(MeterSample(power_w=60e6, import_wh=5e6), TICK_S * k + 0.05, Quality.GOOD, "pcc")
            clock.stamped(stuck, battery_at=battery_at, is_still=is_still)
        found_s = read(clock, 13.05, 59e6, battery_at)
        assert (found_s == pytest.approx(13.05)) == is_still


def test_without_moves_the_usual_age_counts() -> None:
    clock = SampleClock(0.1, tick_s=TICK_S, scale_w=PEAK_W)
    for k in range(100):
        found_s = read(clock, TICK_S * k, 60e6 + 1e6 * math.sin(k))
    assert found_s == pytest.approx(TICK_S * (99 - USUAL))


def stamps(clock: SampleClock, repeats: Iterable[int]) -> list[list[float]]:
    """Values one after the other, each read so many times: the times that its readings get."""
    ticks_s = itertools.count(0.0, TICK_S)
    return [[read(clock, next(ticks_s), 60e6 + 1e5 * k) for _ in range(n)] for k, n in enumerate(repeats)]


def times(found: list[list[float]]) -> list[int]:
    """How many samples each value was taken for."""
    return [len(set(each)) for each in found]


@pytest.mark.parametrize("repeats", [(2,), (4, 5), (5, 4, 6), (10,), (1, 2)])
def test_a_refresh_that_is_longer_than_declared_is_learnt(repeats: tuple[int, ...]) -> None:
    """Declared 0.02 s, read every 0.1 s: no value is ever taken for two, and what it costs is said once it is sure."""
    clock = SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W)
    assert times(stamps(clock, list(repeats) * (RUNS + 2))) == [1] * (RUNS + 2) * len(repeats)
    assert clock.refresh_s == pytest.approx(TICK_S * sum(repeats) / len(repeats), rel=0.1)
    assert clock.is_slower == (min(repeats) > 1)


def test_what_stands_for_longer_than_its_refresh_is_a_new_sample() -> None:
    """A meter that stands still must be seen to: at its own pace, and one that was never slow at every reading."""
    slow, quick = SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W), SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W)
    assert times(stamps(slow, [3] * RUNS + [30]))[-1] == 10
    assert times(stamps(quick, [1] * RUNS + [30]))[-1] == 30


def test_a_meter_that_stood_still_once_is_as_slow_as_before() -> None:
    clock = SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W)
    assert times(stamps(clock, [2] * RUNS + [30] + [2] * RUNS))[-RUNS:] == [1] * RUNS


def test_one_that_stands_still_from_its_first_reading_on_is_not_waited_for() -> None:
    """For a second it may be that slow; then every reading is a sample, so that it is found stuck."""
    (found,) = stamps(SampleClock(0.01, tick_s=TICK_S, scale_w=PEAK_W), [30])
    assert len(set(found)) == 30 - round(UNKNOWN_S / TICK_S)


def test_a_load_that_hardly_moves_is_no_slow_meter() -> None:
    """Repeats by chance: some values are read once and some often, and nobody is told to correct anything."""
    clock = SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W)
    ticks_s = itertools.count(0.0, TICK_S)
    for k, count in enumerate(np.random.default_rng(1).geometric(0.4, size=300)):
        for _ in range(count):
            read(clock, next(ticks_s), 60e6 + 1e4 * k)
        assert not clock.is_slower


def test_where_repeats_tell_nothing_the_declared_refresh_counts() -> None:
    """A load that hardly moves on a meter of 0.3 s."""
    found = stamps(SampleClock(0.3, tick_s=TICK_S, scale_w=PEAK_W), [1, 9, 2, 7, 1, 12, 1, 8, 9, 3])
    assert times(found)[-2:] == [3, 1]
    assert found[-2][0] == pytest.approx(found[-3][-1] + 0.3, abs=0.2)


def test_after_a_silence_nobody_knows_how_long_a_value_stood() -> None:
    """Values of 0.2 s whose readings are lost for a while now and then."""
    clock = SampleClock(0.02, tick_s=TICK_S, scale_w=PEAK_W)
    t_s = 0.0
    for k in range(4 * RUNS):
        for _ in range(2):
            read(clock, t_s, 60e6 + 1e5 * k)
            t_s += 0.7 if k % 3 == 2 else TICK_S
    assert clock.refresh_s == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize(
    ("tick_s", "update_s", "declared_s", "delay_s", "lag_s"),
    [
        (0.1, 0.1, 0.1, 0.03, 0.06),  # 36 MW in 60 s before values had an age
        (0.1, 0.1, 0.1, 0.12, 0.01),
        (0.1, 0.025, 0.025, 0.085, 0.01),
        (0.1, 0.2, 0.2, 0.03, 0.06),
        (0.1, 1.0, 1.0, 0.11, 0.06),
        (0.05, 0.07, 0.07, 0.11, 0.01),
        (0.1, 0.2, 0.02, 0.03, 0.06),  # 41 MW before the refresh was learnt
        (0.1, 0.1, 0.02, 0.03, 0.06),
        (0.2, 0.2, 0.02, 0.03, 0.06),
        (0.1, 0.2, 0.4, 0.12, 0.01),
        (0.05, 0.5, 0.25, 0.03, 0.06),
    ],
)
def test_a_meter_that_refreshes_slowly_is_followed_without_swinging(
    tick_s: float, update_s: float, declared_s: float, delay_s: float, lag_s: float
) -> None:
    """A sound site, a job of 7 s a step, and a software loop: no row breaks, and nobody calls the meter late."""
    site = {
        "tracker_hz": round(1.0 / tick_s),
        "contract": ["aeso"],
        "fallback_contract": ["aeso"],
        "pcc_meter": SITE["pcc_meter"] | {"update_s": declared_s, "delay_s": delay_s},
        "battery": SITE["battery"] | {"lag_s": lag_s},
    }
    workload = {"compute_w": 490.0, "exchange_w": 473.0, "iteration_s": 7.0, "edge_s": 1.4}
    flags: set[Flag] = set()

    async def story(lab: Lab) -> None:
        lab.start()
        for _ in range(60):
            await lab.run(1.0)
            flags.update(*(tick.flags for tick in lab.ticks))

    plant = {"refresh_s": update_s}
    scenario = lab_scenario("steady", site=site, workload=workload, meter_plant=plant, duration_s=120.0)
    lab = in_lab(story, scenario)
    is_told = update_s > 1.5 * max(declared_s, tick_s)
    assert not lab.broken() and flags == ({Flag.METER_REFRESH} if is_told else set())
