"""Turns a record into what rows judge: the trailing mean of power, and power on its own uniform grid.

Both take blocks and keep only the tail they still need, so memory does not grow with the record. Neither looks across a
gap: a mean begins anew after it, and the grid starts anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import signal

from controller.audit.windows import EMPTY, BoolArray, Polyline, uniform_step
from controller.types import FloatArray, IntArray

KNOTS_PER_MEAN = 40  # the mean of a polyline is curved between knots: at 1/40 of its length the chord is within 0.3 %
FILTER_ORDER = 4
OVERLAP_S_MIN = 60.0
NEAR_EDGES = 4  # periods of the lower corner within which a segment's end still shows
NYQUIST_SHARE = 0.999  # a band that reaches this share of the Nyquist frequency is a high-pass


class TrailingMean:
    """The mean of the last `mean_s` of a polyline, as a polyline of its own.

    Begins `mean_s` after the record's start and after each gap: less than that is not a mean any meter would show, and
    the raw power it starts from would break rows that the mean holds.
    """

    def __init__(self, mean_s: float) -> None:
        self._mean_s = mean_s
        self._tail = EMPTY
        self._segment_start_s = -np.inf
        self._gap_pending = False

    def reset(self) -> None:
        """Forget the past: the next block begins a new record."""
        self._tail = EMPTY
        self._gap_pending = False

    def feed(self, block: Polyline) -> Polyline:
        """The mean at the block's knots, and between them where they lie further apart than the mean allows."""
        if self._mean_s <= 0.0 or not len(block):
            return block
        line = self._tail.joined(block)
        carried = len(self._tail)
        if not carried:
            self._segment_start_s = float(block.t[0])
        opens = np.where(line.gap, line.t, -np.inf)
        opens[0] = self._segment_start_s
        segment_start = np.maximum.accumulate(opens)
        mean = self._mean_at_knots(line, segment_start, first=carried)
        self._tail = line.tail_from(float(line.t[-1]) - self._mean_s)
        self._segment_start_s = float(segment_start[-1])
        return mean

    def _mean_at_knots(self, line: Polyline, segment_start: FloatArray, *, first: int) -> Polyline:
        dt = np.diff(line.t, prepend=line.t[0])
        trapeze = 0.5 * (line.q + np.concatenate((line.q[:1], line.q[:-1]))) * dt
        trapeze[line.gap] = 0.0
        trapeze[0] = 0.0
        integral = np.cumsum(trapeze)
        step = uniform_step(line.t) if not line.gap[1:].any() else None
        lag = round(self._mean_s / step) if step is not None else 0
        on_grid = step is not None and lag >= KNOTS_PER_MEAN and abs(lag * step - self._mean_s) <= 1e-5 * step
        if on_grid and first >= lag:
            q = (integral[first:] - integral[first - lag : line.t.size - lag]) / self._mean_s
            return Polyline(line.t[first:], q, line.gap[first:])
        at, owner, gap = _refine(line, first=first, step_s=self._mean_s / KNOTS_PER_MEAN)
        begin = np.maximum(at - self._mean_s, segment_start[owner])
        area = _integral_at(line, integral, at, owner) - _integral_at(line, integral, begin, None)
        span = at - begin
        full = np.flatnonzero(span >= self._mean_s * (1.0 - 1e-6))
        return self._whole_means(at, area, gap, full)

    def _whole_means(self, at: FloatArray, area: FloatArray, gap: BoolArray, full: IntArray) -> Polyline:
        """Only the full means; the first after a gap carries the gap's mark."""
        gaps_before = np.cumsum(gap)
        if not full.size:
            self._gap_pending |= bool(gaps_before.size and gaps_before[-1])
            return Polyline(np.empty(0), np.empty(0), np.empty(0, dtype=np.bool_))
        marks = np.diff(gaps_before[full], prepend=0) > 0
        marks[0] |= self._gap_pending
        self._gap_pending = bool(gaps_before[-1] > gaps_before[full[-1]])
        return Polyline(at[full], area[full] / self._mean_s, marks)


