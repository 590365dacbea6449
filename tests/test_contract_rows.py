"""The path and its rows, each against a brute force over the whole path: irregular ticks, edges, trimming."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest

from controller import contract_rows
from controller.contract_rows import Path, RateRow, WindowRow
from controller.types import LimitId, LimitStatus, Provenance, RateLimit

HERE = Provenance(source="test", date="", status=LimitStatus.LOCAL)


def rate(slope: float, above_w: float, horizon_s: float) -> RateLimit:
    return RateLimit(LimitId("rate"), slope, above_w, 1.0, HERE, horizon_s)


class Whole:
    """Every point that ever was, joined by straight lines."""

    def __init__(self, t_s: float, power_w: float) -> None:
        self.t, self.p = [t_s], [power_w]

    def add(self, t_s: float, power_w: float) -> None:
        self.t.append(t_s)
        self.p.append(power_w)

    def since(self, from_s: float, *also_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Times and powers from `from_s` on, the edge and some other instants between points included."""
        extra = [s for s in (from_s, *also_s) if max(self.t[0], from_s) <= s <= self.t[-1]]
        at = np.array(sorted({*(s for s in self.t if s >= from_s), *extra}))
        return at, np.interp(at, self.t, self.p)


# On a grid of eighths every time is exact, so that window edges meet points; the others never meet any.
STEPS = {"exact": (0.125, 0.25, 0.5, 1.0), "odd": (0.05, 0.3, 0.7, 1.9)}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("window_s", [0.125, 2.0, 7.3])
def test_a_window_row_knows_top_and_bottom_of_its_window(
    steps: str, window_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Highest and lowest of the line over the window, its edge included, whatever was trimmed behind it."""
    monkeypatch.setattr(contract_rows, "TRIM_POINTS", 8)
    rng = np.random.default_rng(5)
    path, whole = Path(100.0, 50.0), Whole(100.0, 50.0)
    row = WindowRow(window_s, path)
    assert (row.top_w, row.bottom_w) == (50.0, 50.0)
    assert (row.up_w, row.down_w, row.contingency_down_w) == (math.inf,) * 3, "binds nothing before it is told to"
    for _ in range(400):
        t_s = path.now_s + float(rng.choice(STEPS[steps]))
        power_w = float(rng.choice([path.now_w, rng.uniform(0, 100)]))
        path.append(t_s, power_w)
        whole.add(t_s, power_w)
        row.advance(path)
        path.trim(window_s)
        _, seen = whole.since(t_s - window_s)
        assert row.top_w == pytest.approx(seen.max()) and row.bottom_w == pytest.approx(seen.min())
    assert path.base > 300, "old points were let go"
    assert path.times_s[0] <= path.now_s - window_s, "and none that the window still needs"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("slope", "above_w", "horizon_s"), [(2.0, 4.0, 9.0), (10.0, 20.0, 9.0), (40.0, 20.0, 30.0), (1.0, 20.0, 5.0)]
)
def test_a_rate_row_knows_what_its_horizon_leaves(
    steps: str, slope: float, above_w: float, horizon_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """|P(t) - P(s)| <= max(above, slope age) for every s of the horizon, also where the edge falls between points."""
    monkeypatch.setattr(contract_rows, "TRIM_POINTS", 8)
    rng = np.random.default_rng(7)
    path, whole = Path(100.0, 50.0), Whole(100.0, 50.0)
    row = RateRow(rate(slope, above_w, horizon_s), path)
    assert (row.low_w, row.high_w) == (50.0 - above_w, 50.0 + above_w)
    for k in range(400):
        t_s = path.now_s + float(rng.choice(STEPS[steps]))
        power_w = float(rng.uniform(0, 100)) if k % 40 else path.now_w
        path.append(t_s, power_w)
        whole.add(t_s, power_w)
        row.advance(path)
        path.trim(horizon_s)
        at, seen = whole.since(t_s - horizon_s, t_s - above_w / slope)
        room = np.maximum(above_w, slope * (t_s - at))
        assert row.low_w == pytest.approx((seen - room).max()) and row.high_w == pytest.approx((seen + room).min())
        low, high = row.project(np.array([t_s]), now_s=t_s)
        assert (low[0], high[0]) == (row.low_w, row.high_w), "the present is no projection"
    assert path.base > 300


def test_a_rate_row_made_late_knows_the_path_before_it() -> None:
    """A row that comes into force judges the remembered past as if it had always been there."""
    path = Path(0.0, 50.0)
    for k in range(1, 81):
        path.append(0.5 * k, 50.0 + (30.0 if k == 20 else 0.0))
    row = RateRow(rate(1.0, 5.0, 100.0), path)
    assert row.low_w == pytest.approx(80.0 - 30.0), "the peak of 30 s ago still bounds the fall"


def test_shrinks_come_off_the_slope_that_can_go_on() -> None:
    """The larger of the two shrinks counts: the slope is promised in both directions."""
    row = RateRow(rate(10.0, 20.0, 60.0), Path(0.0, 50.0))
    row.shrink_up_w, row.shrink_down_w = 1.0, 4.0
    assert row.sustained_w_per_s(0.5) == pytest.approx((10.0 * 2.0 - 4.0) / 2.5)
    assert (row.low_w, row.high_w) == (34.0, 69.0)


def test_a_rate_row_that_is_flat_over_its_whole_horizon_lets_all_of_it_go_on() -> None:
    """Its slope never comes to bear: what can go on for ever is `above_w` in each horizon, and never below nothing."""
    row = RateRow(rate(1.0, 1e6, 60.0), Path(0.0, 50.0))
    row.shrink_up_w = 3e4
    assert row.sustained_w_per_s(0.5) == pytest.approx((1e6 - 3e4) / 60.5)


def test_a_projected_rate_row_lets_go_with_time() -> None:
    """Half a second on, an old peak binds by half a second of slope less; the flat part stays."""
    path = Path(0.0, 80.0)
    row = RateRow(rate(10.0, 20.0, 60.0), path)
    for t_s, power_w in ((1.0, 80.0), (1.5, 50.0), (6.0, 50.0)):
        path.append(t_s, power_w)
        row.advance(path)
    low, high = row.project(np.array([6.0, 6.5, 9.0]), now_s=6.0)
    assert low.tolist() == pytest.approx([30.0, 30.0, 20.0])
    assert high.tolist() == pytest.approx([70.0, 70.0, 80.0])


def test_envelopes_of_a_slope() -> None:
    """The peak that a line of slope R ending now must have started from, and the trough; inf slopes see the present."""
    path = Path(10.0, 50.0)
    row = WindowRow(60.0, path)
    for t_s, power_w in ((12.0, 70.0), (14.0, 30.0), (16.0, 40.0)):
        path.append(t_s, power_w)
        row.advance(path)
    assert row.peak_w(16.0, 2.0) == 70.0 - 2.0 * 4.0 and row.trough_w(16.0, 2.0) == 30.0 + 2.0 * 2.0
    assert row.peak_w(16.0, 100.0) == 40.0 and row.trough_w(16.0, 100.0) == 40.0
    assert row.peak_w(16.0, math.inf) == 40.0 and row.trough_w(16.0, math.inf) == 40.0


def test_a_held_or_steadily_moving_path_takes_no_memory() -> None:
    """Days at one power, or along the row's own slope, leave one point in each queue: memory does not grow."""
    path = Path(0.0, 0.0)
    window, rising, falling = (
        WindowRow(1e9, path),
        RateRow(rate(4.0, 2.0, 1e9), path),
        RateRow(rate(4.0, 2.0, 1e9), path),
    )
    down = Path(0.0, 0.0)
    for k in range(1, 200):
        path.append(0.5 * k, 0.0)
        window.advance(path)
        down.append(0.5 * k, -2.0 * k)
        falling.advance(down)
    assert len(window._tops) == len(window._bottoms) == 1
    assert len(falling._highs) == 1, "P + slope s is level along the slope"
    up = Path(0.0, 0.0)
    for k in range(1, 200):
        up.append(0.5 * k, 2.0 * k)
        rising.advance(up)
    assert len(rising._lows) == 1


def test_the_last_point_is_all_that_a_restart_keeps() -> None:
    """After a waiver rows are made anew on a path of one point, and look back no further than it."""
    path = Path(0.0, 90.0)
    for k in range(1, 30):
        path.append(float(k), 90.0)
    path.append(30.0, 20.0)
    path.restart()
    window, sloping = WindowRow(15.0, path), RateRow(rate(1.0, 5.0, 100.0), path)
    for k in range(31, 45):
        path.append(float(k), 20.0 + 0.1 * k)
        window.advance(path)
        sloping.advance(path)
    assert window.top_w == pytest.approx(24.4) and window.bottom_w == 20.0
    assert sloping.low_w == pytest.approx(19.4)


def test_what_lies_beyond_the_horizon_is_let_go() -> None:
    """A rate row keeps no more points than its horizon holds, however long the path falls faster than its slope."""
    path = Path(0.0, 0.0)
    down, up = RateRow(rate(1.0, 2.0, 10.0), path), RateRow(rate(1.0, 2.0, 10.0), path)
    falling, rising = Path(0.0, 0.0), Path(0.0, 0.0)
    for k in range(1, 300):
        falling.append(0.5 * k, -5.0 * k)
        down.advance(falling)
        rising.append(0.5 * k, 5.0 * k)
        up.advance(rising)
    assert 15 <= len(down._highs) <= 21 and 15 <= len(up._lows) <= 21


def test_a_rate_row_holds_what_stands_at_the_very_edge_of_its_horizon() -> None:
    """Nine seconds back exactly, a spike and a dip each bind by nine seconds of slope, and then no more."""
    for spike_w, side in ((0.0, "high_w"), (100.0, "low_w")):
        path = Path(0.0, 50.0)
        row = RateRow(rate(2.0, 4.0, 9.0), path)
        for t_s in (0.5, 1.0, 1.5, *np.arange(2.0, 10.1, 0.5)):
            path.append(float(t_s), spike_w if t_s == 1.0 else 50.0)
            row.advance(path)
        assert getattr(row, side) == {"high_w": 18.0, "low_w": 82.0}[side]
        path.append(10.5, 50.0)
        row.advance(path)
        assert getattr(row, side) == {"high_w": 54.0, "low_w": 46.0}[side]


def test_a_rate_row_sees_the_line_from_its_first_point() -> None:
    """The horizon begins on the line between the first two points: 25 W stood there, less nine seconds of slope."""
    path = Path(0.0, 100.0)
    row = RateRow(rate(2.0, 4.0, 9.0), path)
    for t_s in (4.0, 12.0):
        path.append(t_s, 0.0)
        row.advance(path)
    assert row.low_w == pytest.approx(25.0 - 18.0)


class Counted(list[float]):
    """Counts how often one of its items is looked up."""

    looks = 0

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return super().__getitem__(index)


def test_rows_look_at_few_points_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of some points on a path that keeps hundreds, before and after it was trimmed: no row begins anew."""
    monkeypatch.setattr(contract_rows, "TRIM_POINTS", 200)
    path = Path(0.0, 50.0)
    path.times_s = times = Counted(path.times_s)
    rows = WindowRow(2.0, path), RateRow(rate(20.0, 20.0, 4.0), path)
    for k in range(1, 1500):
        path.append(0.3 * k, 50.0 + k % 7)
        path.trim(4.0)
        for row in rows:
            times.looks = 0
            row.advance(path)
            assert times.looks <= 20, k
    assert path.base == 1200 and path.times_s is times


def test_what_is_left_of_a_row_begins_with_the_point_on_the_edge() -> None:
    """The first kept point at or after each cutoff, the earliest cutoff first; beyond the last there is none."""
    points = deque([(1.0, 9.0), (2.0, 7.0), (4.0, 5.0)])
    found = contract_rows._extreme_after(points, np.array([0.0, 1.0, 1.5, 2.0, 2.0, 4.0, 4.5]), -math.inf)
    assert found.tolist() == [9.0, 9.0, 7.0, 7.0, 7.0, 5.0, -math.inf]
