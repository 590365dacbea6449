"""What a GPU node can do and what it reports: specs, telemetry, saved originals, the state of its agent."""

from __future__ import annotations

from enum import StrEnum, unique

from controller.types.faults import NodeFault
from controller.types.records import frozen
from controller.types.scalars import BoolArray, FloatArray, GpuId, NodeId, QualityArray


@frozen
class GpuSpec:
    """What a GPU can do, as its driver and the prior for its model say; clocks ascending in `clocks_mhz`."""

    gpu_id: GpuId
    model: str
    idle_w: float
    power_limit_w_min: float
    power_limit_w_max: float
    power_limit_w_default: float
    clocks_mhz: tuple[int, ...]

    @property
    def clock_mhz_min(self) -> int:
        return self.clocks_mhz[0]

    @property
    def clock_mhz_max(self) -> int:
        return self.clocks_mhz[-1]


@frozen
class GpuTelemetry:
    """One GPU as its driver reports it; caps are read back. `power_w` is the mean over >= 1 s where there is one."""

    power_w: float
    instant_w: float
    clock_mhz: float
    clock_cap_mhz: float | None  # None: no locked clock
    power_limit_w: float
    requested_limit_w: float | None  # differs from ours when another tool wrote
    energy_j: float | None
    temperature_c: float | None
    throttle_reasons: int


@frozen
class GpuEvent:
    """Something a GPU reported by itself. `code` is the Xid of an Xid error; `gpu_id` None where nobody can tell."""

    gpu_id: GpuId | None
    kind: str
    code: int | None
    text: str


@frozen
class SmoothingProfile:
    """One preset of hardware power smoothing: floor as a share of the GPU's maximum power, slopes, and how long the
    floor outlasts the load."""

    floor_frac: float
    up_w_per_s: float
    down_w_per_s: float
    hysteresis_s: float


@frozen
class SmoothingFound:
    """Power smoothing as found before the first write, and what the preset held that is written. None: not known,
    then only the switch goes back."""

    is_enabled: bool
    active_preset: int | None
    preset: int
    profile: SmoothingProfile | None


@frozen
class GpuOriginals:
    """Settings found before the first write, to be given back. A locked clock of None means none was set.

    `smoothing` is None where it is left alone.
    """

    gpu_id: GpuId
    power_limit_w: float
    power_limit_w_default: float
    requested_limit_w: float | None
    locked_clock_mhz: tuple[int, int] | None
    smoothing: SmoothingFound | None = None


@unique
class AgentState(StrEnum):
    """Where a node agent stands; the site counts anything but ARMED as uncontrolled."""

    STARTING = "starting"
    ARMED = "armed"  # originals saved, read-back proven, obeying commands
    FALLBACK = "fallback"  # last command expired; GPUs at the fallback cap
    MONITOR_ONLY = "monitor_only"  # may not set clocks (permission, refused driver); still reports
    RELEASED = "released"  # originals given back


@frozen
class NodeFloor:
    """What power smoothing holds of a node's power when its jobs stop: `power_w` above idle for `hold_s`, then it falls
    at `down_w_per_s`. Only GPUs whose floor was read back and that draw as much now."""

    power_w: float
    hold_s: float
    down_w_per_s: float


@frozen
class NodeReport:
    """One node's telemetry: per-GPU arrays of length n in the order of `gpu_ids`.

    `stands_for` is how many nodes like it this one reports for (sampled fleets); every power here is of this one node.
    `clock_cap_mhz` and `power_limit_w` are read back, never echoed. `other_w` is what the node draws beside its GPUs.
    `power_w` is a mean of about a second where the GPU has one, `instant_w` its newest sample, NaN where it has none;
    None: an older agent does not say.
    """

    node_id: NodeId
    boot_id: str
    t_mono_s: float  # on the receiver's clock
    state: AgentState
    stands_for: int
    gpu_ids: tuple[GpuId, ...]
    power_w: FloatArray
    clock_mhz: FloatArray
    clock_cap_mhz: FloatArray
    power_limit_w: FloatArray
    quality: QualityArray
    is_controllable: BoolArray
    other_w: float
    acked_epoch: int
    acked_seq: int
    specs: tuple[GpuSpec, ...]
    fallback_clock_mhz: float
    floor: NodeFloor | None = None
    faults: tuple[NodeFault, ...] = ()
    instant_w: FloatArray | None = None
    taken_s: float | None = None  # on its sender's own monotonic clock; None: an older agent does not say
