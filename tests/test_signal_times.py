"""When a grid signal counts: replay, age, order and clocks that cannot be trusted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.signal_clock import RESYNC_S
from controller.signal_request import UNTIMED_HOLD_S
from controller.signals import IDS_REMEMBERED_MAX, TRANSIT_S_MAX, AcceptanceRules
from controller.types import Acceptance, RefusalReason, SignalKind
from tests.dsx_kit import MW, bounds, grid, issuer
from tests.signals_kit import UTC0, Story, ramp


def test_duplicate_and_out_of_order_are_ignored() -> None:
    """The same message twice, and an older one after a newer one, change nothing; another feed is another order."""
    site = Story(grid(feeds=("a", "b")))
    site.say(30 * MW, feeds=("a",))
    first = site.last
    assert site.give(first).reason is RefusalReason.DUPLICATE
    site.wait(2)
    assert site.say(45 * MW, feeds=("a",), iat=-2.0).reason is RefusalReason.OUT_OF_ORDER
    assert site.say(45 * MW, feeds=("b",), iat=-1.0).acceptance is Acceptance.ACCEPTED
    assert site.say(45 * MW, iat=-1.0).reason is RefusalReason.OUT_OF_ORDER  # both feeds, one of them seen newer
    assert site.target_w() == 75 * MW


def test_several_requests_of_one_message_share_one_time() -> None:
    """A schedule sent as one message is not out of order with itself."""
    site = Story()
    site.say(60 * MW)
    one = site.last.targets[0]
    offer = replace(
        site.last,
        jti="other",
        iat_utc_s=site.utc_s + 0.5,
        targets=(replace(one, target_w=70 * MW), replace(one, target_w=50 * MW, from_utc_s=site.utc_s + 60)),
    )
    outcomes = site.rules.offer(offer, now_s=site.now_s, utc_s=site.utc_s, present_w=None)
    assert [o.acceptance for o in outcomes] == [Acceptance.ACCEPTED] * 2
    assert (site.target_w(), site.target_w(61)) == (70 * MW, 50 * MW)


def test_message_from_the_future_is_refused() -> None:
    """Signed further ahead than the skew allows: refused; just inside: followed."""
    site = Story()
    assert site.say(60 * MW, iat=5.1).reason is RefusalReason.FROM_FUTURE
    assert site.say(60 * MW, iat=4.9).acceptance is Acceptance.ACCEPTED


def test_stale_message_may_tighten_only() -> None:
    """What waited at the broker too long may lower the target until its signed end, but never raise or withdraw."""
    late_s = -(5.0 + TRANSIT_S_MAX + 0.1)
    site = Story()
    assert site.say(60 * MW, iat=late_s, end=100).acceptance is Acceptance.ACCEPTED
    assert site.target_w() == 60 * MW and site.target_w(101) is None
    site.wait(0.01)
    assert site.say(80 * MW, iat=late_s).reason is RefusalReason.STALE_RAISE
    assert site.say(None, iat=late_s + 0.005).reason is RefusalReason.STALE_RAISE
    assert site.say(50 * MW, iat=late_s + 0.006, exempt=True).reason is RefusalReason.STALE_RAISE
    assert site.target_w() == 60 * MW
    site.wait(0.05)
    assert site.say(80 * MW, iat=late_s + 0.11).acceptance is Acceptance.ACCEPTED  # not stale: it may
    assert site.target_w() == 80 * MW


@pytest.mark.parametrize(("iat", "jti"), [(None, None), (0.0, None), (None, "x")])
def test_untimed_message_may_tighten_only_and_not_for_long(iat: float | None, jti: str | None) -> None:
    """Without both signed time and id a message lowers for 15 min at most, and cannot raise what it lowered."""
    site = Story()
    assert site.say(60 * MW, iat=iat, jti=jti).acceptance is Acceptance.ACCEPTED
    assert site.target_w(UNTIMED_HOLD_S - 1) == 60 * MW and site.target_w(UNTIMED_HOLD_S) is None
    site.wait(1)
    refused = [site.say(w, iat=None, jti=None) for w in (61 * MW, None)]
    refused.append(site.say(40 * MW, iat=None, jti=None, exempt=True))
    assert [o.reason for o in refused] == [RefusalReason.UNTIMED_RAISE] * 3
    assert site.say(50 * MW, iat=None, jti=None, end=5000).acceptance is Acceptance.ACCEPTED
    assert site.target_w() == 50 * MW and site.target_w(4999) == 50 * MW
    site.wait(UNTIMED_HOLD_S)
    assert site.target_w() == 50 * MW


def test_untimed_cannot_raise_a_scheduled_instant_either() -> None:
    """A message that is lower now but higher than what is scheduled later is a raise."""
    site = Story()
    site.say(40 * MW, start=100, end=200)
    site.wait(1)
    assert site.say(60 * MW, iat=None, jti=None).reason is RefusalReason.UNTIMED_RAISE
    assert site.say(60 * MW, iat=None, jti=None, end=50).acceptance is Acceptance.ACCEPTED


def test_untimed_rows_must_be_as_strict() -> None:
    """Rows without signed time may be added, or tightened, never loosened."""
    site = Story()
    site.rows(ramp(4 * MW, row_id="x"))
    site.wait(1)
    assert site.rows(ramp(5 * MW, row_id="y"), iat=None).reason is RefusalReason.UNTIMED_RAISE
    assert site.rows(ramp(3 * MW, row_id="y"), iat=None).acceptance is Acceptance.ACCEPTED
    assert site.row_ids() == {"x", "y"}


def test_untimed_replay_is_known_by_its_digest() -> None:
    """The same bytes again do not prolong the hold."""
    site = Story()
    site.say(60 * MW, iat=None, jti=None)
    site.wait(600)
    assert site.give(site.last).reason is RefusalReason.DUPLICATE
    site.wait(UNTIMED_HOLD_S - 600)
    assert site.target_w() is None


def test_fresh_message_overrules_what_only_tightened() -> None:
    """The issuer's own fresh word lifts its stale one."""
    site = Story()
    site.say(50 * MW, iat=None, jti=None)
    site.wait(1)
    assert site.say(90 * MW).acceptance is Acceptance.ACCEPTED
    assert site.target_w() == 90 * MW


