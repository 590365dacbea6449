"""Planners without a solver: `rule` (mean plus a gain on energy), `rule-max` (as high as a crash allows), `hold`.

They are the MPC's baselines and its fallback. All of them cap only what the battery cannot cover, and share the cut
among classes with `cut_classes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique

import numpy as np

from controller.plan.plan import OFFSET_S, STEP_S, Plan, PlanInput, PlanStatus
from controller.types import FloatArray

# `rule` brings the battery back to its middle in about this time; slower than checkpoints (11-60 s), faster than jobs.
RECOVERY_S = 180.0
# Of what the battery can give: taken for its own recovery. The rest is for the load, or its recovery would cap GPUs.
RECOVERY_FRAC = 0.5


@unique
class Sharing(Enum):
    """How a cut is split among classes."""

    PROPORTIONAL = 0  # every class gives the same share of what it can give
    ORDERED = 1  # tiers first, then weight: the cheapest class gives all it may before the next gives anything


@dataclass(slots=True)
class RulePlanner:
    """Mean load plus a gain on stored energy: follows the load slowly, and the battery back to its middle."""

    name: str = "rule"
    sharing: Sharing = Sharing.PROPORTIONAL

    def plan(self, given: PlanInput) -> Plan:
        """The target every step heads for is the mean load plus (e_mid - e) / RECOVERY_S, kept crash-safe.

        A battery above its middle gives what it can spare: no GPU is capped to empty it.
        """
        bounds = given.reserve.battery
        load_w = given.load_w()
        x_w = max(0.0, float(load_w.mean()) - float(given.load_left_w.min()))
        top_j = given.reserve.energy_safe_j(min(x_w, bounds.charge_w_max), spent_w=given.spent_w)
        top_j = min(max(top_j, bounds.energy_j_min), bounds.energy_j_max)
        middle_j = 0.5 * (bounds.energy_j_min + top_j)
        recovery_w = (middle_j - given.energy_j) / RECOVERY_S
        spare_w = RECOVERY_FRAC * given.cover_w(given.energy_j) - float(given.ripple_up_w.max())
        wish_w = np.full(given.steps, float(load_w[0]) + max(recovery_w, -max(0.0, spare_w)))
        return follow(given, wish_w, policy=self.name, sharing=self.sharing, status=PlanStatus.SOLVED)


@dataclass(slots=True)
class RuleMaxPlanner:
    """The target as high as a crash allows, always; caps take only what the battery cannot cover."""

    name: str = "rule-max"
    sharing: Sharing = Sharing.PROPORTIONAL

    def plan(self, given: PlanInput) -> Plan:
        wish_w = np.full(given.steps, np.inf)
        return follow(given, wish_w, policy=self.name, sharing=self.sharing, status=PlanStatus.SOLVED)


def follow(given: PlanInput, wish_w: FloatArray, *, policy: str, sharing: Sharing, status: PlanStatus) -> Plan:
    """Walk the target towards `wish_w` step by step inside interval, slopes and crash-safe set; cap what is left over.

    The battery is followed along, so that the path ahead knows when it runs full or empty.
    """
    bounds = given.reserve.battery
    ripple_w = float(given.ripple_up_w[0] + given.ripple_down_w[0])
    has_follower = bounds.charge_w_max + bounds.discharge_w_max > ripple_w
    # One pass over arrays before the walk, floats in it: thirty small slices cost more than all of its arithmetic.
    load_w, other_w, left_w = given.load_w().tolist(), given.other_w.tolist(), given.load_left_w.tolist()
    wishes_w, ceiling_w = wish_w.tolist(), given.ceiling_w.tolist()
    lows_w, highs_w, mosts_w = given.low_w.tolist(), given.high_w.tolist(), given.target_w_max().tolist()
    peak_w = class_peaks_w(given)
    top_w = peak_w.sum(axis=0).tolist()
    target_w, energy_j = given.target_w, given.energy_j
    targets, batteries, energies = [], [], []
    caps = np.full((len(given.classes), given.steps), np.inf)
    for h, step_s in enumerate(STEP_S[: given.steps].tolist()):
        safe_w = left_w[h] + crash_safe_surplus_w(given, energy_j, h)
        # The battery must not overflow within the step either.
        absorb_w = (bounds.energy_j_max - energy_j) / (bounds.eta * step_s)
        full_w = load_w[h] + max(0.0, min(bounds.charge_w_max, absorb_w))
        low_w, high_w = lows_w[h], highs_w[h]
        if h > 0:  # the first step is free in the interval, later ones have slopes
            low_w = max(low_w, target_w - given.slope_down_w_per_s * step_s)
            high_w = max(low_w, min(high_w, target_w + given.slope_up_w_per_s * step_s))
        target_w = min(max(min(wishes_w[h], safe_w, full_w, mosts_w[h]), low_w), high_w)
        give_w = max(0.0, energy_j - bounds.energy_j_min) * bounds.eta / step_s
        cover_w = min(given.cover_w(energy_j), give_w)
        site_w_max = target_w + cover_w
        if not has_follower:
            # Nothing holds the target: the site draws what it draws. A cap below that would be the drop itself, and
            # the lower target it leaves would ask for the next one; so caps keep ceilings, and enforced rises.
            bound_w = high_w if given.is_rise_enforced else ceiling_w[h]
            site_w_max = max(site_w_max, bound_w, low_w)
        gpu_w_max, drawn_w = site_w_max - other_w[h], load_w[h]
        if given.is_rise_enforced or not top_w[h] <= gpu_w_max:
            caps[:, h] = cut_classes(given, peak_w[:, h], gpu_w_max, sharing=sharing)
            drawn_w = float(np.minimum(caps[:, h], given.demand_w[:, h]).sum()) + other_w[h]
        battery_w = min(max(drawn_w - target_w, -bounds.charge_limit_w(energy_j)), cover_w)
        stored_w = -battery_w / bounds.eta if battery_w > 0.0 else -battery_w * bounds.eta
        energy_j = min(max(energy_j + stored_w * step_s, bounds.energy_j_min), bounds.energy_j_max)
        targets.append(target_w)
        batteries.append(battery_w)
        energies.append(energy_j)
    return Plan(
        t_s=given.t_s,
        offset_s=OFFSET_S[: given.steps],
        target_w=np.array(targets),
        cap_w=caps[:, 0].copy(),
        cap_path_w=caps,
        chosen_cap_w=np.full(len(given.classes), np.inf),
        battery_w=np.array(batteries),
        energy_path_j=np.array(energies),
        prices=(),
        policy=policy,
        status=status,
        solve_ms=0.0,
    )


def crash_safe_surplus_w(given: PlanInput, energy_j: float, step: int) -> float:
    """How far the target may stand above the load left in `step`: what the contingency survives from `energy_j`."""
    spent_w = given.spent_w if step == 0 else 0.0
    by_energy_w = given.reserve.surplus_safe_w(energy_j, spent_w=spent_w)
    by_power_w = given.reserve.battery.charge_limit_w(energy_j) - given.contingency_ripple_w
    return min(by_energy_w, by_power_w)


def cut_classes(given: PlanInput, peak_w: FloatArray, gpu_w_max: float, *, sharing: Sharing) -> FloatArray:
    """Caps, shape (K,), whose sum with every class at the top of its ripple, `peak_w`, is at most `gpu_w_max`.

    Caps never go below a class's own floor. Where nothing must be cut they are infinite, unless the rise is enforced:
    then what is spare is shared out, so that no class may jump by more than the battery covers.
    """
    excess_w = float(peak_w.sum()) - gpu_w_max
    if excess_w <= 0.0 and not given.is_rise_enforced:
        return np.full(len(given.classes), np.inf)
    floor_w = np.array([job_class.cap_w_min for job_class in given.classes])
    if excess_w <= 0.0:
        size_w = np.array([max(job_class.peak_w, 1.0) for job_class in given.classes])
        spread: FloatArray = np.maximum(floor_w, peak_w - excess_w * size_w / size_w.sum())
        return spread
    give_w = np.maximum(0.0, peak_w - floor_w)
    cut: FloatArray = peak_w - share_cut(given, give_w, excess_w, sharing=sharing)
    kept: FloatArray = np.maximum(cut, np.minimum(floor_w, peak_w))
    return kept


def class_peaks_w(given: PlanInput) -> FloatArray:
    """Each class at the top of the site's ripple, shape (K, H): the ripple is shared in proportion to the draw."""
    total_w = given.demand_w.sum(axis=0)
    factor = 1.0 + np.where(total_w > 0.0, given.ripple_up_w / np.maximum(total_w, 1e-9), 0.0)
    peak_w: FloatArray = given.demand_w * factor
    return peak_w


def share_cut(given: PlanInput, give_w: FloatArray, excess_w: float, *, sharing: Sharing) -> FloatArray:
    """Split `excess_w` among classes that can give `give_w` each, shape (K,); never more than they can give."""
    if sharing is Sharing.PROPORTIONAL:
        total_w = float(give_w.sum())
        return give_w * min(1.0, excess_w / total_w) if total_w > 0.0 else np.zeros_like(give_w)
    cut_w = np.zeros_like(give_w)
    for k in cheapest_first(given):
        cut_w[k] = min(float(give_w[k]), excess_w)
        excess_w -= cut_w[k]
    return cut_w


def cheapest_first(given: PlanInput) -> list[int]:
    """Class indices in the order they give: tolerated loss left first, then lowest priority, then lowest weight."""
    classes = given.classes
    return sorted(
        range(len(classes)), key=lambda k: (classes[k].loss_left_j <= 0.0, classes[k].priority, classes[k].weight)
    )
