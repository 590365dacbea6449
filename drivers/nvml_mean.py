"""Mean power of one GPU over at least a second, and whether its energy counter tells the same story.

The mean is the GPU's own where it has a true one, else what its energy counter says, else that of the samples. A
counter that falls has restarted: with it went every setting, and whoever adds samples is told.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from drivers.nvml_calls import Identity, RawSample

MEAN_S = 1.0  # control acts on means of at least this
CROSS_CHECK_S = 10.0
CROSS_CHECK_FRAC = 0.15  # largest gain error of a shipped sensor is 5.5 %; beyond this the reading is not believed
SAMPLED_CHECK_FRAC = 0.35  # single samples see a quarter of the time and may fall in step with the load's iterations
CROSS_CHECK_RANGE_FRAC = 0.08  # of the highest limit: a 1 s mean trails its counter by half a second after a step


@dataclass(slots=True)
class MeanPower:
    """Mean power over at least a second: the GPU's own where it has one, else from its energy counter or samples."""

    has_true_mean: bool
    tolerance_w: float
    mean_w: float = 0.0
    agrees: bool = True  # with the energy counter, over ten seconds
    _history: deque[tuple[float, float | None, float]] = field(default_factory=deque)  # t_s, energy_j, reported W

    @classmethod
    def of(cls, gpu: Identity) -> MeanPower:
        return cls(has_true_mean=gpu.has_true_mean, tolerance_w=CROSS_CHECK_RANGE_FRAC * gpu.limit_w_max)

    def add(self, t_s: float, raw: RawSample) -> bool:
        """Take one sample; True when the energy counter restarted."""
        last = self._history[-1] if self._history else None
        restarted = (
            last is not None and raw.energy_j is not None and last[1] is not None and raw.energy_j < last[1] - 1e-3
        )
        if restarted:
            self._history.clear()
        has_own = self.has_true_mean and raw.mean_w is not None
        reported_w = raw.mean_w if has_own and raw.mean_w is not None else raw.instant_w
        self._history.append((t_s, raw.energy_j, reported_w))
        while len(self._history) > 2 and self._history[1][0] <= t_s - CROSS_CHECK_S:
            self._history.popleft()
        self.mean_w = reported_w if has_own else self._mean_over(MEAN_S)
        self.agrees = self._counter_agrees(t_s, CROSS_CHECK_FRAC if has_own else SAMPLED_CHECK_FRAC)
        return restarted

    def _mean_over(self, span_s: float) -> float:
        """Over the last `span_s`, or what there is of it."""
        end_s, end_j, end_w = self._history[-1]
        start = next((h for h in reversed(self._history) if h[0] <= end_s - span_s + 1e-6), self._history[0])
        if end_j is not None and start[1] is not None and end_s - start[0] > 0.2:
            return (end_j - start[1]) / (end_s - start[0])
        recent = [h[2] for h in self._history if h[0] >= end_s - span_s]
        return sum(recent) / len(recent) if recent else end_w

    def _counter_agrees(self, t_s: float, share: float) -> bool:
        """Whether ten seconds of reported power match the energy counted meanwhile; True where it cannot be told."""
        start_s, start_j, _ = self._history[0]
        end_j = self._history[-1][1]
        if start_j is None or end_j is None or t_s - start_s < 0.9 * CROSS_CHECK_S or len(self._history) < 10:
            return True
        counted_w = (end_j - start_j) / (t_s - start_s)
        reported_w = sum(h[2] for h in self._history) / len(self._history)
        return abs(counted_w - reported_w) <= max(self.tolerance_w, share * counted_w)
