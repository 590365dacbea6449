"""Lines in the load: finds the ripple of synchronised iterations and says what it will be one period ahead.

Load samples go onto a grid of one tick; once a second a Hann spectrum of the last `SPAN_S` names the strongest line
between 0.2 and 5 Hz, and the phase it gained over half a span sharpens its frequency. The forecast is repetitive: the
ripple's own wave of the last three periods, their median, so that one step or spike never comes back a period later.
A forecast may be wrong; whoever uses it must compare it with what came. No clock, no I/O.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from controller.types import FloatArray, frozen

LINE_HZ_MIN = 0.2  # slower content is simply followed
LINE_HZ_MAX = 5.0  # iterations faster than this have not been measured at a site's meter
SPAN_S = 16.0  # of the spectrum; two lines 0.13 Hz apart are told apart
DETECT_PERIOD_S = 1.0
STANDS_OUT = 4.0  # a line is this many times the median of its neighbourhood
NEIGHBOURHOOD_HZ = 0.5
SUBHARMONIC_SHARE = 0.25  # a line at half or a third of the strongest is the period if it has this share of it
HARMONIC_TOLERANCE_BINS = 1.5
CLIP_GAIN = 1.25  # the forecast never exceeds this many times the ripple's usual size
PERIODS = 3
GRID_SLACK = 1e-6  # of a step: a sample that is late by rounding alone is on its grid point
KEEP_S = 2.0 * SPAN_S  # one and a half spans for the detection, three of the slowest periods for the forecast


@frozen
class Line:
    """The strongest line: `amplitude_w` is half its peak to peak, `phase_rad` that of its cosine at `t_s`.

    `confidence` is 0..1: the share of the line in its neighbourhood of the spectrum.
    """

    t_s: float
    frequency_hz: float
    amplitude_w: float
    ripple_w: float  # half the usual peak to peak of the whole wave, harmonics included
    phase_rad: float
    confidence: float

    @property
    def period_s(self) -> float:
        return 1.0 / self.frequency_hz


class LineForecast:
    """Takes load samples, keeps the line found last and forecasts its ripple."""

    def __init__(self, *, tick_s: float, amplitude_w_min: float) -> None:
        """`amplitude_w_min`: ripple smaller than this is not worth a line."""
        assert tick_s > 0.0
        self._step_s = tick_s
        self._amplitude_w_min = amplitude_w_min
        self._grid_w: list[float] = []
        self._first = 0  # index of the first kept grid point; point i stands at origin + i * step
        self._origin_s = 0.0  # the first sample's, so that a steady meter's samples fall on grid points
        self._last: tuple[float, float] | None = None
        self._detected_s = -math.inf
        self.line: Line | None = None

    def add(self, t_s: float, load_w: float) -> None:
        """A load sample; samples out of order are dropped, a gap longer than a period starts afresh."""
        if self._last is None or t_s - self._last[0] > 1.0:
            self._restart(t_s, load_w)
            return
        last_s, last_w = self._last
        if t_s <= last_s:
            return
        step_s = self._step_s
        index = self._first + len(self._grid_w)
        while self._origin_s + index * step_s <= t_s + GRID_SLACK * step_s:
            share = (self._origin_s + index * step_s - last_s) / (t_s - last_s)
            self._grid_w.append(last_w + share * (load_w - last_w))
            index += 1
        self._last = (t_s, load_w)
        if t_s - self._detected_s >= DETECT_PERIOD_S:
            self._detected_s = t_s
            self._trim()
            self.line = self._detect()

    def ripple_w(self, t_s: float) -> float:
        """The ripple at `t_s`, now, past or up to a few periods ahead, from periods already over; 0 without a line."""
        line = self.line
        if line is None or self._last is None:
            return 0.0
        period_s = line.period_s
        ahead = max(1, math.ceil((t_s + period_s / 2.0 - self._end_s()) / period_s))
        found = sorted(self._wave_w(t_s - (ahead + n) * period_s, period_s) for n in range(PERIODS))
        limit_w = CLIP_GAIN * line.ripple_w
        return min(max(found[PERIODS // 2], -limit_w), limit_w)

    def _end_s(self) -> float:
        return self._origin_s + (self._first + len(self._grid_w) - 1) * self._step_s

    def _restart(self, t_s: float, load_w: float) -> None:
        self._origin_s, self._first = t_s, 0
        self._grid_w = [load_w]
        self._last = (t_s, load_w)
        self._detected_s = t_s
        self.line = None

    def _trim(self) -> None:
        surplus = len(self._grid_w) - round(KEEP_S / self._step_s)
        if surplus > 0:
            del self._grid_w[:surplus]
            self._first += surplus

    def _wave_w(self, t_s: float, period_s: float) -> float:
        """Load at `t_s` less its mean over the period around it; 0 where that is not known."""
        grid, step_s = self._grid_w, self._step_s
        position = (t_s - self._origin_s) / step_s - self._first
        half = period_s / step_s / 2.0
        start, stop = position - half, position + half
        if start < 0.0 or stop >= len(grid) - 1:
            return 0.0
        first, last = math.ceil(start), math.floor(stop)
        # Straight lines between grid points: whole points, and the two shares at the ends.
        whole = sum(grid[first : last + 1]) - (grid[first] + grid[last]) / 2.0
        head, tail = first - start, stop - last
        head_w = grid[first] - head / 2.0 * (grid[first] - grid[max(first - 1, 0)])
        tail_w = grid[last] + tail / 2.0 * (grid[last + 1] - grid[last])
        mean_w = (whole + head * head_w + tail * tail_w) / (2.0 * half)
        return _between(grid, position) - mean_w

    def _detect(self) -> Line | None:
        """The strongest line of the newest span, or None."""
        count = round(SPAN_S / self._step_s)
        if len(self._grid_w) < count + count // 2:
            return None
        recent = np.array(self._grid_w[-(count + count // 2) :])
        newest, older = recent[count // 2 :], recent[:count]
        spectrum, spacing_hz = _spectrum(newest, self._step_s)
        size = np.abs(spectrum)
        best = _strongest(size, spacing_hz)
        if best is None or size[best] < self._amplitude_w_min:
            return None
        best = _fundamental(size, best, spacing_hz)
        before, _ = _spectrum(older, self._step_s)
        frequency_hz = _sharpened(before[best], spectrum[best], best * spacing_hz, count // 2 * self._step_s)
        noise = _neighbourhood(size, best, spacing_hz)
        tail = newest[-round(6.0 / frequency_hz / self._step_s) :]
        spread_w = float(np.percentile(tail, 97.0) - np.percentile(tail, 3.0)) / 2.0
        return Line(
            t_s=self._end_s(),
            frequency_hz=frequency_hz,
            amplitude_w=float(size[best]),
            ripple_w=max(float(size[best]), min(spread_w, 2.0 * float(size[best]))),
            phase_rad=float(np.angle(spectrum[best])) + 2.0 * math.pi * frequency_hz * SPAN_S,
            confidence=float(1.0 - min(1.0, noise / size[best])),
        )


def _between(grid: list[float], position: float) -> float:
    """Cubic through the four points around, so that a wave of five samples keeps its height; straight at the ends."""
    index = math.floor(position)
    share = position - index
    b, c = grid[index], grid[index + 1]
    if not 1 <= index < len(grid) - 2:
        return b + share * (c - b)
    a, d = grid[index - 1], grid[index + 2]
    return b + 0.5 * share * (c - a + share * (2.0 * a - 5.0 * b + 4.0 * c - d + share * (3.0 * (b - c) + d - a)))


def _spectrum(samples: FloatArray, step_s: float) -> tuple[np.ndarray[tuple[int], np.dtype[np.complex128]], float]:
    """Amplitude spectrum of the detrended, Hann-weighted samples, and the spacing of its lines."""
    count = len(samples)
    axis, axis_square, window, weight = _weights(count)
    level = samples - samples.mean()
    level = level - axis * (axis @ level) / axis_square
    return np.fft.rfft(level * window) * 2.0 / weight, 1.0 / (count * step_s)


@lru_cache(maxsize=8)
def _weights(count: int) -> tuple[FloatArray, float, FloatArray, float]:
    """Time about the middle and its square, the Hann window and its sum: the same for every span."""
    axis = np.arange(count, dtype=np.float64) - (count - 1) / 2.0
    window = np.hanning(count).astype(np.float64)
    return axis, float(axis @ axis), window, float(window.sum())


def _strongest(size: FloatArray, spacing_hz: float) -> int | None:
    """Index of the largest local maximum in the line band that stands out of its neighbourhood."""
    first = max(2, math.ceil(LINE_HZ_MIN / spacing_hz))
    last = min(len(size) - 2, math.floor(LINE_HZ_MAX / spacing_hz))
    inner = size[first : last + 1]
    is_peak = (inner >= size[first - 1 : last]) & (inner >= size[first + 1 : last + 2])
    for index in first + np.argsort(np.where(is_peak, -inner, 0.0))[:5]:
        if size[index] >= STANDS_OUT * _neighbourhood(size, int(index), spacing_hz):
            return int(index)
    return None


def _fundamental(size: FloatArray, best: int, spacing_hz: float) -> int:
    """The line at a third or half of the strongest when it is there too: the strongest was a harmonic."""
    for divisor in (3, 2):
        centre = best / divisor
        if centre * spacing_hz < LINE_HZ_MIN:
            continue
        first = math.floor(centre - HARMONIC_TOLERANCE_BINS) + 1
        last = math.ceil(centre + HARMONIC_TOLERANCE_BINS)
        index = first + int(np.argmax(size[first:last]))
        stands_out = size[index] >= STANDS_OUT * _neighbourhood(size, index, spacing_hz)
        if stands_out and size[index] >= SUBHARMONIC_SHARE * size[best]:
            return index
    return best


def _neighbourhood(size: FloatArray, index: int, spacing_hz: float) -> float:
    """Median of the lines within half a hertz, the line itself left out."""
    reach = max(4, round(NEIGHBOURHOOD_HZ / spacing_hz))
    around = np.concatenate([size[max(1, index - reach) : max(1, index - 2)], size[index + 3 : index + reach + 1]])
    around.sort()
    middle, is_odd = divmod(len(around), 2)
    if not len(around):
        return 0.0
    return float(around[middle]) if is_odd else float(around[middle - 1] + around[middle]) / 2.0


def _sharpened(before: complex, after: complex, coarse_hz: float, apart_s: float) -> float:
    """The frequency whose phase advance over `apart_s` is the one seen, nearest to the coarse one."""
    turned = (np.angle(after) - np.angle(before)) / (2.0 * math.pi)
    turns = round(coarse_hz * apart_s - turned) + turned
    return float(turns / apart_s)
