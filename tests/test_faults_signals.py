"""Rows Q of the fault catalogue: the real grid source, keys and rules in front of the whole site, in virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.health import SIGNAL_FLAGS
from controller.modes import Flag
from controller.signal_request import UNTIMED_HOLD_S
from controller.signals import AcceptanceRules, bounds_of
from controller.types import Mode, RefusalReason
from drivers.dsx import DsxGridSource
from drivers.dsx_payloads import Interval, LoadTarget, Payload, SetLoadTargetData, power
from drivers.dsx_wire import load_target_topic
from drivers.mqtt import PAYLOAD_BYTES_MAX, Incoming, Keep
from hil.lab_site import MW, SETTLE_S, lab_scenario
from hil.matrix import row
from hil.matrix_lab import Lab, in_lab
from tests.dsx_kit import grid, issuer, sender
from tests.faults_kit import (
    COMES_DOWN_S,
    DWELL_S,
    RECOVER_S,
    assert_under_ceiling,
    flagged,
    recovered,
)

TOPIC = load_target_topic("acme")
LEVEL = {"steady": 64.0, "limit": 54.0, "ramp": 60.0}


def target(megawatt: float | None) -> SetLoadTargetData:
    constraint = None if megawatt is None else power(megawatt * MW)
    return SetLoadTargetData(targets=(LoadTarget(interval=Interval(), load_constraint=constraint),))


class Session:
    """What the source needs of a broker session, held by the test."""

    def __init__(self) -> None:
        self.is_up = True
        self.handlers: dict[str, Callable[[Incoming], None]] = {}

    def on_message(self, topic_filter: str, handler: Callable[[Incoming], None], *, qos: int = 1) -> None:
        self.handlers[topic_filter] = handler

    def on_oversized(self, hear: Callable[[str, int], None]) -> None:
        return None

    def publish(self, topic: str, payload: bytes, *, qos: int, keep: Keep) -> None:
        return None


class Grid:
    """An issuer, a forger, and the site's own source between them and the lab."""

    def __init__(self, folder: Path) -> None:
        self.acme, public = sender(folder / "good", "acme")
        self.forger, _ = sender(folder / "forged", "acme", seed=8)
        self.settings = grid(issuer("acme", (public,)))
        self.folder = folder
        self.session = Session()
        self.source: Any = None
        self.lab: Any = None
        self.old = b""

    def make(self) -> DsxGridSource:
        site = self.lab.site
        bounds = bounds_of(site)
        self.source = DsxGridSource(
            self.session,  # type: ignore[arg-type]
            settings=self.settings,
            rules=AcceptanceRules(self.settings, bounds),
            peak_w=site.registered_peak_w,
            floor_w=bounds.floor_w,
            classes=site.classes,
            jobs=None,
            clock=self.lab.clock,
            rng=np.random.default_rng(3),
            audit_path=self.folder / "audit.jsonl",
            sync=self.lab.sync,
        )
        return self.source  # type: ignore[no-any-return]

    def encode(self, data: Payload, *, by: Any = None, ago_s: float = 0.0) -> bytes:
        raw: bytes = (by or self.acme).encode(data, utc_s=self.lab.clock.wall_utc_s() - ago_s)[1]
        return raw

    def arrive(self, raw: bytes, *, is_retained: bool = False) -> None:
        self.session.handlers[TOPIC](Incoming(TOPIC, raw, is_retained, self.lab.now_s))

    def say(self, megawatt: float | None, **more: Any) -> bytes:
        raw = self.encode(target(megawatt), **more)
        self.arrive(raw)
        return raw

    def target_w(self) -> float | None:
        now_s = self.lab.now_s
        seen = [s.target_w for s in self.source.active(now_s) if s.from_s <= now_s < s.until_s]
        return min((w for w in seen if w is not None), default=None)

    def refused(self, *reasons: RefusalReason) -> int:
        return sum(self.source.refused_count.get(reason, 0) for reason in reasons)


def play(state: str, folder: Path, react: Any, *, recovers: bool = True, **site: Any) -> Lab:
    """The site in a state, reached by real signed targets: none, a loose one, one that binds, one on its way down."""
    desk = Grid(folder)

    async def story(lab: Lab) -> None:
        desk.lab = lab
        lab.make_grid = desk.make
        lab.start()
        desk.old = desk.encode(target(90.0), ago_s=86_400.0)  # first: a signer's times only ever rise
        await lab.run(1.0)
        if state != "cold":
            desk.say(LEVEL[state])
            await lab.run({"steady": SETTLE_S["steady"], "limit": SETTLE_S["limit"], "ramp": 4.0}[state])
        await react(lab, desk, lab.now_s)
        if recovers:
            await recovered(lab)
        if state == "limit":
            await lab.run(max(0.0, SETTLE_S[state] + COMES_DOWN_S + 4.0 - lab.now_s))
        desk.source._audit.close()

    lab = in_lab(story, lab_scenario("steady", site=site))
    assert not (broken := lab.broken()), broken
    return lab


