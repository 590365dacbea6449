"""Reads a power record (CSV) in blocks: which column is power, in what unit, at what times; every fault in one line.

Lines that begin with `#` are skipped; the first other line is the header. The first column is time, in seconds or ISO
8601. An empty cell holds its column's previous value, and before the first value, the first. Blocks that are plain
numbers are parsed fast; any other block is parsed line by line, which also finds the line that is wrong.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from controller.errors import BadInput
from controller.files import open_regular
from controller.types import FloatArray, frozen

BLOCK_BYTES = 1 << 24
HEAD_BYTES = 1 << 16  # a header longer than this is not one
SAME_TIME_S = 1e-6  # samples that share a time (a step) are set this far apart
POWER_W_MAX = 1e15  # no site is near it, and sums of it are numbers still
UNITS = {"W": 1.0, "kW": 1e3, "MW": 1e6}
SUFFIXES = {"_w": 1.0, "_kw": 1e3, "_kilowatt": 1e3, "_megawatt": 1e6}
COMMENT_LINE = re.compile(r"(?m)^[ \t]*#.*(?:\n|\Z)")
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


@frozen
class RecordBlock:
    """Some consecutive samples; voltage and frequency where the file has columns `voltage_pu`, `frequency_hz`."""

    t_s: FloatArray
    power_w: FloatArray
    voltage_pu: FloatArray | None
    frequency_hz: FloatArray | None
    done_frac: float


@dataclass(slots=True)
class RecordFile:
    """An opened record: what of it is read, and how."""

    path: Path
    power_columns: tuple[str, ...]
    factors: tuple[float, ...]  # watts per unit, scale included
    delimiter: str
    start_utc: datetime | None  # of the first sample, where times are ISO; times then count from it
    size_bytes: int
    _width: int
    _usecols: tuple[int, ...]
    _data_offset: int
    _first_line: int
    _has_voltage: bool
    _has_frequency: bool
    _first_values: FloatArray
    _last: FloatArray = field(default_factory=lambda: np.empty(0))
    _last_t: float = -math.inf
    _last_told_t: float = -math.inf  # as written, before equal times are set apart

    def blocks(self) -> Iterator[RecordBlock]:
        """All samples in order; BadInput at the first line that is wrong."""
        self._last, self._last_t, self._last_told_t = self._first_values.copy(), -math.inf, -math.inf
        found = 0
        for text, line_number, done in self._texts():
            table = self._parse(text, line_number)
            if not table.shape[0]:
                continue
            found += table.shape[0]
            yield self._block(table, text, line_number, done)
        if found < 2:
            told = "one sample" if found else "no samples"
            raise BadInput(f"{self.path}: {told} below the header; at least two are needed")

    def highest_w(self) -> float:
        """The record's highest power: one pass over the file."""
        return max(float(block.power_w.max()) for block in self.blocks())

    def _texts(self) -> Iterator[tuple[str, int, float]]:
        """Whole lines, in blocks, with the number of their first line and the share of the file read."""
        line_number = self._first_line
        with self.path.open("rb") as source:
            source.seek(self._data_offset)
            rest = b""
            while True:
                chunk = source.read(BLOCK_BYTES)
                data = rest + chunk
                cut = data.rfind(b"\n") + 1 if chunk else len(data)
                rest, data = data[cut:], data[:cut]
                if data.strip():
                    yield _decode(data, self.path, line_number), line_number, source.tell() / max(self.size_bytes, 1)
                line_number += data.count(b"\n")
                if not chunk:
                    return
                if len(rest) > 4 * BLOCK_BYTES:
                    raise BadInput(f"{self.path}: line {line_number}: longer than {4 * BLOCK_BYTES} bytes; not a CSV")

    def _parse(self, text: str, line_number: int) -> FloatArray:
        if self.start_utc is None and '"' not in text and (plain := self._plain(text)) is not None:
            try:
                table = np.loadtxt(
                    io.StringIO(plain), delimiter=self.delimiter, usecols=self._usecols, comments=None, ndmin=2
                )
            except ValueError:
                return self._parse_lines(text, line_number)
            if np.isfinite(table).all():
                if table.size:
                    self._last = table[-1]
                return np.asarray(table, dtype=np.float64)
        return self._parse_lines(text, line_number)

    def _plain(self, text: str) -> str | None:
        """The lines that hold samples, where each has as many cells as the header; None where one may not."""
        text = (COMMENT_LINE.sub("", text) if "#" in text else text).rstrip()
        # `85,300` of thousands is a cell too many; it would be read as 85.
        is_whole = "#" not in text and _has_in_each_line(text, self.delimiter, self._width - 1)
        return text if is_whole else None

    def _parse_lines(self, text: str, line_number: int) -> FloatArray:
        rows: list[list[float]] = []
        last = self._last.tolist()
        for number, cells in _rows(text, self.delimiter, line_number, self.path):
            if len(cells) != self._width:
                raise BadInput(f"{self.path}: line {number}: {len(cells)} cells, the header has {self._width}")
            last = [self._cell(cells, i, last[k], number) for k, i in enumerate(self._usecols)]
            rows.append(last)
        self._last = np.array(last)
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self._usecols))

    def _cell(self, cells: list[str], index: int, previous: float, number: int) -> float:
        cell = cells[index].strip()
        if index == 0:
            return _seconds(cell, self.start_utc, self.path, number)
        if not cell:
            return previous
        if not NUMBER.match(cell) or math.isinf(value := float(cell)):
            raise BadInput(f"{self.path}: line {number}: {cell[:60]!r}: a finite number is needed (or an empty cell)")
        return value

    def _block(self, table: FloatArray, text: str, line_number: int, done: float) -> RecordBlock:
        t = self._rising(table[:, 0], text, line_number)
        count = len(self.factors)
        with np.errstate(over="ignore", invalid="ignore"):
            power = table[:, 1 : 1 + count] @ np.array(self.factors)
        if not (np.abs(power) <= POWER_W_MAX).all():  # written so that no number counts, too
            raise BadInput(f"{self.path}: a power beyond {POWER_W_MAX:g} W; look at the column, --scale and --unit")
        extra = [table[:, k] for k in range(1 + count, table.shape[1])]
        voltage = extra.pop(0) if self._has_voltage else None
        frequency = extra.pop(0) if self._has_frequency else None
        return RecordBlock(t, power, voltage, frequency, done)

    def _rising(self, t: FloatArray, text: str, line_number: int) -> FloatArray:
        """Times that strictly increase: equal ones are set a hair apart, falling ones refused with their line."""
        steps = np.diff(t, prepend=self._last_told_t)
        self._last_told_t = float(t[-1])
        if (steps < 0.0).any():
            self._refuse_time(int(np.argmax(steps < 0.0)), text, line_number, "time runs backwards")
        if t[0] <= self._last_t or (t.size > 1 and (steps[1:] == 0.0).any()):
            opens = np.concatenate(([True], steps[1:] > 0.0))
            run = np.arange(t.size) - np.flatnonzero(opens)[np.cumsum(opens) - 1]
            t = t + SAME_TIME_S * run
            if t[0] <= self._last_t:
                same = run == np.arange(t.size)
                t = np.where(same, self._last_t + SAME_TIME_S * (1 + np.arange(t.size)), t)
            stuck = np.diff(t, prepend=self._last_t) <= 0.0
            if stuck.any():
                self._refuse_time(int(np.argmax(stuck)), text, line_number, "too many samples share one time")
        self._last_t = float(t[-1])
        return t

    def _refuse_time(self, index: int, text: str, line_number: int, what: str) -> None:
        numbers = [number for number, _ in _rows(text, self.delimiter, line_number, self.path)]
        cells = [cells for _, cells in _rows(text, self.delimiter, line_number, self.path)]
        raise BadInput(f"{self.path}: line {numbers[index]}: {cells[index][0].strip()!r}: {what}")


