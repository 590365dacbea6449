"""Judges of rows on a line: window rows (ramp, swing), rate rows, ceilings and floors, band rows.

Each takes a polyline block by block and keeps a Score; each holds only the past its window needs. A `twin` judge
follows the same row on unaveraged power and keeps its worst figure alone.
"""

from __future__ import annotations

import numpy as np

from controller.audit.score import Score, thin
from controller.audit.verdicts import Moment
from controller.audit.windows import EMPTY, Intervals, Polyline, range_extremes, spans_above, window_intervals
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    FloatArray,
    FloorLimit,
    IntArray,
    RampLimit,
    RampReading,
    RateLimit,
    SwingLimit,
)

TOLERANCE = 1e-9  # relative: rounding is not a breach
PEAK_SAMPLES = (
    16.0  # per period of a band's upper corner: then a parabola finds peaks between samples, at most 2 % above
)
EDGE_TOLERANCE = 0.25  # near a record's ends a filter may read this much too high; what lies between is not covered
Candidates = list[tuple[FloatArray, FloatArray]]
NO_SPANS = (np.empty(0), np.empty(0), np.empty(0))


def end_to_end(iv: Intervals, direction: Direction) -> Candidates:
    """Change between the window's two ends, per direction."""
    up = (iv.right0 - iv.left0, iv.right1 - iv.left1)
    down = (iv.left0 - iv.right0, iv.left1 - iv.right1)
    return {Direction.UP: [up], Direction.DOWN: [down], Direction.BOTH: [up, down]}[direction]


def within(iv: Intervals, direction: Direction) -> Candidates:
    """Change from any instant in the window to its end, per direction."""
    found = end_to_end(iv, direction)
    if direction is not Direction.DOWN:
        found.append((iv.right0 - iv.low, iv.right1 - iv.low))
    if direction is not Direction.UP:
        found.append((iv.high - iv.right0, iv.high - iv.right1))
    return found


def peak_to_peak(iv: Intervals) -> Candidates:
    """Change between any two instants in the window."""
    inside = iv.high - iv.low
    return [
        *within(iv, Direction.BOTH),
        (inside, inside),
        (iv.high - iv.left0, iv.high - iv.left1),
        (iv.left0 - iv.low, iv.left1 - iv.low),
    ]


def largest(candidates: Candidates) -> tuple[FloatArray, FloatArray]:
    """The largest candidate at the start and at the end of each stretch, never below zero."""
    top0 = np.zeros(candidates[0][0].size)
    top1 = np.zeros(candidates[0][0].size)
    for g0, g1 in candidates:
        np.fmax(top0, g0, out=top0)
        np.fmax(top1, g1, out=top1)
    return top0, top1


class MomentKeeper:
    """Cuts the surroundings of the worst window out of passing blocks, and completes them from the next block."""

    def __init__(self, *, before_s: float, after_s: float) -> None:
        self._before_s = before_s
        self._after_s = after_s
        self._line = EMPTY
        self._until_s = -np.inf

    def see(self, line: Polyline, worst_t_s: float | None) -> None:
        """`worst_t_s` where this block holds a new worst; the line may reach back before the block."""
        if worst_t_s is not None:
            self._until_s = worst_t_s + self._after_s
            self._line = _cut(line, worst_t_s - self._before_s, self._until_s)
        elif len(self._line) and self._line.t[-1] < self._until_s:
            self._line = self._line.joined(_cut(line, float(np.nextafter(self._line.t[-1], np.inf)), self._until_s))

    def moment(self) -> Moment | None:
        return thin(self._line, start_s=-np.inf, end_s=np.inf) if len(self._line) else None


def _cut(line: Polyline, start_s: float, end_s: float) -> Polyline:
    a, b = np.searchsorted(line.t, (start_s, end_s), side="left")
    part = slice(int(a), int(b) + 1)
    return Polyline(line.t[part].copy(), line.q[part].copy(), line.gap[part].copy())


