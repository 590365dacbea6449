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
from tests.envelope_kit import BATTERY, NOW_S, broken, image, ring, state, view, window

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


def test_a_limit_that_is_no_number_bounds_nothing_and_nothing_is_written() -> None:
    """A bank that reports not-a-number as its power may not be told any."""
    verdict = check(bank_view(load_bank=replace(BANK, power_w_max=math.nan)), ballast(9e9))
    assert verdict.command.load_bank is None and 1 in broken(verdict)


def test_a_bank_that_is_not_there_gets_nothing() -> None:
    verdict = check(bank_view(load_bank=None), ballast(10.0))
    assert verdict.command.load_bank is None and broken(verdict) == {8}


@pytest.mark.parametrize(("wish_w", "got_w"), [(302.0, 300.0), (-2.0, 0.0)])
def test_the_banks_own_limits(wish_w: float, got_w: float) -> None:
    verdict = check(bank_view(), ballast(wish_w))
    assert setpoint(verdict) == got_w and broken(verdict) == {8}


def test_a_bound_met_to_the_watt_is_met() -> None:
    """The command is held to the bound all the same; beyond a watt it is a violation."""
    for wish_w, said in ((300.5, set()), (301.0, set()), (301.5, {8})):
        verdict = check(bank_view(), ballast(wish_w))
        assert setpoint(verdict) == 300.0 and broken(verdict) == said


@pytest.mark.parametrize(("slope", "got"), [(0.5, 0.5), (0.0, 1000.0), (1000.0, 1000.0), (1001.0, 1000.0)])
def test_each_slope_is_bounded(slope: float, got: float) -> None:
    verdict = check(bank_view(), ballast(100.0, expiry_w_per_s=slope))
    assert verdict.command.load_bank is not None and verdict.command.load_bank.expiry_w_per_s == got
    assert verdict.command.load_bank.ramp_w_per_s == 1000.0 and broken(verdict) == (set() if slope == got else {8})


def test_slopes_are_the_devices_own_at_most() -> None:
    verdict = check(bank_view(), ballast(100.0, ramp_w_per_s=2000.0, expiry_w_per_s=-1.0))
    assert verdict.command.load_bank is not None and broken(verdict) == {8}
    assert verdict.command.load_bank.ramp_w_per_s == verdict.command.load_bank.expiry_w_per_s == 1000.0


@pytest.mark.parametrize(("ttl_s", "got_s"), [(0.5, 4.0), (2.0, 4.0), (2.5, 2.5), (20.0, 20.0), (20.5, 20.0)])
def test_a_command_lives_as_long_as_others_do(ttl_s: float, got_s: float) -> None:
    """More than one planner period (of 2 s here) and up to ten."""
    verdict = check(bank_view(planner_period_s=2.0), ballast(100.0, ttl_s=ttl_s))
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


def test_the_highest_mode_that_holds_a_target_may_ask_for_more() -> None:
    assert setpoint(check(bank_view(mode=Mode.HOLD), ballast(200.0))) == 200.0
    assert setpoint(check(bank_view(mode=Mode.RELEASE), ballast(200.0))) == 100.0


def test_what_is_refused_is_not_remembered_as_drawn() -> None:
    """A bank that gets no order lets go: the next one begins at nothing."""
    assert check(bank_view(), ballast(math.nan)).state.ballast_w == 0.0
    assert check(bank_view(), ballast(math.nan)).state.violation_times_s != ()


def test_a_reading_as_old_as_allowed_still_measures() -> None:
    seen = bank_view(import_w_max=5000.0, meter_age_s_max=0.25)
    assert setpoint(check(replace(seen, image=image(age_s=0.25)), ballast(200.0))) == 200.0
    assert setpoint(check(replace(seen, image=image(age_s=0.5)), ballast(200.0))) == 100.0


def test_what_is_metered_counts_and_not_what_should_be() -> None:
    """1,000 W on the meter, a target of 900: a window of 60 lets 60 go, not none."""
    seen = bank_view(windows=(window(60.0),), state=state(ballast_w=100.0, target_w=900.0))
    assert setpoint(check(seen, ballast(0.0))) == 40.0


