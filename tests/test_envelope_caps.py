"""Caps under the envelope: ranges, feeders, the ceiling, the service floor, and who comes down by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.envelope import check
from controller.types import Feeder, GpuCap
from tests.envelope_kit import (
    BATTERY,
    CLOCK_MIN,
    FLEET,
    FLOOR,
    GPUS,
    INF,
    NODES,
    NOW_S,
    PEAK_W,
    acks,
    battery,
    broken,
    caps_array,
    clocks,
    command,
    draw_w,
    feeder,
    image,
    limit_command,
    limited,
    node,
    out_caps,
    state,
    target,
    view,
    window,
)


def test_2_a_clock_below_the_range_is_lifted_to_it() -> None:
    verdict = check(view(is_emergency=True), command(node(NODES[0], 10, 900)))
    assert clocks(verdict)[GPUS[0]] == CLOCK_MIN and broken(verdict) == {2}


def test_2_values_above_the_range_are_free_at_most() -> None:
    seen = view(state=state((INF,) * 4))
    caps = (GpuCap(GPUS[0], 9000, 5000.0), GpuCap(GPUS[1], 900, 50.0))
    verdict = check(seen, command(replace(node(NODES[0]), caps=caps)))
    out = verdict.command.nodes[0].caps
    assert out == (GpuCap(GPUS[0], None, None), GpuCap(GPUS[1], 900, 200.0)) and broken(verdict) == {2}


def test_2_what_hangs_on_a_feeder_fits_it() -> None:
    """Both GPUs below it come down by one share; the others keep what they asked for."""
    verdict = check(view(feeders=feeder(700.0)), command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    out = clocks(verdict)
    assert 2 in broken(verdict) and out[GPUS[2]] == out[GPUS[3]] == 1000
    assert 690.0 < sum(draw_w(out[g]) for g in GPUS[:2]) <= 700.0 and out[GPUS[0]] == out[GPUS[1]]


def test_2_a_feeder_goes_below_the_service_floor_when_it_must() -> None:
    verdict = check(view(feeders=feeder(400.0)), command(node(NODES[0], 1000, 1000)))
    out = clocks(verdict)
    assert sum(draw_w(out[g]) for g in GPUS[:2]) <= 400.0 and all((out[g] or 0) < FLOOR for g in GPUS[:2])


def test_2_an_uncontrolled_gpu_counts_at_its_nameplate() -> None:
    seen = view(feeders=feeder(1000.0), acks=acks(fixed_w=np.array([PEAK_W, np.nan, np.nan, np.nan])))
    out = clocks(check(seen, command(node(NODES[0], 1000, 1000))))
    assert out[GPUS[0]] == 1000 and draw_w(out[GPUS[1]]) <= 300.0


def test_2_a_power_limit_bounds_the_worst_case() -> None:
    caps = tuple(GpuCap(g, None, 300.0) for g in GPUS[:2])
    seen = view(feeders=feeder(600.0), state=state((INF,) * 4), acks=acks((INF,) * 4))
    assert check(seen, command(replace(node(NODES[0]), caps=caps))).command.nodes[0].caps == caps


def test_3_where_a_power_limit_binds_the_limit_is_lowered() -> None:
    """Clocks far above what the limit lets draw stay: one low enough to count would cost far more than asked."""
    caps = tuple(GpuCap(g, 1900, 300.0) for g in GPUS)
    asked = tuple(replace(node(n), caps=caps[2 * k : 2 * k + 2]) for k, n in enumerate(NODES))
    before = state((1900.0,) * 4, caps=caps_array((1900.0,) * 4, (300.0,) * 4))
    seen = view(import_w_max=1160.0, state=before, acks=acks((1900.0,) * 4))
    out = [cap for n in check(seen, command(*asked)).command.nodes for cap in n.caps]
    assert [(cap.clock_mhz, cap.power_limit_w) for cap in out] == [(1900, 290.0)] * 4


def test_3_the_worst_case_fits_the_ceiling() -> None:
    """4 GPUs at 400 W, 200 W unmanaged and a margin of 100 W under 1500 W leave 1200 W for the GPUs."""
    seen = view(import_w_max=1500.0, margin_w=100.0, unmanaged_w_max=200.0)
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert 1180.0 < sum(draw_w(c) for c in clocks(verdict).values()) <= 1200.0 and broken(verdict) == {3}


def test_3_what_the_battery_surely_gives_counts() -> None:
    seen = view(import_w_max=1500.0, margin_w=100.0, unmanaged_w_max=200.0)
    seen = replace(seen, battery=replace(BATTERY, supply_w=400.0))
    assert check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))).violations == ()


def test_3_caps_come_down_no_faster_than_the_windows_let_power_fall() -> None:
    """The windows allow 99 W down now; at the top of the curve that is 30 W of the chord."""
    seen = view(import_w_max=1500.0, unmanaged_w_max=1000.0, windows=(window(99.0),))
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert 1565.0 < sum(draw_w(c) for c in clocks(verdict).values()) <= 1570.0


def test_3_an_emergency_comes_down_at_once_and_below_the_floor() -> None:
    seen = view(import_w_max=1500.0, unmanaged_w_max=800.0, windows=(window(99.0),), is_emergency=True)
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert sum(draw_w(c) for c in clocks(verdict).values()) <= 700.0


def test_4_above_the_ceiling_nothing_rises_and_the_total_falls() -> None:
    seen = view(image=image(1000.0), import_w_max=950.0, unmanaged_w_max=-2000.0)
    proposal = command(node(NODES[0], 1200, 900), node(NODES[1], 1000, 1000), power=battery(990.0))
    verdict = check(seen, proposal)
    assert target(verdict) == 950.0 and {4, 6} <= broken(verdict)
    assert sum(draw_w(c) for c in clocks(verdict).values()) <= 1600.0 - 50.0 and (clocks(verdict)[GPUS[0]] or 0) <= 1000


def test_4_what_the_battery_can_still_add_need_not_come_off_the_caps() -> None:
    seen = view(image=image(1000.0), import_w_max=950.0, unmanaged_w_max=-2000.0)
    seen = replace(seen, battery=replace(BATTERY, supply_w=60.0, spare_w=60.0))
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert verdict.violations == ()


def test_3_what_sags_by_itself_leaves_less_for_caps_to_fall() -> None:
    """The windows allow 99 W down and 66 W may go by themselves: a third is left, and 10 W of the chord."""
    seen = view(import_w_max=1500.0, unmanaged_w_max=1000.0, windows=(window(99.0),), is_held=False, sag_w=66.0)
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert 1586.0 < sum(draw_w(c) for c in clocks(verdict).values()) <= 1590.0
    verdict = check(replace(seen, sag_w=150.0), command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert sum(draw_w(c) for c in clocks(verdict).values()) == 1600.0


def test_10_no_cap_goes_below_the_service_floor() -> None:
    verdict = check(view(), command(node(NODES[0], 300, 700)))
    assert clocks(verdict) == {GPUS[0]: FLOOR, GPUS[1]: 700} and broken(verdict) == {10}


def test_10_the_floor_raises_nothing() -> None:
    """A GPU that is below the floor already stays there."""
    seen = view(state=state((400.0,) * 4), acks=acks((400.0,) * 4))
    assert clocks(check(seen, command(node(NODES[0], 300, 400)))) == {GPUS[0]: 400, GPUS[1]: 400}


def test_10_an_emergency_may_go_below() -> None:
    assert check(view(is_emergency=True), command(node(NODES[0], 300, 700))).violations == ()


def test_11_a_gpu_gets_one_clock_write_a_second() -> None:
    written = np.array([NOW_S - 0.5, NOW_S - 1.0, -INF, -INF])
    verdict = check(view(state=state(clock_written_s=written)), command(node(NODES[0], 900, 900)))
    assert clocks(verdict) == {GPUS[0]: 1000, GPUS[1]: 900} and broken(verdict) == {11}
    assert verdict.state.clock_written_s.tolist() == [NOW_S - 0.5, NOW_S, -INF, -INF]


def test_11_a_limit_is_met_by_the_gpus_that_may_still_be_written() -> None:
    written = np.array([NOW_S - 0.5, -INF, -INF, -INF])
    seen = view(feeders=feeder(700.0), state=state(clock_written_s=written))
    out = clocks(check(seen, command(node(NODES[0], 1000, 1000))))
    assert out[GPUS[0]] == 1000 and draw_w(out[GPUS[1]]) <= 300.0


def test_10_a_ceiling_is_no_reason_to_go_below_the_service_floor() -> None:
    """No clock above the floor fits 500 W; without a breaker emergency the floor is where it ends."""
    seen = view(import_w_max=500.0, margin_w=0.0, unmanaged_w_max=0.0, image=image(None))
    out = clocks(check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))))
    assert set(out.values()) == {FLOOR}


def test_2_each_gpu_gives_the_same_share_of_what_it_has_above_its_floor() -> None:
    """At 1000 and 700 MHz they draw 400 and 310 W, at the floor 280: of 120 and 30 W each gives half."""
    out = clocks(check(view(feeders=feeder(635.0)), command(node(NODES[0], 1000, 700))))
    assert out == {GPUS[0]: 800, GPUS[1]: 650}


def test_2_a_sampled_node_counts_for_all_it_stands_for() -> None:
    many = replace(FLEET, stands_for=np.full(4, 10.0))
    seen = view(fleet=many, feeders=feeder(6350.0))
    assert clocks(check(seen, command(node(NODES[0], 1000, 700)))) == {GPUS[0]: 800, GPUS[1]: 650}


def test_4_a_target_above_the_ceiling_is_counted_as_that() -> None:
    """The ceiling is invariant 4, and one met to the last watt breaks nothing."""
    assert broken(check(view(import_w_max=900.0, image=image(800.0)), command(power=battery(950.0)))) == {4}
    assert check(view(import_w_max=1000.0), command(power=battery(1000.0))).violations == ()


def test_4_import_above_the_ceiling_is_counted_on_the_caps() -> None:
    """Caps that must come down because import is above the ceiling say so with number 4."""
    seen = view(image=image(1000.0), import_w_max=900.0, unmanaged_w_max=-1e5, battery=None)
    assert 4 in broken(check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))))
    at = view(image=image(1000.0), import_w_max=1000.0, unmanaged_w_max=-1e5, battery=None)
    assert broken(check(at, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))) == set()


def test_11_only_clocks_wait_for_the_second() -> None:
    """A GPU whose power limit equals its clock in number may change neither more nor less for it."""
    seen = view(state=state(caps=caps_array((1000.0,) * 4, (500.0,) * 4), clock_written_s=np.full(4, NOW_S - 0.5)))
    verdict = check(seen, command(node(NODES[0], 500, 500)))
    assert 11 in broken(verdict) and clocks(verdict) == {"GPU-0": 1000, "GPU-1": 1000}
    same = check(seen, command(node(NODES[0], 1000, 1000)))
    assert 11 not in broken(same)


def test_2_a_node_of_many_gpus_is_judged_gpu_by_gpu() -> None:
    """Floors hold where power limits are set as well, and each floor is that of its own GPU."""
    seen = view(state=state(caps=caps_array((1000.0,) * 4, (300.0,) * 4)), acks=acks())
    verdict = check(seen, command(node(NODES[0], 300, 1000)))
    assert broken(verdict) == {10} and clocks(verdict)["GPU-0"] == FLOOR


def test_2_a_low_power_limit_alone_makes_the_worst_case() -> None:
    """Four GPUs at the top clock with limits of 200 W fit a feeder of 800 W, and 799 W they do not."""
    capped = state(caps=caps_array((INF,) * 4, (200.0,) * 4))
    read = acks(caps=caps_array((2000.0,) * 4, (200.0,) * 4))
    still = command(*(node(n, None, None) for n in NODES))
    nodes = tuple(replace(n, caps=tuple(replace(c, power_limit_w=200.0) for c in n.caps)) for n in still.nodes)
    limited = replace(still, nodes=nodes)
    for room_w, found in ((800.0, set()), (799.0, {2})):
        feeder = Feeder("row", room_w, np.ones(4, bool))
        assert (broken(check(view(state=capped, acks=read, feeders=(feeder,)), limited)) & {2}) == found


def test_2_lowering_follows_the_gpus_own_curve() -> None:
    """With power going by the cube of the clock, an eighth of the room above idle is half of the clock."""
    least = np.array([np.full(4, 100.0), np.full(4, 200.0)])
    cubic = replace(FLEET, power_exponent=3.0, floor_mhz=least[0], cap_min=least)
    feeder = Feeder("row", 4 * (100.0 + 600.0 / 8.0), np.ones(4, bool))
    seen = view(fleet=cubic, feeders=(feeder,), state=state((2000.0,) * 4, gpu_ids=()), acks=acks((2000.0,) * 4))
    verdict = check(seen, command(node(NODES[0], None, None), node(NODES[1], None, None)))
    assert set(clocks(verdict).values()) <= {999, 1000}


def test_2_a_gpu_without_any_span_of_power_takes_no_part() -> None:
    """Idle and peak the same, or one watt apart: nothing is divided by nothing, and the others come down."""
    flat = replace(FLEET, idle_w=np.array([700.0, 100.0, 100.0, 100.0]))
    feeder = Feeder("row", 700.0 + 3 * 280.0, np.ones(4, bool))
    seen = view(fleet=flat, feeders=(feeder,))
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert {g: c for g, c in clocks(verdict).items() if g != "GPU-0"} == {"GPU-1": 600, "GPU-2": 600, "GPU-3": 600}


def test_3_without_a_battery_nothing_is_supplied() -> None:
    """Worst case and ceiling meet exactly: no watt is conjured, none is missing."""
    seen = view(battery=None, import_w_max=1600.0, image=image(1600.0))
    assert check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))).violations == ()
    seen = replace(seen, import_w_max=1599.5, image=image(1500.0))
    assert broken(check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))) >= {3}


def test_4_a_site_that_may_import_nothing_and_does_not_is_within_its_ceiling() -> None:
    """Nothing metered, nothing asked for, nothing allowed: that is met, and a cap may rise on the site's own power."""
    seen = view(
        image=image(0.0),
        import_w_max=0.0,
        battery=replace(BATTERY, supply_w=5000.0),
        load_w=300.0,
        state=state(target_w=0.0, reference_w=0.0),
    )
    verdict = check(seen, command(node(NODES[0], 1100, 1000), power=battery(0.0)))
    assert verdict.violations == () and target(verdict) == 0.0 and clocks(verdict)[GPUS[0]] == 1100


