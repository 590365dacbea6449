"""Whether a meter begins to stick: power and energy counter repeat themselves together for longer than they ever did.

It takes some samples more until a meter is called stuck. Under our own following nothing may be made of them: load is
rebuilt from the meter and the battery's power, so that one which stands still shows our own moves as load, and they
are answered again at every tick. A counter that often stands says nothing, nor does a meter without one. Pure.
"""

from __future__ import annotations

import math
from collections import deque

from controller.settings import SiteSettings
from controller.types import Following, MeterSample, Quality, Reading

RUNS, RUNS_MIN = 100, 20  # stands of late that count, and how many must be known
LONGER = 2  # times the longest of them


class Standstill:
    """One per meter: `take` every reading, `stuck` while the meter is called so; then look at `is_new`."""

    def __init__(self, site: SiteSettings) -> None:
        self._is_loop_ours = site.battery is not None and site.following is Following.SOFTWARE
        self._said: tuple[float, float] | None = None
        self._read_s = -math.inf
        self._count = self._counter_count = 0  # readings of the same power and count, and of the same count
        self._runs: deque[int] = deque(maxlen=RUNS)  # readings for which the counter stood
        self._is_stuck = False

    @property
    def is_new(self) -> bool:
        """It stands still, and its counter for longer than it usually does: what it says is no news."""
        if self._count < LONGER or len(self._runs) < RUNS_MIN:
            return False
        return self._is_loop_ours and self._counter_count >= LONGER * max(self._runs)

    def take(self, reading: Reading[MeterSample]) -> None:
        """What was read at this tick; a reading that comes again is none."""
        sample = reading.value
        if reading.t_mono_s <= self._read_s or reading.quality is Quality.MISSING or sample.import_wh is None:
            return
        self._read_s, before, self._said = reading.t_mono_s, self._said, (sample.power_w, sample.import_wh)
        self._count = self._count + 1 if self._said == before else 1
        if before is not None and sample.import_wh == before[1]:
            self._counter_count += 1
            return
        if self._counter_count and not self._is_stuck:
            self._runs.append(self._counter_count)
        self._counter_count, self._is_stuck = 1, False

    def stuck(self) -> None:
        """How long it stands now is no measure of a sound meter."""
        self._is_stuck = True
