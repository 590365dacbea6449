"""Hardware power smoothing of Blackwell GPUs over NVML: floor, slopes and hysteresis held by the GPU itself.

Setters take W/s and read-backs come in mW/s; both are W/s here. The circuit wears: `lifetime_frac` is what is left of
it. Blocking calls on the GPU's worker; NotSupported where there is no such circuit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pynvml

from controller.types import SmoothingFound, SmoothingProfile
from drivers.errors import InvalidValue, NotApplied, NotSupported
from drivers.nvml_calls import MILLI, GpuCalls, as_driver_error, typed

if TYPE_CHECKING:
    from drivers.nvml import NvmlGpu

PERCENT = 100.0
FLOOR_STEP_FRAC = 0.01  # read-back is in whole percent
RATE_TOLERANCE_FRAC = 0.01
_FIELDS = (
    pynvml.NVML_FI_PWR_SMOOTHING_ENABLED,
    pynvml.NVML_FI_PWR_SMOOTHING_ACTIVE_PRESET_PROFILE,
    pynvml.NVML_FI_PWR_SMOOTHING_HW_CIRCUITRY_PERCENT_LIFETIME_REMAINING,
    pynvml.NVML_FI_PWR_SMOOTHING_MAX_PERCENT_TMP_FLOOR_SETTING,
)
_PROFILE_FIELDS = (
    pynvml.NVML_FI_PWR_SMOOTHING_PROFILE_PERCENT_TMP_FLOOR,
    pynvml.NVML_FI_PWR_SMOOTHING_PROFILE_RAMP_UP_RATE,
    pynvml.NVML_FI_PWR_SMOOTHING_PROFILE_RAMP_DOWN_RATE,
    pynvml.NVML_FI_PWR_SMOOTHING_PROFILE_RAMP_DOWN_HYST_VAL,
)
_PARAMS = (
    pynvml.NVML_POWER_SMOOTHING_PROFILE_PARAM_PERCENT_TMP_FLOOR,
    pynvml.NVML_POWER_SMOOTHING_PROFILE_PARAM_RAMP_UP_RATE,
    pynvml.NVML_POWER_SMOOTHING_PROFILE_PARAM_RAMP_DOWN_RATE,
    pynvml.NVML_POWER_SMOOTHING_PROFILE_PARAM_RAMP_DOWN_HYSTERESIS,
)


@dataclass(frozen=True, slots=True)
class SmoothingState:
    """What the circuit does now."""

    is_enabled: bool
    active_profile: int
    profile: SmoothingProfile
    floor_frac_max: float
    lifetime_frac: float


class PowerSmoothing:
    """Power smoothing of one GPU."""

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu

    async def read(self) -> SmoothingState:
        """The circuit's state and its active preset."""
        return await self._gpu.run(lambda: read_smoothing(self._gpu.calls), "read power smoothing")

    async def write(self, index: int, profile: SmoothingProfile) -> SmoothingState:
        """Store `profile` as preset `index`, activate it, switch smoothing on; the state read back.

        Raises InvalidValue before anything is written where the GPU cannot hold it, NotApplied when the read-back
        differs.
        """
        self._gpu.refuse_if_monitoring()
        return await self._gpu.run(lambda: write_smoothing(self._gpu.calls, index, profile), "set power smoothing")

    async def disable(self) -> None:
        """Switch smoothing off; presets stay as they are."""
        self._gpu.refuse_if_monitoring()
        await self._gpu.run(lambda: switch_smoothing(self._gpu.calls, is_on=False), "disable power smoothing")


def write_smoothing(calls: GpuCalls, index: int, profile: SmoothingProfile) -> SmoothingState:
    """Store `profile` as preset `index`, activate it, switch smoothing on, in blocking calls; the state read back."""
    _check(calls.uuid, index, profile, floor_frac_max=read_smoothing(calls).floor_frac_max)
    _store(calls, index, profile)
    _activate(calls, index)
    switch_smoothing(calls, is_on=True)
    state = read_smoothing(calls)
    if not is_held(state, index, profile):
        raise NotApplied(calls.uuid, f"power smoothing preset {index}: reads back as {state}")
    return state


def is_held(state: SmoothingState, index: int, profile: SmoothingProfile) -> bool:
    """Whether smoothing is on with this preset and it reads back as `profile`."""
    return state.is_enabled and state.active_profile == index and _is_close(state.profile, profile)


def find_smoothing(calls: GpuCalls, index: int) -> SmoothingFound:
    """What is to be given back after preset `index` was written; NotSupported where there is no circuit."""
    state = read_smoothing(calls)
    return SmoothingFound(state.is_enabled, state.active_profile, index, _read_preset(calls, index))