def test_10_a_cap_at_the_service_floor_is_not_below_it() -> None:
    """The least that a service allows may be asked for."""
    assert check(view(), command(node(NODES[0], FLOOR, FLOOR))).violations == ()


def test_2_where_a_power_limit_is_in_force_it_is_what_comes_down() -> None:
    """Two GPUs at 400 W under a feeder of 700 W get 350 W each; their clocks stay free, the others keep theirs."""
    seen = limited(view(feeders=feeder(700.0)), (400.0,) * 4)
    verdict = check(seen, limit_command(400.0, 400.0, 400.0, 400.0))
    assert out_caps(verdict) == [(None, 350.0), (None, 350.0), (None, 400.0), (None, 400.0)]
    assert broken(verdict) == {2}


@pytest.mark.parametrize(("room_w", "cap"), [(402.0, (None, 201.0)), (400.0, (None, 200.0)), (360.0, (266, 240.0))])
def test_2_a_power_limit_comes_down_to_the_gpus_least_and_then_the_clock_does(
    room_w: float, cap: tuple[int | None, float]
) -> None:
    """No limit below 200 W can be set: 200 W themselves can, and 180 W are a clock of 266 MHz beside the old limit."""
    low = replace(FLEET, floor_mhz=np.full(4, float(CLOCK_MIN)))
    seen = limited(view(fleet=low, feeders=feeder(room_w)), (240.0,) * 4)
    assert out_caps(check(seen, limit_command(240.0, 240.0, 240.0, 240.0)))[:2] == [cap, cap]


