"""What following leaves on the meter: the spread of metered power around the reference, per averaging time.

A row judged on means of `mean_s` loses exactly this spread from its allowance: between two instants of one window the
means of power and of the reference differ by no more than it. The envelope falls back slowly, so a ripple seen once
counts for a while. One excursion on its own (a crash, a trip) is left out, for the contingency dip already pays for
it; the overshoot to the other side that follows it is not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

DECAY_S = 60.0  # of the envelope: a few iterations' worth of memory beyond the longest window usually binding
# An excursion this many times the known spread, and beyond the floor given, is an event of its own...
EVENT_GAIN = 3.0
EVENT_S = 3.0  # ...that is over after this long (T_eff, the longest mean and the way back)
EVENT_RARE_S = 30.0  # ...unless the last one was less than this ago: what repeats is residual


class Residual:
    """Feeds on deviations, answers with spreads."""

    def __init__(self, means_s: Iterable[float], *, event_w: float) -> None:
        """`event_w`: a deviation smaller than this is never an event of its own."""
        self._tracks = {mean_s: Track(mean_s) for mean_s in {0.0, *means_s}}
        self._event_w = event_w
        self._event_until_s = -math.inf
        self._last_event_s = -math.inf
        self._is_event_up = False

    def add(self, t_s: float, deviation_w: float, *, is_held: bool) -> None:
        """Metered power less reference at `t_s`. Not `is_held`: the battery is at a limit, so this is no residual."""
        raw = self._tracks[0.0]
        is_event = abs(deviation_w) > max(self._event_w, EVENT_GAIN * raw.spread_w)
        if is_event and t_s >= self._event_until_s:
            if t_s - self._last_event_s > EVENT_RARE_S:
                self._event_until_s = t_s + EVENT_S
                self._is_event_up = deviation_w > 0.0
            self._last_event_s = t_s
        is_quiet = t_s >= self._event_until_s
        for track in self._tracks.values():
            track.add(
                t_s,
                deviation_w,
                counts_up=is_held and (is_quiet or not self._is_event_up),
                counts_down=is_held and (is_quiet or self._is_event_up),
            )

    def ensure(self, means_s: Iterable[float]) -> None:
        """Track these averaging times too."""
        for mean_s in means_s:
            self._tracks.setdefault(mean_s, Track(mean_s))

    def track(self, mean_s: float) -> Track:
        """The deviation on one averaging time."""
        return self._tracks[mean_s]


class Track:
    """Trailing mean over one averaging time, `mean_w`, and its slowly closing envelope: `low_w` <= 0 <= `high_w`."""

    __slots__ = ("_last_s", "_mean_s", "_samples", "_sum_ws", "high_w", "low_w", "mean_w")

    def __init__(self, mean_s: float) -> None:
        self._mean_s = mean_s
        self._samples: deque[tuple[float, float, float]] = deque()  # (until, length, deviation)
        self._sum_ws = 0.0
        self._last_s = math.nan
        self.high_w = self.low_w = 0.0
        self.mean_w = 0.0

    @property
    def spread_w(self) -> float:
        """r: peak to peak of the deviation's trailing means, lately."""
        return self.high_w - self.low_w

    def add(self, t_s: float, deviation_w: float, *, counts_up: bool, counts_down: bool) -> None:
        elapsed_s = t_s - self._last_s if math.isfinite(self._last_s) else 0.0
        self._last_s = t_s
        if elapsed_s < 0.0:
            return
        self._average(t_s, deviation_w, elapsed_s)
        keep = math.exp(-elapsed_s / DECAY_S)
        self.high_w *= keep
        self.low_w *= keep
        if counts_up:
            self.high_w = max(self.high_w, self.mean_w)
        if counts_down:
            self.low_w = min(self.low_w, self.mean_w)

    def _average(self, t_s: float, deviation_w: float, elapsed_s: float) -> None:
        if self._mean_s <= 0.0:
            self.mean_w = deviation_w
            return
        self._samples.append((t_s, elapsed_s, deviation_w))
        self._sum_ws += elapsed_s * deviation_w
        while len(self._samples) > 1 and self._samples[0][0] <= t_s - self._mean_s:
            _, length_s, old_w = self._samples.popleft()
            self._sum_ws -= length_s * old_w
        span_s = t_s - self._samples[0][0] + self._samples[0][1]
        self.mean_w = self._sum_ws / span_s if span_s > 0.0 else deviation_w
