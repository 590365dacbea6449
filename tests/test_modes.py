"""Modes: the highest flag wins, and each flag goes away only as its row says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import health
from controller.advice import ADVICE
from controller.modes import DWELL_CYCLES, TABLE, UNFLAGGED, Clear, Flag, ModeMachine
from controller.types import MeterFlag, Mode, NodeFault, SiteFault

PERIOD_S = 0.5
DWELL_S = DWELL_CYCLES * PERIOD_S
NONE: frozenset[Flag] = frozenset()


def machine(*, holds_by_device: bool = True) -> ModeMachine:
    return ModeMachine(period_s=PERIOD_S, holds_by_device=holds_by_device)


def test_every_flag_has_exactly_one_row() -> None:
    assert set(TABLE) == set(Flag)


def test_the_table_covers_every_row_of_the_catalogue() -> None:
    """Every fault of the catalogue can be said with a flag, or needs none; the numbers are the catalogue's own."""
    counts = {"S": 10, "G": 10, "M": 9, "Q": 11, "P": 5, "C": 4, "X": 7, "B": 2}
    rows = {f"{letter}{n}" for letter, last in counts.items() for n in range(1, last + 1)}
    flagged = {row for reaction in TABLE.values() for row in reaction.rows.split()} - {"-"}
    assert flagged | set(UNFLAGGED) == rows and not flagged & set(UNFLAGGED)


def test_every_flag_can_be_set() -> None:
    """By the estimator, a node, the shell, or by name in the one place that finds what is wrong."""
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    named = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Flag"
    }
    told = {fault.value for source in (MeterFlag, NodeFault, SiteFault) for fault in source}
    assert {flag for flag in Flag if flag.value not in told and flag.name not in named} == set()
    assert told <= {flag.value for flag in Flag}


def test_without_flags_the_mode_is_normal() -> None:
    state = machine().step(NONE, now_s=5.0)
    assert (state.mode, state.reasons, state.since_s) == (Mode.NORMAL, (), 5.0)


def test_the_higher_mode_wins_and_the_gravest_reason_comes_first() -> None:
    state = machine().step(frozenset({Flag.METER_STALE, Flag.SOLVER_INVALID, Flag.SIGNAL_DUPLICATE}), now_s=0.0)
    assert state.mode is Mode.SHED
    assert [r.flag for r in state.reasons] == [Flag.SOLVER_INVALID, Flag.METER_STALE, Flag.SIGNAL_DUPLICATE]
    assert not state.may_raise


def test_a_flag_clears_only_after_the_dwell() -> None:
    """The meter comes back; DEGRADED stays for ten cycles from the last time it was seen missing."""
    modes = machine()
    modes.step(frozenset({Flag.METER_STALE}), now_s=0.0)
    modes.step(frozenset({Flag.METER_STALE}), now_s=3.0)
    assert modes.step(NONE, now_s=3.0 + DWELL_S - 0.01).mode is Mode.DEGRADED
    assert modes.step(NONE, now_s=3.0 + DWELL_S).mode is Mode.NORMAL


def test_a_flag_that_returns_restarts_its_dwell_but_keeps_its_start() -> None:
    modes = machine()
    modes.step(frozenset({Flag.GPU_HUNG}), now_s=0.0)
    modes.step(NONE, now_s=4.0)
    modes.step(frozenset({Flag.GPU_HUNG}), now_s=4.5)
    state = modes.step(NONE, now_s=7.0)
    assert state.mode is Mode.DEGRADED and state.reasons[0].since_s == 0.0 and not state.reasons[0].is_set


def test_silence_of_the_grid_ends_with_a_signal_and_not_with_time() -> None:
    modes = machine()
    modes.step(frozenset({Flag.GRID_SILENT}), now_s=0.0)
    assert modes.step(NONE, now_s=1e6).mode is Mode.DEGRADED
    assert modes.step(NONE, now_s=1e6 + 1, has_new_signal=True).mode is Mode.NORMAL


def test_a_lockout_waits_for_the_operator() -> None:
    modes = machine()
    modes.step(frozenset({Flag.OPERATOR_LOCKOUT}), now_s=0.0)
    assert modes.step(NONE, now_s=1e6, has_new_signal=True).mode is Mode.LOCKOUT
    assert modes.step(NONE, now_s=1e6, is_operator_reset=True).mode is Mode.NORMAL


def test_a_deposed_controller_never_comes_back_by_itself() -> None:
    modes = machine()
    modes.step(frozenset({Flag.LEADERSHIP_LOST}), now_s=0.0)
    state = modes.step(NONE, now_s=1e9, has_new_signal=True, is_operator_reset=True)
    assert state.mode is Mode.LOCKOUT


