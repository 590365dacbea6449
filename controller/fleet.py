"""The GPUs the site has heard of, as parallel arrays: what they can do, which class they serve, what they draw.

Nodes report at their own pace; the table is rebuilt only when nodes or GPUs come, go or change class. Ignorance costs
margin: a GPU without a reading counts at what its cap lets it draw, a node that is silent at the last caps it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from controller.ports import JobSource
from controller.settings import SiteSettings
from controller.types import (
    AgentState,
    ClassId,
    FleetAcks,
    FleetTable,
    FloatArray,
    GpuId,
    IntArray,
    NodeId,
    NodeReport,
    Quality,
    Reading,
)

REST = ClassId("rest")  # GPUs that no configured class names; the last class, always there


@dataclass(frozen=True, slots=True)
class Fleet:
    """The table the envelope checks against, and what the planner adds: classes and models. Arrays of length n."""

    table: FleetTable
    class_ids: tuple[ClassId, ...]
    class_index: IntArray
    models: tuple[str, ...]
    job_index: IntArray  # GPUs of one job, or of one node without a job, share one clock
    job_names: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.table.gpu_ids)

    def by_class(self, per_gpu: FloatArray) -> FloatArray:
        """Sum of a per-GPU quantity over each class, weighted by what the GPU stands for; shape (K,)."""
        weighted = per_gpu * self.table.stands_for
        totals: FloatArray = np.bincount(self.class_index, weights=weighted, minlength=len(self.class_ids)).astype(
            float
        )
        return totals


@dataclass(frozen=True, slots=True)
class FleetReadings:
    """What the reports say now, in the order of the table; an unread GPU counts at what its cap lets it draw."""

    power_w: FloatArray
    acks: FleetAcks
    node_other_w: float


class FleetBook:
    """Keeps the table current."""

    def __init__(self, site: SiteSettings, *, jobs: JobSource | None) -> None:
        self._site = site
        self._jobs = jobs
        self._key: object = None
        self._fleet: Fleet | None = None

    def fleet(self, nodes: Sequence[Reading[NodeReport]]) -> Fleet:
        """The fleet of `nodes` (sorted by node id)."""
        assignment: Mapping[GpuId, str] = self._jobs.assignment() if self._jobs else {}
        key = (tuple((r.value.node_id, r.value.stands_for, r.value.gpu_ids) for r in nodes), tuple(assignment.items()))
        if self._fleet is None or key != self._key:
            self._key = key
            self._fleet = self._build([r.value for r in nodes], assignment)
        return self._fleet

    def _build(self, reports: Sequence[NodeReport], jobs: Mapping[GpuId, str]) -> Fleet:
        rows = [(report, spec) for report in reports for spec in report.specs]
        class_ids = (*(c.class_id for c in self._site.classes), REST)
        order = {class_id: k for k, class_id in enumerate(class_ids)}
        classes = [order.get(ClassId(jobs.get(s.gpu_id, "")), self._class_of(r.node_id, order)) for r, s in rows]
        synchronous = [
            class_ids[k] if k < len(class_ids) - 1 else r.node_id for k, (r, _) in zip(classes, rows, strict=True)
        ]
        job_names = tuple(sorted(set(synchronous)))
        specs = [spec for _, spec in rows]

        def array(values: list[float]) -> FloatArray:
            return np.array(values, dtype=np.float64)

        clock_min, clock_max = array([s.clock_mhz_min for s in specs]), array([s.clock_mhz_max for s in specs])
        limit_min, limit_max = array([s.power_limit_w_min for s in specs]), array([s.power_limit_w_max for s in specs])
        gpu_ids = tuple(spec.gpu_id for spec in specs)
        spans: dict[NodeId, slice] = {}
        start = 0
        for report in reports:
            spans[report.node_id] = slice(start, start + len(report.specs))
            start += len(report.specs)
        table = FleetTable(
            gpu_ids=gpu_ids,
            index={gpu_id: i for i, gpu_id in enumerate(gpu_ids)},
            spans=spans,
            cap_min=np.vstack((clock_min, limit_min)),
            cap_max=np.vstack((clock_max, limit_max)),
            floor_mhz=clock_min + self._site.service_floor_frac * (clock_max - clock_min),
            idle_w=array([s.idle_w for s in specs]),
            peak_w=limit_max,
            stands_for=array([report.stands_for for report, _ in rows]),
            power_exponent=1.0,
        )
        return Fleet(
            table=table,
            class_ids=class_ids,
            class_index=np.array(classes, dtype=np.int64),
            models=tuple(s.model for s in specs),
            job_index=np.array([job_names.index(name) for name in synchronous], dtype=np.int64),
            job_names=job_names,
        )

    def _class_of(self, node_id: NodeId, order: Mapping[ClassId, int]) -> int:
        """The first class whose patterns match the node; else the rest."""
        for members in self._site.members:
            if any(fnmatchcase(node_id, pattern) for pattern in members.node_patterns):
                return order[members.class_id]
        return len(order) - 1


def read_fleet(fleet: Fleet, nodes: Sequence[Reading[NodeReport]]) -> FleetReadings:
    """The newest values of `nodes` in the order of `fleet`; must be the nodes the fleet was made from."""
    table, n = fleet.table, fleet.count
    power, caps = np.full(n, np.nan), np.full((2, n), np.inf)
    is_read, is_ours, is_live = (np.zeros(n, dtype=np.bool_) for _ in range(3))
    other_w = 0.0
    for reading in nodes:
        report = reading.value
        span = table.spans[report.node_id]
        power[span] = report.power_w
        caps[0, span], caps[1, span] = report.clock_cap_mhz, report.power_limit_w
        live = reading.quality in (Quality.GOOD, Quality.STALE)
        is_live[span] = live
        is_read[span] = live & (report.quality <= Quality.STALE)
        is_ours[span] = report.is_controllable & (reading.quality is Quality.GOOD) & (report.state is AgentState.ARMED)
        other_w += report.other_w * report.stands_for
    caps = np.where(np.isfinite(caps), caps, np.inf)
    bound_w = np.minimum(caps[1], table.peak_w)
    fixed_w = np.where(is_ours, np.nan, np.where(is_live, bound_w, table.peak_w))
    return FleetReadings(
        power_w=np.where(is_read & np.isfinite(power), power, bound_w),
        acks=FleetAcks(caps=caps, is_fresh=is_ours & is_read, fixed_w=fixed_w),
        node_other_w=other_w,
    )
