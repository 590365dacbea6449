"""Registers to numbers and back: types, word order, scale factors, and the values that mean `no value`.

Pure. A `Field` knows how to find its value in the bytes of one block; absence is None, never a number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from drivers.profile import WORDS, WordOrder

FORMATS: Mapping[str, str] = {
    "int16": "h",
    "sunssf": "h",
    "uint16": "H",
    "enum16": "H",
    "bitfield16": "H",
    "acc16": "H",
    "count": "H",
    "int32": "i",
    "uint32": "I",
    "enum32": "I",
    "bitfield32": "I",
    "acc32": "I",
    "int64": "q",
    "uint64": "Q",
    "acc64": "Q",
    "float32": "f",
    "float64": "d",
}
SUNSPEC_ABSENT: Mapping[str, int] = {  # SunSpec information model, unimplemented values; floats are NaN
    "int16": -0x8000,
    "sunssf": -0x8000,
    "uint16": 0xFFFF,
    "enum16": 0xFFFF,
    "bitfield16": 0xFFFF,
    "acc16": 0,
    "int32": -0x80000000,
    "uint32": 0xFFFFFFFF,
    "enum32": 0xFFFFFFFF,
    "bitfield32": 0xFFFFFFFF,
    "acc32": 0,
    "int64": -0x8000000000000000,
    "uint64": 0xFFFFFFFFFFFFFFFF,
    "acc64": 0,
}
SCALE_FACTOR_MAX = 10  # SunSpec scale factors are -10..10


@dataclass(frozen=True, slots=True)
class Codec:
    """One register type in one word order."""

    kind: str
    order: WordOrder

    @property
    def words(self) -> int:
        return WORDS[self.kind]

    def unpack(self, data: bytes, at: int) -> int | float:
        """The raw number at byte `at`."""
        format_ = FORMATS[self.kind]
        if self.order is WordOrder.BIG or self.words == 1:
            value: int | float = struct.unpack_from(f">{format_}", data, at)[0]
            return value
        return struct.unpack(f">{format_}", swap_words(data[at : at + 2 * self.words]))[0]  # type: ignore[no-any-return]

    def pack(self, raw: float) -> bytes:
        """`raw` as registers; struct.error or OverflowError when it does not fit."""
        format_ = FORMATS[self.kind]
        data = struct.pack(f">{format_}", raw if format_ in "fd" else int(raw))
        return data if self.order is WordOrder.BIG else swap_words(data)

    @property
    def is_float(self) -> bool:
        return FORMATS[self.kind] in "fd"


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a field: where it lies in its block, and its scale factor's place if it has one."""

    codec: Codec
    at: int  # byte offset in the block
    scale_at: int | None  # byte offset of a SunSpec scale factor in the same block


@dataclass(frozen=True, slots=True)
class Field:
    """One named value of a block."""

    name: str
    terms: tuple[Term, ...]
    factor: float  # scale times sign
    absent: frozenset[int]

    def value(self, data: bytes) -> float | None:
        """The value in its unit, or None where there is none: sentinel, NaN, bad scale factor, beyond all numbers."""
        total = 0.0
        for term in self.terms:
            raw = term.codec.unpack(data, term.at)
            if raw in self.absent or (term.codec.is_float and not math.isfinite(raw)):
                return None
            if term.scale_at is not None:
                exponent = int.from_bytes(data[term.scale_at : term.scale_at + 2], "big", signed=True)
                if not -SCALE_FACTOR_MAX <= exponent <= SCALE_FACTOR_MAX:
                    return None
                raw = raw * 10.0**exponent
            total += raw
        value = total * self.factor
        return value if math.isfinite(value) else None


def swap_words(data: bytes) -> bytes:
    """The same registers in reverse order."""
    return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
