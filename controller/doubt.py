"""A small step of the sole meter, between two samples, that no load of this site is known to make: chiller or meter?

Two good meters may differ by three per cent, so that no check finds a meter that begins to read wrong by less; and what
a battery answers to it is on the grid in truth. Where a row has room for the step in the other direction and none for
the answer, the step is better left on the meter. Finds such steps and remembers what they may be worth; moves nothing.
Pure; powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from controller.contract import AdmissibleInterval
from controller.estimate import Estimate, LoadSource
from controller.estimate_checks import METERS_DIFFER_FRAC
from controller.types import CeilingLimit, ChangeLimit, FloorLimit, LimitId, RateLimit

METER_FRAC = 0.005  # of the reading: less is within the class of a good meter
RARE = 3.0  # times the largest change between two samples of the last seconds: ripple has such edges, a step has not
MEMORY_S = 8.0  # of these, longer than the longest usual iteration
GAP_S = 0.3  # samples further apart say nothing of how fast the load changed
GOES_ON = 0.5  # of the step in the next sample, in its direction: a ramp has begun, and the meter is no part of it
CONFIRM_S = 3.0  # within it node reports show a step of the GPUs (their sums are up to 1.5 s late)
CONFIRM_FRAC = 0.5
FORGET_S = 600.0  # the longest window of any row


@dataclass(slots=True)
class _Step:
    """One that was left on the meter."""

    t_s: float
    step_w: float
    gpu_w: float  # by the nodes, before it could show


class StepDoubt:
    """One per tracker; `see` with every estimate, `leave` when the step just seen is not answered."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._changes: deque[tuple[float, float]] = deque()
        self._sizes_w: deque[float] = deque()  # of these, without their sign
        self._left: list[_Step] = []
        self._seen_w = 0.0  # the step of the newest sample; 0 where it is none

    def see(self, estimate: Estimate) -> float:
        """The step that the newest sample shows, W; 0 where it shows none."""
        self._seen_w = 0.0
        if not estimate.is_fresh:
            return 0.0
        last, t_s = self._last, estimate.t_s
        self._last = (t_s, estimate.load_w)
        if estimate.source is not LoadSource.METER or estimate.pcc_w is None or last is None or t_s - last[0] > GAP_S:
            self._changes.clear()
            self._sizes_w.clear()
            self._last = (t_s, estimate.load_w) if estimate.source is LoadSource.METER else None
            return 0.0
        change_w = estimate.load_w - last[1]
        while self._changes and self._changes[0][0] < t_s - MEMORY_S:
            self._changes.popleft()
            self._sizes_w.popleft()
        usual_w = max(self._sizes_w, default=math.inf)
        is_known = bool(self._changes) and self._changes[0][0] < t_s - 0.5 * MEMORY_S
        self._changes.append((t_s, change_w))
        self._sizes_w.append(abs(change_w))
        power_w = abs(estimate.pcc_w)
        is_small = METER_FRAC * power_w < abs(change_w) <= METERS_DIFFER_FRAC * power_w + usual_w
        if is_known and is_small and abs(change_w) > RARE * usual_w:
            self._seen_w = change_w
        return self._seen_w

    def leave(self, estimate: Estimate) -> None:
        """The step just seen stays on the meter."""
        self._left.append(_Step(estimate.t_s, self._seen_w, estimate.gpu_w))

    def withdrawn_w(self, estimate: Estimate) -> float:
        """What was left on the meter and, by the newest sample, was the beginning of a ramp; forgotten with this."""
        if not self._left or not estimate.is_fresh or not self._changes:
            return 0.0
        step, change_w = self._left[-1], self._changes[-1][1]
        if not step.t_s < estimate.t_s <= step.t_s + GAP_S or change_w / step.step_w < GOES_ON:
            return 0.0
        del self._left[-1]
        return step.step_w

    def left_w(self, now_s: float, estimate: Estimate, window_s: float) -> tuple[float, float]:
        """How far below, and above, the meter's word power may be beside its own past of `window_s`: what was left.

        A step that the nodes' reports show as well was none of the meter's.
        """
        self._left = [s for s in self._left if now_s - s.t_s < FORGET_S and not _is_confirmed(s, now_s, estimate)]
        steps = [s.step_w for s in self._left if now_s - s.t_s < window_s]
        return sum(max(0.0, w) for w in steps), sum(max(0.0, -w) for w in steps)


def is_dear(
    step_w: float,
    *,
    now_s: float,
    target_w: float,
    interval: AdmissibleInterval,
    kept_w: Mapping[LimitId, float],
) -> bool:
    """Some row has no room for what the battery would do to answer this step, and all limits have for the step.

    `kept_w` is what each row loses to the residual. A ceiling that the rows keep out of reach loses nothing by it.
    """
    left_w = target_w + step_w
    for limit in interval.limits:
        if isinstance(limit, CeilingLimit) and limit.from_s <= now_s and target_w <= limit.max_w < left_w:
            return False
        if isinstance(limit, FloorLimit) and limit.from_s <= now_s and target_w >= limit.min_w > left_w:
            return False
    down_w, up_w = interval.spent_down_w(), interval.spent_up_w()
    moved_w, left_by_row_w = (down_w, up_w) if step_w > 0.0 else (up_w, down_w)
    rooms_w = {
        limit.id: (limit.above_w if isinstance(limit, RateLimit) else limit.max_w) - kept_w[limit.id] - abs(step_w)
        for limit in interval.limits
        if isinstance(limit, ChangeLimit) and limit.id in down_w
    }
    return any(rooms_w[i] < moved_w[i] for i in rooms_w) and all(rooms_w[i] >= left_by_row_w[i] for i in rooms_w)


def _is_confirmed(step: _Step, now_s: float, estimate: Estimate) -> bool:
    return now_s - step.t_s < CONFIRM_S and (estimate.gpu_w - step.gpu_w) / step.step_w > CONFIRM_FRAC