def test_3_no_power_limit_comes_down_below_what_the_service_floor_draws() -> None:
    """At the service floor a GPU draws 280 W; a ceiling that asks for less than that is no reason to give it."""
    seen = limited(view(import_w_max=1000.0, image=image(None)), (400.0,) * 4)
    verdict = check(seen, limit_command(400.0, 400.0, 400.0, 400.0))
    assert out_caps(verdict) == [(None, 280.0)] * 4 and broken(verdict) == {3}


def test_2_a_gpu_below_its_service_floor_has_nothing_to_give_and_takes_nothing() -> None:
    """220 W at 400 MHz and 400 W at 1000 MHz under 560 W: the 60 W come off the second alone, which goes to 800 MHz."""
    at = (400.0, 1000.0, 1000.0, 1000.0)
    seen = view(feeders=feeder(560.0), state=state(at), acks=acks(at))
    assert clocks(check(seen, command(node(NODES[0], 400, 1000)))) == {GPUS[0]: 400, GPUS[1]: 800}


def test_2_a_feeder_without_room_for_anything_leaves_the_least_clock() -> None:
    """What a GPU's least clock is has nothing to do with its least power limit."""
    other = replace(FLEET, cap_min=np.array([np.full(4, 250.0), np.full(4, 300.0)]))
    seen = view(fleet=other, feeders=feeder(100.0))
    assert clocks(check(seen, command(node(NODES[0], 1000, 1000)))) == {GPUS[0]: 250, GPUS[1]: 250}


