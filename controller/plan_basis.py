"""What the next plan is made from, and what of it the cycles until the one after go by.

Joins the envelope's view of ceilings, the battery that obeys and the tracker's interval into one `Known`. Pure.
"""

from __future__ import annotations

import math

from controller import room
from controller.modes import Flag
from controller.planning import Known
from controller.reserve import NO_BATTERY
from controller.settings import SiteSettings
from controller.situation import Situation
from controller.steering import obeying_battery
from controller.tracker import Tracker
from controller.types import EnvelopeView
from controller.unheld import Drift


class PlanBasis:
    """One site's; all but `known` is as of the last plan."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._margin = room.HeldMargin()
        self.is_blind = False  # made without a battery
        self.is_stepped = False  # says where to, and not how far at once
        self.gpu_w_max = math.inf  # what all GPUs may draw at their worst
        self.fall_w = math.inf  # how far they may go lower at once
        self.load_rise_w = site.gpu_peak_w + site.other_load_w_max  # what load may jump to under the caps in force

    def known(self, now: Situation, *, view: EnvelopeView, tracker: Tracker, drift: Drift | None) -> Known:
        """For a plan at this instant. `view` has the envelope's books as they stand; `drift` is as of this cycle."""
        site, sample = self._site, obeying_battery(now)
        bounds = tracker.battery_now(sample)
        self.is_blind = bounds is NO_BATTERY
        margin_w = self._margin.step(now.now_s, view.margin_w)
        low_w = float(tracker.interval.project([now.now_s + site.planner_period_s])[0][0])
        caught_w, target_w = room.caught_w_max(now, tracker), tracker.g_ref_w
        self.fall_w = room.fall_w_max(now, view=view, low_w=low_w, caught_w=caught_w)
        let_go_w = room.let_go_w_max(now, target_w=target_w, low_w=low_w, caught_w=caught_w)
        # Where nobody holds power a plan says where to, and each tick how far: what rows leave is another at each.
        self.is_stepped = drift is not None
        fall_w = math.inf if self.is_stepped else self.fall_w
        bounds_w = room.under_ceilings_w(site, view, now, tracker, margin_w=margin_w, fall_w=fall_w)
        self.gpu_w_max, told_w_max = bounds_w
        energy_j = 0.0  # what a battery that is lost or disobeys holds is nobody's to bring back to its middle
        if sample is not None and site.battery is not None and not self.is_blind:
            energy_j = sample.soc_frac * site.battery.energy_j
        known = Known(
            now_s=now.now_s,
            estimate=now.estimate,
            fleet=now.fleet,
            readings=now.readings,
            interval=tracker.interval,
            bounds=bounds,
            energy_j=energy_j,
            target_w=target_w,
            mode=now.mode.mode,
            is_planner_doubted=Flag.ENVELOPE_BUSY in now.mode.flags,
            gpu_w_max=self.gpu_w_max,
            told_w_max=told_w_max,
            let_go_w=math.inf if self.is_stepped else let_go_w,
            drift=drift,
            feeders=view.feeders,
        )
        self.load_rise_w = known.load_rise_w()
        return known
