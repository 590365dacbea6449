"""The fast decision: where the grid target goes on this tick, and what the battery is told to keep it there.

The target moves toward the planner's, inside the admissible interval and the crash-safe clamp, at the slope that can
go on for ever; only a ceiling or a waiver moves it faster. Read `Tracker.step` first: each of its parts is a file of
its own. The tracker never plans, never waits for a plan, and knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from controller.aim import Aiming
from controller.allowances import Allowances
from controller.anchor import Anchor
from controller.contract import AdmissibleInterval, Interval
from controller.doubt import StepDoubt, is_dear
from controller.forecast import Line
from controller.reach import BatteryReach
from controller.reserve import NO_BATTERY, BatteryBounds, CrashReserve
from controller.residual import EVENT_FRAC, METERED_MEAN_S, Residual, Unseen
from controller.settings import SiteSettings
from controller.survival import Clamps, Survival
from controller.target_path import TargetPath
from controller.tracker_io import BatteryAim, TrackerInput, TrackerOutput
from controller.types import BatterySample, CeilingLimit, Following, Limit, Mode

# Of the slope that rows allow while the ripple of the site is still unknown: at full slope, ripple first seen at 16 s
# took 0.24 MW more than the row's 5.
STARTUP_PACE = 0.65
RIDE_S = 2.0  # falls that R_n could catch up with in this time are ordinary
MEAN_LOAD_S = 30.0  # of the load that FALLBACK lets the target go back to
ORDER_BELOW_FRAC = 0.005  # of an emergency target: how far the target may stay under it


class Tracker:
    """State of the fast loop; `step` once per tick."""

    def __init__(self, site: SiteSettings, *, start_s: float, start_w: float) -> None:
        """`start_w`: metered power at `start_s`, the mean if one is known."""
        self._site = site
        self._event_w = EVENT_FRAC * site.registered_peak_w
        self.interval = AdmissibleInterval(
            site.contract.limits, start_s=start_s, start_w=start_w, tick_s=site.tracker_period_s
        )
        self._path = TargetPath(self.interval, start_s=start_s, start_w=start_w)
        self._residual = Residual((), event_w=self._event_w)
        self._doubt = StepDoubt()
        unseen = Unseen(METERED_MEAN_S, event_w=self._event_w)
        self._anchor = Anchor(site, self._path, residual=self._residual, unseen=unseen)
        self._allowances = Allowances(
            site, self.interval, residual=self._residual, unseen=unseen, doubt=self._doubt, start_s=start_s
        )
        self._reach = BatteryReach(site.battery)
        self._aiming = Aiming(site, self.interval)
        self._second_gain = 1.0 - math.exp(-site.tracker_period_s / METERED_MEAN_S)
        self._mean_gain = 1.0 - math.exp(-site.tracker_period_s / MEAN_LOAD_S)
        self._near_load_w = self._mean_load_w = start_w  # the load, its means of a second and of MEAN_LOAD_S
        self._is_ordered = self._is_riding_down = False

    @property
    def g_ref_w(self) -> float:
        """The target in force."""
        return self._path.now_w

    @property
    def line(self) -> Line | None:
        """The load's strongest line; None where it has none."""
        return self._aiming.line

    def battery_now(self, sample: BatterySample | None) -> BatteryBounds:
        """What the battery says it can do now; NO_BATTERY when it takes no orders."""
        return self._reach.now(sample)

    def set_limits(self, limits: Iterable[Limit], now_s: float) -> None:
        """Put other limits in force from now on (a signal, the fallback contract, the end of one)."""
        self.interval.set_limits(limits, now_s)
        self._allowances.set_limits(self.interval.limits)

    def waive_ramps(self, until_s: float, *, with_bands: bool) -> None:
        """The issuer waived the ramp rows until then."""
        self.interval.waive_ramps(until_s, with_bands=with_bands)

    def corrected(self, now_s: float, target_w: float) -> None:
        """The envelope let another target through: go on from there, or the next ticks ask for the same again."""
        self._path.jump(now_s, target_w, since_s=now_s)

    def step(self, given: TrackerInput) -> TrackerOutput:
        """One tick: measure, bound, keep free, move, aim, account."""
        reach = self._reach.now(given.battery)
        bounds = NO_BATTERY if given.is_disobeyed else reach
        self._leave_on_meter(given)
        self._measure(given)
        survival = self._survival(given, bounds)
        clamps = survival.clamps(
            spent_w=self.interval.contingency_excess_w, spent_up_w=self.interval.contingency_excess_up_w
        )
        self._notice_ride(given, survival, clamps)
        self._allowances.renew(given, is_riding_down=self._is_riding_down, ripple_w=self._aiming.ripple_w)
        allowed = self._allowed(given.now_s)
        target_w = self._next_w(given, allowed, bounds, clamps)
        self._notice_order(given, target_w)
        self._path.go(given.now_s, target_w, delay_s=self._aiming.delay_s)
        aim = self._aiming.aim(given, reach=reach, bounds=bounds, target_w=target_w)
        return self._account(given, survival, clamps, allowed, aim)

    # ----------------------------------------------------------------------------------------------------- measuring

    def _leave_on_meter(self, given: TrackerInput) -> None:
        """A small step that nothing explains stays on the meter where a row could not bear the answer to a lie."""
        estimate, target_w = given.estimate, self._path.now_w
        step_w, begun_w = self._doubt.see(estimate), self._doubt.withdrawn_w(estimate)
        if begun_w:
            self._shift(given, -begun_w)
        elif step_w and given.exempt_target_w is None and given.battery is not None and self._is_dear(given, step_w):
            self._doubt.leave(estimate)
            assert estimate.pcc_w is not None
            off_w = max(0.0, math.copysign(1.0, step_w) * (estimate.pcc_w - target_w - step_w))
            self._shift(given, step_w + math.copysign(off_w, step_w))  # no less than the meter says: it is no excess

    def _is_dear(self, given: TrackerInput, step_w: float) -> bool:
        if self._site.following is Following.DEVICE or math.isfinite(self.interval.band_slope_w_per_s):
            return False
        kept_w = self._allowances.kept_w()
        return is_dear(step_w, now_s=given.now_s, target_w=self._path.now_w, interval=self.interval, kept_w=kept_w)

    def _shift(self, given: TrackerInput, by_w: float) -> None:
        """The target of the instant of the newest sample was another."""
        self._path.jump(given.now_s, self._path.now_w + by_w, since_s=given.estimate.t_s)
        self._allowances.expire()

    def _measure(self, given: TrackerInput) -> None:
        load_w = given.estimate.load_w
        self._mean_load_w += self._mean_gain * (load_w - self._mean_load_w)
        self._near_load_w += self._second_gain * (load_w - self._near_load_w)
        self._anchor.see(given.now_s, given.estimate, is_saturated=self._aiming.is_saturated)

    def _notice_ride(self, given: TrackerInput, survival: Survival, clamps: Clamps) -> None:
        """A contingency is under way: the battery holds most of its surplus, or the clamp fell away from the target."""
        target_w, was_riding_down = self._path.now_w, self._is_riding_down
        self._is_riding_down = (
            target_w - clamps.g_safe_w > RIDE_S * self.interval.slope_down_w_per_s
        ) or survival.is_under_way(target_w - given.estimate.load_w, target_w=target_w, least_w=self._event_w)
        if self._is_riding_down and not was_riding_down:
            self._residual.begin_event(given.now_s)

    def _notice_order(self, given: TrackerInput, target_w: float) -> None:
        """An emergency moves the target at once; so may what follows its end."""
        is_ordered = given.exempt_target_w is not None
        is_far = abs(target_w - self._path.now_w) > self._event_w
        if is_ordered != self._is_ordered or (is_ordered and is_far):
            self._residual.jumped(given.now_s)
        self._is_ordered = is_ordered

    # ------------------------------------------------------------------------------------------------- where it goes

    def _survival(self, given: TrackerInput, bounds: BatteryBounds) -> Survival:
        reserve = CrashReserve(
            battery=bounds,
            fall_w_per_s=self.interval.contingency_slope_w_per_s,
            rise_w_per_s=self.interval.contingency_rise_w_per_s,
        )
        return Survival(reserve, self._reach.energy_j(given.battery), given.watches, given.load_rise_w)

    def _allowed(self, now_s: float) -> Interval:
        """The interval at this instant, no lower than the export the contract allows."""
        found = self.interval.bounds(max(now_s, self.interval.now_s))
        low_w = min(max(found.low_w, -self._site.max_export_w), found.high_w)
        return Interval(low_w, found.high_w)

    def _next_w(self, given: TrackerInput, allowed: Interval, bounds: BatteryBounds, clamps: Clamps) -> float:
        """The next target: what the meter says, what is ordered, or the way to what is wanted."""
        if given.is_unproven:  # not its mean: rows must know of the tops that nobody took off
            return given.estimate.grid_w
        if given.battery is None or not bounds.can_move:
            metered_w = self._metered_w(given)
            # Disobeyed, a command goes out, and the envelope holds its target against the rows.
            return allowed.clip(metered_w) if given.is_disobeyed else metered_w
        if given.exempt_target_w is not None:
            return self._ordered_w(given.exempt_target_w, given.now_s, allowed)
        wanted_w = self._held_w(given, bounds, clamps)
        return allowed.clip(self._sustained_w(given.now_s, wanted_w))

    def _metered_w(self, given: TrackerInput) -> float:
        """Without a battery the target is what the meter says or would say (its mean of a second), whatever was wanted.

        A battery that nobody can read holds its last set-point: it is still in what the meter would say.
        """
        return self._path.now_w + self._second_gain * (given.estimate.grid_w - self._path.now_w)

    def _ordered_w(self, target_w: float, now_s: float, allowed: Interval) -> float:
        """The emergency's target, not the rows'.

        What ripple takes off a ceiling would be an undershoot here; half a percent is within any meter's class.
        """
        limits = self.interval.limits
        ceilings_w = (limit.max_w for limit in limits if isinstance(limit, CeilingLimit) and limit.from_s <= now_s)
        least_w = min(target_w, *ceilings_w, math.inf) * (1.0 - ORDER_BELOW_FRAC)
        return max(allowed.clip(target_w), allowed.low_w, least_w)

    def _held_w(self, given: TrackerInput, bounds: BatteryBounds, clamps: Clamps) -> float:
        """What is wanted, as far as the battery holds it and a crash is survived."""
        wanted_w, near_w = self._wanted_w(given), self._near_load_w
        # A target the battery cannot hold is a fiction: the meter would part from it.
        wanted_w = min(max(wanted_w, near_w - bounds.discharge_w_max), near_w + bounds.charge_w_max)
        wanted_w = min(max(wanted_w, clamps.g_rise_min_w), clamps.g_safe_w)  # where both cannot be, the drop wins
        # Not even what the battery cannot hold may rise then: refusals count, and would never end.
        return wanted_w if given.may_raise else min(wanted_w, self._path.now_w)

    def _wanted_w(self, given: TrackerInput) -> float:
        if given.mode in (Mode.FALLBACK, Mode.LOCKOUT):
            return self._mean_load_w  # the battery goes back to nothing at the contract's slope
        if given.mode is Mode.HOLD:
            return self._path.now_w
        return given.target_w + given.target_slope_w_per_s * (given.now_s - given.target_s)

    def _sustained_w(self, now_s: float, wanted_w: float) -> float:
        """The way there at slopes that can go on for ever; a contingency is ridden down at its own."""
        interval, target_w = self.interval, self._path.now_w
        elapsed_s = max(now_s - interval.now_s, 0.0)
        pace = STARTUP_PACE if self._allowances.is_new else 1.0
        fall = interval.contingency_slope_w_per_s if self._is_riding_down else pace * interval.slope_down_w_per_s
        rise = pace * interval.slope_up_w_per_s
        slowest_w = target_w - fall * elapsed_s if math.isfinite(fall) else -math.inf
        fastest_w = target_w + rise * elapsed_s if math.isfinite(rise) else math.inf
        return min(max(wanted_w, slowest_w), fastest_w)

    # ----------------------------------------------------------------------------------------------------- accounting

    def _account(
        self, given: TrackerInput, survival: Survival, clamps: Clamps, allowed: Interval, aim: BatteryAim | None
    ) -> TrackerOutput:
        """The decision, and what explains it: all as it stands with the new target on the path."""
        interval, target_w, t_eff_s = self.interval, self._path.now_w, given.estimate.t_eff_s
        excess_w, excess_up_w = interval.contingency_excess_w, interval.contingency_excess_up_w
        spent_w = interval.spent_down_w()
        is_held = aim is not None and not aim.is_let_go
        reserve, energy_j = survival.reserve, survival.energy_j
        return TrackerOutput(
            g_ref_w=target_w,
            low_w=allowed.low_w,
            high_w=allowed.high_w,
            g_safe_w=clamps.g_safe_w,
            g_rise_min_w=clamps.g_rise_min_w,
            aim=aim,
            load_w_max=(target_w if is_held else allowed.high_w) + reserve.rise_cover_w(energy_j, spent_w=excess_up_w),
            load_w_min=(target_w if is_held else allowed.low_w) - reserve.battery.charge_limit_w(energy_j),
            ride_w=survival.ride_w(spent_w=excess_w),
            margins=survival.margins(
                target_w,
                rows=self._allowances.rows,
                spent_by_row_w=spent_w,
                spent_w=excess_w,
                spent_up_w=excess_up_w,
                residual_w=self._residual.track(METERED_MEAN_S).spread_w,
                t_eff_s=t_eff_s,
            ),
            residual_w=self._allowances.kept_w(),
            spent_w=spent_w,
            way=self._aiming.way,
            line=self._aiming.line,
            t_eff_s=t_eff_s,
            is_saturated=self._aiming.is_saturated,
            is_riding_down=self._is_riding_down,
            is_overspent=interval.is_overspent,
            due=interval.due_status(),
        )
