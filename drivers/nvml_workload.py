"""Workload power profiles of Blackwell GPUs over NVML: the GPU's own trade of power for speed, by kind of work.

Profiles are named here as NVML names them, in lower case. Several may be asked for at once; the GPU enforces those that
do not conflict, by its own ranking, so what is asked for and what is in force are two sets. Blocking calls run on the
GPU's worker; NotSupported where the GPU has no such profiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pynvml

from drivers.errors import InvalidValue, NotApplied, NotSupported
from drivers.nvml import NvmlGpu
from drivers.nvml_calls import GpuCalls, typed

BITS_PER_WORD = 32
_PREFIX = "NVML_POWER_PROFILE_"
_NAMES: dict[int, str] = {
    value: name.removeprefix(_PREFIX).lower()
    for name, value in vars(pynvml).items()
    if name.startswith(_PREFIX) and "OPERATION" not in name and name != f"{_PREFIX}MAX"
}
_NUMBERS = {name: number for number, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class WorkloadProfile:
    """One profile as the GPU describes it."""

    name: str
    priority: int
    conflicts: frozenset[str]


@dataclass(frozen=True, slots=True)
class WorkloadState:
    """What was asked for and what the GPU made of it."""

    offered: frozenset[str]
    requested: frozenset[str]
    enforced: frozenset[str]


def profile_name(number: int) -> str:
    """NVML's name of a profile; one this version does not know keeps its number."""
    return _NAMES.get(number, f"profile_{number}")


class WorkloadProfiles:
    """The workload power profiles of one GPU."""

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu
        self._id = gpu.spec.gpu_id

    async def profiles(self) -> tuple[WorkloadProfile, ...]:
        """Every profile the GPU offers, by number."""
        return await self._gpu.run(self._profiles, "list workload profiles")

    async def read(self) -> WorkloadState:
        """What is offered, asked for and in force."""
        return await self._gpu.run(lambda: read_workload(self._gpu.calls), "read workload profiles")

    async def request(self, names: Iterable[str]) -> WorkloadState:
        """Ask for exactly `names` (none: the GPU's default), whatever was asked for before; the state read back.

        Raises InvalidValue for a name the GPU does not offer, before anything is written; NotApplied when the
        read-back of what is asked for differs.
        """
        wanted = frozenset(names)
        self._gpu.refuse_if_monitoring()
        return await self._gpu.run(lambda: self._request(wanted), "set workload profiles")

    def _profiles(self) -> tuple[WorkloadProfile, ...]:
        infos = pynvml.c_nvmlWorkloadPowerProfileProfilesInfo_v1_t()
        with typed(self._id, "list workload profiles"):
            pynvml.nvmlDeviceWorkloadPowerProfileGetProfilesInfo(self._gpu.calls.handle(), pynvml.byref(infos))
        numbers = sorted(_bits(infos.perfProfilesMask))
        entries = ((n, infos.perfProfile[n]) for n in numbers)  # by number, not packed
        return tuple(
            WorkloadProfile(profile_name(n), int(entry.priority), _names(entry.conflictingmask)) for n, entry in entries
        )

    def _request(self, wanted: frozenset[str]) -> WorkloadState:
        before = read_workload(self._gpu.calls)
        strangers = sorted(wanted - before.offered)
        if strangers:
            offered = ", ".join(sorted(before.offered))
            raise InvalidValue(self._id, f"workload profile {strangers[0]!r}: this GPU offers {offered}")
        if before.requested != wanted:
            self._overwrite(wanted, before.requested)
        state = read_workload(self._gpu.calls)
        if state.requested != wanted:
            asked, seen = sorted(wanted), sorted(state.requested)
            raise NotApplied(self._id, f"workload profiles: asked for {asked}, reads back {seen}")
        return state

    def _overwrite(self, wanted: frozenset[str], before: frozenset[str]) -> None:
        """In one call where the driver has it (it is atomic), else by clearing and setting."""
        change = pynvml.c_nvmlWorkloadPowerProfileUpdateProfiles_v1_t()
        change.operation = pynvml.NVML_POWER_PROFILE_OPERATION_SET_AND_OVERWRITE
        _fill(change.updateProfilesMask, wanted)
        handle = self._gpu.calls.handle()
        try:
            with typed(self._id, "set workload profiles"):
                pynvml.nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1(handle, pynvml.byref(change))
            return
        except NotSupported:  # drivers before R580 have the two calls below instead
            pass
        for names, call in (
            (before - wanted, pynvml.nvmlDeviceWorkloadPowerProfileClearRequestedProfiles),
            (wanted - before, pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles),
        ):
            if names:
                older = pynvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
                _fill(older.requestedProfilesMask, names)
                with typed(self._id, "set workload profiles"):
                    call(handle, pynvml.byref(older))


def read_workload(calls: GpuCalls) -> WorkloadState:
    """The profiles offered, asked for and in force, in a blocking call; NotSupported where there are none."""
    now = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    with typed(calls.uuid, "read workload profiles"):
        pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(calls.handle(), pynvml.byref(now))
    return WorkloadState(
        offered=_names(now.perfProfilesMask),
        requested=_names(now.requestedProfilesMask),
        enforced=_names(now.enforcedProfilesMask),
    )


def _bits(mask: Any) -> frozenset[int]:
    return frozenset(
        BITS_PER_WORD * k + bit for k, word in enumerate(mask.mask) for bit in range(BITS_PER_WORD) if word >> bit & 1
    )


def _names(mask: Any) -> frozenset[str]:
    return frozenset(profile_name(number) for number in _bits(mask))


def _fill(mask: Any, names: Iterable[str]) -> None:
    for name in names:
        number = _NUMBERS.get(name)
        if number is None:
            number = int(name.removeprefix("profile_"))
        mask.mask[number // BITS_PER_WORD] |= 1 << number % BITS_PER_WORD
