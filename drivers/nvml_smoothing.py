"""Hardware power smoothing of Blackwell GPUs over NVML: floor, slopes and hysteresis held by the GPU itself.

Setters take W/s and read-backs come in mW/s; both are W/s here. The circuit wears: `lifetime_frac` is what is left of
it. Blocking calls on the GPU's worker; NotSupported where there is no such circuit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pynvml

from drivers.errors import InvalidValue, NotApplied, NotSupported
from drivers.nvml import NvmlGpu
from drivers.nvml_calls import MILLI, GpuCalls, as_driver_error, typed

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
class SmoothingProfile:
    """One preset: floor as a share of the GPU's maximum power, slopes, and how long the floor outlasts the load."""

    floor_frac: float
    up_w_per_s: float
    down_w_per_s: float
    hysteresis_s: float


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
        self._id = gpu.spec.gpu_id

    async def read(self) -> SmoothingState:
        """The circuit's state and its active preset."""
        return await self._gpu.run(lambda: read_smoothing(self._gpu.calls), "read power smoothing")

    async def write(self, index: int, profile: SmoothingProfile) -> SmoothingState:
        """Store `profile` as preset `index`, activate it, switch smoothing on; the state read back.

        Raises InvalidValue before anything is written where the GPU cannot hold it, NotApplied when the read-back
        differs.
        """
        self._gpu.refuse_if_monitoring()
        return await self._gpu.run(lambda: self._write(index, profile), "set power smoothing")

    async def disable(self) -> None:
        """Switch smoothing off; presets stay as they are."""
        self._gpu.refuse_if_monitoring()
        await self._gpu.run(lambda: self._switch(0), "disable power smoothing")

    def _write(self, index: int, profile: SmoothingProfile) -> SmoothingState:
        self._check(index, profile, floor_frac_max=read_smoothing(self._gpu.calls).floor_frac_max)
        handle = self._gpu.calls.handle()
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
            with typed(self._id, f"set power smoothing parameter {param} to {wish:g}"):
                pynvml.nvmlDevicePowerSmoothingUpdatePresetProfileParam(handle, pynvml.byref(change))
        with typed(self._id, f"activate power smoothing preset {index}"):
            pynvml.nvmlDevicePowerSmoothingActivatePresetProfile(handle, pynvml.byref(change))
        self._switch(1)
        state = read_smoothing(self._gpu.calls)
        if not (state.is_enabled and state.active_profile == index and _is_close(state.profile, profile)):
            raise NotApplied(self._id, f"power smoothing preset {index}: reads back as {state}")
        return state

    def _check(self, index: int, profile: SmoothingProfile, *, floor_frac_max: float) -> None:
        if not 0 <= index < pynvml.NVML_POWER_SMOOTHING_MAX_NUM_PROFILES:
            allowed = pynvml.NVML_POWER_SMOOTHING_MAX_NUM_PROFILES - 1
            raise InvalidValue(self._id, f"power smoothing preset {index}: allowed 0 to {allowed}")
        if not 0.0 <= profile.floor_frac <= floor_frac_max:
            raise InvalidValue(self._id, f"power floor {profile.floor_frac:.0%}: allowed 0 % to {floor_frac_max:.0%}")
        rates = (profile.up_w_per_s, profile.down_w_per_s, profile.hysteresis_s)
        if not all(0.0 < rate < math.inf for rate in rates):
            raise InvalidValue(self._id, f"slopes and hysteresis {rates}: finite and above 0")

    def _switch(self, state: int) -> None:
        change = pynvml.c_nvmlPowerSmoothingState_v1_t()
        change.state = state
        with typed(self._id, "switch power smoothing"):
            pynvml.nvmlDevicePowerSmoothingSetState(self._gpu.calls.handle(), pynvml.byref(change))


def read_smoothing(calls: GpuCalls) -> SmoothingState:
    """What the circuit does now, in a blocking call; NotSupported where there is none."""
    enabled, active, lifetime, floor_max = _values(calls, list(_FIELDS))
    floor, up, down, hysteresis = _values(calls, [(f, int(active)) for f in _PROFILE_FIELDS])
    return SmoothingState(
        is_enabled=enabled != 0,
        active_profile=int(active),
        profile=SmoothingProfile(floor / PERCENT, up / MILLI, down / MILLI, hysteresis / MILLI),
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
