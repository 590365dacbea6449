"""What the tracker is given on a tick and what it answers; frozen, without behaviour."""

from __future__ import annotations

from controller.contract import DueStatus
from controller.estimate import Estimate
from controller.follow import Way
from controller.forecast import Line
from controller.reserve import Contingency
from controller.types import BatterySample, Following, LimitId, Margin, Mode, frozen


@frozen
class Watch:
    """One contingency to survive now, and which of its conditions may move the target."""

    contingency: Contingency
    enforces_transient: bool
    enforces_power: bool
    enforces_energy: bool
    enforces_rise: bool


@frozen
class TrackerInput:
    """What is known on one tick.

    The planner's path is the line through (`target_s`, `target_w`) with `target_slope_w_per_s`. `load_rise_w` is what
    load may jump to under the caps in force. `exempt_target_w` is the emergency path's target: it is reached at once,
    and only given while the issuer's waiver or a breaker allows it. `set_point_w` is then the battery's set-point while
    caps take hold (software following); None: follow the load.
    """

    now_s: float
    estimate: Estimate
    battery: BatterySample | None  # None: no battery, or nothing known of it
    target_w: float
    mode: Mode
    watches: tuple[Watch, ...]
    load_rise_w: float
    target_s: float = 0.0
    target_slope_w_per_s: float = 0.0
    exempt_target_w: float | None = None
    set_point_w: float | None = None
    may_raise: bool = True  # the envelope lets the target rise
    is_disobeyed: bool = False  # the battery takes commands and does not do what they say
    is_unproven: bool = False  # it is held where it stands, until its timer was seen to count down


@frozen
class BatteryAim:
    """What the battery is to be told. `ramp_w_per_s` is the slope for its reaction when commands stop coming.

    `is_let_go`: it is told to go back to nothing at that slope, and nothing is held on the target.
    """

    following: Following
    reference_w: float
    ramp_w_per_s: float
    is_let_go: bool = False


@frozen
class TrackerOutput:
    """The tick's decision and what explains it. Powers in W.

    `load_w_max` is the largest load that battery and target can carry if it came now, so caps go below it.
    `ride_w` is the surplus of target over load that the battery can take and ride down from here.
    `residual_w` and `spent_w` are per row; `g_safe_w` and `g_rise_min_w` infinite where nothing is enforced.
    """

    g_ref_w: float
    low_w: float
    high_w: float
    g_safe_w: float
    g_rise_min_w: float
    aim: BatteryAim | None
    load_w_max: float
    load_w_min: float
    ride_w: float
    margins: tuple[Margin, ...]
    residual_w: dict[LimitId, float]
    spent_w: dict[LimitId, float]
    way: Way | None
    line: Line | None
    t_eff_s: float
    is_saturated: bool
    is_riding_down: bool
    is_overspent: bool
    due: tuple[DueStatus, ...]
