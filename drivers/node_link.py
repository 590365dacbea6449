"""The wire between the site controller and its node agents: both ends over MQTT, and a pair inside one process.

Reports and commands travel as compact JSON, checked strictly on arrival: what is malformed, oversized, retained or
meant for another node is dropped and counted, and never obeyed. Nothing is kept by the broker: a command that finds no
session is lost, and the node's dead-man timer, which counts from receipt on the node's own clock, covers the loss.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.ports import Clock
from controller.types import (
    AgentState,
    FloatArray,
    GpuCap,
    GpuId,
    GpuSpec,
    NodeCommand,
    NodeFault,
    NodeFloor,
    NodeId,
    NodeReport,
    Quality,
    Reading,
)
from drivers.mqtt import Incoming, Keep, MqttSession

TOPIC_ROOT = "rampart/v1/node"
GPUS_MAX = 128  # per node; more is not one node
NODES_MAX = 65_536  # heard of by one site; further ids are dropped and counted
COMMANDS_WAITING_MAX = 16  # for one agent; when full the oldest goes, the newest command is the one that counts
TTL_S_MAX = 3600.0

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/+#\s\x00]+$")]
Uuid = Annotated[str, Field(min_length=1, max_length=128)]
Watts = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Power = Watts | None  # None on the wire: not a number here
Megahertz = Annotated[float, Field(ge=0, le=20_000)] | None  # a lock below nothing is none


class WireModel(BaseModel):
    """Base of the messages between site and node: exact types, known keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SpecWire(WireModel):
    """What GPUs of one model can do; a report names each distinct one once."""

    model: Annotated[str, Field(max_length=128)]
    idle_w: Watts
    power_limit_w_min: Watts
    power_limit_w_max: Watts
    power_limit_w_default: Watts
    clocks_mhz: Annotated[list[Annotated[int, Field(ge=1, le=20_000)]], Field(min_length=1, max_length=512)]

    @model_validator(mode="after")
    def _ranges_rise(self) -> SpecWire:
        if self.power_limit_w_min > self.power_limit_w_max:
            raise ValueError("the least power limit is above the greatest")
        if any(low >= high for low, high in pairwise(self.clocks_mhz)):
            raise ValueError("clocks do not rise")
        return self


class FloorWire(WireModel):
    """What power smoothing holds of this node's power above idle, how long, and how fast it falls then."""

    power_w: Watts
    hold_s: Annotated[float, Field(ge=0, le=3600)]
    down_w_per_s: Annotated[float, Field(gt=0, le=1e9)]


class ReportWire(WireModel):
    """One node's telemetry. Arrays run in the order of `gpu_ids`; `spec_of` points into `specs`."""

    node_id: Name
    boot_id: Annotated[str, Field(max_length=128)]
    state: AgentState
    stands_for: Annotated[int, Field(ge=1, le=1_000_000)]
    gpu_ids: Annotated[list[Uuid], Field(max_length=GPUS_MAX)]
    power_w: list[Power]
    clock_mhz: list[Megahertz]
    clock_cap_mhz: list[Megahertz]
    power_limit_w: list[Power]
    quality: list[Annotated[int, Field(ge=0, le=int(max(Quality)))]]
    is_controllable: list[bool]
    other_w: Watts
    acked_epoch: Count
    acked_seq: Count
    specs: Annotated[list[SpecWire], Field(max_length=GPUS_MAX)]
    spec_of: list[Count]
    fallback_clock_mhz: Annotated[float, Field(ge=0, le=20_000)]
    faults: Annotated[list[NodeFault], Field(max_length=len(NodeFault))] = []  # an older agent does not say
    age_s: Annotated[float, Field(ge=0, le=3600)]  # how old the telemetry was when it was sent
    floor: FloorWire | None = None  # not sent where there is none
    instant_w: list[Power] | None = None  # an older agent does not say

    @model_validator(mode="after")
    def _arrays_agree(self) -> ReportWire:
        n = len(self.gpu_ids)
        arrays = (self.power_w, self.clock_mhz, self.clock_cap_mhz, self.power_limit_w, self.quality)
        others = (self.is_controllable, self.spec_of, self.power_w if self.instant_w is None else self.instant_w)
        if any(len(a) != n for a in (*arrays, *others)) or len(set(self.gpu_ids)) != n:
            raise ValueError("arrays differ in length, or a GPU is named twice")
        if any(i >= len(self.specs) for i in self.spec_of):
            raise ValueError("spec_of points past specs")
        return self


