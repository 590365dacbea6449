"""What a broken or hostile VTN, or a file of ours in disorder, can do to the bridge: a line, and nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from controller.clock import MonotonicClock
from controller.settings import IssuerSettings
from controller.signals import AcceptanceRules
from drivers import openadr
from drivers.openadr import OpenAdrBridge, VtnRefused, read_events
from tests.dsx_kit import MW, bounds, grid
from tests.test_openadr import at, event, settings

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


@contextmanager
def answering(answer: Callable[[bytes, socket.socket], None]) -> Iterator[str]:
    """A server that reads one request a connection and leaves the rest to `answer`; its URL."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    answer(connection.recv(65_536), connection)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def bridge(url: str, clock: Any = None, **changes: Any) -> tuple[OpenAdrBridge, AcceptanceRules]:
    rules = AcceptanceRules(grid(IssuerSettings("vtn", (), True, False, False)), bounds(raise_dwell_s=0.0))
    return OpenAdrBridge(settings(url, **changes), rules=rules, clock=clock or MonotonicClock()), rules


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]",
        b"",
    ],
)
async def test_an_answer_that_is_no_http_changes_nothing(raw: bytes) -> None:
    """A garbled status line, an endless header, a bad chunk, an answer that broke off although what came reads well."""
    with answering(lambda request, connection: connection.sendall(raw)) as url:
        found, rules = bridge(url)
        await found.poll()
        assert not found.is_answering and found.last_error
        assert rules.active(MonotonicClock().now_s()) == ()


def test_a_number_beyond_all_numbers_is_refused() -> None:
    """A whole number of 400 digits is legal JSON and no power."""
    body = json.dumps([event([[("DISPATCH_SETPOINT", 7)]], start="2026-06-01T00:00:00Z")])
    with pytest.raises(VtnRefused):
        read_events(body.replace("[7]", "[1" + "0" * 400 + "]").encode(), program_id=None)


def test_a_priority_beyond_all_numbers_is_the_lowest_but_none() -> None:
    events = [
        event([[("DISPATCH_SETPOINT", value)]], start="2026-06-01T00:00:00Z", event_id=str(value), priority=priority)
        for value, priority in ((1, 0), (2, 10**400), (3, None))
    ]
    found = read_events(json.dumps(events).encode(), program_id=None)
    assert [wish.target_w for wish in found.wishes] == [3e3, 2e3, 1e3]


async def test_a_vtn_that_never_ends_its_answer_is_lost_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a socket's own timeout from ever running out; the bridge says so and can be stopped."""
    monkeypatch.setattr(openadr, "POLL_S_MAX", 0.3)
    gone = threading.Event()

    def drip(request: bytes, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not gone.wait(0.05):
            connection.sendall(b" ")

    with answering(drip) as url:
        found, _ = bridge(url)
        try:
            async with asyncio.timeout(5):
                await found.poll()
                assert not found.is_answering and "no answer within" in found.last_error
                await found.poll()
                assert "has not returned" in found.last_error
        finally:
            gone.set()


async def test_a_token_is_neither_logged_nor_carried_on(tmp_path: Path) -> None:
    """A token file of two lines makes no header and stays out of the log; a redirect elsewhere gets nothing."""
    token, heard = tmp_path / "token", []

    def listen(request: bytes, connection: socket.socket) -> None:
        heard.append(request)
        connection.sendall(EMPTY)

    with answering(listen) as elsewhere:
        redirect = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/events\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(lambda request, connection: connection.sendall(redirect)) as url:
            found, _ = bridge(url, token_file=str(token))
            token.write_text("quiet\nsecond line\n")
            await found.poll()
            assert not found.is_answering and "quiet" not in found.last_error and str(token) in found.last_error
            token.write_text("quiet\n")
            await found.poll()
            assert not found.is_answering and "302" in found.last_error
    assert heard == []


@pytest.mark.parametrize("answer", [b'{"access_token": "t", "expires_in": 1' + b"0" * 400 + b"}", b"[" * 100_000])
async def test_a_token_endpoint_out_of_its_mind_is_a_line(answer: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer)
    with answering(lambda request, connection: connection.sendall(whole)) as url:
        found, _ = bridge(url, client_id="ven", client_secret_file=str(secret))
        await found.poll()
        assert not found.is_answering and found.last_error


class ShiftedClock(MonotonicClock):
    """The true clock with a wall clock that a test may set, and a shift for time that passes."""

    wall_off_s = passed_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.passed_s

    def wall_utc_s(self) -> float:
        return super().wall_utc_s() + self.wall_off_s + self.passed_s


async def test_what_was_refused_for_our_clock_is_asked_for_again() -> None:
    """A limit withdrawn at the VTN while our wall clock is in doubt ends here once the clock is trusted again."""
    clock = ShiftedClock()
    events: list[Any] = [
        event([[("IMPORT_CAPACITY_LIMIT", 60_000)]], start=at(clock.wall_utc_s() - 60), duration="P9999Y")
    ]

    def tell(request: bytes, connection: socket.socket) -> None:
        body = json.dumps(events).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with answering(tell) as url:
        found, rules = bridge(url, clock)

        async def target() -> list[float | None]:
            rules.step(now_s=clock.now_s(), utc_s=clock.wall_utc_s(), is_link_up=True, is_clock_synced=True)
            await found.poll()
            return [s.target_w for s in rules.active(clock.now_s()) if s.target_w is not None]

        assert await target() == [60.0 * MW]
        events.clear()
        clock.wall_off_s = 3600.0
        assert await target() == [60.0 * MW]
        clock.passed_s = 400.0
        assert await target() == []
