"""How long a grid signal lasts: flapping, rows that linger, and a link that falls silent."""

from __future__ import annotations

from controller.signal_schedule import Dwell
from controller.signals import AcceptanceRules
from tests.dsx_kit import MW, bounds, grid
from tests.signals_kit import Story, ramp


def test_lingering_rows_end_with_the_dwell() -> None:
    """What was withdrawn once too often goes exactly when the dwell has passed."""
    site = Story()
    for _ in range(3):
        site.rows(ramp(4 * MW, row_id="x"))
        site.wait(1)
        site.rows()
        site.wait(1)
    assert site.row_ids() == {"x"}
    (held,) = [s for s in site.rules.active(site.now_s) if s.limits]
    site.wait(held.until_s - site.now_s)
    assert site.row_ids() == set() and site.rules.active(site.now_s) == ()


def test_flapping_is_followed_down_at_once_and_up_slowly() -> None:
    """Two raises in a minute pass; the third waits a minute from the second; falls never wait."""
    site = Story()
    for n in range(2):
        site.say(50 * MW)
        assert site.target_w() == 50 * MW
        site.wait(0.5)
        site.say(90 * MW)
        assert site.target_w() == 90 * MW, n
        assert not site.rules.is_raise_held
        site.wait(0.5)
    second_raise_s = site.now_s - 0.5
    site.say(50 * MW)
    site.wait(0.5)
    assert not site.rules.is_raise_held
    site.say(90 * MW)
    assert site.target_w() == 50 * MW and site.rules.is_raise_held
    (held, *_) = [s for s in site.rules.active(site.now_s) if s.target_w == 50 * MW]
    assert held.until_s == second_raise_s + 60.0
    site.wait(second_raise_s + 59.9 - site.now_s)
    assert site.target_w() == 50 * MW and site.rules.is_raise_held
    site.wait(0.2)
    assert site.target_w() == 90 * MW and not site.rules.is_raise_held


def test_dwell_of_zero_never_waits() -> None:
    """The bench switches the dwell off."""
    site = Story(raise_dwell_s=0.0)
    for _ in range(5):
        site.say(50 * MW)
        site.wait(0.1)
        site.say(None)
        assert site.target_w() is None
        site.wait(0.1)


def test_flapping_rows_linger() -> None:
    """Withdrawn rows stay for the dwell after two withdrawals; stricter ones in their place count as no withdrawal."""
    site = Story()
    for _ in range(2):
        site.rows(ramp(4 * MW, row_id="x"))
        site.wait(0.5)
        site.rows()
        assert site.row_ids() == set()
        site.wait(0.5)
    site.rows(ramp(4 * MW, row_id="x"))
    site.wait(0.5)
    site.rows()
    assert site.row_ids() == {"x"} and site.rules.is_raise_held
    site.wait(0.5)
    site.rows(ramp(3 * MW, row_id="tighter"))
    assert site.row_ids() == {"tighter"} and not site.rules.is_raise_held
    site.wait(70)
    site.rows()
    assert site.row_ids() == set()


def test_silence_holds_for_the_grace_then_lets_go_of_open_targets() -> None:
    """A target without an end holds while the link lives and for the grace after; one with an end until its end."""
    site = Story()
    site.say(60 * MW)
    site.wait(1)
    site.say(40 * MW, start=0, end=300)
    site.wait(10)
    site.is_link_up = False
    site.wait(0)
    site.wait(59.9)
    assert not site.rules.is_silent and site.target_w() == 40 * MW
    site.wait(0.2)
    assert site.rules.is_silent and site.target_w() == 40 * MW
    assert site.target_w(400) is None
    site.is_link_up = True
    site.wait(0)
    assert not site.rules.is_silent


def test_short_loss_changes_nothing() -> None:
    """A link back within the grace starts the count anew."""
    site = Story()
    site.say(60 * MW)
    for _ in range(3):
        site.is_link_up = False
        site.wait(0)
        site.wait(40)
        site.is_link_up = True
        site.wait(1)
    assert site.target_w() == 60 * MW and not site.rules.is_silent


def test_what_carries_no_time_outlives_the_link() -> None:
    """An untimed tightening ends after its quarter of an hour and not with the link's grace."""
    site = Story()
    site.say(60 * MW, iat=None, jti=None)
    site.is_link_up = False
    site.wait(1.0)
    site.wait(61.0)
    assert site.rules.is_silent and site.target_w() == 60 * MW


def test_silence_begins_with_the_last_second_of_the_grace() -> None:
    """Not silent before the first step, not at 59 s, silent at 60 s."""
    assert not AcceptanceRules(grid(), bounds()).is_silent
    site = Story()
    site.is_link_up = False
    site.wait(0.0)
    site.wait(59.0)
    assert not site.rules.is_silent
    site.wait(1.0)
    assert site.rules.is_silent


def test_raises_a_whole_dwell_apart_never_wait() -> None:
    """Two raises sixty seconds apart are not two within sixty seconds."""
    dwell = Dwell(60.0)
    dwell.raised(0.0)
    dwell.raised(60.0)
    assert dwell.next_raise_s(60.0) == 60.0
    dwell.raised(119.0)
    assert dwell.next_raise_s(119.0) == 179.0


def test_lingering_rows_waive_nothing() -> None:
    """Withdrawn rows that stay for the dwell stay without the waiver they came with."""
    site = Story()
    for _ in range(3):
        site.rows(ramp(4 * MW, row_id="x"), exempt=True)
        site.wait(0.5)
        assert site.rules.active(site.now_s)[0].ramp_exempt
        site.rows()
        site.wait(0.5)
    (held,) = site.rules.active(site.now_s)
    assert site.row_ids() == {"x"} and not held.ramp_exempt