def test_a_reset_does_not_clear_what_is_still_true() -> None:
    modes = machine()
    flags = frozenset({Flag.DEVICE_WRONG, Flag.METER_MISSING, Flag.GRID_SILENT})
    assert modes.step(flags, now_s=0.0, has_new_signal=True, is_operator_reset=True).flags == flags


@pytest.mark.parametrize(("holds", "expected"), [(True, Mode.HOLD), (False, Mode.FALLBACK)])
def test_hold_is_safe_only_where_the_battery_follows_by_itself(holds: bool, expected: Mode) -> None:
    """A held set-point passes the raw ripple on, so under software following HOLD goes on to FALLBACK."""
    state = machine(holds_by_device=holds).step(frozenset({Flag.NODES_ALL_LOST}), now_s=0.0)
    assert state.mode is expected


def test_the_mode_says_since_when() -> None:
    modes = machine()
    modes.step(NONE, now_s=0.0)
    modes.step(frozenset({Flag.METER_STALE}), now_s=1.0)
    modes.step(frozenset({Flag.METER_STALE}), now_s=2.0)
    assert modes.step(frozenset({Flag.METER_STALE, Flag.SOLVER_INVALID}), now_s=3.0).since_s == 3.0
    assert modes.step(frozenset({Flag.METER_STALE}), now_s=4.0).since_s == 3.0


def test_every_flag_says_itself_in_words() -> None:
    for flag, reaction in TABLE.items():
        assert len(reaction.words) > 15 and flag.value != reaction.words
        assert not re.search(r"[.!;]$", reaction.words) and not re.search(r"[.!;]$", ADVICE[flag])
        assert len(ADVICE[flag]) > 10 and ADVICE[flag] != reaction.words


def test_what_waits_for_an_operator_says_how() -> None:
    """Whoever reads a latched flag reads the command that ends it, or what only a restart ends."""
    for flag, reaction in TABLE.items():
        if reaction.clear is Clear.ON_OPERATOR:
            assert "rampart reset" in ADVICE[flag] or "restart" in ADVICE[flag]


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.frozensets(st.sampled_from(list(Flag)), max_size=4), st.floats(0.01, 20.0)), max_size=20),
    st.booleans(),
)
def test_the_mode_is_never_below_what_is_set_and_normal_returns(
    story: list[tuple[frozenset[Flag], float]], holds: bool
) -> None:
    """Whatever happened before: set flags count at once, and after dwell, signal and reset only a restart is left."""
    modes, now_s, seen = machine(holds_by_device=holds), 0.0, set[Flag]()
    for flags, step_s in story:
        now_s += step_s
        seen |= flags
        state = modes.step(flags, now_s=now_s)
        assert state.mode >= max((TABLE[f].mode for f in flags), default=Mode.NORMAL)
        assert flags <= state.flags <= seen
    state = modes.step(NONE, now_s=now_s + DWELL_S, has_new_signal=True, is_operator_reset=True)
    assert state.flags == {f for f in seen if TABLE[f].clear is Clear.NEVER_THIS_BOOT}


def test_the_dwell_is_ten_cycles_and_degraded_may_raise() -> None:
    assert DWELL_CYCLES == 10
    assert machine().step(frozenset({Flag.METER_STALE}), now_s=0.0).may_raise


def test_a_battery_that_is_found_to_obey_is_no_longer_a_disobedient_one() -> None:
    """What is proven wrong waits for no dwell; what is found at the same image stands, and so does every other flag."""
    modes = machine()
    modes.step(frozenset({Flag.BATTERY_NOT_FOLLOWING, Flag.METER_STALE}), now_s=0.0)
    assert Flag.BATTERY_NOT_FOLLOWING in modes.step(NONE, now_s=1.0).flags
    both = frozenset({Flag.BATTERY_NOT_FOLLOWING, Flag.BATTERY_MISREAD})
    assert Flag.BATTERY_NOT_FOLLOWING in modes.step(both, now_s=2.0).flags
    state = modes.step(frozenset({Flag.BATTERY_MISREAD}), now_s=3.0)
    assert state.flags == {Flag.BATTERY_MISREAD, Flag.METER_STALE}


def test_a_state_stands_while_its_reasons_do() -> None:
    """Nothing is told anew that is the same; what ceases to be set, comes back or is over is told."""
    modes, stale = machine(), frozenset({Flag.METER_STALE})
    assert modes.step(NONE, now_s=0.0) is modes.step(NONE, now_s=1.0)
    first = modes.step(stale, now_s=2.0)
    assert modes.step(stale, now_s=3.0) is first
    ceased = modes.step(NONE, now_s=4.0)
    assert ceased is not first and not ceased.reasons[0].is_set and ceased.flags == first.flags
    assert modes.step(stale, now_s=5.0).reasons == first.reasons
    assert modes.step(NONE, now_s=5.0 + DWELL_S).reasons == ()
