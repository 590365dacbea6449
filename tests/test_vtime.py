"""Virtual time: exact, ordered, fast enough not to wait, and closed to everything that cannot be reproduced."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.clock import Ticker
from hil import vtime
from hil.vtime import NS_PER_S, ForbiddenInVirtualTime, NothingLeftToWake, VirtualClock


def clock() -> VirtualClock:
    return VirtualClock(vtime.running_loop(), start_utc_s=1_000.0)


def test_a_year_of_sleep_takes_no_time_and_lands_on_the_nanosecond() -> None:
    """A sleep of ten days ends at exactly that integer, though the loop's own time is a float."""

    async def main() -> int:
        await clock().sleep_until_ns(864_000 * NS_PER_S + 1)
        return clock().now_ns()

    assert vtime.run(main()) == 864_000 * NS_PER_S + 1


@given(st.lists(st.integers(0, 10**14), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_wakes_come_in_order_of_time_then_of_asking(times_ns: list[int]) -> None:
    async def main() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []

        async def sleeper(index: int, t_ns: int) -> None:
            await clock().sleep_until_ns(t_ns)
            seen.append((clock().now_ns(), index))

        async with asyncio.TaskGroup() as group:
            for index, t_ns in enumerate(times_ns):
                group.create_task(sleeper(index, t_ns))
        return seen

    # A time that is already past (0) runs at once; all others at their own instant, ties in the order of asking.
    assert vtime.run(main()) == sorted((t_ns, index) for index, t_ns in enumerate(times_ns))


def test_asyncio_timers_and_clock_wakes_interleave_exactly() -> None:
    """asyncio.sleep (float timers) and the clock's own wakes share one time axis."""

    async def main() -> list[str]:
        seen: list[str] = []

        async def by_asyncio() -> None:
            for _ in range(3):
                await asyncio.sleep(0.1)
                seen.append(f"a{vtime.running_loop().now_ns}")

        async def by_clock() -> None:
            for k in range(1, 4):
                await clock().sleep_until_ns(k * 100_000_000 + 1)
                seen.append(f"c{clock().now_ns()}")

        await asyncio.gather(by_clock(), by_asyncio())
        return seen

    assert vtime.run(main()) == [
        "a100000000",
        "c100000001",
        "a200000000",
        "c200000001",
        "a300000000",
        "c300000001",
    ]


def test_timeouts_fire_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600.0):
                await asyncio.Event().wait()
        return clock().now_s()

    assert vtime.run(main()) == 3600.0


def test_a_ticker_never_overruns_unless_the_process_stalls() -> None:
    """A stall of 2.5 periods skips two ticks, which are counted, and the ticks after it are on their grid."""

    async def main() -> tuple[list[int], int, int]:
        loop = vtime.running_loop()
        ticker = Ticker(clock(), period_s=0.05)
        seen: list[int] = []
        while (tick := await ticker.tick()) < 8:
            seen.append(tick)
            if tick == 3:
                loop.stall_ns(125_000_000)
        seen.append(tick)
        return seen, ticker.overrun_count, clock().now_ns()

    ticks, overruns, now_ns = vtime.run(main())
    assert ticks == [0, 1, 2, 3, 6, 7, 8]
    assert overruns == 2
    assert now_ns == 8 * 50_000_000


def test_cancelled_sleeps_leave_nothing_behind() -> None:
    async def main() -> int:
        task = asyncio.ensure_future(clock().sleep_until_ns(NS_PER_S))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await clock().sleep_until_ns(2 * NS_PER_S)
        return clock().now_ns()

    assert vtime.run(main()) == 2 * NS_PER_S


def test_a_world_that_would_hang_says_so() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingLeftToWake, match="no timer is set"):
        vtime.run(main())


@pytest.mark.parametrize("what", ["thread", "executor", "socket", "server", "process", "resolver"])
def test_threads_sockets_and_processes_are_refused(what: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ForbiddenInVirtualTime):
            if what == "thread":
                await asyncio.to_thread(sum, [1])
            elif what == "executor":
                loop.run_in_executor(None, sum, [1])
            elif what == "socket":
                await asyncio.open_connection("127.0.0.1", 1)
            elif what == "server":
                await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
            elif what == "process":
                await asyncio.create_subprocess_exec("true")
            else:
                await loop.getaddrinfo("localhost", 1)

    vtime.run(main())


def test_a_call_from_another_thread_is_refused() -> None:
    import threading

    async def main() -> list[BaseException]:
        loop = asyncio.get_running_loop()
        caught: list[BaseException] = []

        def intrude() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except ForbiddenInVirtualTime as error:
                caught.append(error)

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        return caught

    assert len(vtime.run(main())) == 1


def test_the_wall_clock_steps_without_moving_monotonic_time() -> None:
    async def main() -> tuple[float, float, int]:
        c = clock()
        await c.sleep_until_ns(5 * NS_PER_S)
        before = c.wall_utc_s()
        c.step_wall_s(3600.0)
        return before, c.wall_utc_s(), c.now_ns()

    assert vtime.run(main()) == (1005.0, 4605.0, 5 * NS_PER_S)


def test_the_same_seed_gives_the_same_order_of_events() -> None:
    """A crowd of tasks with random sleeps, timeouts and cancellations of whole groups, twice."""

    def world(seed: int) -> list[tuple[int, int]]:
        async def main() -> list[tuple[int, int]]:
            rng = random.Random(seed)
            seen: list[tuple[int, int]] = []

            async def worker(index: int, delays_s: list[float]) -> None:
                try:
                    for delay_s in delays_s:
                        await asyncio.sleep(delay_s)
                        seen.append((index, clock().now_ns()))
                finally:
                    seen.append((-index, clock().now_ns()))

            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.0), asyncio.TaskGroup() as group:
                        for index in range(40):
                            group.create_task(worker(index, [rng.random() * 0.3 for _ in range(20)]))
            return seen

        return vtime.run(main())

    assert world(7) == world(7)
    assert world(7) != world(8)