class CapWire(WireModel):
    """What one GPU may do; null leaves it free."""

    gpu_id: Uuid
    clock_mhz: Annotated[int, Field(ge=1, le=20_000)] | None
    power_limit_w: Annotated[float, Field(gt=0, le=1e6)] | None


class CommandWire(WireModel):
    """Caps for one node, with epoch, sequence and time to live (counted from receipt on the node's clock)."""

    node_id: Name
    epoch: Count
    seq: Count
    ttl_s: Annotated[float, Field(gt=0, le=TTL_S_MAX)]
    caps: Annotated[list[CapWire], Field(max_length=GPUS_MAX)]
    release_slot_s: Annotated[float, Field(ge=0, le=86_400)]
    release_w_per_s: Annotated[float, Field(ge=0, le=1e12)] | None  # null: as fast as it can
    is_release: bool
    ceiling_frac: Annotated[float, Field(ge=0, le=1)] = 1.0  # both not sent where no ceiling outlives the controller
    ceiling_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0


# --------------------------------------------------------------------------------------------------- codec


def report_topic(node_id: str) -> str:
    return f"{TOPIC_ROOT}/{node_id}/report"


def command_topic(node_id: str) -> str:
    return f"{TOPIC_ROOT}/{node_id}/command"


def encode_report(report: NodeReport, *, age_s: float) -> bytes:
    """The report as bytes; not-a-number becomes null, equal specifications are sent once."""
    specs: dict[tuple[object, ...], int] = {}
    wires: list[SpecWire] = []
    spec_of: list[int] = []
    for s in report.specs:
        key = (s.model, s.idle_w, s.power_limit_w_min, s.power_limit_w_max, s.power_limit_w_default, s.clocks_mhz)
        if key not in specs:
            specs[key] = len(wires)
            wires.append(
                SpecWire.model_construct(
                    model=s.model,
                    idle_w=s.idle_w,
                    power_limit_w_min=s.power_limit_w_min,
                    power_limit_w_max=s.power_limit_w_max,
                    power_limit_w_default=s.power_limit_w_default,
                    clocks_mhz=list(s.clocks_mhz),
                )
            )
        spec_of.append(specs[key])
    wire = ReportWire.model_construct(
        node_id=report.node_id,
        boot_id=report.boot_id,
        state=report.state,
        stands_for=report.stands_for,
        gpu_ids=list(report.gpu_ids),
        power_w=_to_wire(report.power_w),
        clock_mhz=_to_wire(report.clock_mhz),
        clock_cap_mhz=_to_wire(report.clock_cap_mhz),
        power_limit_w=_to_wire(report.power_limit_w),
        quality=report.quality.tolist(),
        is_controllable=report.is_controllable.tolist(),
        other_w=float(report.other_w),
        acked_epoch=report.acked_epoch,
        acked_seq=report.acked_seq,
        specs=wires,
        spec_of=spec_of,
        fallback_clock_mhz=float(report.fallback_clock_mhz),
        faults=list(report.faults),
        age_s=min(3600.0, max(0.0, age_s)),
        floor=None
        if (floor := report.floor) is None
        else FloorWire.model_construct(power_w=floor.power_w, hold_s=floor.hold_s, down_w_per_s=floor.down_w_per_s),
        instant_w=None if report.instant_w is None else _to_wire(report.instant_w),
    )
    optional = (("floor", wire.floor), ("faults", wire.faults), ("instant_w", wire.instant_w))
    silent = {name for name, value in optional if not value}
    return wire.model_dump_json(exclude=silent).encode()  # what there is nothing to say of, an older site need not know


