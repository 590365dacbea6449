"""What all nodes say together: their reports added up, and what of a new sum is no news of the load.

A GPU that gives no number counts at its last one. When it is read again the sum moves by all that it did meanwhile,
which the meter may have shown already. Reports that repeat themselves to the bit while the metered load moves come from
nobody who looks: they tell nothing of now. A node whose last word is old counts at what its peers make of it
(`controller/estimate_late_nodes.py`). Pure; powers in watts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from controller.estimate_late_nodes import LateNodes, is_read
from controller.types import WORST_READ, FloatArray, NodeId, NodeReport, Quality, Reading, frozen, replace

PERIOD_S = 0.1  # reports come at a few hertz; thousands of them are not added up on every tick
PERIOD_S_PER_NODE = 1e-4
STILL_S = 2.0  # ten reports at the default rate: steady load repeats itself, too, and a meter shows that it is steady
STILL_FRAC = 0.005  # of the registered peak: how far metered load must have moved meanwhile, as for a meter stuck


@frozen
class NodePower:
    """Sum of node reports: a GPU without a fresh reading counts at its last power, in `gpu_w_max` at its cap.

    `gpu_w` is a mean of about a second, `sample_w` made of the GPUs' newest samples.
    """

    gpu_w: float
    sample_w: float
    gpu_w_max: float
    other_w: float
    missing_count: int
    gpu_count: int
    t_s: float  # of the oldest report that counts
    node_w: FloatArray  # of `gpu_w` and of `sample_w`, each node's share, (2, n)
    is_still: bool = False  # nodes repeat themselves while the load moves

    @property
    def is_known(self) -> bool:
        """Some GPU's power was read; the last values of all of them tell nothing of now."""
        return self.missing_count < self.gpu_count and not self.is_still


@frozen
class Returned:
    """What the GPUs of a node that are read again draw beyond what they counted at since `since_s`, W."""

    since_s: float
    mean_w: float
    sample_w: float


class NodeBook:
    """One per site; `take` once a tick, then look at `power` and `returned`."""

    def __init__(self, *, gpu_peak_w: float, scale_w: float) -> None:
        """`scale_w`: the registered peak."""
        self._gpu_peak_w, self._moved_w = gpu_peak_w, STILL_FRAC * scale_w
        self._taken_s, self._count = -math.inf, -1
        self._key: object = None
        self._said: object = None  # what all of them said, without its time
        self._said_s, self._said_load_w = -math.inf, math.nan
        self._last: dict[NodeId, Reading[NodeReport]] = {}  # with the last power of each GPU
        self._away_s: dict[NodeId, float] = {}  # nodes of which some GPU is not read, and since when
        self.late = LateNodes()
        self.power = sum_nodes((), gpu_peak_w=gpu_peak_w)
        self.returned: tuple[Returned, ...] = ()  # with the newest sum

    def take(
        self, now_s: float, nodes: Sequence[Reading[NodeReport]], *, metered_w: float | None, is_served: bool = False
    ) -> bool:
        """Sum the reports when any of them is another than before; True when there is a new sum.

        A report is known by what it says, never by being the same object: a replay has none twice. `metered_w` is the
        load as a meter that is believed shows it. `is_served`: the load rests on the sum, and no tick may pass one by.
        """
        period_s = max(0.0 if is_served else PERIOD_S, PERIOD_S_PER_NODE * len(nodes))
        if now_s - self._taken_s < period_s and len(nodes) == self._count:
            return False
        self._taken_s, self._count = now_s, len(nodes)
        nodes = self.late.newest(nodes)
        said = tuple((r.value.node_id, r.quality, r.value.power_w.tobytes(), _sampled(r.value)) for r in nodes)
        key = (said, tuple(reading.value.t_mono_s for reading in nodes))
        if key == self._key:
            return False
        self._key = key
        found = sum_nodes(nodes, gpu_peak_w=self._gpu_peak_w)
        if found.missing_count:
            nodes = [_with_last_power(reading, self._last) for reading in nodes]
            found = sum_nodes(nodes, gpu_peak_w=self._gpu_peak_w)
        self.returned = tuple(back for reading in nodes if (back := self._back(reading)) is not None)
        found = _moved_on(found, self.late.beyond(now_s, found.node_w, is_all_read=not found.missing_count))
        self.power = replace(found, is_still=self._is_still(now_s, said, metered_w))
        if found.missing_count or self._away_s:
            away = (r.value.node_id for r in nodes if not is_read(r).all())
            self._away_s = {node_id: self._away_s.get(node_id, now_s) for node_id in away}
        self._last = {reading.value.node_id: reading for reading in nodes}
        return True

    # ------------------------------------------------------------------------------------------------------ private

    def _is_still(self, now_s: float, said: object, metered_w: float | None) -> bool:
        """All repeat themselves, and did while a meter showed the load move; until one of them says another thing."""
        if said != self._said:
            self._said, self._said_s = said, now_s
            self._said_load_w = metered_w if metered_w is not None else math.nan
            return False
        if self.power.is_still or metered_w is None:
            return self.power.is_still
        return now_s - self._said_s >= STILL_S and abs(metered_w - self._said_load_w) > self._moved_w

    def _back(self, reading: Reading[NodeReport]) -> Returned | None:
        """What is read of this node's GPUs again, if anything."""
        report = reading.value
        since_s, last = self._away_s.get(report.node_id), self._last.get(report.node_id)
        if since_s is None or last is None or last.value.gpu_ids != report.gpu_ids:
            return None
        back = is_read(reading) & ~is_read(last)
        if not back.any():
            return None
        samples_w = report.power_w if report.instant_w is None else report.instant_w
        samples_w = np.where(np.isfinite(samples_w), samples_w, report.power_w)
        counted_w = last.value.power_w
        mean_w, sample_w = (float((power_w - counted_w)[back].sum()) for power_w in (report.power_w, samples_w))
        beyond_mean_w, beyond_sample_w = self.late.before_w(report.node_id)
        mean_w, sample_w = report.stands_for * mean_w - beyond_mean_w, report.stands_for * sample_w - beyond_sample_w
        return Returned(since_s, mean_w, sample_w)


