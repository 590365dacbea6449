"""The path and the two kinds of row that look back on it, each O(1) amortised per point.

A row keeps, over its window, the highest and the lowest value of the path, including the value where the window begins
between two points. Windows are taken back from the last point, not from the next one: what binds at the last point
binds until the next, and so the straight line between them is covered as well.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.types import FloatArray, RateLimit

TRIM_POINTS = 4096  # spare points let go at once, so that trimming costs nothing per tick

Point = tuple[float, float]


class Path:
    """Points (t_s, power_w) in order of time; absolute indices survive trimming."""

    __slots__ = ("base", "now_s", "now_w", "powers_w", "times_s")

    def __init__(self, t_s: float, power_w: float) -> None:
        self.times_s: list[float] = [t_s]
        self.powers_w: list[float] = [power_w]
        self.base = 0
        self.now_s, self.now_w = t_s, power_w

    def append(self, t_s: float, power_w: float) -> None:
        self.times_s.append(t_s)
        self.powers_w.append(power_w)
        self.now_s, self.now_w = t_s, power_w

    def trim(self, keep_s: float) -> None:
        """Let points go that are older than `keep_s`, in bulk."""
        times_s = self.times_s
        if len(times_s) > 2 * TRIM_POINTS and times_s[TRIM_POINTS] < self.now_s - keep_s:
            del times_s[:TRIM_POINTS]
            del self.powers_w[:TRIM_POINTS]
            self.base += TRIM_POINTS

    def restart(self) -> None:
        """Forget all but the last point; rows that looked at the path before must be made anew."""
        self.times_s = [self.now_s]
        self.powers_w = [self.now_w]


class WindowRow:
    """All plain limits of one window: |P(t) - P(s)| bounded for every s at most `window_s` before t."""

    __slots__ = ("_bottoms", "_left", "_tops", "bottom_w", "contingency_down_w", "down_w", "top_w", "up_w", "window_s")

    def __init__(self, window_s: float, path: Path) -> None:
        self.window_s = window_s
        self.up_w = self.down_w = self.contingency_down_w = math.inf
        self._tops: deque[Point] = deque()
        self._bottoms: deque[Point] = deque()
        self._left = path.base
        for t_s, power_w in zip(path.times_s, path.powers_w, strict=True):
            self._enter(t_s, power_w)
        self._leave(path)

    def advance(self, path: Path) -> None:
        """Take in the path's last point."""
        self._enter(path.now_s, path.now_w)
        self._leave(path)

    def project(self, times: FloatArray, *, margin_s: float) -> tuple[FloatArray, FloatArray]:
        """Bounds that the known path still puts on later instants, the earliest first.

        One tick of margin stands for the window's edge.
        """
        cutoffs = times - self.window_s - margin_s
        low = _extreme_after(self._tops, cutoffs, -math.inf) - self.down_w
        high = _extreme_after(self._bottoms, cutoffs, math.inf) + self.up_w
        return low, high

    def peak_w(self, now_s: float, slope_w_per_s: float) -> float:
        """max over the window of P(s) - slope (now - s); a point below a later one is never the maximum."""
        times, powers = _columns(self._tops)
        past = times < now_s
        levels = powers[past] - slope_w_per_s * (now_s - times[past])
        return max(self._tops[-1][1], float(levels.max(initial=-math.inf)))

    def trough_w(self, now_s: float, slope_w_per_s: float) -> float:
        """min over the window of P(s) + slope (now - s)."""
        times, powers = _columns(self._bottoms)
        past = times < now_s
        levels = powers[past] + slope_w_per_s * (now_s - times[past])
        return min(self._bottoms[-1][1], float(levels.min(initial=math.inf)))

    def _enter(self, t_s: float, power_w: float) -> None:
        tops, bottoms = self._tops, self._bottoms
        while tops and tops[-1][1] <= power_w:
            tops.pop()
        while bottoms and bottoms[-1][1] >= power_w:
            bottoms.pop()
        point = (t_s, power_w)
        tops.append(point)
        bottoms.append(point)

    def _leave(self, path: Path) -> None:
        """Drop what is older than the window, and take the path's value at its edge."""
        cutoff_s = path.now_s - self.window_s
        tops, bottoms = self._tops, self._bottoms
        while tops[0][0] < cutoff_s:
            tops.popleft()
        while bottoms[0][0] < cutoff_s:
            bottoms.popleft()
        self.top_w, self.bottom_w = tops[0][1], bottoms[0][1]
        times_s, base = path.times_s, path.base
        left = max(self._left - base, 0)
        while times_s[left] < cutoff_s:
            left += 1
        self._left = left + base
        if left > 0 and times_s[left] > cutoff_s:
            edge_w = _between(path, left, cutoff_s)
            self.top_w, self.bottom_w = max(self.top_w, edge_w), min(self.bottom_w, edge_w)


