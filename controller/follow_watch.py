"""Whether the battery does what it is told, under our own following: what it gives against what was asked. Pure.

A battery on its way at the slope that it was declared with follows, however far it has to go; one that is further back
than that for three planner periods does not.
"""

from __future__ import annotations

from controller.settings import BatterySettings
from controller.types import BatterySample

OFF_FRAC = 0.05  # FAULTS B2: of nameplate or of what was asked, beyond what ripple and lag explain
OFF_PERIODS = 3.0


class FollowWatch:
    """One battery; `is_off` once per reading, `forget` when nobody knows what it did."""

    def __init__(self, battery: BatterySettings, *, period_s: float) -> None:
        self._battery, self._period_s = battery, period_s
        self._due_w: float | None = None  # where it is to be by now at least
        self._looked_s = 0.0
        self._off_since_s: float | None = None

    def forget(self) -> None:
        """It was silent, or nothing is asked of it: what it does is no answer."""
        self._due_w = self._off_since_s = None

    def is_off(self, now_s: float, sample: BatterySample, *, asked_w: float) -> bool:
        """For longer than an averaging, a lag or an edge explains."""
        battery, power_w = self._battery, sample.power_w
        due_w = power_w if self._due_w is None else self._due_w
        reach_w = battery.ramp_w_per_s_max * max(now_s - self._looked_s, 0.0) if self._due_w is not None else 0.0
        due_w += min(max(asked_w - due_w, -reach_w), reach_w)
        self._due_w, self._looked_s = due_w, now_s
        low_w, high_w = sorted((due_w, asked_w))
        off_w = power_w - min(max(power_w, low_w), high_w)
        allowed_w = max(OFF_FRAC * max(battery.discharge_w_max, abs(sample.reference_w)), battery.deadband_w)
        if abs(off_w) <= allowed_w:
            self._off_since_s = None
        elif self._off_since_s is None:
            self._off_since_s = now_s
        since_s = self._off_since_s
        return since_s is not None and now_s - since_s > OFF_PERIODS * self._period_s
