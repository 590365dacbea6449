"""Spectral lines of power: Hann-windowed spans, half overlapping, linear trend removed, amplitude 2|X| / sum(w).

A line counts if it stands three times above the median of its neighbourhood of 0.5 Hz either way. Its amplitude is read
at its own frequency, not at the nearest bin: between bins a Hann window reads up to 15 % low.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import windows

from controller.audit.score import Score
from controller.audit.verdicts import Spectrum
from controller.types import FloatArray, OscillationLimit

LINE_OVER_MEDIAN = 3.0
NEIGHBOURHOOD_HZ = 0.5
SPANS_AT_ONCE = 64
CANDIDATES_MAX = 64  # peaks of one span that are tried, largest first
TOLERANCE = 1e-9


@dataclass(slots=True)
class Spans:
    """Cuts a grid into half-overlapping spans; a gap begins anew."""

    span_s: float
    step_s: float
    _held: FloatArray = field(init=False, default_factory=lambda: np.empty(0))
    _start_s: float = field(init=False, default=0.0)

    @property
    def length(self) -> int:
        return max(round(self.span_s / self.step_s), 1)

    @property
    def hop(self) -> int:
        return max(self.length // 2, 1)

    def feed(self, starts: bool, start_s: float, values: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
        """(end times, spans as rows) of at most SPANS_AT_ONCE spans each."""
        if starts:
            self._held, self._start_s = values, start_s
        else:
            self._held = np.concatenate((self._held, values))
        n, hop = self.length, self.hop
        count = (self._held.size - n) // hop + 1 if self._held.size >= n else 0
        for a in range(0, count, SPANS_AT_ONCE):
            b = min(a + SPANS_AT_ONCE, count)
            view = np.lib.stride_tricks.sliding_window_view(self._held[a * hop : (b - 1) * hop + n], n)[::hop]
            ends = self._start_s + self.step_s * (np.arange(a, b, dtype=np.float64) * hop + n - 1)
            yield ends, view
        if count:
            self._held = self._held[count * hop :].copy()
            self._start_s += self.step_s * count * hop


class Amplitudes:
    """Amplitude spectra of spans, by rows."""

    def __init__(self, *, length: int, step_s: float) -> None:
        self._window = windows.hann(length, sym=False)
        ramp = np.arange(length) - 0.5 * (length - 1)
        self._ramp = ramp
        self._ramp_energy = float(ramp @ ramp) or 1.0
        self._step_s = step_s
        self.frequency_hz: FloatArray = np.asarray(np.fft.rfftfreq(length, step_s), dtype=np.float64)

    def windowed(self, spans: FloatArray) -> FloatArray:
        """Spans less their linear trend, times the window."""
        level = spans.mean(axis=1, keepdims=True)
        slope = (spans @ self._ramp)[:, None] / self._ramp_energy
        out: FloatArray = (spans - level - slope * self._ramp) * self._window
        return out

    def of(self, windowed: FloatArray) -> FloatArray:
        """Amplitude per bin."""
        out: FloatArray = 2.0 * np.abs(np.fft.rfft(windowed, axis=1)) / self._window.sum()
        return out

    def at(self, windowed: FloatArray, frequency_hz: float) -> float:
        """Amplitude of one span at any frequency."""
        turn = np.exp(-2j * np.pi * frequency_hz * self._step_s * np.arange(windowed.size))
        return float(2.0 * np.abs(windowed @ turn) / self._window.sum())


class OscillationJudge:
    """The largest spectral line of each span against the limit; a span stands for the half by which it is moved on."""

    def __init__(self, row: OscillationLimit, *, step_s: float) -> None:
        self._row = row
        self._spans = Spans(row.span_s, step_s)
        self._step_s = step_s
        self._amplitudes = Amplitudes(length=self._spans.length, step_s=step_s)
        frequency = self._amplitudes.frequency_hz
        half_bin = 0.5 * frequency[1] if frequency.size > 1 else 0.0
        # The line's own frequency must lie in the band; its bin may be the one beside.
        self._in_band = np.flatnonzero(
            (frequency >= row.band_hz[0] - half_bin) & (frequency <= row.band_hz[1] + half_bin)
        )
        self.score = Score(merge_s=row.span_s)
        self.spectrum: Spectrum | None = None

    @property
    def is_blind(self) -> bool:
        return self._row.band_hz[0] >= 0.5 / self._step_s or self._in_band.size == 0

    @property
    def is_cut(self) -> bool:
        return self._row.band_hz[1] > 0.5 / self._step_s * (1.0 + 1e-6)

    def feed(self, starts: bool, start_s: float, values: FloatArray) -> bool:
        is_worse = False
        for ends, spans in self._spans.feed(starts, start_s, values):
            if not self.is_blind:
                is_worse |= self._judge(ends, spans)
        return is_worse

    def _judge(self, ends: FloatArray, spans: FloatArray) -> bool:
        windowed = self._amplitudes.windowed(spans)
        amplitude = self._amplitudes.of(windowed)
        lines = np.array([self._largest_line(amplitude[i], windowed[i]) for i in range(ends.size)])
        hop_s = self._spans.hop * self._step_s
        self.score.covered_s += hop_s * lines.size
        self.score.add_figures(lines, np.full(lines.size, hop_s))
        bad = lines > self._row.max_w * (1.0 + TOLERANCE)
        k = int(np.argmax(lines))
        self.score.add_spans(ends[bad] - hop_s, ends[bad], lines[bad])
        is_worse = self.score.offer(float(lines[k]), float(ends[k]))
        if is_worse:
            show = slice(1, int(self._in_band[-1]) + 1)
            self.spectrum = Spectrum(
                self._amplitudes.frequency_hz[show], amplitude[k, show], amplitude[k, show], self._row.span_s, 1
            )
        return is_worse

    def _largest_line(self, amplitude: FloatArray, windowed: FloatArray) -> float:
        """Largest line of one span that stands out; 0 where none does."""
        inside = self._in_band
        bin_hz = float(self._amplitudes.frequency_hz[1])
        reach = max(round(NEIGHBOURHOOD_HZ / bin_hz), 1)
        left = amplitude[np.maximum(inside - 1, 0)]
        right = amplitude[np.minimum(inside + 1, amplitude.size - 1)]
        own = amplitude[inside]
        peaks = inside[(own >= left) & (own >= right) & (own > 0.0)]
        best = 0.0
        for i in peaks[np.argsort(-amplitude[peaks])][:CANDIDATES_MAX]:
            if amplitude[i] * 1.2 <= best:  # between bins at most 18 % hides
                break
            around = amplitude[max(i - reach, 1) : i + reach + 1]
            if amplitude[i] < LINE_OVER_MEDIAN * float(np.median(around)):
                continue
            best = max(best, self._at_its_frequency(amplitude, windowed, int(i), bin_hz))
        return best

    def _at_its_frequency(self, amplitude: FloatArray, windowed: FloatArray, i: int, bin_hz: float) -> float:
        """Amplitude at the frequency that the two largest bins of a Hann window point to; 0 outside the band."""
        low = amplitude[i - 1] if i >= 1 else 0.0
        high = amplitude[i + 1] if i + 1 < amplitude.size else 0.0
        side = 1.0 if high >= low else -1.0
        ratio = max(low, high) / amplitude[i]
        shift = side * max((2.0 * ratio - 1.0) / (1.0 + ratio), 0.0)
        frequency = (i + shift) * bin_hz
        if not self._row.band_hz[0] - 0.05 * bin_hz <= frequency <= self._row.band_hz[1] + 0.05 * bin_hz:
            return 0.0
        return max(float(amplitude[i]), self._amplitudes.at(windowed, frequency))


class SpectrumOfRecord:
    """Amplitude spectrum of a whole record, for reports: root mean square over spans, and the largest of each line."""

    def __init__(self, *, step_s: float, span_s: float = 20.0, low_hz: float = 0.1, high_hz: float = 55.0) -> None:
        self._spans = Spans(span_s, step_s)
        self._amplitudes = Amplitudes(length=self._spans.length, step_s=step_s)
        frequency = self._amplitudes.frequency_hz
        self._pick = np.flatnonzero((frequency >= low_hz - 1e-9) & (frequency <= high_hz + 1e-9))
        self._square = np.zeros(self._pick.size)
        self._largest = np.zeros(self._pick.size)
        self._count = 0

    def feed(self, starts: bool, start_s: float, values: FloatArray) -> None:
        for _, spans in self._spans.feed(starts, start_s, values):
            amplitude = self._amplitudes.of(self._amplitudes.windowed(spans))[:, self._pick]
            self._square += np.sum(amplitude**2, axis=0)
            self._largest = np.maximum(self._largest, amplitude.max(axis=0))
            self._count += amplitude.shape[0]

    def result(self) -> Spectrum | None:
        """None where the record shows nothing of the range."""
        if not self._count or not self._pick.size:
            return None
        frequency = self._amplitudes.frequency_hz[self._pick]
        return Spectrum(frequency, np.sqrt(self._square / self._count), self._largest, self._spans.span_s, self._count)
