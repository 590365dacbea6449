"""What the site's jobs want in the coming minutes, from what they drew lately: mean, top and bottom of the ripple.

The load meter is fast and sees the whole; telemetry is slow and sees the parts: the whole is measured over a window
longer than two of the longest iterations and split by the parts. A jump (start, stop, crash) begins the window anew, so
that the past of another state does not count. What caps hold back is added again: demand is what jobs would draw.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.types import FloatArray, frozen

WINDOW_S = 8.0  # longer than two of the longest usual iterations: the mean does not wobble with the phase
SETTLED_S = 0.5  # load that stays beyond the window's range for so long has changed state
JUMP_FRAC = 0.02  # of the registered peak: less is ripple, however long it lasts
JUMP_RANGE_FRAC = 0.25  # of the range seen so far
TOP_FRAC = 0.1  # of the range: as near to its top the load is still there


@frozen
class Demand:
    """Per class (K,): mean uncapped draw of its GPUs; for the site: other load, ripple above and below the mean."""

    class_w: FloatArray
    other_w: float
    ripple_up_w: float
    ripple_down_w: float

    @property
    def load_w(self) -> float:
        return float(self.class_w.sum()) + self.other_w


@frozen
class Stretch:
    """The load over the last stretch of one state, and when it was last at its top."""

    mean_w: float
    top_w: float
    bottom_w: float
    top_s: float


class DemandWindow:
    """Remembers the load; `add` is cheap and comes every tick, `stretch` once per plan."""

    def __init__(self, *, peak_w: float) -> None:
        self._jump_w = JUMP_FRAC * peak_w
        self._samples: deque[tuple[float, float]] = deque()
        self._low_w = self._high_w = 0.0  # range of the settled samples, renewed by `stretch`
        self._beyond_since_s: float | None = None
        self._anew_s = -math.inf

    def begin_anew(self, from_s: float) -> None:
        """Our own caps move the load until `from_s`: what was before is another state, and the way is no ripple."""
        self._anew_s = max(self._anew_s, from_s)

    def add(self, t_s: float, load_w: float) -> None:
        """The load at `t_s`."""
        if t_s < self._anew_s:
            return
        if math.isfinite(self._anew_s):
            self._anew_s = -math.inf
            self._samples.clear()
            self._beyond_since_s = None
        if not self._samples:
            self._low_w = self._high_w = load_w
        slack_w = self._jump_w + JUMP_RANGE_FRAC * (self._high_w - self._low_w)
        if self._low_w - slack_w <= load_w <= self._high_w + slack_w:
            self._beyond_since_s = None
            self._low_w, self._high_w = min(self._low_w, load_w), max(self._high_w, load_w)
        elif self._beyond_since_s is None:
            self._beyond_since_s = t_s
        self._samples.append((t_s, load_w))
        if self._beyond_since_s is not None and t_s - self._beyond_since_s >= SETTLED_S:
            self._forget_before(self._beyond_since_s)
            self._beyond_since_s = None
        elif self._samples[0][0] < t_s - WINDOW_S:
            self._samples.popleft()

    def stretch(self) -> Stretch:
        """Mean and range since the state began, at most WINDOW_S; zeros before the first sample."""
        found = self.seen()
        if self._samples and self._beyond_since_s is None:
            self._low_w, self._high_w = found.bottom_w, found.top_w
        return found

    def seen(self) -> Stretch:
        """The same, and nothing is changed by looking."""
        if not self._samples:
            return Stretch(0.0, 0.0, 0.0, math.inf)
        values = np.array([power_w for _, power_w in self._samples])
        top_w, bottom_w = float(values.max()), float(values.min())
        last = np.flatnonzero(values >= top_w - TOP_FRAC * (top_w - bottom_w))[-1]
        return Stretch(float(values.mean()), top_w, bottom_w, self._samples[last][0])

    def _forget_before(self, t_s: float) -> None:
        while self._samples[0][0] < t_s:
            self._samples.popleft()
        values = [power_w for _, power_w in self._samples]
        self._low_w, self._high_w = min(values), max(values)


def split_demand(stretch: Stretch, *, class_w: FloatArray, held_back_w: FloatArray, other_w: float) -> Demand:
    """Demand per class: the measured stretch less other load, split as telemetry splits it, plus what caps hold back.

    `class_w` (K,) is telemetry, `held_back_w` (K,) what the caps in force keep each class from drawing.
    """
    gpu_w = max(0.0, stretch.mean_w - other_w)
    total_w = float(class_w.sum())
    shares = class_w / total_w if total_w > 0.0 else np.zeros_like(class_w)
    return Demand(
        class_w=gpu_w * shares + held_back_w,
        other_w=stretch.mean_w - gpu_w,
        ripple_up_w=stretch.top_w - stretch.mean_w,
        ripple_down_w=stretch.mean_w - stretch.bottom_w,
    )
