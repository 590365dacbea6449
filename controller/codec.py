"""Frozen dataclasses to JSON values and back, by their type hints alone.

Recordings, status files and state files use it. What is decoded is checked against the type: a wrong shape raises
`ValueError` naming the path to it, never an object that lies. NaN and infinities travel as strings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Union, cast, get_args, get_origin, get_type_hints

import numpy as np

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
PLAIN = frozenset({NoneType, bool, int, str})  # as they are; no subclass, which an enum may be


def encode(value: object) -> Json:
    """`value` as JSON: dataclasses by field with a `_type` where a union must be told apart, arrays as lists."""
    if type(value) in PLAIN:
        return cast(Json, value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return cast(Json, value.value)
    if isinstance(value, np.ndarray):
        return [encode(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return encode(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Json] = {"_type": type(value).__name__}
        for name in _names(type(value)):
            out[name] = encode(getattr(value, name))
        return out
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        # Most of a recording is long tuples of whole numbers (the clocks that GPUs support): no call for each.
        return [item if type(item) in PLAIN else encode(item) for item in items]
    raise TypeError(f"cannot encode {type(value).__name__}")


def decode(kind: object, raw: object, *, at: str = "value") -> object:
    """`raw` as an instance of the type `kind`; ValueError says where it does not fit."""
    return _decoder(kind)(raw, at)


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


Decoder = Callable[[object, str], object]


@cache
def _decoder(kind: object) -> Decoder:
    origin = get_origin(kind)
    if origin is not None and isinstance(origin, type) and is_dataclass(origin):
        return _dataclass_decoder(origin, get_args(kind))
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass_decoder(kind, ())
    if origin in (Union, UnionType):
        return _union_decoder(get_args(kind))
    if origin is tuple:
        return _tuple_decoder(get_args(kind))
    if origin is np.ndarray:
        return _array_decoder(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping_decoder(get_args(kind))
    supertype = getattr(kind, "__supertype__", None)  # NewType
    if supertype is not None:
        return _decoder(supertype)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum_decoder(kind)
    return _scalar_decoder(kind)


def _dataclass_decoder(kind: type, arguments: tuple[object, ...]) -> Decoder:
    hints = get_type_hints(kind)
    parameters = getattr(kind, "__parameters__", ())
    bound = dict(zip(parameters, arguments, strict=False))
    decoders = {name: _decoder(bound.get(hints[name], hints[name])) for name in _names(kind)}

    def run(raw: object, at: str) -> object:
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: expected {kind.__name__}")
        unknown = raw.keys() - decoders.keys() - {"_type"}
        if unknown or raw.get("_type", kind.__name__) != kind.__name__:
            raise ValueError(f"{at}: not a {kind.__name__}")
        try:
            return kind(**{name: decoder(raw[name], f"{at}.{name}") for name, decoder in decoders.items()})
        except KeyError as missing:
            raise ValueError(f"{at}: {kind.__name__} without {missing}") from None

    return run


def _union_decoder(options: tuple[object, ...]) -> Decoder:
    tagged = {getattr(get_origin(o) or o, "__name__", ""): o for o in options if is_dataclass(get_origin(o) or o)}
    plain = [o for o in options if o is not NoneType and not is_dataclass(get_origin(o) or o)]
    has_none = NoneType in options

    def run(raw: object, at: str) -> object:
        if raw is None and has_none:
            return None
        if isinstance(raw, dict) and isinstance(tag := raw.get("_type"), str) and tag in tagged:
            return _decoder(tagged[tag])(raw, at)
        for option in plain:
            try:
                return _decoder(option)(raw, at)
            except ValueError:
                continue
        raise ValueError(f"{at}: fits none of its types")

    return run


def _tuple_decoder(arguments: tuple[object, ...]) -> Decoder:
    def run(raw: object, at: str) -> object:
        if not isinstance(raw, list):
            raise ValueError(f"{at}: expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            if arguments[0] in PLAIN and set(map(type, raw)) == {arguments[0]}:
                return tuple(raw)
            item = _decoder(arguments[0])
            return tuple(item(value, f"{at}[{i}]") for i, value in enumerate(raw))
        if len(raw) != len(arguments):
            raise ValueError(f"{at}: expected {len(arguments)} items")
        return tuple(_decoder(a)(value, f"{at}[{i}]") for i, (a, value) in enumerate(zip(arguments, raw, strict=True)))

    return run


def _array_decoder(kind: object) -> Decoder:
    dtype = get_args(get_args(kind)[1])[0]

    def run(raw: object, at: str) -> object:
        if not isinstance(raw, list):
            raise ValueError(f"{at}: expected a list of numbers")
        try:
            return np.array([float(v) if isinstance(v, str) else v for v in raw], dtype=dtype)
        except (OverflowError, TypeError, ValueError):
            raise ValueError(f"{at}: expected a list of numbers") from None

    return run


def _mapping_decoder(arguments: tuple[object, ...]) -> Decoder:
    item = _decoder(arguments[1])

    def run(raw: object, at: str) -> object:
        if not isinstance(raw, dict):
            raise ValueError(f"{at}: expected keys and values")
        return {str(key): item(value, f"{at}.{key}") for key, value in raw.items()}

    return run


def _enum_decoder(kind: type[Enum]) -> Decoder:
    def run(raw: object, at: str) -> object:
        try:
            return kind(raw)
        except ValueError:
            raise ValueError(f"{at}: {str(raw)[:60]!r} is not one of {[m.value for m in kind]}") from None

    return run


def _scalar_decoder(kind: object) -> Decoder:
    def run(raw: object, at: str) -> object:
        if kind is float and isinstance(raw, str) and raw in {"nan", "inf", "-inf"}:
            return float(raw)
        if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            try:
                return float(raw)
            except OverflowError:
                raise ValueError(f"{at}: a whole number that no float holds") from None
        if isinstance(kind, type) and isinstance(raw, kind) and not (kind is int and isinstance(raw, bool)):
            return raw
        raise ValueError(f"{at}: expected {getattr(kind, '__name__', kind)}, found {type(raw).__name__}")

    return run
