"""The way down to the fallback caps: together, no steeper than told, never up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.glide import STEEPNESS, FallbackGlide
from tests.envelope_kit import caps_array, fleet


def test_clocks_glide_together_and_end_at_the_fallback() -> None:
    """By the steepest curve and by the chord alike no second lets go of more than the slope."""
    table, glide = fleet(), FallbackGlide()
    last = caps_array((math.inf,) * 4)
    fallback = np.full(4, 900.0)
    swing_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
    slope = swing_w / 40.0
    level = 1.0
    for second in range(200):
        caps = glide.caps(float(second), table, last=last, fallback_mhz=fallback, slope_w_per_s=slope)
        assert (caps <= last).all()
        now = float(np.minimum(caps[0] / table.cap_max[0], 1.0)[0])
        tick = 1.0 / table.cap_max[0][0]  # clocks are whole numbers
        assert level - now <= 1.0 / 40.0 + tick
        assert level**STEEPNESS - now**STEEPNESS <= 1.0 / 40.0 + STEEPNESS * tick
        last, level = caps, now
    assert last[0] == pytest.approx(fallback)


def test_without_a_slope_they_are_there_at_once_and_lower_caps_stay() -> None:
    table, glide = fleet(), FallbackGlide()
    last = caps_array((math.inf, 700.0, math.inf, math.inf))
    fallback = np.full(4, 900.0)
    glide.caps(0.0, table, last=last, fallback_mhz=fallback, slope_w_per_s=math.inf)
    caps = glide.caps(1.0, table, last=last, fallback_mhz=fallback, slope_w_per_s=math.inf)
    assert caps[0].tolist() == [900.0, 700.0, 900.0, 900.0]
