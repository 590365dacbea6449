"""What the battery is told, so that the meter stays on the target.

Under software following the set-point is the load worth following less the target; under device following it is the
target itself. A battery that does not do what it is told is told to go back to nothing. Pure; powers in watts.
"""

from __future__ import annotations

import math

from controller.contract import AdmissibleInterval
from controller.estimate import UNMEASURED, Estimate
from controller.follow import FollowerSettings, SoftwareFollower, Way
from controller.forecast import Line, LineForecast
from controller.reserve import NO_BATTERY, BatteryBounds
from controller.residual import EVENT_FRAC
from controller.settings import BatterySettings, SiteSettings
from controller.tracker_io import BatteryAim, TrackerInput
from controller.types import BatterySample, Following

# Of the registered peak: ripple smaller than this is nobody's business (1 s accuracy of meters).
RIPPLE_FRAC_MIN = 0.002
RETUNE_FRAC = 0.05  # of T_eff: measured times that differ from those in use by less leave following as it is
SATURATED_FRAC = 0.98


class Aiming:
    """One site's battery; `aim` once per tick."""

    def __init__(self, site: SiteSettings, interval: AdmissibleInterval) -> None:
        self._site, self._battery, self._interval = site, site.battery, interval
        self._times = FollowerSettings(
            tick_s=site.tracker_period_s,
            delay_s=site.meter.delay_s if site.meter else 0.0,
            lag_s=site.battery.lag_s if site.battery else 0.0,
        )
        self._follow_anew()
        self._is_led = False
        self._reference_w: float | None = None
        self._let_go_w: float | None = None  # where a battery that did not follow is to be by now
        self.is_saturated = False  # it cannot hold the target, or nothing is known of how well it does

    @property
    def line(self) -> Line | None:
        """The load's strongest line; None where it has none."""
        return self._forecast.line

    @property
    def way(self) -> Way | None:
        """How load is followed; None where the device does."""
        return self._follower.way if self._site.following is Following.SOFTWARE else None

    @property
    def ripple_w(self) -> float:
        """How far the load usually is from its level of a second."""
        return self._follower.ripple_w

    @property
    def delay_s(self) -> float:
        """How late the meter is."""
        return self._times.delay_s

    def aim(
        self, given: TrackerInput, *, reach: BatteryBounds, bounds: BatteryBounds, target_w: float
    ) -> BatteryAim | None:
        """The battery's reference; None when it takes no orders.

        `reach` is what it could do if it did what it is told, `bounds` what it is counted on for.
        """
        sample, battery = given.battery, self._battery
        if given.is_disobeyed and sample is not None and battery is not None and reach is not NO_BATTERY:
            return self._let_go(battery, sample)
        self._let_go_w = None
        if battery is None or sample is None or not bounds.can_move:
            self._reference_w, self.is_saturated = None, True
            return None
        if self._site.following is Following.DEVICE:
            gives_w = sample.power_w
            self.is_saturated = (
                gives_w >= SATURATED_FRAC * bounds.discharge_w_max or -gives_w >= SATURATED_FRAC * bounds.charge_w_max
            )
            return BatteryAim(Following.DEVICE, target_w, self._expiry_w_per_s(battery, None))
        wanted_w = self._followed_w(given, target_w)
        charge_w = min(bounds.charge_w_max, sample.charge_w_max)
        reference_w = min(max(wanted_w, -charge_w), bounds.discharge_w_max)
        self.is_saturated = reference_w != wanted_w or self._is_unseen(given.estimate)
        if self._reference_w is not None and abs(reference_w - self._reference_w) < battery.deadband_w:
            reference_w = self._reference_w  # the device would not move for it
        self._reference_w = reference_w
        return BatteryAim(Following.SOFTWARE, reference_w, self._expiry_w_per_s(battery, reference_w))

    def _is_unseen(self, estimate: Estimate) -> bool:
        """Nothing is measured: what is on the meter is no residual."""
        return estimate.source in UNMEASURED and estimate.margin_w >= EVENT_FRAC * self._site.registered_peak_w

    def _let_go(self, battery: BatterySettings, sample: BatterySample) -> BatteryAim:
        """From where it stands to nothing, at the slope of its end: one that obeys again is on its way with us."""
        held_w = sample.power_w if self._let_go_w is None else self._let_go_w
        slope = self._expiry_w_per_s(battery, held_w)
        self._let_go_w = math.copysign(max(0.0, abs(held_w) - slope * self._site.tracker_period_s), held_w)
        self._reference_w, self.is_saturated = self._let_go_w, True
        return BatteryAim(Following.SOFTWARE, self._let_go_w, slope, is_let_go=True)

    def _expiry_w_per_s(self, battery: BatterySettings, reference_w: float | None) -> float:
        """How fast the battery may go back to nothing when commands stop, from a set-point (None: from wherever).

        A battery that discharges lets grid power rise, one that charges lets it fall. Nothing is kept for a
        contingency: nobody is left to answer one.
        """
        rise, fall = self._interval.contingency_rise_w_per_s, self._interval.contingency_slope_w_per_s
        allowed = min(rise, fall) if not reference_w else rise if reference_w > 0.0 else fall
        return min(allowed, battery.ramp_w_per_s_max)

    def _followed_w(self, given: TrackerInput, target_w: float) -> float:
        """Load worth following less the target; how much of it is worth following depends on how old it is.

        What the load does while the emergency path leads the battery is no ripple: following starts anew after it.
        """
        estimate = given.estimate
        if given.set_point_w is not None:
            self._is_led = True
            return given.set_point_w
        if self._is_led:
            self._is_led = False
            self._follow_anew()
        if estimate.is_revised:
            self._follower.restart()
        self._retune(estimate)
        follow_w = self._follower.step(
            given.now_s, sample_s=estimate.t_s, load_w=estimate.load_w, is_fresh=estimate.is_fresh
        )
        return follow_w - target_w

    def _retune(self, estimate: Estimate) -> None:
        """Follow by the times as measured, once they are others."""
        tick_s, lag_s, t_eff_s = self._times.tick_s, max(estimate.lag_s, 1e-3), self._times.t_eff_s
        if abs(tick_s + estimate.delay_s + lag_s - t_eff_s) > RETUNE_FRAC * t_eff_s:
            self._times = FollowerSettings(tick_s, estimate.delay_s, lag_s)
            self._follower.retune(self._times)

    def _follow_anew(self) -> None:
        ripple_w = RIPPLE_FRAC_MIN * self._site.registered_peak_w
        self._forecast = LineForecast(tick_s=self._site.tracker_period_s, amplitude_w_min=ripple_w)
        self._follower = SoftwareFollower(self._times, forecast=self._forecast, ripple_w_min=ripple_w)