def sum_nodes(nodes: Sequence[Reading[NodeReport]], *, gpu_peak_w: float) -> NodePower:
    """Add up node reports; sampled nodes count for all they stand for. Without any node the peak is the bound."""
    if not nodes:
        return NodePower(0.0, 0.0, gpu_peak_w, 0.0, 0, 0, -math.inf, np.zeros((2, 0)))
    reports = [reading.value for reading in nodes]
    live = [reading.quality <= WORST_READ for reading in nodes]
    counts = [len(report.gpu_ids) for report in reports]
    share = _shares(tuple((report.stands_for, count) for report, count in zip(reports, counts, strict=True)))
    power_w = np.concatenate([report.power_w for report in reports])
    sample_w = np.concatenate([report.power_w if report.instant_w is None else report.instant_w for report in reports])
    is_known = np.concatenate([report.quality for report in reports]) <= WORST_READ
    if not all(live):
        is_known &= np.repeat(live, counts)
    is_known &= np.isfinite(power_w)
    if is_known.all():
        gpu_w = gpu_w_max = float(share @ power_w)
        missing_count = 0
    else:
        caps_w = np.concatenate([report.power_limit_w for report in reports])
        caps_w = np.where(np.isfinite(caps_w), caps_w, 0.0)
        last_w = np.where(np.isfinite(power_w), power_w, caps_w)
        gpu_w = float(share @ last_w)
        gpu_w_max = float(share @ np.where(is_known, last_w, np.maximum(last_w, caps_w)))
        missing_count = round(float(share @ ~is_known))
        power_w = last_w
    sample_w = np.where(is_known & np.isfinite(sample_w), sample_w, power_w)
    return NodePower(
        gpu_w=gpu_w,
        sample_w=float(share @ sample_w),
        gpu_w_max=gpu_w_max,
        other_w=sum(report.stands_for * report.other_w for report in reports),
        missing_count=missing_count,
        gpu_count=sum(report.stands_for * count for report, count in zip(reports, counts, strict=True)),
        t_s=min((r.t_mono_s for r, is_live in zip(nodes, live, strict=True) if is_live), default=-math.inf),
        node_w=_by_node(share * power_w, share * sample_w, counts=counts),
    )


def _by_node(*gpus_w: FloatArray, counts: Sequence[int]) -> FloatArray:
    """Sums of each node's GPUs, for each of `gpus_w`, (k, n); a node may have none."""
    stops = np.cumsum(counts)
    before_w = np.zeros((len(gpus_w), int(stops[-1]) + 1))
    np.cumsum(gpus_w, axis=1, out=before_w[:, 1:])
    return before_w[:, stops] - before_w[:, stops - counts]


@lru_cache(maxsize=4)
def _shares(nodes: tuple[tuple[int, int], ...]) -> FloatArray:
    """What each GPU of nodes counts for: each node stands for so many, and has so many GPUs."""
    return np.repeat([float(stands_for) for stands_for, _ in nodes], [count for _, count in nodes])


def _sampled(report: NodeReport) -> bytes | None:
    return report.instant_w.tobytes() if report.instant_w is not None else None


def _moved_on(power: NodePower, beyond_w: FloatArray | None) -> NodePower:
    """The sum with what nodes count at beyond their last word; the higher of the two is their bound."""
    if beyond_w is None:
        return power
    mean_w, sample_w = beyond_w.sum(axis=1).tolist()
    highest_w = max(power.gpu_w_max, power.gpu_w) + float(np.maximum(beyond_w[0], 0.0).sum())
    return replace(power, gpu_w=power.gpu_w + mean_w, sample_w=power.sample_w + sample_w, gpu_w_max=highest_w)


def _with_last_power(reading: Reading[NodeReport], before: Mapping[NodeId, Reading[NodeReport]]) -> Reading[NodeReport]:
    """A GPU whose power is no number draws what it drew; what it may draw beyond that is a matter of bounds."""
    report, last = reading.value, before.get(reading.value.node_id)
    if last is None or last.value.gpu_ids != report.gpu_ids:
        return reading
    is_number = np.isfinite(report.power_w)
    power_w = np.where(is_number, report.power_w, last.value.power_w)
    quality = np.where(is_number, report.quality, np.int8(Quality.MISSING))
    return replace(reading, value=replace(report, power_w=power_w, quality=quality))
