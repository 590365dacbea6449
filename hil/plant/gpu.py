"""Simulated GPUs, vectorised: what they draw and how much work they do under clock locks and power limits.

`GpuBank` is plant truth for N GPUs of one model; shapes are (n,). It knows nothing of the controller.

A clock lock takes effect after the model's switching time. A power limit is a feedback loop inside the GPU: when power
stays over the limit the loop cuts the clock to a little below what fits and lets it creep back; when there is room it
raises the clock in steps, 60 % of the gap every 0.16 s. This gives the measured V100 step response, and, with ripple
faster than the loop, the bursts above the limit that newer parts show.
"""

from __future__ import annotations

import math

import numpy as np

from controller.types import FloatArray, IntArray
from hil.plant.gpu_models import GpuModel, Points, model

REASON_IDLE = 0x1
REASON_POWER_CAP = 0x4
IDLE_ACTIVITY = 0.02  # below it NVML calls the GPU idle

POWER_TAU_S = 0.018  # electrical settling after a clock change; with the sensor's window it gives the V100 record
MEASURE_TAU_S = 0.004  # of the loop's own power measurement
RAISE_PERIOD_S = 0.160  # V100 record: clocks rise 0.110, 0.277 and 0.444 s after the limit was raised
RAISE_FRAC = 0.6  # of the clock gap per raise, same record: 1327, 1462, 1522, 1530 MHz
FINE_FRAC = 0.02  # gaps below this share of the top clock are followed at once
STEADY_FRAC = 0.985  # share of the limit that steady draw settles at (98.5-99.6 % measured)
UNDERSHOOT_FRAC = 0.055  # just after a cut, V100 record: 185 W under a limit of 200 W
UNDERSHOOT_TAU_S = 0.090
OVER_FRAC = 1.005  # the loop cuts above this share of the limit
CURVE_POINTS = 64
AMBIENT_C = 30.0
RISE_C = 42.0  # at the model's highest limit
THERMAL_TAU_S = 45.0


