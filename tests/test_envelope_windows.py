"""The target under the envelope: windows of metered power, and what lets it rise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.envelope import check
from controller.types import (
    EnvelopeState,
    EnvelopeView,
    Feeder,
    Following,
    GpuCap,
    LimitId,
    Margin,
    Mode,
    Quality,
    WindowCheck,
)
from tests.envelope_kit import (
    GPUS,
    NO_LEAVE,
    NODES,
    acks,
    battery,
    broken,
    caps_array,
    clocks,
    command,
    draw_w,
    image,
    node,
    ring,
    state,
    target,
    view,
    window,
)


def test_5_a_rise_stops_at_the_least_of_the_window() -> None:
    past = ring([1000.0] * 30 + [900.0] * 20 + [500.0] * 100)
    verdict = check(view(windows=(window(200.0, 40.0, past=past),)), command(power=battery(1150.0)))
    assert target(verdict) == 1100.0 and broken(verdict) == {5}


def test_5_a_fall_stops_at_the_greatest_of_the_window() -> None:
    past = ring([1000.0] * 30 + [1100.0] * 20 + [1500.0] * 100)
    verdict = check(view(windows=(window(200.0, 40.0, past=past),)), command(power=battery(850.0)))
    assert target(verdict) == 900.0 and broken(verdict) == {5}


@pytest.mark.parametrize(("window_s", "bound"), [(29.0, 1200.0), (31.0, 1100.0)])
def test_5_an_entry_counts_from_the_moment_the_window_reaches_back_to_its_end(window_s: float, bound: float) -> None:
    past = ring([1000.0] * 31 + [900.0] * 20)
    verdict = check(view(windows=(window(200.0, window_s, past=past),)), command(power=battery(5000.0)))
    assert target(verdict) == bound


@pytest.mark.parametrize(("up", "down", "wish", "result"), [(True, False, 500.0, 500.0), (False, True, 1500.0, 1500.0)])
def test_5_a_one_way_row_binds_one_way(up: bool, down: bool, wish: float, result: float) -> None:
    verdict = check(view(windows=(window(up=up, down=down),)), command(power=battery(wish)))
    assert target(verdict) == result and verdict.violations == ()


def test_5_a_rate_row_allows_more_with_age() -> None:
    """5 W/s beyond 20 W: ten seconds back lies 900 W, so 20..50 W above it is the most."""
    past = ring([1000.0] * 10 + [900.0] * 500)
    row = WindowCheck(LimitId("rate"), 600.0, 20.0, 5.0, 0.0, True, False, past)
    assert target(check(view(windows=(row,)), command(power=battery(1500.0)))) == 950.0


def test_5_under_software_following_the_set_point_is_what_changes() -> None:
    seen = view(windows=(window(200.0),), load_w=1300.0, state=state(reference_w=300.0))
    verdict = check(seen, command(power=battery(50.0, Following.SOFTWARE)))
    assert target(verdict) == 100.0 and verdict.state.target_w == 1200.0 and broken(verdict) == {5}


def test_5_the_slope_guard_bounds_each_step() -> None:
    for wish, result in ((1100.0, 1010.0), (900.0, 990.0)):
        assert target(check(view(target_step_w=10.0), command(power=battery(wish)))) == result


def test_5_a_broken_window_asks_for_no_jump() -> None:
    """The past spans more than the row allows: between its two bounds power stays where it is."""
    past = ring([1000.0] * 10 + [1500.0] * 10 + [600.0] * 100)
    verdict = check(view(windows=(window(200.0, past=past),)), command(power=battery(1000.0)))
    assert target(verdict) == 1000.0 and verdict.violations == ()


def test_5_without_a_battery_caps_rise_by_what_the_window_allows() -> None:
    """True power may rise by the curve's steepness times what its chord says: so much less is given."""
    seen = view(battery=None, windows=(window(60.0),))
    verdict = check(seen, command(node(NODES[0], 2000, 2000), node(NODES[1], 2000, 2000)))
    out = clocks(verdict)
    assert 5 in broken(verdict) and 1610.0 < sum(draw_w(c) for c in out.values()) <= 1600.0 + 60.0 / 3.3
    assert all((c or 0) >= 1000 for c in out.values())


