"""When a meter's value was true: it stands until the meter's next refresh, and the driver knows only when it was read.

A value is as old as the meter's delay says and up to one refresh more. Whoever takes the wrong one of these ages
answers his own moves twice: with a refresh of 0.1 s a loop of 10 Hz runs away. So a bank of ages each rebuilds the load
from the meter and the battery of that age, and the one under which our moves leave least on the load is the age. A
value that is repeated keeps its time until a refresh must have been. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from controller.types import MeterSample, Quality, Reading

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the refresh, that a value may have stood when it was read
USUAL = 3  # of `SHARES`, without evidence: a value taken for older than it is does less harm than one for younger
SHORT_S = 0.01  # no longer than the quickest battery takes to move: which age counts is the same
MEMORY_SAMPLES = 50.0
BETTER = 0.9  # another age is taken when it leaves less than this share of what the present one does


class SampleClock:
    """One per meter; `stamped` with every reading, in order."""

    def __init__(self, update_s: float) -> None:
        """`update_s`: the meter's refresh."""
        self._update_s = update_s
        self._said: tuple[float, float | None] | None = None  # the newest value: power and counter
        self._read_s = -math.inf  # the last reading
        self._first_s = self._true_s = -math.inf  # the value's first reading, and when it was true
        self._loads_w: tuple[float, ...] = ()
        self._left_w2 = [0.0] * len(SHARES)
        self._age = USUAL

    def stamped(self, reading: Reading[MeterSample], *, battery_at: Callable[[float], float]) -> Reading[MeterSample]:
        """The reading with the time at which its value was true. `battery_at`: what the battery gave at an instant."""
        sample, read_s = reading.value, reading.t_mono_s
        if self._update_s <= SHORT_S or reading.quality is Quality.MISSING or not math.isfinite(sample.power_w):
            return reading
        said = (sample.power_w, sample.import_wh)
        stands = said == self._said and read_s - self._first_s < self._update_s
        if not stands and read_s > self._read_s:
            stood_s = min(self._update_s, read_s - self._read_s)
            self._try(tuple(sample.power_w + battery_at(read_s - share * stood_s) for share in SHARES))
            self._said, self._first_s, self._true_s = said, read_s, read_s - SHARES[self._age] * stood_s
        self._read_s = max(read_s, self._read_s)
        return replace(reading, t_mono_s=self._true_s)

    def _try(self, loads_w: tuple[float, ...]) -> None:
        """Which age leaves the least of our own moves on the load."""
        keep = 1.0 - 1.0 / MEMORY_SAMPLES
        before_w, self._loads_w = self._loads_w or loads_w, loads_w
        moved_w2 = [(now - before) ** 2 for now, before in zip(loads_w, before_w, strict=True)]
        self._left_w2 = [keep * left + moved for left, moved in zip(self._left_w2, moved_w2, strict=True)]
        best = min(range(len(SHARES)), key=self._left_w2.__getitem__)
        if self._left_w2[best] < BETTER * self._left_w2[self._age]:
            self._age = best
