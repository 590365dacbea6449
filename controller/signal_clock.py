"""Whether the wall clock may be believed when a grid signal is judged (pure; both times are arguments).

A clock that stepped is in doubt until it ran evenly for a while. One without a source of time is not asked for the
grace, in which the order of messages counts instead, and in doubt from then on. What is in doubt loosens nothing.
"""

from __future__ import annotations

RESYNC_S = 300.0  # a stepped wall clock is trusted again after it ran evenly for so long
CLOCK_STEP_S_MIN = 1.0  # slewing by NTP never reaches it between two steps


class WallClock:
    """What the rules know of the wall clock; `watch` whenever they are told both times."""

    def __init__(self, *, skew_s: float, grace_s: float) -> None:
        self._skew_s = skew_s
        self._grace_s = grace_s
        self._utc_offset_s: float | None = None
        self._stepped_s: float | None = None
        self._unsynced_since_s: float | None = None
        self._is_lost = False  # unsynchronised for longer than the grace

    @property
    def is_suspect(self) -> bool:
        """It stepped, or had no source of time for longer than the grace."""
        return self._stepped_s is not None or self._is_lost

    @property
    def has_source(self) -> bool:
        """Something disciplines it."""
        return self._unsynced_since_s is None

    def watch(self, now_s: float, utc_s: float) -> None:
        """A wall clock that parts from the monotonic one by more than the skew is not trusted until it ran evenly."""
        offset_s = utc_s - now_s
        if self._utc_offset_s is None:
            self._utc_offset_s = offset_s
        elif abs(offset_s - self._utc_offset_s) > max(self._skew_s, CLOCK_STEP_S_MIN):
            self._utc_offset_s = offset_s
            self._stepped_s = now_s
        elif self._stepped_s is not None and now_s - self._stepped_s >= RESYNC_S:
            self._stepped_s = None

    def watch_source(self, now_s: float, *, is_synced: bool) -> None:
        """A wall clock without a source of time goes on evenly for a while; for the grace it is only not asked."""
        if is_synced:
            self._unsynced_since_s, self._is_lost = None, False
        elif self._unsynced_since_s is None:
            self._unsynced_since_s = now_s
        if self._unsynced_since_s is not None and now_s - self._unsynced_since_s > self._grace_s:
            self._is_lost = True
