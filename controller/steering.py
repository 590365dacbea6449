"""The grid target's way through the life of a site: begun, bound by limits, waived, led by plans, found after a pause.

Holds the tracker from the moment on that control may begin, and the metered history by which the envelope judges
windows. What a tick decides is the tracker's business; here it is told what the rest of the core knows. Pure.
"""

from __future__ import annotations

import math

from controller.arming import ARRIVAL_S
from controller.estimate import Estimate, LoadSource
from controller.limits import InForce
from controller.modes import Flag
from controller.plan.plan import Plan
from controller.settings import SiteSettings
from controller.situation import Situation
from controller.tracker import Tracker
from controller.tracker_io import TrackerInput, TrackerOutput, Watch
from controller.types import BatterySample, Mode
from controller.view import battery_sample, rings_for


class Steering:
    """One site's; `bind` in every cycle, `begin` once, `step` while nothing `is_lost`, `follow` with every plan."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self.tracker: Tracker | None = None
        self.rings = rings_for(site.contract.limits)
        self._in_force: InForce | None = None
        self._exempt_until_s = -math.inf
        self._lost_s: float | None = None  # since when the target waits for a first sample after a pause
        self._plan: Plan | None = None
        self._plan_start_w = 0.0  # the target when it was made

    def begin(self, now_s: float, estimate: Estimate) -> None:
        """Control begins where the site stands."""
        start_w = estimate.pcc_w if estimate.pcc_w is not None else estimate.load_w
        self.tracker, self._in_force = Tracker(self._site, start_s=now_s, start_w=start_w), None

    def bind(self, now_s: float, found: InForce) -> None:
        """The limits that hold from now on."""
        is_new, self._in_force = found is not self._in_force, found
        if is_new:
            self.rings.cover(limit.mean_s for limit in found.limits)
        if self.tracker is None:
            return
        if is_new:
            self.tracker.set_limits(found.limits, now_s)
        if found.exempt_until_s != self._exempt_until_s:
            self._waive(self.tracker, now_s, found)

    def _waive(self, tracker: Tracker, now_s: float, found: InForce) -> None:
        """Ramp rows end with an emergency's beginning and judge again what happens from its end on."""
        self._exempt_until_s = found.exempt_until_s
        tracker.waive_ramps(max(found.exempt_until_s, now_s), with_bands=True)
        if found.exempt_target_w is None:
            self.rings = rings_for(found.limits)
            self.rings.cover(limit.mean_s for limit in found.limits)

    # ------------------------------------------------------------------------------------------------ after a pause

    def lose(self, now_s: float) -> None:
        """Every command expired while nothing ran: where the target is, the meter will say."""
        self._lost_s = now_s

    @property
    def is_lost(self) -> bool:
        """The target waits to be found."""
        return self._lost_s is not None

    def find(self, now_s: float, estimate: Estimate) -> bool:
        """The target goes on from what the meter says; True once it has."""
        if self.tracker is None or self._lost_s is None:
            return False
        if estimate.source is not LoadSource.METER and now_s - self._lost_s < ARRIVAL_S:
            return False
        self._lost_s = None
        self.tracker.corrected(now_s, estimate.grid_w)
        return True

    # ------------------------------------------------------------------------------------------------ while it is held

    def follow(self, plan: Plan) -> None:
        """From now on the target goes where `plan` wants it."""
        assert self.tracker is not None
        self._plan, self._plan_start_w = plan, self.tracker.g_ref_w

    def step(
        self,
        now: Situation,
        *,
        watches: tuple[Watch, ...],
        load_rise_w: float,
        set_point_w: float | None,
        is_unproven: bool,
    ) -> TrackerOutput | None:
        """One tick of the tracker; None before control began. `is_unproven`: the battery stands still until it is."""
        tracker, estimate, flags = self.tracker, now.estimate, now.mode.flags
        if tracker is None:
            return None
        if estimate.is_fresh:
            self.rings.add(estimate.t_s, estimate.grid_w)
        target_s, target_w, slope = self._course(now.now_s, tracker.g_ref_w)
        if not now.may_raise:
            target_w, slope = min(target_w, tracker.g_ref_w), min(slope, 0.0)
        return tracker.step(
            TrackerInput(
                now_s=now.now_s,
                estimate=estimate,
                battery=battery_sample(now.image),
                target_w=target_w,
                mode=now.mode.mode,
                watches=watches,
                load_rise_w=load_rise_w,
                target_s=target_s,
                target_slope_w_per_s=slope,
                exempt_target_w=now.in_force.exempt_target_w,
                set_point_w=set_point_w,
                may_raise=now.mode.mode > Mode.HOLD or now.may_raise,
                is_disobeyed=Flag.BATTERY_NOT_FOLLOWING in flags,
                is_unproven=is_unproven,
            )
        )

    def _course(self, now_s: float, held_w: float) -> tuple[float, float, float]:
        """Where the plan's first step begins, s and W, and its slope; a plan that is no number holds the target."""
        plan = self._plan
        if plan is not None:
            slope = (float(plan.target_w[0]) - self._plan_start_w) / float(plan.offset_s[0])
            if math.isfinite(slope):
                return plan.t_s, self._plan_start_w, slope
        return now_s, held_w, 0.0


def obeying_battery(now: Situation) -> BatterySample | None:
    """The battery's newest word; None while it is silent, or does not do what it is told."""
    return battery_sample(now.image) if Flag.BATTERY_NOT_FOLLOWING not in now.mode.flags else None
