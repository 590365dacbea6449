"""How long what following leaves is remembered: rows judge pairs a minute apart, so a calm minute forgets little."""

from __future__ import annotations

import math

from controller.residual import Residual

TICK_S = 0.05
RIPPLE_W = 0.075e6


def fed(residual: Residual, *, from_s: float, seconds: float, amplitude_w: float) -> float:
    """Feed a ripple of 5 s; returns the time reached."""
    count = round(seconds / TICK_S)
    for k in range(count):
        t_s = from_s + k * TICK_S
        residual.add(t_s, amplitude_w * math.sin(2.0 * math.pi * t_s / 5.0))
    return from_s + count * TICK_S


def test_a_calm_minute_does_not_free_what_the_next_ripple_needs() -> None:
    """Ripple, a minute of calm, ripple again: the second stands in one window with the path of the calm minute."""
    residual = Residual([1.0], event_w=5e6)
    end_s = fed(residual, from_s=0.0, seconds=30.0, amplitude_w=RIPPLE_W)
    seen_w = residual.track(1.0).spread_w
    assert seen_w > 1.8 * RIPPLE_W
    fed(residual, from_s=end_s, seconds=60.0, amplitude_w=0.0)
    assert residual.track(1.0).spread_w > 0.8 * seen_w


def test_what_is_long_past_is_forgotten() -> None:
    """A quarter of an hour of calm gives the allowance back."""
    residual = Residual([1.0], event_w=5e6)
    end_s = fed(residual, from_s=0.0, seconds=30.0, amplitude_w=RIPPLE_W)
    seen_w = residual.track(1.0).spread_w
    fed(residual, from_s=end_s, seconds=900.0, amplitude_w=0.0)
    assert residual.track(1.0).spread_w < 0.1 * seen_w