def test_memory_of_ids_is_bounded() -> None:
    """Only so many ids are kept; the oldest goes first."""
    site = Story()
    site.say(60 * MW, iat=None, jti=None)
    first = site.last
    for n in range(IDS_REMEMBERED_MAX):
        site.rules._remember(replace(first, digest=f"x{n}"))
    assert len(site.rules._seen) == IDS_REMEMBERED_MAX
    assert site.give(first).reason is None


def test_stepped_wall_clock_freezes_raises() -> None:
    """After our clock steps an hour, targets may fall but not rise until it ran evenly for a while."""
    for step_s in (3600.0, -3600.0):
        site = Story()
        site.say(80 * MW)
        site.wait(1)
        site.utc_step_s = step_s
        site.wait(1)
        assert site.rules.is_clock_suspect and site.target_w() == 80 * MW
        if step_s > 0:
            assert site.say(90 * MW).reason is RefusalReason.CLOCK
        assert site.say(60 * MW, iat=3600.0, end=1000).acceptance is Acceptance.ACCEPTED
        assert site.target_w() == 60 * MW
        site.wait(RESYNC_S - 0.5)
        assert site.rules.is_clock_suspect
        site.wait(1)
        assert not site.rules.is_clock_suspect
        site.wait(3601)
        assert site.say(90 * MW).acceptance is Acceptance.ACCEPTED and site.target_w() == 90 * MW


STEP = st.tuples(
    st.sampled_from(["timed", "untimed", "stale"]),
    st.none() | st.floats(0, 120),
    st.none() | st.floats(-50, 900),
    st.none() | st.floats(-50, 900),
    st.floats(0, 30),
)


