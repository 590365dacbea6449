"""Plays an issuer against any flex agent and says which rules of the grid interface it keeps.

It sets, replaces, schedules and withdraws targets, sends what must be ignored, and judges what the agent publishes. A
message that must be ignored is followed by a marker that must not be: no rule rests on having waited long enough for
nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from controller.ports import Clock
from controller.settings import IssuerSettings, MqttSettings
from drivers.dsx_extension import SetRampLimitData, SignalAnswerData
from drivers.dsx_payloads import (
    FeedState,
    Interval,
    LoadTarget,
    Payload,
    PowerStateStatusData,
    PowerUnit,
    SetLoadTargetData,
    Strategy,
    utc_text,
)
from drivers.dsx_wire import (
    LOAD_TARGET_SET,
    POWER_STATE_STATUS,
    CloudEvent,
    Sender,
    Trace,
    answer_topic,
    decode_envelope,
    load_target_topic,
    next_traceparent,
    ramp_limit_topic,
    status_topic,
    verify_event,
)
from drivers.jws import KeyStore, Signer, WireRefused, new_uuid, write_key_pair
from drivers.mqtt import Incoming, Keep, MqttSession
from hil.conformance import RuleResult, Verdict

POLL_S = 0.02
SCHEDULE_AHEAD_S = 3600.0


class _Rule(Exception):
    """Ends the test of one rule with a verdict other than `holds`."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(detail)
        self.verdict = verdict