class WindowJudge:
    """A ramp or swing row. On filtered power each sample stands for one step: a filter speaks at its samples only."""

    def __init__(self, row: RampLimit | SwingLimit, *, sample_step_s: float | None = None, twin: bool = False) -> None:
        self._row = row
        self._is_twin = twin
        self._sample_step_s = sample_step_s
        self.score = Score(merge_s=row.window_s)
        self.keeper = MomentKeeper(before_s=1.5 * row.window_s, after_s=0.5 * row.window_s)
        self.within = 0.0
        self.endpoint = 0.0
        self._tail = EMPTY

    def reset(self) -> None:
        """Forget the past: pairs of instants across this moment are not compared."""
        self._tail = EMPTY

    def feed(self, block: Polyline, *, is_near_edge: bool = False) -> bool:
        """Judge the end times this block adds; says whether it holds a new worst."""
        if not len(block):
            return False
        from_s = float(self._tail.t[-1]) if len(self._tail) else -np.inf
        line = self._tail.joined(block) if len(self._tail) else block
        self._tail = line.tail_from(float(line.t[-1]) - self._row.window_s)
        if len(line) < 2:
            return False
        iv = window_intervals(line, window_s=self._row.window_s, from_s=from_s)
        if self._sample_step_s is not None:
            is_worse = self._judge_samples(iv, block, self._sample_step_s, is_near_edge=is_near_edge)
        else:
            is_worse = bool(iv.start.size) and self._judge(iv)
        if not self._is_twin:
            self.keeper.see(line, self.score.worst_t_s if is_worse else None)
        return is_worse

    def _judge(self, iv: Intervals) -> bool:
        row, score = self._row, self.score
        if isinstance(row, RampLimit):
            ends = largest(end_to_end(iv, row.direction))
            top = largest(within(iv, row.direction))
            self.endpoint = max(self.endpoint, float(ends[0].max()), float(ends[1].max()))
            self.within = max(self.within, float(top[0].max()), float(top[1].max()))
            if row.reading is RampReading.ENDPOINT:
                top = ends
        else:
            top = largest(peak_to_peak(iv))
        covered = ~np.isnan(iv.left0) if self._is_endpoint else np.ones(iv.start.size, dtype=np.bool_)
        peak = np.maximum(top[0], top[1])
        k = int(np.argmax(np.where(covered, peak, -1.0)))
        is_worse = bool(covered[k]) and score.offer(
            float(peak[k]), float(iv.end[k] if top[1][k] >= top[0][k] else iv.start[k])
        )
        if self._is_twin:
            return is_worse
        width = iv.end - iv.start
        score.covered_s += float(np.sum(width[covered]))
        score.add_figures(
            0.5 * (top[0] + top[1])[covered],
            width[covered],
            every=isinstance(row, RampLimit) and row.percentile is not None,
        )
        broken = np.flatnonzero(covered & (peak > row.max_w * (1.0 + TOLERANCE)))
        if broken.size:
            part = iv.pick(broken)
            begins, finishes, index = spans_above(part.start, part.end, self._candidates(part), row.max_w)
            score.add_spans(begins, finishes, peak[broken][index])
        return is_worse

    def _judge_samples(self, iv: Intervals, block: Polyline, step_s: float, *, is_near_edge: bool) -> bool:
        """The figure at each sample, as the stretch of end times that ends there has it."""
        top = largest(peak_to_peak(iv))[1]
        index = np.searchsorted(iv.end, block.t - 0.25 * step_s)
        here = index < iv.end.size
        here[here] = np.abs(iv.end[index[here]] - block.t[here]) < 0.25 * step_s
        return score_samples(
            self.score, block.t[here], top[index[here]], self._row.max_w, step_s=step_s, is_near_edge=is_near_edge
        )

    @property
    def _is_endpoint(self) -> bool:
        return isinstance(self._row, RampLimit) and self._row.reading is RampReading.ENDPOINT

    def _candidates(self, iv: Intervals) -> Candidates:
        if isinstance(self._row, SwingLimit):
            return peak_to_peak(iv)
        return end_to_end(iv, self._row.direction) if self._is_endpoint else within(iv, self._row.direction)


