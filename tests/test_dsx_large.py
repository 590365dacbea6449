"""Messages of ours that would not fit: legal signed requests make status and answers long, and nothing ends of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.signals import AcceptanceRules
from drivers.dsx import DsxGridSource
from drivers.dsx_extension import SignalAnswerData
from drivers.dsx_payloads import (
    Interval,
    LoadTarget,
    PowerStateStatusData,
    SetLoadTargetData,
    power,
    utc_text,
)
from drivers.dsx_wire import answer_topic, load_target_topic, status_topic
from drivers.jws import KeyStore
from drivers.mqtt import PAYLOAD_BYTES_MAX, Incoming
from tests.dsx_kit import MW, NOTHING, bounds, grid, image, issuer, sender
from tests.mqtt_kit import session

FEEDS = tuple(f"feed-{k}-of-the-northern-substation" for k in range(8))


class Desk:
    """A flex agent whose session is not running: what it would send lies in the queue."""

    def __init__(self, folder: Path) -> None:
        self.acme, public = sender(folder, "acme")
        _, agent_public = sender(folder, "agent", role="dsx-flex-agent", seed=7)
        settings = grid(issuer("acme", (public,)), feeds=FEEDS, signing_key_file=str(folder / "agent.jwk"))
        self.clock = MonotonicClock()
        self.session = session(1, "desk")
        self.agent_keys = KeyStore((issuer("site", (agent_public,)),))
        self.source = DsxGridSource(
            self.session,
            settings=settings,
            rules=AcceptanceRules(settings, bounds()),
            peak_w=100 * MW,
            floor_w=20 * MW,
            classes=(),
            jobs=None,
            clock=self.clock,
            rng=np.random.default_rng(3),
            audit_path=folder / "audit.jsonl",
        )

    def hear(self, data: SetLoadTargetData) -> None:
        _, raw = self.acme.encode(data, utc_s=self.clock.wall_utc_s())
        assert len(raw) <= PAYLOAD_BYTES_MAX, "an issuer may send it"
        topic = load_target_topic("acme")
        handler = next(handler for name, handler, _ in self.session._handlers if name == topic)
        handler(Incoming(topic, raw, False, self.clock.now_s()))

    def sent(self, topic: str) -> list[dict[str, Any]]:
        """The signed content of what waits for the broker on a topic."""
        found = []
        for name, payload, _ in self.session._events:
            if name == topic:
                assert len(payload) <= PAYLOAD_BYTES_MAX
                found.append(json.loads(self.agent_keys.verify(json.loads(payload)["data"]).payload))
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_day_of_targets_on_every_feed_is_followed_and_told_as_far_as_it_fits(desk: Desk) -> None:
    """48 half hours on 8 feeds: more than one status can carry. It tells of the soonest, those in force first."""
    now_s = desk.clock.wall_utc_s()
    targets = tuple(
        LoadTarget(
            interval=Interval(start_time=utc_text(now_s + 1800 * k), end_time=utc_text(now_s + 1800 * (k + 1))),
            load_constraint=power((60 - k / 2) * MW / len(FEEDS)),
        )
        for k in range(48)
    )
    desk.hear(SetLoadTargetData(targets=targets))
    mono_s = desk.clock.now_s()
    assert len(desk.source.active(mono_s)) == 48
    desk.source.report(image(mono_s, 70 * MW), NOTHING, ())
    status = PowerStateStatusData.model_validate_json(json.dumps(desk.sent(status_topic("site"))[-1]))
    for feed in FEEDS:
        told = status.feeds[feed].targets
        assert told and told[0].active and not any(t.active for t in told[1:])
        starts = [t.interval.start_time or "" for t in told]
        assert starts == sorted(starts)


async def test_a_message_that_asks_for_the_longest_answer_is_answered(desk: Desk) -> None:
    """64 requests for feeds that nobody has, with the longest names allowed: refused each, by its index."""
    tags = tuple(f"{k}" * 128 for k in range(4))
    one = LoadTarget(interval=Interval(), feed_tags=tags, load_constraint=power(60 * MW))
    desk.hear(SetLoadTargetData(targets=(one,) * 64))
    desk.source._answer_judged()
    answer = SignalAnswerData.model_validate_json(json.dumps(desk.sent(answer_topic("site"))[-1]))
    assert [a.index for a in answer.answers] == list(range(64))
    assert {(a.acceptance, a.reason) for a in answer.answers} == {("refused", "unknown_feed")}
