"""One supervised Modbus connection, shared by every device behind it, on the client of pymodbus.

What the library leaves to its user is done here: our own reconnect with bounded back-off, one request at a time, a
deadline on every wait, a socket that is closed after a timeout (on RTU also after a cancelled request, and the line
given time to fall silent, because RTU replies carry no transaction id). At most one socket is ever open. Nothing but
`DriverError` kinds and CancelledError leaves this file. Writes go only to registers that the device's driver allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from copy import copy
from typing import Any

from pymodbus.client.base import ModbusBaseClient
from pymodbus.exceptions import ConnectionException, ModbusException, ModbusIOException

from controller.errors import BadInput
from drivers.errors import BadReply, DeviceBusy, DeviceGone, DeviceTimeout, InvalidValue
from drivers.modbus_client import Garbled, cause_of, make_client, refusal
from drivers.modbus_endpoint import Endpoint, Framing
from drivers.tls_files import TlsFiles

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0  # a device that comes back is found within this
WRITE_REGISTERS_MAX = 123  # Modbus application protocol 1.1b3, function 16
MULTIPLE, SINGLE = 16, 6
GATEWAY_TARGET_SILENT = 0x0B

# The library logs each timeout and stray frame as an error; our callers log one line per change of state instead.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

Send = Callable[[Any], Awaitable[Any]]


class ModbusConnection:
    """Connects by itself, in the background, from the first request until `close`; belongs to one event loop.

    A request made while nothing is connected fails at once with DeviceGone, except during a first attempt, which it
    waits for (within its own deadline).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float,
        request_gap_s: float = 0.0,
        backoff_s_min: float = BACKOFF_S_MIN,
        backoff_s_max: float = BACKOFF_S_MAX,
    ) -> None:
        assert timeout_s > 0 and 0 < backoff_s_min <= backoff_s_max
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.request_gap_s = request_gap_s
        self.connect_count = 0  # grows by one with every new connection: what was negotiated before is void
        self.timeout_count = 0
        self._backoff_s = (backoff_s_min, backoff_s_max)
        self._client: ModbusBaseClient | None = None
        self._turn = asyncio.Lock()
        self._supervisor: asyncio.Task[None] | None = None
        self._attempted = asyncio.Event()  # set unless an attempt to connect is under way
        self._lost = asyncio.Event()
        self._has_answered = False  # on the connection that stands
        self._heard_count = 0  # bytes since the request in flight was sent
        self._is_owed = False  # an answer to a request that was given up may still come on it
        self._why = "not connected yet"
        self._is_closed = False
        files = (endpoint.ca_file, endpoint.cert_file, endpoint.key_file)
        self._tls = TlsFiles(files, endpoint.tls_context) if endpoint.framing is Framing.TLS else None
        self._quiet_until_s = 0.0  # on the event loop's clock: no request before

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.connected

    async def close(self) -> None:
        """Close the socket and stop reconnecting, for good."""
        self._is_closed = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervisor
        self._drop("closed")

    async def ready(self, device: str) -> int:
        """Which connection stands, counted from 1; DriverError where none does."""
        if not self.is_connected:
            await self._wait_for_client(device)
        return self.connect_count

    async def request(self, device: str, send: Send, *, over: int | None = None) -> Any:
        """The reply to what `send(client)` asks, or a DriverError that names `device`.

        `over` is the one connection it may travel on: on a later one another device may answer.
        """
        client = self._client
        if client is None or not client.connected:
            client = await self._wait_for_client(device)
        if self._turn.locked():
            await self._wait_for_turn(device)
        else:
            await self._turn.acquire()
        try:
            if client is not self._client:
                raise DeviceGone(device, f"{self.endpoint}: {self._why}")
            if over is not None and over != self.connect_count:
                raise DeviceGone(device, f"{self.endpoint}: connected anew, and nothing is known of what answers now")
            await self._wait_for_quiet()
            return await self._exchange(device, client, send)
        finally:
            self._turn.release()

    def bad_reply(self, device: str, what: str) -> BadReply:
        """The error for an answer to something else; on RTU the true one may still come, so the line is closed."""
        if self.endpoint.is_rtu:
            self._drop("an answer to something else")
        return BadReply(device, what)

    async def _exchange(self, device: str, client: ModbusBaseClient, send: Send) -> Any:
        self._heard_count = 0
        try:
            reply = await send(client)
        except asyncio.CancelledError:
            if self.endpoint.is_rtu:
                self._drop("a request was cancelled and its late reply could be taken for another's")
            self._is_owed = True
            raise
        except ConnectionException as error:
            self._drop("connection lost")
            raise DeviceGone(device, f"{self.endpoint}: connection lost") from error
        except ModbusIOException as error:
            self.timeout_count += 1
            self._drop("no answer in time")
            if self._heard_count:  # of another unit, of another request, or no whole frame
                what = f"{self._heard_count} bytes and no answer to us within {self.timeout_s:g} s"
                raise BadReply(device, f"{self.endpoint}: {what}") from error
            raise DeviceTimeout(device, f"{self.endpoint}: no answer within {self.timeout_s:g} s") from error
        except (ModbusException, OSError, ValueError, struct.error, IndexError) as error:
            self._drop("garbled reply")
            raise BadReply(device, f"{self.endpoint}: garbled reply: {error}") from error
        self._has_answered = True
        if isinstance(reply, Garbled):
            self._drop("garbled reply")
            raise BadReply(device, f"{self.endpoint}: garbled reply")
        if self._is_owed and not reply.transaction_id:
            self._drop("an answer that carries no number, after a request that was given up")
            raise BadReply(device, f"{self.endpoint}: the answer carries no number and may be an older request's")
        if self.request_gap_s > 0:
            self._quiet_until_s = asyncio.get_running_loop().time() + self.request_gap_s
        if reply.isError():
            if self.endpoint.is_rtu and reply.exception_code == GATEWAY_TARGET_SILENT:
                self._drop("the gateway gave up waiting, and what it waited for may still come")
            raise refusal(device, reply.exception_code)
        return reply

    async def _wait_for_client(self, device: str) -> ModbusBaseClient:
        if self._is_closed:
            raise DeviceGone(device, f"{self.endpoint}: closed")
        if self._supervisor is None or self._supervisor.done():
            self._attempted.clear()
            self._supervisor = asyncio.create_task(self._supervise(), name=f"modbus {self.endpoint}")
        if not self._attempted.is_set():
            try:
                await asyncio.wait_for(self._attempted.wait(), self.timeout_s)
            except TimeoutError:
                raise DeviceTimeout(device, f"{self.endpoint}: not connected within {self.timeout_s:g} s") from None
        if self._client is None or not self._client.connected:
            raise DeviceGone(device, f"{self.endpoint}: {self._why}")
        return self._client

    async def _wait_for_turn(self, device: str) -> None:
        try:
            await asyncio.wait_for(self._turn.acquire(), self.timeout_s)
        except TimeoutError:
            raise DeviceBusy(device, f"{self.endpoint}: other requests took longer than {self.timeout_s:g} s") from None

    async def _wait_for_quiet(self) -> None:
        wait_s = self._quiet_until_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _supervise(self) -> None:
        """Keep one connection: connect, wait for its loss, wait a little longer after each failure."""
        backoff_s = self._backoff_s[0]
        try:
            while True:
                self._attempted.clear()
                is_up = await self._connect()
                self._attempted.set()
                if is_up and await self._was_good():
                    backoff_s = self._backoff_s[0]
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._backoff_s[1])
        finally:
            self._attempted.set()
            self._drop(self._why)

    async def _was_good(self) -> bool:
        """Wait until the connection is lost; False where the peer took it and ended it without a word."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self._lost.wait()
        return self._has_answered or loop.time() - began_s >= self.timeout_s

    async def _connect(self) -> bool:
        self._lost.clear()
        self._has_answered = self._is_owed = False
        try:
            client = self._new_client()
        except BadInput as bad:  # certificates that were there at the start: they are being renewed
            self._why = f"cannot connect: {bad}"
            return False
        self._why = f"cannot connect: no answer within {self.timeout_s:g} s"
        try:
            is_up = await client.connect()
        except (ModbusException, ValueError) as error:
            self._why = f"cannot connect: {error}"
            is_up = False
        except asyncio.CancelledError:
            client.close()
            raise
        if not is_up:
            client.close()
            return False
        self._client = client
        self.connect_count += 1
        if self.endpoint.is_rtu:  # what a gateway or line still carries of an older request must not be taken for ours
            self._quiet_until_s = asyncio.get_running_loop().time() + self.timeout_s * (self.connect_count > 1)
        return True

    def _new_client(self) -> ModbusBaseClient:
        client: ModbusBaseClient | None = None

        def on_change(is_up: bool) -> None:
            if not is_up and client is not None:
                self._fail_pending(client)

        tls = self._tls.context() if self._tls is not None else None
        client = make_client(self.endpoint, tls, timeout_s=self.timeout_s, on_change=on_change, on_bytes=self._heard)
        create = client.ctx.call_create

        async def create_and_say_why() -> Any:
            try:
                return await create()
            except OSError as error:  # the library turns it into `False`; a person wants to know
                self._why = f"cannot connect: {cause_of(error)}"
                raise

        client.ctx.call_create = create_and_say_why
        return client

    def _heard(self, count: int) -> None:
        self._heard_count += count

    def _fail_pending(self, client: ModbusBaseClient) -> None:
        """The connection ended: end the request in flight now, not at its deadline."""
        pending = client.ctx.response_future
        if not pending.done():
            pending.set_exception(ConnectionException("connection lost"))
            pending.exception()  # retrieved: nobody may be waiting
        if client is self._client:
            self._client = None
            self._why = "connection lost"
            self._lost.set()

    def _drop(self, why: str) -> None:
        """Close the socket now, without waiting for what it still has to send; the supervisor connects again."""
        client, self._client = self._client, None
        self._why = why
        self._lost.set()
        if client is None:
            return
        transport = client.ctx.transport
        client.close()
        self._fail_pending(client)
        if self.endpoint.framing is not Framing.SERIAL and isinstance(transport, asyncio.WriteTransport):
            transport.abort()


class ModbusDevice:
    """One unit behind a connection: its reads, and writes to its allow-listed registers only."""

    def __init__(
        self,
        connection: ModbusConnection,
        *,
        name: str,
        unit_id: int,
        registers_per_read_max: int = 125,
        write_function: int = MULTIPLE,
    ) -> None:
        assert 1 <= registers_per_read_max <= 125 and write_function in (MULTIPLE, SINGLE)
        self.connection = connection
        self.name = name
        self.unit_id = unit_id
        self.registers_per_read_max = registers_per_read_max
        self._write_function = write_function
        self._writable: frozenset[int] = frozenset()
        self.over: int | None = None  # the one connection it is spoken to on; None: any

    @property
    def is_standing(self) -> bool:
        """It was taken on a connection, and that is still up."""
        return self.over == self.connection.connect_count and self.connection.is_connected

    async def on_this_connection(self) -> ModbusDevice:
        """The same device for as long as the connection that stands now lasts; afterwards DeviceGone, for good.

        An order that began before a reconnect must not end behind it, at whatever answers there.
        """
        taken = copy(self)
        taken.over = await self.connection.ready(self.name)
        return taken

    def allow(self, addresses: Iterable[int]) -> None:
        """These registers, and no others, may be written from now on."""
        self._writable = frozenset(addresses)

    async def read_registers(self, function: int, address: int, count: int) -> bytes:
        """`count` registers (function 3 or 4) as 2 * count bytes in the order of the wire; longer spans are split."""
        data = b""
        while count > 0:
            part = min(count, self.registers_per_read_max)
            data += await self._read_block(function, address, part)
            address, count = address + part, count - part
        return data

    async def read_bits(self, function: int, address: int, count: int) -> list[bool]:
        """`count` coils (function 1) or discrete inputs (function 2)."""
        unit = self.unit_id

        def send(client: Any) -> Awaitable[Any]:
            read = client.read_coils if function == 1 else client.read_discrete_inputs
            return read(address, count=count, device_id=unit)  # type: ignore[no-any-return]

        reply = await self.connection.request(self.name, send, over=self.over)
        self._require_function(reply, function, address)
        bits: Sequence[bool] = reply.bits
        if len(bits) < count:
            raise self.connection.bad_reply(self.name, f"{len(bits)} bits where {count} were asked for at {address}")
        return [bool(bit) for bit in bits[:count]]

    async def write_registers(self, address: int, data: bytes) -> None:
        """Write `data` at `address` in one frame; InvalidValue for any register not allowed, before it is sent."""
        count = len(data) // 2
        refused = [at for at in range(address, address + count) if at not in self._writable]
        if refused or not 0 < count <= WRITE_REGISTERS_MAX:
            raise InvalidValue(self.name, f"register {refused[0] if refused else address} may not be written")
        values = list(struct.unpack(f">{count}H", data))
        unit = self.unit_id
        if self._write_function == SINGLE:
            for offset, value in enumerate(values):
                await self._write_one(address + offset, value)
            return

        def send(client: Any) -> Awaitable[Any]:
            return client.write_registers(address, values, device_id=unit)  # type: ignore[no-any-return]

        reply = await self.connection.request(self.name, send, over=self.over)
        if (reply.address, reply.count) != (address, count):
            raise self.connection.bad_reply(self.name, f"a write at {address} was acknowledged for {reply.address}")

    async def _write_one(self, address: int, value: int) -> None:
        unit = self.unit_id

        def send(client: Any) -> Awaitable[Any]:
            return client.write_register(address, value, device_id=unit)  # type: ignore[no-any-return]

        reply = await self.connection.request(self.name, send, over=self.over)
        if (reply.address, list(reply.registers)) != (address, [value]):
            raise self.connection.bad_reply(self.name, f"a write at {address} was acknowledged for {reply.address}")

    async def _read_block(self, function: int, address: int, count: int) -> bytes:
        unit = self.unit_id

        def send(client: Any) -> Awaitable[Any]:
            read = client.read_holding_registers if function == 3 else client.read_input_registers
            return read(address, count=count, device_id=unit)  # type: ignore[no-any-return]

        reply = await self.connection.request(self.name, send, over=self.over)
        self._require_function(reply, function, address)
        registers: Sequence[int] = reply.registers
        if len(registers) != count:
            what = f"{len(registers)} registers where {count} were asked for at {address}"
            raise self.connection.bad_reply(self.name, what)
        return struct.pack(f">{count}H", *registers)

    def _require_function(self, reply: Any, function: int, address: int) -> None:
        if reply.function_code != function:
            what = f"function {reply.function_code} in reply to {function} at {address}"
            raise self.connection.bad_reply(self.name, what)


class ModbusPool:
    """One connection per endpoint, however many units live behind it, so that a device's few sockets suffice."""

    def __init__(self) -> None:
        self._connections: dict[Endpoint, ModbusConnection] = {}

    def connection(self, endpoint: Endpoint, *, timeout_s: float, request_gap_s: float = 0.0) -> ModbusConnection:
        """The connection to `endpoint`; the shortest deadline and the longest gap that any of its users asked for."""
        found = self._connections.get(endpoint)
        if found is None:
            found = ModbusConnection(endpoint, timeout_s=timeout_s, request_gap_s=request_gap_s)
            self._connections[endpoint] = found
        found.timeout_s = min(found.timeout_s, timeout_s)
        found.request_gap_s = max(found.request_gap_s, request_gap_s)
        return found

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.close()
        self._connections.clear()
