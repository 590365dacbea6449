"""A plant for the fast loop that borrows nothing from the core: meter delay, battery lag, 200 Hz truth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from controller.estimate import Estimate, LoadEstimator, LoadSource
from controller.settings import BatterySettings, MeterSettings, Policy, SiteSettings
from controller.tracker import Tracker
from controller.tracker_io import TrackerInput, TrackerOutput, Watch
from controller.types import (
    BatterySample,
    BatteryState,
    Contract,
    Direction,
    FloatArray,
    Following,
    Limit,
    LimitId,
    LimitStatus,
    MeterSample,
    Mode,
    Provenance,
    Quality,
    RampLimit,
    Reading,
    SwingLimit,
)

HERE = Provenance(source="test", date="", status=LimitStatus.LOCAL)
IESO_RAMP: tuple[Limit, ...] = (
    RampLimit(LimitId("ramp"), 20e6, 60.0, Direction.BOTH, 1.0, HERE),
    SwingLimit(LimitId("swing"), 5e6, 15.0, 1.0, HERE),
)
TRUTH_S = 0.005


def site_of(limits: tuple[Limit, ...] = IESO_RAMP, **changes: object) -> SiteSettings:
    """A 100 MW site with a 70 MW / 35 MWh battery, 20 Hz, meter 30 ms, lag 60 ms."""
    battery = BatterySettings(
        name="battery",
        charge_w_max=70e6,
        discharge_w_max=70e6,
        energy_j=35e6 * 3600.0,
        soc_frac_min=0.05,
        soc_frac_max=0.95,
        eta=0.95,
        lag_s=0.06,
        following=Following.SOFTWARE,
        follow_lag_s=0.023,
        ramp_w_per_s_max=500e6,
        has_own_ramp=True,
        deadband_w=0.0,
        dwell_s=0.0,
        taper_soc_frac=0.05,
    )
    contract = Contract("test", limits, 100e6)
    fields: dict[str, object] = dict(
        name="test",
        contract=contract,
        fallback_contract=contract,
        policy=Policy.RULE,
        tracker_period_s=0.05,
        planner_period_s=1.0,
        following=Following.SOFTWARE,
        meter=MeterSettings("pcc", 0.03, 0.01, 300e6),
        battery=battery,
        classes=(),
        contingencies=(),
        registered_peak_w=100e6,
        gpu_peak_w=90e6,
        gpu_idle_w=20e6,
        gpu_fallback_w=60e6,
        other_load_w=8e6,
        other_load_w_max=12e6,
        guaranteed_floor_w=0.0,
        service_floor_frac=0.3,
        ttl_periods=5.0,
        grace_s=60.0,
        raise_dwell_s=60.0,
        max_export_w=0.0,
        release_stagger_s=0.0,
    )
    known = SiteSettings.__dataclass_fields__
    fields |= {"members": ()} if "members" in known else {}
    fields |= changes
    return SiteSettings(**fields)  # type: ignore[arg-type]


@dataclass
class Run:
    """What a run leaves: truth at 200 Hz, and the tracker's outputs per tick."""

    grid_w: FloatArray
    load_w: FloatArray
    battery_w: FloatArray
    ref_w: FloatArray
    outputs: list[TrackerOutput]
    tracker: Tracker

    def mean_w(self, window_s: float) -> FloatArray:
        return trailing_mean(self.grid_w, window_s)


def trailing_mean(values: FloatArray, window_s: float) -> FloatArray:
    count = round(window_s / TRUTH_S)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[count:] - sums[:-count]) / count


def worst_swing_w(values: FloatArray, window_s: float) -> float:
    """Largest max - min over any rolling window, by two monotone passes."""
    count = round(window_s / TRUTH_S) + 1
    worst = 0.0
    highs: deque[int] = deque()
    lows: deque[int] = deque()
    for index, value in enumerate(values):
        while highs and values[highs[-1]] <= value:
            highs.pop()
        while lows and values[lows[-1]] >= value:
            lows.pop()
        highs.append(index)
        lows.append(index)
        while highs[0] <= index - count:
            highs.popleft()
        while lows[0] <= index - count:
            lows.popleft()
        worst = max(worst, float(values[highs[0]] - values[lows[0]]))
    return worst


Target = Callable[[float, Tracker], float]


def hold(t_s: float, tracker: Tracker) -> float:
    del t_s
    return tracker.g_ref_w


