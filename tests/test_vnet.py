"""The network in memory: servers, clients and proxies of one virtual loop, byte for byte as over TCP."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from drivers.errors import BadReply
from hil import vtime
from hil.modbus_proxy import ModbusProxy, WireFault
from hil.modbus_server import ModbusServer
from hil.vnet import NetworkedLoop
from hil.vtime import ForbiddenInVirtualTime
from tests.modbus_kit import Table, device, u16


def test_streams_keep_order_and_end_on_both_sides() -> None:
    async def main() -> tuple[bytes, bytes]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data.upper())
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await asyncio.start_server(echo, "127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in (b"one ", b"two ", b"three"):
            writer.write(part)
        answer = await reader.readexactly(13)
        server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return answer, await reader.read()

    assert vtime.run(main(), loop_factory=NetworkedLoop) == (b"ONE TWO THREE", b"")


def test_a_reset_is_one_at_the_other_end() -> None:
    async def main() -> None:
        async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        server = await asyncio.start_server(rude, "127.0.0.1", 0)
        reader, _ = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionResetError):
            await reader.read()

    vtime.run(main(), loop_factory=NetworkedLoop)


def test_our_driver_reads_through_the_proxy_and_the_clock_moves_by_deadlines_alone() -> None:
    """A good read takes no time, a wrong function is no value, an answer that never comes takes the deadline."""

    async def main() -> tuple[bytes, float, float]:
        loop = vtime.running_loop()
        async with (
            ModbusServer({1: Table({0: u16(42)})}) as server,
            ModbusProxy(server.host, server.port, rng=np.random.default_rng(1)) as proxy,
        ):
            dut = device(proxy.port, timeout_s=0.5)
            good, at_s = await dut.read_registers(3, 0, 1), loop.time()
            proxy.make(WireFault.WRONG_FUNCTION)
            with pytest.raises(BadReply, match="function 4 in reply to 3"):
                await dut.read_registers(3, 0, 1)
            proxy.make(WireFault.WRONG_UNIT)
            with pytest.raises(BadReply, match=r"no answer to us within 0\.5 s"):
                await dut.read_registers(3, 0, 1)
            await dut.connection.close()
        return good, at_s, loop.time()

    assert vtime.run(main(), loop_factory=NetworkedLoop) == (u16(42), 0.0, 0.5)


def test_no_tls_and_no_port_of_the_machine() -> None:
    async def main() -> None:
        with pytest.raises(ForbiddenInVirtualTime):
            await asyncio.open_connection("127.0.0.1", 802, ssl=True)
        with pytest.raises(ForbiddenInVirtualTime):
            await asyncio.start_server(lambda r, w: None, "127.0.0.1", 802, ssl=object())  # type: ignore[arg-type]

    vtime.run(main(), loop_factory=NetworkedLoop)
