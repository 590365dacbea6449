"""How far a grid signal may go: floors, shares, the time a fall takes, and rows compared."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from controller.signal_schedule import as_strict, bounded_row
from controller.signals import LAYERS_PER_SLOT_MAX, AcceptanceRules, bounds_of, fall_time_s
from controller.types import (
    Acceptance,
    BandLimit,
    CeilingLimit,
    Direction,
    DroopLimit,
    FloorLimit,
    Limit,
    LimitId,
    OscillationLimit,
    RateLimit,
    RefusalReason,
    RideThroughLimit,
    SignalKind,
    SwingLimit,
)
from tests.dsx_kit import CONTRACT, MW, SOURCE, bounds, grid, issuer
from tests.signals_kit import Story, ramp, two_feeds


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


def test_the_answer_for_two_feeds_is_the_later_and_names_what_was_cut() -> None:
    """20 MW on each feed: the large one takes longer; 40 MW is more than the small one's share alone."""
    site = two_feeds()
    site.present_w = 80 * MW
    outcome = site.say(20 * MW)
    assert outcome.met_at_s == pytest.approx(site.now_s + 40 * MW / (15 * MW) * 60.0)
    site = two_feeds()
    assert "share of the registered peak" in site.say(40 * MW).detail


def test_of_two_tiny_targets_the_lower_binds() -> None:
    """Nothing at all is less than half a watt, also where the site has no floor."""
    site = Story(grid(issuer("acme"), issuer("bolt")), floor_w=0.0)
    site.say(0.5)
    site.say(0.0, by="bolt")
    assert site.target_w() == 0.0


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
