"""What a policy of the energy bench may know of the load ahead: the recent past, or the past and a schedule.

`blind` sees each job's power up to now and expects more of the same. `scheduled` also knows starts, stops and
checkpoints; crashes and the restarts after them are never announced. Both give mean, ripple top and ripple bottom per
step of the planner's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.plan.plan import OFFSET_S, STEPS
from controller.types import FloatArray
from hil.regret_trace import LOW_PHASE_FRAC, STEP_S, ReferenceTrace

WINDOW_S = 8.0  # longer than two of the longest iterations: the mean does not wobble with the phase
SETTLED_S = 0.3  # a job that has drawn nothing for so long is down, and its past no longer counts
DOWN_FRAC = 0.1  # of its largest draw so far: less is down


@dataclass(frozen=True, slots=True)
class Forecast:
    """Per class and step: (K, H) mean, and the site's ripple above and below the mean, (H,)."""

    mean_w: FloatArray
    top_w: FloatArray  # (K, H)
    bottom_w: FloatArray  # (K, H)
    return_w: FloatArray  # (K, H) what a class may draw without notice

    @property
    def ripple_up_w(self) -> FloatArray:
        up: FloatArray = (self.top_w - self.mean_w).sum(axis=0)
        return up

    @property
    def ripple_down_w(self) -> FloatArray:
        down: FloatArray = (self.mean_w - self.bottom_w).sum(axis=0)
        return down


@dataclass(frozen=True, slots=True)
class Envelope:
    """One job lately: mean, top, bottom."""

    mean_w: float
    top_w: float
    bottom_w: float


class Forecaster:
    """Looks only at samples up to the instant it is asked at."""

    def __init__(self, trace: ReferenceTrace, *, is_scheduled: bool) -> None:
        self._trace = trace
        self._is_scheduled = is_scheduled
        self._window = round(WINDOW_S / STEP_S)
        self._ends = np.rint(OFFSET_S / STEP_S).astype(np.int64)
        self._settled = round(SETTLED_S / STEP_S)
        self._typical: list[Envelope | None] = [None] * len(trace.jobs)  # last full window of running

    def at(self, step: int) -> Forecast:
        """The forecast made right after sample `step` was seen."""
        shape = (len(self._trace.jobs), STEPS)
        mean, top, bottom, returning = (np.empty(shape) for _ in range(4))
        for job in range(shape[0]):
            recent = self._recent(job, step)
            ahead = self._scheduled(job, step, recent) if self._is_scheduled else None
            if ahead is None:
                mean[job], top[job], bottom[job] = recent.mean_w, recent.top_w, recent.bottom_w
                returning[job] = max(self._running(job).top_w, recent.top_w)  # unannounced: it may come at any moment
            else:
                mean[job], top[job], bottom[job] = ahead
                returning[job] = ahead[1]
        return Forecast(mean, top, bottom, returning)

    def _recent(self, job: int, step: int) -> Envelope:
        """The envelope of the last window, begun anew after the job was down."""
        demand = self._trace.demand_w[job]
        past = demand[max(0, step + 1 - self._window) : step + 1]
        down = past < DOWN_FRAC * self._trace.jobs[job].power_w
        if bool(down[-self._settled :].all()):
            return Envelope(0.0, 0.0, 0.0)
        up = np.flatnonzero(down)
        running = past[up[-1] + 1 :] if len(up) else past
        if not len(running):
            return Envelope(0.0, 0.0, 0.0)
        found = Envelope(float(running.mean()), float(running.max()), float(running.min()))
        typical = self._typical[job]
        if len(running) == self._window and (typical is None or self._trace.announced[job, step] >= 2.0):
            self._typical[job] = found
        if typical is not None and len(running) < self._window:  # just back: the mean of a part of a period says little
            return Envelope(typical.mean_w, max(typical.top_w, found.top_w), min(typical.bottom_w, found.bottom_w))
        return found

    def _scheduled(self, job: int, step: int, recent: Envelope) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """Mean, top and bottom per step from the announced levels; None while the job is down against its schedule."""
        trace = self._trace
        announced = trace.announced[job]
        if announced[step] >= 1.0 and recent.top_w <= 0.0:
            return None  # it crashed: nobody knows when it returns
        running = self._running(job)
        means = np.array([0.0, LOW_PHASE_FRAC * running.top_w, running.mean_w])
        tops = np.array([0.0, LOW_PHASE_FRAC * running.top_w, running.top_w])
        bottoms = np.array([0.0, running.bottom_w, running.bottom_w])
        # Beyond the end of the trace its last announced level goes on.
        last = trace.steps - 1
        ends = step + 1 + self._ends
        starts = np.concatenate([[step + 1], ends[:-1]]) - (step + 1)
        levels = announced[np.minimum(np.arange(step + 1, ends[-1]), last)].astype(np.int64)
        mean = np.add.reduceat(means[levels], starts) / np.diff(np.append(starts, len(levels)))
        top = np.maximum.reduceat(tops[levels], starts)
        bottom = np.minimum.reduceat(bottoms[levels], starts)
        return mean, np.maximum(top, mean), np.minimum(bottom, mean)

    def _running(self, job: int) -> Envelope:
        """What the job draws when it runs: as last seen, else by its declared power and a duty of one half."""
        typical = self._typical[job]
        if typical is not None and typical.top_w > 0.6 * self._trace.jobs[job].power_w:
            return typical
        top_w = self._trace.jobs[job].power_w
        return Envelope(0.5 * (1.0 + LOW_PHASE_FRAC) * top_w, top_w, LOW_PHASE_FRAC * top_w)
