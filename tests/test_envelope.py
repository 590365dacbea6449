"""The envelope: each invariant alone changes a command that breaks it, and nothing else does."""

from __future__ import annotations

import ast
import io
import math
import tokenize
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import envelope
from controller.envelope import check
from controller.types import (
    BatteryCommand,
    EnvelopeBattery,
    EnvelopeState,
    EnvelopeVerdict,
    EnvelopeView,
    Feeder,
    FleetAcks,
    FleetTable,
    Following,
    GpuCap,
    GpuId,
    LimitId,
    Margin,
    MeterSample,
    Mode,
    NodeCommand,
    NodeId,
    PccRing,
    Quality,
    Reading,
    SiteCommand,
    SiteImage,
    WindowCheck,
)

GPUS = tuple(GpuId(f"GPU-{i}") for i in range(4))
NODES = (NodeId("a"), NodeId("b"))
NOW_S = 100.0
IDLE_W, PEAK_W, CLOCK_MAX, CLOCK_MIN, FLOOR = 100.0, 700.0, 2000, 200, 600
T_S = 1.0
INF = float("inf")


def fleet(n_free: int = 4) -> FleetTable:
    def one(value: float) -> np.ndarray[Any, Any]:
        return np.full(4, float(value))

    return FleetTable(
        gpu_ids=GPUS,
        index={g: i for i, g in enumerate(GPUS)},
        spans={NODES[0]: slice(0, 2), NODES[1]: slice(2, 4)},
        cap_min=np.array([one(CLOCK_MIN), one(200.0)]),
        cap_max=np.array([one(CLOCK_MAX), one(PEAK_W)]),
        floor_mhz=one(FLOOR),
        idle_w=one(IDLE_W),
        peak_w=one(PEAK_W),
        stands_for=one(1.0),
        power_exponent=1.0,
    )


FLEET = fleet()


def caps_array(clocks: tuple[float, ...], limits: tuple[float, ...] = (INF,) * 4) -> np.ndarray[Any, Any]:
    return np.array([clocks, limits], dtype=float)


def ring(power_w: float | list[float], *, head_s: float = 0.0) -> PccRing:
    low, high = np.full(601, INF), np.full(601, -INF)
    past = [power_w] * 601 if isinstance(power_w, float) else power_w
    low[: len(past)] = high[: len(past)] = past
    return PccRing(step_s=1.0, head_s=head_s, mean_s=1.0, min_w=low, max_w=high)


def window(
    max_w: float = 200.0, window_s: float = 60.0, *, past: PccRing | None = None, up: bool = True, down: bool = True
) -> WindowCheck:
    return WindowCheck(LimitId("ramp"), window_s, max_w, 0.0, up, down, past or ring(1000.0))


BATTERY = EnvelopeBattery(
    charge_w_max=500.0,
    discharge_w_max=400.0,
    ramp_w_per_s_max=1000.0,
    supply_w=0.0,
    spare_w=0.0,
    deadband_w=0.0,
    dwell_s=0.0,
    is_eligible=True,
)


def image(power_w: float | None = 1000.0, *, quality: Quality = Quality.GOOD, age_s: float = 0.0) -> SiteImage:
    pcc = None if power_w is None else Reading(MeterSample(power_w), NOW_S - age_s, quality, "pcc")
    return SiteImage(
        t_mono_s=NOW_S,
        wall_utc_s=0.0,
        tick=0,
        pcc=pcc,
        battery=None,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
    )


def state(clocks: tuple[float, ...] = (1000.0,) * 4, **changes: Any) -> EnvelopeState:
    base = EnvelopeState(
        epoch=1,
        seq=10,
        t_s=NOW_S - 0.05,
        gpu_ids=FLEET.gpu_ids,
        caps=caps_array(clocks),
        clock_written_s=np.full(4, -INF),
        target_w=1000.0,
        reference_w=1000.0,
        reference_t_s=0.0,
    )
    return replace(base, **changes)


def acks(clocks: tuple[float, ...] = (1000.0,) * 4, **changes: Any) -> FleetAcks:
    base = FleetAcks(caps=caps_array(clocks), is_fresh=np.ones(4, bool), fixed_w=np.full(4, np.nan))
    return replace(base, **changes)


def view(**changes: Any) -> EnvelopeView:
    base = EnvelopeView(
        image=image(),
        fleet=FLEET,
        acks=acks(),
        feeders=(),
        windows=(),
        target_step_w=INF,
        import_w_max=INF,
        margin_w=0.0,
        unmanaged_w_max=0.0,
        load_w=1000.0,
        battery=BATTERY,
        drop_safe_target_w=INF,
        margins=(),
        mode=Mode.NORMAL,
        is_leader=True,
        is_clock_sane=True,
        is_emergency=False,
        planner_period_s=T_S,
        meter_age_s_max=0.3,
        max_export_w=0.0,
        violations_max=30,
        state=state(),
    )
    return replace(base, **changes)


def node(node_id: NodeId, *clocks: int | None, **changes: Any) -> NodeCommand:
    mine = GPUS[:2] if node_id == "a" else GPUS[2:]
    caps = tuple(GpuCap(g, clock, None) for g, clock in zip(mine, clocks, strict=False))
    base = NodeCommand(node_id, epoch=1, seq=11, ttl_s=5.0, caps=caps, release_slot_s=0.0, release_w_per_s=1.0)
    return replace(base, **changes)


