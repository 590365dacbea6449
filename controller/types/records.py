"""Frozen slotted dataclasses that are cheap to make and to change: a control cycle makes about seventy of them.

The `__init__` that the standard library writes for a frozen dataclass stores each field through `object.__setattr__`,
ten times as slow as a slot, and its `replace` asks for every field by name. Here both are C, of `msgspec`, and so are
comparison, hash and text. What the `dataclasses` module tells of a class (`fields`, `asdict`) it tells of these too.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, dataclass_transform

import msgspec

if TYPE_CHECKING:
    from dataclasses import replace as replace  # whose arguments mypy checks against the fields
else:
    from msgspec.structs import replace as replace

C = TypeVar("C")

# What a class with a dictionary has, and how the standard library forbids to write.
LEFT_OUT = frozenset({"__dict__", "__weakref__", "__setattr__", "__delattr__"})


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[C]) -> type[C]:
    """As `dataclass(frozen=True, slots=True)`, for classes that nobody derives from and whose fields are all given."""
    usual: Any = dataclass(frozen=True, init=False, repr=False, eq=False, match_args=False)(cls)
    names = {name: value for name, value in vars(usual).items() if name not in LEFT_OUT}
    for f in fields(usual):
        assert f.init and not f.kw_only, f"{cls.__name__}.{f.name}: not handled"
        if f.default_factory is not MISSING:
            names[f.name] = msgspec.field(default_factory=f.default_factory)
    names |= {"__qualname__": cls.__qualname__, "__init_subclass__": classmethod(_refuse)}
    bases = (msgspec.Struct, *(base for base in cls.__bases__ if base is not object))
    return cast("type[C]", msgspec.StructMeta(cls.__name__, bases, names, frozen=True))


def _refuse(cls: type[Any], /, **_: object) -> NoReturn:
    raise TypeError(f"{cls.__name__}: a frozen record is not derived from")
