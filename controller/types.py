"""The nouns every part of Rampart shares: readings, limits, commands, verdicts, modes.

Frozen, slotted dataclasses and enums; standard library and numpy only. Nothing here computes a decision, reads a clock
or does I/O. Units follow the suffix of the name (`_w _wh _j _s _hz _frac _w_per_s`, clocks `_mhz`). Grid import is
positive; battery discharge is positive; limits are magnitudes >= 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum, unique
from typing import Generic, NewType, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
QualityArray = NDArray[np.int8]
BoolArray = NDArray[np.bool_]

NodeId = NewType("NodeId", str)
GpuId = NewType("GpuId", str)  # NVML UUID: indices move after a hot swap, UUIDs do not
ClassId = NewType("ClassId", str)
LimitId = NewType("LimitId", str)

T = TypeVar("T")


# --------------------------------------------------------------------------------------------------- readings


@unique
class Quality(IntEnum):
    """How far a reading may be trusted; a higher value is worse."""

    GOOD = 0
    STALE = 1  # true once, too old now
    SUSPECT = 2  # fresh, but contradicted by another source
    MISSING = 3  # no value; `value` then holds the last one or a safe stand-in


WORST_READ = int(Quality.STALE)  # of a GPU that was read; a plain number, for comparing whole arrays


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """One value with the monotonic time it was true at, its quality and its source."""

    value: T
    t_mono_s: float
    quality: Quality
    source: str

    def age_s(self, now_s: float) -> float:
        return now_s - self.t_mono_s

    @property
    def is_good(self) -> bool:
        return self.quality is Quality.GOOD


@dataclass(frozen=True, slots=True)
class MeterSample:
    """What a power meter says at one instant; import positive, absent points None."""

    power_w: float
    frequency_hz: float | None = None
    voltage_pu: float | None = None
    import_wh: float | None = None
    export_wh: float | None = None


@unique
class BatteryState(StrEnum):
    OFF = "off"
    STANDBY = "standby"
    RUNNING = "running"
    FAULT = "fault"


@unique
class Following(StrEnum):
    """Who keeps metered power on the grid target."""

    DEVICE = "device"  # the battery's own controller, in milliseconds; we move its target
    SOFTWARE = "software"  # our loop, at the tracker's rate; we move its set-point


@dataclass(frozen=True, slots=True)
class BatterySample:
    """State of the battery as read back; power and set-point discharge positive, limits magnitudes.

    `reference_w` is what the device says it was last told: the set-point under software following, the target at the
    point of common coupling under device following. `reversion_s_left` is None where the device has no such timer.
    """

    power_w: float
    soc_frac: float
    charge_w_max: float
    discharge_w_max: float
    state: BatteryState
    is_remote: bool  # False: LocRemCtl is LOCAL and writes are refused
    reference_w: float
    is_following: bool
    reversion_s_left: float | None = None
    temperature_c: float | None = None


@unique
class LoadBankState(StrEnum):
    OFF = "off"
    STANDBY = "standby"
    RUNNING = "running"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class LoadBankSample:
    """State of a load bank as read back: what it draws, what it can draw now, and what it was last told.

    `reversion_s_left` and `energy_j_left` (before it is too hot to go on) are None where the device does not tell.
    """

    power_w: float
    power_w_max: float
    state: LoadBankState
    is_remote: bool
    setpoint_w: float
    reversion_s_left: float | None = None
    energy_j_left: float | None = None


@dataclass(frozen=True, slots=True)
class UpsSample:
    """State of a UPS (read-only): what it feeds and what feeds it."""

    output_w: float
    is_on_battery: bool
    is_on_bypass: bool
    minutes_left: float | None
    load_frac: float | None


@dataclass(frozen=True, slots=True)
class ReadingBlock:
    """The same quantity from many sources at once, as parallel arrays of length n."""

    ids: tuple[str, ...]
    values: FloatArray
    ages_s: FloatArray
    quality: QualityArray

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.values.shape == self.ages_s.shape == self.quality.shape == (n,)


# --------------------------------------------------------------------------------------------------- GPU nodes


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """Something a GPU reported by itself. `code` is the Xid of an Xid error; `gpu_id` None where nobody can tell."""

    gpu_id: GpuId | None
    kind: str
    code: int | None
    text: str


@dataclass(frozen=True, slots=True)
class SmoothingProfile:
    """One preset of hardware power smoothing: floor as a share of the GPU's maximum power, slopes, and how long the
    floor outlasts the load."""

    floor_frac: float
    up_w_per_s: float
    down_w_per_s: float
    hysteresis_s: float


@dataclass(frozen=True, slots=True)
class SmoothingFound:
    """Power smoothing as found before the first write, and what the preset held that is written. None: not known,
    then only the switch goes back."""

    is_enabled: bool
    active_preset: int | None
    preset: int
    profile: SmoothingProfile | None


@dataclass(frozen=True, slots=True)
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


@unique
class NodeFault(StrEnum):
    """What a node agent found wrong with its GPUs and files; the values are the mode table's names."""

    GPU_HUNG = "gpu_hung"
    GPU_LOST = "gpu_lost"
    GPU_PERMISSION = "gpu_permission"
    GPU_IGNORES_CAPS = "gpu_ignores_caps"
    GPU_THROTTLED = "gpu_throttled"
    FOREIGN_WRITER = "foreign_writer"
    FOREIGN_WRITER_WON = "foreign_writer_won"  # most of its GPUs are left to another tool
    CAP_CLAMPED = "cap_clamped"
    ORIGINALS_CORRUPT = "originals_corrupt"


