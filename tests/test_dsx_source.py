"""The flex agent over a real broker: signed signals change the limit, everything else leaves it as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from controller.cli.broker_options import open_event
from controller.cli.grid import app as grid_app
from controller.cli.grid_client import Show, watch
from controller.cli.grid_words import words
from controller.clock import MonotonicClock
from controller.errors import BadInput
from controller.settings import IssuerSettings
from controller.signals import AcceptanceRules
from controller.types import Outlook, RefusalReason, SignalOutcome
from drivers.dsx import DsxGridSource
from drivers.dsx_extension import SetRampLimitData, SignalAnswerData
from drivers.dsx_inbox import BURST_MAX, RATE_PER_S_MAX, WAITING_MAX
from drivers.dsx_payloads import (
    Interval,
    LoadTarget,
    Payload,
    PowerBreachAlertData,
    PowerBreachEnforcementData,
    PowerStateStatusData,
    SetLoadTargetData,
    power,
    utc_text,
)
from drivers.dsx_wire import (
    CloudEvent,
    Sender,
    Trace,
    answer_topic,
    breach_topic,
    enforcement_topic,
    load_target_topic,
    ramp_limit_topic,
    status_topic,
)
from drivers.jws import KeyStore, new_uuid
from drivers.mqtt import Incoming, Keep, MqttSession
from hil.broker import EmbeddedBroker
from tests.dsx_kit import MW, NOTHING, bounds, grid, image, issuer, sender
from tests.mqtt_kit import running, session, until

pytestmark = pytest.mark.wire


def load_target(megawatt: float | None, **interval: str) -> SetLoadTargetData:
    constraint = None if megawatt is None else power(megawatt * MW)
    return SetLoadTargetData(targets=(LoadTarget(interval=Interval(**interval), load_constraint=constraint),))


@dataclass
class Bench:
    """An agent, an issuer with a key the agent knows, and what the issuer heard."""

    folder: Path
    port: int
    source: DsxGridSource
    acme: Sender
    acme_session: MqttSession
    agent_keys: KeyStore
    outcomes: list[SignalOutcome] = field(default_factory=list)
    heard: list[tuple[CloudEvent, Payload]] = field(default_factory=list)

    def send(self, topic: str, payload: bytes) -> None:
        self.acme_session.publish(topic, payload, qos=1, keep=Keep.ALL)

    def say(self, data: Payload, *, utc_s: float | None = None) -> str:
        clock = MonotonicClock()
        event_id, raw = self.acme.encode(data, utc_s=clock.wall_utc_s() if utc_s is None else utc_s)
        is_target = isinstance(data, SetLoadTargetData)
        self.send(load_target_topic("acme") if is_target else ramp_limit_topic("acme"), raw)
        return event_id

    def target_w(self) -> float | None:
        now_s = MonotonicClock().now_s()
        seen = [s.target_w for s in self.source.active(now_s) if s.from_s <= now_s < s.until_s]
        return min((w for w in seen if w is not None), default=None)

    def of(self, kind: type[Payload]) -> list[Any]:
        return [data for _, data in self.heard if isinstance(data, kind)]

    def audit(self) -> list[dict[str, Any]]:
        path = self.folder / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    acme, acme_public = sender(tmp_path, "acme")
    infra, infra_public = sender(tmp_path, "infra-1", role="infra", seed=6)
    _, agent_public = sender(tmp_path, "agent", role="dsx-flex-agent", seed=7)
    settings = grid(
        issuer("acme", (acme_public,)),
        issuer("infra-1", (infra_public,), may_set_target=False, may_set_ramp=False, may_exempt_ramp=False),
        signing_key_file=str(tmp_path / "agent.jwk"),
    )
    async with EmbeddedBroker() as broker:
        agent_session, acme_session = session(broker.port, "site"), session(broker.port, "acme")
        keys = KeyStore([IssuerSettings("site", (agent_public,), False, False, False)])
        outcomes: list[SignalOutcome] = []
        source = DsxGridSource(
            agent_session,
            settings=settings,
            rules=AcceptanceRules(settings, bounds(raise_dwell_s=0.0)),
            peak_w=100 * MW,
            floor_w=20 * MW,
            classes=(),
            jobs=None,
            clock=MonotonicClock(),
            rng=np.random.default_rng(9),
            audit_path=tmp_path / "audit.jsonl",
            on_outcome=outcomes.append,
        )
        b = Bench(tmp_path, broker.port, source, acme, acme_session, keys, outcomes)
        b.infra = infra  # type: ignore[attr-defined]

        def hear(message: Incoming) -> None:
            b.heard.append(open_event(message.payload, keys))

        for topic in (status_topic("site"), breach_topic("site"), answer_topic("site")):
            acme_session.on_message(topic, hear, qos=2)
        run = asyncio.create_task(source.run())
        async with running(agent_session, acme_session):
            assert await agent_session.wait_up(deadline_s=5) and await acme_session.wait_up(deadline_s=5)
            yield b
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_signed_target_is_followed_answered_and_audited(tmp_path: Path) -> None:
    """A target is in force, its issuer hears `bounded` with the time it will be met, and the log has a line for it."""
    async with bench(tmp_path) as b:
        b.source.report(image(MonotonicClock().now_s(), 90 * MW), NOTHING, ())
        event_id = b.say(load_target(60))
        await until(lambda: b.of(SignalAnswerData))
        (answer,) = b.of(SignalAnswerData)
        assert b.target_w() == 60 * MW and b.source.is_link_up and not b.source.is_silent
        assert (answer.message_id, answer.issuer) == (event_id, "acme")
        assert answer.answers[0].acceptance == "bounded" and answer.answers[0].met_at is not None
        await until(b.audit)
    (line,) = [x for x in b.audit() if x["event"] == "signal"]
    assert (line["acceptance"], line["applied_w"], line["message_id"]) == ("bounded", 60 * MW, event_id)
    assert b.heard[-1][0].correlationid == b.outcomes[0].correlation_id


async def test_what_a_signal_causes_carries_its_correlation_and_goes_on_with_its_trace(tmp_path: Path) -> None:
    """Answer and status of a target name its correlation id and belong to its trace, under parents of our own."""
    async with bench(tmp_path) as b:
        trace = Trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "vendor=1")
        cause = new_uuid(b.acme.rng)
        utc_s = MonotonicClock().wall_utc_s()
        _, raw = b.acme.encode(load_target(60), utc_s=utc_s, correlation_id=cause, trace=trace)
        b.send(load_target_topic("acme"), raw)
        await until(lambda: b.outcomes)
        b.source.report(image(MonotonicClock().now_s(), 50 * MW), NOTHING, ())
        await until(lambda: b.of(SignalAnswerData) and b.of(PowerStateStatusData))
        for event, _ in b.heard:
            assert event.correlationid == cause and event.tracestate == "vendor=1"
            assert event.traceparent.split("-")[1] == trace.parent.split("-")[1] and event.traceparent != trace.parent
        assert len({event.traceparent for event, _ in b.heard}) == len(b.heard)


async def test_ramp_limit_rows_and_revert(tmp_path: Path) -> None:
    """Rows of our extension reach the core as limits, and go when withdrawn."""
    async with bench(tmp_path) as b:
        row = {"kind": "ramp", "id": "x", "max": {"value": 3, "unit": "megawatt"}, "window_s": 15}
        b.say(SetRampLimitData.model_validate({"requests": [{"interval": {}, "limits": [row]}]}))
        await until(lambda: b.outcomes)
        (signal,) = b.source.active(MonotonicClock().now_s())
        assert [r.id for r in signal.limits] == ["acme/x"]
        b.say(SetRampLimitData.model_validate({"requests": [{"interval": {}, "limits": None}]}))
        await until(lambda: len(b.outcomes) == 2)
        assert b.source.active(MonotonicClock().now_s()) == ()


async def test_nothing_unverified_changes_or_answers(tmp_path: Path) -> None:
    """Garbage, a forged key, another's name, another's topic: limit unchanged, no answer, one line per kind."""
    async with bench(tmp_path) as b:
        b.say(load_target(60))
        await until(lambda: b.target_w() == 60 * MW and b.of(SignalAnswerData))
        answers = len(b.of(SignalAnswerData))
        forger, _ = sender(tmp_path / "forged", "acme", seed=8)
        _, forged = forger.encode(load_target(95), utc_s=MonotonicClock().wall_utc_s())
        _, good = b.acme.encode(load_target(95), utc_s=MonotonicClock().wall_utc_s())
        topic = load_target_topic("acme")
        for topic_, raw in (
            (topic, b"\xff\x00garbage"),
            (topic, b'{"specversion":"1.0.2"}'),
            (topic, b"x" * 60_000),
            (topic, forged),
            (topic, good.replace(b"isv/acme", b"isv/other")),
            (load_target_topic("infra-1"), good),
            (ramp_limit_topic("acme"), good),
        ):
            b.send(topic_, raw)
        await until(lambda: sum(b.source.refused_count.values()) == 7)
        assert b.target_w() == 60 * MW and len(b.of(SignalAnswerData)) == answers and len(b.outcomes) == 1
        assert b.source.refused_count == {
            RefusalReason.ENVELOPE: 4, RefusalReason.UNKNOWN_KEY: 1, RefusalReason.SOURCE: 2,
        }  # fmt: skip
    lines = [x["reason"] for x in b.audit() if x["event"] == "refused_unverified"]
    assert sorted(lines) == ["envelope", "source", "unknown_key"]


async def test_replay_is_refused_and_said(tmp_path: Path) -> None:
    """The same signed bytes again are a duplicate; older ones are out of order."""
    async with bench(tmp_path) as b:
        now = MonotonicClock().wall_utc_s()
        _, first = b.acme.encode(load_target(60), utc_s=now - 1)
        _, second = b.acme.encode(load_target(50), utc_s=now)
        for raw in (first, second, first, second, first):
            b.send(load_target_topic("acme"), raw)
        await until(lambda: len(b.outcomes) == 5 and len(b.of(SignalAnswerData)) == 2)
        assert b.outcomes[-1].reason is RefusalReason.DUPLICATE and b.target_w() == 50 * MW
        assert b.source.alarms(MonotonicClock().now_s()) == (RefusalReason.DUPLICATE,)
        assert b.source.alarms(MonotonicClock().now_s() + 60.0) == ()
        await asyncio.sleep(0.1)
        assert len(b.of(SignalAnswerData)) == 2, "who replays is nobody to answer"
    assert [x["event"] for x in b.audit()] == ["signal", "signal", "refused_replay"], "anyone can replay: one line"


async def test_an_enforcement_outcome_counts_once(tmp_path: Path) -> None:
    """Played again it is refused in a line, and not one line each time."""
    async with bench(tmp_path) as b:
        data = PowerBreachEnforcementData.model_validate(
            {
                "breach_id": "3f2b7c1e-9a4d-4c2b-8e5f-0123456789ab",
                "feed_tag": "main",
                "action": "applied",
                "code": "success",
                "results": [],
                "timestamp": utc_text(MonotonicClock().wall_utc_s()),
            }
        )
        _, raw = b.infra.encode(data, utc_s=MonotonicClock().wall_utc_s())  # type: ignore[attr-defined]
        for _ in range(5):
            b.send(enforcement_topic("infra-1"), raw)
        await until(lambda: b.source.refused_count.get(RefusalReason.DUPLICATE) == 4)
        topics = {f: qos for f, _, qos in b.source._session._handlers}
        assert (topics[enforcement_topic("infra-1")], topics[load_target_topic("acme")]) == (2, 1)
    assert [x["event"] for x in b.audit()] == ["enforcement", "refused_unverified"]


async def test_what_the_session_drops_for_its_size_is_refused_in_a_line(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.source._session._oversized[0](load_target_topic("acme"), 70_000)
        b.source._session._oversized[0]("rampart/v1/node/n/report", 70_000)
        assert b.source.refused_count == {RefusalReason.OVERSIZED: 1}
    assert [(x["reason"], x["where"]) for x in b.audit()] == [("oversized", load_target_topic("acme"))]


async def test_flood_keeps_the_newest_and_spares_others(tmp_path: Path) -> None:
    """Hundreds of messages at once: only a bucketful is looked at, the last one of all is followed."""
    async with bench(tmp_path) as b:
        began_s = MonotonicClock().now_s()
        for n in range(300):
            b.acme_session._events.append((load_target_topic("acme"), b"junk %d" % n, 1))
        b.say(load_target(55))
        await until(lambda: b.target_w() == 55 * MW)
        looked_at = BURST_MAX + WAITING_MAX + RATE_PER_S_MAX * (MonotonicClock().now_s() - began_s)
        assert b.source.refused_count[RefusalReason.ENVELOPE] <= looked_at
        assert b.source.refused_count[RefusalReason.FLOOD] >= 300 - looked_at
    lines = [x for x in b.audit() if x.get("reason") == "flood"]
    assert len(lines) == 1 and lines[0]["where"] == load_target_topic("acme")


async def test_status_breach_and_enforcement(tmp_path: Path) -> None:
    """Target set, ramp down, breach active, critical and resolved with one id; the enforcement is in the log."""
    async with bench(tmp_path) as b:
        now = MonotonicClock().now_s()
        b.source.report(image(now, 62 * MW), NOTHING, ())
        b.say(load_target(60))
        await until(lambda: b.outcomes)
        due = b.outcomes[0].met_at_s or now
        for t, megawatt in ((0, 62), (due - now + 1, 62), (due - now + 7, 62), (due - now + 8, 75)):
            b.source.report(image(now + t, megawatt * MW), NOTHING, ())
        for t in (20.0, 26.0):
            b.source.report(image(due + t, 59 * MW), NOTHING, ())
        await until(lambda: len(b.of(PowerBreachAlertData)) == 3)
        alerts = b.of(PowerBreachAlertData)
        assert [(a.status, a.severity) for a in alerts] == [
            ("active", "warning"), ("escalated", "critical"), ("resolved", "critical"),
        ]  # fmt: skip
        assert len({a.breach.breach_id for a in alerts}) == 1
        assert alerts[2].breach.resolved_at is not None and alerts[2].shed_hints is None
        events = [s.feeds["main"].event for s in b.of(PowerStateStatusData)]
        assert events[:3] == ["periodic", "target_set", "start_ramp_down"] and events[-1] == "end_ramp_down"
        statuses = b.of(PowerStateStatusData)
        assert [s.feeds["main"].compliant for s in statuses][-1] and not statuses[2].feeds["main"].compliant
        assert statuses[2].feeds["main"].targets[0].load_constraint.watts == 60 * MW
        data = PowerBreachEnforcementData(
            breach_id=alerts[0].breach.breach_id, feed_tag="main", action="applied", code="success", results=(),
            timestamp=utc_text(1.8e9),
        )  # fmt: skip
        _, raw = b.infra.encode(data, utc_s=MonotonicClock().wall_utc_s())  # type: ignore[attr-defined]
        b.send(enforcement_topic("infra-1"), raw)
        await until(lambda: any(x["event"] == "enforcement" for x in b.audit()))


async def test_heartbeat_without_events(tmp_path: Path) -> None:
    """With nothing to tell, a status goes out once per period."""
    async with bench(tmp_path) as b:
        now = MonotonicClock().now_s()
        for t in (0.0, 10.0, 29.0, 31.0, 40.0, 62.0):
            b.source.report(image(now + t, 50 * MW), NOTHING, ())
        await until(lambda: len(b.of(PowerStateStatusData)) == 3)
        assert all(s.feeds["main"].event == "periodic" for s in b.of(PowerStateStatusData))


async def test_command_line_sends_and_prints_the_answer(tmp_path: Path) -> None:
    """`rampart grid send` publishes signed messages and prints acceptance; a refusal is exit 1, nonsense is exit 2."""
    async with bench(tmp_path) as b:

        def run(*args: str) -> Any:
            common = ["--issuer", "acme", "--key", str(tmp_path / "acme.jwk"), "--broker", f"127.0.0.1:{b.port}"]
            agent = ["--agent", "site", "--agent-key", str(tmp_path / "agent.pub.jwk")]
            return CliRunner().invoke(grid_app, ["send", *args, *common, *agent])

        good = await asyncio.to_thread(run, "--load-megawatt", "60")
        assert good.exit_code == 0 and "accepted feeds=main applied=60 MW" in good.output
        assert b.target_w() == 60 * MW
        rows = await asyncio.to_thread(run, "--ramp-megawatt", "3", "--window-s", "15", "--for-s", "60")
        assert rows.exit_code == 0 and "accepted" in rows.output
        wrong = await asyncio.to_thread(run, "--load-megawatt", "50", "--feed", "other")
        assert wrong.exit_code == 1 and "refused" in wrong.output and "unknown_feed" in wrong.output
        gone = await asyncio.to_thread(run, "--withdraw", "load")
        assert gone.exit_code == 0 and b.target_w() is None
        for nonsense in (
            ["--load-megawatt", "50", "--withdraw", "load"],
            ["--load-megawatt", "50", "--ceiling-megawatt", "40"],
            ["--load-megawatt", "50", "--ramp-exempt"],
            ["--ceiling-megawatt", "40", "--best-effort"],
            ["--ramp-megawatt", "3"],
            ["--ramp-megawatt", "3", "--window-s", "15", "--direction", "sideways"],
            ["--for-s", "10"],
        ):
            bad = await asyncio.to_thread(run, *nonsense)
            assert isinstance(bad.exception, BadInput), (nonsense, bad.output)


async def test_watching_hears_all_an_agent_publishes_and_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    """Status, breach, answer and outlook arrive verified; the same messages under another key are refused by line."""
    async with bench(tmp_path) as b:
        _, other = sender(tmp_path / "other", "agent", role="dsx-flex-agent", seed=17)
        heard: list[str] = []
        refused: list[str] = []
        keys = KeyStore([IssuerSettings("site", (other,), False, False, False)])
        mqtt = b.acme_session.settings
        ends = [
            watch(mqtt, agent="site", keys=b.agent_keys, seconds=None, show=show_words(heard), refused=refused.append),
            watch(mqtt, agent="site", keys=keys, seconds=None, show=show_words(heard), refused=refused.append),
        ]
        tasks = [asyncio.create_task(end) for end in ends]
        now_s, outlook = MonotonicClock().now_s(), Outlook(((0.0, 60 * MW),), 50 * MW, 70 * MW, 8 * MW, 0, 0, 0, ())
        for k in range(100):  # until both have subscribed: what is said before is lost, as on any broker
            b.source.report(image(now_s + 40.0 * k, 75 * MW), NOTHING, (), outlook=lambda: outlook)
            await asyncio.sleep(0.05)
            if heard and refused:
                break
        b.say(load_target(60))
        await until(lambda: b.outcomes)
        for k in (5000.0, 5006.0):
            b.source.report(image(now_s + k, 75 * MW), NOTHING, ())
        for word in ("breach", "bounded"):
            await until(lambda word=word: any(line.startswith(word) for line in heard))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert {line.split()[0].rstrip(":") for line in heard} == {"feed", "outlook", "bounded", "breach"}
    assert refused and all("is not known" in line for line in refused)
    lone = CliRunner().invoke(grid_app, ["watch", "--agent-key", other])
    assert isinstance(lone.exception, BadInput)


def show_words(heard: list[str]) -> Show:
    return lambda event, data: heard.extend(words(data))