def test_every_window_counts_with_every_entry_that_lies_inside_it() -> None:
    """A peak of 1,090 W three seconds ago: inside 3 s of window, outside of 2; and a running step counts always."""
    past = [1000.0, 1000.0, 1000.0, 1090.0] + [1000.0] * 597
    for window_s, got_w in ((2.0, 0.0), (3.0, 80.0), (3.0 - 5e-7, 80.0), (3.0 - 1.5e-6, 0.0), (2000.0, 80.0)):
        seen = bank_view(windows=(window(110.0, window_s, past=ring(past)),))
        assert setpoint(check(seen, ballast(0.0))) == got_w, window_s
    short = bank_view(windows=(window(110.0, 0.5, past=ring([1000.0, 1090.0] + [1000.0] * 599)),))
    assert setpoint(check(short, ballast(0.0))) == 0.0
    coarse = replace(ring(past), step_s=2.0)  # entry 3 ends six seconds ago
    for window_s, got_w in ((5.9, 0.0), (6.0, 80.0)):
        seen = bank_view(windows=(window(110.0, window_s, past=coarse),))
        assert setpoint(check(seen, ballast(0.0))) == got_w, window_s
    headed = bank_view(windows=(window(110.0, 3.0, past=ring(past, head_s=0.5)),))
    assert setpoint(check(headed, ballast(0.0))) == 0.0, "the entry is partly outside"
    running = bank_view(windows=(window(110.0, 0.5, past=ring([1090.0] + [1000.0] * 600)),))
    assert setpoint(check(running, ballast(0.0))) == 80.0
    two = bank_view(windows=(window(60.0), window(20.0), window(90.0)))
    assert setpoint(check(two, ballast(0.0))) == 80.0
    mixed = bank_view(windows=(window(20.0, down=False), window(60.0)))
    assert setpoint(check(mixed, ballast(0.0))) == 40.0


def test_a_row_on_a_slope_gives_room_with_age() -> None:
    """20 W a second: what stood higher four seconds ago may have come down by 80; what stands now, by 10."""
    past = [1000.0] * 4 + [1060.0] + [900.0] * 596
    row = replace(window(10.0, 60.0, past=ring(past)), room_w_per_s=20.0)
    assert setpoint(check(bank_view(windows=(row,)), ballast(0.0))) == 90.0
    later = replace(window(10.0, 60.0, past=ring([1000.0] + [1000.0] * 600, head_s=1.0)), room_w_per_s=20.0)
    assert setpoint(check(bank_view(windows=(later,)), ballast(0.0))) == 80.0


def test_power_below_what_the_windows_let_lets_nothing_go() -> None:
    """Broken already: not a watt of it, and nothing is added to make up for it."""
    seen = bank_view(windows=(window(60.0, past=ring(1500.0)),))
    assert setpoint(check(seen, ballast(0.0))) == 100.0
    alone = bank_view(windows=(window(60.0),), battery=None)
    assert setpoint(check(alone, ballast(0.0))) == 40.0


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


def judged(times_s: tuple[float, ...], *, most: int = 2) -> bool:
    """Whether one more violation now ends in distrust, after violations at `times_s`."""
    seen = bank_view(violations_max=most)
    first = EnvelopeVerdict(SiteCommand(1, 11, None, ()), (), state(violation_times_s=times_s))
    verdict = envelope_bank.check(seen, SiteCommand(1, 11, None, (), ballast(999.0)), first)
    assert len(verdict.state.violation_times_s) == min(len(times_s) + 1, most + 1)
    return verdict.state.is_distrusted


def test_too_many_violations_in_a_minute_are_the_planners_fault() -> None:
    """They count with those of the other envelope, and end in its distrust; a minute later they are forgotten."""
    assert judged((NOW_S - 2.0, NOW_S - 1.0)) and not judged((NOW_S - 1.0,))
    assert judged((NOW_S - 59.0, NOW_S - 1.0)) and not judged((NOW_S - 60.0, NOW_S - 1.0))
    assert not judged((NOW_S - 61.0, NOW_S - 1.0)) and judged((NOW_S - 300.0, NOW_S - 2.0, NOW_S - 1.0))
    assert not check(bank_view(violations_max=2), ballast(999.0)).state.is_distrusted


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
