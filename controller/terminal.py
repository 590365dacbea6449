"""The console that commands print to: as wide as the terminal, and wide enough for whole lines where there is none.

Output that goes to a file or through a pipe is searched and cut by others: a line broken at 80 columns is lost there.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

PIPE_COLUMNS = 160  # the longest line of a table or of the bench's progress, and then some


def open_console() -> Console:
    """On standard output; COLUMNS counts wherever it is set."""
    is_measured = sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))
    return Console() if is_measured else Console(width=PIPE_COLUMNS)
