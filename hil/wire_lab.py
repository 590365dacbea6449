"""The wire bench for stories that break things: shipped processes under a service manager, proxies before the devices.

A story is a coroutine that is given the lab once the site is controlled; it signals processes, makes wire faults and
looks at plant truth. What it leaves broken ends with it: the services are stopped as systemd stops them, and the GPUs'
settings are looked at last.
"""

from __future__ import annotations

import asyncio
import getpass
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from controller.config.load import data_root
from controller.control_socket import fetch
from controller.errors import BadInput
from controller.lease import EPOCH_NAME
from controller.types import FloatArray, replace
from hil.bench import RunRecord
from hil.plant.site import NS_PER_S
from hil.scenario import Scenario
from hil.signal_plan import grid_signals
from hil.supervisor import Service, Unit
from hil.wire import Snapshot, WireBench
from hil.wire_children import die_with_parent
from hil.wire_config import HOST, Ports, WireFiles
from hil.wire_signals import Answer

SITE, NODE = "rampart-site.service", "rampart-node.service"


class WireLab(WireBench):
    """One story on wires. `services` and `proxies` are there once it runs."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        out: Path,
        story: Story,
        site_environment: Mapping[str, str] | None = None,
        with_mosquitto: bool = False,
    ) -> None:
        site = scenario.settings.site
        assert site is not None
        self.out = out
        self.said: list[tuple[float, str]] = []
        self.modes: list[tuple[float, str]] = []
        self.services: dict[str, Service] = {}
        self.mosquitto: Mosquitto | None = None
        self.run_dir = Path(tempfile.mkdtemp(prefix="rampart-"))  # a short path: sockets lie in it
        self._story = story
        self._site_environment = dict(site_environment or {})
        self._with_mosquitto = with_mosquitto
        self._csv = (out / "pcc.csv").open("w", encoding="utf-8")
        super().__init__(scenario, site, out=out, csv_file=self._csv, show=self._see)

    # ------------------------------------------------------------------------------------------------ for stories

    @property
    def now_s(self) -> float:
        return self._clock.now_s()

    @property
    def plant(self) -> Any:
        return self._plant

    @property
    def gpus(self) -> Any:
        assert self._gpus is not None
        return self._gpus

    @property
    def broker(self) -> Any:
        return self._broker

    @property
    def files(self) -> WireFiles:
        assert self._files is not None
        return self._files

    @property
    def site(self) -> Service:
        return self.services["site"]

    @property
    def node(self) -> Service:
        return self.services["node"]

    async def run(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def until(self, holds: Callable[[], bool], *, within_s: float) -> float:
        """Seconds until `holds`; an AssertionError after `within_s`."""
        start_s = time.monotonic()
        while not holds():
            assert time.monotonic() - start_s < within_s, f"not within {within_s} s; {self.said[-5:]}"
            await asyncio.sleep(0.05)
        return time.monotonic() - start_s

    async def status(self) -> dict[str, Any] | None:
        """What the controller says of itself now; None while it does not."""
        return await self._status()

    async def until_mode(self, *modes: str, within_s: float, newer_than_pid: int | None = None) -> float:
        """Seconds until the controller (another process than `newer_than_pid`) says one of `modes`."""
        start_s = time.monotonic()
        while True:
            is_new = newer_than_pid is None or (self.site.is_running and self.site.pid != newer_than_pid)
            status = await self.status() if is_new else None
            if status is not None and status["mode"] in modes:
                return time.monotonic() - start_s
            what = status and (status["mode"], status["reasons"])
            assert time.monotonic() - start_s < within_s, f"{modes} not within {within_s} s: {what}"
            await asyncio.sleep(0.1)

    def other_site(self, *, epoch: int) -> Path:
        """A second site file for the same devices, of a machine whose last epoch was one below `epoch`."""
        raw = yaml.safe_load(self.files.site_file.read_text(encoding="utf-8"))
        raw |= {"state_dir": str(self.out / "wire" / "state" / "other"), "runtime_dir": str(self.run_dir / "other")}
        state = Path(raw["state_dir"])
        state.mkdir(parents=True, exist_ok=True)
        (state / EPOCH_NAME).write_text(f"{epoch - 1}\n", encoding="ascii")
        path = self.files.site_file.with_name("other.yaml")
        path.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        return path

    def epoch(self) -> int:
        """Of the site's controller that leads now."""
        return int((Path(self.files.site.state_dir) / EPOCH_NAME).read_text(encoding="ascii"))

    async def reload(self) -> int:
        """Exit status of the unit's own way to read its file anew."""
        return await self.site.reload({"RUNTIME_DIRECTORY": self.files.site.runtime_dir})

    async def other_mode(self) -> str:
        """What the second controller says of itself."""
        return str((await fetch(self.run_dir / "other" / "site.sock"))["mode"])

    def announce(self, number: int = 0) -> None:
        """Publish one of the scenario's grid signals now, for as long as it says."""
        _, sig = grid_signals(self._scenario, self._site)[number]
        length_s = sig.until_s - sig.from_s
        self._publish(replace(sig, from_s=self.now_s, until_s=self.now_s + length_s))

    @property
    def answers(self) -> list[Answer]:
        """What the site said to what was announced."""
        return self._account.answers

    def caps_mhz(self) -> FloatArray:
        """Upper locked clocks as the simulated driver holds them; NaN where free."""
        found: FloatArray = self.gpus.gpus.clock_lock_mhz()[1]
        return found

    def pcc_w(self, from_s: float, to_s: float) -> FloatArray:
        """Plant truth between two instants, 5 ms a sample; to be asked when the story is over."""
        parts = [
            b.pcc_w[(t >= from_s) & (t < to_s)]
            for b in self._truth
            for t in (b.t0_s + np.arange(b.pcc_w.size) * b.dt_s,)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def step_w(self, from_s: float, to_s: float) -> float:
        """The largest change within a second of the 1 s mean of true power."""
        pcc_w = self.pcc_w(from_s, to_s)
        n = round(1.0 / (self._plant.step_ns / NS_PER_S))
        if pcc_w.size < 2 * n:
            return 0.0
        means = np.convolve(pcc_w, np.full(n, 1.0 / n), mode="valid")
        return float(np.abs(means[n:] - means[:-n]).max())

    # ------------------------------------------------------------------------------------------------ the bench's parts

    def _see(self, snapshot: Snapshot) -> None:
        if snapshot.stage == "running" and (not self.modes or self.modes[-1][1] != snapshot.mode):
            self.modes.append((self.now_s, snapshot.mode))

    async def _behind_proxies(self, ports: Ports) -> Ports:
        for name in ("meter", "battery", "ups"):
            await self._add_proxy(name, getattr(ports, name))
        return replace(ports, **{name: proxy.port for name, proxy in self.proxies.items()})

    async def _start_broker(self, port: int) -> None:
        """A mosquitto of its own, which can be frozen and killed as the bench's own cannot."""
        if self._with_mosquitto:
            self.mosquitto = await Mosquitto.start(self.run_dir, port)
        else:
            await super()._start_broker(port)

    async def _start_processes(self, files: WireFiles, run_dir: Path, variables: Mapping[str, str]) -> None:
        for name, file, extra in (
            ("site", files.site_file, self._site_environment),
            ("node", files.node_file, variables),
        ):
            self._begin(name, self.service(name, file, run_dir, extra))

    def _begin(self, name: str, service: Service) -> None:
        old = self.services.get(name)
        self.services[name] = service
        if old is None:
            self._children.append(service)
        else:
            self._children[self._children.index(old)] = service  # it is stopped in the old one's place
        self._tasks.append(asyncio.ensure_future(service.watch()))

    def begin_again(self, name: str) -> None:
        """Start a service that was given up, as a person does who mended its file."""
        old = self.services[name]
        assert old.is_given_up
        self._begin(name, old.anew())

    def service(self, name: str, file: Path, run_dir: Path, extra: Mapping[str, str], *, title: str = "") -> Service:
        """The shipped unit of `name`, on files of this run."""
        title = title or name
        given_up = self._unit("rampart-restore.service", file)
        return Service(
            self._unit(f"rampart-{name}.service", file),
            log=self.out / "wire" / f"{title}.log",
            socket_path=run_dir / f"{title}.notify",
            environment=extra,
            on_failure=given_up if name == "node" else None,
            say=lambda what: self.said.append((self.now_s, what)),
        )

    def _unit(self, name: str, file: Path) -> Unit:
        text = (data_root() / "systemd" / name).read_text(encoding="utf-8")
        for mark, value in (
            ("@BIN@", str(Path(sys.prefix) / "bin")),
            ("@CONFIG@/site.yaml", str(file)),
            ("@CONFIG@/node.yaml", str(file)),
            ("/var/lib/rampart-node", str(self.out / "wire" / "state" / "node")),
        ):
            text = text.replace(mark, value)
        return Unit.parse(name, text)

    async def _timeline(self) -> None:
        watch = asyncio.ensure_future(self._watch())
        try:
            await self._story(self)
            if watch.done():
                watch.result()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _stop(self, run_dir: Path) -> None:
        for service in self.services.values():
            service.memory_max = None
        if self.mosquitto is not None:
            await self.mosquitto.revive()
        await super()._stop(run_dir)
        if self.mosquitto is not None:
            await self.mosquitto.end()
        self._csv.close()

    @property
    def processes_left(self) -> int:
        return self._account.processes_left

    def _record(self) -> RunRecord:
        raise BadInput("a story is judged by itself")  # a run whose processes died is no run of a scenario

    async def tell(self) -> None:
        """Run the story, and leave nothing behind."""
        try:
            await self._open(self.run_dir)
            await self._while_all_live(self._until_ready())
            self._clock.begin()
            await self._while_all_live(self._timeline())
        finally:
            await self._stop(self.run_dir)


MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")


class Mosquitto:
    """A broker process on loopback, open to all; its sessions are lost with it."""

    def __init__(self, conf: Path, port: int) -> None:
        self._conf, self._port = conf, port
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, folder: Path, port: int) -> Mosquitto:
        conf = folder / "mosquitto.conf"
        lines = (
            f"user {getpass.getuser()}",
            f"listener {port} {HOST}",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "message_size_limit 65536",
        )
        conf.write_text("\n".join(lines) + "\n", encoding="ascii")
        broker = cls(conf, port)
        await broker.begin()
        return broker

    async def begin(self) -> None:
        """Start it, and wait until it listens."""
        assert MOSQUITTO is not None, "mosquitto is not installed"
        self._process = await asyncio.create_subprocess_exec(
            MOSQUITTO, "-c", str(self._conf), stderr=asyncio.subprocess.DEVNULL, preexec_fn=die_with_parent
        )
        async with asyncio.timeout(5.0):
            while True:
                try:
                    _, writer = await asyncio.open_connection(HOST, self._port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        await self._process.wait()

    async def revive(self) -> None:
        """Whatever a story did to it, it serves again."""
        assert self._process is not None
        if self._process.returncode is not None:
            await self.begin()
        self.signal(signal.SIGCONT)

    async def end(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


Story = Callable[[WireLab], Awaitable[None]]


def in_wire_lab(
    story: Story,
    scenario: Scenario,
    out: Path,
    *,
    site_environment: Mapping[str, str] | None = None,
    with_mosquitto: bool = False,
) -> WireLab:
    """Tell `story` on wires; the lab it leaves says what became of processes and GPUs."""
    out.mkdir(parents=True, exist_ok=True)

    async def main() -> WireLab:
        lab = WireLab(scenario, out=out, story=story, site_environment=site_environment, with_mosquitto=with_mosquitto)
        await lab.tell()
        return lab

    return asyncio.run(main())
