"""How much all GPUs together may draw at their worst: under a ceiling, and how fast that may come down.

The envelope counts the worst case of every cap against the ceiling that is due. The plan is given the same sum, as it
will stand when its caps arrive, and no less than what may be let go at once without breaking a row. Where nobody holds
power a plan says where to, and each tick how far: by the windows that the envelope is shown. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from controller.allocate import cap_fall_w, draw_rise_w, drawn_w, worst_case_w
from controller.allowances import UNSEEN_FRAC
from controller.fleet import Fleet
from controller.glide import STEEPNESS
from controller.settings import SiteSettings
from controller.situation import Situation
from controller.tracker import Tracker
from controller.types import EnvelopeView, FloatArray, Limit, RampLimit, SwingLimit, WindowCheck, frozen
from controller.unheld import Drift
from controller.view import ballast_w_max, battery_sample, ceiling_w, envelope_battery, unmanaged_w

MARGIN_MEMORY_S = 60.0
BISECTIONS = 24  # of a share of all steps: what is left of the whole is a watt
ROUNDING = 1e-6  # of a second of a window: one that is reached to rounding is reached


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


def fall_w_max(now: Situation, *, view: EnvelopeView, low_w: float, caught_w: float) -> float:
    """How far one plan may lower what all GPUs may draw at their worst: what is let go must be caught by the battery.

    `low_w` is the lowest target that rows leave when the next plan is made, `caught_w` what the battery takes over.
    What goes down by itself, or by the target in this cycle, is in the view and not there twice.
    """
    return max(0.0, now.estimate.grid_w - view.sag_w - low_w) / STEEPNESS + caught_w


def let_go_w_max(now: Situation, *, target_w: float, low_w: float, caught_w: float) -> float:
    """How much of the load a plan's clocks may let go, W; `low_w` and `caught_w` as above.

    What stands above the target, for no battery carries it; of what rows leave below the target what it will not take
    itself on its way to a ceiling; and what the battery takes over.
    """
    above_w = now.estimate.grid_w - target_w
    left_w = min(target_w, ceiling_w(now.in_force.limits, now.now_s)) - low_w
    return max(0.0, above_w) + max(0.0, left_w) + caught_w


def caught_w_max(now: Situation, tracker: Tracker) -> float:
    """What load that is let go the battery takes over before any row has seen more of it than is kept, W."""
    sample = battery_sample(now.image)
    catch_w = max(0.0, tracker.battery_now(sample).charge_w_max + (sample.power_w if sample is not None else 0.0))
    return min(catch_w, dip_w_max(now.in_force.limits, t_eff_s=now.estimate.t_eff_s))


@frozen
class Steps:
    """How far all caps together may go at one instant, W, >= 0.

    `fall_w` of true power, where a clock takes off `steepness` times its part of the chord; `rise_w` of the worst case.
    """

    fall_w: float
    steepness: float
    rise_w: float

    @property
    def chord_w(self) -> float:
        """By clocks alone, of their chords."""
        return self.fall_w / self.steepness


def stepped(caps: FloatArray, now: Situation, *, view: EnvelopeView, steps: Steps) -> FloatArray:
    """The plan's caps (2, n), as far as they may go from what is in force at this tick."""
    table, acked = view.fleet, view.acks.caps
    if caps.shape != acked.shape:  # none for this fleet yet
        return caps
    last = view.state.caps if view.state.gpu_ids is table.gpu_ids else np.where(acked < table.cap_max, acked, np.inf)
    return softened(now.fleet, caps, last, steps=steps)


