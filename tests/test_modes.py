"""Modes: the highest flag wins, and each flag goes away only as its row says."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.modes import DWELL_CYCLES, TABLE, ArmingFacts, Clear, Flag, ModeMachine, unmet
from controller.types import Mode

PERIOD_S = 0.5
DWELL_S = DWELL_CYCLES * PERIOD_S
NONE: frozenset[Flag] = frozenset()


def machine(*, holds_by_device: bool = True) -> ModeMachine:
    return ModeMachine(period_s=PERIOD_S, holds_by_device=holds_by_device)


def test_every_flag_has_exactly_one_row() -> None:
    assert set(TABLE) == set(Flag)


def test_the_table_covers_every_row_of_the_catalogue() -> None:
    """Every fault of the catalogue can be said with a flag; the numbers are the catalogue's own."""
    counts = {"S": 10, "G": 10, "M": 9, "Q": 11, "P": 5, "C": 4, "X": 7, "B": 2}
    rows = {f"{letter}{n}" for letter, last in counts.items() for n in range(1, last + 1)}
    assert {reaction.row for reaction in TABLE.values()} - {"-"} == rows


def test_without_flags_the_mode_is_normal() -> None:
    state = machine().step(NONE, now_s=5.0)
    assert (state.mode, state.reasons, state.since_s) == (Mode.NORMAL, (), 5.0)


def test_the_higher_mode_wins_and_the_gravest_reason_comes_first() -> None:
    state = machine().step(frozenset({Flag.METER_STALE, Flag.SOLVER_TIMEOUT, Flag.SIGNAL_DUPLICATE}), now_s=0.0)
    assert state.mode is Mode.SHED
    assert [r.flag for r in state.reasons] == [Flag.SOLVER_TIMEOUT, Flag.METER_STALE, Flag.SIGNAL_DUPLICATE]
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
    assert modes.step(frozenset({Flag.METER_STALE, Flag.SOLVER_CRASHED}), now_s=3.0).since_s == 3.0
    assert modes.step(frozenset({Flag.METER_STALE}), now_s=4.0).since_s == 3.0


def test_every_flag_says_itself_in_words() -> None:
    for flag, reaction in TABLE.items():
        assert len(reaction.words) > 15 and flag.value != reaction.words
        assert not re.search(r"[.!]$", reaction.words)


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


GOOD = ArmingFacts(
    are_originals_saved=True,
    is_read_back_proven=True,
    is_meter_fresh=True,
    is_clock_synchronised=True,
    has_verified_signal=True,
    is_fallback_contract_active=False,
    is_leader=True,
    is_dead_man_armed=True,
    battery_reversion_seen=True,
    is_battery_bounded_without_reversion=False,
)


def test_all_conditions_met_arms() -> None:
    assert unmet(GOOD) == ()


@pytest.mark.parametrize(
    "name", [f.name for f in fields(ArmingFacts) if f.name.startswith(("are_", "is_read", "is_m"))]
)
def test_each_plain_condition_alone_prevents_arming(name: str) -> None:
    assert len(unmet(replace(GOOD, **{name: False}))) == 1


@pytest.mark.parametrize("name", ["is_clock_synchronised", "is_leader", "is_dead_man_armed", "has_verified_signal"])
def test_each_other_condition_alone_prevents_arming(name: str) -> None:
    assert len(unmet(replace(GOOD, **{name: False}))) == 1


def test_the_fallback_contract_stands_in_for_a_signal() -> None:
    assert unmet(replace(GOOD, has_verified_signal=False, is_fallback_contract_active=True)) == ()


def test_a_battery_must_revert_or_be_bounded() -> None:
    """No battery: nothing to prove. One that cannot revert is armed only with its share bounded."""
    assert unmet(replace(GOOD, battery_reversion_seen=None)) == ()
    assert "reversion" in unmet(replace(GOOD, battery_reversion_seen=False))[0]
    assert unmet(replace(GOOD, battery_reversion_seen=False, is_battery_bounded_without_reversion=True)) == ()


def test_the_dwell_is_ten_cycles_and_degraded_may_raise() -> None:
    assert DWELL_CYCLES == 10
    assert machine().step(frozenset({Flag.METER_STALE}), now_s=0.0).may_raise
