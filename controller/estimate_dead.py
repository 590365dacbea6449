"""The battery's dead time, from how it answers its set-points: it lets pass so long before it begins to move.

A bank of dead times each predicts the next sample from the last one and the orders of that time before; the one that
leaves far less than none does is the dead time. An answer that is read late looks the same, so only samples that
meter and nodes bear out may come here. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

DEADS_S = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5)
MEMORY_SAMPLES = 100.0
KEPT_S = 60.0  # what was seen of it stands so long
SAMPLES_MIN = 20  # that moved enough to tell
BETTER = 0.5  # of what none leaves
FIT = 0.25  # of what the samples moved: a dead time that leaves more of it is none


class DeadTime:
    """One per battery, of samples that the meter bears out and in which much moved."""

    def __init__(self) -> None:
        self._left_w2 = [0.0] * len(DEADS_S)
        self._moved_w2, self._count = 0.0, 0
        self._dead_s, self._answered_s = 0.0, -math.inf

    def dead_s(self, now_s: float) -> float:
        """How long after an order it begins to move; 0 without evidence of late."""
        return self._dead_s if now_s - self._answered_s <= KEPT_S else 0.0

    def answered(self, t_s: float, power_w: float, *, before_w: float, predict: Callable[[float], float]) -> None:
        """A sample of `t_s`, after one of `before_w`; `predict`: what a dead time makes of it."""
        if t_s - self._answered_s > KEPT_S:
            self._left_w2, self._moved_w2, self._count, self._dead_s = [0.0] * len(DEADS_S), 0.0, 0, 0.0
        keep = 1.0 - 1.0 / MEMORY_SAMPLES
        self._left_w2 = [
            keep * left + (power_w - predict(dead_s)) ** 2 for left, dead_s in zip(self._left_w2, DEADS_S, strict=True)
        ]
        self._moved_w2 = keep * self._moved_w2 + (power_w - before_w) ** 2
        self._count += 1
        self._answered_s = t_s
        best = min(range(len(DEADS_S)), key=self._left_w2.__getitem__)
        least_w2 = min(BETTER * self._left_w2[0], FIT * self._moved_w2)
        if self._count >= SAMPLES_MIN:
            self._dead_s = DEADS_S[best] if self._left_w2[best] < least_w2 else 0.0
