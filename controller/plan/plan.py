"""What goes into a planner and what comes out, and the time grid they share.

Every planner takes a `PlanInput` and returns a `Plan`: where the grid target may go and what each job class may draw.
Watts, joules and seconds throughout; the quadratic program scales to megawatts inside. Nothing here decides.
"""

from __future__ import annotations

import math
from enum import StrEnum, unique
from typing import Protocol

import numpy as np

from controller.reserve import CrashReserve
from controller.types import ClassId, FloatArray, frozen

STEPS = 30
SPAN_S = 120.0
FIRST_STEP_S = 1.0  # one planner period: what happens before the next plan is the first step


def geometric_steps(*, count: int = STEPS, span_s: float = SPAN_S, first_s: float = FIRST_STEP_S) -> FloatArray:
    """`count` step lengths that grow by a constant ratio from `first_s` and sum to `span_s`."""
    assert count * first_s < span_s, "a geometric grid must grow"
    low, high = 1.0, 2.0
    for _ in range(60):
        ratio = 0.5 * (low + high)
        total = first_s * (ratio**count - 1.0) / (ratio - 1.0)
        low, high = (ratio, high) if total < span_s else (low, ratio)
    steps = np.array([first_s * low**i for i in range(count)], dtype=np.float64)
    scaled: FloatArray = steps * (span_s / float(steps.sum()))
    return scaled


STEP_S: FloatArray = geometric_steps()
OFFSET_S: FloatArray = np.cumsum(STEP_S)  # end of each step after the instant of planning
STEP_S.setflags(write=False)
OFFSET_S.setflags(write=False)


@frozen
class JobClass:
    """What the planner knows of one class. Powers are of the whole class, GPUs only.

    `cap_w_min` is what its lowest cap (service floor) still draws at most. `loss_left_j` is how much more curtailed
    energy its tier tolerates inside the window now running; inf where no tier binds, 0 for a class that may lose
    nothing.
    """

    class_id: ClassId
    priority: int
    weight: float  # cost of lost work relative to 1
    cap_w_min: float
    loss_left_j: float
    peak_w: float  # what it would draw uncapped at the top of its ripple, now


@frozen
class PlanInput:
    """Everything one plan is made from. Arrays of shape (H,) are at the step ends `OFFSET_S`, `demand_w` is (K, H).

    `demand_w` is the mean uncapped draw; `ripple_up_w` and `ripple_down_w` are how far the total stands above and
    below its mean at the worst phase. `low_w` and `high_w` are what the path so far leaves of the admissible interval
    (ceilings and floors included); `slope_down_w_per_s` and `slope_up_w_per_s` what ordinary moves may do.
    `load_left_w` is what certainly remains after the enforced contingency; where none is enforced, the bottom of the
    ripple. Nothing here makes the program infeasible: what cannot be met takes slack.
    """

    t_s: float
    classes: tuple[JobClass, ...]
    demand_w: FloatArray
    other_w: FloatArray
    ripple_up_w: FloatArray
    ripple_down_w: FloatArray
    target_w: float  # the grid target now
    low_w: FloatArray
    high_w: FloatArray
    ceiling_w: FloatArray  # the lowest ceiling in force at each step, inf where none; already inside `high_w`
    slope_down_w_per_s: float
    slope_up_w_per_s: float
    energy_j: float
    reserve: CrashReserve
    load_left_w: FloatArray
    load_return_w: FloatArray  # what the site may jump to without notice: jobs that are down and may come back
    contingency_ripple_w: float  # survivors' ripple below load_left_w, taken off the charging power (N-1)
    spent_w: float  # window already spent downwards, `AdmissibleInterval.contingency_excess_w`
    spent_rise_w: float
    is_rise_enforced: bool
    ballast_w_max: float = 0.0  # a load bank that may be switched on to hold the target up; part of `load_left_w`
    import_w_max: float = math.inf  # to which a battery may be charged; never below what load may come to by itself

    @property
    def steps(self) -> int:
        return int(self.demand_w.shape[1])

    def load_w(self) -> FloatArray:
        """Mean uncapped site load per step, shape (H,)."""
        total: FloatArray = self.demand_w.sum(axis=0) + self.other_w
        return total

    def target_w_max(self) -> FloatArray:
        """How high the target may go, shape (H,): what `low_w` asks for comes before the bound on charging."""
        most: FloatArray = np.minimum(self.high_w, np.maximum(self.low_w, self.import_w_max))
        return most

    def cover_w(self, energy_j: float) -> float:
        """How much load above the target the battery may be counted on for at `energy_j`."""
        if self.is_rise_enforced:
            return self.reserve.rise_cover_w(energy_j, spent_w=self.spent_rise_w)
        return self.reserve.battery.discharge_limit_w(energy_j)

    def g_safe_w(self, energy_j: float) -> float:
        """The largest target that the enforced contingency survives now."""
        by_energy_w = self.reserve.surplus_safe_w(energy_j, spent_w=self.spent_w)
        by_power_w = self.reserve.battery.charge_limit_w(energy_j) - self.contingency_ripple_w
        return float(self.load_left_w[0]) + min(by_energy_w, by_power_w)


@unique
class PlanStatus(StrEnum):
    """Where a plan comes from; the order is the fallback ladder's."""

    SOLVED = "solved"
    SHIFTED = "shifted"  # the last solved plan, moved on in time
    RULE = "rule"
    HOLD = "hold"


@unique
class PriceKind(StrEnum):
    RAMP_DOWN = "ramp_down"
    RAMP_UP = "ramp_up"
    CEILING = "ceiling"
    RESERVE = "reserve"


@frozen
class Price:
    """What relaxing a limit would save over the horizon: weighted curtailed joules per watt.

    For ramps the watt is one watt per minute of slope. Divide by a GPU's power for GPU-seconds. `is_bound` says that
    the true price is at least this: a slack was in use, so the limit could not be met at any price.
    """

    kind: PriceKind
    joule_per_w: float
    is_bound: bool


@frozen
class Plan:
    """What a planner decided at `t_s`.

    `cap_w[k]` bounds the draw of class k from now until the next plan, with every class at the top of its ripple at
    once. `chosen_cap_w` is the part of it that was a choice (a cheap class saves energy for a dear one); the rest is
    what target and battery cannot carry, which a follower quicker than the planner may decide anew at every instant.
    """

    t_s: float
    offset_s: FloatArray
    target_w: FloatArray  # (H,)
    cap_w: FloatArray  # (K,)
    cap_path_w: FloatArray  # (K, H)
    chosen_cap_w: FloatArray  # (K,)
    battery_w: FloatArray  # (H,), discharge positive
    energy_path_j: FloatArray  # (H,)
    prices: tuple[Price, ...]
    policy: str
    status: PlanStatus
    solve_ms: float  # 0 where nothing was solved
    ballast_w: float = 0.0  # load bank wanted until the next plan

    def target_at(self, t_s: float, *, start_w: float) -> float:
        """The target at `t_s`, on straight lines from `start_w` at the instant of planning."""
        elapsed_s, first_s = t_s - self.t_s, float(self.offset_s[0])
        if 0.0 <= elapsed_s <= first_s:  # nearly always: plans come as often as the first step is long
            return start_w + (float(self.target_w[0]) - start_w) / first_s * elapsed_s
        return float(np.interp(elapsed_s, [0.0, *self.offset_s], [start_w, *self.target_w]))


class Planner(Protocol):
    """Decides; never raises for an input that `PlanInput` allows."""

    def plan(self, given: PlanInput) -> Plan: ...
