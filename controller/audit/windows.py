"""Exact extremes over rolling windows of a line through samples, vectorised, for uniform and irregular times alike.

The record is a polyline: knots (t, q) joined linearly, except across gaps, where nothing is known between the knots.
Between two neighbouring *events* (a knot enters the window, or leaves it) every candidate for the extreme of a window
is a linear function of the window's end: its right edge, its left edge, or a knot inside, which does not change. So the
largest value, and the total length of end times above a limit, come out exactly, not at samples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from controller.types import FloatArray, IntArray, frozen

BoolArray = NDArray[np.bool_]

UNIFORM_TOLERANCE = 1e-5  # of a step
UNIFORM_TOLERANCE_S = 1e-6  # and times printed to a microsecond, or seconds since 1970, still count as uniform


@frozen
class Polyline:
    """Knots of a record; `gap[i]` says that nothing is known between knots i-1 and i. Times strictly increase."""

    t: FloatArray
    q: FloatArray
    gap: BoolArray

    def __len__(self) -> int:
        return int(self.t.size)

    def tail_from(self, start_s: float) -> Polyline:
        """The part that covers everything from `start_s` on: begins at the last knot not later than it."""
        first = max(int(np.searchsorted(self.t, start_s, side="right")) - 1, 0)
        return Polyline(self.t[first:].copy(), self.q[first:].copy(), self.gap[first:].copy())

    def joined(self, later: Polyline) -> Polyline:
        return Polyline(
            np.concatenate((self.t, later.t)),
            np.concatenate((self.q, later.q)),
            np.concatenate((self.gap, later.gap)),
        )


EMPTY = Polyline(np.empty(0), np.empty(0), np.empty(0, dtype=np.bool_))


@frozen
class Intervals:
    """Stretches of window end times between events, each with what linear candidates need, as arrays of length k.

    `right0/right1`: the record at the window's right edge, at the stretch's two ends. `left0/left1`: at its left edge,
    NaN where the window begins before the record or inside a gap. `low/high`: extremes of the knots inside the window
    all along the stretch (+inf/-inf where there are none).
    """

    start: FloatArray
    end: FloatArray
    right0: FloatArray
    right1: FloatArray
    left0: FloatArray
    left1: FloatArray
    low: FloatArray
    high: FloatArray

    def pick(self, index: IntArray) -> Intervals:
        return Intervals(*(getattr(self, f.name)[index] for f in fields(self)))


def uniform_step(t: FloatArray) -> float | None:
    """The step of a uniform time axis, None where it is not uniform."""
    if t.size < 2:
        return None
    step = float(t[-1] - t[0]) / (t.size - 1)
    even = t[0] + step * np.arange(t.size)
    allowed_s = max(UNIFORM_TOLERANCE * step, min(UNIFORM_TOLERANCE_S, 1e-3 * step))
    return step if step > 0.0 and float(np.max(np.abs(t - even))) <= allowed_s else None


def window_intervals(line: Polyline, *, window_s: float, from_s: float) -> Intervals:
    """All stretches of end times from `from_s` to the last knot, for a window of `window_s`."""
    step = uniform_step(line.t) if not line.gap[1:].any() else None
    if step is not None:
        count = round(window_s / step)
        if count >= 1 and abs(window_s / step - count) <= 1e-3:
            return _on_grid(line, count=count, from_s=from_s, step=step)
    return _between_events(line, window_s=window_s, from_s=from_s)


def range_extremes(q: FloatArray, lo: IntArray, hi: IntArray) -> tuple[FloatArray, FloatArray]:
    """Least and greatest of q[lo..hi] (inclusive) per query; +inf and -inf where hi < lo.

    Doubling table, level by level, so memory stays at a few copies of q: O((n + queries) log window).
    """
    length = hi - lo + 1
    level = np.frexp(np.maximum(length, 1).astype(np.float64))[1] - 1
    low = np.full(lo.size, np.inf)
    high = np.full(lo.size, -np.inf)
    wanted = length > 0
    if not wanted.any():
        return low, high
    low_table, high_table = q, q
    top = int(level[wanted].max())
    present = np.bincount(level[wanted], minlength=top + 1)
    for k in range(top + 1):
        if present[k]:
            pick = np.flatnonzero(wanted & (level == k))
            a, b = lo[pick], hi[pick] - (1 << k) + 1
            low[pick] = np.minimum(low_table[a], low_table[b])
            high[pick] = np.maximum(high_table[a], high_table[b])
        if k < top:
            half = 1 << k
            low_table = np.minimum(low_table[:-half], low_table[half:])
            high_table = np.maximum(high_table[:-half], high_table[half:])
    return low, high


def rolling_extremes(q: FloatArray, count: int, *, first: int) -> tuple[FloatArray, FloatArray]:
    """Least and greatest of the `count` values ending at each index from `first` on (fewer where there are fewer)."""
    last = q.size
    low, high = np.empty(last - first), np.empty(last - first)
    full = max(first, count - 1)
    if full < last:
        low_table, high_table, width = q[full - count + 1 :], q[full - count + 1 :], 1
        while 2 * width <= count:
            low_table = np.minimum(low_table[:-width], low_table[width:])
            high_table = np.maximum(high_table[:-width], high_table[width:])
            width *= 2
        rest = count - width
        n = last - full
        low[full - first :] = np.minimum(low_table[:n], low_table[rest : rest + n])
        high[full - first :] = np.maximum(high_table[:n], high_table[rest : rest + n])
    if first < full:
        stop = min(full, last)
        low[: stop - first] = np.minimum.accumulate(q[:stop])[first:]
        high[: stop - first] = np.maximum.accumulate(q[:stop])[first:]
    return low, high


def lengths_above(candidates: Sequence[tuple[FloatArray, FloatArray]], level: float) -> tuple[FloatArray, FloatArray]:
    """Where linear candidates (values at a stretch's start and end) stand above `level`, as shares of each stretch.

    Returns (head, tail): above from 0 to head and from tail to 1. Exact, because the largest of linear functions is
    convex: what is above the level touches an end. NaN candidates count as absent.
    """
    head = np.zeros(candidates[0][0].size)
    tail = np.ones(candidates[0][0].size)
    for g0, g1 in candidates:
        above0, above1 = g0 > level, g1 > level
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            crossing = np.clip((level - g0) / (g1 - g0), 0.0, 1.0)
        head = np.maximum(head, np.where(above0, np.where(above1, 1.0, crossing), 0.0))
        tail = np.minimum(tail, np.where(above1, np.where(above0, 0.0, crossing), 1.0))
    return head, tail


def spans_above(
    start: FloatArray, end: FloatArray, candidates: Sequence[tuple[FloatArray, FloatArray]], level: float
) -> tuple[FloatArray, FloatArray, IntArray]:
    """The end times above `level` as (starts, ends) of spans, sorted by start, and the stretch each lies in."""
    head, tail = lengths_above(candidates, level)
    width = end - start
    whole = head >= tail
    head = np.where(whole, 1.0, head)
    has_head, has_tail = head > 0.0, ~whole & (tail < 1.0)
    starts = np.concatenate((start[has_head], (start + tail * width)[has_tail]))
    owner = np.concatenate((np.flatnonzero(has_head), np.flatnonzero(has_tail)))
    ends = np.concatenate(((start + head * width)[has_head], end[has_tail]))
    order = np.argsort(starts, kind="stable")
    return starts[order], ends[order], owner[order]


def _on_grid(line: Polyline, *, count: int, from_s: float, step: float) -> Intervals:
    """The window is a whole number of steps: knots enter and leave together, so the knots are the events."""
    t, q = line.t, line.q
    first = int(np.searchsorted(t, from_s - 0.5 * step))
    low, high = rolling_extremes(q, count, first=first)
    left0 = np.full(t.size - 1 - first, np.nan)
    left1 = np.full(t.size - 1 - first, np.nan)
    begin = max(count - first, 0)
    left0[begin:] = q[first + begin - count : t.size - 1 - count] if first + begin < t.size - 1 else left0[begin:]
    left1[begin:] = q[first + begin - count + 1 : t.size - count] if first + begin < t.size - 1 else left1[begin:]
    return Intervals(t[first:-1], t[first + 1 :], q[first:-1], q[first + 1 :], left0, left1, low[:-1], high[:-1])


def _between_events(line: Polyline, *, window_s: float, from_s: float) -> Intervals:
    t, q, gap = line.t, line.q, line.gap
    leaving = t + window_s
    keep = (leaving > from_s) & (leaving < t[-1])
    events = np.concatenate((t[t >= from_s], leaving[keep], [max(from_s, t[0])]))
    events.sort(kind="stable")
    tiny = 1e-9 * max(window_s, 1e-3)
    events = events[np.concatenate(([True], np.diff(events) > tiny))]
    start, end = events[:-1], events[1:]
    middle = 0.5 * (start + end)
    right = np.clip(np.searchsorted(t, middle, side="right") - 1, 0, max(t.size - 2, 0))
    known = ~gap[right + 1] if t.size > 1 else np.zeros(0, dtype=np.bool_)
    start, end, middle, right = start[known], end[known], middle[known], right[known]
    slope = np.diff(q) / np.diff(t)
    edge = np.searchsorted(t, middle - window_s, side="right") - 1
    is_known = edge >= 0
    safe = np.clip(edge, 0, max(t.size - 2, 0))
    is_known &= ~gap[safe + 1]
    left0 = np.where(is_known, q[safe] + slope[safe] * (start - window_s - t[safe]), np.nan)
    left1 = np.where(is_known, q[safe] + slope[safe] * (end - window_s - t[safe]), np.nan)
    low, high = range_extremes(q, edge + 1, right)
    return Intervals(
        start,
        end,
        q[right] + slope[right] * (start - t[right]),
        q[right] + slope[right] * (end - t[right]),
        left0,
        left1,
        low,
        high,
    )
