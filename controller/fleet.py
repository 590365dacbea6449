"""The GPUs the site has heard of, as parallel arrays: what they can do, which class they serve, what they draw.

Nodes report at their own pace; the table is rebuilt only when nodes or GPUs come, go or change class. Ignorance costs
margin: a GPU without a reading counts at what its cap lets it draw, a node that is silent at the last caps it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from controller.ports import JobSource
from controller.settings import SiteSettings
from controller.types import (
    AgentState,
    ClassId,
    FleetTable,
    FloatArray,
    GpuId,
    IntArray,
    NodeId,
    NodeReport,
    Quality,
    Reading,
)

CLASSES_MAX = 8  # the planner's; nodes beyond them share the last class
REST = ClassId("rest")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The table the envelope checks against, and what the planner adds: classes and models. Arrays of length n."""

    table: FleetTable
    class_ids: tuple[ClassId, ...]
    class_index: IntArray
    models: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.table.gpu_ids)

    def by_class(self, per_gpu: FloatArray) -> FloatArray:
        """Sum of a per-GPU quantity over each class, weighted by what the GPU stands for; shape (K,)."""
        weighted = per_gpu * self.table.stands_for
        totals: FloatArray = np.bincount(self.class_index, weights=weighted, minlength=len(self.class_ids)).astype(float)
        return totals


@dataclass(frozen=True, slots=True)
class FleetReadings:
    """What the reports say now, in the order of the table. Caps are read back; a free clock is the GPU's maximum."""

    power_w: FloatArray
    clock_cap_mhz: FloatArray
    power_limit_w: FloatArray
    is_fresh: np.ndarray[tuple[int], np.dtype[np.bool_]]
    is_controllable: np.ndarray[tuple[int], np.dtype[np.bool_]]
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
        assignment = self._jobs.assignment() if self._jobs else {}
        key = (tuple((r.value.node_id, r.value.stands_for, r.value.gpu_ids) for r in nodes), tuple(assignment.items()))
        if self._fleet is None or key != self._key:
            self._key = key
            self._fleet = self._build([r.value for r in nodes], assignment)
        return self._fleet

    def _build(self, reports: Sequence[NodeReport], assignment: object) -> Fleet:
        assert isinstance(assignment, dict) or not assignment
        jobs: dict[GpuId, str] = dict(assignment) if assignment else {}  # type: ignore[call-overload]
        rows = [(i, report, spec) for i, report in enumerate(reports) for spec in report.specs]
        names = [jobs.get(spec.gpu_id) or self._class_of(report.node_id) for _, report, spec in rows]
        class_ids = self._classes(names)
        order = {class_id: k for k, class_id in enumerate(class_ids)}
        specs = [spec for _, _, spec in rows]

        def array(values: list[float]) -> FloatArray:
            return np.array(values, dtype=np.float64)

        clock_min, clock_max = array([s.clock_mhz_min for s in specs]), array([s.clock_mhz_max for s in specs])
        gpu_ids = tuple(spec.gpu_id for spec in specs)
        table = FleetTable(
            node_ids=tuple(report.node_id for report in reports),
            gpu_ids=gpu_ids,
            index={gpu_id: i for i, gpu_id in enumerate(gpu_ids)},
            node_index=np.array([i for i, _, _ in rows], dtype=np.int64),
            stands_for=array([report.stands_for for _, report, _ in rows]),
            idle_w=array([s.idle_w for s in specs]),
            peak_w=array([s.power_limit_w_max for s in specs]),
            limit_w_min=array([s.power_limit_w_min for s in specs]),
            limit_w_max=array([s.power_limit_w_max for s in specs]),
            clock_mhz_min=clock_min,
            clock_mhz_max=clock_max,
            floor_clock_mhz=clock_min + self._site.service_floor_frac * (clock_max - clock_min),
            fallback_clock_mhz=array([report.fallback_clock_mhz for _, report, _ in rows]),
            power_exponent=1.0,
        )
        return Fleet(
            table=table,
            class_ids=class_ids,
            class_index=np.array([order.get(ClassId(n), len(class_ids) - 1) for n in names], dtype=np.int64),
            models=tuple(s.model for s in specs),
        )

    def _class_of(self, node_id: NodeId) -> str:
        """The first class whose patterns match the node; else the node is a class of its own."""
        for members in self._site.members:
            if any(fnmatchcase(node_id, pattern) for pattern in members.node_patterns):
                return members.class_id
        return node_id

    def _classes(self, names: Sequence[str]) -> tuple[ClassId, ...]:
        configured = [c.class_id for c in self._site.classes]
        others = sorted(set(names) - set(configured))
        if len(configured) + len(others) > CLASSES_MAX:
            return (*configured[: CLASSES_MAX - 1], REST)
        return (*configured, *(ClassId(name) for name in others)) or (REST,)


def read_fleet(fleet: Fleet, nodes: Sequence[Reading[NodeReport]]) -> FleetReadings:
    """The newest values of `nodes` in the order of `fleet`; must be the nodes the fleet was made from."""
    table = fleet.table
    power, cap, limit = (np.empty(fleet.count) for _ in range(3))
    fresh, controllable = np.zeros(fleet.count, dtype=np.bool_), np.zeros(fleet.count, dtype=np.bool_)
    start, other_w = 0, 0.0
    for reading in nodes:
        report = reading.value
        part = slice(start, start + len(report.gpu_ids))
        start = part.stop
        power[part], cap[part], limit[part] = report.power_w, report.clock_cap_mhz, report.power_limit_w
        is_live = reading.quality in (Quality.GOOD, Quality.STALE)
        fresh[part] = is_live & (report.quality <= Quality.STALE)
        controllable[part] = report.is_controllable & is_live & (report.state is AgentState.ARMED)
        other_w += report.other_w * report.stands_for
    cap = np.where(np.isfinite(cap), cap, table.clock_mhz_max)
    limit = np.where(np.isfinite(limit), limit, table.limit_w_max)
    worst_w = np.minimum(limit, table.peak_w)
    return FleetReadings(
        power_w=np.where(fresh & np.isfinite(power), power, worst_w),
        clock_cap_mhz=cap,
        power_limit_w=limit,
        is_fresh=fresh,
        is_controllable=controllable,
        node_other_w=other_w,
    )
