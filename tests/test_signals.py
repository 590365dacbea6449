"""The acceptance rules as stories on a plain time variable: what is followed, what is not, and for how long."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.settings import GridSettings
from controller.signal_schedule import Dwell, as_strict, bounded_row
from controller.signals import (
    IDS_REMEMBERED_MAX,
    LAYERS_PER_SLOT_MAX,
    RESYNC_S,
    TRANSIT_S_MAX,
    UNTIMED_HOLD_S,
    AcceptanceRules,
    bounds_of,
    fall_time_s,
)
from controller.types import (
    Acceptance,
    BandLimit,
    CeilingLimit,
    Direction,
    DroopLimit,
    FloorLimit,
    Limit,
    LimitId,
    OfferedTarget,
    OscillationLimit,
    RampLimit,
    RateLimit,
    RefusalReason,
    RideThroughLimit,
    SignalKind,
    SignalOffer,
    SignalOutcome,
    SwingLimit,
)
from tests.dsx_kit import CONTRACT, MW, SOURCE, bounds, grid, issuer

UTC0 = 1.8e9


def ramp(max_w: float, window_s: float = 15.0, row_id: str = "r") -> RampLimit:
    return RampLimit(LimitId(row_id), max_w, window_s, Direction.BOTH, 1.0, SOURCE)


class Story:
    """A site with its rules and a time that the test moves; UTC runs with it unless the test steps it."""

    def __init__(self, settings: GridSettings | None = None, **changes: float) -> None:
        self.rules = AcceptanceRules(settings or grid(), bounds(**changes))
        self.now_s = 1000.0
        self.utc_step_s = 0.0
        self.is_link_up = True
        self.is_clock_synced = True
        self.present_w: float | None = None
        self._count = 0
        self.wait(0.0)

    @property
    def utc_s(self) -> float:
        return UTC0 + self.now_s + self.utc_step_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.rules.step(
            now_s=self.now_s, utc_s=self.utc_s, is_link_up=self.is_link_up, is_clock_synced=self.is_clock_synced
        )
        self.rules.active(self.now_s)

    def say(
        self,
        target_w: float | None = None,
        *,
        limits: tuple[Limit, ...] = (),
        start: float | None = None,
        end: float | None = None,
        feeds: tuple[str, ...] = (),
        by: str = "acme",
        iat: float | None = 0.0,
        jti: str | None = "new",
        kind: SignalKind = SignalKind.LOAD_TARGET,
        revert: bool | None = None,
        exempt: bool = False,
        due_in_s: float = 0.0,
        best_effort: bool = False,
    ) -> SignalOutcome:
        """One request; `start`, `end` and `iat` are seconds from now."""
        self._count += 1
        n = self._count
        target = OfferedTarget(
            feeds=feeds,
            from_utc_s=None if start is None else self.utc_s + start,
            until_utc_s=None if end is None else self.utc_s + end,
            target_w=target_w,
            limits=limits,
            is_revert=(target_w is None and not limits) if revert is None else revert,
            is_best_effort=best_effort,
            ramp_exempt=exempt,
            due_in_s=due_in_s,
        )
        offer = SignalOffer(
            kind=kind,
            issuer=by,
            key_id="k",
            message_id=f"m{n}",
            correlation_id=f"c{n}",
            digest=f"d{n}",
            iat_utc_s=None if iat is None else self.utc_s + iat,
            jti=f"j{n}" if jti == "new" else jti,
            targets=(target,),
        )
        self.last = offer
        return self.give(offer)

    def rows(self, *limits: Limit, **more: object) -> SignalOutcome:
        return self.say(limits=limits, kind=SignalKind.RAMP_LIMIT, **more)  # type: ignore[arg-type]

    def give(self, offer: SignalOffer) -> SignalOutcome:
        (outcome,) = self.rules.offer(offer, now_s=self.now_s, utc_s=self.utc_s, present_w=self.present_w)
        self.rules.active(self.now_s)
        return outcome

    def target_w(self, in_s: float = 0.0) -> float | None:
        """The lowest target the core sees for an instant from now."""
        t_s = self.now_s + in_s
        seen = [s.target_w for s in self.rules.active(self.now_s) if s.from_s <= t_s < s.until_s]
        return min((w for w in seen if w is not None), default=None)

    def row_ids(self) -> set[str]:
        return {row.id for s in self.rules.active(self.now_s) if s.from_s <= self.now_s < s.until_s for row in s.limits}


# --------------------------------------------------------------------------------------------------- following


def test_before_the_first_look_nothing_waits() -> None:
    """An operator who asks for the state at once is not told of a raise that nobody asked for."""
    assert not AcceptanceRules(grid(), bounds()).is_raise_held


def test_target_is_followed_latest_wins_null_reverts() -> None:
    """A target holds, a newer one replaces it, null withdraws it."""
    site = Story()
    assert site.say(60 * MW).acceptance is Acceptance.ACCEPTED and site.target_w() == 60 * MW
    site.wait(1)
    site.say(80 * MW)
    assert site.target_w() == 80 * MW
    site.wait(1)
    assert site.say(None).acceptance is Acceptance.ACCEPTED
    assert site.target_w() is None and site.rules.active(site.now_s) == ()


def test_bounded_interval_lies_over_an_open_one() -> None:
    """An hour at 40 MW inside a standing 80 MW: 80, 40, 80; the schedule says so in advance."""
    site = Story(raise_dwell_s=0.0)
    site.say(80 * MW)
    site.wait(1)
    site.say(40 * MW, start=600, end=4200)
    assert [site.target_w(t) for t in (0, 599, 600, 4199, 4200)] == [80 * MW, 80 * MW, 40 * MW, 40 * MW, 80 * MW]
    signals = [s for s in site.rules.active(site.now_s) if s.target_w is not None]
    assert [(s.from_s, s.until_s) for s in signals] == [(1000.0, 1601.0), (1601.0, 5201.0), (5201.0, math.inf)]
    assert len({s.signal_id for s in signals}) == 3
    site.wait(601)
    assert site.target_w() == 40 * MW
    site.wait(3600)
    assert site.target_w() == 80 * MW


def test_new_open_target_ends_older_ones_from_its_start() -> None:
    """An open-ended target scheduled for later takes over for good, an event running past its start included."""
    site = Story()
    site.say(70 * MW, end=7200)
    site.wait(1)
    site.say(90 * MW, start=3600)
    assert [site.target_w(t) for t in (0, 3599, 3600, 9999)] == [70 * MW, 70 * MW, 90 * MW, 90 * MW]


def test_revert_leaves_what_is_scheduled_and_a_bounded_one_only_masks() -> None:
    """Null without an end withdraws what is active; with an end it only interrupts."""
    site = Story()
    site.say(70 * MW)
    site.wait(1)
    site.say(50 * MW, start=600, end=900)
    site.wait(1)
    site.say(None)
    assert [site.target_w(t) for t in (0, 650, 950)] == [None, 50 * MW, None]
    other = Story()
    other.say(70 * MW)
    other.wait(1)
    other.say(None, start=100, end=200)
    assert [other.target_w(t) for t in (0, 150, 250)] == [70 * MW, None, 70 * MW]


def test_issuers_add_up_to_the_strictest() -> None:
    """One issuer cannot lift another's limit."""
    site = Story(grid(issuer("acme"), issuer("utility")))
    site.say(60 * MW, by="utility")
    site.say(90 * MW)
    assert site.target_w() == 60 * MW
    site.say(None)
    assert site.target_w() == 60 * MW


