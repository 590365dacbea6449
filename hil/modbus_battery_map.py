"""The SunSpec models of a simulated battery: which registers it shows, with which scale, and which may be written.

Model 64901 is this bench's own vendor model for load following. Offsets count from the model's first register (its id):
FlwSt 2, FlwEna 3 (1 = follow), FlwTgt 4 (int32, W at the point of common coupling, import positive), FlwRmp 6 (uint32,
W/s, slope of the target), FlwRvrtTms 8 and FlwRvrtRem 10 (uint32, s), FlwRvrtMod 12 (0 holds the last target, 1 stops
following and ramps power to zero), RvrtRmp 13 (uint32, W/s, slope of every reversion, that of 704 included; 0: `WRmp`),
Tgt_SF 15, Rmp_SF 16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum, unique
from typing import TYPE_CHECKING

from controller.types import BatteryState, frozen
from hil.modbus_image import Live, ModelSpec
from hil.modbus_meter import common_model

if TYPE_CHECKING:
    from hil.modbus_battery import SunSpecBatteryDevice

VENDOR_MODEL = 64901  # SunSpec leaves 64000 and up to vendors
REMOTE, LOCAL = 0, 1  # LocRemCtl


@unique
class FollowState(IntEnum):
    OFF = 0
    FOLLOWING = 1
    EXPIRED_HOLDING = 2  # the target's time ran out; the last target is held
    EXPIRED_STOPPED = 3  # the target's time ran out; power was ramped to zero


WRITABLE_704 = (
    "WSetEna",
    "WSetMod",
    "WSet",
    "WSetRvrt",
    "WSetPct",
    "WSetPctRvrt",
    "WSetEnaRvrt",
    "WSetRvrtTms",
    "WRmp",
    "WRmpRef",
)
WRITABLE_VENDOR = ("FlwEna", "FlwTgt", "FlwRmp", "FlwRvrtTms", "FlwRvrtMod", "RvrtRmp")

_VENDOR_POINTS: tuple[tuple[str, str, int, str | None], ...] = (
    ("ID", "uint16", 1, None),
    ("L", "uint16", 1, None),
    ("FlwSt", "enum16", 1, None),
    ("FlwEna", "enum16", 1, None),
    ("FlwTgt", "int32", 2, "Tgt_SF"),
    ("FlwRmp", "uint32", 2, "Rmp_SF"),
    ("FlwRvrtTms", "uint32", 2, None),
    ("FlwRvrtRem", "uint32", 2, None),
    ("FlwRvrtMod", "enum16", 1, None),
    ("RvrtRmp", "uint32", 2, "Rmp_SF"),
    ("Tgt_SF", "sunssf", 1, None),
    ("Rmp_SF", "sunssf", 1, None),
)
VENDOR_DEFINITION: Mapping[str, object] = {
    "id": VENDOR_MODEL,
    "group": {
        "name": "load_following",
        "type": "group",
        "points": [
            {"name": name, "type": kind, "size": size, "mandatory": "O"} | ({"sf": sf} if sf else {})
            for name, kind, size, sf in _VENDOR_POINTS
        ],
    },
}


@frozen
class BatteryNameplate:
    """What the label says; powers are magnitudes at the point of connection."""

    discharge_w_max: float
    charge_w_max: float
    energy_wh: float
    soc_frac_min: float = 0.0
    soc_frac_max: float = 1.0
    manufacturer: str = "Rampart"
    model: str = "Battery"
    serial: str = "SIM-BATTERY-1"
    version: str = "1"


def _fitting_exponent(w_max: float, *, top: int) -> int:
    """The smallest scale factor at which 1.5 times `w_max` still fits a register that counts to `top`."""
    return max(0, math.ceil(math.log10(1.5 * w_max / top)))


def battery_models(device: SunSpecBatteryDevice, *, has_following: bool) -> list[ModelSpec]:
    nameplate = device.nameplate
    identity = common_model(
        manufacturer=nameplate.manufacturer,
        model=nameplate.model,
        serial=nameplate.serial,
        version=nameplate.version,
    )
    models = [
        identity,
        _measurements(device),
        _capacity(device),
        _enter_service(device),
        _controls(device),
        _storage(device),
        _heartbeat(device),
        _cells(device),
    ]
    return [*models, _following(device)] if has_following else models


def _measurements(device: SunSpecBatteryDevice) -> ModelSpec:
    battery, nameplate = device.battery, device.nameplate
    exponent = _fitting_exponent(max(nameplate.discharge_w_max, nameplate.charge_w_max), top=32767)
    running = {BatteryState.OFF: 0, BatteryState.STANDBY: 7, BatteryState.RUNNING: 3, BatteryState.FAULT: 6}
    return ModelSpec(
        model_id=701,
        fixed={"ACType": 2, "W_SF": exponent, "VA_SF": exponent, "Hz_SF": -3},
        live={
            "W": lambda: battery.power_w,
            "VA": lambda: abs(battery.power_w),
            "St": lambda: 0 if battery.state in (BatteryState.OFF, BatteryState.FAULT) else 1,
            "InvSt": lambda: running[battery.state],
            "ConnSt": lambda: 0 if battery.state is BatteryState.OFF else 1,
            "Alrm": lambda: 1 << 16 if battery.state is BatteryState.FAULT else 0,
        },
    )


def _capacity(device: SunSpecBatteryDevice) -> ModelSpec:
    nameplate, battery = device.nameplate, device.battery
    exponent = _fitting_exponent(max(nameplate.discharge_w_max, nameplate.charge_w_max), top=65534)
    return ModelSpec(
        model_id=702,
        fixed={
            "W_SF": exponent,
            "VA_SF": exponent,
            "WMaxRtg": nameplate.discharge_w_max,
            "VAMaxRtg": nameplate.discharge_w_max,
            "WDisChaRteMaxRtg": nameplate.discharge_w_max,
            "WChaRteMaxRtg": nameplate.charge_w_max,
            "WMax": nameplate.discharge_w_max,
        },
        live={
            "WChaRteMax": lambda: battery.charge_w_limit,
            "WDisChaRteMax": lambda: battery.discharge_w_limit,
        },
    )


def _enter_service(device: SunSpecBatteryDevice) -> ModelSpec:
    """Whether it may run at all, and within which voltages and frequencies it may begin (IEEE 1547-2018 defaults)."""
    return ModelSpec(
        model_id=703,
        fixed={
            "V_SF": -1,
            "Hz_SF": -2,
            "ESVHi": 105.0,
            "ESVLo": 91.7,
            "ESHzHi": 60.1,
            "ESHzLo": 59.5,
            "ESDlyTms": 300,
            "ESRmpTms": 300,
        },
        live={"ES": lambda: device.is_permitted},
    )


def _controls(device: SunSpecBatteryDevice) -> ModelSpec:
    live = {name: _reader(device, f"704.{name}") for name in WRITABLE_704}
    live["WSetRvrtRem"] = lambda: device.set_seconds_left
    return ModelSpec(
        model_id=704,
        fixed={"WSet_SF": 0, "WSetPct_SF": -1},
        live=live,
        writable=WRITABLE_704,
    )


def _storage(device: SunSpecBatteryDevice) -> ModelSpec:
    battery, nameplate = device.battery, device.nameplate
    exponent = _fitting_exponent(nameplate.energy_wh, top=65534)
    return ModelSpec(
        model_id=713,
        fixed={"WH_SF": exponent, "Pct_SF": -2, "WHRtg": nameplate.energy_wh, "SoH": 100.0},
        live={
            "WHAvail": lambda: battery.soc_frac * nameplate.energy_wh,
            "SoC": lambda: 100.0 * battery.soc_frac,
            "Sta": lambda: 2 if battery.state is BatteryState.FAULT else 0,
        },
    )


def _heartbeat(device: SunSpecBatteryDevice) -> ModelSpec:
    return ModelSpec(
        model_id=715,
        fixed={},
        live={
            "LocRemCtl": lambda: REMOTE if device.battery.is_remote else LOCAL,
            "DERHb": lambda: device.uptime_s,
            "ControllerHb": _reader(device, "715.ControllerHb"),
        },
        writable=("ControllerHb",),
    )


def _cells(device: SunSpecBatteryDevice) -> ModelSpec:
    battery, nameplate = device.battery, device.nameplate
    power_exponent = _fitting_exponent(max(nameplate.discharge_w_max, nameplate.charge_w_max), top=32767)
    state = {BatteryState.OFF: 1, BatteryState.STANDBY: 4, BatteryState.RUNNING: 3, BatteryState.FAULT: 99}

    def charge_status() -> float:
        if battery.state is BatteryState.OFF:
            return 1
        if battery.power_w == 0.0:
            return 6
        return 3 if battery.power_w > 0 else 4

    return ModelSpec(
        model_id=802,
        fixed={
            "WHRtg_SF": _fitting_exponent(nameplate.energy_wh, top=65534),
            "WChaDisChaMax_SF": power_exponent,
            "SoC_SF": -2,
            "W_SF": power_exponent,
            "V_SF": -1,
            "A_SF": 0,
            "AHRtg_SF": 0,
            "CellV_SF": -3,
            "AMax_SF": 0,
            "WHRtg": nameplate.energy_wh,
            "SoCMin": 100.0 * nameplate.soc_frac_min,
            "SoCMax": 100.0 * nameplate.soc_frac_max,
            "Typ": 4,
            "Evt1": 0,
            "Evt2": 0,
            "EvtVnd1": 0,
            "EvtVnd2": 0,
        },
        live={
            "WChaRteMax": lambda: battery.charge_w_limit,
            "WDisChaRteMax": lambda: battery.discharge_w_limit,
            "SoC": lambda: 100.0 * battery.soc_frac,
            "ChaSt": charge_status,
            "LocRemCtl": lambda: REMOTE if battery.is_remote else LOCAL,
            "Hb": lambda: device.uptime_s % 0xFFFF,
            "CtrlHb": _reader(device, "802.CtrlHb"),
            "State": lambda: state[battery.state],
            "W": lambda: battery.power_w,
        },
        writable=("CtrlHb",),
    )


def _following(device: SunSpecBatteryDevice) -> ModelSpec:
    live = {name: _reader(device, f"{VENDOR_MODEL}.{name}") for name in WRITABLE_VENDOR}
    live["FlwSt"] = lambda: device.follow_state
    live["FlwRvrtRem"] = lambda: device.follow_seconds_left
    return ModelSpec(
        model_id=VENDOR_MODEL,
        fixed={"Tgt_SF": 0, "Rmp_SF": 0},
        live=live,
        writable=WRITABLE_VENDOR,
        definition=VENDOR_DEFINITION,
    )


def _reader(device: SunSpecBatteryDevice, point: str) -> Live:
    return lambda: device.register(point)
