"""Files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.files import write_whole


def test_the_content_is_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "there.json"
    write_whole(path, "first")
    write_whole(path, "second, µ")
    assert path.read_text(encoding="utf-8") == "second, µ" and list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is noticed when the content is flushed; the old file stands, and the half of the new one is gone."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "kept"
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_rights_are_as_asked_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "unit", "text", mode=0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "unit").stat().st_mode & 0o777 == 0o644
