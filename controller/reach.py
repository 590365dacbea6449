"""What a battery can take and give now, by what it says of itself: its nameplate, cut to that.

Pure; powers in watts, energies in joules.
"""

from __future__ import annotations

from controller.reserve import NO_BATTERY, BatteryBounds, battery_bounds
from controller.settings import BatterySettings
from controller.types import BatterySample, replace

STALE_SOC_S = 1.0  # how much older than the limits beside it a state of charge may be: devices renew it slowly


class BatteryReach:
    """One site's battery; bounds that did not change are the same object."""

    def __init__(self, battery: BatterySettings | None) -> None:
        self._size_j = battery.energy_j if battery is not None else 0.0
        self._nameplate = battery_bounds(battery) if battery is not None else NO_BATTERY
        self._bounds = self._nameplate

    def energy_j(self, sample: BatterySample | None) -> float:
        """What it holds; nothing where nobody knows."""
        return sample.soc_frac * self._size_j if sample is not None else 0.0

    def now(self, sample: BatterySample | None) -> BatteryBounds:
        """The nameplate bounds, cut to what the battery says it can do now; NO_BATTERY when it takes no orders."""
        if sample is None or not sample.takes_orders:
            return NO_BATTERY
        nameplate = self._nameplate
        charge_w, discharge_w = nameplate.charge_w_max, min(sample.discharge_w_max, nameplate.discharge_w_max)
        ahead_j = self.energy_j(sample) + max(0.0, -sample.power_w) * STALE_SOC_S
        if sample.charge_w_max < 0.999 * nameplate.charge_limit_w(ahead_j):  # derated beyond its declared taper
            charge_w = min(sample.charge_w_max, charge_w)
        if (charge_w, discharge_w) != (self._bounds.charge_w_max, self._bounds.discharge_w_max):
            self._bounds = replace(nameplate, charge_w_max=charge_w, discharge_w_max=discharge_w)
        return self._bounds