def steps_now(view: EnvelopeView, now: Situation, drift: Drift | None) -> Steps:
    """What rows leave beside what power does by itself, but for their last hundredth; nothing is kept for a target.

    No less than the envelope asks for under a ceiling at this very instant, for a window lets go of its oldest second
    at any tick; and what is above the ceiling by limits alone, which take off no more than they go down by, where rows
    leave it until all of that second is outside. With `drift` None a battery holds power again, and rises are the
    plan's own.
    """
    (low_w, high_w), power_w = step_range_w(view.windows), now.estimate.grid_w
    over_w = power_w + view.swell_w - ceiling_w(now.in_force.limits, now.now_s)
    surely_w = power_w - view.sag_w - step_range_w(view.windows, more=1)[0]
    asked_w = max(0.0, power_w - view.sag_w - low_w) / STEEPNESS
    fall_w = max(asked_w, min(surely_w, over_w))
    return Steps(
        fall_w=fall_w,
        steepness=fall_w / asked_w if 0.0 < asked_w < math.inf else STEEPNESS,
        rise_w=math.inf if drift is None else max(0.0, high_w - power_w - drift.swell_w) / STEEPNESS,
    )


def step_range_w(windows: Iterable[WindowCheck], *, more: int = 0) -> tuple[float, float]:
    """How far down and up power may step by every second that lies whole in each row's window, and `more` before them.

    Infinite without a row.
    """
    low_w, high_w = -math.inf, math.inf
    for row in windows:
        ring = row.ring
        count = max(1, 1 + int((row.window_s - ring.head_s) / ring.step_s + ROUNDING)) + more
        ages_s = ring.head_s + ring.step_s * np.arange(len(ring.max_w[:count]))
        left_w = np.maximum(row.room_w - row.kept_w, row.room_w_per_s * ages_s)
        if row.is_down:
            low_w = max(low_w, float((ring.max_w[:count] - left_w).max()))
        if row.is_up:
            high_w = min(high_w, float((ring.min_w[:count] + left_w).min()))
    return low_w, high_w


def dip_w_max(limits: Iterable[Limit], *, t_eff_s: float) -> float:
    """What may be let go at once beside what rows leave: it is on the meter for T_eff, and each row judges its mean."""
    rows = (row for row in limits if isinstance(row, RampLimit | SwingLimit))
    return min((UNSEEN_FRAC * row.max_w * max(1.0, row.mean_s / max(t_eff_s, 1e-3)) for row in rows), default=math.inf)


def softened(fleet: Fleet, caps: FloatArray, last: FloatArray, *, steps: Steps) -> FloatArray:
    """`caps` (2, n) with all falls from `last` (2, n) cut to one share and all rises to another, to come to `steps`.

    Inf is free. To the next whole step down: what falls short by one the envelope would take off as well, and doubt the
    planner for it.
    """
    table = fleet.table
    most = np.stack((table.cap_max[0], table.peak_w))
    # Where a limit binds and must go lower it goes first, for the worst case is there. Then the clock follows.
    binds = (last[1] < table.peak_w) & (caps[1] < last[1])
    caps = np.stack((np.where(binds, np.maximum(caps[0], last[0]), caps[0]), caps[1]))
    before, lower, higher = (np.minimum(x, most) for x in (last, np.minimum(caps, last), np.maximum(caps, last)))
    held = np.stack((before[0], drawn_w(fleet, last)))  # a limit that is above what the clock allows holds nothing
    fall_w = partial(cap_fall_w, fleet, held, steepness=steps.steepness)
    if fall_w(lower) > steps.fall_w:
        part = _share(held, lower, lambda some: fall_w(some) <= steps.fall_w)
        caps = np.where(caps < last, np.maximum(np.where(part < most, np.minimum(part, last), last), caps), caps)
    if draw_rise_w(fleet, before, higher) > steps.rise_w:
        part = _share(before, higher, lambda some: draw_rise_w(fleet, before, some) <= steps.rise_w)
        caps = np.where(caps > last, np.maximum(part, last), caps)
    return caps


def _share(before: FloatArray, after: FloatArray, fits: Callable[[FloatArray], bool]) -> FloatArray:
    """As far from `before` to `after` (2, n) as fits, to the next whole step down."""
    share, step = 0.0, 0.5
    for _ in range(BISECTIONS):
        if fits(before + (share + step) * (after - before)):
            share += step
        step *= 0.5
    found: FloatArray = np.floor(before + share * (after - before))
    return found
