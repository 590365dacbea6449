"""Virtual time: an asyncio event loop whose selector moves an integer clock instead of waiting.

Code that sleeps, ticks and times out through the loop or through `VirtualClock` runs unchanged, as fast as the machine
computes, and twice the same. Nothing real may enter: executors, sockets, child processes and calls from other threads
raise, because their timing would decide the order of events. Wakes due at one instant run in the order they were asked
for; tasks hash by their number, so that sets of tasks are walked in the same order in every run.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, NoReturn, TypeVar

NS_PER_S = 1_000_000_000
# Loop time is a float of seconds; below this many nanoseconds it converts to the integer clock and back without loss.
HORIZON_NS = 10**15

R = TypeVar("R")


class ForbiddenInVirtualTime(RuntimeError):
    """Something asked for a thread, a socket or a process; its timing cannot be reproduced."""


class NothingLeftToWake(RuntimeError):
    """Every task waits for something that no timer will bring: in real time this run would hang for ever."""


class _NumberedTask(asyncio.Task[R]):
    """A task whose hash is its number: sets of tasks (TaskGroup, wait) keep one order in every run."""

    def __init__(
        self, number: int, coro: Coroutine[Any, Any, R], loop: VirtualLoop, name: str | None, context: Context | None
    ) -> None:
        self._number = number
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class _TimeMover:
    """Stands where a loop keeps its selector: to wait for the next timer, it sets the clock to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None or timeout > 0:
            self._loop.move_to_next_wake()
        else:
            self._loop.wake_due()
        return ()

    def close(self) -> None:
        return None


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in which waiting costs nothing. Create with `run` or `asyncio.Runner(loop_factory=VirtualLoop)`."""

    # Private names of asyncio.BaseEventLoop, unchanged from Python 3.4 to 3.14; a test fails if one goes.
    _selector: _TimeMover
    _scheduled: list[asyncio.TimerHandle]
    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0  # written here alone
        self._wakes: list[tuple[int, int, asyncio.Future[None]]] = []
        self._wake_count = 0
        self._task_count = 0
        self._selector = _TimeMover(self)

    # -- time

    def time(self) -> float:
        return self.now_ns / NS_PER_S

    def wake_at_ns(self, t_ns: int) -> asyncio.Future[None]:
        """A future that is done at `t_ns`; the cheap way to sleep (no timer handle, no float)."""
        future = self.create_future()
        self._wake_count += 1
        heapq.heappush(self._wakes, (t_ns, self._wake_count, future))
        return future

    def stall_ns(self, duration_ns: int) -> None:
        """Let time pass while nothing runs: a process that was stopped, swapped out or busy."""
        assert duration_ns >= 0
        self.now_ns += duration_ns

    def move_to_next_wake(self) -> None:
        """Set the clock to the earliest timer of either kind, and release what is due there."""
        scheduled, wakes = self._scheduled, self._wakes
        if wakes and not (scheduled and round(scheduled[0].when() * NS_PER_S) < wakes[0][0]):
            t_ns = wakes[0][0]
        elif scheduled:
            t_ns = round(scheduled[0].when() * NS_PER_S)
        else:
            raise NothingLeftToWake(f"at t = {self.time():.6f} s every task waits and no timer is set")
        assert t_ns < HORIZON_NS, "virtual time ran past its exact range"
        if t_ns > self.now_ns:
            self.now_ns = t_ns
        self.wake_due()

    def wake_due(self) -> None:
        """Release every `wake_at_ns` whose time has come, in the order they were asked for."""
        wakes, now_ns = self._wakes, self.now_ns
        while wakes and wakes[0][0] <= now_ns:
            future = heapq.heappop(wakes)[2]
            if not future.done():
                future.set_result(None)

    # -- asyncio internals: the base class asks the selector for timeout None or > 0 when nothing is ready

    def _process_events(self, event_list: tuple[()]) -> None:
        return None

    def _write_to_self(self) -> None:
        return None

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As the base class, without what it asks at every call in case of debug mode or a closed loop."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, R], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[R]:
        self._task_count += 1
        return _NumberedTask(self._task_count, coro, self, name, context)

    # -- what cannot be reproduced

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread_id:  # type: ignore[attr-defined]
            raise ForbiddenInVirtualTime("a call from another thread")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> NoReturn:
        raise ForbiddenInVirtualTime(f"an executor, for {getattr(func, '__qualname__', func)!r}")

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        raise ForbiddenInVirtualTime("a connection")

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        raise ForbiddenInVirtualTime("a listening socket")

    async def create_datagram_endpoint(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ForbiddenInVirtualTime("a datagram socket")

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ForbiddenInVirtualTime("a child process")

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ForbiddenInVirtualTime("a child process")

    def add_reader(self, *args: Any) -> NoReturn:  # type: ignore[override]
        raise ForbiddenInVirtualTime("a file descriptor")

    def add_writer(self, *args: Any) -> NoReturn:  # type: ignore[override]
        raise ForbiddenInVirtualTime("a file descriptor")


class VirtualClock:
    """`ports.Clock` on a virtual loop. The wall clock starts at `start_utc_s` and can be stepped, as NTP would."""

    def __init__(self, loop: VirtualLoop, *, start_utc_s: float) -> None:
        self._loop = loop
        self._wall_offset_s = start_utc_s

    def now_ns(self) -> int:
        return self._loop.now_ns

    def now_s(self) -> float:
        return self._loop.now_ns / NS_PER_S

    def wall_utc_s(self) -> float:
        return self._wall_offset_s + self._loop.now_ns / NS_PER_S

    def step_wall_s(self, step_s: float) -> None:
        self._wall_offset_s += step_s

    async def sleep_until_ns(self, t_ns: int) -> None:
        """Return at `t_ns`; a time that has passed still gives the other tasks their turn."""
        if t_ns <= self._loop.now_ns:
            await asyncio.sleep(0)
        else:
            await self._loop.wake_at_ns(t_ns)


def run(main: Coroutine[Any, Any, R], *, loop_factory: Callable[[], VirtualLoop] = VirtualLoop) -> R:
    """Run `main` to its end in a fresh virtual world that starts at 0 s."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


def running_loop() -> VirtualLoop:
    """The virtual loop this code runs in; an error elsewhere."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError("not inside a virtual loop")
    return loop
