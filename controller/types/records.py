"""Frozen slotted dataclasses that are cheap to make: a control cycle makes about seventy of them.

The `__init__` that the standard library writes for a frozen dataclass stores each field through `object.__setattr__`,
ten times as slow as a slot. Here an object is, for the length of its own `__init__`, of a class beside its own whose
slots can be written; nobody else sees it before that ends. All else is the standard library's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from typing import Any, NoReturn, TypeVar, dataclass_transform

C = TypeVar("C")

NOT_GIVEN = object()  # in place of what a factory makes


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[C]) -> type[C]:
    """As `dataclass(frozen=True, slots=True)`, for classes that nobody derives from."""
    made = dataclass(frozen=True, slots=True)(cls)
    writable = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    made.__init__ = wraps(made.__init__)(_init(made, type(made.__name__, (made,), writable)))  # type: ignore[method-assign]
    made.__init_subclass__ = classmethod(_refuse)  # type: ignore[assignment]
    return made


def _init(made: type[Any], writable: type[Any]) -> Callable[..., None]:
    """The `__init__` of `made`: its object is a `writable` while the fields are stored."""
    names: dict[str, object] = {"_become": object.__setattr__, "_writable": writable, "_made": made, "_no": NOT_GIVEN}
    given, stores = ["self"], []
    for f in fields(made):
        has_factory, has_default = f.default_factory is not MISSING, f.default is not MISSING
        assert not f.kw_only and (f.init or not (has_factory or has_default)), f"{made.__name__}.{f.name}: not handled"
        if not f.init:
            continue  # `__post_init__` gives it
        value = f.name
        if has_factory:
            value = f"_make_{f.name}() if {f.name} is _no else {f.name}"
            names[f"_make_{f.name}"] = f.default_factory
        names[f"_default_{f.name}"] = NOT_GIVEN if has_factory else f.default
        given.append(f"{f.name}=_default_{f.name}" if has_factory or has_default else f.name)
        stores.append(f"self.{f.name} = {value}")
    body = ["_become(self, '__class__', _writable)", *stores, "self.__class__ = _made"]
    if hasattr(made, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(given)}):\n " + "\n ".join(body), names)
    init: Callable[..., None] = names["__init__"]  # type: ignore[assignment]
    return init


def _refuse(cls: type[Any], /, **_: object) -> NoReturn:
    raise TypeError(f"{cls.__name__}: a frozen record is not derived from")