class RateRow:
    """|P(t) - P(s)| <= max(above_w, slope (t - s)) for every s within the horizon.

    Young points meet the flat part, a window row; old ones the sloping part, as extremes of P(s) + slope s.
    """

    __slots__ = (
        "_entered",
        "_has_slope",
        "_highs",
        "_left",
        "_lows",
        "_old_high_w",
        "_old_low_w",
        "_recent",
        "horizon_s",
        "limit",
        "shrink_down_w",
        "shrink_up_w",
        "slope_w_per_s",
    )

    def __init__(self, limit: RateLimit, path: Path) -> None:
        self.limit = limit
        self.slope_w_per_s = limit.max_w_per_s
        self.horizon_s = limit.horizon_s
        self.shrink_up_w = self.shrink_down_w = 0.0
        flat_s = limit.above_w / limit.max_w_per_s
        self._has_slope = flat_s < limit.horizon_s  # else the row is flat over its whole horizon
        self._recent = WindowRow(min(flat_s, limit.horizon_s), path)
        self._highs: deque[Point] = deque()  # P(s) + slope s, falling
        self._lows: deque[Point] = deque()  # P(s) - slope s, rising
        self._entered = self._left = path.base
        self._old_low_w, self._old_high_w = -math.inf, math.inf
        self._look_back(path)

    def sustained_w_per_s(self, tick_s: float) -> float:
        """The slope that can go on for ever: windows reach one tick further back than they must, shrinks cost too."""
        age_s = self._recent.window_s
        return (self.limit.above_w - max(self.shrink_up_w, self.shrink_down_w)) / (age_s + tick_s)

    @property
    def low_w(self) -> float:
        return max(self._recent.top_w - self.limit.above_w, self._old_low_w) + self.shrink_down_w

    @property
    def high_w(self) -> float:
        return min(self._recent.bottom_w + self.limit.above_w, self._old_high_w) - self.shrink_up_w

    def advance(self, path: Path) -> None:
        """Take in the path's last point."""
        self._recent.advance(path)
        self._look_back(path)

    def project(self, times: FloatArray, *, now_s: float) -> tuple[FloatArray, FloatArray]:
        """Bounds on later instants: every young point is taken as if it were new, which is on the safe side."""
        aged_w = self.slope_w_per_s * np.maximum(times - now_s, 0.0)
        flat_w = np.maximum(self.limit.above_w, aged_w)
        low = np.maximum(self._recent.top_w - flat_w, self._old_low_w - aged_w) + self.shrink_down_w
        high = np.minimum(self._recent.bottom_w + flat_w, self._old_high_w + aged_w) - self.shrink_up_w
        return low, high

    def _look_back(self, path: Path) -> None:
        if not self._has_slope:
            return
        slope, now_s = self.slope_w_per_s, path.now_s
        times_s, powers_w, base = path.times_s, path.powers_w, path.base
        young_s, oldest_s = now_s - self._recent.window_s, now_s - self.horizon_s
        entered = max(self._entered - base, 0)
        while times_s[entered] <= young_s:
            self._enter(times_s[entered], powers_w[entered])
            entered += 1
        self._entered = entered + base
        highs, lows = self._highs, self._lows
        while highs and highs[0][0] < oldest_s:
            highs.popleft()
        while lows and lows[0][0] < oldest_s:
            lows.popleft()
        top = highs[0][1] if highs else -math.inf
        bottom = lows[0][1] if lows else math.inf
        left = max(self._left - base, 0)
        while times_s[left] < oldest_s:
            left += 1
        self._left = left + base
        if left > 0 and times_s[left] > oldest_s:
            edge_w = _between(path, left, oldest_s)
            top, bottom = max(top, edge_w + slope * oldest_s), min(bottom, edge_w - slope * oldest_s)
        self._old_low_w, self._old_high_w = top - slope * now_s, bottom + slope * now_s

    def _enter(self, t_s: float, power_w: float) -> None:
        rising, falling = power_w + self.slope_w_per_s * t_s, power_w - self.slope_w_per_s * t_s
        while self._highs and self._highs[-1][1] <= rising:
            self._highs.pop()
        while self._lows and self._lows[-1][1] >= falling:
            self._lows.pop()
        self._highs.append((t_s, rising))
        self._lows.append((t_s, falling))


def _between(path: Path, index: int, t_s: float) -> float:
    """The path's value at `t_s`, between points index - 1 and index (relative to the kept ones)."""
    t0_s, t1_s = path.times_s[index - 1], path.times_s[index]
    p0_w, p1_w = path.powers_w[index - 1], path.powers_w[index]
    return p0_w + (p1_w - p0_w) * (t_s - t0_s) / (t1_s - t0_s)


def _extreme_after(points: deque[Point], cutoffs: FloatArray, absent: float) -> FloatArray:
    """The first (so the most extreme) of the kept points at or after each cutoff; `absent` where there is none.

    Cutoffs ascend. One walk along the points costs less than to make arrays of them.
    """
    left, found = iter(points), []
    t_s, value = next(left)
    for cutoff_s in cutoffs.tolist():
        while t_s < cutoff_s:
            t_s, value = next(left, (math.inf, absent))
        found.append(value)
    return np.array(found)


def _columns(points: deque[Point]) -> tuple[FloatArray, FloatArray]:
    """Times and powers of at least one point."""
    times, powers = zip(*points, strict=True)
    return np.array(times), np.array(powers)
