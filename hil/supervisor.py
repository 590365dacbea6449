"""Plays systemd for a service: does what its unit file says of starting, watching, restarting and giving up.

Read from the unit: ExecStart, ExecReload, ExecStopPost, Restart, RestartSec, RestartPreventExitStatus, WatchdogSec,
TimeoutStopSec, StartLimitBurst, StartLimitIntervalSec, OnFailure, MemoryMax. The process is told NOTIFY_SOCKET and
WATCHDOG_USEC and answers there. As systemd does, a watchdog that runs out sends SIGABRT, then SIGCONT. The kernel's
part at MemoryMax (SIGKILL) is played by looking at resident memory. Sandboxing is not played.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from controller.types import frozen, replace
from hil.wire_children import BYTES_PER_KIB, clean_environment, die_with_parent

POLL_S = 0.05
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
STOP_POST_S_MAX = 30.0
CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)  # systemd.service(5)


@frozen
class Unit:
    """A unit file: the values of each key, in order."""

    name: str
    entries: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, name: str, text: str) -> Unit:
        entries: dict[str, tuple[str, ...]] = {}
        for line in text.splitlines():
            key, is_assigned, value = line.partition("=")
            if is_assigned and line[0] not in "#;[":
                entries[key.strip()] = (*entries.get(key.strip(), ()), value.strip())
        return cls(name, entries)

    def with_value(self, key: str, value: str) -> Unit:
        """The unit with another value of one key, as a drop-in makes it."""
        return replace(self, entries={**self.entries, key: (value,)})

    def text(self, key: str, default: str = "") -> str:
        return self.entries[key][-1] if key in self.entries else default

    def seconds(self, key: str, default: float) -> float:
        return float(self.text(key, str(default)))

    @property
    def memory_max(self) -> int | None:
        value = self.text("MemoryMax")
        return int(value[:-1]) * SIZES[value[-1]] if value else None


@frozen
class Ended:
    """How a main process went: systemd's word for it, and the exit status, negative for a signal."""

    t_s: float
    result: str  # success, exit-code, signal, core-dump, watchdog, oom-kill
    status: int


