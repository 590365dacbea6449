"""Two figures of a run's report: the change within each limit's window, and each unannounced event alone."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from controller.audit.page import style_figure
from hil.bench import RunRecord
from hil.report_curves import BLUE, COLOURS, GREY, LIMIT_LINE, ORANGE, PLOT_BAND, finite, hang_legends, thin
from hil.report_limits import WindowUse, window_uses
from hil.signal_plan import grid_signals

DASHES = ("solid", "dot", "dashdot")  # of rows beyond the colours
EVENT_AFTER_S = 20.0
LEGEND_COLUMNS = 2  # of names as long as a row's, on a narrow screen


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
    for k, use in enumerate(uses):
        dash = DASHES[k // len(COLOURS) % len(DASHES)]
        x, y = thin(use.t_s, use.change_w)
        figure.add_trace(
            go.Scattergl(
                x=x,
                y=finite(100.0 * y / use.max_w),
                customdata=finite(y / 1e6),
                hovertemplate="%{y:.0f} %, %{customdata:.2f} MW",
                name=f"{use.label} ({use.max_w / 1e6:g} MW)",
                line={"color": COLOURS[k % len(COLOURS)], "width": 1.4, "dash": dash},
            )
        )
    span = [min(float(use.t_s[0]) for use in uses), max(float(use.t_s[-1]) for use in uses)]
    figure.add_trace(go.Scatter(x=span, y=[100.0, 100.0], name="the limit", mode="lines", line=LIMIT_LINE))
    style_figure(figure, x_title="Time, s", y_title="Of what is allowed, %")
    figure.update_yaxes(range=[0.0, max(110.0, *(_worst(use) for use in uses))])
    top = 60 + 20 * -(-len(figure.data) // LEGEND_COLUMNS)  # the toolbar, then the legend
    figure.update_layout(
        height=310 + top,
        margin={"l": 64, "r": 20, "t": top, "b": 46},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _worst(use: WindowUse) -> float:
    """The highest point of a curve in percent, and room above it."""
    return 105.0 * float(use.change_w.max()) / use.max_w


def event_figure(record: RunRecord, entry: dict[str, Any]) -> Any:
    """Grid power at truth's full rate around one event, with the target of the time, above the load that changed.

    None where the run kept no such truth.
    """
    t_s, pcc_w = record.moments.around(entry["t_s"])
    if not t_s.size:
        t_s, pcc_w = record.moments.around(round(entry["t_s"] + record.world.plant.dt_s, 9))
    near = t_s <= entry["t_s"] + EVENT_AFTER_S
    if not near.any():
        return None
    t_s, pcc_w = t_s[near], pcc_w[near]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.14, row_heights=[0.6, 0.4])
    if len(record.ticks):
        low_w, high_w, ref_w = record.ticks.held_at(t_s, ("low_w", "high_w", "ref_w"))
        edge = {"width": 0, "shape": "hv"}
        figure.add_trace(go.Scatter(x=t_s, y=finite(low_w / 1e6), line=edge, showlegend=False, hoverinfo="skip"))
        figure.add_trace(
            go.Scatter(x=t_s, y=finite(high_w / 1e6), line=edge, fill="tonexty", fillcolor=PLOT_BAND, name="admissible")
        )
        target = {"color": ORANGE, "width": 1.2, "shape": "hv"}
        figure.add_trace(go.Scatter(x=t_s, y=finite(ref_w / 1e6), name="target", line=target))
    figure.add_trace(go.Scattergl(x=t_s, y=pcc_w / 1e6, name="grid power", line={"color": BLUE, "width": 1.5}))
    rows = record.rows.columns
    inside = (rows["t_s"] >= t_s[0]) & (rows["t_s"] <= t_s[-1])
    load = go.Scattergl(
        x=rows["t_s"][inside], y=rows["load_w"][inside] / 1e6, name="load", line={"color": GREY, "width": 1.5}
    )
    figure.add_trace(load, row=2, col=1)
    style_figure(figure)
    hang_legends(figure, ["Grid power, MW", "Load, MW"])
    figure.update_xaxes(title_text="Time, s", row=2, col=1)
    figure.update_layout(height=460, margin={"l": 64, "r": 20, "t": 70, "b": 46})
    return figure
