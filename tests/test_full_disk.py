"""A disk that takes nothing: whoever must start on it starts (FAULTS X2), and what cannot be kept is said."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import files
from controller.errors import BadInput
from controller.files import write_small
from controller.lease import EPOCH_NAME, FileLease
from controller.node.originals import NodeLock


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_a_controller_starts_again_on_a_full_disk_and_leads_with_the_next_epoch(disk: Path) -> None:
    """Its own recordings filled it, and now it crashed or was reloaded: exit 2 would have been its end for good."""
    FileLease(disk / "site").close()
    fill(disk)
    for epoch in (2, 3):
        lease = FileLease(disk / "site")
        assert lease.epoch == epoch and lease.is_held
        lease.close()
    assert (disk / "site" / EPOCH_NAME).read_text() == "3\n"
    assert sorted(path.name for path in (disk / "site").iterdir()) == [EPOCH_NAME, "site.lock"]


def test_a_node_is_locked_on_a_full_disk(disk: Path) -> None:
    with NodeLock(disk / "node") as lock:
        assert lock.try_acquire()
    fill(disk)
    with NodeLock(disk / "node") as lock:
        assert lock.try_acquire() and not NodeLock(disk / "node").try_acquire()


def test_a_first_start_on_a_full_disk_is_the_persons_to_mend(disk: Path) -> None:
    fill(disk)
    with pytest.raises(BadInput, match="No space left"):
        FileLease(disk / "site")


def test_other_troubles_of_a_disk_are_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epoch"
    path.write_text("12\n")

    def refuse(path: Path, text: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "write_whole", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_small(path, "13\n")
    assert path.read_text() == "12\n"


def test_a_shorter_line_leaves_nothing_of_the_longer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epoch"
    path.write_text("1234567\n")

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_whole", full)
    write_small(path, "8\n")
    assert path.read_text() == "8\n"
