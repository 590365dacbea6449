"""What a wire run remembers of its processes, and how their status becomes the bench's own kind of tick."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.check import crash_reading
from controller.settings import SiteSettings
from controller.types import FloatArray, GridSignal, Margin, Mode, RampLimit, SwingLimit, frozen
from hil.bench import WireFacts
from hil.plant.fleet import Group, Job
from hil.plant.site import TRUTH, TruthBlock
from hil.run_log import TickView
from hil.scenario_documents import ClassPlantDoc, TrainingDoc
from hil.truth_log import ROW_S, Rows
from hil.wire_signals import Answer
from hil.world import Happening

OVER = " (over): "  # the status' mark of a reason whose cause is gone
CRASH_S = 2.0  # how long after a crash its reading is looked for


@dataclass(slots=True)
class Account:
    """Collected while the run goes on; `facts` is what goes into the result."""

    is_stopping: bool = False
    answers: list[Answer] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)  # the last one
    late_ms: array[float] = field(default_factory=lambda: array("d"))  # of the plant's loop
    clean_stops: dict[str, bool] = field(default_factory=dict)
    rss_bytes: dict[str, int] = field(default_factory=dict)
    processes_left: int = 0
    left_throttled: tuple[str, ...] = ()
    clock_writes: int = 0
    limit_writes: int = 0
    _last_s: float = -math.inf

    def is_news(self, view: TickView) -> bool:
        """A tick of the run that was not seen before."""
        if view.t_s <= self._last_s or view.t_s < 0.0:
            return False
        self._last_s = view.t_s
        return True

    def facts(self, *, gpus: Sequence[Group], status_messages: int, predicted: object) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "processes": {
                name: {"rss_bytes_max": self.rss_bytes[name], "stopped_cleanly": self.clean_stops[name]}
                for name in sorted(self.clean_stops)
            },
            "processes_left": self.processes_left,
            "plant_late_ms": _quantiles(self.late_ms),
            "gpus": {
                "count": len(gpus),
                "each_stands_for": gpus[0].count,
                "clock_writes": self.clock_writes,
                "limit_writes": self.limit_writes,
                "left_throttled": list(self.left_throttled),
            },
            "answers": [
                {
                    "signal": a.signal_id,
                    "t_s": a.t_s,
                    "acceptance": a.answer.acceptance,
                    "reason": a.answer.reason,
                    "detail": a.answer.detail,
                    "met_at": a.answer.met_at,
                }
                for a in self.answers
            ],
            "status_messages": status_messages,
            "predicted": predicted,
        }


def view_of(status: dict[str, Any], *, begin_s: float) -> TickView | None:
    """A status document as a tick on the run's time; None while the controller has not decided anything."""
    if "power" not in status or status["mode"] not in Mode.__members__:
        return None
    power = status["power"]
    tick = status["tick"]

    def watt(key: str) -> float:
        value = power[key]
        return math.nan if value is None else float(value)

    return TickView(
        t_s=float(status["t_mono_s"]) - begin_s,
        ref_w=watt("target_w"),
        low_w=watt("low_w"),
        high_w=watt("high_w"),
        mode=int(Mode[status["mode"]]),
        cap_frac=float(power["cap_frac"]),
        margins=tuple(
            Margin(m["name"], m["contingency"], float(m["value"]), m["unit"])
            for m in status["margins"]
            if m["value"] is not None
        ),
        planned=False,
        is_fallback=False,
        plan_ms=0.0,
        overrun_count=int(tick["overruns"]),
        reasons=_reasons(status["reasons"]),
    )


def _reasons(told: Sequence[str]) -> tuple[str, ...]:
    """What stands, without what clears it. Where all of it is over, that: the mode waits for its end to be sure."""
    standing = [said for said in told if OVER not in said]
    return tuple(said.rpartition("; clears ")[0] for said in standing or told)


class Checkpoints:
    """Notices when a job comes to the next of the checkpoints that its workload names, in its own work time."""

    def __init__(self, fleet: Sequence[ClassPlantDoc], jobs: Sequence[Job]) -> None:
        self._due = [
            (job, at_s)
            for doc, job in zip(fleet, jobs, strict=True)
            if isinstance(doc.workload, TrainingDoc)
            for at_s in sorted(doc.workload.checkpoints_s)
        ]

    def reached(self) -> list[str]:
        """The jobs that have begun one since the last call."""
        begun = [(job, at_s) for job, at_s in self._due if job.work_s >= at_s]
        self._due = [entry for entry in self._due if entry not in begun]
        return [job.class_id for job, _ in begun]


