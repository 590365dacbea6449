"""Cells of the fault matrix that fail, each with what is missing. They count as failed; the day one passes it shows."""

from __future__ import annotations

KNOWN: dict[tuple[str, str], str] = {}
