"""From what is known to a plan, and from a plan to a clock and a power limit for every GPU.

Runs at the planner's rate: demand of each class, contingencies to survive, one `PlanInput`, one `Plan`, then caps. What
a node then hears is made in `node_commands.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from controller.allocate import (
    Curves,
    clocks_of_caps,
    draw_rise_w,
    drawn_w,
    fit_feeders,
    fit_worst_case,
    has_mixed_jobs,
    held_back_w,
    lowered,
    one_clock_per_job,
)
from controller.ballast import NO_FLOOR
from controller.contract import AdmissibleInterval
from controller.demand import Demand, DemandWindow, Stretch, split_demand
from controller.emergency import Armed
from controller.estimate import Estimate
from controller.fleet import REST, Fleet, FleetReadings
from controller.forecast import Line
from controller.glide import STEEPNESS
from controller.gpu_model import GpuCurve
from controller.identify import Identified, Identifier
from controller.mismatch import ModelWatch
from controller.plan.plan import OFFSET_S, STEPS, JobClass, Plan, PlanInput, Planner
from controller.plan.rule import RulePlanner, Sharing
from controller.plan.tier import TierLedger
from controller.reserve import BatteryBounds, Contingency, CrashReserve
from controller.residual import METERED_MEAN_S
from controller.settings import ContingencyKind, JobClassSettings, SiteSettings, Stance
from controller.swing import SwingWatch, limits_of_swing
from controller.tier_watch import TierState, TierWatch
from controller.tracker_io import Watch
from controller.types import BoolArray, CeilingLimit, Feeder, FloatArray, Mode, frozen, replace
from controller.unheld import Drift
from controller.view import ceiling_w

OTHER_MEMORY_S = 60.0  # GPU telemetry lags by a second, so that other load seems to jump whenever GPUs do
WINDUP_MAX = 1.5  # of what the cards can draw at all: what demand inferred through a wrong curve may come to
RETURN_MEMORY_S = 1800.0  # a job that crashed is back within minutes to half an hour, or not soon
REST_SETTINGS = JobClassSettings(class_id=REST, priority=50, tolerated_loss_frac=0.1, window_s=3600.0, weight=1.0)


@frozen
class Known:
    """What one plan is made from, beside the window of past load."""

    now_s: float
    estimate: Estimate
    fleet: Fleet
    readings: FleetReadings
    interval: AdmissibleInterval
    bounds: BatteryBounds
    energy_j: float
    target_w: float
    mode: Mode
    is_planner_doubted: bool  # the envelope overruled it too often
    gpu_w_max: float  # what all GPUs together may draw at their worst under the ceilings in force; inf without any
    told_w_max: float  # the same of those that take their caps, beside what the others draw whatever they are told
    let_go_w: float = math.inf  # how much of the load the clocks of this plan may let go; inf: all
    drift: Drift | None = None  # where no battery surely holds power on its target
    feeders: tuple[Feeder, ...] = ()

    def load_rise_w(self) -> float:
        """What load may jump to under the caps in force."""
        table, caps = self.fleet.table, self.readings.acks.caps
        fraction = np.minimum(caps[0] / table.cap_max[0], 1.0)
        limit_w = np.minimum(caps[1], table.peak_w)
        reach_w = np.minimum(limit_w, table.idle_w + (table.peak_w - table.idle_w) * fraction)
        return float((reach_w * table.stands_for).sum()) + self.estimate.other_w


class Planning:
    """Holds the planner and what it remembers between plans."""

    def __init__(self, site: SiteSettings, *, planner: Planner, curves: Mapping[str, GpuCurve]) -> None:
        self._site = site
        self._planner = planner
        self._without_solver = RulePlanner(sharing=Sharing.ORDERED)  # while the envelope doubts the planner
        self._identifier = Identifier(curves)
        self._model = ModelWatch()
        self._classes = (*site.classes, REST_SETTINGS)
        self._window = DemandWindow(peak_w=site.registered_peak_w)
        self._swings = SwingWatch()
        self._reach_w = 0.0  # what the battery takes and gives, as of the last plan
        tiers = np.array([c.tolerated_loss_frac for c in self._classes])
        self._ledgers = {
            window_s: TierLedger(tiers, window_s=window_s) for window_s in {c.window_s for c in self._classes}
        }
        self._fleet: Fleet | None = None
        self._learnt: tuple[int, Curves, Curves] | None = None  # the version, the likely and the cautious curves
        self._has_mixed_jobs = False
        self._tiers = TierWatch(self._classes)
        self._planned_s: float | None = None
        self._seen_s = self._demand_top_s = 0.0
        self._other_w = self._other_w_now = site.other_load_w
        self._demand_top_w = 0.0
        self._demand = Demand(np.zeros(len(self._classes)), 0.0, 0.0, 0.0)
        self.stretch = Stretch(0.0, 0.0, 0.0, math.inf)  # the site's own load lately, as of the last plan
        self.caps: FloatArray = np.empty((2, 0))  # clock in MHz over power limit in W, per GPU; inf is free
        self.plan: Plan | None = None
        self.armed: Armed | None = None  # the response to an emergency, as of the last plan
        self.floor = NO_FLOOR  # what a load bank adds to the load that a crash leaves, as of this cycle
        self.held_w = 0.0  # what GPUs' own power floors are worth, as of this cycle
        self.steepness = 1.0  # of the GPUs' curves, as earlier responses showed it

    @property
    def demand(self) -> Demand:
        """As of the last plan."""
        return self._demand

    def saw(self, estimate: Estimate) -> None:
        """A fresh estimate; at most every tick."""
        elapsed_s = min(max(estimate.t_s - self._seen_s, 0.0), OTHER_MEMORY_S)
        self._other_w += elapsed_s / OTHER_MEMORY_S * (estimate.other_w - self._other_w)
        self._seen_s, self._other_w_now = estimate.t_s, estimate.other_w
        self._window.add(estimate.t_s, estimate.own_load_w)

    def begin_anew(self, from_s: float) -> None:
        """An emergency's caps move the load until `from_s`: no job does, and none is judged by it."""
        self._window.begin_anew(from_s)
        self._swings.begin_anew(from_s)

    def watches(self, estimate: Estimate) -> tuple[Watch, ...]:
        """The configured contingencies as they stand at this load."""
        return tuple(
            Watch(
                contingency=self._contingency(c.kind, c.slew_frac_per_s, estimate),
                enforces_transient=c.transient is Stance.ENFORCE,
                enforces_power=c.power is Stance.ENFORCE,
                enforces_energy=c.energy is Stance.ENFORCE,
                enforces_rise=c.rise is Stance.ENFORCE,
            )
            for c in self._site.contingencies
        )

    def left_w(self) -> float:
        """What certainly stays after a full crash, without a load bank and what GPUs hold by themselves for a while.

        What is measured beside the GPUs may belong to the jobs as well; only the declared part certainly stays.
        """
        site = self._site
        return site.gpu_idle_w + min(self._other_w, site.other_load_w) + site.guaranteed_floor_w

    def _contingency(self, kind: ContingencyKind, slew_frac_per_s: float, estimate: Estimate) -> Contingency:
        base_w, load_w, floor = self.left_w(), estimate.own_load_w + estimate.margin_w, self.floor
        drop_w = max(0.0, load_w - base_w)
        left_w, ripple_w = min(base_w + self.held_w, max(load_w, base_w)), 0.0
        if kind is ContingencyKind.LARGEST_JOB:
            largest_w = float(self._demand.class_w.max(initial=0.0))
            share = largest_w / max(float(self._demand.class_w.sum()), 1.0)
            drop_w = min(largest_w, drop_w)
            left_w, ripple_w = load_w - drop_w, (1.0 - share) * self._demand.ripple_down_w
        return Contingency(
            name=kind.value,
            drop_w=drop_w,
            load_left_w=left_w + floor.sure_w,
            ripple_w=ripple_w + floor.sure_w - floor.quick_w,
            slew_w_per_s=slew_frac_per_s * drop_w,
            late_w=floor.quick_w,
            late_s=floor.late_s,
        )

    def decide(self, known: Known) -> Plan:
        """Plan the next minutes and turn the caps into clocks."""
        likely, curves = self._curves_of(known.fleet)
        self._reach_w = known.bounds.charge_w_max + known.bounds.discharge_w_max
        self.stretch = self._window.seen()
        swing = self._swings.beyond(self._reach_w)
        self._demand = swing.demand() if swing is not None else self._demand_now(known, likely)
        self._tiers.book(known.now_s, known.fleet, known.readings, likely)
        given = self._input(known, curves)
        planner = self._without_solver if known.is_planner_doubted else self._planner
        plan = planner.plan(given)
        peaks_w = self._peaks_w(given)
        clocks_mhz = clocks_of_caps(known.fleet, curves, cap_w=plan.cap_w, peak_w=peaks_w)
        if self._has_mixed_jobs:
            clocks_mhz = one_clock_per_job(known.fleet, clocks_mhz)
        every = np.ones(known.fleet.count, dtype=bool)
        clocks_mhz = self._lowered(known, likely, clocks_mhz, among=every, fall_w=known.let_go_w)
        clocks_mhz = self._raised_with_care(known, given, plan, clocks_mhz)
        limits_w = np.full(known.fleet.count, np.inf)
        if swing is not None:  # a limit cuts the tops alone, where a clock would take the bottoms along
            limits_w, is_cut = limits_of_swing(known.fleet, swing, cap_w=plan.cap_w, peak_w=peaks_w)
            clocks_mhz = np.where(is_cut, np.inf, clocks_mhz)
        self.caps = self._eased(known, likely, self._fitted(known, curves, np.vstack((clocks_mhz, limits_w))))
        self._account(known.now_s, given, plan)
        self.armed = Armed.arm(
            known.fleet,
            curves,
            demand_w=self._demand.class_w,
            other_w=self._demand.other_w,
            ripple_up_w=self._demand.ripple_up_w,
            priority=tuple(settings.priority for settings in self._classes),
            steepness=self.steepness,
        )
        self.plan = plan
        return plan

    def _eased(self, known: Known, curves: Curves, caps: FloatArray) -> FloatArray:
        """`caps` (2, n), of which clocks beside a limit let go what the worst case falls by, and what all may.

        The limit keeps the worst case by itself. Its clock is that of a job that draws all there is, by a curve that
        may have been learnt anew: of one that draws less it may let go of much more.
        """
        fleet, before = known.fleet, known.readings.acks.caps
        is_limited = caps[1] <= drawn_w(fleet, caps)
        falls_w = draw_rise_w(fleet, caps, np.where(is_limited, before, caps))  # back to what is in force
        clocks_mhz = self._lowered(known, curves, caps[0], among=is_limited, fall_w=known.let_go_w + falls_w)
        return np.vstack((clocks_mhz, caps[1]))

    def _lowered(
        self, known: Known, curves: Curves, clocks_mhz: FloatArray, *, among: BoolArray, fall_w: float
    ) -> FloatArray:
        """Clocks (n,), of which those `among` (n,) go no further below those in force than all may let go."""
        before_mhz, power_w = known.readings.acks.caps[0], known.readings.power_w
        return lowered(
            known.fleet, curves, clocks_mhz, among=among, before_mhz=before_mhz, power_w=power_w, fall_w=fall_w
        )

    def _fitted(self, known: Known, curves: Curves, caps: FloatArray) -> FloatArray:
        """Caps (2, n), no higher than `caps`, under which the worst case keeps ceilings and feeders.

        What takes no caps is told what it would be if all took them, and the others make up for it.
        """
        fleet, fixed_w = known.fleet, known.readings.acks.fixed_w
        told = np.isnan(known.readings.deaf_w)
        for among, most_w in ((np.ones_like(told), known.gpu_w_max), (told, known.told_w_max)):
            caps = fit_worst_case(fleet, curves, caps, among=among, hard_w=most_w - self.model_margin_w)
        return fit_feeders(fleet, curves, caps, known.feeders, fixed_w=fixed_w)

    def _raised_with_care(self, known: Known, given: PlanInput, plan: Plan, clocks_mhz: FloatArray) -> FloatArray:
        """Clocks (n,), raised no further than what is drawn now fits target and battery even by the steepest curve.

        What a deep cut holds back is known only roughly, and a raise beyond what the battery covers is on the meter. So
        is all of it for T_eff, and for good while a battery takes no orders: it must fit what the rows leave.
        """
        table = known.fleet.table
        if self._site.battery is None:
            return clocks_mhz
        idle_w = float((table.idle_w * table.stands_for).sum())
        drawn_w = float((known.readings.power_w * table.stands_for).sum()) + float(given.ripple_up_w[0]) - idle_w
        room_w = float(plan.target_w[0]) + given.cover_w(given.energy_j) - float(given.other_w[0]) - idle_w
        adrift = known.drift if known.drift is not None and not known.drift.is_followed else None
        is_covered = given.reserve.battery.discharge_w_max > 0.0 and adrift is None
        if adrift is not None:
            at_once_w = max(0.0, float(given.high_w[0]) - known.estimate.grid_w - adrift.swell_w)
        else:
            at_once_w = at_once_w_max(given, target_w=known.target_w, t_eff_s=known.estimate.t_eff_s)
        room_w = min(room_w, drawn_w + at_once_w) if is_covered else drawn_w + at_once_w
        gain = max(1.0, room_w / max(drawn_w, 1.0)) ** (1.0 / STEEPNESS)
        now_mhz = np.minimum(known.readings.acks.caps[0], table.cap_max[0])
        most_mhz = np.where(now_mhz * gain < table.cap_max[0], np.floor(now_mhz * gain), np.inf)
        return np.where(now_mhz < table.cap_max[0], np.minimum(clocks_mhz, most_mhz), clocks_mhz)

    def read(self, now_s: float, fleet: Fleet, readings: FleetReadings, *, line: Line | None) -> None:
        """Learn from the nodes' readings; at most every tick."""
        self._identifier.saw(now_s, fleet, readings, line=line)
        likely = self._curves_of(fleet)[0]
        self._model.saw(now_s, fleet, readings, likely)
        could_swing_w = self._site.gpu_peak_w - self._site.gpu_idle_w
        if 0.0 < self._reach_w < could_swing_w and self._swings.is_due(now_s):
            caps = readings.acks.caps
            held_w = held_back_w(fleet, likely, power_w=readings.power_w, clock_cap_mhz=caps[0])
            limit_w = fleet.by_class(np.where(caps[1] < fleet.table.peak_w, caps[1], np.inf))
            self._swings.saw(now_s, fleet.by_class(readings.power_w) + held_w, limit_w, other_w=self._other_w_now)

    @property
    def is_model_wrong(self) -> bool:
        """GPUs draw what no job could at their clocks, by the model."""
        return self._model.is_wrong

    @property
    def model_margin_w(self) -> float:
        """What the model of GPU power is known to be short of: caps under a ceiling leave it free."""
        return self._model.margin_w

    @property
    def tiers(self) -> tuple[TierState, ...]:
        """Each class's loss against its tier, as of the last plan."""
        return self._tiers.states

    @property
    def identified(self) -> tuple[Identified, ...]:
        """What is known of each class and model by now."""
        return self._identifier.identified()

    def _curves_of(self, fleet: Fleet) -> tuple[Curves, Curves]:
        """The likely curves, and the cautious ones that caps are made from."""
        if self._learnt is None or fleet is not self._fleet or self._learnt[0] != self._identifier.version:
            best, upper, index = self._identifier.curves(fleet)
            likely, cautious = Curves(best, index), Curves(upper, index)
            if fleet is not self._fleet:
                self._has_mixed_jobs = has_mixed_jobs(fleet, likely)
            self._fleet, self._learnt = fleet, (self._identifier.version, likely, cautious)
        return self._learnt[1], self._learnt[2]

    def _demand_now(self, known: Known, curves: Curves) -> Demand:
        readings = known.readings
        held_w = held_back_w(known.fleet, curves, power_w=readings.power_w, clock_cap_mhz=readings.acks.caps[0])
        class_w = known.fleet.by_class(readings.power_w)
        found = split_demand(
            self._window.stretch(), class_w=class_w, held_back_w=held_w, other_w=known.estimate.other_w
        )
        # Caps without effect look as if they held back ever more, and plans answer with lower ones: up to a bound.
        most_w = WINDUP_MAX * known.fleet.by_class(known.fleet.table.peak_w)
        return replace(found, class_w=np.minimum(found.class_w, most_w))

    def _peaks_w(self, given: PlanInput) -> FloatArray:
        """What each class would draw uncapped at the top of the ripple, (K,)."""
        mean_w = given.demand_w[:, 0]
        total_w = float(mean_w.sum())
        up_w = given.ripple_up_w[0] * mean_w / total_w if total_w > 0.0 else np.zeros_like(mean_w)
        peaks: FloatArray = mean_w + up_w
        return peaks

    def _input(self, known: Known, curves: Curves) -> PlanInput:
        demand, interval, site = self._demand, known.interval, self._site
        low_w, high_w = interval.project([known.now_s + ahead_s for ahead_s in OFFSET_S.tolist()])
        ceilings = [row for row in interval.limits if isinstance(row, CeilingLimit)]
        ceilings_w = [ceiling_w(ceilings, known.now_s + ahead_s) for ahead_s in OFFSET_S.tolist()] if ceilings else None
        watches = self.watches(known.estimate)
        enforced = [w for w in watches if w.enforces_power or w.enforces_energy]
        # The contingency that leaves the least binds; without one the bottom of the ripple must be absorbed.
        worst = min(enforced, key=lambda w: w.contingency.load_left_w, default=None)
        left_w = worst.contingency.load_left_w if worst else demand.load_w - demand.ripple_down_w
        busiest_w = self._busiest_w()
        return PlanInput(
            t_s=known.now_s,
            classes=self._job_classes(known, curves),
            demand_w=np.repeat(demand.class_w[:, None], STEPS, axis=1),
            other_w=np.full(STEPS, demand.other_w + known.estimate.margin_w),
            ripple_up_w=np.full(STEPS, demand.ripple_up_w),
            ripple_down_w=np.full(STEPS, demand.ripple_down_w),
            target_w=known.target_w,
            low_w=low_w,
            high_w=high_w,
            ceiling_w=np.full(STEPS, np.inf) if ceilings_w is None else np.array(ceilings_w),
            slope_down_w_per_s=interval.slope_down_w_per_s,
            slope_up_w_per_s=interval.slope_up_w_per_s,
            energy_j=known.energy_j,
            reserve=CrashReserve(
                battery=known.bounds,
                fall_w_per_s=interval.contingency_slope_w_per_s,
                rise_w_per_s=interval.contingency_rise_w_per_s,
            ),
            load_left_w=np.full(STEPS, left_w),
            load_return_w=np.full(STEPS, busiest_w),
            contingency_ripple_w=worst.contingency.ripple_w if worst else 0.0,
            spent_w=interval.contingency_excess_w,
            spent_rise_w=interval.contingency_excess_up_w,
            is_rise_enforced=any(w.enforces_rise for w in watches) or site.battery is None,
            ballast_w_max=self.floor.sure_w,
            # A connection and its meter are made for the registered peak; what charges the battery can wait.
            import_w_max=max(site.registered_peak_w, busiest_w + known.estimate.margin_w),
        )

    def _busiest_w(self) -> float:
        """What the site may jump to without notice: jobs that are down may come back at what they drew before."""
        before_s = self._demand_top_s
        now_s, top_w = self._seen_s, self._demand.load_w + self._demand.ripple_up_w
        faded_w = self._demand_top_w * math.exp(-max(0.0, now_s - before_s) / RETURN_MEMORY_S)
        self._demand_top_w, self._demand_top_s = max(top_w, faded_w), now_s
        return self._demand_top_w

    def _job_classes(self, known: Known, curves: Curves) -> tuple[JobClass, ...]:
        table = known.fleet.table
        floor_share = curves.power_share(np.minimum(table.floor_mhz / table.cap_max[0], 1.0))
        idle_w = known.fleet.class_idle_w
        floor_w = idle_w + np.maximum(self._demand.class_w - idle_w, 0.0) * _mean_share(known.fleet, floor_share)
        peak_w = known.fleet.by_class(table.peak_w)
        left = {window_s: ledger.loss_left_j(float(OFFSET_S[-1])) for window_s, ledger in self._ledgers.items()}
        return tuple(
            JobClass(
                class_id=settings.class_id,
                priority=settings.priority,
                weight=settings.weight,
                cap_w_min=float(floor_w[k]),
                loss_left_j=float(left[settings.window_s][k]),
                peak_w=float(peak_w[k]),
            )
            for k, settings in enumerate(self._classes)
        )

    def _account(self, now_s: float, given: PlanInput, plan: Plan) -> None:
        """Book what the caps of this plan will cost until the next one."""
        if self._planned_s is not None:
            peaks_w = self._peaks_w(given)
            lost = np.clip(1.0 - plan.cap_w / np.maximum(peaks_w, 1.0), 0.0, 1.0)
            for ledger in self._ledgers.values():
                ledger.add(now_s - self._planned_s, given.demand_w[:, 0], given.demand_w[:, 0] * lost)
        self._planned_s = now_s


def at_once_w_max(given: PlanInput, *, target_w: float, t_eff_s: float) -> float:
    """How much load may come at once and stay inside what the rows leave above the target.

    What the battery takes over is on the meter for T_eff, and rows judge means of a second. What it cannot take over
    stays, with all of its ripple.
    """
    left_w = max(0.0, float(given.high_w[0]) - target_w)
    if given.reserve.battery.discharge_w_max > 0.0:
        return left_w * METERED_MEAN_S / max(t_eff_s, 1e-3)
    return max(0.0, left_w - float(given.ripple_up_w[0] + given.ripple_down_w[0]))


def _mean_share(fleet: Fleet, share: FloatArray) -> FloatArray:
    """Mean of a per-GPU share over each class, (K,); 1 for a class without GPUs."""
    total = fleet.class_count
    return np.where(total > 0.0, fleet.by_class(share) / np.maximum(total, 1e-9), 1.0)
