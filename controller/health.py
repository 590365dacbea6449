"""Health that shows only from one image to the next: clocks that stepped, cycles that are missing, quiet GPUs.

States what is found now, as flags; what they lead to is decided by the mode table. Pure: the images bring their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from controller.modes import Flag
from controller.plan.plan import Plan, PlanStatus
from controller.settings import Policy, SiteSettings
from controller.types import AgentState, NodeId, NodeReport, Quality, Reading, SiteImage

WALL_STEP_S = 0.5  # between two cycles; slewing by NTP moves 500 ppm
ABOVE_CAP_FRAC = 1.05  # FAULTS G7: of the power limit in force, for five periods
ABOVE_CAP_PERIODS = 5.0


@dataclass(frozen=True, slots=True)
class _Judged:
    """One report and what it says of its GPUs."""

    report: NodeReport
    is_hung: bool
    is_above: bool


class Health:
    """One per site; `step` once per cycle."""

    def __init__(self, site: SiteSettings, *, epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._wall_less_mono_s = math.nan
        self._last_s = math.nan
        self._boots: dict[NodeId, str] = {}
        self._judged: dict[NodeId, _Judged] = {}
        self._above_since_s: float | None = None
        self._is_first_report = True
        self._had_battery = False  # at the last image
        self._plan_s = math.nan
        self._is_plan_blind = False  # the plan in force was made without the battery's state

    def step(self, image: SiteImage, plan: Plan | None) -> set[Flag]:
        """Everything found at this image; `plan` is the one in force."""
        judged = [self._judge(reading.value) for reading in image.nodes]
        found = self._clocks(image) | self._gpus(image.nodes, judged) | self._restarted(image.nodes)
        if self._is_above_cap(image.t_mono_s, judged):
            found.add(Flag.POWER_ABOVE_CAP)
        if self._is_solver_wrong(plan):
            found.add(Flag.SOLVER_INVALID)
        self._had_battery = image.battery is None or image.battery.quality is not Quality.MISSING
        return found

    def _is_solver_wrong(self, plan: Plan | None) -> bool:
        """The program was asked and did not answer. Without a battery it is not asked, which has a row of its own."""
        if plan is None or self._site.policy is not Policy.MPC:
            return False
        if plan.t_s != self._plan_s:  # made after the last image was acted on
            self._plan_s, self._is_plan_blind = plan.t_s, not self._had_battery
        return plan.status in (PlanStatus.RULE, PlanStatus.HOLD) and not self._is_plan_blind

    def _clocks(self, image: SiteImage) -> set[Flag]:
        """A wall clock that moved against the monotonic one, and time that passed without a cycle."""
        apart_s, gap_s = image.wall_utc_s - image.t_mono_s, image.t_mono_s - self._last_s
        stepped = abs(apart_s - self._wall_less_mono_s) > WALL_STEP_S
        self._wall_less_mono_s, self._last_s = apart_s, image.t_mono_s
        found = {Flag.CLOCK_STEPPED} if stepped else set()
        if not image.is_clock_synced:
            found.add(Flag.CLOCK_UNSYNCED)
        if gap_s > self._site.ttl_periods * self._site.planner_period_s:
            found.add(Flag.RESUMED)
        return found

    def _judge(self, report: NodeReport) -> _Judged:
        """What the report says of its GPUs; nodes report at a fraction of our rate, and no report is asked twice."""
        known = self._judged.get(report.node_id)
        if known is None or known.report is not report:
            is_hung = bool((report.quality > Quality.STALE).any())
            is_above = bool((report.power_w > ABOVE_CAP_FRAC * report.power_limit_w).any())
            known = self._judged[report.node_id] = _Judged(report, is_hung, is_above)
        return known

    def _gpus(self, nodes: Iterable[Reading[NodeReport]], judged: Iterable[_Judged]) -> set[Flag]:
        found: set[Flag] = set()
        for reading, known in zip(nodes, judged, strict=True):
            report = reading.value
            if reading.quality is not Quality.MISSING and known.is_hung:
                found.add(Flag.GPU_HUNG)
            if self._boots.setdefault(report.node_id, report.boot_id) != report.boot_id:
                self._boots[report.node_id] = report.boot_id
                found.add(Flag.GPU_RESET)
        return found

    def _restarted(self, nodes: Iterable[Reading[NodeReport]]) -> set[Flag]:
        """Nodes that obeyed somebody before our first command: this controller takes over."""
        reports = [reading.value for reading in nodes]
        if not self._is_first_report or not reports:
            return set()
        self._is_first_report = False
        led = (AgentState.ARMED, AgentState.FALLBACK)
        was_led = any(r.acked_epoch not in (0, self._epoch) and r.state in led for r in reports)
        return {Flag.RESTARTED} if was_led else set()

    def _is_above_cap(self, now_s: float, judged: Iterable[_Judged]) -> bool:
        """Some GPU draws more than its power limit lets it, for longer than an averaging window explains."""
        if not any(known.is_above for known in judged):
            self._above_since_s = None
            return False
        if self._above_since_s is None:
            self._above_since_s = now_s
        return now_s - self._above_since_s >= ABOVE_CAP_PERIODS * self._site.planner_period_s
