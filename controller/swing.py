"""A ripple the battery cannot take, slow enough for telemetry: how far each class swings, and limits that cut its tops.

A locked clock scales both phases of an iteration, so that cutting the top of a ripple with it pulls the bottom down as
well, and with it the target that the battery can hold above the bottom. A power limit binds in the high phase alone:
the GPU's own loop acts in phase, with no clock written and no phase to predict. It needs about a tenth of a second to
bite, and the driver promises nothing below a second: shorter phases than that are refused here, and keep clocks.

Pure; powers are of whole classes (K,) unless said. Decides nothing about how much is cut: the planner does.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.demand import Demand
from controller.fleet import Fleet
from controller.types import BoolArray, FloatArray, frozen

SAMPLE_S = 0.2  # node telemetry comes at 5 Hz
SPAN_S = 40.0  # remembered: three of the slowest iterations seen on a site (tens of seconds are rare)
SPAN_S_MIN = 12.0
CYCLES = 3  # of the slowest class: what is older says nothing of the present state
RISES_MIN = 3  # a start, a checkpoint or a restart rises once
PHASE_S_MIN = 1.0  # NVML's power is a mean of up to a second, and a limit lets shorter bursts through (to 143 %)
EDGE_SHARE = 0.15  # of the swing, on either side of its middle: noise within it is no edge
SWING_FRAC_MIN = 0.05  # of its top: a flatter class does not iterate
LIMITED_SHARE = 0.97  # of its power limit: what a class would draw without it is not seen there
LEAVE_FRAC = 0.9  # of the battery's reach: below it a ripple that was beyond it is within it again
LIMIT_STEP_W = 5.0  # limits are written on change only; smaller changes are the estimate's noise


@frozen
class Swing:
    """What the classes draw without caps, over the last iterations: mean, top and bottom, (K,)."""

    mean_w: FloatArray
    top_w: FloatArray
    bottom_w: FloatArray
    is_slow: BoolArray  # iterates, with no phase shorter than PHASE_S_MIN
    other_w: float  # what the site drew beside the GPUs: telemetry lags, but not over whole iterations

    @property
    def slow_w(self) -> float:
        """Peak to peak with all slow classes at the bottom, and at the top, at once: independent jobs meet there."""
        return float(((self.top_w - self.bottom_w) * self.is_slow).sum())

    def demand(self) -> Demand:
        """As the planner takes it: all classes may stand at the top, and at the bottom, at once."""
        return Demand(
            class_w=self.mean_w,
            other_w=self.other_w,
            ripple_up_w=float((self.top_w - self.mean_w).sum()),
            ripple_down_w=float((self.mean_w - self.bottom_w).sum()),
        )


class SwingWatch:
    """Remembers what each class drew; says how it swings while that is slow and more than the battery reaches."""

    def __init__(self) -> None:
        # Time, what each class draws and whether it is at its limit, what else the site draws.
        self._samples: deque[tuple[float, FloatArray, BoolArray, float]] = deque()
        self._top_w: FloatArray = np.empty(0)
        self._is_beyond = False
        self._due_s = -math.inf

    def is_due(self, now_s: float) -> bool:
        """Whether `saw` wants a sample."""
        return now_s >= self._due_s - 1e-6

    def begin_anew(self, from_s: float) -> None:
        """What happens until `from_s` is nobody's ripple, and what was before it another state. No matter once past."""
        if from_s > self._due_s:
            self._samples.clear()
            self._due_s = from_s

    def saw(self, now_s: float, class_w: FloatArray, limit_w: FloatArray, *, other_w: float) -> None:
        """What classes draw (plus what clocks hold back), what power limits let them draw (inf: free), and the rest."""
        if self._samples and len(self._samples[-1][1]) != len(class_w):
            self._samples.clear()
        self._due_s = now_s + SAMPLE_S
        self._samples.append((now_s, class_w, class_w >= LIMITED_SHARE * limit_w, other_w))
        while self._samples[0][0] < now_s - SPAN_S:
            self._samples.popleft()

    def beyond(self, reach_w: float) -> Swing | None:
        """The swing while slow classes swing by more than `reach_w`, all that the battery takes and gives."""
        found = self._found(reach_w) if reach_w > 0.0 else None  # without a battery nothing holds a target
        least_w = reach_w * (LEAVE_FRAC if self._is_beyond else 1.0)
        self._is_beyond = found is not None and found.slow_w > least_w
        return found if self._is_beyond else None

    def _found(self, reach_w: float) -> Swing | None:
        if len(self._samples) < 2 or self._samples[-1][0] - self._samples[0][0] < SPAN_S_MIN:
            return None
        draw_w = np.concatenate([sample[1] for sample in self._samples]).reshape(len(self._samples), -1)
        if not self._is_beyond and float(np.ptp(draw_w, axis=0).sum()) <= reach_w:
            return None  # nearly always: nothing more to look at
        t_s = np.array([sample[0] for sample in self._samples])
        self._unhide(draw_w)
        cycles = [_cycle(t_s, draw_w[:, k]) for k in range(draw_w.shape[1])]
        is_slow = np.array([cycle is not None for cycle in cycles])
        slowest_s = max((cycle for cycle in cycles if cycle is not None), default=0.0)
        recent = t_s >= t_s[-1] - min(max(CYCLES * slowest_s, SPAN_S_MIN), SPAN_S)
        draw_w, other_w = draw_w[recent], np.array([sample[3] for sample in self._samples])[recent]
        return Swing(draw_w.mean(axis=0), draw_w.max(axis=0), draw_w.min(axis=0), is_slow, float(other_w.mean()))

    def _unhide(self, draw_w: FloatArray) -> None:
        """At its limit a class shows no top: it is then as high as it last was without, or higher. In place, (n, K)."""
        is_limited = np.array([sample[2] for sample in self._samples])
        seen_w = draw_w.max(axis=0)
        if len(self._top_w) != len(seen_w):
            self._top_w = seen_w
        self._top_w = np.where(is_limited.any(axis=0), np.maximum(self._top_w, seen_w), seen_w)
        np.copyto(draw_w, np.maximum(draw_w, self._top_w), where=is_limited)


