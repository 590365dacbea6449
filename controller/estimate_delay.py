"""How much later than stamped the site meter's samples are: a controller that answers its own past runs away.

Three witnesses, the surest first. The energy counter is the meter's own clock: a count that was read before says when
it was true. Node reports and the battery's own power say what the meter must show; if it shows that some time later, it
is late by that time. Without nodes our own battery alone must come back: what moved on the meter is then minus its move
of some time before. Nothing is said where nothing moved. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controller.types import FloatArray

LATE_S_MIN = 0.15  # below it the loop only amplifies a little: the residual pays for that
LATE_S_MAX = 20.0  # a count older than this is a counter that was reset
RATE_S = 1.0
GAP_S = 2.0  # without a count: what was known of its time is worth nothing
JUMP_S = 0.3  # of the counter's clock against ours: less is what two registers of one meter differ by
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
ALONE = 0.2  # the same, where nothing else speaks
SILENT_S = 2.0  # nodes that say nothing for so long are no witness
REFUTED_S = 1.0  # that no delay explains
CLEAR_S = 10.0  # of right stamps, before a meter that was late is believed again


class MeterDelay:
    """One per meter: `sampled` with every new sample, `reported` with every new sum of nodes; then look at `late_s`."""

    def __init__(self, *, scale_w: float) -> None:
        """`scale_w`: the registered peak."""
        self._counter = CounterClock(power_w_min=0.01 * scale_w)
        self._moved_w, self._doubt_w = MOVED_FRAC * scale_w, DOUBT_FRAC * scale_w
        self._quick: deque[tuple[float, float, float]] = deque()  # (t, metered, battery)
        self._means: deque[tuple[float, float, float]] = deque()  # (t, metered, what nodes and battery make of it)
        self._matched_s = 0.0
        self._found_count = 0
        self._usual_w2 = 0.0
        self._is_apart = False
        self._quiet_since_s = self._explained_s = -math.inf
        self._tried_s = self._reported_s = -math.inf

    @property
    def late_s(self) -> float:
        """By how much the samples are older than their stamps; 0 without evidence."""
        return self._counter.late_s or self._matched_s

    @property
    def is_in_doubt(self) -> bool:
        """The meter and what it must show are apart, or it is late: nothing is to be learnt from it."""
        return self._is_apart or self.late_s > 0.0

    @property
    def has_misled(self) -> bool:
        """Late samples were taken for new ones until now."""
        return self._matched_s > 0.0 and not self._counter.late_s

    def counted(self, t_s: float, import_wh: float | None, *, power_w: float) -> None:
        """The meter's energy counter in a sample of `power_w` stamped `t_s`, if it has one."""
        if import_wh is None:
            return
        if power_w < 0.0:  # of export it knows nothing; one that counts net runs backwards and tells no time
            self._counter.forget()
            return
        was_late = self._counter.late_s > 0.0
        self._counter.read(t_s, import_wh)
        if was_late and not self._counter.late_s:
            self._match(0.0)

    def sampled(self, t_s: float, power_w: float, *, battery_w: float) -> None:
        """A new sample stamped `t_s`, and the battery's power of that instant."""
        if self._quick and t_s < self._quick[-1][0] + 0.5 * GRID_S:
            return
        self._quick.append((t_s, power_w, battery_w))
        while self._quick[0][0] < t_s - KEPT_S:
            self._quick.popleft()
        if t_s - self._reported_s > SILENT_S and t_s - self._tried_s >= GRID_S:
            self._tried_s = t_s
            self._judge_alone()

    def reported(self, now_s: float, *, load_w: float, delay_s: float) -> None:
        """What nodes make of the load of `delay_s` ago: hold the meter against it."""
        half_s, t_s = min(HALF_WINDOW_S, delay_s), now_s - delay_s
        self._reported_s = now_s
        span = [(p, b) for t, p, b in self._quick if t_s - half_s <= t <= t_s + half_s]
        if not span or (self._means and t_s - self._means[-1][0] < 0.5 * GRID_S):
            return
        metered_w, battery_w = (float(mean) for mean in np.mean(span, axis=0))
        self._means.append((t_s, metered_w, load_w - battery_w))
        while self._means[0][0] < t_s - KEPT_S:
            self._means.popleft()
        self._judge(now_s)

    # ------------------------------------------------------------------------------------------------------ private

    def _judge(self, now_s: float) -> None:
        """Which time explains what the meter shows, as stamped or another; neither: as stamped."""
        times, metered, due = np.array(self._means).T
        tried = times > times[-1] - TRIED_S
        recent = times[tried] > times[-1] - RECENT_S
        misfit = float(((metered - due)[tried][recent] ** 2).mean())
        then_s = times[tried] - LAGS_S[:, None]
        late = (metered[tried] - np.interp(then_s, times, due)) ** 2
        late[then_s < times[0]] = math.inf
        misfits = late.mean(axis=1)
        best = int(misfits.argmin())
        limit = max(self._moved_w * self._moved_w, UNUSUAL**2 * self._usual_w2)
        self._is_apart = misfit > max(self._doubt_w**2, UNUSUAL**2 * self._usual_w2)
        if self._counter.late_s:
            apart = float(late[int(np.abs(LAGS_S - self._counter.late_s).argmin()), recent].mean())
            if (
                limit < apart < math.inf and misfit < MATCH * apart
            ):  # stamps explain what shows, the counter's word does not
                self._counter.forget()
            return
        if self._matched_s:
            self._look_back(now_s, misfit, float(late[:, recent].mean(axis=1).min()), limit)
            if self._matched_s and float(misfits.max()) > limit:  # enough moved to tell by how much
                self._matched_s = float(LAGS_S[best])
            return
        self._usual_w2 += USUAL_GAIN * (min(misfit, limit) - self._usual_w2)
        is_late = misfit > limit and misfits[best] < MATCH * misfit
        if is_late:
            quick_late, quick = self._left(float(LAGS_S[best]), 0.0)
            is_late = quick_late < QUICK * quick
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

    def _judge_alone(self) -> None:
        """Without nodes: our own moves must be seen on the meter; those of which time are?"""
        if self._quick[-1][0] - self._quick[0][0] < TRIED_S:
            return
        shown, stamped, *others = self._left(math.inf, 0.0, *LAGS_S)
        best = int(np.argmin(others))
        if self._matched_s:
            if stamped < others[best]:
                self._match(0.0)
            return
        self._found(
            float(LAGS_S[best]),
            is_late=shown > self._moved_w**2 and others[best] < ALONE * min(stamped, shown),
        )

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


