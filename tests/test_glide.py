"""The way down to the fallback caps: together, no steeper than told, never up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.glide import LEAST_FRAC, STEEPNESS, FallbackGlide
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
        caps = glide.caps(float(second), table, last=last, fallback_mhz=fallback, slope_w_per_s=slope, fall_w=math.inf)
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
    glide.caps(0.0, table, last=last, fallback_mhz=fallback, slope_w_per_s=math.inf, fall_w=math.inf)
    caps = glide.caps(1.0, table, last=last, fallback_mhz=fallback, slope_w_per_s=math.inf, fall_w=math.inf)
    assert caps[0].tolist() == [900.0, 700.0, 900.0, 900.0]


def test_what_falls_beside_them_has_its_part_of_the_rows_first() -> None:
    """Of a slope of 2 % of the swing a second rows leave 1 %, then nothing: what they seem to leave may be untrue."""
    table, glide = fleet(), FallbackGlide()
    swing_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
    last, level = caps_array((math.inf,) * 4), 1.0
    for second, (left, share) in enumerate([(math.inf, 0.0), (math.inf, 0.02), (0.01, 0.01), (0.0, 0.02 * LEAST_FRAC)]):
        caps = glide.caps(
            float(second),
            table,
            last=last,
            fallback_mhz=np.full(4, 900.0),
            slope_w_per_s=0.02 * swing_w,
            fall_w=left * swing_w,
        )
        level = (level**STEEPNESS - share) ** (1.0 / STEEPNESS)
        assert np.minimum(caps[0], table.cap_max[0]) == pytest.approx(level * table.cap_max[0], abs=1.0)
        last = caps


def test_plans_between_two_seconds_ask_for_no_further_step() -> None:
    """Without a battery plans are made five times a second: a clock so often is refused, and refusals are counted."""
    table, glide = fleet(), FallbackGlide()
    swing_w = float(((table.peak_w - table.idle_w) * table.stands_for).sum())
    last, steps = caps_array((math.inf,) * 4), []
    for plan in range(16):
        caps = glide.caps(
            0.25 * plan,
            table,
            last=last,
            fallback_mhz=np.full(4, 900.0),
            slope_w_per_s=0.02 * swing_w,
            fall_w=math.inf,
        )
        steps += [0.25 * plan] if (caps < last).any() else []
        last = caps
    assert steps == [1.0, 2.0, 3.0]
