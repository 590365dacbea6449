"""Rows of a contract, and intervals over them, as the tests of the admissible interval make them."""

from __future__ import annotations

import math

import numpy as np

from controller.contract import AdmissibleInterval
from controller.types import (
    CeilingLimit,
    Direction,
    FloorLimit,
    Limit,
    LimitId,
    LimitStatus,
    Provenance,
    RampLimit,
    RateLimit,
    SwingLimit,
)

HERE = Provenance(source="test", date="", status=LimitStatus.LOCAL)


def ramp(max_w: float, window_s: float, direction: Direction = Direction.BOTH, name: str = "ramp") -> RampLimit:
    return RampLimit(LimitId(name), max_w, window_s, direction, 1.0, HERE)


def swing(max_w: float, window_s: float, name: str = "swing") -> SwingLimit:
    return SwingLimit(LimitId(name), max_w, window_s, 1.0, HERE)


def rate(max_w_per_s: float, above_w: float, horizon_s: float = 600.0) -> RateLimit:
    return RateLimit(LimitId("rate"), max_w_per_s, above_w, 1.0, HERE, horizon_s)


def ceiling(max_w: float, from_s: float, until_s: float = math.inf) -> CeilingLimit:
    return CeilingLimit(LimitId("ceiling"), max_w, from_s, HERE, until_s=until_s)


def allowed_w(limit: Limit, lag_s: np.ndarray, *, is_up: bool) -> np.ndarray:
    """What a row lets power change over each lag; written from the meaning of the rows alone."""
    if isinstance(limit, RampLimit):
        is_judged = limit.direction in (Direction.BOTH, Direction.UP if is_up else Direction.DOWN)
        return np.where((lag_s <= limit.window_s) & is_judged, limit.max_w, np.inf)
    if isinstance(limit, SwingLimit):
        return np.where(lag_s <= limit.window_s, limit.max_w, np.inf)
    assert isinstance(limit, RateLimit)
    flat = np.maximum(limit.above_w, limit.max_w_per_s * lag_s)
    return np.where(lag_s <= limit.horizon_s, flat, np.inf)


def instants_to_judge(times: np.ndarray, limits: list[Limit]) -> np.ndarray:
    """Every point, every middle and every instant at which a window's edge meets a point, from either side."""
    spans = [0.0]
    for limit in limits:
        if isinstance(limit, RateLimit):
            spans += [limit.horizon_s, limit.above_w / limit.max_w_per_s]
        else:
            spans.append(limit.window_s)
    shifted = [times + span for span in spans] + [times - span for span in spans]
    middles = (times[1:] + times[:-1]) / 2.0
    every = np.unique(np.concatenate([*shifted, middles]))
    return every[(every >= times[0]) & (every <= times[-1])]


def worst_excess_w(times: np.ndarray, powers: np.ndarray, limits: list[Limit], *, from_s: float = -math.inf) -> float:
    """How far the piecewise linear path breaks any row in windows that end after `from_s`; negative when it holds."""
    at = instants_to_judge(times, limits)
    value = np.interp(at, times, powers)
    lag = at[:, None] - at[None, :]
    change = value[:, None] - value[None, :]
    judged = (lag >= 0.0) & (at[None, :] >= from_s)
    worst = -math.inf
    for limit in limits:
        # A lag a rounding error above the window is the window itself.
        near = np.maximum(lag - 1e-9, 0.0)
        for is_up in (True, False):
            excess = (change if is_up else -change) - allowed_w(limit, near, is_up=is_up)
            worst = max(worst, float(np.max(np.where(judged, excess, -np.inf))))
    return worst


def walk_at_high(interval: AdmissibleInterval, *, until_s: float, dt_s: float = 0.05) -> None:
    while interval.now_s < until_s:
        t_s = interval.now_s + dt_s
        found = interval.bounds(t_s)
        interval.push(t_s, min(found.high_w, 50e6))


def known(rows: list[Limit], *, start_w: float = 50e6, tick_s: float = 0.1) -> AdmissibleInterval:
    """An interval whose past is known to be flat for as long as any row looks back."""
    interval = AdmissibleInterval(rows, start_s=-1000.0, start_w=start_w, tick_s=tick_s)
    interval.push(0.0, start_w)
    return interval


def floor_row(min_w: float, from_s: float, until_s: float = math.inf) -> FloorLimit:
    return FloorLimit(LimitId("floor"), min_w, from_s, HERE, until_s=until_s)
