"""The supervised Modbus connection against wires that fail: errors are typed, it recovers, no socket is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.ports import DriverError
from drivers.errors import (
    BadReply,
    DeviceBusy,
    DeviceFault,
    DeviceGone,
    DeviceTimeout,
    InvalidValue,
    NotSupported,
)
from drivers.modbus import ModbusConnection, ModbusDevice
from drivers.modbus_endpoint import Endpoint, Framing, parse_endpoint
from hil.modbus_server import ExceptionCode, ModbusServer, RegisterFault
from tests.modbus_kit import FOUR, TIMEOUT_S, ScriptedServer, Table, device, reply, serving, table, u16, until

pytestmark = pytest.mark.wire


async def test_registers_are_read_and_written() -> None:
    registers = table()
    async with serving(registers) as server:
        dut = device(server.port)
        assert await dut.read_registers(3, 0, 4) == FOUR
        dut.allow((10, 11))
        await dut.write_registers(10, u16(7, 8))
        assert registers.writes == [(10, u16(7, 8))]
        await dut.connection.close()
        await until(lambda: server.client_count == 0)


async def test_only_allowed_registers_are_ever_written() -> None:
    """A span that touches one register outside the allow-list is refused before a byte leaves."""
    registers = table()
    async with serving(registers) as server:
        dut = device(server.port)
        with pytest.raises(InvalidValue):
            await dut.write_registers(10, u16(1))
        dut.allow((10,))
        with pytest.raises(InvalidValue, match="register 11"):
            await dut.write_registers(10, u16(1, 2))
        assert server.request_count == 0
        await dut.connection.close()


async def test_a_read_longer_than_the_device_takes_is_split() -> None:
    registers = Table({i: u16(i) for i in range(20)})
    async with serving(registers) as server:
        connection = ModbusConnection(Endpoint("127.0.0.1", server.port), timeout_s=TIMEOUT_S)
        dut = ModbusDevice(connection, name="dut", unit_id=1, registers_per_read_max=8)
        assert await dut.read_registers(3, 0, 20) == u16(*range(20))
        assert server.request_count == 3
        await connection.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ExceptionCode.ILLEGAL_FUNCTION, NotSupported),
        (ExceptionCode.ILLEGAL_ADDRESS, NotSupported),
        (ExceptionCode.ILLEGAL_VALUE, InvalidValue),
        (ExceptionCode.DEVICE_FAILURE, DeviceFault),
        (ExceptionCode.DEVICE_BUSY, DeviceBusy),
        (ExceptionCode.GATEWAY_NO_PATH, DeviceGone),
        (ExceptionCode.GATEWAY_TARGET_SILENT, DeviceTimeout),
    ],
)
async def test_exception_codes_become_kinds_and_keep_the_connection(
    code: ExceptionCode, kind: type[DriverError]
) -> None:
    class Refusing(Table):
        def read_registers(self, function: int, address: int, count: int) -> bytes:
            raise RegisterFault(code)

    async with serving(Refusing({})) as server:
        dut = device(server.port)
        for _ in range(3):
            with pytest.raises(kind) as caught:
                await dut.read_registers(3, 0, 1)
            assert caught.value.device == "dut"
        assert server.accepted_count == 1
        await dut.connection.close()


async def test_a_silent_device_costs_one_timeout_one_socket_at_a_time_and_is_found_again() -> None:
    """Half-open: it accepts and never answers. Then it answers."""
    is_silent = True

    def script(request: bytes) -> Sequence[bytes | float]:
        return [] if is_silent else [reply(request, b"\x03\x02\x00\x2a")]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        for _ in range(3):
            with pytest.raises(DeviceTimeout):
                await dut.read_registers(3, 0, 1)
            await until(lambda: dut.connection.is_connected)
            assert server.open_count <= 2  # the one just closed may still be seen by the server
        is_silent = False
        assert await dut.read_registers(3, 0, 1) == u16(42)
        await dut.connection.close()
        await until(lambda: server.open_count == 0)


@pytest.mark.parametrize("fault", ["tid", "unit", "late"])
async def test_an_answer_that_is_not_ours_is_never_taken(fault: str) -> None:
    """A reply of another transaction, of another unit, or one that comes after its time.

    What came and was no answer to us is told as such: who looks for a silent device would look in the wrong place.
    """

    def script(request: bytes) -> Sequence[bytes | float]:
        pdu = b"\x03\x02\x00\x2a"
        if fault == "tid":
            return [reply(request, pdu, tid=999)]
        if fault == "unit":
            return [reply(request, pdu, unit=9)]
        return [2 * TIMEOUT_S, reply(request, pdu)]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        with pytest.raises(DeviceTimeout if fault == "late" else BadReply):
            await dut.read_registers(3, 0, 1)
        assert not dut.connection.is_connected
        await dut.connection.close()


@pytest.mark.parametrize("way", ["split", "bytes", "stray first"])
async def test_an_answer_in_pieces_or_behind_a_stray_one_is_read(way: str) -> None:
    def script(request: bytes) -> Sequence[bytes | float]:
        whole = reply(request, b"\x03\x02\x00\x2a")
        if way == "split":
            return [whole[:5], 0.01, whole[5:]]
        if way == "bytes":
            return [step for at in range(len(whole)) for step in (whole[at : at + 1], 0.002)]
        return [reply(request, b"\x03\x02\x00\x63", tid=60000) + whole]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        assert await dut.read_registers(3, 0, 1) == u16(42)
        await dut.connection.close()


async def test_a_reply_of_the_wrong_length_is_bad() -> None:
    async with ScriptedServer(lambda request: [reply(request, b"\x03\x04\x00\x2a\x00\x00")]) as server:
        dut = device(server.port)
        with pytest.raises(BadReply):
            await dut.read_registers(3, 0, 1)
        await dut.connection.close()


async def test_garbled_bytes_are_a_typed_fault_and_the_connection_recovers() -> None:
    answers = iter([b"\xff" * 40])

    def script(request: bytes) -> Sequence[bytes | float]:
        return [next(answers, reply(request, b"\x03\x02\x00\x2a"))]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        with pytest.raises(DriverError):
            await dut.read_registers(3, 0, 1)
        await until(lambda: dut.connection.is_connected)
        assert await dut.read_registers(3, 0, 1) == u16(42)
        await dut.connection.close()


async def test_a_peer_that_closes_ends_the_request_at_once() -> None:
    """Well before the deadline: the deadline here is a minute."""
    async with serving(table()) as server:
        dut = device(server.port, timeout_s=60.0)
        await dut.read_registers(3, 0, 1)
        server.units.clear()  # nobody answers any more
        request = asyncio.create_task(dut.read_registers(3, 0, 1))
        await asyncio.sleep(0.02)
        server.drop_clients()
        with pytest.raises(DeviceGone):
            await asyncio.wait_for(request, 2.0)
        await dut.connection.close()


async def test_a_device_absent_at_start_is_found_when_it_comes() -> None:
    async with serving(table()) as server:
        port = server.port
    dut = device(port)
    for _ in range(3):
        with pytest.raises(DeviceGone, match="refused"):
            await dut.read_registers(3, 0, 1)
        await asyncio.sleep(0.01)
    async with ModbusServer({1: table()}, port=port) as server:
        await until(lambda: dut.connection.is_connected)
        assert await dut.read_registers(3, 0, 4) == FOUR
        assert server.client_count == 1
        await dut.connection.close()


async def test_many_callers_and_restarts_never_hold_more_than_one_socket() -> None:
    async with serving(table()) as server:
        dut = device(server.port)
        for _ in range(4):
            results = await asyncio.gather(*(dut.read_registers(3, 0, 4) for _ in range(20)), return_exceptions=True)
            assert all(result == FOUR or isinstance(result, DriverError) for result in results)
            assert server.client_count <= 1
            server.drop_clients()
            await until(lambda: dut.connection.is_connected and server.client_count == 1)
        before = asyncio.all_tasks()
        await dut.connection.close()
        await until(lambda: server.client_count == 0)
        assert len(asyncio.all_tasks()) < len(before)


async def test_a_cancelled_request_lets_the_next_one_through() -> None:
    slow = True

    def script(request: bytes) -> Sequence[bytes | float]:
        return [0.05 if slow else 0.0, reply(request, b"\x03\x02\x00" + request[9:10])]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        first = asyncio.create_task(dut.read_registers(3, 1, 1))
        await asyncio.sleep(0.02)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        slow = False
        assert await dut.read_registers(3, 2, 1) == u16(2)  # not the late answer of register 1
        await dut.connection.close()


def sockets() -> int:
    """Open file descriptors of this process that are sockets."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("framing", [Framing.TCP, Framing.RTU_OVER_TCP])
