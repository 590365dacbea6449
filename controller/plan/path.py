"""The target's path: in which bounds one exists, the nearest path inside them, and the rungs below a solved plan."""

from __future__ import annotations

import math

import numpy as np

from controller.plan.plan import OFFSET_S, STEP_S, Plan, PlanInput, PlanStatus
from controller.types import FloatArray, replace


def reachable(given: PlanInput) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Bounds and step allowances of the target, shape (H,) each, in which at least one path exists.

    The path that moves only where the interval pushes it is always allowed: a step that must fall faster than the
    ordinary slope (a ceiling that is due) may.
    """
    steps = given.steps
    low_w = np.minimum(given.low_w, given.high_w)
    high_w = np.maximum(given.low_w, given.target_w_max())
    fall_w = given.slope_down_w_per_s * STEP_S[:steps]
    rise_w = given.slope_up_w_per_s * STEP_S[:steps]
    if not math.isfinite(given.slope_down_w_per_s):
        fall_w = np.full(steps, np.inf)
    if not math.isfinite(given.slope_up_w_per_s):
        rise_w = np.full(steps, np.inf)
    path_w = min(max(given.target_w, float(low_w[0])), float(high_w[0]))
    if float(low_w.max()) <= path_w <= float(high_w.min()):  # nothing ever pushes it
        return low_w, high_w, fall_w, rise_w
    for step, (low, high) in enumerate(zip(low_w.tolist(), high_w.tolist(), strict=True)):
        next_w = min(max(path_w, low), high)
        if next_w < path_w:
            fall_w[step] = max(float(fall_w[step]), path_w - next_w)
        elif next_w > path_w:
            rise_w[step] = max(float(rise_w[step]), next_w - path_w)
        path_w = next_w
    return low_w, high_w, fall_w, rise_w


def onto_slopes(
    target_w: FloatArray, low_w: FloatArray, high_w: FloatArray, fall_w: FloatArray, rise_w: FloatArray
) -> FloatArray:
    """The path nearest to `target_w`, step by step, that keeps bounds and allowances exactly."""
    wish: FloatArray = np.minimum(np.maximum(target_w, low_w), high_w)
    moves = wish[1:] - wish[:-1]
    if bool((moves <= rise_w[1:]).all() and (-moves <= fall_w[1:]).all()):
        return wish
    kept = wish.tolist()
    for step in range(1, len(kept)):
        reach_low, reach_high = kept[step - 1] - fall_w[step], kept[step - 1] + rise_w[step]
        kept[step] = min(max(min(max(kept[step], reach_low), reach_high), low_w[step]), high_w[step])
    return np.array(kept)


def shifted(last: Plan, given: PlanInput) -> Plan:
    """The last plan read later: its end is held."""
    moved_s = OFFSET_S[: given.steps] + (given.t_s - last.t_s)

    def later(values: FloatArray) -> FloatArray:
        return np.interp(moved_s, last.offset_s, values)

    step = int(np.searchsorted(last.offset_s, given.t_s - last.t_s, side="left"))
    caps = last.cap_path_w[:, min(step, last.cap_path_w.shape[1] - 1)]
    return replace(
        last,
        t_s=given.t_s,
        target_w=later(last.target_w),
        cap_w=caps.copy(),
        battery_w=later(last.battery_w),
        energy_path_j=later(last.energy_path_j),
        prices=(),
        status=PlanStatus.SHIFTED,
        solve_ms=0.0,
    )


def hold(given: PlanInput, last: Plan | None) -> Plan:
    """Target and caps stay: all that can be said about an input that is not a number."""
    steps = given.steps
    target_w = given.target_w if math.isfinite(given.target_w) else (float(last.target_w[0]) if last else 0.0)
    caps = last.cap_w if last is not None else np.full(len(given.classes), np.inf)
    return Plan(
        t_s=given.t_s,
        offset_s=OFFSET_S[:steps],
        target_w=np.full(steps, target_w),
        cap_w=caps.copy(),
        cap_path_w=np.repeat(caps[:, None], steps, axis=1),
        chosen_cap_w=caps.copy(),
        battery_w=np.zeros(steps),
        energy_path_j=np.full(steps, given.energy_j if math.isfinite(given.energy_j) else 0.0),
        prices=(),
        policy="mpc",
        status=PlanStatus.HOLD,
        solve_ms=0.0,
    )
