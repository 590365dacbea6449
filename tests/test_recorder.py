"""The recorder never stops control: a full disk ends the recording with one line, and nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from controller.types import MeterSample
from drivers.recorder import QUEUE_RECORDS_MAX, FileRecorder


def test_records_come_back_in_order(tmp_path: Path) -> None:
    """What was queued before the close is in the file, header first."""
    recorder = FileRecorder(tmp_path / "a" / "r.jsonl.gz", header={"site": "x"}, on_fault=lambda why: None)
    for i in range(3):
        recorder.record("cycle", {"i": i, "meter": MeterSample(float(i))})
    recorder.close()
    with gzip.open(recorder.path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert lines[0]["kind"] == "header" and lines[0]["site"] == "x"
    assert [line["i"] for line in lines[1:]] == [0, 1, 2]
    assert lines[2]["meter"]["power_w"] == 1.0 and recorder.dropped_count == 0


def test_a_full_disk_ends_the_recording_with_one_line(tmp_path: Path) -> None:
    """/dev/full refuses every byte; the fault is told once and later records are dropped and counted."""
    told: list[str] = []
    link = tmp_path / "full.jsonl.gz"
    link.symlink_to("/dev/full")
    recorder = FileRecorder(link, header={}, on_fault=told.append)
    recorder.record("cycle", {"padding": "x" * 100_000})
    recorder.close()
    recorder.record("cycle", {})
    assert len(told) == 1 and "No space left" in told[0]
    assert recorder.dropped_count >= 1


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """A disk that never answers costs records, not memory."""
    recorder = FileRecorder(tmp_path / "r.jsonl.gz", header={}, on_fault=lambda why: None)
    for i in range(QUEUE_RECORDS_MAX + 500):
        recorder.record("cycle", {"i": i})
    assert recorder.dropped_count > 0 or len(recorder._queue) <= QUEUE_RECORDS_MAX
    recorder.close()
