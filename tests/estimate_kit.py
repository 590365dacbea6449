"""An estimator stepped by hand, and what meter, battery and nodes tell it."""

from __future__ import annotations

import math

import numpy as np

from controller.estimate import Estimate, LoadEstimator
from controller.settings import SiteSettings
from controller.types import (
    AgentState,
    BatterySample,
    BatteryState,
    MeterSample,
    NodeId,
    NodeReport,
    Quality,
    Reading,
)
from tests.tracker_kit import site_of

TICK_S = 0.05


def meter(
    power_w: float, t_s: float, *, quality: Quality = Quality.GOOD, wh: float | None = None
) -> Reading[MeterSample]:
    return Reading(MeterSample(power_w, import_wh=wh), t_s, quality, "pcc")


def battery(power_w: float, t_s: float) -> Reading[BatterySample]:
    sample = BatterySample(power_w, 0.5, 70e6, 70e6, BatteryState.RUNNING, True, power_w, False)
    return Reading(sample, t_s, Quality.GOOD, "battery")


def node(
    power_w: list[float], t_s: float, *, cap_w: float = 700.0, missing: int = 0, stands_for: int = 1
) -> Reading[NodeReport]:
    count = len(power_w)
    quality = np.array([Quality.MISSING] * missing + [Quality.GOOD] * (count - missing), dtype=np.int8)
    report = NodeReport(
        node_id=NodeId("n"),
        boot_id="b",
        t_mono_s=t_s,
        state=AgentState.ARMED,
        stands_for=stands_for,
        gpu_ids=tuple(f"g{i}" for i in range(count)),  # type: ignore[arg-type]
        power_w=np.array(power_w),
        clock_mhz=np.full(count, 1500.0),
        clock_cap_mhz=np.full(count, 1980.0),
        power_limit_w=np.full(count, cap_w),
        quality=quality,
        is_controllable=np.ones(count, dtype=np.bool_),
        other_w=1000.0,
        acked_epoch=1,
        acked_seq=1,
        specs=(),
        fallback_clock_mhz=900.0,
    )
    return Reading(report, t_s, Quality.GOOD, "n")


class Bench:
    """Steps an estimator once per tick; keeps the time."""

    def __init__(self, site: SiteSettings | None = None) -> None:
        self.site = site or site_of()
        self.estimator = LoadEstimator(self.site)
        self.now_s = 0.0

    def tick(
        self,
        power_w: float | None,
        *,
        battery_w: float = 0.0,
        nodes: tuple[Reading[NodeReport], ...] = (),
        subs: dict[str, float] | None = None,
        sample_s: float | None = None,
        wh: float | None = None,
    ) -> Estimate:
        self.now_s += TICK_S
        t_s = self.now_s - 0.03 if sample_s is None else sample_s
        pcc = meter(power_w, t_s, wh=wh) if power_w is not None else meter(math.nan, t_s, quality=Quality.MISSING)
        return self.estimator.step(
            self.now_s,
            pcc=pcc,
            battery=battery(battery_w, self.now_s),
            nodes=nodes,
            meters={name: meter(value, t_s) for name, value in (subs or {}).items()},
        )

    def warm(self, count: int = 40, power_w: float = 60e6) -> Estimate:
        for index in range(count):
            found = self.tick(power_w + 10.0 * (index % 7))
        return found
