"""Frequency trips: what a contract's droop rows ask of the site while the meter sees frequency outside their deadband.

One sample alone never trips, and a frequency that no grid has is a fault of the meter and changes nothing. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.types import DroopLimit, MeterSample, Quality, Reading

CALM_MEAN_S = 1.0  # the power a droop response starts from is the mean of this long before
TRIP_SAMPLES = 2  # consecutive meter samples outside the deadband: one alone may be a slip of the meter
TRIP_OVER_S = 5.0  # inside the deadband for so long: the excursion is over
PLAUSIBLE_FRAC = 0.1  # a frequency further than this from nominal is a fault of the meter
QUANTUM_FRAC = 0.01  # of a row's max_w: the steps in which its target moves


class DroopTrip:
    """Watches the meter's frequency; outside a row's deadband it gives the power that the row asks for."""

    def __init__(self) -> None:
        self._base_w: float | None = None
        self._offset_w = 0.0
        self._calm_s = self._sample_s = -math.inf
        self._outside_count = 0
        self._is_tripped = False

    def target_w(self, rows: Sequence[DroopLimit], pcc: Reading[MeterSample] | None) -> float | None:
        """Power at the point of common coupling that the rows ask for now; None while nothing is wrong.

        `pcc` is the newest sample; one that is not good, or shows a frequency that no grid has, changes nothing.
        """
        if not rows:
            self._is_tripped, self._base_w = False, None
            return None
        if pcc is None or pcc.value.frequency_hz is None or pcc.quality is not Quality.GOOD:
            return self._answer_w(rows, None)
        frequency_hz = pcc.value.frequency_hz
        is_possible = all(abs(frequency_hz / row.nominal_hz - 1.0) <= PLAUSIBLE_FRAC for row in rows)
        if not is_possible:
            return self._answer_w(rows, None)
        if pcc.t_mono_s > self._sample_s:
            self._take(rows, pcc.t_mono_s, pcc.value.power_w, frequency_hz)
        return self._answer_w(rows, frequency_hz)

    def _take(self, rows: Sequence[DroopLimit], t_s: float, power_w: float, frequency_hz: float) -> None:
        elapsed_s = min(t_s - self._sample_s, CALM_MEAN_S)
        self._sample_s = t_s
        if any(_excess_hz(row, frequency_hz) > 0.0 for row in rows):
            self._outside_count += 1
            self._calm_s = t_s
            self._is_tripped = self._is_tripped or self._outside_count >= TRIP_SAMPLES
            return
        self._outside_count = 0
        if self._is_tripped and t_s - self._calm_s >= TRIP_OVER_S:
            self._is_tripped, self._base_w = False, None
        if not self._is_tripped:
            before_w = power_w if self._base_w is None else self._base_w
            self._base_w = before_w + (1.0 - math.exp(-elapsed_s / CALM_MEAN_S)) * (power_w - before_w)

    def _answer_w(self, rows: Sequence[DroopLimit], frequency_hz: float | None) -> float | None:
        if not self._is_tripped or self._base_w is None:
            return None
        if frequency_hz is not None:
            offsets_w = [_offset_w(row, frequency_hz) for row in rows]
            self._offset_w = min(offsets_w) if min(offsets_w) < 0.0 else max(offsets_w)
        return self._base_w + self._offset_w


def _excess_hz(row: DroopLimit, frequency_hz: float) -> float:
    return max(0.0, abs(frequency_hz - row.nominal_hz) - row.deadband_hz)


def _offset_w(row: DroopLimit, frequency_hz: float) -> float:
    """What one row adds to the power before: less where frequency is low; rounded away from zero to its steps."""
    quantum_w = QUANTUM_FRAC * row.max_w
    if quantum_w <= 0.0:
        return 0.0
    asked_w = min(row.w_per_hz * _excess_hz(row, frequency_hz), row.max_w)
    stepped_w = min(math.ceil(asked_w / quantum_w - 1e-9) * quantum_w, row.max_w)
    return math.copysign(stepped_w, frequency_hz - row.nominal_hz)