def battery(reference_w: float, following: Following = Following.DEVICE, **changes: Any) -> BatteryCommand:
    return replace(BatteryCommand(following, reference_w, 500.0, 1, 11, 5.0), **changes)


def command(*nodes: NodeCommand, power: BatteryCommand | None = None, epoch: int = 1, seq: int = 11) -> SiteCommand:
    return SiteCommand(epoch, seq, power, nodes)


def clocks(verdict: EnvelopeVerdict) -> dict[str, int | None]:
    return {cap.gpu_id: cap.clock_mhz for n in verdict.command.nodes for cap in n.caps}


def broken(verdict: EnvelopeVerdict) -> set[int]:
    return {v.invariant for v in verdict.violations}


def target(verdict: EnvelopeVerdict) -> float:
    assert verdict.command.battery is not None
    return verdict.command.battery.reference_w


# ------------------------------------------------------------------------------------------------------- good commands


def test_a_good_command_passes_unchanged() -> None:
    """Within every bound: the same objects come out, nothing is counted, the memory moves on."""
    proposal = command(node(NODES[0], 1100, None), node(NODES[1], 900, 800), power=battery(1050.0))
    verdict = check(view(windows=(window(),), import_w_max=5000.0), proposal)
    assert verdict.command == proposal and verdict.violations == ()
    assert verdict.state.seq == 11 and verdict.state.target_w == 1050.0
    assert verdict.state.caps.tolist() == caps_array((1100, INF, 900, 800)).tolist()


def test_the_top_clock_is_the_same_as_free() -> None:
    """A GPU read back at its top clock is free: neither naming the top nor leaving it free is a raise."""
    seen = view(state=state((2000.0,) * 4, gpu_ids=()), acks=acks((2000.0,) * 4), is_leader=False)
    for clock in (None, 2000):
        verdict = check(seen, command(node(NODES[0], clock, clock)))
        assert verdict.violations == () and set(clocks(verdict).values()) == {clock}


def test_it_is_small_enough_to_read_and_imports_types_only() -> None:
    """Under 200 lines of code without docstrings and comments, and no import of ours but the nouns."""
    source = Path(envelope.__file__).read_text()
    tree, skipped = ast.parse(source), set[int]()
    for item in ast.walk(tree):
        if isinstance(item, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(item) is not None:
            skipped |= set(range(item.body[0].lineno, (item.body[0].end_lineno or 0) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in layout]
    lines = {n for t in tokens for n in range(t.start[0], t.end[0] + 1)} - skipped
    assert len(lines) < 200
    ours = [
        n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] == "controller"
    ]
    assert [(n.module, [a.name for a in n.names]) for n in ours] == [("controller", ["types"])]


# ---------------------------------------------------------------------------------- 1: numbers, ids


def test_1_an_unknown_node_gets_nothing() -> None:
    verdict = check(view(), command(replace(node(NODES[0], 900), node_id=NodeId("ghost"), caps=())))
    assert verdict.command.nodes == () and broken(verdict) == {1}


def test_1_a_gpu_of_another_node_spoils_its_command_and_no_other() -> None:
    wrong = replace(node(NODES[0]), caps=(GpuCap(GPUS[3], 900, None),))
    verdict = check(view(), command(wrong, node(NODES[1], 800, 800)))
    assert [n.node_id for n in verdict.command.nodes] == ["b"] and broken(verdict) == {1}


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_1_a_cap_that_is_no_number_keeps_the_last(bad: float) -> None:
    caps = (GpuCap(GPUS[0], bad, None), GpuCap(GPUS[1], 800, bad))  # type: ignore[arg-type]
    verdict = check(view(state=state((900.0,) * 4)), command(replace(node(NODES[0]), caps=caps)))
    assert clocks(verdict) == {GPUS[0]: 900, GPUS[1]: 800} and broken(verdict) == {1}
    assert all(cap.power_limit_w is None for cap in verdict.command.nodes[0].caps)


@pytest.mark.parametrize("field", ["release_slot_s", "release_w_per_s"])
def test_1_a_slot_or_slope_that_is_no_number_is_not_sent(field: str) -> None:
    verdict = check(view(), command(node(NODES[0], 900, 900, **{field: float("nan")})))
    assert verdict.command.nodes == () and broken(verdict) == {1}


@pytest.mark.parametrize("following", list(Following))
def test_1_a_reference_that_is_no_number_is_not_sent(following: Following) -> None:
    verdict = check(view(windows=(window(),)), command(power=battery(float("nan"), following)))
    assert verdict.command.battery is None and 1 in broken(verdict)


def test_1_a_ring_that_is_no_number_stops_the_battery_command() -> None:
    verdict = check(view(windows=(window(past=ring(float("nan"))),)), command(power=battery(1000.0)))
    assert verdict.command.battery is None and 1 in broken(verdict)


def test_1_a_gpu_not_named_keeps_its_last_cap() -> None:
    verdict = check(view(), command(node(NODES[0], 900)))
    assert verdict.state.caps[0].tolist() == [900, 1000, 1000, 1000]


# ---------------------------------------------------------------------------------- 2: ranges, feeders


def test_2_a_clock_below_the_range_is_lifted_to_it() -> None:
    verdict = check(view(is_emergency=True), command(node(NODES[0], 10, 900)))
    assert clocks(verdict)[GPUS[0]] == CLOCK_MIN and broken(verdict) == {2}


def test_2_values_above_the_range_are_free_at_most() -> None:
    seen = view(state=state((INF,) * 4))
    caps = (GpuCap(GPUS[0], 9000, 5000.0), GpuCap(GPUS[1], 900, 50.0))
    verdict = check(seen, command(replace(node(NODES[0]), caps=caps)))
    out = verdict.command.nodes[0].caps
    assert out == (GpuCap(GPUS[0], None, None), GpuCap(GPUS[1], 900, 200.0)) and broken(verdict) == {2}


def feeder(room_w: float) -> tuple[Feeder, ...]:
    return (Feeder("row 1", room_w, np.array([True, True, False, False])),)


def draw_w(clock: int | None) -> float:
    return IDLE_W + (PEAK_W - IDLE_W) * (CLOCK_MAX if clock is None else clock) / CLOCK_MAX


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


# ------------------------------------------------------------------------------------------------------- 3, 4: ceiling


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


# ------------------------------------------------------------------------------------------------------- 5: windows


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
    row = WindowCheck(LimitId("rate"), 600.0, 20.0, 5.0, True, False, past)
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


def test_3_what_sags_by_itself_leaves_less_for_caps_to_fall() -> None:
    """The windows allow 99 W down and 66 W may go by themselves: a third is left, and 10 W of the chord."""
    seen = view(import_w_max=1500.0, unmanaged_w_max=1000.0, windows=(window(99.0),), is_held=False, sag_w=66.0)
    verdict = check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert 1586.0 < sum(draw_w(c) for c in clocks(verdict).values()) <= 1590.0
    verdict = check(replace(seen, sag_w=150.0), command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000)))
    assert sum(draw_w(c) for c in clocks(verdict).values()) == 1600.0