def give_smoothing_back(calls: GpuCalls, found: SmoothingFound) -> None:
    """The preset, the one that was active, and the switch, as found."""
    if found.profile is not None:
        _store(calls, found.preset, found.profile)
    if found.active_preset is not None:
        _activate(calls, found.active_preset)
    switch_smoothing(calls, is_on=found.is_enabled)


def switch_smoothing(calls: GpuCalls, *, is_on: bool) -> None:
    change = pynvml.c_nvmlPowerSmoothingState_v1_t()
    change.state = int(is_on)
    with typed(calls.uuid, "switch power smoothing"):
        pynvml.nvmlDevicePowerSmoothingSetState(calls.handle(), pynvml.byref(change))


def _store(calls: GpuCalls, index: int, profile: SmoothingProfile) -> None:
    wishes = (
        profile.floor_frac * PERCENT,
        profile.up_w_per_s,
        profile.down_w_per_s,
        profile.hysteresis_s * MILLI,
    )
    change = pynvml.c_nvmlPowerSmoothingProfile_v1_t()
    change.profileId = index
    for param, wish in zip(_PARAMS, wishes, strict=True):
        change.paramId, change.value = param, wish
        with typed(calls.uuid, f"set power smoothing parameter {param} to {wish:g}"):
            pynvml.nvmlDevicePowerSmoothingUpdatePresetProfileParam(calls.handle(), pynvml.byref(change))


def _activate(calls: GpuCalls, index: int) -> None:
    change = pynvml.c_nvmlPowerSmoothingProfile_v1_t()
    change.profileId = index
    with typed(calls.uuid, f"activate power smoothing preset {index}"):
        pynvml.nvmlDevicePowerSmoothingActivatePresetProfile(calls.handle(), pynvml.byref(change))


def _check(uuid: str, index: int, profile: SmoothingProfile, *, floor_frac_max: float) -> None:
    if not 0 <= index < pynvml.NVML_POWER_SMOOTHING_MAX_NUM_PROFILES:
        allowed = pynvml.NVML_POWER_SMOOTHING_MAX_NUM_PROFILES - 1
        raise InvalidValue(uuid, f"power smoothing preset {index}: allowed 0 to {allowed}")
    if not 0.0 <= profile.floor_frac <= floor_frac_max:
        raise InvalidValue(uuid, f"power floor {profile.floor_frac:.0%}: allowed 0 % to {floor_frac_max:.0%}")
    rates = (profile.up_w_per_s, profile.down_w_per_s, profile.hysteresis_s)
    if not all(0.0 < rate < math.inf for rate in rates):
        raise InvalidValue(uuid, f"slopes and hysteresis {rates}: finite and above 0")


def _read_preset(calls: GpuCalls, index: int) -> SmoothingProfile:
    floor, up, down, hysteresis = _values(calls, [(f, index) for f in _PROFILE_FIELDS])
    return SmoothingProfile(floor / PERCENT, up / MILLI, down / MILLI, hysteresis / MILLI)


def read_smoothing(calls: GpuCalls) -> SmoothingState:
    """What the circuit does now, in a blocking call; NotSupported where there is none."""
    enabled, active, lifetime, floor_max = _values(calls, list(_FIELDS))
    return SmoothingState(
        is_enabled=enabled != 0,
        active_profile=int(active),
        profile=_read_preset(calls, int(active)),
        floor_frac_max=floor_max / PERCENT,
        lifetime_frac=lifetime / PERCENT,
    )


def _values(calls: GpuCalls, fields: list[int] | list[tuple[int, int]]) -> list[float]:
    with typed(calls.uuid, "read power smoothing"):
        answers = pynvml.nvmlDeviceGetFieldValues(calls.handle(), fields)
    for answer in answers:
        if answer.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise NotSupported(calls.uuid, "no power smoothing")
        if answer.nvmlReturn != pynvml.NVML_SUCCESS:
            raise as_driver_error(calls.uuid, f"read field {answer.fieldId}", answer.nvmlReturn)
    return [float(a.value.ullVal) for a in answers]


def _is_close(seen: SmoothingProfile, asked: SmoothingProfile) -> bool:
    def near(a: float, b: float) -> bool:
        return abs(a - b) <= RATE_TOLERANCE_FRAC * max(abs(b), 1e-3)

    return (
        abs(seen.floor_frac - asked.floor_frac) <= FLOOR_STEP_FRAC
        and near(seen.up_w_per_s, asked.up_w_per_s)
        and near(seen.down_w_per_s, asked.down_w_per_s)
        and abs(seen.hysteresis_s - asked.hysteresis_s) <= 1e-3
    )
