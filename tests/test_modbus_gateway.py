"""Modbus behind a gateway, as RTU over TCP and on a serial line: no old answer is ever taken for a new one."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import Sequence

import pytest

from controller.ports import DriverError
from drivers.errors import (
    DeviceGone,
    DeviceTimeout,
)
from drivers.modbus import ModbusConnection, ModbusDevice, ModbusPool
from drivers.modbus_endpoint import Endpoint, Framing, parse_endpoint
from hil.modbus_server import Framing as ServerFraming
from hil.modbus_server import ModbusServer
from tests.modbus_kit import FOUR, TIMEOUT_S, ScriptedServer, table, u16, until

pytestmark = pytest.mark.wire


async def answered_after_a_timeout(endpoint: Endpoint) -> ModbusConnection:
    """A connection whose first request was given up, and whose next had its own answer on a line opened again."""
    connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S, backoff_s_min=0.02)
    dut = ModbusDevice(connection, name="dut", unit_id=1)
    with pytest.raises(DeviceTimeout):
        await dut.read_registers(3, 1, 1)
    await until(lambda: connection.is_connected)
    assert await dut.read_registers(3, 2, 1) == u16(2)
    return connection


async def test_units_behind_one_gateway_share_one_socket() -> None:
    async with ModbusServer({1: table(), 2: table()}) as server:
        pool = ModbusPool()
        endpoint = Endpoint("127.0.0.1", server.port)
        units = [
            ModbusDevice(pool.connection(endpoint, timeout_s=TIMEOUT_S), name=f"u{unit}", unit_id=unit)
            for unit in (1, 2)
        ]
        await asyncio.gather(*(unit.read_registers(3, 0, 4) for unit in units))
        assert server.accepted_count == 1
        await pool.close()
        await until(lambda: server.client_count == 0)


async def test_rtu_over_tcp_drops_the_line_after_a_timeout_and_never_returns_an_old_answer() -> None:
    """RTU replies carry no transaction id: the reply to register 1 comes late and must not answer register 2."""
    from pymodbus.framer.rtu import FramerRTU

    delays = iter([1.5 * TIMEOUT_S])

    def script(request: bytes) -> Sequence[bytes | float]:
        body = b"\x01\x03\x02\x00" + request[3:4]
        return [next(delays, 0.0), body + FramerRTU.compute_CRC(body).to_bytes(2, "big")]

    async with ScriptedServer(script) as server:
        endpoint = Endpoint("127.0.0.1", server.port, Framing.RTU_OVER_TCP)
        connection = await answered_after_a_timeout(endpoint)
        assert server.accepted_count == 2
        await connection.close()


async def test_a_late_answer_that_a_gateway_hands_to_the_new_connection_is_discarded() -> None:
    """The serial side answered late; the gateway forwards it to whoever is connected now."""
    from pymodbus.framer.rtu import FramerRTU

    def answer(register: bytes) -> bytes:
        body = b"\x01\x03\x02\x00" + register
        return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")

    connections: list[asyncio.StreamWriter] = []

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if len(connections) == 1:
            await reader.read(64)  # register 1 is asked for; the line is slow
            return
        await asyncio.sleep(TIMEOUT_S / 3)
        writer.write(answer(b"\x01"))
        request = await reader.read(64)
        await asyncio.sleep(TIMEOUT_S / 3)
        writer.write(answer(request[3:4]))

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], Framing.RTU_OVER_TCP)
    connection = await answered_after_a_timeout(endpoint)
    await connection.close()
    for writer in connections:
        writer.close()
    server.close()


@pytest.mark.parametrize(
    "fault", ["unit", "function", "checksum", "short", "another length", "noise first", "gateway gave up"]
)
async def test_a_wrong_answer_on_rtu_is_never_a_value_and_the_line_recovers(fault: str) -> None:
    """The line carries no transaction id: unit, function, length and checksum are all there is to know an answer by."""
    from pymodbus.framer.rtu import FramerRTU

    asked = 0

    def framed(body: bytes) -> bytes:
        return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")

    def script(request: bytes) -> Sequence[bytes | float]:
        nonlocal asked
        asked += 1
        good = framed(b"\x01\x03\x02\x00" + request[3:4])
        if asked > 1:
            return [good]
        wrong = {
            "unit": framed(b"\x09\x03\x02\x00\x63"),
            "function": framed(b"\x01\x04\x02\x00\x63"),
            "checksum": good[:-1] + bytes([good[-1] ^ 1]),
            "short": good[:-2],
            "another length": framed(b"\x01\x03\x04\x00\x63\x00\x63"),
            "gateway gave up": framed(b"\x01\x83\x0b"),
            "noise first": b"\x00\xff\x13" + good,
        }
        return [wrong[fault], TIMEOUT_S / 3, good]  # and the true answer to register 7 after all

    async with ScriptedServer(script) as server:
        endpoint = Endpoint("127.0.0.1", server.port, Framing.RTU_OVER_TCP)
        connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S, backoff_s_min=0.02)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        try:
            first = await dut.read_registers(3, 7, 1)
        except DriverError:
            first = b""
        assert first in (b"", u16(7)), "its own value or none"
        for register in (5, 6):
            await until(lambda: connection.is_connected)
            assert await dut.read_registers(3, register, 1) == u16(register)
        await connection.close()


async def test_rtu_over_tcp_reads_and_writes() -> None:
    registers = table()
    async with ModbusServer({1: registers}, framing=ServerFraming.RTU) as server:
        endpoint = Endpoint("127.0.0.1", server.port, Framing.RTU_OVER_TCP)
        connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        dut.allow((10, 11))
        assert await dut.read_registers(3, 0, 4) == FOUR
        await dut.write_registers(10, u16(5, 6))
        assert registers.writes == [(10, u16(5, 6))]
        await connection.close()


async def test_a_serial_line_is_read_and_opened_again_after_a_timeout() -> None:
    """A pseudo-terminal stands for the line; the device misses its first request."""
    from pymodbus.framer.rtu import FramerRTU

    master, slave = os.openpty()
    tty.setraw(slave)
    loop = asyncio.get_running_loop()
    requests: list[bytes] = []

    def answer() -> None:
        requests.append(os.read(master, 64))
        if len(requests) > 1:
            body = bytes.fromhex("010302") + requests[-1][2:4]
            os.write(master, body + FramerRTU.compute_CRC(body).to_bytes(2, "big"))

    loop.add_reader(master, answer)
    try:
        endpoint = parse_endpoint(f"serial://{os.ttyname(slave)}?baudrate=115200", 502)
        connection = await answered_after_a_timeout(endpoint)
        assert connection.connect_count == 2
        await connection.close()
        absent = ModbusConnection(parse_endpoint("serial:///dev/no-such-line", 502), timeout_s=TIMEOUT_S)
        with pytest.raises(DeviceGone, match="cannot connect"):
            await ModbusDevice(absent, name="dut", unit_id=1).read_registers(3, 0, 1)
        await absent.close()
    finally:
        loop.remove_reader(master)
        os.close(master)
        os.close(slave)
