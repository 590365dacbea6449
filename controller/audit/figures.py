"""The figures of an audit report: the whole record, each row's worst moment with its limit, and spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from controller.audit.page import AMBER, BLUE, GREY, PALE, RED, Figure, style_figure
from controller.audit.verdicts import Moment, RowResult, Spectrum, Verdicts
from controller.audit.words import amount
from controller.types import (
    BandLimit,
    CeilingLimit,
    FloatArray,
    FloorLimit,
    OscillationLimit,
    RampLimit,
    RateLimit,
    RowVerdict,
    SwingLimit,
)


def overview(verdicts: Verdicts) -> go.Figure:
    moment = verdicts.overview
    assert moment is not None
    figure = go.Figure()
    _band(figure, moment, name="power", colour=BLUE, fill="rgba(31,95,168,0.25)")
    for row in verdicts.limits:
        for episode in row.episode_list[:200] if row.kind != "oscillation" else ():
            figure.add_vrect(x0=episode.start_s, x1=episode.end_s, fillcolor=RED, opacity=0.07, line_width=0)
    for row in verdicts.limits:
        if row.verdict is RowVerdict.BROKEN:
            figure.add_vline(x=row.worst_t_s, line={"color": RED, "width": 1, "dash": "dot"})
    for gap in verdicts.record.gaps[:200]:
        figure.add_vrect(x0=gap.start_s, x1=gap.end_s, fillcolor=GREY, opacity=0.35, line_width=0)
    return style_figure(figure, x_title="time, s (red: a row broken; grey: gap)", y_title="power, MW")


def moment_figure(row: RowResult) -> Figure | None:
    shown = row.judged or row.raw
    if shown is None or (row.spectrum is not None and row.worst == 0.0):  # no line, no moment of it
        return None
    figure = go.Figure()
    is_filtered = isinstance(row.rule, BandLimit | SwingLimit) and row.rule.band_hz is not None
    is_alone = row.judged is None or row.mean_s <= 0.0
    if row.raw is not None and not is_filtered:
        colour, fill = (BLUE, "rgba(31,95,168,0.25)") if is_alone else (PALE, "rgba(157,184,214,0.35)")
        _band(figure, row.raw, name="power" if is_alone else "power, unaveraged", colour=colour, fill=fill)
    if row.judged is not None and (row.mean_s > 0.0 or is_filtered or row.raw is None):
        name = "filtered" if is_filtered else f"mean of {row.mean_s:g} s" if row.mean_s > 0.0 else "power"
        _band(figure, row.judged, name=name, colour=BLUE, fill="rgba(31,95,168,0.25)")
    _mark_window(figure, row, shown)
    title = "filtered power, MW" if is_filtered else "power, MW"
    style_figure(figure, x_title="time, s", y_title=title)
    return Figure(
        figure,
        f"Worst moment: {amount(row.worst, row.unit)} at {row.worst_t_s:,.2f} s (window shaded; dashed: the limit)",
    )


def _mark_window(figure: go.Figure, row: RowResult, shown: Moment) -> None:
    """The worst window, and the limit as the room it leaves."""
    if isinstance(row.rule, BandLimit | CeilingLimit | FloorLimit):
        levels = (row.limit, -row.limit) if isinstance(row.rule, BandLimit) else (row.limit,)
        for level in levels:
            figure.add_hline(y=level / 1e6, line={"color": RED, "width": 1, "dash": "dash"})
        _make_room(figure, levels)
        return
    start_s = row.worst_t_s - row.window_s
    figure.add_vrect(x0=start_s, x1=row.worst_t_s, fillcolor=AMBER, opacity=0.13, line_width=0)
    if not isinstance(row.rule, RampLimit | SwingLimit | RateLimit) or row.unit != "W":
        return
    inside = (shown.t_s >= start_s - 1e-9) & (shown.t_s <= row.worst_t_s + 1e-9)
    if not inside.any():
        return
    low, high = float(np.nanmin(shown.low[inside])), float(np.nanmax(shown.high[inside]))
    middle = 0.5 * (low + high)
    levels = (middle - 0.5 * row.limit, middle + 0.5 * row.limit)
    _make_room(figure, levels)
    for level in levels:
        figure.add_shape(
            type="line",
            x0=start_s,
            x1=row.worst_t_s,
            y0=level / 1e6,
            y1=level / 1e6,
            line={"color": RED, "width": 1.5, "dash": "dash"},
        )


def _make_room(figure: go.Figure, levels_w: Sequence[float]) -> None:
    """A scale that shows every curve and level, none of them on the frame."""
    values = [np.asarray(trace.y, dtype=np.float64) for trace in figure.data]
    values.append(np.asarray(levels_w) / 1e6)
    low, high = (float(extreme(np.concatenate(values))) for extreme in (np.nanmin, np.nanmax))
    room = 0.06 * (high - low)
    figure.update_yaxes(range=[low - room, high + room])


def line_figure(row: RowResult) -> Figure | None:
    if row.spectrum is None or not isinstance(row.rule, OscillationLimit):
        return None
    figure = go.Figure()
    _trace(figure, row.spectrum.frequency_hz, row.spectrum.largest_w / 1e6, name="amplitude", colour=BLUE)
    figure.add_hline(y=row.limit / 1e6, line={"color": RED, "width": 1, "dash": "dash"})
    style_figure(figure, x_title="frequency, Hz", y_title="amplitude, MW")
    what = "the worst span (dashed: limit)" if row.worst else "the first span (dashed: limit; nothing in it is a line)"
    return Figure(figure, f"Spectrum of {what}", 280)


def spectrum_figure(spectrum: Spectrum, verdicts: Verdicts) -> go.Figure:
    figure = go.Figure()
    _trace(figure, spectrum.frequency_hz, spectrum.largest_w / 1e6, name="largest of any span", colour=PALE)
    _trace(figure, spectrum.frequency_hz, spectrum.mean_w / 1e6, name="rms over all spans", colour=BLUE)
    for row in verdicts.limits:
        if isinstance(row.rule, OscillationLimit | BandLimit):
            low, high = row.rule.band_hz
            top = min(high, float(spectrum.frequency_hz[-1]))
            if low < top:
                line = {"color": RED, "width": 1.2, "dash": "dash"}
                level = np.full(2, row.limit / 1e6)
                figure.add_trace(go.Scatter(x=np.array([low, top]), y=level, mode="lines", line=line, name=row.id))
    style_figure(figure, x_title="frequency, Hz", y_title="amplitude, MW")
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def _band(figure: go.Figure, moment: Moment, *, name: str, colour: str, fill: str) -> None:
    """A line, or least and greatest per bucket with the room between filled."""
    if np.array_equal(moment.low, moment.high, equal_nan=True):
        _trace(figure, moment.t_s, moment.high / 1e6, name=name, colour=colour)
        return
    low = {"color": colour, "width": 0.8}
    figure.add_trace(
        go.Scatter(x=moment.t_s, y=moment.low / 1e6, mode="lines", line=low, showlegend=False, name=f"{name}, least")
    )
    figure.add_trace(
        go.Scatter(x=moment.t_s, y=moment.high / 1e6, mode="lines", line=low, fill="tonexty", fillcolor=fill, name=name)
    )


def _trace(figure: go.Figure, x: FloatArray, y: FloatArray, *, name: str, colour: str) -> None:
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line={"color": colour, "width": 1.4}, name=name))