def audited(folder: Path, event: str) -> list[dict[str, Any]]:
    """What the audit log holds of such events; it is whole once it is closed."""
    lines = (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def before(state: str) -> float | None:
    return None if state == "cold" else LEVEL[state] * MW


@row("Q1")
def test_broker_down(state: str, tmp_path: Path) -> None:
    """The target holds through the grace, then the fallback contract; the link back and a word end it."""

    def rows(lab: Lab) -> set[str]:
        return {row.id.split(".")[0] for row in lab.traces[-1].decision.in_force.limits}

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        loosest_w = max(lab.last.ref_w, before(state) or 0.0)
        desk.session.is_up = False
        await flagged(lab, Flag.GRID_LINK_LOST, since_s=since_s, within_s=1.0)
        await lab.run(3.0)
        assert desk.target_w() == before(state) and "southern" not in rows(lab)
        await flagged(lab, Flag.GRID_SILENT, since_s=since_s, within_s=lab.site.grace_s + 2.0)
        assert lab.now_s - since_s >= lab.site.grace_s
        await lab.run(1.0)
        assert "southern" in rows(lab) and lab.traces[-1].decision.in_force.is_fallback
        assert state == "cold" or lab.last.ref_w <= loosest_w + 0.1 * MW, "silence lifts nothing"
        desk.session.is_up = True
        desk.say(None)
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=DWELL_S + RECOVER_S + 60)
        assert "southern" not in rows(lab)

    play(state, tmp_path, react, recovers=False, fallback_contract=["ieso-ramp", "southern"])


def unchanged(state: str, tmp_path: Path, act: Callable[[Grid], Sequence[RefusalReason]]) -> None:
    """What must be dropped is dropped whole: counted and audited under its reason, said of the mode, moving nothing.

    `act` sends, and names the reason of each message it sent.
    """

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        reasons = act(desk)
        sent.update(reasons)
        assert desk.source.refused_count == {r: reasons.count(r) for r in reasons}
        await flagged(lab, *{SIGNAL_FLAGS[reason] for reason in reasons}, since_s=since_s, within_s=1.0)
        await lab.run(3.0)
        assert desk.target_w() == before(state)

    sent: set[RefusalReason] = set()
    lab = play(state, tmp_path, react)
    if state == "limit":  # what was dropped did not loosen the target in force, on truth
        assert_under_ceiling(lab, from_s=SETTLE_S[state] + COMES_DOWN_S, to_s=lab.now_s)
    assert {line["reason"] for line in audited(tmp_path, "refused_unverified")} == sent


@row("Q2")
def test_duplicate(state: str, tmp_path: Path) -> None:
    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        raw = desk.say(58.0)
        desk.say(57.0)
        desk.arrive(raw)
        assert desk.refused(RefusalReason.DUPLICATE) == 1 and desk.target_w() == 57 * MW
        await flagged(lab, Flag.SIGNAL_DUPLICATE, since_s=since_s, within_s=1.0)
        await lab.run(5.0)

    play(state, tmp_path, react)


@row("Q3")
def test_out_of_order(state: str, tmp_path: Path) -> None:
    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        older = desk.encode(target(70.0), ago_s=2.0)
        desk.say(57.0)
        desk.arrive(older)
        assert desk.refused(RefusalReason.OUT_OF_ORDER) == 1 and desk.target_w() == 57 * MW
        await flagged(lab, Flag.SIGNAL_OUT_OF_ORDER, since_s=since_s, within_s=1.0)
        await lab.run(5.0)

    play(state, tmp_path, react)


@row("Q4")
def test_oversized(state: str, tmp_path: Path) -> None:
    def act(desk: Grid) -> Sequence[RefusalReason]:
        desk.arrive(desk.encode(target(90.0)) + b" " * PAYLOAD_BYTES_MAX)
        return (RefusalReason.OVERSIZED,)

    unchanged(state, tmp_path, act)


