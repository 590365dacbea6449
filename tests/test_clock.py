"""The clock of the process: it goes on while the machine is suspended, and nobody waits for what passed meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from controller.clock import NS_PER_S, MonotonicClock, Ticker

HOUR_NS = 3600 * NS_PER_S


class Suspend:
    """Linux as it is after suspends: CLOCK_BOOTTIME counted them, CLOCK_MONOTONIC did not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept_ns = 0
        true = time.clock_gettime_ns
        monkeypatch.setattr(
            time, "clock_gettime_ns", lambda which: true(which) + self.slept_ns * (which == time.CLOCK_BOOTTIME)
        )


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system's monotonic clock counts suspends or none")
async def test_a_suspend_is_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of suspend ages a reading and a time to live by an hour (FAULTS C4), its ticks are skipped."""
    machine, clock = Suspend(monkeypatch), MonotonicClock()
    ticker = Ticker(clock, period_s=600.0)
    assert await ticker.tick() == 0
    read_s, due_ns = clock.now_s(), clock.now_ns() + HOUR_NS // 2
    machine.slept_ns = HOUR_NS + 599 * NS_PER_S + 999_000_000
    assert clock.now_s() - read_s >= 3600.0
    async with asyncio.timeout(60):
        await clock.sleep_until_ns(due_ns)
        assert await ticker.tick() == 7
    assert ticker.overrun_count == 6
