"""Writes an order to a device by its profile: values into registers, registers into frames, and proof that they took.

Keeps what the device acknowledged, so that a renewal writes no more than it must, and the last order that read back
whole, to be put back where a newer one was taken in part. Knows nothing of what a command is for.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from controller.ports import Clock, DriverError
from drivers.device_map import ControlPlace, DeviceMap
from drivers.errors import BadReply, DeviceFault, InvalidValue, NotApplied, NotSupported
from drivers.modbus import WRITE_REGISTERS_MAX, ModbusDevice
from drivers.profile import Control, Dispatch, Source
from drivers.registers import SCALE_FACTOR_MAX

HEARTBEAT_MODULUS = 1 << 31
REFUSED_S = 3.0  # a device that has no such register will hardly get one: so long before it is asked again


@dataclass(frozen=True, slots=True)
class Order:
    """What a device is to do, and what it does when it is not told again within `ttl_s`."""

    reference_w: float
    ramp_w_per_s: float
    expiry_w_per_s: float
    ttl_s: float


class CommandWriter:
    """One device's way of being written to. The caller says `forget` after a command that failed or was cancelled."""

    def __init__(self, map_: DeviceMap, clock: Clock) -> None:
        self._map = map_
        self._clock = clock
        self._armed: tuple[Dispatch, ModbusDevice] | None = None  # in force, and on which connection
        self._acked: dict[str, bytes] = {}
        self._proven: tuple[Dispatch, ModbusDevice, dict[str, bytes]] | None = (
            None  # the last order that read back whole
        )
        self._scales: dict[int, int] = {}
        self._refused: tuple[ModbusDevice, float] | None = None  # on which connection, and until when it is left alone
        self._beat = 0
        self._beat_t_s = -math.inf

    def forget(self) -> None:
        """The next command is written in full."""
        self._armed = None
        self._acked.clear()

    async def write(self, order: Order, dispatch: Dispatch, *, rating_w: float) -> None:
        """Write and read back. Raises DriverError; InvalidValue before anything is sent."""
        await self._map.prepare()
        device = self._map.device  # a reconnect in the midst of the order ends it
        if self._refused is not None and self._refused[0] is device and self._clock.now_s() < self._refused[1]:
            raise NotSupported(device.name, f"it refused an order; asked again every {REFUSED_S:g} s")
        here = (dispatch, device)
        is_arming = self._armed != here
        if is_arming:
            self.forget()
            self._require(dispatch)
            await self._read_scales(device, dispatch.arm)
            self._map.identity.see_scales(self._scales)
        wanted = {name: self._encode(name, order, rating_w=rating_w) for name in dispatch.arm}
        await self._beat_if_due(device)
        if is_arming:
            names: tuple[str, ...] = dispatch.arm
        else:
            changed = tuple(n for n in dispatch.arm if n not in dispatch.renew and self._acked.get(n) != wanted[n])
            names = (*changed, *dispatch.renew)
        try:
            for address, data in self._frames(names, wanted):
                await device.write_registers(address, data)
            await self._read_back(device, names, wanted, dispatch)
        except (NotApplied, InvalidValue, NotSupported, DeviceFault) as error:
            if isinstance(error, NotSupported):
                self._refused = device, self._clock.now_s() + REFUSED_S
            await self._revert(dispatch, device)
            raise
        self._acked.update({name: wanted[name] for name in names})
        self._armed = here
        self._proven = dispatch, device, dict(self._acked)

    async def _revert(self, dispatch: Dispatch, device: ModbusDevice) -> None:
        """Put the last whole order back where one was taken in part: a value beside another's slope is neither.

        As well as it goes: the device may refuse again, and its timer ends whatever it holds then.
        """
        if self._proven is None or self._proven[:2] != (dispatch, device):
            return
        with contextlib.suppress(DriverError):
            for address, data in self._frames(dispatch.arm, self._proven[2]):
                await device.write_registers(address, data)

    # ------------------------------------------------------------------------------------------------- values

    def _require(self, dispatch: Dispatch) -> None:
        missing = [name for name in dispatch.arm if name not in self._map.controls]
        if missing:
            raise NotSupported(self._map.device.name, f"the device lacks the control {missing[0]}")

    async def _read_scales(self, device: ModbusDevice, names: Iterable[str]) -> None:
        scales = {self._map.controls[name].scale_address for name in names}
        for address in sorted(address for address in scales if address is not None):
            raw = await device.read_registers(3, address, 1)
            self._keep_scale(address, raw)

    def _keep_scale(self, address: int, raw: bytes) -> None:
        exponent = int.from_bytes(raw, "big", signed=True)
        if not -SCALE_FACTOR_MAX <= exponent <= SCALE_FACTOR_MAX:
            raise BadReply(self._map.device.name, f"scale factor {exponent} at {address} is not one")
        self._scales[address] = exponent

    def _encode(self, name: str, order: Order, *, rating_w: float) -> bytes:
        control, place = self._map.profile.controls[name], self._map.controls[name]
        if control.source is Source.DIRECTION:
            reference_w = order.reference_w
            raw: float = control.choices["idle" if reference_w == 0 else "discharge" if reference_w > 0 else "charge"]
            return place.codec.pack(raw)
        value = self._bounded(name, control, _value(control, order, rating_w=rating_w))
        raw = value / place.factor
        if place.scale_address is not None:
            raw /= 10.0 ** self._scales[place.scale_address]
        if not place.codec.is_float:
            raw = _rounded(raw, control.rounding)
        return self._pack(name, control, place, raw)

    def _bounded(self, name: str, control: Control, value: float) -> float:
        low = -math.inf if control.min is None else control.min
        high = math.inf if control.max is None else control.max
        if control.clamp and not math.isnan(value):
            value = min(max(value, low), high)
        if not (low <= value <= high and math.isfinite(value)):
            raise InvalidValue(self._map.device.name, f"{name}: {value:g} is outside {low:g}..{high:g}")
        return value

    def _pack(self, name: str, control: Control, place: ControlPlace, raw: float) -> bytes:
        try:
            return place.codec.pack(raw)
        except (struct.error, OverflowError):
            raise InvalidValue(self._map.device.name, f"{name}: {raw:g} does not fit {place.codec.kind}") from None

    # ------------------------------------------------------------------------------------------------- frames

    def _frames(self, names: Sequence[str], wanted: dict[str, bytes]) -> list[tuple[int, bytes]]:
        """Registers in the order of `names`; neighbours that follow each other travel in one frame."""
        frames: list[tuple[int, bytes]] = []
        for name in names:
            address, data = self._map.controls[name].address, wanted[name]
            if frames:
                start, before = frames[-1]
                if start + len(before) // 2 == address and len(before) + len(data) <= 2 * WRITE_REGISTERS_MAX:
                    frames[-1] = (start, before + data)
                    continue
            frames.append((address, data))
        return frames

    async def _beat_if_due(self, device: ModbusDevice) -> None:
        heartbeat = self._map.profile.heartbeat
        now_s = self._clock.now_s()
        if heartbeat is None or now_s - self._beat_t_s < heartbeat.period_s:
            return
        place = self._map.controls.get(heartbeat.control)
        if place is None:
            raise NotSupported(self._map.device.name, f"the device lacks the control {heartbeat.control}")
        self._beat = (self._beat + 1) % HEARTBEAT_MODULUS
        modulus = 1 << (16 * place.codec.words - 1)
        await device.write_registers(place.address, place.codec.pack(self._beat % modulus))
        self._beat_t_s = now_s

    # ---------------------------------------------------------------------------------------------- read-back

    async def _read_back(
        self, device: ModbusDevice, names: Sequence[str], wanted: dict[str, bytes], dispatch: Dispatch
    ) -> None:
        controls = self._map.profile.controls
        places = {name: self._map.controls[name] for name in names if controls[name].is_read_back}
        timer = self._map.point_places.get(dispatch.timer) if dispatch.timer else None
        spans = [(p.address, p.address + p.codec.words) for p in places.values()]
        scales = {p.scale_address for p in places.values() if p.scale_address is not None}
        spans += [(address, address + 1) for address in scales]
        if timer is not None:
            spans.append((timer.address, timer.address + timer.codec.words))
        registers = await self._read_spans(device, spans)
        for name, place in places.items():
            found = b"".join(registers[place.address + word] for word in range(place.codec.words))
            if found != wanted[name]:
                told, is_ = place.codec.unpack(wanted[name], 0), place.codec.unpack(found, 0)
                raise NotApplied(self._map.device.name, f"{name}: wrote {told:g}, reads back {is_:g}")
        for address in scales:
            self._keep_scale(address, registers[address])
        self._map.identity.see_scales(self._scales)
        if timer is not None:
            data = b"".join(registers[timer.address + word] for word in range(timer.codec.words))
            if timer.codec.unpack(data, 0) <= 0:
                raise NotApplied(self._map.device.name, f"{dispatch.timer}: the expiry timer does not run")

    async def _read_spans(self, device: ModbusDevice, spans: list[tuple[int, int]]) -> dict[int, bytes]:
        """Registers of all spans in few reads; across gaps only on SunSpec maps, where every register can be read."""
        gap = device.registers_per_read_max if self._map.profile.sunspec is not None else 0
        registers: dict[int, bytes] = {}
        merged: list[tuple[int, int]] = []
        for start, end in sorted(spans):
            if merged and start - merged[-1][1] <= gap and end - merged[-1][0] <= device.registers_per_read_max:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        for start, end in merged:
            data = await device.read_registers(3, start, end - start)
            registers |= {start + i: data[2 * i : 2 * i + 2] for i in range(end - start)}
        return registers


def _value(control: Control, order: Order, *, rating_w: float) -> float:
    """What a control carries for `order`, in the unit of its source."""
    match control.source:
        case Source.CONSTANT:
            assert control.value is not None
            return control.value
        case Source.REFERENCE_W:
            return order.reference_w
        case Source.CHARGE_W:
            return max(0.0, -order.reference_w)
        case Source.DISCHARGE_W:
            return max(0.0, order.reference_w)
        case Source.RAMP_W_PER_S:
            return order.ramp_w_per_s
        case Source.RAMP_PERCENT_PER_S:
            return 100.0 * order.ramp_w_per_s / rating_w
        case Source.EXPIRY_RAMP_W_PER_S:
            return order.expiry_w_per_s
        case Source.TTL_S:
            return order.ttl_s
        case Source.DIRECTION | Source.HEARTBEAT:
            raise AssertionError(control.source)
        case _:
            assert_never(control.source)


def _rounded(raw: float, rounding: str) -> int:
    """To a whole number; 5.000000001 s is 5 s that went through arithmetic, not 6."""
    if rounding == "up":
        return math.ceil(raw - 1e-6)
    return math.floor(raw + 1e-6) if rounding == "down" else round(raw)
