"""What operators see: the status document and the metrics, made from completed cycles. Decides nothing.

Headroom of every row and the time to breach are kept here rather than in the core: they watch, they do not steer. A
change of mode is one log line with its reasons; everything else is a value to be scraped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import structlog

from controller.core import SiteCore
from controller.cycle import TickTrace
from controller.fleet import mean_cap_frac
from controller.headroom import Headroom, RowHeadroom
from controller.modes import Flag
from controller.reasons import MEANS, said
from controller.settings import SiteSettings
from controller.survival import smallest
from controller.telemetry_envelope import EnvelopeTelemetry
from controller.telemetry_jobs import JobsTelemetry
from controller.telemetry_links import Counter, LinkTelemetry
from controller.types import Margin
from drivers.metrics import Metrics

REPORT_S = 1.0  # how often rows are looked at and metrics set
TICKS_KEPT = 6000  # five minutes at 20 Hz
EVENTS_KEPT = 50
NO_COUNTERS: Mapping[str, Counter] = {}
NOTHING_YET = "nothing is written yet"

log = structlog.get_logger("rampart")


class Reporter:
    """Observes cycles; `document` is the status, metrics are set once a second."""

    def __init__(
        self,
        site: SiteSettings,
        *,
        metrics: Metrics,
        core: SiteCore | None = None,
        counters: Mapping[str, Counter] = NO_COUNTERS,
    ) -> None:
        """`core` shows its jobs, their tiers and what it learnt of them; `counters` are those of the links, by name."""
        self._site = site
        self._metrics = metrics
        self._links = LinkTelemetry(counters)
        self._jobs = JobsTelemetry(core, metrics=metrics) if core is not None else None
        self._last: TickTrace | None = None
        self._headroom: Headroom | None = None
        self._limits: object = None
        self._rows: tuple[RowHeadroom, ...] = ()
        self._told_s = -math.inf
        self._tick_ms: deque[float] = deque(maxlen=TICKS_KEPT)
        self._plan_ms: deque[float] = deque(maxlen=TICKS_KEPT)
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS_KEPT)
        self._envelope = EnvelopeTelemetry()
        self._plan_count = self._fallback_count = 0
        self._mode = ""

    def observe(self, trace: TickTrace) -> None:
        """After every completed cycle."""
        self._last = trace
        self._tick_ms.append(trace.tick_ms)
        if trace.is_planned:
            self._plan_ms.append(trace.plan_ms)
            self._plan_count += 1
            is_own = trace.plan is not None and trace.plan.policy == self._site.policy.value
            self._fallback_count += not is_own
        self._envelope.observe(trace.image.t_mono_s, trace.image.wall_utc_s, trace.checked.violations)
        self._watch_rows(trace)
        mode = _mode_name(trace)
        if mode != self._mode:
            reasons = "; ".join(_reasons(trace)) or "all is well"
            log.info("mode", mode=mode, because=reasons)
            self._events.append((trace.image.wall_utc_s, f"mode {mode}: {reasons}"))
            self._mode = mode
        if trace.image.t_mono_s - self._told_s >= REPORT_S:
            self._told_s = trace.image.t_mono_s
            self._rows = self._headroom.report() if self._headroom is not None else ()
            self._set_metrics(trace)
        if self._jobs is not None:
            self._jobs.observe(trace)

    def document(self) -> Mapping[str, object]:
        """The status document: plain JSON values, infinities as None."""
        trace = self._last
        if trace is None:
            return {
                "site": self._site.name,
                "mode": "STARTING",
                "mode_means": NOTHING_YET,
                "contract": self._site.contract.name,
                "reasons": [],
                "unmet": [],
                "power": {},
                **margin_fields((), self._site),
                **self._links.document(),
            }
        decision, track = trace.decision, trace.decision.track
        estimate, battery = decision.estimate, decision.image.battery  # as it is believed
        return {
            "site": self._site.name,
            "mode": _mode_name(trace),
            "mode_means": _mode_means(trace),
            "mode_since_s": round(trace.image.t_mono_s - decision.mode.since_s, 1),
            "contract": self._site.contract.name,
            "is_fallback_contract": decision.in_force.is_fallback,
            "reasons": _reasons(trace),
            "unmet": list(decision.unmet),
            "t_mono_s": trace.image.t_mono_s,
            "wall_utc_s": trace.image.wall_utc_s,
            "power": {
                "load_w": _number(estimate.load_w),
                "load_source": estimate.source.value,
                "pcc_w": _number(estimate.pcc_w),
                "battery_w": _number(estimate.battery_w),
                "soc_frac": _number(battery.value.soc_frac if battery is not None else None),
                "target_w": _number(track.g_ref_w if track else None),
                "low_w": _number(track.low_w if track else None),
                "high_w": _number(track.high_w if track else None),
                "load_w_max": _number(track.load_w_max if track else None),
                "t_eff_s": _number(estimate.t_eff_s),
                "cap_frac": mean_cap_frac(trace.decision.fleet, trace.decision.readings),
            },
            "load_bank": _load_bank(trace),
            "gpu_floor": _gpu_floor(trace),
            "ups": [
                {
                    "name": name,
                    "output_w": _number(reading.value.output_w),
                    "is_on_battery": reading.value.is_on_battery,
                    "is_on_bypass": reading.value.is_on_bypass,
                    "minutes_left": _number(reading.value.minutes_left),
                    "quality": reading.quality.name.lower(),
                }
                for name, reading in trace.image.ups.items()
            ],
            "rows": [_row(row) for row in self._rows],
            "residual_w": {k: _number(v) for k, v in (track.residual_w if track else {}).items()},
            **margin_fields(decision.margins, self._site),
            "signals": [
                {"id": s.signal_id, "kind": s.kind.value, "issuer": s.issuer, "target_w": s.target_w}
                for s in trace.image.signals
            ],
            "prices": [
                {"kind": p.kind.value, "joule_per_w": _number(p.joule_per_w), "at_least": p.is_bound}
                for p in (trace.plan.prices if trace.plan else ())
            ],
            "plan": {"policy": trace.plan.policy, "status": trace.plan.status.value} if trace.plan else None,
            "nodes": len(trace.image.nodes),
            "gpus": int(decision.fleet.table.stands_for.sum()),
            **self._envelope.document(),
            **self._links.document(),
            "tick": {
                "count": trace.image.tick + 1,
                "overruns": trace.overrun_count,
                "plans": self._plan_count,
                "fallback_plans": self._fallback_count,
                "tick_ms": _percentiles(self._tick_ms),
                "plan_ms": _percentiles(self._plan_ms),
            },
            "events": [{"wall_utc_s": t_s, "what": what} for t_s, what in self._events],
            **(self._jobs.document(trace) if self._jobs is not None else {}),
        }

    def close(self) -> None:
        """Stop serving metrics."""
        self._metrics.close()

    def _watch_rows(self, trace: TickTrace) -> None:
        estimate, limits = trace.decision.estimate, trace.decision.in_force.limits
        if estimate.pcc_w is None or not estimate.is_fresh:
            return
        if self._headroom is None:
            self._headroom = Headroom(
                limits, start_s=estimate.t_s, start_w=estimate.pcc_w, sample_s=self._site.tracker_period_s
            )
        elif limits is not self._limits:
            self._headroom.set_limits(limits)
        self._limits = limits
        self._headroom.add(estimate.t_s, estimate.pcc_w)

    def _set_metrics(self, trace: TickTrace) -> None:
        put, decision, track = self._metrics.set, trace.decision, trace.decision.track
        if self._jobs is not None:
            self._jobs.set_metrics(trace)
        put("rampart_mode", float(decision.mode.mode))
        put("rampart_load_w", decision.estimate.load_w)
        put("rampart_t_eff_s", decision.estimate.t_eff_s)
        put("rampart_cap_frac", mean_cap_frac(trace.decision.fleet, trace.decision.readings))
        put("rampart_tick_ms_p99", _percentiles(self._tick_ms)["p99"])
        put("rampart_overruns_count", float(trace.overrun_count))
        self._envelope.set_metrics(self._metrics)
        self._links.set_metrics(self._metrics)
        if decision.estimate.pcc_w is not None:
            put("rampart_pcc_w", decision.estimate.pcc_w)
        if (battery := decision.image.battery) is not None:
            put("rampart_battery_w", battery.value.power_w)
            put("rampart_soc_frac", battery.value.soc_frac)
        if trace.image.load_bank is not None:
            put("rampart_load_bank_w", trace.image.load_bank.value.power_w)
            put("rampart_load_bank_setpoint_w", trace.image.load_bank.value.setpoint_w)
            put("rampart_load_bank_armed", float(not decision.why_no_floor))
            put("rampart_floor_w", decision.floor.sure_w)
            put("rampart_floor_quick_w", decision.floor.quick_w)
        for name, ups in trace.image.ups.items():
            put("rampart_ups_on_battery", float(ups.value.is_on_battery), {"ups": name})
            if ups.value.minutes_left is not None:
                put("rampart_ups_left_s", 60.0 * ups.value.minutes_left, {"ups": name})
        put("rampart_gpu_floor_w", decision.readings.floor.power_w if decision.readings.floor is not None else 0.0)
        put("rampart_gpu_floor_worth_w", decision.held_w)
        for row in self._rows:
            labels = {"row": row.limit_id, "estimate": str(row.is_estimate).lower()}
            put("rampart_headroom_w", row.headroom_w, labels)
            put("rampart_breach_s", row.breach_s, labels)
        if track is not None:
            put("rampart_target_w", track.g_ref_w)
            put("rampart_low_w", track.low_w)
            put("rampart_high_w", track.high_w)
            for limit_id, residual_w in track.residual_w.items():
                put("rampart_residual_w", residual_w, {"row": limit_id})
            for margin in track.margins:
                put("rampart_margin", margin.value, {"name": margin.name, "contingency": margin.contingency})
            least = least_margin(track.margins, self._site)
            if least is not None:
                put("rampart_margin_least_frac", least[1])
        for price in trace.plan.prices if trace.plan else ():
            put("rampart_price_joule_per_w", price.joule_per_w, {"kind": price.kind.value})


def margin_fields(margins: Sequence[Margin], site: SiteSettings) -> dict[str, object]:
    """Every condition of the crash-safe set by name, and which of them is nearest to breaking."""
    least = least_margin(margins, site)
    return {
        "margins": [_margin(margin) for margin in margins],
        "least_margin": None if least is None else {**_margin(least[0]), "frac": _number(least[1])},
    }


def least_margin(margins: Sequence[Margin], site: SiteSettings) -> tuple[Margin, float] | None:
    """The margin nearest to breaking and its share of the battery (of the site, where there is none)."""
    battery = site.battery
    scale_w = battery.charge_w_max if battery is not None else site.registered_peak_w
    scale_j = battery.energy_j if battery is not None else site.registered_peak_w
    least = smallest(margins, power_scale_w=scale_w, energy_scale_j=scale_j)
    if least is None:
        return None
    return least, least.value / max(scale_w if least.unit == "W" else scale_j, 1.0)


def _margin(margin: Margin) -> dict[str, object]:
    return {
        "name": margin.name,
        "contingency": margin.contingency,
        "value": _number(margin.value),
        "unit": margin.unit,
    }


def _load_bank(trace: TickTrace) -> dict[str, object] | None:
    """What the bank does, whether it counts, and if not, why not."""
    reading = trace.image.load_bank
    if reading is None:
        return None
    sample, floor = reading.value, trace.decision.floor
    return {
        "state": sample.state.value,
        "power_w": _number(sample.power_w),
        "setpoint_w": _number(sample.setpoint_w),
        "power_w_max": _number(sample.power_w_max),
        "energy_j_left": _number(sample.energy_j_left),
        "is_armed": not trace.decision.why_no_floor,
        "why_not": trace.decision.why_no_floor,
        "floor_w": _number(floor.sure_w),
        "floor_quick_w": _number(floor.quick_w),
    }


def _gpu_floor(trace: TickTrace) -> dict[str, object] | None:
    """What GPUs hold by power smoothing, and the load that stays for ever it is worth."""
    floor = trace.decision.readings.floor
    if floor is None:
        return None
    return {"armed_w": _number(floor.power_w), "hold_s": floor.hold_s, "worth_w": _number(trace.decision.held_w)}


def _mode_name(trace: TickTrace) -> str:
    """The mode, or STARTING while the site's power was never seen and nothing is written."""
    return "STARTING" if trace.decision.track is None else trace.decision.mode.mode.name


