"""What the operating system's signals do to the daemon: every way to ask it to go is a clean stop."""

from __future__ import annotations

import os
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


SUPERVISED = """
import asyncio, os, sys
from dataclasses import replace
from controller.cli.run import _heed_hangup, _until_stopped
from controller.config.site import parse_site
from controller.reload import Reload
from controller.sdnotify import Notifier
from controller.settings import Role
from hil.lab_site import SITE

running = replace(parse_site({**SITE, "mqtt": {}}, origin="node.yaml"), role=Role.NODE)

async def read():
    return replace(running, metrics_port=9999)

async def serve():
    _heed_hangup(Reload(running, read=read), Notifier())
    print("serving", flush=True)
    await asyncio.Event().wait()

sys.exit(asyncio.run(_until_stopped(serve)))
"""


@pytest.mark.wire
def test_under_a_supervisor_sighup_asks_for_the_file_and_stops_nothing() -> None:
    """An agent was stopped by it, its GPUs given back in the middle of a job; it says what takes the file instead."""
    environment = {**os.environ, "NOTIFY_SOCKET": "@nobody"}
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISED], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        process.send_signal(signal.SIGHUP)
        said = process.stdout.readline()
        assert "is_taken=False" in said and "systemctl restart rampart-node" in said
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
