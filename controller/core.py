"""The pure core of the site controller: an image in, a checked command out. Read `decide`, `check`, `plan_if_due`.

Joins estimate, modes, limits, tracker, planner and envelope; holds their state and nothing else. No clock, no I/O, no
event loop: whoever feeds it the same images gets the same commands, which is what `rampart replay` checks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from controller import envelope
from controller.allocate import worst_case_w
from controller.estimate import Estimate, LoadEstimator, LoadSource
from controller.estimate_checks import MeterFlag
from controller.fleet import Fleet, FleetBook, FleetReader, FleetReadings
from controller.glide import STEEPNESS, FallbackGlide
from controller.gpu_model import GpuCurve
from controller.health import Health
from controller.jobs import Placement
from controller.limits import InForce, LimitBook
from controller.modes import Flag, ModeMachine, ModeState
from controller.outlook import outlook_of
from controller.plan.plan import Plan, Planner
from controller.planning import NO_LIMIT_W_PER_S, Known, Planning, node_commands
from controller.respond import Responder
from controller.rings import Rings
from controller.settings import Policy, SiteSettings, Stance
from controller.stagger import Stagger
from controller.tracker import METERED_MEAN_S, UNSEEN_FRAC, Tracker, TrackerInput, TrackerOutput
from controller.types import (
    AgentState,
    BatteryCommand,
    BatterySample,
    BatteryState,
    EnvelopeBattery,
    EnvelopeState,
    EnvelopeView,
    FloatArray,
    Following,
    Limit,
    Margin,
    Mode,
    NodeCommand,
    NodeReport,
    Outlook,
    Quality,
    RampLimit,
    Reading,
    SiteCommand,
    SiteImage,
    SwingLimit,
    Violation,
)
from controller.view import ceiling_w, envelope_battery, rings_for, unmanaged_w, window_checks

METER_AGE_PERIODS = 3.0  # FAULTS: read t for T for the PCC meter and the battery
VIOLATIONS_MAX = 20  # in 60 s: a violation a planner period for a third of them
NOT_FOLLOWING_FRAC = 0.05  # of nameplate, beyond what ripple and lag explain
NOT_FOLLOWING_S = 3.0  # FAULTS B2: for 3 T
STALL_PERIODS = 1
ARRIVAL_S = 2.0  # after the first cycle: what has not been seen by then is missing, not late
RESUMED_FRAC_PER_S = 0.5  # of the smallest row: how fast the windows may move the target after a pause
EDGE_FRAC = 0.001  # of the registered peak, or of the battery: what a meter's last digits are worth


@dataclass(frozen=True, slots=True)
class Decision:
    """What one cycle wants to do, and why. `track` is None until the site's power is known for the first time."""

    estimate: Estimate
    mode: ModeState
    in_force: InForce
    track: TrackerOutput | None
    proposal: SiteCommand
    fleet: Fleet
    readings: FleetReadings

    @property
    def margins(self) -> tuple[Margin, ...]:
        return self.track.margins if self.track is not None else ()