@frozen
class Crash:
    """Plant truth around the crash, evenly sampled, from some time before it on."""

    at_s: float
    t_s: FloatArray
    pcc_w: FloatArray
    drop_w: float  # what left, at the clocks of the moment

    def fall_w(self, *, mean_s: float, window_s: float) -> float:
        """The largest fall within the window, of the trailing mean, that ends soon after the crash."""
        dt_s = float(self.t_s[1] - self.t_s[0])
        width = max(1, round(mean_s / dt_s))
        total = np.concatenate(([0.0], np.cumsum(self.pcc_w)))
        mean_w = (total[width:] - total[:-width]) / width
        t_s = self.t_s[width - 1 :]
        near = (t_s >= self.at_s - min(window_s, mean_s)) & (t_s <= self.at_s + CRASH_S + mean_s)
        part_w = mean_w[near]
        return float((np.maximum.accumulate(part_w) - part_w).max(initial=0.0))


def dropped_w(rows: Rows, happening: Happening) -> float:
    """How much load fell in an event, from just before it to just after."""
    t_s, load_w = rows.columns["t_s"], rows.columns["load_w"]
    before = load_w[t_s + ROW_S <= happening.t_s + 1e-9]  # a row is the mean of the interval that begins at its time
    after = load_w[t_s >= happening.t_s + happening.within_s + ROW_S]
    return max(0.0, float(before[-1] - after[0])) if before.size and after.size else 0.0


def predictions(site: SiteSettings, signals: Sequence[GridSignal], crash: Crash | None) -> list[dict[str, object]]:
    """What `rampart check` says of a crash for each window row, beside what the crash alone read on that row.

    `full_w` is its figure for every GPU at full power, `predicted_w` the same for the drop that came: caps may have
    made it smaller. `measured_w` is the largest fall of the row's trailing mean that ends within two seconds of it.
    """
    windows = [row for row in site.contract.limits if isinstance(row, RampLimit | SwingLimit)]
    windows += [row for s in signals for row in s.limits if isinstance(row, RampLimit | SwingLimit)]
    found: list[dict[str, object]] = []
    for limit in windows:
        full = crash_reading(site, mean_s=limit.mean_s)
        reading = crash_reading(site, mean_s=limit.mean_s, drop_w=crash.drop_w) if crash is not None else None
        if full is None or reading is None or crash is None or getattr(limit, "band_hz", None) is not None:
            continue
        found.append(
            {
                "limit": str(limit.id),
                "allowed_w": limit.max_w,
                "mean_s": limit.mean_s,
                "full_drop_w": full.drop_w,
                "full_w": full.dip.mean_w,
                "full_breaks": full.dip.mean_w > limit.max_w,
                "drop_w": crash.drop_w,
                "predicted_w": reading.dip.mean_w,
                "measured_w": crash.fall_w(mean_s=limit.mean_s, window_s=limit.window_s),
            }
        )
    return found


def words_of(signal: GridSignal) -> str:
    """A signal in one line."""
    parts = [f"load target {signal.target_w / 1e6:g} MW"] if signal.target_w is not None else []
    for limit in signal.limits:
        if isinstance(limit, RampLimit | SwingLimit):
            parts.append(f"at most {limit.max_w / 1e6:g} MW within any {limit.window_s:g} s")
        else:
            parts.append(f"row {limit.id}")
    return f"{signal.issuer} asks: {', '.join(parts)}"


def cut(blocks: Sequence[TruthBlock], *, until_s: float) -> Iterator[TruthBlock]:
    """The blocks up to and including `until_s`: a run in real time goes a step or two beyond its end."""
    for block in blocks:
        keep = round((until_s - block.t0_s) / block.dt_s) + 1
        if keep >= block.pcc_w.size:
            yield block
        elif keep > 0:
            yield TruthBlock(block.t0_s, block.dt_s, *(getattr(block, name)[:keep] for name in TRUTH))


def _quantiles(values_ms: Sequence[float]) -> dict[str, float]:
    if not len(values_ms):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99 = np.quantile(np.array(values_ms), (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "max": float(max(values_ms))}


def wire_facts(account: Account, facts: dict[str, object]) -> WireFacts:
    """What goes into `result.json` of a run on wires beside what any run has."""
    tick, envelope = account.status.get("tick", {}), account.status.get("envelope", {})
    return WireFacts(
        tick_count=int(tick.get("count", 0)),
        tick_ms=tick.get("tick_ms", {"p50": 0.0, "p99": 0.0, "max": 0.0}),
        overruns=int(tick.get("overruns", 0)),
        plan_count=int(tick.get("plans", 0)),
        plan_ms=tick.get("plan_ms", {"p50": 0.0, "p99": 0.0, "max": 0.0}),
        fallbacks=int(tick.get("fallback_plans", 0)),
        violations={int(n): int(count) for n, count in envelope.get("by_invariant", {}).items()},
        left_all_clean=not account.left_throttled and not account.processes_left,
        facts=facts,
    )