async def test_no_socket_is_left_behind_by_any_way_to_fail(framing: Framing) -> None:
    """Silence, garbage, a reset, a cancelled request, an exception code, a device that is not there."""
    ways: list[Sequence[bytes | float]] = [[], [b"\xff" * 40], [2 * TIMEOUT_S, b"late"]]
    turn = iter(range(10_000))
    before = sockets()
    async with ScriptedServer(lambda request: ways[next(turn) % len(ways)]) as server:
        endpoint = Endpoint("127.0.0.1", server.port, framing)
        connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S / 3, backoff_s_min=0.01, backoff_s_max=0.02)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        for k in range(15):
            request = asyncio.ensure_future(dut.read_registers(3, 0, 1))
            if k % 5 == 4:
                await asyncio.sleep(0.005)
                request.cancel()
            with pytest.raises((DriverError, asyncio.CancelledError)):
                await request
            assert sockets() - before <= 1 + 2 + server.open_count, "one of ours, and what the server has open"
            await asyncio.sleep(0.02)
        await connection.close()
        await until(lambda: server.open_count == 0)
    gone = ModbusConnection(endpoint, timeout_s=TIMEOUT_S / 3, backoff_s_min=0.01, backoff_s_max=0.02)
    for _ in range(10):
        with pytest.raises(DeviceGone):
            await ModbusDevice(gone, name="dut", unit_id=1).read_registers(3, 0, 1)
        await asyncio.sleep(0.01)
    await gone.close()
    await until(lambda: sockets() == before)


