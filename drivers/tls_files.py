"""A TLS context that follows its files: certificates are renewed on disk while connections come and go.

Made anew only when a file changed: without a CA of its own a context reads all of the system's, which takes 20 ms.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]
NOTHING = (0, 0, 0)


class TlsFiles:
    """Give `context` to each new connection. `make` reads the files, and raises BadInput where one cannot be used."""

    def __init__(self, files: Iterable[str | None], make: Callable[[], ssl.SSLContext | None]) -> None:
        self._files = tuple(Path(file) for file in files if file is not None)
        self._make = make
        self._stamp = self._look()
        self._context = make()

    def context(self) -> ssl.SSLContext | None:
        """As the files are now; BadInput while one is away or half written."""
        stamp = self._look()
        if stamp != self._stamp:
            self._context = self._make()
            self._stamp = stamp
        return self._context

    def _look(self) -> Stamp:
        return tuple(_stamp(file) for file in self._files)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        status = file.stat()
    except OSError:
        return NOTHING
    return status.st_ino, status.st_mtime_ns, status.st_size
