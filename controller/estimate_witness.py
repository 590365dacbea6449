"""Which account of the battery meter and nodes bear out: as it reads, or as it was told.

Load less battery is what the meter must show. Two witnesses. Quick moves on the meter that one account explains and
the other does not are our own; load that moves shows in both alike, and says nothing. Node reports are means of a
second, so meter and both accounts are held against them as such means: much that is left unexplained within a second
decides, or a little for three. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from enum import StrEnum, unique

from controller.estimate_delay import DOUBT_FRAC, HALF_WINDOW_S, MATCH, MOVED_FRAC, RECENT_S

LATELY_S = 3.0  # of reports: where a little must be left unexplained; much, where it is within `RECENT_S`
BETTER = 0.5  # of what one account leaves: the other is still the better one, and nodes are off themselves
PLAIN = 4.0  # times what nodes are off: orders that moved by so much show whether the readings moved along
FOUND_COUNT, QUICK_COUNT = 2, 3  # reports, and samples of the meter, in a row
QUICK_S, GAP_S = 1.0, 0.3  # of samples, no further apart than this
LAG_SHARE = 0.1  # of what orders moved by lately: two accounts differ by less on a mean of a second for a lag alone
TRIED_S = 2.0  # an account that nothing bears out serves so long; an edge explains that much


@unique
class Account(StrEnum):
    """Whose word stands for the battery's power."""

    READ = "read"
    TOLD = "told"


