"""`report.html` of a run: one file that opens offline and zooms, for a power engineer to read.

Curves are thinned by minimum and maximum per bucket, so that no peak is lost and the file stays a few megabytes; the
events are drawn from truth at its full rate. Nothing is computed here that is not in `result.json` or `pcc.csv`.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from controller.files import write_whole
from controller.types import CeilingLimit, FloatArray, Mode
from hil.bench import RunRecord
from hil.report_limits import window_uses
from hil.signal_plan import grid_signals
from hil.truth_log import Rows

BUCKETS = 3_000  # per curve: two points each, about one per pixel of a wide screen twice over
EVENT_AFTER_S = 20.0
BLUE, ORANGE, GREEN, RED, GREY, VIOLET = "#1f5fa8", "#c8641b", "#2f7d4f", "#b3261e", "#6b7280", "#6d4aa8"
COLOURS = [BLUE, ORANGE, VIOLET, GREEN, RED, GREY]
BAND = "rgba(31, 95, 168, 0.12)"
VERDICT_COLOUR = {"held": GREEN, "held_partial": GREEN, "broken": RED, "not_covered": GREY, "not_binding": GREY}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1280px; padding: 24px; color: #1b1f24; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
p.lead { color: #4b5563; margin: 0 0 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid #e3e6ea; }
th:first-child, td:first-child { text-align: left; } th { color: #4b5563; font-weight: 600; }
table.words td { text-align: left; } .verdict { font-weight: 600; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.tile { border: 1px solid #e3e6ea; border-radius: 8px; padding: 10px 16px; min-width: 150px; }
.tile b { display: block; font-size: 20px; } .tile span { color: #4b5563; font-size: 13px; }
"""


def write_report(record: RunRecord, result: dict[str, Any], path: Path) -> None:
    """Write the page whole or not at all."""
    parts = [_head(result), _tiles(result), _table(result), "<h2>Course of the run</h2>", _div(_course(record))]
    uses = _window_figure(record)
    if uses is not None:
        parts += ["<h2>Change within each limit's window</h2>", _div(uses)]
    for entry in result["contingency"]:
        figure = _event(record, entry)
        if figure is not None:
            parts += [f"<h2>{html.escape(_event_title(entry))}</h2>", _div(figure)]
    parts += [_events(result), _wires(result), _fine_print(record, result)]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(str(result['scenario']))}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>\n"
    )
    write_whole(path, page)


# ------------------------------------------------------------------------------------------------ words


def _head(result: dict[str, Any]) -> str:
    verdict = "Every limit held" if result["compliant"] else "A limit was broken"
    colour = GREEN if result["compliant"] else RED
    trace = ", ".join(result["trace"]) or "generated load"
    lead = (
        f"{result['contract']} · controller {result['controller']} · following {result['follow'] or 'none'} · "
        f"{trace} · {result['duration_s']:.0f} s · seed {result['seed']}"
    )
    return (
        f"<h1>{html.escape(str(result['scenario']))}: <span style='color:{colour}'>{verdict}</span></h1>"
        f"<p class='lead'>{html.escape(lead)}</p>"
    )


def _tiles(result: dict[str, Any]) -> str:
    battery = result["battery"]
    tiles = [
        ("work lost", f"{100 * result['work']['lost_frac']:.3f} %"),
        ("largest power at the PCC", f"{result['record']['power_w_max'] / 1e6:.2f} MW"),
        ("crash-safe share of ticks", f"{100 * result['crash_safe_frac']:.2f} %"),
    ]
    if battery is not None:
        tiles += [
            ("battery peak", f"{battery['peak_w'] / 1e6:.1f} MW"),
            ("battery throughput", f"{battery['throughput_wh'] / 1e6:.2f} MWh"),
            ("state of charge", f"{100 * battery['start_soc_frac']:.1f} to {100 * battery['end_soc_frac']:.1f} %"),
        ]
    cells = "".join(f"<div class='tile'><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>" for k, v in tiles)
    return f"<div class='tiles'>{cells}</div>"


def _table(result: dict[str, Any]) -> str:
    head = "".join(
        f"<th>{h}</th>"
        for h in ("limit", "allowed", "worst", "worst, no mean", "mean", "at", "in violation", "episodes", "verdict")
    )
    rows = "".join(_row(row) for row in result["limits"])
    return f"<h2>Limits</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(row: dict[str, Any]) -> str:
    verdict = row["verdict"]
    cells = [
        html.escape(row["id"]),
        scaled(row["limit"], row["unit"]),
        scaled(row["worst"], row["unit"]),
        scaled(row["worst_raw"], row["unit"]),
        f"{row['mean_s']:g} s" if row["mean_s"] else "none",
        f"{row['worst_t_s']:.1f} s",
        f"{row['violation_s']:.1f} s",
        str(row["episodes"]),
        f"<span class='verdict' style='color:{VERDICT_COLOUR[verdict]}'>{verdict.replace('_', ' ')}</span>",
    ]
    return "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def scaled(value: float, unit: str) -> str:
    """A number in the unit a person reads: megawatts for watts."""
    if unit.startswith("W"):
        return f"{value / 1e6:.3f} MW{unit[1:]}"
    return f"{value:.4g} {unit}"


def _events(result: dict[str, Any]) -> str:
    listed = sorted(result["events"] + result["faults"], key=lambda e: e["t_s"])
    if not listed:
        return ""
    rows = "".join(
        f"<tr><td>{e['t_s']:.1f} s</td><td>{html.escape(e['id'])}</td><td>{html.escape(e['kind'])}</td>"
        f"<td>{html.escape(e['detail'])}</td></tr>"
        for e in listed
    )
    return f"<h2>Events and faults</h2><table class='words'><tbody>{rows}</tbody></table>"