def test_5_an_emergency_may_fall_below_the_windows_but_not_rise() -> None:
    seen = view(windows=(window(200.0),), is_emergency=True)
    assert target(check(seen, command(power=battery(100.0)))) == 100.0
    assert target(check(seen, command(power=battery(1900.0)))) == 1200.0


# ------------------------------------------------------------------------------------------------------- 6, 7: raises

NO_LEAVE: list[dict[str, Any]] = [
    {"is_leader": False},
    {"is_clock_sane": False},
    {"mode": Mode.SHED},
    {"image": image(1000.0, quality=Quality.SUSPECT)},
    {"image": image(1000.0, quality=Quality.STALE)},
    {"image": image(1000.0, age_s=0.4)},
    {"image": image(float("nan"))},
    {"state": state(is_distrusted=True)},
    {"margins": (Margin("power", "full_site", -1.0, "W"),)},
]


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


# ------------------------------------------------------------------------------------------------------- 8: battery


@pytest.mark.parametrize(("wish", "result"), [(900.0, 400.0), (-900.0, -500.0)])
def test_8_power_stays_within_the_battery(wish: float, result: float) -> None:
    verdict = check(view(state=state(reference_w=0.0)), command(power=battery(wish, Following.SOFTWARE)))
    assert target(verdict) == result and broken(verdict) == {8}


@pytest.mark.parametrize(
    ("following", "wish", "result"), [(Following.DEVICE, -50.0, 0.0), (Following.SOFTWARE, 350.0, 300.0)]
)
def test_8_nothing_is_exported(following: Following, wish: float, result: float) -> None:
    seen = view(load_w=300.0, state=state(target_w=100.0))
    verdict = check(seen, command(power=battery(wish, following)))
    assert target(verdict) == result and broken(verdict) == {8}


@pytest.mark.parametrize(("ramp", "result"), [(5000.0, 1000.0), (0.0, 1000.0), (float("nan"), 1000.0), (10.0, 10.0)])
def test_8_the_slope_is_the_devices_own_at_most(ramp: float, result: float) -> None:
    verdict = check(view(), command(power=battery(1000.0, ramp_w_per_s=ramp)))
    out = verdict.command.battery
    assert out is not None and out.ramp_w_per_s == result
    assert broken(verdict) == (set() if ramp == result else {8})


def test_8_a_change_below_the_deadband_or_within_the_dwell_is_not_written() -> None:
    dead = view(battery=replace(BATTERY, deadband_w=20.0))
    assert target(check(dead, command(power=battery(1010.0)))) == 1000.0
    assert target(check(dead, command(power=battery(1020.0)))) == 1020.0
    slow = replace(BATTERY, dwell_s=10.0)
    assert (
        target(check(view(battery=slow, state=state(reference_t_s=NOW_S - 9)), command(power=battery(1500.0))))
        == 1000.0
    )
    assert (
        target(check(view(battery=slow, state=state(reference_t_s=NOW_S - 11)), command(power=battery(1500.0))))
        == 1500.0
    )


@pytest.mark.parametrize("unfit", [None, replace(BATTERY, is_eligible=False)])
def test_8_an_unfit_battery_is_not_used(unfit: EnvelopeBattery | None) -> None:
    verdict = check(view(battery=unfit), command(power=battery(1000.0)))
    assert verdict.command.battery is None and broken(verdict) == {8}


# ------------------------------------------------------------------------------------------------------- 9: order, TTL


