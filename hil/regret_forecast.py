"""What a policy of the energy bench may know of the load ahead: the recent past, or the past and a schedule.

`blind` sees each job's power up to now and expects more of the same. `scheduled` also knows starts, stops and
checkpoints; crashes and the restarts after them are never announced. Both give mean, ripple top and ripple bottom per
step of the planner's grid, and sample by sample the least that the jobs may draw in the next seconds: low phases where
their waves put them, noise below that, and, blind, a pause that any one job may begin at any moment.
"""

from __future__ import annotations

import numpy as np

from controller.plan.plan import OFFSET_S, STEPS
from controller.types import FloatArray, frozen, replace
from hil.regret_trace import LOW_PHASE_FRAC, STEP_S, ReferenceTrace
from hil.regret_wave import DEEP_FRAC, Wave, fit_wave

WINDOW_S = 8.0  # longer than two of the longest iterations: the mean does not wobble with the phase
SETTLED_S = 0.3  # a job that has drawn nothing for so long is down, and its past no longer counts
DOWN_FRAC = 0.1  # of its largest draw so far: less is down
WAVE_S = 60.0  # of history a wave is fitted to: its period is then known to a thousandth
LOW_AHEAD_S = 20.0  # of samples ahead
LIFT_S = 4.0  # about one period of the slowest job
ASSUMED_NOISE_FRAC = 0.03  # of the low phase, until it was seen
FEW = 20  # samples say little about their scatter
NOISE_SIGMAS = 4.5  # one low sample in 300,000 lies deeper


@frozen
class Forecast:
    """Per class and step: (K, H) mean, and the site's ripple above and below the mean, (H,)."""

    mean_w: FloatArray
    top_w: FloatArray  # (K, H)
    bottom_w: FloatArray  # (H,), all jobs low at once, noise below that
    return_w: FloatArray  # (K, H) what a class may draw without notice

    @property
    def ripple_up_w(self) -> FloatArray:
        up: FloatArray = (self.top_w - self.mean_w).sum(axis=0)
        return up

    @property
    def ripple_down_w(self) -> FloatArray:
        down: FloatArray = self.mean_w.sum(axis=0) - self.bottom_w
        return down


@frozen
class Envelope:
    """One job lately: mean, top, bottom."""

    mean_w: float
    top_w: float
    bottom_w: float
    low_w: float  # mean of the low phases
    noise_w: float  # standard deviation in them

    @property
    def swing_w(self) -> float:
        """From the low phases up to the high ones, noise left out."""
        return max(0.0, 0.9 * self.top_w - self.low_w)


NOTHING = Envelope(0.0, 0.0, 0.0, 0.0, 0.0)


