"""The acceptance rules as stories on a plain time variable: what is followed, by whose right, and what it lies over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controller.signals import AcceptanceRules
from controller.types import Acceptance, FloorLimit, Limit, LimitId, RefusalReason, RideThroughLimit, SignalKind
from tests.dsx_kit import MW, SOURCE, bounds, grid, issuer
from tests.signals_kit import TRIPS, Story, ramp, two_feeds


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


def test_interval_that_is_over_is_refused() -> None:
    """Ended already, or ending before it starts."""
    site = Story()
    assert site.say(60 * MW, end=-1).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=100, end=50).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=100, end=100).reason is RefusalReason.EXPIRED
    assert site.say(60 * MW, start=-100, end=50).acceptance is Acceptance.ACCEPTED


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


def test_feed_targets_come_in_the_order_of_their_beginning() -> None:
    """A bounded tightening on top of an open target begins later and ends earlier: it comes second."""
    site = Story()
    site.say(60 * MW)
    site.wait(1.0)
    assert site.say(50 * MW, start=10.0, end=20.0, iat=None, jti=None).reason is None
    told = site.rules.feed_targets(site.now_s)
    assert [x.asked_w for x in told] == [60 * MW, 50 * MW] and told[0].until_s > told[1].until_s