def _has_in_each_line(text: str, delimiter: str, count: int) -> bool:
    """Whether every line holds exactly `count` delimiters: between two ends of lines stand no more and no fewer."""
    raw = np.frombuffer(text.encode() + b"\n", dtype=np.uint8)
    is_end = raw == ord("\n")
    marks = is_end[is_end | (raw == ord(delimiter))]  # in order, True where a line ends
    if marks.size % (count + 1):
        return False
    of_line = marks.reshape(-1, count + 1)
    return bool(of_line[:, -1].all()) and not of_line[:, :-1].any()


def open_record(path: Path, *, column: str | None = None, unit: str | None = None, scale: float = 1.0) -> RecordFile:
    """Look at a record's header and first values; BadInput says what is wrong and what there is."""
    if unit is not None and unit not in UNITS:
        raise BadInput(f"--unit {unit}: must be one of {', '.join(UNITS)}")
    if not (math.isfinite(scale) and scale > 0.0):
        raise BadInput(f"--scale {scale:g}: must be a finite number above zero")
    head, size = _head(path)
    header_line, data_offset, first_line = _header(head, path)
    delimiter = max(",;\t", key=header_line.count)
    names = _names(header_line, delimiter, path)
    _check_header(names, path)
    chosen = _power_columns(names, column=column, unit=unit, path=path)
    factors = tuple(scale * (UNITS[unit] if unit is not None else _suffix_factor(names[i])) for i in chosen)
    lower = [name.lower() for name in names]
    extras = [lower.index(name) for name in ("voltage_pu", "frequency_hz") if name in lower[1:]]
    usecols = (0, *chosen, *extras)
    start_utc, first_values = _first_values(path, data_offset, first_line, delimiter, usecols, names)
    return RecordFile(
        path=path,
        power_columns=tuple(names[i] for i in chosen),
        factors=factors,
        delimiter=delimiter,
        start_utc=start_utc,
        size_bytes=size,
        _width=len(names),
        _usecols=usecols,
        _data_offset=data_offset,
        _first_line=first_line,
        _has_voltage="voltage_pu" in lower[1:],
        _has_frequency="frequency_hz" in lower[1:],
        _first_values=first_values,
    )