def _refine(line: Polyline, *, first: int, step_s: float) -> tuple[FloatArray, IntArray, BoolArray]:
    """Times of the new knots with points put evenly into long intervals; the knot each ends at; gap flags."""
    t = line.t
    dt = np.diff(t, prepend=t[0])[first:]
    parts = np.maximum(np.ceil(dt / step_s - 1e-6).astype(np.int64), 1)
    parts[line.gap[first:]] = 1
    if first == 0:
        parts[0] = 1
    owner = np.repeat(np.arange(first, t.size), parts)
    if owner.size == parts.size:
        return t[first:], owner, line.gap[first:]
    ends = np.cumsum(parts)
    back = ends[owner - first] - 1 - np.arange(owner.size)  # parts still to go until the knot
    at = t[owner] - back * (dt[owner - first] / parts[owner - first])
    return at, owner, line.gap[owner] & (back == 0)


def _integral_at(line: Polyline, integral: FloatArray, at: FloatArray, owner: IntArray | None) -> FloatArray:
    """Integral of the polyline up to each time; `owner` is the knot at or after it, found where not given."""
    t, q = line.t, line.q
    after = np.searchsorted(t, at, side="left") if owner is None else owner
    j = np.clip(after - 1, 0, max(t.size - 2, 0))
    if t.size < 2:
        return np.zeros(at.size)
    ahead = at - t[j]
    slope = (q[j + 1] - q[j]) / (t[j + 1] - t[j])
    inside = integral[j] + ahead * (q[j] + 0.5 * slope * ahead)
    return np.where(line.gap[j + 1], integral[j + 1], inside)


@dataclass(slots=True)
class UniformGrid:
    """Power of each gapless segment on a grid of `step_s` from the segment's first sample."""

    step_s: float
    _origin_s: float = np.nan
    _made: int = 0
    _last_t: float = np.nan
    _last_q: float = np.nan

    def feed(self, block: Polyline) -> Iterator[tuple[bool, float, FloatArray]]:
        """(starts a segment, time of the first value, values) per piece of the block."""
        cuts = np.flatnonzero(block.gap)
        for a, b in zip(np.concatenate(([0], cuts)), np.concatenate((cuts, [len(block)])), strict=True):
            if b > a:
                yield self._piece(block.t[a:b], block.q[a:b], starts=bool(block.gap[a]) or np.isnan(self._origin_s))

    def _piece(self, t: FloatArray, q: FloatArray, *, starts: bool) -> tuple[bool, float, FloatArray]:
        if starts:
            self._origin_s, self._made = float(t[0]), 0
        else:
            t = np.concatenate(([self._last_t], t))
            q = np.concatenate(([self._last_q], q))
        self._last_t, self._last_q = float(t[-1]), float(q[-1])
        count = int(np.floor((t[-1] - self._origin_s) / self.step_s + 1e-6)) + 1 - self._made
        grid: FloatArray = self._origin_s + self.step_s * np.arange(
            self._made, self._made + max(count, 0), dtype=np.float64
        )
        self._made += max(count, 0)
        if not grid.size:
            return starts, self._last_t, grid
        return starts, float(grid[0]), np.asarray(np.interp(grid, t, q), dtype=np.float64)


