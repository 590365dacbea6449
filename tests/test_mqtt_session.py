"""The self-mending MQTT session against the embedded broker: up, ping, restart, absent broker, bounded queues."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiomqtt
import pytest

from controller.errors import BadInput
from drivers.mqtt import EVENTS_MAX, PAYLOAD_BYTES_MAX, Incoming, Keep, _Client
from hil.broker import EmbeddedBroker, free_port
from tests.mqtt_kit import running, session, until

pytestmark = pytest.mark.wire


async def test_message_reaches_subscriber() -> None:
    """What one session publishes with QoS 1 arrives at another, once, on its topic."""
    async with EmbeddedBroker() as broker:
        a, b = session(broker.port, "a"), session(broker.port, "b")
        got: list[Incoming] = []
        b.on_message("t/+/x", got.append)
        async with running(a, b):
            assert await a.wait_up(deadline_s=5) and await b.wait_up(deadline_s=5)
            a.publish("t/1/x", b"hello", qos=1, keep=Keep.NEWEST)
            await until(lambda: got)
        assert [(m.topic, m.payload, m.is_retained) for m in got] == [("t/1/x", b"hello", False)]


async def test_absent_broker_then_there() -> None:
    """With no broker at start the session is down, says why, and comes up by itself when the broker appears."""
    port = free_port()
    a = session(port, "a")
    async with running(a):
        await until(lambda: "refused" in a.down_reason.lower())
        assert not a.is_up
        async with EmbeddedBroker(port=port):
            assert await a.wait_up(deadline_s=10)


async def test_restart_keeps_events_and_drops_commands() -> None:
    """While the broker is away a command is dropped and an event is kept; after its return only the event arrives."""
    port = free_port()
    broker = EmbeddedBroker(port=port)
    await broker.start()
    a, b = session(port, "a"), session(port, "b")
    got: list[Incoming] = []
    b.on_message("t/#", got.append)
    async with running(a, b):
        assert await a.wait_up(deadline_s=5) and await b.wait_up(deadline_s=5)
        await broker.stop()
        await until(lambda: not a.is_up and not b.is_up)
        await until(lambda: not a._has_session)
        a.publish("t/command", b"late", qos=1, keep=Keep.NEWEST)
        broker = EmbeddedBroker(port=port)
        await broker.start()
        assert await b.wait_up(deadline_s=10)
        a.publish("t/event", b"kept", qos=1, keep=Keep.ALL)
        await until(lambda: got)
        await broker.stop()
    assert [m.topic for m in got] == ["t/event"]
    assert a.counts.dropped_without_session == 1


async def test_unanswered_ping_is_a_lost_link() -> None:
    """A broker that takes connections and answers CONNECT and SUBSCRIBE, but forwards nothing, is not a link."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(1):
            kind = head[0] >> 4
            length = (await reader.readexactly(1))[0]
            body = await reader.readexactly(length)
            if kind == 1:
                writer.write(b"\x20\x02\x00\x00")
            elif kind == 8:
                writer.write(b"\x90\x03" + body[:2] + b"\x00")
            elif kind == 12:
                writer.write(b"\xd0\x00")
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    a = session(server.sockets[0].getsockname()[1], "a")
    async with running(a):
        await until(lambda: "ping unanswered" in a.down_reason)
        assert not a.is_up and a.counts.sessions == 0
    server.close()


async def test_silent_broker_leaks_no_sockets() -> None:
    """A listener that never answers CONNECT is tried again and again, and every attempt closes its socket."""
    attempts = closed = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts, closed
        attempts += 1
        await reader.read()  # ends when the client closes
        closed += 1
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    a = session(server.sockets[0].getsockname()[1], "a")
    make = a._new_client

    def impatient() -> aiomqtt.Client:
        client = make()
        client.timeout = 0.05
        return client

    a._new_client = impatient  # type: ignore[method-assign]
    async with running(a):
        await until(lambda: attempts >= 4)
        assert closed >= attempts - 1
    server.close()


