"""What the load bank drew at the meter's instant, so that it is not taken for load of the site's own.

Between two readings power is on a straight line; after the newest it stands. A bank that does not report counts as
drawing nothing: what the meter shows is then all the site's. Pure: times come with the readings.
"""

from __future__ import annotations

import math
from collections import deque

from controller.types import LoadBankSample, Quality, Reading

HISTORY_S = 3.0  # meters older than this are replaced, not corrected


class BankHistory:
    """The bank's power over the last seconds."""

    def __init__(self) -> None:
        self._history: deque[tuple[float, float]] = deque()

    def take(self, reading: Reading[LoadBankSample] | None) -> None:
        """The newest reading; None on a site without a bank."""
        if reading is None or reading.quality is Quality.MISSING or not math.isfinite(reading.value.power_w):
            self._history.clear()
            return
        t_s = reading.t_mono_s
        if not self._history or t_s > self._history[-1][0]:
            self._history.append((t_s, float(reading.value.power_w)))
            while len(self._history) > 1 and self._history[1][0] < t_s - HISTORY_S:
                self._history.popleft()

    def at_w(self, t_s: float) -> float:
        """Power at `t_s`."""
        after: tuple[float, float] | None = None
        for at_s, power_w in reversed(self._history):
            if at_s <= t_s:
                if after is None:
                    return power_w
                share = (t_s - at_s) / (after[0] - at_s)
                return power_w + share * (after[1] - power_w)
            after = (at_s, power_w)
        return after[1] if after is not None else 0.0
