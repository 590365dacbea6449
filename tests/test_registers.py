"""Registers that hold no value: whatever they hold instead, it does not become one."""

from __future__ import annotations

import math
import struct

import pytest

from drivers.profile import WordOrder
from drivers.registers import FORMATS, SUNSPEC_ABSENT, Codec, Field, Term, swap_words


def value(kind: str, *, data: bytes, factor: float = 1.0, scale_at: int | None = None) -> float | None:
    absent = frozenset({SUNSPEC_ABSENT[kind]}) if kind in SUNSPEC_ABSENT else frozenset[int]()
    return Field("x", (Term(Codec(kind, WordOrder.BIG), 0, scale_at),), factor, absent).value(data)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_no_value(number: float) -> None:
    assert value("float64", data=struct.pack(">d", number)) is None
    assert value("float32", data=struct.pack(">f", number)) is None


def test_a_double_that_its_scale_carries_over_the_top_is_no_infinity() -> None:
    assert value("float64", data=struct.pack(">d", 1.7e308), factor=1e3) is None


@pytest.mark.parametrize("kind", sorted(SUNSPEC_ABSENT))
def test_sentinels_of_sunspec_are_no_values(kind: str) -> None:
    codec = Codec(kind, WordOrder.BIG)
    assert value(kind, data=codec.pack(SUNSPEC_ABSENT[kind])) is None
    assert value(kind, data=codec.pack(1)) == 1.0
    assert Codec(kind, WordOrder.LITTLE).unpack(swap_words(codec.pack(1)), 0) == 1 and FORMATS[kind]


@pytest.mark.parametrize(("factor", "expected"), [(10, 5e10), (-10, 5e-10), (11, None), (-11, None), (-0x8000, None)])
def test_scale_factors_run_from_minus_10_to_10(factor: int, expected: float | None) -> None:
    found = value("int16", data=struct.pack(">hh", 5, factor), scale_at=2)
    assert found == (expected if expected is None else pytest.approx(expected))
