"""What is wrong with the site at this image, as flags: meter, nodes, GPUs, battery, grid link, clocks, planner.

States what is found now; what it leads to is decided by the mode table alone. Remembers what shows only from one image
to the next: clocks that stepped, cycles that are missing, quiet GPUs. Pure: the images bring their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from controller.estimate import Estimate, LoadSource
from controller.fleet import is_set_alike
from controller.follow_watch import FollowWatch, HoldWatch
from controller.modes import Flag
from controller.plan.plan import Plan, PlanStatus
from controller.settings import Policy, SiteSettings
from controller.types import (
    WORST_READ,
    AgentState,
    BatteryState,
    EnvelopeState,
    Following,
    Mode,
    NodeFault,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    RefusalReason,
    SiteFault,
    SiteImage,
    Trouble,
    frozen,
)

WALL_STEP_S = 0.5  # between two cycles; slewing by NTP moves 500 ppm
STALL_PERIODS = 1.0
LED_BY_OTHER = frozenset({Flag.NODE_OBEYS_OTHER})
DEAD_S_MAX = 0.3  # of a battery that follows load by our orders: 14 MW that leave within 1.6 s read 5.3 of 5 with 0.4 s
# Rows Q of the fault catalogue. What is not named here is an issuer's own affair: it is answered, and audited.
SIGNAL_FLAGS = {
    RefusalReason.DUPLICATE: Flag.SIGNAL_DUPLICATE,
    RefusalReason.OUT_OF_ORDER: Flag.SIGNAL_OUT_OF_ORDER,
    RefusalReason.OVERSIZED: Flag.SIGNAL_OVERSIZED,
    RefusalReason.ENVELOPE: Flag.SIGNAL_MALFORMED,
    RefusalReason.SCHEMA: Flag.SIGNAL_MALFORMED,
    RefusalReason.SIGNATURE: Flag.SIGNAL_FORGED,
    RefusalReason.UNKNOWN_KEY: Flag.SIGNAL_FORGED,
    RefusalReason.ALGORITHM: Flag.SIGNAL_FORGED,
    RefusalReason.SOURCE: Flag.SIGNAL_FORGED,
    RefusalReason.STALE_RAISE: Flag.SIGNAL_REPLAYED,
    RefusalReason.UNTIMED_RAISE: Flag.SIGNAL_REPLAYED,
    RefusalReason.FROM_FUTURE: Flag.SIGNAL_REPLAYED,
    RefusalReason.EXPIRED: Flag.SIGNAL_STALE,
    RefusalReason.RANGE: Flag.SIGNAL_ABSURD,
    RefusalReason.FLOOD: Flag.SIGNAL_FLOOD,
}


@frozen
class HealthInput:
    """What the core knows beside the image: the present estimate, and what the last cycle left."""

    estimate: Estimate
    is_leader: bool
    is_cap_clamped: bool  # by the envelope, in the last proposal
    is_grid_silent: bool  # the fallback contract is in force
    is_model_wrong: bool  # GPU power strays from the curves
    plan: Plan | None
    written: EnvelopeState
    is_bank_disobeying: bool = False  # the load bank does not draw what it was told
    is_plan_blind: bool = False  # the plan was made without a battery
    is_ups_low: bool = False  # GPUs are capped for a UPS on its battery
    is_above_cap: bool = False  # some GPU has been drawing more than its power limit lets it
    locked_out: frozenset[str] = frozenset()  # devices that refused every order for too long


@frozen
class _Judged:
    """One report and what it says of its GPUs."""

    report: NodeReport
    flags: frozenset[Flag]  # while the node is heard
    is_taken: bool  # most of its GPUs are left to another tool


class Health:
    """One per site; `step` once per cycle."""

    def __init__(self, site: SiteSettings, *, epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._wall_less_mono_s = math.nan
        self._last_s = math.nan
        self._boots: dict[NodeId, str] = {}
        self._judged: dict[NodeId, _Judged] = {}
        self._is_first_report = True
        self._overruns = 0
        kind = FollowWatch if site.following is Following.SOFTWARE else HoldWatch
        self._watch = kind(site.battery, period_s=site.planner_period_s) if site.battery is not None else None

    def step(self, image: SiteImage, given: HealthInput) -> frozenset[Flag]:
        """Everything found at this image."""
        judged = [self._judge(reading.value) for reading in image.nodes]
        found = self._clocks(image) | self._gpus(image.nodes, judged) | self._restarted(image.nodes)
        found |= self._battery(image, given) | _load_bank(image, given)
        found |= self._power(image, given.estimate) | self._planner(given) | _nodes(image.nodes, judged)
        if given.is_above_cap:
            found.add(Flag.POWER_ABOVE_CAP)
        if given.is_cap_clamped:
            found.add(Flag.CAP_CLAMPED)
        if not given.is_leader:
            found.add(Flag.LEADERSHIP_LOST)
        if not image.is_grid_link_up:
            found.add(Flag.GRID_LINK_LOST)
        if given.is_grid_silent:
            found.add(Flag.GRID_SILENT)
        found |= {SIGNAL_FLAGS[reason] for reason in image.signal_alarms if reason in SIGNAL_FLAGS}
        if image.is_raise_held:
            found.add(Flag.SIGNAL_FLAPPING)
        found |= _troubles(image) | _operator(image) | _ups(image)
        if given.is_ups_low:
            found.add(Flag.UPS_LOW)
        return frozenset(found)

    @staticmethod
    def _power(image: SiteImage, estimate: Estimate) -> set[Flag]:
        """Where the site's power comes from, and what the estimator found against its meter."""
        found = {Flag(flag.value) for flag in estimate.flags}
        if estimate.late_nodes:
            found.add(Flag.NODE_LATE)
        is_lost = estimate.source is LoadSource.LOST
        if is_lost or (image.pcc is None and estimate.source is LoadSource.HELD):
            found.add(Flag.IMAGE_LOST)
        if image.pcc is not None and (is_lost or estimate.source is LoadSource.NODES):
            found.add(Flag.METER_MISSING)
        return found

    def _planner(self, given: HealthInput) -> set[Flag]:
        found: set[Flag] = set()
        if self._is_solver_wrong(given):
            found.add(Flag.SOLVER_INVALID)
        if given.is_model_wrong:
            found.add(Flag.MODEL_MISMATCH)
        if given.written.is_distrusted:
            found.add(Flag.ENVELOPE_BUSY)
        return found

    def _battery(self, image: SiteImage, given: HealthInput) -> set[Flag]:
        if image.battery is None:
            return set()
        sample, found = image.battery.value, set()
        if given.estimate.is_battery_misread:
            found.add(Flag.BATTERY_MISREAD)
        if image.battery.quality is Quality.MISSING:
            found.add(Flag.BATTERY_LOST)
        elif "battery" not in given.locked_out and not sample.takes_orders:
            found.add(Flag.BATTERY_LIMITED)
        if "battery" in given.locked_out:
            found.add(Flag.BATTERY_LOCKED_OUT)
        late = {Flag.BATTERY_LATE} if given.estimate.dead_s >= DEAD_S_MAX else set()
        if self._watch is None:
            return found | late
        asked_w, estimate = given.written.reference_w, given.estimate
        import_w = estimate.pcc_w if estimate.quality is Quality.GOOD else None
        if found or asked_w is None:
            self._watch.forget()
        elif self._watch.is_off(image.t_mono_s, sample, asked_w=asked_w, import_w=import_w):
            found.add(Flag.BATTERY_NOT_FOLLOWING)
        return found | late

    def _is_solver_wrong(self, given: HealthInput) -> bool:
        """The program was asked and did not answer. Without a battery it is not asked, which has a row of its own."""
        if given.plan is None or self._site.policy is not Policy.MPC:
            return False
        has_battery = self._site.battery is None or not given.is_plan_blind
        return given.plan.status in (PlanStatus.RULE, PlanStatus.HOLD) and has_battery

    def _clocks(self, image: SiteImage) -> set[Flag]:
        """A wall clock that moved against the monotonic one, ticks that were skipped, time that passed without any."""
        apart_s, gap_s = image.wall_utc_s - image.t_mono_s, image.t_mono_s - self._last_s
        stepped = abs(apart_s - self._wall_less_mono_s) > WALL_STEP_S
        self._wall_less_mono_s, self._last_s = apart_s, image.t_mono_s
        found = {Flag.CLOCK_STEPPED} if stepped else set()
        if not image.is_clock_synced:
            found.add(Flag.CLOCK_UNSYNCED)
        if gap_s > self._site.ttl_periods * self._site.planner_period_s:
            found.add(Flag.RESUMED)
        skipped, self._overruns = image.overrun_count - self._overruns, image.overrun_count
        if skipped > STALL_PERIODS * self._site.planner_period_s / self._site.tracker_period_s:
            found.add(Flag.LOOP_STALLED)
        return found

    def _judge(self, report: NodeReport) -> _Judged:
        """What the report says of its GPUs; nodes report at a fraction of our rate, and no report is asked twice."""
        known = self._judged.get(report.node_id)
        if known is None or known.report is not report:
            is_alike = known is not None and is_set_alike(report, known.report) and report.faults == known.report.faults
            flags = known.flags - LED_BY_OTHER if known is not None and is_alike else _told_by(report)
            if report.acked_epoch > self._epoch:
                flags |= LED_BY_OTHER
            is_taken = NodeFault.FOREIGN_WRITER_WON in report.faults
            known = self._judged[report.node_id] = _Judged(report, flags, is_taken)
        return known

    def _gpus(self, nodes: Iterable[Reading[NodeReport]], judged: Iterable[_Judged]) -> set[Flag]:
        found: set[Flag] = set()
        for reading, known in zip(nodes, judged, strict=True):
            report = reading.value
            if reading.quality is not Quality.MISSING:
                found |= known.flags
            if self._boots.setdefault(report.node_id, report.boot_id) != report.boot_id:
                self._boots[report.node_id] = report.boot_id
                found.add(Flag.GPU_RESET)
        return found

    def _restarted(self, nodes: Iterable[Reading[NodeReport]]) -> set[Flag]:
        """Nodes that obeyed somebody before our first command: this controller takes over."""
        if not self._is_first_report:
            return set()
        reports = [reading.value for reading in nodes]
        if not reports:
            return set()
        self._is_first_report = False
        led = (AgentState.ARMED, AgentState.FALLBACK)
        was_led = any(r.acked_epoch not in (0, self._epoch) and r.state in led for r in reports)
        return {Flag.RESTARTED} if was_led else set()


