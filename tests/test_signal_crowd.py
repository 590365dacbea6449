"""An issuer that never stops talking: what it repeats counts once, and no crowd of rows holds up the loop."""

from __future__ import annotations

from controller.types import RefusalReason, SignalKind
from tests.dsx_kit import MW
from tests.signals_kit import Story, ramp, two_feeds


def rows_in_force(site: Story) -> int:
    return sum(len(s.limits) for s in site.rules.active(site.now_s) if s.from_s <= site.now_s < s.until_s)


def test_the_same_untimed_word_again_takes_the_place_of_the_last() -> None:
    """A publisher without signed times repeats its rows and its target every ten seconds, for an hour."""
    site = Story()
    for _ in range(360):
        assert site.rows(ramp(5 * MW), ramp(9 * MW, 60.0, "s"), iat=None).reason is None
        assert site.say(50 * MW, iat=None).reason is None
        site.wait(10.0)
        assert rows_in_force(site) == 2 and site.target_w() == 50 * MW
    memory = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s)
    assert len([layer for layer in memory.layers if layer.until_s > site.utc_s]) == 2
    site.wait(880.0)
    assert rows_in_force(site) == 2, "held for 15 minutes after the last word"
    site.wait(15.0)
    assert rows_in_force(site) == 0 and site.target_w() is None


def test_a_repeated_word_that_ends_sooner_shortens_nothing() -> None:
    site = Story()
    site.rows(ramp(5 * MW), end=800.0, iat=None)
    site.wait(1.0)
    site.rows(ramp(5 * MW), end=20.0, iat=None)
    site.wait(400.0)
    assert site.row_ids() == {"r"}


def test_a_repeated_word_that_ends_as_late_takes_the_place_of_the_last() -> None:
    site = Story()
    site.rows(ramp(5 * MW), end=100.0, iat=None)
    site.wait(10.0)
    site.rows(ramp(5 * MW), end=90.0, iat=None)
    assert rows_in_force(site) == 1


def test_a_repeated_word_for_later_leaves_what_holds_until_then() -> None:
    site = Story()
    site.rows(ramp(5 * MW), end=100.0, iat=None)
    site.rows(ramp(5 * MW), start=50.0, end=200.0, iat=None)
    for _ in range(19):
        assert site.row_ids() == {"r"} and rows_in_force(site) == 1
        site.wait(10.0)


def test_a_stricter_word_lies_beside_the_last() -> None:
    site = Story()
    site.say(60 * MW, iat=None)
    site.say(50 * MW, end=30.0, iat=None)
    assert site.target_w() == 50 * MW
    site.wait(31.0)
    assert site.target_w() == 60 * MW


def test_no_crowd_of_rows_is_in_force_at_once() -> None:
    """Each row costs a little of every tick: of one issuer no more are held than a message and as many again."""
    site = Story()
    outcomes = []
    for k in range(10):
        rows = tuple(ramp((5 - 0.1 * k) * MW, 15.0 + k, f"r{i}") for i in range(40))
        outcomes.append(site.rows(*rows, end=800.0, iat=None).reason)
        site.wait(1.0)
    assert outcomes == [None] * 3 + [RefusalReason.SCHEDULE_FULL] * 7
    assert rows_in_force(site) == 120
    over = site.rows(*(ramp(4 * MW, 90.0, f"o{i}") for i in range(40)), end=50.0)
    assert over.reason is None and rows_in_force(site) == 160, "a signed time lies on top"
    assert site.say(50 * MW, iat=None).reason is None, "a target is no row"
    site.wait(1.0)
    fresh = site.rows(*(ramp(4 * MW, 90.0, f"f{i}") for i in range(8)))
    assert fresh.reason is None and rows_in_force(site) == 8, "a signed time clears them away"
    assert site.rows(ramp(3 * MW, 99.0), end=5.0, iat=None).reason is None and rows_in_force(site) == 9


def test_rows_that_are_never_in_force_together_are_no_crowd() -> None:
    site = Story()
    for k in (0, 1, 2, 5, 4, 3):
        crowd = tuple(ramp(5 * MW, 15.0, f"r{i}") for i in range(70))
        assert site.rows(*crowd, start=100.0 * k, end=100.0 * (k + 1), iat=None).reason is None
    assert rows_in_force(site) == 70


def test_rows_for_feeds_are_counted_together_and_one_request_for_several_once() -> None:
    site = two_feeds()
    crowd = tuple(ramp(5 * MW, 15.0, f"r{i}") for i in range(64))
    assert site.rows(*crowd, feeds=("a",)).reason is None
    assert site.rows(*crowd, feeds=("b",)).reason is None
    site.wait(1.0)
    assert site.rows(*crowd, feeds=("b",)).reason is None, "in the place of the last"
    site.wait(1.0)
    more = site.rows(*crowd, ramp(4 * MW, 20.0), feeds=("b",))
    assert more.reason is RefusalReason.SCHEDULE_FULL, "beside those of feed a"
    assert site.rows(*crowd, by="bolt").reason is None, "another issuer"
    assert site.rows(ramp(4 * MW, 20.0), feeds=("a",), iat=None).reason is RefusalReason.SCHEDULE_FULL
    site.wait(1.0)
    site.say(revert=True, feeds=("a",), kind=SignalKind.RAMP_LIMIT)
    assert site.rows(ramp(4 * MW, 20.0), feeds=("a",), iat=None).reason is None
