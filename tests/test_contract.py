"""The admissible interval, judged by a brute force that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.contract import KEPT_FRAC, KEPT_FRAC_HOPELESS, AdmissibleInterval, Interval
from controller.slope_bound import band_seconds, line_seconds, swing_seconds
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


def ramp(max_w: float, window_s: float, direction: Direction = Direction.BOTH, name: str = "ramp") -> RampLimit:
    return RampLimit(LimitId(name), max_w, window_s, direction, 1.0, HERE)


def swing(max_w: float, window_s: float, name: str = "swing") -> SwingLimit:
    return SwingLimit(LimitId(name), max_w, window_s, 1.0, HERE)


def rate(max_w_per_s: float, above_w: float, horizon_s: float = 600.0) -> RateLimit:
    return RateLimit(LimitId("rate"), max_w_per_s, above_w, 1.0, HERE, horizon_s)


def ceiling(max_w: float, from_s: float, until_s: float = math.inf) -> CeilingLimit:
    return CeilingLimit(LimitId("ceiling"), max_w, from_s, HERE, until_s=until_s)


def allowed_w(limit: Limit, lag_s: np.ndarray, *, is_up: bool) -> np.ndarray:
    """What a row lets power change over each lag; written from the meaning of the rows alone."""
    if isinstance(limit, RampLimit):
        is_judged = limit.direction in (Direction.BOTH, Direction.UP if is_up else Direction.DOWN)
        return np.where((lag_s <= limit.window_s) & is_judged, limit.max_w, np.inf)
    if isinstance(limit, SwingLimit):
        return np.where(lag_s <= limit.window_s, limit.max_w, np.inf)
    assert isinstance(limit, RateLimit)
    flat = np.maximum(limit.above_w, limit.max_w_per_s * lag_s)
    return np.where(lag_s <= limit.horizon_s, flat, np.inf)


def instants_to_judge(times: np.ndarray, limits: list[Limit]) -> np.ndarray:
    """Every point, every middle and every instant at which a window's edge meets a point, from either side."""
    spans = [0.0]
    for limit in limits:
        if isinstance(limit, RateLimit):
            spans += [limit.horizon_s, limit.above_w / limit.max_w_per_s]
        else:
            spans.append(limit.window_s)
    shifted = [times + span for span in spans] + [times - span for span in spans]
    middles = (times[1:] + times[:-1]) / 2.0
    every = np.unique(np.concatenate([*shifted, middles]))
    return every[(every >= times[0]) & (every <= times[-1])]


def worst_excess_w(times: np.ndarray, powers: np.ndarray, limits: list[Limit], *, from_s: float = -math.inf) -> float:
    """How far the piecewise linear path breaks any row in windows that end after `from_s`; negative when it holds."""
    at = instants_to_judge(times, limits)
    value = np.interp(at, times, powers)
    lag = at[:, None] - at[None, :]
    change = value[:, None] - value[None, :]
    judged = (lag >= 0.0) & (at[None, :] >= from_s)
    worst = -math.inf
    for limit in limits:
        # A lag a rounding error above the window is the window itself.
        near = np.maximum(lag - 1e-9, 0.0)
        for is_up in (True, False):
            excess = (change if is_up else -change) - allowed_w(limit, near, is_up=is_up)
            worst = max(worst, float(np.max(np.where(judged, excess, -np.inf))))
    return worst


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


