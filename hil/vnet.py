"""A network in memory for virtual time: streams between tasks of one loop, with TCP's order and none of its sockets.

Clients and servers that ask their event loop for a connection or a listening port run unchanged on a `NetworkedLoop`.
What is written arrives whole, in order and at once; whoever wants it late, cut or lost puts `hil.modbus_proxy` between.
There is one host, whatever it is called.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

from hil.vtime import ForbiddenInVirtualTime, VirtualLoop

FIRST_PORT = 49_152  # of those handed out where none was asked for (RFC 6335, dynamic ports)

Factory = Callable[[], Any]


class NetworkedLoop(VirtualLoop):
    """A virtual loop on which TCP connections reach the servers of the same loop, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._servers: dict[int, VirtualServer] = {}

    async def create_connection(
        self, protocol_factory: Factory, host: str | None = None, port: int | None = None, *, ssl: Any = None, **_: Any
    ) -> tuple[asyncio.Transport, Any]:
        """Both ends of a new stream, the server's first; ConnectionRefusedError where nobody listens."""
        if ssl is not None:
            raise ForbiddenInVirtualTime("TLS")
        await asyncio.sleep(0)
        server = self._servers.get(port or 0)
        if server is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        far, near = VirtualTransport(self, server.protocol_factory()), VirtualTransport(self, protocol_factory())
        far.peer, near.peer = near, far
        far.protocol.connection_made(far)
        near.protocol.connection_made(near)
        return near, near.protocol

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Factory, host: str | None = None, port: int | None = None, *, ssl: Any = None, **_: Any
    ) -> Any:
        """Listen on `port`, 0 for any free one; OSError where it is taken."""
        if ssl is not None:
            raise ForbiddenInVirtualTime("TLS")
        number = port or max(self._servers, default=FIRST_PORT - 1) + 1
        if number in self._servers:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._servers[number] = VirtualServer(self, protocol_factory, number)
        return self._servers[number]

    def forget(self, port: int) -> None:
        """Nobody listens there any more."""
        self._servers.pop(port, None)


class VirtualServer:
    """What `asyncio.Server` is asked for: its port, and its end. Streams that stand go on after it."""

    def __init__(self, loop: NetworkedLoop, protocol_factory: Factory, port: int) -> None:
        self.protocol_factory = protocol_factory
        self._loop, self._port = loop, port

    @property
    def sockets(self) -> tuple[VirtualServer, ...]:
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def close(self) -> None:
        self._loop.forget(self._port)

    async def wait_closed(self) -> None:
        return None


class VirtualTransport(asyncio.Transport):
    """One end of a stream."""

    peer: VirtualTransport

    def __init__(self, loop: NetworkedLoop, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol  # anything with the methods of `asyncio.Protocol`, whatever it is derived from
        self._loop = loop
        self._is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_over and data:
            self._loop.call_soon(self.peer._take, bytes(data))

    def is_closing(self) -> bool:
        return self._is_over

    def close(self) -> None:
        """What was written before still arrives, then both ends hear of it."""
        self._end(None)

    def abort(self) -> None:
        """The same, but the other end sees a reset."""
        self._end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _take(self, data: bytes) -> None:
        if not self._is_over:
            self.protocol.data_received(data)

    def _end(self, why: Exception | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._loop.call_soon(self.protocol.connection_lost, None)
        self._loop.call_soon(self.peer._peer_ended, why)

    def _peer_ended(self, why: Exception | None) -> None:
        if not self._is_over:
            self._is_over = True
            self.protocol.connection_lost(why)
