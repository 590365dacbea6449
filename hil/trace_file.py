"""Reads a recorded power series from a CSV: which column is power, its unit, empty cells, and what is wrong with it.

The rules are the ones of every Rampart command that takes a CSV: `#` lines are skipped, the first column is seconds or
ISO time, power is `pcc_w` or else the sum of all columns named with a unit. Bad input is one line that says where.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from controller.errors import BadInput
from controller.types import FloatArray

UNITS = {"_w": 1.0, "_kw": 1e3, "_kilowatt": 1e3, "_megawatt": 1e6}
WHOLE_SITE = "pcc_w"
ROWS_MAX = 5_000_000  # more than a day at 50 Hz; a plant replays minutes to hours


@dataclass(frozen=True, slots=True)
class Trace:
    """A power series: strictly rising times, finite watts."""

    name: str
    t_s: FloatArray
    power_w: FloatArray
    columns: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        return float(self.t_s[-1] - self.t_s[0])


def read_trace(path: Path) -> Trace:
    """The power series in `path`; BadInput names file, line and value."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [(n, line) for n, line in enumerate(file, start=1) if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not UTF-8 text; a trace is a CSV file") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    if len(lines) < 3:
        raise BadInput(f"{path}: a header and at least two rows are needed, found {len(lines)} lines")
    if len(lines) > ROWS_MAX:
        raise BadInput(f"{path}: {len(lines)} rows; at most {ROWS_MAX}")
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))]
    picked = _power_columns(path, header)
    times, rows = _parse(path, lines[1:], picked, width=len(header))
    power_w = _filled(path, rows) @ np.array([factor for _, factor in picked])
    return Trace(
        name=path.name,
        t_s=times - times[0],
        power_w=power_w,
        columns=tuple(header[index] for index, _ in picked),
    )


def _power_columns(path: Path, header: list[str]) -> list[tuple[int, float]]:
    """Index and factor of each column that is summed."""
    if len(header) < 2:
        raise BadInput(f"{path}: header: {','.join(header)!r}: expected a time column and a power column")
    ambiguous = [name for name in header if name.lower().endswith("_mw")]
    if ambiguous:
        raise BadInput(f"{path}: column {ambiguous[0]!r}: milliwatt or megawatt? Name it _w, _kilowatt or _megawatt")
    if WHOLE_SITE in header[1:]:
        return [(header.index(WHOLE_SITE), 1.0)]
    picked = [
        (index, factor)
        for index, name in enumerate(header)
        for suffix, factor in UNITS.items()
        if index > 0 and name.lower().endswith(suffix)
    ]
    if not picked:
        raise BadInput(f"{path}: no power column: expected pcc_w or names ending in {', '.join(UNITS)}")
    return picked


def _parse(
    path: Path, lines: list[tuple[int, str]], picked: list[tuple[int, float]], *, width: int
) -> tuple[FloatArray, FloatArray]:
    times = np.empty(len(lines))
    rows = np.empty((len(lines), len(picked)))
    for row, (number, line) in enumerate(lines):
        cells = next(csv.reader([line]))
        if len(cells) != width:
            raise BadInput(f"{path}: line {number}: {len(cells)} cells where the header has {width}")
        times[row] = _time_s(path, number, cells[0])
        if row and times[row] <= times[row - 1]:
            raise BadInput(f"{path}: line {number}: time {cells[0].strip()!r}: not after the row before")
        for column, (index, _) in enumerate(picked):
            rows[row, column] = _watts(path, number, cells[index])
    return times, rows


def _time_s(path: Path, number: int, cell: str) -> float:
    text = cell.strip()
    try:
        value = float(text)
    except ValueError:
        try:
            value = datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise BadInput(f"{path}: line {number}: time {text!r}: expected seconds or ISO time") from None
    if not math.isfinite(value):
        raise BadInput(f"{path}: line {number}: time {text!r}: not finite")
    return value


def _watts(path: Path, number: int, cell: str) -> float:
    """The number in `cell`; NaN stands for an empty one until it is filled."""
    text = cell.strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{path}: line {number}: power {text!r}: not a number") from None
    if not math.isfinite(value):
        raise BadInput(f"{path}: line {number}: power {text!r}: not finite")
    return value


def _filled(path: Path, rows: FloatArray) -> FloatArray:
    """Empty cells hold the column's previous value; before its first value, the first value."""
    filled = rows.copy()
    for column in filled.T:
        known = np.flatnonzero(~np.isnan(column))
        if known.size == 0:
            raise BadInput(f"{path}: a power column without a single value")
        last = np.maximum.accumulate(np.where(np.isnan(column), -1, np.arange(column.size)))
        column[:] = column[np.where(last < 0, known[0], last)]
    return filled
