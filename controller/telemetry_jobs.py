"""What operators see of jobs: classes and their tiers, what was learnt of their GPUs, which jobs run where.

Reads what the core holds; decides nothing. A tier that is passed, and kept again, is one log line each.
"""

from __future__ import annotations

import math

import numpy as np
import structlog

from controller.core import SiteCore
from controller.cycle import TickTrace
from controller.identify import Identified
from controller.tier_watch import TierState
from controller.types import ClassId
from drivers.metrics import Metrics

JOBS_SHOWN = 200  # in the status document; the metric counts them all

log = structlog.get_logger("rampart")


class JobsTelemetry:
    """Looks at the core once per plan."""

    def __init__(self, core: SiteCore, *, metrics: Metrics) -> None:
        self._core = core
        self._metrics = metrics
        self._exceeded: dict[ClassId, bool] = {}

    def observe(self, trace: TickTrace) -> None:
        """Tell each class that passes its tier, or keeps it again, once."""
        if not trace.is_planned:
            return
        for tier in self._core.planning.tiers:
            if tier.is_exceeded == self._exceeded.get(tier.class_id, False):
                continue
            self._exceeded[tier.class_id] = tier.is_exceeded
            say = log.warning if tier.is_exceeded else log.info
            say(
                "tier exceeded" if tier.is_exceeded else "tier kept again",
                job_class=tier.class_id,
                lost_frac=round(tier.lost_frac, 4),
                tolerated_frac=tier.tolerated_loss_frac,
                window_s=tier.window_s,
            )

    def document(self, trace: TickTrace) -> dict[str, object]:
        """The keys `tiers`, `learnt` and `jobs` of the status document."""
        planning = self._core.planning
        return {
            "tiers": [_tier(tier) for tier in planning.tiers],
            "learnt": [_learnt(known) for known in planning.identified],
            "jobs": self._jobs(trace),
        }

    def _jobs(self, trace: TickTrace) -> dict[str, object]:
        fleet, placement = trace.decision.fleet, self._core.placement
        per_job = np.bincount(fleet.job_index, weights=fleet.table.stands_for, minlength=len(fleet.job_names))
        used, first = np.unique(fleet.job_index, return_index=True)
        shown = [
            {"job": fleet.job_names[j], "class": fleet.class_ids[int(fleet.class_index[i])], "gpus": int(per_job[j])}
            for j, i in zip(used[:JOBS_SHOWN].tolist(), first[:JOBS_SHOWN].tolist(), strict=True)
        ]
        return {
            "count": len(fleet.job_names),
            "shown": shown,
            "unknown_classes": list(placement.unknown_classes) if placement is not None else [],
        }

    def set_metrics(self, trace: TickTrace) -> None:
        """Once a second."""
        put, planning = self._metrics.set, self._core.planning
        put("rampart_jobs_count", float(len(trace.decision.fleet.job_names)))
        for tier in planning.tiers:
            labels = {"class": str(tier.class_id)}
            put("rampart_tier_lost_frac", tier.lost_frac, labels)
            put("rampart_tier_tolerated_frac", tier.tolerated_loss_frac, labels)
            put("rampart_tier_exceeded", float(tier.is_exceeded), labels)
        for known in planning.identified:
            labels = {"class": str(known.class_id), "model": known.model}
            put("rampart_class_peak_w", known.peak_w * known.gpus, labels)
            put("rampart_class_idle_w", known.idle_w * known.gpus, labels)
            put("rampart_curve_confidence", known.confidence, labels)
            put("rampart_caps_do_nothing", float(known.are_caps_deaf), labels)
            if known.rhythm is not None:
                put("rampart_iteration_s", known.rhythm.period_s, labels)


def _tier(tier: TierState) -> dict[str, object]:
    return {
        "class": tier.class_id,
        "tolerated_loss_frac": tier.tolerated_loss_frac,
        "lost_frac": round(tier.lost_frac, 5),
        "window_s": tier.window_s,
        "is_exceeded": tier.is_exceeded,
    }


def _learnt(known: Identified) -> dict[str, object]:
    rhythm = known.rhythm
    return {
        "class": known.class_id,
        "model": known.model,
        "gpus": int(known.gpus),
        "idle_w_per_gpu": round(known.idle_w, 1),
        "peak_w_per_gpu": round(known.peak_w, 1),
        "clock_frac_min": round(known.clock_frac_min, 3),
        "dynamic_share_at_min": round(known.share_at_min, 3),
        "std": round(known.std_at_min, 4),
        "confidence": round(known.confidence, 3),
        "blocks": known.blocks,
        "caps_do_nothing": known.are_caps_deaf,
        "iteration": None
        if rhythm is None or not math.isfinite(rhythm.phase_rad)
        else {
            "period_s": round(rhythm.period_s, 4),
            "duty_frac": round(rhythm.duty_frac, 3),
            "phase_rad": round(rhythm.phase_rad, 3),
            "amplitude_w": round(rhythm.amplitude_w),
            "confidence": round(rhythm.confidence, 3),
        },
    }
