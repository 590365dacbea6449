"""The admissible interval, judged by a brute force that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.contract import AdmissibleInterval, Interval
from controller.types import Direction, Limit, RateLimit
from tests.contract_kit import allowed_w, known, ramp, rate, swing, worst_excess_w

plain_rows = st.lists(
    st.one_of(
        st.builds(
            ramp,
            st.floats(0.5e6, 30e6),
            st.floats(0.5, 40.0),
            st.sampled_from(list(Direction)),
        ),
        st.builds(swing, st.floats(0.5e6, 30e6), st.floats(0.5, 40.0)),
        st.builds(rate, st.floats(0.05e6, 2e6), st.floats(1e6, 20e6), st.floats(2.0, 60.0)),
    ),
    min_size=1,
    max_size=4,
)
# Where in the interval each step goes, and how long it takes: mostly to an edge, for that is where rows break.
moves = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0)), st.sampled_from([0.01, 0.05, 0.1, 0.7, 3.0, 11.0])
    ),
    min_size=5,
    max_size=60,
)


def follow(interval: AdmissibleInterval, steps: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Walk the interval: each step goes to a share of the way from low to high (bounded where no row binds)."""
    times, powers = [interval.now_s], [interval.now_w]
    for share, dt_s in steps:
        t_s = times[-1] + dt_s
        found = interval.bounds(t_s)
        assert found.low_w <= powers[-1] <= found.high_w, "holding is always admissible"
        low_w, high_w = max(found.low_w, powers[-1] - 60e6), min(found.high_w, powers[-1] + 60e6)
        interval.push(t_s, low_w + share * (high_w - low_w))
        times.append(t_s)
        powers.append(interval.now_w)
    return np.array(times), np.array(powers)


@settings(max_examples=150, deadline=None)
@given(limits=plain_rows, steps=moves)
def test_following_the_interval_never_breaks_a_row(limits: list[Limit], steps: list[tuple[float, float]]) -> None:
    """Random rows, edges and tick lengths: no row breaks at any instant, and holding is always allowed."""
    interval = AdmissibleInterval(limits, start_s=5.0, start_w=40e6, tick_s=0.05)
    interval._known_since_s = -1e9  # the past is known, so that whole bursts are free
    times, powers = follow(interval, steps)
    assert worst_excess_w(times, powers, limits) <= 1e-3


