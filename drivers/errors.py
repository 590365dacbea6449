"""Every way a device or a wire may fail, as types that callers can act on.

Each kind says what happened to one call on one device; `device` names the culprit and the message carries the cause.
Drivers raise these and nothing else. What a kind means for control (age out, remove, lock out) is decided above:
`sense` turns them into quality, `actuate` into a missing acknowledgement.
"""

from __future__ import annotations

from controller.ports import DriverError
from controller.types import SiteFault


class DeviceTimeout(DriverError):
    """No answer by the deadline. The call may still take effect: read back before trusting either outcome."""


class DeviceBusy(DriverError):
    """The device, or our one worker for it, is still occupied. Nothing was sent; try again next period."""

    fault = SiteFault.DEVICE_BUSY


class DeviceGone(DriverError):
    """It was there and is not: connection lost, GPU fallen off the bus, unit removed. Needs a new connection."""


class DriverUnavailable(DriverError):
    """The software under the device is missing or not answering (no NVML library, driver not loaded or mismatched)."""


class PermissionDenied(DriverError):
    """We may not do this with our rights. Retrying does not help; reading usually still works."""

    fault = SiteFault.DEVICE_REFUSES


class NotSupported(DriverError):
    """This device cannot do or say this, now or later."""

    fault = SiteFault.DEVICE_REFUSES


class BadReply(DriverError):
    """An answer came and cannot be right: garbled, wrong unit, wrong length, not-available sentinel, impossible."""

    fault = SiteFault.DEVICE_GARBAGE


class Refused(DriverError):
    """The device understood and said no (exception code, local mode, insufficient power); nothing changed."""

    fault = SiteFault.DEVICE_REFUSES


class InvalidValue(Refused):
    """Refused because of the value: outside the device's range, or a register we do not allow to be written."""


class NotApplied(DriverError):
    """The device accepted a write and its read-back shows another value."""

    fault = SiteFault.DEVICE_PARTIAL_WRITE


class WrongDevice(DriverError):
    """What answers is not what the configuration names (map marker, model, driver version, identity): never armed."""

    fault = SiteFault.DEVICE_WRONG


class DeviceChanged(WrongDevice):
    """No longer what was armed first (map of models, scale factor of a control): locked out until a person acts."""

    fault = SiteFault.DEVICE_CHANGED


class DeviceFault(DriverError):
    """The device reports a fault of its own that we can neither name better nor clear."""

    fault = SiteFault.DEVICE_REFUSES
