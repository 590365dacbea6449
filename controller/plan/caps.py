"""From planned curtailment to caps: what a class may draw at the top of its ripple, step by step.

A cap comes from a choice between classes, from need (what target and battery cannot carry), or, under an enforced rise,
from prudence. Arrays are (K, H); nothing here solves anything.
"""

from __future__ import annotations

import numpy as np

from controller.plan.model import PEAK_SHARE
from controller.plan.plan import STEP_S, PlanInput
from controller.plan.rule import Sharing, share_cut
from controller.types import FloatArray

CUT_TINY_FRAC = 1e-3  # of a class: an interior point never says exactly zero


def caps_of_cut(given: PlanInput, cut_w: FloatArray, peak_w: FloatArray) -> FloatArray:
    """Caps, shape (K, H), whose effect on the mean is `cut_w`; infinite where a class is not cut.

    A cap y below the top of the ripple costs PEAK_SHARE * y in the mean, and all of it once it is below the mean. Only
    classes cheaper than the dearest are capped here: to cut the dearest before the battery is at its end saves nothing.
    """
    weight = np.array([job_class.weight for job_class in given.classes])
    floor_w = np.array([job_class.cap_w_min for job_class in given.classes])
    tiny_w = CUT_TINY_FRAC * np.array([max(job_class.peak_w, 1.0) for job_class in given.classes])
    is_cut = (weight < float(weight.max()) * (1.0 - 1e-9))[:, None] & (cut_w > tiny_w[:, None])
    if not bool(is_cut.any()):
        return np.full(cut_w.shape, np.inf)
    depth_w = depth_of_cut(given, cut_w, peak_w)
    return np.where(is_cut, np.maximum(peak_w - depth_w, floor_w[:, None]), np.inf)


def cap_need(
    given: PlanInput,
    caps: FloatArray,
    peak_w: FloatArray,
    *,
    cut_w: FloatArray,
    target_w: FloatArray,
    energy_path_j: FloatArray,
) -> None:
    """Lower `caps` in place to what target and battery carry in each step: as planned, then cheapest class first."""
    battery = given.reserve.battery
    start_j = np.concatenate([[given.energy_j], energy_path_j[:-1]])
    give_w = np.maximum(0.0, start_j - battery.energy_j_min) * battery.eta / STEP_S[: given.steps]
    if given.is_rise_enforced:
        cover_w = np.minimum(give_w, [given.cover_w(energy_j) for energy_j in start_j.tolist()])
    else:  # the battery's power, for as long as there is energy
        cover_w = np.minimum(give_w, battery.discharge_w_max)
    capped_w = np.minimum(peak_w, caps)
    excess_w = capped_w.sum(axis=0) - (target_w + cover_w - given.other_w)
    if float(excess_w.max()) <= 0.0:
        return
    floor_w = np.array([job_class.cap_w_min for job_class in given.classes])
    planned_w = depth_of_cut(given, cut_w, peak_w) - (peak_w - capped_w)  # what the plan would cut beyond `caps`
    for step in np.flatnonzero(excess_w > 0.0).tolist():
        give = np.maximum(0.0, capped_w[:, step] - floor_w)
        first = np.clip(planned_w[:, step], 0.0, give)
        first *= min(1.0, float(excess_w[step]) / max(float(first.sum()), 1e-9))
        rest_w = float(excess_w[step]) - float(first.sum())
        cut = first + share_cut(given, give - first, max(0.0, rest_w), sharing=Sharing.ORDERED)
        caps[:, step] = np.where(cut > 0.0, capped_w[:, step] - cut, caps[:, step])


def depth_of_cut(given: PlanInput, cut_w: FloatArray, peak_w: FloatArray) -> FloatArray:
    """How far below the top of the ripple a cap must stand to cut `cut_w` from the mean, shape (K, H)."""
    depth_w: FloatArray = np.minimum(cut_w / PEAK_SHARE, cut_w + peak_w - given.demand_w)
    return depth_w


def cap_spare(given: PlanInput, caps: FloatArray, peak_w: FloatArray, *, gpu_w_max: FloatArray) -> None:
    """Under an enforced rise every class has a cap: what is spare is shared by size, in place."""
    size_w = np.array([max(job_class.peak_w, 1.0) for job_class in given.classes])
    capped_w = np.minimum(peak_w, caps)
    spare_w = gpu_w_max - capped_w.sum(axis=0)
    spread = np.minimum(caps, capped_w + np.maximum(spare_w, 0.0) * (size_w / size_w.sum())[:, None])
    share = np.maximum(0.0, 1.0 + spare_w / np.maximum(capped_w.sum(axis=0), 1.0))
    caps[:] = np.where(spare_w >= 0.0, spread, capped_w * share)
