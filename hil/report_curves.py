"""The course of a run in one figure, and what the report's other figures share.

Curves are thinned by minimum and maximum per bucket, so that no peak is lost and the file stays a few megabytes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from controller.audit.page import style_figure
from controller.types import CeilingLimit, FloatArray, FloorLimit, Mode
from hil.bench import RunRecord
from hil.signal_plan import grid_signals
from hil.truth_log import Rows

BUCKETS = 3_000  # per curve: two points each, about one per pixel of a wide screen twice over
BLUE, ORANGE, GREEN, RED, GREY, VIOLET = "#1f5fa8", "#c8641b", "#2f7d4f", "#b3261e", "#6b7280", "#6d4aa8"
LIMIT_LINE = {"color": RED, "width": 1.5, "dash": "dash"}
COLOURS = [BLUE, ORANGE, VIOLET, GREEN, GREY]  # of rows: red is the limit
PLOT_BAND = "rgba(31, 95, 168, 0.12)"


def course_figure(record: RunRecord) -> Any:
    """The whole run: grid power in its band, load, battery and what the controller decided, on one time axis."""
    rows = record.rows
    has_battery = record.world.plant.battery is not None
    titles = ["Grid power, MW", "Load, MW", "Battery, MW", "GPU caps, % of full", "Crash margin, MW"]
    count = 5 if len(record.ticks) else 3 if has_battery else 2  # without a controller there are no caps and margins
    figure = make_subplots(
        rows=count,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        row_heights=[0.32, 0.2, 0.18, 0.15, 0.15][:count],
        specs=[[{}], [{}], [{"secondary_y": True}], [{"secondary_y": True}], [{}]][:count],
    )
    _band(figure, rows)
    _curve(figure, rows, "pcc_w", "grid power", BLUE, row=1, envelope=("pcc_min_w", "pcc_max_w"))
    _curve(figure, rows, "ref_w", "target", ORANGE, row=1)
    _curve(figure, rows, "load_w", "load", GREY, row=2)
    _curve(figure, rows, "pcc_w", "grid power", BLUE, row=2)
    if has_battery:
        _curve(figure, rows, "battery_w", "battery, discharge positive", GREEN, row=3)
        _curve(figure, rows, "soc_frac", "state of charge (right)", VIOLET, row=3, scale=100.0, is_secondary=True)
    if count == 5:
        _decisions(figure, rows)
    _targets(figure, record)
    _happenings(figure, record)
    style_figure(figure)
    if has_battery:
        soc = {"title_text": "charge, %", "range": [0.0, 100.0], "tickvals": [0, 25, 50, 75, 100], "showgrid": False}
        figure.update_yaxes(row=3, col=1, secondary_y=True, **soc)
    if count == 5:
        figure.update_yaxes(row=4, col=1, secondary_y=False, range=[0.0, 105.0])
        _mode_axis(figure)
    hang_legends(figure, titles[:count])
    figure.update_xaxes(title_text="Time, s", row=count, col=1)
    figure.update_layout(height=140 + [0, 0, 640, 860, 0, 1160][count], margin={"l": 64, "r": 76, "t": 90, "b": 46})
    return figure


def hang_legends(figure: Any, titles: Sequence[str]) -> None:
    """Each subplot's name and its own legend right above it: one legend for all would make the eye travel."""
    lefts = [axis for axis in figure.select_yaxes() if axis.side != "right"]
    places = {}
    for trace in figure.data:
        axis = figure.layout["yaxis" + (trace.yaxis or "y")[1:]]
        row = next(k for k, left in enumerate(lefts) if left.anchor == axis.anchor)
        if trace.showlegend is None:  # by itself a curve that is alone has no legend, and its plot then no name
            trace.showlegend = True
        trace.legend = places[row] = f"legend{row + 1}" if row else "legend"
    for row, name in sorted(places.items()):
        figure.layout[name] = {
            "title": {"text": f"<b>{titles[row]}</b>  ", "side": "left"},
            "orientation": "h",
            "x": 0.0,
            "y": lefts[row].domain[1] + 0.004,
            "yanchor": "bottom",
            "traceorder": "normal",
        }


def _targets(figure: Any, record: RunRecord) -> None:
    """Levels that power must keep to, while they are in force."""
    site = record.scenario.settings.site
    assert site is not None
    end_s = record.world.duration_s
    levels = [
        (s.from_s, min(s.until_s, end_s), s.target_w, f"load target of {s.issuer}")
        for _, s in grid_signals(record.scenario, site)
        if s.target_w is not None and s.from_s < end_s
    ]
    levels += [
        (max(row.from_s, 0.0), min(row.until_s, end_s), _level_w(row), str(row.id))
        for row in site.contract.limits
        if isinstance(row, CeilingLimit | FloorLimit)
    ]
    for from_s, until_s, level_w, label in levels:
        level = [level_w / 1e6, level_w / 1e6]
        line = go.Scatter(x=[from_s, until_s], y=level, name=label, mode="lines", line=LIMIT_LINE)
        figure.add_trace(line, row=1, col=1)


