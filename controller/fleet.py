"""The GPUs the site has heard of, as parallel arrays: what they can do, which class they serve, what they draw.

Nodes report at their own pace; the table is rebuilt only when nodes or GPUs come, go or change class. Ignorance costs
margin: a GPU without a reading counts at what its power limit lets it draw, whatever it is told, and a node that is
silent at its nameplate.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.gpu_floor import sum_floors
from controller.jobs import Placement, class_of_node, place
from controller.settings import SiteSettings
from controller.types import (
    WORST_READ,
    AgentState,
    BoolArray,
    ClassId,
    FleetAcks,
    FleetTable,
    FloatArray,
    IntArray,
    Job,
    NodeFault,
    NodeFloor,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    SiteImage,
    frozen,
)

REST = ClassId("rest")  # GPUs that no configured class names; the last class, always there
ABOVE_CAP_FRAC = 1.05  # FAULTS G7: of the power limit in force
LOST_S = 60.0  # FAULTS G2: a GPU that fell off the bus counts at its last cap for so long, then as idle


@dataclass(frozen=True, slots=True)
class Fleet:
    """The table the envelope checks against, and what the planner adds: classes and models. Arrays of length n."""

    table: FleetTable
    class_ids: tuple[ClassId, ...]
    class_index: IntArray
    models: tuple[str, ...]
    job_index: IntArray  # GPUs of one job, or of one node without a job, share one clock
    job_names: tuple[str, ...]
    class_idle_w: FloatArray = field(init=False)  # (K,): summed once, a fleet of 100,000 is summed every second
    class_count: FloatArray = field(init=False)  # (K,): GPUs that the class's GPUs stand for
    node_swing_w: FloatArray = field(init=False)  # per node in the table's order: its GPUs, idle to peak
    peak_w: float = field(init=False)  # the most that all of them may draw

    def __post_init__(self) -> None:
        object.__setattr__(self, "node_swing_w", self._by_node(np.maximum(self.table.peak_w - self.table.idle_w, 0.0)))
        object.__setattr__(self, "class_idle_w", self.by_class(self.table.idle_w))
        object.__setattr__(self, "class_count", self.by_class(np.ones(self.count)))
        object.__setattr__(self, "peak_w", float((self.table.peak_w * self.table.stands_for).sum()))

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

    def _by_node(self, per_gpu: FloatArray) -> FloatArray:
        before = np.concatenate([[0.0], np.cumsum(np.nan_to_num(per_gpu))])
        spans = self.table.spans.values()
        found: FloatArray = before[[s.stop for s in spans]] - before[[s.start for s in spans]]
        return found


@frozen
class FleetReadings:
    """What the reports say now, in the order of the table; an unread GPU counts at what its cap lets it draw."""

    power_w: FloatArray
    acks: FleetAcks
    is_read: BoolArray  # whether `power_w` was measured and is not old
    floor: NodeFloor | None = None  # what power smoothing holds when jobs stop, of nodes heard from lately
    is_deaf: BoolArray | None = None  # which GPUs do not take their caps, as their node says; None: none
    above_s: FloatArray | None = None  # since when each draws more than its power limit lets it, else inf; None: none

    @property
    def deaf_w(self) -> FloatArray:
        """What each GPU that takes no caps may draw whatever it is told, (n,); NaN for all others.

        A GPU that is not heard is none of these: it may hear, and is planned for as if it took its caps.
        """
        fixed_w = self.acks.fixed_w
        return np.full_like(fixed_w, np.nan) if self.is_deaf is None else np.where(self.is_deaf, fixed_w, np.nan)


class FleetBook:
    """Keeps the table current. Jobs that come and go change classes and jobs only, the table stays the same object."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._jobs: tuple[Job, ...] = ()
        self._key: object = None
        self._fleet: Fleet | None = None
        self._placement: Placement | None = None

    @property
    def placement(self) -> Placement | None:
        """Where the jobs of the newest list run; None before the first fleet."""
        return self._placement

    def set_jobs(self, jobs: tuple[Job, ...]) -> None:
        """The newest list of jobs, those that win first."""
        if jobs != self._jobs:
            self._jobs, self._placement = jobs, None

    def fleet(self, nodes: Sequence[Reading[NodeReport]]) -> Fleet:
        """The fleet of `nodes` (sorted by node id)."""
        key = tuple((r.value.node_id, r.value.stands_for, r.value.gpu_ids) for r in nodes)
        if self._fleet is None or key != self._key:
            self._key, self._placement = key, None
            reports = [r.value for r in nodes]
            self._fleet = self._place(self._table(reports), tuple(s.model for r in reports for s in r.specs))
        elif self._placement is None:
            self._fleet = self._place(self._fleet.table, self._fleet.models)
        return self._fleet

    def _table(self, reports: Sequence[NodeReport]) -> FleetTable:
        specs = [spec for report in reports for spec in report.specs]

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
        return FleetTable(
            gpu_ids=gpu_ids,
            index={gpu_id: i for i, gpu_id in enumerate(gpu_ids)},
            spans=spans,
            cap_min=np.vstack((clock_min, limit_min)),
            cap_max=np.vstack((clock_max, limit_max)),
            # A whole clock, as commands carry them: cut down to one it would lie below the floor that is checked.
            floor_mhz=np.ceil(clock_min + self._site.service_floor_frac * (clock_max - clock_min)),
            idle_w=array([s.idle_w for s in specs]),
            peak_w=limit_max,
            stands_for=array([report.stands_for for report in reports for _ in report.specs]),
            power_exponent=1.0,
        )

    def _place(self, table: FleetTable, models: tuple[str, ...]) -> Fleet:
        """Classes and jobs of the GPUs: as the jobs say, else as the node patterns do, else one job per node."""
        class_ids = (*(c.class_id for c in self._site.classes), REST)
        order = {class_id: k for k, class_id in enumerate(class_ids)}
        rest = len(class_ids) - 1
        counts = [span.stop - span.start for span in table.spans.values()]
        of_node = [order[class_of_node(self._site, node_id) or REST] for node_id in table.spans]
        names = [class_ids[k] if k < rest else node_id for k, node_id in zip(of_node, table.spans, strict=True)]
        known = {name: j for j, name in enumerate(dict.fromkeys(names))}
        placed = place(self._jobs, spans=table.spans, index=table.index, classes=self._site.classes)
        self._placement = placed
        by_pattern = np.repeat(np.array(of_node, dtype=np.int64), counts)
        by_default = np.repeat(np.array([known[name] for name in names], dtype=np.int64), counts)
        class_index = np.where(placed.class_index >= 0, placed.class_index, by_pattern)
        every = (*known, *placed.job_ids)
        used, job_index = np.unique(
            np.where(placed.job_index >= 0, placed.job_index + len(known), by_default), return_inverse=True
        )
        return Fleet(
            table=table,
            class_ids=class_ids,
            class_index=class_index.astype(np.int64),
            models=models,
            job_index=job_index.astype(np.int64),
            job_names=tuple(every[j] for j in used.tolist()),
        )


