"""What the contingencies watched ask of the target: how high it may stand before a crash, how low before a rise.

`CrashReserve` knows what one battery survives; this file asks it for every watch, with what that watch enforces. Pure;
powers in watts, energies in joules. `spent_w` and `spent_up_w` are the interval's contingency excess, down and up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controller.reserve import TINY_W, CrashReserve, ReserveRow, late_dip_w, transient_dip_w
from controller.tracker_io import Watch
from controller.types import LimitId, Margin, frozen

RIDE_FRAC = 0.6  # of a contingency's surplus in the battery: the crash has happened, fall at R_c


@frozen
class Clamps:
    """The highest target every enforced contingency survives, and the lowest from which a rise is covered."""

    g_safe_w: float
    g_rise_min_w: float


@frozen
class Survival:
    """One tick's battery and contingencies."""

    reserve: CrashReserve
    energy_j: float
    watches: tuple[Watch, ...]
    load_rise_w: float

    def clamps(self, *, spent_w: float, spent_up_w: float) -> Clamps:
        """Infinite where nothing is enforced."""
        reserve, energy_j = self.reserve, self.energy_j
        g_safe_w, g_rise_min_w = math.inf, -math.inf
        for watch in self.watches:
            contingency = watch.contingency
            if watch.enforces_energy:
                by_energy_w = reserve.surplus_safe_w(energy_j, spent_w=spent_w)
                g_safe_w = min(g_safe_w, contingency.load_left_w + by_energy_w)
            if watch.enforces_power:
                by_power_w = reserve.battery.charge_limit_w(energy_j) - contingency.ripple_w
                g_safe_w = min(g_safe_w, contingency.load_left_w + by_power_w)
            if watch.enforces_rise:
                rise_w = reserve.g_rise_min_w(energy_j, load_rise_w=self.load_rise_w, spent_w=spent_up_w)
                g_rise_min_w = max(g_rise_min_w, rise_w)
        return Clamps(g_safe_w, g_rise_min_w)

    def is_under_way(self, surplus_w: float, *, target_w: float, least_w: float) -> bool:
        """The battery holds most of some contingency's surplus, and more than `least_w`: it has happened."""
        return any(
            surplus_w > max(least_w, RIDE_FRAC * (target_w - watch.contingency.load_left_w))
            for watch in self.watches
            if watch.enforces_energy or watch.enforces_power
        )

    def ride_w(self, *, spent_w: float) -> float:
        """What surplus the battery rides down: by power, and by energy too where a contingency's energy is kept."""
        by_power_w = self.reserve.battery.charge_limit_w(self.energy_j)
        if not any(watch.enforces_energy for watch in self.watches):
            return by_power_w
        return min(by_power_w, self.reserve.surplus_safe_w(self.energy_j, spent_w=spent_w))

    def margins(
        self,
        target_w: float,
        *,
        rows: Sequence[ReserveRow],
        spent_by_row_w: Mapping[LimitId, float],
        spent_w: float,
        spent_up_w: float,
        residual_w: float,
        t_eff_s: float,
    ) -> tuple[Margin, ...]:
        """Every condition's distance from breaking, by contingency: transient (one per row), power, energy, rise.

        `spent_by_row_w` is the maximum over the row's window of metered power on its mean, less its value now.
        """
        reserve, energy_j = self.reserve, self.energy_j
        charge_w = reserve.battery.charge_limit_w(energy_j)
        rise_w = target_w - reserve.g_rise_min_w(energy_j, load_rise_w=self.load_rise_w, spent_w=spent_up_w)
        taken_w = [
            0.0 if row.is_filtered else max(0.0, spent_by_row_w.get(row.limit_id, 0.0)) + residual_w for row in rows
        ]
        found: list[Margin] = []
        for contingency in [watch.contingency for watch in self.watches]:
            name, surplus_w = contingency.name, target_w - contingency.load_left_w
            for row, row_w in zip(rows, taken_w, strict=True):
                used_w = transient_dip_w(row, contingency, t_eff_s=t_eff_s) + late_dip_w(row, contingency) + row_w
                found.append(Margin(f"transient:{row.limit_id}", name, row.max_w - used_w, "W"))
            power_w = charge_w - (surplus_w + contingency.ripple_w)
            found += (
                Margin("power", name, power_w if surplus_w > 0.0 else max(0.0, power_w), "W"),
                Margin("energy", name, self._energy_left_j(surplus_w, spent_w=spent_w), "J"),
                Margin("rise", name, rise_w, "W"),
            )
        return tuple(found)

    def _energy_left_j(self, surplus_w: float, *, spent_w: float) -> float:
        battery = self.reserve.battery
        ride_w = min(max(0.0, surplus_w), battery.charge_w_max)  # beyond it the power margin speaks
        left_j = self.reserve.energy_safe_j(ride_w, spent_w=spent_w) - self.energy_j
        return -battery.energy_j_max if math.isinf(left_j) else left_j  # no fall is allowed: it lasts for ever


def smallest(found: Sequence[Margin], *, power_scale_w: float, energy_scale_j: float) -> Margin | None:
    """The margin nearest to breaking, watts and joules each measured against the battery's size; None if none."""
    scale = {"W": max(power_scale_w, TINY_W), "J": max(energy_scale_j, TINY_W)}
    return min(found, key=lambda margin: margin.value / scale[margin.unit], default=None)