def test_endpoints_are_read_from_a_host_or_a_url() -> None:
    assert parse_endpoint("10.0.0.7", 502) == Endpoint("10.0.0.7", 502)
    assert parse_endpoint("fe80::1", 502).host == "fe80::1" and parse_endpoint("meter-1.site.lan", 502).port == 502
    assert parse_endpoint("rtu+tcp://gw:4001", 502) == Endpoint("gw", 4001, Framing.RTU_OVER_TCP)
    serial = parse_endpoint("serial:///dev/ttyUSB0?baudrate=9600&parity=e", 502)
    assert (serial.host, serial.baudrate, serial.parity, serial.is_rtu) == ("/dev/ttyUSB0", 9600, "E", True)
    assert parse_endpoint("tls://plc?ca=/x.pem", 802).ca_file == "/x.pem"


@pytest.mark.parametrize(
    "host",
    [
        "http://x",
        "tcp://",
        "serial://",
        "tcp://x?baudrate=1",
        "serial:///dev/x?parity=Q",
        "tcp://x:99999",
        "10.0.0.7:502",
        "10.0.0.7 ",
        "[::1]",
        "a/b",
    ],
)
def test_a_host_that_cannot_be_is_refused_with_a_reason(host: str) -> None:
    with pytest.raises(BadInput, match="host"):
        parse_endpoint(host, 502)
