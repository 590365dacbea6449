"""The wave of a synchronous job: found in its samples, foretold, refused where there is none; and the path under it."""

from __future__ import annotations

import numpy as np
import pytest

from controller.types import FloatArray
from hil.regret_wave import fit_wave, highest_path_w

MEGA = 1e6


def square(count: int, *, period: float, share: float = 0.6, shift: float = 3.3, noise: float = 0.02) -> FloatArray:
    """High at 6 MW for `share` of `period` samples, low at 2.4 MW."""
    phase = ((np.arange(count) + shift) % period) / period
    wave = np.where(phase < share, 6.0, 2.4) * MEGA
    return wave * (1.0 + noise * np.random.default_rng(7).standard_normal(count))


@pytest.mark.parametrize("period", [20.0, 37.0, 23.7, 11.3])
def test_low_phases_are_foretold(period: float) -> None:
    """From a minute of samples the next 20 s: every low sample is called low, and few high ones are."""
    whole = square(800, period=period)
    wave = fit_wave(whole[:600], first=0)
    assert wave is not None and wave.period == pytest.approx(period, rel=2e-3)
    ahead = np.arange(600, 800)
    is_low = whole[ahead] < 4.0 * MEGA
    told = wave.is_low(ahead)
    assert bool(told[is_low].all())
    assert told.sum() <= is_low.sum() + 4.0 * 200 / period
    assert wave.low_w == pytest.approx(2.4 * MEGA, rel=0.01) and wave.noise_w == pytest.approx(0.048 * MEGA, rel=0.2)


def test_the_time_of_the_samples_counts() -> None:
    """The same samples a thousand later: the same low phases a thousand later."""
    samples = square(400, period=20.0)
    here, later = fit_wave(samples, first=0), fit_wave(samples, first=1000)
    assert here is not None and later is not None
    ahead = np.arange(400, 460)
    assert np.array_equal(here.is_low(ahead), later.is_low(ahead + 1000))


def test_a_pause_a_flat_draw_and_noise_are_no_wave() -> None:
    """A job that stays low beyond its cycle, that draws evenly, or without a rhythm."""
    paused = np.concatenate([square(400, period=20.0), np.full(30, 2.4 * MEGA)])
    assert fit_wave(square(400, period=20.0), first=0) is not None
    assert fit_wave(paused, first=0) is None
    assert fit_wave(np.full(400, 5.0 * MEGA), first=0) is None
    rng = np.random.default_rng(1)
    assert fit_wave(np.where(rng.random(400) < 0.5, 6.0, 2.4) * MEGA, first=0) is None
    assert fit_wave(np.zeros(0), first=0) is None


def test_the_highest_path_comes_down_in_time() -> None:
    """Under a floor that opens once: it falls one a step towards it and is free after it."""
    floor = np.array([9.0, 9.0, 9.0, 5.0, 9.0])
    assert highest_path_w(floor, fall_w=1.0).tolist() == [8.0, 7.0, 6.0, 5.0, 9.0]