def _mode_means(trace: TickTrace) -> str:
    return NOTHING_YET if trace.decision.track is None else MEANS[trace.decision.mode.mode]


def _reasons(trace: TickTrace) -> list[str]:
    if trace.decision.held_back:
        return [f"waiting: {words}; nothing is written before" for words in trace.decision.held_back]
    estimate, epoch = trace.decision.estimate, trace.checked.command.epoch
    seconds = {Flag.METER_REFRESH: estimate.refresh_s, Flag.BATTERY_LATE: estimate.dead_s}
    return [
        said(reason, trace.image, epoch=epoch, seconds=seconds, late_nodes=estimate.late_nodes)
        for reason in trace.decision.mode.reasons
    ]


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _row(row: RowHeadroom) -> dict[str, object]:
    return {
        "id": row.limit_id,
        "worst_w": _number(row.worst_w),
        "limit_w": row.limit_w,
        "headroom_w": _number(row.headroom_w),
        "breach_s": _number(row.breach_s),
        "is_estimate": row.is_estimate,
    }


def _percentiles(values: deque[float]) -> dict[str, float]:
    if not values:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    array = np.fromiter(values, dtype=np.float64)
    return {"p50": float(np.percentile(array, 50)), "p99": float(np.percentile(array, 99)), "max": float(array.max())}
