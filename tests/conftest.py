"""Shared by all tests: where optional material lies, and the rule that a test which could run may not be skipped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

from hil.machine import missing
from tests.lane_kit import told_figures

# The default suite repeats itself; `make fuzz` looks for what nobody has seen.
settings.register_profile("repeatable", derandomize=True, deadline=None)
if not os.environ.get("RAMPART_FUZZ_EXAMPLES"):
    settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
TRACES = SHARED / "traces"
NO_SHARED = "not beside this checkout"  # measured traces, the specification of the grid interface
NO_GPU = "needs a real NVIDIA GPU"
NO_ROOT = "needs root"
NO_MACHINE = "no machine of its own can be booted here"

_skips: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    """Logs as they are before a command sets them up: an earlier test's stream is closed or another's."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def traces() -> Path:
    """Folder of measured traces; skips where it is absent."""
    if not TRACES.is_dir():
        pytest.skip(f"measured traces are {NO_SHARED}")
    return TRACES


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skips.append((report.nodeid, report.longrepr[2]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the process lane measured, beside its goals."""
    for line in told_figures():
        terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With RAMPART_NO_SKIPS set, fail the run for every skip whose reason does not hold on this machine."""
    if not os.environ.get("RAMPART_NO_SKIPS") or exitstatus not in (0, pytest.ExitCode.OK):
        return
    if hasattr(session.config, "workerinput"):
        return  # one of several processes: the one that hears them all judges
    excuses = {NO_SHARED: not SHARED.is_dir(), NO_GPU: not Path("/dev/nvidia0").exists(), NO_ROOT: os.geteuid() != 0}
    excuses |= {NO_MACHINE: bool(missing())}
    unexcused = [(test, why) for test, why in _skips if not any(why.endswith(e) and ok for e, ok in excuses.items())]
    for test, why in unexcused:
        print(f"skipped though it could have run: {test}: {why}")
    if unexcused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
