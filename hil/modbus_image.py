"""Register images for simulated devices: a span of registers with live values in it, and SunSpec maps built of models.

A value is encoded when it is read, so a reader always gets the plant's present state and an unread register costs
nothing. The layout and the encoding of SunSpec models come from `pysunspec2`, never from our own driver, so that the
two sides of the wire cannot agree on a mistake.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sunspec2 import device as sunspec_device
from sunspec2 import mb as sunspec_mb

from controller.types import frozen
from hil.modbus_server import ExceptionCode, RegisterFault

Live = Callable[[], float | None]
Encode = Callable[[float | None], bytes]
OnWrite = Callable[[Mapping[str, float]], None]

FORMATS = {
    "int16": ">h",
    "uint16": ">H",
    "enum16": ">H",
    "bitfield16": ">H",
    "sunssf": ">h",
    "acc16": ">H",
    "int32": ">i",
    "uint32": ">I",
    "enum32": ">I",
    "bitfield32": ">I",
    "acc32": ">I",
    "int64": ">q",
    "uint64": ">Q",
    "acc64": ">Q",
    "float32": ">f",
    "float64": ">d",
}
NOT_IMPLEMENTED = {  # SunSpec information model specification, table of unimplemented values
    "int16": b"\x80\x00",
    "sunssf": b"\x80\x00",
    "uint16": b"\xff\xff",
    "enum16": b"\xff\xff",
    "bitfield16": b"\xff\xff",
    "acc16": b"\x00\x00",
    "int32": b"\x80\x00\x00\x00",
    "uint32": b"\xff\xff\xff\xff",
    "enum32": b"\xff\xff\xff\xff",
    "bitfield32": b"\xff\xff\xff\xff",
    "acc32": b"\x00\x00\x00\x00",
    "int64": b"\x80" + b"\x00" * 7,
    "uint64": b"\xff" * 8,
    "acc64": b"\x00" * 8,
    "float32": b"\x7f\xc0\x00\x00",
    "float64": b"\x7f\xf8" + b"\x00" * 6,
}


def encoder(kind: str, *, scale: float = 1.0) -> Encode:
    """Encodes a value divided by `scale` as `kind`, saturating; None and NaN become the not-implemented value."""
    packer = struct.Struct(FORMATS[kind])
    missing = NOT_IMPLEMENTED[kind]
    if kind.startswith("float"):
        return lambda value: missing if value is None else packer.pack(value / scale)
    bits = 8 * packer.size
    signed = kind.startswith(("int", "sunssf"))
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 2
    bottom = -top if signed else 0

    def encode(value: float | None) -> bytes:
        if value is None or math.isnan(value):
            return missing
        return packer.pack(max(bottom, min(top, round(value / scale))))

    return encode


@dataclass(slots=True)
class _Binding:
    start: int
    words: int
    live: Live
    encode: Encode


class RegisterImage:
    """One contiguous span of registers with live values in it; reading beyond it is an illegal address.

    `functions` are the read functions it answers. Nothing in it can be written.
    """

    def __init__(self, start: int, count: int, *, functions: Sequence[int] = (3,)) -> None:
        self.start = start
        self.data = bytearray(2 * count)
        self._functions = frozenset(functions)
        self._bindings: list[_Binding] = []
        self._starts: list[int] = []

    def bind(self, address: int, words: int, live: Live, encode: Encode) -> None:
        """From now on `words` registers at `address` show `live()`. Bindings must not overlap."""
        at = bisect_right(self._starts, address)
        self._starts.insert(at, address)
        self._bindings.insert(at, _Binding(address, words, live, encode))

    def put(self, address: int, data: bytes) -> None:
        offset = 2 * (address - self.start)
        self.data[offset : offset + len(data)] = data

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        if function not in self._functions:
            raise RegisterFault(ExceptionCode.ILLEGAL_FUNCTION)
        offset = 2 * (address - self.start)
        if offset < 0 or offset + 2 * count > len(self.data):
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
        self._refresh(address, count)
        return bytes(self.data[offset : offset + 2 * count])

    def _refresh(self, address: int, count: int) -> None:
        at = max(0, bisect_right(self._starts, address) - 1)
        for binding in self._bindings[at:]:
            if binding.start >= address + count:
                break
            if binding.start + binding.words > address:
                self.put(binding.start, binding.encode(binding.live()))

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        raise RegisterFault(ExceptionCode.ILLEGAL_FUNCTION)

    def write_registers(self, address: int, data: bytes) -> None:
        raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)


@frozen
class ModelSpec:
    """One SunSpec model of a map: fixed values, scale factors, live values and which points may be written.

    Values are in the point's unit, the library applies the scale factors given in `fixed`. `definition` describes a
    model that the library does not know (a vendor's own).
    """

    model_id: int
    fixed: Mapping[str, float | int | str]
    live: Mapping[str, Live]
    writable: Sequence[str] = ()
    definition: Mapping[str, Any] | None = None


@frozen
class _Writable:
    name: str
    words: int
    unpack: struct.Struct
    scale: float


class SunSpecImage(RegisterImage):
    """A SunSpec map: marker, models in order, end model. `address_of("704.WSet")` tells where a point lies.

    A write must cover whole writable points; `on_write` gets all points of one request at once, by `model.point`, and
    may raise RegisterFault, in which case nothing changed.
    """

    def __init__(self, models: Sequence[ModelSpec], *, on_write: OnWrite | None = None, base: int = 40000) -> None:
        built = [_build(spec) for spec in models]
        images = [model.get_mb() for model in built]
        super().__init__(base, 2 + sum(len(image) // 2 for image in images) + 2)
        self._on_write = on_write
        self._addresses: dict[str, int] = {}
        self._writable: dict[int, _Writable] = {}
        self.put(base, b"SunS")
        address = base + 2
        for spec, model, image in zip(models, built, images, strict=True):
            self.put(address, image)
            self._place(spec, model, address)
            address += len(image) // 2
        self.put(address, b"\xff\xff\x00\x00")

    def address_of(self, point: str) -> int:
        return self._addresses[point]

    def write_registers(self, address: int, data: bytes) -> None:
        changes: dict[str, float] = {}
        at = 0
        while at < len(data):
            point = self._writable.get(address + at // 2)
            if point is None or at + 2 * point.words > len(data):
                raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
            changes[point.name] = point.unpack.unpack_from(data, at)[0] * point.scale
            at += 2 * point.words
        if self._on_write is None:
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
        self._on_write(changes)

    def _place(self, spec: ModelSpec, model: Any, address: int) -> None:
        for name, point in model.points.items():
            kind = str(point.pdef["type"])
            where = address + int(point.offset)
            key = f"{spec.model_id}.{name}"
            self._addresses[key] = where
            scale = 10.0 ** _scale_exponent(model, point)
            if name in spec.live:
                self.bind(where, int(point.len), spec.live[name], encoder(kind, scale=scale))
            if name in spec.writable:
                self._writable[where] = _Writable(key, int(point.len), struct.Struct(FORMATS[kind]), scale)


def _build(spec: ModelSpec) -> Any:
    definition = dict(spec.definition) if spec.definition is not None else None
    model = sunspec_device.Model(model_id=spec.model_id, model_def=definition)
    assert not model.error_info, model.error_info
    for name in sorted(spec.fixed, key=lambda point: not point.endswith("_SF")):  # scale factors before what they scale
        model.points[name].cvalue = spec.fixed[name]
    length = len(model.get_mb()) // 2 - 2
    model.points["ID"].value = spec.model_id
    model.points["L"].value = length
    assert set(spec.live) | set(spec.writable) <= set(model.points), spec.model_id
    return model


def _scale_exponent(model: Any, point: Any) -> int:
    factor = point.pdef.get("sf")
    if factor is None:
        return 0
    exponent = factor if isinstance(factor, int) else model.points[factor].value
    return 0 if exponent is None or exponent == sunspec_mb.SUNS_UNIMPL_SUNSSF else int(exponent)
