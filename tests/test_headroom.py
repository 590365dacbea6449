"""The live view agrees with what a window is, sample by sample, and warns in time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.headroom import Headroom, RowHeadroom
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    FloorLimit,
    Limit,
    LimitId,
    LimitStatus,
    OscillationLimit,
    Provenance,
    RampLimit,
    RateLimit,
    SwingLimit,
)

HERE = Provenance(source="test", date="", status=LimitStatus.LOCAL)
DT_S = 0.05


def report_after(limits: list[Limit], powers: np.ndarray) -> dict[str, RowHeadroom]:
    view = Headroom(limits, start_s=0.0, start_w=float(powers[0]), sample_s=DT_S)
    for index, power_w in enumerate(powers[1:], start=1):
        view.add(index * DT_S, float(power_w))
    return {row.limit_id: row for row in view.report()}


def test_windows_agree_with_brute_force_on_their_own_mean() -> None:
    """Swing and both ramps equal the extremes of the trailing mean over the last window."""
    rng = np.random.default_rng(4)
    powers = 50e6 + np.cumsum(rng.normal(size=900)) * 0.2e6
    rows: list[Limit] = [
        SwingLimit(LimitId("swing"), 5e6, 15.0, 1.0, HERE),
        RampLimit(LimitId("up"), 9e6, 20.0, Direction.UP, 0.0, HERE),
        RampLimit(LimitId("down"), 9e6, 20.0, Direction.DOWN, 0.0, HERE),
    ]
    found = report_after(rows, powers)
    fine = np.interp(np.arange(0, 899 * DT_S, 0.005), np.arange(900) * DT_S, powers)
    mean = np.convolve(fine, np.ones(200) / 200, mode="valid")[-3000:]
    assert found["swing"].worst_w == pytest.approx(mean.max() - mean.min(), rel=0.02)
    last = powers[-401:]
    assert found["up"].worst_w == pytest.approx(powers[-1] - last.min(), rel=1e-6)
    assert found["down"].worst_w == pytest.approx(last.max() - powers[-1], rel=1e-6)
    assert found["swing"].headroom_w == pytest.approx(5e6 - found["swing"].worst_w)


def test_breach_is_foretold() -> None:
    """A fall of 0.5 MW/s that used 2.5 of 5 MW breaks in five seconds; one that always fits never does."""
    row: list[Limit] = [SwingLimit(LimitId("swing"), 5e6, 15.0, 0.0, HERE)]
    steep = report_after(row, 50e6 - 0.5e6 * np.arange(0.0, 5.01, DT_S))["swing"]
    assert steep.breach_s == pytest.approx(5.0, rel=0.02)
    gentle = report_after(row, 50e6 - 0.3e6 * np.arange(0.0, 5.01, DT_S))["swing"]
    assert gentle.breach_s == math.inf


def test_a_broken_row_has_negative_headroom_and_no_time_left() -> None:
    """A 7 MW step breaks 5 MW / 15 s."""
    powers = np.where(np.arange(200) < 100, 50e6, 43e6)
    row = report_after([SwingLimit(LimitId("swing"), 5e6, 15.0, 0.0, HERE)], powers)["swing"]
    assert row.headroom_w == pytest.approx(-2e6)
    assert row.worst_w == pytest.approx(7e6)


def test_levels_count_only_in_force() -> None:
    """A ceiling of the future has no headroom yet; a floor in force has."""
    rows: list[Limit] = [
        CeilingLimit(LimitId("later"), 40e6, 100.0, HERE),
        CeilingLimit(LimitId("now"), 51e6, -math.inf, HERE),
        FloorLimit(LimitId("floor"), 45e6, -math.inf, HERE),
    ]
    found = report_after(rows, 50e6 + 0.1e6 * np.arange(0.0, 4.0, DT_S))
    assert found["later"].headroom_w == math.inf
    assert found["now"].headroom_w == pytest.approx(0.605e6, rel=0.01)
    assert found["now"].breach_s == pytest.approx(6.05, rel=0.02)
    assert found["floor"].breach_s == math.inf


def test_rate_headroom_is_the_distance_to_the_cone() -> None:
    """6 MW used of 10 MW flat leaves 4; old moves count against the slope."""
    limit = RateLimit(LimitId("rate"), 0.5e6, 10e6, 0.0, HERE)
    powers = np.where(np.arange(200) < 100, 50e6, 56e6)
    assert report_after([limit], powers)["rate"].headroom_w == pytest.approx(4e6)


def test_causal_twins_read_a_steady_wave_and_say_they_are_estimates() -> None:
    """A 2 MW, 1 Hz wave is 2 MW to band and line rows, 4 MW to a filtered swing; a slow ramp is nearly nothing."""
    rows: list[Limit] = [
        BandLimit(LimitId("band"), 3e6, (0.1, 5.0), HERE),
        SwingLimit(LimitId("ercot"), 10e6, 5.0, 0.0, HERE, (0.1, 55.0)),
        OscillationLimit(LimitId("line"), 2.5e6, (0.1, 20.0), 20.0, HERE),
    ]
    t_s = np.arange(0.0, 60.0, DT_S)
    found = report_after(rows, 50e6 + 2e6 * np.sin(2 * np.pi * t_s))
    assert all(row.is_estimate for row in found.values())
    assert found["band"].worst_w == pytest.approx(2e6, rel=0.05)
    assert found["ercot"].worst_w == pytest.approx(4e6, rel=0.05)
    assert found["line"].worst_w == pytest.approx(2e6, rel=0.05)
    ramp = report_after(rows, 50e6 + 0.02e6 * t_s)
    assert ramp["band"].worst_w < 0.1e6


def test_limits_may_change_and_late_samples_are_dropped() -> None:
    """New rows begin with the present; a sample out of order changes nothing."""
    view = Headroom([], start_s=0.0, start_w=50e6, sample_s=DT_S)
    view.add(1.0, 40e6)
    view.set_limits([SwingLimit(LimitId("swing"), 5e6, 15.0, 0.0, HERE)])
    view.add(0.5, 90e6)
    view.add(2.0, 41e6)
    assert view.report()[0].worst_w == pytest.approx(1e6)
