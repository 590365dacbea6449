"""Keeps the acceptance rules' memory in a file, so that a restarted controller holds what the last one accepted.

Written beside the old file and renamed over it, so a power cut leaves the one or the other whole; never by the thread
of the control loop. A file that cannot be read is put aside and said once: the controller starts without it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import structlog

from controller.files import write_whole

FILE_BYTES_MAX = 16 * 1024 * 1024
RETRY_S = 10.0  # before what the disk refused is tried again

log = structlog.get_logger("signals")


class SignalStore:
    """One file; `take` gives what is to be kept as JSON values."""

    def __init__(self, path: Path, *, take: Callable[[], object]) -> None:
        self.path = path
        self._take = take
        self._changed = asyncio.Event()
        self._is_failing = False

    def load(self) -> object | None:
        """What is kept, as JSON values; None when there is nothing or it is no JSON."""
        try:
            with self.path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
            if len(raw) > FILE_BYTES_MAX:
                raise ValueError("too large")
            found: object = json.loads(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self.put_aside(str(error))
            return None
        return found

    def put_aside(self, why: str) -> None:
        """Keep a damaged file for whoever wants to look at it, out of the way."""
        log.error("accepted signals cannot be read back; starting without them", path=str(self.path), cause=why[:200])
        try:
            self.path.replace(self.path.with_name(self.path.name + ".damaged"))
        except OSError:
            return

    def changed(self) -> None:
        """There is something new to keep; returns at once."""
        self._changed.set()

    async def run(self) -> None:
        """Write whenever something changed, until cancelled, and again after a failure; at the end what is left."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                text = json.dumps(self._take(), separators=(",", ":"), allow_nan=False)
                writing = asyncio.ensure_future(asyncio.to_thread(self._write, text))
                try:
                    await asyncio.shield(writing)
                except asyncio.CancelledError:
                    await writing  # what was begun is on disk before whoever starts next reads it
                    raise
                if self._is_failing:
                    asyncio.get_running_loop().call_later(RETRY_S, self._changed.set)
        finally:
            if self._changed.is_set():
                self._write(json.dumps(self._take(), separators=(",", ":"), allow_nan=False))

    def _write(self, text: str) -> None:
        try:
            write_whole(self.path, text)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                log.error("accepted signals cannot be kept", path=str(self.path), cause=error.strerror or str(error))
