"""Leadership: one controller at a time, and an epoch that only rises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.lease import EPOCH_NAME, FileLease


def test_each_start_takes_the_next_epoch(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        lease = FileLease(tmp_path / "state")
        assert lease.epoch == expected and lease.is_held
        lease.close()
        assert not lease.is_held


def test_a_second_controller_is_refused_and_takes_no_epoch(tmp_path: Path) -> None:
    first = FileLease(tmp_path)
    with pytest.raises(BadInput, match="another controller leads"):
        FileLease(tmp_path)
    assert (tmp_path / EPOCH_NAME).read_text() == "1\n" and first.is_held
    first.close()


def test_a_process_that_dies_leaves_the_site_to_the_next(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from controller.lease import FileLease; "
        f"FileLease(Path({str(tmp_path)!r})); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    lease = FileLease(tmp_path)
    assert lease.epoch == 2
    lease.close()


def test_a_higher_epoch_seen_on_a_node_deposes_for_good(tmp_path: Path) -> None:
    lease = FileLease(tmp_path)
    lease.see([1])
    assert lease.is_held
    lease.see([2])
    lease.see([0])
    assert not lease.is_held
    lease.close()


@pytest.mark.parametrize(
    ("acked", "leads"),
    [([], True), ([1, 1, 2**53 - 1], True), ([0, 2], False), ([2, 2, 1], False), ([1, 2, 2, 1, 0], True)],
)
def test_half_of_the_nodes_depose_and_fewer_do_not(tmp_path: Path, acked: list[int], leads: bool) -> None:
    """One that leads tells all nodes within a planner period; what a few alone say is their own error."""
    lease = FileLease(tmp_path)
    lease.see(acked)
    assert lease.is_held is leads
    lease.close()


@pytest.mark.parametrize("text", ["", "seven", "1e9", "\x00\x00"])
def test_a_damaged_epoch_is_followed_by_one_above_any_it_may_have_been(tmp_path: Path, text: str) -> None:
    (tmp_path / EPOCH_NAME).write_text(text)
    lease = FileLease(tmp_path)
    assert lease.epoch > 1_000_000_000
    lease.close()
    again = FileLease(tmp_path)
    assert again.epoch == lease.epoch + 1
    again.close()


def test_a_negative_epoch_is_none(tmp_path: Path) -> None:
    (tmp_path / EPOCH_NAME).write_text("-5\n")
    lease = FileLease(tmp_path)
    assert lease.epoch == 1
    lease.close()


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"state_dir: .*must be writable"):
        FileLease(tmp_path / "file")


def test_an_epoch_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: no epoch, no leadership, and the lock is free again."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("controller.files.os.fsync", full)
    with pytest.raises(BadInput, match="No space"):
        FileLease(tmp_path)
    monkeypatch.undo()
    lease = FileLease(tmp_path)
    assert lease.epoch == 1
    lease.close()
