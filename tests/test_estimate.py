"""Load from PCC and battery of one instant, its lag, and what stands in for a meter that says nothing."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from controller.estimate import LoadEstimator, LoadSource
from controller.estimate_lag import LagEstimate
from controller.estimate_nodes import sum_nodes
from controller.types import (
    BatteryState,
    Following,
    MeterFlag,
    NodeId,
    Quality,
    Reading,
)
from tests.estimate_kit import TICK_S, Bench, battery, meter, node
from tests.tracker_kit import site_of


def test_load_is_rebuilt_from_the_same_instant() -> None:
    """Meter 30 ms late, battery swinging 20 MW on set-points: the load of the meter's instant within 0.2 %."""
    site = site_of()
    estimator = LoadEstimator(site)
    lag_s, truth_s = 0.06, 0.001
    gain = 1.0 - math.exp(-truth_s / lag_s)
    power, command, worst = 0.0, 0.0, 0.0
    grid: list[float] = []
    rng = np.random.default_rng(2)
    for step in range(8000):
        t_s = step * truth_s
        load_w = 60e6 + 8e6 * math.sin(2 * math.pi * 0.3 * t_s)
        power += gain * (command - power)
        grid.append(load_w - power)
        if step % 50 == 0 and step >= 50:
            found = estimator.step(
                t_s, pcc=meter(grid[step - 30], t_s - 0.030), battery=battery(power, t_s), nodes=(), meters={}
            )
            if step > 4000:
                truth_w = 60e6 + 8e6 * math.sin(2 * math.pi * 0.3 * (t_s - 0.030))
                worst = max(worst, abs(found.load_w - truth_w))
            command = float(rng.uniform(-20e6, 20e6))
            estimator.commanded(t_s, reference_w=command, following=Following.SOFTWARE)
    assert worst < 0.15e6
    assert found.lag_s == pytest.approx(0.06, rel=0.1)
    assert found.delay_s == pytest.approx(0.03, rel=0.05)
    assert found.t_eff_s == pytest.approx(0.14, rel=0.06)


@pytest.mark.parametrize("true_lag_s", [0.03, 0.06, 0.1, 0.2])
def test_the_lag_is_measured_from_the_answers(true_lag_s: float) -> None:
    """Declared 60 ms, really something else, with 0.2 % noise: found within 12 %."""
    rng = np.random.default_rng(1)
    lag = LagEstimate(declared_s=0.06, scale_w=70e6)
    power, command = 0.0, 0.0
    for step in range(600):
        power = command + (power - command) * math.exp(-TICK_S / true_lag_s)
        lag.measured(step * TICK_S, power + rng.normal() * 0.14e6)
        if step % 3 == 0:
            command = float(rng.uniform(-15e6, 15e6))
        lag.commanded(step * TICK_S, command)
    assert lag.lag_s == pytest.approx(true_lag_s, rel=0.12)


def test_a_battery_at_rest_tells_no_lag() -> None:
    """Without set-points that move, the declared lag stands."""
    lag = LagEstimate(declared_s=0.06, scale_w=70e6)
    for step in range(400):
        lag.commanded(step * TICK_S, 1e6)
        lag.measured(step * TICK_S, 1e6 + 1e3 * (step % 2))
    assert lag.lag_s == 0.06


@pytest.mark.parametrize("late_s", [0.3, 1.0])
def test_readings_that_come_late_are_no_lag(late_s: float) -> None:
    """They answer no command in time, whatever lag is tried: one near the last that explained them stands."""
    rng = np.random.default_rng(2)
    lag = LagEstimate(declared_s=0.06, scale_w=70e6)
    power, command, past = 0.0, 0.0, [0.0] * round(late_s / TICK_S)
    for step in range(600):
        power = command + (power - command) * math.exp(-TICK_S / 0.1)
        past.append(power)
        lag.measured(step * TICK_S, past[-1] if step < 300 else past[step])
        if step == 299:
            before_s = lag.lag_s
        if step % 3 == 0:
            command = float(rng.uniform(-15e6, 15e6))
        lag.commanded(step * TICK_S, command)
    assert before_s == pytest.approx(0.1, rel=0.12)
    assert lag.lag_s == pytest.approx(before_s, rel=0.4)