@dataclass(slots=True)
class BandPass:
    """Zero-phase Butterworth filtering of a grid in blocks; yields only samples the filter covers.

    The ends of a segment, 1/lo each, are not covered. Up to 4/lo from an end what the filter assumes beyond it still
    shows (measured on steady sines with default padding: up to 17 % of their amplitude at 1/lo, below 0.1 % at 3/lo),
    so samples there come marked as near an edge. Blocks overlap by at least 60 s and eight periods of `lo`, and
    always lie the same way from the segment's start, so the result does not depend on how the record was fed.
    """

    band_hz: tuple[float, float]
    step_s: float
    _sos: FloatArray | None = field(init=False, default=None)
    _parts: list[FloatArray] = field(init=False, default_factory=list)
    _held: int = field(init=False, default=0)
    _start_s: float = field(init=False, default=0.0)  # of the first held sample
    _is_first: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        nyquist = 0.5 / self.step_s
        low, high = self.band_hz
        if low >= NYQUIST_SHARE * nyquist:
            return
        if high >= NYQUIST_SHARE * nyquist:
            self._sos = signal.butter(FILTER_ORDER, low, "highpass", fs=1.0 / self.step_s, output="sos")
        else:
            self._sos = signal.butter(FILTER_ORDER, [low, high], "bandpass", fs=1.0 / self.step_s, output="sos")

    @property
    def is_blind(self) -> bool:
        """The whole band lies above what the record can show."""
        return self._sos is None

    @property
    def is_cut(self) -> bool:
        """Part of the band lies above what the record can show."""
        return self.band_hz[1] > 0.5 / self.step_s * (1.0 + 1e-6)

    @property
    def _edge(self) -> int:
        return int(np.ceil(1.0 / self.band_hz[0] / self.step_s))

    @property
    def _overlap(self) -> int:
        return int(np.ceil(max(OVERLAP_S_MIN, 8.0 / self.band_hz[0]) / self.step_s))

    def feed(self, starts: bool, start_s: float, values: FloatArray) -> Iterator[tuple[Polyline, bool]]:
        """Filtered, covered samples as they become certain, and whether they lie near an edge."""
        if self._sos is None:
            return
        if starts:
            yield from self.finish()
            self._start_s, self._is_first = start_s, True
        self._parts.append(values)
        self._held += values.size
        core = max(4 * self._overlap, 1 << 17)
        need = core + 2 * self._overlap
        if self._held < need:
            return
        held = np.concatenate(self._parts)
        while held.size >= need:
            yield from self._covered(held[:need], stop=need - self._overlap, edge=need)
            held = held[need - 2 * self._overlap :]
            self._start_s += self.step_s * (need - 2 * self._overlap)
            self._is_first = False
        self._parts, self._held = [held], int(held.size)

    def finish(self) -> Iterator[tuple[Polyline, bool]]:
        """What the end of a segment still gives."""
        held = np.concatenate(self._parts) if self._parts else np.empty(0)
        self._parts, self._held = [], 0
        skip = self._edge if self._is_first else self._overlap
        if self._sos is not None and held.size > self._edge + skip + 1 and held.size > self._padding:
            yield from self._covered(held, stop=held.size - self._edge, edge=held.size - NEAR_EDGES * self._edge)

    @property
    def _padding(self) -> int:
        assert self._sos is not None
        # As sosfiltfilt computes its default: three times the order, less what cancels at the origin.
        sections = int(self._sos.shape[0])
        at_origin = min(int(np.sum(self._sos[:, 2] == 0.0)), int(np.sum(self._sos[:, 5] == 0.0)))
        return 3 * (2 * sections + 1 - at_origin)

    def _covered(self, held: FloatArray, *, stop: int, edge: int) -> Iterator[tuple[Polyline, bool]]:
        """Samples up to `stop`, cut where those near an edge end and, at `edge`, begin again."""
        assert self._sos is not None
        start = self._edge if self._is_first else self._overlap
        settled = NEAR_EDGES * self._edge if self._is_first else start
        out = np.asarray(signal.sosfiltfilt(self._sos, held - held.mean()), dtype=np.float64)
        for a, b, is_near in (
            (start, min(settled, stop), True),
            (max(start, min(settled, stop)), min(max(edge, settled), stop), False),
            (max(start, min(max(edge, settled), stop)), stop, True),
        ):
            if b > a:
                t: FloatArray = self._start_s + self.step_s * np.arange(a, b, dtype=np.float64)
                gap = np.zeros(b - a, dtype=np.bool_)
                gap[0] = self._is_first and a == start
                yield Polyline(t, out[a:b], gap), is_near
