"""How a GPU's power and work follow its clock: priors by model, as measured on real cards.

Dynamic power (above idle) at clock fraction f is `linear` f + (1 - linear) f ** `exponent` of its value at full clock;
work that the clock bounds goes as f ** `work_exponent`. Pure; the numbers come from `configs/gpus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from controller.types import FloatArray

GRID = 256  # points of the inverse; a clock step is at least 1/130 of the range


@dataclass(frozen=True)
class GpuCurve:
    """The power-clock-work curve of one GPU model."""

    name: str
    pattern: str  # found in the driver's name of the card, any case
    linear: float
    exponent: float
    work_exponent: float
    source: str

    def power_share(self, clock_frac: FloatArray | float) -> FloatArray:
        """Dynamic power relative to full clock."""
        f: FloatArray = np.atleast_1d(np.asarray(clock_frac, dtype=np.float64))
        share: FloatArray = self.linear * f + (1.0 - self.linear) * np.power(f, self.exponent)
        return share.reshape(np.shape(clock_frac))

    def clock_for(self, share: FloatArray | float) -> FloatArray:
        """The clock fraction whose dynamic power is `share` of full; 1 for shares above 1."""
        fractions, shares = self._grid
        clock: FloatArray = np.asarray(np.interp(share, shares, fractions), dtype=np.float64)
        return clock

    def work_share(self, clock_frac: FloatArray | float) -> FloatArray:
        """Work per second relative to full clock, where the clock bounds it."""
        work: FloatArray = np.power(np.asarray(clock_frac, dtype=np.float64), self.work_exponent)
        return work

    @cached_property
    def _grid(self) -> tuple[FloatArray, FloatArray]:
        fractions = np.linspace(0.0, 1.0, GRID)
        return fractions, self.power_share(fractions)


class PowerCurve(Protocol):
    """A curve, whether of a model or as learnt."""

    @property
    def name(self) -> str: ...

    def power_share(self, clock_frac: FloatArray | float) -> FloatArray: ...

    def clock_for(self, share: FloatArray | float) -> FloatArray: ...

    def work_share(self, clock_frac: FloatArray | float) -> FloatArray: ...


# Steeper than any measured card: what nothing is known of is assumed to save little when slowed.
UNKNOWN = GpuCurve("unknown", "", 1.0, 1.0, 0.98, "chord: the least saving a convex curve can have")


def curve_for(model: str, curves: Mapping[str, GpuCurve]) -> GpuCurve:
    """The curve whose pattern occurs in the driver's name of the card; the cautious one when none does."""
    lowered = model.lower()
    for name in sorted(curves):
        if curves[name].pattern.lower() in lowered:
            return curves[name]
    return UNKNOWN
