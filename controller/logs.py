"""Structured logs to standard error: `key=value` lines for a journal, colours only for a person's terminal."""

from __future__ import annotations

import logging
import sys

import structlog


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
        processors=[structlog.processors.add_log_level, *stamps, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="level=%(levelname)s event=%(message)s")
