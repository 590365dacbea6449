"""A load bank: resistors switched onto the bus, which draw what they are told after a lag and at a slope.

An order lapses when it is not renewed in time; the bank then goes to zero at the slope it was told for that, or at once
where it knows none. With an `energy_j` it gets hot: it stops by itself when that is used up and starts again cooled.
"""

from __future__ import annotations

import math

import numpy as np

from controller.types import FloatArray, LoadBankState, frozen

COOL_FRAC = 0.1  # of its energy that must be free again before a bank that tripped hot takes orders


@frozen
class LoadBankParams:
    """Nameplate and behaviour."""

    power_w_max: float
    lag_s: float  # first-order, from order to power
    ramp_w_per_s_max: float
    has_own_ramp: bool  # False: when orders lapse it drops out at once
    energy_j: float  # from cold to too hot; inf: it may run for ever
    recovery_w: float  # heat it sheds for ever


class LoadBank:
    """State that moves in fixed steps; orders take effect at the next step."""

    def __init__(self, params: LoadBankParams) -> None:
        self.params = params
        self.power_w = 0.0
        self.is_remote = True
        self.is_deaf = False  # acknowledges orders and does not obey them
        self.derate_frac = 1.0
        self.drawn_j = 0.0
        self.power_w_peak = 0.0
        self._heat_j = 0.0
        self._is_tripped = self._is_hot = self._is_enabled = False
        self._setpoint_w = 0.0
        self._slope_w_per_s = params.ramp_w_per_s_max
        self._expiry_w_per_s = params.ramp_w_per_s_max
        self._s_left: float | None = None

    # -- orders

    def set_setpoint(self, setpoint_w: float, ramp_w_per_s: float) -> None:
        """Draw `setpoint_w`, reached no faster than `ramp_w_per_s`."""
        self._setpoint_w = max(0.0, setpoint_w)
        self._slope_w_per_s = min(max(ramp_w_per_s, 0.0), self.params.ramp_w_per_s_max)
        self._is_enabled = True

    def arm_reversion(self, timeout_s: float, *, slope_w_per_s: float) -> None:
        """The order in force lapses after `timeout_s` unless renewed, and power then falls at `slope_w_per_s`."""
        self._s_left = timeout_s
        self._expiry_w_per_s = slope_w_per_s if self.params.has_own_ramp else math.inf

    def trip(self) -> None:
        """Its contactors open, and stay open."""
        self._is_tripped = True

    def reset(self) -> None:
        self._is_tripped = False
        self._setpoint_w = 0.0

    # -- what the device shows

    @property
    def state(self) -> LoadBankState:
        if self._is_tripped or self._is_hot:
            return LoadBankState.FAULT
        return LoadBankState.RUNNING if self._is_enabled else LoadBankState.STANDBY

    @property
    def power_w_limit(self) -> float:
        is_out = self._is_tripped or self._is_hot
        return 0.0 if is_out else self.params.power_w_max * self.derate_frac

    @property
    def setpoint_w(self) -> float:
        return self._setpoint_w

    @property
    def reversion_s_left(self) -> float | None:
        return self._s_left

    @property
    def energy_j_left(self) -> float | None:
        return None if math.isinf(self.params.energy_j) else max(0.0, self.params.energy_j - self._heat_j)

    # -- motion

    def advance(self, n: int, *, dt_s: float) -> FloatArray:
        """Power at the end of each of the next `n` steps."""
        power = np.empty(n)
        for i in range(n):
            self._count_down(dt_s)
            power[i] = self._step(dt_s)
        return power

    def _step(self, dt_s: float) -> float:
        p = self.params
        goal_w = 0.0 if self.is_deaf else min(self._setpoint_w, self.power_w_limit)
        if self.state is LoadBankState.FAULT:
            self.power_w = 0.0
        else:
            gain = 1.0 - math.exp(-dt_s / p.lag_s) if p.lag_s > 0.0 else 1.0
            most_w = self._slope_w_per_s * dt_s
            self.power_w += min(max((goal_w - self.power_w) * gain, -most_w), most_w)
        self.drawn_j += self.power_w * dt_s
        self.power_w_peak = max(self.power_w_peak, self.power_w)
        if math.isfinite(p.energy_j):
            self._heat_j = max(0.0, self._heat_j + (self.power_w - p.recovery_w) * dt_s)
            is_hot = self._heat_j >= p.energy_j
            self._is_hot = is_hot or (self._is_hot and self._heat_j > (1.0 - COOL_FRAC) * p.energy_j)
        return self.power_w

    def _count_down(self, dt_s: float) -> None:
        if self._s_left is None:
            return
        self._s_left -= dt_s
        if self._s_left > 0.0:
            return
        self._s_left, self._is_enabled, self._setpoint_w = None, False, 0.0
        self._slope_w_per_s = self._expiry_w_per_s
        if math.isinf(self._expiry_w_per_s):
            self.power_w = 0.0