class FleetReader:
    """Reads reports into the order of one fleet; what did not change is not read again."""

    def __init__(self, fleet: Fleet, *, epoch: int) -> None:
        """A node that obeys a higher epoch than `epoch` is not ours to command."""
        n = fleet.count
        self.fleet = fleet
        self._epoch = epoch
        self._nodes: tuple[Reading[NodeReport] | None, ...] = ()
        self._power, self._caps = np.full(n, np.nan), np.full((2, n), np.inf)
        self._is_read, self._is_ours, self._is_live = (np.zeros(n, dtype=np.bool_) for _ in range(3))
        self._lost_s = np.full(n, np.inf)  # since when it is off the bus
        self._has_lost = False  # any
        self._is_gone = np.zeros(n, dtype=np.bool_)  # for longer than `LOST_S`
        self._is_deaf = np.zeros(n, dtype=np.bool_)
        self._above_s: FloatArray | None = None
        self._most_w = np.full(n, np.inf)  # that their power limits let GPUs draw, and some more
        self._acks: FleetAcks | None = None  # as of the last reading that changed any of it
        self._bound_w = self.fleet.table.peak_w

    def read(self, nodes: Sequence[Reading[NodeReport]]) -> FleetReadings:
        """The newest values of `nodes`, which must be the nodes the fleet was made from; none is written later."""
        before = self._nodes or (None,) * len(nodes)
        new = [(reading, known) for reading, known in zip(nodes, before, strict=True) if reading is not known]
        for reading, known in new:
            self._take(reading, known)
        if self._above_s is not None or (self._power > self._most_w).any():
            for reading, _ in new:
                self._see_above(reading)
        self._nodes = tuple(nodes)
        acks = self._acks = self._acks or self._acknowledged()
        is_measured = self._is_read & np.isfinite(self._power)
        floors = [
            (reading.value.stands_for, reading.value.floor)
            for reading in nodes
            if reading.value.floor is not None and reading.quality is Quality.GOOD
        ]
        return FleetReadings(
            power_w=np.where(is_measured, self._power, self._bound_w),
            acks=acks,
            is_read=is_measured,
            above_s=self._above_s,
            floor=sum_floors(floors),
            is_deaf=self._is_deaf.copy() if self._is_deaf.any() else None,
        )

    def _take(self, reading: Reading[NodeReport], known: Reading[NodeReport] | None) -> None:
        report = reading.value
        span = self.fleet.table.spans[report.node_id]
        self._power[span] = report.power_w
        is_other = report.acked_epoch > self._epoch
        is_alike = known is not None and reading.quality is known.quality and is_set_alike(report, known.value)
        if known is not None and (known.value.acked_epoch > self._epoch) is not is_other:
            is_alike = False
        if not self._see_lost(reading, span) and is_alike:
            return
        live = reading.quality in (Quality.GOOD, Quality.STALE)
        is_obeyed = reading.quality is Quality.GOOD and report.state is AgentState.ARMED and not is_other
        self._caps[0, span], self._caps[1, span] = report.clock_cap_mhz, report.power_limit_w
        self._most_w[span] = ABOVE_CAP_FRAC * report.power_limit_w
        self._is_live[span] = live
        self._is_read[span] = live & (report.quality <= WORST_READ)
        self._is_deaf[span] = live & (report.quality <= WORST_READ) & ~report.is_controllable
        self._is_ours[span] = report.is_controllable & is_obeyed & (report.quality <= WORST_READ)
        self._acks = None

    def _see_above(self, reading: Reading[NodeReport]) -> None:
        """Watch GPUs of one node that draw more than their power limits; a silent one says nothing of it."""
        span = self.fleet.table.spans[reading.value.node_id]
        is_above = self._power[span] > self._most_w[span]
        if self._above_s is None and not is_above.any():
            return
        before = np.full(self.fleet.count, np.inf) if self._above_s is None else self._above_s
        since_s = before.copy()  # readings that were handed out are not written
        since_s[span] = np.where(is_above, np.minimum(before[span], reading.t_mono_s), np.inf)
        self._above_s = since_s if np.isfinite(since_s).any() else None

    def _see_lost(self, reading: Reading[NodeReport], span: slice) -> bool:
        """Watch GPUs of one node that are off the bus; True when any of them begins, or ceases, to count as idle.

        A node tells of a lost GPU without naming it: while one of its calls hangs as well, none is taken for lost.
        """
        faults = reading.value.faults
        is_told = NodeFault.GPU_LOST in faults and NodeFault.GPU_HUNG not in faults
        if not is_told and not self._has_lost:
            return False
        is_lost = (reading.value.quality > WORST_READ) & is_told
        since_s = np.where(is_lost, np.minimum(self._lost_s[span], reading.t_mono_s), np.inf)
        is_gone = since_s <= reading.t_mono_s - LOST_S
        is_news = bool((is_gone != self._is_gone[span]).any())
        self._lost_s[span], self._is_gone[span] = since_s, is_gone
        self._has_lost = bool(np.isfinite(self._lost_s).any())
        return is_news

    def _acknowledged(self) -> FleetAcks:
        table, is_ours = self.fleet.table, self._is_ours
        caps = np.where(np.isfinite(self._caps), self._caps, np.inf)
        self._bound_w = np.where(self._is_gone & self._is_live, table.idle_w, np.minimum(caps[1], table.peak_w))
        return FleetAcks(
            caps=caps,
            is_fresh=is_ours,
            fixed_w=np.where(is_ours, np.nan, np.where(self._is_live, self._bound_w, table.peak_w)),
        )


