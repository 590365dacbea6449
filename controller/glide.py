"""The way of all clocks down to their nodes' fallback caps: together, at the slope the contract lets the site move at.

FALLBACK is asked for when what is measured cannot be trusted, so nothing may depend on the battery catching what the
clocks let go. Every clock glides by the same share of its swing, which keeps the GPUs of one job at one clock. Pure.
"""

from __future__ import annotations

import numpy as np

from controller.types import FleetTable, FloatArray

STEEPNESS = 3.3  # (P - idle) ~ f^3.3 (A100, measured); memory-bound work is nearer to linear, so both bound a step


class FallbackGlide:
    """Where the clocks of one fleet are on their way; `stop` when FALLBACK is over."""

    def __init__(self) -> None:
        self._table: FleetTable | None = None
        self._level: FloatArray = np.empty(0)
        self._stepped_s = 0.0

    def stop(self) -> None:
        self._table = None

    def caps(
        self, now_s: float, table: FleetTable, *, last: FloatArray, fallback_mhz: FloatArray, slope_w_per_s: float
    ) -> FloatArray:
        """Caps (2, n) at `now_s`, none above `last`; `fallback_mhz` (n,) is where they end. Slope inf: at once."""
        if self._table is not table:
            self._table, self._stepped_s = table, now_s
            self._level = np.minimum(last[0] / table.cap_max[0], 1.0)
        swing_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
        elapsed_s = now_s - self._stepped_s
        share = slope_w_per_s * elapsed_s / max(swing_w, 1.0) if elapsed_s > 0.0 else 0.0
        self._stepped_s = now_s
        aim = np.minimum(fallback_mhz / table.cap_max[0], self._level)
        cubic = np.maximum(self._level**STEEPNESS - share, 0.0) ** (1.0 / STEEPNESS)
        self._level = np.maximum(aim, np.maximum(self._level - share, cubic))
        clock_mhz = np.where(self._level < 1.0, np.floor(self._level * table.cap_max[0] + 1e-6), np.inf)
        caps: FloatArray = np.minimum(last, np.vstack((clock_mhz, np.full(clock_mhz.shape, np.inf))))
        return caps
