"""Keeps score of one row while blocks pass: worst figure, broken time, episodes, distribution, worst moment.

Memory is bounded whatever the record's length.
"""

from __future__ import annotations

import numpy as np

from controller.audit.verdicts import Episode, Moment
from controller.audit.windows import Polyline
from controller.types import FloatArray

EPISODES_KEPT = 1000
BINS_PER_E = 1000  # 0.1 % per bin
BIN_FIRST_W = 1e-3
BIN_COUNT = 1 + int(np.log(1e15) * BINS_PER_E)  # up to 1e12 W
SAMPLES_PER_BLOCK = 1 << 16  # of the distribution, unless the verdict hangs on it
POINTS_PER_PLOT = 1500


class Score:
    """The running result of one row; times given in ascending order."""

    def __init__(self, *, merge_s: float) -> None:
        self._merge_s = merge_s
        self.worst = 0.0
        self.worst_t_s = np.nan
        self.violation_s = 0.0
        self.covered_s = 0.0
        self.episode_count = 0
        self._episodes: list[Episode] = []
        self._open: Episode | None = None
        self._bins = np.zeros(BIN_COUNT)

    def offer(self, worst: float, t_s: float) -> bool:
        """Take a figure; says whether it is the new worst."""
        if np.isfinite(self.worst_t_s) and worst <= self.worst:
            return False
        self.worst, self.worst_t_s = worst, t_s
        return True

    def add_spans(self, starts: FloatArray, ends: FloatArray, figures: FloatArray) -> None:
        """Broken spans, sorted by start, none before those given earlier; overlaps count once.

        `figures` are the worst of each.
        """
        if not starts.size:
            return
        reach = np.maximum.accumulate(ends)
        opens = np.concatenate(([True], starts[1:] > reach[:-1]))
        first = np.flatnonzero(opens)
        begin, finish = starts[first], reach[np.concatenate((first[1:] - 1, [starts.size - 1]))]
        self.violation_s += float(np.sum(finish - begin))
        worst = np.maximum.reduceat(figures, first)
        apart = np.concatenate(([True], begin[1:] - finish[:-1] > self._merge_s))
        group = np.flatnonzero(apart)
        for a, b in zip(group, np.concatenate((group[1:], [begin.size])), strict=True):
            self._add_episode(float(begin[a]), float(finish[b - 1]), float(worst[a:b].max()))

    def add_figures(self, figures: FloatArray, weights_s: FloatArray, *, every: bool = False) -> None:
        """Figures for the distribution, each held for so long; thinned unless `every` is asked for."""
        if not every and figures.size > SAMPLES_PER_BLOCK:
            stride = -(-figures.size // SAMPLES_PER_BLOCK)
            figures, weights_s = figures[::stride], weights_s[::stride] * stride
        safe = np.maximum(np.nan_to_num(figures), BIN_FIRST_W)
        index = np.minimum((np.log(safe / BIN_FIRST_W) * BINS_PER_E).astype(np.int64), BIN_COUNT - 1)
        self._bins += np.bincount(index, weights=weights_s, minlength=BIN_COUNT)

    def quantile(self, share: float) -> float:
        """The figure not exceeded for `share` of the covered time, to 0.1 %; 0 where nothing was seen."""
        total = self._bins.sum()
        if total <= 0.0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self._bins), share * total * (1.0 - 1e-12)))
        if index == 0:
            return 0.0
        return float(min(BIN_FIRST_W * np.exp((index + 1) / BINS_PER_E), self.worst))

    def episodes(self) -> tuple[Episode, ...]:
        """The first episodes, the one still open included."""
        kept = self._episodes + ([self._open] if self._open is not None else [])
        return tuple(kept[:EPISODES_KEPT])

    def _add_episode(self, start_s: float, end_s: float, figure: float) -> None:
        last = self._open
        if last is not None and start_s - last.end_s <= self._merge_s:
            self._open = Episode(last.start_s, max(last.end_s, end_s), max(last.worst, figure))
            return
        self.episode_count += 1
        if last is not None and len(self._episodes) < EPISODES_KEPT:
            self._episodes.append(last)
        self._open = Episode(start_s, end_s, figure)


def thin(line: Polyline, *, start_s: float, end_s: float, points: int = POINTS_PER_PLOT) -> Moment:
    """The part of a polyline between two times, as least and greatest per bucket; a gap shows as NaN."""
    a = max(int(np.searchsorted(line.t, start_s, side="right")) - 1, 0)
    b = int(np.searchsorted(line.t, end_s, side="left")) + 1
    t, q, gap = line.t[a:b], line.q[a:b], line.gap[a:b]
    if t.size > points:
        edges = np.linspace(0, t.size, points + 1).astype(np.int64)[:-1]
        low, high = np.minimum.reduceat(q, edges), np.maximum.reduceat(q, edges)
        has_gap = np.logical_or.reduceat(gap, edges)
        t = t[edges]
    else:
        low, high, has_gap = q.copy(), q.copy(), gap.copy()
    holes = np.flatnonzero(has_gap[1:]) + 1
    if holes.size:
        t, low, high = (np.insert(x, holes, np.nan) for x in (t.copy(), low, high))
    return Moment(np.array(t), low, high)


class Overview:
    """The whole record in at most `buckets` buckets of equal length, which double as the record grows."""

    def __init__(self, *, start_s: float, step_s: float, buckets: int = 4096) -> None:
        self._start_s = start_s
        self._width_s = step_s
        self._low = np.full(buckets, np.inf)
        self._high = np.full(buckets, -np.inf)

    def feed(self, line: Polyline) -> None:
        while line.t[-1] - self._start_s >= self._width_s * self._low.size:
            half = self._low.size // 2
            self._low = np.concatenate((self._low.reshape(half, 2).min(axis=1), np.full(half, np.inf)))
            self._high = np.concatenate((self._high.reshape(half, 2).max(axis=1), np.full(half, -np.inf)))
            self._width_s *= 2.0
        bucket = ((line.t - self._start_s) / self._width_s).astype(np.int64)
        edges = np.flatnonzero(np.concatenate(([True], np.diff(bucket) > 0)))
        at = bucket[edges]
        self._low[at] = np.minimum(self._low[at], np.minimum.reduceat(line.q, edges))
        self._high[at] = np.maximum(self._high[at], np.maximum.reduceat(line.q, edges))

    def moment(self) -> Moment:
        """Buckets that saw a sample."""
        seen = np.flatnonzero(np.isfinite(self._low))
        t, low, high = self._start_s + self._width_s * seen, self._low[seen], self._high[seen]
        holes = np.flatnonzero(np.diff(seen) > 1) + 1
        if holes.size and holes.size < seen.size // 4:  # a hole wider than a bucket; a coarse record is all holes
            t, low, high = (np.insert(x, holes, np.nan) for x in (t, low, high))
        return Moment(np.asarray(t, dtype=np.float64), low, high)
