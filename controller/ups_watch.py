"""What UPSes say of themselves, and the emergency cap on the GPUs behind one whose battery will soon be empty.

What hangs on a UPS on its battery is not on the grid: less of it lasts longer, and comes back to the grid as less. The
cap comes down at the contract's slope, so that a UPS that only says so costs the grid no step. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controller.feeders import hangs
from controller.settings import UpsSettings
from controller.types import Feeder, FleetTable, Quality, Reading, UpsSample

SURE_S = 2.0  # it must say so for this long: two looks at a device that is read once a second
UNKNOWN_S = 60.0  # on battery for so long without a word on the time left counts as low
OVER_S = 10.0  # on the grid again for so long: caps are given back


class UpsWatch:
    """Remembers since when each UPS has been on its battery, and since when it is low."""

    def __init__(self, ups: Sequence[UpsSettings], *, fallback_frac: float) -> None:
        """`fallback_frac`: what GPUs at their fallback caps draw, of their nameplate."""
        self._ups = {u.name: u for u in ups}
        self._fallback_frac = fallback_frac
        self._on_s: dict[str, float] = {}  # on battery since
        self._seen_s: dict[str, float] = {}  # and last seen so
        self._low_s: dict[str, float] = {}

    @property
    def is_low(self) -> bool:
        """Whether GPUs are capped for a UPS."""
        return bool(self._low_s)

    def see(self, now_s: float, readings: Mapping[str, Reading[UpsSample]]) -> None:
        """The newest word of each; one that falls silent on its battery stays where it was."""
        for name, settings in self._ups.items():
            reading = readings.get(name)
            if reading is None or reading.quality is Quality.MISSING:
                continue
            if reading.value.is_on_battery:
                self._on_s.setdefault(name, now_s)
                self._seen_s[name] = now_s
                on_s, minutes = now_s - self._on_s[name], reading.value.minutes_left
                is_low = on_s >= UNKNOWN_S if minutes is None else minutes <= settings.low_minutes
                if is_low and on_s >= SURE_S:
                    self._low_s.setdefault(name, now_s)
            elif now_s - self._seen_s.get(name, -math.inf) >= OVER_S:
                self._on_s.pop(name, None)
                self._low_s.pop(name, None)

    def at(self, table: FleetTable, t_s: float, *, slope_w_per_s: float) -> tuple[Feeder, ...]:
        """What the GPUs behind each low UPS may draw at `t_s`: from their nameplate down to fallback at the slope."""
        found = []
        for name in sorted(self._low_s):
            is_below = hangs(table, self._ups[name].node_patterns)
            full_w = float((table.peak_w * table.stands_for)[is_below].sum())
            least_w, gone_s = self._fallback_frac * full_w, max(0.0, t_s - self._low_s[name])
            room_w = max(least_w, full_w - slope_w_per_s * gone_s) if math.isfinite(slope_w_per_s) else least_w
            found.append(Feeder(name, room_w, is_below))
        return tuple(found)
