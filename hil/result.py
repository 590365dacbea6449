"""From a run to `result.json`: the verdict of every row, work lost, battery used, margins, events, each number in SI.

Same seed, same bits, but for keys that end in `_ms`. Every event that nobody announced is also
reported alone: how deep it went, how much energy, how long until power was back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from controller.files import write_whole
from controller.predict import follower_of
from controller.types import FloatArray, Mode
from hil.bench import RunRecord
from hil.declared import beyond_declared
from hil.truth_log import BEFORE_S
from hil.world import Happening

CONDITIONS = ("transient", "power", "energy", "rise")
UNANNOUNCED = ("drop", "battery_trip", "load_bank_trip")
BACK_FRAC = 0.05  # of the drop: nearer than this to where it should be counts as back
BACK_HOLDS_S = 1.0  # and it must stay there this long
GOOD, BROKEN = 0, 1


def result_of(record: RunRecord) -> dict[str, object]:
    """The content of `result.json`."""
    doc, site = record.scenario.doc, record.scenario.settings.site
    assert site is not None
    verdicts = [record.verdicts, *(s.verdicts for s in record.signal_verdicts)]
    limits = [row.to_json() for v in verdicts for row in v.limits]
    follower = follower_of(site)
    traced = next((c.workload for c in doc.plant.fleet if c.workload.kind == "trace"), None)
    return {
        "scenario": doc.name,
        "seed": doc.seed,
        "clock": doc.clock,
        "wire": record.wire is not None,
        "controller": site.policy.value,
        "contract": site.contract.name,
        "follow": site.following.value if site.battery else None,
        "edge": traced.edge if traced is not None and traced.file is not None else None,
        "trace": list(record.world.trace_names),
        "beyond_declared": list(beyond_declared(record.world, site)),
        "duration_s": record.world.duration_s,
        "t_eff_s": None if follower is None else round(follower.t_eff_s, 6),
        "limits": limits,
        "compliant": all(v.is_compliant for v in verdicts),
        "not_assessed": [name for v in verdicts for name in v.not_assessed],
        "record": record.verdicts.record.to_json(),
        "work": _work(record),
        "battery": _battery(record),
        "load_bank": _load_bank(record),
        **_safety(record),
        "contingency": [alone(record, h) for h in record.world.diary if h.kind in UNANNOUNCED],
        "planner": _planner(record),
        "tracker": _tracker(record),
        "modes": {Mode(m).name.lower(): n / max(len(record.ticks), 1) for m, n in sorted(record.modes.ticks.items())},
        "mode_changes": [
            {"t_s": round(change.t_s, 3), "mode": Mode(change.mode).name.lower(), "because": list(change.reasons)}
            for change in record.modes.changes
        ],
        "envelope": {"violations": {str(k): n for k, n in sorted(_violations(record).items())}},
        "faults": _faults(record),
        "events": [_happening(h) for h in record.world.diary],
        "wall_ms": record.wall_s * 1e3,
        "cpu_ms": record.cpu_s * 1e3,
        **({"on_wires": dict(record.wire.facts)} if record.wire is not None else {}),
    }


def _violations(record: RunRecord) -> Mapping[int, int]:
    """How often the envelope narrowed a command; of a daemon in another process, by its own count."""
    return record.modes.violations if record.wire is None else record.wire.violations


def exit_code(result: dict[str, object]) -> int:
    """0 when no row is broken, else 1."""
    return GOOD if result["compliant"] else BROKEN


def write_result(result: dict[str, object], path: Path) -> None:
    """Write it whole or not at all."""
    write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def alone(record: RunRecord, happening: Happening) -> dict[str, object]:
    """One unannounced event by itself, against the controller's own target (or the second before, without one)."""
    t_s, pcc_w = record.moments.around(happening.t_s)
    slew = happening.drop_w / happening.within_s if happening.within_s > 0.0 else None
    entry: dict[str, object] = {
        "id": happening.id,
        "kind": happening.kind,
        "t_s": happening.t_s,
        "drop_w": happening.drop_w,
        "slew_w_per_s": slew,
    }
    # The diary notes the step before the change; the moments were asked for at the declared time.
    if not t_s.size:
        at_s = happening.t_s + record.world.plant.dt_s
        t_s, pcc_w = record.moments.around(round(at_s, 9))
    if not np.any(t_s >= happening.t_s):
        return {**entry, "dip_raw_w": None, "area_j": None, "back_inside_s": None}
    return {**entry, **_dip(record, happening, t_s, pcc_w)}