def test_projection_looks_ahead_to_a_ceiling_or_a_floor_alone() -> None:
    """From 50 MW, 1 MW/s at most: a ceiling of 45 or a floor of 55, due in 2 s, is what the projection ends at."""
    rows = [swing(60e6, 60.0)]
    over = AdmissibleInterval([*rows, ceiling(45e6, 2.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    low, high = over.project([100.0])
    assert high[0] == 45e6 and low[0] <= high[0]
    floor = FloorLimit(LimitId("floor"), 55e6, 2.0, HERE)
    under = AdmissibleInterval([*rows, floor], start_s=0.0, start_w=50e6, tick_s=0.05)
    low, high = under.project([100.0])
    assert low[0] == 55e6 and high[0] >= low[0]


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


def test_slopes_carry_shrinks() -> None:
    """R_n loses residual and dip, R_c the residual alone."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_shrink(0.5e6, {LimitId("swing"): 2e6})
    assert interval.slope_down_w_per_s == pytest.approx(2.5e6 / 15.05, rel=1e-4)
    assert interval.contingency_slope_w_per_s == pytest.approx(4.5e6 / 15.05, rel=1e-4)
    assert interval.slope_up_w_per_s == pytest.approx(4.5e6 / 15.05, rel=1e-4)


def test_residual_may_be_given_per_row() -> None:
    """Each row has its own metering, so its own residual."""
    rows: list[Limit] = [swing(5e6, 15.0), ramp(20e6, 60.0)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_shrink({LimitId("swing"): 1e6}, {})
    assert interval.slope_down_w_per_s == pytest.approx(4e6 / 15.05, rel=1e-4)


def test_an_overspent_row_keeps_a_share() -> None:
    """A residual as large as the row leaves a tenth, and says so; at twice the row half is kept, and never more."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    for residual_w, kept_frac in ((5e6, KEPT_FRAC), (7.5e6, 0.3), (10e6, KEPT_FRAC_HOPELESS), (60e6, 0.5)):
        interval.set_shrink(residual_w, {})
        assert interval.is_overspent
        assert interval.slope_down_w_per_s == pytest.approx(kept_frac * 5e6 / 15.05, rel=1e-6)
    interval.set_shrink(0.0, {})
    assert not interval.is_overspent


def test_only_rows_in_force_are_spent() -> None:
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_limits([ramp(9e6, 15.0)], 1.0)
    assert set(interval.spent_down_w()) == set(interval.spent_up_w()) == {LimitId("ramp")}


def test_spent_windows() -> None:
    """Spent is the window's maximum less the present; the contingency line waits it out."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.push(1.0, 47e6)
    assert interval.spent_down_w()[LimitId("swing")] == pytest.approx(3e6)
    assert interval.spent_up_w()[LimitId("swing")] == pytest.approx(0.0)
    r_c = interval.contingency_slope_w_per_s
    assert interval.contingency_excess_w == pytest.approx(3e6 - r_c * 1.0)
    interval.push(11.0, 47e6)
    assert interval.contingency_excess_w == pytest.approx(0.0, abs=1.0)


def walk_at_high(interval: AdmissibleInterval, *, until_s: float, dt_s: float = 0.05) -> None:
    while interval.now_s < until_s:
        t_s = interval.now_s + dt_s
        found = interval.bounds(t_s)
        interval.push(t_s, min(found.high_w, 50e6))


def test_a_ceiling_announced_early_is_met_in_time() -> None:
    """20 MW of fall at 0.33 MW/s is announced 120 s ahead: the target waits, then reaches it, and no row breaks."""
    rows: list[Limit] = [swing(5e6, 15.0)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_limits([*rows, ceiling(30e6, 120.0)], 0.0)
    assert interval.due_status()[0].is_bounded is False
    times, powers = [0.0], [50e6]
    while interval.now_s < 130.0:
        t_s = interval.now_s + 0.05
        interval.push(t_s, min(interval.bounds(t_s).high_w, 50e6))
        times.append(t_s)
        powers.append(interval.now_w)
    path_t, path_p = np.array(times), np.array(powers)
    assert path_p[path_t <= 50.0].min() == pytest.approx(50e6), "no earlier than it must"
    assert path_p[path_t >= 120.0].max() <= 30e6 + 1.0
    assert worst_excess_w(path_t[::7], path_p[::7], rows) <= 1e-3


def test_a_ceiling_due_too_soon_is_followed_at_low_and_says_when() -> None:
    """20 MW in 10 s cannot be: the target goes along `low`, and the promised time is kept."""
    rows: list[Limit] = [swing(5e6, 15.0)]
    interval = AdmissibleInterval([*rows, ceiling(30e6, 10.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    status = interval.due_status()[0]
    assert status.is_bounded
    assert status.met_at_s == pytest.approx(20e6 / (5e6 / 15.05), rel=1e-3)
    walk_at_high(interval, until_s=12.0)
    found = interval.bounds(interval.now_s + 0.05)
    assert found.high_w == found.low_w
    walk_at_high(interval, until_s=status.met_at_s)
    assert interval.now_w <= 30e6 + 1e3
    assert not interval.due_status()[0].is_bounded


def test_a_spent_window_is_counted_in_the_promised_time() -> None:
    """A burst just before the announcement delays the promise, and the promise is still kept."""
    rows: list[Limit] = [swing(5e6, 15.0)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    interval._known_since_s = -1e9
    interval.push(1.0, interval.bounds(1.0).low_w)
    interval.set_limits([*rows, ceiling(43e6, 1.0)], 1.0)
    status = interval.due_status()[0]
    assert status.is_bounded
    assert status.met_at_s == pytest.approx(7e6 / (5e6 / 15.05), rel=0.06)
    walk_at_high(interval, until_s=status.met_at_s)
    assert interval.now_w <= 43e6 + 1e4


def test_ceiling_beats_floor_and_ends_with_its_time() -> None:
    """A floor above a ceiling gives way; after `until` the ceiling is gone."""
    floor = FloorLimit(LimitId("floor"), 60e6, -math.inf, HERE)
    interval = AdmissibleInterval(
        [floor, ceiling(50e6, -math.inf, until_s=10.0)], start_s=0.0, start_w=50e6, tick_s=0.1
    )
    found = interval.bounds(0.1)
    assert found.low_w <= found.high_w <= 50e6
    assert interval.bounds(10.0).high_w == math.inf


def test_floor_is_approached_from_below_as_rows_let() -> None:
    """A floor due in 60 s is climbed to in time."""
    floor = FloorLimit(LimitId("floor"), 60e6, 60.0, HERE)
    interval = AdmissibleInterval([swing(5e6, 15.0), floor], start_s=0.0, start_w=50e6, tick_s=0.1)
    while interval.now_s < 60.0:
        t_s = interval.now_s + 0.1
        interval.push(t_s, max(interval.bounds(t_s).low_w, 50e6))
    assert interval.now_w >= 60e6 - 10.0


def test_waiver_lets_jump_and_the_past_is_forgotten_after_it() -> None:
    """An issuer's waiver lifts the rows until its end; from then on rows judge afresh and hold what is there."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval.waive_ramps(1.0, with_bands=True)
    assert interval.bounds(0.1).low_w == -math.inf
    interval.push(0.1, 20e6)
    interval.push(1.0, 20e6)
    interval._known_since_s = -1e9
    found = interval.bounds(1.1)
    assert (found.low_w, found.high_w) == (pytest.approx(15e6, rel=1e-4), pytest.approx(25e6, rel=1e-4))


def test_waiver_keeps_the_slope_of_bands_unless_told() -> None:
    """A jump would break a band row, so a waiver of ramps alone keeps its slope."""
    band = BandLimit(LimitId("band"), 10e6, (0.1, 5.0), HERE)
    interval = AdmissibleInterval([swing(5e6, 15.0), band], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval.waive_ramps(1.0, with_bands=False)
    assert interval.bounds(0.1).low_w == pytest.approx(50e6 - 0.1 * 10e6 / band_seconds(0.1, 5.0), rel=1e-4)


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


def test_slope_constants_match_the_published_filter() -> None:
    """K of the auditor's filter: 1.95 s from 0.1 Hz, 0.039 s for 5-55 Hz, 3.76 s for the peak to peak of 5 s."""
    assert band_seconds(0.1, 20.0) == pytest.approx(1.95, rel=0.005)
    assert band_seconds(5.0, 55.0) == pytest.approx(0.039, rel=0.01)
    assert swing_seconds(0.1, 55.0, 5.0) == pytest.approx(3.76, rel=0.005)
    assert line_seconds(0.1, 20.0, 20.0) > line_seconds(1.0, 20.0, 20.0)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_slope_bound_keeps_filtered_rows(seed: int) -> None:
    """Any path along the interval of band, filtered swing and oscillation rows reads below them after the filter."""
    from scipy import signal

    rows: list[Limit] = [
        BandLimit(LimitId("band"), 3e6, (0.1, 5.0), HERE),
        SwingLimit(LimitId("ercot"), 6e6, 5.0, 0.0, HERE, (0.1, 55.0)),
        OscillationLimit(LimitId("line"), 2.5e6, (0.1, 20.0), 20.0, HERE),
    ]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    rng = np.random.default_rng(seed)
    dt_s, powers, share = 0.05, [50e6], 1.0
    for _ in range(2400):
        if rng.uniform() < 0.02:
            share = float(rng.integers(0, 2))
        t_s = interval.now_s + dt_s
        found = interval.bounds(t_s)
        interval.push(t_s, found.low_w + share * (found.high_w - found.low_w))
        powers.append(interval.now_w)
    fine = np.interp(np.arange(0, 120, 0.005), np.arange(2401) * dt_s, powers)
    for lo_hz, hi_hz, limit_w, is_span in ((0.1, 5.0, 3e6, False), (0.1, 55.0, 6e6, True)):
        sos = signal.butter(4, [lo_hz, hi_hz], "bandpass", fs=200.0, output="sos")
        filtered = signal.sosfiltfilt(sos, fine)[2000:-2000]
        if is_span:
            windows = np.lib.stride_tricks.sliding_window_view(filtered, 1001)[::50]
            assert (windows.max(axis=1) - windows.min(axis=1)).max() <= limit_w
        else:
            assert np.abs(filtered).max() <= limit_w
    window = signal.get_window("hann", 4000)
    for start in range(0, len(fine) - 4000, 2000):
        part = signal.detrend(fine[start : start + 4000]) * window
        lines = 2.0 * np.abs(np.fft.rfft(part)) / window.sum()
        band = np.fft.rfftfreq(4000, 0.005)
        assert lines[(band >= 0.1) & (band <= 20.0)].max() <= 2.5e6


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


@pytest.mark.parametrize("row", [rate(0.5e6, 6e6), swing(5e6, 15.0)])
def test_shrinks_reach_bounds_and_projection_alike(row: Limit) -> None:
    """1 MW of residual and, downwards, 2 MW of dip come off what bounds and projection leave of the row."""
    interval = AdmissibleInterval([row], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    interval.push(0.1, 50e6)
    max_w = 6e6 if isinstance(row, RateLimit) else 5e6
    interval.set_shrink(1e6, {row.id: 2e6})
    found = interval.bounds(0.2)
    low, high = interval.project([0.2])
    assert found.low_w == pytest.approx(50e6 - max_w + 3e6, rel=1e-4) == low[0]
    assert found.high_w == pytest.approx(50e6 + max_w - 1e6, rel=1e-4) == high[0]


def test_slopes_of_rate_rows_last_for_ever() -> None:
    """The stated slope can be walked for ten minutes without the interval stopping it, and not much more than it."""
    for sign in (1.0, -1.0):
        interval = AdmissibleInterval([rate(0.5e6, 6e6)], start_s=0.0, start_w=500e6, tick_s=0.5)
        interval._known_since_s = -1e9
        assert interval.slope_down_w_per_s == pytest.approx(0.5e6 * 12.0 / 12.5, rel=1e-4)
        interval.set_shrink(1e6, {})
        slope = interval.slope_up_w_per_s if sign > 0 else interval.slope_down_w_per_s
        assert slope == pytest.approx((0.5e6 * 12.0 - 1e6) / 12.5, rel=1e-4)
        for _ in range(1200):
            wanted_w = interval.now_w + sign * slope * 0.5
            assert interval.bounds(interval.now_s + 0.5).clip(wanted_w) == pytest.approx(wanted_w, abs=1.0)
            interval.push(interval.now_s + 0.5, wanted_w)


def test_a_spent_window_survives_a_change_of_slope() -> None:
    """The contingency line is drawn anew when a shrink changes R_c: 4 MW spent 5 s ago, at the new slope."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    interval.push(0.1, 46e6)
    interval.push(5.0, 46e6)
    interval.set_shrink(2e6, {})
    r_c = interval.contingency_slope_w_per_s
    assert r_c == pytest.approx(3e6 / 15.1, rel=1e-4)
    assert interval.contingency_excess_w == pytest.approx(4e6 - 5.0 * r_c, rel=1e-4)
    assert interval.contingency_excess_up_w == 0.0
    interval.push(5.1, 49e6)
    interval.push(9.0, 49e6)
    interval.set_shrink(0.0, {})
    assert interval.contingency_excess_up_w == pytest.approx(3e6 - 4.0 * 5e6 / 15.1, rel=1e-4)


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


def test_spent_windows_of_rate_rows() -> None:
    """A 2 MW fall has spent 2 MW of a rate row's flat part downwards and nothing upwards."""
    interval = AdmissibleInterval([rate(0.5e6, 6e6)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.push(1.0, 48e6)
    assert interval.spent_down_w()[LimitId("rate")] == pytest.approx(2e6, rel=1e-4)
    assert interval.spent_up_w()[LimitId("rate")] == pytest.approx(0.0, abs=10.0)


def test_promised_times_follow_the_path() -> None:
    """The promise of a late ceiling moves out with a rise of the path; a floor's is its mirror image."""
    rows: list[Limit] = [swing(5e6, 15.0)]
    interval = AdmissibleInterval([*rows, ceiling(40e6, -math.inf)], start_s=0.0, start_w=50e6, tick_s=0.05)
    slope = interval.slope_down_w_per_s
    interval.push(10.0, 53e6)
    assert interval.due_status()[0].met_at_s == pytest.approx(10.0 + 13e6 / slope, rel=1e-6)
    interval.push(20.0, 49e6)
    assert interval.due_status()[0].met_at_s == pytest.approx(20.0 + (13e6 - 10.0 * slope) / slope, rel=1e-6)
    floor = FloorLimit(LimitId("floor"), 60e6, -math.inf, HERE)
    interval = AdmissibleInterval([*rows, floor], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.push(10.0, 47e6)
    interval.push(20.0, 51e6)
    assert interval.due_status()[0].met_at_s == pytest.approx(20.0 + (13e6 - 10.0 * slope) / slope, rel=1e-6)


def test_projection_knows_the_slope_of_bands() -> None:
    """Ten seconds ahead a band row leaves ten seconds of its slope either way."""
    band = BandLimit(LimitId("band"), 1e6, (0.1, 5.0), HERE)
    interval = AdmissibleInterval([band], start_s=0.0, start_w=50e6, tick_s=0.1)
    low, high = interval.project([10.0])
    reach_w = 10.0 * 1e6 / band_seconds(0.1, 5.0)
    assert interval.band_slope_w_per_s == pytest.approx(reach_w / 10.0, rel=1e-4)
    assert (low[0], high[0]) == (pytest.approx(50e6 - reach_w, rel=1e-4), pytest.approx(50e6 + reach_w, rel=1e-4))


# ------------------------------------------------------------------------------------------------ small print


def known(rows: list[Limit], *, start_w: float = 50e6, tick_s: float = 0.1) -> AdmissibleInterval:
    """An interval whose past is known to be flat for as long as any row looks back."""
    interval = AdmissibleInterval(rows, start_s=-1000.0, start_w=start_w, tick_s=tick_s)
    interval.push(0.0, start_w)
    return interval


def floor_row(min_w: float, from_s: float, until_s: float = math.inf) -> FloorLimit:
    return FloorLimit(LimitId("floor"), min_w, from_s, HERE, until_s=until_s)


@pytest.mark.parametrize("residual", [0.0, {}])
@pytest.mark.parametrize("row", [swing(100.0, 15.0), rate(10.0, 100.0), ramp(100.0, 15.0)])
def test_a_site_of_a_few_watts_gets_every_watt_of_its_rows(row: Limit, residual: float | dict[LimitId, float]) -> None:
    """Nothing but rounding is taken off where nothing was measured: 100 W are 100 W, at once and as a slope."""
    interval = known([row, ceiling(950.0, -1.0), floor_row(1.0, -1.0)], start_w=1000.0)
    interval.set_shrink(5.0, {})
    interval.set_shrink(residual, {})
    assert (interval.now_w - interval.bounds(0.1).low_w) == pytest.approx(100.0, abs=0.01)
    assert interval.slope_down_w_per_s == pytest.approx(
        100.0 / (15.1 if not isinstance(row, RateLimit) else 10.1), 1e-4
    )
    assert interval.slope_up_w_per_s == interval.slope_down_w_per_s == interval.contingency_slope_w_per_s
    assert interval.due_status()[0].met_at_s == pytest.approx(50.0 / interval.slope_down_w_per_s, rel=1e-4)
    assert interval.spent_down_w()[row.id] == pytest.approx(0.0, abs=0.01)


def test_a_new_interval_takes_nothing_off() -> None:
    """Before any residual is measured the whole allowance counts."""
    interval = AdmissibleInterval([swing(100.0, 10.0)], start_s=-1000.0, start_w=1000.0, tick_s=0.1)
    interval.push(0.0, 1000.0)
    assert interval.bounds(0.1).low_w == pytest.approx(900.0, abs=0.01)


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        (BandLimit(LimitId("f"), 100.0, (0.1, 5.0), HERE), band_seconds(0.1, 5.0)),
        (SwingLimit(LimitId("f"), 100.0, 5.0, 0.0, HERE, (0.1, 55.0)), swing_seconds(0.1, 55.0, 5.0)),
        (OscillationLimit(LimitId("f"), 100.0, (0.1, 20.0), 20.0, HERE), line_seconds(0.1, 20.0, 20.0)),
    ],
)
def test_filtered_rows_bound_the_slope_and_keep_half(row: Limit, seconds: float) -> None:
    """Each kind by its own constant, both ways, now and ahead; a residual takes at most half of it."""
    interval = known([row], start_w=1000.0)
    slope = 100.0 / seconds
    assert interval.band_slope_w_per_s == pytest.approx(slope, rel=1e-4)
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (
        pytest.approx(1000.0 - 0.1 * slope, abs=1e-3),
        pytest.approx(1000.0 + 0.1 * slope, abs=1e-3),
    )
    interval.push(50.0, 1000.0)
    low, high = interval.project([50.5])
    assert (low[0], high[0]) == (pytest.approx(1000.0 - 0.5 * slope, 1e-6), pytest.approx(1000.0 + 0.5 * slope, 1e-6))
    interval.set_shrink(20.0, {})
    assert interval.band_slope_w_per_s == pytest.approx(0.8 * slope, rel=1e-4) and not interval.is_overspent
    interval.set_shrink(70.0, {})
    assert interval.band_slope_w_per_s == pytest.approx(0.5 * slope, rel=1e-4) and interval.is_overspent


def test_a_tenth_of_an_overspent_row_is_kept() -> None:
    """However large the residual, a tenth of a plain row stays; below that nothing is said to be overspent."""
    interval = known([swing(100.0, 10.0)], start_w=1000.0)
    assert not interval.is_overspent
    interval.set_shrink(89.0, {})
    assert interval.bounds(0.1).low_w == pytest.approx(989.0, abs=0.01) and not interval.is_overspent
    interval.set_shrink(95.0, {})
    assert interval.bounds(0.1).low_w == pytest.approx(990.0, abs=0.01) and interval.is_overspent
    assert KEPT_FRAC == 0.1
    interval.set_shrink(0.0, {})
    assert not interval.is_overspent


def test_a_row_that_allows_nothing_holds_and_promises_nothing() -> None:
    """No change allowed: the path holds, a lower ceiling is never met, and nothing of the row was overspent."""
    interval = known([swing(0.0, 10.0), ceiling(40.0, -1.0), floor_row(60.0, -1.0)], start_w=50.0)
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (50.0, 50.0) and not interval.is_overspent
    assert [(d.met_at_s, d.is_bounded) for d in interval.due_status()] == [(math.inf, True), (math.inf, True)]


def test_a_dip_alone_takes_its_share_of_falls() -> None:
    """The contingency dip changes while the residual stays: falls shrink, rises and the contingency slope do not."""
    interval = known([swing(5e6, 15.0)])
    interval.set_shrink(1e6, {})
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (pytest.approx(48e6, rel=1e-6), pytest.approx(54e6, rel=1e-6))
    assert interval.contingency_slope_w_per_s == pytest.approx(4e6 / 15.1, rel=1e-4)
    assert interval.contingency_rise_w_per_s == interval.slope_up_w_per_s == pytest.approx(4e6 / 15.1, rel=1e-4)


def test_ceilings_and_floors_keep_the_residual_away() -> None:
    """Ripple of 1 MW stays under a ceiling of 52 and above a floor of 48 only if the path keeps 1 MW off both."""
    interval = known([ceiling(52e6, -1.0), floor_row(48e6, -1.0)])
    interval.set_shrink(1e6, {})
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (49e6, 51e6)


def test_a_ceiling_is_a_line_that_falls_until_it_is_due_and_level_after() -> None:
    """Half a second before its time the room is half a second of fall; at its time and long after there is none."""
    interval = known([swing(5e6, 15.0), ceiling(50e6, 100.0, 200.0)], start_w=50e6)
    fall = interval.slope_down_w_per_s
    interval.push(99.0, 50e6)
    assert interval.bounds(99.5).high_w == pytest.approx(50e6 + 0.5 * fall, rel=1e-9)
    assert interval.bounds(100.0).high_w == 50e6
    interval.push(150.0, 50e6)
    assert interval.bounds(150.1).high_w == 50e6
    assert interval.bounds(200.0).high_w == pytest.approx(55e6, rel=1e-5)
    free = known([ceiling(50e6, 100.0)])
    assert free.bounds(99.9).high_w == math.inf and free.bounds(100.0).high_w == 50e6


def test_a_floor_is_a_line_that_rises_until_it_is_due_and_level_after() -> None:
    """The mirror image: from above it binds nothing early, and it ends with its time."""
    interval = known([swing(5e6, 15.0), floor_row(60e6, 60.0, 200.0)], start_w=70e6)
    assert interval.bounds(0.1).low_w == pytest.approx(65e6, rel=1e-5)
    interval = known([swing(5e6, 15.0), floor_row(50e6, 60.0, 200.0)])
    rise = interval.slope_up_w_per_s
    interval.push(59.0, 50e6)
    assert interval.bounds(59.5).low_w == pytest.approx(50e6 - 0.5 * rise, rel=1e-9)
    interval.push(150.0, 50e6)
    assert interval.bounds(150.1).low_w == 50e6
    assert interval.bounds(200.0).low_w == pytest.approx(45e6, rel=1e-5)


def test_what_is_due_is_said_until_it_is_over() -> None:
    """A limit met in time says its own time; at its end, and after it, nothing is left to say."""
    interval = known([swing(5e6, 15.0), ceiling(60e6, 30.0, 40.0), floor_row(40e6, 30.0, 40.0)])
    assert [(d.met_at_s, d.is_bounded) for d in interval.due_status()] == [(30.0, False), (30.0, False)]
    interval.push(35.0, 50e6)
    assert [(d.due_s, d.met_at_s, d.is_bounded) for d in interval.due_status()] == [(30.0, 35.0, False)] * 2
    interval.push(40.0, 50e6)
    assert interval.due_status() == ()
    interval.push(41.0, 50e6)
    assert interval.due_status() == ()


def test_a_fall_that_takes_the_time_there_is_promises_the_time_asked() -> None:
    """8 MW to go with 60 s left is early: the answer is the time that was asked for, not an earlier one."""
    interval = known([swing(5e6, 15.0), ceiling(42e6, 60.0)])
    (status,) = interval.due_status()
    assert (status.met_at_s, status.is_bounded) == (60.0, False)


def test_less_than_a_watt_to_go_at_less_than_a_watt_a_second() -> None:
    """Small numbers are numbers: half a watt at a tenth of a watt per second takes five seconds."""
    interval = known([ramp(10.0, 100.0), ceiling(999.5, -1.0)], start_w=1000.0)
    (status,) = interval.due_status()
    assert status.is_bounded and status.met_at_s == pytest.approx(0.5 / (10.0 / 100.1), rel=1e-3)


def test_a_window_is_known_from_its_last_second_on() -> None:
    """15 s after the start the unknown past has left a 15 s window, and 60 s after it a rate row of 60 s."""
    for row in (swing(5e6, 15.0), rate(1e6, 5e6, 15.0)):
        interval = AdmissibleInterval([row], start_s=0.0, start_w=50e6, tick_s=0.5)
        interval.push(14.5, 50e6)
        assert interval.bounds(15.0).low_w > 49e6
        interval.push(15.0, 50e6)
        assert interval.bounds(15.5).low_w == pytest.approx(45e6, rel=1e-5)


def test_a_waiver_ends_once_and_on_time() -> None:
    """What happens up to its last instant is forgiven, the last move included; what follows is not."""
    interval = known([swing(5e6, 15.0)])
    interval.waive_ramps(1.0, with_bands=False)
    interval.push(0.5, 50e6)
    assert interval.bounds(0.6).low_w == interval.project([0.6])[0][0] == -math.inf
    interval.push(1.0, 20e6)
    assert interval.bounds(1.1).low_w == pytest.approx(15e6, rel=1e-5)
    assert interval.bounds(1.1).high_w == pytest.approx(25e6, rel=1e-5) == interval.project([1.1])[1][0]
    interval.push(1.1, 24e6)
    assert interval.bounds(1.2).high_w == pytest.approx(25e6, rel=1e-5)
    interval.set_limits(interval.limits, 1.1)
    assert interval.bounds(1.2).low_w == pytest.approx(19e6, rel=1e-5), "and the same rows again change nothing"


def test_a_waiver_leaves_no_spent_window_behind() -> None:
    """30 MW fell under the waiver: no line of slope remembers it, on a contract of rate rows as on any other."""
    for row in (rate(0.5e6, 6e6), swing(5e6, 15.0)):
        interval = known([row, ceiling(19e6, -1.0)])
        interval.waive_ramps(1.0, with_bands=True)
        interval.push(0.9, 20e6)
        interval.push(1.0, 20e6)
        assert interval.contingency_excess_w == 0.0 == interval.contingency_excess_up_w
        (status,) = interval.due_status()
        assert status.met_at_s == pytest.approx(1.0 + 1e6 / interval.slope_down_w_per_s, rel=1e-6)


def test_bands_are_waived_only_when_said_so_this_time() -> None:
    """A waiver with bands lifts their slope; a later one without does not inherit that."""
    band = BandLimit(LimitId("band"), 10e6, (0.1, 5.0), HERE)
    interval = known([swing(5e6, 15.0), band])
    interval.waive_ramps(1.0, with_bands=True)
    assert interval.bounds(0.1).low_w == -math.inf and interval.bounds(0.1).high_w == math.inf
    interval.waive_ramps(1.0, with_bands=False)
    assert interval.bounds(0.1).low_w == pytest.approx(50e6 - 0.1 * 10e6 / band_seconds(0.1, 5.0), rel=1e-4)


def test_time_does_not_run_back_with_an_old_reading() -> None:
    """A meter reading older than the path's end moves the power, not the time."""
    interval = known([swing(5e6, 15.0)])
    interval.push(2.0, 51e6)
    interval.reanchor(1.5, 49e6)
    assert (interval.now_s, interval.now_w) == (2.0, 49e6)


def test_a_jump_at_one_instant_is_remembered_without_any_row() -> None:
    """No row, no slope: a jump of 12 MW in no time still stands above the present until time passes."""
    interval = AdmissibleInterval([], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval.reanchor(0.0, 38e6)
    assert interval.contingency_excess_w == 12e6 and interval.contingency_excess_up_w == 0.0
    interval.reanchor(0.0, 60e6)
    assert interval.contingency_excess_up_w == 22e6


def test_what_rose_is_spent_upwards_and_comes_back_with_time() -> None:
    """A dip of 4 MW one second ago has used 4 MW of the rise; each second gives R_c of it back."""
    interval = known([swing(5e6, 15.0)])
    interval.push(1.0, 46e6)
    interval.push(2.0, 50e6)
    rise = interval.contingency_rise_w_per_s
    assert interval.contingency_excess_up_w == pytest.approx(4e6 - rise, rel=1e-6)
    interval.push(6.0, 50e6)
    assert interval.contingency_excess_up_w == pytest.approx(4e6 - 5.0 * rise, rel=1e-6)
    interval = known([rate(0.5e6, 6e6)])
    interval.push(1.0, 52e6)
    assert interval.spent_down_w()[LimitId("rate")] == pytest.approx(0.0, abs=10.0)
    assert interval.spent_up_w()[LimitId("rate")] == pytest.approx(2e6, rel=1e-4)


def test_the_promise_of_a_floor_is_drawn_anew_when_slopes_change() -> None:
    """A dip 10 s ago counts at the slope that a larger residual leaves now."""
    interval = known([swing(5e6, 15.0), floor_row(60e6, -1.0)])
    interval.push(10.0, 47e6)
    interval.push(20.0, 51e6)
    interval.set_shrink(2e6, {})
    rise = interval.slope_up_w_per_s
    assert rise == pytest.approx(3e6 / 15.1, rel=1e-4)
    assert interval.due_status()[0].met_at_s == pytest.approx(20.0 + (62e6 - 47e6 - 10.0 * rise) / rise, rel=1e-6)


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


def test_the_same_shrink_again_changes_nothing() -> None:
    """Every tick tells the residual; one that is as it was leaves the interval as it was."""
    interval = known([swing(5e6, 15.0)])
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    before = interval.bounds(0.1)
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    assert interval.bounds(0.1) == before == Interval(pytest.approx(48e6), pytest.approx(54e6))


def test_met_within_a_tick_of_its_time_is_met_in_time() -> None:
    """30 s of falling for a ceiling due in 30.05 s: the answer is the time asked for, and not that it is late."""
    slope = known([swing(5e6, 15.0)]).slope_down_w_per_s
    interval = known([swing(5e6, 15.0), ceiling(50e6 - 30.0 * slope, 30.05)])
    (status,) = interval.due_status()
    assert (status.met_at_s, status.is_bounded) == (30.05, False)


def test_a_rate_row_forgets_under_a_waiver_too() -> None:
    """30 MW fell while the row was waived; afterwards its flat part is free again, both ways."""
    interval = known([rate(0.5e6, 6e6)])
    interval.waive_ramps(1.0, with_bands=False)
    interval.push(1.0, 20e6)
    found = interval.bounds(1.1)
    assert (found.low_w, found.high_w) == (pytest.approx(14e6, rel=1e-5), pytest.approx(26e6, rel=1e-5))


def test_the_promise_of_a_ceiling_is_drawn_anew_when_slopes_change() -> None:
    """A peak 10 s ago counts at the slope that a larger residual leaves now."""
    interval = known([swing(5e6, 15.0), ceiling(40e6, -1.0)])
    interval.push(10.0, 53e6)
    interval.push(20.0, 49e6)
    interval.set_shrink(2e6, {})
    fall = interval.slope_down_w_per_s
    assert interval.due_status()[0].met_at_s == pytest.approx(20.0 + (53e6 - 10.0 * fall - 38e6) / fall, rel=1e-6)


@pytest.mark.parametrize(("residual_w", "kept_w"), [(10.0, 1.0), (10.5, 1.2), (15.0, 3.0), (20.0, 5.0), (40.0, 5.0)])
def test_an_overspent_row_of_ten_watts_keeps_a_share_of_them(residual_w: float, kept_w: float) -> None:
    """A tenth while the residual is no more than the row, and from there to half; of 10 W as of 10 MW."""
    interval = AdmissibleInterval([swing(10.0, 15.0)], start_s=0.0, start_w=50.0, tick_s=0.05)
    interval.set_shrink(residual_w, {})
    assert interval.is_overspent and interval.slope_down_w_per_s == pytest.approx(kept_w / 15.05, rel=1e-6)


def test_a_row_that_allows_nothing_keeps_nothing() -> None:
    """Of no allowance there is no share, whatever the residual."""
    interval = AdmissibleInterval([swing(0.0, 15.0)], start_s=0.0, start_w=50.0, tick_s=0.05)
    interval.set_shrink(5.0, {})
    assert interval.slope_down_w_per_s == interval.slope_up_w_per_s == 0.0
