"""The grid at the point of common coupling: stiff, or one swinging machine with a governor that the site can move."""

from __future__ import annotations

import numpy as np

from controller.types import FloatArray, frozen


@frozen
class SwingParams:
    """One machine, 2 H S df/dt / f0 = imbalance - damping, and a governor with droop and a first-order lag."""

    rating_w: float
    inertia_s: float
    damping_pu: float
    droop_pu: float
    governor_tau_s: float


class Grid:
    """Frequency and voltage. Frequency moves with the site's power only when `swing` is given."""

    def __init__(self, *, nominal_hz: float, swing: SwingParams | None) -> None:
        self.nominal_hz = nominal_hz
        self._swing = swing
        self._deviation_pu = 0.0
        self._governor_pu = 0.0
        self._outage_w = 0.0  # generation lost elsewhere
        self._balance_w: float | None = None  # the site power at which the machine was in balance
        self._sags: list[tuple[float, float, float]] = []

    def sag(self, *, t_s: float, duration_s: float, voltage_pu: float) -> None:
        self._sags.append((t_s, t_s + duration_s, voltage_pu))

    def lose_generation(self, lost_w: float) -> None:
        """A generator elsewhere trips; negative gives it back. A stiff grid does not notice."""
        self._outage_w += lost_w

    @property
    def is_steady(self) -> bool:
        """Stiff and without a sag so far: nothing to compute."""
        return self._swing is None and not self._sags

    def voltage_pu(self, t_s: FloatArray) -> FloatArray:
        voltage = np.ones(t_s.size)
        for start_s, end_s, level in self._sags:
            if end_s >= t_s[0]:
                voltage[(t_s >= start_s) & (t_s < end_s)] = level
        return voltage

    def advance(self, pcc_w: FloatArray, *, dt_s: float) -> FloatArray:
        """Frequency at the end of each step."""
        swing = self._swing
        if swing is None:
            return np.full(pcc_w.size, self.nominal_hz)
        if self._balance_w is None:
            self._balance_w = float(pcc_w[0])
        extra_pu = (pcc_w - self._balance_w + self._outage_w) / swing.rating_w
        frequency = np.empty(pcc_w.size)
        deviation, governor = self._deviation_pu, self._governor_pu
        for i, extra in enumerate(extra_pu.tolist()):
            governor += dt_s / swing.governor_tau_s * (-deviation / swing.droop_pu - governor)
            deviation += dt_s / (2.0 * swing.inertia_s) * (governor - extra - swing.damping_pu * deviation)
            frequency[i] = self.nominal_hz * (1.0 + deviation)
        self._deviation_pu, self._governor_pu = deviation, governor
        return frequency