def test_feeds_add_up_to_the_site() -> None:
    """A target on one of two equal feeds leaves the other its share; on both, the sum."""
    site = Story(grid(feeds=("a", "b")))
    site.say(20 * MW, feeds=("a",))
    assert site.target_w() == 70 * MW
    site.wait(1)
    site.say(30 * MW, feeds=("b",))
    assert site.target_w() == 50 * MW
    site.wait(1)
    site.say(40 * MW)
    assert site.target_w() == 80 * MW
    assert {t.feed: t.asked_w for t in site.rules.feed_targets(site.now_s)} == {"a": 40 * MW, "b": 40 * MW}
    shares = replace(grid(feeds=("a", "b")), feed_share_frac=(0.8, 0.2))
    uneven = Story(shares)
    uneven.say(40 * MW, feeds=("a",))
    assert uneven.target_w() == 60 * MW


def test_boundary_that_changes_nothing_does_not_split_a_target() -> None:
    """A looser target of another issuer coming and going under the binding one leaves one signal."""
    site = Story(grid(issuer("acme"), issuer("utility")))
    site.say(60 * MW, by="utility")
    site.say(90 * MW, start=100, end=200)
    (signal,) = site.rules.active(site.now_s)
    assert (signal.target_w, signal.until_s, signal.issuer) == (60 * MW, math.inf, "utility")


def test_ceiling_in_a_ramp_message_counts_beside_a_load_target() -> None:
    """Both kinds of one issuer are in force at once; the exempt flag rides on the binding one."""
    site = Story()
    site.say(70 * MW)
    site.say(50 * MW, kind=SignalKind.RAMP_LIMIT, exempt=True)
    (signal,) = [s for s in site.rules.active(site.now_s) if s.target_w is not None]
    assert (signal.target_w, signal.ramp_exempt, signal.kind) == (50 * MW, True, SignalKind.LOAD_TARGET)


