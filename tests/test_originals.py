"""Saved GPU settings: written whole, never overwritten, never guessed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from controller.node.originals import (
    FILE_NAME,
    LOCK_NAME,
    NodeLock,
    OriginalsCorrupt,
    OriginalsFile,
    device_defaults,
    how_to,
)
from controller.types import GpuId, GpuOriginals, SmoothingFound, SmoothingProfile
from tests.node_kit import settings, spec

A = GpuOriginals(GpuId("GPU-a"), 650.0, 700.0, 640.0, None)
FOUND = SmoothingFound(True, 2, 4, SmoothingProfile(0.5, 1000.0, 1000.0, 0.5))
B = GpuOriginals(GpuId("GPU-b"), 500.0, 700.0, None, (210, 1500), FOUND)


def how(folder: Path):  # type: ignore[no-untyped-def]
    return how_to(settings(folder))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    file = OriginalsFile(tmp_path / "not" / "yet")
    assert file.load() is None
    saved = file.save(how(tmp_path), [A, B], boot_id="b1")
    assert file.load() == saved and saved.gpus == (A, B) and saved.boot_id == "b1"
    assert [p.name for p in (tmp_path / "not" / "yet").iterdir()] == [FILE_NAME]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    """The second agent finds the GPU at the cap the first one left; the first one's originals stay."""
    file = OriginalsFile(tmp_path)
    file.save(how(tmp_path), [A], boot_id="b1")
    saved = file.save(how(tmp_path), [replace(A, power_limit_w=300.0), B], boot_id="b2")
    assert saved.gpus == (A, B) and saved.boot_id == "b1" and file.load() == saved


def test_saving_the_same_again_does_not_touch_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OriginalsFile(tmp_path)
    file.save(how(tmp_path), [A], boot_id="b1")
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("wrote"))
    file.save(how(tmp_path), [A], boot_id="b1")


def test_what_is_given_back_leaves_the_file(tmp_path: Path) -> None:
    file = OriginalsFile(tmp_path)
    saved = file.save(how(tmp_path), [A, B], boot_id="b1")
    file.keep_only(saved, frozenset({B.gpu_id}))
    left = file.load()
    assert left is not None and left.gpus == (B,)
    file.keep_only(left, frozenset())
    assert file.load() is None and not file.path.exists()
    file.keep_only(left, frozenset())


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OriginalsFile(tmp_path)
    saved = file.save(how(tmp_path), [A], boot_id="b1")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.save(how(tmp_path), [B], boot_id="b1")
    monkeypatch.undo()
    assert file.load() == saved and [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None, derandomize=True
)
@given(st.data())
def test_any_damage_is_noticed_and_nothing_is_guessed(tmp_path: Path, data: st.DataObject) -> None:
    """One byte changed anywhere, or the tail cut off: refused and left, or exactly what was saved."""
    file = OriginalsFile(tmp_path)
    file.path.unlink(missing_ok=True)
    saved = file.save(how(tmp_path), [A, B], boot_id="b1")
    raw = bytearray(file.path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw = raw[:at]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    file.path.write_bytes(bytes(raw))
    try:
        assert file.load() == saved
    except OriginalsCorrupt:
        assert file.path.read_bytes() == bytes(raw)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": "other", "sha256": "", "body": {}}', "[" * 5000])
def test_what_is_not_such_a_file_is_stood_in_for_and_kept(tmp_path: Path, text: str) -> None:
    """Whoever finds it next finds device defaults, and never no file: what is set by now would pass for found."""
    file = OriginalsFile(tmp_path)
    file.path.write_text(text)
    for _ in range(2):
        with pytest.raises(OriginalsCorrupt, match="damaged"):
            file.load()
    stood = file.stand_in(how(tmp_path), [], boot_id="b1")
    assert (tmp_path / "originals.damaged").read_text() == text
    assert stood.is_stand_in and file.load() == stood
    added = file.save(how(tmp_path), [A], boot_id="b1")
    assert added.is_stand_in and [gpu.gpu_id for gpu in added.gpus] == [A.gpu_id]


def test_a_right_checksum_over_wrong_fields_is_damage_too(tmp_path: Path) -> None:
    file = OriginalsFile(tmp_path)
    file.save(how(tmp_path), [A], boot_id="b1")
    from controller.node import originals

    document = json.loads(file.path.read_text())
    document["body"]["gpus"][0]["power_limit_w"] = "much"
    document["sha256"] = originals._checksum(document["body"])
    file.path.write_text(json.dumps(document))
    with pytest.raises(OriginalsCorrupt):
        file.load()


def test_device_defaults_stand_in() -> None:
    (found,) = device_defaults([spec("GPU-a")], arms_floor=False)
    assert (found.power_limit_w, found.requested_limit_w, found.locked_clock_mhz) == (700.0, 700.0, None)


def test_the_lock_is_one_owners_at_a_time(tmp_path: Path) -> None:
    first, second = NodeLock(tmp_path), NodeLock(tmp_path)
    assert first.try_acquire() and not second.try_acquire()
    assert second.holder() == str(os.getpid()) and (tmp_path / LOCK_NAME).exists()
    first.release()
    with second:
        assert second.try_acquire()
    assert first.try_acquire()
    first.release()


def test_a_file_of_an_agent_that_knew_no_power_smoothing_is_read(tmp_path: Path) -> None:
    """An upgrade under a crashed agent must not cost the originals; smoothing is then left alone."""
    file = OriginalsFile(tmp_path)
    saved = file.save(how(tmp_path), [A], boot_id="b1")
    document = json.loads(file.path.read_text())
    del document["body"]["how_to"]["arms_floor"], document["body"]["gpus"][0]["smoothing"]
    body = json.dumps(document["body"], sort_keys=True, separators=(",", ":"))
    document |= {"format": "rampart-originals/1", "sha256": hashlib.sha256(body.encode()).hexdigest()}
    file.path.write_text(json.dumps(document))
    assert file.load() == saved


def test_defaults_of_power_smoothing_are_off_where_it_was_armed() -> None:
    (found,) = device_defaults([spec("GPU-a")], arms_floor=True)
    assert found.smoothing == SmoothingFound(False, None, 0, None)
