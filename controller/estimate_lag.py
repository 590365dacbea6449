"""The battery's first-order lag, from how it answers its set-points, and its power between and without samples.

A bank of candidate lags each predicts the next battery sample from the last one and the commands between; the one with
the least squared error, over samples that moved enough to tell, is the lag. Pure.
"""

from __future__ import annotations

import math
from collections import deque

from controller.estimate_dead import DeadTime

LAGS_PER_OCTAVE = 2
OCTAVES = 3  # the bank reaches from an eighth of the declared lag to eight times it
LAG_S_MIN = 0.002
MOVED_FRAC = 0.01  # of the battery's power: steps smaller than this drown in noise and deadband
MEMORY_SAMPLES = 200.0
FIT_FRAC = 0.25  # of what the samples moved: a lag that leaves more of it unexplained is none; readings may be late
SAMPLES_MIN = 40  # before the measured lag replaces the declared one
COMMANDS_KEPT_S = 5.0


class LagEstimate:
    """Feeds on commands and samples; answers with a lag and with powers between samples."""

    def __init__(self, *, declared_s: float, scale_w: float, slope_w_per_s: float = math.inf) -> None:
        """`scale_w`: the battery's power; `slope_w_per_s`: the steepest that it was declared with."""
        base_s = max(declared_s, LAG_S_MIN)
        steps = range(-OCTAVES * LAGS_PER_OCTAVE, OCTAVES * LAGS_PER_OCTAVE + 1)
        self._bank_s = [base_s * math.pow(2.0, step / LAGS_PER_OCTAVE) for step in steps]
        self._errors = [0.0] * len(self._bank_s)
        self._moved_w, self._moved_w2 = MOVED_FRAC * scale_w, 0.0
        self._count = 0
        self._slope_w_per_s = slope_w_per_s
        self._commands: deque[tuple[float, float]] = deque()
        self._told_w: deque[float] = deque()  # what it gave by its orders alone when each command came
        self._last: tuple[float, float] | None = None
        self.lag_s = self._declared_s = declared_s
        self.dead = DeadTime()

    def commanded(self, t_s: float, reference_w: float) -> None:
        """The set-point in force from `t_s` on."""
        self._told_w.append(self.as_told(t_s) if self._commands else reference_w)
        self._commands.append((t_s, reference_w))
        while len(self._commands) > 2 and self._commands[1][0] < t_s - COMMANDS_KEPT_S:
            self._commands.popleft()
            self._told_w.popleft()

    def as_told(self, t_s: float) -> float:
        """What the battery gives at `t_s` if it does as it was told; NaN before its first order."""
        told_w = math.nan
        for (from_s, reference_w), told_w in zip(reversed(self._commands), reversed(self._told_w), strict=True):
            if from_s <= t_s:
                return self._on_its_way(told_w, reference_w, t_s - from_s)
        return told_w

    def _on_its_way(self, power_w: float, reference_w: float, for_s: float) -> float:
        """At its slope while the lag would ask for a steeper one, then at its lag."""
        lag_s = max(self.lag_s, LAG_S_MIN)
        gap_w, knee_w = abs(reference_w - power_w), self._slope_w_per_s * lag_s
        if gap_w > knee_w:
            sloped_s = min((gap_w - knee_w) / self._slope_w_per_s, for_s)
            gap_w, for_s = gap_w - self._slope_w_per_s * sloped_s, for_s - sloped_s
        return reference_w - math.copysign(gap_w * math.exp(-for_s / lag_s), reference_w - power_w)

    def measured(self, t_s: float, power_w: float, *, is_true: bool = False, is_shown: bool = False) -> None:
        """A battery sample, for all that is known true at `t_s`; where it surely `is_true` the best lag is one at all.

        Answers that no lag explains are late, or the battery acts late; a lag stands for the second, not for the first,
        and so does a dead time, where the meter shows it (`is_shown`).
        """
        last, self._last = self._last, (t_s, power_w)
        if last is None or not self._commands or not 0.0 < t_s - last[0] < 1.0 or last[0] < self._commands[0][0]:
            return
        if is_shown:
            self._look_for_dead_time(last, t_s, power_w)
        pieces = self._pieces(last[0], t_s)
        if max(abs(reference_w - last[1]) for _, reference_w in pieces) < self._moved_w:
            return
        keep = 1.0 - 1.0 / MEMORY_SAMPLES
        for index, lag_s in enumerate(self._bank_s):
            miss_w = power_w - _answer(last[1], pieces, lag_s)
            self._errors[index] = keep * self._errors[index] + miss_w * miss_w
        self._moved_w2 = keep * self._moved_w2 + (power_w - last[1]) ** 2
        self._count += 1
        if self._count >= SAMPLES_MIN and (is_true or min(self._errors) < FIT_FRAC * self._moved_w2):
            self.lag_s = self._best_s()

    def _look_for_dead_time(self, last: tuple[float, float], t_s: float, power_w: float) -> None:
        """Whether it answers orders of some time ago."""
        (before_s, before_w), lag_s = last, max(self._declared_s, LAG_S_MIN)

        def predict(dead_s: float) -> float:
            return _answer(before_w, self._pieces(before_s - dead_s, t_s - dead_s), lag_s)

        if max(abs(power_w - before_w), abs(predict(0.0) - before_w)) >= self._moved_w:
            self.dead.answered(t_s, power_w, before_w=before_w, predict=predict)

    def moved_on(self, power_w: float, from_s: float, to_s: float) -> float:
        """Battery power at `to_s`, after its newest sample, under the commands given since."""
        if not self._commands or to_s <= from_s:
            return power_w
        return _answer(power_w, self._pieces(from_s, to_s), max(self.lag_s, LAG_S_MIN))

    def between(self, before_w: float, before_s: float, after_w: float, after_s: float, t_s: float) -> float:
        """Battery power between two samples: the model's way from the first, corrected to end at the second."""
        if after_s <= before_s:
            return after_w
        share = (t_s - before_s) / (after_s - before_s)
        miss_w = after_w - self.moved_on(before_w, before_s, after_s)
        return self.moved_on(before_w, before_s, t_s) + share * miss_w

    def _pieces(self, from_s: float, to_s: float) -> list[tuple[float, float]]:
        """(length, set-point) of every stretch of constant set-point between two instants."""
        found: list[tuple[float, float]] = []
        end_s = to_s
        for start_s, reference_w in reversed(self._commands):
            if start_s >= end_s:
                continue
            begin_s = max(start_s, from_s)
            found.append((end_s - begin_s, reference_w))
            end_s = begin_s
            if start_s <= from_s:
                break
        found.reverse()
        return found or [(to_s - from_s, self._commands[0][1])]

    def _best_s(self) -> float:
        """The bank's best lag, refined by a parabola over its neighbours (equally spaced in the logarithm)."""
        errors = self._errors
        best = min(range(len(errors)), key=errors.__getitem__)
        if not 0 < best < len(errors) - 1:
            return self._bank_s[best]
        left, middle, right = errors[best - 1], errors[best], errors[best + 1]
        bend = left - 2.0 * middle + right
        shift = 0.5 * (left - right) / bend if bend > 0.0 else 0.0
        return self._bank_s[best] * math.pow(2.0, max(-0.5, min(0.5, shift)) / LAGS_PER_OCTAVE)


def _answer(power_w: float, pieces: list[tuple[float, float]], lag_s: float) -> float:
    for length_s, reference_w in pieces:
        power_w = reference_w + (power_w - reference_w) * math.exp(-length_s / lag_s)
    return power_w
