"""What the hardware power floors of GPUs are worth after a crash: as much as they hold, for as long as they hold it.

A GPU with power smoothing does not fall with its job: it stays at its floor for the hysteresis, then comes down at its
own slope. A crash is ridden down for much longer than that, so the floor is no load that stays. What it gives the
battery is the energy it draws meanwhile, and it counts as the steady floor that would save as much. Pure.
"""

from __future__ import annotations

import math

from controller.types import NodeFloor


def steady_floor_w(floor: NodeFloor | None, *, surplus_w: float, fall_w_per_s: float) -> float:
    """The load that, staying for ever, would take as much off the battery as `floor` does while it lasts.

    With surplus X over what is left, the target falling at R, and A the energy the floor draws in all, the battery is
    left X^2 / 2R - A; a steady floor C leaves (X - C)^2 / 2R. No more than the floor itself.
    """
    if floor is None or floor.power_w <= 0.0 or surplus_w <= 0.0 or not 0.0 < fall_w_per_s < math.inf:
        return 0.0
    drawn_j = floor.power_w * (floor.hold_s + 0.5 * floor.power_w / floor.down_w_per_s)
    left_w = math.sqrt(max(0.0, surplus_w * surplus_w - 2.0 * fall_w_per_s * drawn_j))
    # It must also last until the target has come down by what it counts for, or the surplus grows beyond X - C.
    lasting_w = fall_w_per_s * (floor.hold_s + floor.power_w / floor.down_w_per_s)
    return min(floor.power_w, surplus_w - left_w, lasting_w)


def sum_floors(floors: list[tuple[int, NodeFloor]]) -> NodeFloor | None:
    """All nodes together, each for as many as it stands for; the shortest hold counts for all. None without any."""
    if not floors:
        return None
    return NodeFloor(
        power_w=sum(count * floor.power_w for count, floor in floors),
        hold_s=min(floor.hold_s for _, floor in floors),
        down_w_per_s=sum(count * floor.down_w_per_s for count, floor in floors),
    )