def test_rows_are_in_force_for_their_interval() -> None:
    """Rows come and go with their interval; for two feeds they are one signal; a floor's time is put on our clock."""
    site = Story(grid(feeds=("a", "b")))
    site.rows(ramp(4 * MW, row_id="x"), FloorLimit(LimitId("f"), 30 * MW, 5.0, SOURCE), start=10, end=20)
    (signal,) = site.rules.active(site.now_s)
    assert (signal.feeds, signal.from_s, signal.until_s) == (("a", "b"), 1010.0, 1020.0)
    floor = signal.limits[1]
    assert isinstance(floor, FloorLimit) and (floor.from_s, floor.until_s) == (1015.0, 1020.0)
    assert site.row_ids() == set()
    site.wait(10)
    assert site.row_ids() == {"x", "f"}
    site.wait(10)
    assert site.row_ids() == set()


def test_best_effort_and_correlation_are_carried() -> None:
    """The issuer's strategy and correlation id come out where the status needs them."""
    site = Story()
    site.say(60 * MW, best_effort=True)
    (target,) = site.rules.feed_targets(site.now_s)
    assert target.is_best_effort and target.is_active and target.correlation_id == "c1"
    assert site.rules.active(site.now_s)[0].is_best_effort


# --------------------------------------------------------------------------------------------------- who may what


def test_rights_of_issuers() -> None:
    """Unknown issuers, and known ones without the right, change nothing."""
    site = Story(grid(issuer("acme", may_set_ramp=False, may_exempt_ramp=False), issuer("u", may_set_target=False)))
    for outcome in (
        site.say(60 * MW, by="nobody"),
        site.say(60 * MW, by="u"),
        site.rows(ramp(4 * MW)),
        site.say(60 * MW, exempt=True),
    ):
        assert (outcome.acceptance, outcome.reason) == (Acceptance.REFUSED, RefusalReason.NOT_PERMITTED)
    assert site.rules.active(site.now_s) == ()


RIDES = RideThroughLimit(LimitId("ride"), (), (), 0.9, 1.0, False, SOURCE)
TRIPS = DroopLimit(LimitId("droop"), 0.036, 50 * MW, 10 * MW, SOURCE)


@pytest.mark.parametrize("row", [TRIPS, replace(RIDES, suspends_ramps=True)], ids=["droop", "ride-through"])
def test_rows_that_set_ramps_aside_need_the_right_to_waive_them(row: Limit) -> None:
    """A droop row goes past ramp rows when it trips; a ride-through row may suspend them; others only add."""
    site = Story(grid(issuer("acme", may_exempt_ramp=False)))
    refused = site.rows(row, end=100.0)
    assert refused.reason is RefusalReason.NOT_PERMITTED and row.id in refused.detail
    assert site.row_ids() == set()
    assert site.rows(RIDES, end=100.0).reason is None and site.row_ids() == {"ride"}
    waiving = Story()
    assert waiving.rows(row, end=100.0).reason is None
    assert waiving.rows(row, end=100.0, jti=None, iat=None).reason is RefusalReason.UNTIMED_RAISE


def test_unknown_feed_is_refused_with_the_known_ones() -> None:
    """A feed that is not ours is answered with ours."""
    site = Story()
    outcome = site.say(60 * MW, feeds=("main", "other"))
    assert outcome.reason is RefusalReason.UNKNOWN_FEED and "main" in outcome.detail and site.target_w() is None


# --------------------------------------------------------------------------------------------------- replay and time


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


def test_interval_that_is_over_is_refused() -> None:
    """Ended already, or ending before it starts."""
    site = Story()
    assert site.say(60 * MW, end=-1).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=100, end=50).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=100, end=100).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=-100, end=50).acceptance is Acceptance.ACCEPTED


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


# --------------------------------------------------------------------------------------------------- bounds


def test_absurdly_low_target_is_held_at_the_floor() -> None:
    """Zero is answered `bounded` at the critical load, shared by feed; the issuer's own figure stays in the status."""
    site = Story(grid(feeds=("a", "b")))
    outcome = site.say(0.0)
    assert outcome.acceptance is Acceptance.BOUNDED and outcome.applied_w == 10 * MW and "floor" in outcome.detail
    assert site.target_w() == 20 * MW
    assert [t.asked_w for t in site.rules.feed_targets(site.now_s)] == [0.0, 0.0]


