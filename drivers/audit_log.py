"""The append-only audit log of grid messages: one JSON line each, written by a thread of its own.

A slow disk never delays control: the queue is bounded, and when it is full the newest line is dropped and counted. The
file is opened for each batch, so it can be rotated. What cannot be written is said once, and control goes on.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

import structlog

LINES_MAX = 4096
CLOSE_S_MAX = 2.0

log = structlog.get_logger("audit")


class AuditLog:
    """Appends lines to `path`; every line carries what the caller gave, nothing is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped_count = 0
        self._is_failing = False
        self._queue: queue.Queue[Mapping[str, object] | None] = queue.Queue(LINES_MAX)
        self._thread = threading.Thread(target=self._write, name="audit log", daemon=True)
        self._thread.start()

    def append(self, line: Mapping[str, object]) -> None:
        """Queue one line; never blocks, never raises."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped_count += 1

    def close(self) -> None:
        """Write what is queued; waits at most CLOSE_S_MAX for the disk."""
        self._queue.put(None)
        self._thread.join(CLOSE_S_MAX)

    def _write(self) -> None:
        is_open = True
        while is_open:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            is_open = None not in batch
            lines = [json.dumps(x, separators=(",", ":"), allow_nan=False) + "\n" for x in batch if x is not None]
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
                self._is_failing = False
            except OSError as error:
                self.dropped_count += len(lines)
                if not self._is_failing:
                    self._is_failing = True
                    log.error("audit log cannot be written", path=str(self.path), cause=error.strerror or str(error))