@pytest.mark.parametrize(("epoch", "seq"), [(0, 99), (1, 10), (1, 3)])
def test_9_an_old_command_writes_nothing(epoch: int, seq: int) -> None:
    part = node(NODES[0], 900, 900, epoch=epoch)
    verdict = check(view(), command(part, power=battery(900.0, epoch=epoch), epoch=epoch, seq=seq))
    assert verdict.command == SiteCommand(epoch, seq, None, ()) and broken(verdict) == {9}
    assert (verdict.state.epoch, verdict.state.seq) == (1, 10)


def test_9_a_new_epoch_starts_its_own_count() -> None:
    part = node(NODES[0], 900, 900, epoch=2)
    assert check(view(), command(part, epoch=2, seq=0)).violations == ()


def test_9_a_part_of_another_epoch_spoils_the_whole() -> None:
    verdict = check(view(), command(node(NODES[0], 900, 900, epoch=2), power=battery(900.0)))
    assert verdict.command.nodes == () and verdict.command.battery is None and broken(verdict) == {9}


@pytest.mark.parametrize(
    ("ttl", "result"),
    [(1.0, 2.0), (0.0, 2.0), (-5.0, 2.0), (float("nan"), 2.0), (10.0, 10.0), (11.0, 10.0), (1.1, 1.1)],
)
def test_9_commands_live_for_one_to_ten_periods(ttl: float, result: float) -> None:
    verdict = check(view(), command(node(NODES[0], 900, 900, ttl_s=ttl), power=battery(1000.0, ttl_s=ttl)))
    assert verdict.command.battery is not None
    assert verdict.command.nodes[0].ttl_s == verdict.command.battery.ttl_s == result
    assert (9 in broken(verdict)) == (ttl != result)


# ------------------------------------------------------------------------------------------------------- 10, 11, 12, 14


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


def test_12_too_many_violations_take_trust_away_for_a_minute() -> None:
    """31 violations within 60 s distrust the planner; the last of them must be a minute old to be heard."""
    seen = view(state=state(violation_times_s=(NOW_S - 50.0,) * 30))
    verdict = check(seen, command(node(NODES[0], 300, 700)))
    assert verdict.state.is_distrusted and len(verdict.state.violation_times_s) == 31
    old = view(state=state(violation_times_s=(NOW_S - 61.0,) * 30))
    assert not check(old, command(node(NODES[0], 300, 700))).state.is_distrusted
    quiet = view(state=state(violation_times_s=(NOW_S - 60.5,) * 31, is_distrusted=True))
    assert not check(quiet, command()).state.is_distrusted
    few = view(state=state(violation_times_s=(NOW_S - 1.0,) * 30))
    assert not check(few, command()).state.is_distrusted


def test_14_the_target_rises_only_as_far_as_a_full_drop_can_be_taken() -> None:
    verdict = check(view(drop_safe_target_w=1050.0), command(power=battery(1100.0)))
    assert target(verdict) == 1050.0 and broken(verdict) == {14}
    assert target(check(view(drop_safe_target_w=800.0), command(power=battery(1100.0)))) == 1000.0
    assert check(view(drop_safe_target_w=800.0), command(power=battery(990.0))).violations == ()


# ------------------------------------------------------------------------------------------------------- 13: properties

numbers = st.one_of(st.sampled_from([float("nan"), INF, -INF, 0.0, -1.0, 1e12]), st.floats(-3000.0, 3000.0))
wild_clock = st.one_of(st.none(), st.integers(-100, 5000), st.sampled_from([float("nan"), INF]))
tame_clock = st.one_of(st.none(), st.integers(CLOCK_MIN, CLOCK_MAX))


@st.composite
def proposals(draw: st.DrawFn, *, is_wild: bool) -> SiteCommand:
    clock, number = (wild_clock, numbers) if is_wild else (tame_clock, st.floats(0.0, 2500.0))
    nodes = []
    for node_id in draw(st.sets(st.sampled_from([*NODES, "ghost"] if is_wild else NODES))):
        ids = [*GPUS, GpuId("ghost")] if is_wild else list(GPUS[:2] if node_id == "a" else GPUS[2:])
        chosen = draw(st.lists(st.sampled_from(ids), unique=True))
        caps = tuple(GpuCap(g, draw(clock), draw(st.one_of(st.none(), number))) for g in chosen)  # type: ignore[arg-type]
        ttl = draw(number) if is_wild else 5.0
        nodes.append(NodeCommand(NodeId(node_id), 1, 11, ttl, caps, draw(number), draw(number), draw(st.booleans())))
    power = None
    if draw(st.booleans()):
        following = draw(st.sampled_from(list(Following)))
        power = BatteryCommand(
            following, draw(number), draw(number), draw(st.sampled_from([1, 1, 1, 2])), 11, draw(number)
        )
    return SiteCommand(1, draw(st.sampled_from([11, 11, 11, 10])), power, tuple(nodes))


