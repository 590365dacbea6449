"""Whether the battery does what it is told: what it gives against what was asked. Pure.

Under our own following a set-point was asked. A battery that follows by itself is asked for what its target needs:
load, as meter and battery show it, less the target. One on its way at the slope that it was declared with follows,
however far it has to go; one that is further back than that for three planner periods does not.
"""

from __future__ import annotations

import math

from controller.estimate_checks import METERS_DIFFER_FRAC
from controller.settings import BatterySettings
from controller.types import BatterySample

OFF_FRAC = 0.05  # FAULTS B2: of nameplate or of what was asked, beyond what ripple and lag explain
OFF_PERIODS = 3.0


class FollowWatch:
    """One battery under our own following; `is_off` once per reading, `forget` when nobody knows what it did."""

    def __init__(self, battery: BatterySettings, *, period_s: float) -> None:
        self._battery, self._period_s = battery, period_s
        self._due_w: float | None = None  # where it is to be by now at least
        self._looked_s = 0.0
        self._off_since_s: float | None = None

    def forget(self) -> None:
        """It was silent, or nothing is asked of it: what it does is no answer."""
        self._due_w = self._off_since_s = None

    def is_off(self, now_s: float, sample: BatterySample, *, asked_w: float, import_w: float | None = None) -> bool:
        """For longer than an averaging, a lag or an edge explains; what is imported tells nothing of it."""
        battery = self._battery
        allowed_w = max(OFF_FRAC * max(battery.discharge_w_max, abs(sample.reference_w)), battery.deadband_w)
        if self.beyond_w(now_s, sample.power_w, asked_w=asked_w) <= allowed_w:
            self._off_since_s = None
        elif self._off_since_s is None:
            self._off_since_s = now_s
        since_s = self._off_since_s
        return since_s is not None and now_s - since_s > OFF_PERIODS * self._period_s

    def beyond_w(self, now_s: float, power_w: float, *, asked_w: float) -> float:
        """How far `power_w` is from all between where its declared slope would have brought it and `asked_w`."""
        due_w = power_w if self._due_w is None else self._due_w
        reach_w = self._battery.ramp_w_per_s_max * max(now_s - self._looked_s, 0.0) if self._due_w is not None else 0.0
        due_w += min(max(asked_w - due_w, -reach_w), reach_w)
        self._due_w, self._looked_s = due_w, now_s
        low_w, high_w = sorted((due_w, asked_w))
        return abs(power_w - min(max(power_w, low_w), high_w))


class HoldWatch:
    """One battery that follows by itself; called as `FollowWatch` is.

    What it leaves of a ripple comes and goes, so its mean over three planner periods counts. It follows a meter of its
    own, which may differ from ours as much as two good meters do.
    """

    def __init__(self, battery: BatterySettings, *, period_s: float) -> None:
        self._battery, self._mean_s = battery, OFF_PERIODS * period_s
        self._way = FollowWatch(battery, period_s=period_s)
        self.forget()

    def forget(self) -> None:
        """Nobody knows what it left on the meter, or it was told something else."""
        self._way.forget()
        self._left_w, self._looked_s = 0.0, math.nan

    def is_off(self, now_s: float, sample: BatterySample, *, asked_w: float, import_w: float | None) -> bool:
        """The meter shows other power than the target `asked_w`; the battery could give the difference and does not.

        While no meter is believed (`import_w` None), or it was not told to follow, nobody knows.
        """
        if import_w is None or not sample.is_following:
            self.forget()
            return False
        wanted_w = min(max(import_w + sample.power_w - asked_w, -sample.charge_w_max), sample.discharge_w_max)
        left_w = self._way.beyond_w(now_s, sample.power_w, asked_w=wanted_w)
        elapsed_s = now_s - self._looked_s if math.isfinite(self._looked_s) else 0.0
        self._left_w += (1.0 - math.exp(-elapsed_s / self._mean_s)) * (left_w - self._left_w)
        self._looked_s = now_s
        return self._left_w > OFF_FRAC * self._battery.discharge_w_max + METERS_DIFFER_FRAC * abs(import_w)