@settings(max_examples=120, deadline=None)
@given(before=plain_rows, after=plain_rows, first=moves, second=moves)
def test_a_change_of_limits_at_any_moment_is_safe(
    before: list[Limit], after: list[Limit], first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    """The new rows hold in every window since the change, and rows of both contracts hold across it."""
    interval = AdmissibleInterval(before, start_s=0.0, start_w=40e6, tick_s=0.05)
    interval._known_since_s = -1e9
    kept = before[0]
    t0, p0 = follow(interval, first)
    change_s = interval.now_s
    interval.set_limits([kept, *after], change_s)
    t1, p1 = follow(interval, second)
    assert worst_excess_w(t1, p1, [kept, *after], from_s=change_s) <= 1e-3
    times, powers = np.concatenate([t0, t1[1:]]), np.concatenate([p0, p1[1:]])
    assert worst_excess_w(times, powers, [kept]) <= 1e-3


@settings(max_examples=80, deadline=None)
@given(limits=plain_rows, first=moves, second=moves, residual=st.floats(0.0, 2e6), dip=st.floats(0.0, 4e6))
def test_a_growing_shrink_never_empties_the_interval(
    limits: list[Limit],
    first: list[tuple[float, float]],
    second: list[tuple[float, float]],
    residual: float,
    dip: float,
) -> None:
    """Residual and dip appear in the middle of a run: holding stays admissible and the full rows never break."""
    interval = AdmissibleInterval(limits, start_s=0.0, start_w=40e6, tick_s=0.05)
    interval._known_since_s = -1e9
    t0, p0 = follow(interval, first)
    interval.set_shrink(residual, {limit.id: dip for limit in limits})
    t1, p1 = follow(interval, second)
    times, powers = np.concatenate([t0, t1[1:]]), np.concatenate([p0, p1[1:]])
    assert worst_excess_w(times, powers, limits) <= 1e-3


def exact_bounds(times: np.ndarray, powers: np.ndarray, limits: list[Limit]) -> tuple[float, float]:
    """The interval from its definition: every row over its own window back from the last point, edges included."""
    now_s, now_w = float(times[-1]), float(powers[-1])
    low, high = -math.inf, math.inf
    for limit in limits:
        reach_s = limit.horizon_s if isinstance(limit, RateLimit) else limit.window_s  # type: ignore[union-attr]
        edges = [now_s - reach_s]
        if isinstance(limit, RateLimit):
            edges.append(now_s - min(limit.above_w / limit.max_w_per_s, reach_s))
        at = np.concatenate([times[times >= now_s - reach_s], [edge for edge in edges if edge >= times[0]]])
        value, lag = np.interp(at, times, powers), now_s - at
        lag = np.minimum(lag, reach_s)
        low = max(low, float(np.max(value - allowed_w(limit, lag, is_up=False))))
        high = min(high, float(np.min(value + allowed_w(limit, lag, is_up=True))))
    return min(low, now_w), max(high, now_w)


@settings(max_examples=80, deadline=None)
@given(limits=plain_rows, steps=moves)
def test_the_interval_gives_nothing_away(limits: list[Limit], steps: list[tuple[float, float]]) -> None:
    """Bounds equal their definition: as safe as that, and no tighter, whatever the history."""
    interval = AdmissibleInterval(limits, start_s=0.0, start_w=40e6, tick_s=0.05)
    interval._known_since_s = -1e9
    times, powers = follow(interval, steps)
    for count in range(2, len(times) + 1, 3):
        low, high = exact_bounds(times[:count], powers[:count], limits)
        again = AdmissibleInterval(limits, start_s=0.0, start_w=40e6, tick_s=0.05)
        again._known_since_s = -1e9
        for t_s, power_w in zip(times[1:count], powers[1:count], strict=True):
            again.push(float(t_s), float(power_w))
        found = again.bounds(float(times[count - 1]) + 0.05)
        assert found.low_w == pytest.approx(low, abs=200.0)
        assert found.high_w == pytest.approx(high, abs=200.0)


@pytest.mark.parametrize("is_up", [True, False])
def test_a_rate_row_binds_old_points_by_its_slope(is_up: bool) -> None:
    """6 MW flat, 0.1 MW/s beyond, over 200 s: a second burst too soon would break it."""
    sign = 1.0 if is_up else -1.0
    interval = AdmissibleInterval([rate(0.1e6, 6e6, 200.0)], start_s=0.0, start_w=50e6, tick_s=0.5)
    interval._known_since_s = -1e9

    def edge_w(t_s: float) -> float:
        found = interval.bounds(t_s)
        return (found.high_w if is_up else found.low_w) - 50e6

    interval.push(0.5, 50e6 + sign * 6e6 * (1 - 1e-6))
    assert sign * edge_w(1.0) == pytest.approx(6e6, rel=1e-4), "the burst is spent"
    level_w = interval.now_w
    while interval.now_s < 80.0:
        interval.push(interval.now_s + 0.5, level_w)
    assert sign * edge_w(80.5) == pytest.approx(8e6, rel=1e-3), "after 80 s of 0.1 MW/s: 8 MW from the start"
    while interval.now_s < 210.0:
        interval.push(interval.now_s + 0.5, level_w)
    assert sign * edge_w(210.5) == pytest.approx(12e6, rel=1e-3), "the start is beyond the horizon"


def test_projection_keeps_a_point_until_it_has_left_the_window() -> None:
    """A peak 15 s and a little ago still binds at the instant before it leaves, one tick of margin included."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    interval.push(0.1, 48e6)
    low, high = interval.project([15.0, 15.05, 15.3])
    assert low[0] == pytest.approx(45e6, rel=1e-4)
    assert low[1] == pytest.approx(45e6, rel=1e-4)
    assert low[2] == -math.inf
    assert high[0] == pytest.approx(53e6, rel=1e-4)


def test_the_whole_swing_is_free_at_once_and_then_the_window_is_waited_out() -> None:
    """A 5 MW / 15 s row allows 5 MW in one tick, nothing more for 15 s, then the next 5 MW."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval._known_since_s = -1e9
    low_w = interval.bounds(0.05).low_w
    assert low_w == pytest.approx(45e6, rel=1e-5)
    interval.push(0.05, low_w)
    assert interval.bounds(0.1).low_w == pytest.approx(low_w)
    for tick in range(2, 302):
        interval.push(tick * 0.05, low_w)
    assert interval.bounds(15.15).low_w == pytest.approx(40e6, rel=1e-5)


def test_swing_free_again_in_both_directions_has_no_stale_memory() -> None:
    """Up rows bind upwards only: an upward ramp row leaves the downward side unbounded."""
    interval = AdmissibleInterval([ramp(5e6, 15.0, Direction.UP)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval._known_since_s = -1e9
    found = interval.bounds(0.05)
    assert found.low_w == -math.inf
    assert found.high_w == pytest.approx(55e6, rel=1e-5)


def test_unknown_past_limits_slopes_for_one_window() -> None:
    """After start the past is the present mean: no burst until each row's window is known."""
    interval = AdmissibleInterval([swing(5e6, 15.0), ramp(20e6, 60.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    assert interval.bounds(0.1).low_w == pytest.approx(50e6 - 5e6 / 15.0 * 0.1, rel=1e-6)
    for tick in range(1, 620):
        interval.push(tick * 0.1, 50e6)
    assert interval.bounds(62.1).low_w == pytest.approx(45e6, rel=1e-5)


def test_reanchor_jumps_and_holding_stays_admissible() -> None:
    """Metered power was 12 MW away from the target: the path takes it, and the interval still holds the present."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval.push(0.1, 50e6)
    interval.reanchor(0.1, 38e6)
    found = interval.bounds(0.2)
    assert found.low_w == 38e6
    assert found.high_w <= 43e6


def test_project_agrees_with_bounds_of_a_held_path() -> None:
    """What the past leaves at a future instant is what `bounds` says once the path was held until then."""
    rows: list[Limit] = [swing(5e6, 15.0), ramp(9e6, 60.0), rate(0.5e6, 6e6, 100.0)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    rng = np.random.default_rng(3)
    for _ in range(400):
        t_s = interval.now_s + 0.1
        found = interval.bounds(t_s)
        interval.push(t_s, found.low_w + rng.uniform() * (found.high_w - found.low_w))
    start_s, held_w = interval.now_s, interval.now_w
    ahead = np.array([0.1, 5.0, 14.0, 30.0])
    low, high = interval.project(start_s + ahead)
    step = 0
    for index, lead in enumerate(ahead):
        while start_s + step * 0.1 < start_s + lead - 0.05 - 1e-9:
            step += 1
            interval.push(start_s + step * 0.1 - 0.05, held_w)
        found = interval.bounds(start_s + lead)
        # The projection binds at most as much as bounds (which also knows the held path), but never less by a step.
        assert low[index] <= found.low_w + 0.2e6
        assert high[index] >= found.high_w - 0.2e6
    assert np.all(low <= held_w) and np.all(high >= held_w)


def test_projection_is_never_looser_than_the_truth() -> None:
    """A path kept inside the projection at one future instant breaks no row against the past."""
    rows: list[Limit] = [swing(5e6, 15.0), ramp(9e6, 60.0), rate(0.5e6, 6e6, 100.0)]
    rng = np.random.default_rng(11)
    for _ in range(20):
        interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.1)
        interval._known_since_s = -1e9
        times, powers = follow(interval, [(float(rng.uniform()), 0.4) for _ in range(120)])
        lead_s = float(rng.uniform(0.1, 50.0))
        low, high = interval.project([interval.now_s + lead_s])
        for edge in (low[0], high[0]):
            target = float(np.clip(edge, powers[-1] - 60e6, powers[-1] + 60e6))
            at = np.append(times, times[-1] + lead_s)
            value = np.append(powers, target)
            change = target - np.interp(at, times, powers)
            lag = at[-1] - at
            for row in rows:
                for is_up in (True, False):
                    room = allowed_w(row, lag, is_up=is_up)[:-1]
                    assert np.all((change if is_up else -change)[:-1] <= room + 1e-3)
            assert value[-1] == target


def test_path_is_trimmed_without_changing_the_answer() -> None:
    """Over many windows memory stays bounded and bounds equal those of an interval that never trims."""
    rows: list[Limit] = [swing(5e6, 15.0), rate(0.3e6, 6e6, 60.0)]
    short = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05, remember_s=1.0)
    long = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05, remember_s=1e9)
    rng = np.random.default_rng(1)
    for _ in range(30_000):
        t_s = short.now_s + 0.05
        found = short.bounds(t_s)
        assert found == long.bounds(t_s)
        power_w = found.low_w + rng.uniform() * (found.high_w - found.low_w)
        short.push(t_s, power_w)
        long.push(t_s, power_w)
    assert len(short._path.times_s) < 12_000


def test_clip() -> None:
    assert Interval(1.0, 2.0).clip(5.0) == 2.0
    assert Interval(1.0, 2.0).clip(0.0) == 1.0


def test_a_longer_window_than_any_so_far_starts_unknown() -> None:
    """A row that looks further back than what was kept treats the rest as unknown: slopes only, at first."""
    interval = AdmissibleInterval([swing(5e6, 1.0)], start_s=0.0, start_w=50e6, tick_s=0.05, remember_s=1.0)
    while interval.now_s < 600.0:
        interval.push(interval.now_s + 0.05, 50e6)
    interval.set_limits([swing(5e6, 500.0)], interval.now_s)
    now_s = interval.now_s
    assert interval.bounds(now_s + 0.1).low_w == pytest.approx(50e6 - 5e6 / 500.0 * 0.1, rel=1e-6)


def test_unknown_past_limits_rises_as_well() -> None:
    """The same bound upwards, at the up row's own slope, and for rate rows."""
    rows: list[Limit] = [ramp(6e6, 20.0, Direction.UP)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    assert interval.bounds(0.1).high_w == pytest.approx(50e6 + 6e6 / 20.0 * 0.1, rel=1e-6)
    interval = AdmissibleInterval([rate(0.5e6, 6e6)], start_s=0.0, start_w=50e6, tick_s=0.05)
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (pytest.approx(49.95e6, rel=1e-6), pytest.approx(50.05e6, rel=1e-6))


def test_a_window_is_known_from_its_last_second_on() -> None:
    """15 s after the start the unknown past has left a 15 s window, and 60 s after it a rate row of 60 s."""
    for row in (swing(5e6, 15.0), rate(1e6, 5e6, 15.0)):
        interval = AdmissibleInterval([row], start_s=0.0, start_w=50e6, tick_s=0.5)
        interval.push(14.5, 50e6)
        assert interval.bounds(15.0).low_w > 49e6
        interval.push(15.0, 50e6)
        assert interval.bounds(15.5).low_w == pytest.approx(45e6, rel=1e-5)


def test_time_does_not_run_back_with_an_old_reading() -> None:
    """A meter reading older than the path's end moves the power, not the time."""
    interval = known([swing(5e6, 15.0)])
    interval.push(2.0, 51e6)
    interval.reanchor(1.5, 49e6)
    assert (interval.now_s, interval.now_w) == (2.0, 49e6)


def test_rows_taken_out_of_force_bind_no_more() -> None:
    """A rate row goes with the contract that had it, and one that stays keeps what it has seen."""
    interval = known([rate(0.5e6, 6e6), swing(9e6, 15.0)])
    interval.push(1.0, 48e6)
    interval.set_limits([swing(9e6, 15.0)], 1.0)
    assert interval.bounds(1.1).low_w == pytest.approx(41e6, rel=1e-5)
    interval.set_limits([], 1.0)
    assert interval.bounds(1.1) == Interval(-math.inf, math.inf)


def test_the_path_is_kept_as_long_as_any_row_looks_back() -> None:
    """Ten minutes by default, and longer where a row does: the shortest of several rows decides nothing."""
    plain = AdmissibleInterval([], start_s=0.0, start_w=50e6, tick_s=0.1)
    rows: list[Limit] = [swing(5e6, 2.0), ramp(9e6, 900.0)]
    long = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.1, remember_s=1.0)
    for k in range(1, 11_001):
        plain.push(0.1 * k, 50e6)
        long.push(0.1 * k, 50e6)
    assert 0.0 < plain._path.times_s[0] <= 500.0
    assert long._path.times_s[0] <= 200.0
