"""A controller that restarts knows what it accepted and what it has heard, and nothing that it should not."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from controller.settings import GridSettings
from controller.signals import AcceptanceRules
from controller.types import CeilingLimit, FeedTarget, FloorLimit, LimitId, RefusalReason, SignalKind
from drivers.signal_store import SignalStore
from tests.dsx_kit import MW, SOURCE, bounds, grid, issuer
from tests.signals_kit import TRIPS, Story, ramp


def reborn(site: Story, *, away_s: float = 7.0, settings: GridSettings | None = None) -> Story:
    """The same site after a restart on a machine whose monotonic clock began anew."""
    memory = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s)
    utc_s = site.utc_s + away_s
    later = Story(settings or grid())
    later.utc_step_s = utc_s - later.utc_s
    later.rules = AcceptanceRules(settings or grid(), bounds())
    later.rules.recall(memory, now_s=later.now_s, utc_s=later.utc_s)
    later.wait(0.0)
    return later


def spans(site: Story) -> list[tuple[float, float, float]]:
    """Applied target, begin and end from now of every feed's target."""
    told: tuple[FeedTarget, ...] = site.rules.feed_targets(site.now_s)
    return [(t.applied_w, t.from_s - site.now_s, t.until_s - site.now_s) for t in told]


def test_what_was_accepted_holds_on_as_if_nothing_had_happened() -> None:
    """Targets and rows keep their ends in UTC: 7 s away are 7 s less to go, and open ones stay open."""
    site = Story()
    site.present_w = 90 * MW
    site.say(60 * MW, end=100.0)
    site.say(40 * MW, start=20.0, end=60.0, iat=0.5)
    site.rows(
        ramp(3 * MW), FloorLimit(LimitId("f"), 5 * MW, 0.0, SOURCE), CeilingLimit(LimitId("c"), 80 * MW, 0.0, SOURCE)
    )
    before = site.rules.feed_targets(site.now_s)
    later = reborn(site)
    assert later.target_w() == 60 * MW and later.target_w(14.0) == 40 * MW and later.target_w(54.0) == 60 * MW
    assert later.target_w(92.9) == 60 * MW and later.target_w(93.1) is None
    assert later.row_ids() == {"r", "f", "c"}
    after = later.rules.feed_targets(later.now_s)
    assert [(t.met_at_s - later.now_s) - (s.met_at_s - site.now_s) for t, s in zip(after, before, strict=True)] == (
        [pytest.approx(-7.0)] * len(after)
    )
    (moved,) = [r for s in later.rules.active(later.now_s) for r in s.limits if isinstance(r, FloorLimit)]
    assert moved.from_s - later.now_s == pytest.approx(-7.0) and moved.until_s == math.inf


def test_what_ended_meanwhile_stays_out() -> None:
    """An hour away: the target of a minute is over, to the very second of its end."""
    site = Story()
    site.say(60 * MW, end=60.0)
    assert reborn(site, away_s=59.0).target_w() == 60 * MW
    assert reborn(site, away_s=60.0).rules.memory(now_s=0.0, utc_s=0.0).layers == ()
    site.wait(60.0)
    assert site.rules.memory(now_s=site.now_s, utc_s=site.utc_s).layers == ()


def test_a_wall_clock_that_stands_before_the_memory_lets_no_time_pass() -> None:
    """A machine that boots in the past cannot say how long it was away: targets keep what was left of them."""
    site = Story()
    site.say(60 * MW, end=100.0)
    later = reborn(site, away_s=-3600.0)
    assert spans(later) == [(60 * MW, pytest.approx(0.0), pytest.approx(100.0))]


def test_replays_are_known_across_a_restart() -> None:
    """The same message again, and an older one of the same issuer and feed, are refused as before."""
    site = Story()
    site.say(60 * MW, end=500.0)
    first = site.last
    site.wait(1.0)
    site.say(50 * MW, end=500.0)
    later = reborn(site, away_s=1.0)
    assert later.give(first).reason is RefusalReason.DUPLICATE
    assert later.give(replace(first, jti="other")).reason is RefusalReason.OUT_OF_ORDER
    assert later.say(55 * MW, jti="fresh").reason is None


