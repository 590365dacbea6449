"""The envelope's memory of the meter: trailing means over exactly their span, gaps included."""

from __future__ import annotations

import pytest

from controller.rings import Ring


def test_after_a_gap_the_mean_is_of_its_own_span() -> None:
    """65 MW, twelve seconds of nothing, 52 MW: the newest second is near 52, not half-way."""
    ring = Ring(mean_s=1.0)
    for k in range(21):
        ring.add(k / 10, 65e6)
    ring.add(14.0, 52e6)
    assert ring.view(14.0).min_w[0] == pytest.approx(52.54e6, rel=0.001)


def test_a_step_is_in_the_mean_by_its_share() -> None:
    ring = Ring(mean_s=1.0)
    for k in range(31):
        ring.add(k / 10, 50e6 if k <= 20 else 60e6)
    assert ring.view(3.0).max_w[0] == pytest.approx(59.5e6, rel=0.001)
