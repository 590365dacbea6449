"""`report.html` of a run: one file that opens offline and zooms, for a power engineer to read.

Nothing is computed here that is not in `result.json` or `pcc.csv`. The curves are `hil.report_curves`.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from controller.files import write_whole
from hil.bench import RunRecord
from hil.report_curves import BUCKETS, GREEN, GREY, RED, as_div, course_figure, event_figure, window_figure

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
    parts = [_head(result), _tiles(result), _table(result), "<h2>Course of the run</h2>", as_div(course_figure(record))]
    uses = window_figure(record)
    if uses is not None:
        parts += ["<h2>Change within each limit's window</h2>", as_div(uses)]
    for entry in result["contingency"]:
        figure = event_figure(record, entry)
        if figure is not None:
            parts += [f"<h2>{html.escape(_event_title(entry))}</h2>", as_div(figure)]
    parts += [_events(result), _wires(result), _fine_print(record, result)]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(str(result['scenario']))}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>\n"
    )
    write_whole(path, page)


# ------------------------------------------------------------------------------------------------ words


def _head(result: dict[str, Any]) -> str:
    verdict, colour = "A limit was broken", RED
    if result["compliant"] and result["not_assessed"]:
        verdict, colour = f"No limit was broken, {len(result['not_assessed'])} not assessed", GREEN
    elif result["compliant"]:
        verdict, colour = "Every limit held", GREEN
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
    listed = sorted(result["events"] + result["faults"] + mode_events(result), key=lambda e: e["t_s"])
    if not listed:
        return ""
    rows = "".join(
        f"<tr><td>{e['t_s']:.1f} s</td><td>{html.escape(e['id'])}</td><td>{html.escape(e['kind'])}</td>"
        f"<td>{html.escape(e['detail'])}</td></tr>"
        for e in listed
    )
    return f"<h2>Events and faults</h2><table class='words'><tbody>{rows}</tbody></table>"


def mode_events(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of the mode as events of their own; a run that begins in normal says nothing of that."""
    changes = result["mode_changes"]
    told = changes[1:] if changes and changes[0]["mode"] == "normal" else changes
    return [
        {"t_s": c["t_s"], "id": f"mode {c['mode']}", "kind": "mode", "detail": "; ".join(c["because"]) or "all is well"}
        for c in told
    ]


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
    notes += [f"Outside the site file: {sentence}." for sentence in result["beyond_declared"]]
    if result["not_assessed"]:
        notes.append("Not assessed: " + ", ".join(result["not_assessed"]) + ".")
    notes += [f"{row['id']}: {row['note']}" for row in result["limits"] if row["note"]]
    items = "".join(f"<li>{html.escape(n)}</li>" for n in notes)
    return f"<h2>How to read this</h2><ul>{items}</ul>"
