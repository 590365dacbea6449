"""The grid target, now and lately, and the path by which the admissible interval judges it: the two move together.

A meter tells of an instant that is past, so what was wanted then must still be known. Pure; powers in watts.
"""

from __future__ import annotations

from collections import deque

from controller.contract import AdmissibleInterval

KEEP_S = 5.0  # beside twice the meter's delay: no sample that comes is older


class TargetPath:
    """One per tracker; `go` once per tick, `jump` where the target was, or has to be, another."""

    def __init__(self, interval: AdmissibleInterval, *, start_s: float, start_w: float) -> None:
        self._interval = interval
        self._past: deque[tuple[float, float]] = deque([(start_s, start_w)])
        self.now_w = start_w

    def at(self, t_s: float) -> float:
        """The target that was in force at `t_s`."""
        for since_s, target_w in reversed(self._past):
            if since_s <= t_s:
                return target_w
        return self._past[0][1]

    def go(self, now_s: float, target_w: float, *, delay_s: float) -> None:
        """On to the target of this tick. The meter is `delay_s` late."""
        self.now_w = target_w
        self._interval.push(max(now_s, self._interval.now_s), target_w)
        self._past.append((now_s, target_w))
        oldest_s = now_s - (KEEP_S + 2.0 * delay_s)
        while len(self._past) > 2 and self._past[1][0] < oldest_s:
            self._past.popleft()

    def jump(self, now_s: float, target_w: float, *, since_s: float) -> None:
        """The target is another from now on, and for meters since then."""
        self.now_w = target_w
        self._interval.reanchor(now_s, target_w)
        self._past.append((since_s, target_w))

    def strayed(self, by_w: float) -> None:
        """Power was off by that much: the rows must know of it, though the target stays."""
        self._interval.push(self._interval.now_s, self.now_w + by_w)
        self._interval.push(self._interval.now_s, self.now_w)
