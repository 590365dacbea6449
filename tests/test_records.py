"""Records of the house are what the standard library's frozen slotted dataclasses are, only cheaper to make."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Generic, TypeVar

import pytest

from controller.types import frozen, replace

T = TypeVar("T")


@frozen
class Cheap(Generic[T]):
    """With a field of each kind."""

    value: T
    scale: float = 2.0
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.scale > 0.0

    @property
    def doubled(self) -> float:
        return 2.0 * self.scale


@dataclass(frozen=True, slots=True)
class Usual(Generic[T]):
    """The same by the standard library."""

    value: T
    scale: float = 2.0
    names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.scale > 0.0

    @property
    def doubled(self) -> float:
        return 2.0 * self.scale


@frozen
class Point:
    """Plain, and hashable."""

    x: float
    y: float


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind("a"),
        lambda kind: kind("a", 3.0, {"b": 1}),
        lambda kind: kind(scale=4.0, value="a"),
        lambda kind: dataclasses.replace(kind("a", names={"c": 2}), scale=5.0),
        lambda kind: (replace if kind is Cheap else dataclasses.replace)(kind("a", names={"c": 2}), scale=5.0),
        lambda kind: pickle.loads(pickle.dumps(kind("a", 3.0))),
        lambda kind: copy.deepcopy(kind("a", 3.0, {"b": 1})),
    ],
)
def test_it_holds_what_a_usual_one_holds(make: Callable[[type], object]) -> None:
    """However it is made: by place, by name, from another, from bytes; and it is of its own class when it is done."""
    cheap, usual = make(Cheap), make(Usual)

    assert type(cheap) is Cheap
    assert asdict(cheap) == asdict(usual)
    assert repr(cheap) == repr(usual).replace("Usual", "Cheap")
    assert cheap == make(Cheap)


def test_it_reads_like_a_usual_one() -> None:
    """Tools see the same parameters, names and fields."""
    cheap, usual = (inspect.signature(kind).parameters for kind in (Cheap, Usual))
    assert [(p.name, p.kind, p.default) for p in cheap.values()][:2] == [
        (p.name, p.kind, p.default) for p in usual.values()
    ][:2]
    assert list(cheap) == list(usual)
    assert Cheap.__match_args__ == Usual.__match_args__
    assert [f.name for f in fields(Cheap)] == [f.name for f in fields(Usual)]
    assert {Point(1.0, 2.0), Point(1.0, 2.0)} == {Point(1.0, 2.0)}


@pytest.mark.parametrize(
    "made", [Cheap(1), replace(Cheap(1), scale=3.0), pickle.loads(pickle.dumps(Cheap(1))), copy.copy(Cheap(1))]
)
def test_nobody_writes_to_it(made: Cheap[int]) -> None:
    """A field can be neither set nor deleted, and there is no room for another."""
    with pytest.raises(AttributeError):
        made.value = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del made.scale
    assert not hasattr(made, "__dict__")


def test_each_has_what_a_factory_makes_for_itself() -> None:
    """A dictionary that two records shared would tie them together."""
    assert Cheap(1).names is not Cheap(1).names


@pytest.mark.parametrize("given", [(), (1, 2.0, {}, 4)])
def test_it_refuses_what_does_not_fit(given: tuple[object, ...]) -> None:
    """Too few or too many values are an error, as usual."""
    with pytest.raises(TypeError):
        Cheap(*given)  # type: ignore[arg-type]


def test_nobody_derives_from_it() -> None:
    """What a record is, its own class says: the next reader need not look further."""
    with pytest.raises(TypeError, match="Nearer: a frozen record is not derived from"):
        type("Nearer", (Point,), {})


def test_what_is_made_from_another_is_checked_as_well() -> None:
    """A record that its own check refuses cannot be had by `replace` either, nor one with a field that is none."""
    with pytest.raises(AssertionError):
        Cheap(1, scale=-1.0)
    with pytest.raises(AssertionError):
        replace(Cheap(1), scale=-1.0)
    with pytest.raises(TypeError):
        replace(Cheap(1), weight=1.0)  # type: ignore[call-arg]


def test_not_even_the_back_door_writes_to_it() -> None:
    """What `object.__setattr__` does to a frozen dataclass it does not do here."""
    made = Point(1.0, 2.0)
    with pytest.raises(TypeError):
        object.__setattr__(made, "x", 3.0)
    assert made == Point(1.0, 2.0)


def test_a_field_that_is_worked_out_is_refused() -> None:
    """A field that nobody gives would be one that stays unset."""

    class Derived:
        x: float
        doubled: float = field(init=False)

    with pytest.raises(AssertionError, match="doubled: not handled"):
        frozen(Derived)
