"""A scenario in real time on real wires: the shipped processes against a broker, Modbus servers and fake GPUs.

One event loop holds the plant and everything it answers for; the site controller and the node agent are processes of
their own, started from copies of their shipped files. They are judged on plant truth alone, by the code that judges a
run in process. Whatever ends the run, everything started is stopped in order and the GPUs' settings are looked at last.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from controller.control_socket import fetch
from controller.settings import SiteSettings
from controller.types import GridSignal, frozen, replace
from hil.bench import Bench, Progress, RunRecord
from hil.broker import EmbeddedBroker, check_bindable, free_port
from hil.fake_nvml.build import environment
from hil.faults import FaultPlan
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_proxy import ModbusProxy
from hil.modbus_server import ModbusServer
from hil.plant.battery import Order
from hil.plant.site import NS_PER_S, STEP_NS, TruthBlock
from hil.scenario import Scenario
from hil.signal_plan import grid_signals
from hil.wire_children import Child, Running, left_of
from hil.wire_config import HOST, Ports, WireFiles, node_settings, write_files
from hil.wire_devices import (
    RunClock,
    serve,
)
from hil.wire_gpus import WireGpus, check_sample
from hil.wire_record import Account, Checkpoints, Crash, cut, dropped_w, predictions, view_of, wire_facts, words_of
from hil.wire_signals import Answer, Issuer
from hil.wire_site import site_registers, wire_faults
from hil.world import Happening

POLL_S = 0.1  # how often the controller's status is asked for
READY_POLL_S = 0.2
SITE_STOP_S, NODE_STOP_S = 8.0, 15.0
LAG_S_MAX = 0.5  # after a longer stall the loop goes on from now; the plant itself misses nothing
CONTROLLING = ("NORMAL", "DEGRADED", "SHED")  # modes in which the tracker moves the target


class NotReady(Exception):
    """The processes run but do not control; the text says what is missing."""


@frozen
class Snapshot:
    """What a person watching sees."""

    stage: str
    progress: Progress | None = None
    mode: str = "-"
    happenings: tuple[Happening, ...] = ()


class WireBench:
    """One run on wires in progress."""

    def __init__(
        self, scenario: Scenario, site: SiteSettings, *, out: Path, csv_file: TextIO, show: Callable[[Snapshot], None]
    ) -> None:
        self._scenario, self._site, self._out, self._show = scenario, site, out, show
        self._started_s, self._cpu_s = time.perf_counter(), time.process_time()
        node = node_settings(scenario).node
        assert node is not None and scenario.doc.wire is not None
        self._node = node
        self._bench = Bench(scenario, site, csv_file=csv_file, recording=None, hears_live=False)
        self._world = self._bench.world
        self._plant = self._world.plant
        check_sample(node.stands_for, self._plant, origin=scenario.doc.wire.node)
        self._clock = RunClock()
        self._truth: list[TruthBlock] = []
        self._is_over = False
        self._plant.listen(self._keep)
        self._account = Account()
        self._mode = "-"
        self._servers: list[ModbusServer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._faults = wire_faults(scenario)
        self.proxies: dict[str, ModbusProxy] = {}
        self._children: list[Running] = []
        self._broker: EmbeddedBroker | None = None
        self._issuer: Issuer | None = None
        self._device: SunSpecBatteryDevice | None = None
        self._gpus: WireGpus | None = None
        self._files: WireFiles | None = None

    # ------------------------------------------------------------------------------------------------ the whole run

    async def run_through(self) -> RunRecord:
        """Open, run, stop, judge. Raises ChildDied or NotReady; by then every process is gone."""
        run_dir = Path(tempfile.mkdtemp(prefix="rampart-"))
        try:
            await self._open(run_dir)
            await self._while_all_live(self._until_ready())
            self._clock.begin()
            await self._while_all_live(self._timeline())
        finally:
            await self._stop(run_dir)
        return self._record()

    @property
    def is_stopping(self) -> bool:
        """The end has begun."""
        return self._account.is_stopping

    @property
    def left_throttled(self) -> tuple[str, ...]:
        """GPUs whose settings were not those they had, once all have stopped."""
        return self._account.left_throttled

    def kill(self) -> None:
        """Whatever still runs, at once."""
        for child in self._children:
            child.kill()

    async def _while_all_live(self, body: Coroutine[Any, Any, None]) -> None:
        """Run `body`; whatever else ends meanwhile ends it and raises."""
        main = asyncio.ensure_future(body)
        try:
            done, _ = await asyncio.wait((main, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {main}:
                task.result()
            if main not in done:
                raise RuntimeError("a part of the bench ended by itself")
            main.result()
        finally:
            main.cancel()
            await asyncio.gather(main, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------ starting

    async def _open(self, run_dir: Path) -> None:
        """Servers first, then the broker, then the processes that need them."""
        self._show(Snapshot("compiling the simulated NVML library, opening ports"))
        state = run_dir / "gpus"
        variables = environment(state)
        doc, plant = self._scenario.doc, self._plant
        self._gpus = WireGpus(state, plant, model_name=doc.plant.fleet[0].model, rng=self._world.rng(10), seed=doc.seed)
        ports = await self._serve()
        self._files = files = write_files(self._scenario, self._out / "wire", run_dir, ports)
        self._tasks.append(asyncio.ensure_future(self._move_plant()))
        grid, mqtt = files.site.grid, files.site.mqtt
        assert grid is not None and mqtt is not None
        self._issuer = Issuer(
            mqtt,
            grid,
            private_keys=files.issuer_keys,
            agent_public_key=files.agent_public_key,
            clock=self._clock,
            rng=np.random.default_rng(),
            on_answer=self._take_answer,
        )
        self._tasks.append(asyncio.ensure_future(self._issuer.session.run()))
        await self._start_processes(files, run_dir, variables)

    async def _start_processes(self, files: WireFiles, run_dir: Path, variables: Mapping[str, str]) -> None:
        """The shipped commands, each in a session of its own."""
        for name, file, extra in (("site controller", files.site_file, {}), ("node agent", files.node_file, variables)):
            log = self._out / "wire" / f"{file.stem}.log"
            child = await Child.start(name, ["run", "-c", str(file)], log=log, environment=extra)
            self._children.append(child)
            self._tasks.append(asyncio.ensure_future(child.watch()))

    async def _serve(self) -> Ports:
        """Everything that listens."""
        wire = self._scenario.doc.wire
        assert wire is not None
        self._device, devices = site_registers(self._scenario, self._site, self._world, self._advance)
        for name, registers, port in devices:
            self._servers.append(await serve(name, registers, port=port))
        port = wire.broker_port or free_port(HOST)
        check_bindable(HOST, port)
        await self._start_broker(port)
        return await self._behind_proxies(Ports(port, *(server.port for server in self._servers)))

    async def _start_broker(self, port: int) -> None:
        self._broker = EmbeddedBroker(port=port)
        await self._broker.start()

    async def _behind_proxies(self, ports: Ports) -> Ports:
        """A proxy before each device that the scenario makes sick; the others are reached directly."""
        for name in sorted({fault.port for fault in self._faults}):
            await self._add_proxy(name, getattr(ports, name))
        return replace(ports, **{name: proxy.port for name, proxy in self.proxies.items()})

    async def _add_proxy(self, name: str, port: int) -> None:
        self.proxies[name] = ModbusProxy(HOST, port, rng=self._world.rng(20 + len(self.proxies)))
        await self.proxies[name].start()

    async def _until_ready(self) -> None:
        """Wait until the controller is in normal operation with every GPU known and the battery under command."""
        wire, battery = self._scenario.doc.wire, self._plant.battery
        assert wire is not None and battery is not None and self._issuer is not None
        deadline_s = time.monotonic() + wire.start_s_max
        missing = "its status socket"
        while time.monotonic() < deadline_s:
            self._show(Snapshot(f"site controller and node agent start; waiting for {missing}"))
            status = await self._status()
            missing = _missing(status, gpus=self._plant.fleet.gpus, is_battery_told=battery.order is not Order.IDLE)
            if not missing and not self._issuer.session.is_up:
                missing = "the grid's own link to the broker"
            if not missing:
                return
            await asyncio.sleep(READY_POLL_S)
        raise NotReady(f"not ready after {wire.start_s_max:g} s: {missing}")

    # ------------------------------------------------------------------------------------------------ running

    async def _timeline(self) -> None:
        """Publish what the grid says at its times, watch, and end at the scenario's end."""
        watch = asyncio.ensure_future(self._watch())
        sickness = asyncio.ensure_future(self._make_faults())
        try:
            for known_s, sig in sorted(grid_signals(self._scenario, self._site), key=lambda s: s[0]):
                if known_s < self._world.duration_s:
                    await self._sleep_until(known_s)
                    self._publish(replace(sig, from_s=max(sig.from_s, self._clock.now_s())))
            await self._sleep_until(self._world.duration_s)
            for task in (watch, sickness):
                if task.done():
                    task.result()
        finally:
            for task in (watch, sickness):
                task.cancel()
            await asyncio.gather(watch, sickness, return_exceptions=True)

    async def _make_faults(self) -> None:
        """Each fault of the scenario at its time, on the wire of its device; of two at once the later counts."""
        edges = [(f.from_s, f) for f in self._faults] + [(f.until_s, f) for f in self._faults]
        for t_s, fault in sorted((e for e in edges if math.isfinite(e[0])), key=lambda e: e[0]):
            await self._sleep_until(t_s)
            on = FaultPlan(self._faults).on(fault.port, self._clock.now_s())
            if on is None:
                self.proxies[fault.port].heal()
            else:
                self.proxies[fault.port].make_verb(on.verb, on.value)
            self._note(fault.id, "fault", f"{fault.port}: {on.verb if on is not None else 'well again'}")

    async def _sleep_until(self, t_s: float) -> None:
        await self._clock.sleep_until_ns(round(t_s * NS_PER_S))

    def _publish(self, sig: GridSignal) -> None:
        assert self._issuer is not None
        self._issuer.publish(sig)
        self._note(sig.signal_id, "signal", words_of(sig))

    def _take_answer(self, answer: Answer) -> None:
        self._account.answers.append(answer)
        said = answer.answer
        detail = f"{said.acceptance}{': ' + said.detail if said.detail else ''}"
        self._note(f"{answer.signal_id}-answer", "answer", detail)

    def _note(self, name: str, kind: str, detail: str) -> None:
        self._world.diary.append(Happening(t_s=self._clock.now_s(), id=name, kind=kind, detail=detail))

    async def _watch(self) -> None:
        """Ask the controller what it thinks, and the kernel how large the processes are."""
        checkpoints = Checkpoints(self._scenario.doc.plant.fleet, self._plant.fleet.jobs)
        while True:
            began = time.monotonic()
            status = await self._status()
            if status is not None:
                view = view_of(status, begin_s=self._clock.begin_s)
                if view is not None and self._account.is_news(view):
                    self._bench.on_tick(view)
                    self._mode = str(status["mode"])
                self._account.status = status
            for child in self._children:
                child.measure()
            for job in checkpoints.reached():
                self._note(f"checkpoint-{job}", "checkpoint", f"{job} writes a checkpoint")
            diary = tuple(self._world.diary)
            self._show(Snapshot("running", self._bench.progress(), self._mode, diary))
            await asyncio.sleep(max(0.01, POLL_S - (time.monotonic() - began)))

    async def _status(self) -> dict[str, Any] | None:
        assert self._files is not None
        try:
            return await fetch(self._files.socket)
        except (OSError, ValueError, TimeoutError):
            return None

    async def _move_plant(self) -> None:
        """Every 5 ms: plant to now, timers of the devices, GPUs. Notes how late it came."""
        assert self._device is not None and self._gpus is not None
        due_ns = time.monotonic_ns()
        while True:
            due_ns += STEP_NS
            await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))
            now_ns = time.monotonic_ns()
            if self._clock.has_begun and not self._is_over:
                self._account.late_ms.append((now_ns - due_ns) / 1e6)
            if now_ns - due_ns > LAG_S_MAX * NS_PER_S:
                due_ns = now_ns
            self._advance()
            self._device.tick(now_ns / NS_PER_S)
            self._gpus.step(self._plant.now_s, machine_ns=now_ns)

    def _advance(self) -> float:
        self._plant.advance_ns(self._clock.now_ns())
        return self._clock.now_s()

    def _keep(self, block: TruthBlock) -> None:
        if not self._is_over:
            self._truth.append(block)

    # ------------------------------------------------------------------------------------------------ ending

    async def _stop(self, run_dir: Path) -> None:
        """Site, node, then what they spoke with; the GPUs' settings are looked at when both are gone."""
        account = self._account
        account.is_stopping = True
        if self._clock.has_begun and not self._is_over:
            self._advance()
            self._plant.finish()
            self._is_over = True
        self._show(Snapshot("stopping: site controller, node agent, devices"))
        for child, deadline_s in zip(self._children, (SITE_STOP_S, NODE_STOP_S), strict=False):
            account.clean_stops[child.name] = await child.stop(deadline_s=deadline_s)
            account.rss_bytes[child.name] = child.rss_bytes_max
        account.processes_left = sum(not child.is_gone for child in self._children)
        account.processes_left += await left_of(str(run_dir / "gpus"))
        if self._gpus is not None:
            account.left_throttled = self._gpus.left_throttled()
            account.clock_writes, account.limit_writes = self._gpus.writes()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for proxy in self.proxies.values():
            await proxy.stop()
        for server in self._servers:
            await server.stop()
        if self._broker is not None:
            await self._broker.stop()
        if self._gpus is not None:
            self._gpus.close()
        shutil.rmtree(run_dir, ignore_errors=True)

    def _record(self) -> RunRecord:
        """Judge the truth and add what the wires alone can tell."""
        self._show(Snapshot("judging plant truth"))
        for block in cut(self._truth, until_s=self._world.duration_s):
            self._bench.hear(block)
        self._bench.close()
        assert self._files is not None
        with contextlib.suppress(OSError):
            newest = max(self._files.recordings.glob("*.jsonl.gz"), default=None)
            if newest is not None:
                shutil.copyfile(newest, self._out / "recording.jsonl.gz")
        record = self._bench.record(
            wall_s=time.perf_counter() - self._started_s, cpu_s=time.process_time() - self._cpu_s
        )
        assert self._issuer is not None
        facts = self._account.facts(
            gpus=self._plant.fleet.groups,
            status_messages=self._issuer.status_count,
            predicted=self._predicted(record),
        )
        return replace(record, wire=wire_facts(self._account, facts))

    def _predicted(self, record: RunRecord) -> list[dict[str, object]]:
        """What the declared hardware was expected to leave of the crash, beside what it did leave."""
        crash = None
        for h in record.world.diary:
            t_s, pcc_w = record.moments.around(h.t_s) if h.kind == "drop" else (np.empty(0), np.empty(0))
            if t_s.size > 1:
                crash = Crash(h.t_s, t_s, pcc_w, dropped_w(record.rows, h))
        return predictions(self._site, [sig for _, sig in grid_signals(self._scenario, self._site)], crash)


def _missing(status: dict[str, Any] | None, *, gpus: int, is_battery_told: bool) -> str:
    """What still lacks for a controlled site; empty when nothing does."""
    if status is None:
        return "its status socket"
    if status["mode"] not in CONTROLLING:
        because = "; ".join(status["reasons"])
        return f"its control (mode {status['mode']}{': ' + because if because else ''})"
    if status["gpus"] != gpus:
        return f"the node's report ({status['gpus']} of {gpus} GPUs known)"
    return "" if is_battery_told else "the battery's first command"