class CounterClock:
    """An energy counter read as a clock. It only grows: a value it had before is a sample of that time."""

    def __init__(self, *, power_w_min: float) -> None:
        """`power_w_min`: below it the counter hardly moves and tells no time."""
        self._power_w_min = power_w_min
        self._times_s: deque[float] = deque()
        self._counts_wh: deque[float] = deque()
        self._last_s, self._last_wh = -math.inf, math.nan
        self.late_s = 0.0

    def read(self, t_s: float, count_wh: float) -> None:
        """A count stamped `t_s`."""
        if count_wh == self._last_wh or not math.isfinite(count_wh):
            return
        if t_s - self._last_s > GAP_S:
            self.forget()
        if self._counts_wh and count_wh <= self._counts_wh[-1]:
            self._read_again(t_s, count_wh)
        else:
            if self.late_s:
                self._read_on(t_s, count_wh)
            self._keep(t_s - self.late_s, count_wh)
        self._last_s, self._last_wh = t_s, count_wh

    def forget(self) -> None:
        """Begin anew: on time until a count comes again."""
        self._times_s.clear()
        self._counts_wh.clear()
        self.late_s = 0.0

    def _read_again(self, t_s: float, count_wh: float) -> None:
        """A count from before: known to the instant while it is remembered, a reset otherwise."""
        if count_wh < self._counts_wh[0]:
            self.forget()
            self._keep(t_s, count_wh)
            return
        late_s = t_s - float(np.interp(count_wh, np.array(self._counts_wh), np.array(self._times_s)))
        self.late_s = late_s if late_s >= LATE_S_MIN else 0.0

    def _rate_wh_per_s(self) -> float:
        """How fast it counted in its last second; the power beside it may be wrong in ways of its own."""
        end_s, end_wh = self._times_s[-1], self._counts_wh[-1]
        known = zip(reversed(self._times_s), reversed(self._counts_wh), strict=True)
        return next(((end_wh - wh) / (end_s - t_s) for t_s, wh in known if t_s <= end_s - RATE_S), 0.0)

    def _read_on(self, t_s: float, count_wh: float) -> None:
        """A late meter's counter goes on; when it suddenly goes faster, the samples catch up."""
        rate = self._rate_wh_per_s()
        if rate * 3_600.0 < self._power_w_min:
            return
        ahead_s = (count_wh - self._last_wh) / rate - (t_s - self._last_s)
        if abs(ahead_s) > JUMP_S:
            late_s = self.late_s - ahead_s
            self.late_s = late_s if late_s > max(LATE_S_MIN, 0.2 * self.late_s) else 0.0

    def _keep(self, true_s: float, count_wh: float) -> None:
        if self._times_s and true_s <= self._times_s[-1]:
            return
        self._times_s.append(true_s)
        self._counts_wh.append(count_wh)
        while self._times_s[0] < true_s - LATE_S_MAX:
            self._times_s.popleft()
            self._counts_wh.popleft()
