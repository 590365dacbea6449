"""One MQTT session that mends itself: reconnect with back-off, a loop-back ping, bounded queues, bounded packets.

Uses MQTT 3.1.1 features only. The link counts as up while a broker session exists and our own ping comes back through
it: a frozen broker and a half-dead connection look the same as a lost one. Nothing here blocks or waits for the outside
but `run`; a payload is never interpreted here. A command that found no session is dropped, never sent late.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import cast

import aiomqtt
import numpy as np
import paho.mqtt.client as paho
import structlog

from controller.errors import BadInput
from controller.ports import Clock
from controller.settings import MqttSettings
from drivers.mqtt_files import read_password, tls_context
from drivers.tls_files import TlsFiles

PAYLOAD_BYTES_MAX = 65_536  # larger packets are dropped and counted; no message of ours is near it
CONNECT_S_MAX = 5.0  # for the broker's answer to CONNECT and to SUBSCRIBE
CLOSE_S_MAX = 0.5
CANCEL_AGAIN_S = 1.0
BACKOFF_S_FIRST = 0.1
BACKOFF_S_MAX = 5.0
STEADY_S = 5.0  # a session that was lost sooner was no success: two of one name would throw each other out for ever
SHORT_TOLD = 3  # sessions in a row that did not last: not a broker that restarts
PING_KEEPALIVES_MAX = 3  # a ping unanswered for so many keepalives means the link is lost
INCOMING_MAX = 4096  # messages waiting for the loop; when full the oldest goes
EVENTS_MAX = 256  # events waiting for the broker; when full the oldest goes
IN_FLIGHT_MAX = 128  # publications waiting for the broker's acknowledgement
QOS_REFUSED = 128  # granted QoS of a refused subscription

NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # with Nagle on, QoS 1 stalls for 40 ms
KEEP_ALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

log = structlog.get_logger("mqtt")
# The library speaks of every packet; changes of state are logged here, in our own words.
_wire_log = logging.getLogger("rampart.mqtt.wire")
_wire_log.propagate = False
_wire_log.addHandler(logging.NullHandler())

Handler = Callable[["Incoming"], None]


@unique
class Keep(StrEnum):
    """What becomes of a message that cannot be sent at once."""

    NEWEST = "newest"  # one per topic, the newest; dropped while there is no session: a late command is a wrong one
    ALL = "all"  # in order, kept over a reconnect; beyond EVENTS_MAX the oldest is dropped and counted


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as it came: never larger than PAYLOAD_BYTES_MAX, stamped on arrival in our loop."""

    topic: str
    payload: bytes
    is_retained: bool
    t_mono_s: float


@dataclass(slots=True)
class MqttCounts:
    """What was dropped, and how often the session was made; for metrics."""

    sessions: int = 0
    short_sessions: int = 0  # that came up and were lost before STEADY_S
    oversized: int = 0
    overflowed_in: int = 0
    overflowed_out: int = 0
    dropped_without_session: int = 0


class _SessionLost(Exception):
    """Ends one session from inside it; the text is the reason that is logged."""


class _DropOldest(asyncio.Queue[aiomqtt.Message]):
    """A full queue loses its oldest message: under a flood the newest is what counts."""

    def __init__(self, counts: MqttCounts) -> None:
        super().__init__(maxsize=INCOMING_MAX)
        self._counts = counts

    def put_nowait(self, item: aiomqtt.Message) -> None:
        if self.full():
            self.get_nowait()
            self._counts.overflowed_in += 1
        super().put_nowait(item)


class _Client(aiomqtt.Client):
    """The library's client, that watches no socket which was closed before the loop came round to it.

    The library hands the loop a bare descriptor a moment later. Where a broker died in between, that was a traceback of
    the loop's; and a descriptor that meanwhile belonged to another socket would have been watched in its place.
    """

    def _on_socket_register_write(self, client: paho.Client, userdata: object, sock: paho.SocketLike) -> None:
        self._loop.call_soon_threadsafe(self._watch_write, client, sock)  # it may come from the thread that connects

    def _watch_write(self, client: paho.Client, sock: paho.SocketLike) -> None:
        if sock.fileno() >= 0 and client.want_write():
            self._loop.add_writer(sock.fileno(), self._write, client)

    def _on_socket_unregister_write(self, client: paho.Client, userdata: object, sock: paho.SocketLike) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())

    def _write(self, client: paho.Client) -> None:
        try:
            client.loop_write()
        except (OSError, ValueError) as error:  # the connection is gone; whoever waits for it is told
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def hear_out(self) -> None:
        """Take what the library left untaken: thrown out while it subscribed, it is a traceback at some moment."""
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()


