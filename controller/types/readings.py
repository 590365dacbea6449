"""What the site's own devices say: meters, battery, UPS, load bank; each value with its time, quality and source."""

from __future__ import annotations

from enum import IntEnum, StrEnum, unique
from typing import Generic, TypeVar

from controller.types.records import frozen

T = TypeVar("T")


@unique
class Quality(IntEnum):
    """How far a reading may be trusted; a higher value is worse."""

    GOOD = 0
    STALE = 1  # true once, too old now
    SUSPECT = 2  # fresh, but contradicted by another source
    MISSING = 3  # no value; `value` then holds the last one or a safe stand-in


WORST_READ = int(Quality.STALE)  # of a GPU that was read; a plain number, for comparing whole arrays


@frozen
class Reading(Generic[T]):
    """One value with the monotonic time it was true at, its quality and its source."""

    value: T
    t_mono_s: float
    quality: Quality
    source: str

    def age_s(self, now_s: float) -> float:
        return now_s - self.t_mono_s

    @property
    def is_good(self) -> bool:
        return self.quality is Quality.GOOD


@frozen
class MeterSample:
    """What a power meter says at one instant; import positive, absent points None."""

    power_w: float
    frequency_hz: float | None = None
    voltage_pu: float | None = None
    import_wh: float | None = None
    export_wh: float | None = None


@unique
class BatteryState(StrEnum):
    """What the battery says of itself."""

    OFF = "off"
    STANDBY = "standby"
    RUNNING = "running"
    FAULT = "fault"


@unique
class Following(StrEnum):
    """Who keeps metered power on the grid target."""

    DEVICE = "device"  # the battery's own controller, in milliseconds; we move its target
    SOFTWARE = "software"  # our loop, at the tracker's rate; we move its set-point


@frozen
class BatterySample:
    """State of the battery as read back; power and set-point discharge positive, limits magnitudes.

    `reference_w` is what the device says it was last told: the set-point under software following, the target at the
    point of common coupling under device following. `reversion_s_left` is None where the device has no such timer.
    """

    power_w: float
    soc_frac: float
    charge_w_max: float
    discharge_w_max: float
    state: BatteryState
    is_remote: bool  # False: LocRemCtl is LOCAL and writes are refused
    reference_w: float
    is_following: bool
    reversion_s_left: float | None = None
    temperature_c: float | None = None

    @property
    def takes_orders(self) -> bool:
        """By its own word: not tripped, not off, and not led from its own panel."""
        return self.is_remote and self.state not in (BatteryState.OFF, BatteryState.FAULT)


@unique
class LoadBankState(StrEnum):
    """What the load bank says of itself; too hot to draw is FAULT."""

    OFF = "off"
    STANDBY = "standby"
    RUNNING = "running"
    FAULT = "fault"


@frozen
class LoadBankSample:
    """State of a load bank as read back: what it draws, what it can draw now, and what it was last told.

    `reversion_s_left` and `energy_j_left` (before it is too hot to go on) are None where the device does not tell.
    """

    power_w: float
    power_w_max: float
    state: LoadBankState
    is_remote: bool
    setpoint_w: float
    reversion_s_left: float | None = None
    energy_j_left: float | None = None

    @property
    def takes_orders(self) -> bool:
        """By its own word: not in fault, not off, and not led from its own panel."""
        return self.is_remote and self.state not in (LoadBankState.OFF, LoadBankState.FAULT)


@frozen
class UpsSample:
    """State of a UPS (read-only): what it feeds and what feeds it."""

    output_w: float
    is_on_battery: bool
    is_on_bypass: bool
    minutes_left: float | None
    load_frac: float | None


# What stands in a reading of quality MISSING for a device that has never answered: off, and able to do nothing.
SILENT_BATTERY = BatterySample(
    power_w=0.0,
    soc_frac=0.0,
    charge_w_max=0.0,
    discharge_w_max=0.0,
    state=BatteryState.OFF,
    is_remote=False,
    reference_w=0.0,
    is_following=False,
)
SILENT_LOAD_BANK = LoadBankSample(
    power_w=0.0, power_w_max=0.0, state=LoadBankState.OFF, is_remote=False, setpoint_w=0.0
)
SILENT_UPS = UpsSample(output_w=0.0, is_on_battery=False, is_on_bypass=False, minutes_left=None, load_frac=None)
