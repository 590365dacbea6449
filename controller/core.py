"""The pure core of the site controller: an image in, a checked command out.

Read `decide`, `check`, `plan_if_due`: look, answer, steer, propose; let the envelope judge; plan when it is time. Each
part is a file of its own, and this one holds what a cycle leaves to the next. No clock, no I/O, no event loop: whoever
feeds it the same images gets the same commands, which is what `rampart replay` checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from controller import envelope, envelope_bank, room
from controller.above_cap import AboveCap
from controller.arming import ARRIVAL_S, Arming, holds_back
from controller.ballast import Ballast
from controller.decision import Checked, Decision
from controller.estimate import Estimate, LoadEstimator, LoadSource
from controller.feeders import FeederTree
from controller.fleet import FleetWatch, is_any_commandable
from controller.gpu_floor import steady_floor_w
from controller.gpu_model import GpuCurve
from controller.health import Health, HealthInput
from controller.jobs import Placement
from controller.limits import LimitBook
from controller.modes import TABLE, Clear, Flag, ModeMachine, ModeState, Reason
from controller.node_orders import CapsNow, NodeOrders
from controller.outlook import outlook_of
from controller.plan.plan import Plan, Planner
from controller.plan_basis import PlanBasis
from controller.planning import Planning
from controller.proposal import Proposals
from controller.refusals import Refusals
from controller.respond import Responder
from controller.settings import Policy, SiteSettings
from controller.situation import Situation
from controller.steering import Steering, obeying_battery
from controller.tick_phase import TickPhase
from controller.tracker import Tracker
from controller.tracker_io import TrackerOutput
from controller.types import (
    EnvelopeState,
    EnvelopeView,
    Following,
    Mode,
    Outlook,
    SiteFault,
    SiteImage,
    Trouble,
    replace,
)
from controller.unheld import Drift, Unheld
from controller.ups_watch import UpsWatch
from controller.view import battery_sample, envelope_view

ANOTHER_BATTERY = Trouble(SiteFault.DEVICE_CHANGED, "battery")
URGENT_AFTER_S = 0.2  # between two plans, however little the battery can carry


class SiteCore:
    """One site's decisions."""

    def __init__(
        self,
        site: SiteSettings,
        *,
        epoch: int,
        planner: Planner,
        curves: Mapping[str, GpuCurve],
    ) -> None:
        self.site = site
        # What looks.
        self._estimator = LoadEstimator(site)
        self._phase = TickPhase(period_s=site.tracker_period_s)
        self._fleet = FleetWatch(site, epoch=epoch)
        self._above = AboveCap(period_s=site.planner_period_s)
        self._health = Health(site, epoch=epoch)
        self._refusals = Refusals(period_s=site.planner_period_s)
        self._modes = ModeMachine(
            period_s=site.planner_period_s,
            holds_by_device=site.battery is None or site.following is Following.DEVICE,
        )
        self._arming = Arming(site)
        self._limits = LimitBook(site)
        # What decides.
        self._responder = Responder(site)
        self._ballast = Ballast(site)
        self._steering = Steering(site)
        self._unheld = Unheld(charge_w_max=site.battery.charge_w_max if site.battery is not None else 0.0)
        self.planning = Planning(site, planner=planner, curves=curves)
        self._basis = PlanBasis(site)
        self._feeders = FeederTree(site.feeders)
        self._ups = UpsWatch(site.ups, fallback_frac=site.gpu_fallback_w / max(site.gpu_peak_w, 1.0))
        self._orders = NodeOrders(site)
        self._proposals = Proposals(site, epoch=epoch, orders=self._orders, proof=self._arming.battery)
        # What a cycle leaves to the next.
        self._mode: ModeState | None = None
        self._written = EnvelopeState()  # the envelope's books
        self._is_clamped = False  # a cap of the last proposal was out of its GPU's range
        self._drift: Drift | None = None  # where no battery surely holds power on its target
        self._planned_s = -math.inf

    @property
    def plan(self) -> Plan | None:
        return self.planning.plan

    @property
    def placement(self) -> Placement | None:
        """Where the jobs of the newest list run."""
        return self._fleet.placement

    @property
    def tracker(self) -> Tracker | None:
        """None until the site's power is known for the first time."""
        return self._steering.tracker

    @property
    def early_s(self) -> float:
        """When the next cycle should be, if that is before the next tick; inf: the tick will do."""
        return min(self._responder.early_s, self._limits.found.waits_s)

    @property
    def tick_offset_s(self) -> float:
        """How much later than at its own time the next tick should be, at most half a period; less than 0: earlier."""
        return self._phase.offset_s

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the mode is what it is, as of the last cycle."""
        return self._mode.reasons if self._mode is not None else ()

    @property
    def reset_obstacles(self) -> frozenset[Flag]:
        """Flags that an operator's reset cannot clear now: their cause is still there, or only a restart ends them."""
        over = {Flag.OPERATOR_LOCKOUT, Flag.BATTERY_LOCKED_OUT, Flag.LOAD_BANK_LOCKED_OUT} | (
            {Flag.METER_UNIT_WRONG} if self._estimator.is_meter_sane else set()
        )
        return frozenset(
            r.flag
            for r in self.reasons
            if (r.is_set and r.flag not in over) or TABLE[r.flag].clear is Clear.NEVER_THIS_BOOT
        )

    # ------------------------------------------------------------------------------------------------ the cycle

    def decide(self, image: SiteImage, *, is_leader: bool) -> Decision:
        """What this cycle proposes, and why."""
        now = self._look(image, is_leader=is_leader)
        set_point_w = self._respond(now)
        self._count_on_floors(now)
        track = self._track(now, set_point_w)
        self._learn(now, track)
        proposal = self._proposals.make(
            now,
            tracker=self.tracker,
            track=track,
            ballast=self._ballast,
            planning=self.planning,
            caps=self._caps_now(now, track),
        )
        return Decision(
            now,
            track,
            proposal,
            floor=self.planning.floor,
            why_no_floor=self._ballast.why_not,
            held_w=self.planning.held_w,
        )

    def check(self, decision: Decision) -> Checked:
        """The envelope's word on the proposal."""
        now_s, track, tracker = decision.image.t_mono_s, decision.track, self.tracker
        if track is None or tracker is None:
            return Checked(decision.proposal, ())
        view = self._view(decision.situation, track, tracker)
        verdict = envelope_bank.check(view, decision.proposal, envelope.check(view, decision.proposal))
        moves_until_s = self._responder.moves_until_s(now_s, self._written.caps, verdict.state.caps)
        self.planning.begin_anew(moves_until_s)
        self._written = verdict.state
        if track.aim is None or self._is_unproven:  # nobody holds the target: it is what the meter says
            self._written = replace(verdict.state, target_w=track.g_ref_w)
        target_w = verdict.state.target_w
        is_narrowed = any(v.subject == "target" for v in verdict.violations)
        if is_narrowed and target_w is not None:
            tracker.corrected(now_s, target_w)
        gpus = decision.fleet.table.index
        self._is_clamped = any(v.invariant == 2 and v.subject in gpus for v in verdict.violations)
        if verdict.command.nodes:
            self._orders.written()
            self._unheld.wrote(now_s, decision.fleet, verdict.state.caps)
        return Checked(verdict.command, verdict.violations)

    def acknowledge(self, image: SiteImage, checked: Checked, *, battery: bool, load_bank: bool) -> None:
        """What the wires took of the command."""
        command, ballast = checked.command.battery, checked.command.load_bank
        if battery and command is not None:
            self._refusals.took("battery")
            self._arming.battery.took(image.t_mono_s, ttl_s=command.ttl_s)
            self._unheld.commanded(image.t_mono_s, command)
            self._estimator.commanded(image.t_mono_s, reference_w=command.reference_w, following=command.following)
        if load_bank and ballast is not None:
            self._refusals.took("load_bank")
            self._ballast.acknowledged(image.t_mono_s, ballast)

    def plan_if_due(self, decision: Decision) -> bool:
        """Plan once a planner period, and at once when the battery cannot carry the load; True when a plan was made."""
        now_s, track, tracker = decision.image.t_mono_s, decision.track, self.tracker
        if track is None or tracker is None:
            return False
        due_s = self._planned_s + self.site.planner_period_s - 0.5 * self.site.tracker_period_s
        is_urgent = decision.estimate.load_w > track.load_w_max and now_s - self._planned_s >= URGENT_AFTER_S
        if (now_s < due_s and not is_urgent) or self._responder.holds_plan(now_s):
            return False
        self._planned_s = now_s
        if self.site.policy is not Policy.NONE:
            self._plan(decision.situation, track, tracker, is_urgent=is_urgent)
        return True

    def outlook(self, decision: Decision) -> Outlook | None:
        """What the grid may be told of the next minutes; None before anything is known."""
        if decision.track is None:
            return None
        sample, settings = battery_sample(decision.image), self.site.battery
        left = max(0.0, sample.soc_frac - settings.soc_frac_min) if sample is not None and settings is not None else 0.0
        return outlook_of(
            decision.image.t_mono_s,
            track=decision.track,
            plan=self.planning.plan,
            armed=self.planning.armed,
            battery=sample,
            battery_j=left * settings.energy_j if settings is not None else 0.0,
        )

    # ------------------------------------------------------------------------------------------------ parts of decide

    def _look(self, image: SiteImage, *, is_leader: bool) -> Situation:
        """What is known now: the load, the fleet, the mode, and the limits in force."""
        now_s, is_reset = image.t_mono_s, image.operator is not None and image.operator.is_reset
        if is_reset:
            self._estimator.unlock()
            self._refusals.reset()
        image = self._refusals.see(image)
        estimate = self._estimate(image)
        if estimate.battery is not image.battery:
            image = replace(image, battery=estimate.battery)
        fleet, readings = self._fleet.read(image)
        readings = self._above.counted(now_s, fleet, readings)
        if estimate.is_fresh:
            self.planning.saw(estimate)
        self._ups.see(now_s, image.ups)
        flags = self._flags(image, estimate, is_leader=is_leader)
        if Flag.RESUMED in flags:
            self._steering.lose(now_s)
        # The link counts as up only while our own ping comes back through the broker: that is its heartbeat.
        mode = self._modes.step(flags, now_s=now_s, has_new_signal=image.is_grid_link_up, is_operator_reset=is_reset)
        self._mode = mode
        arming = self._arming.facts(image, estimate, is_leader=is_leader)
        if self.tracker is None and not holds_back(arming):
            self._steering.begin(now_s, estimate)
        in_force = self._limits.in_force(image)
        self._steering.bind(now_s, in_force)
        return Situation(image, estimate, fleet, readings, mode, arming, in_force, self._written, is_leader)

    def _estimate(self, image: SiteImage) -> Estimate:
        found = self._estimator.step(
            image.t_mono_s,
            pcc=image.pcc,
            battery=image.battery,
            nodes=image.nodes,
            meters=image.meters,
            load_bank=image.load_bank,
            is_another_battery=ANOTHER_BATTERY in image.troubles,
            younger_s=self._phase.younger_s,
        )
        if self.site.following is Following.SOFTWARE:
            self._phase.see(image, is_on_nodes=found.source is LoadSource.NODES)
        return found

    def _flags(self, image: SiteImage, estimate: Estimate, *, is_leader: bool) -> frozenset[Flag]:
        self._arming.wake(image.t_mono_s)
        if self.tracker is None and is_leader and self._arming.waited_s(image.t_mono_s) < ARRIVAL_S:
            return frozenset()  # nothing was seen yet, so nothing is lost; nothing is written either
        return self._health.step(
            image,
            HealthInput(
                estimate=estimate,
                is_leader=is_leader,
                is_cap_clamped=self._is_clamped,
                is_grid_silent=self._limits.found.is_fallback,
                is_model_wrong=self.planning.is_model_wrong,
                plan=self.planning.plan,
                written=self._written,
                is_bank_disobeying=self._ballast.is_disobeying,
                is_above_cap=self._above.is_found,
                is_plan_blind=self._basis.is_blind,
                is_ups_low=self._ups.is_low,
                locked_out=self._refusals.locked_out,
            ),
        )

    def _respond(self, now: Situation) -> float | None:
        """The emergency path: caps from the armed table at once, and the battery's set-point while they take hold."""
        target_w, tracker, responder = now.in_force.exempt_target_w, self.tracker, self._responder
        if target_w is None or tracker is None or self.site.policy is Policy.NONE:
            if responder.is_active:
                responder.stop(now.now_s)
                self._planned_s = -math.inf  # what was held back may be given again
            return None
        estimate, sample = now.estimate, obeying_battery(now)
        bounds = tracker.battery_now(sample)
        if estimate.is_fresh:
            responder.steepness.saw(estimate.t_s, estimate.load_w)
            self.planning.steepness = responder.steepness.value
        caps = responder.caps(
            now.now_s,
            target_w=target_w,
            armed=self.planning.armed if is_any_commandable(now.readings.acks) else None,
            estimate=estimate,
            battery=sample if bounds.discharge_w_max > 0.0 else None,
            written=now.written,
            hard_w=room.under_target_w(self.site, now, target_w=target_w),
        )
        if caps is not None:
            self.planning.caps = caps
            self._orders.planned(now.now_s, is_urgent=True)
        return responder.set_point_w(now.now_s, target_w=target_w, estimate=estimate, sample=sample, bounds=bounds)

    def _count_on_floors(self, now: Situation) -> None:
        """What load bank and power smoothing would leave of the load after a crash."""
        planning, tracker = self.planning, self.tracker
        planning.floor = self._ballast.see(
            now.image,
            tracker=tracker,
            limits=now.in_force.limits,
            left_w=planning.left_w(),
            may_draw=now.is_leader and now.mode.mode <= Mode.HOLD and not now.written.is_distrusted,
        )
        if tracker is not None:
            planning.held_w = steady_floor_w(
                now.readings.floor,
                surplus_w=tracker.g_ref_w - planning.left_w() - planning.floor.sure_w,
                fall_w_per_s=tracker.interval.contingency_slope_w_per_s,
            )

    def _track(self, now: Situation, set_point_w: float | None) -> TrackerOutput | None:
        """Where the target goes and what the battery is to do; None while there is no target."""
        if self._steering.is_lost:
            if not self._steering.find(now.now_s, now.estimate):
                return None
            self._written = replace(self._written, target_w=None, reference_w=None)
        return self._steering.step(
            now,
            watches=self.planning.watches(now.estimate),
            load_rise_w=self._basis.load_rise_w,
            set_point_w=set_point_w,
            is_unproven=self._is_unproven,
        )

    @property
    def _is_unproven(self) -> bool:
        """The battery is held where it stands until its timer was seen to run; one that follows by itself follows."""
        return self.site.following is Following.SOFTWARE and self._arming.battery.is_awaited

    def _learn(self, now: Situation, track: TrackerOutput | None) -> None:
        """How far power drifts where nobody holds it, and what the GPUs' readings teach."""
        self._drift = self._unheld.drift(
            now.now_s,
            estimate=now.estimate,
            lately=self.planning.stretch,
            battery=now.image.battery,
            acks=now.readings.acks,
            flags=now.mode.flags,
            is_unproven=self._is_unproven,
        )
        self.planning.read(now.now_s, now.fleet, now.readings, line=track.line if track is not None else None)

    # ------------------------------------------------------------------------------------------------ plan, and views

    def _plan(self, now: Situation, track: TrackerOutput, tracker: Tracker, *, is_urgent: bool) -> None:
        """Make a plan and its caps; what a ceiling needs goes lower at once, for the envelope counts every moment."""
        planning = self.planning
        # What falls with time is planned as it will stand when the next plan's caps arrive.
        view = self._view(now, track, tracker, ahead_s=2.0 * self.site.planner_period_s)
        known = self._basis.known(now, view=view, tracker=tracker, drift=self._drift)
        is_over = self._basis.load_rise_w - known.estimate.other_w > known.gpu_w_max
        self._orders.planned(now.now_s, is_urgent=is_urgent or is_over)
        self._steering.follow(planning.decide(known))
        planning.caps = self._above.lowered(now.now_s, now.readings, planning.caps)

    def _caps_now(self, now: Situation, track: TrackerOutput | None) -> CapsNow:
        """The plan's caps; where they may not go at once, as far as they may at this tick."""
        basis, tracker = self._basis, self.tracker
        found = CapsNow(self.planning.caps, basis.gpu_w_max, basis.fall_w)
        is_stepped = basis.is_stepped or self._drift is not None
        if tracker is None or track is None or not is_stepped or now.in_force.exempt_target_w is not None:
            return found
        view = self._view(now, track, tracker)
        steps = room.steps_now(view, now, self._drift)
        return replace(found, caps=room.stepped(found.caps, now, view=view, steps=steps), fall_w=steps.chord_w)

    def _view(self, now: Situation, track: TrackerOutput, tracker: Tracker, *, ahead_s: float = 0.0) -> EnvelopeView:
        table = now.fleet.table
        slope = tracker.interval.slope_down_w_per_s
        low = self._ups.at(table, now.now_s + ahead_s, slope_w_per_s=slope)
        return envelope_view(
            self.site,
            now,
            track,
            tracker,
            rings=self._steering.rings,
            state=self._written,
            feeders=(*self._feeders.at(table), *low),
            drift=self._drift,
        )
