"""Who leads this site: a file lock for as long as the process lives, and an epoch that only ever rises.

Two controllers on one machine exclude each other by the lock. Controllers on different machines do not share it: there
the nodes decide, by obeying the highest epoch alone; a controller that sees half of them obey a higher one steps down.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from controller.errors import BadInput
from controller.files import overwrite, write_small

LOCK_NAME = "site.lock"
EPOCH_NAME = "epoch"
EPOCH_MAX = 2**53 - 1  # what a JSON number carries exactly


class FileLease:
    """`ports.Lease` in a state directory; acquired when made, lost for good when nodes obey a higher epoch."""

    def __init__(self, state_dir: Path) -> None:
        """Raises BadInput when another controller holds the site or the directory cannot be used."""
        self._dir = state_dir
        self._is_deposed = False
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._fd: int | None = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._lock()
            self._epoch = self._next_epoch()
        except OSError as error:
            self.close()
            raise BadInput(f"state_dir: {state_dir}: {error.strerror or error}; it must be writable") from None

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def is_held(self) -> bool:
        return self._fd is not None and not self._is_deposed

    def see(self, acked: Sequence[int]) -> None:
        """The epochs that nodes obey; see `is_deposed`."""
        self._is_deposed = self._is_deposed or is_deposed(self._epoch, acked)

    def close(self) -> None:
        """Give the site up; the next controller takes the next epoch."""
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is not None:
            os.close(fd)

    def _lock(self) -> None:
        assert self._fd is not None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise BadInput(
                f"{self._dir}: another controller leads this site (process {holder}); stop it first"
            ) from None
        overwrite(self._fd, f"{os.getpid()}\n")

    def _next_epoch(self) -> int:
        """One above the last, on disk before it is used. A damaged file starts above anything it may have said."""
        path = self._dir / EPOCH_NAME
        try:
            text = path.read_text(encoding="ascii").strip()
            last = int(text)
        except FileNotFoundError:
            last = 0
        except ValueError:
            last = _above_any(path)
        epoch = min(max(last, 0) + 1, EPOCH_MAX)
        write_small(path, f"{epoch}\n")  # a full disk must not keep a controller from starting again
        return epoch


def is_deposed(epoch: int, acked: Sequence[int]) -> bool:
    """At least half of the nodes obey a higher epoch than ours: another controller leads.

    One that leads tells every node within a planner period. A few that obey a number nobody else does were told it by
    mistake, or say it in error, and would depose every controller that starts after this one as well.
    """
    higher = sum(other > epoch for other in acked)
    return higher > 0 and 2 * higher >= len(acked)


def _above_any(path: Path) -> int:
    """The damaged file's time of writing in seconds: above every count of restarts it can have held, and rising."""
    return int(path.stat().st_mtime)
