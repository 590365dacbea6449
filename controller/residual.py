"""What following leaves on the meter: the spread of metered power around the reference, per averaging time.

A row judged on means of `mean_s` loses exactly this spread from its allowance: between two instants of one window the
means of power and of the reference differ by no more than it. The envelope falls back slowly, so a ripple seen once
counts for a while. One excursion on its own (a crash, a trip) is an event, not residual: it is left out here, for the
contingency dip pays for it beforehand and the path takes it in afterwards.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

METERED_MEAN_S = 1.0  # the averaging time that ramp, swing and rate rows are assumed to be metered on
EVENT_FRAC = 0.05  # of the registered peak: a deviation beyond it, once, is an event and not residual
# Of the envelope. Rows judge pairs of instants up to a minute apart, and the target rises by what the residual of the
# first leaves; one that fades within that minute lets it rise by more than the residual of the second allows.
DECAY_S = 300.0
# An excursion this many times the known spread, and beyond the floor given, is an event of its own...
EVENT_GAIN = 3.0
EVENT_S = 3.0  # ...that is over after this long (T_eff, the longest mean and the way back)
EVENT_RARE_S = 30.0  # ...unless the last one was less than this ago: what repeats is residual
DOUBT_S = 1.5  # a deviation counts only after this long, so that an event can still claim it


class Track:
    """Trailing mean over one averaging time, `mean_w`, and its slowly closing envelope: `low_w` <= 0 <= `high_w`."""

    __slots__ = ("_doubtful", "_last_s", "_mean_s", "_samples", "_sum_ws", "high_w", "low_w", "mean_w")

    def __init__(self, mean_s: float) -> None:
        self._mean_s = mean_s
        self._samples: deque[tuple[float, float, float]] = deque()  # (until, length, deviation)
        self._doubtful: deque[tuple[float, float]] = deque()  # (when, mean), not yet in the envelope
        self._sum_ws = 0.0
        self._last_s = math.nan
        self.high_w = self.low_w = 0.0
        self.mean_w = 0.0

    @property
    def spread_w(self) -> float:
        """r: peak to peak of the deviation's trailing means, lately."""
        return self.high_w - self.low_w

    def add(self, t_s: float, deviation_w: float, *, counts: bool) -> None:
        """Average the deviation; take what is no longer in doubt into the envelope."""
        elapsed_s = t_s - self._last_s if math.isfinite(self._last_s) else 0.0
        self._last_s = t_s
        self._average(t_s, deviation_w, elapsed_s)
        keep = math.exp(-elapsed_s / DECAY_S)
        self.high_w *= keep
        self.low_w *= keep
        if counts:
            self._doubtful.append((t_s, self.mean_w))
        while self._doubtful and self._doubtful[0][0] <= t_s - DOUBT_S:
            _, mean_w = self._doubtful.popleft()
            self.high_w = max(self.high_w, mean_w)
            self.low_w = min(self.low_w, mean_w)

    def claim(self) -> None:
        """An event takes what is still in doubt."""
        self._doubtful.clear()

    def restart(self) -> None:
        """Forget the samples in the mean: they belong to a reference that is gone."""
        self._samples.clear()
        self._doubtful.clear()
        self._sum_ws = 0.0
        self.mean_w = 0.0

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
        self.mean_w = self._sum_ws / max(span_s, self._mean_s)


class Residual:
    """Feeds on deviations, answers with spreads."""

    def __init__(self, means_s: Iterable[float], *, event_w: float) -> None:
        """`event_w`: a deviation smaller than this is never an event of its own."""
        self._tracks = {mean_s: Track(mean_s) for mean_s in {0.0, *means_s}}
        self._event_w = event_w
        self._event_until_s = -math.inf
        self._last_event_s = -math.inf
        self.is_event = False

    def add(self, t_s: float, deviation_w: float) -> None:
        """Metered power less reference at `t_s`, while the battery is able to hold it."""
        if abs(deviation_w) > max(self._event_w, EVENT_GAIN * self._tracks[0.0].spread_w):
            self.begin_event(t_s)
        self.is_event = t_s < self._event_until_s
        for track in self._tracks.values():
            track.add(t_s, deviation_w, counts=not self.is_event)

    def begin_event(self, t_s: float) -> None:
        """Something happened that is not the follower's doing; repeated within half a minute it counts after all."""
        is_rare = t_s - self._last_event_s > EVENT_RARE_S
        if t_s >= self._event_until_s:
            if is_rare:
                self._event_until_s = t_s + EVENT_S
                for track in self._tracks.values():
                    track.claim()
            self._last_event_s = t_s

    def jumped(self, t_s: float) -> None:
        """The reference itself was moved at once, by order: what power needs to arrive is not the follower's doing."""
        self._event_until_s = t_s + EVENT_S
        self.restart()

    def restart(self) -> None:
        """The reference was moved, or could not be held: what was averaged so far means nothing."""
        for track in self._tracks.values():
            track.restart()

    def ensure(self, means_s: Iterable[float]) -> None:
        """Track these averaging times too."""
        for mean_s in means_s:
            self._tracks.setdefault(mean_s, Track(mean_s))

    def track(self, mean_s: float) -> Track:
        """The deviation on one averaging time."""
        return self._tracks[mean_s]


class Unseen:
    """What following leaves while no meter shows it, and for as long after as a row's window reaches back to then.

    What a meter would show is known late, from nodes, and not from the first second on: until then all of the load's
    ripple counts.
    """

    def __init__(self, mean_s: float, *, event_w: float) -> None:
        self._mean_s = mean_s
        self._residual = Residual((mean_s,), event_w=event_w)
        self._missed_s = self._loose_s = self._unknown_s = self._known_s = -math.inf
        self._since_s = math.inf
        self._ripple_w = 0.0

    def missed(self, now_s: float, *, ripple_w: float, is_followed: bool) -> None:
        """No meter at `now_s`; the load usually is as far as `ripple_w` from its mean, up and down.

        `is_followed`: somebody else tells of the load, so that not all of it is left.
        """
        if now_s - self._missed_s > self._mean_s:
            self._since_s = now_s
        self._missed_s, self._ripple_w = now_s, ripple_w
        if now_s - self._since_s > 0.5 * self._mean_s:  # a sample or two are in no mean's greater part
            self._unknown_s = now_s
        if not is_followed:
            self._loose_s = now_s

    def add(self, t_s: float, deviation_w: float | None) -> None:
        """What would be metered less reference at `t_s`; None while the battery cannot hold it."""
        if deviation_w is None or t_s - self._known_s > self._mean_s:
            self._residual.restart()
        if deviation_w is not None:
            self._residual.add(t_s, deviation_w)
            self._known_s = t_s

    def is_within(self, now_s: float, window_s: float) -> bool:
        """A row of this window looks back on a time that no meter showed, of more than a sample or two."""
        return now_s - self._unknown_s <= window_s

    def left_w(self, now_s: float, window_s: float) -> float:
        """r of a row of this window; 0 where a meter showed all of it."""
        if now_s - self._missed_s > window_s:
            return 0.0
        ways = 1.0 if now_s - self._loose_s > window_s else 2.0
        return max(ways * self._ripple_w, self._residual.track(self._mean_s).spread_w)
