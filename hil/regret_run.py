"""One policy on one trace: an ideal follower around the controller's own contract, reserve and planners.

Every 0.1 s: the admissible interval says where the target may go, the plan where it should, the reserve how high it
may be; classes are capped by the plan and, if that is not enough, by what the battery cannot cover; the battery takes
the rest within its limits. What it cannot take shows as power beside the target and is counted as a violation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controller.contract import AdmissibleInterval
from controller.plan.plan import OFFSET_S, STEPS, JobClass, Plan, PlanInput, Planner
from controller.plan.rule import RuleMaxPlanner, RulePlanner, Sharing, share_cut
from controller.plan.shape import planner_shape
from controller.plan.tier import TierLedger
from controller.planner_start import mpc_planner
from controller.reserve import Contingency, CrashReserve
from controller.types import ClassId, FloatArray, Limit, frozen, replace
from hil.oracle import Slack
from hil.regret_forecast import LIFT_S, Forecaster
from hil.regret_trace import STEP_S, EventKind, ReferenceTrace
from hil.regret_wave import highest_path_w

PLAN_EVERY = 10  # steps: 1 Hz
EPISODE_GAP_S = 10.0  # violations nearer than this are one episode: ripple under a falling target is not many events
TINY_W = 1e3  # a hundredth of a percent of the site: rounding, not a violation
LOW_PASS_S = 20.0
RIPPLE_ROOM_S = 2.0  # half a cycle of the slowest job
FAR_W = 1e9  # a load-left so high that no reserve binds


@frozen
class World:
    """What a policy runs in: same for all policies of a case and seed."""

    trace: ReferenceTrace
    limits: tuple[Limit, ...]
    reserve: CrashReserve
    has_reserve: bool
    is_rise_enforced: bool
    floor_w: float
    start_w: float
    start_j: float
    weight: FloatArray
    tolerated_loss: FloatArray  # tier of each class
    tier_window_s: float
    ceiling_w: FloatArray | None  # for the planner's price and the oracle; the limits hold it too

    @property
    def load_left_w(self) -> float:
        return self.trace.base_w + self.floor_w


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    lost_j: float = 0.0  # weighted
    curtailed_j: FloatArray = field(default_factory=lambda: np.zeros(0))
    demand_j: float = 0.0  # weighted
    final_j: float = 0.0
    episodes: int = 0
    episode_w_max: float = 0.0
    unforced_episodes: int = 0
    forced_w: float = 0.0  # the largest forced size of an event
    crash_safe_frac: float = 1.0
    tier_excess_j: FloatArray = field(default_factory=lambda: np.zeros(0))
    fallbacks: int = 0
    target_w: FloatArray = field(default_factory=lambda: np.zeros(0))
    energy_j: FloatArray = field(default_factory=lambda: np.zeros(0))
    slack: Slack | None = None  # what it did not keep; None where it kept everything


class LowPassPlanner:
    """A filter of the load as target: what a battery inverter's smoothing does. Knows no crash and no schedule."""

    def __init__(self) -> None:
        self._level_w: float | None = None
        self._rule = RulePlanner(name="low-pass")

    def plan(self, given: PlanInput) -> Plan:
        load_w = float(given.load_w()[0])
        level_w = given.target_w if self._level_w is None else self._level_w
        self._level_w = level_w + (load_w - level_w) * (STEP_S * PLAN_EVERY / LOW_PASS_S)
        plan = self._rule.plan(replace(given, load_left_w=np.full(STEPS, FAR_W)))
        return replace(plan, target_w=np.full(STEPS, self._level_w), policy="low-pass")


def planner_for(policy: str, world: World) -> Planner | None:
    """The planner of a policy; None for `none`."""
    if policy == "none":
        return None
    if policy == "low-pass":
        return LowPassPlanner()
    if policy == "rule":
        return RulePlanner()
    if policy == "rule-max":
        return RuleMaxPlanner()
    if policy == "rule-max-ordered":
        return RuleMaxPlanner(name=policy, sharing=Sharing.ORDERED)
    assert policy == "mpc", policy
    shape = planner_shape(
        classes=len(world.trace.jobs),
        battery=world.reserve.battery,
        fall_w_per_s=world.reserve.fall_w_per_s,
        rise_w_per_s=world.reserve.rise_w_per_s,
        is_rise_enforced=world.is_rise_enforced,
        peak_w=sum(job.power_w for job in world.trace.jobs) + world.trace.base_w,
        has_ballast=world.floor_w > 0.0,
    )
    return mpc_planner(shape, is_lean=False)