@pytest.mark.parametrize(
    "settings",
    [
        grid(issuer("other")),
        grid(feeds=("elsewhere",)),
        grid(issuer(may_set_target=False)),
    ],
)
def test_rights_that_are_gone_take_their_requests_along(settings: GridSettings) -> None:
    """An issuer unknown now, a feed that is no more, a right withdrawn: the request does not come back."""
    site = Story()
    site.say(60 * MW, end=500.0)
    assert reborn(site).target_w() == 60 * MW
    assert reborn(site, settings=settings).target_w() is None


def test_a_waiver_needs_its_right_still() -> None:
    """A request that waived ramps stays out where its issuer may no longer do that; one that did not comes back."""
    site = Story()
    site.say(60 * MW, end=500.0, exempt=True)
    assert reborn(site).rules.active(1000.0)[0].ramp_exempt
    withdrawn = grid(issuer(may_exempt_ramp=False))
    assert reborn(site, settings=withdrawn).target_w() is None
    plain = Story(withdrawn)
    plain.say(60 * MW, end=500.0)
    assert reborn(plain, settings=withdrawn).target_w() == 60 * MW


def test_a_row_that_sets_ramps_aside_needs_the_right_still() -> None:
    site = Story()
    site.rows(TRIPS, end=500.0)
    assert reborn(site).row_ids() == {"droop"}
    assert reborn(site, settings=grid(issuer(may_exempt_ramp=False))).row_ids() == set()


def test_a_memory_counts_at_once_whatever_was_asked_before() -> None:
    """The answer given while nothing was known yet does not outlive the memory put back."""
    site = Story()
    site.say(60 * MW)
    memory = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s)
    fresh = Story()
    assert fresh.rules.active(fresh.now_s) == ()
    fresh.rules.recall(memory, now_s=fresh.now_s, utc_s=fresh.utc_s)
    assert fresh.target_w() == 60 * MW
    again = Story()
    again.rules.recall(memory, now_s=again.now_s, utc_s=again.utc_s)
    again.wait(1.0)
    again.say(70 * MW, start=5.0, jti="fresh")
    assert again.target_w() == 60 * MW and again.target_w(6.0) == 70 * MW


def test_no_more_is_remembered_than_can_be_replayed() -> None:
    """8192 message ids are kept, the newest ones, also across a restart."""
    site = Story()
    memory = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s)
    many = replace(memory, seen=tuple(f"acme j{k}" for k in range(9000)))
    site.rules.recall(many, now_s=site.now_s, utc_s=site.utc_s)
    kept = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s).seen
    assert len(kept) == 8192 and kept[-1] == "acme j8999"
    assert site.say(50 * MW, jti="j8998").reason is RefusalReason.DUPLICATE


def test_rows_and_targets_are_remembered_apart() -> None:
    """The newest time heard is kept for each kind, issuer and feed."""
    site = Story()
    site.say(60 * MW)
    site.wait(5.0)
    site.rows(ramp(3 * MW))
    newest = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s).newest
    assert {(n.kind, n.iat_utc_s - site.utc_s) for n in newest} == {
        (SignalKind.LOAD_TARGET, -5.0),
        (SignalKind.RAMP_LIMIT, 0.0),
    }


def test_what_ends_as_the_controller_returns_is_not_taken_back() -> None:
    """Sixty seconds away from a target of sixty seconds: it is over before the first cycle."""
    site = Story()
    site.say(60 * MW, end=60.0)
    memory = site.rules.memory(now_s=site.now_s, utc_s=site.utc_s)
    rules = AcceptanceRules(grid(), bounds())
    rules.recall(memory, now_s=5.0, utc_s=site.utc_s + 60.0)
    assert rules.memory(now_s=5.0, utc_s=site.utc_s + 60.0).layers == ()


async def test_a_stop_during_a_write_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk: who starts next must read what this one accepted, not what stood there before."""
    store, begun, go_on = SignalStore(tmp_path / "signals.json", take=lambda: {"kept": 1}), Event(), Event()
    write = store._write

    def slowly(text: str) -> None:
        begun.set()
        assert go_on.wait(10.0)
        write(text)

    monkeypatch.setattr(store, "_write", slowly)
    running = asyncio.ensure_future(store.run())
    store.changed()
    await asyncio.to_thread(begun.wait, 10.0)
    running.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert store.load() == {"kept": 1}