def _cycle(t_s: FloatArray, draw_w: FloatArray) -> float | None:
    """The usual iteration of one class in seconds; None where it does not iterate, or too fast for a limit."""
    top_w, bottom_w = float(draw_w.max()), float(draw_w.min())
    swing_w = top_w - bottom_w
    if swing_w <= SWING_FRAC_MIN * top_w:
        return None
    side = (draw_w - 0.5 * (top_w + bottom_w)) / swing_w
    is_clear = np.abs(side) > EDGE_SHARE
    is_high, at_s = side[is_clear] > 0.0, t_s[is_clear]
    edges = np.flatnonzero(is_high[1:] != is_high[:-1]) + 1
    rises_s = at_s[edges[is_high[edges]]]
    if len(rises_s) < RISES_MIN:
        return None
    cycle_s = float(np.median(np.diff(rises_s)))
    phases_s = np.diff(at_s[edges])
    if float(np.percentile(phases_s, 25.0)) < PHASE_S_MIN or at_s[-1] - rises_s[-1] > 2.0 * cycle_s:
        return None
    return cycle_s


def limits_of_swing(
    fleet: Fleet, swing: Swing, *, cap_w: FloatArray, peak_w: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Power limit of each GPU (n,), inf where free, and which GPUs' classes are cut by one.

    `cap_w` (K,) is the plan's, against the tops `peak_w` (K,) it counted with: as many watts come off the tops as seen.
    A class gives every GPU the same share of its range. No lower than the driver takes.
    """
    table = fleet.table
    cut_w = np.maximum(peak_w - cap_w, 0.0)
    idle_w, full_w = fleet.class_idle_w, fleet.by_class(table.peak_w)
    share = np.clip((swing.top_w - cut_w - idle_w) / np.maximum(full_w - idle_w, 1.0), 0.0, 1.0)
    is_cut = (cut_w > 0.0)[fleet.class_index]
    asked_w = table.idle_w + (table.peak_w - table.idle_w) * share[fleet.class_index]
    limit_w = np.maximum(np.floor(asked_w / LIMIT_STEP_W) * LIMIT_STEP_W, table.cap_min[1])
    return np.where(is_cut, limit_w, np.inf), is_cut
