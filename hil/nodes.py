"""GPU nodes in process: agents that report, obey, and fall back by themselves, and the site's end of the wire to them.

Each node stands for many like it. Its agent keeps what a real one keeps: the newest epoch and sequence, the time its
command expires, and on expiry its slot and slope. Agents act in plant time, so they live on when the controller dies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from controller.node.deadman import Deadman
from controller.node.gpu_worker import CLOCK_WRITE_S, REFUSED_S, RETRIES
from controller.ports import Clock
from controller.types import (
    AgentState,
    FloatArray,
    GpuCap,
    GpuId,
    GpuSpec,
    NodeCommand,
    NodeFault,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    replace,
)
from hil.faults import Fault, FaultPlan
from hil.plant.gpu_models import GpuModel
from hil.plant.site import GROUP_0, NS_PER_S, OTHER, SitePlant
from hil.scenario_documents import ClassPlantDoc, NodePlantDoc, node_ids
from hil.world import World

UP_S = 86_400.0  # between two nodes' boots: no clock of theirs is ours or another's


class SimNode:
    """One reporting node and its agent."""

    def __init__(
        self,
        plant: SitePlant,
        doc: NodePlantDoc,
        *,
        node_id: str,
        group: int,
        kind: GpuModel,
        gpus_per_node: int,
        fallback_clock_mhz: int,
    ) -> None:
        self._plant, self._doc, self._kind = plant, doc, kind
        self.node_id, self._group = NodeId(node_id), group
        self._gpus = gpus_per_node
        self.stands_for = plant.fleet.groups[group].count // gpus_per_node
        ids = tuple(GpuId(f"GPU-{node_id}-{k}") for k in range(gpus_per_node))
        self.specs = tuple(
            GpuSpec(g, kind.key, kind.idle_w, kind.limit_w_min, kind.limit_w_max, kind.limit_w_max, kind.clocks_mhz())
            for g in ids
        )
        self._ids = ids
        self.fallback_clock_mhz = fallback_clock_mhz
        self._deadman = Deadman(  # of one GPU: those of a node share their cap
            self.specs[:1], fallback_clock_mhz=fallback_clock_mhz, fallback_power_limit_w=None, is_inherited=False
        )
        self.clock_cap_mhz = math.nan  # not locked
        self._epoch = self._seq = 0
        self._order_count = 0
        self._written_s = -math.inf
        self._ignored_s = math.inf  # since when its GPUs have not been what they were told
        self._retry_s = -math.inf  # until then an agent whose GPUs ignored it does not try again
        self._site_gpus = plant.fleet.gpus
        self._up_s = UP_S * (1 + group)
        self._ones = np.ones(gpus_per_node)
        self._free_cap = GpuCap(ids[0], None, None)
        self._free = self._array(0.0).astype(np.int8)
        self._kept: dict[str, tuple[float, FloatArray]] = {}
        self._yes, self._no = np.ones(gpus_per_node, dtype=np.bool_), np.zeros(gpus_per_node, dtype=np.bool_)

    # -- commands

    def receive(self, command: NodeCommand, *, is_obeyed: bool = True) -> None:
        """Take a command as an agent does; older epochs and repeated sequences are ignored.

        With `is_obeyed` False it is acknowledged and has no effect (GPUs that accept a cap and ignore it): the agent
        reads back, tries again, and says so, as the one that ships does.
        """
        if (command.epoch, command.seq) <= (self._epoch, self._seq):
            return
        self._epoch, self._seq = command.epoch, command.seq
        now_s = self._plant.now_s
        caps = (self._shared_cap(command),) if command.caps else ()
        if caps and not self._takes(caps[0], is_obeyed=is_obeyed):
            caps = ()
        slope = command.release_w_per_s / self._gpus
        self._deadman.accept(replace(command, caps=caps, release_w_per_s=slope), now_s=now_s)
        if caps:
            self.set_cap(caps[0])

    def _takes(self, cap: GpuCap, *, is_obeyed: bool) -> bool:
        """Whether `cap` is written now, and taken."""
        now_s = self._plant.now_s
        if is_obeyed and now_s >= self._retry_s:
            self._ignored_s = math.inf
            return True
        if is_obeyed or self._has(cap):
            return False
        self._ignored_s = min(self._ignored_s, now_s)
        if self.is_deaf and now_s >= self._retry_s:
            self._retry_s = now_s + REFUSED_S
        return False

    @property
    def is_deaf(self) -> bool:
        """Its GPUs did not take a cap, nor again when it was written once more, and once more."""
        return self._plant.now_s - self._ignored_s >= RETRIES * CLOCK_WRITE_S

    @property
    def due_s(self) -> float:
        """When the dead-man acts by itself."""
        return self._deadman.due_s

    def tend(self) -> None:
        """Look at the dead-man: at the rate of telemetry and when it is due. Clocks move once a second at most."""
        now_s = self._plant.now_s
        orders = self._deadman.step(now_s=now_s)
        if now_s - self._written_s < CLOCK_WRITE_S:
            return
        if orders.gives_back:
            self.set_cap(self._free_cap)
        elif orders.caps:
            self.set_cap(orders.caps[self._ids[0]])

    @property
    def state(self) -> AgentState:
        """A node of the bench was armed before the run: until it is told otherwise it is as it would be then."""
        state = self._deadman.state
        return AgentState.ARMED if state is AgentState.STARTING else state

    # -- report

    def report(self, *, arrives_s: float) -> NodeReport:
        """Telemetry as of now; times are the receiver's, so a report is as old as its arrival."""
        plant = self._plant
        return NodeReport(
            node_id=self.node_id,
            boot_id="hil",
            t_mono_s=arrives_s,
            state=self.state,
            stands_for=self.stands_for,
            gpu_ids=self._ids,
            power_w=self._array(self.power_w(self._doc.power_window_s)),
            instant_w=self._array(self.power_w(self._doc.sensor_period_s)),
            clock_mhz=self._shared("clock", self.clock_mhz),
            clock_cap_mhz=self._shared("cap", self.clock_cap_mhz),
            power_limit_w=self._shared("limit", plant.fleet.power_limit_w(self._group)),
            quality=self._free,
            is_controllable=self._no if self.is_deaf else self._yes,
            other_w=plant.now(OTHER) / self._site_gpus * self._gpus,
            acked_epoch=self._epoch,
            acked_seq=self._seq,
            specs=self.specs,
            faults=(NodeFault.GPU_IGNORES_CAPS,) if self.is_deaf else (),
            fallback_clock_mhz=float(self.fallback_clock_mhz),
            taken_s=self._up_s + plant.now_s,
        )

    # -- its GPUs, which share their cap

    @property
    def clock_mhz(self) -> float:
        """What they run at."""
        return float(self._plant.fleet.clock_frac[self._group]) * self._kind.clock_mhz_max

    def power_w(self, window_s: float) -> float:
        """What each reads of its mean over the last `window_s`."""
        plant, to_s = self._plant, self._plant.now_s
        group_w = plant.mean(GROUP_0 + self._group, from_s=to_s - window_s, to_s=to_s)
        return group_w / plant.fleet.groups[self._group].count * self._doc.gain

    def set_cap(self, cap: GpuCap) -> None:
        """Clock lock and power limit of all of them."""
        clock_mhz, limit_w = self._settings(cap)
        self._lock(clock_mhz)
        if limit_w != self._plant.fleet.power_limit_w(self._group):
            self._plant.fleet.limit_power(self._group, limit_w)

    # -- inside

    def _has(self, cap: GpuCap) -> bool:
        clock_mhz, limit_w = self._settings(cap)
        is_locked_alike = clock_mhz == self.clock_cap_mhz or (math.isnan(clock_mhz) and math.isnan(self.clock_cap_mhz))
        return is_locked_alike and limit_w == self._plant.fleet.power_limit_w(self._group)

    def _settings(self, cap: GpuCap) -> tuple[float, float]:
        """Clock lock (MHz, NaN where free) and power limit (W)."""
        clock_mhz = math.nan if cap.clock_mhz is None else float(cap.clock_mhz)
        return clock_mhz, self._kind.limit_w_max if cap.power_limit_w is None else cap.power_limit_w

    def _array(self, value: float) -> FloatArray:
        return self._ones * value

    def _shared(self, name: str, value: float) -> FloatArray:
        """An array that is made anew only when its value changed."""
        kept = self._kept.get(name)
        if kept is None or (kept[0] != value and not (math.isnan(value) and math.isnan(kept[0]))):
            kept = self._kept[name] = value, self._array(value)
        return kept[1]

    def _shared_cap(self, command: NodeCommand) -> GpuCap:
        """The mean of the node's caps, as one GPU's."""
        top, limit = self._kind.clock_mhz_max, self._kind.limit_w_max
        clocks = [top if c.clock_mhz is None else c.clock_mhz for c in command.caps]
        limits = [limit if c.power_limit_w is None else c.power_limit_w for c in command.caps]
        free = all(c.clock_mhz is None for c in command.caps)
        return GpuCap(self._ids[0], None if free else round(_mean(clocks)), _mean(limits))

    def _lock(self, clock_mhz: float) -> None:
        """Order a clock; it begins to move after its dead time, unless a newer order comes first."""
        if clock_mhz == self.clock_cap_mhz or (math.isnan(clock_mhz) and math.isnan(self.clock_cap_mhz)):
            return
        top = self._kind.clock_mhz_max
        frac = 1.0 if math.isnan(clock_mhz) else clock_mhz / top
        self.clock_cap_mhz, self._written_s = clock_mhz, self._plant.now_s
        self._order_count += 1
        delay_s = self._plant.fleet.dead_time_s(self._group, frac)
        at_ns = round((self._plant.now_s + delay_s) * NS_PER_S)
        self._plant.schedule(at_ns, partial(self._steer, self._order_count, frac))

    def _steer(self, order: int, frac: float) -> None:
        if order == self._order_count:
            self._plant.fleet.steer(self._group, frac)


