"""The crash-safe set: how far the grid may stand above the load that a crash leaves behind.

After a crash the battery takes the surplus x = g - L_f while the grid target falls at the slope R_c the contract
allows. The set {(x, e)} from which that ends well is convex, with a concave upper boundary e <= e_safe(x); this file
holds that boundary, its inverse, its inner chords for the quadratic program, the rise bound beside it and the transient
dip that no battery can hide. Pure scalar arithmetic in watts, joules and seconds; it never reads a clock and decides
nothing. The derivation is in docs/planner.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.settings import BatterySettings
from controller.types import Contract, Direction, LimitId, RampLimit, RateLimit, SwingLimit, frozen, replace

# A step D through the auditor's filter (4th-order Butterworth band pass, run both ways) reads 1.16 D peak to peak.
FILTERED_STEP_GAIN = 1.16
# How many watts above the boundary still count as on it: rounding of one addition at gigawatt scale.
TINY_W = 1e-6


@frozen
class ReserveRow:
    """One limit on falls (or rises) as the reserve sees it. `window_s` is inf for a rate row above its threshold."""

    limit_id: LimitId
    max_w: float
    window_s: float
    mean_s: float
    is_filtered: bool
    slope_w_per_s: float  # the steady slope this row lets through with nothing subtracted; inf when filtered


@frozen
class BatteryBounds:
    """What the battery can take and give; energies are stored joules, `eta` is one way.

    The charge limit falls linearly from `charge_w_max` to zero over the last `taper_j` below `energy_j_max`.
    """

    charge_w_max: float
    discharge_w_max: float
    energy_j_min: float
    energy_j_max: float
    taper_j: float
    eta: float

    @property
    def can_move(self) -> bool:
        """It takes or gives anything at all."""
        return not self.charge_w_max <= 0.0 >= self.discharge_w_max

    def charge_limit_w(self, energy_j: float) -> float:
        """Pc(e): the charging power the battery accepts at `energy_j`."""
        room_j = self.energy_j_max - energy_j
        if room_j <= 0.0:
            return 0.0
        return self.charge_w_max if room_j >= self.taper_j else self.charge_w_max * room_j / self.taper_j

    def discharge_limit_w(self, energy_j: float) -> float:
        """Pd(e): the discharging power the battery can give at `energy_j`."""
        return self.discharge_w_max if energy_j > self.energy_j_min else 0.0


NO_BATTERY = BatteryBounds(
    charge_w_max=0.0, discharge_w_max=0.0, energy_j_min=0.0, energy_j_max=0.0, taper_j=0.0, eta=1.0
)


@frozen
class Contingency:
    """One sudden drop to survive: how much load goes, what stays, and how the survivors still swing.

    `load_left_w` counts everything that certainly stays (idle, other, cooling, guaranteed floor; for N-1 the other
    jobs' mean). `ripple_w` is how far the survivors dip below it at their worst phase. `late_w` of what is left
    is switched on `late_s` after the drop (a load bank); until then the target dips where the battery cannot take it.
    """

    name: str
    drop_w: float
    load_left_w: float
    ripple_w: float
    slew_w_per_s: float
    late_w: float = 0.0
    late_s: float = 0.0


@frozen
class Chords:
    """Inner linear form of the set: energy_j + slope_s[i] * x <= offset_j[i] for every i, and x <= x_w_max.

    The slopes (seconds) depend on the battery and the spacing only, so the matrix of a program stays as it is while
    the contract changes; the offsets and `x_w_max` carry the contract.
    """

    slope_s: tuple[float, ...]
    offset_j: tuple[float, ...]
    x_w_max: float


def battery_bounds(battery: BatterySettings) -> BatteryBounds:
    """The bounds a battery's nameplate and profile declare."""
    return BatteryBounds(
        charge_w_max=battery.charge_w_max,
        discharge_w_max=battery.discharge_w_max,
        energy_j_min=battery.soc_frac_min * battery.energy_j,
        energy_j_max=battery.soc_frac_max * battery.energy_j,
        taper_j=battery.taper_soc_frac * battery.energy_j,
        eta=battery.eta,
    )


def reserve_rows(contract: Contract, *, direction: Direction) -> tuple[ReserveRow, ...]:
    """The rows of `contract` that bound a fall (DOWN) or a rise (UP) of grid power."""
    assert direction is not Direction.BOTH
    rows: list[ReserveRow] = []
    for limit in contract.limits:
        if isinstance(limit, RampLimit):
            if limit.direction in (direction, Direction.BOTH):
                slope = limit.max_w / limit.window_s
                rows.append(ReserveRow(limit.id, limit.max_w, limit.window_s, limit.mean_s, False, slope))
        elif isinstance(limit, SwingLimit):
            filtered = limit.band_hz is not None
            slope = math.inf if filtered else limit.max_w / limit.window_s
            rows.append(ReserveRow(limit.id, limit.max_w, limit.window_s, limit.mean_s, filtered, slope))
        elif isinstance(limit, RateLimit):
            rows.append(ReserveRow(limit.id, limit.above_w, math.inf, limit.mean_s, False, limit.max_w_per_s))
    return tuple(rows)


def crash_slope_w_per_s(rows: Sequence[ReserveRow], *, residual_w: float, slope_w_per_s_max: float = math.inf) -> float:
    """R_c: the steady slope every row lets through once the measured residual is taken off.

    `slope_w_per_s_max` carries band rows, which bound the slope of the target itself. inf: nothing bounds it.
    """
    slope = slope_w_per_s_max
    for row in rows:
        if not row.is_filtered:
            lost = residual_w / row.window_s if math.isfinite(row.window_s) else 0.0
            slope = min(slope, max(0.0, row.slope_w_per_s - lost))
    return slope


def transient_dip_w(row: ReserveRow, contingency: Contingency, *, t_eff_s: float) -> float:
    """What the meter sees before the follower answers: min(D, s T_eff), less what the row's own mean hides."""
    seen_w = min(contingency.drop_w, contingency.slew_w_per_s * t_eff_s)
    if row.is_filtered:
        return FILTERED_STEP_GAIN * seen_w
    if row.mean_s > 0.0:
        seen_w = min(seen_w, contingency.drop_w * t_eff_s / row.mean_s)
    return seen_w


def late_share(row: ReserveRow, *, late_s: float) -> float:
    """What a row sees of each watt that is missing for `late_s`: its own mean hides the rest."""
    if row.is_filtered:
        return FILTERED_STEP_GAIN
    return min(1.0, late_s / row.mean_s) if row.mean_s > 0.0 else 1.0


def late_dip_w(row: ReserveRow, contingency: Contingency) -> float:
    """What a row sees of load that is switched on only after the drop."""
    return contingency.late_w * late_share(row, late_s=contingency.late_s) if contingency.late_w > 0.0 else 0.0


@frozen
class CrashReserve:
    """The set for one battery and one pair of slopes; build anew when any of them changes (it costs microseconds).

    `fall_w_per_s` is R_c, `rise_w_per_s` R_up; inf when no row bounds that direction.
    """

    battery: BatteryBounds
    fall_w_per_s: float
    rise_w_per_s: float

    @property
    def energy_s_per_w(self) -> float:
        """k of the stored energy k x^2 that a fall from surplus x at slope R_c needs."""
        if self.fall_w_per_s <= 0.0:
            return math.inf
        return self.battery.eta / (2.0 * self.fall_w_per_s)

    @property
    def taper_s(self) -> float:
        """Energy that each watt of charging costs at the top of the battery."""
        battery = self.battery
        return battery.taper_j / battery.charge_w_max if battery.charge_w_max > 0.0 else 0.0

    def energy_safe_j(self, surplus_w: float, *, spent_w: float = 0.0) -> float:
        """The largest stored energy from which surplus x can be ridden down; -inf beyond the charging power.

        With a spent window the target first holds for spent / R_c, then falls.
        """
        battery = self.battery
        x = max(0.0, surplus_w)
        if x <= 0.0:
            return battery.energy_j_max
        if x > battery.charge_w_max + TINY_W or self.fall_w_per_s <= 0.0:
            return -math.inf
        k, a = self.energy_s_per_w, self.taper_s
        held_j = 2.0 * k * x * max(0.0, spent_w)
        if 2.0 * k * x <= a:  # the taper binds at the start of the fall, before the energy does
            return battery.energy_j_max - a * x - held_j
        knee_j = a * a / (4.0 * k) if k > 0.0 else 0.0
        return battery.energy_j_max - knee_j - k * x * x - held_j

    def surplus_safe_w(self, energy_j: float, *, spent_w: float = 0.0) -> float:
        """The largest surplus x that power and energy survive at `energy_j`: the inverse of `energy_safe_j`."""
        battery = self.battery
        room_j = battery.energy_j_max - energy_j
        if room_j <= 0.0 or battery.charge_w_max <= 0.0 or self.fall_w_per_s <= 0.0:
            return 0.0
        k, a, held_w = self.energy_s_per_w, self.taper_s, max(0.0, spent_w)
        straight = a + 2.0 * k * held_w
        if straight > 0.0 and 2.0 * k * room_j <= a * straight:
            return min(battery.charge_w_max, room_j / straight)
        if k <= 0.0:
            return min(battery.charge_w_max, room_j / a if a > 0.0 else math.inf)
        root = math.sqrt(held_w * held_w + max(0.0, room_j - a * a / (4.0 * k)) / k)
        return min(battery.charge_w_max, root - held_w)

    def g_safe_w(self, energy_j: float, contingency: Contingency, *, spent_w: float = 0.0) -> float:
        """The largest grid target that satisfies the power and the energy condition of `contingency`."""
        by_energy_w = self.surplus_safe_w(energy_j, spent_w=spent_w)
        by_power_w = self.battery.charge_limit_w(energy_j) - contingency.ripple_w
        return contingency.load_left_w + min(by_energy_w, by_power_w)

    def rise_cover_w(self, energy_j: float, *, spent_w: float = 0.0) -> float:
        """How much load above the target the battery carries while the target climbs at R_up."""
        battery = self.battery
        stock_j = max(0.0, energy_j - battery.energy_j_min)
        power_w = battery.discharge_limit_w(energy_j)
        if math.isinf(self.rise_w_per_s):
            return power_w
        held_w = max(0.0, spent_w)
        by_energy_w = math.sqrt(held_w * held_w + 2.0 * self.rise_w_per_s * battery.eta * stock_j) - held_w
        return min(power_w, by_energy_w)

    def g_rise_min_w(self, energy_j: float, *, load_rise_w: float, spent_w: float = 0.0) -> float:
        """The lowest grid target from which load may jump to `load_rise_w` (what the caps in force let it reach)."""
        return load_rise_w - self.rise_cover_w(energy_j, spent_w=spent_w)

    def tapered_as(self, taper_s: float) -> CrashReserve:
        """The largest set inside this one whose boundary begins with the slope `taper_s`, no steeper than its own.

        A battery derated to a part of its charging power has a steeper taper. With the energy it may hold lowered by
        what the two boundaries part by at most, the shape of the whole battery lies inside its own.
        """
        battery, k = self.battery, self.energy_s_per_w
        assert taper_s <= self.taper_s
        x = min(battery.charge_w_max, self.taper_s / (2.0 * k) if k > 0.0 else math.inf)
        apart_j = _taper_j(x, self.taper_s, k) - _taper_j(x, taper_s, k)
        bounds = replace(battery, energy_j_max=battery.energy_j_max - apart_j, taper_j=taper_s * battery.charge_w_max)
        return replace(self, battery=bounds)

    def chords(self, *, count: int, spacing_s: float) -> Chords:
        """Inner chords of the boundary with slopes taper + (i + 1/2) spacing, so that only offsets know the contract.

        Vertex i lies on the boundary at x = (taper + i spacing) / (2k); a chord parts from it by at most
        spacing^2 / (16 k) joules. The first row (slope = taper) is exact up to the knee.
        """
        battery, a, k = self.battery, self.taper_s, self.energy_s_per_w
        slopes = chord_slopes_s(battery, count=count, spacing_s=spacing_s)
        if not 0.0 < k < math.inf:  # nothing bounds the fall, or no fall is allowed at all
            beyond = (battery.energy_j_max + s * battery.charge_w_max for s in slopes[1:])
            offsets = (battery.energy_j_max, *beyond)
            return Chords(slopes, offsets, battery.charge_w_max if k == 0.0 else 0.0)
        offsets_j = [battery.energy_j_max]
        for i in range(count):
            vertex_w = (a + i * spacing_s) / (2.0 * k)
            vertex_j = battery.energy_j_max - a * a / (4.0 * k) - k * vertex_w * vertex_w
            offsets_j.append(vertex_j + slopes[i + 1] * vertex_w)
        reach_w = (a + count * spacing_s) / (2.0 * k)
        return Chords(slopes, tuple(offsets_j), min(battery.charge_w_max, reach_w))

    def rise_chords(self, *, count: int, spacing_s: float) -> Chords:
        """The same for the rise: slope * y - energy_j <= offset for every i, y <= x_w_max, y the load above target."""
        battery = self.battery
        slopes = tuple((i + 0.5) * spacing_s for i in range(count))
        if not 0.0 < self.rise_w_per_s < math.inf:
            top_w = battery.discharge_w_max if math.isinf(self.rise_w_per_s) else 0.0
            return Chords(slopes, tuple(s * top_w - battery.energy_j_min for s in slopes), top_w)
        k = 1.0 / (2.0 * self.rise_w_per_s * battery.eta)
        offsets = []
        for i in range(count):
            vertex_w = i * spacing_s / (2.0 * k)
            offsets.append(slopes[i] * vertex_w - k * vertex_w * vertex_w - battery.energy_j_min)
        return Chords(slopes, tuple(offsets), min(battery.discharge_w_max, count * spacing_s / (2.0 * k)))


def _taper_j(x: float, taper_s: float, k: float) -> float:
    """How far the boundary of a taper lies under the top of the battery at surplus x."""
    return taper_s * x if 2.0 * k * x <= taper_s else taper_s * taper_s / (4.0 * k) + k * x * x


def chord_slopes_s(battery: BatteryBounds, *, count: int, spacing_s: float) -> tuple[float, ...]:
    """The `count` + 1 slopes of `CrashReserve.chords`, known before any contract is."""
    taper_s = battery.taper_j / battery.charge_w_max if battery.charge_w_max > 0.0 else 0.0
    return (taper_s, *(taper_s + (i + 0.5) * spacing_s for i in range(count)))