def test_floor_and_share_are_each_feeds_own() -> None:
    """Feeds of 80 and 20 MW, floor 20: 10 MW is under the large feed's floor only; more than a feed is the feed."""
    settings = replace(grid(feeds=("a", "b")), feed_share_frac=(0.8, 0.2))
    site = Story(settings)
    assert site.say(10 * MW).acceptance is Acceptance.BOUNDED and site.target_w() == 26 * MW
    site.wait(1)
    assert site.say(10 * MW, feeds=("b",)).acceptance is Acceptance.ACCEPTED
    site.wait(1)
    assert site.say(1e12, feeds=("b",)).applied_w == 20 * MW


def test_open_target_replaces_for_good_what_was_scheduled() -> None:
    """A later withdrawal of the new one does not bring the old schedule back."""
    site = Story()
    site.say(50 * MW, start=100, end=200)
    site.wait(1)
    site.say(80 * MW)
    site.wait(1)
    site.say(None)
    assert site.target_w(150) is None


def test_rows_interrupted_for_a_time_come_back_when_it_ends() -> None:
    """Rows under a bounded request of the same issuer are two spans, before it and after it."""
    site = Story()
    site.rows(ramp(4 * MW, row_id="x"))
    site.wait(1)
    site.rows(ramp(3 * MW, row_id="y"), start=100, end=200)
    spans = [(s.limits[0].id, s.from_s, s.until_s) for s in site.rules.active(site.now_s)]
    assert spans == [("x", 1000.0, 1101.0), ("y", 1101.0, 1201.0), ("x", 1201.0, math.inf)]


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


def test_absurdly_high_target_changes_nothing() -> None:
    """Above the registered peak the contract goes on to hold."""
    site = Story()
    outcome = site.say(1e12)
    assert outcome.acceptance is Acceptance.ACCEPTED and "contract holds" in outcome.detail
    assert site.target_w() == 100 * MW


def test_target_is_answered_with_the_time_it_is_met() -> None:
    """From 90 to 60 MW under 5 MW per 15 s takes 90 s; a waiver, or enough notice, needs none."""
    site = Story()
    site.present_w = 90 * MW
    outcome = site.say(60 * MW)
    assert outcome.acceptance is Acceptance.BOUNDED and outcome.met_at_s == site.now_s + 90.0
    assert outcome.detail == "followed as fast as the ramp rows allow"
    site.wait(1)
    assert site.say(60 * MW, start=89.9).acceptance is Acceptance.BOUNDED
    site.wait(1)
    assert site.say(60 * MW, start=90.0).acceptance is Acceptance.ACCEPTED
    site.wait(1)
    assert site.say(85 * MW).acceptance is Acceptance.ACCEPTED  # one row's allowance, at once
    site.wait(1)
    exempt = site.say(30 * MW, kind=SignalKind.RAMP_LIMIT, exempt=True)
    assert exempt.acceptance is Acceptance.ACCEPTED and exempt.met_at_s == site.now_s
    due = site.say(60 * MW, kind=SignalKind.RAMP_LIMIT, due_in_s=100.0, iat=0.5)
    assert due.acceptance is Acceptance.ACCEPTED


def test_bounds_come_from_the_site() -> None:
    """The floor is the idle site or its guaranteed floor, whichever is more, and never above the registered peak."""
    site = SimpleNamespace(
        guaranteed_floor_w=1.0, gpu_idle_w=5.0, other_load_w=3.0, registered_peak_w=100.0, contract=CONTRACT,
        grace_s=60.0, raise_dwell_s=30.0,
    )  # fmt: skip
    found = bounds_of(site)  # type: ignore[arg-type]
    assert (found.floor_w, found.peak_w, found.grace_s, found.raise_dwell_s) == (8.0, 100.0, 60.0, 30.0)
    site.guaranteed_floor_w = 9.0
    assert bounds_of(site).floor_w == 9.0  # type: ignore[arg-type]
    site.registered_peak_w = 7.0
    assert bounds_of(site).floor_w == 7.0  # type: ignore[arg-type]


def test_rate_rows_are_shared_by_feed_too() -> None:
    """Half a site falls 30 MW at half the site's slope in the time the site takes for 60."""
    rate = RateLimit(LimitId("q"), 0.5 * MW, 10 * MW, 1.0, SOURCE)
    rules = AcceptanceRules(grid(feeds=("a", "b")), replace(bounds(), contract=replace(CONTRACT, limits=(rate,))))
    site = Story()
    site.rules, site.present_w = rules, 90 * MW
    assert site.say(15 * MW, feeds=("a",)).met_at_s == site.now_s + 120.0
    site.wait(1.0)
    assert site.say(30 * MW, feeds=("a",)).met_at_s == site.now_s + 60.0, "15 MW are more than half of 10 MW at once"