@st.composite
def views(draw: st.DrawFn) -> EnvelopeView:
    flags = [draw(st.booleans()) for _ in range(3)]
    clock = st.one_of(st.just(INF), st.integers(CLOCK_MIN, CLOCK_MAX - 1).map(float))
    last, acked = (tuple(draw(clock) for _ in GPUS) for _ in range(2))
    power_w = draw(st.floats(200.0, 2500.0))
    written = np.array([draw(st.sampled_from([-INF, NOW_S - 0.4])) for _ in GPUS])
    return view(
        image=image(draw(st.sampled_from([power_w, None]))),
        acks=acks(acked, fixed_w=np.array([draw(st.sampled_from([np.nan, np.nan, PEAK_W])) for _ in GPUS])),
        feeders=feeder(draw(st.floats(200.0, 1500.0))),
        windows=(window(draw(st.floats(10.0, 500.0)), past=ring(power_w)),),
        target_step_w=draw(st.sampled_from([INF, 30.0])),
        import_w_max=draw(st.one_of(st.just(INF), st.floats(100.0, 3000.0))),
        unmanaged_w_max=draw(st.floats(0.0, 300.0)),
        load_w=draw(st.floats(200.0, 2500.0)),
        drop_safe_target_w=draw(st.sampled_from([INF, 900.0])),
        battery=draw(
            st.sampled_from([None, BATTERY, replace(BATTERY, deadband_w=25.0, supply_w=200.0, spare_w=100.0)])
        ),
        mode=draw(st.sampled_from([Mode.NORMAL, Mode.NORMAL, Mode.SHED, Mode.FALLBACK, Mode.RELEASE])),
        is_leader=flags[0] or flags[1],
        is_emergency=flags[1] and flags[2],
        state=state(last, target_w=draw(st.sampled_from([None, power_w])), clock_written_s=written),
    )


def limits_of(verdict: EnvelopeVerdict) -> np.ndarray[Any, Any]:
    return verdict.state.caps


@settings(deadline=None, derandomize=True)
@given(views(), proposals(is_wild=True))
def test_13_never_raises_and_only_numbers_come_out(seen: EnvelopeView, proposal: SiteCommand) -> None:
    verdict = check(seen, proposal)
    for part in verdict.command.nodes:
        assert part.node_id in NODES and T_S < part.ttl_s <= 10 * T_S
        assert np.isfinite(part.release_slot_s) and np.isfinite(part.release_w_per_s)
        for cap in part.caps:
            assert cap.clock_mhz is None or CLOCK_MIN <= cap.clock_mhz <= CLOCK_MAX
            assert cap.power_limit_w is None or 200.0 <= cap.power_limit_w <= PEAK_W
    if verdict.command.battery is not None:
        out = verdict.command.battery
        assert np.isfinite(out.reference_w) and 0 < out.ramp_w_per_s <= 1000.0 and T_S < out.ttl_s <= 10 * T_S
    assert not np.isnan(verdict.state.caps).any()


@settings(deadline=None, derandomize=True)
@given(views(), proposals(is_wild=True))
def test_13_checking_twice_changes_nothing(seen: EnvelopeView, proposal: SiteCommand) -> None:
    once = check(seen, proposal)
    twice = check(seen, once.command)
    assert twice.command == once.command
    assert (twice.state.caps == once.state.caps).all()
    assert (twice.state.clock_written_s == once.state.clock_written_s).all()


@settings(deadline=None, derandomize=True)
@given(views(), proposals(is_wild=False), st.floats(0.0, 1.0))
def test_13_a_lower_ceiling_never_gives_a_higher_command(
    seen: EnvelopeView, proposal: SiteCommand, factor: float
) -> None:
    high = seen if np.isfinite(seen.import_w_max) else replace(seen, import_w_max=3000.0)
    _assert_not_higher(check(replace(high, import_w_max=high.import_w_max * factor), proposal), check(high, proposal))


@settings(deadline=None, derandomize=True)
@given(views(), proposals(is_wild=False), st.floats(0.0, 1.0))
def test_13_a_lower_feeder_never_gives_a_higher_command(
    seen: EnvelopeView, proposal: SiteCommand, factor: float
) -> None:
    lower = replace(seen, feeders=feeder(seen.feeders[0].room_w * factor))
    _assert_not_higher(check(lower, proposal), check(seen, proposal))


@settings(deadline=None, derandomize=True)
@given(views(), proposals(is_wild=False), st.floats(0.0, 1.0))
def test_13_a_lower_rise_allowance_never_gives_a_higher_target(
    seen: EnvelopeView, proposal: SiteCommand, factor: float
) -> None:
    row = replace(seen.windows[0], is_down=False)
    lower = replace(seen, windows=(replace(row, room_w=row.room_w * factor),))
    _assert_not_higher(check(lower, proposal), check(replace(seen, windows=(row,)), proposal))


def _assert_not_higher(lower: EnvelopeVerdict, higher: EnvelopeVerdict) -> None:
    assert (limits_of(lower) <= limits_of(higher)).all()
    if lower.command.battery is None or higher.command.battery is None:
        assert lower.command.battery == higher.command.battery
        return
    assert lower.command.battery.following is higher.command.battery.following
    if lower.command.battery.following is Following.DEVICE:
        assert lower.command.battery.reference_w <= higher.command.battery.reference_w + 1e-9
    else:
        assert lower.command.battery.reference_w >= higher.command.battery.reference_w - 1e-9


@pytest.mark.parametrize("field", ["feeders", "windows", "state", "image", "fleet"])
def test_what_cannot_be_checked_is_not_written(field: str) -> None:
    """A view without one of its parts is a programming error elsewhere; here it writes nothing and says so."""
    verdict = check(
        view(**({field: None} if field not in ("state", "image") else {"acks": None, "battery": None})),
        command(node(NODES[0], 900, 900)),
    )
    assert verdict.command.nodes == () and 1 in broken(verdict)