class GpuBank:
    """N GPUs of one model. Call the setters when a cap changes, `step` for every interval.

    `spread_frac`: standard deviation of power and `clock_jitter_frac` of switching time between GPUs and switches; both
    need `rng`.
    """

    def __init__(
        self,
        gpu: GpuModel | str,
        count: int,
        *,
        rng: np.random.Generator | None = None,
        spread_frac: float = 0.0,
        clock_jitter_frac: float = 0.0,
    ) -> None:
        assert count >= 1
        assert rng is not None or (spread_frac == 0.0 and clock_jitter_frac == 0.0), (
            "spread and jitter need a generator"
        )
        self.model = model(gpu) if isinstance(gpu, str) else gpu
        self.count = count
        self.t_s = 0.0
        self._rng = rng
        self._clock_jitter_frac = clock_jitter_frac
        self._curve_mhz = _curve_clocks(self.model)
        self._curve_share = self.model.power_share(self._curve_mhz / self.model.clock_mhz_max)
        self._gain = np.ones(count) if rng is None else np.clip(rng.normal(1.0, spread_frac, count), 0.8, 1.2)
        top = float(self.model.clock_mhz_max)
        self._top_mhz = top
        self.clock_mhz = np.full(count, top)
        self.power_w = np.full(count, self.model.idle_w)  # mean over the last step
        self._power_end_w = self.power_w.copy()
        self.energy_j = np.zeros(count)
        self.throttle_s = np.zeros(count)  # time limited by power
        self.temperature_c = np.full(count, AMBIENT_C)
        self._lock_asked = np.full((2, count), np.nan)  # low, high
        self._lock = np.full((2, count), np.nan)
        self._lock_due_s = np.full(count, np.inf)
        self.power_limit_w = np.full(count, self.model.limit_w_default)
        self._governor_mhz = np.full(count, top)
        self._measured_w = self.power_w.copy()
        self._over_s = np.zeros(count)
        self._room_s = np.zeros(count)
        self._cut_age_s = np.full(count, 10.0)
        self._is_power_capped = np.zeros(count, dtype=np.bool_)
        self._activity = np.zeros(count)
        self._floor_w, self._hold_s = np.zeros(count), np.zeros(count)
        self._busy_s = np.full(count, -np.inf)
        self._slew_w_per_s = np.full((2, count), np.inf)  # up, down

    # ------------------------------------------------------------------------------------------------------- settings

    def set_clock_lock(self, low_mhz: FloatArray, high_mhz: FloatArray) -> None:
        """Ask for locked clocks; NaN in `high_mhz` means no lock. Unchanged entries are left alone."""
        asked = np.stack([np.where(np.isnan(high_mhz), np.nan, low_mhz), high_mhz])
        same = ((asked == self._lock_asked) | (np.isnan(asked) & np.isnan(self._lock_asked))).all(axis=0)
        if same.all():
            return
        delay_s = np.full(self.count, self.model.clock_switch_s)
        if self._rng is not None and self._clock_jitter_frac > 0.0:
            delay_s *= np.exp(self._rng.normal(0.0, self._clock_jitter_frac, self.count))
        self._lock_asked = asked
        self._lock_due_s = np.where(same, self._lock_due_s, self.t_s + delay_s)

    def set_power_limit(self, limit_w: FloatArray) -> None:
        """Set the limits, shape (n,), in W."""
        assert limit_w.shape == (self.count,)
        self.power_limit_w = limit_w.astype(np.float64)

    def set_smoothing(
        self, floor_w: FloatArray, up_w_per_s: FloatArray, down_w_per_s: FloatArray, hold_s: FloatArray
    ) -> None:
        """Hardware power smoothing: slopes of power, and a floor while the GPU is busy and `hold_s` longer.

        Zeros and infinities are off.
        """
        self._floor_w, self._hold_s = floor_w, hold_s
        self._slew_w_per_s = np.stack([up_w_per_s, down_w_per_s])

    # ----------------------------------------------------------------------------------------------------------- state

    @property
    def clock_lock_mhz(self) -> FloatArray:
        """Upper locked clock in force, NaN where none; shape (n,)."""
        high_mhz: FloatArray = self._lock[1]
        return high_mhz

    @property
    def event_reasons(self) -> IntArray:
        """NVML's clocks event reasons: idle, or limited by power; shape (n,)."""
        is_idle = self._activity < IDLE_ACTIVITY
        reasons: IntArray = is_idle * np.int64(REASON_IDLE) + self._is_power_capped * np.int64(REASON_POWER_CAP)
        return reasons

    @property
    def activity(self) -> FloatArray:
        """The activity of the last step."""
        return self._activity

    def demand_w(self, clock_mhz: FloatArray, activity: FloatArray) -> FloatArray:
        """Steady power at a clock and an activity, shape (n,), W."""
        share = np.interp(clock_mhz, self._curve_mhz, self._curve_share)
        demand: FloatArray = self.model.idle_w + activity * self._gain * self._peak_span_w() * share
        return demand

    # ------------------------------------------------------------------------------------------------------------ step

    def step(self, dt_s: float, activity: FloatArray) -> FloatArray:
        """Advance by `dt_s` under `activity` (0 idle, 1 the curve's load, above 1 hotter code): mean power, W, (n,)."""
        self._activity = activity
        self.t_s += dt_s
        self._switch_locks()
        top_mhz = np.where(np.isnan(self._lock[1]), self._top_mhz, self._lock[1])
        self._govern(dt_s, activity)
        self._is_power_capped = (self._governor_mhz < top_mhz - 0.5) & (activity >= IDLE_ACTIVITY)
        self.clock_mhz = np.minimum(top_mhz, self._governor_mhz)
        target_w = self._smoothed(self.demand_w(self.clock_mhz, activity), activity, dt_s)
        self._settle(dt_s, target_w)
        self._account(dt_s)
        return self.power_w

    def _switch_locks(self) -> None:
        due = self._lock_due_s <= self.t_s
        if due.any():
            self._lock = np.where(due, self._lock_asked, self._lock)
            self._lock_due_s = np.where(due, np.inf, self._lock_due_s)

    def _govern(self, dt_s: float, activity: FloatArray) -> None:
        """Move the power loop's clock ceiling."""
        limit_w = self.power_limit_w
        self._cut_age_s += dt_s
        under = UNDERSHOOT_FRAC * np.exp(-self._cut_age_s / UNDERSHOOT_TAU_S)
        fits_mhz = self._clock_for(limit_w * (STEADY_FRAC - under), activity)
        gap_mhz = fits_mhz - self._governor_mhz
        fine_mhz = FINE_FRAC * self._top_mhz
        is_over = (self._measured_w > OVER_FRAC * limit_w) & (gap_mhz < -fine_mhz)
        self._over_s = np.where(is_over, self._over_s + dt_s, 0.0)
        has_room = gap_mhz > fine_mhz
        self._room_s = np.where(has_room, self._room_s + dt_s, 0.0)

        cuts = self._over_s >= self.model.cut_delay_s
        raises = self._room_s >= RAISE_PERIOD_S
        follows = np.abs(gap_mhz) <= fine_mhz
        after_cut_mhz = self._clock_for(limit_w * (STEADY_FRAC - UNDERSHOOT_FRAC), activity) if cuts.any() else fits_mhz
        moved = np.where(follows, fits_mhz, self._governor_mhz)
        moved = np.where(raises, self._governor_mhz + RAISE_FRAC * gap_mhz, moved)
        self._governor_mhz = np.where(cuts, after_cut_mhz, moved)
        self._cut_age_s = np.where(cuts, 0.0, self._cut_age_s)
        self._over_s = np.where(cuts, 0.0, self._over_s)
        self._room_s = np.where(raises, 0.0, self._room_s)

    def _clock_for(self, power_w: FloatArray, activity: FloatArray) -> FloatArray:
        """The highest clock whose steady power is within `power_w`; the lowest clock where none is."""
        span_w = np.maximum(activity * self._gain, 1e-6) * self._peak_span_w()
        share = (power_w - self.model.idle_w) / span_w
        clock: FloatArray = np.interp(share, self._curve_share, self._curve_mhz)
        return clock

    def _smoothed(self, demand_w: FloatArray, activity: FloatArray, dt_s: float) -> FloatArray:
        """Demand under hardware smoothing: not below the floor while busy or held, no faster than its slopes."""
        self._busy_s = np.where(activity >= IDLE_ACTIVITY, self.t_s, self._busy_s)
        if not self._floor_w.any() and np.isinf(self._slew_w_per_s).all():
            return demand_w
        is_held = self.t_s - self._busy_s <= self._hold_s
        held = np.where(is_held, np.maximum(demand_w, self._floor_w), demand_w)
        up, down = self._slew_w_per_s * dt_s
        smoothed: FloatArray = np.clip(held, self._power_end_w - down, self._power_end_w + up)
        return smoothed

    def _settle(self, dt_s: float, target_w: FloatArray) -> None:
        left = math.exp(-dt_s / POWER_TAU_S)
        step_w = self._power_end_w - target_w
        self.power_w = target_w + step_w * (POWER_TAU_S / dt_s) * (1.0 - left)  # exact mean of the exponential
        self._power_end_w = target_w + step_w * left
        keep = math.exp(-dt_s / MEASURE_TAU_S)
        self._measured_w = self.power_w + (self._measured_w - self.power_w) * keep

    def _account(self, dt_s: float) -> None:
        self.energy_j += self.power_w * dt_s
        self.throttle_s += np.where(self._is_power_capped, dt_s, 0.0)
        aim_c = AMBIENT_C + RISE_C * self.power_w / self.model.limit_w_max
        self.temperature_c += (aim_c - self.temperature_c) * -math.expm1(-dt_s / THERMAL_TAU_S)

    def _peak_span_w(self) -> float:
        return self.model.peak_w - self.model.idle_w


def _curve_clocks(gpu: GpuModel) -> FloatArray:
    """Clocks between which the curve is taken as straight: the measured ones, or many of a fitted one."""
    if isinstance(gpu.curve, Points):
        return np.array(gpu.curve.mhz)
    return np.linspace(gpu.clock_mhz_min, gpu.clock_mhz_max, CURVE_POINTS)
