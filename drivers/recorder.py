"""The recorder: one JSON line per record, written by a thread of its own, so that a slow disk never delays control.

The queue is bounded: when the disk cannot keep up the newest records are dropped and counted. When the disk is full the
recorder stops, says so once, and control goes on. The writer polls: waking it for every record would hand it the
interpreter in the middle of a cycle (measured: about 7 ms a record on a busy machine).
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.codec import encode

QUEUE_RECORDS_MAX = 4096  # about three minutes of a 20 Hz tracker
POLL_S = 0.25
CLOSE_S_MAX = 5.0
FORMAT = "rampart-recording/1"

Record = tuple[str, Mapping[str, object]]


class FileRecorder:
    """Appends records to a gzip file of JSON lines. `on_fault` is called once, with one line, if writing fails."""

    def __init__(self, path: Path, *, header: Mapping[str, object], on_fault: Callable[[str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dropped_count = 0
        self._on_fault = on_fault
        self._queue: deque[Record] = deque()
        self._is_closing = threading.Event()
        self.has_failed = False
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self.record("header", {"format": FORMAT, **header})
        self._thread.start()

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        """Queue one record; drops it when the queue is full or the disk has failed."""
        if self.has_failed or len(self._queue) >= QUEUE_RECORDS_MAX:
            self.dropped_count += 1
        else:
            self._queue.append((kind, payload))

    def close(self) -> None:
        """Write what is queued and close the file; waits at most CLOSE_S_MAX for the disk."""
        self._is_closing.set()
        self._thread.join(timeout=CLOSE_S_MAX)

    def _write(self) -> None:
        try:
            with gzip.open(self.path, "wt", encoding="utf-8", compresslevel=1) as file:
                is_last = False
                while not is_last:
                    is_last = self._is_closing.wait(POLL_S)
                    while self._queue:
                        kind, payload = self._queue.popleft()
                        body = {key: encode(value) for key, value in payload.items()}
                        file.write(json.dumps({"kind": kind, **body}, separators=(",", ":")) + "\n")
        except OSError as error:
            self.has_failed = True
            self.dropped_count += len(self._queue)
            self._queue.clear()
            self._on_fault(f"{self.path}: {error.strerror or error}; recording stopped, control goes on")