def test_5_what_swells_by_itself_leaves_less_for_caps_to_rise() -> None:
    """A battery that answers now and then holds nothing surely: 30 of the 60 W may come back by themselves."""
    seen = view(windows=(window(60.0),), swell_w=30.0)
    proposal = command(node(NODES[0], 2000, 2000), node(NODES[1], 2000, 2000))
    assert check(seen, proposal).violations == ()
    verdict = check(replace(seen, is_held=False), proposal)
    assert 5 in broken(verdict) and 1605.0 < sum(draw_w(c) for c in clocks(verdict).values()) <= 1600.0 + 30.0 / 3.3


@pytest.mark.parametrize(("kept_w", "moved_w"), [(0.0, 60.0), (30.0, 30.0)])
def test_5_what_a_ramp_may_use_beyond_the_row_no_step_of_caps_may(kept_w: float, moved_w: float) -> None:
    row = window(60.0, kept_w=kept_w)
    assert target(check(view(windows=(row,)), command(power=battery(1150.0)))) == 1060.0
    out = clocks(
        check(view(battery=None, windows=(row,)), command(node(NODES[0], 2000, 2000), node(NODES[1], 2000, 2000)))
    )
    assert 1600.0 + (moved_w - 10.0) / 3.3 < sum(draw_w(c) for c in out.values()) <= 1600.0 + moved_w / 3.3
    seen = view(import_w_max=1500.0, unmanaged_w_max=1000.0, windows=(row,))
    out = clocks(check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))))
    assert 1600.0 - moved_w / 3.3 - 5.0 < sum(draw_w(c) for c in out.values()) <= 1600.0 - moved_w / 3.3


def test_5_an_emergency_may_fall_below_the_windows_but_not_rise() -> None:
    seen = view(windows=(window(200.0),), is_emergency=True)
    assert target(check(seen, command(power=battery(100.0)))) == 100.0
    assert target(check(seen, command(power=battery(1900.0)))) == 1200.0


@pytest.mark.parametrize("changes", NO_LEAVE)
def test_6_without_leave_caps_and_target_may_fall_and_not_rise(changes: dict[str, Any]) -> None:
    proposal = command(node(NODES[0], 1100, 900), power=battery(1100.0))
    verdict = check(view(**changes), proposal)
    assert clocks(verdict) == {GPUS[0]: 1000, GPUS[1]: 900} and target(verdict) == 1000.0 and 6 in broken(verdict)
    assert broken(check(view(**changes), command(power=battery(1100.0)))) == {6}
    assert target(check(view(**changes), command(power=battery(900.0)))) == 900.0


def test_6_a_raise_needs_a_fresh_reading_of_that_gpu() -> None:
    seen = view(acks=acks(is_fresh=np.array([False, True, True, True])))
    verdict = check(seen, command(node(NODES[0], 1100, 1100)))
    assert clocks(verdict) == {GPUS[0]: 1000, GPUS[1]: 1100} and broken(verdict) == {6}


def test_6_a_higher_power_limit_is_a_raise_too() -> None:
    seen = view(is_leader=False, state=replace(state(), caps=caps_array((1000.0,) * 4, (300.0,) * 4)))
    caps = (GpuCap(GPUS[0], 900, 400.0), GpuCap(GPUS[1], 900, 250.0))
    out = check(seen, command(replace(node(NODES[0]), caps=caps))).command.nodes[0].caps
    assert out == (GpuCap(GPUS[0], 900, 300.0), GpuCap(GPUS[1], 900, 250.0))


@pytest.mark.parametrize(("mode", "result"), [(Mode.HOLD, 1000.0), (Mode.FALLBACK, 1100.0), (Mode.RELEASE, 1100.0)])
def test_6_fallback_lets_go_of_the_battery_inside_the_windows(mode: Mode, result: float) -> None:
    assert target(check(view(mode=mode, windows=(window(200.0),)), command(power=battery(1100.0)))) == result


def test_6_originals_come_back_in_release_only() -> None:
    release = node(NODES[0], is_release=True)
    allowed = check(view(mode=Mode.RELEASE, is_leader=False), command(release))
    refused = check(view(), command(release))
    assert allowed.command.nodes == (release,) and allowed.violations == ()
    assert np.isinf(allowed.state.caps[:, :2]).all() and np.isfinite(allowed.state.caps[0, 2:]).all()
    assert (
        not refused.command.nodes[0].is_release and set(clocks(refused).values()) == {1000} and broken(refused) == {1}
    )