@given(st.lists(STEP, max_size=12))
def test_what_is_not_fresh_never_raises_any_instant(
    history: list[tuple[str, float | None, float | None, float | None, float]],
) -> None:
    """Whatever came before, an untimed or stale message leaves no instant of the schedule less limited."""
    site = Story(raise_dwell_s=0.0)
    for how, megawatt, start, end, wait_s in history:
        site.wait(wait_s)
        before = [site.target_w(t) for t in range(0, 2000, 40)]
        iat = {"timed": 0.0, "untimed": None, "stale": -16.0}[how]
        outcome = site.say(None if megawatt is None else megawatt * MW, start=start, end=end, iat=iat)
        after = [site.target_w(t) for t in range(0, 2000, 40)]
        if how != "timed" or outcome.acceptance is Acceptance.REFUSED:
            assert all((a or math.inf) <= (b or math.inf) for a, b in zip(after, before, strict=True))
        assert all(w is None or 20 * MW <= w <= 100 * MW for w in after)


def test_the_times_of_the_rules() -> None:
    """A quarter of an hour for what carries no time, five minutes of even running after a step: to the second."""
    site = Story()
    site.say(60 * MW, iat=None, jti=None)
    site.wait(899.0)
    assert site.target_w() == 60 * MW
    site.wait(1.0)
    assert site.target_w() is None
    site.utc_step_s = 3600.0
    site.wait(1.0)
    site.wait(299.0)
    assert site.rules.is_clock_suspect
    site.wait(1.0)
    assert not site.rules.is_clock_suspect


@pytest.mark.parametrize(
    ("skew_s", "step_s", "is_step"),
    [(5.0, 3.0, False), (5.0, 6.0, True), (0.2, 0.8, False), (0.2, 1.5, True), (5.0, 5.0, False)],
)
def test_a_step_is_more_than_the_skew_and_more_than_slewing(skew_s: float, step_s: float, is_step: bool) -> None:
    """NTP slews by less than a second between two steps; a clock declared loose may move as far as declared."""
    site = Story(replace(grid(), clock_skew_s=skew_s))
    site.wait(1.0)
    site.utc_step_s = step_s
    site.wait(1.0)
    assert site.rules.is_clock_suspect is is_step


def test_a_step_is_noticed_by_the_message_that_follows_it() -> None:
    """No cycle between the clock's step and a raise: the raise is refused all the same."""
    site = Story()
    site.say(60 * MW)
    site.utc_step_s = 3600.0
    assert site.say(80 * MW).reason is RefusalReason.CLOCK


@pytest.mark.parametrize(("iat", "is_fresh"), [(5.0, True), (-15.0, True), (-15.5, False)])
def test_freshness_includes_its_edges(iat: float, is_fresh: bool) -> None:
    """Five seconds ahead and fifteen behind are still fresh enough to raise; half a second more is not."""
    site = Story()
    site.say(60 * MW, iat=-50.0)
    outcome = site.say(80 * MW, iat=iat)
    assert (outcome.reason is None) is is_fresh
    assert ("tightens only" in outcome.detail) is False
    assert "tightens only" in site.say(30 * MW, iat=None, jti=None).detail


def test_a_tight_clock_takes_untimed_messages_too() -> None:
    """A message without a signed time comes from no future, however small the skew allowed."""
    site = Story(replace(grid(), clock_skew_s=0.5))
    assert site.say(60 * MW, iat=None, jti=None).reason is None


def test_a_tightening_under_doubt_gives_back_what_it_lay_on() -> None:
    """A stepped clock lets an open 40 MW add to a signed 50 MW; when silence takes the 40 away, the 50 still hold."""
    site = Story()
    site.say(50 * MW, end=1000.0)
    site.utc_step_s = 3600.0
    site.wait(1.0)
    assert site.say(40 * MW).reason is None and site.target_w() == 40 * MW
    site.is_link_up = False
    site.wait(1.0)
    site.wait(61.0)
    assert site.target_w() == 50 * MW