@pytest.mark.parametrize(("over_w", "clock"), [(62.0, 948), (0.5, 999)])
def test_4_without_a_battery_all_that_is_too_much_comes_off_the_caps(over_w: float, clock: int) -> None:
    """62 W too much are 15.5 W of each GPU, which are 51.7 MHz; half a watt is too much as well."""
    seen = view(image=image(1000.0 + over_w), import_w_max=1000.0, unmanaged_w_max=-1e5, battery=None)
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert set(clocks(verdict).values()) == {clock} and broken(verdict) == {4}


def test_3_caps_do_not_come_down_into_a_window_that_is_spent() -> None:
    """No room downwards: a ceiling that the worst case exceeds takes not even a watt's worth of clock."""
    seen = view(import_w_max=1500.0, unmanaged_w_max=1000.0, windows=(window(0.0),))
    assert check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))).violations == ()


def test_a_fall_leaves_its_part_to_the_node_that_is_not_asked() -> None:
    """1600 W are to come down to 1400: who is asked gives half of it now, the books of the other stay as ordered."""
    seen = view(import_w_max=1400.0)
    once = check(seen, command(node(NODES[0], 1000, 1000)))
    assert sum(draw_w(clocks(once)[g]) for g in GPUS[:2]) == pytest.approx(700.0, abs=1.0) and broken(once) == {3}
    assert once.state.caps[0, 2:].tolist() == [1000.0, 1000.0]
    assert np.isinf(once.state.clock_written_s[2:]).all() and (once.state.clock_written_s[:2] == NOW_S).all()
    assert check(seen, once.command).command == once.command
    both = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert clocks(both)[GPUS[0]] == clocks(once)[GPUS[0]] and sum(draw_w(c) for c in clocks(both).values()) <= 1400.0


def test_who_gave_more_than_its_part_lets_the_others_wait() -> None:
    """All 200 W are offered by the node that is asked: nothing is left to do."""
    verdict = check(view(import_w_max=1400.0), command(node(NODES[0], 600, 720)))
    assert verdict.violations == () and clocks(verdict) == {GPUS[0]: 600, GPUS[1]: 720}


def test_the_part_that_is_left_goes_by_what_each_has_above_its_floor() -> None:
    """Two at 1000 MHz have 120 W each above the floor, one at 700 has 30, one below it nothing: of 100 W, 89 and 11."""
    last = (1000.0, 1000.0, 700.0, 400.0)
    seen = view(state=state(last), acks=acks(last), import_w_max=sum(draw_w(int(c)) for c in last) - 100.0)
    first = clocks(check(seen, command(node(NODES[0], 1000, 1000))))
    assert 2 * 400.0 - sum(draw_w(first[g]) for g in GPUS[:2]) == pytest.approx(100.0 * 240 / 270, abs=0.7)
    second = clocks(check(seen, command(node(NODES[1], 700, 400))))
    assert 310.0 - draw_w(second[GPUS[2]]) == pytest.approx(100.0 * 30 / 270, abs=0.4) and second[GPUS[3]] == 400