class RateJudge:
    """A rate row: any change may be `above_w`, or its duration times the rate, whichever is more.

    Its figure is the largest share of what the duration allows, times `above_w` (or times the rate where `above_w` is
    zero). Changes shorter than above_w / rate are judged exactly, longer ones at the record's knots.
    """

    def __init__(self, row: RateLimit, *, twin: bool = False) -> None:
        self._row = row
        self._is_twin = twin
        self._near_s = min(row.above_w / row.max_w_per_s, row.horizon_s)
        self.score = Score(merge_s=max(self._near_s, 1.0))
        self.keeper = MomentKeeper(before_s=1.2 * row.horizon_s, after_s=0.2 * row.horizon_s)
        self._share = 0.0
        self._near_spans: tuple[FloatArray, FloatArray, FloatArray] = NO_SPANS
        self._tail = EMPTY

    def reset(self) -> None:
        """Forget the past: pairs of instants across this moment are not compared."""
        self._tail = EMPTY

    def feed(self, block: Polyline) -> bool:
        if not len(block):
            return False
        from_s = float(self._tail.t[-1]) if len(self._tail) else -np.inf
        line = self._tail.joined(block) if len(self._tail) else block
        first = len(line) - len(block)
        self._tail = line.tail_from(float(line.t[-1]) - self._row.horizon_s)
        if len(line) < 2:
            return False
        known = ~line.gap[max(first, 1) :]
        self.score.covered_s += float(np.sum(np.diff(line.t)[max(first, 1) - 1 :][known]))
        # No change in sight is above what is always allowed, nor worse than the worst so far: nothing can follow.
        reach = float(line.q.max() - line.q.min())
        if reach <= min(1.0, self._share) * self._row.above_w:
            return False
        is_worse = self._near(line, from_s) if self._near_s > 0.0 else False
        is_worse |= self._far(line, first)
        if is_worse:
            self.score.worst = self._share * self._limit
        if not self._is_twin:
            self.keeper.see(line, self.score.worst_t_s if is_worse else None)
        return is_worse

    def _near(self, line: Polyline, from_s: float) -> bool:
        iv = window_intervals(line, window_s=self._near_s, from_s=from_s)
        if not iv.start.size:
            return False
        candidates = within(iv, Direction.BOTH)
        top0, top1 = largest(candidates)
        peak = np.maximum(top0, top1)
        if not self._is_twin:
            self.score.add_figures(0.5 * (top0 + top1), iv.end - iv.start)
            level = self._row.above_w
            broken = np.flatnonzero(peak > level * (1.0 + TOLERANCE))
            part = iv.pick(broken)
            starts, ends, index = spans_above(part.start, part.end, within(part, Direction.BOTH), level)
            self._near_spans = (starts, ends, peak[broken][index])
        k = int(np.argmax(peak))
        return self._offer(float(peak[k]) / self._row.above_w, float(iv.end[k] if top1[k] >= top0[k] else iv.start[k]))

    def _offer(self, share: float, t_s: float) -> bool:
        if share <= self._share and np.isfinite(self.score.worst_t_s):
            return False
        self._share = max(share, self._share)
        self.score.worst_t_s = t_s
        return True

    def _far(self, line: Polyline, first: int) -> bool:
        """Changes longer than the near window: the largest share by Dinkelbach's method, one pass per improvement."""
        row, t, q = self._row, line.t - line.t[0], line.q
        hi = np.searchsorted(t, t[first:] - self._near_s * (1.0 - 1e-12), side="right") - 1
        hi = np.minimum(hi, np.arange(first, t.size) - 1)  # no change is from an instant to itself
        lo = np.searchsorted(t, t[first:] - row.horizon_s, side="left")
        is_worse = False
        for _ in range(50):
            excess = self._excess(t, q, lo, hi, first, share=self._share)
            k = int(np.argmax(excess))
            if not excess[k] > TOLERANCE * max(float(np.abs(q).max()), 1.0):
                break
            s = slice(int(lo[k]), int(hi[k]) + 1)
            share = float(np.max(np.abs(q[first + k] - q[s]) / (row.max_w_per_s * (t[first + k] - t[s]))))
            if not self._offer(share, float(line.t[first + k])):
                break
            is_worse = True
        if not self._is_twin:
            self._count(line, t, q, lo, hi, first)
        return is_worse

    def _excess(
        self, t: FloatArray, q: FloatArray, lo: IntArray, hi: IntArray, first: int, *, share: float
    ) -> FloatArray:
        allowed = share * self._row.max_w_per_s * t
        low, _ = range_extremes(q - allowed, lo, hi)
        _, high = range_extremes(q + allowed, lo, hi)
        rising = (q - allowed)[first:] - low
        falling = high - (q + allowed)[first:]
        return np.maximum(rising, falling)

    def _count(self, line: Polyline, t: FloatArray, q: FloatArray, lo: IntArray, hi: IntArray, first: int) -> None:
        spans = self._near_spans
        if self._share > 1.0:
            excess = self._excess(t, q, lo, hi, first, share=1.0) - TOLERANCE * self._row.max_w_per_s
            excess = np.where(np.isfinite(excess), excess, -1.0)
            at = line.t[first:]
            keep = ~line.gap[first + 1 :]
            starts, ends, index = spans_above(at[:-1][keep], at[1:][keep], [(excess[:-1][keep], excess[1:][keep])], 0.0)
            # How far a change is above what its duration allows, as a figure beside the limit.
            figures = self._limit + np.maximum(excess[:-1], excess[1:])[keep][index]
            both = [np.concatenate(pair) for pair in zip(spans, (starts, ends, figures), strict=True)]
            order = np.argsort(both[0], kind="stable")
            spans = (both[0][order], both[1][order], both[2][order])
        self.score.add_spans(*spans)

    @property
    def _limit(self) -> float:
        """What shares are shares of, in the row's unit."""
        return self._row.above_w if self._row.above_w > 0.0 else self._row.max_w_per_s