@row("Q5")
@pytest.mark.parametrize("what", ["not json", "extra field", "null number"])
def test_malformed(state: str, what: str, tmp_path: Path) -> None:
    """The signature is good, the content is not: the whole message is dropped."""

    def act(desk: Grid) -> Sequence[RefusalReason]:
        event = json.loads(desk.encode(target(90.0)))
        body: dict[str, Any] = json.loads(target(90.0).model_dump_json(by_alias=True, exclude_none=True))
        if what == "extra field":
            body["surprise"] = 1
        if what == "null number":
            body["targets"] = [{"interval": {}, "load_constraint": {"value": "lots", "unit": "megawatt"}}]
        event["data"] = desk.acme.signer.sign(
            json.dumps(body).encode(), content_type=event["type"], utc_s=desk.lab.clock.wall_utc_s()
        )
        raw = b"{ not json" if what == "not json" else json.dumps(event).encode()
        desk.arrive(raw)
        return (RefusalReason.ENVELOPE if what == "not json" else RefusalReason.SCHEMA,)

    unchanged(state, tmp_path, act)


@row("Q6")
def test_forged(state: str, tmp_path: Path) -> None:
    """A wrong key under a known name, a wrong key that lowers, a broken signature: a security event each, no move."""

    def act(desk: Grid) -> Sequence[RefusalReason]:
        desk.say(95.0, by=desk.forger)
        desk.say(30.0, by=desk.forger)
        good = json.loads(desk.encode(target(90.0)))
        head, body, tail = good["data"].split(".")
        good["data"] = f"{head}.{body}.{tail[::-1]}"
        desk.arrive(json.dumps(good).encode())
        return (RefusalReason.UNKNOWN_KEY, RefusalReason.UNKNOWN_KEY, RefusalReason.SIGNATURE)

    unchanged(state, tmp_path, act)


@row("Q7")
def test_replay(state: str, tmp_path: Path) -> None:
    """A signed permission of yesterday is played again: it loosens nothing."""

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        desk.say(57.0)
        desk.arrive(desk.old)
        assert desk.target_w() == 57 * MW and sum(desk.source.refused_count.values()) == 1
        await flagged(lab, Flag.SIGNAL_REPLAYED, Flag.SIGNAL_OUT_OF_ORDER, since_s=since_s, within_s=1.0)
        await lab.run(5.0)

    play(state, tmp_path, react)


@row("Q8")
def test_retained_stale(state: str, tmp_path: Path) -> None:
    """A retained message a day old at connect may loosen nothing; where nothing newer was heard it may tighten.

    For a quarter of an hour at most: it carries no end, and none is believed to come from a link that was down then.
    """

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        desk.arrive(desk.old, is_retained=True)
        if state == "cold":
            (held,) = desk.source.active(lab.now_s)
            assert held.target_w == 90 * MW and held.until_s - lab.now_s <= UNTIMED_HOLD_S
        else:
            assert desk.refused(RefusalReason.OUT_OF_ORDER, RefusalReason.STALE_RAISE) == 1
        await lab.run(3.0)
        assert desk.target_w() == (90 * MW if state == "cold" else before(state))

    play(state, tmp_path, react)


@row("Q9")
def test_absurd(state: str, tmp_path: Path) -> None:
    """Zero is held at the floor and reached no faster than the ramp; a negative one is none; a high one lifts nothing.

    The rows are judged on truth at the end: the fall is as steep as they allow, and no steeper.
    """

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        event = json.loads(desk.encode(target(50.0)))
        body: dict[str, Any] = {"targets": [{"interval": {}, "load_constraint": {"value": -1.0, "unit": "watt"}}]}
        signed = {"content_type": event["type"], "utc_s": desk.lab.clock.wall_utc_s()}
        event["data"] = desk.acme.signer.sign(json.dumps(body).encode(), **signed)
        desk.arrive(json.dumps(event).encode())
        assert desk.refused(RefusalReason.SCHEMA) == 1 and desk.target_w() == before(state)
        desk.say(0.0)
        floor_w = bounds_of(lab.site).floor_w
        assert desk.target_w() == floor_w > 0.0
        await flagged(lab, Flag.SIGNAL_ABSURD, since_s=since_s, within_s=1.0)
        at_w = lab.last.ref_w
        await lab.run(20.0)
        assert at_w - lab.last.ref_w > 2.5 * MW, "it is followed"
        assert lab.world.plant.now(0) > floor_w
        desk.say(5000.0)
        high_w, at_w = desk.target_w(), lab.last.ref_w
        assert high_w is None or high_w <= lab.site.registered_peak_w
        await lab.run(20.0)
        assert lab.last.ref_w <= lab.site.registered_peak_w

    play(state, tmp_path, react, recovers=False)


