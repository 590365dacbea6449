"""Secrets that change under a running session, and a rival of the same name: the session mends itself, at leisure."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.errors import BadInput
from drivers import mqtt
from drivers.mqtt import Keep, MqttSession
from hil.broker import EmbeddedBroker, free_port
from tests.mqtt_kit import running, session, until
from tests.test_kubernetes_jobs import certificate
from tests.test_mqtt_mosquitto import MOSQUITTO, mosquitto

pytestmark = pytest.mark.wire


def write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


async def test_a_password_file_away_for_a_moment_is_a_reason_and_no_end(tmp_path: Path) -> None:
    """A secret is exchanged while the broker restarts: no session for now, one as soon as the file is back."""
    secret, port = tmp_path / "password", free_port()
    write(secret, "quiet\n")
    a = session(port, "a", username="a", password_file=str(secret))
    async with running(a):
        async with EmbeddedBroker(port=port):
            assert await a.wait_up(deadline_s=5)
            write(secret, None)
        await until(lambda: "password_file" in a.down_reason)
        async with EmbeddedBroker(port=port):
            write(secret, "new\n")
            assert await a.wait_up(deadline_s=10)


async def test_certificates_are_read_anew_for_each_session(tmp_path: Path) -> None:
    """A certificate is renewed on disk: the next session uses it, and one half written is waited for."""
    cert, key = certificate(tmp_path, "client")
    a = session(free_port(), "a", ca_file=str(cert), cert_file=str(cert), key_file=str(key))
    first = a._new_client()._client._ssl_context
    cert.write_text("half")
    with pytest.raises(BadInput):
        a._new_client()
    async with running(a):
        await until(lambda: "TLS files" in a.down_reason)
        certificate(tmp_path, "client")
        await until(lambda: "TLS files" not in a.down_reason)
    assert a._new_client()._client._ssl_context is not first


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_two_sessions_of_one_name_do_not_storm_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each throws the other out. A session that does not last is no success: the waits between tries only grow."""
    waits: dict[MqttSession, list[int]] = {}

    async def wait(self: MqttSession, attempt: int) -> None:
        waits[self].append(attempt)
        await asyncio.sleep(0.05)

    monkeypatch.setattr(MqttSession, "_back_off", wait)
    monkeypatch.setattr(mqtt, "STEADY_S", 60.0)  # longer than any of these sessions, however slow the machine
    async with mosquitto(tmp_path, "allow_anonymous true") as broker:
        a, b = session(broker.port, "same"), session(broker.port, "same")
        waits |= {a: [], b: []}
        async with running(a, b):
            await until(lambda: a.counts.sessions + b.counts.sessions >= 4 and len(waits[a]) + len(waits[b]) >= 6)
    for attempts in waits.values():
        assert attempts == list(range(1, len(attempts) + 1))


async def test_events_in_flight_keep_their_order_over_a_reconnect() -> None:
    """A breach begins and ends while the broker is gone in the midst of it: whoever hears of it hears it in order."""
    port = free_port()
    sender, listener = session(port, "sender"), session(port, "listener")
    got: list[bytes] = []
    listener.on_message("t", lambda message: got.append(message.payload))
    sent = [str(k).encode() for k in range(40)]

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A broker that takes whatever comes and acknowledges no publication."""
        while head := await reader.read(1):
            length, shift = 0, 0
            while True:
                byte = (await reader.readexactly(1))[0]
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = await reader.readexactly(length)
            if head[0] >> 4 == 1:
                writer.write(b"\x20\x02\x00\x00")
            elif head[0] >> 4 == 8:
                writer.write(b"\x90\x03" + body[:2] + b"\x00")
            elif b"19" in body:
                await asyncio.sleep(0.2)
                break
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", port)
    async with running(sender):
        await until(lambda: sender._has_session)
        for event in sent:
            sender.publish("t", event, qos=1, keep=Keep.ALL)
        await until(lambda: not sender._has_session)
        server.close()
        async with EmbeddedBroker(port=port), running(listener):
            assert await listener.wait_up(deadline_s=10)
            await until(lambda: len(got) >= len(sent))
    assert list(dict.fromkeys(got)) == sent
