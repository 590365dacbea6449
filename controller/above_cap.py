"""GPUs that draw more than their power limit lets them: others make room first, then their own limits step down.

A limit that does not hold says nothing of what its GPU may draw, so such a GPU counts at what it draws. One that goes
on beyond its limit gets a lower one, step by step, and its own back the same way once it has kept to it. Pure.
"""

from __future__ import annotations

import numpy as np

from controller.fleet import Fleet, FleetReadings
from controller.types import FloatArray, replace

FOUND_PERIODS = 5.0  # FAULTS G7: an averaging window explains less
STEP_PERIODS = 5.0  # between two steps of one limit: until the last has shown
STEP_FRAC = 0.95
KEPT_S = 60.0  # within its limit for so long: it gets a step of it back


class AboveCap:
    """One site's; `counted` at every cycle, `lowered` with every plan."""

    def __init__(self, *, period_s: float) -> None:
        self._period_s = period_s
        self._fleet: Fleet | None = None
        self._limits = np.empty(0)  # lowered limits (n,), inf: its own
        self._stepped_s = np.empty(0)
        self._is_above = np.empty(0, dtype=np.bool_)
        self.is_found = False

    def counted(self, now_s: float, fleet: Fleet, readings: FleetReadings) -> FleetReadings:
        """`readings` in which GPUs found above their limits count at what they draw."""
        if fleet is not self._fleet:
            self._fleet = fleet
            self._limits, self._stepped_s = np.full(fleet.count, np.inf), np.full(fleet.count, -np.inf)
            self._is_above = np.zeros(fleet.count, dtype=np.bool_)
        if readings.above_s is None:
            if self.is_found:
                self._is_above, self.is_found = np.zeros(fleet.count, dtype=np.bool_), False
            return readings
        self._is_above = now_s - readings.above_s >= FOUND_PERIODS * self._period_s
        self.is_found = bool(self._is_above.any())
        if not self.is_found:
            return readings
        acks = readings.acks
        bound_w = np.where(np.isnan(acks.fixed_w), 0.0, acks.fixed_w)
        fixed_w = np.where(self._is_above, np.maximum(readings.power_w, bound_w), acks.fixed_w)
        return replace(readings, acks=replace(acks, fixed_w=fixed_w))

    def lowered(self, now_s: float, readings: FleetReadings, caps: FloatArray) -> FloatArray:
        """`caps` (2, n) with the limits that go down because they do not hold, or are on their way back."""
        fleet, above_s = self._fleet, readings.above_s
        if fleet is None or not (self.is_found or np.isfinite(self._limits).any()):
            return caps
        table, since_s = fleet.table, now_s - self._stepped_s
        others_first_s = (FOUND_PERIODS + 1.0) * self._period_s  # the plan before this one has made room
        is_long = self._is_above if above_s is None else self._is_above & (now_s - above_s >= others_first_s)
        goes_down = is_long & (since_s >= STEP_PERIODS * self._period_s)
        goes_up = ~self._is_above & np.isfinite(self._limits) & (since_s >= KEPT_S)
        now_w = np.minimum(np.minimum(readings.acks.caps[1], self._limits), table.peak_w)
        lower_w = np.maximum(np.floor(STEP_FRAC * now_w), table.cap_min[1])
        moved_w = np.where(goes_down, lower_w, np.where(goes_up, self._limits / STEP_FRAC, self._limits))
        self._limits = np.where(moved_w < table.peak_w, moved_w, np.inf)
        self._stepped_s = np.where(goes_down | goes_up, now_s, self._stepped_s)
        return np.vstack((caps[0], np.minimum(caps[1], self._limits)))
