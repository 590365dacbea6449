"""The shell of every report: one HTML file that opens offline, prints well, and draws its own plots.

`render(title, sections)` joins sections; figures are plotly, whose script is inlined once. Text given as plain strings
is escaped here; `Section.html` is taken as it is.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly import offline

from controller.types import frozen

INK = "#1c2733"
BLUE = "#1f5fa8"
PALE = "#9db8d6"
RED = "#c0392b"
GREEN = "#2b7a4b"
AMBER = "#b7791f"
GREY = "#7a8794"
# Plotly, in the reader's browser, offers to upload a chart to its maker's cloud unless told not to: a power record
# stays with its owner.
PLOT_CONFIG: dict[str, object] = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "toImageButtonOptions": {"format": "svg"},
}

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #eef1f4; color: #1c2733; font: 15px/1.5 "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 36px 60px; background: #fff; }
h1 { font-size: 25px; margin: 0 0 4px; font-weight: 600; }
h2 { font-size: 18px; margin: 34px 0 8px; padding-bottom: 4px; border-bottom: 1px solid #d5dbe1; font-weight: 600; }
h3 { font-size: 15px; margin: 24px 0 4px; font-weight: 600; }
p { margin: 4px 0 8px; max-width: 88ch; }
.sub, .small { color: #5b6875; }
.small { font-size: 13px; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 12px; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: #46535f; border-bottom: 2px solid #c9d1d9; padding: 5px 9px; }
td { border-bottom: 1px solid #e6eaee; padding: 5px 9px; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
.tag { display: inline-block; padding: 1px 9px; border-radius: 10px; font-size: 12.5px; font-weight: 600; }
.tag { white-space: nowrap; }
.good { background: #e0f2e7; color: #1f6b40; } .bad { background: #fbe3e0; color: #a02c20; }
.part { background: #fbf0d9; color: #8a5a10; } .none { background: #e4eaf0; color: #4a5a69; }
.banner { margin: 18px 0 6px; padding: 13px 18px; border-radius: 6px; font-size: 17px; font-weight: 600; }
.banner span { display: block; font-size: 14px; font-weight: 400; margin-top: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 10px; margin: 14px 0; }
.facts div { border: 1px solid #dde3e8; border-radius: 6px; padding: 8px 13px; }
.facts b { display: block; font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts span { font-size: 12.5px; color: #5b6875; }
.plot { width: 100%; height: 330px; margin: 4px 0 10px; }
footer { margin-top: 40px; font-size: 12.5px; color: #7a8794; }
.wide { overflow-x: auto; }
@media (max-width: 700px) { main { padding: 16px 12px 40px; } .wide table { width: auto; min-width: 100%; } }
@media print { body { background: #fff; } main { padding: 0; max-width: none; } .plot { break-inside: avoid; } }
"""


@frozen
class Figure:
    """A plotly figure with the line of text above it, and its height."""

    figure: go.Figure
    caption: str = ""
    height_px: int = 330


@frozen
class Section:
    """A heading, trusted HTML, then figures. An empty heading adds none."""

    heading: str
    html: str = ""
    figures: tuple[Figure, ...] = ()


def render(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """One self-contained HTML page."""
    body: list[str] = []
    count = 0
    for section in sections:
        if section.heading:
            body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body.append(section.html)
        for figure in section.figures:
            count += 1
            body.append(_plot(figure, f"plot-{count}"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<script>{offline.get_plotlyjs()}</script></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="sub">{html.escape(subtitle)}</p>'
        + "\n".join(body)
        + f"<footer>{html.escape(footer)}</footer></main></body></html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = ()) -> str:
    """An HTML table; cells are trusted HTML (escape plain text with `text`), `numeric` columns align right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{value}</{tag}>' if i in numeric else f"<{tag}>{value}</{tag}>"
            for i, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A row of figures with their names."""
    return (
        '<div class="facts">'
        + "".join(f"<div><b>{text(v)}</b><span>{text(k)}</span></div>" for k, v in pairs)
        + "</div>"
    )


def banner(line: str, detail: str, *, tone: str) -> str:
    """The answer in one coloured bar; `tone` is good, bad, part or none."""
    return f'<div class="banner {tone}">{text(line)}<span>{text(detail)}</span></div>'


def tag(word: str, *, tone: str) -> str:
    return f'<span class="tag {tone}">{text(word)}</span>'


def paragraph(line: str, *, small: bool = False) -> str:
    return f"<p{' class=small' if small else ''}>{text(line)}</p>"


def text(value: str) -> str:
    """Plain text made safe for HTML."""
    return html.escape(value)


def style_figure(figure: go.Figure, *, x_title: str | None = None, y_title: str | None = None) -> go.Figure:
    """The common look: white, thin grid, legend on top, drag to zoom. A title that is not given stays as it is."""
    axis = {"gridcolor": "#e6eaee", "zerolinecolor": "#c9d1d9", "linecolor": "#c9d1d9", "ticks": "outside"}
    figure.update_layout(
        template="none",
        font={"family": "Segoe UI, Helvetica Neue, Arial, sans-serif", "size": 12, "color": INK},
        margin={"l": 64, "r": 20, "t": 56, "b": 46},  # on top the toolbar, below it the legend
        legend={"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0.0},
        hovermode="x unified",
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        dragmode="zoom",
    )
    figure.update_xaxes(**axis, **({} if x_title is None else {"title_text": x_title}))
    figure.update_yaxes(**axis, **({} if y_title is None else {"title_text": y_title}))
    return figure


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def _plot(figure: Figure, name: str) -> str:
    spec = json.loads(figure.figure.to_json())
    # A closing script tag inside a string would end the script.
    data = json.dumps({"data": spec["data"], "layout": spec["layout"]}).replace("</", "<\\/")
    config = json.dumps(PLOT_CONFIG)
    caption = f'<p class="small">{text(figure.caption)}</p>' if figure.caption else ""
    return (
        f'{caption}<div class="plot" id="{name}" style="height:{figure.height_px}px"></div>'
        f'<script>(function(){{var f={data};Plotly.newPlot("{name}",f.data,f.layout,{config});}})();</script>'
    )
