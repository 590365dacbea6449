"""Child processes of a wire run: the shipped command, started, watched, measured and stopped.

Each child leads a session of its own, so that Ctrl-C in the terminal reaches the bench alone, which then stops them in
order. A child that ends by itself is an error that carries the end of its log. Should the bench be killed outright,
the kernel asks its children to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from hil.fake_nvml.build import STATE_VARIABLE

TAIL_LINES = 12
GUARD_S_MAX = 6.0  # a guard restores and goes within this after its agent
KILL_S_MAX = 2.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
BYTES_PER_KIB = 1024


class ChildDied(Exception):
    """A child ended while it was needed. `status` is its exit status, negative for a signal."""

    def __init__(self, name: str, status: int, log: Path) -> None:
        self.status = status
        how = f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        super().__init__(f"the {name} ended by itself ({how}); the end of {log}:\n{tail(log)}")


class Running(Protocol):
    """A process of a wire run, however it is kept alive."""

    name: str
    rss_bytes_max: int

    async def watch(self) -> None: ...
    def measure(self) -> None: ...
    async def stop(self, *, deadline_s: float) -> bool: ...
    def kill(self) -> None: ...
    @property
    def is_gone(self) -> bool: ...


class Child:
    """One process and its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self.rss_bytes_max = 0
        self._process = process
        self._is_stopping = False

    @classmethod
    async def start(cls, name: str, arguments: list[str], *, log: Path, environment: Mapping[str, str]) -> Child:
        """Run `rampart` with `arguments`; its output goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "controller.cli.main",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**clean_environment(), **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def watch(self) -> None:
        """Return only when the child was asked to stop; raises ChildDied when it ends before."""
        status = await self._process.wait()
        if not self._is_stopping:
            raise ChildDied(self.name, status, self.log)

    def measure(self) -> None:
        """Note the largest resident memory so far."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
            line = next((x for x in text.splitlines() if x.startswith("VmRSS:")), "VmRSS: 0 kB")
            self.rss_bytes_max = max(self.rss_bytes_max, int(line.split()[1]) * BYTES_PER_KIB)

    async def stop(self, *, deadline_s: float) -> bool:
        """Ask it to stop; kill what is left of its session at the deadline. True when it went by itself."""
        self._is_stopping = True
        is_clean = True
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(deadline_s):
                    await self._process.wait()
            except TimeoutError:
                is_clean = False
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_S_MAX):
                await self._process.wait()
        return is_clean

    def kill(self) -> None:
        """Whatever is left of its session goes at once."""
        self._is_stopping = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def is_gone(self) -> bool:
        """Neither it nor anything else of its session is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


async def left_of(gpu_state: str) -> int:
    """Processes that still hold the fake GPUs' state, such as a node agent's guard: given time to go, then killed.

    Returns how many had to be killed. Only processes that inherited `gpu_state` in their environment are touched.
    """
    deadline = asyncio.get_running_loop().time() + GUARD_S_MAX
    while pids := with_variable(f"{STATE_VARIABLE}={gpu_state}"):
        if asyncio.get_running_loop().time() > deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return len(pids)
        await asyncio.sleep(0.05)
    return 0


def with_variable(assignment: str) -> list[int]:
    """Living processes that have `NAME=VALUE` in the environment they began with."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if assignment.encode() in (entry / "environ").read_bytes().split(b"\0") and _is_alive(entry):
                found.append(int(entry.name))
    return found


def _is_alive(entry: Path) -> bool:
    return (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"


def clean_environment() -> dict[str, str]:
    """Ours, without what a service manager gave to us alone."""
    ours = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"}
    return {k: v for k, v in os.environ.items() if k not in ours} | {"PYTHONUNBUFFERED": "1"}


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"  ({error.strerror or error})"
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (it said nothing)"


def die_with_parent() -> None:
    """In the child, before it becomes the command: SIGTERM when the bench is gone, however it went (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
