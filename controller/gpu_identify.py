"""Learns from telemetry how the power of each group of GPUs follows its clock, and whether capping it does anything.

Recursive least squares on p = a + b f + c f^3 per GPU of a group, started at the prior of its model, with forgetting
that acts only along what is observed: a clock that never moves teaches nothing and erases nothing. What is not known
widens `sigma_w`, which callers add to their margins. Pure; groups are rows of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.gpu_model import GpuCurve
from controller.types import FloatArray

BoolArray = NDArray[np.bool_]

MEMORY = 0.98  # forgetting per observation: about 50 observations, a minute or two at the planner's rate
PRIOR_FRAC = 0.15  # of the range idle to peak: how far a card may stray from the prior of its model (one sigma)
NOISE_FRAC = 0.03  # of the range: scatter of a 1 s mean over many GPUs; a floor under the measured one
MOVE_FRAC = 0.03  # of full clock: smaller moves do not tell whether a cap works
EFFECT_MEMORY = 0.7  # per move
INERT_EFFECT = 0.25  # less than a quarter of the predicted change: the cap does nothing worth counting on
MOVES_MIN = 3
EXTREME_MEMORY = 0.999  # per observation: idle and peak forget in a quarter of an hour at 1 Hz


@dataclass(frozen=True, slots=True)
class Identified:
    """What is known now, shape (groups,) each. `effect` is observed over predicted change of power when clocks move."""

    idle_w: FloatArray
    peak_w: FloatArray
    sigma_w: FloatArray  # of one GPU's power at its present clock
    effect: FloatArray
    is_inert: BoolArray  # where moving the clock has been seen to change next to nothing


class CurveIdentifier:
    """One estimator per group. A group is a job: its GPUs share a clock."""

    def __init__(self, priors: Sequence[GpuCurve], *, idle_w: FloatArray, peak_w: FloatArray) -> None:
        """`idle_w` and `peak_w` (groups,) are of one GPU, from its driver and the prior of its model."""
        count = len(priors)
        self._range_w = np.maximum(peak_w - idle_w, 1.0)
        self._theta = np.array(
            [
                _basis_fit(curve, float(idle), float(span))
                for curve, idle, span in zip(priors, idle_w, self._range_w, strict=True)
            ]
        ).reshape(count, 3)
        self._prior = self._theta.copy()
        spread = (PRIOR_FRAC * self._range_w) ** 2
        self._covariance = np.eye(3)[None, :, :] * spread[:, None, None]
        self._noise = (NOISE_FRAC * self._range_w) ** 2
        self._idle_w, self._peak_w = idle_w.astype(np.float64).copy(), peak_w.astype(np.float64).copy()
        self._anchor_f = np.full(count, np.nan)  # clock and power before the last move
        self._anchor_w = np.full(count, np.nan)
        self._effect, self._moves = np.ones(count), np.zeros(count)
        self._clock_frac = np.ones(count)

    def observe(self, clock_frac: FloatArray, power_w: FloatArray) -> Identified:
        """Take in one observation per group: mean clock fraction and mean power of one GPU; NaN where there is none.

        Give steady values (means of a second or more), not samples from within an iteration.
        """
        is_seen = np.isfinite(clock_frac) & np.isfinite(power_w)
        f = np.where(is_seen, np.clip(clock_frac, 0.0, 1.2), self._clock_frac)
        self._judge_moves(f, power_w, is_seen)
        self._update(f, power_w, is_seen)
        self._clock_frac = f
        seen_w = np.where(is_seen, power_w, np.nan)
        rest = 1.0 - EXTREME_MEMORY
        self._idle_w = np.fmin(self._idle_w + rest * self._range_w * 0.1, seen_w)
        self._peak_w = np.fmax(self._peak_w - rest * self._range_w * 0.1, seen_w)
        return self.known()

    def known(self) -> Identified:
        basis = _basis(self._clock_frac)
        spread = np.einsum("gi,gij,gj->g", basis, self._covariance, basis)
        return Identified(
            idle_w=self._idle_w.copy(),
            peak_w=self._peak_w.copy(),
            sigma_w=np.sqrt(np.maximum(spread, 0.0) + self._noise),
            effect=self._effect.copy(),
            is_inert=(self._effect < INERT_EFFECT) & (self._moves >= MOVES_MIN),
        )

    def power_w(self, clock_frac: FloatArray) -> FloatArray:
        """Expected power of one GPU of each group at `clock_frac` (groups,)."""
        expected: FloatArray = np.einsum("gi,gi->g", _basis(clock_frac), self._theta)
        return expected

    def sigma_at_w(self, clock_frac: FloatArray) -> FloatArray:
        """How far from `power_w` the truth may lie (one sigma): large where no such clock was ever seen."""
        basis = _basis(clock_frac)
        spread = np.einsum("gi,gij,gj->g", basis, self._covariance, basis)
        sigma: FloatArray = np.sqrt(np.maximum(spread, 0.0) + self._noise)
        return sigma

    def _update(self, f: FloatArray, power_w: FloatArray, is_seen: BoolArray) -> None:
        basis = _basis(f)
        expected = np.einsum("gi,gi->g", basis, self._theta)
        error = np.where(is_seen, power_w - expected, 0.0)
        along = np.einsum("gij,gj->gi", self._covariance, basis)
        spread = np.einsum("gi,gi->g", basis, along)
        gain = along / (spread + self._noise)[:, None]
        shrink = np.einsum("gi,gj->gij", gain, along)
        # Forgetting gives back, along the direction just seen, the share that MEMORY says has aged.
        renew = np.einsum("gi,gj->gij", along, along) * ((1.0 - MEMORY) / np.maximum(spread, 1e-12))[:, None, None]
        limit = (PRIOR_FRAC * self._range_w) ** 2
        renewed = np.where((spread < limit)[:, None, None], renew, 0.0)
        seen = is_seen.astype(np.float64)
        self._theta += gain * (error * seen)[:, None]
        self._covariance += (renewed - shrink) * seen[:, None, None]
        floor = (NOISE_FRAC * self._range_w) ** 2
        self._noise = np.where(is_seen, np.maximum(floor, 0.98 * self._noise + 0.02 * error**2), self._noise)

    def _judge_moves(self, f: FloatArray, power_w: FloatArray, is_seen: BoolArray) -> None:
        """When a clock has moved, compare what power did with what the prior of the model said it would.

        Not with what was learned: a card that does not answer teaches a flat curve, which predicts just that.
        """
        is_first = is_seen & np.isnan(self._anchor_f)
        moved = is_seen & ~is_first & (np.abs(f - np.where(np.isnan(self._anchor_f), f, self._anchor_f)) > MOVE_FRAC)
        if bool(moved.any()):
            before = np.where(moved, self._anchor_f, f)
            predicted = np.einsum("gi,gi->g", _basis(f) - _basis(before), self._prior)
            observed = power_w - self._anchor_w
            ratio = np.where(moved, observed / np.where(np.abs(predicted) > 1e-6, predicted, 1.0), 1.0)
            blended: FloatArray = EFFECT_MEMORY * self._effect + (1.0 - EFFECT_MEMORY) * np.clip(ratio, -1.0, 2.0)
            tells = moved & (np.abs(predicted) > 2.0 * NOISE_FRAC * self._range_w)
            self._effect = np.where(tells, blended, self._effect)
            self._moves = self._moves + tells
        is_anchor = is_first | moved | (is_seen & (np.abs(f - self._anchor_f) <= MOVE_FRAC))
        self._anchor_f = np.where(is_anchor, f, self._anchor_f)
        self._anchor_w = np.where(is_anchor, power_w, self._anchor_w)


def _basis(f: FloatArray) -> FloatArray:
    """Rows (1, f, f^3), shape (groups, 3)."""
    return np.stack([np.ones_like(f), f, f**3], axis=1)


def _basis_fit(curve: GpuCurve, idle_w: float, range_w: float) -> FloatArray:
    """The prior in our basis: least squares over clocks from a quarter to full."""
    f: FloatArray = np.linspace(0.25, 1.0, 32, dtype=np.float64)
    wanted = idle_w + range_w * curve.power_share(f)
    theta: FloatArray = np.asarray(np.linalg.lstsq(_basis(f), wanted, rcond=None)[0], dtype=np.float64)
    return theta
