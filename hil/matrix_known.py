"""Cells of the fault matrix that fail, each with what is missing. They count as failed; the day one passes it shows."""

from __future__ import annotations

from collections.abc import Iterable

CEILING = "a ceiling below what the battery can bridge breaks the 15 s swing row by itself, without any fault"
BRIDGE = "node reports lag the meter by a second: changing over to them moves the battery by more than the 15 s row"
LOCKED = "kilowatts for watts or a flipped sign: the way to the node reports and FALLBACK breaks the 15 s and 60 s rows"
SLOW = "a 15 s old sample and the node reports take turns, and each change-over moves the battery"
STALLED = "while the loop stands the battery holds an old set-point through the ramp; nothing bounds that"
BUSY = "the envelope's doubt after the battery left outlasts the time to NORMAL"
TWICE = "killed twice within seconds in a ramp the battery is not at zero 30 s later"


def _cells(reason: str, rows: Iterable[str], states: Iterable[str]) -> dict[tuple[str, str], str]:
    return {(row, state): reason for row in rows for state in states}


EVERY = ("cold", "steady", "limit", "ramp")

KNOWN: dict[tuple[str, str], str] = {
    **_cells(CEILING, ("Q9", "X7"), ("limit",)),
    **_cells(BRIDGE, ("S1",), ("steady", "limit")),
    **_cells(BRIDGE, ("S2", "S4", "M1", "M2"), ("limit", "ramp")),
    **_cells(LOCKED, ("S5",), ("cold", "limit", "ramp")),
    **_cells(LOCKED, ("S6",), EVERY),
    **_cells(SLOW, ("S9",), ("limit", "ramp")),
    **_cells(STALLED, ("C3",), ("ramp",)),
    **_cells(STALLED, ("C4",), ("steady", "limit", "ramp")),
    **_cells(BUSY, ("B1",), ("steady", "ramp")),
    **_cells(TWICE, ("X3",), ("ramp",)),
}