def test_feed_shares_its_part_of_the_ramp() -> None:
    """Two feeds falling at once have half the slope each: the same time as the site."""
    site = Story(grid(feeds=("a", "b")))
    site.present_w = 90 * MW
    assert site.say(30 * MW).met_at_s == site.now_s + 90.0


@pytest.mark.parametrize(
    ("rows", "drop", "seconds"),
    [
        ((ramp(5 * MW, 15.0),), 5 * MW, 0.0),
        ((ramp(5 * MW, 15.0),), 10 * MW, 30.0),
        ((replace(ramp(5 * MW, 15.0), direction=Direction.UP),), 10 * MW, 0.0),
        ((replace(ramp(5 * MW, 15.0), direction=Direction.DOWN),), 10 * MW, 30.0),
        ((SwingLimit(LimitId("s"), 10 * MW, 5.0, 1.0, SOURCE),), 20 * MW, 10.0),
        ((RateLimit(LimitId("q"), 0.5 * MW, 50 * MW, 1.0, SOURCE),), 60 * MW, 120.0),
        ((RateLimit(LimitId("q"), 0.5 * MW, 50 * MW, 1.0, SOURCE),), 50 * MW, 0.0),
        ((ramp(0.0),), 1.0, math.inf),
        ((RateLimit(LimitId("q"), 0.0, 0.0, 1.0, SOURCE),), 1.0, math.inf),
        (CONTRACT.limits, -5 * MW, 0.0),
    ],
)
def test_fall_time(rows: tuple[Limit, ...], drop: float, seconds: float) -> None:
    """Hand-computed times for each kind of row."""
    assert fall_time_s(rows, drop) == pytest.approx(seconds)


def test_rows_no_site_can_hold_are_bounded() -> None:
    """A ramp of one watt is raised to half a percent of the peak, and the answer says which row."""
    site = Story()
    outcome = site.rows(ramp(1.0, row_id="tiny"), ramp(4 * MW, row_id="fine"))
    assert outcome.acceptance is Acceptance.BOUNDED and "tiny" in outcome.detail and "fine" not in outcome.detail
    assert site.row_ids() == {"tiny", "fine"}


def test_floor_above_the_ceiling_is_refused() -> None:
    """A floor that no load could meet without breaking the peak changes nothing."""
    site = Story()
    assert site.rows(FloorLimit(LimitId("f"), 101 * MW, 0.0, SOURCE)).reason is RefusalReason.RANGE
    assert site.rows(FloorLimit(LimitId("f"), 100 * MW, 0.0, SOURCE)).acceptance is Acceptance.ACCEPTED


def test_schedule_is_bounded() -> None:
    """So many requests on one feed and no more; the ones in force stay."""
    site = Story()
    outcomes = [site.say(50 * MW, start=100 + 10 * n, end=105 + 10 * n, iat=n * 0.01) for n in range(70)]
    assert [o.reason for o in outcomes].count(None) == LAYERS_PER_SLOT_MAX
    assert outcomes[-1].reason is RefusalReason.SCHEDULE_FULL


# --------------------------------------------------------------------------------------------------- flapping


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


# --------------------------------------------------------------------------------------------------- silence


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


# --------------------------------------------------------------------------------------------------- rows compared

RIDE = RideThroughLimit(LimitId("v"), (), (), 0.9, 1.0, True, SOURCE)
DROOP = DroopLimit(LimitId("d"), 0.036, 1e6, 1e7, SOURCE)
BAND = BandLimit(LimitId("b"), 1e6, (0.1, 5.0), SOURCE)
OSC = OscillationLimit(LimitId("o"), 1e6, (0.1, 20.0), 20.0, SOURCE)
RATE = RateLimit(LimitId("q"), 5e5, 5e7, 1.0, SOURCE)
SWING = SwingLimit(LimitId("s"), 1e7, 5.0, 1.0, SOURCE)
CEILING = CeilingLimit(LimitId("c"), 9e7, 10.0, SOURCE, until_s=20.0)
FLOOR = FloorLimit(LimitId("f"), 3e7, 10.0, SOURCE, until_s=20.0)
RAMP = ramp(5 * MW)


@pytest.mark.parametrize("row", [RIDE, DROOP, BAND, OSC, RATE, SWING, CEILING, FLOOR, RAMP])
def test_a_row_is_as_strict_as_itself_and_not_as_another_kind(row: Limit) -> None:
    """Whatever its name; and no row stands for one of another kind."""
    assert as_strict([replace(row, id=LimitId("other"))], [row]) and as_strict([], [])
    others = [r for r in (RIDE, DROOP, BAND, OSC, RATE, SWING, CEILING, FLOOR, RAMP) if type(r) is not type(row)]
    assert not as_strict(others, [row]) and not as_strict([], [row])