class AccountWitness:
    """One per battery: `metered` with every good sample of the meter, `reported` with every new sum of nodes."""

    def __init__(self, *, scale_w: float) -> None:
        """`scale_w`: the registered peak."""
        self._much_w2, self._little_w2 = (MOVED_FRAC * scale_w) ** 2, (DOUBT_FRAC * scale_w) ** 2
        self._samples: deque[tuple[float, float, float, float]] = deque()  # (t, metered, as read, as told)
        self._left: deque[tuple[float, float, float, float]] = deque()  # (t, unexplained as read, as told; told)
        self._quick: deque[tuple[float, float, float, float]] = deque()  # (t, moved as read, as told, on the meter)
        self._account = Account.READ
        self._found_count = self._quick_count = 0
        self._told: deque[tuple[float, float]] = deque()
        self._apart_w, self._compared_s = 0.0, -math.inf
        self._apart_s = self._told_fits_s = self._judged_s = -math.inf
        self._unfit_since_s = math.inf  # since when orders do not explain the meter, among reports without a gap
        self.turn_count = 0
        self.doubts_reading = False  # orders explain the meter, what the battery says does not
        self.proves_reading = False  # what it says moves as meter and nodes show, what it was told does not
        self.shows_reading = False  # the same of the last second, by the meter alone

    def are_apart(self, now_s: float) -> bool:
        """The two accounts differ by more than an edge explains, or did within the last seconds."""
        return now_s - self._apart_s <= LATELY_S

    def bears_out_orders(self, now_s: float, *, is_silent: bool) -> bool:
        """What the battery was told is what it gives; one that `is_silent` has no other account.

        What was found stands while nobody can judge it; a silent battery's orders must be borne out all the time.
        """
        if self._account is Account.TOLD:
            return self._judged_s - self._unfit_since_s <= TRIED_S
        return is_silent and now_s - self._told_fits_s <= TRIED_S

    def compared(self, t_s: float, *, read_w: float, told_w: float) -> None:
        """Both accounts at `t_s`; lags make them differ for an instant, and by more the further it has to go."""
        elapsed_s, self._compared_s = max(t_s - self._compared_s, 0.0), t_s
        self._apart_w += (1.0 - math.exp(-elapsed_s / QUICK_S)) * (read_w - told_w - self._apart_w)
        self._told.append((t_s, told_w))
        while self._told[0][0] < t_s - LATELY_S:
            self._told.popleft()
        orders_w = [w for _, w in self._told]
        moved_w = max(orders_w) - min(orders_w)
        if self._apart_w**2 > max(self._much_w2, (LAG_SHARE * moved_w) ** 2):
            self._apart_s = t_s

    def metered(self, t_s: float, power_w: float, *, read_w: float, told_w: float) -> None:
        """A sample of the meter, and both accounts of the same instant; NaN: none."""
        if self._samples:
            before_s, before_w, before_read_w, before_told_w = self._samples[-1]
            if t_s <= before_s:
                return
            if t_s - before_s <= GAP_S:
                moved_w = power_w - before_w
                self._moved(t_s, moved_w + read_w - before_read_w, moved_w + told_w - before_told_w, moved_w)
        self._samples.append((t_s, power_w, read_w, told_w))
        while self._samples[0][0] < t_s - LATELY_S:
            self._samples.popleft()

    def reported(self, now_s: float, *, load_w: float, delay_s: float) -> None:
        """What nodes make of the load of `delay_s` ago."""
        half_s, t_s = min(HALF_WINDOW_S, delay_s), now_s - delay_s
        span = [sample[1:] for sample in self._samples if t_s - half_s <= sample[0] <= t_s + half_s]
        if not span:
            return
        metered_w, read_w, told_w = (sum(column) / len(span) for column in zip(*span, strict=True))
        left_w = metered_w - load_w
        self._left.append((t_s, left_w + read_w, left_w + told_w, told_w))
        while self._left[0][0] < t_s - LATELY_S:
            self._left.popleft()
        self._judge(now_s)

    def _moved(self, t_s: float, read_w: float, told_w: float, metered_w: float) -> None:
        """What either account makes of the load's move between two samples: the true one leaves out our own moves."""
        self._quick.append((t_s, read_w, told_w, metered_w))
        while self._quick[0][0] < t_s - QUICK_S:
            self._quick.popleft()
        _, read, told, metered = zip(*self._quick, strict=True)
        self.shows_reading = self._is_off(_square(told), _square(read), self._little_w2)
        this_w, other_w = (read, told) if self._account is Account.READ else (told, read)
        is_off = self._is_off(_square(this_w), _square(other_w), self._little_w2)
        is_other = is_off and _square(metered) > self._little_w2
        self._quick_count = self._quick_count + 1 if is_other else 0
        if self._quick_count >= QUICK_COUNT:
            self._turn(t_s)

    def _turn(self, now_s: float) -> None:
        """The other account is true."""
        self._account = Account.TOLD if self._account is Account.READ else Account.READ
        self._found_count = self._quick_count = 0
        self.turn_count += 1
        self._left.clear()  # nodes may have been taught by the other account
        self._judged_s = self._told_fits_s = now_s
        self._unfit_since_s = math.inf

    def _judge(self, now_s: float) -> None:
        is_gap = now_s - self._judged_s > RECENT_S
        self._judged_s = now_s
        newest_s = self._left[-1][0]
        recent = [row for row in self._left if row[0] > newest_s - RECENT_S]
        _, read, told, _ = zip(*recent, strict=True)
        read_w2, told_w2 = _square(read), _square(told)
        if told_w2 <= max(self._much_w2, BETTER * read_w2):
            self._told_fits_s, self._unfit_since_s = now_s, math.inf
        elif is_gap or math.isinf(self._unfit_since_s):
            self._unfit_since_s = now_s
        self.doubts_reading = self._is_off(read_w2, told_w2, self._much_w2)
        doubts_orders = self._is_off(told_w2, read_w2, self._much_w2)
        self.proves_reading = False
        if self._left[0][0] <= newest_s - LATELY_S + RECENT_S:
            doubts_orders |= self._look_back()
        is_other = self.doubts_reading if self._account is Account.READ else doubts_orders
        self._found_count = self._found_count + 1 if is_other else 0
        if self._found_count >= FOUND_COUNT:
            self._turn(now_s)

    def _look_back(self) -> bool:
        """What three seconds show; True where orders count for less than the reading."""
        _, read, told, orders_w = zip(*self._left, strict=True)
        read_w2, told_w2 = _square(read), _square(told)
        self.doubts_reading |= self._is_off(read_w2, told_w2, self._little_w2)
        # By how they move alone: what nodes leave out may have been learnt of the wrong account, an offset to both.
        self.proves_reading = self._is_off(_spread(told), _spread(read), self._little_w2)
        speaks_again = read_w2 <= self._much_w2 and _spread(orders_w) > PLAIN * self._much_w2
        return speaks_again or self._is_off(told_w2, read_w2, self._little_w2)

    @staticmethod
    def _is_off(this_w2: float, other_w2: float, limit_w2: float) -> bool:
        """This account leaves more than `limit_w2` unexplained, and the other next to nothing of it."""
        return this_w2 > limit_w2 and other_w2 < MATCH * this_w2


def _square(values: Iterable[float]) -> float:
    """Mean square; NaN where one value is none."""
    found = [value * value for value in values]
    return sum(found) / len(found)


def _spread(values: tuple[float, ...]) -> float:
    """Mean square about the mean."""
    mean = sum(values) / len(values)
    return _square([value - mean for value in values])
