"""Live view of compliance: how far each row's present window is from its limit, and how soon it would be reached.

Fed with metered power as it comes; every row sees its own trailing mean. Windows end now. Filtered and spectral rows
have causal twins of the auditor's two-sided filters, marked as estimates: they lag and know nothing above half the
meter's rate. Nothing here decides; it feeds metrics and status. Pure.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import numpy as np

from controller.contract_rows import Path, RateRow, WindowRow
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    FloorLimit,
    Limit,
    LimitId,
    OscillationLimit,
    RampLimit,
    RateLimit,
    SwingLimit,
    frozen,
)

SLOPE_S = 2.0  # the present slope is taken over this long, so that ripple does not pass for a trend
PEAK_S = 10.0  # a band row's peak is held this long, one period of the lowest published edge
FILTER_ORDER = 4
BREACH_STEPS = 60  # of a window: how finely the time to breach is told
LINES_TRIED = 10  # of the largest: noise has no line, and looking at all of it would cost milliseconds
EDGE_SHARE = 0.9  # of half the sample rate: how far a causal twin's upper edge may reach


@frozen
class RowHeadroom:
    """One row now. `worst_w` and `limit_w` in the row's own unit of power; `headroom_w` negative when it is broken.

    `breach_s` is the time until the row breaks at the present slope; inf when it is not approached. An estimate comes
    from a causal twin of a filtered row.
    """

    limit_id: LimitId
    worst_w: float
    limit_w: float
    headroom_w: float
    breach_s: float
    is_estimate: bool


class Headroom:
    """Keeps every row's window over metered power; `add` per sample, `report` about once a second."""

    def __init__(self, limits: Iterable[Limit], *, start_s: float, start_w: float, sample_s: float) -> None:
        """`sample_s`: usual time between samples, for the filters."""
        self._sample_s = sample_s
        self._now_s, self._now_w = start_s, start_w
        self._slopes: deque[tuple[float, float]] = deque([(start_s, start_w)])
        self.set_limits(limits)

    def set_limits(self, limits: Iterable[Limit]) -> None:
        """Judge these rows from now on; their windows begin now."""
        self._rows: list[_Row] = []
        means: dict[float, _Mean] = {}
        for limit in limits:
            row = _row_of(limit, self._now_s, self._now_w, self._sample_s)
            if row is not None:
                mean = means.setdefault(limit.mean_s, _Mean(limit.mean_s, self._now_s, self._now_w))
                mean.rows.append(row)
                self._rows.append(row)
        self._means = list(means.values())

    def add(self, t_s: float, power_w: float) -> None:
        """A meter sample; samples out of order are dropped."""
        if t_s <= self._now_s:
            return
        self._now_s, self._now_w = t_s, power_w
        for mean in self._means:
            mean_w = mean.add(t_s, power_w)
            for row in mean.rows:
                row.add(t_s, mean_w)
        self._slopes.append((t_s, power_w))
        while len(self._slopes) > 2 and self._slopes[1][0] <= t_s - SLOPE_S:
            self._slopes.popleft()

    @property
    def slope_w_per_s(self) -> float:
        """Metered power's slope: least squares over the last two seconds."""
        count = len(self._slopes)
        mean_s = sum(t_s for t_s, _ in self._slopes) / count
        spread = sum((t_s - mean_s) ** 2 for t_s, _ in self._slopes)
        return sum((t_s - mean_s) * power_w for t_s, power_w in self._slopes) / spread if spread > 0.0 else 0.0

    def report(self) -> tuple[RowHeadroom, ...]:
        """Every row that can be judged live, in the contract's order."""
        slope = self.slope_w_per_s
        return tuple(row.report(slope) for row in self._rows)


class _Mean:
    """Trailing mean of one averaging time over straight lines between samples, and the rows that read it."""

    __slots__ = ("_last", "_mean_s", "_pieces", "_sum_ws", "rows")

    def __init__(self, mean_s: float, start_s: float, start_w: float) -> None:
        self._mean_s = mean_s
        self._last = (start_s, start_w)
        self._pieces: deque[tuple[float, float, float, float]] = deque()  # from, to, power from, power to
        self._sum_ws = 0.0
        self.rows: list[_Row] = []

    def add(self, t_s: float, power_w: float) -> float:
        if self._mean_s <= 0.0:
            return power_w
        from_s, from_w = self._last
        self._last = (t_s, power_w)
        pieces = self._pieces
        pieces.append((from_s, t_s, from_w, power_w))
        self._sum_ws += 0.5 * (from_w + power_w) * (t_s - from_s)
        begin_s = t_s - self._mean_s
        while pieces[0][1] <= begin_s:
            a_s, b_s, a_w, b_w = pieces.popleft()
            self._sum_ws -= 0.5 * (a_w + b_w) * (b_s - a_s)
        a_s, b_s, a_w, b_w = pieces[0]
        if a_s >= begin_s:
            return self._sum_ws / (t_s - a_s)
        edge_w = a_w + (b_w - a_w) * (begin_s - a_s) / (b_s - a_s)
        outside_ws = 0.5 * (a_w + edge_w) * (begin_s - a_s)
        return (self._sum_ws - outside_ws) / self._mean_s


