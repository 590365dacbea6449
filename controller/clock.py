"""The clock of the process and a ticker with absolute deadlines.

The only file of the controller that may read a clock. A ticker never bursts: after a stall it skips the ticks that
passed and counts them as overruns, so a late cycle cannot be followed by a hurried one.
"""

from __future__ import annotations

import asyncio
import time

from controller.ports import Clock

NS_PER_S = 1_000_000_000
# On Linux the monotonic clock stands still while the machine is suspended, and so would every age and time to live.
STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class MonotonicClock:
    """The operating system's clocks. Time goes on through a suspend: what was known and ordered before it is old."""

    def now_ns(self) -> int:
        return time.clock_gettime_ns(STEADY)

    def now_s(self) -> float:
        return time.clock_gettime_ns(STEADY) / NS_PER_S

    def wall_utc_s(self) -> float:
        return time.time()

    async def sleep_until_ns(self, t_ns: int) -> None:
        delay_ns = t_ns - self.now_ns()
        await asyncio.sleep(max(0, delay_ns) / NS_PER_S)


class Ticker:
    """Counts ticks of `period_s`, each at an absolute deadline on `clock` or off it as asked; the first is at once."""

    def __init__(self, clock: Clock, *, period_s: float) -> None:
        assert period_s > 0
        self._clock = clock
        self._period_ns = round(period_s * NS_PER_S)
        self._start_ns: int | None = None  # when the first was waited for
        self._tick = -1  # the last
        self.overrun_count = 0
        self.due_ns = 0  # when the tick in hand was due; lateness is now - due

    async def tick(self, *, offset_s: float = 0.0) -> int:
        """Wait for the next, `offset_s` after its time; its number, from 0. One is skipped for every one missed."""
        now_ns, offset_ns = self._clock.now_ns(), round(offset_s * NS_PER_S)
        if self._start_ns is None:
            self._start_ns, skipped = now_ns, 0
        else:
            skipped = max(0, (now_ns - self._start_ns - offset_ns) // self._period_ns - self._tick)
        self.overrun_count += skipped
        self._tick += skipped + 1
        self.due_ns = self._start_ns + self._tick * self._period_ns + offset_ns
        await self._clock.sleep_until_ns(self.due_ns)
        return self._tick
