"""The figures of a run's report: its course, the change within each limit's window, and each event alone.

Curves are thinned by minimum and maximum per bucket, so that no peak is lost and the file stays a few megabytes; the
events are drawn from truth at its full rate.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from controller.types import CeilingLimit, FloatArray, Mode
from hil.bench import RunRecord
from hil.report_limits import WindowUse, window_uses
from hil.signal_plan import grid_signals
from hil.truth_log import Rows

BUCKETS = 3_000  # per curve: two points each, about one per pixel of a wide screen twice over
EVENT_AFTER_S = 20.0
LEGEND_COLUMNS = 4  # of names as long as a row's
BLUE, ORANGE, GREEN, RED, GREY, VIOLET = "#1f5fa8", "#c8641b", "#2f7d4f", "#b3261e", "#6b7280", "#6d4aa8"
COLOURS = [BLUE, ORANGE, VIOLET, GREEN, RED, GREY]
BAND = "rgba(31, 95, 168, 0.12)"


def course_figure(record: RunRecord) -> Any:
    """The whole run: grid power in its band, load, battery and what the controller decided, on one time axis."""
    rows = record.rows
    has_battery = record.world.plant.battery is not None
    titles = [
        "Grid power inside its admissible band",
        "Load and grid power",
        "Battery",
        "GPU caps and mode",
        "Margin",
    ]
    count = 5 if len(record.ticks) else 3 if has_battery else 2  # without a controller there are no caps and margins
    figure = make_subplots(
        rows=count,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.035,
        row_heights=[0.32, 0.2, 0.18, 0.15, 0.15][:count],
        subplot_titles=titles[:count],
        specs=[[{}], [{}], [{"secondary_y": True}], [{"secondary_y": True}], [{}]][:count],
    )
    _band(figure, rows)
    _curve(figure, rows, "pcc_w", "grid power", BLUE, row=1, envelope=("pcc_min_w", "pcc_max_w"))
    _curve(figure, rows, "ref_w", "target", ORANGE, row=1)
    _curve(figure, rows, "load_w", "load", GREY, row=2)
    _curve(figure, rows, "pcc_w", "grid power", BLUE, row=2, is_repeat=True)
    if has_battery:
        _curve(figure, rows, "battery_w", "battery, discharge positive", GREEN, row=3)
        _curve(figure, rows, "soc_frac", "state of charge", VIOLET, row=3, scale=100.0, is_secondary=True)
    if count == 5:
        _decisions(figure, rows)
    _targets(figure, record)
    _happenings(figure, record)
    figure.update_yaxes(title_text="MW", row=1, col=1)
    figure.update_yaxes(title_text="MW", row=2, col=1)
    if has_battery:
        figure.update_yaxes(title_text="MW", row=3, col=1, secondary_y=False)
        figure.update_yaxes(title_text="%", row=3, col=1, secondary_y=True, tickformat=".1f")
    figure.update_xaxes(title_text="s", row=count, col=1)
    height = 130 + [0, 0, 640, 860, 0, 1090][count]
    figure.update_layout(height=height, hovermode="x unified", **_layout(top=90))
    figure.update_layout(legend={"y": 1.0 + 40 / (height - 140), "yanchor": "bottom", "traceorder": "normal"})
    return figure


def _targets(figure: Any, record: RunRecord) -> None:
    """Levels that power must not pass, while they are in force."""
    site = record.scenario.settings.site
    assert site is not None
    end_s = record.world.duration_s
    levels = [
        (s.from_s, min(s.until_s, end_s), s.target_w, f"load target of {s.issuer}")
        for _, s in grid_signals(record.scenario, site)
        if s.target_w is not None and s.from_s < end_s
    ]
    levels += [
        (max(row.from_s, 0.0), min(row.until_s, end_s), row.max_w, str(row.id))
        for row in site.contract.limits
        if isinstance(row, CeilingLimit)
    ]
    for from_s, until_s, level_w, label in levels:
        line = {"color": RED, "width": 1.5, "dash": "dash"}
        level = [level_w / 1e6, level_w / 1e6]
        figure.add_trace(go.Scatter(x=[from_s, until_s], y=level, name=label, mode="lines", line=line), row=1, col=1)


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


def window_figure(record: RunRecord) -> Any:
    """Each ramp and swing row: the change within its window as a share of what it allows; None without such a row.

    Shares, because rows of 2 and of 200 MW on one axis would leave nothing of the first to see.
    """
    site = record.scenario.settings.site
    assert site is not None
    uses = window_uses(record.rows, site, [s for _, s in grid_signals(record.scenario, site)])
    if not uses:
        return None
    figure = go.Figure()
    for use, colour in zip(uses, COLOURS * len(uses), strict=False):
        x, y = thin(use.t_s, use.change_w)
        figure.add_trace(
            go.Scattergl(
                x=x,
                y=_finite(100.0 * y / use.max_w),
                customdata=_finite(y / 1e6),
                hovertemplate="%{y:.0f} %, %{customdata:.2f} MW",
                name=f"{use.label} ({use.max_w / 1e6:g} MW)",
                line={"color": colour, "width": 1.4},
            )
        )
    span = [min(float(use.t_s[0]) for use in uses), max(float(use.t_s[-1]) for use in uses)]
    line = {"color": RED, "width": 1.5, "dash": "dash"}
    figure.add_trace(go.Scatter(x=span, y=[100.0, 100.0], name="the limit", mode="lines", line=line))
    figure.update_yaxes(title_text="% of what is allowed", range=[0.0, max(110.0, *(_worst(use) for use in uses))])
    figure.update_xaxes(title_text="s")
    top = 60 + 20 * -(-len(figure.data) // LEGEND_COLUMNS)  # the toolbar, then the legend
    figure.update_layout(height=310 + top, hovermode="x unified", **_layout(top=top))
    return figure


def _worst(use: WindowUse) -> float:
    """The highest point of a curve in percent, and room above it."""
    return 105.0 * float(use.change_w.max()) / use.max_w


def _decisions(figure: Any, rows: Rows) -> None:
    """What the controller did beside moving the target: caps, mode, margins."""
    _curve(figure, rows, "cap_frac", "mean cap, clock or power limit", ORANGE, row=4, scale=100.0)
    _curve(figure, rows, "mode", "mode", GREY, row=4, scale=1.0, is_secondary=True)
    _curve(figure, rows, "margin_w", "least power margin", RED, row=5)
    figure.update_yaxes(title_text="% of full", row=4, col=1, secondary_y=False)
    figure.update_yaxes(
        tickvals=[int(m) for m in Mode],
        ticktext=[m.name.lower() for m in Mode],
        range=[-0.2, len(Mode) - 0.8],
        row=4,
        col=1,
        secondary_y=True,
    )
    figure.update_yaxes(title_text="MW", row=5, col=1)


def event_figure(record: RunRecord, entry: dict[str, Any]) -> Any:
    """Truth at its full rate around one event, with the target of the time; None where the run kept no such truth."""
    t_s, pcc_w = record.moments.around(entry["t_s"])
    if not t_s.size:
        t_s, pcc_w = record.moments.around(round(entry["t_s"] + record.world.plant.dt_s, 9))
    near = t_s <= entry["t_s"] + EVENT_AFTER_S
    if not near.any():
        return None
    t_s, pcc_w = t_s[near], pcc_w[near]
    figure = go.Figure()
    figure.add_trace(go.Scattergl(x=t_s, y=pcc_w / 1e6, name="grid power", line={"color": BLUE, "width": 1.5}))
    if len(record.ticks):
        for name, label, colour in (("ref_w", "target", ORANGE), ("low_w", "low", GREY), ("high_w", "high", GREY)):
            values = record.ticks.held_at(t_s, (name,))[0] / 1e6
            figure.add_trace(
                go.Scatter(x=t_s, y=_finite(values), name=label, line={"color": colour, "width": 1, "shape": "hv"})
            )
    figure.update_yaxes(title_text="MW")
    figure.update_xaxes(title_text="s")
    figure.update_layout(height=360, hovermode="x unified", **_layout())
    return figure


def _band(figure: Any, rows: Rows) -> None:
    t_s = rows.columns["t_s"]
    low, high = rows.columns["low_w"] / 1e6, rows.columns["high_w"] / 1e6
    if not np.isfinite(low).any():
        return
    at, low_thin = thin(t_s, low)
    at_high, high_thin = thin(t_s, high)
    line = {"width": 0}
    figure.add_trace(go.Scatter(x=at, y=_finite(low_thin), line=line, showlegend=False, hoverinfo="skip"), row=1, col=1)
    figure.add_trace(
        go.Scatter(x=at_high, y=_finite(high_thin), line=line, fill="tonexty", fillcolor=BAND, name="admissible band"),
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
    is_repeat: bool = False,
) -> None:
    t_s, values = rows.columns["t_s"], rows.columns[name]
    if not np.isfinite(values).any():
        return
    x, y = thin(t_s, values)
    if envelope is not None:
        x, y = _enveloped(t_s, rows.columns[envelope[0]], rows.columns[envelope[1]])
    trace = go.Scattergl(
        x=x, y=_finite(y * scale), name=label, line={"color": colour, "width": 1.2}, showlegend=not is_repeat
    )
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


def _finite(values: FloatArray) -> list[float | None]:
    """JSON has no infinity: an unbounded band is a gap in the curve."""
    return [round(v, 5) if abs(v) < 1e9 else None for v in values.tolist()]


def _layout(*, top: int = 70) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "margin": {"l": 70, "r": 70, "t": top, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "font": {"family": "system-ui, sans-serif", "size": 12},
    }


def as_div(figure: Any) -> str:
    """The figure as a piece of HTML; the page that holds it brings plotly's script along, once."""
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"scrollZoom": True, "displaylogo": False})
    )
