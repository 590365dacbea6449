"""What the site controller and its node agents say to each other: topics, reports and commands as compact JSON.

Checked strictly on arrival: known keys, exact types, finite numbers, arrays of one length. What is not exactly one
report or command decodes to None, never to half of one. A key that an older other end does not know is left out where
there is nothing to say.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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
)

TOPIC_ROOT = "rampart/v1/node"
GPUS_MAX = 128  # per node; more is not one node
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
    taken_s: Annotated[float, Field(ge=0, le=1e12)] | None = None  # on the agent's own monotonic clock; the same

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
        taken_s=report.taken_s,
    )
    optional = (("floor", wire.floor), ("faults", wire.faults), ("instant_w", wire.instant_w))
    silent = {name for name, value in optional if not value} | ({"taken_s"} if wire.taken_s is None else set())
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
        taken_s=wire.taken_s,
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


def _to_wire(values: FloatArray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _from_wire(values: list[float | None]) -> FloatArray:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)
