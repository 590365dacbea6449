"""How much of each limit's window a run used, over time: for every ramp and swing row its largest change so far.

Drawn from the rows of `pcc.csv` (50 ms), after the trailing mean the row is judged on; the verdict itself comes from
the referee, which sees every sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from controller.settings import SiteSettings
from controller.types import BoolArray, Direction, FloatArray, GridSignal, RampLimit, SwingLimit, frozen
from hil.truth_log import ROW_S, Rows

ROWS_MAX = 400_000  # over five hours; longer runs are judged, not drawn


@frozen
class WindowUse:
    """One row: the largest change within the window that ends at each instant, and what is allowed."""

    label: str
    t_s: FloatArray
    change_w: FloatArray
    max_w: float


def window_uses(rows: Rows, site: SiteSettings, signals: Sequence[GridSignal]) -> tuple[WindowUse, ...]:
    """Every unfiltered ramp and swing row of the contract over the run, and of signals while they are in force."""
    t_s = rows.columns["t_s"]
    if not 0 < t_s.size <= ROWS_MAX:
        return ()
    everywhere = np.ones(t_s.size, dtype=np.bool_)
    uses = [_use(rows, row, str(row.id), inside=everywhere) for row in _window_rows(site.contract.limits)]
    for signal in signals:
        inside = (t_s >= signal.from_s) & (t_s <= signal.until_s)
        uses += [
            _use(rows, row, f"{signal.issuer}: {row.id.rpartition('.')[2]}", inside=inside)
            for row in _window_rows(signal.limits)
        ]
    return tuple(use for use in uses if use.t_s.size)


def _window_rows(limits: Sequence[object]) -> list[RampLimit | SwingLimit]:
    return [
        row for row in limits if isinstance(row, RampLimit) or (isinstance(row, SwingLimit) and row.band_hz is None)
    ]


def _use(rows: Rows, row: RampLimit | SwingLimit, label: str, *, inside: BoolArray) -> WindowUse:
    mean = max(1, round(row.mean_s / ROW_S))
    # Until a mean has its length there is none to judge, as for the referee: the raw first samples are none.
    judged = inside & (np.arange(inside.size) >= mean - 1)
    t_s, power_w = rows.columns["t_s"][judged], _trailing_mean(rows.columns["pcc_w"], mean)[judged]
    if not t_s.size:
        return WindowUse(label, t_s, power_w, row.max_w)
    width = max(2, round(row.window_s / ROW_S) + 1)
    behind = (width - 1) // 2  # the filter's window then ends at the sample
    low_w = minimum_filter1d(power_w, width, mode="nearest", origin=behind)
    high_w = maximum_filter1d(power_w, width, mode="nearest", origin=behind)
    direction = row.direction if isinstance(row, RampLimit) else None
    up_w, down_w = power_w - low_w, high_w - power_w
    if direction is Direction.UP:
        change_w = up_w
    elif direction is Direction.DOWN:
        change_w = down_w
    else:
        change_w = np.maximum(up_w, down_w) if direction is Direction.BOTH else high_w - low_w
    return WindowUse(label, t_s, change_w, row.max_w)


def _trailing_mean(values: FloatArray, width: int) -> FloatArray:
    """Mean of the last `width` samples; of those there are, at the beginning."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    last = np.arange(1, values.size + 1)
    first = np.maximum(last - width, 0)
    mean: FloatArray = (total[last] - total[first]) / (last - first)
    return mean
