"""What the operating system's signals do to the daemon: every way to ask it to go is a clean stop."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, sys
from controller.cli.run import _until_stopped

async def serve():
    try:
        print("serving", flush=True)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        print("gave all back", flush=True)

sys.exit(asyncio.run(_until_stopped(serve)))
"""


@pytest.mark.wire
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)], ids=["term", "hup", "int"]
)
def test_a_signal_is_a_clean_stop(number: signal.Signals, status: int) -> None:
    """Also that of a terminal that closes, or of whoever takes the daemon for one that reads its files anew by it."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.send_signal(number)
        assert process.stdout.read() == "gave all back\n"
        assert process.wait() == status