def _names(header_line: str, delimiter: str, path: Path) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter))]
    except csv.Error as error:
        raise BadInput(f"{path}: its header line is no CSV: {error}") from None


def _head(path: Path) -> tuple[bytes, int]:
    try:
        with open_regular(path) as source:
            return source.read(HEAD_BYTES), path.stat().st_size
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None


def _header(head: bytes, path: Path) -> tuple[str, int, int]:
    """The header line, the offset behind it, and the number of the line that follows."""
    if not head.strip():
        raise BadInput(f"{path}: empty; a CSV with a header line is needed")
    offset, number = (3 if head.startswith(b"\xef\xbb\xbf") else 0), 1
    while offset < len(head):
        end = head.find(b"\n", offset)
        end = len(head) if end < 0 else end
        line = _decode(head[offset:end], path, number).strip("\r")
        offset, number = end + 1, number + 1
        if line.strip() and not line.lstrip().startswith("#"):
            return line, offset, number
    raise BadInput(f"{path}: no header line in its first {HEAD_BYTES} bytes; a CSV with a header line is needed")


def _check_header(names: list[str], path: Path) -> None:
    if len(names) < 2:
        raise BadInput(f"{path}: header {names[0][:60]!r}: not a CSV of two columns or more (time, then power)")
    if all(NUMBER.match(name) for name in names):
        raise BadInput(f"{path}: the first line is all numbers; a header line with column names is needed")


