"""A Modbus TCP proxy that works on frames: it stands between client and device and does to frames what bad wires do.

One fault at a time, on every connection, until it is taken away. It knows nothing of registers. Requests pass on to the
device or not, replies pass back late, cut, twice, swapped, in pieces, together, under another unit
or function, or as an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Sequence
from enum import StrEnum, unique

import numpy as np

from controller.types import frozen

MBAP = struct.Struct(">HHHB")
FRAME_BYTES_MAX = 260
SPLIT_PAUSE_S = 0.001  # between two bytes: they leave in segments of their own


@unique
class WireFault(StrEnum):
    """What is done. `value` of a fault is seconds, a count, or an exception code, as said here."""

    DELAY = "delay"  # seconds
    DROP = "drop"  # the reply is lost
    CUT = "cut"  # half a reply, then the connection is reset
    DUPLICATE = "duplicate"
    REORDER = "reorder"  # every second reply comes before the one it followed
    SPLIT = "split"  # byte by byte
    COALESCE = "coalesce"  # held back until `value` replies are there, or the next second
    HALF_OPEN = "half_open"  # nothing passes, nothing is closed, new connections are taken
    WRONG_UNIT = "wrong_unit"
    WRONG_FUNCTION = "wrong_function"  # the neighbour's: input for holding registers, one register for many
    EXCEPTION = "exception"  # exception code `value` instead of asking the device
    GARBAGE = "garbage"  # as many bytes, of anything
    REFUSED = "refused"  # connections are reset at once


NEIGHBOUR = {3: 4, 4: 3, 16: 6, 6: 16, 1: 2, 2: 1}
WIRE_VERBS = {"off": "half_open", "garbage": "garbage", "slow": "delay", "intermittent": "drop"}  # of a scenario


@frozen
class Sick:
    """A fault in force; `share` of the frames suffer."""

    fault: WireFault
    value: float = 0.0
    share: float = 1.0


class ModbusProxy:
    """Listens on `port` (0: a free one) and speaks with the device at `host`:`behind_port`."""

    def __init__(self, host: str, behind_port: int, *, rng: np.random.Generator, port: int = 0) -> None:
        self.host, self.port = host, port
        self.sick: Sick | None = None
        self.sick_count = 0
        self._behind_port, self._rng = behind_port, rng
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> ModbusProxy:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def make(self, fault: WireFault, value: float = 0.0, *, share: float = 1.0) -> None:
        """This fault, and no other, from now on."""
        self.sick = Sick(fault, value, share)

    def make_verb(self, verb: str, value: float) -> None:
        """A scenario's verb, of those in WIRE_VERBS."""
        fault = WireFault(WIRE_VERBS[verb])
        self.make(fault, value, share=value if fault is WireFault.DROP else 1.0)

    def heal(self) -> None:
        self.sick = None

    def reset(self) -> None:
        """Reset every connection, as a cable that is pulled and put back."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    # ------------------------------------------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self.sick is not None and self.sick.fault is WireFault.REFUSED:
                return
            behind_reader, behind = await asyncio.open_connection(self.host, self._behind_port)
            try:
                await _Link(self, reader, writer, behind_reader, behind).run()
            finally:
                behind.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            return
        except asyncio.CancelledError:
            return  # the proxy is stopped
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    def draw(self) -> Sick | None:
        """The fault that the next frame suffers, if it does."""
        sick = self.sick
        if sick is None or (sick.share < 1.0 and self._rng.random() >= sick.share):
            return None
        self.sick_count += 1
        return sick

    def noise(self, count: int) -> bytes:
        return self._rng.bytes(count)


class _Link:
    """Both directions of one connection."""

    def __init__(
        self,
        proxy: ModbusProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        behind_reader: asyncio.StreamReader,
        behind: asyncio.StreamWriter,
    ) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._behind_reader, self._behind = behind_reader, behind
        self._held: list[bytes] = []

    async def run(self) -> None:
        ways = {asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies())}
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(self) -> None:
        while True:
            frame = await _frame(self._reader)
            sick = self._proxy.sick
            if sick is not None and sick.fault is WireFault.HALF_OPEN:
                self._proxy.sick_count += 1
                continue
            if sick is not None and sick.fault is WireFault.EXCEPTION and (drawn := self._proxy.draw()) is not None:
                tid, _, _, unit = MBAP.unpack_from(frame)
                refusal = bytes((frame[MBAP.size] | 0x80, int(drawn.value)))
                await self._send(MBAP.pack(tid, 0, 3, unit) + refusal)
                continue
            self._behind.write(frame)
            await self._behind.drain()

    async def _replies(self) -> None:
        while True:
            frame = await _frame(self._behind_reader)
            sick = self._proxy.draw()
            if sick is None or sick.fault is WireFault.EXCEPTION:
                await self._send(frame)
            else:
                await self._suffer(frame, sick)

    async def _suffer(self, frame: bytes, sick: Sick) -> None:
        match sick.fault:
            case WireFault.DELAY:
                await asyncio.sleep(sick.value)
                await self._send(frame)
            case WireFault.DROP | WireFault.HALF_OPEN:
                return
            case WireFault.CUT:
                await self._send(frame[: len(frame) // 2])
                self._writer.transport.abort()
            case WireFault.DUPLICATE:
                await self._send(frame + frame)
            case WireFault.REORDER:
                self._held.append(frame)
                if len(self._held) == 2:
                    await self._release(self._held[::-1])
            case WireFault.SPLIT:
                for k in range(len(frame)):
                    await self._send(frame[k : k + 1])
                    await asyncio.sleep(SPLIT_PAUSE_S)
            case WireFault.COALESCE:
                self._held.append(frame)
                if len(self._held) >= max(2, int(sick.value)):
                    await self._release(self._held)
            case WireFault.WRONG_UNIT:
                await self._send(frame[:6] + bytes(((frame[6] + 1) % 248,)) + frame[7:])
            case WireFault.WRONG_FUNCTION:
                at = MBAP.size
                await self._send(frame[:at] + bytes((NEIGHBOUR.get(frame[at], frame[at]),)) + frame[at + 1 :])
            case WireFault.GARBAGE:
                await self._send(self._proxy.noise(len(frame)))
            case WireFault.EXCEPTION | WireFault.REFUSED:
                await self._send(frame)

    async def _release(self, frames: Sequence[bytes]) -> None:
        whole = b"".join(frames)
        self._held = []
        await self._send(whole)

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One frame, header and all; IncompleteReadError at the end, OSError for what is no Modbus."""
    head = await reader.readexactly(MBAP.size)
    length = MBAP.unpack(head)[2]
    if not 2 <= length <= FRAME_BYTES_MAX - 6:
        raise OSError("not a Modbus frame")
    return head + await reader.readexactly(length - 1)
