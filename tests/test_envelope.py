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
    EnvelopeVerdict,
    EnvelopeView,
    Following,
    GpuCap,
    GpuId,
    Mode,
    NodeCommand,
    NodeId,
    SiteCommand,
)
from tests.envelope_kit import (
    BATTERY,
    CLOCK_MAX,
    CLOCK_MIN,
    FLEET,
    GPUS,
    INF,
    NODES,
    NOW_S,
    PEAK_W,
    T_S,
    acks,
    battery,
    broken,
    caps_array,
    clocks,
    command,
    feeder,
    image,
    node,
    ring,
    state,
    target,
    view,
    window,
)


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


def test_1_an_unknown_node_gets_nothing() -> None:
    verdict = check(view(), command(replace(node(NODES[0], 900), node_id=NodeId("ghost"), caps=())))
    assert verdict.command.nodes == () and broken(verdict) == {1}


def test_1_a_gpu_of_another_node_spoils_its_command_and_no_other() -> None:
    wrong = replace(node(NODES[0]), caps=(GpuCap(GPUS[3], 900, None),))
    verdict = check(view(), command(wrong, node(NODES[1], 800, 800)))
    assert [n.node_id for n in verdict.command.nodes] == ["b"] and broken(verdict) == {1}


def test_1_a_gpu_that_two_nodes_name_is_each_ones_own() -> None:
    """A node that was renamed is known twice for a while: no command of either may pass unchecked by that."""
    ids = (*GPUS[:2], *GPUS[:2])
    twice = replace(FLEET, gpu_ids=ids, index={g: i for i, g in enumerate(ids)})
    seen = view(fleet=twice, state=state(gpu_ids=ids), is_leader=False)
    verdict = check(seen, command(node(NODES[0], None, None)))
    assert clocks(verdict) == {"GPU-0": 1000, "GPU-1": 1000} and broken(verdict) == {6}


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


def test_a_bound_met_to_rounding_is_met() -> None:
    seen = view(import_w_max=1000.0, unmanaged_w_max=-2000.0, image=image(1000.0005))
    verdict = check(seen, command(power=battery(1000.0005)))
    assert target(verdict) == 1000.0005 and verdict.violations == ()
    assert check(view(feeders=feeder(800.0 - 5e-4)), command(node(NODES[0], 1000, 1000))).violations == ()


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


@pytest.mark.parametrize(
    ("period_s", "ttl_s", "result"), [(2.0, 20.0, 20.0), (2.0, 21.0, 20.0), (2.0, 2.0, 4.0), (0.5, 0.2, 1.0)]
)
def test_9_periods_are_the_planners_own(period_s: float, ttl_s: float, result: float) -> None:
    """A slow planner's commands live longer, a fast one's shorter; both ends are repaired to the same measure."""
    verdict = check(view(planner_period_s=period_s), command(node(NODES[0], 900, 900, ttl_s=ttl_s)))
    assert verdict.command.nodes[0].ttl_s == result and (broken(verdict) == {9}) is (ttl_s != result)


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


def test_what_is_good_comes_out_as_the_very_same_object() -> None:
    """Nothing is copied that was not changed: whoever compares commands by identity sees what the envelope did."""
    good = node(NODES[0], 900, 900)
    assert check(view(), command(good)).command.nodes[0] is good


def test_a_command_without_nodes_changes_nothing_of_the_caps() -> None:
    """Only the battery is commanded: caps and the times of their writes stay, even where the fleet was exchanged."""
    before = state(gpu_ids=())
    after = check(view(state=before), command(power=battery(1000.0))).state
    assert after.caps is before.caps and after.gpu_ids == ()


def test_1_a_node_without_gpus_is_still_a_node_of_ours() -> None:
    """Its command carries a slot and a slope and no caps; there is nothing in it to refuse."""
    spans = {**FLEET.spans, NodeId("bare"): slice(4, 4)}
    bare = replace(node(NODES[0]), node_id=NodeId("bare"), caps=())
    assert check(view(fleet=replace(FLEET, spans=spans)), command(bare)).command.nodes == (bare,)


def test_13_a_raise_that_is_taken_back_costs_the_others_nothing() -> None:
    """Found at random: a lower ceiling lets nothing rise, and under a higher one a raise cost the others clocks."""
    seen = view(state=state((INF, INF, INF, 200.0)), acks=acks((INF,) * 4), image=image(200.0), import_w_max=200.0)
    seen = replace(seen, windows=(window(10.0, past=ring(200.0)),), unmanaged_w_max=0.0, margin_w=0.0)
    proposal = command(node(NODES[0], None, None), node(NODES[1], None, None))
    _assert_not_higher(check(replace(seen, import_w_max=0.0), proposal), check(seen, proposal))
