"""For the Modbus tests: registers written by hand, a server that misbehaves on script, a plant that holds still."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller.clock import MonotonicClock
from controller.settings import ModbusSettings
from controller.types import BatteryState
from drivers.modbus import ModbusConnection, ModbusDevice
from drivers.modbus_endpoint import Endpoint
from drivers.profile import DeviceProfile, parse_profile
from hil.modbus_server import ExceptionCode, ModbusServer, RegisterFault, RegisterMap

DEVICES = Path(__file__).resolve().parent.parent / "configs" / "devices"
CLOCK = MonotonicClock()
TIMEOUT_S = 0.15
FOUR = bytes.fromhex("0000000100020003")


def profile(name: str) -> DeviceProfile:
    import yaml

    path = DEVICES / f"{name}.yaml"
    return parse_profile(yaml.safe_load(path.read_text(encoding="utf-8")), origin=name)


def settings(port: int, *, unit: int = 1, timeout_s: float = TIMEOUT_S) -> ModbusSettings:
    return ModbusSettings(name="dut", host="127.0.0.1", port=port, unit_id=unit, profile="-", timeout_s=timeout_s)


def device(port: int, *, unit: int = 1, timeout_s: float = TIMEOUT_S) -> ModbusDevice:
    connection = ModbusConnection(Endpoint("127.0.0.1", port), timeout_s=timeout_s, backoff_s_min=0.02)
    return ModbusDevice(connection, name="dut", unit_id=unit)


class Table:
    """Registers and bits exactly as given; anything else is an illegal address. Keeps every write in order."""

    def __init__(
        self,
        registers: Mapping[int, bytes],
        *,
        function: int = 3,
        bits: Mapping[int, bool] | None = None,
        writable: Iterable[int] = (),
    ) -> None:
        self.words: dict[int, bytes] = {}
        for address, data in registers.items():
            self.put(address, data)
        self.function = function
        self.bits = dict(bits or {})
        self.writable = set(writable)
        self.writes: list[tuple[int, bytes]] = []

    def put(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), 2):
            self.words[address + at // 2] = data[at : at + 2]

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        if function != self.function and address not in self.writable:
            raise RegisterFault(ExceptionCode.ILLEGAL_FUNCTION)
        try:
            return b"".join(self.words[address + i] for i in range(count))
        except KeyError:
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS) from None

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        try:
            return [self.bits[address + i] for i in range(count)]
        except KeyError:
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS) from None

    def write_registers(self, address: int, data: bytes) -> None:
        if not set(range(address, address + len(data) // 2)) <= self.writable:
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
        self.writes.append((address, data))
        self.put(address, data)


def f32(*values: float) -> bytes:
    return struct.pack(f">{len(values)}f", *values)


def u16(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def i16(*values: int) -> bytes:
    return struct.pack(f">{len(values)}h", *values)


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def i32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


@contextlib.asynccontextmanager
async def serving(registers: RegisterMap, *, unit: int = 1) -> AsyncIterator[ModbusServer]:
    async with ModbusServer({unit: registers}) as server:
        yield server


@dataclass
class Plant:
    """A meter and a battery that do what they are told, at once."""

    power_w: float = 12.3e6
    soc_frac: float = 0.5
    charge_w_limit: float = 70e6
    discharge_w_limit: float = 60e6
    state: BatteryState = BatteryState.RUNNING
    is_remote: bool = True
    frequency_hz: float | None = 60.0
    voltage_pu: float | None = 1.0
    import_wh: float | None = 5e9
    export_wh: float | None = 1e6
    orders: list[tuple[str, float]] = field(default_factory=list)

    def set_setpoint(self, w: float, /) -> None:
        self.power_w = w
        self.orders.append(("setpoint", w))

    def set_follow_target(self, w: float, ramp_w_per_s: float, /) -> None:
        self.orders.append(("follow", w))

    def set_idle(self) -> None:
        self.power_w = 0.0
        self.orders.append(("idle", 0.0))


Script = Callable[[bytes], Sequence[bytes | float]]


class ScriptedServer:
    """Answers each chunk of bytes with what `script` returns: bytes are sent, numbers are waited for (s)."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.port = 0
        self.open_count = 0
        self.accepted_count = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted_count += 1
        self.open_count += 1
        try:
            while request := await reader.read(512):
                for step in self.script(request):
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    else:
                        await asyncio.sleep(step)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_count -= 1
            self._tasks.discard(task)
            writer.close()


def reply(request: bytes, pdu: bytes, *, tid: int | None = None, unit: int | None = None) -> bytes:
    """A Modbus TCP reply to `request`."""
    own = int.from_bytes(request[:2], "big") if tid is None else tid
    return struct.pack(">HHHB", own, 0, len(pdu) + 1, request[6] if unit is None else unit) + pdu


def table() -> Table:
    """Four bytes of a reading, and two registers that may be written."""
    return Table({0: FOUR, 10: bytes(4)}, writable=(10, 11))


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


async def until(condition: Callable[[], bool], *, within_s: float = 2.0) -> None:
    """Wait for a condition of the other side; fails when it does not come."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - the other side offers no event
            await asyncio.sleep(0.005)