def test_6_caps_beside_a_release_do_not_pass() -> None:
    """Nobody checks them and a node that is released has no use for them; they may be no numbers."""
    stray = node(NODES[0], is_release=True, caps=(GpuCap(GPUS[0], None, np.nan),))
    allowed = check(view(mode=Mode.RELEASE, is_leader=False), command(stray))
    assert allowed.command.nodes == (node(NODES[0], is_release=True),)


def test_6_after_a_restart_a_raise_is_above_what_was_read_back() -> None:
    seen = view(state=EnvelopeState(), is_leader=False, acks=acks((800.0,) * 4))
    assert clocks(check(seen, command(node(NODES[0], 900, 700)))) == {GPUS[0]: 800, GPUS[1]: 700}


def test_7_a_raise_waits_for_the_lower_that_makes_room_for_it() -> None:
    """a goes up by what b gives; until b is read back lower, both would fit the feeder only on paper."""
    both = (Feeder("row", 1600.0, np.ones(4, bool)),)
    proposal = command(node(NODES[0], 1200, 1000), node(NODES[1], 800, 1000))
    before = check(view(feeders=both), proposal)
    assert clocks(before)[GPUS[0]] == 1000 and clocks(before)[GPUS[2]] == 800 and broken(before) == {7}
    lowered = (1000.0, 1000.0, 800.0, 1000.0)
    after = check(view(feeders=both, state=state(lowered), acks=acks(lowered)), proposal)
    assert clocks(after)[GPUS[0]] == 1200 and after.violations == ()


def test_14_the_target_rises_only_as_far_as_a_full_drop_can_be_taken() -> None:
    verdict = check(view(drop_safe_target_w=1050.0), command(power=battery(1100.0)))
    assert target(verdict) == 1050.0 and broken(verdict) == {14}
    assert target(check(view(drop_safe_target_w=800.0), command(power=battery(1100.0)))) == 1000.0
    assert check(view(drop_safe_target_w=800.0), command(power=battery(990.0))).violations == ()


def test_6_margins_of_nothing_are_enough() -> None:
    seen = view(margins=(Margin("power", "full_site", 0.0, "W"),))
    assert check(seen, command(node(NODES[0], 1100, 1000))).violations == ()


def test_6_a_missing_input_alone_does_not_forbid_raises() -> None:
    assert check(view(mode=Mode.DEGRADED), command(node(NODES[0], 1100, 1000))).violations == ()


def test_6_a_reading_as_old_as_allowed_is_fresh() -> None:
    """Three periods old exactly is still good enough to raise; a hair more is not."""
    up = command(node(NODES[0], 1100, 1100))
    assert check(view(image=image(age_s=0.25), meter_age_s_max=0.25), up).violations == ()
    assert broken(check(view(image=image(age_s=0.26), meter_age_s_max=0.25), up)) == {6}


def test_6_import_at_the_ceiling_to_rounding_forbids_no_raise() -> None:
    """One part in two million above the ceiling is rounding; two parts in a million are above it."""
    up = command(node(NODES[0], 1100, 1100), node(NODES[1], 900, 900))
    for power_w, found in ((1000.0, set()), (1000.0005, set()), (1000.002, {6})):
        seen = view(image=image(power_w), import_w_max=1000.0, acks=acks(), unmanaged_w_max=-1e5)
        verdict = check(seen, up)
        assert broken(verdict) & {4, 6} == found, power_w
    risen = command(node(NODES[0], 1100, 1100), node(NODES[1], 1100, 1100))
    assert check(view(image=image(1000.0), import_w_max=1000.0, unmanaged_w_max=-1e5), risen).violations == ()


def test_5_a_window_looks_back_as_far_as_it_says_on_a_fine_ring() -> None:
    """Tenths of a second per entry: a window of 1 s reaches over ten entries and the one that begins there."""
    fine = replace(ring([1000.0] * 11 + [800.0] * 50), step_s=0.1)
    assert target(check(view(windows=(window(window_s=1.0, past=fine),)), command(power=battery(1150.0)))) == 1150.0
    assert target(check(view(windows=(window(window_s=1.1, past=fine),)), command(power=battery(1150.0)))) == 1000.0


def test_5_a_window_shorter_than_its_first_entry_sees_that_entry_only() -> None:
    """Half a second back lies inside the entry under way; what came before it does not count."""
    past = ring([1000.0, 500.0, 500.0])
    assert target(check(view(windows=(window(window_s=0.5, past=past),)), command(power=battery(1150.0)))) == 1150.0


