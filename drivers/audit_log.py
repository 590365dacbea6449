"""The append-only audit log of grid messages: one JSON line each, written by a thread of its own.

A slow disk never delays control: the queue is bounded, and when it is full the newest line is dropped and counted. The
thread looks at the queue by itself instead of being woken: waking it hands it the interpreter, which cost the control
loop 7 ms per line on a busy machine. The file is opened for each batch, so it can be rotated. What cannot be written is
said once, and control goes on.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

LINES_MAX = 4096
CLOSE_S_MAX = 2.0
POLL_S = 0.05

log = structlog.get_logger("audit")


class AuditLog:
    """Appends lines to `path`; every line carries what the caller gave, nothing is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped_count = 0
        self._is_failing = False
        self._lines: deque[Mapping[str, object]] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="audit log", daemon=True)
        self._thread.start()

    def append(self, line: Mapping[str, object]) -> None:
        """Queue one line; never blocks, never raises."""
        if len(self._lines) >= LINES_MAX:
            self.dropped_count += 1
        else:
            self._lines.append(line)

    def close(self) -> None:
        """Write what is queued; waits at most CLOSE_S_MAX for the disk."""
        self._closing.set()
        self._thread.join(CLOSE_S_MAX)

    def _serve(self) -> None:
        is_closing = False
        while not is_closing:
            is_closing = self._closing.wait(POLL_S)  # what was queued before the close is still written
            if self._lines:
                self._write([self._lines.popleft() for _ in range(len(self._lines))])

    def _write(self, batch: Sequence[Mapping[str, object]]) -> None:
        lines = [json.dumps(x, separators=(",", ":"), allow_nan=False) + "\n" for x in batch]
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
