"""The local status socket: what the controller knows of itself, as one JSON document per connection.

Read-only: whatever a client sends is ignored. The socket is 0660, so that the service's group may look. Serving it can
never delay a cycle: the document is built on demand from the last completed one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path

SOCKET_MODE = 0o660
CLIENT_DEADLINE_S = 2.0
CLIENTS_MAX = 16


class StatusServer:
    """Serves `snapshot()` on a Unix socket."""

    def __init__(self, path: Path, *, snapshot: Callable[[], Mapping[str, object]]) -> None:
        self.path = path
        self._snapshot = snapshot
        self._clients = 0

    async def run(self) -> None:
        """Serve until cancelled; removes the socket on the way out."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, path=str(self.path))
        self.path.chmod(SOCKET_MODE)
        try:
            await server.serve_forever()
        finally:
            server.close()
            self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        self._clients += 1
        try:
            if self._clients <= CLIENTS_MAX:
                writer.write((json.dumps(self._snapshot(), allow_nan=False) + "\n").encode())
                async with asyncio.timeout(CLIENT_DEADLINE_S):
                    await writer.drain()
        except (OSError, TimeoutError):
            return  # the client went away; nothing of ours depends on it
        finally:
            self._clients -= 1
            writer.close()


async def fetch(path: Path) -> dict[str, object]:
    """The status document at `path`. Raises OSError when nobody serves it, ValueError when it is not one."""
    async with asyncio.timeout(CLIENT_DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(str(path), limit=16 * 1024 * 1024)
        try:
            document = json.loads(await reader.readline())
        finally:
            writer.close()
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a status document")
    return document
