"""A grid battery: power conversion with lag, slope and limits, a store with losses, and its own controller.

It obeys a set-point, or follows the load by itself so that the point of common coupling keeps a target. Both orders
lapse when they are not renewed in time, as the device's reversion timer says. Discharge is positive.
"""

from __future__ import annotations

import math
from enum import StrEnum, unique

import numpy as np

from controller.types import BatteryState, FloatArray, frozen


@unique
class Reversion(StrEnum):
    """What a follower does when its target was not renewed; a set-point always ramps to zero."""

    RAMP_TO_ZERO = "ramp_to_zero"
    FREEZE = "freeze"  # it goes on following the last target


@unique
class Order(StrEnum):
    IDLE = "idle"
    SETPOINT = "setpoint"
    FOLLOW = "follow"


@frozen
class BatteryParams:
    """Nameplate and behaviour; powers at the connection point, `eta` one way."""

    charge_w_max: float
    discharge_w_max: float
    energy_j: float
    soc_frac_start: float
    soc_frac_min: float
    soc_frac_max: float
    eta: float
    lag_s: float  # first-order lag of a set-point, wire and device together
    follow_lag_s: float  # first-order lag of the device's own following
    slope_w_per_s_max: float  # what the converter can do at most
    deadband_w: float  # errors below it are not acted on
    taper_soc_frac: float  # limits fall to zero over this share of charge at either end
    standby_w: float  # auxiliaries, drawn from the store
    follow_reversion: Reversion
    reversion_w_per_s: float  # slope back to zero when an order lapses

    def __post_init__(self) -> None:
        assert 0.0 < self.eta <= 1.0 and self.energy_j > 0.0 and self.slope_w_per_s_max > 0.0


