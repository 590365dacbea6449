"""The recorder: one JSON line per record, written by a thread of its own, so that a slow disk never delays control.

The queue is bounded: when the disk cannot keep up the newest records are dropped and counted. When the disk is full the
recorder stops, says so once, and control goes on.
"""

from __future__ import annotations

import gzip
import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.codec import encode

QUEUE_RECORDS_MAX = 4096  # about three minutes of a 20 Hz tracker
FORMAT = "rampart-recording/1"


class FileRecorder:
    """Appends records to a gzip file of JSON lines. `on_fault` is called once, with one line, if writing fails."""

    def __init__(self, path: Path, *, header: Mapping[str, object], on_fault: Callable[[str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dropped_count = 0
        self._on_fault = on_fault
        self._queue: queue.Queue[tuple[str, Mapping[str, object]] | None] = queue.Queue(QUEUE_RECORDS_MAX)
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self.record("header", {"format": FORMAT, **header})
        self._thread.start()

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        """Queue one record; drops it when the queue is full."""
        try:
            self._queue.put_nowait((kind, payload))
        except queue.Full:
            self.dropped_count += 1

    def close(self) -> None:
        """Write what is queued and close the file; waits at most 5 s for the disk."""
        try:
            self._queue.put(None, timeout=1.0)
        except queue.Full:
            self.dropped_count += 1
        self._thread.join(timeout=5.0)

    def _write(self) -> None:
        try:
            with gzip.open(self.path, "wt", encoding="utf-8", compresslevel=1) as file:
                while (item := self._queue.get()) is not None:
                    kind, payload = item
                    body = {key: encode(value) for key, value in payload.items()}
                    file.write(json.dumps({"kind": kind, **body}, separators=(",", ":")) + "\n")
        except OSError as error:
            self._on_fault(f"recorder: {self.path}: {error.strerror or error}; recording stopped, control goes on")
            while self._queue.get() is not None:
                self.dropped_count += 1