class _Row(Protocol):
    """One limit over its mean."""

    def add(self, t_s: float, power_w: float) -> None: ...

    def report(self, slope_w_per_s: float) -> RowHeadroom: ...


class _WindowHeadroom:
    """Plain ramp and swing rows."""

    def __init__(self, limit: RampLimit | SwingLimit, start_s: float, start_w: float) -> None:
        self._limit = limit
        self._path = Path(start_s, start_w)
        self._row = WindowRow(limit.window_s, self._path)
        direction = limit.direction if isinstance(limit, RampLimit) else Direction.BOTH
        self._row.up_w = math.inf if direction is Direction.DOWN else limit.max_w
        self._row.down_w = math.inf if direction is Direction.UP else limit.max_w

    def add(self, t_s: float, power_w: float) -> None:
        self._path.append(t_s, power_w)
        self._row.advance(self._path)
        self._path.trim(self._limit.window_s)

    def report(self, slope_w_per_s: float) -> RowHeadroom:
        limit, row, now_w = self._limit, self._row, self._path.now_w
        risen_w, fallen_w = now_w - row.bottom_w, row.top_w - now_w
        worst_w = row.top_w - row.bottom_w
        if isinstance(limit, RampLimit):
            judged = {Direction.UP: (risen_w,), Direction.DOWN: (fallen_w,)}.get(limit.direction, (risen_w, fallen_w))
            worst_w = max(judged)
        return RowHeadroom(limit.id, worst_w, limit.max_w, limit.max_w - worst_w, self._breach_s(slope_w_per_s), False)

    def _breach_s(self, slope_w_per_s: float) -> float:
        """When the line from here leaves what the window's past allows, or outruns the row by itself."""
        row, now_w = self._row, self._path.now_w
        if row.top_w - now_w > row.down_w or now_w - row.bottom_w > row.up_w:
            return 0.0
        ahead_s = np.linspace(0.0, row.window_s, BREACH_STEPS + 1)[1:]
        line_w = now_w + slope_w_per_s * ahead_s
        low_w, high_w = row.project(self._path.now_s + ahead_s, margin_s=0.0)
        allowed_w = row.up_w if slope_w_per_s > 0.0 else row.down_w
        breaks = (line_w < low_w) | (line_w > high_w) | (np.abs(slope_w_per_s) * ahead_s > allowed_w)
        first = int(np.argmax(breaks))
        return float(first * row.window_s / BREACH_STEPS) if breaks[first] else math.inf


class _RateHeadroom:
    """Rate rows: how far power is inside the cone of its past."""

    def __init__(self, limit: RateLimit, start_s: float, start_w: float) -> None:
        self._limit = limit
        self._path = Path(start_s, start_w)
        self._row = RateRow(limit, self._path)

    def add(self, t_s: float, power_w: float) -> None:
        self._path.append(t_s, power_w)
        self._row.advance(self._path)
        self._path.trim(self._limit.horizon_s)

    def report(self, slope_w_per_s: float) -> RowHeadroom:
        limit, row, now_w = self._limit, self._row, self._path.now_w
        down_w, up_w = now_w - row.low_w, row.high_w - now_w
        left_w = min(down_w, up_w)
        is_steep = abs(slope_w_per_s) > limit.max_w_per_s
        breach_s = _until(up_w if slope_w_per_s > 0.0 else down_w, slope_w_per_s) if is_steep else math.inf
        return RowHeadroom(limit.id, limit.above_w - left_w, limit.above_w, left_w, breach_s, False)


class _LevelHeadroom:
    """Ceilings and floors while they are in force."""

    def __init__(self, limit: CeilingLimit | FloorLimit, start_s: float, start_w: float) -> None:
        self._limit = limit
        self._now_s, self._now_w = start_s, start_w

    def add(self, t_s: float, power_w: float) -> None:
        self._now_s, self._now_w = t_s, power_w

    def report(self, slope_w_per_s: float) -> RowHeadroom:
        limit = self._limit
        if isinstance(limit, CeilingLimit):
            level_w, left_w, closing = limit.max_w, limit.max_w - self._now_w, max(slope_w_per_s, 0.0)
        else:
            level_w, left_w, closing = limit.min_w, self._now_w - limit.min_w, max(-slope_w_per_s, 0.0)
        if not limit.from_s <= self._now_s < limit.until_s:
            return RowHeadroom(limit.id, self._now_w, level_w, math.inf, math.inf, False)
        return RowHeadroom(limit.id, self._now_w, level_w, left_w, _until(left_w, closing), False)