class FleetWatch:
    """The fleet and its readings at each image; nodes report at a fraction of our rate, and the same read the same."""

    def __init__(self, site: SiteSettings, *, epoch: int) -> None:
        self._epoch = epoch
        self._book = FleetBook(site)
        self._nodes: tuple[Reading[NodeReport], ...] = ()
        self._reader: FleetReader | None = None
        self._seen: tuple[Fleet, FleetReadings] | None = None

    @property
    def placement(self) -> Placement | None:
        """Where the jobs of the newest list run."""
        return self._book.placement

    def read(self, image: SiteImage) -> tuple[Fleet, FleetReadings]:
        """What the nodes of `image` are and say."""
        nodes = image.nodes
        if image.jobs is not None:
            self._book.set_jobs(image.jobs)
            self._seen = None
        if self._seen is None or len(nodes) != len(self._nodes) or not all(map(operator.is_, nodes, self._nodes)):
            fleet = self._book.fleet(nodes)
            if self._reader is None or self._reader.fleet is not fleet:
                self._reader = FleetReader(fleet, epoch=self._epoch)
            self._nodes, self._seen = nodes, (fleet, self._reader.read(nodes))
        return self._seen


def is_any_commandable(acks: FleetAcks) -> bool:
    """Some GPU obeys; where nodes only report, caps would do nothing and the battery must not wait for them."""
    return bool(np.isnan(acks.fixed_w).any())


def is_set_alike(report: NodeReport, known: NodeReport) -> bool:
    """Whether all but the power is what it was: an agent hands the same arrays on until they change."""
    return (
        report.clock_cap_mhz is known.clock_cap_mhz
        and report.power_limit_w is known.power_limit_w
        and report.quality is known.quality
        and report.is_controllable is known.is_controllable
        and report.state is known.state
    )


def mean_cap_frac(fleet: Fleet, readings: FleetReadings) -> float:
    """What caps leave of the GPUs, mean over all the site stands for: the tighter of clock and power limit on each.

    Both relative to the most the card takes; free counts as full. What a card may not fall under (a power-smoothing
    floor) is no cap and is reported on its own.
    """
    table = fleet.table
    if not table.gpu_ids:
        return 1.0
    share = np.minimum(readings.acks.caps / table.cap_max, 1.0).min(axis=0)
    return float(np.average(share, weights=table.stands_for))