def _power_columns(names: list[str], *, column: str | None, unit: str | None, path: Path) -> list[int]:
    if column is not None:
        if column not in names[1:]:
            raise BadInput(f"{path}: no column {column!r}; there are: {', '.join(names[1:])}")
        chosen = [names.index(column, 1)]
    elif "pcc_w" in names[1:]:
        chosen = [names.index("pcc_w", 1)]
    else:
        suffixes = (*SUFFIXES, "_mw")
        chosen = [i for i, name in enumerate(names) if i and name.lower().endswith(suffixes)]
    for i in chosen:
        if names[i].lower().endswith("_mw") and unit is None:
            raise BadInput(
                f"{path}: column {names[i]!r}: milli- or megawatts? Say so: --column {names[i]} --unit MW (or kW, W)"
            )
    if not chosen:
        raise BadInput(
            f"{path}: no power column (pcc_w, or names ending {', '.join(SUFFIXES)}); "
            f"name one with --column: {', '.join(names[1:])}"
        )
    return chosen


def _suffix_factor(name: str) -> float:
    return next((factor for suffix, factor in SUFFIXES.items() if name.lower().endswith(suffix)), 1.0)


def _first_values(
    path: Path, data_offset: int, first_line: int, delimiter: str, usecols: tuple[int, ...], names: list[str]
) -> tuple[datetime | None, FloatArray]:
    """The record's start where times are ISO, and every column's first value, for the empty cells before it."""
    values = np.full(len(usecols), np.nan)
    other: dict[int, str] = {}  # what stands in a column where no number was seen yet
    start_utc: datetime | None = None
    is_first = True
    with path.open("r", encoding="utf-8", errors="replace", newline="") as source:
        source.seek(data_offset)
        for number, line in enumerate(source, first_line):
            for _, cells in _rows(line, delimiter, number, path):
                if is_first:
                    start_utc = _start(cells[0].strip(), path, number)
                    is_first, values[0] = False, 0.0
                for k, i in enumerate(usecols):
                    cell = cells[i].strip() if i < len(cells) else ""
                    if k and np.isnan(values[k]) and NUMBER.match(cell):
                        values[k] = float(cell)
                    elif cell:
                        other.setdefault(k, cell)
            if not np.isnan(values).any():
                return start_utc, values
    if is_first:
        raise BadInput(f"{path}: no samples below the header")
    k = int(np.isnan(values).argmax())
    found = other.get(k, "")[:60]
    comma = "; a decimal point is needed" if NUMBER.match(found.replace(",", ".")) else ""
    there = f", but {found!r}{comma}" if found else ""
    raise BadInput(f"{path}: column {names[usecols[k]]!r}: no number in it{there}")


def _start(cell: str, path: Path, number: int) -> datetime | None:
    if NUMBER.match(cell):
        return None
    return _iso(cell, path, number)


def _iso(cell: str, path: Path, number: int) -> datetime:
    try:
        at = datetime.fromisoformat(cell)
    except ValueError:
        raise BadInput(f"{path}: line {number}: {cell[:60]!r}: a time in seconds or ISO 8601 is needed") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _seconds(cell: str, start_utc: datetime | None, path: Path, number: int) -> float:
    if start_utc is not None:
        return (_iso(cell, path, number) - start_utc).total_seconds()
    if not NUMBER.match(cell) or math.isinf(value := float(cell)):
        raise BadInput(f"{path}: line {number}: {cell[:60]!r}: a time in seconds is needed, as in the first line")
    return value


def _rows(text: str, delimiter: str, line_number: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells of every line that is neither blank nor a comment, with its number."""
    for number, line in enumerate(text.split("\n"), line_number):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            yield number, next(csv.reader([line], delimiter=delimiter))
        except csv.Error as error:
            raise BadInput(f"{path}: line {number}: not CSV: {error}") from None


def _decode(data: bytes, path: Path, line_number: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line_number + data[: error.start].count(b"\n")
        raise BadInput(f"{path}: line {line}: not UTF-8 text; a CSV is needed") from None
    if "\0" in text:
        line = line_number + text[: text.index("\0")].count("\n")
        raise BadInput(f"{path}: line {line}: binary data; a CSV is needed")
    return text