def decode_report(payload: bytes, *, t_mono_s: float) -> NodeReport | None:
    """The report, stamped on the receiver's clock; None for anything that is not exactly one."""
    try:
        wire = ReportWire.model_validate_json(payload)
    except ValidationError:
        return None
    specs = tuple(
        GpuSpec(
            gpu_id=GpuId(gpu_id),
            model=wire.specs[i].model,
            idle_w=wire.specs[i].idle_w,
            power_limit_w_min=wire.specs[i].power_limit_w_min,
            power_limit_w_max=wire.specs[i].power_limit_w_max,
            power_limit_w_default=wire.specs[i].power_limit_w_default,
            clocks_mhz=tuple(wire.specs[i].clocks_mhz),
        )
        for gpu_id, i in zip(wire.gpu_ids, wire.spec_of, strict=True)
    )
    return NodeReport(
        node_id=NodeId(wire.node_id),
        boot_id=wire.boot_id,
        t_mono_s=t_mono_s - wire.age_s,
        state=wire.state,
        stands_for=wire.stands_for,
        gpu_ids=tuple(GpuId(g) for g in wire.gpu_ids),
        power_w=_from_wire(wire.power_w),
        clock_mhz=_from_wire(wire.clock_mhz),
        clock_cap_mhz=_from_wire(wire.clock_cap_mhz),
        power_limit_w=_from_wire(wire.power_limit_w),
        quality=np.array(wire.quality, dtype=np.int8),
        is_controllable=np.array(wire.is_controllable, dtype=np.bool_),
        other_w=wire.other_w,
        acked_epoch=wire.acked_epoch,
        acked_seq=wire.acked_seq,
        specs=specs,
        fallback_clock_mhz=wire.fallback_clock_mhz,
        floor=None if (floor := wire.floor) is None else NodeFloor(floor.power_w, floor.hold_s, floor.down_w_per_s),
        faults=tuple(wire.faults),
        instant_w=None if wire.instant_w is None else _from_wire(wire.instant_w),
    )


def encode_command(command: NodeCommand) -> bytes:
    """The command as bytes; an infinite release slope becomes null."""
    caps = [
        CapWire.model_construct(gpu_id=c.gpu_id, clock_mhz=c.clock_mhz, power_limit_w=c.power_limit_w)
        for c in command.caps
    ]
    slope = float(command.release_w_per_s)
    wire = CommandWire.model_construct(
        node_id=command.node_id,
        epoch=command.epoch,
        seq=command.seq,
        ttl_s=float(command.ttl_s),
        caps=caps,
        release_slot_s=float(command.release_slot_s),
        release_w_per_s=slope if math.isfinite(slope) else None,
        is_release=command.is_release,
        ceiling_frac=command.ceiling_frac,
        ceiling_s=command.ceiling_s,
    )
    silent = set() if command.ceiling_frac < 1.0 else {"ceiling_frac", "ceiling_s"}  # an older agent need not know
    return wire.model_dump_json(exclude=silent).encode()


def decode_command(payload: bytes) -> NodeCommand | None:
    """The command; None for anything that is not exactly one, or that names a GPU twice."""
    try:
        wire = CommandWire.model_validate_json(payload)
    except ValidationError:
        return None
    if len({c.gpu_id for c in wire.caps}) != len(wire.caps):
        return None
    return NodeCommand(
        node_id=NodeId(wire.node_id),
        epoch=wire.epoch,
        seq=wire.seq,
        ttl_s=wire.ttl_s,
        caps=tuple(
            GpuCap(gpu_id=GpuId(c.gpu_id), clock_mhz=c.clock_mhz, power_limit_w=c.power_limit_w) for c in wire.caps
        ),
        release_slot_s=wire.release_slot_s,
        release_w_per_s=math.inf if wire.release_w_per_s is None else wire.release_w_per_s,
        is_release=wire.is_release,
        ceiling_frac=wire.ceiling_frac,
        ceiling_s=wire.ceiling_s,
    )


# --------------------------------------------------------------------------------------------------- over MQTT


@dataclass(slots=True)
class LinkCounts:
    """What was dropped on one end of the wire, for metrics."""

    malformed: int = 0
    misdirected: int = 0
    retained: int = 0
    overflowed: int = 0