@row("Q10")
def test_flapping(state: str, tmp_path: Path) -> None:
    """Toggled once a second: down at once, up twice, and then not before the dwell is over."""

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        seen: list[tuple[float, float]] = []
        for k in range(20):
            desk.say(52.0 if k % 2 else 62.0)
            for _ in range(2):
                await lab.run(0.25)
                found = desk.target_w()
                assert found is not None and (k % 2 == 0 or found <= 52 * MW)
                seen.append((lab.now_s, found))
            await lab.run(0.5)
        await flagged(lab, Flag.SIGNAL_FLAPPING, since_s=since_s, within_s=1.0)
        raises_s = [t_s for (_, low), (t_s, high) in pairwise(seen) if high > low]
        dwell_s = lab.site.raise_dwell_s
        assert len(raises_s) >= 4, "it never waits for ever"
        for first_s, second_s, third_s in zip(raises_s, raises_s[1:], raises_s[2:], strict=False):
            assert second_s - first_s >= dwell_s or third_s - second_s >= dwell_s - 0.5, raises_s

    play(state, tmp_path, react, recovers=False)


@row("Q11")
def test_flood(state: str, tmp_path: Path) -> None:
    """Two thousand messages within a tick: a bucketful is looked at, the newest is followed, no cycle is late."""

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        before_count = len(lab.ticks)
        junk = desk.encode(target(90.0), by=desk.forger)
        for _ in range(2000):
            desk.arrive(junk)
        desk.arrive(desk.encode(target(56.0)))
        dropped = desk.refused(RefusalReason.FLOOD)
        refused = sum(desk.source.refused_count.values()) - dropped
        assert refused <= 60 and dropped >= 1900, (refused, dropped)
        for _ in range(20):
            await lab.run(0.25)
            for inbox in desk.source._inboxes:
                inbox.work_off()
        await flagged(lab, Flag.SIGNAL_FLOOD, since_s=since_s, within_s=1.0)
        assert desk.target_w() == 56 * MW and len(lab.ticks) - before_count >= 48

    play(state, tmp_path, react)


@row("C1")
@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_signals_after_a_step_of_the_wall_clock(state: str, step_s: float, tmp_path: Path) -> None:
    """What is in force stays; nothing is loosened on the word of a clock that stepped, whatever its issuer's says."""

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        lab.clock.step_wall_s(step_s)
        await flagged(lab, Flag.CLOCK_STEPPED, since_s=since_s, within_s=2.0)
        level = LEVEL.get(state, 66.0)
        assert desk.target_w() == before(state)
        desk.say(level + 2.0, ago_s=step_s if step_s > 0 else 0.0)  # by the true time, and by ours
        assert desk.target_w() == (before(state) if state != "cold" else (level + 2.0) * MW)
        refused = desk.refused(RefusalReason.CLOCK, RefusalReason.OUT_OF_ORDER)
        assert refused == (state != "cold"), "a first limit tightens; a second would loosen"
        desk.say(level - 2.0, ago_s=0.0 if step_s > 0 else step_s)
        assert desk.target_w() == (level - 2.0) * MW, "lower always"
        await lab.run(3.0)

    play(state, tmp_path, react, recovers=False)


@row("C2")
def test_ntp_lost(state: str, tmp_path: Path) -> None:
    """Alarm, and control goes on. Within the grace an issuer's order counts, then nothing is loosened; lower always."""

    async def react(lab: Lab, desk: Grid, since_s: float) -> None:
        lab.sync.is_synced = False
        await flagged(lab, Flag.CLOCK_UNSYNCED, since_s=since_s, within_s=2.0)
        count, level = len(lab.ticks), LEVEL.get(state, 66.0)
        await lab.run(1.0)
        older = desk.encode(target(level + 1.0), ago_s=-30.0)
        desk.say(level + 2.0, ago_s=-40.0)  # by our clock from the future; newer than all that was heard before
        raised_w = desk.target_w()
        assert raised_w == ((level + 2.0) * MW), "the first word, or in order"
        desk.arrive(older)
        assert desk.target_w() == raised_w and desk.refused(RefusalReason.OUT_OF_ORDER) == 1
        await lab.run(lab.site.grace_s + 1.0)
        desk.say(90.0, ago_s=-60.0)
        assert desk.target_w() == raised_w and desk.refused(RefusalReason.CLOCK) == 1
        desk.say(level - 1.0, ago_s=-61.0)
        assert desk.target_w() == (level - 1.0) * MW
        assert len(lab.ticks) - count >= 9.5 * (lab.now_s - since_s - 3.0), "control paused"
        assert lab.last.mode is Mode.DEGRADED and any("not synchronised" in r.words for r in reasons(lab))
        lab.sync.is_synced = True
        await lab.run(12.0)
        desk.say(level, ago_s=-80.0)
        assert desk.refused(RefusalReason.FROM_FUTURE) == 1, "the clock is asked again"

    play(state, tmp_path, react)


def reasons(lab: Lab) -> Sequence[Any]:
    return lab.traces[-1].decision.mode.reasons
