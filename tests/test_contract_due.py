"""Ceilings and floors of the admissible interval, when they are met, and what a waiver sets aside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.contract import AdmissibleInterval
from controller.slope_bound import band_seconds
from controller.types import BandLimit, FloorLimit, Limit, LimitId
from tests.contract_kit import HERE, ceiling, floor_row, known, ramp, rate, swing, walk_at_high, worst_excess_w


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


def test_the_promise_of_a_floor_is_drawn_anew_when_slopes_change() -> None:
    """A dip 10 s ago counts at the slope that a larger residual leaves now."""
    interval = known([swing(5e6, 15.0), floor_row(60e6, -1.0)])
    interval.push(10.0, 47e6)
    interval.push(20.0, 51e6)
    interval.set_shrink(2e6, {})
    rise = interval.slope_up_w_per_s
    assert rise == pytest.approx(3e6 / 15.1, rel=1e-4)
    assert interval.due_status()[0].met_at_s == pytest.approx(20.0 + (62e6 - 47e6 - 10.0 * rise) / rise, rel=1e-6)


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