class MqttNodeLink:
    """The site's end: the newest report of every node, and commands out at QoS 1."""

    def __init__(self, session: MqttSession) -> None:
        self.counts = LinkCounts()
        self._session = session
        self._reports: dict[str, Reading[NodeReport]] = {}
        session.on_message(f"{TOPIC_ROOT}/+/report", self._on_report, qos=0)

    @property
    def is_up(self) -> bool:
        return self._session.is_up

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        """The newest report by node id, stamped on arrival less the age its sender declared."""
        return dict(self._reports)

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        """Queue each command; one still waiting for the same node is replaced. Without a session they are dropped."""
        for command in commands:
            self._session.publish(command_topic(command.node_id), encode_command(command), qos=1, keep=Keep.NEWEST)

    def _on_report(self, message: Incoming) -> None:
        if message.is_retained:
            self.counts.retained += 1
            return
        report = decode_report(message.payload, t_mono_s=message.t_mono_s)
        if report is None:
            self.counts.malformed += 1
            return
        is_full = len(self._reports) >= NODES_MAX and report.node_id not in self._reports
        if message.topic != report_topic(report.node_id) or is_full:
            self.counts.misdirected += 1
            return
        self._reports[report.node_id] = Reading(report, report.t_mono_s, Quality.GOOD, report.node_id)


class _Commands:
    """Commands waiting for one agent, newest kept."""

    def __init__(self, counts: LinkCounts) -> None:
        self._counts = counts
        self._queue: asyncio.Queue[NodeCommand] = asyncio.Queue(COMMANDS_WAITING_MAX)

    def put(self, command: NodeCommand) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self._counts.overflowed += 1
        self._queue.put_nowait(command)

    async def stream(self) -> AsyncIterator[NodeCommand]:
        while True:
            yield await self._queue.get()


class MqttAgentLink:
    """The node's end: its report out at QoS 0 (the next one replaces a lost one), its commands in."""

    def __init__(self, session: MqttSession, *, node_id: NodeId, clock: Clock) -> None:
        self.counts = LinkCounts()
        self._session = session
        self._node_id = node_id
        self._clock = clock
        self._commands = _Commands(self.counts)
        session.on_message(command_topic(node_id), self._on_command)

    @property
    def is_up(self) -> bool:
        return self._session.is_up

    async def publish(self, report: NodeReport) -> None:
        """Queue the report with its present age; dropped without a session."""
        payload = encode_report(report, age_s=self._clock.now_s() - report.t_mono_s)
        self._session.publish(report_topic(report.node_id), payload, qos=0, keep=Keep.NEWEST)

    def commands(self) -> AsyncIterator[NodeCommand]:
        """Commands for this node in order of arrival."""
        return self._commands.stream()

    def _on_command(self, message: Incoming) -> None:
        if message.is_retained:  # nobody may leave an order lying about for a node that comes back later
            self.counts.retained += 1
            return
        command = decode_command(message.payload)
        if command is None:
            self.counts.malformed += 1
        elif command.node_id != self._node_id:
            self.counts.misdirected += 1
        else:
            self._commands.put(command)


# --------------------------------------------------------------------------------------------------- in one process


class LocalLink:
    """Both ends in one process, for a single-node site and for the bench; the same drops, no bytes."""

    is_up = True

    def __init__(self, clock: Clock) -> None:
        self.counts = LinkCounts()
        self._clock = clock
        self._reports: dict[str, Reading[NodeReport]] = {}
        self._agents: dict[str, _Commands] = {}

    def agent(self, node_id: NodeId) -> LocalAgentLink:
        """The end for one node; ask once per node."""
        assert node_id not in self._agents, f"{node_id} has an agent end already"
        commands = self._agents[node_id] = _Commands(self.counts)
        return LocalAgentLink(self, commands)

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        return dict(self._reports)

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        """Hand each command to its node; one for a node without an agent end is dropped and counted."""
        for command in commands:
            waiting = self._agents.get(command.node_id)
            if waiting is None:
                self.counts.misdirected += 1
            else:
                waiting.put(command)

    def _take(self, report: NodeReport) -> None:
        t_mono_s = min(report.t_mono_s, self._clock.now_s())
        self._reports[report.node_id] = Reading(
            replace(report, t_mono_s=t_mono_s), t_mono_s, Quality.GOOD, report.node_id
        )


class LocalAgentLink:
    """The node's end of a LocalLink."""

    is_up = True

    def __init__(self, link: LocalLink, commands: _Commands) -> None:
        self._link = link
        self._commands = commands

    async def publish(self, report: NodeReport) -> None:
        self._link._take(report)

    def commands(self) -> AsyncIterator[NodeCommand]:
        return self._commands.stream()


def _to_wire(values: FloatArray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _from_wire(values: list[float | None]) -> FloatArray:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)
