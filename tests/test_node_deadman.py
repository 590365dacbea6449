"""The glide of the dead-man: never steeper than asked, by either curve of power, and it always arrives."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.node.deadman import STEEPNESS, Deadman, glided
from controller.types import AgentState, GpuCap, NodeCommand
from tests.node_kit import FALLBACK_MHZ, NODE, spec

levels = st.floats(0.05, 1.0)
SPECS = [spec("GPU-0"), spec("GPU-1")]


def deadman(**changes: object) -> Deadman:
    fields: dict[str, object] = {
        "fallback_clock_mhz": FALLBACK_MHZ,
        "fallback_power_limit_w": None,
        "is_inherited": False,
    }
    return Deadman(SPECS, **(fields | changes))  # type: ignore[arg-type]


def command(clock_mhz: int | None, **changes: object) -> NodeCommand:
    fields: dict[str, object] = {"ttl_s": 5.0, "release_slot_s": 10.0, "release_w_per_s": 100.0} | changes
    caps = tuple(GpuCap(s.gpu_id, clock_mhz, None) for s in SPECS)
    return NodeCommand(NODE, 1, 1, caps=caps, **fields)  # type: ignore[arg-type]


@settings(deadline=None, derandomize=True)
@given(levels, levels, st.floats(0.0, 0.5))
def test_a_step_is_worth_its_share_at_most_by_either_curve(level: float, aim: float, share: float) -> None:
    after = glided(level, aim, share)
    assert min(level, aim) <= after <= max(level, aim)
    assert abs(after - level) <= share + 1e-9
    assert abs(after**STEEPNESS - level**STEEPNESS) <= share + 1e-9


@settings(deadline=None, derandomize=True)
@given(levels, levels, st.floats(0.01, 0.5))
def test_it_arrives(level: float, aim: float, share: float) -> None:
    for _ in range(int(2 / share) + 2):
        level = glided(level, aim, share)
    assert level == aim


def test_without_a_command_nothing_is_touched() -> None:
    orders = deadman().step(now_s=1e6)
    assert (orders.state, dict(orders.caps), orders.gives_back) == (AgentState.STARTING, {}, False)


def test_an_inherited_node_starts_at_fallback() -> None:
    orders = deadman(is_inherited=True).step(now_s=0.0)
    assert orders.state is AgentState.FALLBACK and {c.clock_mhz for c in orders.caps.values()} == {FALLBACK_MHZ}


def test_the_slot_is_waited_for_and_the_slope_kept() -> None:
    """62 kW of nodes are released by slots; this one waits for its own, then moves 100 W a second."""
    timer = deadman()
    timer.accept(command(1980), now_s=0.0)
    seen = {t: timer.step(now_s=float(t)) for t in range(40)}
    clocks = [next(iter(seen[t].caps.values())).clock_mhz or 0 for t in range(40)]
    assert [seen[t].state for t in (4, 5)] == [AgentState.ARMED, AgentState.FALLBACK]
    assert clocks[14] == 1980 and clocks[15] < 1980 and clocks[39] == FALLBACK_MHZ
    worth = [1260.0 * abs((a / 1980) ** STEEPNESS - (b / 1980) ** STEEPNESS) for a, b in pairwise(clocks)]
    assert max(worth) <= 100.0 + 1260.0 * STEEPNESS * 15 / 1980


def test_fallback_may_be_above_the_cap_and_is_climbed_to_as_slowly() -> None:
    timer = deadman()
    timer.accept(command(210), now_s=0.0)
    clocks = []
    for t in range(60):
        clocks.append(next(iter(timer.step(now_s=float(t)).caps.values())).clock_mhz or 0)
    assert clocks[14] == 210 and clocks == sorted(clocks) and clocks[-1] == FALLBACK_MHZ
    assert max(b - a for a, b in pairwise(clocks)) <= 100.0 / 1260.0 * 1980 + 15


@pytest.mark.parametrize("clock_mhz", [210, 1980])
def test_a_ceiling_that_outlives_the_controller_holds_the_fallback_down_until_it_ends(clock_mhz: int) -> None:
    """From below or from above it goes to two thirds of the fallback clock, and to all of it after 100 s."""
    timer = deadman()
    timer.accept(command(clock_mhz, ceiling_frac=2 / 3, ceiling_s=100.0), now_s=0.0)
    clocks = [next(iter(timer.step(now_s=float(t)).caps.values())).clock_mhz or 0 for t in range(140)]
    held_mhz = clocks[99]
    assert clocks[14] == clock_mhz and 0 <= FALLBACK_MHZ * 2 / 3 - held_mhz < 15 and held_mhz in clocks[40:60]
    assert held_mhz <= clocks[100] < FALLBACK_MHZ and clocks[-1] == FALLBACK_MHZ
    assert max(b - a for a, b in pairwise(clocks)) <= 100.0 / 1260.0 * 1980 + 15


def test_the_end_of_a_ceiling_is_an_instant_of_its_own() -> None:
    """The dead-man is asked then although nobody said anything; a command without a ceiling has no such instant."""
    timer = deadman()
    timer.accept(command(900, ceiling_frac=0.5, ceiling_s=60.0), now_s=0.0)
    timer.step(now_s=20.0)
    assert timer.due_s == 60.0
    timer.accept(replace(command(900, ceiling_s=60.0), seq=2), now_s=21.0)
    timer.step(now_s=40.0)
    assert timer.due_s == math.inf


def test_a_slope_of_zero_never_moves_and_an_infinite_one_at_once() -> None:
    still, jump = deadman(), deadman()
    still.accept(command(1980, release_w_per_s=0.0), now_s=0.0)
    jump.accept(command(1980, release_w_per_s=float("inf")), now_s=0.0)
    for t in range(16):
        last = [next(iter(timer.step(now_s=float(t)).caps.values())).clock_mhz for timer in (still, jump)]
    assert last == [1980, FALLBACK_MHZ]


def test_a_gap_between_steps_buys_no_larger_step() -> None:
    timer = deadman()
    timer.accept(command(1980), now_s=0.0)
    timer.step(now_s=15.0)
    before = next(iter(timer.step(now_s=15.0).caps.values())).clock_mhz or 0
    after = next(iter(timer.step(now_s=400.0).caps.values())).clock_mhz or 0
    assert 1260.0 * ((before / 1980) ** STEEPNESS - (after / 1980) ** STEEPNESS) <= 100.0 + 1260 * STEEPNESS * 15 / 1980


@pytest.mark.parametrize(("limit_w", "expected"), [(None, None), (400.0, 400.0), (50.0, 200.0), (900.0, 700.0)])
def test_the_fallback_limit_is_within_the_gpus_range(limit_w: float | None, expected: float | None) -> None:
    orders = deadman(is_inherited=True, fallback_power_limit_w=limit_w).step(now_s=0.0)
    assert {cap.power_limit_w for cap in orders.caps.values()} == {expected}


def test_no_gpu_stays_free_while_it_waits_for_its_slot() -> None:
    """From expiry on every GPU is bounded: a free one at its top clock, a capped one where it is."""
    timer = deadman()
    timer.accept(command(None, release_slot_s=100.0), now_s=0.0)
    assert {cap.clock_mhz for cap in timer.step(now_s=4.9).caps.values()} == {None}
    assert {cap.clock_mhz for cap in timer.step(now_s=5.0).caps.values()} == {1980}
    assert {cap.clock_mhz for cap in timer.step(now_s=104.9).caps.values()} == {1980}
    assert max(cap.clock_mhz or 1980 for cap in timer.step(now_s=106.0).caps.values()) < 1980
    lower = deadman()
    lower.accept(command(1500, release_slot_s=100.0), now_s=0.0)
    assert {cap.clock_mhz for cap in lower.step(now_s=50.0).caps.values()} == {1500}


def test_release_climbs_in_its_slot_and_then_gives_back() -> None:
    timer = deadman()
    timer.accept(command(900, release_slot_s=0.0), now_s=0.0)
    timer.step(now_s=0.0)
    timer.accept(command(None, is_release=True, release_slot_s=3.0), now_s=1.0)
    orders = [timer.step(now_s=1.0 + t) for t in range(40)]
    assert not any(o.gives_back for o in orders[:8]) and orders[-1].gives_back
    assert orders[2].caps[SPECS[0].gpu_id].clock_mhz == 900 and orders[-1].state is AgentState.RELEASED


def test_a_release_that_is_renewed_goes_on_instead_of_waiting_anew() -> None:
    """The site says it again every period: the slot counts from the first word, and the climb is not begun anew."""
    timer = deadman()
    timer.accept(command(900, release_slot_s=0.0), now_s=0.0)
    clocks, seen = [], []
    for t in range(1, 60):
        timer.accept(command(None, is_release=True, release_slot_s=3.0), now_s=float(t))
        orders = timer.step(now_s=float(t))
        seen.append(orders.gives_back)
        clocks.append(orders.caps[SPECS[0].gpu_id].clock_mhz if orders.caps else None)
    assert clocks[:3] == [900, 900, 900] and (clocks[4] or 0) > 900, "it waited for its own slot only"
    assert seen[-1] and seen.index(True) < 40
