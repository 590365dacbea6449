"""A Modbus server for simulated devices: it serves whole frames itself and knows nothing of what a register means.

Replies carry the request's transaction id and leave in the order the requests came, however the bytes were split or
joined on the way. Nothing here waits: a device that answers late, wrongly or not at all is made by a fault proxy in
front. `MeterModel`, `BatteryModel` and `UpsModel` are what a plant must offer so that the device models in
`hil.modbus_image`, `hil.modbus_battery` and `hil.modbus_ups` can put registers in front of it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum, unique
from typing import Protocol

from pymodbus.framer.rtu import FramerRTU

from controller.types import BatteryState

MBAP = struct.Struct(">HHHB")
REQUEST = struct.Struct(">BHH")
PDU_BYTES_MAX = 253  # Modbus application protocol 1.1b3, section 4.1
READ_REGISTERS_MAX = 125
READ_BITS_MAX = 2000
WRITE_REGISTERS_MAX = 123


class MeterModel(Protocol):
    """What a power meter sees; None where this one has no such reading. Import positive."""

    @property
    def power_w(self) -> float: ...
    @property
    def frequency_hz(self) -> float | None: ...
    @property
    def voltage_pu(self) -> float | None: ...
    @property
    def import_wh(self) -> float | None: ...
    @property
    def export_wh(self) -> float | None: ...


class BatteryModel(Protocol):
    """A battery and its power conversion as the register side drives it; discharge positive, limits magnitudes >= 0.

    Timers, ramps of set-points and the expiry of commands belong to the register side (`hil.modbus_battery`); lag,
    efficiency, limits, deadband and the slope of a following target belong to the plant.
    """

    @property
    def power_w(self) -> float: ...
    @property
    def soc_frac(self) -> float: ...
    @property
    def charge_w_limit(self) -> float:
        """What it can take now."""

    @property
    def discharge_w_limit(self) -> float:
        """What it can give now."""

    @property
    def state(self) -> BatteryState: ...
    @property
    def is_remote(self) -> bool: ...

    def set_setpoint(self, w: float, /) -> None:
        """Deliver `w` from now on, as fast as the converter can."""

    def set_follow_target(self, w: float, ramp_w_per_s: float, /) -> None:
        """Keep power at the point of common coupling on `w`, moving there no faster than `ramp_w_per_s`."""

    def set_idle(self) -> None:
        """Deliver nothing."""


class UpsModel(Protocol):
    """A UPS as its management card sees it."""

    @property
    def output_w(self) -> float: ...
    @property
    def output_va(self) -> float: ...
    @property
    def is_on_battery(self) -> bool: ...
    @property
    def is_on_bypass(self) -> bool: ...
    @property
    def minutes_left(self) -> float: ...
    @property
    def load_frac(self) -> float: ...
    @property
    def input_frequency_hz(self) -> float: ...
    @property
    def voltage_v(self) -> float: ...


@unique
class ExceptionCode(IntEnum):
    ILLEGAL_FUNCTION = 1
    ILLEGAL_ADDRESS = 2
    ILLEGAL_VALUE = 3
    DEVICE_FAILURE = 4
    DEVICE_BUSY = 6
    GATEWAY_NO_PATH = 0x0A
    GATEWAY_TARGET_SILENT = 0x0B


class RegisterFault(Exception):
    """A request the device refuses, with the exception code it answers."""

    def __init__(self, code: ExceptionCode) -> None:
        super().__init__(code.name)
        self.code = code


class RegisterMap(Protocol):
    """The registers of one unit. Every method may raise RegisterFault and must not wait."""

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        """`count` registers as 2 * count bytes, big-endian."""

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]: ...

    def write_registers(self, address: int, data: bytes) -> None:
        """All of `data` is taken, or none."""


@unique
class Framing(StrEnum):
    TCP = "tcp"  # MBAP header, transaction ids
    RTU = "rtu"  # unit id and CRC over a TCP stream, as a serial gateway passes it through


class ModbusServer:
    """Serves `units` (unit id -> registers) on one port. `port` 0 takes a free one; read it back after `start`."""

    def __init__(
        self,
        units: Mapping[int, RegisterMap],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        framing: Framing = Framing.TCP,
        clients_max: int = 64,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.units = dict(units)
        self.host = host
        self.port = port
        self.clients_max = clients_max
        self.request_count = 0
        self.accepted_count = 0
        self.refused_count = 0
        self._framing = framing
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def client_count(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Listen; OSError when the port is taken."""
        protocol = _TcpConnection if self._framing is Framing.TCP else _RtuConnection
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: protocol(self), self.host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection; a later `start` takes the same port again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop_clients()
        await asyncio.sleep(0)

    def drop_clients(self) -> None:
        """Reset every connection, as a device does that restarts."""
        for connection in tuple(self._connections):
            connection.abort()

    async def __aenter__(self) -> ModbusServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def admit(self, connection: _Connection) -> bool:
        if len(self._connections) >= self.clients_max:
            self.refused_count += 1
            return False
        self.accepted_count += 1
        self._connections.add(connection)
        return True

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def answer(self, unit: int, pdu: bytes) -> bytes | None:
        """The reply PDU to a request PDU; None for a unit nobody answers for."""
        registers = self.units.get(unit)
        if registers is None:
            return None
        self.request_count += 1
        try:
            return _serve(registers, pdu)
        except RegisterFault as fault:
            return bytes((pdu[0] | 0x80, fault.code))