@dataclass(frozen=True, slots=True)
class Checked:
    """The command that may be written, and what the envelope found."""

    command: SiteCommand
    violations: tuple[Violation, ...]


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
        self._has_new_caps = False
        self._glide = FallbackGlide()
        self._stagger = Stagger(period_s=site.planner_period_s)
        self._overruns = 0
        self._first_s: float | None = None
        self._resumed_s: float | None = None  # since when the target waits for a first sample after a pause
        self._unfollowed_since_s: float | None = None
        self._violation_count = 0
        self._exempt_until_s = -math.inf
        self._responder = Responder(site)
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

    # ------------------------------------------------------------------------------------------------ the cycle

    def decide(self, image: SiteImage, *, is_leader: bool) -> Decision:
        """Estimate, mode, limits, target, command: what this cycle proposes."""
        now_s = image.t_mono_s
        estimate = self._estimator.step(
            now_s, pcc=image.pcc, battery=image.battery, nodes=image.nodes, meters=image.meters
        )
        fleet, readings = self._read_nodes(image)
        if estimate.is_fresh:
            self.planning.saw(estimate)
        flags = self._flags(image, estimate, is_leader=is_leader)
        if Flag.RESUMED in flags:
            self._resumed_s = now_s
        # The link counts as up only while our own ping comes back through the broker: that is its heartbeat.
        mode = self._modes.step(flags, now_s=now_s, has_new_signal=image.is_grid_link_up)
        in_force = self._take_limits(image, estimate)
        set_point_w = self._respond(image, estimate, mode, in_force, fleet)
        track = self._track(image, estimate, mode, in_force, set_point_w)
        self.planning.read(now_s, fleet, readings, line=track.line if track is not None else None)
        proposal = self._proposal(image, fleet, track, mode, is_leader=is_leader)
        return Decision(estimate, mode, in_force, track, proposal, fleet, readings)

    def check(self, image: SiteImage, decision: Decision) -> Checked:
        """The envelope's word on the proposal."""
        if decision.track is None:
            return Checked(decision.proposal, ())
        verdict = envelope.check(self._view(image, decision), decision.proposal)
        self._envelope_state = verdict.state
        target_w = verdict.state.target_w
        is_narrowed = any(v.subject == "target" for v in verdict.violations)
        if is_narrowed and target_w is not None and self.tracker is not None:
            self.tracker.corrected(image.t_mono_s, target_w)
        self._violation_count += len(verdict.violations)
        if verdict.command.nodes:
            self._has_new_caps = False
        return Checked(verdict.command, verdict.violations)

    def acknowledge(self, image: SiteImage, checked: Checked, *, battery: bool) -> None:
        """What the wires took of the command."""
        command = checked.command.battery
        if battery and command is not None:
            self._estimator.commanded(image.t_mono_s, reference_w=command.reference_w, following=command.following)

    def plan_if_due(self, image: SiteImage, decision: Decision) -> bool:
        """Plan once a planner period, and at once when the battery cannot carry the load; True when a plan was made."""
        track, now_s = decision.track, image.t_mono_s
        if track is None or self.tracker is None:
            return False
        due_s = self._planned_s + self.site.planner_period_s - 0.5 * self.site.tracker_period_s
        is_urgent = decision.estimate.load_w > track.load_w_max and now_s - self._planned_s >= 0.2
        if (now_s < due_s and not is_urgent) or self._responder.holds_plan(now_s):
            return False
        self._planned_s = now_s
        self._has_new_caps = True
        if self.site.policy is not Policy.NONE:
            known = self._known(image, decision, self.tracker)
            # What a ceiling needs goes lower at once: the envelope counts every moment that it is not met.
            is_over = self._load_rise_w - known.estimate.other_w > known.gpu_w_max
            self._stagger.planned(now_s, is_urgent=is_urgent or is_over)
            self.planning.decide(known)
        return True

    def outlook(self, image: SiteImage, decision: Decision) -> Outlook | None:
        """What the grid may be told of the next minutes; None before anything is known."""
        if decision.track is None:
            return None
        sample = image.battery.value if image.battery is not None and self._is_battery_usable(image) else None
        settings = self.site.battery
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
        flags = {Flag(flag.value) for flag in estimate.flags}
        if image.pcc is None and estimate.source is LoadSource.HELD:
            flags.add(Flag.IMAGE_LOST)
        if image.pcc is not None and estimate.source is LoadSource.NODES:
            flags.add(Flag.METER_MISSING)
        if not is_leader:
            flags.add(Flag.LEADERSHIP_LOST)
        if not image.is_grid_link_up:
            flags.add(Flag.GRID_LINK_LOST)
        if self._in_force is not None and self._in_force.is_fallback:
            flags.add(Flag.GRID_SILENT)
        if (
            image.overrun_count - self._overruns
            > STALL_PERIODS * self.site.planner_period_s / self.site.tracker_period_s
        ):
            flags.add(Flag.LOOP_STALLED)
        self._overruns = image.overrun_count
        if self._envelope_state.is_distrusted:
            flags.add(Flag.ENVELOPE_BUSY)
        if image.changed_devices:
            flags.add(Flag.DEVICE_CHANGED)
        if self.planning.is_model_wrong:
            flags.add(Flag.MODEL_MISMATCH)
        flags |= self._health.step(image, self.planning.plan)
        return frozenset(flags | self._node_flags(image) | self._battery_flags(image))

    @staticmethod
    def _node_flags(image: SiteImage) -> set[Flag]:
        flags: set[Flag] = set()
        lost = [r for r in image.nodes if r.quality is Quality.MISSING]
        if lost:
            flags.add(Flag.NODES_ALL_LOST if len(lost) == len(image.nodes) else Flag.NODE_LOST)
        if any(r.value.state is AgentState.MONITOR_ONLY for r in image.nodes):
            flags.add(Flag.GPU_PERMISSION)
        if any(not r.value.is_controllable.all() for r in image.nodes if r.value.state is AgentState.ARMED):
            flags.add(Flag.GPU_IGNORES_CAPS)
        return flags

    def _battery_flags(self, image: SiteImage) -> set[Flag]:
        if image.battery is None:
            return set()
        if image.battery.quality is Quality.MISSING:
            return {Flag.BATTERY_LOST}
        sample, flags = image.battery.value, set()
        if not sample.is_remote or sample.state in (BatteryState.OFF, BatteryState.FAULT):
            flags.add(Flag.BATTERY_LIMITED)
        if self._is_not_following(image.t_mono_s, sample):
            flags.add(Flag.BATTERY_NOT_FOLLOWING)
        return flags

    def _is_not_following(self, now_s: float, sample: BatterySample) -> bool:
        """Under software following: measured against set for three planner periods."""
        battery = self.site.battery
        assert battery is not None
        if self.site.following is Following.DEVICE or self._envelope_state.reference_w is None:
            return False
        off_w = abs(sample.power_w - self._envelope_state.reference_w)
        if off_w <= max(NOT_FOLLOWING_FRAC * battery.discharge_w_max, 0.05 * abs(sample.reference_w)):
            self._unfollowed_since_s = None
        elif self._unfollowed_since_s is None:
            self._unfollowed_since_s = now_s
        since_s = self._unfollowed_since_s
        return since_s is not None and now_s - since_s > NOT_FOLLOWING_S * self.site.planner_period_s

    def _find_again(self, now_s: float, estimate: Estimate) -> bool:
        """Every command expired while nothing ran: the target goes on from what the meter says; True once it has."""
        assert self.tracker is not None and self._resumed_s is not None
        if estimate.source is not LoadSource.METER and now_s - self._resumed_s < ARRIVAL_S:
            return False
        self._resumed_s = None
        self.tracker.corrected(now_s, estimate.grid_w)
        self._envelope_state = replace(self._envelope_state, target_w=None, reference_w=None)
        return True

    def _take_limits(self, image: SiteImage, estimate: Estimate) -> InForce:
        found = self._limits.in_force(image)
        if self.tracker is None and self._is_known(image, estimate):
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
                self._responder.stop()
                self._planned_s = -math.inf  # what was held back may be given again
            return None
        usable = self._is_battery_usable(image)
        sample = image.battery.value if image.battery is not None and usable else None
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
            hard_w=self._room_w(image, estimate, mode, fleet, target_w),
        )
        if caps is not None:
            self.planning.caps = caps
            self._has_new_caps = True
            self._stagger.planned(image.t_mono_s, is_urgent=True)
        return self._responder.set_point_w(
            image.t_mono_s, target_w=target_w, estimate=estimate, sample=sample, bounds=bounds
        )

    def _has_commandable(self) -> bool:
        """Some GPU obeys; where nodes only report, caps would do nothing and the battery must not wait for them."""
        return self._read is not None and bool(np.isnan(self._read[1].acks.fixed_w).any())

    def _room_w(self, image: SiteImage, estimate: Estimate, mode: ModeState, fleet: Fleet, target_w: float) -> float:
        """What all GPUs may draw at their worst under `target_w`: the envelope's own sum."""
        site = self.site
        battery = self._envelope_battery(image, mode)
        unmanaged = unmanaged_w(fleet, other_w_max=site.other_load_w_max, gpu_peak_w=site.gpu_peak_w)
        return target_w - estimate.margin_w - unmanaged + (battery.supply_w if battery is not None else 0.0)

    def _envelope_battery(self, image: SiteImage, mode: ModeState) -> EnvelopeBattery | None:
        return envelope_battery(
            self.site.battery,
            image.battery.value if image.battery is not None and self._is_battery_usable(image) else None,
            is_trusted=Flag.BATTERY_NOT_FOLLOWING not in mode.flags,
            two_ticks_s=2.0 * self.site.tracker_period_s,
        )

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
        battery = image.battery
        usable = battery is not None and battery.quality is not Quality.MISSING
        return tracker.step(
            TrackerInput(
                now_s=now_s,
                estimate=estimate,
                battery=battery.value if battery is not None and usable else None,
                target_w=target_w,
                mode=mode.mode,
                watches=self.planning.watches(estimate),
                load_rise_w=self._load_rise_w,
                target_s=target_s,
                target_slope_w_per_s=slope,
                exempt_target_w=in_force.exempt_target_w,
                set_point_w=set_point_w,
            )
        )

    def _proposal(
        self, image: SiteImage, fleet: Fleet, track: TrackerOutput | None, state: ModeState, *, is_leader: bool
    ) -> SiteCommand:
        self._seq += 1
        mode = state.mode
        if track is None or not is_leader or mode is Mode.LOCKOUT or self.site.policy is Policy.NONE:
            return SiteCommand(self._epoch, self._seq, None, ())
        ttl_s = self.site.ttl_periods * self.site.planner_period_s
        battery = None
        if track.aim is not None:
            assert self.site.battery is not None
            expiry = track.aim.ramp_w_per_s
            battery = BatteryCommand(
                following=track.aim.following,
                reference_w=track.aim.reference_w,
                ramp_w_per_s=self.site.battery.ramp_w_per_s_max,
                expiry_w_per_s=expiry if math.isfinite(expiry) else NO_LIMIT_W_PER_S,
                epoch=self._epoch,
                seq=self._seq,
                ttl_s=ttl_s,
            )
        nodes = self._node_commands(image, fleet, state, ttl_s=ttl_s)
        return SiteCommand(self._epoch, self._seq, battery, nodes)

    def _node_commands(
        self, image: SiteImage, fleet: Fleet, state: ModeState, *, ttl_s: float
    ) -> tuple[NodeCommand, ...]:
        """What nodes are to hear now: each job's caps in its turn; release and fallback, everyone's at once."""
        is_ready = self.planning.caps.shape == (2, fleet.count) and fleet.count > 0
        if not is_ready or self.tracker is None:
            return ()
        caps, is_due, mode = self._asked(image, fleet, state), None, state.mode
        if mode not in (Mode.RELEASE, Mode.FALLBACK):
            assert self._read is not None
            acked = self._read[1].acks.caps
            found = self._stagger.due(image.t_mono_s, fleet, caps, self._envelope_state, acked)
            if found is None:
                return ()
            caps, is_due = found
        elif not self._has_new_caps:
            return ()
        interval = self.tracker.interval
        return node_commands(
            image.nodes,
            fleet,
            caps,
            epoch=self._epoch,
            seq=self._seq,
            ttl_s=ttl_s,
            slope_w_per_s=min(interval.slope_down_w_per_s, interval.slope_up_w_per_s),
            is_release=mode is Mode.RELEASE,
            is_due=is_due,
        )

    def _is_gone(self, margin: Margin) -> bool:
        """A target held at the edge of the set stands now a little inside, now a little outside of it."""
        battery = self.site.battery
        scale = self.site.registered_peak_w if margin.unit == "W" else battery.energy_j if battery else 0.0
        return margin.value < -EDGE_FRAC * scale

    def _may_raise(self, state: ModeState) -> bool:
        """What the envelope would refuse is not asked for: refusals count, and would keep it in doubt for ever."""
        return state.may_raise and Flag.CLOCK_STEPPED not in state.flags and not self._envelope_state.is_distrusted

    def _asked(self, image: SiteImage, fleet: Fleet, state: ModeState) -> FloatArray:
        """The plan's caps; where nothing may rise, none above what was last written; in FALLBACK, the way there."""
        caps, last = self.planning.caps, self._envelope_state
        if state.mode is not Mode.FALLBACK:
            self._glide.stop()
        if self._may_raise(state) or last.gpu_ids is not fleet.table.gpu_ids or last.caps.shape != caps.shape:
            return caps
        if state.mode is Mode.FALLBACK and self.tracker is not None:
            return self._glide.caps(
                image.t_mono_s,
                fleet.table,
                last=last.caps,
                fallback_mhz=np.repeat([r.value.fallback_clock_mhz for r in image.nodes], _gpu_counts(image)),
                slope_w_per_s=self.tracker.interval.slope_down_w_per_s,
            )
        lowest: FloatArray = np.minimum(caps, last.caps)
        return lowest

    # ------------------------------------------------------------------------------------------------ views

    def _known(self, image: SiteImage, decision: Decision, tracker: Tracker) -> Known:
        site = self.site
        sample = image.battery.value if image.battery is not None else None
        known = Known(
            now_s=image.t_mono_s,
            estimate=decision.estimate,
            fleet=decision.fleet,
            readings=decision.readings,
            interval=tracker.interval,
            bounds=tracker.battery_now(sample if self._is_battery_usable(image) else None),
            energy_j=sample.soc_frac * site.battery.energy_j
            if sample is not None and site.battery is not None
            else 0.0,
            target_w=tracker.g_ref_w,
            mode=decision.mode.mode,
            is_planner_doubted=Flag.ENVELOPE_BUSY in decision.mode.flags,
            gpu_w_max=self._gpu_w_max(image, decision, tracker),
        )
        self._plan_start_w = tracker.g_ref_w
        self._load_rise_w = self.planning.load_rise_w(known)
        return known

    def _gpu_w_max(self, image: SiteImage, decision: Decision, tracker: Tracker) -> float:
        """The envelope's own sum as it will stand when the next plan's caps arrive: a due ceiling comes nearer."""
        view = self._view(image, decision)
        supply_w = view.battery.supply_w if view.battery is not None else 0.0
        ceiling = ceiling_w(decision.in_force.limits, image.t_mono_s)
        ahead_s = 2.0 * self.site.planner_period_s  # until that plan is made, and its caps in every job's slot
        fall_w = tracker.interval.slope_down_w_per_s * ahead_s
        import_w = max(ceiling, view.import_w_max - fall_w) if math.isfinite(fall_w) else ceiling
        hard_w = import_w - view.margin_w - view.unmanaged_w_max + supply_w
        return max(hard_w, self._least_w(decision, tracker, image))

    def _least_w(self, decision: Decision, tracker: Tracker, image: SiteImage) -> float:
        """How low one plan may bring what all GPUs may draw at their worst: what is let go must be caught by someone.

        A ceiling that a lost battery no longer helps to keep is come down to inside the rows, as any other.
        """
        written = self._envelope_state
        if written.gpu_ids is not decision.fleet.table.gpu_ids:
            return -math.inf
        sample = image.battery.value if image.battery is not None and self._is_battery_usable(image) else None
        catch_w = max(0.0, tracker.battery_now(sample).charge_w_max + (sample.power_w if sample is not None else 0.0))
        # What is let go at once stays on the meter for T_eff, and the rows judge means of a second.
        dip_w = UNSEEN_FRAC * _smallest_row_w(decision.in_force.limits)
        catch_w = min(catch_w, dip_w * METERED_MEAN_S / max(decision.estimate.t_eff_s, 1e-3))
        low_w = float(tracker.interval.project([image.t_mono_s + self.site.planner_period_s])[0][0])
        room_w = max(0.0, decision.estimate.grid_w - low_w) / STEEPNESS + catch_w
        return worst_case_w(decision.fleet, written.caps) - room_w

    @staticmethod
    def _is_battery_usable(image: SiteImage) -> bool:
        return image.battery is not None and image.battery.quality is not Quality.MISSING

    def _view(self, image: SiteImage, decision: Decision) -> EnvelopeView:
        site, track, tracker = self.site, decision.track, self.tracker
        assert track is not None and tracker is not None
        limits = decision.in_force.limits
        is_emergency = decision.in_force.exempt_target_w is not None
        flags = decision.mode.flags
        interval, two_ticks_s = tracker.interval, 2.0 * site.tracker_period_s
        load_w = decision.estimate.load_w
        if track.aim is not None and track.aim.following is Following.SOFTWARE:
            # The load the follower chose to answer, as far as the battery reaches: the command means the target.
            load_w = track.aim.reference_w + track.g_ref_w
        enforced = {
            name
            for c in site.contingencies
            for name, stance in (("power", c.power), ("energy", c.energy))
            if stance is Stance.ENFORCE
        }
        step_w = interval.band_slope_w_per_s * two_ticks_s
        if Flag.RESUMED in flags:  # what moved while nothing ran is not taken back in one step
            step_w = min(step_w, RESUMED_FRAC_PER_S * _smallest_row_w(limits) * two_ticks_s)
        meter_s = site.meter.delay_s + site.meter.update_s if site.meter is not None else 0.0
        return EnvelopeView(
            image=image,
            fleet=decision.fleet.table,
            acks=decision.readings.acks,
            feeders=(),
            windows=() if is_emergency else window_checks(limits, self._rings, image.t_mono_s),
            target_step_w=step_w,
            import_w_max=max(ceiling_w(limits, image.t_mono_s), track.low_w),
            margin_w=decision.estimate.margin_w,
            unmanaged_w_max=unmanaged_w(decision.fleet, other_w_max=site.other_load_w_max, gpu_peak_w=site.gpu_peak_w),
            load_w=load_w,
            battery=self._envelope_battery(image, decision.mode),
            drop_safe_target_w=max(track.g_safe_w, tracker.g_ref_w),
            margins=tuple(
                m for m in track.margins if m.name in enforced and self._is_gone(m) and not track.is_riding_down
            ),
            mode=decision.mode.mode,
            is_leader=not flags & {Flag.LEADERSHIP_LOST},
            is_clock_sane=Flag.CLOCK_STEPPED not in flags,
            is_emergency=is_emergency,
            planner_period_s=site.planner_period_s,
            meter_age_s_max=METER_AGE_PERIODS * site.tracker_period_s + meter_s,
            max_export_w=site.max_export_w,
            violations_max=VIOLATIONS_MAX,
            state=self._envelope_state,
        )


def _gpu_counts(image: SiteImage) -> list[int]:
    return [len(reading.value.gpu_ids) for reading in image.nodes]


def _smallest_row_w(limits: Iterable[Limit]) -> float:
    """The tightest ramp or swing row; inf without one."""
    return min((row.max_w for row in limits if isinstance(row, RampLimit | SwingLimit)), default=math.inf)