class LevelJudge:
    """A ceiling or a floor, between its two times, exact on the line."""

    def __init__(self, row: CeilingLimit | FloorLimit, *, twin: bool = False) -> None:
        self._row = row
        self._is_twin = twin
        self._sign = 1.0 if isinstance(row, CeilingLimit) else -1.0
        self.level = row.max_w if isinstance(row, CeilingLimit) else row.min_w
        self.score = Score(merge_s=1.0)
        self.keeper = MomentKeeper(before_s=60.0, after_s=60.0)
        self._tail = EMPTY

    def reset(self) -> None:
        self._tail = EMPTY

    def feed(self, block: Polyline) -> bool:
        if not len(block):
            return False
        line = self._tail.joined(block) if len(self._tail) else block
        self._tail = line.tail_from(float(line.t[-1]))
        if len(line) < 2:
            return False
        start = np.maximum(line.t[:-1], self._row.from_s)
        end = np.minimum(line.t[1:], self._row.until_s)
        keep = np.flatnonzero((end > start) & ~line.gap[1:])
        if not keep.size:
            return False
        start, end = start[keep], end[keep]
        slope = (np.diff(line.q) / np.diff(line.t))[keep]
        g0 = self._sign * (line.q[keep] + slope * (start - line.t[keep]))
        g1 = self._sign * (line.q[keep] + slope * (end - line.t[keep]))
        peak = np.maximum(g0, g1)
        k = int(np.argmax(peak))
        is_worse = not np.isfinite(self.score.worst_t_s) or float(peak[k]) > self._sign * self.score.worst
        if is_worse:
            self.score.worst = self._sign * float(peak[k])
            self.score.worst_t_s = float(end[k] if g1[k] >= g0[k] else start[k])
        if self._is_twin:
            return is_worse
        self.score.covered_s += float(np.sum(end - start))
        self.score.add_figures(np.abs(0.5 * (g0 + g1)), end - start)
        level = self._sign * self.level
        broken = peak > level + TOLERANCE * abs(level)
        if broken.any():
            starts, ends, index = spans_above(start[broken], end[broken], [(g0[broken], g1[broken])], level)
            self.score.add_spans(starts, ends, np.abs(peak[broken][index]))
        self.keeper.see(line, self.score.worst_t_s if is_worse else None)
        return is_worse


class BandJudge:
    """A band row on filtered samples; each stands for one step, and for the peak beside it where the record is fine."""

    def __init__(self, row: BandLimit, *, step_s: float) -> None:
        self._row = row
        self._step_s = step_s
        self.score = Score(merge_s=1.0 / row.band_hz[0])
        self.keeper = MomentKeeper(before_s=3.0 / row.band_hz[0], after_s=3.0 / row.band_hz[0])

    def feed(self, block: Polyline, *, is_near_edge: bool = False) -> bool:
        is_fine = self._step_s * self._row.band_hz[1] * PEAK_SAMPLES <= 1.0
        figures = with_peaks(np.abs(block.q)) if is_fine else np.abs(block.q)
        is_worse = score_samples(
            self.score, block.t, figures, self._row.max_w, step_s=self._step_s, is_near_edge=is_near_edge
        )
        self.keeper.see(block, self.score.worst_t_s if is_worse else None)
        return is_worse


def with_peaks(figures: FloatArray) -> FloatArray:
    """Each local maximum raised to the vertex of the parabola through it and its neighbours."""
    left, own, right = figures[:-2], figures[1:-1], figures[2:]
    bend = left - 2.0 * own + right
    top = np.flatnonzero((own >= left) & (own >= right) & (bend < 0.0))
    out = figures.copy()
    out[top + 1] -= (left - right)[top] ** 2 / (8.0 * bend[top])
    return out


def score_samples(
    score: Score, t: FloatArray, figures: FloatArray, limit: float, *, step_s: float, is_near_edge: bool
) -> bool:
    """Score filtered samples, each standing for one step.

    Near an edge, a figure above the limit by no more than the filter may read too high there is not covered.
    """
    if is_near_edge:
        sure = (figures <= limit) | (figures > limit * (1.0 + EDGE_TOLERANCE))
        t, figures = t[sure], figures[sure]
    if not figures.size:
        return False
    k = int(np.argmax(figures))
    score.covered_s += step_s * figures.size
    score.add_figures(figures, np.full(figures.size, step_s))
    bad = figures > limit * (1.0 + TOLERANCE)
    score.add_spans(t[bad] - step_s, t[bad], figures[bad])
    return score.offer(float(figures[k]), float(t[k]))
