"""How much later than stamped the site meter's samples are: a controller that answers its own past runs away.

Three witnesses, the surest first. The energy counter is the meter's own clock (`controller/estimate_counter.py`). Node
reports and the battery's own power say what the meter must show; if it shows that some time later, it is late by that
time. And our own moves must come back: what moves on the meter is minus the battery's move of some time before, which
tells of a meter that is later than declared from the first sample on, as neither of the others can. Nothing is said
where nothing moved. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import chain, takewhile

import numpy as np

from controller.estimate_counter import CounterClock
from controller.types import BoolArray, FloatArray

COUNTER_ERROR_FRAC = 0.03  # of the registered peak: what nodes leave out may have changed by this (a chiller starts)
LAGS_S = np.arange(0.2, 5.01, 0.1)  # what the matches can find
GRID_S = 0.1
KEPT_S = float(LAGS_S[-1]) + 4.0
HALF_WINDOW_S = 0.5  # of a node's power: GPUs report means of a second
RECENT_S, TRIED_S = 0.8, 3.0  # stamps must fail in the first; another time must explain the whole second
DOUBT_FRAC = 0.001  # the same from which on nothing is learnt of meter and nodes
MOVED_FRAC = 0.0025  # of the registered peak, as a root mean square: a misfit beyond what nodes are off at an edge
UNUSUAL = 4.0  # times what the misfit usually is
USUAL_GAIN = 0.005  # of each report: about half a minute
MATCH = 0.15  # of the misfit as stamped: what a delay that is true leaves
STEPS = 1  # of the grid, over which quick moves are taken
QUICK = 0.5  # of the quick moves that stamps leave unexplained: a load that ramps is not seen in them, an echo is
SURE = 0.25  # the same, against the word of a counter that is in time: an edge leaves a third to a half
ALONE = 0.2  # the same, where our own moves alone speak
SHOWN = 0.5  # of what must have moved: less is not looked at
ECHO_S = 1.0  # of samples, before our own first moves are judged
LOOK_GAIN = 0.03  # of each report: some seven seconds
FITS_S = 1.0  # what swings fits a late meter, too, for a moment
REFUTED_S = 1.0  # that no delay explains
CLEAR_S = 10.0  # of right stamps, before a meter that was late is believed again


class MeterDelay:
    """One per meter: `sampled` with every new sample, `reported` with every new sum of nodes; then look at `late_s`."""

    def __init__(self, *, scale_w: float) -> None:
        """`scale_w`: the registered peak."""
        self._scale_w = scale_w
        self._counter = CounterClock(error_w=COUNTER_ERROR_FRAC * scale_w)
        self._moved_w, self._doubt_w = MOVED_FRAC * scale_w, DOUBT_FRAC * scale_w
        self._quick: deque[tuple[float, float, float]] = deque()  # (t, metered, battery)
        self._steps: deque[tuple[float, float]] = deque()  # (t, square of the step on the meter), of `TRIED_S`
        self._steps_w2 = 0.0  # their sum
        self._means: deque[tuple[float, float, float, float]] = deque()  # (t, metered, due by nodes and battery, load)
        self._is_proven = False  # nodes bore the stamps out, and the counter has been in time since
        self._matched_s = self._echoed_s = 0.0
        self._found_count = self._echo_count = 0
        self._stamped_w2 = self._echoed_w2 = 0.0  # what nodes leave unexplained of samples as stamped, and as late
        self._usual_w2 = 0.0
        self._is_apart = False
        self._astray_s = -math.inf  # when stamps last were beyond what is usual
        self._told_s = -math.inf  # when the counter changed its word
        self._forgot_s = -math.inf  # moves before it are not known
        self._quiet_since_s = self._explained_s = -math.inf
        self._tried_s = self._reported_s = -math.inf

    @property
    def late_s(self) -> float:
        """By how much the samples are older than their stamps; 0 without evidence."""
        return self._counter.late_s or self._echoed_s or self._matched_s

    @property
    def is_echoed(self) -> bool:
        """Our own moves show by how much, to a tenth of a second, and it stays so."""
        return self._echoed_s > 0.0 and not self._counter.late_s

    @property
    def is_in_doubt(self) -> bool:
        """The meter and what it must show are apart, or it is late by nobody knows what: nothing is learnt from it."""
        return not self.is_echoed and (self._is_apart or self.late_s > 0.0)

    @property
    def has_misled(self) -> bool:
        """Late samples were taken for new ones until now."""
        return self.late_s > 0.0 and not self._counter.late_s

    def fits_since(self, t_s: float) -> bool:
        """What the meter said of the last second was said after `t_s`, and as stamped it is what nodes make of it."""
        if not self._means or self.late_s:
            return False
        newest_s = self._means[-1][0]
        return newest_s - RECENT_S - HALF_WINDOW_S >= t_s and newest_s - self._astray_s >= FITS_S

    def believed(self, now_s: float, power_w: float, *, margin_w: float) -> None:
        """What the site imports, for all that is known: the counter is held against it while it is not in time."""
        self._counter.believed(now_s, power_w, margin_w=margin_w)

    def counted(self, t_s: float, import_wh: float | None, *, power_w: float, refresh_s: float = 0.0) -> None:
        """The meter's energy counter, if any, in a sample of `power_w` stamped `t_s`; its values stand `refresh_s`."""
        if import_wh is None:
            self._is_proven = False
            return
        before_s = self._counter.late_s
        shown_w = min(max(power_w, -self._scale_w), self._scale_w)
        self._counter.read(t_s, import_wh, power_w=shown_w, refresh_s=refresh_s)
        if self._counter.late_s != before_s:  # it knows better, and what moved until now was shown at another time
            self._told_s, self._echoed_s = t_s, 0.0
            self.forget_moves()
        if not self._counter.is_in_time:
            self._is_proven = False
        if before_s and not self._counter.late_s:
            self._match(0.0)

    def sampled(self, t_s: float, power_w: float, *, battery_w: float) -> None:
        """A new sample stamped `t_s`, and the battery's power of that instant."""
        if self._quick and t_s < self._quick[-1][0] + 0.5 * GRID_S:
            return
        step_w = power_w - self._quick[-1][1] if self._quick else 0.0
        self._steps.append((t_s, step_w * step_w))
        self._steps_w2 += step_w * step_w
        while self._steps[0][0] < t_s - TRIED_S:
            self._steps_w2 -= self._steps.popleft()[1]
        self._quick.append((t_s, power_w, battery_w))
        while self._quick[0][0] < t_s - KEPT_S:
            self._quick.popleft()
        if t_s - self._tried_s >= 0.99 * GRID_S and not self._counter.late_s:
            self._tried_s = t_s
            self._judge_echo()

    def forget_moves(self) -> None:
        """What was said of the battery until now was not true."""
        self._forgot_s = self._quick[-1][0] if self._quick else self._forgot_s
        self._quick.clear()
        self._echo_count = 0

    def reported(
        self, now_s: float, *, load_w: float, delay_s: float, is_usual: bool = True, battery_stood_s: float = 0.0
    ) -> None:
        """What nodes make of the load of `delay_s` ago: hold the meter against it; in doubt nothing is `is_usual`.

        `battery_stood_s`: for how long the battery has read the same to the last digit.
        """
        half_s, t_s = min(HALF_WINDOW_S, delay_s), now_s - delay_s
        self._reported_s = now_s
        if t_s - half_s <= self._forgot_s:
            return  # a mean of its second half alone is off by what the battery moved
        since = takewhile(lambda sample: sample[0] >= t_s - half_s, reversed(self._quick))
        span = [(power_w, battery_w) for at_s, power_w, battery_w in since if at_s <= t_s + half_s]
        if not span or (self._means and t_s - self._means[-1][0] < 0.5 * GRID_S):
            return
        metered_w, battery_w = (sum(column) / len(span) for column in zip(*reversed(span), strict=True))
        self._means.append((t_s, metered_w, load_w - battery_w, load_w))
        while self._means[0][0] < t_s - KEPT_S:
            self._means.popleft()
        self._judge(now_s, is_usual=is_usual, is_witness=battery_stood_s <= TRIED_S)

    # ------------------------------------------------------------------------------------------------------ private

    def _judge(self, now_s: float, *, is_usual: bool, is_witness: bool) -> None:
        """Which time explains what the meter shows, as stamped or another; neither: as stamped."""
        times, metered, due, load = np.fromiter(chain.from_iterable(self._means), np.float64).reshape(-1, 4).T
        tried = times > times[-1] - TRIED_S
        recent = times[tried] > times[-1] - RECENT_S
        stamped = (metered - due)[tried] ** 2
        misfit = float(stamped[recent].mean())
        limit = max(self._moved_w * self._moved_w, UNUSUAL**2 * self._usual_w2)
        self._is_apart = misfit > max(self._doubt_w**2, UNUSUAL**2 * self._usual_w2)
        if misfit > limit:
            self._astray_s = float(times[-1])
        if self._echoed_s:
            late = _as_late(times, metered, due, tried)[_index_of(self._echoed_s), recent]
            self._look_back_at_echo(misfit, float(late.mean()))
            return
        if self._counter.late_s:
            if times[-1] - TRIED_S - HALF_WINDOW_S < self._told_s or not is_witness:
                # The counter was not at its word yet; or the battery rests, and no loop hangs on it, or is stuck.
                return
            # All of what is tried: load that repeats itself looks in time for a moment, an edge apart.
            apart = float(_as_late(times, metered, due, tried)[_index_of(self._counter.late_s)].mean())
            if limit < apart < math.inf and float(stamped.mean()) < MATCH * apart:  # stamps explain it, that word not
                self._counter.forget()
            return
        if self._matched_s:
            late = _as_late(times, metered, due, tried)
            self._look_back(now_s, misfit, float(late[:, recent].mean(axis=1).min()), limit)
            misfits = late.mean(axis=1)
            if self._matched_s and float(misfits.max()) > limit:  # enough moved to tell by how much
                self._matched_s = float(LAGS_S[int(misfits.argmin())])
            return
        if is_usual:
            self._usual_w2 += USUAL_GAIN * (min(misfit, limit) - self._usual_w2)
        moved_w2, stamped_w2 = float(load[tried].var()), float(stamped.mean())
        if self._counter.is_in_time and moved_w2 > limit and stamped_w2 < MATCH * moved_w2:
            self._is_proven = True  # a loop that answers what is late cannot have followed that
        if self._is_proven:  # a steep edge looks late for a moment, since nodes report means; the counter knows better
            self._found_count = 0
            return
        # Nearly always nothing is off; and what it showed before its counter called it in time is no witness.
        if misfit <= limit or times[-1] - TRIED_S < self._told_s:
            self._found_count = 0
            return
        misfits = _as_late(times, metered, due, tried).mean(axis=1)
        best = int(misfits.argmin())
        is_late = misfits[best] < MATCH * misfit
        if is_late:
            quick_late, quick = self._left(float(LAGS_S[best]), 0.0)
            is_late = quick_late < (SURE if self._counter.is_in_time else QUICK) * quick
        self._found(float(LAGS_S[best]), is_late=is_late)

    def _look_back(self, now_s: float, misfit: float, misfit_late: float, limit: float) -> None:
        """A delay that explains nothing any more, or stamps that are right for long: on time again."""
        if misfit > 0.25 * limit:
            self._quiet_since_s = now_s
        if misfit_late <= max(limit, 2.0 * MATCH * misfit):
            self._explained_s = now_s
        if now_s - self._explained_s > REFUTED_S or now_s - self._quiet_since_s > CLEAR_S:
            self._match(0.0)

    def _match(self, late_s: float) -> None:
        self._matched_s, self._found_count = late_s, 0
        self._quiet_since_s = self._explained_s = self._reported_s

    def _judge_echo(self) -> None:
        """Our own moves must be seen on the meter; those of which time are?

        This alone tells of a meter that was late from its first sample on: its counter began as late, and nodes that
        are learnt beside it bear it out.
        """
        limit_w = self._doubt_w if self._echoed_s else self._moved_w
        has_moved = self._steps_w2 > SHOWN * limit_w * limit_w * TRIED_S / GRID_S
        if not has_moved or self._quick[-1][0] - self._quick[0][0] < ECHO_S:
            self._echo_count = 0
            return
        shown, *left = self._left(math.inf, 0.0, *LAGS_S)
        best = int(np.argmin(left))
        late_s = float(LAGS_S[best - 1]) if best else 0.0
        now = left[1 + _index_of(self._echoed_s)] if self._echoed_s else left[0]
        is_other = shown > limit_w**2 and late_s != self._echoed_s and left[best] < ALONE * min(now, shown)
        self._echo_count = self._echo_count + 1 if is_other else 0
        if self._echo_count >= 2:
            self._echoed(late_s)

    def _echoed(self, late_s: float) -> None:
        self._echo_count, self._echoed_s = 0, late_s
        self._stamped_w2 = self._echoed_w2 = 0.0
        self._match(0.0)

    def _look_back_at_echo(self, stamped_w2: float, late_w2: float) -> None:
        """On time again, once nodes bear out stamps and not what our moves showed."""
        self._stamped_w2 += LOOK_GAIN * (stamped_w2 - self._stamped_w2)
        self._echoed_w2 += LOOK_GAIN * (late_w2 - self._echoed_w2)
        if math.isfinite(late_w2) and self._echoed_w2 > max(self._doubt_w**2, self._stamped_w2 / MATCH):
            self._echoed(0.0)

    def _found(self, late_s: float, *, is_late: bool) -> None:
        """Late when twice in a row it looks so."""
        self._found_count = self._found_count + 1 if is_late else 0
        if self._found_count >= 2:
            self._match(late_s)

    def _left(self, *lags_s: float) -> list[float]:
        """Mean squares of quick moves that the battery of each lag ago leaves unexplained on the meter; inf: of all."""
        times, metered, battery = np.array(self._quick).T
        grid_s: FloatArray = np.arange(times[-1] - TRIED_S, times[-1] + 1e-9, GRID_S)
        moved = np.interp(grid_s - np.array(lags_s)[:, None], times, battery) + np.interp(grid_s, times, metered)
        quick = moved[:, STEPS:] - moved[:, :-STEPS]
        return [float(square) for square in (quick * quick).mean(axis=1)]


def _index_of(late_s: float) -> int:
    """Where in `LAGS_S` the nearest is."""
    return int(np.abs(LAGS_S - late_s).argmin())


def _as_late(times: FloatArray, metered: FloatArray, due: FloatArray, tried: BoolArray) -> FloatArray:
    """Squares of what each lag leaves unexplained of the samples tried, (lags, tried); inf where none is known."""
    then_s = times[tried] - LAGS_S[:, None]
    late: FloatArray = (metered[tried] - np.interp(then_s, times, due)) ** 2
    late[then_s < times[0]] = math.inf
    return late
