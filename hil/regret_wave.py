"""When a synchronous job will be at the bottom of its ripple: its iteration as a square wave, from its recent draw.

A battery smaller than the ripple can hold the target only as far above the load as it can charge. Knowing when all jobs
are low at once lets the target stand higher in between and come down in time, phase by phase. What the wave does not
explain is noise, and widens the margin. Pure; samples are on a grid of one step, times are sample numbers.
"""

from __future__ import annotations

import numpy as np

from controller.types import BoolArray, FloatArray, IntArray, frozen

EDGES_MIN = 4  # rising edges seen before a wave is believed
IRREGULAR = 0.2  # a cycle that differs from the usual one by so much of it was none: a checkpoint, a restart
GUARD_STEPS = 0.5  # beside what the fit leaves: an edge may fall on either side of a sample
EDGE_ERROR_STEPS = 1.0  # edges further from the fitted grid than this: not a wave
DEEP_FRAC = 0.15  # of its top: a ripple flatter than this is noise


@frozen
class Wave:
    """High for `high_share` of a period from sample `origin` on; low samples scatter by `noise_w` around `low_w`."""

    origin: float
    period: float  # samples
    high_share: float
    low_w: float
    noise_w: float
    guard: float  # samples by which an edge may come early or late

    def is_low(self, samples: IntArray) -> BoolArray:
        """Whether each sample may be at the bottom, with a guard on either edge."""
        guard = self.guard / self.period
        phase = ((samples - self.origin) / self.period) % 1.0
        low: BoolArray = (phase > self.high_share - guard) | (phase < guard)
        return low


def fit_wave(power_w: FloatArray, *, first: int) -> Wave | None:
    """The wave of samples `first`, `first` + 1, ...; None where they are no regular wave to their very end."""
    top_w, bottom_w = float(power_w.max(initial=0.0)), float(power_w.min(initial=0.0))
    if top_w <= 0.0 or top_w - bottom_w < DEEP_FRAC * top_w:
        return None
    high = power_w > 0.5 * (top_w + bottom_w)
    rising = np.flatnonzero(~high[:-1] & high[1:]) + 1
    falling = np.flatnonzero(high[:-1] & ~high[1:]) + 1
    rising = _regular_tail(rising)
    if len(rising) < EDGES_MIN:
        return None
    number = np.arange(len(rising), dtype=np.float64)
    period, origin = np.polyfit(number, rising.astype(np.float64), 1)
    error = float(np.abs(rising - origin - period * number).max())
    if error > EDGE_ERROR_STEPS:
        return None
    if len(power_w) - rising[-1] > (1.0 + IRREGULAR) * period:
        return None  # the next cycle should have begun: the job pauses
    ends = falling[np.searchsorted(falling, rising[:-1], side="right")]
    highs = ends - rising[:-1]
    share, spread = float(highs.mean()) / float(period), float(np.ptp(highs))
    recent = power_w[rising[0] :]
    low_w = recent[~high[rising[0] :]]
    guard = GUARD_STEPS + error + 0.5 * spread
    return Wave(float(origin) + first, float(period), share, float(low_w.mean()), float(low_w.std()), guard)


def _regular_tail(rising: IntArray) -> IntArray:
    """The last edges that are one usual cycle apart."""
    if len(rising) < EDGES_MIN:
        return rising
    lengths = np.diff(rising)
    usual = float(np.median(lengths[-EDGES_MIN:]))
    odd = np.flatnonzero(np.abs(lengths - usual) > max(IRREGULAR * usual, EDGE_ERROR_STEPS))
    return rising[odd[-1] + 1 :] if len(odd) else rising


def highest_path_w(floor_w: FloatArray, *, fall_w: float) -> FloatArray:
    """The highest path under `floor_w` that needs to fall by no more than `fall_w` a step."""
    steps = np.arange(len(floor_w)) * fall_w
    path: FloatArray = np.minimum.accumulate((floor_w + steps)[::-1])[::-1] - steps
    return path
