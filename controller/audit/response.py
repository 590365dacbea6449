"""Judges how load answers the grid: ride-through of disturbances, and droop. Both need columns beside power.

A disturbance is a stretch with voltage or frequency outside the continuous box; stretches closer together than the
recovery time are one. What happened inside it is not judged (power follows voltage), only that load is back in time. A
disturbance that outlasts its curve's box may disconnect load and is not counted.
"""

from __future__ import annotations

import numpy as np

from controller.audit.score import Score
from controller.audit.windows import BoolArray
from controller.types import CurveSegment, DroopLimit, FloatArray, RideThroughLimit, frozen

BEFORE_S = 1.0  # power before a disturbance is its mean over this
OBSERVE_FACTOR = 5.0  # how long after the disturbance load is watched, in recovery times
DROOP_DELAY_S = 2.0  # assumed: time a response has before it is judged
DROOP_TOLERANCE = 0.05  # of max_w; assumed
EVENT_S_MAX = 900.0  # a longer disturbance is judged in pieces


@frozen
class Sensed:
    """Power with what the grid did at the same instants; a quantity that was not recorded is None."""

    t: FloatArray
    q: FloatArray
    voltage_pu: FloatArray | None
    frequency_hz: FloatArray | None

    def part(self, a: int, b: int) -> Sensed:
        return Sensed(
            self.t[a:b],
            self.q[a:b],
            None if self.voltage_pu is None else self.voltage_pu[a:b],
            None if self.frequency_hz is None else self.frequency_hz[a:b],
        )

    def joined(self, later: Sensed) -> Sensed:
        return Sensed(
            np.concatenate((self.t, later.t)),
            np.concatenate((self.q, later.q)),
            _join(self.voltage_pu, later.voltage_pu),
            _join(self.frequency_hz, later.frequency_hz),
        )


def disturbed(row: RideThroughLimit, block: Sensed) -> BoolArray:
    """Samples outside the continuous boxes."""
    out = np.zeros(block.t.size, dtype=np.bool_)
    for values, curve in ((block.voltage_pu, row.voltage_pu), (block.frequency_hz, row.frequency_hz)):
        if values is not None and curve:
            out |= ~_inside(values, [box for box in curve if np.isinf(box.hold_s)])
    return out


class RideThroughJudge:
    """Longest time from the end of a disturbance to `recover_frac` of the power before it."""

    def __init__(self, row: RideThroughLimit) -> None:
        self._row = row
        self.score = Score(merge_s=row.recover_s)
        self.exempt_count = 0
        self._held: Sensed | None = None

    def is_sensed(self, block: Sensed) -> bool:
        """Whether the record has a column this row can be judged by."""
        has_voltage = block.voltage_pu is not None and bool(self._row.voltage_pu)
        return has_voltage or (block.frequency_hz is not None and bool(self._row.frequency_hz))

    def feed(self, block: Sensed) -> None:
        held = block if self._held is None else self._held.joined(block)
        self._held = self._judge(held, is_last=False)

    def finish(self) -> None:
        if self._held is not None:
            self._judge(self._held, is_last=True)
        self._held = None

    def _judge(self, held: Sensed, *, is_last: bool) -> Sensed:
        watch_s = OBSERVE_FACTOR * self._row.recover_s
        marks = np.flatnonzero(disturbed(self._row, held))
        while marks.size:
            start = int(marks[0])
            apart = np.flatnonzero(np.diff(held.t[marks]) > self._row.recover_s)
            last = int(marks[apart[0]]) if apart.size else int(marks[-1])
            is_over = held.t[-1] >= held.t[last] + watch_s
            if not is_over and not is_last and held.t[-1] - held.t[start] < EVENT_S_MAX:
                return self._keep(held, float(held.t[start]) - 2.0 * BEFORE_S)
            self._event(held, start, last)
            cut = int(np.searchsorted(held.t, held.t[last], side="right"))
            keep = max(cut - 1, 0)
            held = held.part(keep, held.t.size) if cut < held.t.size else held.part(held.t.size - 1, held.t.size)
            marks = np.flatnonzero(disturbed(self._row, held)[1:]) + 1
        return self._keep(held, float(held.t[-1]) - 2.0 * BEFORE_S)

    @staticmethod
    def _keep(held: Sensed, from_s: float) -> Sensed:
        return held.part(int(np.searchsorted(held.t, from_s)), held.t.size)

    def _event(self, held: Sensed, start: int, last: int) -> None:
        before = held.q[(held.t < held.t[start]) & (held.t >= held.t[start] - BEFORE_S)]
        after = int(last) + 1
        if not before.size or after >= held.t.size:
            return
        if self._outlasts(held.part(start, after + 1)):
            self.exempt_count += 1
            return
        clear_s = float(held.t[after])
        back = np.flatnonzero(held.q[after:] >= self._row.recover_frac * float(before.mean()) * (1.0 - 1e-9))
        seen_s = float(held.t[-1]) - clear_s
        if not back.size and seen_s < self._row.recover_s:
            return  # the record ends before the answer
        recovery_s = float(held.t[after + int(back[0])]) - clear_s if back.size else seen_s
        self.score.covered_s += float(held.t[last] - held.t[start]) + recovery_s
        self.score.offer(recovery_s, clear_s + recovery_s)
        if recovery_s > self._row.recover_s * (1.0 + 1e-9):
            late = np.array([clear_s + self._row.recover_s])
            self.score.add_spans(late, np.array([clear_s + recovery_s]), np.array([recovery_s]))

    def _outlasts(self, event: Sensed) -> bool:
        """Whether any curve's boxes were left, or stayed in for longer than they hold."""
        width = np.diff(event.t)
        for values, curve in ((event.voltage_pu, self._row.voltage_pu), (event.frequency_hz, self._row.frequency_hz)):
            if values is None or not curve:
                continue
            inside = values[:-1]
            if np.any(~_inside(inside, curve)):
                return True
            for box in curve:
                time_s = float(np.sum(width[(inside >= box.low) & (inside < box.high)]))
                if time_s > box.hold_s * (1.0 + 1e-6):
                    return True
        return False