def test_an_untimed_tightening_holds_beside_a_bounded_one() -> None:
    """A fresh 80 MW for ten seconds does not lift the 40 MW that only tighten."""
    site = Story()
    site.say(40 * MW, iat=None, jti=None)
    site.say(80 * MW, start=10.0, end=20.0)
    assert site.target_w(15.0) == 40 * MW


def test_a_clock_without_its_source_is_trusted_by_order_and_for_the_grace_only() -> None:
    """No source of time: what is newer than all its issuer said may still raise for a minute; then nothing may."""

    def tick(seconds: float, *, is_synced: bool) -> None:
        site.now_s += seconds
        site.rules.step(now_s=site.now_s, utc_s=site.utc_s, is_link_up=True, is_clock_synced=is_synced)

    site = Story(grid(issuer("acme"), issuer("bolt")))
    site.say(50 * MW)
    tick(1.0, is_synced=False)
    assert not site.rules.is_clock_suspect
    assert site.say(80 * MW, by="bolt").reason is None, "the first of an issuer only tightens, and 80 MW do"
    assert site.say(90 * MW, by="bolt", iat=0.1).reason is None, "newer than its last, though nobody knows how old"
    tick(60.0, is_synced=False)
    assert not site.rules.is_clock_suspect
    assert site.say(55 * MW).reason is None
    tick(0.5, is_synced=False)
    assert site.rules.is_clock_suspect and site.say(60 * MW).reason is RefusalReason.CLOCK
    tick(1.0, is_synced=True)
    assert not site.rules.is_clock_suspect and site.say(60 * MW).reason is None
    tick(1.0, is_synced=False)
    tick(59.0, is_synced=False)
    assert not site.rules.is_clock_suspect, "each time anew"


def test_another_issuers_times_prove_nothing_of_ours() -> None:
    """Without a source of time a message must be newer than its own issuer's last, whatever others said."""
    site = Story(grid(issuer("acme"), issuer("bolt")))
    site.say(50 * MW)
    site.now_s += 1.0
    site.rules.step(now_s=site.now_s, utc_s=site.utc_s, is_link_up=True, is_clock_synced=False)
    site.say(40 * MW, by="bolt", iat=3.0)
    assert site.say(60 * MW, iat=1.0).reason is None
    assert site.say(30 * MW, by="bolt", iat=3.5, kind=SignalKind.LOAD_TARGET).reason is None


def test_without_a_source_of_time_the_first_word_of_an_issuer_only_tightens() -> None:
    """Nobody knows how old it is: it may not withdraw or waive, and is told that our clock is why."""
    site = Story()
    site.is_clock_synced = False
    site.wait(1.0)
    assert not site.rules.is_clock_suspect
    assert site.say(None).reason is RefusalReason.CLOCK
    site.is_clock_synced = True
    site.wait(1.0)
    assert site.say(None).reason is None, "the same word, once the clock has its source again"


def test_a_clock_that_never_had_a_source_has_the_grace_as_well() -> None:
    """From the first moment on nobody serves the time: that is doubt after a minute, not before."""
    rules = AcceptanceRules(grid(), bounds())
    for now_s, is_suspect in ((1000.0, False), (1060.0, False), (1060.5, True)):
        rules.step(now_s=now_s, utc_s=UTC0 + now_s, is_link_up=True, is_clock_synced=False)
        assert rules.is_clock_suspect is is_suspect, now_s


@pytest.mark.parametrize(("iat", "reason"), [(5.0, RefusalReason.CLOCK), (10.0, RefusalReason.CLOCK), (10.5, None)])
def test_without_a_source_of_time_a_word_must_be_newer_than_all_its_issuer_said(
    iat: float, reason: RefusalReason | None
) -> None:
    """What it said of another feed tells as well how late it is: older than that, or as old, only tightens."""
    site = Story(grid(feeds=("a", "b")))
    site.is_clock_synced = False
    site.wait(1.0)
    site.say(20 * MW, feeds=("a",), iat=1.0)
    site.say(20 * MW, feeds=("b",), iat=10.0)
    assert site.say(40 * MW, feeds=("a",), iat=iat).reason is reason
