"""When a meter's value was true: it stands until the meter's next refresh, and the driver knows only when it was read.

A value is as old as the meter's delay says and up to one refresh more. Whoever takes the wrong one of these ages
answers his own moves twice: with a refresh of 0.1 s a loop of 10 Hz runs away. So a bank of ages each rebuilds the load
from the meter and the battery of that age, and the one under which our moves leave least on the load is the age. A
value that is repeated keeps its time until a refresh must have been, and for how long values are repeated is learnt: a
site file that says 0.02 s of a meter of 0.2 s had the loop swing by 40 MW. Pure; times in seconds, powers in watts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from controller.types import MeterSample, Quality, Reading, replace

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the time between two readings, that a value may have stood at the second
OLDER = (1.5, 2.0)  # no refresh makes a value so old: where these fit best the meter is late, which others find
USUAL = 0.75  # of a refresh, without evidence: a value taken for older than it is does less harm than one for younger
SHORT_S = 0.01  # no longer than the quickest battery takes to move: which age counts is the same
MEMORY_SAMPLES = 50.0
BETTER = 0.9  # another age is taken when it leaves less than this share of what the present one does,
BEYOND = 0.3  # and one that is beyond what is declared, less than this,
MOVED_FRAC = 0.01  # of the registered peak, once so much was moved
RUNS = 8  # the last values; a refresh repeats each of them equally often, but for one reading
RUNS_MIN = 3  # that tell
UNKNOWN_S = 1.0  # the longest refresh that is reckoned with before anything is known of it
PAUSE_TICKS = 2.5  # without a reading: how long a value stood is not known
UNEVEN = 1.5  # a refresh may be longer than another by so much, and by one reading
SLOWER = 1.5  # times what is declared: a site file to be corrected


class SampleClock:
    """One per meter; `stamped` with every reading, in order."""

    def __init__(self, update_s: float, *, tick_s: float, scale_w: float) -> None:
        """`update_s`: its refresh as declared; `tick_s`: how often it is read; `scale_w`: the registered peak."""
        self._update_s, self._tick_s = update_s, tick_s
        self._said: tuple[float, float | None] | None = None  # the newest value: power and counter
        self._read_s = -math.inf  # the last reading
        self._first_s = self._true_s = -math.inf  # the value's first reading, and when it was true
        self._run_s, self._run_count = math.nan, 0  # since when its power is repeated, and how often it was read
        self._runs: deque[tuple[int, float]] = deque(maxlen=RUNS)  # readings and seconds of the powers before
        self._stands_s = max(update_s, UNKNOWN_S)  # how long a value that is repeated is taken for the same
        self._repeated_s = 0.0  # how long values stand where they are repeated, all of them as often; else 0
        self._little_w2 = (MOVED_FRAC * scale_w) ** 2
        self._loads_w: tuple[float, ...] = ()
        self._left_w2 = [0.0] * len(SHARES + OLDER)
        declared = min(update_s / tick_s, 1.0) * (len(SHARES) - 1) if update_s > SHORT_S else 0.0
        self._declared_age, self._age = math.ceil(declared), round(USUAL * declared)
        self._late_s, self._in_time = 0.0, (self._age, self._left_w2)  # what is known of it in time, while it is late

    @property
    def refresh_s(self) -> float:
        """How long a value stands: as seen, or as declared where none is seen to be repeated."""
        return self._repeated_s or self._update_s

    @property
    def held_s(self) -> float:
        """How old a value may be by this clock alone."""
        return self._stands_s + 2.0 * self._tick_s

    @property
    def is_slower(self) -> bool:
        """Values surely stand for much longer than declared."""
        is_sure = len(self._runs) == RUNS and min(count for count, _ in self._runs) > 1
        return is_sure and self._repeated_s > SLOWER * max(self._update_s, self._tick_s)

    def stamped(
        self,
        reading: Reading[MeterSample],
        *,
        battery_at: Callable[[float], float],
        late_s: float = 0.0,
        is_still: bool = False,
    ) -> Reading[MeterSample]:
        """The reading with the time at which its value was true. `battery_at`: what the battery gave at an instant.

        `late_s`: how much later than by this clock the meter is said to be; `is_still`: it begins to stick, or is
        stuck, and shows our moves at no age.
        """
        if late_s != self._late_s:
            self._beside(late_s)
        sample, read_s = reading.value, reading.t_mono_s
        if reading.quality is Quality.MISSING or not math.isfinite(sample.power_w):
            return reading
        if read_s > self._read_s:
            self._take(sample, read_s, battery_at, is_still=is_still)
        return replace(reading, t_mono_s=self._true_s)

    # ------------------------------------------------------------------------------------------------------ private

    def _beside(self, late_s: float) -> None:
        """The meter is late by another time; what is known of it in time is kept until it is so again."""
        if not self._late_s:
            self._in_time = self._age, self._left_w2
        elif not late_s:
            self._age, self._left_w2 = self._in_time
        self._late_s, self._loads_w = late_s, ()

    def _take(
        self, sample: MeterSample, read_s: float, battery_at: Callable[[float], float], *, is_still: bool
    ) -> None:
        """One new reading: of the same value, or of another."""
        said, since_s = (sample.power_w, sample.import_wh), read_s - self._read_s
        is_same_power = self._said is not None and said[0] == self._said[0]
        self._count(read_s, is_same_power=is_same_power, is_pause=since_s > PAUSE_TICKS * self._tick_s)
        is_same = is_same_power if self._repeated_s else said == self._said
        self._read_s = read_s
        if is_same and read_s - self._first_s < self._stands_s:
            return
        if is_same and len(self._runs) < RUNS_MIN:
            self._stands_s = self._update_s  # nothing refreshes so seldom: it stands still, or load does
        stood_s = min(since_s, max(self._update_s, self._tick_s))
        if is_still:
            self._loads_w = ()
        else:
            true_s = read_s - self._late_s
            self._try(tuple(sample.power_w + battery_at(true_s - share * stood_s) for share in (*SHARES, *OLDER)))
        self._said, self._first_s, self._true_s = said, read_s, read_s - SHARES[self._age] * stood_s

    def _count(self, read_s: float, *, is_same_power: bool, is_pause: bool) -> None:
        """How often the powers of late were read before they changed, and what follows from it."""
        if is_same_power:
            self._run_count += 1
            self._run_s = math.nan if is_pause else self._run_s
            return
        is_first, run_s, run_count = self._said is None, self._run_s, self._run_count
        self._run_s, self._run_count = math.nan if is_first or is_pause else read_s, 1
        if is_pause or math.isnan(run_s):
            return  # it may have stood before it was first read
        self._runs.append((run_count, read_s - run_s))
        if len(self._runs) < RUNS_MIN:
            return
        runs = sorted(self._runs)
        if len(runs) > RUNS_MIN and runs[-1][0] > _most_of(runs[0][0]):
            runs.pop()  # it stood still once
        least, most = runs[0][0], runs[-1][0]
        is_refresh, seconds = most <= _most_of(least), sum(seconds for _, seconds in runs)
        self._repeated_s = seconds / len(runs) if is_refresh and most > 1 else 0.0
        interval_s = seconds / sum(count for count, _ in runs)
        self._stands_s = (most - 0.5) * interval_s if is_refresh else self._update_s

    def _try(self, loads_w: tuple[float, ...]) -> None:
        """Which age leaves the least of our own moves on the load."""
        keep = 1.0 - 1.0 / MEMORY_SAMPLES
        before_w, self._loads_w = self._loads_w or loads_w, loads_w
        moved_w2 = [(now - before) ** 2 for now, before in zip(loads_w, before_w, strict=True)]
        self._left_w2 = [keep * left + moved for left, moved in zip(self._left_w2, moved_w2, strict=True)]
        best = min(range(len(self._left_w2)), key=self._left_w2.__getitem__)
        if best >= len(SHARES):
            return
        is_beyond = best > max(self._declared_age, self._age)
        better, little_w2 = (BEYOND, self._little_w2) if is_beyond else (BETTER, 0.0)
        if self._left_w2[best] + little_w2 < better * (self._left_w2[self._age] + little_w2):
            self._age = best


def _most_of(least: int) -> int:
    """How often the value of one refresh may be read where another is read `least` times."""
    return int(UNEVEN * least) + 1
