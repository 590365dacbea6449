"""An issuer's or a listener's end of the grid link, for the length of one command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np

from controller.cli.broker_options import open_event
from controller.clock import MonotonicClock
from controller.errors import CheckFailed
from controller.settings import MqttSettings
from controller.types import frozen
from drivers.dsx_extension import SignalAnswerData
from drivers.dsx_payloads import Payload, SetLoadTargetData
from drivers.dsx_wire import (
    CloudEvent,
    Sender,
    answer_topic,
    breach_topic,
    flexibility_topic,
    load_target_topic,
    ramp_limit_topic,
    status_topic,
)
from drivers.jws import KeyStore, Signer, WireRefused, new_uuid
from drivers.mqtt import Incoming, Keep, MqttSession

EVERY_AGENT = "+"

Show = Callable[[CloudEvent, Payload], None]


@frozen
class Recipient:
    """Whose answer is awaited, and the keys it is verified with; without an agent nothing is awaited."""

    agent: str | None
    keys: KeyStore | None
    wait_s: float


async def send(
    data: Payload, mqtt: MqttSettings, *, issuer: str, key_file: Path, to: Recipient
) -> SignalAnswerData | None:
    """Publish, and wait for the answer to exactly this message where an agent is named. Raises CheckFailed."""
    clock, rng = MonotonicClock(), np.random.default_rng()
    sender = Sender("isv", issuer, Signer(key_file, rng=rng), rng)
    session = MqttSession(mqtt, client_id=f"rampart-send-{new_uuid(rng)[:8]}", clock=clock, rng=rng)
    answers: asyncio.Queue[SignalAnswerData] = asyncio.Queue()

    def take(message: Incoming) -> None:
        try:
            _, answer = open_event(message.payload, to.keys)
        except WireRefused:
            return
        if isinstance(answer, SignalAnswerData) and answer.message_id == event_id:
            answers.put_nowait(answer)

    if to.agent is not None:
        session.on_message(answer_topic(to.agent), take)
    run = asyncio.create_task(session.run())
    try:
        if not await session.wait_up(deadline_s=to.wait_s):
            raise CheckFailed(
                f"{mqtt.host}:{mqtt.port}: no broker session within {to.wait_s:g} s: {session.down_reason}"
            )
        event_id, payload = sender.encode(data, utc_s=clock.wall_utc_s(), correlation_id=new_uuid(rng))
        topic = load_target_topic(issuer) if isinstance(data, SetLoadTargetData) else ramp_limit_topic(issuer)
        session.publish(topic, payload, qos=1, keep=Keep.ALL)
        if to.agent is None:
            if not await session.wait_sent(deadline_s=to.wait_s):
                raise CheckFailed(f"{mqtt.host}:{mqtt.port}: the broker took nothing within {to.wait_s:g} s")
            return None
        async with asyncio.timeout(to.wait_s):
            return await answers.get()
    except TimeoutError:
        raise CheckFailed(
            f"no answer of {to.agent} within {to.wait_s:g} s: is it running, does it know issuer {issuer} and its key, "
            "may it answer (grid.signing_key_file)?"
        ) from None
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def watch(
    mqtt: MqttSettings,
    *,
    agent: str | None,
    keys: KeyStore | None,
    seconds: float | None,
    show: Show,
    refused: Callable[[str], None],
) -> None:
    """Hand every event of an agent, or of all, to `show` until the time is over. CheckFailed if there was no broker."""
    rng = np.random.default_rng()
    session = MqttSession(mqtt, client_id=f"rampart-watch-{new_uuid(rng)[:8]}", clock=MonotonicClock(), rng=rng)

    def take(message: Incoming) -> None:
        try:
            event, data = open_event(message.payload, keys)
        except WireRefused as why:
            refused(f"{message.topic}: refused: {why.detail}")
            return
        show(event, data)

    for topic in (status_topic, breach_topic, answer_topic, flexibility_topic):
        session.on_message(topic(agent or EVERY_AGENT), take)
    try:
        async with asyncio.timeout(seconds):
            await session.run()
    except TimeoutError:
        if session.counts.sessions == 0:
            raise CheckFailed(f"{mqtt.host}:{mqtt.port}: no broker session: {session.down_reason}") from None