class Forecaster:
    """Looks only at samples up to the instant it is asked at; what it said once it says again to whoever asks next."""

    def __init__(self, trace: ReferenceTrace, *, is_scheduled: bool) -> None:
        self._trace = trace
        self.is_scheduled = is_scheduled
        self._seen: dict[int, list[Envelope]] = {}
        self._said: dict[int, Forecast] = {}
        self._window = round(WINDOW_S / STEP_S)
        self._ends = np.rint(OFFSET_S / STEP_S).astype(np.int64)
        self._settled = round(SETTLED_S / STEP_S)
        self._typical: list[Envelope | None] = [None] * len(trace.jobs)  # last full window of running

    def at(self, step: int) -> Forecast:
        """The forecast made right after sample `step` was seen."""
        if step not in self._said:
            self._said[step] = self._look(step)
        return self._said[step]

    def _look(self, step: int) -> Forecast:
        shape = (len(self._trace.jobs), STEPS)
        mean, top, low, noise, returning = (np.empty(shape) for _ in range(5))
        now = self._now(step)
        for job, recent in enumerate(now):
            ahead = self._scheduled(job, step, recent) if self.is_scheduled else None
            if ahead is None:
                mean[job], top[job], low[job], noise[job] = recent.mean_w, recent.top_w, recent.low_w, recent.noise_w
                returning[job] = max(self._running(job).top_w, recent.top_w)  # unannounced: it may come at any moment
            else:
                mean[job], top[job], low[job], noise[job] = ahead
                returning[job] = ahead[1]
        bottom = np.maximum(0.0, low.sum(axis=0) - NOISE_SIGMAS * np.sqrt((noise**2).sum(axis=0)))
        return Forecast(mean, top, np.minimum(bottom, mean.sum(axis=0)), returning)

    def low_path_w(self, step: int) -> FloatArray:
        """What all jobs together draw at least in each of the next samples, shape (LOW_AHEAD_S / STEP_S,)."""
        now = self._now(step)
        ahead = step + 1 + np.arange(round(LOW_AHEAD_S / STEP_S))
        drawn, always_low, noise = [], [], []
        for job, recent in enumerate(now):
            wave = self._wave(job, step, recent)
            low_w = np.full(len(ahead), recent.low_w)
            if self.is_scheduled and recent.top_w > 0.0:
                levels = self._trace.announced[job, np.minimum(ahead, self._trace.steps - 1)]
                low_w[levels < 1.0] = 0.0
                is_high = levels >= 2.0
            else:
                is_high = np.ones(len(ahead), dtype=np.bool_)
            high_w = low_w if wave is None else np.where(is_high & ~wave.is_low(ahead), low_w + recent.swing_w, low_w)
            drawn.append(high_w)
            always_low.append(low_w)
            noise.append(np.where(low_w > 0.0, recent.noise_w, 0.0))
        total_w = np.sum(drawn, axis=0)
        if not self.is_scheduled:  # any one job may pause from the next sample on
            total_w = np.min(
                [total_w - high_w + low_w for high_w, low_w in zip(drawn, always_low, strict=True)], axis=0
            )
        least: FloatArray = np.maximum(0.0, total_w - NOISE_SIGMAS * np.sqrt(np.square(noise).sum(axis=0)))
        return least

    def _wave(self, job: int, step: int, recent: Envelope) -> Wave | None:
        """The wave of the job's last minute; None while it is down or pauses."""
        if recent.top_w <= 0.0:
            return None
        first = max(0, step + 1 - round(WAVE_S / STEP_S))
        return fit_wave(self._trace.demand_w[job, first : step + 1], first=first)

    def _now(self, step: int) -> list[Envelope]:
        """Every job lately; steps are first asked for in their order, since what was typical until then counts."""
        if step not in self._seen:
            self._seen[step] = [self._recent(job, step) for job in range(len(self._trace.jobs))]
        return self._seen[step]

    def _recent(self, job: int, step: int) -> Envelope:
        """The envelope of the last window, begun anew after the job was down."""
        demand = self._trace.demand_w[job]
        past = demand[max(0, step + 1 - self._window) : step + 1]
        down = past < DOWN_FRAC * self._trace.jobs[job].power_w
        if bool(down[-self._settled :].all()):
            return NOTHING
        up = np.flatnonzero(down)
        running = past[up[-1] + 1 :] if len(up) else past
        if not len(running):
            return NOTHING
        found = _envelope(running)
        typical = self._typical[job]
        if len(running) == self._window and (typical is None or self._trace.announced[job, step] >= 2.0):
            self._typical[job] = found
        if typical is not None and len(running) < self._window:  # just back: the mean of a part of a period says little
            return replace(
                typical,
                top_w=max(typical.top_w, found.top_w),
                bottom_w=min(typical.bottom_w, found.bottom_w),
                low_w=min(typical.low_w, found.low_w),
            )
        return found

    def _scheduled(
        self, job: int, step: int, recent: Envelope
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray] | None:
        """Mean, top, low phase and noise per step as announced; None while the job is down against its schedule."""
        trace = self._trace
        announced = trace.announced[job]
        if announced[step] >= 1.0 and recent.top_w <= 0.0:
            return None  # it crashed: nobody knows when it returns
        running = self._running(job)
        means = np.array([0.0, LOW_PHASE_FRAC * running.top_w, running.mean_w])
        tops = np.array([0.0, LOW_PHASE_FRAC * running.top_w, running.top_w])
        lows = np.array([0.0, running.low_w, running.low_w])
        noises = np.array([0.0, running.noise_w, running.noise_w])
        # Beyond the end of the trace its last announced level goes on.
        last = trace.steps - 1
        ends = step + 1 + self._ends
        starts = np.concatenate([[step + 1], ends[:-1]]) - (step + 1)
        levels = announced[np.minimum(np.arange(step + 1, ends[-1]), last)].astype(np.int64)
        mean = np.add.reduceat(means[levels], starts) / np.diff(np.append(starts, len(levels)))
        top = np.maximum.reduceat(tops[levels], starts)
        low = np.minimum.reduceat(lows[levels], starts)
        return mean, np.maximum(top, mean), np.minimum(low, mean), np.minimum.reduceat(noises[levels], starts)

    def _running(self, job: int) -> Envelope:
        """What the job draws when it runs: as last seen, else by its declared power and a duty of one half."""
        typical = self._typical[job]
        if typical is not None and typical.top_w > 0.6 * self._trace.jobs[job].power_w:
            return typical
        top_w = self._trace.jobs[job].power_w
        low_w = LOW_PHASE_FRAC * top_w
        return Envelope(0.5 * (top_w + low_w), top_w, low_w, low_w, ASSUMED_NOISE_FRAC * low_w)


def _envelope(running: FloatArray) -> Envelope:
    top_w, bottom_w = float(running.max()), float(running.min())
    middle_w = 0.5 * (top_w + bottom_w)
    is_flat = top_w - bottom_w < DEEP_FRAC * top_w
    low = running if is_flat else running[running < middle_w]
    noise_w = max(float(low.std()), ASSUMED_NOISE_FRAC * float(low.mean()) if len(low) < FEW else 0.0)
    return Envelope(float(running.mean()), top_w, bottom_w, float(low.mean()), noise_w)