def _mean(values: Sequence[float]) -> float:
    """Nearly always all are alike, and nothing needs to be added up."""
    return float(values[0]) if values.count(values[0]) == len(values) else float(np.mean(values))


class SimNodeLink:
    """The site's end of the wire to all nodes: reports arrive late, commands leave late."""

    def __init__(self, world: World, fleet: Sequence[ClassPlantDoc], doc: NodePlantDoc, clock: Clock, plan: FaultPlan):
        self._plant, self._doc, self._clock, self._plan = world.plant, doc, clock, plan
        self._rng = world.rng(3)
        self.nodes = _nodes(world.plant, fleet, doc)
        self._delay_ns = round(doc.link_delay_s * NS_PER_S)
        self._period_ns = round(NS_PER_S / doc.telemetry_hz)
        self._reports: dict[str, Reading[NodeReport]] = {}
        self._stuck: dict[str, NodeReport] = {}
        self._on_the_wire: list[tuple[int, int, NodeReport]] = []
        self._sent_count = 0
        stagger_ns = self._period_ns // max(len(self.nodes), 1)
        for k, node in enumerate(self.nodes.values()):
            self._plant.schedule(k * stagger_ns, partial(self._beat, node, k * stagger_ns))

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        while self._on_the_wire and self._on_the_wire[0][0] <= now_ns:
            report = heapq.heappop(self._on_the_wire)[2]
            self._reports[report.node_id] = Reading(report, report.t_mono_s, Quality.GOOD, report.node_id)
        return self._reports

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        now_ns = self._clock.now_ns()
        self._plant.advance_ns(now_ns)
        for command in commands:
            node = self.nodes.get(command.node_id)
            if node is None:
                continue
            fault = self._fault(node)
            late_ns = round(fault.value * NS_PER_S) if fault and fault.verb in ("delayed", "slow") else 0
            if fault is not None and self._is_lost(fault):
                continue
            is_obeyed = not (fault is not None and fault.verb == "wrong")
            self._plant.schedule(now_ns + self._delay_ns + late_ns, partial(node.receive, command, is_obeyed=is_obeyed))

    def _beat(self, node: SimNode, t_ns: int) -> None:
        """One telemetry period of one agent."""
        next_ns = t_ns + self._period_ns
        self._plant.schedule(next_ns, partial(self._beat, node, next_ns))
        node.tend()
        due_ns = math.ceil(min(node.due_s, next_ns / NS_PER_S) * NS_PER_S / self._plant.step_ns) * self._plant.step_ns
        if due_ns < next_ns:
            self._plant.schedule(due_ns, node.tend)
        late_ns = self._delay_ns
        fault = self._fault(node)
        if fault is not None:
            if self._is_lost(fault):
                return
            if fault.verb in ("delayed", "slow"):
                late_ns += round(fault.value * NS_PER_S)
        arrives_s = (t_ns + late_ns) / NS_PER_S
        report = node.report(arrives_s=arrives_s)
        if fault is not None:
            report = replace(self._ill(node, report, fault), t_mono_s=arrives_s)
        else:
            self._stuck.pop(node.node_id, None)
        self._sent_count += 1
        heapq.heappush(self._on_the_wire, (t_ns + late_ns, self._sent_count, report))

    def _ill(self, node: SimNode, report: NodeReport, fault: Fault) -> NodeReport:
        if fault.verb == "stuck":
            return replace(self._stuck.setdefault(node.node_id, report), taken_s=report.taken_s)
        if fault.verb == "garbage":
            return replace(report, power_w=report.power_w * math.nan, instant_w=report.power_w * math.nan)
        return report

    def _fault(self, node: SimNode) -> Fault | None:
        return self._plan.on(f"node:{node.node_id}", self._plant.now_s) if self._plan.faults else None

    def _is_lost(self, fault: Fault) -> bool:
        return fault.verb == "off" or (fault.verb == "intermittent" and self._rng.random() < fault.value)


def _nodes(plant: SitePlant, fleet: Sequence[ClassPlantDoc], doc: NodePlantDoc) -> dict[str, SimNode]:
    nodes: dict[str, SimNode] = {}
    for c, job in zip(fleet, plant.fleet.jobs, strict=True):
        for node_id in node_ids(c):
            nodes[node_id] = SimNode(
                plant,
                doc,
                node_id=node_id,
                group=len(nodes),
                kind=job.kind,
                gpus_per_node=c.gpus_per_node,
                fallback_clock_mhz=c.fallback_clock_mhz,
            )
    return nodes