class AgentSuite:
    """Judges a flex agent. `folder` takes a throw-away key that the agent must not know."""

    def __init__(
        self,
        mqtt: MqttSettings,
        *,
        issuer: str,
        key_file: Path,
        agent: str,
        agent_key_file: Path,
        megawatt: float,
        wait_s: float,
        folder: Path,
        clock: Clock,
        rng: np.random.Generator,
    ) -> None:
        self._clock, self._rng, self._wait_s = clock, rng, wait_s
        self._issuer, self._watts = issuer, megawatt * 1e6
        self._sender = Sender("isv", issuer, Signer(key_file, rng=rng), rng)
        forger_key, _ = write_key_pair(folder, f"forger-{new_uuid(rng)[:8]}")
        forged = json.loads(forger_key.read_text()) | {"kid": self._sender.signer.key_id}
        forger_key.write_text(json.dumps(forged))
        self._forger = Sender("isv", issuer, Signer(forger_key, rng=rng), rng)
        forger_key.unlink()
        self._keys = KeyStore([IssuerSettings(agent, (str(agent_key_file),), False, False, False)])
        self._session = MqttSession(mqtt, client_id=f"conformance-{new_uuid(rng)[:8]}", clock=clock, rng=rng)
        self._session.on_message(status_topic(agent), self._on_status)
        self._session.on_message(answer_topic(agent), self._on_answer)
        self._statuses: list[tuple[CloudEvent, PowerStateStatusData]] = []
        self._answers: list[SignalAnswerData] = []
        self._faults: list[str] = []
        self.down_reason = ""

    async def run(self) -> list[RuleResult]:
        """Every rule in turn; the targets set on the way are withdrawn at the end."""
        run = asyncio.create_task(self._session.run())
        try:
            if not await self._session.wait_up(deadline_s=self._wait_s):
                self.down_reason = self._session.down_reason
                return []
            results = [await self._judge(name, rule) for name, rule in self._rules()]
            self._set(self._target(None))
            await self._session.wait_sent(deadline_s=self._wait_s)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        return results

    def _rules(self) -> list[tuple[str, Callable[[], object]]]:
        return [
            ("status on a new target lists it under its correlation id", self._rule_listed),
            ("what a target causes carries its correlation id and trace", self._rule_traced),
            ("published events are well-formed and signed with the agent's key", self._rule_well_formed),
            ("a status covers every feed with its metadata", self._rule_metadata),
            ("the latest target wins", self._rule_latest),
            ("a scheduled target is listed and not active", self._rule_scheduled),
            ("null withdraws the active target", self._rule_null),
            ("a target for one feed is listed on that feed alone", self._rule_feed),
            ("a target for a feed the agent does not have is ignored", self._rule_no_feed),
            ("best effort is carried into the status", self._rule_best_effort),
            ("unknown CloudEvents attributes are accepted", self._rule_extensions),
            ("a forged signature is ignored", self._rule_forged),
            ("an unsigned payload is ignored", self._rule_unsigned),
            ("a payload the schema refuses is ignored", self._rule_schema),
            ("bytes that are no JSON are survived", self._rule_garbage),
            ("a replayed message is ignored", self._rule_replay),
            ("extension: a ramp limit is answered", self._rule_ramp_limit),
        ]

    async def _judge(self, name: str, rule: Callable[[], object]) -> RuleResult:
        try:
            pending = rule()
            assert asyncio.iscoroutine(pending)
            detail = await pending
        except _Rule as ended:
            return RuleResult(name, ended.verdict, str(ended))
        return RuleResult(name, Verdict.HOLDS, str(detail or ""))

    # ------------------------------------------------------------------------------------------- rules

    async def _rule_listed(self) -> str:
        correlation_id = self._set(self._target(self._watts))
        feed = await self._listed(correlation_id)
        target = next(t for t in feed.targets if t.correlation_id == correlation_id)
        if abs(target.load_constraint.watts - self._watts) > 1.0:
            raise _Rule(Verdict.BROKEN, f"asked {self._watts:g} W, listed {target.load_constraint.watts:g} W")
        return f"event {feed.event}"

    async def _rule_traced(self) -> str:
        cause = new_uuid(self._rng)
        trace = Trace(next_traceparent(None, self._rng), "conformance=1")
        utc_s = self._clock.wall_utc_s()
        _, raw = self._sender.encode(self._target(self._watts * 0.995), utc_s=utc_s, correlation_id=cause, trace=trace)
        self._publish(load_target_topic(self._issuer), raw)
        await self._listed(cause)
        if not await self._until(lambda: any(e.correlationid == cause for e, _ in self._statuses)):
            raise _Rule(Verdict.BROKEN, "no status echoes the correlation id")
        event = next(e for e, _ in self._statuses if e.correlationid == cause)
        if event.traceparent.split("-")[1] != trace.parent.split("-")[1]:
            raise _Rule(Verdict.BROKEN, f"the status begins another trace: {event.traceparent}")
        if event.traceparent == trace.parent:
            raise _Rule(Verdict.BROKEN, "the parent id is ours: the status names no span of its own")
        return "" if event.tracestate == trace.state else "tracestate is dropped"

    async def _rule_well_formed(self) -> str:
        if self._faults:
            raise _Rule(Verdict.BROKEN, self._faults[0])
        if not self._statuses:
            raise _Rule(Verdict.UNTESTED, "no status came")
        return f"{len(self._statuses)} statuses"

    async def _rule_metadata(self) -> str:
        if not self._statuses:
            raise _Rule(Verdict.UNTESTED, "no status came")
        feeds = self._statuses[-1][1].feeds
        if not feeds:
            raise _Rule(Verdict.BROKEN, "a status without feeds")
        for name, feed in feeds.items():
            if feed.metadata.power_minimum.watts > feed.metadata.power_maximum.watts:
                raise _Rule(Verdict.BROKEN, f"{name}: minimum above maximum")
        return ", ".join(sorted(feeds))

    async def _rule_latest(self) -> str:
        first = self._set(self._target(self._watts))
        second = self._set(self._target(self._watts * 0.99))
        await self._listed(second)
        before = len(self._statuses) - 1
        # Both may come within one cycle of the agent: for that one status the newer has yet to begin.
        if not await self._until(lambda: not self._is_active(first, since=before)):
            raise _Rule(Verdict.BROKEN, "the older target is still active")
        if not await self._until(lambda: self._is_active(second, since=before)):
            raise _Rule(Verdict.BROKEN, "the newer target is not active")
        return ""

    async def _rule_scheduled(self) -> str:
        utc_s = self._clock.wall_utc_s() + SCHEDULE_AHEAD_S
        interval = Interval(start_time=utc_text(utc_s), end_time=utc_text(utc_s + 60))
        correlation_id = self._set(self._target(self._watts, interval))
        feed = await self._listed(correlation_id)
        if any(t.correlation_id == correlation_id and t.active for t in feed.targets):
            raise _Rule(Verdict.BROKEN, "active an hour before its start")
        self._set(self._target(None, interval))
        return ""

    async def _rule_null(self) -> str:
        correlation_id = self._set(self._target(self._watts))
        await self._listed(correlation_id)
        before = len(self._statuses)
        self._set(self._target(None))
        if not await self._until(lambda: not self._is_active(correlation_id, since=before)):
            raise _Rule(Verdict.BROKEN, "the target is still active")
        return ""

    async def _rule_feed(self) -> str:
        feeds = sorted(self._statuses[-1][1].feeds) if self._statuses else []
        if not feeds:
            raise _Rule(Verdict.UNTESTED, "no status came")
        constraint = PowerUnit(value=self._watts, unit="watt")
        target = LoadTarget(interval=Interval(), load_constraint=constraint, feed_tags=(feeds[0],))
        correlation_id = self._set(SetLoadTargetData(targets=(target,)))
        await self._listed(correlation_id)
        seen = [(name, t) for _, s in self._statuses for name, f in s.feeds.items() for t in f.targets]
        others = {name for name, t in seen if t.correlation_id == correlation_id} - {feeds[0]}
        if others:
            raise _Rule(Verdict.BROKEN, f"for {feeds[0]}, listed on {', '.join(sorted(others))} too")
        return f"{feeds[0]} of {len(feeds)}"

    async def _rule_no_feed(self) -> str:
        constraint = PowerUnit(value=self._watts * 0.96, unit="watt")
        target = LoadTarget(interval=Interval(), load_constraint=constraint, feed_tags=("no-such-feed",))
        raw, correlation_id = self._encode(self._sender, SetLoadTargetData(targets=(target,)))
        return await self._ignored(raw, correlation_id)

    async def _rule_best_effort(self) -> str:
        constraint = PowerUnit(value=self._watts, unit="watt")
        target = LoadTarget(interval=Interval(), load_constraint=constraint, strategy=Strategy(best_effort=True))
        correlation_id = self._set(SetLoadTargetData(targets=(target,)))
        feed = await self._listed(correlation_id)
        listed = next(t for t in feed.targets if t.correlation_id == correlation_id)
        if not listed.strategy.best_effort:
            raise _Rule(Verdict.BROKEN, "listed as a target without it")
        return ""

    async def _rule_extensions(self) -> str:
        raw, correlation_id = self._encode(self._sender, self._target(self._watts))
        more = json.loads(raw) | {"partitionkey": "x", "sequence": "7"}
        self._publish(load_target_topic(self._issuer), json.dumps(more).encode())
        await self._listed(correlation_id)
        return ""

    async def _rule_forged(self) -> str:
        raw, correlation_id = self._encode(self._forger, self._target(self._watts * 0.98))
        return await self._ignored(raw, correlation_id)

    async def _rule_unsigned(self) -> str:
        target = self._target(self._watts * 0.98)
        raw, correlation_id = self._encode(self._sender, target)
        plain = {"targets": [{"interval": {}, "load_constraint": {"value": self._watts * 0.98, "unit": "watt"}}]}
        return await self._ignored(json.dumps(json.loads(raw) | {"data": plain}).encode(), correlation_id)

    async def _rule_schema(self) -> str:
        constraint = {"value": self._watts, "unit": "watt"}
        bad: list[object] = [
            {"targets": []},
            {"targets": [{"load_constraint": constraint}]},
            {"targets": [{"interval": {}}]},
            {"targets": [{"interval": {}, "load_constraint": {"value": -1, "unit": "watt"}}]},
            {"targets": [{"interval": {}, "load_constraint": {"value": 1, "unit": "horsepower"}}]},
            {"targets": [{"interval": {"start_time": "soon"}, "load_constraint": constraint}]},
            {"targets": [{"interval": {}, "load_constraint": constraint, "feed_tags": "main"}]},
            [],
        ]
        for payload in bad:
            raw, correlation_id = self._encode(self._sender, self._target(self._watts))
            body = json.dumps(payload).encode()
            utc_s = self._clock.wall_utc_s()
            data = self._sender.signer.sign(body, content_type=LOAD_TARGET_SET, utc_s=utc_s)
            await self._ignored(json.dumps(json.loads(raw) | {"data": data}).encode(), correlation_id)
        return f"{len(bad)} payloads"

    async def _rule_garbage(self) -> str:
        for raw in (b"", b"\x00\xff\xfe", b"{" * 2000, b"null", b'"' + b"x" * 60_000 + b'"'):
            self._publish(load_target_topic(self._issuer), raw)
        await self._listed(self._set(self._target(self._watts)))
        return ""

    async def _rule_replay(self) -> str:
        raw, correlation_id = self._encode(self._sender, self._target(self._watts * 0.97))
        self._publish(load_target_topic(self._issuer), raw)
        await self._listed(correlation_id)
        marker = self._set(self._target(self._watts))
        await self._listed(marker)
        return await self._ignored(raw, correlation_id)

    async def _rule_ramp_limit(self) -> str:
        row = {"kind": "ramp", "id": "c", "max": {"value": self._watts, "unit": "watt"}, "window_s": 60.0}
        data = SetRampLimitData.model_validate({"requests": [{"interval": {}, "limits": [row]}]})
        event_id, raw = self._sender.encode(data, utc_s=self._clock.wall_utc_s(), correlation_id=new_uuid(self._rng))
        self._publish(ramp_limit_topic(self._issuer), raw)
        if not await self._until(lambda: any(a.message_id == event_id for a in self._answers)):
            raise _Rule(Verdict.ABSENT, "no answer: the extension is not there, or the answers are not readable")
        answer = next(a for a in self._answers if a.message_id == event_id)
        withdraw = SetRampLimitData.model_validate({"requests": [{"interval": {}, "limits": None}]})
        _, raw = self._sender.encode(withdraw, utc_s=self._clock.wall_utc_s())
        self._publish(ramp_limit_topic(self._issuer), raw)
        return answer.answers[0].acceptance

    # ------------------------------------------------------------------------------------------- words

    def _target(self, watts: float | None, interval: Interval | None = None) -> SetLoadTargetData:
        constraint = None if watts is None else PowerUnit(value=watts, unit="watt")
        return SetLoadTargetData(targets=(LoadTarget(interval=interval or Interval(), load_constraint=constraint),))

    def _encode(self, sender: Sender, data: Payload) -> tuple[bytes, str]:
        correlation_id = new_uuid(self._rng)
        _, raw = sender.encode(data, utc_s=self._clock.wall_utc_s(), correlation_id=correlation_id)
        return raw, correlation_id

    def _set(self, data: SetLoadTargetData) -> str:
        raw, correlation_id = self._encode(self._sender, data)
        self._publish(load_target_topic(self._issuer), raw)
        return correlation_id

    def _publish(self, topic: str, raw: bytes) -> None:
        self._session.publish(topic, raw, qos=1, keep=Keep.ALL)

    async def _ignored(self, raw: bytes, correlation_id: str) -> str:
        """Send what must be ignored and then a marker; once the marker is listed the other must not be."""
        before = len(self._statuses)
        self._publish(load_target_topic(self._issuer), raw)
        await self._listed(self._set(self._target(self._watts)))
        seen = [f for _, s in self._statuses[before:] for f in s.feeds.values()]
        if any(t.correlation_id == correlation_id and t.active for f in seen for t in f.targets):
            raise _Rule(Verdict.BROKEN, "it was followed")
        return ""

    async def _listed(self, correlation_id: str) -> FeedState:
        """The feed that lists a target, once a status does."""

        def find() -> FeedState | None:
            feeds = [f for _, s in self._statuses for f in s.feeds.values()]
            return next((f for f in feeds if any(t.correlation_id == correlation_id for t in f.targets)), None)

        if not await self._until(lambda: find() is not None):
            raise _Rule(Verdict.BROKEN, f"no status listed the target within {self._wait_s:g} s")
        found = find()
        assert found is not None
        return found

    def _is_active(self, correlation_id: str, *, since: int) -> bool:
        """Whether the newest status after `since` has the target active; True while there is none."""
        if len(self._statuses) <= since:
            return True
        feeds = self._statuses[-1][1].feeds.values()
        return any(t.correlation_id == correlation_id and t.active for f in feeds for t in f.targets)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        end_s = self._clock.now_s() + self._wait_s
        while not condition():
            if self._clock.now_s() >= end_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _on_status(self, message: Incoming) -> None:
        try:
            event = decode_envelope(message.payload, expected_type=POWER_STATE_STATUS)
            self._statuses.append((event, verify_event(event, self._keys, PowerStateStatusData)[1]))
        except WireRefused as refused:
            self._faults.append(f"{message.topic}: {refused.detail}")

    def _on_answer(self, message: Incoming) -> None:
        try:
            event = decode_envelope(message.payload, expected_type="grid.signal.answer.v1")
            self._answers.append(verify_event(event, self._keys, SignalAnswerData)[1])
        except WireRefused as refused:
            self._faults.append(f"{message.topic}: {refused.detail}")
