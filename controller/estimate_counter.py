"""A meter's energy counter read as a clock: how much later than stamped its samples are.

A sample is of the time at which the site had imported its count. What was imported until when is one line: the counts
that were read while they were in time, and from the newest of them on what the site is believed to import. So a count
that was read before, one that stands while energy is drawn, and one that comes back too low from a silence all say the
same: the sample is old, by so much. Pure; times in seconds, energy in watt hours.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.types import FloatArray

LATE_S_MIN = 0.15  # below it the loop only amplifies a little: the residual pays for that
REMEMBERED_S = 20.0  # a count older than this is a counter that was reset
BELIEVED_S = 60.0  # the longest that what is believed may stand in for counts
STAND_S = 0.5  # a count that stands for less says nothing
PAUSE_S = 0.5  # without a read: how long a count has stood is not known
CHANGES = 5  # the last ones tell for how long a count stands and by how much it moves then,
FIRST_S = 1.0  # before the first count nothing may have been counted for as long as a count may stand
STAND_GAIN = 1.5  # ...the most of either, and half as much again
HELD_GAIN = 1.1  # of a refresh: clocks of ours and the meter's
JUMP_S = 0.3  # of the counter's clock against ours: less is what two registers of one meter differ by
GOES_ON = 0.75, 1.25  # times what the samples' own powers make of the time between them, at least and at most
NET_GAIN = 2.0  # what a net counter may run back by, as a multiple of the power it shows
S_PER_H = 3_600.0


class CounterClock:
    """`read` with every sample, `believed` once a tick; then look at `late_s`."""

    def __init__(self, *, error_w: float) -> None:
        """`error_w`: how far what is believed may be off, beside the margin it comes with."""
        self._error_w = error_w
        self.forget()

    def forget(self) -> None:
        """Begin anew: in time until a count says otherwise."""
        self._read: deque[tuple[float, float]] = deque()  # (time, count)
        self._believed: deque[tuple[float, float]] = deque()  # the same, after the newest that was read
        self._first_s = math.nan  # of the first count that was kept
        self._unsure_wh = 0.0  # how much too high the end of the line may be, beside its counts:
        self._placed_wh = 0.0  # they were placed where the line was believed to be, and it may have been as far off
        self._heard_s, self._last_wh, self._last_w = -math.inf, math.nan, 0.0
        self._since_s = math.nan  # when the last count was first read
        self._usual: deque[tuple[float, float]] = deque(maxlen=CHANGES)  # (time it stood, step)
        self.late_s = 0.0
        self._is_at_most = False  # what said so had stood for some time: a count that is new knows better

    @property
    def is_in_time(self) -> bool:
        """Counts keep coming, and where they are due: whatever the samples' age was when they began, it is still."""
        usual_s, _ = self._usually()
        return bool(self._read) and not self.late_s and usual_s <= STAND_S and not math.isnan(self._since_s)

    def believed(self, t_s: float, power_w: float, *, margin_w: float) -> None:
        """The site imports `power_w` at `t_s`, for all that is known."""
        if not self._read or t_s <= (end := self._end)[0]:
            return
        hours = (t_s - end[0]) / S_PER_H
        self._believed.append((t_s, end[1] + max(power_w, 0.0) * hours))
        self._unsure_wh += (self._error_w + margin_w) * hours

    def read(self, t_s: float, count_wh: float, *, power_w: float, refresh_s: float = 0.0) -> None:
        """A count in a sample of `power_w` stamped `t_s`; it may have stood for `refresh_s` more than another."""
        if not math.isfinite(count_wh) or t_s <= self._heard_s:
            return
        if self._is_other(t_s, count_wh, power_w=power_w):
            self.forget()
        moved_wh, pause_s = count_wh - self._last_wh, t_s - self._heard_s
        is_as_late = self._goes_on(moved_wh, t_s - self._since_s, power_w)
        self._heard_s, self._last_wh, self._last_w = t_s, count_wh, power_w
        if pause_s > PAUSE_S:
            self._since_s = math.nan
        if is_as_late and not self.late_s:
            self._changed(t_s, moved_wh)
            self._keep(t_s, count_wh, power_w=power_w)
            return
        usual_s, usual_wh = self._usually()
        if not moved_wh and (t_s - self._since_s <= usual_s or self._due_wh(t_s) <= count_wh + usual_wh):
            return
        step_wh = usual_wh if pause_s > PAUSE_S else self._first_wh(power_w)
        if moved_wh and not is_as_late:
            step_wh += self._placed_wh
        late_s = self._behind_s(t_s, count_wh, step_wh=step_wh)
        if late_s < max(LATE_S_MIN, HELD_GAIN * min(refresh_s, JUMP_S)):
            late_s = 0.0
        is_better = self._is_at_most and moved_wh > 0.0
        if not late_s or not self.late_s or is_better or abs(late_s - self.late_s) > JUMP_S:
            self.late_s, self._is_at_most = late_s, moved_wh <= 0.0
            self._placed_wh = self._placed_wh + self._unsure_until_wh(t_s - late_s) if late_s else 0.0
        if moved_wh:  # one that stands was true when it was first read, or before: so is the very first
            self._changed(t_s, moved_wh)
            self._keep(t_s - self.late_s, count_wh, power_w=power_w)

    # ------------------------------------------------------------------------------------------------------ private

    @property
    def _end(self) -> tuple[float, float]:
        return self._believed[-1] if self._believed else self._read[-1]

    def _goes_on(self, moved_wh: float, stood_s: float, power_w: float) -> bool:
        """The count moved by what its samples' own powers make of the time that the last one stood: it is as late.

        However power jumped meanwhile, and whatever is believed of it; while power is exported a count stands.
        """
        least_w, most_w = sorted((max(self._last_w, 0.0), max(power_w, 0.0)))
        hours = stood_s / S_PER_H
        is_brief = bool(self._read) and stood_s <= PAUSE_S
        return is_brief and GOES_ON[0] * least_w * hours <= moved_wh <= GOES_ON[1] * most_w * hours

    def _is_other(self, t_s: float, count_wh: float, *, power_w: float) -> bool:
        """The line says nothing of this count: the counter was reset, counts net and power is exported, or long ago."""
        if not self._read:
            return False
        fallen_wh = self._last_wh - count_wh
        is_net = 0.0 < fallen_wh <= -NET_GAIN * power_w * (t_s - self._heard_s) / S_PER_H
        is_long_ago = fallen_wh != 0.0 and t_s - self._read[-1][0] > BELIEVED_S
        is_nothing = fallen_wh > 0.0 and count_wh == 0.0  # whatever was counted before: it began anew
        return is_net or is_long_ago or is_nothing or count_wh < self._read[0][1]

    def _usually(self) -> tuple[float, float]:
        """For how long a count stands, and by how much it moves then: it is renewed at times, or in coarse steps."""
        if not self._usual:
            return math.inf, math.inf
        stood_s, moved_wh = (STAND_GAIN * max(each) for each in zip(*self._usual, strict=True))
        return max(STAND_S, stood_s), moved_wh

    def _first_wh(self, power_w: float) -> float:
        """How far the very first count may be ahead of those that follow it; 0 once another was read."""
        is_second = bool(self._read) and self._read[-1][0] == self._first_s
        return max(power_w, 0.0) * FIRST_S / S_PER_H if is_second else 0.0

    def _changed(self, t_s: float, moved_wh: float) -> None:
        if moved_wh > 0.0 and self._read and not self.late_s and not math.isnan(self._since_s):
            self._usual.append((t_s - self._since_s, moved_wh))
        self._since_s = t_s

    def _due_wh(self, t_s: float) -> float:
        """The least count that is in time at `t_s`."""
        if not self._read:
            return -math.inf
        due_s, due_wh = self._end
        if due_s > t_s:  # the meter's declared delay is longer than a tick
            times, counts = self._line()
            due_wh = float(np.interp(t_s, times, counts))
        return due_wh - self._unsure_wh

    def _behind_s(self, t_s: float, count_wh: float, *, step_wh: float) -> float:
        """How long before `t_s` the line was at this count; 0 while it may be there but for `step_wh`."""
        if self._due_wh(t_s) <= count_wh + step_wh:
            return 0.0
        times, counts = self._line()
        return t_s - float(np.interp(count_wh, counts, times))

    def _unsure_until_wh(self, t_s: float) -> float:
        """How much too high the line may be at that time, as far as it is believed."""
        if not self._believed:
            return 0.0
        first_s, last_s = self._read[-1][0], self._believed[-1][0]
        return self._unsure_wh * min(max((t_s - first_s) / (last_s - first_s), 0.0), 1.0)

    def _line(self) -> tuple[FloatArray, FloatArray]:
        line = np.array([*self._read, *self._believed])
        return line[:, 0], line[:, 1]

    def _keep(self, true_s: float, count_wh: float, *, power_w: float) -> None:
        """The count was true then; what is believed goes on from there."""
        if not self._read:
            self._first_s = true_s
            self._read.append((true_s - REMEMBERED_S, count_wh - max(power_w, 0.0) * REMEMBERED_S / S_PER_H))
        elif true_s <= self._read[-1][0]:
            return
        if self._believed and true_s < self._believed[-1][0]:
            times, counts = np.array([self._read[-1], *self._believed]).T
            off_wh = count_wh - float(np.interp(true_s, times, counts))
            self._unsure_wh *= (times[-1] - true_s) / (times[-1] - times[0])
            self._believed = deque((t, c + off_wh) for t, c in self._believed if t > true_s)
        else:
            self._believed.clear()
            self._unsure_wh = 0.0
        self._read.append((true_s, count_wh))
        while self._read[1][0] < true_s - REMEMBERED_S:
            self._read.popleft()
