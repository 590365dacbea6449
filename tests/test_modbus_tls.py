"""Modbus over TLS: who is believed, who is refused, and answers in two records."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.ports import DriverError
from drivers.errors import (
    DeviceGone,
)
from drivers.modbus import ModbusConnection, ModbusDevice
from drivers.modbus_endpoint import parse_endpoint
from hil.modbus_server import ModbusServer
from tests.modbus_kit import FOUR, certificate, reply, table, u16

pytestmark = pytest.mark.wire


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
