"""A machine of its own, booted by the systemd that would run Rampart: a Debian in a folder, as a container.

The folder is made once by `debootstrap` and filled as the README says: a copy below /opt, `make setup`, `rampart
systemd install`. It shares the network of the machine it runs on, so what answers on loopback there answers here.
Units, their sandbox, watchdog, restarts and ExecStopPost= are systemd's own; nothing of it is played. What it cannot
show is a kernel's: memory limits are not kept inside a container. Needs root on Linux.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from controller.config.load import data_root
from hil.wire_children import with_variable

RELEASE = "bookworm"  # its Python is 3.11, the oldest that Rampart takes
PYTHON = "3.11"
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,make"
NEEDED = ("debootstrap", "systemd-nspawn", "nsenter")
HOME = Path("/opt/rampart")
VARIABLE = "RAMPART_MACHINE"  # by which its first process is found
BOOT_S_MAX, OFF_S_MAX, COMMAND_S_MAX = 60.0, 30.0, 120.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing() -> str:
    """Why no such machine can be had here; empty where one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: debootstrap, systemd-container)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else "may not make namespaces here"


def build(folder: Path) -> None:
    """A machine in `folder` with this tree installed. What of it is there stays: a system and packages take minutes."""
    root = folder / "root"
    if not (folder / "has-system").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        _do(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(root)])
        (folder / "has-system").touch()
    wheels = folder / "wheels"
    wanted = (data_root() / "requirements.lock").read_bytes()
    if not (wheels / "lock").exists() or (wheels / "lock").read_bytes() != wanted:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        only = ["--only-binary=:all:", "--python-version", PYTHON]
        _do([*pip, *only, "-r", str(data_root() / "requirements.lock"), "-d", str(wheels)])
        (wheels / "lock").write_bytes(wanted)
    inside = root / HOME.relative_to("/")
    for part in ("controller", "drivers", "hil", "configs", "systemd"):
        shutil.rmtree(inside / part, ignore_errors=True)
        shutil.copytree(data_root() / part, inside / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "README.md", "LICENSE", "pyproject.toml", "requirements.lock"):
        if not (inside / name).exists() or (inside / name).read_bytes() != (data_root() / name).read_bytes():
            shutil.copyfile(data_root() / name, inside / name)
    shutil.copytree(wheels, root / "wheels", dirs_exist_ok=True)
    offline = ["env", "-i", f"PATH={PATH}", "HOME=/root", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"]
    _do(["chroot", str(root), *offline, "make", "-C", str(HOME), "setup"])
    _do(["chroot", str(root), str(HOME / ".venv/bin/rampart"), "systemd", "install"])


def _do(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")


class Machine:
    """One boot of it."""

    def __init__(self, root: Path, process: asyncio.subprocess.Process, name: str) -> None:
        self.root = root
        self._process, self._name = process, name
        self._leader = 0

    @classmethod
    async def boot(cls, root: Path, *, name: str, log: Path, binds: Mapping[Path, str]) -> Machine:
        """Up to its multi-user target. `binds`: folders of ours and where they lie there."""
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "-D", str(root)]
        command += [f"--machine={name}", f"--setenv={VARIABLE}={name}", "--resolv-conf=off", "--timezone=off"]
        command += [f"--bind={ours}:{theirs}" for ours, theirs in binds.items()]
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        found = cls(root, process, name)
        try:
            async with asyncio.timeout(BOOT_S_MAX):
                await found._until_up()
        except BaseException:
            await found.off()
            raise
        return found

    async def _until_up(self) -> None:
        while True:
            assert self._process.returncode is None, "the machine did not boot"
            self._leader = self._leader or _leader_of(self._name)
            if self._leader:
                _, said = await self.run("systemctl", "is-system-running")
                if said.strip() in ("running", "degraded"):
                    return
            await asyncio.sleep(0.2)

    def path(self, inside: str) -> Path:
        """A path of the running machine, as seen from here: its tmpfs too."""
        return Path(f"/proc/{self._leader}/root") / inside.lstrip("/")

    async def run(self, *command: str) -> tuple[int, str]:
        """Exit status and output of a command, run there as root."""
        there = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-p", "--wd=/", "env", "-i", f"PATH={PATH}"]
        process = await asyncio.create_subprocess_exec(
            *there,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                said, _ = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        return process.returncode or 0, said.decode(errors="replace")

    async def rampart(self, *arguments: str) -> tuple[int, str]:
        return await self.run(str(HOME / ".venv/bin/rampart"), *arguments)

    async def off(self) -> None:
        """Its systemd stops all units, or at the deadline everything is killed."""
        if self._process.returncode is not None:
            return
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OFF_S_MAX):
                await self._process.wait()
        await self.cut()

    async def cut(self) -> None:
        """As when its power is cut: nothing is told to anybody."""
        for pid in (self._leader, self._process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if pid and self._process.returncode is None:
                    os.kill(pid, signal.SIGKILL)
        await self._process.wait()


class SystemdUnit:
    """One service of a machine."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    async def show(self, key: str) -> str:
        """A property of the unit as systemd has it."""
        return (await self.machine.run("systemctl", "show", "--value", "-p", key, self.name))[1].strip()

    async def pid(self) -> int:
        """Of its main process, in the machine's own count; 0 without one."""
        return int(await self.show("MainPID") or 0)

    async def order(self, verb: str) -> int:
        """`systemctl VERB`: its exit status."""
        return (await self.machine.run("systemctl", *verb.split(), self.name))[0]

    async def signal(self, number: signal.Signals) -> None:
        """To its main process alone."""
        await self.order(f"kill --kill-whom=main --signal={number.name}")

    async def journal(self) -> str:
        return (await self.machine.run("journalctl", "-u", self.name, "-o", "cat", "--no-pager"))[1]


def _leader_of(name: str) -> int:
    """The first process of the machine, in our own count; 0 before there is one."""
    for pid in with_variable(f"{VARIABLE}={name}"):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            own = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if own[-1] == "1" and len(own) > 2:
                return pid
    return 0
