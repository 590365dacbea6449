"""The audit log: every line in order, bounded, and a full or missing disk is said once and survived."""

from __future__ import annotations

import json
from pathlib import Path

from drivers.audit_log import LINES_MAX, AuditLog


def test_lines_are_appended_in_order_over_two_lives(tmp_path: Path) -> None:
    """What was queued before the close is written, and a second run adds to the file of the first."""
    path = tmp_path / "state" / "audit.jsonl"
    for start in (0, 100):
        audit = AuditLog(path)
        for n in range(start, start + 100):
            audit.append({"n": n})
        audit.close()
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == list(range(200))


def test_unwritable_file_drops_and_counts(tmp_path: Path) -> None:
    """A path that cannot be a file costs lines, never an exception."""
    audit = AuditLog(tmp_path)  # a folder
    for n in range(5):
        audit.append({"n": n})
    audit.close()
    assert audit.dropped_count == 5


def test_queue_is_bounded(tmp_path: Path) -> None:
    """With the writer gone, lines beyond the bound are dropped and counted."""
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.close()
    for n in range(LINES_MAX + 3):
        audit.append({"n": n})
    assert audit.dropped_count == 3
