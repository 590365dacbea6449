"""Certificates that are renewed while a Modbus connection lives on them: the next connection knows the new ones."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from drivers.errors import DeviceGone
from drivers.modbus import ModbusConnection, ModbusDevice
from drivers.modbus_endpoint import parse_endpoint
from hil.modbus_server import ModbusServer
from tests.modbus_kit import certificate, table, u16, until

pytestmark = pytest.mark.wire


def context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(cert_file, key_file)
    return made


async def test_a_renewed_certificate_is_known_to_the_next_connection(tmp_path: Path) -> None:
    """The device gets a new certificate, and the CA file here is exchanged a moment later; half of it is no harm."""
    cert_file, key_file = certificate(tmp_path)
    async with ModbusServer({1: table()}, tls=context(cert_file, key_file)) as server:
        endpoint = parse_endpoint(f"tls://127.0.0.1?ca={cert_file}", server.port)
        connection = ModbusConnection(endpoint, timeout_s=1.0, backoff_s_min=0.02, backoff_s_max=0.1)
        dut = ModbusDevice(connection, name="dut", unit_id=1)
        assert await dut.read_registers(3, 0, 1) == u16(0)
        cert_file.write_text("half")
        server.drop_clients()
        await until(lambda: not connection.is_connected, within_s=10.0)
        await until(lambda: "certificate files" in connection._why, within_s=10.0)
        with pytest.raises(DeviceGone, match="certificate files"):
            await dut.read_registers(3, 0, 1)
        certificate(tmp_path)
    async with ModbusServer({1: table()}, tls=context(cert_file, key_file), port=server.port):
        await until(lambda: connection.is_connected, within_s=10.0)
        assert await dut.read_registers(3, 0, 1) == u16(0)
        await connection.close()
