"""Deadlines: an await that overruns becomes a typed error; a blocking call that hangs blocks nothing but its device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from controller.ports import DriverError
from drivers.deadline import DeviceWorker, deadline
from drivers.errors import DeviceBusy, DeviceGone, DeviceTimeout

T = TypeVar("T")


async def once_free(ask: Callable[[], Awaitable[T]]) -> T:
    """What a device answers as soon as its overrun call has returned."""
    while True:
        try:
            return await ask()
        except DeviceBusy:
            await asyncio.sleep(0.001)


async def test_a_timeout_is_named_after_its_device() -> None:
    with pytest.raises(DeviceTimeout, match=r"^meter: no answer within 0.01 s$") as caught:
        async with deadline("meter", 0.01):
            await asyncio.Event().wait()
    assert caught.value.device == "meter"
    assert isinstance(caught.value, DriverError)


async def test_cancelling_from_outside_is_not_a_timeout() -> None:
    async def body() -> None:
        async with deadline("meter", 60.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_returns_results_and_errors_from_its_own_thread() -> None:
    worker = DeviceWorker("gpu0")
    seen = await worker.call(threading.current_thread, deadline_s=5.0, name="who")
    again = await worker.call(threading.current_thread, deadline_s=5.0, name="who")
    assert seen is again and seen is not threading.main_thread() and seen.daemon
    with pytest.raises(ZeroDivisionError):
        await worker.call(lambda: 1 // 0, deadline_s=5.0, name="divide")
    worker.close()
    with pytest.raises(DeviceGone):
        await worker.call(lambda: 1, deadline_s=5.0, name="after close")


async def test_calls_of_one_device_never_overlap() -> None:
    worker = DeviceWorker("gpu0")
    inside: list[int] = []
    most: list[int] = []

    def body() -> None:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.005)
        inside.pop()

    await asyncio.gather(*(worker.call(body, deadline_s=10.0, name="read") for _ in range(5)))
    assert most == [1] * 5
    worker.close()


async def test_a_hung_call_is_reported_then_refused_then_recovers() -> None:
    """A hang: DeviceTimeout once, DeviceBusy at once after that; other devices go on; it recovers by itself."""
    release = threading.Event()
    started: list[str] = []
    hung, healthy = DeviceWorker("gpu0"), DeviceWorker("gpu1")

    def wedge() -> str:
        started.append("wedge")
        release.wait(30.0)
        return "late"

    with pytest.raises(DeviceTimeout):
        await hung.call(wedge, deadline_s=0.02, name="read power")
    with pytest.raises(DeviceBusy, match="read power has not returned"):
        await hung.call(lambda: started.append("second"), deadline_s=5.0, name="read power")
    assert started == ["wedge"], "nothing may start behind a hung call"
    assert await healthy.call(lambda: 7, deadline_s=5.0, name="read power") == 7

    release.set()
    assert await once_free(lambda: hung.call(lambda: 8, deadline_s=5.0, name="read power")) == 8
    hung.close()
    healthy.close()


async def test_a_cancelled_caller_leaves_the_call_outstanding() -> None:
    release, began = threading.Event(), threading.Event()
    worker = DeviceWorker("gpu0")

    def wedge() -> None:
        began.set()
        release.wait(30.0)

    task = asyncio.create_task(worker.call(wedge, deadline_s=30.0, name="write"))
    while not began.is_set():  # noqa: ASYNC110 - set by the worker's thread
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(DeviceBusy):
        await worker.call(lambda: None, deadline_s=5.0, name="read")
    release.set()
    worker.close()
