"""SunSpec: find the map on a device, and know where each model keeps each point.

Layouts come from the model definitions that `pysunspec2` ships; only what repeats a variable number of times is left
out. Discovery looks for the marker at the given bases and walks the chain of models from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sunspec2 import device as sunspec_device
from sunspec2.mdef import ModelDefinitionError

from drivers.errors import BadReply, DeviceBusy, DeviceFault, InvalidValue, NotSupported, WrongDevice
from drivers.modbus import ModbusDevice

MARKER = b"SunS"
END_MODEL = 0xFFFF
MODELS_MAX = 100  # a chain longer than this is a loop or garbage


@dataclass(frozen=True, slots=True)
class ModelAt:
    """One model found on a device: where its id register is, and how many registers follow id and length."""

    model_id: int
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class PointLayout:
    """One point of a model; offsets count from the model's id register."""

    offset: int
    kind: str
    scale_offset: int | None
    scale_exponent: int  # where the definition fixes it


async def discover(device: ModbusDevice, bases: Sequence[int]) -> tuple[ModelAt, ...]:
    """Every model of the device in order; WrongDevice where no base holds the marker."""
    for base in bases:
        try:
            marker = await device.read_registers(3, base, 2)
        except (NotSupported, InvalidValue, DeviceFault):
            continue  # nothing at this base
        if marker == MARKER:
            return await _walk(device, base + 2)
    where = ", ".join(str(base) for base in bases)
    raise WrongDevice(device.name, f"no SunSpec marker at {where}")


async def _walk(device: ModbusDevice, address: int) -> tuple[ModelAt, ...]:
    models: list[ModelAt] = []
    while len(models) < MODELS_MAX:
        head = await _read_head(device, address)
        model_id = int.from_bytes(head[:2], "big")
        if model_id == END_MODEL:
            return tuple(models)
        length = int.from_bytes(head[2:4], "big")
        models.append(ModelAt(model_id, address, length))
        address += 2 + length
        if address > 0xFFFF - 2:
            break
    raise BadReply(device.name, f"the SunSpec chain of models has no end after {len(models)} models")


async def _read_head(device: ModbusDevice, address: int) -> bytes:
    try:
        return await device.read_registers(3, address, 2)
    except (NotSupported, InvalidValue, DeviceFault, DeviceBusy):
        return await device.read_registers(3, address, 1) + b"\x00\x00"  # some devices end without a length


@cache
def layout(model_id: int) -> Mapping[str, PointLayout]:
    """Points of a model by name (`group.point` inside a group); KeyError for a model the library does not know."""
    try:
        definition: dict[str, Any] = sunspec_device.get_model_def(model_id)
    except (ModelDefinitionError, OSError) as error:
        raise KeyError(f"SunSpec model {model_id} is not known") from error
    placed = list(_place(definition["group"], prefix="", start=0))
    offsets = {name: offset for name, offset, _ in placed}
    found: dict[str, PointLayout] = {}
    for name, offset, point in placed:
        factor = point.get("sf")
        found[name] = PointLayout(
            offset=offset,
            kind=str(point["type"]),
            scale_offset=offsets.get(factor) if isinstance(factor, str) else None,
            scale_exponent=factor if isinstance(factor, int) else 0,
        )
    return found


def _place(group: Mapping[str, Any], *, prefix: str, start: int) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Name, offset and definition of each point, as far as the offsets are fixed."""
    offset = start
    for point in group.get("points", ()):
        yield f"{prefix}{point['name']}", offset, point
        offset += int(point["size"])
    for child in group.get("groups", ()):
        if child.get("count", 1) not in (1, None):
            return
        for name, at, point in _place(child, prefix=f"{prefix}{child['name']}.", start=offset):
            yield name, at, point
            end = at + int(point["size"])
        offset = end
