"""Jobs from several sources as one list, and which class and job each GPU serves.

The source named first wins, GPU by GPU: the topic over schedulers, those over the node patterns of the site file.
One job told by two sources is one job: what the first leaves open the second fills in. A source that goes silent counts
until its listing is too old; then the next one decides, and that is told once. Pure: time comes from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from controller.ports import JobFeed
from controller.settings import JobClassSettings, SiteSettings
from controller.types import BoolArray, ClassId, GpuId, IntArray, Job, NodeId, NodeReport, Reading, frozen, replace

JOBS_MAX = 20_000  # of all sources together; the rest is left to the node patterns
NONE = -1


@frozen
class Placement:
    """Per GPU of the fleet (n,): index of its class and of its job, NONE where no source says."""

    class_index: IntArray
    job_index: IntArray
    job_ids: tuple[str, ...]
    unknown_classes: tuple[str, ...]  # that jobs name and the site file does not


def merge(listings: Sequence[Sequence[Job]]) -> tuple[Job, ...]:
    """All jobs, those of earlier listings first; a job id told twice is one job, the earlier word standing."""
    merged: dict[str, Job] = {}
    for listing in listings:
        for job in listing:
            known = merged.get(job.job_id)
            if known is None and len(merged) >= JOBS_MAX:
                continue
            merged[job.job_id] = job if known is None else _filled(known, job)
    return tuple(merged.values())


def _filled(first: Job, second: Job) -> Job:
    """`first`, with what it leaves open taken from `second`."""
    has_place = bool(first.parts or first.gpu_ids)
    return replace(
        first,
        class_id=first.class_id or second.class_id,
        parts=first.parts if has_place else second.parts,
        gpu_ids=first.gpu_ids if has_place else second.gpu_ids,
        is_running=first.is_running if has_place else second.is_running,
        priority=second.priority if first.priority is None else first.priority,
        tolerated_loss_frac=(
            second.tolerated_loss_frac if first.tolerated_loss_frac is None else first.tolerated_loss_frac
        ),
        starts_utc_s=second.starts_utc_s if first.starts_utc_s is None else first.starts_utc_s,
        ends_utc_s=second.ends_utc_s if first.ends_utc_s is None else first.ends_utc_s,
        checkpoints_utc_s=first.checkpoints_utc_s or second.checkpoints_utc_s,
    )


def class_of(job: Job, classes: Sequence[JobClassSettings]) -> int:
    """Index of the class a job belongs to, NONE where it says nothing that fits.

    Named, or by what it tolerates: never a class that may lose more than the job says, among those the nearest in
    priority, then the most flexible.
    """
    for k, known in enumerate(classes):
        if known.class_id == job.class_id:
            return k
    if not classes or (job.tolerated_loss_frac is None and job.priority is None):
        return NONE
    tier = 1.0 if job.tolerated_loss_frac is None else job.tolerated_loss_frac
    least = min(known.tolerated_loss_frac for known in classes)
    fitting = [k for k, known in enumerate(classes) if known.tolerated_loss_frac <= max(tier, least) + 1e-9]

    def distance(k: int) -> tuple[int, float, int]:
        off = 0 if job.priority is None else abs(classes[k].priority - job.priority)
        return off, -classes[k].tolerated_loss_frac, k

    return min(fitting, key=distance)


def place(
    jobs: Sequence[Job],
    *,
    spans: Mapping[NodeId, slice],
    index: Mapping[GpuId, int],
    classes: Sequence[JobClassSettings],
) -> Placement:
    """Give each GPU the first running job that claims it. `spans` are the nodes' slices, `index` the GPUs' places.

    Where jobs share a node and nothing says who has which GPU, the node's unclaimed GPUs go to the most important of
    those jobs' classes: a cap on the wrong job costs the one that tolerates it least.
    """
    count = max((span.stop for span in spans.values()), default=0)
    class_index = np.full(count, NONE, dtype=np.int64)
    job_index = np.full(count, NONE, dtype=np.int64)
    is_free = np.ones(count, dtype=np.bool_)
    found = {job.job_id: class_of(job, classes) for job in jobs}
    names = {name: k for k, name in enumerate(found)}
    nodes = _Names(spans)
    shared: dict[NodeId, list[Job]] = {}
    for job in jobs:
        if not job.is_running:
            continue
        for mine in _claims(job, nodes, spans=spans, index=index, shared=shared):
            _claim(mine, is_free, class_index, found[job.job_id], job_index, names[job.job_id])
    job_ids = list(names)
    for node_id, those in shared.items():
        most = max(those, key=lambda job: _importance(job, found[job.job_id], classes))
        label = "+".join(sorted(job.job_id for job in those)) if len(those) > 1 else most.job_id
        place_of = names.setdefault(label, len(job_ids))
        if place_of == len(job_ids):
            job_ids.append(label)
        _claim(spans[node_id], is_free, class_index, found[most.job_id], job_index, place_of)
    known = {str(c.class_id) for c in classes}
    unknown = sorted({job.class_id for job in jobs if job.class_id and job.class_id not in known})
    return Placement(class_index, job_index, tuple(job_ids), tuple(unknown))


def _claims(
    job: Job,
    nodes: _Names,
    *,
    spans: Mapping[NodeId, slice],
    index: Mapping[GpuId, int],
    shared: dict[NodeId, list[Job]],
) -> list[slice]:
    """The slices a job surely holds; parts of nodes go to `shared`."""
    mine = [slice(index[g], index[g] + 1) for g in job.gpu_ids if g in index]
    for part in job.parts:
        node_id = nodes.find(part.node)
        if node_id is None:
            continue
        span = spans[node_id]
        if part.count == 0 or part.count >= span.stop - span.start:
            mine.append(span)
        else:
            shared.setdefault(node_id, []).append(job)
    return mine


def _claim(
    span: slice, is_free: BoolArray, class_index: IntArray, class_k: int, job_index: IntArray, job_k: int
) -> None:
    free = is_free[span]
    class_index[span] = np.where(free, class_k, class_index[span])
    job_index[span] = np.where(free, job_k, job_index[span])
    is_free[span] = False


def _importance(job: Job, class_k: int, classes: Sequence[JobClassSettings]) -> tuple[float, int, str]:
    if class_k == NONE:
        return 2.0, 0, job.job_id  # nothing is known of it, so nothing may be taken from it but what its node allows
    return -classes[class_k].tolerated_loss_frac, classes[class_k].priority, job.job_id


class _Names:
    """Node ids by the names a scheduler may use: the id itself, or the host name before the first dot."""

    def __init__(self, spans: Mapping[NodeId, slice]) -> None:
        self._exact = {str(node_id): node_id for node_id in spans}
        short: dict[str, NodeId | None] = {}
        for node_id in spans:
            name = str(node_id).split(".", 1)[0]
            short[name] = None if name in short else node_id  # two hosts of one short name: neither is meant
        self._short = short

    def find(self, name: str) -> NodeId | None:
        return self._exact.get(name) or self._short.get(name.split(".", 1)[0])


class JobBoard:
    """All feeds as one `JobSource`; `feeds` in order of precedence. `on_change` hears of each loss and return once."""

    def __init__(
        self,
        feeds: Sequence[JobFeed],
        *,
        stale_s: float,
        site: SiteSettings,
        reports: Callable[[], Mapping[str, Reading[NodeReport]]],
        on_change: Callable[[str, str], None],
    ) -> None:
        self._feeds = tuple(feeds)
        self._stale_s = stale_s
        self._site = site
        self._reports = reports
        self._on_change = on_change
        self._began_s: float | None = None
        self._lost: set[str] = set()
        self._listings: tuple[tuple[Job, ...], ...] = ()
        self._merged: tuple[Job, ...] = ()
        self._assigned: tuple[object, Mapping[GpuId, str]] = (None, {})

    @property
    def lost(self) -> tuple[str, ...]:
        """Feeds that do not count now."""
        return tuple(sorted(self._lost))

    def jobs(self, now_s: float) -> tuple[Job, ...]:
        """Jobs of the fresh feeds; the same object while nothing changed."""
        if self._began_s is None:
            self._began_s = now_s
        listings = tuple(self._fresh(feed, now_s) for feed in self._feeds)
        is_same = len(listings) == len(self._listings) and all(
            a is b for a, b in zip(listings, self._listings, strict=True)
        )
        if not is_same:
            self._listings = listings
            merged = merge(listings)
            if merged != self._merged:
                self._merged = merged
        return self._merged

    def _fresh(self, feed: JobFeed, now_s: float) -> tuple[Job, ...]:
        reading = feed.listing()
        since_s = reading.t_mono_s if reading is not None else self._began_s
        is_old = since_s is not None and now_s - since_s > self._stale_s
        if is_old != (feed.name in self._lost):
            (self._lost.add if is_old else self._lost.discard)(feed.name)
            age = f"no listing for {self._stale_s:g} s; node patterns decide"
            self._on_change(f"jobs from {feed.name}", (f"{age}: {feed.trouble}" if feed.trouble else age) * is_old)
        return NO_JOBS if reading is None or is_old else reading.value

    def assignment(self) -> Mapping[GpuId, str]:
        """Class of each GPU of the newest reports, where a job or a node pattern says so."""
        reports = self._reports()
        key = (self._merged, tuple((n, reports[n].value.gpu_ids) for n in sorted(reports)))
        if self._assigned[0] != key:
            self._assigned = (key, self._assign(reports))
        return self._assigned[1]

    def _assign(self, reports: Mapping[str, Reading[NodeReport]]) -> Mapping[GpuId, str]:
        spans: dict[NodeId, slice] = {}
        gpu_ids: list[GpuId] = []
        defaults: list[str] = []
        for node_id in sorted(reports):
            mine = reports[node_id].value.gpu_ids
            spans[NodeId(node_id)] = slice(len(gpu_ids), len(gpu_ids) + len(mine))
            gpu_ids.extend(mine)
            defaults.extend([class_of_node(self._site, node_id) or ""] * len(mine))
        classes = self._site.classes
        found = place(self._merged, spans=spans, index={g: i for i, g in enumerate(gpu_ids)}, classes=classes)
        named = [
            str(classes[k].class_id) if k != NONE else default
            for k, default in zip(found.class_index.tolist(), defaults, strict=True)
        ]
        return {gpu_id: name for gpu_id, name in zip(gpu_ids, named, strict=True) if name}


NO_JOBS: tuple[Job, ...] = ()


def class_of_node(site: SiteSettings, node_id: str) -> ClassId | None:
    """The first class whose node patterns match; None where none does."""
    for members in site.members:
        if any(fnmatchcase(node_id, pattern) for pattern in members.node_patterns):
            return members.class_id
    return None