class MqttSession:
    """A connection to one broker that keeps itself alive while `run` runs.

    `on_message` before `run`. All methods belong to one event loop. `client_id` must be unique on the broker: two
    sessions of one name throw each other out.
    """

    def __init__(self, settings: MqttSettings, *, client_id: str, clock: Clock, rng: np.random.Generator) -> None:
        self.settings = settings
        self.client_id = client_id
        self.counts = MqttCounts()
        self.is_up = False
        self.down_reason = "not connected yet"
        self._clock = clock
        self._rng = rng
        self._handlers: list[tuple[str, Handler, int]] = []
        self._oversized: list[Callable[[str, int], None]] = []
        self._newest: dict[str, tuple[bytes, int]] = {}
        self._events: deque[tuple[str, bytes, int]] = deque()
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._sent = asyncio.Event()  # no event waits, and none is on its way
        self._sent.set()
        self._unacked: dict[int, tuple[str, bytes, int]] = {}  # events on their way, in order
        self._event_number = 0
        self._has_session = False
        self._said_down = False
        self._short_in_a_row = 0
        self._pong_s = 0.0
        self._ping_topic = f"rampart/v1/ping/{client_id}"
        files = (settings.ca_file, settings.cert_file, settings.key_file)
        self._tls = TlsFiles(files, lambda: tls_context(settings))
        read_password(settings)  # a wrong path is the person's to mend: said before anything starts

    def on_message(self, topic_filter: str, handler: Handler, *, qos: int = 1) -> None:
        """Subscribe `handler` (synchronous, quick, never raises on bad bytes) to a topic filter."""
        self._handlers.append((topic_filter, handler, qos))

    def on_oversized(self, hear: Callable[[str, int], None]) -> None:
        """Tell of messages dropped for their size: topic and bytes."""
        self._oversized.append(hear)

    def publish(self, topic: str, payload: bytes, *, qos: int, keep: Keep) -> None:
        """Queue a message; returns at once. Oversized is a programming error: our own messages are bounded."""
        assert len(payload) <= PAYLOAD_BYTES_MAX, f"{topic}: {len(payload)} bytes"
        if keep is Keep.NEWEST:
            if not self._has_session:
                self.counts.dropped_without_session += 1
                return
            self.counts.overflowed_out += topic in self._newest
            self._newest[topic] = (payload, qos)
        else:
            if len(self._events) >= EVENTS_MAX:
                self._events.popleft()
                self.counts.overflowed_out += 1
            self._events.append((topic, payload, qos))
            self._sent.clear()
        self._wake.set()

    async def wait_up(self, *, deadline_s: float) -> bool:
        """True as soon as the link is up, False at the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    async def wait_sent(self, *, deadline_s: float) -> bool:
        """True once the broker has acknowledged every event queued so far, False at the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._sent.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Keep a session until cancelled."""
        keeper = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait((keeper,))
            keeper.result()
        finally:
            while not keeper.done():  # a cancellation may be eaten (`_heed_cancellation`): then once more
                keeper.cancel()
                await asyncio.wait((keeper,), timeout=CANCEL_AGAIN_S)
            self._set_down("stopped")

    async def _keep(self) -> None:
        attempt = 0
        while True:
            began_s = self._clock.now_s()
            was_up_before = self.counts.sessions
            reason = await self._one_session()
            self._set_down(reason)
            came_up, is_steady = self.counts.sessions > was_up_before, self._clock.now_s() - began_s >= STEADY_S
            attempt = 0 if came_up and is_steady else attempt + 1
            if came_up:
                self._count_short(is_steady=is_steady)
            await self._back_off(attempt)

    def _count_short(self, *, is_steady: bool) -> None:
        """Say once what sessions that end as soon as they are up most likely mean."""
        if is_steady:
            self._short_in_a_row = 0
            return
        self.counts.short_sessions += 1
        self._short_in_a_row += 1
        if self._short_in_a_row == SHORT_TOLD:
            log.error(
                "mqtt sessions end as soon as they are up",
                client=self.client_id,
                sessions=SHORT_TOLD,
                reason=self.down_reason,
                do="look for another process with this client id (two agents of one node_id throw each other out);"
                " else at the broker's log",
            )

    async def _back_off(self, attempt: int) -> None:
        """Wait between half of and the whole of a doubling, bounded delay, so that many nodes do not return at once."""
        ceiling_s = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2.0 ** min(attempt, 10))
        delay_s = ceiling_s * float(self._rng.uniform(0.5, 1.0))
        await self._clock.sleep_until_ns(self._clock.now_ns() + round(delay_s * 1e9))

    async def _one_session(self) -> str:
        """Connect, serve until the link is lost, close. Returns why."""
        try:
            client = self._new_client()
        except BadInput as bad:  # a secret or certificate that was there at the start: it is being exchanged
            return str(bad)
        reason = "closed"
        try:
            await client.__aenter__()
            await self._subscribe(client)
            await self._serve(client)
        except* (aiomqtt.MqttError, _SessionLost, OSError, UnicodeError) as lost:  # the last: a host that is no name
            reason = _first_reason(lost)
        finally:
            self._has_session = False
            self._newest.clear()
            self._events.extendleft(reversed(self._unacked.values()))
            self._unacked.clear()
            client.timeout = CLOSE_S_MAX
            with suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
            client.hear_out()
        return reason

    def _new_client(self) -> _Client:
        settings = self.settings
        client = _Client(
            settings.host,
            settings.port,
            username=settings.username,
            password=read_password(settings),
            identifier=self.client_id,
            clean_session=True,  # the broker keeps nothing for us: a queued command would arrive late
            keepalive=settings.keepalive_s,
            timeout=CONNECT_S_MAX,
            tls_context=self._tls.context(),
            socket_options=(NO_DELAY, KEEP_ALIVE),
            max_inflight_messages=IN_FLIGHT_MAX,
            queue_type=cast("type[asyncio.Queue[aiomqtt.Message]]", lambda maxsize: _DropOldest(self.counts)),
            logger=_wire_log,
        )
        client.pending_calls_threshold = IN_FLIGHT_MAX
        return client

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        filters = [(f, qos) for f, _, qos in self._handlers] + [(self._ping_topic, 0)]
        for topic_filter, qos in filters:
            granted = await client.subscribe(topic_filter, qos)
            if any((code if isinstance(code, int) else code.value) >= QOS_REFUSED for code in granted):
                raise _SessionLost(f"the broker refuses the subscription to {topic_filter}")

    async def _serve(self, client: aiomqtt.Client) -> None:
        self._has_session = True
        self._pong_s = self._clock.now_s()
        self._wake.set()  # events may be waiting from before
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(client))
            group.create_task(self._ping(client))
            group.create_task(self._send(client, group))

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            _heed_cancellation()
            topic, payload = message.topic.value, message.payload
            if not isinstance(payload, bytes | bytearray):
                continue
            if len(payload) > PAYLOAD_BYTES_MAX:
                self.counts.oversized += 1
                for hear in self._oversized:
                    hear(topic, len(payload))
                continue
            if topic == self._ping_topic:
                self._set_up()
                continue
            incoming = Incoming(topic, bytes(payload), message.retain, self._clock.now_s())
            for topic_filter, handler, _ in self._handlers:
                if message.topic.matches(topic_filter):
                    handler(incoming)

    async def _ping(self, client: aiomqtt.Client) -> None:
        """Publish to ourselves through the broker, and end the session when that stays unanswered too long."""
        period_ns = round(self.settings.keepalive_s * 1e9)
        while True:
            await client.publish(self._ping_topic, b"ping", qos=0)
            _heed_cancellation()
            await self._clock.sleep_until_ns(self._clock.now_ns() + period_ns)
            silent_s = self._clock.now_s() - self._pong_s
            if silent_s >= PING_KEEPALIVES_MAX * self.settings.keepalive_s:
                raise _SessionLost(f"own ping unanswered for {silent_s:.1f} s")

    async def _send(self, client: aiomqtt.Client, group: asyncio.TaskGroup) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events or self._newest:
                await slots.acquire()  # before a message is taken out: a session that ends here loses none
                number = None
                if self._events:
                    number = self._event_number = self._event_number + 1
                    item = self._unacked[number] = self._events.popleft()
                elif self._newest:
                    topic = next(iter(self._newest))
                    item = (topic, *self._newest.pop(topic))
                else:
                    slots.release()
                    break
                delivery = self._deliver(client, slots, item, number)
                if item[2] == 0:
                    await delivery
                    _heed_cancellation()
                else:
                    group.create_task(delivery)

    async def _deliver(
        self, client: aiomqtt.Client, slots: asyncio.Semaphore, item: tuple[str, bytes, int], number: int | None
    ) -> None:
        """Publish; an event (`number`) that is not acknowledged counts as on its way until the session ends."""
        topic, payload, qos = item
        try:
            await client.publish(topic, payload, qos=qos)
        finally:
            slots.release()
        if number is not None:
            del self._unacked[number]
            if not self._events and not self._unacked:
                self._sent.set()

    def _set_up(self) -> None:
        self._pong_s = self._clock.now_s()
        if not self.is_up:
            self.is_up = True
            self._said_down = False
            self.counts.sessions += 1
            self._up.set()
            log.info("mqtt link up", client=self.client_id, broker=f"{self.settings.host}:{self.settings.port}")

    def _set_down(self, reason: str) -> None:
        self.is_up = False
        self._up.clear()
        self.down_reason = reason
        if not self._said_down and reason != "stopped":
            self._said_down = True
            broker = f"{self.settings.host}:{self.settings.port}"
            log.warning("mqtt link lost", client=self.client_id, broker=broker, reason=reason)


def _heed_cancellation() -> None:
    """End a task of a session whose cancellation was eaten.

    The library waits with `asyncio.wait_for`, which before Python 3.12 loses one that comes together with the result.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _first_reason(group: BaseExceptionGroup[BaseException]) -> str:
    """The first plain message inside a nested group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
