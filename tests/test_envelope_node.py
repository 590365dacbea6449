"""The node's own check of what came over the wire."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.envelope_node import TTL_S_MAX, NodeVerdict, check_node
from controller.types import GpuCap, GpuId, NodeCommand, NodeId
from tests.node_kit import CLOCKS, NODE, spec

SPECS = {s.gpu_id: s for s in (spec("GPU-0"), spec("GPU-1"))}
GOOD = NodeCommand(NODE, 3, 7, 5.0, tuple(GpuCap(g, 1200, 500.0) for g in SPECS), 2.0, 100.0)


def judged(command: NodeCommand, last: tuple[int, int] = (3, 6)) -> NodeVerdict:
    return check_node(command, node_id=NODE, specs=SPECS, last=last)


def test_a_good_command_passes_unchanged() -> None:
    assert judged(GOOD) == NodeVerdict(GOOD, ())
    assert judged(GOOD, (-1, -1)).command == GOOD


@pytest.mark.parametrize("last", [(3, 7), (3, 8), (4, 0)])
def test_9_what_is_not_newer_is_refused(last: tuple[int, int]) -> None:
    verdict = judged(GOOD, last)
    assert verdict.command is None and verdict.violations[0].invariant == 9


def test_9_a_higher_epoch_starts_its_own_count() -> None:
    assert judged(replace(GOOD, epoch=4, seq=0)).command is not None


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
def test_9_a_command_that_never_or_always_lives_is_refused(ttl_s: float) -> None:
    assert judged(replace(GOOD, ttl_s=ttl_s)).command is None


def test_9_a_long_life_is_shortened() -> None:
    verdict = judged(replace(GOOD, ttl_s=1e4))
    assert verdict.command is not None and verdict.command.ttl_s == TTL_S_MAX and verdict.violations[0].invariant == 9


def test_1_a_command_for_another_node_is_refused() -> None:
    assert judged(replace(GOOD, node_id=NodeId("n2"))).command is None


@pytest.mark.parametrize("field", ["release_slot_s", "release_w_per_s"])
@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_1_a_slot_or_slope_that_is_none_is_refused(field: str, value: float) -> None:
    assert judged(replace(GOOD, **{field: value})).command is None  # type: ignore[arg-type]


def test_1_unknown_repeated_and_unreadable_gpus_are_left_out() -> None:
    caps = (
        GpuCap(GpuId("ghost"), 1200, None),
        GpuCap(GpuId("GPU-0"), 1200, float("nan")),
        GpuCap(GpuId("GPU-1"), 1200, None),
        GpuCap(GpuId("GPU-1"), 1500, None),
    )
    verdict = judged(replace(GOOD, caps=caps))
    assert verdict.command is not None and verdict.command.caps == (GpuCap(GpuId("GPU-1"), 1200, None),)
    assert [v.invariant for v in verdict.violations] == [1, 1, 1]


@pytest.mark.parametrize(("clock", "result", "is_wrong"), [(1207, 1200, False), (100, 210, True), (9000, 1980, True)])
def test_2_clocks_are_what_the_gpu_knows_at_or_below(clock: int, result: int, is_wrong: bool) -> None:
    verdict = judged(replace(GOOD, caps=(GpuCap(GpuId("GPU-0"), clock, None),)))
    assert verdict.command is not None and verdict.command.caps[0].clock_mhz == result
    assert bool(verdict.violations) is is_wrong


@pytest.mark.parametrize(("limit_w", "result"), [(100.0, 200.0), (900.0, 700.0)])
def test_2_limits_are_within_the_range(limit_w: float, result: float) -> None:
    verdict = judged(replace(GOOD, caps=(GpuCap(GpuId("GPU-0"), None, limit_w),)))
    assert verdict.command is not None and verdict.command.caps[0] == GpuCap(GpuId("GPU-0"), None, result)
    assert verdict.violations[0].invariant == 2


numbers = st.one_of(st.floats(), st.integers(-5, 5000))


@settings(deadline=None, derandomize=True)
@given(
    st.integers(-3, 9),
    st.integers(-3, 9),
    numbers,
    numbers,
    numbers,
    st.one_of(st.none(), numbers),
    st.one_of(st.none(), numbers),
)
def test_it_never_raises_and_lets_only_sense_through(
    epoch: int, seq: int, ttl_s: float, slot_s: float, slope: float, clock: float | None, limit_w: float | None
) -> None:
    caps = (GpuCap(GpuId("GPU-0"), clock, limit_w),)  # type: ignore[arg-type]
    out = judged(NodeCommand(NODE, epoch, seq, ttl_s, caps, slot_s, slope)).command
    if out is not None:
        assert (out.epoch, out.seq) > (3, 6) and 0 < out.ttl_s <= TTL_S_MAX
        for cap in out.caps:
            assert cap.clock_mhz is None or cap.clock_mhz in CLOCKS
            assert cap.power_limit_w is None or 200.0 <= cap.power_limit_w <= 700.0


def test_9_a_command_lives_for_a_hundred_seconds_at_most() -> None:
    """Ten periods of the slowest planner are 100 s: exactly that passes as it is, a fraction of a second too."""
    assert TTL_S_MAX == 100.0
    for ttl_s in (100.0, 1.0, 0.5):
        assert judged(replace(GOOD, ttl_s=ttl_s)) == NodeVerdict(replace(GOOD, ttl_s=ttl_s), ())
    assert judged(replace(GOOD, ttl_s=0.0)).violations[0].invariant == 9


def test_1_at_once_and_without_slope_are_good_slots() -> None:
    """The first node releases at once, and a node that stands still releases with no slope at all."""
    still = replace(GOOD, release_slot_s=0.0, release_w_per_s=0.0)
    assert judged(still) == NodeVerdict(still, ())


def test_1_a_ceiling_is_a_share_and_a_time() -> None:
    """Nothing and all of the fallback clock are shares; what is no number, or below nothing, is none."""
    for share, for_s in ((0.0, 0.0), (1.0, 1e6)):
        good = replace(GOOD, ceiling_frac=share, ceiling_s=for_s)
        assert judged(good) == NodeVerdict(good, ())
    for change in ({"ceiling_frac": math.nan}, {"ceiling_frac": -0.1}, {"ceiling_s": math.inf}, {"ceiling_s": -1.0}):
        out = judged(replace(GOOD, **change))  # type: ignore[arg-type]
        assert out.command is None and [v.invariant for v in out.violations] == [1]


@pytest.mark.parametrize("field", ["node_id", "release_slot_s", "release_w_per_s"])
def test_1_what_is_refused_is_counted_as_what_it_is(field: str) -> None:
    """Another node's command, or one with times that are none, is invariant 1 and no other."""
    wrong = replace(GOOD, **{field: NodeId("n2") if field == "node_id" else -1.0})  # type: ignore[arg-type]
    assert [v.invariant for v in judged(wrong).violations] == [1]


@pytest.mark.parametrize("order", [(3.5, 9), (4, 9.0), (4, -1)])
def test_9_counts_are_whole_numbers(order: tuple[int, int]) -> None:
    """Half an epoch is newer than nothing, and so is a sequence below zero in a new epoch."""
    verdict = judged(replace(GOOD, epoch=order[0], seq=order[1]))
    assert verdict.command is None and verdict.violations[0].invariant == 9


def test_2_the_ends_of_the_range_are_inside_it() -> None:
    """Lowest and highest clock and power limit are settings like any other."""
    gpu = next(iter(SPECS.values()))
    for clock, limit_w in (
        (gpu.clock_mhz_min, gpu.power_limit_w_min),
        (gpu.clock_mhz_max, gpu.power_limit_w_max),
    ):
        edge = replace(GOOD, caps=(GpuCap(gpu.gpu_id, clock, limit_w),))
        assert judged(edge) == NodeVerdict(edge, ())