class Service:
    """One supervised service. `run` returns when it was stopped or given up."""

    def __init__(
        self,
        unit: Unit,
        *,
        log: Path,
        socket_path: Path,
        environment: Mapping[str, str],
        on_failure: Unit | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.unit, self.name, self.log = unit, unit.name, log
        self.ends: list[Ended] = []
        self.stop_posts: list[int] = []  # exit statuses of ExecStopPost
        self.start_count = 0
        self.is_ready = False
        self.is_given_up = False
        self.rss_bytes_max = 0
        self.memory_max = unit.memory_max
        self._socket_path, self._environment = socket_path, dict(environment)
        self._on_failure, self._say = on_failure, say
        self._process: asyncio.subprocess.Process | None = None
        self._starts: deque[float] = deque()
        self._kicked_s = 0.0
        self._is_stopping = False
        self._over = asyncio.Event()
        self._verdict = ""  # why we ended it, where we did

    def anew(self) -> Service:
        """The same service, not started yet: its own counts begin again."""
        return Service(
            self.unit,
            log=self.log,
            socket_path=self._socket_path,
            environment=self._environment,
            on_failure=self._on_failure,
            say=self._say,
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """A signal to the main process alone."""
        os.kill(self.pid, number)

    # ------------------------------------------------------------------------------------------------ life

    async def run(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
            end.bind(str(self._socket_path))
            loop = asyncio.get_running_loop()
            loop.add_reader(end.fileno(), self._hear, end)
            try:
                await self._lives()
            finally:
                loop.remove_reader(end.fileno())
                self._socket_path.unlink(missing_ok=True)
                self._over.set()

    async def _lives(self) -> None:
        """One life after the other, as Restart= and the start limit allow."""
        while True:
            interval_s = self.unit.seconds("StartLimitIntervalSec", 10)
            burst = int(self.unit.text("StartLimitBurst", "5"))
            now_s = time.monotonic()
            while self._starts and self._starts[0] < now_s - interval_s:
                self._starts.popleft()
            if len(self._starts) >= burst:
                return await self._give_up("start-limit-hit")
            self._starts.append(now_s)
            ended = await self._life()
            await self._stop_post(ended)
            if self._is_stopping:
                return None
            if not self._restarts(ended):
                return await self._give_up(ended.result) if ended.result != "success" else None
            await asyncio.sleep(self.unit.seconds("RestartSec", 0.1))

    async def _life(self) -> Ended:
        """Start, watch, wait for the end, and leave nothing of its session behind."""
        self.is_ready, self._verdict = False, ""
        self._process = await self._spawn(self.unit.text("ExecStart"))
        self.start_count += 1
        self._kicked_s = time.monotonic()
        waiting = asyncio.ensure_future(self._process.wait())
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=POLL_S)
                if not waiting.done():
                    self._watch()
        finally:
            waiting.cancel()
        self._kill_rest()
        status = self._process.returncode or 0
        ended = Ended(time.monotonic(), self._verdict or _result_of(status), status)
        self.ends.append(ended)
        self._say(f"{self.name}: {ended.result} ({status})")
        return ended

    def _watch(self) -> None:
        """The watchdog, start-up time and memory."""
        self.measure()
        limit_s = self.unit.seconds("WatchdogSec", 0) if self.is_ready else self.unit.seconds("TimeoutStartSec", 90)
        silent_s = time.monotonic() - self._kicked_s
        if self.memory_max is not None and self._rss() > self.memory_max:
            self._verdict = "oom-kill"
            self.signal(signal.SIGKILL)
        elif self._verdict == "watchdog" and silent_s > limit_s + self.unit.seconds("TimeoutStopSec", 90):
            self.signal(signal.SIGKILL)
        elif not self._verdict and limit_s > 0 and silent_s > limit_s:
            self._verdict = "watchdog" if self.is_ready else "timeout"
            self._say(f"{self.name}: {self._verdict} after {silent_s:.1f} s")
            self.signal(signal.SIGABRT)
            self.signal(signal.SIGCONT)

    def _hear(self, end: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for line in end.recv(4096).decode(errors="replace").splitlines():
                    if line == "READY=1":
                        self.is_ready = True
                    if line in ("READY=1", "WATCHDOG=1"):
                        self._kicked_s = time.monotonic()

    def _restarts(self, ended: Ended) -> bool:
        """Restart=, less what RestartPreventExitStatus= names."""
        if ended.status > 0 and str(ended.status) in self.unit.text("RestartPreventExitStatus").split():
            return False
        rule = self.unit.text("Restart", "no")
        assert rule in ("no", "always", "on-failure"), rule
        return rule == "always" or (rule == "on-failure" and ended.result != "success")

    async def _stop_post(self, ended: Ended) -> None:
        for command in self.unit.entries.get("ExecStopPost", ()):
            more = {"SERVICE_RESULT": ended.result, "EXIT_STATUS": str(ended.status)}
            self.stop_posts.append(await self._once(command, more))

    async def _give_up(self, why: str) -> None:
        self.is_given_up = True
        self._say(f"{self.name}: given up: {why}")
        if self._on_failure is not None:
            self.stop_posts.append(await self._once(self._on_failure.text("ExecStart"), {}))

    async def _once(self, command: str, more: Mapping[str, str]) -> int:
        process = await self._spawn(command, more)
        try:
            async with asyncio.timeout(STOP_POST_S_MAX):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def _spawn(self, command: str, more: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
        told = {"NOTIFY_SOCKET": str(self._socket_path)}
        if (watchdog_s := self.unit.seconds("WatchdogSec", 0)) > 0:
            told["WATCHDOG_USEC"] = str(round(watchdog_s * 1e6))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as file:
            return await asyncio.create_subprocess_exec(
                *shlex.split(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**clean_environment(), **self._environment, **told, **(more or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    # ------------------------------------------------------------------------------------------------ the bench's part

    async def watch(self) -> None:
        """Its life; a service that was given up is no error of the bench's."""
        await self.run()
        await asyncio.Event().wait()

    def measure(self) -> None:
        self.rss_bytes_max = max(self.rss_bytes_max, self._rss())

    async def reload(self, more: Mapping[str, str]) -> int:
        """As `systemctl reload`: the exit status of ExecReload, which is told `more`."""
        return await self._once(self.unit.text("ExecReload"), more)

    async def stop(self, *, deadline_s: float) -> bool:
        """As `systemctl stop`: SIGTERM to the main process, SIGKILL at the deadline. True when it went by itself."""
        self._is_stopping = True
        if self._process is None:
            return True
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._process.wait()
        is_clean = not self.is_running
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_POST_S_MAX):
                await self._over.wait()  # ExecStopPost is part of the stop
        return is_clean

    def kill(self) -> None:
        self._is_stopping = True
        self._kill_rest()

    @property
    def is_gone(self) -> bool:
        if self._process is None:
            return True
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _kill_rest(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _rss(self) -> int:
        if self._process is None:  # of one that was made anew, and is about to start
            return 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
            line = next((x for x in text.splitlines() if x.startswith("VmRSS:")), "VmRSS: 0 kB")
            return int(line.split()[1]) * BYTES_PER_KIB
        return 0


def _result_of(status: int) -> str:
    if status == 0 or -status in CLEAN_SIGNALS:
        return "success"
    if status > 0:
        return "exit-code"
    return "core-dump" if -status in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL) else "signal"
