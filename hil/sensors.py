"""The power sensor inside a GPU: what NVML reports of a truth that it samples sparsely and with an error.

Every update period the sensor takes the mean of a short window (A100 and H100: 25 ms of each 100 ms, so three quarters
of the time is never seen) and, on parts that have one, a boxcar mean of the last second. Values are held in between.
Gains and windows are measured ones (arXiv 2312.02741 and its data) where a source is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import StrEnum, unique
from types import MappingProxyType

import numpy as np

from controller.types import FloatArray, frozen


@frozen
class SensorModel:
    """One sensor: reading = gain x truth + offset."""

    period_s: float
    window_s: float
    mean_s: float  # length of the boxcar behind the mean reading
    gain: float
    offset_w: float = 0.0


SENSORS: Mapping[str, SensorModel] = MappingProxyType(
    {
        "v100": SensorModel(period_s=0.020, window_s=0.020, mean_s=1.0, gain=1.0),  # updates every 20 ms
        "a100": SensorModel(period_s=0.100, window_s=0.025, mean_s=1.0, gain=0.954, offset_w=-1.6),  # NVML/meter pair
        "h100": SensorModel(period_s=0.100, window_s=0.025, mean_s=1.0, gain=1.0),
        "h200": SensorModel(period_s=0.100, window_s=0.025, mean_s=1.0, gain=1.0),  # as H100 (assumption)
        "b200": SensorModel(period_s=0.100, window_s=0.025, mean_s=1.0, gain=1.0),  # as H100 (assumption)
        "b300": SensorModel(period_s=0.100, window_s=0.025, mean_s=1.0, gain=1.0),  # as H100 (assumption)
    }
)


@unique
class SensorFault(StrEnum):
    """How one sensor misbehaves."""

    NONE = "none"
    STUCK = "stuck"  # keeps its last value
    NAN = "nan"  # no number at all
    SPIKE = "spike"  # ten times the value, for one update


class GpuSensorBank:
    """Sensors of N GPUs; feed them truth with `step`, read `instant_w`, `mean_w` and `sample_t_s`, shape (n,).

    `phase_s` is when each sensor's first update comes; drawn from `rng` when not given.
    """

    def __init__(
        self,
        sensor: SensorModel,
        count: int,
        *,
        rng: np.random.Generator,
        phase_s: FloatArray | None = None,
        gain_spread_frac: float = 0.0,
        start_w: float = 0.0,
    ) -> None:
        self.sensor = sensor
        self.count = count
        self._gain = sensor.gain * rng.normal(1.0, gain_spread_frac, count) if gain_spread_frac else sensor.gain
        self._due_s = rng.uniform(0.0, sensor.period_s, count) if phase_s is None else phase_s.astype(np.float64)
        self._faults = np.full(count, SensorFault.NONE, dtype=object)
        self._t_s = 0.0
        self._energy_j = np.zeros(count)
        self._history: deque[tuple[float, FloatArray]] = deque([(0.0, self._energy_j.copy())])
        self._start_w = start_w
        first = self._reading(np.full(count, start_w))
        self.instant_w = first.copy()
        self.mean_w = first.copy()
        self.sample_t_s = np.zeros(count)

    def set_fault(self, index: int, fault: SensorFault) -> None:
        """Make one sensor misbehave until it is set back to NONE (a spike ends by itself)."""
        self._faults[index] = fault

    def step(self, dt_s: float, truth_w: FloatArray) -> None:
        """Let `dt_s` pass at a mean true power of `truth_w`; sensors that are due take a new sample."""
        self._t_s += dt_s
        self._energy_j = self._energy_j + truth_w * dt_s
        self._history.append((self._t_s, self._energy_j))
        keep_s = max(self.sensor.mean_s, self.sensor.window_s)
        while len(self._history) > 2 and self._history[1][0] <= self._t_s - keep_s:
            self._history.popleft()
        due = self._due_s <= self._t_s + 1e-9
        if due.any():
            self._update(due)

    def _update(self, due: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        passed = np.floor((self._t_s + 1e-9 - self._due_s) / self.sensor.period_s) + 1.0
        self._due_s = np.where(due, self._due_s + passed * self.sensor.period_s, self._due_s)
        instant = self._reading(self._mean_over(self.sensor.window_s))
        mean = self._reading(self._mean_over(self.sensor.mean_s))
        for index in np.flatnonzero(self._faults != SensorFault.NONE):
            fault = self._faults[index]
            if fault is SensorFault.STUCK:
                due = due & (np.arange(self.count) != index)
            elif fault is SensorFault.NAN:
                instant[index] = mean[index] = np.nan
            elif due[index]:
                instant[index] *= 10.0
                mean[index] *= 10.0
                self._faults[index] = SensorFault.NONE
        self.instant_w = np.where(due, instant, self.instant_w)
        self.mean_w = np.where(due, mean, self.mean_w)
        self.sample_t_s = np.where(due, self._t_s, self.sample_t_s)

    def _reading(self, truth_w: FloatArray) -> FloatArray:
        reading: FloatArray = np.maximum(0.0, self._gain * truth_w + self.sensor.offset_w)
        return reading

    def _mean_over(self, window_s: float) -> FloatArray:
        """Mean truth of the last `window_s`; the time before the first step counts as `start_w`."""
        since_s = self._t_s - window_s
        if since_s <= 0.0:
            return (self._energy_j - since_s * self._start_w) / window_s
        later = next(k for k in range(len(self._history) - 1, -1, -1) if self._history[k][0] <= since_s) + 1
        (t0, e0), (t1, e1) = self._history[later - 1], self._history[later]
        energy_then = e0 + (e1 - e0) * ((since_s - t0) / (t1 - t0))
        return (self._energy_j - energy_then) / window_s
