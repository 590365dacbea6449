"""What a run leaves behind of plant truth: `pcc.csv`, the moments around unannounced events, curves to plot.

Listeners of the plant: they take each block once and keep a bounded part of it. What the controller thought at those
instants comes from the tick log.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TextIO

import numpy as np

from controller.types import FloatArray, frozen
from hil.plant.site import TRUTH, TruthBlock

ROW_S = 0.05  # of pcc.csv
CSV_COLUMNS = (
    "t_s",
    "pcc_w",
    "pcc_min_w",
    "pcc_max_w",
    "load_w",
    "battery_w",
    "soc_frac",
    "ref_w",
    "low_w",
    "high_w",
    "margin_w",
    "cap_frac",
    "mode",
    "frequency_hz",
    "ballast_w",
)
BEFORE_S, AFTER_S = 2.0, 60.0  # of truth kept around an event
HISTORY_S = 14_400.0  # of one-row-per-50-ms history kept for plots; older rows are in the CSV only


class TickLog:
    """What the controller decided at each tick, in columns; the newest value holds until the next tick."""

    COLUMNS = ("t_s", "ref_w", "low_w", "high_w", "margin_w", "cap_frac", "mode")

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in self.COLUMNS}

    def add(
        self,
        *,
        t_s: float,
        ref_w: float,
        low_w: float,
        high_w: float,
        margin_w: float,
        cap_frac: float,
        mode: int,
    ) -> None:
        c = self._columns
        c["t_s"].append(t_s)
        c["ref_w"].append(ref_w)
        c["low_w"].append(low_w)
        c["high_w"].append(high_w)
        c["margin_w"].append(margin_w)
        c["cap_frac"].append(cap_frac)
        c["mode"].append(float(mode))

    def __len__(self) -> int:
        return len(self._columns["t_s"])

    def column(self, name: str) -> FloatArray:
        return np.array(self._columns[name], dtype=np.float64)

    def held_at(self, t_s: FloatArray, names: Sequence[str]) -> list[FloatArray]:
        """Each column at each instant; NaN before the first tick."""
        if not len(self):
            return [np.full(t_s.size, np.nan) for _ in names]
        # Only the part that can matter: a block is seconds, a run may be a day.
        times = self._columns["t_s"]
        view = np.frombuffer(times, dtype=np.float64)
        index = np.searchsorted(view, t_s + 1e-9, side="right") - 1
        first = max(int(index.min()), 0)
        result = []
        for name in names:
            values = np.array(self._columns[name][first : int(index.max()) + 1] or [np.nan])
            taken = values[np.clip(index - first, 0, values.size - 1)]
            result.append(np.where(index >= 0, taken, np.nan))
        del view  # an array that is viewed cannot grow
        return result


@frozen
class Rows:
    """Truth and decisions in rows of ROW_S; columns as in CSV_COLUMNS."""

    columns: dict[str, FloatArray]


class PccCsv:
    """Writes `pcc.csv` as truth comes, and keeps the last hours of it for the plots."""

    def __init__(self, file: TextIO | None, ticks: TickLog) -> None:
        self._file, self._ticks = file, ticks
        self._carry: TruthBlock | None = None
        self._kept: list[FloatArray] = []
        self._kept_rows = 0
        if file is not None:
            file.write("# plant truth; pcc_w is the mean of the interval that begins at t_s\n")
            file.write(",".join(CSV_COLUMNS) + "\n")

    def __call__(self, block: TruthBlock) -> None:
        whole = _joined(self._carry, block)
        per_row = round(ROW_S / whole.dt_s)
        rows = whole.pcc_w.size // per_row
        self._carry = _part(whole, rows * per_row, whole.pcc_w.size)
        if rows:
            self._take(_part(whole, 0, rows * per_row), per_row)

    def close(self) -> None:
        """Write the last, shorter row."""
        if self._carry is not None and self._carry.pcc_w.size:
            self._take(self._carry, self._carry.pcc_w.size)
            self._carry = None

    def rows(self) -> Rows:
        """The kept rows."""
        table = np.concatenate(self._kept) if self._kept else np.empty((0, len(CSV_COLUMNS)))
        return Rows({name: table[:, k] for k, name in enumerate(CSV_COLUMNS)})

    def _take(self, block: TruthBlock, per_row: int) -> None:
        def shaped(values: FloatArray) -> FloatArray:
            return values.reshape(-1, per_row)

        pcc = shaped(block.pcc_w)
        t_s = np.round(block.t0_s + np.arange(pcc.shape[0]) * per_row * block.dt_s, 6)
        ref, low, high, margin, cap, mode = self._ticks.held_at(
            t_s, ("ref_w", "low_w", "high_w", "margin_w", "cap_frac", "mode")
        )
        table = np.column_stack(
            (
                t_s,
                pcc.mean(axis=1),
                pcc.min(axis=1),
                pcc.max(axis=1),
                shaped(block.load_w).mean(axis=1),
                shaped(block.battery_w).mean(axis=1),
                shaped(block.soc_frac)[:, -1],
                ref,
                low,
                high,
                margin,
                cap,
                mode,
                shaped(block.frequency_hz).mean(axis=1),
                shaped(block.ballast_w).mean(axis=1),
            )
        )
        self._keep(table)
        if self._file is not None:
            self._file.write("".join(map(_line, table.tolist())))

    def _keep(self, table: FloatArray) -> None:
        self._kept.append(table)
        self._kept_rows += table.shape[0]
        while self._kept_rows - self._kept[0].shape[0] > HISTORY_S / ROW_S:
            self._kept_rows -= self._kept.pop(0).shape[0]


class Moments:
    """Truth at full rate around the instants given before the run."""

    def __init__(self, at_s: Sequence[float]) -> None:
        self._at_s = sorted(set(at_s))
        self._parts: dict[float, list[tuple[FloatArray, FloatArray]]] = {t: [] for t in self._at_s}

    def __call__(self, block: TruthBlock) -> None:
        end_s = block.t0_s + block.pcc_w.size * block.dt_s
        for at_s in self._at_s:
            if at_s - BEFORE_S >= end_s or at_s + AFTER_S <= block.t0_s:
                continue
            t_s: FloatArray = block.t0_s + np.arange(block.pcc_w.size, dtype=np.float64) * block.dt_s
            inside = (t_s >= at_s - BEFORE_S) & (t_s <= at_s + AFTER_S)
            self._parts[at_s].append((t_s[inside], block.pcc_w[inside]))

    def around(self, at_s: float) -> tuple[FloatArray, FloatArray]:
        """Times and power kept around an instant, or around the nearest declared one before it."""
        parts = self._parts.get(at_s) or self._parts.get(self._declared(at_s), [])
        if not parts:
            return np.empty(0), np.empty(0)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _declared(self, at_s: float) -> float:
        """The last instant asked for that is not after `at_s`: an event may wait for its moment."""
        return max((t for t in self._at_s if t <= at_s + 1e-9), default=at_s)


def _line(row: list[float]) -> str:
    t_s, pcc, low, high, load, battery, soc, ref, band_low, band_high, margin, cap, mode, frequency, ballast = row
    # NaN is an empty cell: before the first decision there is nothing to say.
    return (
        f"{t_s:.3f},{pcc:.1f},{low:.1f},{high:.1f},{load:.1f},{battery:.1f},{soc:.6f},{_w(ref)},{_w(band_low)},"
        f"{_w(band_high)},{_w(margin)},{'' if cap != cap else f'{cap:.4f}'},{'' if mode != mode else int(mode)},"
        f"{frequency:.4f},{ballast:.1f}\n"
    )


def _w(value: float) -> str:
    return "" if value != value or value in (np.inf, -np.inf) else f"{value:.1f}"


def _joined(before: TruthBlock | None, block: TruthBlock) -> TruthBlock:
    if before is None or not before.pcc_w.size:
        return block
    return TruthBlock(
        before.t0_s,
        block.dt_s,
        *(np.concatenate((getattr(before, name), getattr(block, name))) for name in TRUTH),
    )


def _part(block: TruthBlock, first: int, last: int) -> TruthBlock:
    return TruthBlock(
        block.t0_s + first * block.dt_s,
        block.dt_s,
        *(getattr(block, name)[first:last] for name in TRUTH),
    )
