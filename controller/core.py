"""The pure core of the site controller: an image in, a checked command out. Read `decide`, `check`, `plan_if_due`.

Joins estimate, modes, limits, tracker, planner and envelope; holds their state and nothing else. No clock, no I/O, no
event loop: whoever feeds it the same images gets the same commands, which is what `rampart replay` checks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from controller import envelope, envelope_bank, room
from controller.above_cap import AboveCap
from controller.arming import ArmingFacts, BatteryProof, holds_back, is_clock_trusted, unready
from controller.ballast import Ballast, expiry_share
from controller.decision import Checked, Decision
from controller.estimate import Estimate, LoadEstimator, LoadSource
from controller.fleet import Fleet, FleetBook, FleetReader, FleetReadings
from controller.gpu_floor import steady_floor_w
from controller.gpu_model import GpuCurve
from controller.health import Health, HealthInput
from controller.jobs import Placement
from controller.limits import InForce, LimitBook
from controller.modes import TABLE, Clear, Flag, ModeMachine, ModeState, Reason
from controller.node_orders import NodeOrders
from controller.outlook import outlook_of
from controller.parting import Parting, finite_slope
from controller.plan.plan import Plan, Planner
from controller.planning import Known, Planning
from controller.reserve import NO_BATTERY
from controller.respond import Responder
from controller.rings import Rings
from controller.settings import Policy, SiteSettings
from controller.tracker import Tracker
from controller.tracker_io import TrackerInput, TrackerOutput
from controller.types import (
    BatteryCommand,
    BatterySample,
    EnvelopeState,
    EnvelopeView,
    Following,
    MeterFlag,
    Mode,
    NodeCommand,
    NodeReport,
    Outlook,
    Reading,
    SiteCommand,
    SiteFault,
    SiteImage,
    Trouble,
)
from controller.unheld import Drift, Unheld
from controller.view import battery_sample, envelope_view, rings_for

ANOTHER_BATTERY = Trouble(SiteFault.DEVICE_CHANGED, "battery")
ARRIVAL_S = 2.0  # after the first cycle: what has not been seen by then is missing, not late


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
        self._epoch = epoch
        self._seq = 0
        self._estimator = LoadEstimator(site)
        self._modes = ModeMachine(
            period_s=site.planner_period_s,
            holds_by_device=site.battery is None or site.following is Following.DEVICE,
        )
        self._health = Health(site, epoch=epoch)
        self._limits = LimitBook(site)
        self._book = FleetBook(site)
        self._nodes: tuple[Reading[NodeReport], ...] = ()
        self._read: tuple[Fleet, FleetReadings] | None = None
        self._reader: FleetReader | None = None
        self.planning = Planning(site, planner=planner, curves=curves)
        self.tracker: Tracker | None = None
        self._in_force: InForce | None = None
        self._rings: Rings = rings_for(site.contract.limits)
        self._envelope_state = EnvelopeState()
        self._planned_s = -math.inf
        self._orders = NodeOrders(site)
        self._parting = Parting(site)
        self._margin = room.HeldMargin()
        self._gpu_w_max = math.inf  # what all GPUs may draw at their worst, as of the last plan
        self._first_s: float | None = None
        self._resumed_s: float | None = None  # since when the target waits for a first sample after a pause
        self._is_plan_blind = False  # the plan in force was made without a battery
        self._is_clamped = False  # a cap of the last proposal was out of its GPU's range
        self._proof = BatteryProof()
        self._mode: ModeState | None = None
        self._exempt_until_s = -math.inf
        self._responder = Responder(site)
        self._ballast = Ballast(site)
        self._unheld = Unheld()
        self._above = AboveCap(period_s=site.planner_period_s)
        self._drift: Drift | None = None  # where no battery surely holds power on its target
        self._plan_start_w = 0.0  # the target when the present plan was made
        self._load_rise_w = (
            site.gpu_peak_w + site.other_load_w_max
        )  # what load may jump to under the caps in force, as of the last plan

    @property
    def plan(self) -> Plan | None:
        return self.planning.plan

    @property
    def placement(self) -> Placement | None:
        """Where the jobs of the newest list run."""
        return self._book.placement

    @property
    def early_s(self) -> float:
        """When the next cycle should be, if that is before the next tick; inf: the tick will do."""
        waits_s = self._in_force.waits_s if self._in_force is not None else math.inf
        return min(self._responder.early_s, waits_s)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the mode is what it is, as of the last cycle."""
        return self._mode.reasons if self._mode is not None else ()

    @property
    def reset_obstacles(self) -> frozenset[Flag]:
        """Flags that an operator's reset cannot clear now: their cause is still there, or only a restart ends them."""
        over = {Flag.OPERATOR_LOCKOUT} | ({Flag.METER_UNIT_WRONG} if self._estimator.is_meter_sane else set())
        return frozenset(
            r.flag
            for r in self.reasons
            if (r.is_set and r.flag not in over) or TABLE[r.flag].clear is Clear.NEVER_THIS_BOOT
        )

    # ------------------------------------------------------------------------------------------------ the cycle

    def decide(self, image: SiteImage, *, is_leader: bool) -> Decision:
        """Estimate, mode, limits, target, command: what this cycle proposes."""
        now_s, is_reset = image.t_mono_s, image.operator is not None and image.operator.is_reset
        if is_reset:
            self._estimator.unlock()
        estimate = self._estimator.step(
            now_s,
            pcc=image.pcc,
            battery=image.battery,
            nodes=image.nodes,
            meters=image.meters,
            load_bank=image.load_bank,
            is_another_battery=ANOTHER_BATTERY in image.troubles,
        )
        if estimate.battery is not image.battery:
            image = replace(image, battery=estimate.battery)
        fleet, readings = self._read_nodes(image)
        readings = self._above.counted(now_s, fleet, readings)
        if estimate.is_fresh:
            self.planning.saw(estimate)
        flags = self._flags(image, estimate, is_leader=is_leader)
        if Flag.RESUMED in flags:
            self._resumed_s = now_s
        # The link counts as up only while our own ping comes back through the broker: that is its heartbeat.
        mode = self._modes.step(flags, now_s=now_s, has_new_signal=image.is_grid_link_up, is_operator_reset=is_reset)
        self._mode = mode
        self._proof.see(image.battery)
        arming = self._facts(image, estimate, is_leader=is_leader)
        in_force = self._take_limits(image, estimate, arming)
        set_point_w = self._respond(image, estimate, mode, in_force, fleet)
        self.planning.floor = self._ballast.see(
            image,
            tracker=self.tracker,
            limits=in_force.limits,
            left_w=self.planning.left_w(),
            may_draw=is_leader and mode.mode <= Mode.HOLD and not self._envelope_state.is_distrusted,
        )
        if self.tracker is not None:
            self.planning.held_w = steady_floor_w(
                readings.floor,
                surplus_w=self.tracker.g_ref_w - self.planning.left_w() - self.planning.floor.sure_w,
                fall_w_per_s=self.tracker.interval.contingency_slope_w_per_s,
            )
        track = self._track(image, estimate, mode, in_force, set_point_w)
        self._drift = self._unheld.drift(
            now_s, estimate=estimate, lately=self.planning.stretch, battery=image.battery, flags=mode.flags
        )
        self.planning.read(now_s, fleet, readings, line=track.line if track is not None else None)
        proposal = self._proposal(image, estimate, fleet, track, mode, is_leader=is_leader)
        return Decision(
            image,
            estimate,
            mode,
            in_force,
            track,
            proposal,
            fleet,
            readings,
            arming,
            floor=self.planning.floor,
            why_no_floor=self._ballast.why_not,
            held_w=self.planning.held_w,
        )

    def check(self, decision: Decision) -> Checked:
        """The envelope's word on the proposal."""
        image = decision.image
        if decision.track is None:
            return Checked(decision.proposal, ())
        assert self.tracker is not None
        view = self._view(image, decision, self.tracker)
        verdict = envelope_bank.check(view, decision.proposal, envelope.check(view, decision.proposal))
        moves_until_s = self._responder.moves_until_s(image.t_mono_s, self._envelope_state.caps, verdict.state.caps)
        self.planning.begin_anew(moves_until_s)
        self._envelope_state = verdict.state
        if decision.track.aim is None:  # nobody holds the target: it is what the meter says
            self._envelope_state = replace(verdict.state, target_w=decision.track.g_ref_w)
        target_w = verdict.state.target_w
        is_narrowed = any(v.subject == "target" for v in verdict.violations)
        if is_narrowed and target_w is not None:
            self.tracker.corrected(image.t_mono_s, target_w)
        self._is_clamped = any(v.invariant == 2 for v in verdict.violations)
        if verdict.command.nodes:
            self._orders.written()
            self._unheld.wrote(image.t_mono_s, decision.fleet, verdict.state.caps)
        return Checked(verdict.command, verdict.violations)

    def acknowledge(self, image: SiteImage, checked: Checked, *, battery: bool, load_bank: bool) -> None:
        """What the wires took of the command."""
        command, ballast = checked.command.battery, checked.command.load_bank
        if battery and command is not None:
            self._proof.took(image.t_mono_s, ttl_s=command.ttl_s)
            self._unheld.commanded(image.t_mono_s, command)
            self._estimator.commanded(image.t_mono_s, reference_w=command.reference_w, following=command.following)
        if load_bank and ballast is not None:
            self._ballast.acknowledged(image.t_mono_s, ballast)

    def plan_if_due(self, decision: Decision) -> bool:
        """Plan once a planner period, and at once when the battery cannot carry the load; True when a plan was made."""
        image, track = decision.image, decision.track
        now_s = image.t_mono_s
        if track is None or self.tracker is None:
            return False
        due_s = self._planned_s + self.site.planner_period_s - 0.5 * self.site.tracker_period_s
        is_urgent = decision.estimate.load_w > track.load_w_max and now_s - self._planned_s >= 0.2
        if (now_s < due_s and not is_urgent) or self._responder.holds_plan(now_s):
            return False
        self._planned_s = now_s
        if self.site.policy is not Policy.NONE:
            known = self._known(image, decision, self.tracker)
            # What a ceiling needs goes lower at once: the envelope counts every moment that it is not met.
            is_over = self._load_rise_w - known.estimate.other_w > known.gpu_w_max
            self._orders.planned(now_s, is_urgent=is_urgent or is_over)
            self.planning.decide(known)
            self.planning.caps = self._above.lowered(now_s, decision.readings, self.planning.caps)
            if known.drift is not None and decision.in_force.exempt_target_w is None:
                self.planning.caps = room.softened(
                    decision.fleet, self.planning.caps, self._envelope_state, fall_w=known.fall_w
                )
        return True

    def outlook(self, decision: Decision) -> Outlook | None:
        """What the grid may be told of the next minutes; None before anything is known."""
        if decision.track is None:
            return None
        image, settings = decision.image, self.site.battery
        sample = battery_sample(image)
        left = max(0.0, sample.soc_frac - settings.soc_frac_min) if sample is not None and settings is not None else 0.0
        return outlook_of(
            image.t_mono_s,
            track=decision.track,
            plan=self.planning.plan,
            armed=self.planning.armed,
            battery=sample,
            battery_j=left * settings.energy_j if settings is not None else 0.0,
        )

    # ------------------------------------------------------------------------------------------------ parts of decide

    def _read_nodes(self, image: SiteImage) -> tuple[Fleet, FleetReadings]:
        """The fleet and its readings; nodes report at a fraction of our rate, and the same reports read the same."""
        nodes = image.nodes
        if image.jobs is not None:
            self._book.set_jobs(image.jobs)
            self._read = None
        if self._read is None or len(nodes) != len(self._nodes) or not all(map(operator.is_, nodes, self._nodes)):
            fleet = self._book.fleet(nodes)
            if self._reader is None or self._reader.fleet is not fleet:
                self._reader = FleetReader(fleet)
            self._nodes, self._read = nodes, (fleet, self._reader.read(nodes))
        return self._read

    def _flags(self, image: SiteImage, estimate: Estimate, *, is_leader: bool) -> frozenset[Flag]:
        if self._first_s is None:
            self._first_s = image.t_mono_s
        if self.tracker is None and is_leader and image.t_mono_s - self._first_s < ARRIVAL_S:
            return frozenset()  # nothing was seen yet, so nothing is lost; nothing is written either
        return self._health.step(
            image,
            HealthInput(
                estimate=estimate,
                is_leader=is_leader,
                is_cap_clamped=self._is_clamped,
                is_grid_silent=self._in_force is not None and self._in_force.is_fallback,
                is_model_wrong=self.planning.is_model_wrong,
                plan=self.planning.plan,
                written=self._envelope_state,
                is_bank_disobeying=self._ballast.is_disobeying,
                is_above_cap=self._above.is_found,
                is_plan_blind=self._is_plan_blind,
            ),
        )

    def _find_again(self, now_s: float, estimate: Estimate) -> bool:
        """Every command expired while nothing ran: the target goes on from what the meter says; True once it has."""
        assert self.tracker is not None and self._resumed_s is not None
        if estimate.source is not LoadSource.METER and now_s - self._resumed_s < ARRIVAL_S:
            return False
        self._resumed_s = None
        self.tracker.corrected(now_s, estimate.grid_w)
        self._envelope_state = replace(self._envelope_state, target_w=None, reference_w=None)
        return True

    def _facts(self, image: SiteImage, estimate: Estimate, *, is_leader: bool) -> ArmingFacts:
        waited_s = image.t_mono_s - self._first_s if self._first_s is not None else 0.0
        return ArmingFacts(
            is_power_known=self._is_known(image, estimate),
            is_clock_trusted=is_clock_trusted(image, waited_s=waited_s, grace_s=self.site.grace_s),
            has_limits=bool(self.site.contract.limits or image.signals),
            is_leader=is_leader,
            is_battery_proven=self._proof.is_given if image.battery is not None else None,
            unready_nodes=unready(image.nodes),
        )

    def _take_limits(self, image: SiteImage, estimate: Estimate, arming: ArmingFacts) -> InForce:
        found = self._limits.in_force(image)
        if self.tracker is None and not holds_back(arming):
            start_w = estimate.pcc_w if estimate.pcc_w is not None else estimate.load_w
            self.tracker = Tracker(self.site, start_s=image.t_mono_s, start_w=start_w)
            self.tracker.set_limits(found.limits, image.t_mono_s)
        elif self.tracker is not None and found is not self._in_force:
            self.tracker.set_limits(found.limits, image.t_mono_s)
        if found is not self._in_force:
            self._rings.cover(limit.mean_s for limit in found.limits)
        if self.tracker is not None and found.exempt_until_s != self._exempt_until_s:
            self._waive(found, image.t_mono_s)
        self._in_force = found
        return found

    def _waive(self, found: InForce, now_s: float) -> None:
        """Ramp rows end with an emergency's beginning and judge again what happens from its end on."""
        assert self.tracker is not None
        self._exempt_until_s = found.exempt_until_s
        self.tracker.waive_ramps(max(found.exempt_until_s, now_s), with_bands=True)
        if found.exempt_target_w is None:
            self._rings = rings_for(found.limits)
            self._rings.cover(limit.mean_s for limit in found.limits)

    def _respond(
        self, image: SiteImage, estimate: Estimate, mode: ModeState, in_force: InForce, fleet: Fleet
    ) -> float | None:
        """The emergency path: caps from the armed table at once, and the battery's set-point while they take hold."""
        target_w, tracker = in_force.exempt_target_w, self.tracker
        if target_w is None or tracker is None or self.site.policy is Policy.NONE:
            if self._responder.is_active:
                self._responder.stop(image.t_mono_s)
                self._planned_s = -math.inf  # what was held back may be given again
            return None
        sample = _obeying(image, mode)
        bounds = tracker.battery_now(sample)
        if estimate.is_fresh:
            self._responder.steepness.saw(estimate.t_s, estimate.load_w)
            self.planning.steepness = self._responder.steepness.value
        caps = self._responder.caps(
            image.t_mono_s,
            target_w=target_w,
            armed=self.planning.armed if self._has_commandable() else None,
            estimate=estimate,
            battery=sample if bounds.discharge_w_max > 0.0 else None,
            written=self._envelope_state,
            hard_w=room.under_target_w(self.site, image, fleet, estimate=estimate, flags=mode.flags, target_w=target_w),
        )
        if caps is not None:
            self.planning.caps = caps
            self._orders.planned(image.t_mono_s, is_urgent=True)
        return self._responder.set_point_w(
            image.t_mono_s, target_w=target_w, estimate=estimate, sample=sample, bounds=bounds
        )

    def _has_commandable(self) -> bool:
        """Some GPU obeys; where nodes only report, caps would do nothing and the battery must not wait for them."""
        return self._read is not None and bool(np.isnan(self._read[1].acks.fixed_w).any())

    def _is_known(self, image: SiteImage, estimate: Estimate) -> bool:
        """The site's power has been seen: by its meter, held against the nodes, or on a site without one by its nodes.

        Nothing is written on the word of a meter alone that reads kilowatts for watts.
        """
        if image.pcc is not None:
            waited_s = image.t_mono_s - self._first_s if self._first_s is not None else 0.0
            is_checked = bool(image.nodes) or waited_s >= ARRIVAL_S
            return estimate.source is LoadSource.METER and MeterFlag.METER_SPIKE not in estimate.flags and is_checked
        return estimate.source is LoadSource.NODES

    def _track(
        self, image: SiteImage, estimate: Estimate, mode: ModeState, in_force: InForce, set_point_w: float | None
    ) -> TrackerOutput | None:
        tracker, now_s = self.tracker, image.t_mono_s
        if tracker is None or (self._resumed_s is not None and not self._find_again(now_s, estimate)):
            return None
        if estimate.is_fresh:
            self._rings.add(estimate.t_s, estimate.grid_w)
        plan, target_w, target_s, slope = self.planning.plan, tracker.g_ref_w, now_s, 0.0
        if plan is not None:
            target_s, first_s = plan.t_s, float(plan.offset_s[0])
            target_w = self._plan_start_w
            slope = (float(plan.target_w[0]) - target_w) / first_s
            if not math.isfinite(slope):
                target_s, target_w, slope = now_s, tracker.g_ref_w, 0.0  # a plan that is no number holds the target
        if not self._may_raise(mode):  # the envelope would refuse it anyway
            target_w, slope = min(target_w, tracker.g_ref_w), min(slope, 0.0)
        return tracker.step(
            TrackerInput(
                now_s=now_s,
                estimate=estimate,
                battery=battery_sample(image),
                target_w=target_w,
                mode=mode.mode,
                watches=self.planning.watches(estimate),
                load_rise_w=self._load_rise_w,
                target_s=target_s,
                target_slope_w_per_s=slope,
                exempt_target_w=in_force.exempt_target_w,
                set_point_w=set_point_w,
                may_raise=mode.mode > Mode.HOLD or self._may_raise(mode),
                is_disobeyed=Flag.BATTERY_NOT_FOLLOWING in mode.flags,
            )
        )

    def _proposal(
        self,
        image: SiteImage,
        estimate: Estimate,
        fleet: Fleet,
        track: TrackerOutput | None,
        state: ModeState,
        *,
        is_leader: bool,
    ) -> SiteCommand:
        self._seq += 1
        mode = state.mode
        if (
            track is None
            or self.tracker is None
            or not is_leader
            or mode is Mode.LOCKOUT
            or self.site.policy is Policy.NONE
        ):
            return SiteCommand(self._epoch, self._seq, None, ())
        ttl_s = self.site.ttl_periods * self.site.planner_period_s
        ballast = self._ballast.order(
            image,
            tracker=self.tracker,
            track=track,
            estimate=estimate,
            plan=self.planning.plan,
            mode=mode,
            written_w=self._envelope_state.ballast_w,
            numbers=(self._epoch, self._seq),
            ttl_s=ttl_s,
            fall_w_per_s=self._parting.fall_w_per_s(self.tracker.interval.contingency_slope_w_per_s),
        )
        battery, ballast_w = None, ballast.setpoint_w if ballast is not None else 0.0
        self._parting.see(image.t_mono_s, set_point_w=_set_point_w(track, image), ballast_w=ballast_w)
        if self._parting.is_unheard:
            self._parting.heard((r.value.acked_epoch, r.value.acked_seq) for r in image.nodes)
        if track.aim is not None and not self._proof.waits(image.t_mono_s):
            assert self.site.battery is not None
            expiry = self._parting.battery_w_per_s(track.aim) * expiry_share(ballast_w)
            battery = BatteryCommand(
                following=track.aim.following,
                reference_w=track.aim.reference_w if self._proof.is_given else self._standing_w(image, estimate),
                ramp_w_per_s=self.site.battery.ramp_w_per_s_max,
                expiry_w_per_s=finite_slope(expiry),
                epoch=self._epoch,
                seq=self._seq,
                ttl_s=ttl_s,
            )
        nodes: tuple[NodeCommand, ...] = ()
        if fleet.count > 0 and self.planning.caps.shape == (2, fleet.count):
            assert self._read is not None
            nodes = self._orders.commands(
                image,
                fleet,
                caps=self.planning.caps,
                acked=self._read[1].acks.caps,
                written=self._envelope_state,
                interval=self.tracker.interval,
                parting=self._parting,
                mode=mode,
                may_raise=self._may_raise(state),
                gpu_w_max=self._gpu_w_max,
                epoch=self._epoch,
                seq=self._seq,
                ttl_s=ttl_s,
            )
        return SiteCommand(self._epoch, self._seq, battery, nodes, ballast)

    def _standing_w(self, image: SiteImage, estimate: Estimate) -> float:
        """The reference by which the battery stays as it is: to be taken whole before anything is asked of it."""
        assert image.battery is not None
        return estimate.grid_w if self.site.following is Following.DEVICE else image.battery.value.power_w

    def _may_raise(self, state: ModeState) -> bool:
        """What the envelope would refuse is not asked for: refusals count, and would keep it in doubt for ever."""
        return state.may_raise and Flag.CLOCK_STEPPED not in state.flags and not self._envelope_state.is_distrusted

    # ------------------------------------------------------------------------------------------------ views

    def _known(self, image: SiteImage, decision: Decision, tracker: Tracker) -> Known:
        site, view = self.site, self._view(image, decision, tracker)
        sample = _obeying(image, decision.mode)
        bounds = tracker.battery_now(sample)
        self._is_plan_blind = bounds is NO_BATTERY
        margin_w = self._margin.step(image.t_mono_s, view.margin_w)
        fall_w = room.fall_w_max(site, image, decision, tracker, drift=self._drift)
        self._gpu_w_max = room.under_ceilings_w(site, view, decision, tracker, margin_w=margin_w, fall_w=fall_w)
        known = Known(
            now_s=image.t_mono_s,
            estimate=decision.estimate,
            fleet=decision.fleet,
            readings=decision.readings,
            interval=tracker.interval,
            bounds=bounds,
            # What a battery that is lost or disobeys holds is nobody's to bring back to its middle.
            energy_j=sample.soc_frac * site.battery.energy_j
            if sample is not None and site.battery is not None and bounds is not NO_BATTERY
            else 0.0,
            target_w=tracker.g_ref_w,
            mode=decision.mode.mode,
            is_planner_doubted=Flag.ENVELOPE_BUSY in decision.mode.flags,
            gpu_w_max=self._gpu_w_max,
            fall_w=fall_w,
            drift=self._drift,
        )
        self._plan_start_w = tracker.g_ref_w
        self._load_rise_w = self.planning.load_rise_w(known)
        return known

    def _view(self, image: SiteImage, decision: Decision, tracker: Tracker) -> EnvelopeView:
        return envelope_view(
            self.site, image, decision, tracker, rings=self._rings, state=self._envelope_state, drift=self._drift
        )


def _obeying(image: SiteImage, mode: ModeState) -> BatterySample | None:
    """The battery's newest word; None while it is silent, or does not do what it is told."""
    return battery_sample(image) if Flag.BATTERY_NOT_FOLLOWING not in mode.flags else None


def _set_point_w(track: TrackerOutput, image: SiteImage) -> float | None:
    """What the battery holds or is on its way to, whichever it will have to let go; None where it takes no orders."""
    if track.aim is None:
        return None
    sample = battery_sample(image)
    return sample.power_w if track.aim.is_let_go and sample is not None else track.aim.reference_w
