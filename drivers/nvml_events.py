"""What GPUs report by themselves, as it happens: Xid errors and other events that NVML hands to a waiting program.

Waiting takes a thread of its own and no GPU's worker, so a GPU that hangs keeps nobody from hearing why. Only what an
operator can act on is asked for; a GPU that offers no events is left out.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pynvml

from controller.ports import DriverError
from controller.types import GpuEvent, GpuId
from drivers.deadline import DeviceWorker
from drivers.errors import DeviceBusy, DeviceTimeout, NotSupported
from drivers.nvml_calls import typed

SLICE_MS = 1000  # how long one call waits; the thread is free again after it
DEADLINE_S = 10.0  # the driver's lock may be held by another call meanwhile
PAUSE_S = 1.0  # after a wait that overran
SET_UP_S = 15.0  # as opening a GPU

# Meanings as NVIDIA's list of Xid errors gives them; the list is longer, a number not here is told as a number.
XIDS: dict[int, str] = {
    13: "an application's graphics engine exception",
    31: "an application's memory page fault",
    43: "an application's channel was stopped",
    45: "an application was ended in its work",
    48: "a double bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    63: "ECC page retirement or row remapping was recorded",
    64: "ECC page retirement or row remapping failed",
    69: "an application's graphics engine class error",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    92: "a high rate of single bit ECC errors",
    94: "a contained ECC error: the application that met it ends",
    95: "an uncontained ECC error: the GPU needs a reset",
    109: "an application's context switch timed out",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor reported an error",
    140: "an unrecovered ECC error",
    143: "the GPU could not initialise",
    154: "the action needed to recover the GPU has changed",
}
_KINDS: dict[int, str] = {
    pynvml.nvmlEventTypeXidCriticalError: "xid",
    pynvml.nvmlEventTypeDoubleBitEccError: "double bit ECC error",
    pynvml.nvmlEventMigConfigChange: "MIG configuration changed",
    pynvml.nvmlEventTypePowerSourceChange: "power source changed",
    pynvml.nvmlEventTypeGpuUnavailableError: "GPU unavailable",
    pynvml.nvmlEventTypeGpuRecoveryAction: "recovery action changed",
}


async def gpu_events(gpu_ids: Sequence[GpuId]) -> AsyncIterator[GpuEvent]:
    """Every event of these GPUs, for as long as it is iterated. Needs an initialised NVML.

    Raises NotSupported where none of them offers events, another DriverError when waiting fails.
    """
    worker = DeviceWorker("nvml events")
    try:
        event_set, owners = await worker.call(lambda: _register(gpu_ids), deadline_s=SET_UP_S, name="register events")
        while True:
            try:
                event = await worker.call(lambda: _wait(event_set, owners), deadline_s=DEADLINE_S, name="wait")
            except (DeviceTimeout, DeviceBusy):
                await asyncio.sleep(PAUSE_S)
                continue
            if event is not None:
                yield event
    finally:
        worker.close()


def _register(gpu_ids: Sequence[GpuId]) -> tuple[Any, dict[int, GpuId]]:
    """One event set for all, and whose each handle is: a GPU that fell off the bus cannot be asked its name any more.

    GPUs that are gone or offer nothing are left out.
    """
    with typed("nvml events", "create event set"):
        event_set = pynvml.nvmlEventSetCreate()
    owners: dict[int, GpuId] = {}
    wanted = 0
    for kind in _KINDS:
        wanted |= kind
    for gpu_id in gpu_ids:
        try:
            with typed(gpu_id, "register events"):
                handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_id.encode())
                types = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted
                if types:
                    pynvml.nvmlDeviceRegisterEvents(handle, types, event_set)
                    owners[_address(handle)] = gpu_id
        except DriverError:
            continue
    if not owners:
        raise NotSupported("nvml events", "no GPU of this node reports events")
    return event_set, owners


def _wait(event_set: Any, owners: dict[int, GpuId]) -> GpuEvent | None:
    """The next event, or None when the slice is over."""
    try:
        with typed("nvml events", "wait"):
            event = pynvml.nvmlEventSetWait_v2(event_set, SLICE_MS)
    except DeviceTimeout:
        return None
    kind = _KINDS.get(int(event.eventType), f"event {int(event.eventType):#x}")
    data = int(event.eventData)
    return GpuEvent(
        gpu_id=owners.get(_address(event.device)),
        kind=kind,
        code=data if kind == "xid" else None,
        text=_text(kind, data),
    )


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _text(kind: str, data: int) -> str:
    if kind != "xid":
        return kind
    return f"Xid {data}: {XIDS[data]}" if data in XIDS else f"Xid {data}"