async def test_oversized_is_dropped_and_counted() -> None:
    """A packet above the bound never reaches the handler, the next one does."""
    async with EmbeddedBroker() as broker:
        a, b = session(broker.port, "a"), session(broker.port, "b")
        got: list[Incoming] = []
        b.on_message("t", got.append)
        told: list[tuple[str, int]] = []
        b.on_oversized(lambda topic, size: told.append((topic, size)))
        async with running(a, b):
            assert await a.wait_up(deadline_s=5) and await b.wait_up(deadline_s=5)
            a._events.append(("t", b"x" * (PAYLOAD_BYTES_MAX + 1), 1))
            a.publish("t", b"small", qos=1, keep=Keep.ALL)
            await until(lambda: got)
        assert [m.payload for m in got] == [b"small"] and b.counts.oversized == 1
        assert told == [("t", PAYLOAD_BYTES_MAX + 1)]


async def test_event_queue_is_bounded() -> None:
    """Events beyond the bound push out the oldest, and each one lost is counted."""
    a = session(free_port(), "a")
    for n in range(EVENTS_MAX + 3):
        a.publish("t", str(n).encode(), qos=1, keep=Keep.ALL)
    assert len(a._events) == EVENTS_MAX and a._events[0][1] == b"3" and a.counts.overflowed_out == 3


async def test_port_in_use_is_one_clear_line() -> None:
    """A second broker on the same port is refused with the address and the reason."""
    async with EmbeddedBroker() as broker:
        with pytest.raises(BadInput, match=f"127.0.0.1:{broker.port}: the port is in use"):
            await EmbeddedBroker(port=broker.port).start()


async def test_missing_secret_files_are_bad_input(tmp_path: Path) -> None:
    """A password or certificate file that is not there is said before anything starts."""
    with pytest.raises(BadInput, match="password_file"):
        session(1, "a", username="u", password_file=str(tmp_path / "none"))
    with pytest.raises(BadInput, match="TLS files"):
        session(1, "a", ca_file=str(tmp_path / "none"))
    with pytest.raises(BadInput, match="belong together"):
        session(1, "a", cert_file=str(tmp_path / "none"))


class EatingClient:
    """A library that loses every cancellation of a publication, as `wait_for` of Python 3.11 can."""

    timeout = 0.0

    @property
    async def messages(self) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield None

    async def publish(self, topic: str, payload: bytes, *, qos: int) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_a_cancellation_that_the_library_eats_is_heeded_all_the_same() -> None:
    """Otherwise a stopping daemon, or a session that lost its broker, would wait for its sender for ever."""
    s = session(1, "a")
    serving = asyncio.create_task(s._serve(EatingClient()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    s.publish("t", b"x", qos=0, keep=Keep.NEWEST)
    for _ in range(5):
        await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait((serving,), timeout=5.0)
    assert serving.done() and serving.cancelled()


async def test_a_broker_that_dies_while_a_write_waits_is_no_traceback() -> None:
    """The socket is closed, and another has its number, before the loop came round to watch it: nothing is watched."""
    told: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    client = session(free_port(), "a")._new_client()
    paho = client._client
    paho._out_packet.append(None)  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    paho.on_socket_register_write(paho, None, ours)
    ours.close()
    await asyncio.sleep(0.01)
    other = socket.fromfd(theirs.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
    assert other.fileno() == number, "the next socket takes the number"
    paho.on_socket_register_write(paho, None, ours)
    await asyncio.sleep(0.01)
    assert not told and not loop.remove_writer(number)
    paho.on_socket_unregister_write(paho, None, ours)
    other.close()
    theirs.close()


async def test_a_write_that_fails_ends_the_session_and_another_begins() -> None:
    async with EmbeddedBroker() as broker:
        a = session(broker.port, "a")
        async with running(a):
            assert await a.wait_up(deadline_s=5)
            client = next(c for c in gc.get_objects() if isinstance(c, _Client) and c._client.is_connected())

            def fail() -> None:
                raise ConnectionResetError("gone")

            client._client.loop_write = fail  # type: ignore[assignment,method-assign]
            client._write(client._client)
            await until(lambda: a.counts.sessions == 2)