class Battery:
    """State that moves in fixed steps; orders take effect at the next step."""

    def __init__(self, params: BatteryParams) -> None:
        self.params = params
        self.power_w = 0.0
        self.energy_j = params.soc_frac_start * params.energy_j
        self.order = Order.IDLE
        self.state = BatteryState.STANDBY
        self.is_remote = True
        self.is_deaf = False  # acknowledges orders and does not follow them
        self.derate_frac = 1.0
        self.throughput_j = 0.0
        self.power_w_peak = 0.0
        self._setpoint_w = 0.0
        self._target_w = 0.0  # where a follower's target is going
        self._target_now_w: float | None = None  # where it is; None until the first step of following
        self._slope_w_per_s = params.slope_w_per_s_max
        self._reversion_s_left: float | None = None
        self._reversion_w_per_s = params.reversion_w_per_s

    # -- orders

    def set_setpoint(self, setpoint_w: float, ramp_w_per_s: float | None = None) -> None:
        """Hold `setpoint_w`, reached no faster than `ramp_w_per_s` (the converter's own slope when None)."""
        self.order, self._setpoint_w = Order.SETPOINT, setpoint_w
        self._slope_w_per_s = self._bounded_slope(ramp_w_per_s)
        self._target_now_w = None
        self._run()

    def set_follow_target(self, target_w: float, ramp_w_per_s: float) -> None:
        """Keep the point of common coupling at `target_w`; the target itself moves there at `ramp_w_per_s`."""
        self.order, self._target_w = Order.FOLLOW, target_w
        self._slope_w_per_s = max(ramp_w_per_s, 0.0)
        self._run()

    def set_idle(self) -> None:
        """Go to zero at the converter's own slope."""
        self.order, self._setpoint_w = Order.IDLE, 0.0
        self._slope_w_per_s = self.params.slope_w_per_s_max
        self._target_now_w = None
        self._reversion_s_left = None
        if self.state is BatteryState.RUNNING:
            self.state = BatteryState.STANDBY

    def arm_reversion(self, timeout_s: float | None, *, slope_w_per_s: float | None = None) -> None:
        """The order in force lapses after `timeout_s` unless renewed; None disarms the timer.

        The way back to zero has the slope given, else the device's own.
        """
        self._reversion_s_left = timeout_s
        self._reversion_w_per_s = self.params.reversion_w_per_s if slope_w_per_s is None else slope_w_per_s

    def trip(self) -> None:
        """Open the breaker: power is zero at the next step, and stays."""
        self.state = BatteryState.FAULT

    def reset(self) -> None:
        """Close it again, idle."""
        self.state = BatteryState.STANDBY
        self.set_idle()

    # -- what the device shows

    @property
    def soc_frac(self) -> float:
        return self.energy_j / self.params.energy_j

    @property
    def charge_w_limit(self) -> float:
        p = self.params
        return p.charge_w_max * self.derate_frac * _taper(p.soc_frac_max - self.soc_frac, p.taper_soc_frac)

    @property
    def discharge_w_limit(self) -> float:
        p = self.params
        return p.discharge_w_max * self.derate_frac * _taper(self.soc_frac - p.soc_frac_min, p.taper_soc_frac)

    @property
    def reference_w(self) -> float:
        """What it was last told: the target under following, else the set-point."""
        return self._target_w if self.order is Order.FOLLOW else self._setpoint_w

    @property
    def is_following(self) -> bool:
        return self.order is Order.FOLLOW

    @property
    def reversion_s_left(self) -> float | None:
        return self._reversion_s_left

    # -- motion

    def advance(self, load_w: FloatArray, *, dt_s: float, pcc_w_before: float) -> tuple[FloatArray, FloatArray]:
        """Power and state of charge at the end of each step, given the load there.

        `pcc_w_before` is where a follower's target starts when it has just been told to follow.
        """
        p, n = self.params, load_w.size
        self._count_down(n * dt_s)
        if self.state is BatteryState.FAULT:
            self.power_w = 0.0
            return load_w * 0.0, load_w * 0.0 + self.soc_frac
        if self.order is Order.FOLLOW:
            wanted_w = (load_w - self._targets_w(n, dt_s=dt_s, pcc_w_before=pcc_w_before)).tolist()
            lag_s, slope = p.follow_lag_s, p.slope_w_per_s_max
        else:
            wanted_w = [self._setpoint_w] * n
            lag_s, slope = p.lag_s, min(self._slope_w_per_s, p.slope_w_per_s_max)
        if self.is_deaf:
            wanted_w = [0.0] * n
        power, soc = self._convert(wanted_w, lag_s=lag_s, slope_w_per_s=slope, dt_s=dt_s)
        return np.array(power), np.array(soc)

    def _targets_w(self, n: int, *, dt_s: float, pcc_w_before: float) -> FloatArray | float:
        """A follower's target at each of `n` steps on its way to what it was told; one number once it is there."""
        goal_w, step_w = self._target_w, self._slope_w_per_s * dt_s
        now_w = self._target_now_w if self._target_now_w is not None else pcc_w_before
        way_w: list[float] = []
        while now_w != goal_w and len(way_w) < n:
            gap_w = goal_w - now_w
            now_w = goal_w if -step_w <= gap_w <= step_w else now_w + math.copysign(step_w, gap_w)
            way_w.append(now_w)
        self._target_now_w = now_w
        if not way_w or way_w[0] == goal_w:
            return goal_w
        return np.array(way_w + [goal_w] * (n - len(way_w)))

    def _convert(
        self, wanted_w: list[float], *, lag_s: float, slope_w_per_s: float, dt_s: float
    ) -> tuple[list[float], list[float]]:
        """Power and state of charge, step by step: what is wanted, late and inside the limits.

        The innermost loop of every run, 200 times a simulated second: plain names and comparisons.
        """
        p = self.params
        gain = 1.0 - math.exp(-dt_s / lag_s) if lag_s > 0.0 else 1.0
        step_w, deadband_w, capacity_j = slope_w_per_s * dt_s, p.deadband_w, p.energy_j
        eta, standby_w = p.eta, p.standby_w
        low_w, high_w = -self.charge_w_limit, self.discharge_w_limit
        near_empty, near_full = p.soc_frac_min + p.taper_soc_frac, p.soc_frac_max - p.taper_soc_frac
        b, energy_j, throughput_j, peak_w = self.power_w, self.energy_j, self.throughput_j, self.power_w_peak
        power, soc = [], []
        for want_w in wanted_w:
            error = (low_w if want_w < low_w else high_w if want_w > high_w else want_w) - b
            if error > deadband_w or error < -deadband_w:
                move = error * gain
                b += -step_w if move < -step_w else step_w if move > step_w else move
            b = low_w if b < low_w else high_w if b > high_w else b
            drawn_w = b / eta if b > 0.0 else b * eta
            energy_j -= (drawn_w + standby_w) * dt_s
            energy_j = 0.0 if energy_j < 0.0 else capacity_j if energy_j > capacity_j else energy_j
            magnitude_w = b if b > 0.0 else -b
            throughput_j += magnitude_w * dt_s
            if magnitude_w > peak_w:
                peak_w = magnitude_w
            soc_frac = energy_j / capacity_j
            power.append(b)
            soc.append(soc_frac)
            if soc_frac < near_empty or soc_frac > near_full:
                self.energy_j = energy_j
                low_w, high_w = -self.charge_w_limit, self.discharge_w_limit
        self.power_w, self.energy_j, self.throughput_j, self.power_w_peak = b, energy_j, throughput_j, peak_w
        return power, soc

    def _count_down(self, duration_s: float) -> None:
        left_s = self._reversion_s_left
        if left_s is None:
            return
        self._reversion_s_left = left_s - duration_s
        if self._reversion_s_left > 0.0:
            return
        self._reversion_s_left = None
        if self.order is Order.SETPOINT or self.params.follow_reversion is Reversion.RAMP_TO_ZERO:
            self.order, self._setpoint_w = Order.SETPOINT, 0.0
            self._slope_w_per_s = self._reversion_w_per_s
            self._target_now_w = None

    def _bounded_slope(self, ramp_w_per_s: float | None) -> float:
        top = self.params.slope_w_per_s_max
        return top if ramp_w_per_s is None else min(max(ramp_w_per_s, 0.0), top)

    def _run(self) -> None:
        if self.state in (BatteryState.STANDBY, BatteryState.OFF):
            self.state = BatteryState.RUNNING


def _taper(room_frac: float, taper_frac: float) -> float:
    if room_frac <= 0.0:
        return 0.0
    return 1.0 if taper_frac <= 0.0 else min(room_frac / taper_frac, 1.0)