def _ups(image: SiteImage) -> set[Flag]:
    """What feeds the load behind UPSes; they are only read."""
    heard = [reading.value for reading in image.ups.values() if reading.quality is not Quality.MISSING]
    found = {Flag.UPS_ON_BATTERY} if any(sample.is_on_battery for sample in heard) else set()
    return found | ({Flag.UPS_ON_BYPASS} if any(sample.is_on_bypass for sample in heard) else set())


def _load_bank(image: SiteImage, given: HealthInput) -> set[Flag]:
    """The bank as it reports itself, and whether it draws what it is told."""
    if image.load_bank is None:
        return set()
    found = {Flag.LOAD_BANK_LOCKED_OUT} if "load_bank" in given.locked_out else set()
    if image.load_bank.quality is Quality.MISSING:
        return found | {Flag.LOAD_BANK_LOST}
    sample = image.load_bank.value
    if not found and not sample.takes_orders:
        found.add(Flag.LOAD_BANK_LIMITED)
    if given.is_bank_disobeying:
        found.add(Flag.LOAD_BANK_NOT_OBEYING)
    return found


def _told_by(report: NodeReport) -> frozenset[Flag]:
    """What one node says of its GPUs, in so many words or by what they do."""
    told = set(report.faults)
    found = {Flag(fault.value) for fault in told - {NodeFault.FOREIGN_WRITER_WON}}
    if bool((report.quality > WORST_READ).any()) and not told & {NodeFault.GPU_HUNG, NodeFault.GPU_LOST}:
        found.add(Flag.GPU_HUNG)
    if report.state is AgentState.MONITOR_ONLY:
        found.add(Flag.GPU_PERMISSION)
    is_explained = told & {NodeFault.GPU_PERMISSION, NodeFault.FOREIGN_WRITER, NodeFault.GPU_LOST, NodeFault.GPU_HUNG}
    if report.state is AgentState.ARMED and not bool(report.is_controllable.all()) and not is_explained:
        found.add(Flag.GPU_IGNORES_CAPS)
    return frozenset(found)