class _Connection(asyncio.Protocol):
    """One client: cuts the stream into frames and answers each in turn."""

    def __init__(self, server: ModbusServer) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._server.admit(self):
            transport.abort()
            return
        self._transport = transport
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._transport = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies = self.take_frames()
        if replies and self._transport is not None:
            self._transport.write(replies)

    def take_frames(self) -> bytes:
        raise NotImplementedError


class _TcpConnection(_Connection):
    def take_frames(self) -> bytes:
        replies: list[bytes] = []
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= MBAP.size:
            tid, protocol, length, unit = MBAP.unpack_from(buffer, at)
            if protocol != 0 or not 2 <= length <= PDU_BYTES_MAX + 1:
                self.abort()  # not Modbus, or out of step: no later byte can be trusted
                return b""
            end = at + 6 + length
            if len(buffer) < end:
                break
            reply = self._server.answer(unit, buffer[at + MBAP.size : end])
            if reply is not None:
                replies.append(MBAP.pack(tid, 0, len(reply) + 1, unit) + reply)
            at = end
        self._buffer = buffer[at:]
        return b"".join(replies)


class _RtuConnection(_Connection):
    def take_frames(self) -> bytes:
        replies: list[bytes] = []
        while (size := _rtu_request_size(self._buffer)) is not None and len(self._buffer) >= size:
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            if FramerRTU.compute_CRC(frame[:-2]) != int.from_bytes(frame[-2:], "big"):
                self._buffer = b""  # a serial device stays silent and waits for the line to be quiet
                break
            reply = self._server.answer(frame[0], frame[1:-2])
            if reply is not None:
                body = bytes((frame[0],)) + reply
                replies.append(body + FramerRTU.compute_CRC(body).to_bytes(2, "big"))
        return b"".join(replies)


def _rtu_request_size(buffer: bytes) -> int | None:
    """Bytes of the RTU request at the head of `buffer`; None while that cannot be known."""
    if len(buffer) < 2:
        return None
    if buffer[1] != 16:
        return 8
    return None if len(buffer) < 7 else 9 + buffer[6]


def _serve(registers: RegisterMap, pdu: bytes) -> bytes:
    function = pdu[0]
    if function not in (1, 2, 3, 4, 6, 16):
        raise RegisterFault(ExceptionCode.ILLEGAL_FUNCTION)
    if len(pdu) < REQUEST.size:
        raise RegisterFault(ExceptionCode.ILLEGAL_VALUE)
    _, address, count = REQUEST.unpack_from(pdu)
    if function in (3, 4):
        _check_span(address, count, READ_REGISTERS_MAX)
        return bytes((function, 2 * count)) + registers.read_registers(function, address, count)
    if function in (1, 2):
        _check_span(address, count, READ_BITS_MAX)
        packed = _pack_bits(registers.read_bits(function, address, count))
        return bytes((function, len(packed))) + packed
    if function == 6:
        registers.write_registers(address, pdu[3:5])
        return pdu[:5]
    _check_span(address, count, WRITE_REGISTERS_MAX)
    data = pdu[6:]
    if len(pdu) < 6 or pdu[5] != 2 * count or len(data) != 2 * count:
        raise RegisterFault(ExceptionCode.ILLEGAL_VALUE)
    registers.write_registers(address, data)
    return pdu[:5]


def _check_span(address: int, count: int, count_max: int) -> None:
    if not 1 <= count <= count_max:
        raise RegisterFault(ExceptionCode.ILLEGAL_VALUE)
    if address + count > 0x10000:
        raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)


def _pack_bits(bits: Sequence[bool]) -> bytes:
    packed = bytearray((len(bits) + 7) // 8)
    for index, bit in enumerate(bits):
        if bit:
            packed[index // 8] |= 1 << (index % 8)
    return bytes(packed)