@pytest.mark.parametrize(
    "looser",
    [
        replace(RAMP, max_w=5.1 * MW), replace(RAMP, window_s=14.0), replace(RAMP, direction=Direction.UP),
        replace(RAMP, percentile=0.75), replace(RAMP, mean_s=2.0),
        replace(SWING, max_w=1.1e7), replace(SWING, window_s=4.0), replace(SWING, band_hz=(0.1, 5.0)),
        replace(SWING, mean_s=2.0),
        replace(RATE, max_w_per_s=6e5), replace(RATE, above_w=6e7), replace(RATE, horizon_s=60.0),
        replace(BAND, max_w=2e6), replace(BAND, band_hz=(0.2, 5.0)),
        replace(OSC, max_w=2e6), replace(OSC, band_hz=(0.2, 20.0)), replace(OSC, band_hz=(0.1, 19.0)),
        replace(OSC, span_s=10.0),
        replace(CEILING, max_w=9.1e7), replace(CEILING, from_s=11.0), replace(CEILING, until_s=19.0),
        replace(FLOOR, min_w=2e7), replace(FLOOR, from_s=11.0), replace(FLOOR, until_s=19.0),
        replace(RIDE, recover_s=2.0), replace(DROOP, w_per_hz=5e5),
    ],
)  # fmt: skip
def test_looser_row_is_seen_as_looser(looser: Limit) -> None:
    """Each field that matters, one at a time."""
    original = next(r for r in (RIDE, DROOP, BAND, OSC, RATE, SWING, CEILING, FLOOR, RAMP) if type(r) is type(looser))
    assert not as_strict([looser], [original])


@pytest.mark.parametrize(
    ("row", "least"),
    [
        (ramp(0.0, 1e6), ramp(0.5 * MW, 3600.0)),
        (replace(SWING, max_w=0.0), replace(SWING, max_w=0.5 * MW)),
        (replace(SWING, max_w=0.0, band_hz=(0.1, 5.0)), replace(SWING, max_w=0.05 * MW, band_hz=(0.1, 5.0))),
        (replace(RATE, max_w_per_s=0.0, above_w=0.0), replace(RATE, max_w_per_s=0.5 * MW / 60, above_w=0.5 * MW)),
        (replace(BAND, max_w=0.0), replace(BAND, max_w=0.05 * MW)),
        (replace(OSC, max_w=0.0), replace(OSC, max_w=0.05 * MW)),
        (replace(DROOP, max_w=1e12), replace(DROOP, max_w=100 * MW)),
        (FLOOR, FLOOR),
    ],
)
def test_bounded_rows(row: Limit, least: Limit) -> None:
    """Each kind is raised to what a 100 MW site can tell from its noise."""
    assert bounded_row(row, 100 * MW) == least


# --------------------------------------------------------------------------------------------------- for any history

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


# --------------------------------------------------------------------------------------------------- small print


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


def test_the_same_interval_again_takes_no_room() -> None:
    """Seventy corrections of one scheduled interval, and seventy schedules withdrawn, never fill the schedule."""
    site = Story()
    for k in range(70):
        assert site.say((60 + k / 10) * MW, start=100.0, end=200.0, iat=k / 1000).reason is None
    site = Story()
    for k in range(70):
        assert site.say(60 * MW, start=100.0 + k, iat=k / 1000).reason is None
        assert site.say(None, start=100.0 + k, iat=k / 1000 + 0.0005).reason is None
    assert site.target_w(150.0) is None


def test_nothing_that_is_over_is_told() -> None:
    """An open target that a bounded one covers: at the change, and after it, the part that is over is gone."""
    site = Story()
    site.say(80 * MW)
    assert site.say(60 * MW, start=10.0, end=20.0, iat=0.5).reason is None
    for seconds in (10.0, 2.0, 8.0, 1.0):
        site.wait(seconds)
        told = site.rules.active(site.now_s)
        assert all(s.until_s > site.now_s for s in told) and told[0].from_s <= site.now_s


def test_two_changes_between_two_looks_are_both_seen() -> None:
    """One request comes and another ends before anyone asks again."""
    site = Story()
    site.say(60 * MW, end=10.0)
    rules, now_s = site.rules, site.now_s
    offer = replace(site.last, message_id="x", jti="x", iat_utc_s=site.utc_s + 1.0)
    late = replace(
        offer, targets=(replace(offer.targets[0], target_w=50 * MW, from_utc_s=site.utc_s + 10, until_utc_s=None),)
    )
    rules.offer(late, now_s=now_s, utc_s=site.utc_s, present_w=None)
    rules.step(now_s=now_s + 10.0, utc_s=site.utc_s + 10.0, is_link_up=True, is_clock_synced=True)
    (told,) = rules.active(now_s + 10.0)
    assert told.target_w == 50 * MW


