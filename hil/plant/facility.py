"""Between the racks and the point of common coupling: distribution losses, cooling with its thermal mass, the UPS."""

from __future__ import annotations

import math

import numpy as np

from controller.types import FloatArray, frozen


@frozen
class FacilityParams:
    """`cooling_frac` W of cooling per W of IT in steady state, reached with time constant `cooling_tau_s`."""

    fixed_w: float  # lights, offices, pumps that never stop
    loss_frac: float  # lost in transformers, UPS and distribution, of the IT power
    cooling_frac: float
    cooling_tau_s: float
    ups_share: float  # of the IT power behind UPSes
    ups_minutes: float  # how long their batteries carry it
    ups_transfer_pu: float  # below this voltage they take over
    ups_hold_s: float  # and keep the load this long after the voltage is back
    ups_walk_in_s: float  # over which it returns to the grid


class Facility:
    """Turns IT power into power at the point of common coupling, the battery aside."""

    def __init__(self, params: FacilityParams, *, it_w: float) -> None:
        self.params = params
        self._cooling_w = params.cooling_frac * it_w
        self.it_w = it_w
        # No losses, no cooling, no UPS: IT power and what is fixed is all there is.
        self.is_plain = params.cooling_frac == 0.0 and params.loss_frac == 0.0 and params.ups_share == 0.0
        self._off_grid = 0.0  # share of the UPS load on its batteries
        self._sag_until_s = -math.inf
        self._left_s = params.ups_minutes * 60.0

    def advance(self, it_w: FloatArray, t_s: FloatArray, voltage_pu: FloatArray, *, dt_s: float) -> FloatArray:
        """Power drawn from the grid and the battery together at each instant."""
        p = self.params
        on_grid_w = it_w * self._carried(t_s, voltage_pu, dt_s=dt_s)
        self.it_w = float(it_w[-1])
        if p.cooling_frac == 0.0 and p.loss_frac == 0.0:
            return on_grid_w + p.fixed_w
        duration_s = it_w.size * dt_s
        goal_w = p.cooling_frac * float(it_w.mean())
        end_w = goal_w + (self._cooling_w - goal_w) * math.exp(-duration_s / p.cooling_tau_s)
        cooling_w = self._cooling_w + (end_w - self._cooling_w) * np.arange(1, it_w.size + 1) / it_w.size
        self._cooling_w = end_w
        return on_grid_w * (1.0 + p.loss_frac) + cooling_w + p.fixed_w

    @property
    def is_on_battery(self) -> bool:
        return self._off_grid > 0.0

    @property
    def minutes_left(self) -> float:
        return max(self._left_s, 0.0) / 60.0

    @property
    def ups_output_w(self) -> float:
        return self.it_w * self.params.ups_share

    def _carried(self, t_s: FloatArray, voltage_pu: FloatArray, *, dt_s: float) -> FloatArray | float:
        """Share of the IT power that the grid carries."""
        p = self.params
        if p.ups_share == 0.0:
            return 1.0
        low = voltage_pu < p.ups_transfer_pu
        if self._off_grid == 0.0 and not low.any():
            return 1.0
        carried = np.empty(t_s.size)
        walk_step = dt_s / max(p.ups_walk_in_s, dt_s)
        for i in range(t_s.size):
            if low[i]:
                self._sag_until_s = float(t_s[i]) + p.ups_hold_s
                self._off_grid = 1.0
            elif t_s[i] >= self._sag_until_s:
                self._off_grid = max(self._off_grid - walk_step, 0.0)
            self._left_s -= self._off_grid * dt_s
            if self._left_s <= 0.0:
                self._off_grid = 0.0  # empty: what is left of the grid must carry it
            carried[i] = 1.0 - p.ups_share * self._off_grid
        return carried