def test_1_a_slope_after_expiry_that_is_no_number_is_not_sent() -> None:
    verdict = check(view(), command(power=battery(1000.0, expiry_w_per_s=float("nan"))))
    assert verdict.command.battery is None and broken(verdict) == {1}


def test_at_start_the_target_begins_at_metered_power() -> None:
    """Nothing is remembered: the slope guard counts from where the meter says the site is."""
    seen = view(state=state(target_w=None, reference_w=None), target_step_w=10.0)
    assert target(check(seen, command(power=battery(1500.0)))) == 1010.0


def test_10_a_ceiling_is_no_reason_to_go_below_the_service_floor() -> None:
    """No clock above the floor fits 500 W; without a breaker emergency the floor is where it ends."""
    seen = view(import_w_max=500.0, margin_w=0.0, unmanaged_w_max=0.0, image=image(None))
    out = clocks(check(seen, command(node(NODES[0], 1000, 1000), node(NODES[1], 1000, 1000))))
    assert set(out.values()) == {FLOOR}


def test_2_each_gpu_gives_the_same_share_of_what_it_has_above_its_floor() -> None:
    """At 1000 and 700 MHz they draw 400 and 310 W, at the floor 280: of 120 and 30 W each gives half."""
    out = clocks(check(view(feeders=feeder(635.0)), command(node(NODES[0], 1000, 700))))
    assert out == {GPUS[0]: 800, GPUS[1]: 650}


def test_a_bound_met_to_rounding_is_met() -> None:
    seen = view(import_w_max=1000.0, unmanaged_w_max=-2000.0, image=image(1000.0005))
    verdict = check(seen, command(power=battery(1000.0005)))
    assert target(verdict) == 1000.0005 and verdict.violations == ()
    assert check(view(feeders=feeder(800.0 - 5e-4)), command(node(NODES[0], 1000, 1000))).violations == ()


def test_8_the_dwell_counts_from_the_last_change() -> None:
    """A reference written again is no change; a new one starts the dwell anew."""
    assert check(view(), command(power=battery(1000.0))).state.reference_t_s == 0.0
    assert check(view(), command(power=battery(1001.0))).state.reference_t_s == NOW_S


def test_2_a_sampled_node_counts_for_all_it_stands_for() -> None:
    many = replace(FLEET, stands_for=np.full(4, 10.0))
    seen = view(fleet=many, feeders=feeder(6350.0))
    assert clocks(check(seen, command(node(NODES[0], 1000, 700)))) == {GPUS[0]: 800, GPUS[1]: 650}


def test_6_margins_of_nothing_are_enough() -> None:
    seen = view(margins=(Margin("power", "full_site", 0.0, "W"),))
    assert check(seen, command(node(NODES[0], 1100, 1000))).violations == ()


def test_6_a_missing_input_alone_does_not_forbid_raises() -> None:
    assert check(view(mode=Mode.DEGRADED), command(node(NODES[0], 1100, 1000))).violations == ()


# ------------------------------------------------------------------------------------------------------- small print


def test_12_only_the_newest_violations_count_and_a_minute_is_a_minute() -> None:
    """Three of three allowed at one moment are trusted, the fourth is not; one of exactly a minute ago is forgotten."""
    wrong = command(node(NodeId("ghost"), 900))
    at = view(violations_max=3)
    three = check(replace(at, state=state(violation_times_s=(NOW_S - 30.0, NOW_S - 20.0))), wrong).state
    assert not three.is_distrusted and three.violation_times_s == (NOW_S - 30.0, NOW_S - 20.0, NOW_S)
    four = check(replace(at, state=replace(three, seq=10)), wrong).state
    assert four.is_distrusted and len(four.violation_times_s) == 4
    five = check(replace(at, state=replace(four, seq=10)), wrong).state
    assert five.violation_times_s == (NOW_S - 20.0, NOW_S, NOW_S, NOW_S), "no more than what decides is kept"
    old = check(replace(at, state=state(violation_times_s=(NOW_S - 60.0, NOW_S, NOW_S))), wrong).state
    assert not old.is_distrusted
    young = check(replace(at, state=state(violation_times_s=(NOW_S - 59.5, NOW_S - 90.0, NOW_S))), wrong).state
    assert young.is_distrusted


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


@pytest.mark.parametrize(
    ("period_s", "ttl_s", "result"), [(2.0, 20.0, 20.0), (2.0, 21.0, 20.0), (2.0, 2.0, 4.0), (0.5, 0.2, 1.0)]
)
def test_9_periods_are_the_planners_own(period_s: float, ttl_s: float, result: float) -> None:
    """A slow planner's commands live longer, a fast one's shorter; both ends are repaired to the same measure."""
    verdict = check(view(planner_period_s=period_s), command(node(NODES[0], 900, 900, ttl_s=ttl_s)))
    assert verdict.command.nodes[0].ttl_s == result and (broken(verdict) == {9}) is (ttl_s != result)


def test_5_a_window_looks_back_as_far_as_it_says_on_a_fine_ring() -> None:
    """Tenths of a second per entry: a window of 1 s reaches over ten entries and the one that begins there."""
    fine = replace(ring([1000.0] * 11 + [800.0] * 50), step_s=0.1)
    assert target(check(view(windows=(window(window_s=1.0, past=fine),)), command(power=battery(1150.0)))) == 1150.0
    assert target(check(view(windows=(window(window_s=1.1, past=fine),)), command(power=battery(1150.0)))) == 1000.0


