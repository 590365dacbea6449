"""The supervised Modbus connection against wires that fail: errors are typed, it recovers, no socket is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import ssl
import tty
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
from drivers.modbus import ModbusConnection, ModbusDevice, ModbusPool
from drivers.modbus_endpoint import Endpoint, Framing, parse_endpoint
from hil.modbus_server import ExceptionCode, ModbusServer, RegisterFault
from hil.modbus_server import Framing as ServerFraming
from tests.modbus_kit import TIMEOUT_S, ScriptedServer, Table, device, reply, serving, u16, until

pytestmark = pytest.mark.wire

FOUR = bytes.fromhex("0000000100020003")


def table() -> Table:
    return Table({0: FOUR, 10: bytes(4)}, writable=(10, 11))


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
    """A reply of another transaction, of another unit, or one that comes after its time."""

    def script(request: bytes) -> Sequence[bytes | float]:
        pdu = b"\x03\x02\x00\x2a"
        if fault == "tid":
            return [reply(request, pdu, tid=999)]
        if fault == "unit":
            return [reply(request, pdu, unit=9)]
        return [2 * TIMEOUT_S, reply(request, pdu)]

    async with ScriptedServer(script) as server:
        dut = device(server.port)
        with pytest.raises(DeviceTimeout):
            await dut.read_registers(3, 0, 1)
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
        connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S, backoff_s_min=0.02)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        with pytest.raises(DeviceTimeout):
            await dut.read_registers(3, 1, 1)
        await until(lambda: connection.is_connected)
        assert await dut.read_registers(3, 2, 1) == u16(2)
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
    connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S, backoff_s_min=0.02)
    dut = ModbusDevice(connection, name="dut", unit_id=1)
    with pytest.raises(DeviceTimeout):
        await dut.read_registers(3, 1, 1)
    await until(lambda: connection.is_connected)
    assert await dut.read_registers(3, 2, 1) == u16(2)
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
        connection = ModbusConnection(endpoint, timeout_s=TIMEOUT_S, backoff_s_min=0.02)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        with pytest.raises(DeviceTimeout):
            await dut.read_registers(3, 1, 1)
        await until(lambda: connection.is_connected)
        assert await dut.read_registers(3, 2, 1) == u16(2)
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


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = (
        built.serial_number(1)
        .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2090, 1, 1, tzinfo=dt.UTC))
    )
    built = built.add_extension(address, critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


async def test_tls_reads_with_a_known_certificate_and_refuses_an_unknown_one(tmp_path: Path) -> None:
    cert_file, key_file = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)
    async with ModbusServer({1: table()}, tls=context) as server:
        for host, is_trusted in ((f"tls://127.0.0.1?ca={cert_file}", True), ("tls://127.0.0.1", False)):
            connection = ModbusConnection(parse_endpoint(host, server.port), timeout_s=1.0)
            dut = ModbusDevice(connection, name="dut", unit_id=1)
            if is_trusted:
                assert await dut.read_registers(3, 0, 4) == FOUR
            else:
                with pytest.raises(DeviceGone, match="certificate"):
                    await dut.read_registers(3, 0, 4)
            await connection.close()
    with pytest.raises(BadInput, match="certificate"):
        ModbusConnection(parse_endpoint(f"tls://127.0.0.1?ca={tmp_path}/absent.pem", 802), timeout_s=1.0)


async def test_tls_joins_an_answer_that_comes_in_two_records(tmp_path: Path) -> None:
    """Each write of the server is a record of its own; the reply's header ends the first."""
    cert_file, key_file = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(64):
            whole = reply(request, b"\x03\x02\x00" + request[9:10])
            for part in (whole[:7], whole[7:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    connection = ModbusConnection(parse_endpoint(f"tls://127.0.0.1?ca={cert_file}", port), timeout_s=1.0)
    dut = ModbusDevice(connection, name="dut", unit_id=1)
    assert [await dut.read_registers(3, at, 1) for at in (5, 6)] == [u16(5), u16(6)]
    assert connection.connect_count == 1
    await connection.close()
    server.close()


async def test_tls_shows_its_own_certificate_where_the_device_asks_for_one(tmp_path: Path) -> None:
    cert_file, key_file = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cert_file))
    context.load_cert_chain(cert_file, key_file)
    context.verify_mode = ssl.CERT_REQUIRED
    async with ModbusServer({1: table()}, tls=context) as server:
        ours = f"&cert={cert_file}&key={key_file}"
        for more, is_welcome in ((ours, True), ("", False)):
            url = f"tls://127.0.0.1?ca={cert_file}{more}"
            connection = ModbusConnection(parse_endpoint(url, server.port), timeout_s=1.0)
            dut = ModbusDevice(connection, name="dut", unit_id=1)
            if is_welcome:
                assert await dut.read_registers(3, 0, 4) == FOUR
            else:
                with pytest.raises(DriverError):
                    await dut.read_registers(3, 0, 4)
            await connection.close()


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
    assert parse_endpoint("rtu+tcp://gw:4001", 502) == Endpoint("gw", 4001, Framing.RTU_OVER_TCP)
    serial = parse_endpoint("serial:///dev/ttyUSB0?baudrate=9600&parity=e", 502)
    assert (serial.host, serial.baudrate, serial.parity, serial.is_rtu) == ("/dev/ttyUSB0", 9600, "E", True)
    assert parse_endpoint("tls://plc?ca=/x.pem", 802).ca_file == "/x.pem"


@pytest.mark.parametrize(
    "host", ["http://x", "tcp://", "serial://", "tcp://x?baudrate=1", "serial:///dev/x?parity=Q", "tcp://x:99999"]
)
def test_a_host_that_cannot_be_is_refused_with_a_reason(host: str) -> None:
    with pytest.raises(BadInput, match="host"):
        parse_endpoint(host, 502)