def _level_w(row: CeilingLimit | FloorLimit) -> float:
    return row.max_w if isinstance(row, CeilingLimit) else row.min_w


def _happenings(figure: Any, record: RunRecord) -> None:
    """A dotted line through every plot for each event, its name at the top of the first."""
    for h in record.world.diary:
        if h.kind == "answer":
            continue  # a moment after its signal
        figure.add_vline(x=h.t_s, line={"color": GREY, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=h.t_s,
            y=0.0,
            yref="y domain",
            xanchor="right",
            yanchor="bottom",
            textangle=-90,
            text=html.escape(h.id),
            showarrow=False,
            font={"size": 10, "color": GREY},
            row=1,
            col=1,
        )


def _decisions(figure: Any, rows: Rows) -> None:
    """What the controller did beside moving the target: caps, mode, margins."""
    _curve(figure, rows, "cap_frac", "mean cap, clock or power limit", ORANGE, row=4, scale=100.0)
    _curve(figure, rows, "mode", "mode (right)", GREY, row=4, scale=1.0, is_secondary=True)
    _curve(figure, rows, "margin_w", "least room of the crash-safe set", VIOLET, row=5)


def _mode_axis(figure: Any) -> None:
    figure.update_yaxes(
        tickvals=[int(m) for m in Mode],
        ticktext=[m.name.lower() for m in Mode],
        range=[-0.2, len(Mode) - 0.8],
        showgrid=False,
        row=4,
        col=1,
        secondary_y=True,
    )


def _band(figure: Any, rows: Rows) -> None:
    t_s = rows.columns["t_s"]
    low, high = rows.columns["low_w"] / 1e6, rows.columns["high_w"] / 1e6
    if not np.isfinite(low).any():
        return
    at, low_thin = thin(t_s, low)
    at_high, high_thin = thin(t_s, high)
    line = {"width": 0}
    figure.add_trace(go.Scatter(x=at, y=finite(low_thin), line=line, showlegend=False, hoverinfo="skip"), row=1, col=1)
    figure.add_trace(
        go.Scatter(
            x=at_high, y=finite(high_thin), line=line, fill="tonexty", fillcolor=PLOT_BAND, name="admissible band"
        ),
        row=1,
        col=1,
    )


def _curve(
    figure: Any,
    rows: Rows,
    name: str,
    label: str,
    colour: str,
    *,
    row: int,
    scale: float = 1e-6,
    envelope: tuple[str, str] | None = None,
    is_secondary: bool = False,
) -> None:
    t_s, values = rows.columns["t_s"], rows.columns[name]
    if not np.isfinite(values).any():
        return
    x, y = thin(t_s, values)
    if envelope is not None:
        x, y = _enveloped(t_s, rows.columns[envelope[0]], rows.columns[envelope[1]])
    trace = go.Scattergl(x=x, y=finite(y * scale), name=label, line={"color": colour, "width": 1.2})
    if is_secondary:
        figure.add_trace(trace, row=row, col=1, secondary_y=True)
    else:
        figure.add_trace(trace, row=row, col=1)


def thin(t_s: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Minimum and maximum of each bucket, in the order in which they came."""
    return _enveloped(t_s, values, values)


def _enveloped(t_s: FloatArray, low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    if t_s.size <= 2 * BUCKETS:
        return (t_s, low) if low is high else (np.repeat(t_s, 2), np.column_stack((low, high)).ravel())
    per = -(-t_s.size // BUCKETS)
    pad = per * -(-t_s.size // per) - t_s.size
    lows = np.pad(low, (0, pad), mode="edge").reshape(-1, per)
    highs = np.pad(high, (0, pad), mode="edge").reshape(-1, per)
    times = np.pad(t_s, (0, pad), mode="edge").reshape(-1, per)
    first = np.where(np.isnan(lows), np.inf, lows).argmin(axis=1)
    last = np.where(np.isnan(highs), -np.inf, highs).argmax(axis=1)
    bucket = np.arange(times.shape[0])
    x = np.column_stack((times[bucket, np.minimum(first, last)], times[bucket, np.maximum(first, last)]))
    low_first = first <= last
    lowest, highest = lows[bucket, first], highs[bucket, last]
    y = np.column_stack((np.where(low_first, lowest, highest), np.where(low_first, highest, lowest)))
    return x.ravel(), y.ravel()


def finite(values: FloatArray) -> list[float | None]:
    """JSON has no infinity: an unbounded band is a gap in the curve."""
    return [round(v, 5) if abs(v) < 1e9 else None for v in values.tolist()]
