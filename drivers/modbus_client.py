"""Clients of pymodbus with their own retries and reconnect off, exact in what they take for an answer.

And what the wire's error codes mean to us.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.client.base import ModbusBaseClient
from pymodbus.framer import FramerType
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.transport import CommParams, CommType

from controller.ports import DriverError
from drivers.errors import DeviceBusy, DeviceFault, DeviceGone, DeviceTimeout, InvalidValue, NotSupported
from drivers.modbus_endpoint import Endpoint, Framing

READS_BITS, READS_REGISTERS = (1, 2), (3, 4)

Trace = Callable[[bool, bytes], bytes]  # whether it is sent, and the packet, which goes on as it is


class Garbled(ModbusPDU):
    """A frame for us that is no answer. The library would raise in the reader, where nobody can catch it."""


class _ExactDecoder(DecodePDU):
    """The library's decoder, but that bytes too many or too few are garbage, and that garbage is an answer."""

    def decode(self, frame: bytes) -> ModbusPDU:
        pdu = super().decode(frame)
        return Garbled() if pdu is None or not _is_exact(frame) else pdu


def _is_exact(frame: bytes) -> bool:
    """What was read is as long as it says, and no register is cut in two."""
    function = frame[0]
    if function not in (*READS_BITS, *READS_REGISTERS):
        return True
    return len(frame) == 2 + frame[1] and (function in READS_BITS or frame[1] % 2 == 0)


def make_client(
    endpoint: Endpoint,
    tls: ssl.SSLContext | None,
    *,
    timeout_s: float,
    on_change: Callable[[bool], None],
    on_bytes: Callable[[int], None],
) -> ModbusBaseClient:
    """A pymodbus client with its own retries and reconnect off, on the exact decoder.

    `on_bytes` hears how many bytes came: the library drops what is no answer to us without a word.
    """

    def trace(is_sent: bool, packet: bytes) -> bytes:
        if not is_sent:
            on_bytes(len(packet))
        return packet

    client = _plain_client(endpoint, tls, timeout_s=timeout_s, on_change=on_change, trace=trace)
    client.ctx.framer.decoder = _ExactDecoder(is_server=False)
    return client


def _plain_client(
    endpoint: Endpoint,
    tls: ssl.SSLContext | None,
    *,
    timeout_s: float,
    on_change: Callable[[bool], None],
    trace: Trace,
) -> ModbusBaseClient:
    if endpoint.framing is Framing.SERIAL:
        return AsyncModbusSerialClient(
            endpoint.host,
            framer=FramerType.RTU,
            baudrate=endpoint.baudrate,
            parity=endpoint.parity,
            stopbits=endpoint.stopbits,
            timeout=timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_connect=on_change,
            trace_packet=trace,
        )
    if tls is not None:
        return _TlsClient(endpoint, tls, timeout_s=timeout_s, on_change=on_change, trace=trace)
    return AsyncModbusTcpClient(
        endpoint.host,
        port=endpoint.port,
        framer=FramerType.RTU if endpoint.framing is Framing.RTU_OVER_TCP else FramerType.SOCKET,
        timeout=timeout_s,
        retries=0,
        reconnect_delay=0,
        trace_connect=on_change,
        trace_packet=trace,
    )


class _TlsClient(AsyncModbusTcpClient):
    """TLS with the framer of plain TCP: the frames are the same, and it joins a reply split over two records."""

    def __init__(
        self,
        endpoint: Endpoint,
        tls: ssl.SSLContext,
        *,
        timeout_s: float,
        on_change: Callable[[bool], None],
        trace: Trace,
    ) -> None:
        self.comm_params = CommParams(
            comm_type=CommType.TLS,
            comm_name="comm",
            host=endpoint.host,
            port=endpoint.port,
            sslctx=tls,
            reconnect_delay=0,
            timeout_connect=timeout_s,
        )
        super().__init__(
            endpoint.host,
            framer=FramerType.SOCKET,
            timeout=timeout_s,
            retries=0,
            trace_connect=on_change,
            trace_packet=trace,
        )


def refusal(device: str, code: int) -> DriverError:
    """The error that a Modbus exception code means."""
    text = f"Modbus exception {code}"
    if code == 1:
        return NotSupported(device, f"{text}: function not supported")
    if code == 2:
        return NotSupported(device, f"{text}: no such register")
    if code == 3:
        return InvalidValue(device, f"{text}: value not allowed")
    if code in (5, 6):
        return DeviceBusy(device, f"{text}: busy")
    if code == 0x0A:
        return DeviceGone(device, f"{text}: the gateway has no path to the unit")
    if code == 0x0B:
        return DeviceTimeout(device, f"{text}: the unit behind the gateway does not answer")
    return DeviceFault(device, f"{text}: device failure")


def cause_of(error: OSError) -> str:
    """The operating system's word for it; the library of TLS and the resolver have their own."""
    if isinstance(error, ssl.SSLError) or error.errno is None or error.errno <= 0:
        return str(error)
    return os.strerror(error.errno)
