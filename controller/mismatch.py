"""Judges the model of GPU power by what it cannot explain: watts drawn beyond all that a clock is said to allow.

What jobs do is not known, so power below the most that the likely curve allows at a locked clock proves nothing. Power
above it does: no job makes a card draw more than its full range, so the curve is wrong there. The excess is carried as
margin. Pure; times come with the readings.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from controller.allocate import Curves
from controller.fleet import ABOVE_CAP_FRAC, Fleet, FleetReadings
from controller.identify import at_limit
from controller.types import BoolArray, FloatArray

PERIOD_S = 0.5  # node telemetry comes at 5 Hz
LAG_S = 3.0  # a clock on its way, NVML's mean of a second, a report on its way: power may be of any clock since
JUDGED_CLOCK_FRAC = 0.92  # above it a curve says too little to be wrong (the same bound as for deaf caps)
TOLERANCE_FRAC = 0.05  # of the share: gain error of NVML, and the spread between cards
FOUND_FRAC = 0.01  # of the fleet's range in excess: less is a card, not the model
FOUND_S = 2.0
MOVE_FRAC_PER_S = 0.01  # of the fleet's range: a margin that comes at once is itself a drop that a battery must catch


class ModelWatch:
    """One per site; `saw` at most every tick."""

    def __init__(self) -> None:
        self.margin_w = 0.0  # follows the watts that no job can explain, as fast as caps may move without harm
        self.is_wrong = False
        self._seen_s = -np.inf
        self._since_s: float | None = None
        self._fleet: Fleet | None = None
        self._clocks: deque[tuple[float, FloatArray]] = deque()  # of the last LAG_S

    def saw(self, now_s: float, fleet: Fleet, readings: FleetReadings, curves: Curves) -> None:
        """The readings at `now_s` against the most that `curves` allow."""
        elapsed_s = now_s - self._seen_s
        if elapsed_s < PERIOD_S - 1e-6 or fleet.count == 0:
            return
        self._seen_s = now_s
        found_w = self._excess_w(now_s, fleet, readings, curves)
        table = fleet.table
        range_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
        step_w = MOVE_FRAC_PER_S * range_w * min(elapsed_s, 1.0)
        self.margin_w += min(max(found_w - self.margin_w, -step_w), step_w)
        if found_w <= FOUND_FRAC * range_w:
            self._since_s, self.is_wrong = None, False
            return
        if self._since_s is None:
            self._since_s = now_s
        self.is_wrong = now_s - self._since_s >= FOUND_S

    def _excess_w(self, now_s: float, fleet: Fleet, readings: FleetReadings, curves: Curves) -> float:
        table, clocks = fleet.table, readings.acks.caps[0]
        if fleet is not self._fleet:
            self._fleet = fleet
            self._clocks = deque([(now_s, table.cap_max[0])])  # what they were before is not known
        self._clocks.append((now_s, clocks))
        while self._clocks[0][0] < now_s - LAG_S:
            self._clocks.popleft()
        highest_mhz = np.max([clocks for _, clocks in self._clocks], axis=0)
        fraction = np.minimum(highest_mhz / table.cap_max[0], 1.0)
        if not (fraction < JUDGED_CLOCK_FRAC).any():
            return 0.0
        range_w = table.peak_w - table.idle_w
        most_w = table.idle_w + (1.0 + TOLERANCE_FRAC) * curves.power_share(fraction) * range_w
        # What a power limit holds the clock does not; under a ceiling the limit is counted, and nothing is missed.
        power_w = readings.power_w
        is_held = at_limit(readings, peak_w=table.peak_w) & (power_w <= ABOVE_CAP_FRAC * readings.acks.caps[1])
        is_judged: BoolArray = readings.is_read & np.isfinite(power_w) & (fraction < JUDGED_CLOCK_FRAC) & ~is_held
        beyond_w = np.where(is_judged, np.maximum(power_w - most_w, 0.0), 0.0)
        return float(beyond_w @ table.stands_for)