@dataclass(frozen=True, slots=True)
class NodeFloor:
    """What power smoothing holds of a node's power when its jobs stop: `power_w` above idle for `hold_s`, then it falls
    at `down_w_per_s`. Only GPUs whose floor was read back and that draw as much now."""

    power_w: float
    hold_s: float
    down_w_per_s: float


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node's telemetry: per-GPU arrays of length n in the order of `gpu_ids`.

    `stands_for` is how many nodes like it this one reports for (sampled fleets); every power here is of this one node.
    `clock_cap_mhz` and `power_limit_w` are read back, never echoed. `other_w` is what the node draws beside its GPUs.
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
    is_controllable: NDArray[np.bool_]
    other_w: float
    acked_epoch: int
    acked_seq: int
    specs: tuple[GpuSpec, ...]
    fallback_clock_mhz: float
    floor: NodeFloor | None = None
    faults: tuple[NodeFault, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuCap:
    """What one GPU may do: the locked SM clock bounds peaks, the power limit is the backstop. None leaves it free."""

    gpu_id: GpuId
    clock_mhz: int | None
    power_limit_w: float | None


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """Caps for one node, with all the node needs if nothing more ever arrives.

    At `ttl_s` after receipt the node moves to its fallback cap, after `release_slot_s`, no faster than
    `release_w_per_s` of its own power. `is_release` asks for the saved originals instead of caps.
    """

    node_id: NodeId
    epoch: int
    seq: int
    ttl_s: float
    caps: tuple[GpuCap, ...]
    release_slot_s: float
    release_w_per_s: float
    is_release: bool = False


# --------------------------------------------------------------------------------------------------- grid limits


@unique
class Direction(StrEnum):
    UP = "up"
    DOWN = "down"
    BOTH = "both"


@unique
class RampReading(StrEnum):
    WITHIN = "within"  # every pair of instants in the window
    ENDPOINT = "endpoint"  # the window's two ends only; the auditor's reading, never the controller's


@unique
class LimitStatus(StrEnum):
    PUBLISHED = "published"
    PROPOSED = "proposed"
    QUOTED = "quoted"
    LOCAL = "local"  # the site's own, or set over the wire


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a limit comes from and what in it is our assumption."""

    source: str
    date: str
    status: LimitStatus
    assumption: str = ""


@dataclass(frozen=True, slots=True)
class RampLimit:
    id: LimitId
    max_w: float
    window_s: float
    direction: Direction
    mean_s: float
    provenance: Provenance
    reading: RampReading = RampReading.WITHIN
    percentile: float | None = None  # None: every window; else this share (0..1] of windows must hold


@dataclass(frozen=True, slots=True)
class SwingLimit:
    id: LimitId
    max_w: float
    window_s: float
    mean_s: float
    provenance: Provenance
    band_hz: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RateLimit:
    id: LimitId
    max_w_per_s: float
    above_w: float
    mean_s: float
    provenance: Provenance
    horizon_s: float = 600.0  # how far back s reaches


@dataclass(frozen=True, slots=True)
class BandLimit:
    id: LimitId
    max_w: float
    band_hz: tuple[float, float]
    provenance: Provenance
    mean_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OscillationLimit:
    id: LimitId
    max_w: float
    band_hz: tuple[float, float]
    span_s: float
    provenance: Provenance
    mean_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CeilingLimit:
    id: LimitId
    max_w: float
    from_s: float  # on the record's or controller's time axis; -inf: always
    provenance: Provenance
    mean_s: float = 0.0
    until_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class FloorLimit:
    id: LimitId
    min_w: float
    from_s: float
    provenance: Provenance
    mean_s: float = 0.0
    until_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class CurveSegment:
    """A box of a ride-through curve: stay connected for `hold_s` while the quantity is in [low, high)."""

    low: float
    high: float
    hold_s: float  # inf: continuous


@dataclass(frozen=True, slots=True)
class RideThroughLimit:
    id: LimitId
    voltage_pu: tuple[CurveSegment, ...]
    frequency_hz: tuple[CurveSegment, ...]
    recover_frac: float
    recover_s: float
    suspends_ramps: bool
    provenance: Provenance
    mean_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DroopLimit:
    id: LimitId
    deadband_hz: float
    w_per_hz: float
    max_w: float
    provenance: Provenance
    nominal_hz: float = 60.0
    mean_s: float = 0.0


Limit = (
    RampLimit
    | SwingLimit
    | RateLimit
    | BandLimit
    | OscillationLimit
    | CeilingLimit
    | FloorLimit
    | RideThroughLimit
    | DroopLimit
)


@dataclass(frozen=True, slots=True)
class Contract:
    """A set of limits, all in force at once at the point of common coupling; fractions already resolved."""

    name: str
    limits: tuple[Limit, ...]
    registered_peak_w: float


@unique
class RowVerdict(StrEnum):
    HELD = "held"
    HELD_PARTIAL = "held_partial"  # the band was cut at the record's Nyquist frequency, or the record has gaps
    BROKEN = "broken"
    NOT_COVERED = "not_covered"
    NOT_BINDING = "not_binding"


# --------------------------------------------------------------------------------------------------- grid signals


@unique
class SignalKind(StrEnum):
    LOAD_TARGET = "load_target"
    RAMP_LIMIT = "ramp_limit"


@dataclass(frozen=True, slots=True)
class GridSignal:
    """A verified and accepted wish of the grid, already bounded by the acceptance rules.

    `from_s` and `until_s` are on the controller's monotonic clock; `target_w` is None when the signal carries limits or
    reverts a target. `ramp_exempt` is the issuer's signed waiver of the ramp rows.
    """

    kind: SignalKind
    issuer: str
    signal_id: str
    correlation_id: str
    feeds: tuple[str, ...]
    from_s: float
    until_s: float
    target_w: float | None
    limits: tuple[Limit, ...]
    is_best_effort: bool
    ramp_exempt: bool


@unique
class Acceptance(StrEnum):
    ACCEPTED = "accepted"
    BOUNDED = "bounded"  # followed as fast as the contract lets; `met_at_s` says when
    REFUSED = "refused"


@unique
class RefusalReason(StrEnum):
    """Why a grid message, or one request in it, was not followed."""

    OVERSIZED = "oversized"
    FLOOD = "flood"  # more than the issuer's topic may carry
    ENVELOPE = "envelope"  # not a CloudEvent of the expected kind
    SIGNATURE = "signature"
    UNKNOWN_KEY = "unknown_key"
    ALGORITHM = "algorithm"  # not the one pinned to the key
    SOURCE = "source"  # topic, source and key do not name the same issuer
    SCHEMA = "schema"
    NOT_PERMITTED = "not_permitted"
    UNKNOWN_FEED = "unknown_feed"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out_of_order"  # not newer than the last of that issuer and feed
    FROM_FUTURE = "from_future"
    EXPIRED = "expired"
    STALE_RAISE = "stale_raise"  # too old to loosen anything
    UNTIMED_RAISE = "untimed_raise"  # without signed time and id a message may only tighten
    CLOCK = "clock"  # our own clock stepped; nothing is loosened until it is trusted again
    RANGE = "range"
    SCHEDULE_FULL = "schedule_full"


@dataclass(frozen=True, slots=True)
class OfferedTarget:
    """One request of a verified message, in UTC, before any rule. No feeds: all. `is_revert` withdraws earlier ones.

    `due_in_s`: how long after its start the target is due. Times in the rows are relative to the start.
    """

    feeds: tuple[str, ...]
    from_utc_s: float | None
    until_utc_s: float | None
    target_w: float | None  # of each feed named
    limits: tuple[Limit, ...]
    is_revert: bool
    is_best_effort: bool
    ramp_exempt: bool
    due_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SignalOffer:
    """A message whose signature was verified. `iat_utc_s` and `jti` are None when the issuer did not sign them."""

    kind: SignalKind
    issuer: str
    key_id: str
    message_id: str
    correlation_id: str
    digest: str  # of the signed data, so that a message without `jti` can be known again
    iat_utc_s: float | None
    jti: str | None
    targets: tuple[OfferedTarget, ...]


@dataclass(frozen=True, slots=True)
class SignalOutcome:
    """What became of one request; every one is written to the audit log. Times on the monotonic clock."""

    kind: SignalKind
    issuer: str
    key_id: str
    message_id: str
    correlation_id: str
    index: int
    feeds: tuple[str, ...]
    acceptance: Acceptance
    reason: RefusalReason | None
    detail: str
    asked_w: float | None
    applied_w: float | None  # of each feed named
    from_s: float | None
    until_s: float | None
    met_at_s: float | None


@dataclass(frozen=True, slots=True)
class EnergyPrice:
    """What energy costs for a while, per kWh, as someone outside told; `currency` is ISO 4217, or empty if not told."""

    from_utc_s: float
    until_utc_s: float
    per_kwh: float
    currency: str


@dataclass(frozen=True, slots=True)
class LimitPrice:
    """What a relaxation of one kind of limit would save now: GPU-seconds of work per watt (ramps: per watt a minute).

    `is_bound`: the true price is at least this, because the limit cannot be met at any price.
    """

    limit: str
    gpu_s_per_w: float
    is_bound: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a site may tell its grid of the next minutes: where its power is to go, and what it could give.

    `path`: (seconds from now, W at the point of common coupling). `low_w` and `high_w`: where power may be at the next
    instant under every row in force. `sheddable_w`: GPU power above the service floors.
    """

    path: tuple[tuple[float, float], ...]
    low_w: float
    high_w: float
    sheddable_w: float
    battery_discharge_w: float
    battery_charge_w: float
    battery_j: float
    prices: tuple[LimitPrice, ...]


@dataclass(frozen=True, slots=True)
class FeedTarget:
    """A target of one feed as its issuer set it, for the status report."""

    feed: str
    issuer: str
    correlation_id: str
    asked_w: float
    applied_w: float
    from_s: float
    until_s: float
    met_at_s: float
    is_active: bool
    is_best_effort: bool


# --------------------------------------------------------------------------------------------------- decisions


@unique
class Mode(IntEnum):
    """Ordered: the higher wins."""

    NORMAL = 0
    DEGRADED = 1
    SHED = 2
    HOLD = 3
    RELEASE = 4
    FALLBACK = 5
    LOCKOUT = 6


@dataclass(frozen=True, slots=True)
class BatteryCommand:
    """One write to the battery. Under SOFTWARE `reference_w` is its discharge power; under DEVICE the PCC target."""

    following: Following
    reference_w: float
    ramp_w_per_s: float  # the device's own slope bound while it follows this command, and after it expires
    epoch: int
    seq: int
    ttl_s: float
    expiry_w_per_s: float | None = None  # slope after expiry, for devices that know two; None: `ramp_w_per_s`


@dataclass(frozen=True, slots=True)
class LoadBankCommand:
    """One write to the load bank. At `ttl_s` without another it goes back to 0 W, no faster than `expiry_w_per_s`."""

    setpoint_w: float
    ramp_w_per_s: float
    expiry_w_per_s: float
    epoch: int
    seq: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class SiteCommand:
    """Everything one cycle may write. Nodes whose caps do not change still get their command renewed (TTL)."""

    epoch: int
    seq: int
    battery: BatteryCommand | None
    nodes: tuple[NodeCommand, ...]
    load_bank: LoadBankCommand | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One invariant that a proposal broke, and what was done about it."""

    invariant: int
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class JobPart:
    """What a job holds of one node: `count` GPUs, which ones is not known; 0 means all of them."""

    node: str  # as the source names it
    count: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job as a source tells it. `class_id` is empty where the source names none; times are UTC, None: not known."""

    job_id: str
    source: str
    class_id: str
    parts: tuple[JobPart, ...]
    gpu_ids: tuple[GpuId, ...] = ()  # named one by one, beside `parts`
    priority: int | None = None  # 0..100, as in the site file
    tolerated_loss_frac: float | None = None
    starts_utc_s: float | None = None
    ends_utc_s: float | None = None
    checkpoints_utc_s: tuple[float, ...] = ()
    is_running: bool = True


@unique
class SiteFault(StrEnum):
    """What the shell found wrong with devices and files of its own; the values are the mode table's names."""

    DEVICE_TIMEOUT = "device_timeout"
    DEVICE_GARBAGE = "device_garbage"
    DEVICE_PARTIAL_WRITE = "device_partial_write"
    DEVICE_BUSY = "device_busy"
    DEVICE_REFUSES = "device_refuses"
    DEVICE_CHANGED = "device_changed"
    DEVICE_WRONG = "device_wrong"
    DISK_FULL = "disk_full"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fault and the device or part that has it."""

    fault: SiteFault
    subject: str


@dataclass(frozen=True, slots=True)
class OperatorOrder:
    """What the people who run the site want: a mode that stands until they withdraw it, and a reset, told once."""

    mode: Mode | None
    is_reset: bool


@dataclass(frozen=True, slots=True)
class SiteImage:
    """All that was known at one instant; the only input of a cycle.

    `pcc` is None on a site without a meter. `nodes` is sorted by node id. `wall_utc_s` serves signals and records only.
    """

    t_mono_s: float
    wall_utc_s: float
    tick: int
    pcc: Reading[MeterSample] | None
    battery: Reading[BatterySample] | None
    ups: Mapping[str, Reading[UpsSample]]
    nodes: tuple[Reading[NodeReport], ...]
    signals: tuple[GridSignal, ...]
    is_grid_link_up: bool
    overrun_count: int = 0
    meters: Mapping[str, Reading[MeterSample]] = field(default_factory=dict)  # sub-meters, by name
    jobs: tuple[Job, ...] | None = None  # merged from all sources, first wins; None: as in the image before
    troubles: tuple[Trouble, ...] = ()  # while they last
    is_raise_held: bool = False  # a flapping grid limit: the newest raise waits
    operator: OperatorOrder | None = None  # None: nobody asks for anything
    is_clock_synced: bool = True  # False: nothing disciplines the wall clock; True where nothing hangs on it
    load_bank: Reading[LoadBankSample] | None = None  # None on a site without one
    signal_alarms: tuple[RefusalReason, ...] = ()  # why grid messages were not followed in the last minute


@dataclass(frozen=True, slots=True)
class Margin:
    """How far one condition of safety is from breaking; negative when it is broken. `name` says which."""

    name: str
    contingency: str
    value: float
    unit: str  # "W" or "J"


class Unset(Enum):
    """Distinguishes `not given` from None where None means something."""

    UNSET = 0


# --------------------------------------------------------------------------------------------------- envelope


@dataclass(frozen=True, slots=True)
class FleetTable:
    """Constants of every known GPU as parallel arrays of length n; `spans` says which part is whose.

    Caps are arrays of shape (2, n): row 0 the clock in MHz, row 1 the power limit in W. `floor_mhz` is the service
    floor. `peak_w` is the nameplate: what a GPU may draw when nothing bounds it; at clock f it draws at most
    idle + (peak - idle) (f / f_max)^exponent, where 1 is the chord, above every convex curve. `stands_for` multiplies
    powers (sampled fleets).
    """

    gpu_ids: tuple[GpuId, ...]
    index: Mapping[GpuId, int]
    spans: Mapping[NodeId, slice]
    cap_min: FloatArray
    cap_max: FloatArray
    floor_mhz: FloatArray
    idle_w: FloatArray
    peak_w: FloatArray
    stands_for: FloatArray
    power_exponent: float


@dataclass(frozen=True, slots=True)
class FleetAcks:
    """What nodes last read back, in the order of the fleet table; `caps` of shape (2, n), inf is free.

    `is_fresh`: good, young and controllable, so that a raise may rest on it. `fixed_w`: what a GPU may draw whatever we
    command (uncontrollable: at the caps read back; silent: its nameplate); NaN where commands count.
    """

    caps: FloatArray
    is_fresh: NDArray[np.bool_]
    fixed_w: FloatArray


@dataclass(frozen=True, slots=True)
class Feeder:
    """A breaker or feeder of the site's tree: all GPUs below it, however deep, and what it leaves for them.

    `room_w` is its limit less the most that else hangs on it.
    """

    name: str
    room_w: float
    is_below: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PccRing:
    """Least and greatest metered power per step, newest first; steps not covered hold +inf and -inf.

    Entry 0 is the running step and spans ages 0..`head_s`; entry i ends at age head_s + i step_s. `mean_s` is the
    trailing mean the power went through before.
    """

    step_s: float
    head_s: float
    mean_s: float
    min_w: FloatArray
    max_w: FloatArray


@dataclass(frozen=True, slots=True)
class WindowCheck:
    """One row on differences of power within a window, beside the ring it is checked on.

    Over every entry that lies wholly inside `window_s`: the next power may stand at most `room_w`, or `room_w_per_s`
    times the entry's age where that is more, above its least (`is_up`) and below its greatest (`is_down`).
    """

    limit_id: LimitId
    window_s: float
    room_w: float
    room_w_per_s: float
    is_up: bool
    is_down: bool
    ring: PccRing


@dataclass(frozen=True, slots=True)
class EnvelopeBattery:
    """What the battery can do now, by nameplate, profile and its own report; powers are magnitudes.

    `supply_w` is the discharge it surely gives over two tracker periods: 0 unless it runs, is in remote control, holds
    energy and follows within 5 %; `spare_w` is what of it is not in use. `is_eligible` is False where deadband or dwell
    exceed the residual budget.
    """

    charge_w_max: float
    discharge_w_max: float
    ramp_w_per_s_max: float
    supply_w: float
    spare_w: float
    deadband_w: float
    dwell_s: float
    is_eligible: bool


@dataclass(frozen=True, slots=True)
class EnvelopeLoadBank:
    """What the load bank can do now, by nameplate and its own report.

    `relief_w` is what a trusted battery takes now, and would take less of by what the bank draws more.
    """

    power_w_max: float
    ramp_w_per_s_max: float
    relief_w: float


@dataclass(frozen=True, slots=True)
class EnvelopeState:
    """What the envelope remembers from one check to the next; `caps` are the last it let through."""

    epoch: int = -1
    seq: int = -1
    t_s: float = float("-inf")
    gpu_ids: tuple[GpuId, ...] = ()
    caps: FloatArray = field(default_factory=lambda: np.empty((2, 0)))
    clock_written_s: FloatArray = field(default_factory=lambda: np.empty(0))
    target_w: float | None = None
    reference_w: float | None = None
    reference_t_s: float = float("-inf")
    violation_times_s: tuple[float, ...] = ()
    is_distrusted: bool = False  # too many violations: the planner is to be shed
    ballast_w: float = 0.0  # set-point of the load bank, as last let through


@dataclass(frozen=True, slots=True)
class EnvelopeView:
    """All the envelope looks at. Rows the contract suspends now are left out of `windows` by the caller.

    `import_w_max` is the ceiling in force over the next two tracker periods (inf: none), one that is being approached
    at the contract's slope given as its present bound. `load_w` is the load that a software-following set-point will
    meet. `target_step_w` is how far the grid target may move now (slope guard of band rows; inf: none).
    """

    image: SiteImage
    fleet: FleetTable
    acks: FleetAcks
    feeders: tuple[Feeder, ...]
    windows: tuple[WindowCheck, ...]
    target_step_w: float
    import_w_max: float
    margin_w: float
    unmanaged_w_max: float
    load_w: float
    battery: EnvelopeBattery | None
    drop_safe_target_w: float  # the greatest from which a full drop is absorbed; inf: not enforced
    margins: tuple[Margin, ...]  # of the proposal, conditions that the site enforces
    mode: Mode
    is_leader: bool
    is_clock_sane: bool
    is_emergency: bool  # breaker, thermal or ramp-exempt: falls may pass `low` and the service floor
    planner_period_s: float
    meter_age_s_max: float
    max_export_w: float
    violations_max: int  # in 60 s
    state: EnvelopeState
    load_bank: EnvelopeLoadBank | None = None


@dataclass(frozen=True, slots=True)
class EnvelopeVerdict:
    """What may be written, what was wrong with what was proposed, and the memory for the next check."""

    command: SiteCommand
    violations: tuple[Violation, ...]
    state: EnvelopeState
