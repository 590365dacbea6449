"""Plays an agent before any issuer: listens, and judges by the rules of the grid interface what arrives."""

from __future__ import annotations

import asyncio

import numpy as np

from controller.ports import Clock
from controller.settings import IssuerSettings, MqttSettings
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_payloads import (
    Interval,
    Payload,
    SetLoadTargetData,
    utc_s_of,
)
from drivers.dsx_wire import (
    LOAD_TARGET_SET,
    RAMP_LIMIT_SET,
    decode_envelope,
    load_target_topic,
    ramp_limit_topic,
    verify_event,
)
from drivers.jws import KeyStore, WireRefused, new_uuid
from drivers.mqtt import Incoming, MqttSession
from hil.conformance import RuleResult, Verdict


class IssuerSuite:
    """Judges an issuer by what it publishes while we listen."""

    def __init__(
        self, mqtt: MqttSettings, *, issuer: str, key_files: tuple[str, ...], clock: Clock, rng: np.random.Generator
    ) -> None:
        self._keys = KeyStore([IssuerSettings(issuer, key_files, True, True, True)])
        self._clock = clock
        self._issuer = issuer
        self._session = MqttSession(mqtt, client_id=f"conformance-{new_uuid(rng)[:8]}", clock=clock, rng=rng)
        self._session.on_message(load_target_topic(issuer), self._on_target)
        self._session.on_message(ramp_limit_topic(issuer), self._on_ramp)
        self._count = 0
        self._broken: dict[str, str] = {}
        self._ids: set[str] = set()
        self._untimed = 0
        self.down_reason = ""

    RULES = (
        "events are well-formed CloudEvents on their topic",
        "data is signed with the issuer's key",
        "the signed payload is what the schema asks",
        "source and topic name the issuer",
        "event ids are unique",
        "messages are not retained",
        "an interval ends after it starts",
    )

    async def run(self, *, seconds: float, wait_s: float) -> list[RuleResult]:
        """Listen for so long, then judge."""
        run = asyncio.create_task(self._session.run())
        try:
            if not await self._session.wait_up(deadline_s=wait_s):
                self.down_reason = self._session.down_reason
                return []
            await self._clock.sleep_until_ns(self._clock.now_ns() + round(seconds * 1e9))
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        return self.results()

    def results(self) -> list[RuleResult]:
        held = Verdict.HOLDS if self._count else Verdict.UNTESTED
        seen = f"{self._count} messages"
        results = [
            RuleResult(rule, Verdict.BROKEN, self._broken[rule])
            if rule in self._broken
            else RuleResult(rule, held, seen)
            for rule in self.RULES
        ]
        timed = Verdict.UNTESTED if not self._count else Verdict.ABSENT if self._untimed else Verdict.HOLDS
        detail = f"{self._untimed} of {self._count} without: they may only tighten"
        return [*results, RuleResult("extension: iat and jti are in the protected header", timed, detail)]

    def _on_target(self, message: Incoming) -> None:
        data = self._open(message, LOAD_TARGET_SET, SetLoadTargetData)
        if isinstance(data, SetLoadTargetData):
            self._check_intervals([t.interval for t in data.targets])

    def _on_ramp(self, message: Incoming) -> None:
        data = self._open(message, RAMP_LIMIT_SET, SetRampLimitData)
        if isinstance(data, SetRampLimitData):
            self._check_intervals([r.interval for r in data.requests])

    def _open(self, message: Incoming, event_type: str, model: type[Payload]) -> Payload | None:
        self._count += 1
        if message.is_retained:
            self._break(5, message.topic)
        try:
            event = decode_envelope(message.payload, expected_type=event_type)
        except WireRefused as refused:
            self._break(0, refused.detail)
            return None
        if event.source != f"//grid/v1/isv/{self._issuer}":
            self._break(3, event.source)
        if event.id in self._ids:
            self._break(4, event.id)
        self._ids.add(event.id)
        try:
            signed, data = verify_event(event, self._keys, model)
        except WireRefused as refused:
            self._break({"schema": 2, "source": 3}.get(refused.reason.value, 1), refused.detail)
            return None
        self._untimed += signed.iat_utc_s is None or signed.jti is None
        return data

    def _check_intervals(self, intervals: list[Interval]) -> None:
        for interval in intervals:
            start, end = interval.start_time, interval.end_time
            if start is not None and end is not None and utc_s_of(end) <= utc_s_of(start):
                self._break(6, f"{start} to {end}")

    def _break(self, index: int, detail: str) -> None:
        self._broken.setdefault(self.RULES[index], detail)
