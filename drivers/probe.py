"""Finding out what a Modbus device is: which models it has, which profile fits, whether sign and scale are right.

A profile fits `surely` when the device passes a test that chance would not: the SunSpec models it needs, or a value in
a range that excludes zero (a frequency). It fits `perhaps` when it could be read and nothing contradicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from statistics import median
from typing import Any

from controller.ports import Clock, DriverError
from drivers.device_map import DeviceMap
from drivers.errors import DeviceBusy, DeviceGone, DeviceTimeout, WrongDevice
from drivers.modbus import ModbusConnection, ModbusDevice
from drivers.modbus_endpoint import Endpoint
from drivers.profile import DeviceProfile, Kind
from drivers.sunspec import ModelAt, discover

BASES = (40000, 0, 50000)
RECONNECT_S = 0.2  # the connection closes after a timeout and is back after its shortest back-off
COMPARE_SAMPLES = 5
COMPARE_PERIOD_S = 0.3
RATIO_TOLERANCE = 0.1


@unique
class Fit(StrEnum):
    SURELY = "surely"
    PERHAPS = "perhaps"
    NO = "no"

    @property
    def rank(self) -> int:
        return {Fit.SURELY: 2, Fit.PERHAPS: 1, Fit.NO: 0}[self]


@dataclass(frozen=True, slots=True)
class Target:
    """What to talk to; `unit_id` None takes each profile's own."""

    endpoint: Endpoint
    unit_id: int | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One point as read."""

    name: str
    value: float | None
    unit: str
    meaning: str | None
    remark: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One profile tried on the device."""

    profile: DeviceProfile
    fit: Fit
    why: str
    value_count: int
    power_w: float | None

    @property
    def reading(self) -> str:
        if self.power_w is None:
            return "it gives no power"
        way = {
            Kind.METER: ("importing", "exporting"),
            Kind.BATTERY: ("discharging", "charging"),
            Kind.LOAD_BANK: ("drawing", "feeding"),
        }
        words = way.get(self.profile.kind, ("feeding", "feeding"))
        return (
            f"{words[0] if self.power_w >= 0 else words[1]} {abs(self.power_w):,.0f} W if the profile's sign is right"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe found."""

    is_reachable: bool
    answer: str
    models: tuple[int, ...]
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial that fits best; among equals the one that demands most of the device."""
        fitting = [trial for trial in self.trials if trial.fit is not Fit.NO]
        return max(fitting, key=lambda t: (t.fit.rank, t.profile.sunspec is not None, t.value_count), default=None)

    def as_dict(self) -> dict[str, Any]:
        best = self.best
        return {
            "reachable": self.is_reachable,
            "answer": self.answer,
            "sunspec_models": list(self.models),
            "best": best.profile.id if best else None,
            "trials": [
                {"profile": t.profile.id, "fit": t.fit.value, "why": t.why, "power_w": t.power_w} for t in self.trials
            ],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two meters of the same power, side by side."""

    ratio: float | None
    agrees: bool
    text: str

    def as_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "agrees": self.agrees, "verdict": self.text}


class _LoopClock:
    """Time of the running event loop; a probe has no other need of a clock."""

    def now_ns(self) -> int:
        return round(self.now_s() * 1e9)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_utc_s(self) -> float:
        raise NotImplementedError

    async def sleep_until_ns(self, t_ns: int) -> None:
        await asyncio.sleep(max(0.0, t_ns / 1e9 - self.now_s()))


async def probe_device(target: Target, profiles: Sequence[DeviceProfile]) -> Found:
    """Try every profile on the device, one after the other; never raises DriverError."""
    connection = ModbusConnection(target.endpoint, timeout_s=target.timeout_s)
    try:
        models, answer, is_reachable = await _look(connection, target)
        if not is_reachable:
            return Found(is_reachable=False, answer=answer, models=(), trials=())
        trials = [await _try(connection, target, profile) for profile in profiles]
        return Found(True, answer, tuple(model.model_id for model in models), tuple(trials))
    finally:
        await connection.close()


async def read_device(target: Target, profile: DeviceProfile) -> list[Row]:
    """Every point of `profile` once. Raises DriverError."""
    connection = ModbusConnection(target.endpoint, timeout_s=target.timeout_s)
    try:
        map_ = _map(connection, target, profile)
        await map_.read()
        return [_row(map_, name) for name in profile.points]
    finally:
        await connection.close()


async def compare(target: Target, profile: DeviceProfile, other: Target, trusted: DeviceProfile) -> Comparison:
    """Whether both devices see the same power with the same sign and scale."""
    first = ModbusConnection(target.endpoint, timeout_s=target.timeout_s)
    second = ModbusConnection(other.endpoint, timeout_s=other.timeout_s)
    pairs: list[tuple[float, float]] = []
    try:
        maps = (_map(first, target, profile), _map(second, other, trusted))
        for _ in range(COMPARE_SAMPLES):
            await asyncio.gather(*(map_.read() for map_ in maps))
            ours, theirs = (map_.values.get("power_w", map_.values.get("output_w")) for map_ in maps)
            if ours is not None and theirs is not None:
                pairs.append((ours, theirs))
            await asyncio.sleep(COMPARE_PERIOD_S)
    except DriverError as error:
        return Comparison(None, False, f"cannot compare: {error}")
    finally:
        await first.close()
        await second.close()
    return judge_ratio([ours / theirs for ours, theirs in pairs if theirs != 0.0])


def judge_ratio(ratios: Sequence[float]) -> Comparison:
    """What the ratio of a meter to a trusted one says about its sign and scale."""
    if not ratios:
        return Comparison(None, False, "cannot compare: the trusted meter reads no power")
    ratio = median(ratios)
    sign = "" if ratio > 0 else "the sign is swapped; "
    size = abs(ratio)
    for factor, word in ((1.0, ""), (1e3, "1000 times too large"), (1e-3, "1000 times too small")):
        if abs(size / factor - 1.0) <= RATIO_TOLERANCE:
            if not word and ratio > 0:
                return Comparison(ratio, True, f"sign and scale agree with the trusted meter (ratio {ratio:.3f})")
            scale = f"the scale is {word}; " if word else ""
            return Comparison(ratio, False, f"{sign}{scale}ratio {ratio:.4g}")
    return Comparison(ratio, False, f"{sign}the two do not measure the same power: ratio {ratio:.4g}")


async def _look(connection: ModbusConnection, target: Target) -> tuple[tuple[ModelAt, ...], str, bool]:
    unit = 1 if target.unit_id is None else target.unit_id
    device = ModbusDevice(connection, name=f"unit {unit}", unit_id=unit)
    try:
        models = await discover(device, BASES)
    except WrongDevice:
        return (), "answers Modbus, not SunSpec", True
    except DriverError as error:
        if connection.connect_count:
            return (), f"accepts connections; {error}", True
        return (), _reason(error), False
    label = await _label(device, models)
    return models, f"SunSpec{label}, models {', '.join(str(model.model_id) for model in models)}", True


async def _label(device: ModbusDevice, models: Sequence[ModelAt]) -> str:
    """Maker, model, version and serial number of model 1."""
    common = next((model for model in models if model.model_id == 1), None)
    if common is None or common.length < 65:
        return ""
    try:
        data = await device.read_registers(3, common.address + 2, 64)
    except DriverError:
        return ""
    words = (data[0:32], data[32:64], data[80:96], data[96:128])
    return " " + " ".join(text for raw in words if (text := raw.split(b"\0")[0].decode("utf-8", "replace").strip()))


async def _try(connection: ModbusConnection, target: Target, profile: DeviceProfile) -> Trial:
    map_ = _map(connection, target, profile)
    for attempt in range(3):
        try:
            await map_.read()
            break
        except (DeviceGone, DeviceBusy) as error:
            if attempt == 2:
                return Trial(profile, Fit.NO, _reason(error), 0, None)
            await asyncio.sleep(RECONNECT_S)
        except DeviceTimeout as error:
            await asyncio.sleep(RECONNECT_S)
            return Trial(profile, Fit.NO, _reason(error), 0, None)
        except DriverError as error:
            return Trial(profile, Fit.NO, _reason(error), 0, None)
    values = {name: value for name, value in map_.values.items() if value is not None}
    power_w = values.get("power_w", values.get("output_w"))
    tested = [name for name, point in profile.points.items() if name in values and (point.min or 0) > 0]
    if profile.sunspec is not None:
        return Trial(profile, Fit.SURELY, "has the models it needs", len(values), power_w)
    if tested:
        return Trial(profile, Fit.SURELY, f"{tested[0]} reads {values[tested[0]]:.4g}", len(values), power_w)
    if not any(values.values()):
        return Trial(profile, Fit.NO, "every register reads zero", 0, power_w)
    return Trial(profile, Fit.PERHAPS, "can be read, nothing proves it", len(values), power_w)


def _reason(error: DriverError) -> str:
    return str(error).removeprefix(f"{error.device}: ")


def _map(connection: ModbusConnection, target: Target, profile: DeviceProfile) -> DeviceMap:
    clock: Clock = _LoopClock()
    unit = profile.unit_id if target.unit_id is None else target.unit_id
    device = ModbusDevice(
        connection,
        name=f"unit {unit}",
        unit_id=unit,
        registers_per_read_max=profile.registers_per_read_max,
    )
    return DeviceMap(profile, device, clock, is_reading_all=True)


def _row(map_: DeviceMap, name: str) -> Row:
    point = map_.profile.points[name]
    meaning = map_.meaning(name)
    odd = next((text for text in map_.implausible() if text.startswith(f"{name} ")), "")
    return Row(name, map_.values[name], point.unit, meaning, odd or meaning or "")