class DroopJudge:
    """Largest shortfall of the response that a frequency deviation asks for, against 5 % of `max_w`."""

    def __init__(self, row: DroopLimit) -> None:
        self._row = row
        self.level = DROOP_TOLERANCE * row.max_w
        self.score = Score(merge_s=DROOP_DELAY_S)
        self._base_w = np.nan
        self._since_s = np.nan
        self._calm: tuple[FloatArray, FloatArray] = (np.empty(0), np.empty(0))

    def feed(self, block: Sensed) -> None:
        assert block.frequency_hz is not None
        off_hz = block.frequency_hz - self._row.nominal_hz
        excess = np.maximum(np.abs(off_hz) - self._row.deadband_hz, 0.0)
        away = excess > 0.0
        cuts = np.flatnonzero(np.diff(away.astype(np.int8))) + 1
        for a, b in zip(np.concatenate(([0], cuts)), np.concatenate((cuts, [away.size])), strict=True):
            part = slice(int(a), int(b))
            if not away[a]:
                t, q = np.concatenate((self._calm[0], block.t[part])), np.concatenate((self._calm[1], block.q[part]))
                recent = t >= t[-1] - BEFORE_S
                self._calm = (t[recent], q[recent])
                self._since_s = np.nan
            else:
                self._excursion(block.t[part], block.q[part], np.sign(off_hz[part]), excess[part])

    def _excursion(self, t: FloatArray, q: FloatArray, sign: FloatArray, excess: FloatArray) -> None:
        if np.isnan(self._since_s):
            if not self._calm[1].size:
                return
            self._since_s, self._base_w = float(t[0]), float(self._calm[1].mean())
        due = t >= self._since_s + DROOP_DELAY_S
        if not due.any():
            return
        t, q, sign, excess = t[due], q[due], sign[due], excess[due]
        wanted = np.minimum(self._row.max_w, self._row.w_per_hz * excess)
        shortfall = np.maximum(wanted - sign * (q - self._base_w), 0.0)
        k = int(np.argmax(shortfall))
        self.score.covered_s += float(t[-1] - t[0])
        self.score.offer(float(shortfall[k]), float(t[k]))
        late = shortfall > self.level * (1.0 + 1e-9)
        if t.size > 1:
            keep = late[1:] | late[:-1]
            self.score.add_spans(t[:-1][keep], t[1:][keep], np.maximum(shortfall[:-1], shortfall[1:])[keep])


def _inside(values: FloatArray, boxes: list[CurveSegment] | tuple[CurveSegment, ...]) -> BoolArray:
    out = np.zeros(values.size, dtype=np.bool_)
    for box in boxes:
        out |= (values >= box.low) & (values <= box.high if np.isinf(box.hold_s) else values < box.high)
    return out


def _join(a: FloatArray | None, b: FloatArray | None) -> FloatArray | None:
    return None if a is None or b is None else np.concatenate((a, b))
