"""The blocking side of NVML: one class per GPU whose methods run on that GPU's worker, and the map of its errors.

Everything `pynvml` (nvidia-ml-py) is in this file: codes become typed errors, milliwatts become watts, and no NVMLError
leaves it (they are unhashable and break on comparison). Nothing here waits, retries or keeps time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from controller.ports import DriverError
from drivers import errors

MILLI = 1000.0

_KINDS: dict[int, type[DriverError]] = {
    pynvml.NVML_ERROR_UNINITIALIZED: errors.DriverUnavailable,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: errors.InvalidValue,
    pynvml.NVML_ERROR_NOT_SUPPORTED: errors.NotSupported,
    pynvml.NVML_ERROR_NO_PERMISSION: errors.PermissionDenied,
    pynvml.NVML_ERROR_ALREADY_INITIALIZED: errors.DriverUnavailable,
    pynvml.NVML_ERROR_NOT_FOUND: errors.DeviceGone,  # a UUID or index that no GPU has
    pynvml.NVML_ERROR_INSUFFICIENT_SIZE: errors.BadReply,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: errors.DeviceFault,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: errors.DriverUnavailable,
    pynvml.NVML_ERROR_TIMEOUT: errors.DeviceTimeout,
    pynvml.NVML_ERROR_IRQ_ISSUE: errors.DeviceFault,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: errors.DriverUnavailable,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: errors.NotSupported,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: errors.DeviceFault,
    pynvml.NVML_ERROR_GPU_IS_LOST: errors.DeviceGone,
    pynvml.NVML_ERROR_RESET_REQUIRED: errors.DeviceGone,  # unusable until someone resets it
    pynvml.NVML_ERROR_OPERATING_SYSTEM: errors.PermissionDenied,  # the kernel or a cgroup forbids the device node
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: errors.DriverUnavailable,
    pynvml.NVML_ERROR_IN_USE: errors.DeviceBusy,
    pynvml.NVML_ERROR_MEMORY: errors.DeviceBusy,
    pynvml.NVML_ERROR_NO_DATA: errors.BadReply,
    pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED: errors.NotSupported,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: errors.DeviceBusy,
    pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED: errors.InvalidValue,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: errors.NotSupported,
    pynvml.NVML_ERROR_DEPRECATED: errors.NotSupported,
    pynvml.NVML_ERROR_NOT_READY: errors.DeviceBusy,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: errors.DeviceGone,
    pynvml.NVML_ERROR_INVALID_STATE: errors.Refused,
    pynvml.NVML_ERROR_RESET_TYPE_NOT_SUPPORTED: errors.NotSupported,
    pynvml.NVML_ERROR_UNKNOWN: errors.DeviceFault,
}
_NAMES = {v: k.removeprefix("NVML_ERROR_").lower() for k, v in vars(pynvml).items() if k.startswith("NVML_ERROR_")}
_HINTS = {
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was upgraded under the loaded module; reload it or reboot",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no libnvidia-ml.so.1 on this machine; install the NVIDIA driver",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel module is not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "this needs CAP_SYS_ADMIN",
}

# One GetFieldValues call reads these; each answers for itself, and a GPU may lack any of them.
F_MEAN = pynvml.NVML_FI_DEV_POWER_AVERAGE
F_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
F_LIMIT = pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT
F_ENERGY = pynvml.NVML_FI_DEV_ENERGY
F_ENERGY_OLD = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
F_REQUESTED = pynvml.NVML_FI_DEV_POWER_REQUESTED_LIMIT
F_THROTTLE = (
    pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
)
FIELDS = (F_MEAN, F_INSTANT, F_LIMIT, F_ENERGY, F_ENERGY_OLD, F_REQUESTED, *F_THROTTLE)
ARCH_AMPERE = pynvml.NVML_DEVICE_ARCH_AMPERE


@dataclass(frozen=True, slots=True)
class RawSample:
    """One read of one GPU in SI units; None where the GPU does not say. Throttle times: power, thermal, HW, brake."""

    mean_w: float | None
    instant_w: float
    clock_mhz: float
    limit_w: float
    requested_w: float | None
    energy_j: float | None
    event_reasons: int
    throttle_s: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a GPU is; read once. `has_true_mean`: its mean spans a second (not so on GA100 and before Ampere)."""

    uuid: str
    name: str
    limit_w_min: float
    limit_w_max: float
    limit_w_default: float
    clocks_mhz: tuple[int, ...]
    has_true_mean: bool
    is_mig: bool


