"""A small site in virtual time on which one fault can be made, watched and healed: the daemon that ships, plant truth.

`Lab` holds the world, the fault plan and hooks into every port; a story awaits `lab.run(seconds)` and looks. The daemon
can be killed and built again while plant and nodes live on.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from controller.app import Daemon, Factories, build
from controller.audit.referee import Referee
from controller.audit.verdicts import RowResult, Verdicts
from controller.cycle import TickTrace
from controller.modes import Flag
from controller.ports import GridSource, NodeLink, OperatorSource, Recorder
from controller.settings import SiteSettings
from controller.types import Mode, NodeCommand, RowVerdict, frozen, replace
from hil import vtime
from hil.bench import START_UTC_S
from hil.factories import make_factories
from hil.faults import DEFAULT_VALUE, Fault, FaultPlan
from hil.lab_ports import HookedBattery, HookedLink, HookedMeter, Hooks, LabLease, LabSync
from hil.lab_site import MW, TOP_MHZ
from hil.lab_wire import LabWire
from hil.nodes import SimNodeLink
from hil.plant import events
from hil.plant.site import NS_PER_S, TruthBlock
from hil.ports import NoRecorder
from hil.scenario import Scenario
from hil.vnet import NetworkedLoop
from hil.vtime import VirtualClock
from hil.world import World, build_world

STEP_S = 0.25  # how far the plant may lag when no daemon moves it


@frozen
class Tick:
    """What one cycle came to."""

    t_s: float
    mode: Mode
    flags: frozenset[Flag]
    ref_w: float
    caps_mhz: float  # mean clock ordered in this cycle; NaN where no node was commanded
    raised_gpu: str  # one whose clock or power limit was ordered above its last order; empty where none was
    battery_w: float | None  # reference ordered
    seq: int
    plan_policy: str
    plan_status: str


@dataclass(slots=True, repr=False)  # asyncio prints its tasks, and with them all that a lab holds, at every start
class Lab:
    """The site of one cell. Make it with `in_lab`."""

    scenario: Scenario
    clock: VirtualClock
    plan: FaultPlan = field(default_factory=FaultPlan)
    hooks: Hooks = field(default_factory=Hooks)
    lease: LabLease = field(default_factory=LabLease)
    sync: LabSync = field(default_factory=LabSync)
    recorder: Recorder = field(default_factory=NoRecorder)
    operator: OperatorSource | None = None
    make_grid: Callable[[], GridSource] | None = None
    make_link: Callable[[Lab, NodeLink], NodeLink] | None = None  # stands in for some of the bench's nodes
    is_wired: bool = False  # meter and battery behind Modbus, by the drivers that ship
    ticks: list[Tick] = field(default_factory=list)
    traces: list[TickTrace] = field(default_factory=list)
    kicks: list[float] = field(default_factory=list)
    daemon: Daemon | None = None
    grid: GridSource | None = None
    link: SimNodeLink = field(init=False)
    wire: LabWire = field(init=False)
    world: World = field(init=False)
    site: SiteSettings = field(init=False)
    _referee: Referee = field(init=False)
    _factories: Factories = field(init=False)
    _task: asyncio.Task[None] | None = None
    _ordered: dict[str, tuple[float, float]] = field(default_factory=dict)  # clock and limit of each GPU; inf is free
    _pcc: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)
    _battery: list[np.ndarray[Any, np.dtype[np.float64]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = build_world(self.scenario)
        site = self.scenario.settings.site
        assert site is not None
        self.site = site
        self._referee = Referee(self.site.contract)
        self.world.plant.listen(self._judge)
        factories = make_factories(self.scenario, self.world, self.clock, recorder=self.recorder, plan=self.plan)
        assert isinstance(factories.node_link, SimNodeLink)
        self.link = factories.node_link
        self._factories = factories
        self.wire = LabWire(self.scenario, self.world, self.clock)

    async def open(self) -> None:
        """What must stand before the first daemon."""
        if self.is_wired:
            await self.wire.open()
            self._factories = replace(self._factories, meter=self.wire.meter, battery=self.wire.battery)
        if self.make_link is not None:
            self._factories = replace(self._factories, node_link=self.make_link(self, self.link))

    # -- life

    def start(self) -> None:
        """Build the daemon on the ports as they are, and let it run."""
        f: Factories = self._factories
        self.grid = self.make_grid() if self.make_grid is not None else f.grid
        ports = replace(
            f,
            meter=HookedMeter(f.meter, self.hooks) if f.meter is not None else None,
            battery=HookedBattery(f.battery, self.hooks) if f.battery is not None else None,
            node_link=HookedLink(f.node_link, self.hooks),
            lease=self.lease,
            recorder=self.recorder,
            grid=self.grid,
            sync=self.sync,
            operator=self.operator,
            feed_watchdog=lambda: self.kicks.append(self.clock.now_s()),
        )
        self.daemon = build(self.scenario.settings, ports)
        self.daemon.observe(self._saw)
        self._task = asyncio.ensure_future(self.daemon.run())

    async def kill(self) -> None:
        """End the daemon as kill -9 does: nothing more is written by it."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task, self.daemon = None, None

    async def restart(self) -> None:
        """A new daemon with the next epoch."""
        self.lease = LabLease(epoch=self.lease.epoch + 1)
        self.start()
        await asyncio.sleep(0)

    async def run(self, seconds: float) -> None:
        """Let the world go on; an error of the daemon ends the story."""
        until_ns = self.clock.now_ns() + round(seconds * NS_PER_S)
        while self.clock.now_ns() < until_ns:
            step_ns = min(until_ns, self.clock.now_ns() + round(STEP_S * NS_PER_S))
            await self.clock.sleep_until_ns(step_ns)
            self.world.plant.advance_ns(self.clock.now_ns())
            if self._task is not None and self._task.done():
                self._task.result()

    async def until(self, holds: Callable[[], bool], *, within_s: float) -> float:
        """Seconds until `holds`; an AssertionError after `within_s`."""
        start_s = self.clock.now_s()
        while not holds():
            assert self.clock.now_s() - start_s < within_s, f"not within {within_s} s; now {self.last}"
            await self.run(STEP_S)
        return self.clock.now_s() - start_s

    async def stop(self) -> None:
        if self._task is not None:
            await self.kill()
        await self.wire.close()

    # -- faults

    def fault(self, port: str, verb: Any, value: float | None = None, *, for_s: float = 1e9) -> None:
        """Begin a fault of the plan's verbs now."""
        now_s = self.clock.now_s()
        given = DEFAULT_VALUE.get(verb, 0.0) if value is None else value
        self.plan.add(Fault(f"{port}-{verb}", port, verb, now_s, now_s + for_s, given))

    def heal(self) -> None:
        """Everything that `fault` or a hook began is over."""
        self.plan.clear()
        self.wire.heal()
        for name in Hooks.__dataclass_fields__:
            setattr(self.hooks, name, Hooks.__dataclass_fields__[name].default)

    def drop(self, megawatt: float, within_s: float) -> None:
        plant = self.world.plant
        events.drop_load(plant, events.job_named(plant, None), block_w=megawatt * MW, within_s=within_s)

    # -- looking

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    @property
    def last(self) -> Tick:
        assert self.ticks, "no cycle yet"
        return self.ticks[-1]

    def since(self, t_s: float) -> list[Tick]:
        return [tick for tick in self.ticks if tick.t_s >= t_s]

    def saw(self, flag: Flag, *, since_s: float = 0.0) -> bool:
        return any(flag in tick.flags for tick in self.since(since_s))

    def worst_mode(self, since_s: float) -> Mode:
        return max((tick.mode for tick in self.since(since_s)), default=Mode.NORMAL)

    def caps_mhz(self) -> list[float]:
        """What the nodes' clocks are locked to; the top clock where free."""
        return [TOP_MHZ if np.isnan(node.clock_cap_mhz) else node.clock_cap_mhz for node in self.link.nodes.values()]

    def raised(self, since_s: float) -> str:
        """The first raise ordered since then: of a GPU's caps, or of the grid target; empty where there was none.

        In FALLBACK and above the target may rise: the battery is let go of, inside the rows.
        """
        for before, tick in pairwise(self.since(since_s)):
            if tick.raised_gpu:
                return f"{tick.raised_gpu} at {tick.t_s:.1f} s"
            if tick.mode <= Mode.HOLD and tick.ref_w > before.ref_w + 1.0:
                return f"target by {tick.ref_w - before.ref_w:.0f} W at {tick.t_s:.1f} s"
        return ""

    def pcc_w(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Truth, in samples of the plant's own step."""
        return np.concatenate(self._pcc) if self._pcc else np.empty(0)

    def battery_w(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The battery's power in truth, beside `pcc_w`."""
        return np.concatenate(self._battery) if self._battery else np.empty(0)

    def verdicts(self) -> Verdicts:
        """The referee's word; ends the run."""
        self.world.plant.advance_ns(self.clock.now_ns())
        self.world.plant.finish()
        found: Verdicts = self._referee.finish()
        return found

    def broken_rows(self) -> list[RowResult]:
        """Rows of the contract broken on plant truth; ends the run."""
        return [r for r in self.verdicts().limits if r.verdict is RowVerdict.BROKEN]

    def broken(self) -> list[str]:
        """The same in words, each with how far."""
        return [f"{r.id}: {r.worst:.4g} > {r.limit:.4g}" for r in self.broken_rows()]

    def _judge(self, block: TruthBlock) -> None:
        t_s = block.t0_s + np.arange(block.pcc_w.size, dtype=np.float64) * block.dt_s
        self._referee.feed(t_s, block.pcc_w, voltage_pu=block.voltage_pu, frequency_hz=block.frequency_hz)
        self._pcc.append(np.array(block.pcc_w))
        self._battery.append(np.array(block.battery_w))

    def _saw(self, trace: TickTrace) -> None:
        decision, command = trace.decision, trace.checked.command
        clocks = [TOP_MHZ if c.clock_mhz is None else float(c.clock_mhz) for n in command.nodes for c in n.caps]
        self.ticks.append(
            Tick(
                t_s=trace.image.t_mono_s,
                mode=decision.mode.mode,
                flags=decision.mode.flags,
                ref_w=decision.track.g_ref_w if decision.track else float("nan"),
                caps_mhz=float(np.mean(clocks)) if clocks else float("nan"),
                raised_gpu=self._note_orders(command.nodes),
                battery_w=command.battery.reference_w if command.battery else None,
                seq=command.seq,
                plan_policy=trace.plan.policy if trace.plan else "",
                plan_status=str(trace.plan.status) if trace.plan else "",
            )
        )
        self.traces.append(trace)
        del self.traces[:-20]

    def _note_orders(self, nodes: Sequence[NodeCommand]) -> str:
        """Keep what each GPU is ordered to be; the name of one that was ordered higher than before."""
        raised = ""
        for node in nodes:
            for cap in node.caps:
                now = (
                    math.inf if cap.clock_mhz is None else float(cap.clock_mhz),
                    math.inf if cap.power_limit_w is None else cap.power_limit_w,
                )
                last = self._ordered.get(cap.gpu_id, now)
                if now[0] > last[0] or now[1] > last[1] + 1e-6:
                    raised = cap.gpu_id
                self._ordered[cap.gpu_id] = now
        return raised


Story = Callable[[Lab], Awaitable[None]]


def in_lab(story: Story, scenario: Scenario, **options: Any) -> Lab:
    """Run `story` on a fresh site; the lab it leaves has been judged by nobody yet."""

    async def main() -> Lab:
        clock = VirtualClock(vtime.running_loop(), start_utc_s=START_UTC_S)
        lab = Lab(scenario, clock, **options)
        await lab.open()
        try:
            await story(lab)
        finally:
            await lab.stop()
        return lab

    return vtime.run(main(), loop_factory=NetworkedLoop)
