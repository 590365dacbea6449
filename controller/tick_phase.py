"""When in its period a tick comes while the load rests on node reports: just after most of them have come.

Reports and ticks keep time by clocks of their own, so a report may wait up to a period for its tick. While a meter
serves that costs nothing. Without it the wait is age of the load that the battery answers, and ticks move by up to half
a period to where reports wait least; they go back to their own times when the load no longer rests on reports. Their
rate stays as it is. Pure; times in seconds.
"""

from __future__ import annotations

import math

import numpy as np

from controller.types import FloatArray, SiteImage

NODES_MAX = 64  # reports of more come all over the period: nothing to gain, and much to look at
BINS = 40  # of a period: 5 ms at 5 Hz
MEMORY_S = 5.0  # of arrivals: what they scatter by counts, where they came before does not
SLACK_S = 0.005  # after its arrival a report is read from its wire
GAIN_S_MIN = 0.01  # less is lost in what arrivals scatter by
LATE_MEMORY_S = 60.0  # of how much older stamps are than arrivals: each time that it is forgotten costs a wait
LAG_GAIN = 0.3  # of each tick: how long devices are waited for before reports are looked at

_WAITS = (np.arange(BINS)[:, None] - np.arange(BINS)) % BINS / BINS  # of a period, [tick, arrival]


class TickPhase:
    """One per site; `see` with every image."""

    def __init__(self, *, period_s: float) -> None:
        self._period_s = period_s
        self.offset_s = 0.0  # how much later than at its own time the next tick is to come; less than 0 is earlier
        self._tick = -1
        self._first_s = self._last_s = math.nan  # of the images
        self._lag_s = 0.0  # a tick at its own time is so much later in its period than the first was
        self._late_s = 0.0  # so long after its stamp a report may come
        self._known_s: dict[str, float] = {}  # the newest report of each node
        self._arrivals = np.zeros(BINS)  # in each part of a period from the first image on

    @property
    def younger_s(self) -> float:
        """How much less reports wait so than at the ticks' own times, on average."""
        if not self.offset_s:
            return 0.0
        waits_s = self._waits_s()
        return float(waits_s[self._part(self._lag_s)] - waits_s[self._part(self._lag_s + self.offset_s)])

    def see(self, image: SiteImage, *, is_on_nodes: bool) -> None:
        """`is_on_nodes`: the load rests on node reports, and its age counts."""
        if len(image.nodes) > NODES_MAX:
            self.offset_s = 0.0
            return
        is_tick, self._tick = image.tick != self._tick, image.tick
        if math.isnan(self._first_s):
            self._first_s = self._last_s = image.t_mono_s
        self._count(image)
        if is_tick:
            off_s = image.t_mono_s - self.offset_s - self._first_s - self._lag_s
            self._lag_s += LAG_GAIN * math.remainder(off_s, self._period_s)
        if not is_on_nodes:
            self.offset_s = 0.0
        elif is_tick:
            self._move()

    def _count(self, image: SiteImage) -> None:
        """What came since the last image; what that one did not have came after it, whatever its stamp says."""
        before_s, last_s, now_s = self._known_s, self._last_s, image.t_mono_s
        self._known_s = {r.value.node_id: r.t_mono_s for r in image.nodes}
        self._last_s = now_s
        known = self._known_s.items()
        came_s = np.array([t_s for n, t_s in known if before_s.get(n) != t_s and now_s - t_s < MEMORY_S])
        missed_s = last_s - came_s if before_s else np.empty(0)
        late_s = float(missed_s.max(where=missed_s < 0.5 * self._period_s, initial=0.0))
        self._late_s = max(self._late_s * math.exp(-(now_s - last_s) / LATE_MEMORY_S), late_s)
        since_s = came_s + self._late_s + SLACK_S - self._first_s
        parts = np.ceil(since_s / self._period_s * BINS).astype(np.int64) % BINS
        self._arrivals *= math.exp(-(now_s - last_s) / MEMORY_S)
        self._arrivals += np.bincount(parts, minlength=BINS)

    def _move(self) -> None:
        waits_s = self._waits_s()
        best = int(waits_s.argmin())
        if waits_s[self._part(self._lag_s + self.offset_s)] - waits_s[best] >= GAIN_S_MIN:
            self.offset_s = math.remainder(best * self._period_s / BINS - self._lag_s, self._period_s)

    def _part(self, t_s: float) -> int:
        return round(t_s / self._period_s * BINS) % BINS

    def _waits_s(self) -> FloatArray:
        """How long reports wait on average where ticks come at the start of each part."""
        found: FloatArray = _WAITS @ self._arrivals * (self._period_s / max(float(self._arrivals.sum()), 1e-9))
        return found
