"""The clock of the process and a ticker with absolute deadlines.

The only file of the controller that may read a clock. A ticker never bursts: after a stall it skips the ticks that
passed and counts them as overruns, so a late cycle cannot be followed by a hurried one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from controller.ports import Clock

NS_PER_S = 1_000_000_000


class MonotonicClock:
    """The operating system's clocks."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def now_s(self) -> float:
        return time.monotonic_ns() / NS_PER_S

    def wall_utc_s(self) -> float:
        return time.time()

    async def sleep_until_ns(self, t_ns: int) -> None:
        delay_ns = t_ns - time.monotonic_ns()
        await asyncio.sleep(max(0, delay_ns) / NS_PER_S)


class Ticker:
    """Yields tick numbers at `period_s`, each at an absolute deadline on `clock`."""

    def __init__(self, clock: Clock, *, period_s: float) -> None:
        assert period_s > 0
        self._clock = clock
        self._period_ns = round(period_s * NS_PER_S)
        self.overrun_count = 0
        self.due_ns = 0  # when the tick in hand was due; lateness is now - due

    async def ticks(self) -> AsyncIterator[int]:
        """Tick numbers from 0; a number is skipped for every deadline that passed unserved."""
        start_ns = self._clock.now_ns()
        tick = 0
        while True:
            self.due_ns = start_ns + tick * self._period_ns
            await self._clock.sleep_until_ns(self.due_ns)
            yield tick
            behind = (self._clock.now_ns() - start_ns) // self._period_ns
            skipped = max(0, behind - tick)
            self.overrun_count += skipped
            tick += skipped + 1