@pytest.mark.parametrize(("wish_w", "is_counted"), [(1050.0 + 5e-4, False), (1050.0 + 2e-3, True)])
def test_5_a_target_outside_by_rounding_is_not_counted(wish_w: float, is_counted: bool) -> None:
    """A millionth of a kilowatt outside the window is rounding; it is still brought inside."""
    verdict = check(view(windows=(window(50.0),)), command(power=battery(wish_w)))
    assert target(verdict) == 1050.0 and (5 in broken(verdict)) is is_counted


def test_5_and_8_near_nothing_a_microwatt_is_rounding() -> None:
    """At a target of nothing the measure of rounding is a watt's: a microwatt and a half is counted."""
    seen = view(windows=(window(0.0, past=ring(0.0)),), image=image(0.0), state=state(target_w=0.0, reference_w=0.0))
    for wish_w, is_counted in ((0.9e-6, False), (1.5e-6, True)):
        assert (5 in broken(check(seen, command(power=battery(wish_w))))) is is_counted
        assert (8 in broken(check(replace(seen, windows=()), command(power=battery(-wish_w))))) is is_counted


def test_5_caps_do_not_rise_into_a_window_that_is_spent() -> None:
    """No room upwards and no battery: not even a watt's worth of clock is given."""
    full = window(0.0, past=ring(1000.0))
    seen = view(battery=None, windows=(full,), image=image(1000.0))
    verdict = check(seen, command(node(NODES[0], 1003, 1000)))
    assert broken(verdict) == {5} and clocks(verdict) == {"GPU-0": 1000, "GPU-1": 1000}


def broken_window(power_w: float, target_w: float | None, *, quality: Quality = Quality.GOOD) -> EnvelopeView:
    """1500 and 600 W lie in the same minute and 200 W are allowed: not below 1300 W, not above 800 W."""
    past = ring([1000.0] * 10 + [1500.0] * 10 + [600.0] * 10)
    remembered = state(target_w=target_w, reference_w=target_w)
    return view(windows=(window(200.0, past=past),), image=image(power_w, quality=quality), state=remembered)


@pytest.mark.parametrize(
    ("power_w", "target_w"), [(1000.0, 1000.0), (700.0, 1000.0), (1400.0, 1000.0), (700.0, 700.0), (1000.0, None)]
)
def test_5_a_window_broken_already_leaves_what_lies_between_its_bounds(power_w: float, target_w: float | None) -> None:
    """Between bounds that contradict each other each is broken least, wherever a spike has the meter just now."""
    seen = broken_window(power_w, target_w)
    for wish_w in (-200.0, 0.0, 750.0, 1050.0, 1350.0, 2000.0):
        verdict = check(seen, command(power=battery(wish_w)))
        assert target(verdict) == min(max(wish_w, 800.0), 1300.0), wish_w


def test_5_a_window_that_leaves_one_power_is_not_broken() -> None:
    """The past spans just what the row allows: the one power left is where the target goes, wherever the meter is."""
    past = ring([1000.0] * 10 + [1100.0] * 10 + [900.0] * 10)
    for power_w, wish_w in ((950.0, 900.0), (1050.0, 1100.0)):
        seen = view(windows=(window(100.0, past=past),), image=image(power_w), state=state(target_w=power_w))
        assert target(check(seen, command(power=battery(wish_w)))) == 1000.0


def test_5_the_running_step_takes_its_part_of_the_window() -> None:
    """Half a second of the 10 s is the running step: nine whole ones fit behind it, and the tenth reaches beyond."""
    for n, highest_w in ((9, 700.0), (10, 1200.0)):
        past = ring([1000.0] * n + [500.0] * 100, head_s=0.5)
        verdict = check(view(windows=(window(200.0, 10.0, past=past, down=False),)), command(power=battery(2000.0)))
        assert target(verdict) == highest_w


def test_5_where_only_caps_soften_a_rise_what_does_not_rise_is_no_rise() -> None:
    """Nothing asked for more: a window without any room finds nothing to say about it."""
    seen = view(battery=None, windows=(window(0.0),))
    assert check(seen, command(node(NODES[0], 1000, 900), node(NODES[1], 1000, 1000))).violations == ()