def _dip(record: RunRecord, happening: Happening, t_s: FloatArray, pcc_w: FloatArray) -> dict[str, object]:
    """Depth, area and length of the excursion from where power should have been."""
    before = (t_s < happening.t_s) & (t_s >= happening.t_s - min(1.0, BEFORE_S))
    should_w = np.full(t_s.size, float(pcc_w[before].mean()) if before.any() else float(pcc_w[0]))
    if len(record.ticks):
        ref_w = record.ticks.held_at(t_s, ("ref_w",))[0]
        should_w = np.where(np.isfinite(ref_w), ref_w, should_w)
    after = t_s >= happening.t_s
    away_w = np.abs(pcc_w - should_w)[after]
    dt_s = record.world.plant.dt_s
    is_out = away_w > BACK_FRAC * max(happening.drop_w, 1.0)
    back: int | None = 0
    if is_out.any():
        back = _first_lasting(~is_out, round(BACK_HOLDS_S / dt_s), begin=int(np.argmax(is_out)))
    # Even what never leaves the 5 % has a depth: over the drop itself and the second after it.
    least = round((happening.within_s + BACK_HOLDS_S) / dt_s)
    span = away_w if back is None else away_w[: max(back, least)]
    return {
        "dip_raw_w": float(span.max()),
        "area_j": float(span.sum() * dt_s),
        "back_inside_s": None if back is None else back * dt_s,
    }


def _first_lasting(is_in: np.ndarray[tuple[int], np.dtype[np.bool_]], count: int, *, begin: int) -> int | None:
    """Index of the first sample from `begin` on after which `is_in` holds `count` times in a row."""
    run = 0
    for index in range(begin, is_in.size):
        run = run + 1 if is_in[index] else 0
        if run >= count:
            return index - count + 1
    return None


def _work(record: RunRecord) -> dict[str, object]:
    demand, done = record.world.plant.fleet.work()
    per_class = {
        job.class_id: {
            "demand_gpu_s": job.demand_gpu_s,
            "done_gpu_s": job.done_gpu_s,
            "lost_frac": _lost(job.demand_gpu_s, job.done_gpu_s),
        }
        for job in record.world.plant.fleet.jobs
    }
    return {"demand_gpu_s": demand, "done_gpu_s": done, "lost_frac": _lost(demand, done), "classes": per_class}


def _lost(demand: float, done: float) -> float:
    return max(0.0, 1.0 - done / demand) if demand > 0.0 else 0.0


def _battery(record: RunRecord) -> dict[str, object] | None:
    battery = record.world.plant.battery
    if battery is None:
        return None
    return {
        "start_soc_frac": record.start_soc_frac,
        "end_soc_frac": battery.soc_frac,
        "throughput_wh": battery.throughput_j / 3_600.0,
        "peak_w": battery.power_w_peak,
    }


def _load_bank(record: RunRecord) -> dict[str, object] | None:
    bank = record.world.plant.load_bank
    if bank is None:
        return None
    return {"drawn_wh": bank.drawn_j / 3_600.0, "peak_w": bank.power_w_peak}


def _safety(record: RunRecord) -> dict[str, object]:
    m = record.margins
    shares = {name: m.held[name] / m.seen[name] if m.seen.get(name) else None for name in CONDITIONS}
    return {
        "crash_safe_frac": m.safe_count / m.tick_count if m.tick_count else 0.0,
        "crash_safe": shares,
        # Not a number for JSON: a margin without end, or one broken without bound.
        "margins_least": {k: v if math.isfinite(v) else None for k, v in sorted(m.least.items())},
    }


def _planner(record: RunRecord) -> dict[str, object]:
    w, s = record.wire, record.stopwatch
    if w is not None:
        site = record.scenario.settings.site
        assert site is not None
        misses = int(w.plan_ms["max"] > site.planner_period_s * 1e3)
        return {"cycles": w.plan_count, "solve_ms": w.plan_ms, "deadline_misses": misses, "fallbacks": w.fallbacks}
    return {
        "cycles": s.plan_count,
        "solve_ms": _quantiles(s.plan_ms),
        "deadline_misses": 0 if record.scenario.doc.clock == "virtual" else s.miss_count,
        "fallbacks": s.fallback_count,
    }


def _tracker(record: RunRecord) -> dict[str, object]:
    w, s = record.wire, record.stopwatch
    if w is not None:
        return {"ticks": w.tick_count, "tick_ms": w.tick_ms, "overruns": w.overruns}
    return {"ticks": len(record.ticks), "tick_ms": _quantiles(s.tick_ms), "overruns": s.overrun_count}


def _quantiles(values_ms: Sequence[float]) -> dict[str, float]:
    if not len(values_ms):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99 = np.quantile(np.array(values_ms), (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "max": float(max(values_ms))}


def _faults(record: RunRecord) -> list[dict[str, object]]:
    end_s = record.world.duration_s
    return [
        {
            "t_s": f.t_s,
            "id": f.id or f"{f.port}-{f.verb}-{number}",
            "kind": f.verb,
            "detail": f"{f.port} for {'the rest of the run' if f.duration_s is None else f'{f.duration_s:g} s'}",
        }
        for number, f in enumerate(record.scenario.doc.faults)
        if f.t_s < end_s
    ]


def _happening(h: Happening) -> dict[str, object]:
    return {"t_s": h.t_s, "id": h.id, "kind": h.kind, "detail": h.detail}
