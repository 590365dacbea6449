"""The site of the latency bench in virtual time: the real core around plant models, with the delays of real wires."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from controller.app import make_core
from controller.config.site import parse_site
from controller.settings import SiteSettings
from controller.types import (
    AgentState,
    BatteryCommand,
    BatterySample,
    FloatArray,
    GpuId,
    GpuSpec,
    GridSignal,
    MeterSample,
    NodeCommand,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    SignalKind,
    SiteImage,
)
from drivers.nvml import LIMIT_AFTER_CLOCK_S
from hil.latency_plant import BATTERY_W, GPUS, OTHER_W, STANDS_FOR, STEP_S, battery_params
from hil.latency_site import Ports, Way, site_document
from hil.plant.battery import Battery
from hil.plant.gpu import GpuBank

METER_AGE_S = 0.006
WRITE_S = 0.004  # from a cycle to the battery's register
COMMAND_S, CALL_S = 0.006, 0.010  # from a cycle to the first driver call, and between two of a node
REPORT_S = 0.2
STEP_MHZ = 7.5  # a V100 takes the highest clock of its own that is not above the one asked for
LIMIT_S = LIMIT_AFTER_CLOCK_S
IDS = tuple(GpuId(f"GPU-{i}") for i in range(GPUS))


@dataclass
class Shown:
    """One emergency: power before, the target, and times and power from its beginning on."""

    start_s: float
    before_w: float
    target_w: float
    t_s: FloatArray
    pcc_w: FloatArray
    load_w: FloatArray


class Loop:
    """Plant and core in steps of the bench's plant. `late` draws how late a cycle comes, s."""

    def __init__(self, way: Way, *, late: Callable[[], float] = lambda: 0.0) -> None:
        document = site_document(way, Path("/nowhere"), Ports(1, 2, 3), public=Path("/nowhere/key"))
        document.pop("grid")
        site = parse_site(document, origin="bench").site
        assert isinstance(site, SiteSettings)
        self.site, self.core = site, make_core(site, epoch=1)
        self.way = way
        self.t_s = 0.0
        self._late = late
        self._bank = GpuBank("v100", GPUS, rng=np.random.default_rng(1), clock_jitter_frac=0.1)
        self._locks = np.full((2, GPUS), np.nan)
        self._asked = np.full(GPUS, np.nan)
        self._limits = np.full(GPUS, 300.0)
        self._battery = Battery(battery_params())
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._truth: deque[tuple[float, float, float]] = deque()
        self._energy: deque[tuple[float, FloatArray]] = deque()
        self._report: Reading[NodeReport] | None = None
        self._report_s = self._tick_s = 0.0
        self._pcc = Reading(MeterSample(0.0), -math.inf, Quality.MISSING, "pcc")
        self._asked_s = -math.inf
        self._tick = 0
        self._signals: tuple[GridSignal, ...] = ()
        self._news_s = math.inf
        self.least_limit_w = 300.0
        self.is_battery_lost = False

    # ------------------------------------------------------------------------------------------------ what tests do

    def run(self, seconds: float) -> None:
        until_s = self.t_s + seconds
        while self.t_s < until_s - 1e-9:
            self._step()

    def set_target(self, target_w: float | None) -> None:
        """An emergency target from now on; None ends it."""
        self._signals = ()
        if target_w is not None:
            name = f"e{self.t_s:.3f}"
            self._signals = (
                GridSignal(
                    SignalKind.LOAD_TARGET, "grid", name, name, ("main",), self.t_s, math.inf, target_w, (), False, True
                ),
            )
        self._news_s = self.t_s + 0.002

    def emergency(self, *, frac: float = 0.78, lasts_s: float = 1.2, rest_s: float = 1.3) -> Shown:
        """One trial as the bench makes it."""
        start_s = self.t_s
        before_w = float(np.mean([p for t, p, _ in self._truth if t > start_s - 0.1]))
        self.set_target(frac * before_w)
        self.run(lasts_s)
        rows = np.array([r for r in self._truth if r[0] > start_s])
        if rest_s > 0.0:
            self.set_target(None)
            self.run(rest_s)
        return Shown(start_s, before_w, frac * before_w, rows[:, 0], rows[:, 1], rows[:, 2])

    @property
    def pcc_w(self) -> float:
        return self._truth[-1][1]

    @property
    def load_w(self) -> float:
        return self._truth[-1][2]

    @property
    def battery_w(self) -> float:
        return self._battery.power_w

    # ------------------------------------------------------------------------------------------------ the plant

    def _step(self) -> None:
        self.t_s += STEP_S
        for _, act in [x for x in self._due if x[0] <= self.t_s]:
            act()
        self._due = [x for x in self._due if x[0] > self.t_s]
        self._bank.set_clock_lock(*self._locks)
        self._bank.set_power_limit(self._limits)
        power_w = self._bank.step(STEP_S, np.ones(GPUS))
        load_w = OTHER_W + STANDS_FOR * float(power_w.sum())
        if self.way is not Way.CAPS:
            self._battery.advance(np.array([load_w]), dt_s=STEP_S, pcc_w_before=load_w)
        pcc_w = load_w - (self._battery.power_w if self.way is not Way.CAPS else 0.0)
        self._truth.append((self.t_s, pcc_w, load_w))
        if len(self._truth) > 5000:
            self._truth.popleft()
        self._energy.append((self.t_s, self._bank.energy_j.copy()))
        while self._energy[0][0] < self.t_s - 1.0:
            self._energy.popleft()
        if self.t_s >= self._report_s:
            self._report_s += REPORT_S
            self._report = self._reported()
        is_early = self.t_s >= min(self.core.early_s, self._news_s)
        if self.t_s >= self._tick_s:
            self._tick_s += self.site.tracker_period_s
            self._tick += 1
            self._read_meter()
            self._cycle()
        elif is_early:
            self._cycle()

    def _read_meter(self) -> None:
        at_s = self.t_s - METER_AGE_S
        power_w = next((p for t, p, _ in reversed(self._truth) if t <= at_s), self._truth[-1][1])
        self._pcc = Reading(MeterSample(power_w, frequency_hz=60.0), at_s, Quality.GOOD, "pcc")

    def _reported(self) -> Reading[NodeReport]:
        (from_s, first), (until_s, last) = self._energy[0], self._energy[-1]
        mean_w = (last - first) / max(until_s - from_s, STEP_S) if until_s > from_s else self._bank.power_w
        model = self._bank.model
        clocks = tuple(range(round(model.clock_mhz_min), round(model.clock_mhz_max) + 1, 15))
        clocks = (*clocks, 1530) if clocks[-1] != 1530 else clocks
        spec = [GpuSpec(g, model.name, model.idle_w, 150.0, 300.0, 300.0, clocks) for g in IDS]
        report = NodeReport(
            node_id=NodeId("node-1"),
            boot_id="b",
            t_mono_s=self.t_s,
            state=AgentState.MONITOR_ONLY if self.way is Way.BATTERY else AgentState.ARMED,
            stands_for=STANDS_FOR,
            gpu_ids=IDS,
            power_w=mean_w,
            clock_mhz=self._bank.clock_mhz.copy(),
            clock_cap_mhz=self._asked.copy(),
            power_limit_w=self._limits.copy(),
            quality=np.full(GPUS, int(Quality.GOOD), dtype=np.int8),
            is_controllable=np.full(GPUS, self.way is not Way.BATTERY),
            other_w=0.0,
            acked_epoch=1,
            acked_seq=1,
            specs=tuple(spec),
            fallback_clock_mhz=1200.0,
        )
        return Reading(report, self.t_s, Quality.GOOD, "node-1")

    # ------------------------------------------------------------------------------------------------ the wires

    def _cycle(self) -> None:
        self._news_s = math.inf if self.t_s >= self._news_s else self._news_s
        if math.isfinite(self._asked_s) and self.t_s - self._asked_s >= 0.003:
            power_w = next((p for t, p, _ in reversed(self._truth) if t <= self._asked_s + 0.001), self.pcc_w)
            self._pcc = Reading(MeterSample(power_w, frequency_hz=60.0), self._asked_s, Quality.GOOD, "pcc")
            self._asked_s = -math.inf
        image = SiteImage(
            t_mono_s=self.t_s,
            wall_utc_s=1.8e9 + self.t_s,
            tick=self._tick,
            pcc=self._pcc,
            battery=self._battery_reading(),
            ups={},
            nodes=(self._report,) if self._report is not None else (),
            signals=self._signals,
            is_grid_link_up=True,
        )
        core = self.core
        decision = core.decide(image, is_leader=True)
        checked = core.check(decision)
        late_s = self._late()
        battery = checked.command.battery
        if battery is not None and self.way is not Way.CAPS:
            self._due.append((self.t_s + WRITE_S + late_s, partial(self._order, battery)))
        for node in checked.command.nodes:
            self._send(node, late_s)
        if core.early_s - self.t_s < self.site.tracker_period_s:
            self._asked_s = self.t_s + WRITE_S + late_s
        core.acknowledge(image, checked, battery=battery is not None, load_bank=False)
        core.plan_if_due(decision)

    def _battery_reading(self) -> Reading[BatterySample] | None:
        if self.way is Way.CAPS:
            return None
        b = self._battery
        quality = Quality.MISSING if self.is_battery_lost else Quality.GOOD
        sample = BatterySample(
            b.power_w, b.soc_frac, BATTERY_W, BATTERY_W, b.state, True, b.reference_w, False, b.reversion_s_left
        )
        return Reading(sample, self.t_s - 0.004, quality, "battery")

    def _order(self, command: BatteryCommand) -> None:
        self._battery.set_setpoint(command.reference_w)
        self._battery.arm_reversion(command.ttl_s)

    def _send(self, node: NodeCommand, late_s: float) -> None:
        """Each GPU's clock, then its limit, one driver call after the other; what is as it was is not written."""
        if self.way is Way.BATTERY:
            return
        by_id = {cap.gpu_id: cap for cap in node.caps}
        due_s = self.t_s + COMMAND_S + late_s
        for i, gpu_id in enumerate(IDS):
            cap = by_id.get(gpu_id)
            clock = math.nan if cap is None or cap.clock_mhz is None else float(cap.clock_mhz)
            limit = 300.0 if cap is None or cap.power_limit_w is None else cap.power_limit_w
            is_new_clock = not (clock == self._asked[i] or (math.isnan(clock) and math.isnan(self._asked[i])))
            if is_new_clock:
                self._due.append((due_s, partial(self._lock, i, clock)))
                due_s += CALL_S
            if limit != self._limits[i]:
                self._due.append((due_s + LIMIT_S * is_new_clock, partial(self._limit, i, limit)))

    def _lock(self, i: int, clock: float) -> None:
        self._asked[i] = clock
        taken = 135.0 + STEP_MHZ * math.floor((clock - 135.0) / STEP_MHZ) if math.isfinite(clock) else math.nan
        self._locks[:, i] = (135.0, taken) if math.isfinite(clock) else np.nan

    def _limit(self, i: int, limit: float) -> None:
        self._limits[i] = limit
        self.least_limit_w = min(self.least_limit_w, limit)
