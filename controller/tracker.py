"""The fast decision: where the grid target goes on this tick, and what the battery is told to keep it there.

The target moves toward the planner's, inside the admissible interval and the crash-safe clamp, at the slope that can
go on for ever; only a ceiling or a waiver moves it faster. Under software following the battery's set-point is the
load worth following less the target; under device following it is the target itself. The tracker never plans, never
waits for a plan, and knows no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from controller.contract import AdmissibleInterval, Interval
from controller.doubt import StepDoubt
from controller.estimate import UNMEASURED, Estimate, LoadSource
from controller.follow import FollowerSettings, SoftwareFollower
from controller.forecast import Line, LineForecast
from controller.reserve import (
    NO_BATTERY,
    BatteryBounds,
    CrashReserve,
    ReserveRow,
    battery_bounds,
    late_dip_w,
    margins,
    reserve_rows,
    transient_dip_w,
)
from controller.residual import Residual, Unseen
from controller.settings import SiteSettings
from controller.tracker_io import BatteryAim, TrackerInput, TrackerOutput, Watch
from controller.types import (
    BandLimit,
    BatterySample,
    BatteryState,
    CeilingLimit,
    Contract,
    Direction,
    FloorLimit,
    Following,
    Limit,
    LimitId,
    Margin,
    Mode,
    OscillationLimit,
    RampLimit,
    RateLimit,
    SwingLimit,
)

RIPPLE_FRAC_MIN = (
    0.002  # of the registered peak: ripple smaller than this is nobody's business (1 s accuracy of meters)
)
EVENT_FRAC = 0.05  # of the registered peak: a deviation beyond it, once, is an event and not residual
# Of a row, beside the residual: what happens between two samples of the meter, and what was not measured yet. Without
# it a 62 MW crash rode down at 4.995 of 5 MW; with it nothing measured so far came nearer than 2 %.
UNSEEN_FRAC = 0.03
# Of a row, together with that: a crash leaves ripple of its own, and the slope it is ridden down at must not fall then.
SPENT_FRAC_MIN = 0.045
# Of a row while the ripple of the site is still unknown: a record that begins with a jump passed the 15 s row by 1 %.
STARTUP_FRAC, STARTUP_S = 0.09, 60.0
# Of the slope that rows allow, meanwhile: at full slope, ripple first seen at 16 s took 0.24 MW more than the row's 5.
STARTUP_PACE = 0.65
# The same of a ceiling or floor, which is a level and not a change: half of what a meter of class 0.5 may be off. At a
# tenth of a percent, slopes steeper than any of the last minutes took a measured record 17 kW over a target of 65.8 MW.
RESIDUAL_FRAC_LEVEL = 0.0025
SHRINK_PERIOD_S = 1.0  # how often residual and dip are taken over into the allowances
ANCHOR_S = 3.0  # a reference that parted from the meter for this long is wrong
ANCHOR_FRAC = 0.005  # of the registered peak: parted by less is within meter accuracy
RIDE_FRAC = 0.6  # of a contingency's surplus in the battery: the crash has happened, fall at R_c
RIDE_S = 2.0  # falls that R_n could catch up with in this time are ordinary
MEAN_LOAD_S = 30.0  # of the load that FALLBACK lets the target go back to
SATURATED_FRAC = 0.98
ORDER_BELOW_FRAC = 0.005  # of an emergency target: how far the reference may stay under it
STALE_SOC_S = 1.0  # how much older than the limits beside it a state of charge may be: devices renew it slowly
METERED_MEAN_S = 1.0  # the averaging time that ramp, swing and rate rows are assumed to be metered on


__all__ = ["BatteryAim", "Tracker", "TrackerInput", "TrackerOutput", "Watch"]


class Tracker:
    """State of the fast loop; `step` once per tick."""

    def __init__(self, site: SiteSettings, *, start_s: float, start_w: float) -> None:
        """`start_w`: metered power at `start_s`, the mean if one is known."""
        self._site = site
        self._tick_s = site.tracker_period_s
        self._contract = site.contract
        self.interval = AdmissibleInterval(site.contract.limits, start_s=start_s, start_w=start_w, tick_s=self._tick_s)
        self._forecast = self._new_forecast()
        battery, meter = site.battery, site.meter
        self._times = FollowerSettings(
            tick_s=self._tick_s,
            delay_s=meter.delay_s if meter else 0.0,
            lag_s=battery.lag_s if battery else 0.0,
        )
        self._follower = self._new_follower()
        self._is_led = self._is_ordered = False
        self._doubt = StepDoubt()
        self._nameplate = battery_bounds(battery) if battery is not None else NO_BATTERY
        self._bounds = self._nameplate
        event_w = EVENT_FRAC * site.registered_peak_w
        self._residual, self._unseen = Residual((), event_w=event_w), Unseen(METERED_MEAN_S, event_w=event_w)
        self._take_rows(site.contract.limits)
        self._started_s = start_s
        self._targets: deque[tuple[float, float]] = deque([(start_s, start_w)])
        self._g_ref_w = start_w
        self._mean_load_w = self._near_load_w = self._near_pcc_w = start_w
        self._reference_w: float | None = None
        self._let_go_w: float | None = None  # where a battery that did not follow is to be by now
        self._metered_s = -math.inf
        self._shrunk_s = -math.inf
        self._parted_s = math.inf
        self._is_saturated = self._is_blind = False
        self._is_riding_down = False
        self._was_shrunk_riding = False

    @property
    def g_ref_w(self) -> float:
        return self._g_ref_w

    @property
    def line(self) -> Line | None:
        """The load's strongest line; None where it has none."""
        return self._forecast.line

    def set_limits(self, limits: Iterable[Limit], now_s: float) -> None:
        """Put other limits in force from now on (a signal, the fallback contract, the end of one)."""
        found = tuple(limits)
        self._contract = Contract("in force", found, self._site.registered_peak_w)
        self.interval.set_limits(found, now_s)
        self._take_rows(found)
        self._shrunk_s = -math.inf

    def waive_ramps(self, until_s: float, *, with_bands: bool) -> None:
        """The issuer waived the ramp rows until then."""
        self.interval.waive_ramps(until_s, with_bands=with_bands)

    def corrected(self, now_s: float, target_w: float) -> None:
        """The envelope let another target through: go on from there, or the next ticks ask for the same again."""
        self._g_ref_w = target_w
        self.interval.reanchor(now_s, target_w)
        self._targets.append((now_s, target_w))

    def step(self, given: TrackerInput) -> TrackerOutput:
        """One tick: measure, bound, move, follow, account."""
        now_s, estimate = given.now_s, given.estimate
        bounds = NO_BATTERY if given.is_disobeyed else self.battery_now(given.battery)
        energy_j = self._energy_j(given.battery)
        self._leave_on_meter(given)
        self._measure(given)
        reserve = CrashReserve(
            battery=bounds,
            fall_w_per_s=self.interval.contingency_slope_w_per_s,
            rise_w_per_s=self.interval.contingency_rise_w_per_s,
        )
        g_safe_w, g_rise_min_w = self._clamps(given, reserve, energy_j)
        was_riding, self._is_riding_down = self._is_riding_down, self._rides_down(given, g_safe_w)
        if self._is_riding_down and not was_riding:
            self._residual.begin_event(now_s)
        self._shrink(given)
        allowed = self._allowed(given)
        g_ref_w = self._move(given, allowed, bounds, g_safe_w, g_rise_min_w)
        if given.battery is None or bounds.charge_w_max <= 0.0 >= bounds.discharge_w_max:
            g_ref_w = self._uncontrolled(estimate)
            if given.is_disobeyed:  # a command goes out, and the envelope holds its target against the rows
                g_ref_w = allowed.clip(g_ref_w)
        self._notice_order(given, g_ref_w)
        self._set_target(now_s, g_ref_w)
        aim = self._aim(given, bounds, g_ref_w)
        is_held = aim is not None and not aim.is_let_go
        cover_w = reserve.rise_cover_w(energy_j, spent_w=self.interval.contingency_excess_up_w)
        spent_w = self.interval.spent_down_w()
        return TrackerOutput(
            g_ref_w=g_ref_w,
            low_w=allowed.low_w,
            high_w=allowed.high_w,
            g_safe_w=g_safe_w,
            g_rise_min_w=g_rise_min_w,
            aim=aim,
            load_w_max=(g_ref_w if is_held else allowed.high_w) + cover_w,
            load_w_min=(g_ref_w if is_held else allowed.low_w) - bounds.charge_limit_w(energy_j),
            ride_w=self._ride_w(given, reserve, energy_j),
            margins=self._margins(given, reserve, energy_j, g_ref_w, spent_w),
            residual_w=self._residuals(),
            spent_w=spent_w,
            way=self._follower.way if self._site.following is Following.SOFTWARE else None,
            line=self.line,
            t_eff_s=estimate.t_eff_s,
            is_saturated=self._is_saturated,
            is_riding_down=self._is_riding_down,
            is_overspent=self.interval.is_overspent,
            due=self.interval.due_status(),
        )

    # ---------------------------------------------------------------------------------------------------- measuring

    def _measure(self, given: TrackerInput) -> None:
        """Compare a new meter sample with the reference of its own instant; re-anchor one that went astray."""
        estimate, peak_w = given.estimate, self._site.registered_peak_w
        self._mean_load_w += _gain(self._tick_s, MEAN_LOAD_S) * (estimate.load_w - self._mean_load_w)
        self._near_load_w += _gain(self._tick_s, METERED_MEAN_S) * (estimate.load_w - self._near_load_w)
        if estimate.pcc_w is not None:
            self._near_pcc_w += _gain(self._tick_s, METERED_MEAN_S) * (estimate.pcc_w - self._near_pcc_w)
        if not estimate.is_fresh or estimate.t_s <= self._metered_s:
            return
        if estimate.pcc_w is None:
            is_known = estimate.source is LoadSource.NODES and not self._is_saturated
            self._unseen.add(estimate.t_s, estimate.grid_w - self._target_at(estimate.t_s) if is_known else None)
            return
        self._metered_s = estimate.t_s
        if self._is_saturated:
            self._residual.restart()
        self._residual.add(estimate.t_s, estimate.pcc_w - self._target_at(estimate.t_s))
        parted_w = self._residual.track(METERED_MEAN_S).mean_w
        spread_w = self._residual.track(METERED_MEAN_S).spread_w
        is_parted = abs(parted_w) > max(spread_w, ANCHOR_FRAC * peak_w)
        if self._residual.is_event and abs(parted_w) > spread_w:  # the rows must know of it, though the target stays
            self.interval.push(self.interval.now_s, self._g_ref_w + parted_w)
            self.interval.push(self.interval.now_s, self._g_ref_w)
        self._anchor(given.now_s, is_parted=is_parted or self._is_saturated)

    def _leave_on_meter(self, given: TrackerInput) -> None:
        """A small step that nothing explains stays on the meter where a row could not bear the answer to a lie."""
        estimate = given.estimate
        step_w, begun_w = self._doubt.see(estimate), self._doubt.withdrawn_w(estimate)
        if begun_w:
            self._shift(given, -begun_w)
        elif step_w and given.exempt_target_w is None and given.battery is not None and self._is_dear(given, step_w):
            self._doubt.leave(estimate)
            assert estimate.pcc_w is not None
            off_w = max(0.0, math.copysign(1.0, step_w) * (estimate.pcc_w - self._g_ref_w - step_w))
            self._shift(given, step_w + math.copysign(off_w, step_w))  # no less than the meter says: it is no excess

    def _is_dear(self, given: TrackerInput, step_w: float) -> bool:
        """Some row has no room for what the battery would do to answer this step, and all limits have for the step.

        A ceiling that the rows keep out of reach loses nothing by it.
        """
        if self._site.following is Following.DEVICE or math.isfinite(self.interval.band_slope_w_per_s):
            return False
        now_s, left_w = given.now_s, self._g_ref_w + step_w
        for limit in self._limits:
            if isinstance(limit, CeilingLimit) and limit.from_s <= now_s and self._g_ref_w <= limit.max_w < left_w:
                return False
            if isinstance(limit, FloorLimit) and limit.from_s <= now_s and self._g_ref_w >= limit.min_w > left_w:
                return False
        down, up, residual = self.interval.spent_down_w(), self.interval.spent_up_w(), self._residuals()
        moved, left = (down, up) if step_w > 0.0 else (up, down)
        rooms = {
            limit.id: _row_w(limit) - residual[limit.id] - abs(step_w) for limit in self._limits if limit.id in down
        }
        return any(rooms[i] < moved[i] for i in rooms) and all(rooms[i] >= left[i] for i in rooms)

    def _shift(self, given: TrackerInput, by_w: float) -> None:
        """The target of the instant of the newest sample was another."""
        self._g_ref_w += by_w
        self.interval.reanchor(given.now_s, self._g_ref_w)
        self._targets.append((given.estimate.t_s, self._g_ref_w))
        self._shrunk_s = -math.inf

    def _anchor(self, now_s: float, *, is_parted: bool) -> None:
        """Move the reference to the meter once the two have been apart for long."""
        if not is_parted:
            self._parted_s = math.inf
        elif math.isinf(self._parted_s):
            self._parted_s = now_s
        elif now_s - self._parted_s >= ANCHOR_S:
            self._g_ref_w = self._near_pcc_w
            self.interval.reanchor(now_s, self._g_ref_w)
            self._targets.append((now_s, self._g_ref_w))
            self._residual.restart()
            self._parted_s = math.inf

    def _notice_order(self, given: TrackerInput, g_ref_w: float) -> None:
        """An emergency moves the reference at once; so may what follows its end."""
        is_ordered = given.exempt_target_w is not None
        is_far = abs(g_ref_w - self._g_ref_w) > EVENT_FRAC * self._site.registered_peak_w
        if is_ordered != self._is_ordered or (is_ordered and is_far):
            self._residual.jumped(given.now_s)
        self._is_ordered = is_ordered

    def _target_at(self, t_s: float) -> float:
        """The reference that was in force at `t_s`."""
        for at_s, target_w in reversed(self._targets):
            if at_s <= t_s:
                return target_w
        return self._targets[0][1]

    def _set_target(self, now_s: float, g_ref_w: float) -> None:
        self._g_ref_w = g_ref_w
        self.interval.push(max(now_s, self.interval.now_s), g_ref_w)
        self._targets.append((now_s, g_ref_w))
        keep_s = 5.0 + 2.0 * self._times.delay_s
        while len(self._targets) > 2 and self._targets[1][0] < now_s - keep_s:
            self._targets.popleft()

    # ------------------------------------------------------------------------------------------------- what is allowed

    def battery_now(self, sample: BatterySample | None) -> BatteryBounds:
        """The nameplate bounds, cut to what the battery says it can do now; nothing when it does not obey."""
        if sample is None or not sample.is_remote or sample.state in (BatteryState.OFF, BatteryState.FAULT):
            return NO_BATTERY
        nameplate, energy_j = self._nameplate, self._energy_j(sample)
        charge_w, discharge_w = nameplate.charge_w_max, min(sample.discharge_w_max, nameplate.discharge_w_max)
        ahead_j = energy_j + max(0.0, -sample.power_w) * STALE_SOC_S
        if sample.charge_w_max < 0.999 * nameplate.charge_limit_w(ahead_j):  # derated beyond its declared taper
            charge_w = min(sample.charge_w_max, charge_w)
        if (charge_w, discharge_w) != (self._bounds.charge_w_max, self._bounds.discharge_w_max):
            self._bounds = replace(nameplate, charge_w_max=charge_w, discharge_w_max=discharge_w)
        return self._bounds

    def _energy_j(self, sample: BatterySample | None) -> float:
        battery = self._site.battery
        return sample.soc_frac * battery.energy_j if sample is not None and battery is not None else 0.0

    def _clamps(self, given: TrackerInput, reserve: CrashReserve, energy_j: float) -> tuple[float, float]:
        """The highest target every enforced contingency survives, and the lowest from which a rise is covered."""
        g_safe_w, g_rise_min_w = math.inf, -math.inf
        spent_w = self.interval.contingency_excess_w
        for watch in given.watches:
            contingency = watch.contingency
            if watch.enforces_energy:
                by_energy_w = reserve.surplus_safe_w(energy_j, spent_w=spent_w)
                g_safe_w = min(g_safe_w, contingency.load_left_w + by_energy_w)
            if watch.enforces_power:
                by_power_w = reserve.battery.charge_limit_w(energy_j) - contingency.ripple_w
                g_safe_w = min(g_safe_w, contingency.load_left_w + by_power_w)
            if watch.enforces_rise:
                rise_w = reserve.g_rise_min_w(
                    energy_j, load_rise_w=given.load_rise_w, spent_w=self.interval.contingency_excess_up_w
                )
                g_rise_min_w = max(g_rise_min_w, rise_w)
        return g_safe_w, g_rise_min_w

    def _ride_w(self, given: TrackerInput, reserve: CrashReserve, energy_j: float) -> float:
        """By power; by energy too where a contingency's energy is kept."""
        by_power_w = reserve.battery.charge_limit_w(energy_j)
        if not any(watch.enforces_energy for watch in given.watches):
            return by_power_w
        return min(by_power_w, reserve.surplus_safe_w(energy_j, spent_w=self.interval.contingency_excess_w))

    def _rides_down(self, given: TrackerInput, g_safe_w: float) -> bool:
        """A contingency is under way: the battery holds most of its surplus, or the clamp fell away from the target."""
        if self._g_ref_w - g_safe_w > RIDE_S * self.interval.slope_down_w_per_s:
            return True
        surplus_w = self._g_ref_w - given.estimate.load_w
        least_w = EVENT_FRAC * self._site.registered_peak_w
        return any(
            surplus_w > max(least_w, RIDE_FRAC * (self._g_ref_w - watch.contingency.load_left_w))
            for watch in given.watches
            if watch.enforces_energy or watch.enforces_power
        )

    def _allowed(self, given: TrackerInput) -> Interval:
        """The interval at this instant, no lower than the export the contract allows."""
        found = self.interval.bounds(max(given.now_s, self.interval.now_s))
        low_w = min(max(found.low_w, -self._site.max_export_w), found.high_w)
        return Interval(low_w, found.high_w)

    def _move(
        self, given: TrackerInput, allowed: Interval, bounds: BatteryBounds, g_safe_w: float, g_rise_min_w: float
    ) -> float:
        """The next target: the planner's path, made crash-safe, at sustainable slopes, inside the interval."""
        if given.exempt_target_w is not None:
            # What ripple takes off a ceiling would be an undershoot here; half a percent is within any meter's class.
            ceilings_w = (r.max_w for r in self._limits if isinstance(r, CeilingLimit) and r.from_s <= given.now_s)
            least_w = min(given.exempt_target_w, *ceilings_w, math.inf) * (1.0 - ORDER_BELOW_FRAC)
            return max(allowed.clip(given.exempt_target_w), allowed.low_w, least_w)
        interval, now_w = self.interval, self._g_ref_w
        elapsed_s = max(given.now_s - interval.now_s, 0.0)
        wanted_w = self._wanted(given)
        # A target the battery cannot hold is a fiction: the meter would part from it.
        wanted_w = min(
            max(wanted_w, self._near_load_w - bounds.discharge_w_max), self._near_load_w + bounds.charge_w_max
        )
        wanted_w = min(max(wanted_w, g_rise_min_w), g_safe_w)  # where both cannot be, the drop wins
        if not given.may_raise:  # not even what the battery cannot hold: refusals count, and would never end
            wanted_w = min(wanted_w, now_w)
        pace = STARTUP_PACE if self._is_new else 1.0
        fall = interval.contingency_slope_w_per_s if self._is_riding_down else pace * interval.slope_down_w_per_s
        slowest_w = now_w - fall * elapsed_s if math.isfinite(fall) else -math.inf
        rise = pace * interval.slope_up_w_per_s
        fastest_w = now_w + rise * elapsed_s if math.isfinite(rise) else math.inf
        return allowed.clip(min(max(wanted_w, slowest_w), fastest_w))

    def _wanted(self, given: TrackerInput) -> float:
        if given.mode in (Mode.FALLBACK, Mode.LOCKOUT):
            return self._mean_load_w  # the battery goes back to nothing at the contract's slope
        if given.mode is Mode.HOLD:
            return self._g_ref_w
        return given.target_w + given.target_slope_w_per_s * (given.now_s - given.target_s)

    def _uncontrolled(self, estimate: Estimate) -> float:
        """Without a battery the target is what the meter says or would say (its mean of a second), whatever was wanted.

        A battery that nobody can read holds its last set-point: it is still in what the meter would say.
        """
        return self._g_ref_w + _gain(self._tick_s, METERED_MEAN_S) * (estimate.grid_w - self._g_ref_w)

    # ------------------------------------------------------------------------------------------------------ following

    def _aim(self, given: TrackerInput, bounds: BatteryBounds, g_ref_w: float) -> BatteryAim | None:
        """The battery's reference; None when it takes no orders."""
        battery, estimate = self._site.battery, given.estimate
        if given.is_disobeyed and self.battery_now(given.battery) is not NO_BATTERY and given.battery is not None:
            return self._let_go(given.battery)
        self._let_go_w = None
        if battery is None or given.battery is None or bounds.charge_w_max <= 0.0 >= bounds.discharge_w_max:
            self._reference_w = None
            self._is_saturated = True
            return None
        if self._site.following is Following.DEVICE:
            power_w = given.battery.power_w
            self._is_saturated = (
                power_w >= SATURATED_FRAC * bounds.discharge_w_max or -power_w >= SATURATED_FRAC * bounds.charge_w_max
            )
            return BatteryAim(Following.DEVICE, g_ref_w, self._expiry_w_per_s(None))
        wanted_w = self._set_point(given, g_ref_w)
        charge_w = min(bounds.charge_w_max, given.battery.charge_w_max)
        reference_w = min(max(wanted_w, -charge_w), bounds.discharge_w_max)
        self._is_saturated = reference_w != wanted_w
        if self._reference_w is not None and abs(reference_w - self._reference_w) < battery.deadband_w:
            reference_w = self._reference_w  # the device would not move for it
        self._reference_w = reference_w
        if estimate.source in UNMEASURED and estimate.margin_w >= EVENT_FRAC * self._site.registered_peak_w:
            self._is_saturated = True  # nothing is measured: what is on the meter is no residual
        return BatteryAim(Following.SOFTWARE, reference_w, self._expiry_w_per_s(reference_w))

    def _let_go(self, battery: BatterySample) -> BatteryAim:
        """From where it stands to nothing, at the slope of its end: one that obeys again is on its way with us."""
        held_w = battery.power_w if self._let_go_w is None else self._let_go_w
        slope = self._expiry_w_per_s(held_w)
        self._let_go_w = math.copysign(max(0.0, abs(held_w) - slope * self._tick_s), held_w)
        self._reference_w, self._is_saturated = self._let_go_w, True
        return BatteryAim(Following.SOFTWARE, self._let_go_w, slope, is_let_go=True)

    def _expiry_w_per_s(self, reference_w: float | None) -> float:
        """How fast the battery may go back to nothing when commands stop, from a set-point (None: from wherever).

        A battery that discharges lets grid power rise, one that charges lets it fall. Nothing is kept for a
        contingency: nobody is left to answer one.
        """
        assert self._site.battery is not None
        interval = self.interval
        rise, fall = interval.contingency_rise_w_per_s, interval.contingency_slope_w_per_s
        allowed = min(rise, fall) if not reference_w else rise if reference_w > 0.0 else fall
        return min(allowed, self._site.battery.ramp_w_per_s_max)

    def _set_point(self, given: TrackerInput, g_ref_w: float) -> float:
        """Load worth following less the target; how much of it is worth following depends on how old it is.

        What the load does while the emergency path leads the battery is no ripple: following starts anew after it.
        """
        estimate = given.estimate
        if given.set_point_w is not None:
            self._is_led = True
            return given.set_point_w
        if self._is_led:
            self._is_led = False
            self._forecast = self._new_forecast()
            self._follower = self._new_follower()
        if estimate.is_revised:
            self._follower.restart()
        times = FollowerSettings(self._tick_s, estimate.delay_s, max(estimate.lag_s, 1e-3))
        if abs(times.t_eff_s - self._times.t_eff_s) > 0.05 * self._times.t_eff_s:
            self._times = times
            self._follower.retune(times)
        follow_w = self._follower.step(
            given.now_s, sample_s=estimate.t_s, load_w=estimate.load_w, is_fresh=estimate.is_fresh
        )
        return follow_w - g_ref_w

    def _new_forecast(self) -> LineForecast:
        return LineForecast(tick_s=self._tick_s, amplitude_w_min=RIPPLE_FRAC_MIN * self._site.registered_peak_w)

    def _new_follower(self) -> SoftwareFollower:
        ripple_w = RIPPLE_FRAC_MIN * self._site.registered_peak_w
        return SoftwareFollower(self._times, forecast=self._forecast, ripple_w_min=ripple_w)

    # ----------------------------------------------------------------------------------------------------- accounting

    def _take_rows(self, limits: tuple[Limit, ...]) -> None:
        """What residual and reserve need to know of the rows in force."""
        self._rows: tuple[ReserveRow, ...] = reserve_rows(self._contract, direction=Direction.DOWN)
        self._limits = limits
        self._residual.ensure({METERED_MEAN_S, *(limit.mean_s for limit in limits)})

    @property
    def _is_new(self) -> bool:
        """The ripple of this site is not known yet."""
        return self.interval.now_s - self._started_s < STARTUP_S

    def _residuals(self) -> dict[LimitId, float]:
        """r of each row: what following leaves on the row's own averaging time, on the side that the row judges."""
        found: dict[LimitId, float] = {}
        is_new = self._is_new
        for limit in self._limits:
            track = self._residual.track(limit.mean_s)
            if isinstance(limit, CeilingLimit):
                found[limit.id] = max(track.high_w, RESIDUAL_FRAC_LEVEL * limit.max_w)
            elif isinstance(limit, FloorLimit):
                found[limit.id] = max(-track.low_w, RESIDUAL_FRAC_LEVEL * limit.min_w)
            elif isinstance(limit, OscillationLimit | BandLimit):
                found[limit.id] = _kept_w(max(track.high_w, -track.low_w), limit.max_w, is_new=is_new)
            elif isinstance(limit, RampLimit | SwingLimit):
                left_w = max(track.spread_w, self._unseen.left_w(self.interval.now_s, limit.window_s))
                found[limit.id] = _kept_w(left_w, limit.max_w, is_new=is_new)
            elif isinstance(limit, RateLimit):
                left_w = max(track.spread_w, self._unseen.left_w(self.interval.now_s, limit.horizon_s))
                found[limit.id] = _kept_w(left_w, limit.above_w, is_new=is_new)
        return found

    def _shrink(self, given: TrackerInput) -> None:
        """Once a second, and at once when a contingency begins or ends, take residual and dip into the allowances."""
        is_due = given.now_s - self._shrunk_s >= SHRINK_PERIOD_S
        is_measured = given.estimate.source in (LoadSource.METER, LoadSource.SUB_METERS)
        was_blind, self._is_blind = self._is_blind, self._site.following is Following.SOFTWARE and not is_measured
        is_due |= self._is_blind and not was_blind
        if self._is_blind:
            self._unseen.missed(given.now_s, ripple_w=self._follower.ripple_w)
        if not is_due and self._is_riding_down == self._was_shrunk_riding:
            return
        self._shrunk_s, self._was_shrunk_riding = given.now_s, self._is_riding_down
        dips: dict[LimitId, float] = {}
        if not self._is_riding_down:  # once it has happened, the dip is spent and its share is free for the fall
            enforced = [watch.contingency for watch in given.watches if watch.enforces_transient]
            late = [watch.contingency for watch in given.watches if watch.enforces_power]
            for row in self._rows:
                t_eff_s = given.estimate.t_eff_s
                found = [transient_dip_w(row, contingency, t_eff_s=t_eff_s) for contingency in enforced]
                late_w = max((late_dip_w(row, contingency) for contingency in late), default=0.0)
                dips[row.limit_id] = max(found, default=0.0) + late_w
        residuals = self._residuals()
        for limit in self._limits:
            if isinstance(limit, RampLimit | SwingLimit | RateLimit):
                window_s = limit.horizon_s if isinstance(limit, RateLimit) else limit.window_s
                below_w, above_w = self._doubt.left_w(given.now_s, given.estimate, window_s)
                dips[limit.id] = dips.get(limit.id, 0.0) + below_w
                residuals[limit.id] += above_w
        self.interval.set_shrink(residuals, dips)

    def _margins(
        self,
        given: TrackerInput,
        reserve: CrashReserve,
        energy_j: float,
        g_ref_w: float,
        spent_w: dict[LimitId, float],
    ) -> tuple[Margin, ...]:
        """Every condition of every contingency."""
        spent_by_row_w = [spent_w.get(row.limit_id, 0.0) for row in self._rows]
        found: list[Margin] = []
        for watch in given.watches:
            found += margins(
                reserve,
                watch.contingency,
                target_w=g_ref_w,
                energy_j=energy_j,
                rows=self._rows,
                spent_by_row_w=spent_by_row_w,
                spent_line_w=self.interval.contingency_excess_w,
                residual_w=self._residual.track(METERED_MEAN_S).spread_w,
                t_eff_s=given.estimate.t_eff_s,
                load_rise_w=given.load_rise_w,
                spent_rise_w=self.interval.contingency_excess_up_w,
            )
        return tuple(found)


def _gain(elapsed_s: float, time_s: float) -> float:
    """Share of a first-order step of `time_s` that `elapsed_s` covers."""
    return 1.0 - math.exp(-elapsed_s / time_s)


def _kept_w(measured_w: float, limit_w: float, *, is_new: bool) -> float:
    """What is taken off a row: the residual as measured, and what no measurement shows, more while little is known."""
    return max(measured_w + UNSEEN_FRAC * limit_w, (STARTUP_FRAC if is_new else SPENT_FRAC_MIN) * limit_w)


def _row_w(limit: Limit) -> float:
    """What a row on differences of power allows."""
    assert isinstance(limit, RampLimit | SwingLimit | RateLimit)
    return limit.above_w if isinstance(limit, RateLimit) else limit.max_w
