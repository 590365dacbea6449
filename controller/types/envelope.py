"""All that the envelope looks at, remembers and answers.

Plain numbers and arrays with nothing behind them, so that the envelope needs no code of the parts it checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np

from controller.types.commands import SiteCommand
from controller.types.faults import Mode
from controller.types.image import SiteImage
from controller.types.records import frozen
from controller.types.scalars import BoolArray, FloatArray, GpuId, LimitId, NodeId


@frozen
class Margin:
    """How far one condition of safety is from breaking; negative when it is broken. `name` says which."""

    name: str
    contingency: str
    value: float
    unit: str  # "W" or "J"


@frozen
class Violation:
    """One invariant that a proposal broke, and what was done about it."""

    invariant: int
    subject: str
    detail: str


@frozen
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


@frozen
class FleetAcks:
    """What nodes last read back, in the order of the fleet table; `caps` of shape (2, n), inf is free.

    `is_fresh`: good, young and controllable, so that a raise may rest on it. `fixed_w`: what a GPU may draw whatever we
    command (uncontrollable: at the caps read back; silent: its nameplate); NaN where commands count.
    """

    caps: FloatArray
    is_fresh: BoolArray
    fixed_w: FloatArray


@frozen
class Feeder:
    """A breaker or feeder of the site's tree: all GPUs below it, however deep, and what it leaves for them.

    `room_w` is its limit less the most that else hangs on it.
    """

    name: str
    room_w: float
    is_below: BoolArray


@frozen
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


@frozen
class WindowCheck:
    """One row on differences of power within a window, beside the ring it is checked on.

    Over every entry that lies wholly inside `window_s`: the next power may stand at most `room_w`, or `room_w_per_s`
    times the entry's age where that is more, above its least (`is_up`) and below its greatest (`is_down`). Of that a
    step may not use `kept_w`: a mean lags a ramp, and no step that stays.
    """

    limit_id: LimitId
    window_s: float
    room_w: float
    room_w_per_s: float
    kept_w: float
    is_up: bool
    is_down: bool
    ring: PccRing


@frozen
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


@frozen
class EnvelopeLoadBank:
    """What the load bank can do now, by nameplate and its own report.

    `relief_w` is what a trusted battery takes now, and would take less of by what the bank draws more.
    """

    power_w_max: float
    ramp_w_per_s_max: float
    relief_w: float


@frozen
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


@frozen
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
    is_held: bool = True  # a battery that is there surely holds power on the target
    sag_w: float = 0.0  # how far below and above what the meter shows power may go by itself where none does
    swell_w: float = 0.0


@frozen
class EnvelopeVerdict:
    """What may be written, what was wrong with what was proposed, and the memory for the next check."""

    command: SiteCommand
    violations: tuple[Violation, ...]
    state: EnvelopeState