def as_driver_error(device: str, what: str, code: int) -> DriverError:
    """The typed error for an NVML code; a code this version does not know is a DeviceFault."""
    kind = _KINDS.get(code, errors.DeviceFault)
    hint = _HINTS.get(code)
    return kind(device, f"{what}: {_NAMES.get(code, f'code {code}')}{f' ({hint})' if hint else ''}")


@contextmanager
def typed(device: str, what: str) -> Iterator[None]:
    """Turn any NVMLError of the body into its typed error, and text that is none into a BadReply."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise as_driver_error(device, what, int(error.value)) from None
    except UnicodeDecodeError:  # a damaged InfoROM gives names of any bytes
        raise errors.BadReply(device, f"{what}: what came is no text") from None


def initialise() -> str:
    """Load and initialise NVML: the driver's version. May be called again after a failure or `shut_down`."""
    with typed("nvml", "initialise"):
        pynvml.nvmlInitWithFlags(0)
    with typed("nvml", "driver version"):
        return str(pynvml.nvmlSystemGetDriverVersion())


def shut_down() -> None:
    """Drop one reference to NVML; never fails."""
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


def enumerate_uuids() -> tuple[list[str], list[DriverError]]:
    """UUIDs of all GPUs the driver lists, and one error for each that does not answer."""
    with typed("nvml", "count GPUs"):
        count = pynvml.nvmlDeviceGetCount()
    found: list[str] = []
    failed: list[DriverError] = []
    for index in range(count):
        try:
            with typed(f"gpu index {index}", "identify"):
                found.append(str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))))
        except DriverError as error:
            failed.append(error)
    return found, failed