def test_5_a_window_shorter_than_its_first_entry_sees_that_entry_only() -> None:
    """Half a second back lies inside the entry under way; what came before it does not count."""
    past = ring([1000.0, 500.0, 500.0])
    assert target(check(view(windows=(window(window_s=0.5, past=past),)), command(power=battery(1150.0)))) == 1150.0


def test_8_the_slope_of_a_small_battery_is_its_own() -> None:
    """Half a watt per second is a slope, if a small one."""
    verdict = check(view(), command(power=battery(1000.0, ramp_w_per_s=0.5)))
    assert verdict.command.battery is not None and verdict.command.battery.ramp_w_per_s == 0.5


def test_1_infinities_that_cancel_are_still_none() -> None:
    """A reference and its bound that are both infinite make no number of their difference."""
    seen = view(battery=replace(BATTERY, discharge_w_max=INF, charge_w_max=INF), load_w=INF, max_export_w=INF)
    verdict = check(seen, command(power=battery(-INF, Following.SOFTWARE)))
    assert verdict.command.battery is None and 1 in broken(verdict)
    for field in ("release_slot_s", "release_w_per_s", "ceiling_frac", "ceiling_s"):
        for number in (INF, -INF, math.nan):
            nowhere = replace(node(NODES[0], 900, 900), **{field: number})  # type: ignore[arg-type]
            assert check(view(), command(nowhere)).command.nodes == (), field


def test_at_start_without_a_meter_the_target_begins_at_the_load() -> None:
    """Nothing was commanded and nothing is metered: what the site is known to draw is where the target starts."""
    blind = view(image=image(None), load_w=700.0, target_step_w=50.0, state=state(target_w=None, reference_w=None))
    assert target(check(blind, command(power=battery(2000.0)))) == 750.0
    metered = view(image=image(1000.0), load_w=700.0, target_step_w=50.0, state=state(target_w=None, reference_w=None))
    assert target(check(metered, command(power=battery(2000.0)))) == 1050.0


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


@pytest.mark.parametrize(("wish_w", "is_counted"), [(1050.0 + 5e-4, False), (1050.0 + 2e-3, True)])
def test_5_a_target_outside_by_rounding_is_not_counted(wish_w: float, is_counted: bool) -> None:
    """A millionth of a kilowatt outside the window is rounding; it is still brought inside."""
    verdict = check(view(windows=(window(50.0),)), command(power=battery(wish_w)))
    assert target(verdict) == 1050.0 and (5 in broken(verdict)) is is_counted


@pytest.mark.parametrize(("wish_w", "is_counted"), [(400.0 + 3e-4, False), (400.0 + 1e-3, True)])
def test_8_power_beyond_the_battery_by_rounding_is_not_counted(wish_w: float, is_counted: bool) -> None:
    """Of 400 W, 0.4 mW are rounding."""
    seen = view(state=state(target_w=600.0, reference_w=400.0), image=image(600.0))
    verdict = check(seen, command(power=battery(wish_w, Following.SOFTWARE)))
    assert target(verdict) == 400.0 and (8 in broken(verdict)) is is_counted


def test_5_and_8_near_nothing_a_microwatt_is_rounding() -> None:
    """At a target of nothing the measure of rounding is a watt's: a microwatt and a half is counted."""
    seen = view(windows=(window(0.0, past=ring(0.0)),), image=image(0.0), state=state(target_w=0.0, reference_w=0.0))
    for wish_w, is_counted in ((0.9e-6, False), (1.5e-6, True)):
        assert (5 in broken(check(seen, command(power=battery(wish_w))))) is is_counted
        assert (8 in broken(check(replace(seen, windows=()), command(power=battery(-wish_w))))) is is_counted


def test_8_a_dwell_that_is_over_is_over() -> None:
    """Five seconds after the last change, with a dwell of five seconds, the next may be written."""
    slow = replace(BATTERY, dwell_s=5.0)
    for since_s, result in ((4.75, 1000.0), (5.0, 1050.0)):
        seen = view(battery=slow, state=state(reference_t_s=NOW_S - since_s))
        assert target(check(seen, command(power=battery(1050.0)))) == result


def test_11_only_clocks_wait_for_the_second() -> None:
    """A GPU whose power limit equals its clock in number may change neither more nor less for it."""
    seen = view(state=state(caps=caps_array((1000.0,) * 4, (500.0,) * 4), clock_written_s=np.full(4, NOW_S - 0.5)))
    verdict = check(seen, command(node(NODES[0], 500, 500)))
    assert 11 in broken(verdict) and clocks(verdict) == {"GPU-0": 1000, "GPU-1": 1000}
    same = check(seen, command(node(NODES[0], 1000, 1000)))
    assert 11 not in broken(same)


@pytest.mark.parametrize("ids", [("GPU-2",), ("GPU-0", "GPU-2"), ("ghost",), ("GPU-0", "ghost")])
def test_1_one_strange_gpu_spoils_its_nodes_command(ids: tuple[str, ...]) -> None:
    """The neighbour's first GPU, or one of nobody, in node a's command: node a gets none, node b its own."""
    strange = node(NODES[0], 900, 900, caps=tuple(GpuCap(GpuId(g), 900, None) for g in ids))
    verdict = check(view(), command(strange, node(NODES[1], 900, 900)))
    assert [n.node_id for n in verdict.command.nodes] == [NODES[1]] and broken(verdict) == {1}
    alone = check(view(), command(replace(strange, node_id=NodeId("ghost"), caps=())))
    assert alone.command.nodes == () and broken(alone) == {1}
    ghost = node(NodeId("ghost"), caps=(GpuCap(GPUS[0], 900, None),))
    first = check(view(), command(ghost, node(NODES[1], 900, 900)))
    assert [n.node_id for n in first.command.nodes] == [NODES[1]] and broken(first) == {1}


