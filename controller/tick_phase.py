"""When in its period a tick comes while the load rests on node reports: just after most of them have come.

Reports and ticks keep time by clocks of their own, so a report may wait up to a period for its tick. While a meter
serves that costs nothing. Without it the wait is age of the load that the battery answers, and ticks move by up to half
a period to where reports wait least; they go back to their own times when the load no longer rests on reports. Their
rate stays as it is. Pure; times in seconds.
"""

from __future__ import annotations

import math

import numpy as np

from controller.estimate_nodes import PERIOD_S
from controller.types import FloatArray, SiteImage

BINS = 40  # of a period: 5 ms at 5 Hz
MEMORY_S = 3.0  # of arrivals: what they scatter by counts, where they came before does not
SLACK_S = 0.005  # after its arrival a report is read from its wire
GAIN_S_MIN = 0.01  # less is lost in what arrivals scatter by
LAG_GAIN = 0.1  # of each tick: how long devices are waited for before reports are looked at

_WAITS = (np.arange(BINS)[:, None] - np.arange(BINS)) % BINS / BINS  # of a period, [tick, arrival]


class TickPhase:
    """One per site; `see` with every image."""

    def __init__(self, *, period_s: float) -> None:
        self._period_s = period_s
        self._is_worthwhile = period_s >= PERIOD_S  # reports are added up no more often
        self._tick = -1
        self._is_begun = False
        self.offset_s = 0.0  # how much later than at its own time the next tick is to come; less than 0 is earlier
        self._begin(-math.inf)

    def _begin(self, now_s: float) -> None:
        self._first_s = self._last_s = now_s  # of the images since reports carry the load
        self._lag_s = 0.0  # a tick at its own time is so much later in its period than the first was
        self._read_s = SLACK_S  # after its stamp a report has surely come
        self._known_s: dict[str, float] = {}  # the newest report of each node
        self._arrivals = np.zeros(BINS)  # in each part of a period from the first on

    @property
    def younger_s(self) -> float:
        """How much less reports wait so than at the ticks' own times, on average."""
        if not self.offset_s:
            return 0.0
        waits_s = self._waits_s()
        return float(waits_s[self._part(self._lag_s)] - waits_s[self._part(self._lag_s + self.offset_s)])

    def see(self, image: SiteImage, *, is_on_nodes: bool) -> None:
        """`is_on_nodes`: the load rests on node reports, and its age counts."""
        is_tick, self._tick = image.tick != self._tick, image.tick
        if not is_on_nodes or not self._is_worthwhile:
            self._is_begun, self.offset_s = False, 0.0
            return
        if is_tick and not self._is_begun:
            self._is_begun = True
            self._begin(image.t_mono_s)
        if self._is_begun:
            self._count(image)
        if is_tick:
            off_s = image.t_mono_s - self.offset_s - self._first_s - self._lag_s
            self._lag_s += LAG_GAIN * self._wrapped(off_s)
            self._move()

    def _count(self, image: SiteImage) -> None:
        """What came since the last image; what that one did not have came after it, whatever its stamp says."""
        before_s, last_s, now_s = self._known_s, self._last_s, image.t_mono_s
        self._known_s = {r.value.node_id: r.t_mono_s for r in image.nodes}
        self._last_s = now_s
        known = self._known_s.items()
        came_s = np.array([t_s for n, t_s in known if before_s.get(n) != t_s and now_s - t_s < MEMORY_S])
        if before_s and len(came_s):
            missed_s = last_s - came_s
            late_s = float(missed_s.max(where=missed_s < 0.5 * self._period_s, initial=0.0))
            self._read_s = max(self._read_s, late_s + SLACK_S)
        parts = np.ceil((came_s + self._read_s - self._first_s) / self._period_s * BINS).astype(np.int64) % BINS
        self._arrivals *= math.exp(-(now_s - last_s) / MEMORY_S)
        self._arrivals += np.bincount(parts, minlength=BINS)

    def _move(self) -> None:
        waits_s = self._waits_s()
        best = int(waits_s.argmin())
        if waits_s[self._part(self._lag_s + self.offset_s)] - waits_s[best] >= GAIN_S_MIN:
            self.offset_s = self._wrapped(best * self._period_s / BINS - self._lag_s)

    def _part(self, t_s: float) -> int:
        return round(t_s / self._period_s * BINS) % BINS

    def _waits_s(self) -> FloatArray:
        """How long reports wait on average where ticks come at the start of each part."""
        found: FloatArray = _WAITS @ self._arrivals * (self._period_s / max(float(self._arrivals.sum()), 1e-9))
        return found

    def _wrapped(self, t_s: float) -> float:
        return t_s - self._period_s * round(t_s / self._period_s)
