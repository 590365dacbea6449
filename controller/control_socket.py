"""The local control socket: what the controller knows of itself, and what its operators may ask of it.

One JSON line in, one out: `{"order": "reset"}` is an order, anything else (or nothing) asks for status. The socket is
0660, so the service's group may look; who gives an order is asked of the kernel and checked again. Serving it can never
delay a cycle: the document is built on demand from the last completed one, an order waits for the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from controller.types import frozen

SOCKET_MODE = 0o660
CLIENT_DEADLINE_S = 2.0
ASK_DEADLINE_S = 0.5  # for a client's line; who sends none is shown the status
ASK_BYTES_MAX = 4096
REPLY_BYTES_MAX = 16 * 1024 * 1024
CLIENTS_MAX = 16
SO_PEERGROUPS = 59  # asm-generic/socket.h; Python's socket has no name for it
GROUPS_MAX = 256  # getsockopt of Python hands out 1,024 bytes and refuses to ask for more


@frozen
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int  # as our own user namespace shows it: under PrivateUsers= anybody but root and ourselves is nobody
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The account's name, or its number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)


class Orders(Protocol):
    async def __call__(self, order: str, peer: Peer) -> Mapping[str, object]:
        """Take an order or refuse it; the answer has `ok` and `lines` in words."""


class ControlSocket:
    """Serves `snapshot()` and takes `orders` on a Unix socket."""

    def __init__(self, path: Path, *, snapshot: Callable[[], Mapping[str, object]], orders: Orders) -> None:
        self.path = path
        self._snapshot = snapshot
        self._orders = orders
        self._clients = 0

    async def run(self) -> None:
        """Serve until cancelled; removes the socket on the way out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path=str(self.path), limit=ASK_BYTES_MAX)
        self.path.chmod(SOCKET_MODE)
        try:
            await server.serve_forever()
        finally:
            server.close()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= CLIENTS_MAX:
                order = await _order(reader)
                reply = self._snapshot() if order is None else await self._obeyed(order, _peer(writer))
                writer.write((json.dumps(reply, allow_nan=False) + "\n").encode())
                async with asyncio.timeout(CLIENT_DEADLINE_S):
                    await writer.drain()
        except (OSError, TimeoutError):
            return  # the client went away; nothing of ours depends on it
        finally:
            self._clients -= 1
            writer.close()

    async def _obeyed(self, order: str, peer: Peer | None) -> Mapping[str, object]:
        if peer is None:
            return refused("this system does not say who is asking: no orders are taken")
        if not _may_order(peer, self.path):
            return refused(f"{peer.name} may look but not order: root, the service's user and its group may")
        return await self._orders(order, peer)


def done(*lines: str) -> dict[str, object]:
    """The answer to an order that is obeyed."""
    return {"ok": True, "lines": list(lines)}


def refused(*lines: str) -> dict[str, object]:
    """The answer to an order that is not taken."""
    return {"ok": False, "lines": list(lines)}


async def _order(reader: asyncio.StreamReader) -> str | None:
    """The order in the client's line; None where it asks for nothing we know."""
    try:
        async with asyncio.timeout(ASK_DEADLINE_S):
            asked = json.loads(await reader.readline())
    except (TimeoutError, ValueError, RecursionError):
        return None
    order = asked.get("order") if isinstance(asked, dict) else None
    return order if isinstance(order, str) else None


def _peer(writer: asyncio.StreamWriter) -> Peer | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    wire: socket.socket = writer.get_extra_info("socket")
    pid, uid, gid = struct.unpack("3i", wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        raw = wire.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:
        raw = b""  # an old kernel, or in more groups than anybody should be
    return Peer(pid, uid, gid, struct.unpack(f"{len(raw) // 4}I", raw))


def _may_order(peer: Peer, path: Path) -> bool:
    """Root, our own user, or a member of the group that the socket belongs to."""
    return peer.uid in (0, os.geteuid()) or path.stat().st_gid in (peer.gid, *peer.groups)


async def fetch(path: Path) -> dict[str, object]:
    """The status document at `path`. Raises OSError when nobody serves it, ValueError when it is not one."""
    return await _ask(path, {})


async def send_order(path: Path, order: str) -> dict[str, object]:
    """The controller's answer to an order; errors as `fetch`."""
    return await _ask(path, {"order": order})


async def _ask(path: Path, asked: Mapping[str, object]) -> dict[str, object]:
    async with asyncio.timeout(CLIENT_DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=REPLY_BYTES_MAX)
        try:
            writer.write((json.dumps(asked) + "\n").encode())
            document = json.loads(await reader.readline())
        finally:
            writer.close()
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a status document")
    return document