def test_as_told_goes_at_the_slope_and_then_at_the_lag() -> None:
    """30 MW at 10 MW/s and a lag of 0.2 s: 2 MW before its end the lag takes over, after 2.8 s."""
    lag = LagEstimate(declared_s=0.2, scale_w=70e6, slope_w_per_s=10e6)
    assert math.isnan(lag.as_told(0.0))
    lag.commanded(0.0, 0.0)
    lag.commanded(1.0, 30e6)
    assert lag.as_told(0.5) == lag.as_told(-1.0) == lag.as_told(1.0) == 0.0
    assert lag.as_told(2.0) == pytest.approx(10e6)
    assert lag.as_told(3.8) == pytest.approx(28e6)
    assert lag.as_told(4.0) == pytest.approx(30e6 - 2e6 * math.exp(-1.0))
    lag.commanded(4.0, -30e6)
    assert lag.as_told(5.0) == pytest.approx(lag.as_told(4.0) - 10e6)


def test_device_following_uses_its_declared_lag() -> None:
    """Rampart does not see the device's own loop: T_eff is the declared following lag."""
    bench = Bench(site_of(following=Following.DEVICE))
    assert bench.warm().t_eff_s == pytest.approx(0.023)


def test_missing_meter_is_replaced_within_two_ticks() -> None:
    """S2: first the last value with a growing margin, by the second tick the nodes with theirs."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    for index in range(30):
        bench.tick(60e6 + index, nodes=nodes)
    first = bench.tick(None, nodes=nodes)
    assert (first.source, first.quality) == (LoadSource.HELD, Quality.MISSING)
    assert MeterFlag.METER_MISSING in first.flags
    assert first.margin_w > 0.0
    second = bench.tick(None, nodes=nodes)
    assert second.source is LoadSource.NODES
    assert second.quality is Quality.SUSPECT
    assert second.load_w == pytest.approx(60e6, rel=0.06), "GPU sum plus what was not GPU before"
    back = bench.tick(60.5e6, nodes=nodes)
    assert back.source is LoadSource.METER


def test_without_any_other_source_the_margin_grows_to_the_sites_peak() -> None:
    """S2: nothing else is known, so the load may be anything up to all GPUs and other load at their peak."""
    bench = Bench()
    bench.warm()
    margins = [bench.tick(None).margin_w for _ in range(200)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(margins))
    assert margins[-1] == pytest.approx(90e6 + 12e6 - 60e6, rel=0.01)


def test_sub_meters_come_before_nodes() -> None:
    """S2: the sum of the sub-meters stands in at once, with 3 % margin, where the battery follows by itself."""
    bench = Bench(site=replace(site_of(), following=Following.DEVICE))
    for _ in range(10):
        bench.tick(60e6, subs={"a": 40e6, "b": 20e6})
    found = bench.tick(None, subs={"a": 41e6, "b": 20e6})
    assert found.source is LoadSource.SUB_METERS
    assert found.load_w == pytest.approx(61e6)
    assert found.margin_w == pytest.approx(0.03 * 61e6)


def test_a_stale_time_stamp_is_missing() -> None:
    """S4: the meter answers, but with the same old instant."""
    bench = Bench()
    bench.warm()
    stamp_s = bench.now_s - 0.03
    found = [bench.tick(61e6, sample_s=stamp_s) for _ in range(6)]
    assert found[0].source is LoadSource.METER and not found[1].is_fresh
    assert MeterFlag.METER_STALE in found[-1].flags
    assert found[-1].source is not LoadSource.METER


def test_silent_gpus_count_at_their_caps() -> None:
    """Ignorance costs margin: GPUs without a reading raise the bound to their caps, for all they stand for."""
    found = sum_nodes((node([300.0] * 8, 1.0, missing=2, stands_for=5),), gpu_peak_w=1e6)
    assert found.gpu_w == pytest.approx(5 * 8 * 300.0)
    assert found.gpu_w_max == pytest.approx(5 * (6 * 300.0 + 2 * 700.0))
    assert (found.missing_count, found.gpu_count) == (10, 40)
    assert found.other_w == 5000.0
    assert sum_nodes((), gpu_peak_w=1e6).gpu_w_max == 1e6


def test_the_newest_samples_are_summed_beside_the_means() -> None:
    """A GPU that has no sample, one that was not read and an older agent's count at their means."""
    reading = node([300.0] * 8, 1.0, missing=2, stands_for=5)
    assert sum_nodes((reading,), gpu_peak_w=1e6).sample_w == pytest.approx(5 * 8 * 300.0)
    samples = np.array([10.0, 10.0, math.nan, 400.0, 400.0, 400.0, 400.0, 400.0])
    both = (reading, replace(reading, value=replace(reading.value, node_id=NodeId("o"), instant_w=samples)))
    found = sum_nodes(both, gpu_peak_w=1e6)
    assert found.sample_w == pytest.approx(5 * (8 * 300.0 + 3 * 300.0 + 5 * 400.0))
    assert found.gpu_w == pytest.approx(5 * 16 * 300.0)


