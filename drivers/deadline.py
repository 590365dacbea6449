"""Deadlines for everything that waits on the outside: awaits, and blocking calls on a worker thread per device.

`deadline` bounds an await. `DeviceWorker` runs blocking calls of one device on one thread of its own. A call that
overruns is reported at its deadline and left to end by itself; until it does, nothing more is started on that device,
so a wedged driver costs one thread and one `DeviceBusy` per period, and no other device waits for it.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from drivers.errors import DeviceBusy, DeviceGone, DeviceTimeout

T = TypeVar("T")


@asynccontextmanager
async def deadline(device: str, seconds: float, what: str = "no answer") -> AsyncIterator[None]:
    """Bound the body to `seconds`; a timeout (ours or the operating system's) is raised as DeviceTimeout."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeviceTimeout(device, f"{what} within {seconds:g} s") from error


class _Mailbox:
    """Outcomes on their way from workers to one loop: one wake-up carries all that arrived before the loop ran."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._letters: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._is_announced = False

    def post(self, letter: Callable[[], None]) -> bool:
        """From any thread; False when the loop is gone."""
        loop = self._loop()
        with self._lock:
            self._letters.append(letter)
            if self._is_announced:
                return True
            self._is_announced = True
        try:
            if loop is None:
                return False
            loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        with self._lock:
            self._is_announced = False
            letters = list(self._letters)
            self._letters.clear()
        for letter in letters:
            letter()


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


class _Job:
    """One blocking call and where its outcome goes; touched by the worker only until `finish` is scheduled."""

    __slots__ = ("fn", "future", "loop", "mailbox", "name", "started_s")

    def __init__(self, fn: Callable[[], Any], name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.name = name
        self.loop = loop
        mailbox = _mailboxes.get(loop)
        if mailbox is None:
            mailbox = _mailboxes[loop] = _Mailbox(loop)
        self.mailbox = mailbox
        self.future: asyncio.Future[Any] = loop.create_future()
        self.started_s = loop.time()


class DeviceWorker:
    """Runs blocking calls of one device, one at a time, on one daemon thread.

    All methods belong to one event loop. The thread is a daemon because a driver call can be unkillable: waiting for it
    would keep a dying process, and with it the GPU, from being cleaned up by the kernel.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._turn = asyncio.Lock()
        self._running: _Job | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    async def call(self, fn: Callable[[], T], *, deadline_s: float, name: str) -> T:
        """The result of `fn()`, or what it raised; waits its turn behind a call that is in time.

        Raises DeviceBusy at once while an overrun call has not returned, DeviceTimeout at the deadline (the time spent
        waiting for the turn counts), DeviceGone after `close`.
        """
        if self._is_closed:
            raise DeviceGone(self.device, f"{name}: worker closed")
        self._refuse_if_overrun(name)
        left_s = deadline_s
        if self._turn.locked():
            loop = asyncio.get_running_loop()
            left_s += loop.time()
            async with deadline(self.device, deadline_s, f"{name}: no answer"):
                await self._turn.acquire()
            left_s -= loop.time()
        else:
            await self._turn.acquire()  # at once: nobody holds it
        try:
            self._refuse_if_overrun(name)
            return await self._run(fn, name, left_s=left_s, deadline_s=deadline_s)
        finally:
            self._turn.release()

    def close(self) -> None:
        """Let the thread end once its call returns; never waits for it."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)

    def _refuse_if_overrun(self, name: str) -> None:
        job = self._running
        if job is not None and job.future.done():
            age_s = job.loop.time() - job.started_s
            raise DeviceBusy(self.device, f"{name}: {job.name} has not returned for {age_s:.1f} s")

    async def _run(self, fn: Callable[[], T], name: str, *, left_s: float, deadline_s: float) -> T:
        loop = asyncio.get_running_loop()
        job = _Job(fn, name, loop)
        self._running = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"worker {self.device}", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        timer = loop.call_later(max(0.0, left_s), self._expire, job, f"{name}: no answer within {deadline_s:g} s")
        try:
            result: T = await job.future
        finally:
            timer.cancel()  # late or given up by our caller: the call itself goes on
        return result

    def _expire(self, job: _Job, what: str) -> None:
        if not job.future.done():
            job.future.set_exception(DeviceTimeout(self.device, what))

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.fn()
            except BaseException as caught:  # noqa: BLE001 - handed to the caller, whatever it is
                error = caught
            if not job.mailbox.post(partial(self._finish, job, result, error)):
                return  # the loop closed while the call ran: nobody is left to tell

    def _finish(self, job: _Job, result: Any, error: BaseException | None) -> None:
        self._running = None
        if job.future.done():
            return  # overrun: its caller was told at the deadline
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
