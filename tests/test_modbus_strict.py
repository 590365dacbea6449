"""Answers that are almost right, and peers that take a connection and no more: never a value, never a storm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from drivers.errors import BadReply, DeviceGone
from tests.modbus_kit import ScriptedServer, device, reply, u16, until

pytestmark = pytest.mark.wire


@pytest.mark.parametrize(
    "pdu",
    [
        b"\x03\x05\x00\x01\x00\x02\x00",  # an odd number of bytes
        b"\x03\x04\x00\x01\x00\x02\x00\x00",  # more than it counts
        b"\x03\xc8\x00\x01",  # counts more than there is
        b"\x03",
        b"\x63\x04\x00\x01\x00\x02",  # a function that nobody knows
        b"\x83",  # an exception without a code
    ],
)
async def test_a_frame_that_is_not_exactly_an_answer_is_garbage(pdu: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Its header is right and it is for us: a BadReply (FAULTS M2) without a trace in the log, and the line closed."""
    answers = iter([pdu])

    def script(request: bytes) -> Sequence[bytes | float]:
        return [reply(request, next(answers, b"\x03\x04\x00\x01\x00\x02"))]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        with caplog.at_level(logging.DEBUG, "asyncio"), pytest.raises(BadReply):
            await dut.read_registers(3, 0, 2)
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
        await until(lambda: dut.connection.is_connected, within_s=10.0)
        assert await dut.read_registers(3, 0, 2) == u16(1, 2)
        assert server.accepted_count == 2
        await dut.connection.close()


async def test_coils_are_not_discrete_inputs() -> None:
    async with ScriptedServer(lambda request: [reply(request, b"\x01\x01\x01")]) as server:
        dut = device(server.port)
        with pytest.raises(BadReply, match="function 1 in reply to 2"):
            await dut.read_bits(2, 0, 1)
        await dut.connection.close()


async def test_a_late_answer_without_a_number_is_not_taken_for_the_next() -> None:
    """A gateway that leaves transaction ids at zero, and a request that its caller gave up: what comes may be its."""

    def script(request: bytes) -> Sequence[bytes | float]:
        address = int.from_bytes(request[8:10], "big")
        wait: list[bytes | float] = [0.15] if address == 0 else []
        return [*wait, reply(request, b"\x03\x02" + u16(7 + address), tid=0)]

    async with ScriptedServer(script) as server:
        dut = device(server.port, timeout_s=2.0)
        assert await dut.read_registers(3, 10, 1) == u16(17), "as long as nothing is owed it is the answer"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await dut.read_registers(3, 0, 1)
        with pytest.raises(BadReply, match="carries no number"):
            await dut.read_registers(3, 10, 1)
        await until(lambda: dut.connection.is_connected, within_s=10.0)
        assert await dut.read_registers(3, 10, 1) == u16(17)
        await dut.connection.close()


@pytest.mark.parametrize("closes", ["at once", "when asked"])
async def test_a_peer_that_takes_connections_and_no_more_is_tried_ever_more_rarely(closes: str) -> None:
    """All its sockets are taken, or its service behind the port is down: it is not buried under connections."""
    count = 0

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if closes == "when asked":
            await reader.read(64)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    dut = device(server.sockets[0].getsockname()[1], timeout_s=1.0)  # waits 20 ms after the first failure
    for _ in range(75):
        with pytest.raises(DeviceGone):
            await dut.read_registers(3, 0, 1)
        await asyncio.sleep(0.02)
    assert 2 <= count <= 12, "20, 40, 80, ... ms apart"
    await dut.connection.close()
    server.close()