def _nodes(nodes: tuple[Reading[NodeReport], ...], judged: Sequence[_Judged]) -> set[Flag]:
    found: set[Flag] = set()
    lost = sum(r.quality is Quality.MISSING for r in nodes)
    if lost:
        found.add(Flag.NODES_ALL_LOST if lost == len(nodes) else Flag.NODE_LOST)
    if any(known.is_taken for known in judged):
        gpus = [len(known.report.gpu_ids) * known.report.stands_for for known in judged]
        taken = sum(count for count, known in zip(gpus, judged, strict=True) if known.is_taken)
        if 2 * taken > sum(gpus):
            found.add(Flag.FOREIGN_WRITER_WON)
    return found


def _troubles(image: SiteImage) -> set[Flag]:
    """What the shell found. A battery in local control, or with a fault of its own, refuses: it says so by itself."""
    if not image.troubles:
        return set()
    battery = image.battery.value if image.battery is not None else None
    is_known = battery is not None and (not battery.is_remote or battery.state is BatteryState.FAULT)
    refusal = Trouble(SiteFault.DEVICE_REFUSES, "battery")
    return {Flag(trouble.fault.value) for trouble in image.troubles if not (is_known and trouble == refusal)}


OPERATOR_FLAGS = {
    Mode.RELEASE: Flag.OPERATOR_RELEASE,
    Mode.FALLBACK: Flag.OPERATOR_FALLBACK,
    Mode.LOCKOUT: Flag.OPERATOR_LOCKOUT,
}


def _operator(image: SiteImage) -> set[Flag]:
    wish = image.operator.mode if image.operator is not None else None
    return {OPERATOR_FLAGS[wish]} if wish is not None else set()
