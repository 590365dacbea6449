"""Health that shows only from one image to the next: clocks that stepped, cycles that are missing, quiet GPUs.

States what is found now, as flags; what they lead to is decided by the mode table. Pure: the images bring their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from controller.modes import Flag
from controller.plan.plan import Plan, PlanStatus
from controller.settings import Policy, SiteSettings
from controller.types import AgentState, NodeId, NodeReport, Quality, Reading, SiteImage

WALL_STEP_S = 0.5  # between two cycles; slewing by NTP moves 500 ppm
ABOVE_CAP_FRAC = 1.05  # FAULTS G7: of the power limit in force, for five periods
ABOVE_CAP_PERIODS = 5.0


class Health:
    """One per site; `step` once per cycle."""

    def __init__(self, site: SiteSettings, *, epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._wall_less_mono_s = math.nan
        self._last_s = math.nan
        self._boots: dict[NodeId, str] = {}
        self._above_since_s: float | None = None
        self._is_first_report = True
        self._had_battery = False  # at the last image
        self._plan_s = math.nan
        self._is_plan_blind = False  # the plan in force was made without the battery's state

    def step(self, image: SiteImage, plan: Plan | None) -> set[Flag]:
        """Everything found at this image; `plan` is the one in force."""
        found = self._clocks(image) | self._gpus(image.nodes) | self._restarted(image.nodes)
        if self._is_above_cap(image):
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
        if gap_s > self._site.ttl_periods * self._site.planner_period_s:
            found.add(Flag.RESUMED)
        return found

    def _gpus(self, nodes: Iterable[Reading[NodeReport]]) -> set[Flag]:
        found: set[Flag] = set()
        for reading in nodes:
            report = reading.value
            if reading.quality is not Quality.MISSING and bool((report.quality > Quality.STALE).any()):
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

    def _is_above_cap(self, image: SiteImage) -> bool:
        """Some GPU draws more than its power limit lets it, for longer than an averaging window explains."""
        is_above = any(bool((r.value.power_w > ABOVE_CAP_FRAC * r.value.power_limit_w).any()) for r in image.nodes)
        if not is_above:
            self._above_since_s = None
            return False
        if self._above_since_s is None:
            self._above_since_s = image.t_mono_s
        return image.t_mono_s - self._above_since_s >= ABOVE_CAP_PERIODS * self._site.planner_period_s
