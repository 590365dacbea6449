"""What the grid may be told of the next minutes, from the last plan and the last cycle (pure).

A limit's price comes from the planner's second solve, which counts work alone; it is a bound where that solve needed
slack (`Price.is_bound`). Work is told in GPU-seconds: joules of curtailment over the mean power of a busy GPU.
"""

from __future__ import annotations

import math

from controller.emergency import Armed
from controller.plan.plan import Plan
from controller.tracker_io import TrackerOutput
from controller.types import BatterySample, LimitPrice, Outlook

PATH_POINTS = 12  # of the plan's steps, which grow with their distance: every second or third of them


def outlook_of(
    now_s: float,
    *,
    track: TrackerOutput,
    plan: Plan | None,
    armed: Armed | None,
    battery: BatterySample | None,
    battery_j: float,
) -> Outlook:
    """`battery` None: none that could be used; `battery_j`: energy it could still give."""
    return Outlook(
        path=_path(now_s, track.g_ref_w, plan),
        low_w=max(track.low_w, 0.0),
        high_w=track.high_w,
        sheddable_w=armed.sheddable_w if armed is not None else 0.0,
        battery_discharge_w=battery.discharge_w_max if battery is not None else 0.0,
        battery_charge_w=battery.charge_w_max if battery is not None else 0.0,
        battery_j=battery_j if battery is not None else 0.0,
        prices=_prices(plan, armed),
    )


def _path(now_s: float, target_w: float, plan: Plan | None) -> tuple[tuple[float, float], ...]:
    if plan is None or not all(map(math.isfinite, plan.target_w.tolist())):
        return ((0.0, target_w),)
    ahead = [(plan.t_s + offset_s - now_s, w) for offset_s, w in zip(plan.offset_s, plan.target_w, strict=True)]
    later = [(float(s), float(w)) for s, w in ahead if s > 0.0]
    every = max(1, math.ceil(len(later) / PATH_POINTS))
    return ((0.0, target_w), *later[::-1][::every][::-1])


def _prices(plan: Plan | None, armed: Armed | None) -> tuple[LimitPrice, ...]:
    gpu_w = armed.busy_gpu_w if armed is not None else 0.0
    if plan is None or gpu_w <= 0.0:
        return ()
    known = [p for p in plan.prices if math.isfinite(p.joule_per_w)]
    return tuple(LimitPrice(p.kind.value, p.joule_per_w / gpu_w, p.is_bound) for p in known)