def test_violations_name_the_gpu_they_are_about() -> None:
    """The third GPU is wrong: it is the third that is named."""
    wrong = command(node(NODES[1], 50, 900))
    assert [(v.invariant, v.subject) for v in check(view(), wrong).violations] == [(2, "GPU-2"), (10, "GPU-2")]
    none = command(node(NODES[1], float("nan"), 900))  # type: ignore[arg-type]
    assert [(v.invariant, v.subject) for v in check(view(), none).violations] == [(1, "GPU-2")]


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


def test_5_caps_do_not_rise_into_a_window_that_is_spent() -> None:
    """No room upwards and no battery: not even a watt's worth of clock is given."""
    full = window(0.0, past=ring(1000.0))
    seen = view(battery=None, windows=(full,), image=image(1000.0))
    verdict = check(seen, command(node(NODES[0], 1003, 1000)))
    assert broken(verdict) == {5} and clocks(verdict) == {"GPU-0": 1000, "GPU-1": 1000}


def test_what_is_good_comes_out_as_the_very_same_object() -> None:
    """Nothing is copied that was not changed: whoever compares commands by identity sees what the envelope did."""
    good = node(NODES[0], 900, 900)
    assert check(view(), command(good)).command.nodes[0] is good


def test_a_command_without_nodes_changes_nothing_of_the_caps() -> None:
    """Only the battery is commanded: caps and the times of their writes stay, even where the fleet was exchanged."""
    before = state(gpu_ids=())
    after = check(view(state=before), command(power=battery(1000.0))).state
    assert after.caps is before.caps and after.gpu_ids == ()


# ------------------------------------------------------------------------------------ windows broken, limits at nothing


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


@pytest.mark.parametrize(
    ("following", "wish_w", "result_w"),
    [
        (Following.DEVICE, -80.0, -80.0),
        (Following.DEVICE, -150.0, -100.0),
        (Following.SOFTWARE, 380.0, 380.0),
        (Following.SOFTWARE, 399.0, 399.0),
        (Following.SOFTWARE, 450.0, 400.0),
    ],
)
def test_8_what_the_contract_lets_out_may_go_out(following: Following, wish_w: float, result_w: float) -> None:
    """300 W of load and 100 W of export agreed: the battery may give 400 W and the meter may stand at -100 W."""
    strong = replace(BATTERY, discharge_w_max=2000.0)
    seen = view(load_w=300.0, max_export_w=100.0, battery=strong, state=state(target_w=0.0, reference_w=0.0))
    verdict = check(seen, command(power=battery(wish_w, following)))
    assert target(verdict) == result_w and broken(verdict) == (set() if wish_w == result_w else {8})


def test_10_a_cap_at_the_service_floor_is_not_below_it() -> None:
    """The least that a service allows may be asked for."""
    assert check(view(), command(node(NODES[0], FLOOR, FLOOR))).violations == ()


def test_1_a_node_without_gpus_is_still_a_node_of_ours() -> None:
    """Its command carries a slot and a slope and no caps; there is nothing in it to refuse."""
    spans = {**FLEET.spans, NodeId("bare"): slice(4, 4)}
    bare = replace(node(NODES[0]), node_id=NodeId("bare"), caps=())
    assert check(view(fleet=replace(FLEET, spans=spans)), command(bare)).command.nodes == (bare,)


# ---------------------------------------------------------------------------------------------------- what is lowered


def limited(seen: EnvelopeView, limits: tuple[float, ...], clock: float = INF) -> EnvelopeView:
    """The same GPUs with power limits in force and read back."""
    caps = caps_array((clock,) * 4, limits)
    return replace(seen, state=state(caps=caps), acks=acks(caps=caps))


def limit_command(*limits: float) -> SiteCommand:
    mine = [tuple(GpuCap(g, None, w) for g, w in zip(GPUS[k : k + 2], limits[k : k + 2], strict=True)) for k in (0, 2)]
    return command(*(node(n, caps=caps) for n, caps in zip(NODES, mine, strict=True)))


def out_caps(verdict: EnvelopeVerdict) -> list[tuple[int | None, float | None]]:
    return [(cap.clock_mhz, cap.power_limit_w) for part in verdict.command.nodes for cap in part.caps]


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


def test_13_a_raise_that_is_taken_back_costs_the_others_nothing() -> None:
    """Found at random: a lower ceiling lets nothing rise, and under a higher one a raise cost the others clocks."""
    seen = view(state=state((INF, INF, INF, 200.0)), acks=acks((INF,) * 4), image=image(200.0), import_w_max=200.0)
    seen = replace(seen, windows=(window(10.0, past=ring(200.0)),), unmanaged_w_max=0.0, margin_w=0.0)
    proposal = command(node(NODES[0], None, None), node(NODES[1], None, None))
    _assert_not_higher(check(replace(seen, import_w_max=0.0), proposal), check(seen, proposal))
