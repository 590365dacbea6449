"""The way of all clocks down to their nodes' fallback caps: together, at the slope the contract lets the site move at.

FALLBACK is asked for when what is measured cannot be trusted, so nothing may depend on the battery catching what the
clocks let go. What goes down beside them has its part of the rows first: a battery that takes no orders any more lets
go of what it holds, by itself. Every clock glides by the same share of its swing, which keeps the GPUs of one job at
one clock. Pure.
"""

from __future__ import annotations

import numpy as np

from controller.types import FleetTable, FloatArray

STEEPNESS = 3.3  # (P - idle) ~ f^3.3 (A100, measured); memory-bound work is nearer to linear, so both bound a step
LEAST_FRAC = 0.1  # of the slope, whatever rows seem to leave: what says so may be what cannot be trusted
STEP_S = 1.0  # a clock is written once a second, as the envelope holds it, however often plans are made


class FallbackGlide:
    """Where the clocks of one fleet are on their way; `stop` when FALLBACK is over."""

    def __init__(self) -> None:
        self._table: FleetTable | None = None
        self._level: FloatArray = np.empty(0)
        self._stepped_s = 0.0

    def stop(self) -> None:
        self._table = None

    def caps(
        self,
        now_s: float,
        table: FleetTable,
        *,
        last: FloatArray,
        fallback_mhz: FloatArray,
        slope_w_per_s: float,
        fall_w: float,
    ) -> FloatArray:
        """Caps (2, n) at `now_s`, none above `last`; `fallback_mhz` (n,) is where they end. Slope inf: at once.

        `fall_w` is what rows leave for a step of caps beside all that falls by itself; inf without a row.
        """
        if self._table is not table:
            self._table, self._stepped_s = table, now_s
            self._level = np.minimum(last[0] / table.cap_max[0], 1.0)
        elapsed_s = now_s - self._stepped_s
        if elapsed_s >= STEP_S:
            self._stepped_s = now_s
            step_w = slope_w_per_s * elapsed_s
            step_w = min(step_w, max(fall_w, LEAST_FRAC * step_w))
            swing_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
            self._step(step_w / max(swing_w, 1.0), fallback_mhz / table.cap_max[0])
        clock_mhz = np.where(self._level < 1.0, np.floor(self._level * table.cap_max[0] + 1e-6), np.inf)
        caps: FloatArray = np.minimum(last, np.vstack((clock_mhz, np.full(clock_mhz.shape, np.inf))))
        return caps

    def _step(self, share: float, aim: FloatArray) -> None:
        """Every level by `share` of its swing, by either curve; none below `aim`, or further where it is lower."""
        level = self._level
        cubic = np.maximum(level**STEEPNESS - share, 0.0) ** (1.0 / STEEPNESS)
        self._level = np.maximum(np.minimum(aim, level), np.maximum(level - share, cubic))
