"""The load bank's envelope: every bound by itself, and properties that hold for any command."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import envelope_bank
from controller.types import (
    EnvelopeLoadBank,
    EnvelopeVerdict,
    EnvelopeView,
    LoadBankCommand,
    Mode,
    Quality,
    SiteCommand,
)
from tests.test_envelope import BATTERY, broken, image, ring, state, view, window

BANK = EnvelopeLoadBank(power_w_max=300.0, ramp_w_per_s_max=1000.0, relief_w=0.0)
INF = math.inf


def bank_view(*, last_w: float = 100.0, **changes: Any) -> EnvelopeView:
    given_state = changes.pop("state", state(ballast_w=last_w))
    return view(state=given_state, **{"load_bank": BANK, "battery": replace(BATTERY, spare_w=0.0), **changes})


def ballast(setpoint_w: float, **changes: Any) -> LoadBankCommand:
    return replace(LoadBankCommand(setpoint_w, 1000.0, 10.0, 1, 11, 5.0), **changes)


def check(seen: EnvelopeView, proposed: LoadBankCommand | None, *, epoch: int = 1, seq: int = 11) -> EnvelopeVerdict:
    proposal = SiteCommand(epoch, seq, None, (), proposed)
    first = EnvelopeVerdict(SiteCommand(epoch, seq, None, ()), (), seen.state)
    return envelope_bank.check(seen, proposal, first)


def setpoint(verdict: EnvelopeVerdict) -> float:
    assert verdict.command.load_bank is not None
    return verdict.command.load_bank.setpoint_w


def test_a_good_command_passes_unchanged_and_is_remembered() -> None:
    """Within every bound the same command comes out, nothing is counted, the memory moves on."""
    proposed = ballast(250.0)
    verdict = check(bank_view(windows=(window(),), import_w_max=5000.0), proposed)
    assert verdict.command.load_bank is proposed or verdict.command.load_bank == proposed
    assert verdict.violations == () and verdict.state.ballast_w == 250.0


def test_no_command_is_none_and_forgets_what_was_drawn() -> None:
    """Whoever sends nothing lets the order lapse."""
    verdict = check(bank_view(), None)
    assert verdict.command.load_bank is None and verdict.violations == () and verdict.state.ballast_w == 0.0


@pytest.mark.parametrize(
    "proposed", [ballast(math.nan), ballast(INF), ballast(10.0, ramp_w_per_s=math.nan), ballast(10.0, ttl_s=INF)]
)
def test_what_is_no_number_is_not_written(proposed: LoadBankCommand) -> None:
    verdict = check(bank_view(), proposed)
    assert verdict.command.load_bank is None and broken(verdict) == {1}


def test_a_bank_that_is_not_there_gets_nothing() -> None:
    verdict = check(bank_view(load_bank=None), ballast(10.0))
    assert verdict.command.load_bank is None and broken(verdict) == {8}


@pytest.mark.parametrize(("wish_w", "got_w"), [(301.0, 300.0), (-1.0, 0.0)])
def test_the_banks_own_limits(wish_w: float, got_w: float) -> None:
    verdict = check(bank_view(), ballast(wish_w))
    assert setpoint(verdict) == got_w and broken(verdict) == {8}


def test_slopes_are_the_devices_own_at_most() -> None:
    verdict = check(bank_view(), ballast(100.0, ramp_w_per_s=2000.0, expiry_w_per_s=-1.0))
    assert verdict.command.load_bank is not None and broken(verdict) == {8}
    assert verdict.command.load_bank.ramp_w_per_s == verdict.command.load_bank.expiry_w_per_s == 1000.0


@pytest.mark.parametrize(("ttl_s", "got_s"), [(0.5, 2.0), (11.0, 10.0), (10.0, 10.0)])
def test_a_command_lives_as_long_as_others_do(ttl_s: float, got_s: float) -> None:
    verdict = check(bank_view(), ballast(100.0, ttl_s=ttl_s))
    assert verdict.command.load_bank is not None and verdict.command.load_bank.ttl_s == got_s
    assert broken(verdict) == (set() if ttl_s == got_s else {9})


@pytest.mark.parametrize(("epoch", "seq"), [(1, 10), (0, 99), (1, 11)])
def test_numbers_only_go_up_and_belong_together(epoch: int, seq: int) -> None:
    """An old command, one of another epoch, and a part that is not of this command."""
    proposed = ballast(100.0, epoch=epoch, seq=seq if seq != 11 else 12)
    verdict = check(bank_view(), proposed, epoch=epoch, seq=seq)
    assert verdict.command.load_bank is None and broken(verdict) == {9}


@pytest.mark.parametrize(
    "changes",
    [{"is_leader": False}, {"mode": Mode.FALLBACK}, {"state": state(ballast_w=100.0, is_distrusted=True)}],
)
def test_more_ballast_needs_leave_and_less_never_does(changes: dict[str, Any]) -> None:
    """A follower, a site in fallback and a distrusted planner may only let go."""
    assert setpoint(check(bank_view(**changes), ballast(200.0))) == 100.0
    assert broken(check(bank_view(**changes), ballast(200.0))) == {6}
    verdict = check(bank_view(**changes), ballast(50.0))
    assert setpoint(verdict) == 50.0 and verdict.violations == ()


def test_more_ballast_fits_under_the_ceiling_as_metered() -> None:
    """1,000 W of 1,050: 50 more; what the battery takes now it would take less of."""
    seen = bank_view(import_w_max=1050.0)
    assert setpoint(check(seen, ballast(200.0))) == 150.0 and broken(check(seen, ballast(200.0))) == {4}
    relieved = bank_view(import_w_max=1050.0, load_bank=replace(BANK, relief_w=30.0))
    assert setpoint(check(relieved, ballast(200.0))) == 180.0


@pytest.mark.parametrize("pcc", [image(None), image(quality=Quality.STALE), image(age_s=1.0)])
def test_nothing_rises_under_a_ceiling_that_nobody_measures(pcc: Any) -> None:
    assert setpoint(check(bank_view(image=pcc, import_w_max=5000.0), ballast(200.0))) == 100.0
    assert setpoint(check(bank_view(image=pcc), ballast(200.0))) == 200.0, "without a ceiling it may"


def test_less_ballast_is_a_drop_that_the_windows_must_let_through() -> None:
    """From 1,000 W, with 60 left of the window: 60 less; and as much again as the battery makes up for."""
    seen = bank_view(windows=(window(60.0),))
    assert setpoint(check(seen, ballast(0.0))) == 40.0 and broken(check(seen, ballast(0.0))) == {5}
    helped = bank_view(windows=(window(60.0),), battery=replace(BATTERY, spare_w=25.0))
    assert setpoint(check(helped, ballast(0.0))) == 15.0
    up_only = bank_view(windows=(window(60.0, down=False),))
    assert setpoint(check(up_only, ballast(0.0))) == 0.0
    spent = bank_view(windows=(window(60.0, past=ring(1100.0)),))
    assert setpoint(check(spent, ballast(0.0))) == 100.0, "a window that is spent lets nothing go"


def test_without_a_meter_the_target_stands_for_it() -> None:
    seen = bank_view(image=image(None), windows=(window(60.0),), state=state(ballast_w=100.0, target_w=980.0))
    assert setpoint(check(seen, ballast(0.0))) == 60.0
    never = bank_view(image=image(None), windows=(window(60.0),), state=state(ballast_w=100.0, target_w=None))
    assert setpoint(check(never, ballast(0.0))) == 40.0


def test_too_many_violations_are_the_planners_fault() -> None:
    """They count with those of the other envelope, and end in its distrust."""
    seen = bank_view(violations_max=2)
    first = EnvelopeVerdict(SiteCommand(1, 11, None, ()), (), state(violation_times_s=(999.0, 999.5)))
    verdict = envelope_bank.check(seen, SiteCommand(1, 11, None, (), ballast(999.0)), first)
    assert verdict.state.is_distrusted
    assert not check(seen, ballast(999.0)).state.is_distrusted


def test_what_cannot_be_checked_is_not_written() -> None:
    """Never raises, whatever comes."""
    verdict = check(bank_view(), replace(ballast(1.0), setpoint_w="much"))  # type: ignore[arg-type]
    assert verdict.command.load_bank is None and broken(verdict) == {1}


@given(
    wish_w=st.floats(allow_nan=True, allow_infinity=True),
    last_w=st.floats(0.0, 300.0),
    ceiling_w=st.floats(0.0, 2000.0),
    lower_w=st.floats(0.0, 500.0),
    drop_w=st.floats(0.0, 400.0),
)
def test_whatever_is_asked_the_bounds_hold_and_a_lower_ceiling_never_gives_more(
    wish_w: float, last_w: float, ceiling_w: float, lower_w: float, drop_w: float
) -> None:
    def asked(limit_w: float) -> float | None:
        seen = bank_view(last_w=last_w, import_w_max=limit_w, windows=(window(drop_w),))
        found = check(seen, ballast(wish_w)).command.load_bank
        return None if found is None else found.setpoint_w

    got_w, lower_got_w = asked(ceiling_w), asked(ceiling_w - lower_w)
    if got_w is None:
        assert not math.isfinite(wish_w)
        return
    assert lower_got_w is not None and lower_got_w <= got_w
    assert 0.0 <= got_w <= BANK.power_w_max
    assert got_w <= last_w + max(0.0, ceiling_w - 1000.0)
    assert got_w >= last_w - drop_w * (1.0 + 1e-9) - 1e-9
