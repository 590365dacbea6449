"""Least and greatest metered power per second of the last ten minutes: the envelope's own memory of the meter.

Shares nothing with the contract's interval on purpose. One ring per metering mean of the contract; O(1) per tick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from controller.types import PccRing

STEP_S = 1.0
ENTRIES = 601  # ten minutes, the longest horizon of any row, and the running second


class Ring:
    """One ring. Entries live newest first in a buffer twice as long, so that a view needs no copy."""

    def __init__(self, *, mean_s: float) -> None:
        self.mean_s = mean_s
        self._low = np.full(2 * ENTRIES, np.inf)
        self._high = np.full(2 * ENTRIES, -np.inf)
        self._head = ENTRIES  # where the running second lies
        self._opened_s: float | None = None
        self._recent: deque[tuple[float, float]] = deque()  # (since, power) inside the mean's window

    def add(self, t_s: float, power_w: float) -> None:
        """Metered power, true at `t_s`; times never go back."""
        if self._opened_s is None:
            self._opened_s = t_s
        while t_s - self._opened_s >= STEP_S:
            self._open_next()
        mean_w = self._mean(t_s, power_w)
        self._low[self._head] = min(self._low[self._head], mean_w)
        self._high[self._head] = max(self._high[self._head], mean_w)

    def view(self, now_s: float) -> PccRing:
        """The ring as the envelope reads it at `now_s`; valid until the next `add`."""
        entries = slice(self._head, self._head + ENTRIES)
        head_s = now_s - self._opened_s if self._opened_s is not None else 0.0
        return PccRing(STEP_S, head_s, self.mean_s, self._low[entries], self._high[entries])

    def _open_next(self) -> None:
        assert self._opened_s is not None
        self._opened_s += STEP_S
        if self._head == 0:
            self._low[ENTRIES:] = self._low[:ENTRIES]
            self._high[ENTRIES:] = self._high[:ENTRIES]
            self._head = ENTRIES
        self._head -= 1
        self._low[self._head], self._high[self._head] = np.inf, -np.inf

    def _mean(self, t_s: float, power_w: float) -> float:
        """Trailing time-weighted mean; a shorter past counts as what there is."""
        self._recent.append((t_s, power_w))
        if self.mean_s <= 0.0 or len(self._recent) == 1:
            if self.mean_s <= 0.0:
                self._recent.clear()
            return power_w
        cutoff_s = t_s - self.mean_s
        while len(self._recent) > 2 and self._recent[1][0] <= cutoff_s:
            self._recent.popleft()
        area, (last_s, last_w), (next_s, next_w) = 0.0, self._recent[0], self._recent[1]
        if last_s < cutoff_s < next_s:  # the line begins at the window's edge, however long ago its first point was
            last_w += (next_w - last_w) * (cutoff_s - last_s) / (next_s - last_s)
            last_s = cutoff_s
        first_s = last_s
        for k in range(1, len(self._recent)):
            point_s, point_w = self._recent[k]
            area += 0.5 * (last_w + point_w) * (point_s - last_s)
            last_s, last_w = point_s, point_w
        span_s = last_s - first_s
        return area / span_s if span_s > 0.0 else power_w


class Rings:
    """One ring per mean."""

    def __init__(self, means_s: Iterable[float]) -> None:
        self._rings = {mean_s: Ring(mean_s=mean_s) for mean_s in sorted(set(means_s) | {0.0})}

    def cover(self, means_s: Iterable[float]) -> None:
        """Keep a ring for each of these means as well; a new one begins empty."""
        for mean_s in sorted(set(means_s) - self._rings.keys()):
            self._rings[mean_s] = Ring(mean_s=mean_s)

    def add(self, t_s: float, power_w: float) -> None:
        for ring in self._rings.values():
            ring.add(t_s, power_w)

    def at(self, mean_s: float, now_s: float) -> PccRing:
        """The ring of one metering mean as it stands."""
        return self._rings[mean_s].view(now_s)