class GpuCalls:
    """Blocking NVML calls on one GPU, found by UUID and found again after it was lost. One thread at a time."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self._handle: Any = None
        self._is_field_missing = False
        self._reasons_are_missing = False

    def forget_handle(self) -> None:
        """Look the GPU up again on the next call."""
        self._handle = None

    def identify(self) -> Identity:
        """What this GPU is."""
        handle = self.handle()
        with typed(self.uuid, "identify"):
            name = str(pynvml.nvmlDeviceGetName(handle))
            low, high = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            default = pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)
            memories = pynvml.nvmlDeviceGetSupportedMemoryClocks(handle)
            offered = pynvml.nvmlDeviceGetSupportedGraphicsClocks(handle, max(memories)) if memories else []
            clocks = sorted({int(c) for c in offered})
            architecture = int(pynvml.nvmlDeviceGetArchitecture(handle))
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        if not clocks:
            raise errors.NotSupported(self.uuid, "identify: it offers no clocks to choose from")
        return Identity(
            uuid=self.uuid,
            name=name,
            limit_w_min=low / MILLI,
            limit_w_max=high / MILLI,
            limit_w_default=default / MILLI,
            clocks_mhz=tuple(clocks),
            has_true_mean=architecture >= ARCH_AMPERE and capability != (8, 0),
            is_mig=self._is_mig(handle),
        )

    def read(self) -> RawSample:
        """Power, limits, energy and throttle times in one field call, then the SM clock and event reasons."""
        handle = self.handle()
        fields = self._fields(handle)
        with typed(self.uuid, "read"):
            usage_w = None
            if F_INSTANT not in fields:
                usage_w = pynvml.nvmlDeviceGetPowerUsage(handle) / MILLI
            limit_w = fields.get(F_LIMIT)
            if limit_w is None:
                limit_w = float(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle))
            requested_w = fields.get(F_REQUESTED)
            if requested_w is None:
                requested_w = float(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
            energy = fields.get(F_ENERGY, fields.get(F_ENERGY_OLD))
            clock_mhz = float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        mean = fields.get(F_MEAN)
        instant_w = fields[F_INSTANT] / MILLI if usage_w is None else usage_w
        return RawSample(
            mean_w=None if mean is None else mean / MILLI,
            instant_w=instant_w,
            clock_mhz=clock_mhz,
            limit_w=limit_w / MILLI,
            requested_w=requested_w / MILLI,
            energy_j=None if energy is None else energy / MILLI,
            event_reasons=self._reasons(handle),
            throttle_s=tuple(None if f not in fields else fields[f] / 1e9 for f in F_THROTTLE),
        )

    def temperature_c(self) -> float | None:
        """Core temperature; None where the GPU has no such sensor."""
        try:
            with typed(self.uuid, "temperature"):
                return float(pynvml.nvmlDeviceGetTemperature(self.handle(), pynvml.NVML_TEMPERATURE_GPU))
        except errors.NotSupported:
            return None

    def requested_limit_w(self) -> float:
        """The power limit last asked for by anyone."""
        with typed(self.uuid, "read power limit"):
            return float(pynvml.nvmlDeviceGetPowerManagementLimit(self.handle())) / MILLI

    def set_limit(self, limit_w: float) -> tuple[float, float]:
        """Set the power limit and read back (requested, enforced) in W. The v2 setter hides its failures: not used."""
        handle = self.handle()
        with typed(self.uuid, f"set power limit {limit_w:g} W"):
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(limit_w * MILLI))
        with typed(self.uuid, "read power limit"):
            requested = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / MILLI
            return requested, pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / MILLI

    def lock_clocks(self, low_mhz: int, high_mhz: int) -> None:
        """Lock the SM clock into a range."""
        with typed(self.uuid, f"lock clocks {low_mhz}-{high_mhz} MHz"):
            pynvml.nvmlDeviceSetGpuLockedClocks(self.handle(), low_mhz, high_mhz)

    def module_power_w(self) -> float | None:
        """What the module draws that the GPU shares with a CPU; None for a GPU that is alone."""
        wish = [(F_INSTANT, pynvml.NVML_POWER_SCOPE_MODULE)]
        try:
            with typed(self.uuid, "module power"):
                answer = pynvml.nvmlDeviceGetFieldValues(self.handle(), wish)[0]
        except errors.NotSupported:
            return None
        return _number(answer) / MILLI if answer.nvmlReturn == pynvml.NVML_SUCCESS else None

    def unlock_clocks(self) -> None:
        """Remove a clock lock; nothing happens where there is none."""
        with typed(self.uuid, "unlock clocks"):
            pynvml.nvmlDeviceResetGpuLockedClocks(self.handle())

    def handle(self) -> Any:
        """NVML's handle of this GPU; DeviceGone when no GPU has the UUID."""
        if self._handle is None:
            with typed(self.uuid, "find"):
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid.encode())
        return self._handle

    def _fields(self, handle: Any) -> dict[int, float]:
        """Raw values of the fields that answered; none where the driver is too old for field values at all."""
        if self._is_field_missing:
            return {}
        try:
            with typed(self.uuid, "read fields"):
                answers = pynvml.nvmlDeviceGetFieldValues(handle, FIELDS)
        except errors.NotSupported:
            self._is_field_missing = True
            return {}
        good: dict[int, float] = {}
        for answer in answers:
            code = answer.nvmlReturn
            if code == pynvml.NVML_SUCCESS:
                good[answer.fieldId] = _number(answer)
            elif code == pynvml.NVML_ERROR_GPU_IS_LOST:
                raise as_driver_error(self.uuid, "read fields", code)
        return good

    def _reasons(self, handle: Any) -> int:
        if self._reasons_are_missing:
            return 0
        try:
            with typed(self.uuid, "clocks event reasons"):
                return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except errors.NotSupported:
            self._reasons_are_missing = True
            return 0

    def _is_mig(self, handle: Any) -> bool:
        try:
            with typed(self.uuid, "MIG mode"):
                return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
        except errors.NotSupported:
            return False


def _number(field: Any) -> float:
    """The member of a field value's union that its type names."""
    kind, value = field.valueType, field.value
    if kind == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT:
        return float(value.uiVal)
    if kind in (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG):
        return float(value.ullVal)
    if kind == pynvml.NVML_VALUE_TYPE_DOUBLE:
        return float(value.dVal)
    if kind == pynvml.NVML_VALUE_TYPE_SIGNED_INT:
        return float(value.siVal)
    return float(value.sllVal)
