"""What a planner is built for: the size of the program, its units, and where the chords of the crash-safe set lie.

Fixed at start-up by the site's battery and the contract then in force; nothing here is computed in a cycle.
"""

from __future__ import annotations

import math

from controller.plan.model import RETURN_S, ModelShape
from controller.reserve import BatteryBounds, chord_slopes_s
from controller.types import frozen

CHORDS = 12
RISE_CHORDS = 12
# Eight chords cover what the battery can ride down under the contract at start-up, and give away 0.4 % of it; the rest
# wait for a tighter contract.
CHORDS_COVERING = 8
# A job that is down comes back unannounced, once in RETURN_S. A target m too low for it then costs its work while the
# target climbs: m^2 / (2 R_up), in the share of the time the load stands at the top of its ripple.
TOP_SHARE = 0.3


@frozen
class PlannerShape:
    """What a planner is built for. `spacing_s` and `rise_spacing_s` place the chords of the crash-safe set."""

    model: ModelShape
    scale_w: float
    spacing_s: float
    rise_spacing_s: float


def planner_shape(
    *,
    classes: int,
    battery: BatteryBounds,
    fall_w_per_s: float,
    rise_w_per_s: float,
    is_rise_enforced: bool,
    peak_w: float,
    has_ballast: bool = False,
) -> PlannerShape:
    """The shape for a site: chords spread over what its battery can ride down under the slopes in force now."""
    scale_w = 10.0 ** round(math.log10(max(peak_w, 1.0) / 10.0))
    spacing_s = _chord_spacing_s(battery, fall_w_per_s, battery.charge_w_max) / CHORDS_COVERING
    rise_spacing_s = _chord_spacing_s(battery, rise_w_per_s, battery.discharge_w_max) / (RISE_CHORDS // 2)
    return PlannerShape(
        model=ModelShape(
            classes=classes,
            eta=battery.eta,
            fall_slopes_s=chord_slopes_s(battery, count=CHORDS, spacing_s=spacing_s),
            late_slopes_s=chord_slopes_s(battery, count=CHORDS // 2, spacing_s=2.0 * spacing_s),
            rise_slopes_s=tuple((i + 0.5) * rise_spacing_s for i in range(RISE_CHORDS)) if is_rise_enforced else (),
            has_ballast=has_ballast,
            energy_s=max(1.0, (battery.energy_j_max - battery.energy_j_min) / (10.0 * scale_w)),
            ready_cost=min(1.0, TOP_SHARE / (2.0 * max(rise_w_per_s / scale_w, 1e-6) * RETURN_S)),
        ),
        scale_w=scale_w,
        spacing_s=spacing_s,
        rise_spacing_s=rise_spacing_s,
    )


def _chord_spacing_s(battery: BatteryBounds, slope_w_per_s: float, power_w: float) -> float:
    """The steepest slope (seconds) of the boundary the battery can reach: by its power or by its energy."""
    room_j = battery.energy_j_max - battery.energy_j_min
    if not 0.0 < slope_w_per_s < math.inf or power_w <= 0.0 or room_j <= 0.0:
        return 60.0  # nothing bounds the fall: any spacing does
    return max(1.0, min(power_w / slope_w_per_s, math.sqrt(2.0 * room_j / slope_w_per_s)))
