"""Structured logs to standard error: `key=value` lines for a journal, colours only for a person's terminal.

A line that cannot be written (a full disk, a closed pipe, a terminal that hung up) is lost and nothing else: a log is
never a reason to let go of GPUs. What came from outside stays inside its value, whatever characters it holds.
"""

from __future__ import annotations

import io
import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger


class _Patient(io.TextIOBase):
    """A stream that loses what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the latter: closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _escaped(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Line ends, escapes of terminals and the like as text: a peer's word must not pass for a line of ours."""
    return {key: _printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def set_up_logs(level: int = logging.INFO) -> None:
    """Once per process, before anything may log; `level` is the least that is shown."""
    is_person = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer()
        if is_person
        else structlog.processors.LogfmtRenderer(key_order=["level", "event"])
    )
    stamps = [structlog.processors.TimeStamper(fmt="iso", utc=True)] if is_person else []
    structlog.configure(
        processors=[structlog.processors.add_log_level, *stamps, _escaped, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _Patient(sys.stderr))),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="level=%(levelname)s event=%(message)s")