def run(
    load_w: FloatArray,
    *,
    site: SiteSettings | None = None,
    target: Target = hold,
    watches: Callable[[float], tuple[Watch, ...]] = lambda t_s: (),
    meter: Callable[[float, float], float | None] = lambda t_s, power_w: power_w,
    mode: Callable[[float], Mode] = lambda t_s: Mode.NORMAL,
    soc_frac: float = 0.5,
    settle: bool = True,
) -> Run:
    """Drive estimator and tracker through a load of one sample per 5 ms; software or device following as in `site`."""
    site = site or site_of()
    assert site.battery is not None and site.meter is not None
    start_w = float(load_w[:200].mean())
    estimator = LoadEstimator(site)
    tracker = Tracker(site, start_s=0.0, start_w=start_w)
    if settle:
        tracker.interval._known_since_s = -1e9
    lag_s = site.battery.follow_lag_s if site.following is Following.DEVICE else site.battery.lag_s
    gain = 1.0 - math.exp(-TRUTH_S / lag_s)
    step = round(site.tracker_period_s / TRUTH_S)
    late = round(site.meter.delay_s / TRUTH_S)
    count = len(load_w)
    grid, battery, ref = np.empty(count), np.empty(count), np.empty(count)
    power_w, reference_w = 0.0, (0.0 if site.following is Following.SOFTWARE else start_w)
    energy_j = soc_frac * site.battery.energy_j
    outputs: list[TrackerOutput] = []
    for index in range(count):
        t_s = index * TRUTH_S
        if index % step == 0:
            then = max(0, index - late)
            seen = meter(t_s, float(grid[then])) if index > 0 else float(load_w[0])
            quality = Quality.GOOD if seen is not None else Quality.MISSING
            sample_s = t_s - site.meter.delay_s
            estimate = estimator.step(
                t_s,
                pcc=Reading(MeterSample(seen if seen is not None else math.nan), sample_s, quality, "pcc"),
                battery=Reading(sample_of(site, power_w, energy_j, reference_w), t_s, Quality.GOOD, "battery"),
                nodes=(),
                meters={},
            )
            found = tracker.step(
                TrackerInput(
                    now_s=t_s,
                    estimate=estimate,
                    battery=sample_of(site, power_w, energy_j, reference_w),
                    target_w=target(t_s, tracker),
                    mode=mode(t_s),
                    watches=watches(t_s),
                    load_rise_w=100e6,
                )
            )
            outputs.append(found)
            if found.aim is not None:
                reference_w = found.aim.reference_w
                estimator.commanded(t_s, reference_w=reference_w, following=site.following)
        aim_w = reference_w if site.following is Following.SOFTWARE else float(load_w[index]) - reference_w
        aim_w = min(max(aim_w, -site.battery.charge_w_max), site.battery.discharge_w_max)
        power_w += gain * (aim_w - power_w)
        energy_j -= TRUTH_S * (power_w / site.battery.eta if power_w > 0.0 else power_w * site.battery.eta)
        grid[index], battery[index], ref[index] = load_w[index] - power_w, power_w, tracker.g_ref_w
    return Run(grid, load_w, battery, ref, outputs, tracker)


def sample_of(site: SiteSettings, power_w: float, energy_j: float, reference_w: float) -> BatterySample:
    assert site.battery is not None
    return BatterySample(
        power_w=power_w,
        soc_frac=energy_j / site.battery.energy_j,
        charge_w_max=site.battery.charge_w_max,
        discharge_w_max=site.battery.discharge_w_max,
        state=BatteryState.RUNNING,
        is_remote=True,
        reference_w=reference_w,
        is_following=site.following is Following.DEVICE,
    )


def quiet_input(t_s: float, estimate: Estimate, *, battery: BatterySample, target_w: float, mode: Mode) -> TrackerInput:
    """One tick with no contingency to watch and no cap that holds load back."""
    return TrackerInput(t_s, estimate, battery, target_w, mode, watches=(), load_rise_w=100e6)


def estimate_without_meter(*, load_w: float, grid_w: float) -> Estimate:
    """What is known while only nodes report."""
    found = LoadEstimator(site_of()).step(0.0, pcc=None, battery=None, nodes=(), meters={})
    return replace(found, load_w=load_w, grid_w=grid_w, source=LoadSource.NODES)
