"""Cells of the fault matrix that fail, each with what is missing. They count as failed; the day one passes it shows."""

from __future__ import annotations

from collections.abc import Iterable

CEILING = "a ceiling below what the battery can bridge breaks the 15 s swing row by itself, without any fault"
BRIDGE = "node reports lag the meter by a second: changing over to them moves the battery by more than the 15 s row"
LOCKED = "kilowatts for watts or a flipped sign: the way to the node reports and FALLBACK breaks the 15 s and 60 s rows"
SLOW = "a 15 s old sample and the node reports take turns, and each change-over moves the battery"
STALLED = "while the loop stands the battery holds an old set-point through the ramp; nothing bounds that"
SCALE = "the scale factor is read once per connection and never compared with the last one"
BUSY = "the envelope's doubt after the battery left outlasts the time to NORMAL"
TWICE = "killed twice within seconds in a ramp the battery is not at zero 30 s later"


def _cells(reason: str, rows: Iterable[str], states: Iterable[str]) -> dict[tuple[str, str], str]:
    return {(row, state): reason for row in rows for state in states}


EVERY = ("cold", "steady", "limit", "ramp")
AT_LIMIT = (
    *(f"S{k}" for k in (1, 2, 3, 4, 10)),
    *(f"G{k}" for k in (1, 2, 3, 4, 7, 8, 10)),
    *(f"Q{k}" for k in range(1, 12)),
    *("M1", "M2", "P1", "P2", "P3", "C1", "C3", "C4", "X2", "X5", "X7", "X1", "X3"),
)

KNOWN: dict[tuple[str, str], str] = {
    **_cells(CEILING, AT_LIMIT, ("limit",)),
    **_cells(BRIDGE, ("S1", "S2", "S4"), ("steady", "ramp")),
    **_cells(BRIDGE, ("M1", "M2"), ("ramp",)),
    **_cells(LOCKED, ("S5", "S6"), EVERY),
    **_cells(SLOW, ("S9",), ("limit", "ramp")),
    **_cells(STALLED, ("C3",), ("ramp",)),
    **_cells(STALLED, ("C4",), ("cold", "steady", "ramp")),
    **_cells(SCALE, ("M7",), EVERY),
    **_cells(BUSY, ("B1",), ("steady", "limit", "ramp")),
    **_cells(TWICE, ("X3",), ("ramp",)),
}
