"""Inputs for planner tests: a small training site with two or three classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controller.plan.plan import OFFSET_S, STEPS, JobClass, PlanInput
from controller.plan.shape import planner_shape
from controller.plan.solve import MpcPlanner
from controller.planner_start import map_in_place
from controller.reserve import BatteryBounds, CrashReserve
from controller.types import ClassId

MEGA = 1e6
SLOPE = 0.1 * MEGA


def battery(*, power: float = 5.0, energy: float = 500.0, taper_frac: float = 0.05) -> BatteryBounds:
    return BatteryBounds(
        charge_w_max=power * MEGA,
        discharge_w_max=power * MEGA,
        energy_j_min=0.0,
        energy_j_max=energy * MEGA,
        taper_j=taper_frac * energy * MEGA,
        eta=0.95,
    )


def given(
    *,
    demand: tuple[float, ...] = (4.5, 2.3),
    energy: float = 250.0,
    target: float = 8.0,
    weight: tuple[float, ...] | None = None,
    loss_left: tuple[float, ...] | None = None,
    rise: bool = False,
    bounds: BatteryBounds | None = None,
    slope: float = SLOPE,
) -> PlanInput:
    """A steady site: jobs of `demand` MW above 3.5 MW that stay after a crash; limits on slope alone."""
    count = len(demand)
    means = np.array(demand)[:, None] * MEGA * np.ones((1, STEPS))
    weights, left = weight or (1.0,) * count, loss_left or (float("inf"),) * count
    top = means.sum(axis=0) * 0.3
    return PlanInput(
        t_s=100.0,
        classes=tuple(
            JobClass(ClassId(f"c{k}"), 50, weights[k], 0.0, left[k] * MEGA, 1.4 * demand[k] * MEGA)
            for k in range(count)
        ),
        demand_w=means,
        other_w=np.full(STEPS, 3.5 * MEGA),
        ripple_up_w=top,
        ripple_down_w=top,
        target_w=target * MEGA,
        low_w=target * MEGA - slope * OFFSET_S,
        high_w=target * MEGA + slope * OFFSET_S,
        ceiling_w=np.full(STEPS, np.inf),
        slope_down_w_per_s=slope,
        slope_up_w_per_s=slope,
        energy_j=energy * MEGA,
        reserve=CrashReserve(bounds or battery(), slope, slope),
        load_left_w=np.full(STEPS, 3.5 * MEGA),
        load_return_w=np.full(STEPS, (3.5 + 1.4 * sum(demand)) * MEGA),
        contingency_ripple_w=0.0,
        spent_w=0.0,
        spent_rise_w=0.0,
        is_rise_enforced=rise,
    )


def mpc(
    *,
    classes: int = 2,
    rise: bool = False,
    bounds: BatteryBounds | None = None,
    price_every: int = 1,
    ballast: bool = False,
) -> MpcPlanner:
    shape = planner_shape(
        classes=classes,
        battery=bounds or battery(),
        fall_w_per_s=SLOPE,
        rise_w_per_s=SLOPE,
        is_rise_enforced=rise,
        peak_w=13 * MEGA,
        has_ballast=ballast,
    )
    return MpcPlanner(shape, map_in_place(shape.model), price_every=price_every)


def ceiling(site: PlanInput, *, to: float, step: int) -> PlanInput:
    """The same with a ceiling of `to` MW from `step` on, approached along the slope the contract lets."""
    due_s = float(OFFSET_S[step])
    line = to * MEGA + site.slope_down_w_per_s * np.maximum(due_s - OFFSET_S, 0.0)
    late = np.where(np.arange(STEPS) >= step, to * MEGA, np.inf)
    return replace(site, high_w=np.minimum(site.high_w, np.maximum(line, site.low_w)), ceiling_w=late)
