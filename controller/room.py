"""How much all GPUs together may draw at their worst: under a ceiling, and how fast that may come down.

The envelope counts the worst case of every cap against the ceiling that is due. The plan is given the same sum, as it
will stand when its caps arrive, and no less than what may be let go at once without breaking a row. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from controller.allocate import cap_fall_w, worst_case_w
from controller.allowances import UNSEEN_FRAC
from controller.fleet import Fleet
from controller.glide import STEEPNESS
from controller.settings import SiteSettings
from controller.situation import Situation
from controller.tracker import Tracker
from controller.types import EnvelopeState, EnvelopeView, FloatArray, Limit, RampLimit, SwingLimit
from controller.view import (
    STEP_SPARE_FRAC,
    ballast_w_max,
    battery_sample,
    ceiling_w,
    envelope_battery,
    unmanaged_w,
)

MARGIN_MEMORY_S = 60.0
BISECTIONS = 12  # of a share of all falls: what is left is a clock step at most


class HeldMargin:
    """The largest uncertainty of the last one to two minutes, W.

    Where power is known from node reports alone it is a share of the load, which ripples: caps planned for its present
    value would be too high a moment later, and be written again every second.
    """

    def __init__(self) -> None:
        self._before_w = self._top_w = 0.0
        self._since_s = -math.inf

    def step(self, now_s: float, margin_w: float) -> float:
        """With the margin of `now_s` taken in."""
        if now_s - self._since_s >= MARGIN_MEMORY_S:
            self._before_w, self._top_w, self._since_s = self._top_w, margin_w, now_s
        self._top_w = max(self._top_w, margin_w)
        return max(self._before_w, self._top_w)


def under_target_w(site: SiteSettings, now: Situation, *, target_w: float) -> float:
    """What all GPUs may draw at their worst while the site imports no more than `target_w`."""
    battery = envelope_battery(site, now.image, now.mode.flags)
    unmanaged = unmanaged_w(now.fleet, other_w_max=site.other_load_w_max, gpu_peak_w=site.gpu_peak_w)
    unmanaged += ballast_w_max(site, now.image, written_w=0.0)
    return target_w - now.estimate.margin_w - unmanaged + (battery.supply_w if battery is not None else 0.0)


def under_ceilings_w(
    site: SiteSettings, view: EnvelopeView, now: Situation, tracker: Tracker, *, margin_w: float, fall_w: float
) -> tuple[float, float]:
    """The same under every ceiling, as it will stand when the next plan's caps arrive: a due ceiling comes nearer.

    First of all GPUs as if all took their caps; then of those that do, beside what the others draw whatever they are
    told. `margin_w` is the uncertainty of the site's power to plan with, no less than the view's; `fall_w` what one
    plan may take off the worst case.
    """
    image = view.image
    supply_w = view.battery.supply_w if view.battery is not None else 0.0
    ceiling = ceiling_w(now.in_force.limits, image.t_mono_s)
    ahead_s = 2.0 * site.planner_period_s  # until that plan is made, and its caps in every job's slot
    nearer_w = tracker.interval.slope_down_w_per_s * ahead_s
    import_w = max(ceiling, view.import_w_max - nearer_w) if math.isfinite(nearer_w) else ceiling
    hard_w = import_w - margin_w - view.unmanaged_w_max + supply_w
    written, table, fixed_w = view.state, now.fleet.table, now.readings.deaf_w
    told = np.isnan(fixed_w)
    beside_w = float((np.where(told, 0.0, fixed_w) * table.stands_for).sum())
    if written.gpu_ids is not table.gpu_ids:
        return hard_w, hard_w - beside_w
    told_w = worst_case_w(now.fleet, written.caps, fixed_w=np.where(told, np.nan, 0.0))
    return (
        max(hard_w, worst_case_w(now.fleet, written.caps, fixed_w=np.full_like(fixed_w, np.nan)) - fall_w),
        max(hard_w - beside_w, told_w - fall_w),
    )


def fall_w_max(site: SiteSettings, now: Situation, tracker: Tracker, *, view: EnvelopeView) -> float:
    """How far one plan may lower what all GPUs may draw at their worst: what is let go must be caught by someone.

    A ceiling that a lost battery no longer helps to keep is come down to inside the rows, as any other. What goes down
    by itself, or by the target in this cycle, is in the view and not there twice.
    """
    if not view.is_held:  # nobody tracks a target, and what would be kept for that is the rows'
        return max(0.0, now.estimate.grid_w - rows_low_w(now.in_force.limits, tracker) - view.sag_w) / STEEPNESS
    low_w = float(tracker.interval.project([now.now_s + site.planner_period_s])[0][0])
    left_w = now.estimate.grid_w - low_w - view.sag_w
    sample = battery_sample(now.image)
    catch_w = max(0.0, tracker.battery_now(sample).charge_w_max + (sample.power_w if sample is not None else 0.0))
    return max(0.0, left_w) / STEEPNESS + min(catch_w, dip_w_max(now.in_force.limits, t_eff_s=now.estimate.t_eff_s))


def rows_low_w(limits: Iterable[Limit], tracker: Tracker) -> float:
    """How far down power may step by the rows alone, but for their last hundredth; -inf without a row."""
    spent_w = tracker.interval.spent_down_w()
    rows = (row for row in limits if isinstance(row, RampLimit | SwingLimit) and row.id in spent_w)
    left_w = ((1.0 - STEP_SPARE_FRAC) * row.max_w - spent_w[row.id] for row in rows)
    return tracker.g_ref_w - min(left_w, default=math.inf)


def dip_w_max(limits: Iterable[Limit], *, t_eff_s: float) -> float:
    """What may be let go at once beside what rows leave: it is on the meter for T_eff, and each row judges its mean."""
    rows = (row for row in limits if isinstance(row, RampLimit | SwingLimit))
    return min((UNSEEN_FRAC * row.max_w * max(1.0, row.mean_s / max(t_eff_s, 1e-3)) for row in rows), default=math.inf)


def softened(fleet: Fleet, caps: FloatArray, written: EnvelopeState, *, fall_w: float) -> FloatArray:
    """`caps` (2, n) with all falls cut to one share, so that they come to `fall_w`, to the next step; inf is free.

    What falls short of it by a step the envelope would take off as well, and doubt the planner for it.
    """
    table, last = fleet.table, written.caps
    if written.gpu_ids is not table.gpu_ids or caps.shape != last.shape:
        return caps
    most = np.stack((table.cap_max[0], table.peak_w))
    # Where a limit binds and must go lower it goes first, for the worst case is there. Then the clock follows.
    binds = (last[1] < table.peak_w) & (caps[1] < last[1])
    caps = np.stack((np.where(binds, np.maximum(caps[0], last[0]), caps[0]), caps[1]))
    before, after = np.minimum(last, most), np.minimum(np.minimum(caps, last), most)
    if cap_fall_w(fleet, before, after) <= fall_w:
        return caps
    share, step = 0.0, 0.5
    for _ in range(BISECTIONS):
        if cap_fall_w(fleet, before, before + (share + step) * (after - before)) <= fall_w:
            share += step
        step *= 0.5
    found = np.minimum(np.floor(before + share * (after - before)), last)
    return np.where(caps < last, np.where(found < most, found, last), caps)
