"""The referee against brute force on short records, and block-wise feeding against whole records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.audit.referee import Referee
from controller.audit.windows import Polyline, window_intervals
from controller.config.contract import load_contract
from controller.types import (
    Contract,
    Direction,
    FloatArray,
    LimitId,
    LimitStatus,
    Provenance,
    RampLimit,
    RampReading,
    RateLimit,
    SwingLimit,
)

ORIGIN = Provenance("test", "2026", LimitStatus.LOCAL)
DENSE = 4000


@st.composite
def records(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    """Irregular or uniform, some with one gap."""
    count = draw(st.integers(3, 24))
    if draw(st.booleans()):
        steps = np.full(count, draw(st.sampled_from([0.5, 1.0, 0.25])))
    else:
        steps = np.array(draw(st.lists(st.floats(0.2, 0.55), min_size=count, max_size=count)))
    if draw(st.booleans()):
        steps[draw(st.integers(1, count - 1))] = 7.3
    powers = draw(st.lists(st.floats(0.0, 100.0), min_size=count, max_size=count))
    return np.cumsum(steps), np.array(powers) * 1e6


def known(t: FloatArray, gap_s: float, at: FloatArray) -> np.ndarray:
    """Whether anything is known at each time: at a knot (8.7 - 1.0 is 7.7), or between two that are not a gap apart."""
    j = np.clip(np.searchsorted(t, at, side="right") - 1, 0, t.size - 2)
    return (np.diff(t)[j] <= gap_s) | (np.abs(at[:, None] - t).min(axis=1, initial=np.inf) <= 1e-9)


def brute(t: FloatArray, p: FloatArray, gap_s: float, window_s: float, kind: str) -> tuple[float, list[float]]:
    """Worst change on a dense grid with all knots and shifted knots in it, and the figure at every grid time."""
    grid = np.unique(np.concatenate((np.linspace(t[0], t[-1], DENSE), t, t + window_s, t - window_s)))
    grid = grid[(grid >= t[0]) & (grid <= t[-1])]
    grid = grid[known(t, gap_s, grid)]
    value = np.interp(grid, t, p)
    figures = []
    for i, end in enumerate(grid):
        a = int(np.searchsorted(grid, end - window_s - 1e-9))
        seen = value[a : i + 1]
        if kind == "swing":
            figures.append(float(seen.max() - seen.min()))
        elif kind == "up":
            figures.append(float(value[i] - seen.min()))
        else:
            figures.append(float(seen.max() - value[i]))
    return max(figures), figures


@settings(max_examples=60, deadline=None)
@given(records(), st.sampled_from([0.4, 1.0, 1.5, 2.7, 6.0, 30.0]), st.sampled_from(["swing", "up", "down"]))
def test_windows_agree_with_brute_force(record: tuple[FloatArray, FloatArray], window_s: float, kind: str) -> None:
    t, p = record
    limit_w = 20e6
    row = (
        SwingLimit(LimitId("r"), limit_w, window_s, 0.0, ORIGIN)
        if kind == "swing"
        else RampLimit(LimitId("r"), limit_w, window_s, Direction(kind), 0.0, ORIGIN)
    )
    referee = Referee(Contract("c", (row,), 1e9), gap_s=1.1)
    referee.feed(t, p)
    found = referee.finish().limits[0]
    worst, figures = brute(t, p, 1.1, window_s, kind)
    assert found.worst == pytest.approx(worst, rel=1e-6, abs=1.0)
    intervals = np.diff(t)
    covered_s = float(intervals[intervals <= 1.1].sum())
    assert found.covered_s == pytest.approx(covered_s)
    share = float(np.mean(np.array(figures) > limit_w))
    assert found.violation_s == pytest.approx(share * covered_s, abs=0.08 * (t[-1] - t[0]) + 0.05)


@settings(max_examples=40, deadline=None)
@given(records(), st.sampled_from([1.0, 2.5, 6.0]))
def test_end_to_end_reading_agrees_with_brute_force(record: tuple[FloatArray, FloatArray], window_s: float) -> None:
    t, p = record
    row = RampLimit(LimitId("r"), 20e6, window_s, Direction.BOTH, 0.0, ORIGIN, RampReading.ENDPOINT)
    referee = Referee(Contract("c", (row,), 1e9), gap_s=1.1)
    referee.feed(t, p)
    found = referee.finish().limits[0]
    ends = np.unique(np.concatenate((t, t + window_s)))
    ends = ends[(ends - window_s >= t[0] - 1e-12) & (ends <= t[-1])]
    ends = ends if t[-1] - window_s > t[0] + 1e-9 else ends[:0]  # a single instant is no window that was covered
    ends = ends[known(t, 1.1, ends) & known(t, 1.1, ends - window_s)]
    worst = max((abs(np.interp(e, t, p) - np.interp(e - window_s, t, p)) for e in ends), default=0.0)
    assert (found.endpoint or 0.0) <= worst + 1.0
    assert (found.within or 0.0) >= (found.endpoint or 0.0)
    if np.diff(t).max() <= 1.1:
        assert (found.endpoint or 0.0) == pytest.approx(worst, rel=1e-6, abs=1.0)


@settings(max_examples=40, deadline=None)
@given(records(), st.sampled_from([(2e6, 10e6), (5e6, 30e6), (30e6, 0.0)]))
def test_rate_agrees_with_brute_force(record: tuple[FloatArray, FloatArray], limits: tuple[float, float]) -> None:
    t, p = record
    rate, above = limits
    row = RateLimit(LimitId("r"), rate, above, 0.0, ORIGIN, 8.0)
    referee = Referee(Contract("c", (row,), 1e9), gap_s=1e9)
    referee.feed(t, p)
    found = referee.finish().limits[0]
    lag = t[:, None] - t[None, :]
    pairs = (lag > 0) & (lag <= 8.0)
    allowed = np.maximum(above, rate * lag)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(pairs, np.abs(p[:, None] - p[None, :]) / allowed, 0.0).max()
    scale = above if above > 0.0 else rate
    # Between knots a change may be larger than at them, never by more than the line between them allows.
    assert found.worst >= share * scale * (1.0 - 1e-6)
    dense = np.linspace(t[0], t[-1], 1500)
    value = np.interp(dense, t, p)
    lag = dense[:, None] - dense[None, :]
    pairs = (lag > 1e-3) & (lag <= 8.0)
    allowed = np.maximum(above, rate * np.where(pairs, lag, 1.0))
    share_dense = np.where(pairs, np.abs(value[:, None] - value[None, :]) / allowed, 0.0).max()
    assert found.worst <= max(share, share_dense) * scale * 1.03 + 1.0


def random_record(seed: int, *, uniform: bool) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    steps = np.full(30_000, 0.02) if uniform else rng.uniform(0.012, 0.028, 30_000)
    steps[rng.integers(0, steps.size, 3)] = 4.0
    p = 60e6 + np.cumsum(rng.normal(0.0, 0.15e6, steps.size)) + 3e6 * np.sin(np.arange(steps.size) * 0.3)
    return np.cumsum(steps), p


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_feeding_in_pieces_gives_the_same_verdicts_to_the_last_bit(seed: int, uniform: bool) -> None:
    t, p = random_record(seed, uniform=uniform)
    names = ["ieso", "ercot", "atc-spp", "lipa", "southern", "caiso"]
    contract = load_contract(names, registered_peak_w=100e6)
    whole = Referee(contract, block_samples=4096)
    whole.feed(t, p)
    pieces = Referee(contract, block_samples=4096)
    rng = np.random.default_rng(seed)
    a = 0
    while a < t.size:
        b = a + int(rng.integers(1, 3000))
        pieces.feed(t[a:b], p[a:b])
        a = b
    assert whole.finish().to_json() == pieces.finish().to_json()


@pytest.mark.parametrize("uniform", [True, False])
def test_the_size_of_internal_blocks_does_not_matter(uniform: bool) -> None:
    t, p = random_record(3, uniform=uniform)
    contract = load_contract(["ieso", "ercot", "atc-spp", "southern", "caiso"], registered_peak_w=100e6)
    results = []
    for block in (1000, 7777, 1 << 19):
        referee = Referee(contract, block_samples=block)
        referee.feed(t, p)
        results.append(referee.finish())
    for rows in zip(*(r.limits for r in results), strict=True):
        for row in rows[1:]:
            assert row.verdict is rows[0].verdict
            assert row.worst == pytest.approx(rows[0].worst, rel=1e-6)
            assert row.worst_raw == pytest.approx(rows[0].worst_raw, rel=1e-6)
            assert row.violation_s == pytest.approx(rows[0].violation_s, rel=1e-4, abs=0.05), row.id
            assert row.covered_s == pytest.approx(rows[0].covered_s, rel=1e-6)
            assert row.episodes == rows[0].episodes, row.id


def test_a_window_that_is_no_whole_number_of_steps_agrees_with_the_grid_path() -> None:
    """The event path and the grid path meet where the window is a hair off the grid."""
    rng = np.random.default_rng(5)
    t = np.arange(500) * 0.1
    line = Polyline(t, rng.normal(size=500), np.zeros(500, dtype=np.bool_))
    on_grid = window_intervals(line, window_s=3.0, from_s=-np.inf)
    beside = window_intervals(line, window_s=3.0 + 3e-4, from_s=-np.inf)
    for iv in (on_grid, beside):
        assert np.sum(iv.end - iv.start) == pytest.approx(49.9, abs=1e-6)
    assert np.max(on_grid.right1 - np.fmin(on_grid.low, on_grid.left1)) == pytest.approx(
        np.max(beside.right1 - np.fmin(beside.low, beside.left1)), abs=0.05
    )