class _BandHeadroom:
    """Causal twin of a band or filtered swing row: the auditor's filter run once, forwards."""

    def __init__(self, limit: BandLimit | SwingLimit, start_s: float, start_w: float, sample_s: float) -> None:
        assert limit.band_hz is not None
        self._limit = limit
        self._sections = [list(section) for section in _sections(limit.band_hz[0], limit.band_hz[1], 1.0 / sample_s)]
        self._states = [[0.0, 0.0] for _ in self._sections]
        self._level_w = start_w
        self._path = Path(start_s, 0.0)
        self._row = WindowRow(limit.window_s if isinstance(limit, SwingLimit) else PEAK_S, self._path)

    def add(self, t_s: float, power_w: float) -> None:
        value = power_w - self._level_w  # the filter starts at rest on the first level
        for (b0, b1, b2, a1, a2), state in zip(self._sections, self._states, strict=True):
            result = b0 * value + state[0]
            state[0] = b1 * value - a1 * result + state[1]
            state[1] = b2 * value - a2 * result
            value = result
        self._path.append(t_s, value)
        self._row.advance(self._path)
        self._path.trim(self._row.window_s)

    def report(self, slope_w_per_s: float) -> RowHeadroom:
        del slope_w_per_s  # a slope says nothing about a band
        row, limit = self._row, self._limit
        worst_w = row.top_w - row.bottom_w if isinstance(limit, SwingLimit) else max(row.top_w, -row.bottom_w)
        return RowHeadroom(limit.id, worst_w, limit.max_w, limit.max_w - worst_w, math.inf, True)


class _LineHeadroom:
    """An oscillation row over the newest span, as far up as the meter's rate reaches."""

    def __init__(self, limit: OscillationLimit, sample_s: float) -> None:
        self._limit = limit
        self._sample_s = sample_s
        self._samples: deque[float] = deque(maxlen=round(limit.span_s / sample_s))

    def add(self, t_s: float, power_w: float) -> None:
        del t_s
        self._samples.append(power_w)

    def report(self, slope_w_per_s: float) -> RowHeadroom:
        del slope_w_per_s
        limit, worst_w = self._limit, 0.0
        if len(self._samples) == self._samples.maxlen:
            worst_w = _largest_line_w(np.array(self._samples), self._sample_s, limit.band_hz)
        return RowHeadroom(limit.id, worst_w, limit.max_w, limit.max_w - worst_w, math.inf, True)


def _row_of(limit: Limit, start_s: float, start_w: float, sample_s: float) -> _Row | None:
    """The live row of `limit`; None for ride-through and droop, which are judged on events."""
    if isinstance(limit, BandLimit) or (isinstance(limit, SwingLimit) and limit.band_hz is not None):
        return _BandHeadroom(limit, start_s, start_w, sample_s)
    if isinstance(limit, RampLimit | SwingLimit):
        return _WindowHeadroom(limit, start_s, start_w)
    if isinstance(limit, RateLimit):
        return _RateHeadroom(limit, start_s, start_w)
    if isinstance(limit, CeilingLimit | FloorLimit):
        return _LevelHeadroom(limit, start_s, start_w)
    if isinstance(limit, OscillationLimit):
        return _LineHeadroom(limit, sample_s)
    return None


def _until(left_w: float, slope_w_per_s: float) -> float:
    """Time until `left_w` is used up; 0 when it is, inf when nothing moves."""
    if left_w <= 0.0:
        return 0.0
    return left_w / abs(slope_w_per_s) if slope_w_per_s != 0.0 else math.inf


@lru_cache(maxsize=32)
def _sections(lo_hz: float, hi_hz: float, rate_hz: float) -> tuple[tuple[float, float, float, float, float], ...]:
    """Second-order sections (b0, b1, b2, a1, a2) of the auditor's filter at this rate; a band beyond it has none."""
    from scipy import signal  # costs 0.3 s to import; sites without a filtered row never pay it

    top_hz = EDGE_SHARE * rate_hz / 2.0
    if lo_hz >= top_hz:
        return ((0.0, 0.0, 0.0, 0.0, 0.0),)
    if hi_hz >= top_hz:
        sos = signal.butter(FILTER_ORDER, lo_hz, "highpass", fs=rate_hz, output="sos")
    else:
        sos = signal.butter(FILTER_ORDER, [lo_hz, hi_hz], "bandpass", fs=rate_hz, output="sos")
    return tuple((float(s[0]), float(s[1]), float(s[2]), float(s[4]), float(s[5])) for s in sos)


def _largest_line_w(
    samples: np.ndarray[tuple[int], np.dtype[np.float64]], sample_s: float, band_hz: tuple[float, float]
) -> float:
    """Largest line in the band that stands three times above the median of its half hertz on either side."""
    count = len(samples)
    axis = np.arange(count) - (count - 1) / 2.0
    level = samples - samples.mean()
    level -= axis * (axis @ level) / (axis @ axis)
    window = np.hanning(count)
    size = 2.0 * np.abs(np.fft.rfft(level * window)) / window.sum()
    spacing_hz = 1.0 / (count * sample_s)
    reach = max(2, round(0.5 / spacing_hz))
    first, last = max(1, math.ceil(band_hz[0] / spacing_hz)), min(len(size) - 1, math.floor(band_hz[1] / spacing_hz))
    for index in first + np.argsort(-size[first : last + 1])[:LINES_TRIED]:
        around = size[max(1, index - reach) : index + reach + 1]
        if size[index] >= 3.0 * np.median(around):
            return float(size[index])
    return 0.0
