"""Opens files that a person or a configuration names: regular ones only, and never more of them than was bargained for.

A named pipe would make a command wait for ever, and a device such as /dev/zero would fill the memory. Both are refused
with the OSError that callers already turn into their one line.
"""

from __future__ import annotations

import errno
import os
import stat
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


def read_file(path: Path, *, bytes_max: int) -> bytes:
    """The whole of a regular file; OSError where it is none or has more than `bytes_max`."""
    with open_regular(path) as file:
        raw = file.read(bytes_max + 1)
    if len(raw) > bytes_max:
        raise OSError(errno.EFBIG, f"larger than {bytes_max} bytes")
    return raw