def test_a_held_target_waives_nothing() -> None:
    """While a flapping issuer's raise waits, its old target holds, but without the waiver it came with."""
    site = Story()
    for _ in range(3):
        site.say(40 * MW, exempt=True)
        site.wait(1.0)
        site.say(None)
        site.wait(1.0)
    (held,) = site.rules.active(site.now_s)
    assert held.target_w == 40 * MW and not held.ramp_exempt


def test_tighter_rows_in_place_of_others_are_no_raise() -> None:
    """Three times tighter, then withdrawn: the first loosening passes at once, because none came before it."""
    site = Story()
    for k, max_w in enumerate((5 * MW, 4 * MW, 3 * MW, 2 * MW)):
        site.rows(ramp(max_w, row_id=f"r{k}"))
        assert site.row_ids() == {f"r{k}"}
        site.wait(1.0)
    site.rows()
    assert site.row_ids() == set()


def test_small_rows_fall_in_finite_time() -> None:
    """Half a watt per window or per second is slow, not never; nothing at all is never."""
    assert fall_time_s([ramp(0.5, 10.0)], 1.0) == 20.0
    assert fall_time_s([RateLimit(LimitId("q"), 0.5, 0.0, 1.0, SOURCE)], 1.0) == 2.0
    assert fall_time_s([ramp(0.0, 10.0)], 1.0) == math.inf


def test_a_contract_of_many_kinds_answers_for_its_falling_rows() -> None:
    """Ceilings and floors of the contract say nothing of how fast a target is met."""
    site = Story()
    contract = replace(CONTRACT, limits=(*CONTRACT.limits, CeilingLimit(LimitId("c"), 50 * MW, 0.0, SOURCE)))
    site.rules = AcceptanceRules(grid(), replace(bounds(), contract=contract))
    site.wait(0.0)
    site.present_w = 80 * MW
    outcome = site.say(60 * MW)
    assert outcome.met_at_s == pytest.approx(site.now_s + 60.0) and "followed as fast" in outcome.detail
    floor = FloorLimit(LimitId("f"), 60 * MW, 0.0, SOURCE)
    assert site.rows(floor).reason is RefusalReason.RANGE, "above the site's ceiling, if below its peak"


def test_a_target_met_in_time_says_nothing_of_being_late() -> None:
    """10 MW above, half a minute's notice: accepted as asked, without remarks."""
    site = Story()
    site.present_w = 70 * MW
    outcome = site.say(60 * MW, start=40.0)
    assert (outcome.acceptance, outcome.detail) == (Acceptance.ACCEPTED, "")


def two_feeds() -> Story:
    return Story(replace(grid(issuer("acme"), issuer("bolt"), feeds=("a", "b")), feed_share_frac=(0.25, 0.75)))


def test_the_answer_for_two_feeds_is_the_later_and_names_what_was_cut() -> None:
    """20 MW on each feed: the large one takes longer; 40 MW is more than the small one's share alone."""
    site = two_feeds()
    site.present_w = 80 * MW
    outcome = site.say(20 * MW)
    assert outcome.met_at_s == pytest.approx(site.now_s + 40 * MW / (15 * MW) * 60.0)
    site = two_feeds()
    assert "share of the registered peak" in site.say(40 * MW).detail


def test_what_raises_on_one_feed_is_a_raise() -> None:
    """Untimed 20 MW for both feeds, where one already has 15: refused whole."""
    site = two_feeds()
    site.say(15 * MW, feeds=("a",))
    assert site.say(20 * MW, iat=None, jti=None).reason is RefusalReason.UNTIMED_RAISE
    assert site.say(20 * MW, iat=None, jti=None, feeds=("b",)).reason is None


def test_the_sites_target_bears_the_name_of_the_newest() -> None:
    """Two issuers, one feed each: the sum goes by the later one; best effort only if both are, exempt if either is."""
    site = two_feeds()
    site.say(15 * MW, feeds=("a",), best_effort=True)
    site.wait(5.0)
    site.say(50 * MW, feeds=("b",), by="bolt", exempt=True)
    (told,) = [s for s in site.rules.active(site.now_s) if s.from_s <= site.now_s < s.until_s]
    assert (told.issuer, told.signal_id, told.from_s, told.target_w) == ("bolt", "m2/0", site.now_s, 65 * MW)
    assert not told.is_best_effort and told.ramp_exempt and told.feeds == ("a", "b")
    site.wait(5.0)
    site.say(50 * MW, feeds=("b",), by="bolt", best_effort=True)
    (told,) = [s for s in site.rules.active(site.now_s) if s.from_s <= site.now_s < s.until_s]
    assert told.is_best_effort and not told.ramp_exempt