def test_gpu_and_other_load_are_split_by_the_nodes() -> None:
    """What the meter sees beyond the GPUs is other load, bounded by what the site declares."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    found = bench.tick(60e6, nodes=nodes)
    found = bench.tick(60e6 + 1, nodes=nodes)
    assert found.gpu_w == pytest.approx(52e6)
    assert found.other_w == pytest.approx(8e6, rel=0.01)


def test_a_battery_that_follows_by_itself_knows_what_the_meter_would_show() -> None:
    """Meter and nodes are gone: its target is on the meter, until it has no room left to hold it."""
    estimator = LoadEstimator(site_of(following=Following.DEVICE))
    for k in range(20):
        t_s = k * TICK_S
        sample = replace(battery(5e6, t_s).value, reference_w=58e6, is_following=True)
        if k >= 15:
            sample = replace(sample, power_w=69.9e6, reference_w=40e6)
        lost = meter(math.nan, t_s, quality=Quality.MISSING) if k else meter(58e6, t_s)
        found = estimator.step(t_s, pcc=lost, battery=Reading(sample, t_s, Quality.GOOD, "b"), nodes=(), meters={})
        if 2 < k < 15:
            assert found.pcc_w is None and found.grid_w == 58e6
    assert found.grid_w == pytest.approx(58e6)  # the load last known, less what the battery gave then


def test_a_battery_that_tripped_holds_no_target() -> None:
    """It still says what it was told to hold; the meter goes, and what it showed last is what is known."""
    estimator = LoadEstimator(site_of(following=Following.DEVICE))
    for k in range(40):
        t_s = k * TICK_S
        sample = replace(battery(0.0, t_s).value, reference_w=71e6, is_following=True, state=BatteryState.FAULT)
        metered = meter(58e6, t_s) if k < 20 else meter(math.nan, t_s, quality=Quality.MISSING)
        found = estimator.step(t_s, pcc=metered, battery=Reading(sample, t_s, Quality.GOOD, "b"), nodes=(), meters={})
        assert found.grid_w == pytest.approx(58e6)


def test_a_battery_that_follows_by_itself_goes_on_while_it_is_silent() -> None:
    """It is silent, then the meter too, then load falls by 20 MW: what was on the meter still is."""
    estimator = LoadEstimator(site_of(following=Following.DEVICE))
    for k in range(200):
        t_s = k * TICK_S
        sample = replace(battery(5e6, t_s).value, reference_w=58e6, is_following=True)
        quality = Quality.GOOD if k < 20 else Quality.MISSING
        found = estimator.step(
            t_s,
            pcc=meter(58e6, t_s) if k < 40 else meter(math.nan, t_s, quality=Quality.MISSING),
            battery=Reading(sample, min(t_s, 1.0), quality, "b"),
            nodes=(node([650.0 if k < 60 else 400.0] * 8, t_s, stands_for=10_000),),
            meters={},
        )
    assert found.source is LoadSource.NODES and found.load_w < 45e6
    assert found.grid_w == 58e6