class Run:
    """A policy walking through a world."""

    def __init__(self, world: World, *, policy: str, is_scheduled: bool, forecaster: Forecaster | None = None) -> None:
        """`forecaster` may be one that another run of the same world used: what it said is said again."""
        self._world = world
        self._policy = policy
        self._planner = planner_for(policy, world)
        # Without a reserve the battery's power bounds the target at the low phases; the baselines know no phases.
        self._dips = policy == "mpc" and not world.has_reserve
        self._sharing = Sharing.PROPORTIONAL if policy in ("rule", "rule-max", "low-pass") else Sharing.ORDERED
        self._forecaster = forecaster or Forecaster(world.trace, is_scheduled=is_scheduled)
        assert self._forecaster.is_scheduled == is_scheduled
        self._interval = AdmissibleInterval(world.limits, start_s=0.0, start_w=world.start_w, tick_s=STEP_S)
        self._ledger = TierLedger(world.tolerated_loss, window_s=world.tier_window_s)
        self._energy_j = world.start_j
        self._target_w = world.start_w
        self._plan: Plan | None = None
        self._planned_w = world.start_w
        self._contingency = Contingency("full_site", 0.0, world.load_left_w, 0.0, np.inf)
        self._given: PlanInput | None = None
        self._lows, self._lows_from = np.empty(0), 0  # load at the worst coming phase, per step from `_lows_from` on
        # A run takes 12,000 steps: two or three jobs are quicker as floats than as arrays.
        self._load_w: list[float] = (world.trace.demand_w.sum(axis=0) + world.trace.base_w).tolist()
        self._chosen_w = [np.inf] * len(world.trace.jobs)

    def go(self) -> Outcome:
        """Walk the whole trace."""
        trace = self._world.trace
        steps = trace.steps
        cuts: list[list[float]] = []
        excess, beside, energies, targets = (np.zeros(steps) for _ in range(4))
        safe, covered = np.zeros(steps, dtype=bool), np.ones(steps, dtype=bool)
        for step, demand_w in enumerate(trace.demand_w.T.tolist()):
            if step % PLAN_EVERY == 0:
                self._note_losses(step, cuts)
                if self._planner is not None:
                    self._make_plan(step)
            low_w, high_w = self._move_target(step)
            cuts.append(self._cut(demand_w))
            load_w = sum(demand - cut for demand, cut in zip(demand_w, cuts[-1], strict=True)) + trace.base_w
            power_w = self._battery_step(load_w) if self._planner is not None else load_w
            if self._planner is None:
                self._target_w = power_w
            excess[step] = max(low_w - power_w, power_w - high_w, 0.0)
            beside[step] = self._target_w - power_w
            self._interval.push((step + 1) * STEP_S, self._target_w)
            safe[step], covered[step] = self._is_crash_safe(), self._is_rise_covered(load_w)
            energies[step], targets[step] = self._energy_j, self._target_w
        self._note_losses(steps, cuts)
        found = self._outcome(np.array(cuts).T, excess, safe, targets, energies)
        if bool((np.abs(beside) > TINY_W).any()) or not bool(safe.all() and covered.all()):
            found.slack = Slack(beside, ~safe, ~covered)
        return found

    def _note_losses(self, step: int, cuts: list[list[float]]) -> None:
        """Put the steps since the last plan on the books of tolerated loss: their buckets are whole plans long."""
        first = step - PLAN_EVERY if step % PLAN_EVERY == 0 else step - step % PLAN_EVERY
        if step <= 0:
            return
        demand_w = self._world.trace.demand_w[:, first:step].mean(axis=1)
        self._ledger.add((step - first) * STEP_S, demand_w, np.array(cuts[first:step]).mean(axis=0))

    # ------------------------------------------------------------------------------------------------- one step

    def _make_plan(self, step: int) -> None:
        assert self._planner is not None
        self._given = self._input(step)
        self._plan = self._planner.plan(self._given)
        self._chosen_w = self._plan.chosen_cap_w.tolist()
        self._planned_w = self._target_w

    def _input(self, step: int) -> PlanInput:
        world, trace = self._world, self._world.trace
        now_s = step * STEP_S
        forecast = self._forecaster.at(step)
        low_w, high_w = self._interval.project((now_s + OFFSET_S).tolist())
        lift_w = self._see_lows(step) if self._dips else 0.0
        bottom_w = forecast.bottom_w + lift_w + trace.base_w
        left_w = np.full(STEPS, world.load_left_w) if world.has_reserve else bottom_w
        losses = self._ledger.loss_left_j(OFFSET_S[-1])
        classes = tuple(
            JobClass(
                class_id=ClassId(job.name),
                priority=50,
                weight=float(world.weight[k]),
                cap_w_min=0.0,
                loss_left_j=float(losses[k]),
                peak_w=job.power_w,
            )
            for k, job in enumerate(trace.jobs)
        )
        return PlanInput(
            t_s=now_s,
            classes=classes,
            demand_w=forecast.mean_w,
            other_w=np.full(STEPS, trace.base_w),
            ripple_up_w=forecast.ripple_up_w,
            ripple_down_w=np.maximum(0.0, forecast.ripple_down_w - world.floor_w - lift_w),
            target_w=self._target_w,
            low_w=low_w,
            high_w=high_w,
            ceiling_w=np.full(STEPS, np.inf),
            slope_down_w_per_s=self._interval.slope_down_w_per_s,
            slope_up_w_per_s=self._interval.slope_up_w_per_s,
            energy_j=self._energy_j,
            reserve=self._reserve_for(forecast.ripple_down_w),
            load_left_w=left_w,
            load_return_w=forecast.return_w.sum(axis=0) + trace.base_w,
            contingency_ripple_w=0.0,
            spent_w=self._interval.contingency_excess_w,
            spent_rise_w=self._interval.contingency_excess_up_w,
            is_rise_enforced=world.is_rise_enforced,
            ballast_w_max=world.floor_w,
        )

    def _move_target(self, step: int) -> tuple[float, float]:
        """Move the target along the plan inside interval and reserve; the interval's bounds."""
        end_s = (step + 1) * STEP_S
        bounds = self._interval.bounds(end_s)
        if self._plan is not None:
            wish_w = self._plan.target_at(end_s, start_w=self._planned_w)
            if self._world.has_reserve and self._policy != "low-pass":
                spent_w = self._interval.contingency_excess_w
                # The battery may gain this step what the target leaves it; judge the target by the energy at its end.
                ahead_j = self._energy_j + self._gain_j(wish_w, step)
                energy_j = min(max(self._energy_j, ahead_j), self._world.reserve.battery.energy_j_max)
                wish_w = min(wish_w, self._world.reserve.g_safe_w(energy_j, self._contingency, spent_w=spent_w))
            elif self._dips:
                wish_w = min(wish_w, self._low_phase_target_w(step))
            self._target_w = bounds.clip(wish_w)
        return bounds.low_w, bounds.high_w

    def _reserve_for(self, ripple_down_w: FloatArray) -> CrashReserve:
        """Without a reserve the battery must still not run full while the load ripples: room for half a cycle."""
        reserve = self._world.reserve
        if self._world.has_reserve:
            return reserve
        room_j = RIPPLE_ROOM_S * float(ripple_down_w.max())
        top_j = max(reserve.battery.energy_j_min, reserve.battery.energy_j_max - room_j)
        return replace(reserve, battery=replace(reserve.battery, energy_j_max=top_j))

    def _see_lows(self, step: int) -> float:
        """Look at the coming low phases; how far above the lowest of them the target may stand in between."""
        least_w = self._forecaster.low_path_w(step) + self._world.trace.base_w
        self._lows = highest_path_w(least_w, fall_w=self._interval.slope_down_w_per_s * STEP_S)
        self._lows_from = step + 1
        coming = slice(0, round(LIFT_S / STEP_S))
        return float(self._lows[coming].max() - least_w[coming].min())

    def _low_phase_target_w(self, step: int) -> float:
        """The highest target from which the coming low phases can still be met: it dips in phase with them."""
        battery = self._world.reserve.battery
        ahead = min(step - self._lows_from + 1, len(self._lows) - 1)
        return float(self._lows[ahead]) + battery.charge_limit_w(self._energy_j)

    def _gain_j(self, target_w: float, step: int) -> float:
        """What the battery would store this step if it took target less the load seen now, uncapped."""
        return max(0.0, target_w - self._load_w[step]) * self._world.reserve.battery.eta * STEP_S

    def _cut(self, demand_w: list[float]) -> list[float]:
        """Curtailment per class: the caps the plan chose, then what target and battery cannot carry at this instant."""
        if self._given is None:
            return [0.0] * len(demand_w)
        cut_w = [max(0.0, demand - cap) for demand, cap in zip(demand_w, self._chosen_w, strict=True)]
        give_w = [demand - cut for demand, cut in zip(demand_w, cut_w, strict=True)]
        excess_w = sum(give_w) - (self._target_w + self._cover_w() - self._world.trace.base_w)
        if excess_w <= 0.0:
            return cut_w
        more_w = share_cut(self._given, np.array(give_w), excess_w, sharing=self._sharing).tolist()
        return [cut + more for cut, more in zip(cut_w, more_w, strict=True)]

    def _cover_w(self) -> float:
        battery = self._world.reserve.battery
        give_w = max(0.0, self._energy_j - battery.energy_j_min) * battery.eta / STEP_S
        if self._world.is_rise_enforced and self._policy != "low-pass":
            give_w = min(give_w, self._world.reserve.rise_cover_w(self._energy_j))
        return min(battery.discharge_limit_w(self._energy_j), give_w)

    def _battery_step(self, load_w: float) -> float:
        """The battery takes load less target within its limits, the floor what it then cannot absorb; grid power."""
        battery = self._world.reserve.battery
        room_w = (battery.energy_j_max - self._energy_j) / (battery.eta * STEP_S)
        charge_max_w = min(battery.charge_limit_w(self._energy_j), max(0.0, room_w))
        give_w = max(0.0, self._energy_j - battery.energy_j_min) * battery.eta / STEP_S
        wish_w = load_w - self._target_w
        # The floor comes on when the battery could no longer ride the target down to the load there is.
        ride_w = min(charge_max_w, self._world.reserve.surplus_safe_w(self._energy_j))
        ride_w = min(ride_w, self._world.reserve.surplus_safe_w(self._energy_j + ride_w * battery.eta * STEP_S))
        planned_w = self._plan.ballast_w if self._plan is not None else 0.0
        # A plan counts in means: its part of the floor is drawn through the ripple, as far as the battery carries it.
        planned_w = min(planned_w, self._cover_w() - wish_w)
        floor_w = min(self._world.floor_w, max(0.0, -wish_w - ride_w, planned_w))
        battery_w = min(max(wish_w + floor_w, -charge_max_w), min(battery.discharge_w_max, give_w))
        self._energy_j -= STEP_S * (battery_w / battery.eta if battery_w > 0.0 else battery_w * battery.eta)
        return load_w + floor_w - battery_w

    def _is_crash_safe(self) -> bool:
        if not self._world.has_reserve:
            return True
        reserve = self._world.reserve
        spent_w = self._interval.contingency_excess_w
        safe_w = reserve.g_safe_w(self._energy_j, self._contingency, spent_w=spent_w)
        return self._target_w <= safe_w + TINY_W

    def _is_rise_covered(self, load_w: float) -> bool:
        if not self._world.is_rise_enforced:
            return True
        return load_w <= self._target_w + self._world.reserve.rise_cover_w(self._energy_j) + TINY_W

    # ------------------------------------------------------------------------------------------------- the score

    def _outcome(
        self, cuts: FloatArray, excess: FloatArray, safe: FloatArray, targets: FloatArray, energies: FloatArray
    ) -> Outcome:
        world, trace = self._world, self._world.trace
        curtailed_j = cuts.sum(axis=1) * STEP_S
        entered = np.flatnonzero(safe)
        counts = getattr(self._planner, "counts", {})
        found = Outcome(
            lost_j=float(world.weight @ curtailed_j),
            curtailed_j=curtailed_j,
            demand_j=float(world.weight @ trace.demand_w.sum(axis=1)) * STEP_S,
            final_j=self._energy_j,
            crash_safe_frac=float(safe[entered[0] :].mean()) if len(entered) else 0.0,
            tier_excess_j=self._ledger.excess_j,
            fallbacks=sum(count for status, count in counts.items() if status != "solved"),
            target_w=targets,
            energy_j=energies,
        )
        self._count_episodes(found, excess, targets)
        return found

    def _count_episodes(self, found: Outcome, excess: FloatArray, targets: FloatArray) -> None:
        """Episodes, the largest, and which began at an event that no battery of this size could have hidden."""
        times = np.flatnonzero(excess > TINY_W)
        if not len(times):
            return
        starts = np.concatenate([[True], np.diff(times) > EPISODE_GAP_S / STEP_S])
        found.episodes = int(starts.sum())
        found.episode_w_max = float(excess.max())
        found.forced_w, first_step, last_step = self._forced(targets)
        firsts = times[starts]
        found.unforced_episodes = int(((firsts < first_step) | (firsts > last_step)).sum())

    def _forced(self, targets: FloatArray) -> tuple[float, int, int]:
        """(g - L_after - Pc)+ at the crash, survivors at the bottom of their ripple; the steps in which it acts.

        It acts until the target could have come down to what is left, and the gap between two episodes longer.
        """
        world, trace = self._world, self._world.trace
        crash = next((event for event in trace.events if event.kind is EventKind.CRASH), None)
        step = int(np.ceil(crash.from_s / STEP_S)) if crash is not None else trace.steps
        if step >= trace.steps:
            return 0.0, trace.steps, -1
        after_w = trace.demand_w[:, step : step + 40].sum(axis=0).min() + trace.base_w  # 4 s: one full period
        surplus_w = max(0.0, float(targets[max(0, step - 1)] - after_w))
        fall_s = surplus_w / world.reserve.fall_w_per_s + EPISODE_GAP_S
        return max(0.0, surplus_w - world.reserve.battery.charge_w_max), step, step + round(fall_s / STEP_S)