def test_a_target_in_force_is_one_span_whatever_lies_under_it() -> None:
    """The edge of a covered request does not cut what covers it."""
    site = Story()
    site.say(60 * MW, start=100.0, end=300.0)
    site.say(50 * MW, start=50.0, end=250.0, iat=0.5)
    told = [(t.applied_w, t.from_s - site.now_s, t.until_s - site.now_s) for t in site.rules.feed_targets(site.now_s)]
    assert told == [(50 * MW, 50.0, 250.0), (60 * MW, 250.0, 300.0)]


def test_raises_a_whole_dwell_apart_never_wait() -> None:
    """Two raises sixty seconds apart are not two within sixty seconds."""
    dwell = Dwell(60.0)
    dwell.raised(0.0)
    dwell.raised(60.0)
    assert dwell.next_raise_s(60.0) == 60.0
    dwell.raised(119.0)
    assert dwell.next_raise_s(119.0) == 179.0


def test_of_two_tiny_targets_the_lower_binds() -> None:
    """Nothing at all is less than half a watt, also where the site has no floor."""
    site = Story(grid(issuer("acme"), issuer("bolt")), floor_w=0.0)
    site.say(0.5)
    site.say(0.0, by="bolt")
    assert site.target_w() == 0.0


def test_a_request_that_comes_as_another_falls_silent() -> None:
    """The link's grace ends between two looks, right after a new request: the open target is gone, the new one seen."""
    site = Story()
    site.say(60 * MW)
    site.is_link_up = False
    site.wait(1.0)
    site.wait(30.0)
    assert site.target_w() == 60 * MW
    now_s, utc_s = site.now_s + 40.0, site.utc_s + 40.0
    target = replace(site.last.targets[0], target_w=50 * MW, from_utc_s=utc_s + 100.0, until_utc_s=utc_s + 200.0)
    late = replace(site.last, message_id="x", jti="x", iat_utc_s=utc_s, targets=(target,))
    site.rules.offer(late, now_s=now_s, utc_s=utc_s, present_w=None)
    site.rules.step(now_s=now_s, utc_s=utc_s, is_link_up=False, is_clock_synced=True)
    assert [s.target_w for s in site.rules.active(now_s)] == [50 * MW]


@pytest.mark.parametrize(
    ("tight", "loose"),
    [
        (
            SwingLimit(LimitId("a"), 4 * MW, 20.0, 1.0, SOURCE),
            SwingLimit(LimitId("b"), 5 * MW, 15.0, 1.0, SOURCE),
        ),
        (
            CeilingLimit(LimitId("a"), 50 * MW, 0.0, SOURCE, until_s=100.0),
            CeilingLimit(LimitId("b"), 60 * MW, 10.0, SOURCE, until_s=90.0),
        ),
        (
            FloorLimit(LimitId("a"), 20 * MW, 0.0, SOURCE, until_s=100.0),
            FloorLimit(LimitId("b"), 10 * MW, 10.0, SOURCE, until_s=90.0),
        ),
        (
            RateLimit(LimitId("a"), 0.4 * MW, 4 * MW, 1.0, SOURCE, horizon_s=700.0),
            RateLimit(LimitId("b"), 0.5 * MW, 5 * MW, 1.0, SOURCE, horizon_s=600.0),
        ),
        (
            BandLimit(LimitId("a"), 1 * MW, (0.1, 1.0), SOURCE),
            BandLimit(LimitId("b"), 2 * MW, (0.1, 1.0), SOURCE),
        ),
        (
            OscillationLimit(LimitId("a"), 1 * MW, (0.1, 2.0), 60.0, SOURCE),
            OscillationLimit(LimitId("b"), 2 * MW, (0.2, 1.0), 60.0, SOURCE),
        ),
    ],
)
def test_a_tighter_row_stands_for_a_looser_one(tight: Limit, loose: Limit) -> None:
    """Less allowed, over a longer window or for longer: the looser row is held with it, not the other way round."""
    assert as_strict([tight], [loose]) and not as_strict([loose], [tight])


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


def test_feed_targets_come_in_the_order_of_their_beginning() -> None:
    """A bounded tightening on top of an open target begins later and ends earlier: it comes second."""
    site = Story()
    site.say(60 * MW)
    site.wait(1.0)
    assert site.say(50 * MW, start=10.0, end=20.0, iat=None, jti=None).reason is None
    told = site.rules.feed_targets(site.now_s)
    assert [x.asked_w for x in told] == [60 * MW, 50 * MW] and told[0].until_s > told[1].until_s
