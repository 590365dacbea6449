"""Files as Rampart reads and writes them: read only what was bargained for, written whole or not at all.

A named pipe would make a command wait for ever, and a device such as /dev/zero would fill the memory. Both are refused
with the OSError that callers already turn into their one line. Whoever reads while a file is written, or after a crash
in the midst of it, finds the old content or the new.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """`path` opened for reading; OSError where it is a folder, a pipe, a socket or a device."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def is_file(path: Path) -> bool:
    """False also where the name cannot be one: of more characters than a name may have, or in a closed folder."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_file(path: Path, *, bytes_max: int) -> bytes:
    """The whole of a regular file; OSError where it is none or has more than `bytes_max`."""
    with open_regular(path) as file:
        raw = file.read(bytes_max + 1)
    if len(raw) > bytes_max:
        raise OSError(errno.EFBIG, f"larger than {bytes_max} bytes")
    return raw


def write_whole(path: Path, text: str, *, mode: int | None = None) -> None:
    """`text` as the content of `path`, on the disk when this returns; missing folders are made.

    `mode` are the permission bits, whatever the umask. OSError where it cannot be written: then `path` is as it was and
    nothing stands beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".new")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            scratch.chmod(mode)
        scratch.replace(path)
    except OSError:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_small(path: Path, text: str) -> None:
    """As `write_whole`, for a line whose reader knows a torn one: on a full disk it goes over the old content in place.

    The block is there already. OSError where nothing was there before, or the file system copies what is written over.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.is_file():
            raise
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            overwrite(fd, text)
            os.fsync(fd)
        finally:
            os.close(fd)


def overwrite(fd: int, text: str) -> None:
    """`text` as the whole content of an open file, without giving its block back in between."""
    raw = text.encode()
    os.pwrite(fd, raw, 0)
    os.ftruncate(fd, len(raw))


def sync_folder(folder: Path) -> None:
    """What was renamed in or removed from `folder` is on the disk when this returns."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