def _wires(result: dict[str, Any]) -> str:
    """What a run on real wires says of its processes."""
    facts = result.get("on_wires")
    if facts is None:
        return ""
    late, tick = facts["plant_late_ms"], result["tracker"]["tick_ms"]
    gpus = facts["gpus"]
    left = len(gpus["left_throttled"])
    lines = [
        f"{name}: {p['rss_bytes_max'] / 1e6:.0f} MB resident at most, "
        f"{'stopped cleanly' if p['stopped_cleanly'] else 'had to be killed'}"
        for name, p in facts["processes"].items()
    ]
    lines += [
        f"controller: {result['tracker']['ticks']} ticks, from due to acknowledged p50 {tick['p50']:.1f} ms, "
        f"p99 {tick['p99']:.1f} ms; {result['tracker']['overruns']} skipped",
        f"simulated plant: 200 Hz, late by p50 {late['p50']:.1f}, p99 {late['p99']:.1f}, max {late['max']:.0f} ms",
        f"{gpus['count']} GPUs behind the NVIDIA library's interface, each for {gpus['each_stands_for']:,}: "
        f"{gpus['clock_writes']} clock writes; {left or 'none'} left throttled at the end",
    ]
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"{_predicted(facts['predicted'])}<h2>On real wires</h2><ul>{items}</ul>"


def _predicted(rows: list[dict[str, Any]]) -> str:
    """The crash by itself on each row's mean, as the site file foretold it and as it came."""
    if not rows:
        return ""
    headings = ("limit", "mean", "allowed", "foreseen, full crash", "foreseen, this one", "measured")
    head = "".join(f"<th>{h}</th>" for h in headings)
    body = "".join(
        f"<tr><td>{html.escape(row['limit'])}</td><td>{row['mean_s']:g} s</td><td>{scaled(row['allowed_w'], 'W')}</td>"
        f"<td>{scaled(row['full_w'], 'W')}</td><td>{scaled(row['predicted_w'], 'W')}</td>"
        f"<td>{scaled(row['measured_w'], 'W')}</td></tr>"
        for row in rows
    )
    title = (
        f"The crash alone ({scaled(rows[0]['drop_w'], 'W')}; a full one is {scaled(rows[0]['full_drop_w'], 'W')}), as "
        "<code>rampart check</code> foresees it from the site file"
    )
    return f"<h2>{title}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _event_title(entry: dict[str, Any]) -> str:
    title = f"{entry['id']}: {entry['drop_w'] / 1e6:.1f} MW at {entry['t_s']:.1f} s"
    if entry["dip_raw_w"] is None:
        return title
    if entry["back_inside_s"] is None:
        back = "not back within a minute"
    elif entry["back_inside_s"] == 0.0:
        back = "never away by more than 5 % of it"
    else:
        back = f"back after {entry['back_inside_s']:.2f} s"
    return f"{title}: {entry['dip_raw_w'] / 1e6:.2f} MW deep, {entry['area_j'] / 1e6:.2f} MJ, {back}"


def _fine_print(record: RunRecord, result: dict[str, Any]) -> str:
    notes = [
        "Verdicts are on plant truth sampled every 5 ms, with each row's assumed metering mean; the figure without a "
        "mean stands beside it.",
        f"Curves are minimum and maximum per bucket ({BUCKETS} buckets); pcc.csv has every 50 ms.",
    ]
    if result["edge"] == "linear":
        notes.append(
            "The trace's samples are joined linearly: no content above half its sampling rate was present, and nothing "
            "is said about it."
        )
    if result["not_assessed"]:
        notes.append("Not assessed: " + ", ".join(result["not_assessed"]) + ".")
    notes += [f"{row['id']}: {row['note']}" for row in result["limits"] if row["note"]]
    items = "".join(f"<li>{html.escape(n)}</li>" for n in notes)
    return f"<h2>How to read this</h2><ul>{items}</ul>"


# ------------------------------------------------------------------------------------------------ curves


def _course(record: RunRecord) -> Any:
    rows = record.rows
    has_battery = record.world.plant.battery is not None
    titles = [
        "Grid power inside its admissible band",
        "Load and grid power",
        "Battery",
        "Clock caps and mode",
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


def _window_figure(record: RunRecord) -> Any:
    """Each ramp and swing row: the change within its window against what is allowed."""
    site = record.scenario.settings.site
    assert site is not None
    uses = window_uses(record.rows, site, [s for _, s in grid_signals(record.scenario, site)])
    if not uses:
        return None
    figure = go.Figure()
    for use, colour in zip(uses, COLOURS * len(uses), strict=False):
        x, y = thin(use.t_s, use.change_w)
        figure.add_trace(go.Scattergl(x=x, y=_finite(y / 1e6), name=use.label, line={"color": colour, "width": 1.4}))
        span, level = [float(use.t_s[0]), float(use.t_s[-1])], [use.max_w / 1e6, use.max_w / 1e6]
        line = {"color": colour, "width": 1.2, "dash": "dash"}
        figure.add_trace(go.Scatter(x=span, y=level, name=f"{use.label} allows", mode="lines", line=line))
    figure.update_yaxes(title_text="MW", rangemode="tozero")
    figure.update_xaxes(title_text="s")
    figure.update_layout(height=380, hovermode="x unified", **_layout())
    return figure


def _decisions(figure: Any, rows: Rows) -> None:
    """What the controller did beside moving the target: caps, mode, margins."""
    _curve(figure, rows, "cap_frac", "mean clock cap", ORANGE, row=4, scale=100.0)
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


def _event(record: RunRecord, entry: dict[str, Any]) -> Any:
    """Truth at its full rate around one event, with the target of the time."""
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


def _div(figure: Any) -> str:
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"scrollZoom": True, "displaylogo": False})
    )
