"""How long what following leaves is remembered: rows judge pairs a minute apart, so a calm minute forgets little."""

from __future__ import annotations

import math

from controller.residual import Residual, Unseen

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


def unseen(*, amplitude_w: float) -> Unseen:
    """Twenty seconds without a meter, in which nodes say that a ripple of 4 s is left."""
    found = Unseen(1.0, event_w=5e6)
    for k in range(400):
        t_s = k * TICK_S
        found.missed(t_s, ripple_w=RIPPLE_W, is_followed=True)
        found.add(t_s - 0.7, amplitude_w * math.sin(2.0 * math.pi * t_s / 4.0))
    return found


def test_without_a_meter_what_nodes_say_is_left_counts_where_it_is_more_than_the_load_s_ripple() -> None:
    """Following from late reports doubles a ripple: its size alone, one way, is a quarter of what rows see."""
    assert unseen(amplitude_w=10.0 * RIPPLE_W).left_w(20.0, 15.0) > 17.0 * RIPPLE_W
    assert unseen(amplitude_w=0.0).left_w(20.0, 15.0) == RIPPLE_W


def test_what_no_meter_saw_counts_until_no_window_reaches_back_to_it() -> None:
    """The meter is back and calm: a pair of instants 15 s apart still has one of them in the ripple."""
    found = unseen(amplitude_w=10.0 * RIPPLE_W)
    assert found.left_w(34.0, 15.0) > 17.0 * RIPPLE_W
    assert found.left_w(36.0, 15.0) == 0.0 < found.left_w(36.0, 60.0)


def test_what_a_battery_cannot_hold_is_not_what_following_leaves() -> None:
    """At its limit the load itself is on the meter: no measure of following."""
    found = Unseen(1.0, event_w=5e6)
    for k in range(200):
        found.add(k * TICK_S, None if 2.0 < k * TICK_S < 7.0 else 0.0)
        found.missed(k * TICK_S, ripple_w=0.0, is_followed=True)
    assert found.left_w(10.0, 15.0) == 0.0


def test_where_nobody_tells_of_the_load_all_of_its_ripple_is_left_both_ways() -> None:
    """A pair of instants has one at the top and one at the bottom, for as long as a window reaches back (seed 7100)."""
    found = Unseen(1.0, event_w=5e6)
    found.missed(10.0, ripple_w=RIPPLE_W, is_followed=False)
    found.missed(20.0, ripple_w=RIPPLE_W, is_followed=True)
    assert found.left_w(20.0, 15.0) == 2.0 * RIPPLE_W
    assert found.left_w(26.0, 15.0) == RIPPLE_W < found.left_w(26.0, 60.0)


def test_a_sample_that_is_missed_leaves_nothing_unknown_a_second_does() -> None:
    found = Unseen(1.0, event_w=5e6)
    found.missed(10.0, ripple_w=0.0, is_followed=True)
    assert not found.is_within(10.0, 15.0)
    for k in range(20):
        found.missed(20.0 + k * TICK_S, ripple_w=0.0, is_followed=True)
    assert found.is_within(30.0, 15.0) and not found.is_within(37.0, 15.0)
