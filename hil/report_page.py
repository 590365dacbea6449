"""`report.html` of a run: one file that opens offline and zooms, for a power engineer to read.

Nothing is computed here that is not in `result.json` or `pcc.csv`. The page looks like the audit report; the curves are
`hil.report_curves` and `hil.report_windows`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller.audit.page import Figure, Section, banner, bullets, facts, paragraph, render, table, tag, text
from controller.audit.words import rule_in_words
from controller.files import write_whole
from hil.bench import RunRecord
from hil.report_curves import BUCKETS, course_figure
from hil.report_windows import event_figure, window_figure

TONES = {"held": "good", "held_partial": "part", "broken": "bad", "not_covered": "part", "not_binding": "none"}
LIMIT_HEADS = ("Row", "Verdict", "Worst", "Limit", "Of limit", "Unaveraged", "At", "Broken for", "Mean")


def write_report(record: RunRecord, result: dict[str, Any], path: Path) -> None:
    """Write the page whole or not at all."""
    course = course_figure(record)
    sections = [
        Section("", verdict(result) + _limits(record, result)),
        Section("What it cost", facts(_costs(result))),
        Section("Course of the run", "", (Figure(course, "", int(course.layout.height)),)),
    ]
    uses = window_figure(record)
    if uses is not None:
        sections.append(Section("Change within each limit's window", "", (Figure(uses, "", int(uses.layout.height)),)))
    for entry in result["contingency"]:
        figure = event_figure(record, entry)
        if figure is not None:
            line = paragraph(_event_line(entry))
            sections.append(Section(_event_title(entry), line, (Figure(figure, "", int(figure.layout.height)),)))
    sections += [*_events(result), *_wires(result), Section("How to read this", bullets(_notes(record, result)))]
    footer = "Made by rampart hil run. Figures can be zoomed by dragging; double click to reset."
    write_whole(path, render(str(result["scenario"]), sections, subtitle=_lead(result), footer=footer))


# ------------------------------------------------------------------------------------------------ the answer


def verdict(result: dict[str, Any]) -> str:
    """The answer, in the words and the colour that it deserves."""
    missing = f"Not assessed in full: {', '.join(result['not_assessed'])}." if result["not_assessed"] else ""
    if not result["compliant"]:
        broken = ", ".join(row["id"] for row in result["limits"] if row["verdict"] == "broken")
        return banner("A limit was broken", f"{broken}. {missing}".strip(), tone="bad")
    if missing:
        return banner(f"No limit was broken, {len(result['not_assessed'])} not assessed", missing, tone="part")
    return banner("Every limit held", "Judged on plant truth, sampled every 5 ms.", tone="good")


def _lead(result: dict[str, Any]) -> str:
    trace = ", ".join(result["trace"]) or "generated load"
    follow = f"battery follows by {result['follow']}" if result["follow"] else "no battery"
    return (
        f"Contract {result['contract']}, controller {result['controller']}, {follow}, {trace}, "
        f"{result['duration_s']:.0f} s, seed {result['seed']}."
    )


def _limits(record: RunRecord, result: dict[str, Any]) -> str:
    judged = (record.verdicts, *(signal.verdicts for signal in record.signal_verdicts))
    rules = [rule_in_words(row.rule) for verdicts in judged for row in verdicts.limits]
    rows = [_row(row, rule) for row, rule in zip(result["limits"], rules, strict=True)]
    return table(LIMIT_HEADS, rows, numeric=range(2, len(LIMIT_HEADS)))


def _row(row: dict[str, Any], rule: str) -> tuple[str, ...]:
    is_seen = row["verdict"] != "not_covered"
    times = f", {row['episodes']} times" if row["episodes"] > 1 else ""
    return (
        f'<b>{text(row["id"])}</b><br><span class="small">{text(rule)}</span>',
        tag(row["verdict"].replace("_", " "), tone=TONES[row["verdict"]]),
        text(scaled(row["worst"], row["unit"])) if is_seen else "-",
        text(scaled(row["limit"], row["unit"])),
        f"{100.0 * row['worst'] / row['limit']:.1f} %" if is_seen and row["limit"] else "-",
        text(scaled(row["worst_raw"], row["unit"])) if is_seen else "-",
        f"{row['worst_t_s']:,.1f} s" if is_seen else "-",
        f"{row['violation_s']:,.1f} s{times}" if row["episodes"] else "-",
        f"{row['mean_s']:g} s" if row["mean_s"] else "none",
    )


def scaled(value: float, unit: str) -> str:
    """A number in the unit a person reads: megawatts for watts."""
    if unit.startswith("W"):
        return f"{value / 1e6:.3f} MW{unit[1:]}"
    return f"{value:.4g} {unit}"


def _costs(result: dict[str, Any]) -> list[tuple[str, str]]:
    battery = result["battery"]
    found = [
        ("work lost", f"{100 * result['work']['lost_frac']:.3f} %"),
        ("highest power at the grid connection", f"{result['record']['power_w_max'] / 1e6:.2f} MW"),
    ]
    if result["controller"] != "none":
        found.append(("of the time safe against a full crash", f"{100 * result['crash_safe_frac']:.2f} %"))
    if battery is not None:
        found += [
            ("battery peak", f"{battery['peak_w'] / 1e6:.1f} MW"),
            ("battery throughput", f"{battery['throughput_wh'] / 1e6:.2f} MWh"),
            ("state of charge", f"{100 * battery['start_soc_frac']:.1f} to {100 * battery['end_soc_frac']:.1f} %"),
        ]
    return found


# ------------------------------------------------------------------------------------------------ what happened


def _events(result: dict[str, Any]) -> list[Section]:
    listed = sorted(result["events"] + result["faults"] + mode_events(result), key=lambda e: e["t_s"])
    if not listed:
        return []
    rows = [(f"{e['t_s']:.1f} s", text(e["id"]), text(e["kind"]), text(e["detail"])) for e in listed]
    return [Section("Events and faults", table(("At", "What", "Kind", "In words"), rows, numeric=(0,)))]


def mode_events(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of the mode as events of their own; a run that begins in normal says nothing of that."""
    changes = result["mode_changes"]
    told = changes[1:] if changes and changes[0]["mode"] == "normal" else changes
    return [
        {
            "t_s": c["t_s"],
            "id": f"mode {c['mode']}",
            "kind": "mode",
            "detail": "; ".join(c["because"]) or calm(c["mode"]),
        }
        for c in told
    ]


def calm(mode: str) -> str:
    """What there is to say of a mode without a reason that stands: only in normal is all well."""
    return "all is well" if mode == "normal" else "its cause is over; it ends after a wait"


def _event_title(entry: dict[str, Any]) -> str:
    return f"{entry['id']}: {entry['drop_w'] / 1e6:.1f} MW at {entry['t_s']:.1f} s"


def _event_line(entry: dict[str, Any]) -> str:
    if entry["dip_raw_w"] is None:
        return ""
    if entry["back_inside_s"] is None:
        back = "it was not back within a minute"
    elif entry["back_inside_s"] == 0.0:
        back = "never by more than 5 % of what dropped"
    else:
        back = f"back within 5 % of what dropped after {entry['back_inside_s']:.2f} s"
    return (
        f"Grid power left its target by {entry['dip_raw_w'] / 1e6:.2f} MW at most ({entry['area_j'] / 1e6:.2f} MJ in "
        f"all), {back}."
    )


# ------------------------------------------------------------------------------------------------ wires


def _wires(result: dict[str, Any]) -> list[Section]:
    """What a run on real wires says of its processes."""
    facts_of = result.get("on_wires")
    if facts_of is None:
        return []
    late, tick, gpus = facts_of["plant_late_ms"], result["tracker"]["tick_ms"], facts_of["gpus"]
    lines = [
        f"{name}: {p['rss_bytes_max'] / 1e6:.0f} MB resident at most, "
        f"{'stopped cleanly' if p['stopped_cleanly'] else 'had to be killed'}"
        for name, p in facts_of["processes"].items()
    ]
    lines += [
        f"controller: {result['tracker']['ticks']} ticks, from due to acknowledged p50 {tick['p50']:.1f} ms, "
        f"p99 {tick['p99']:.1f} ms; {result['tracker']['overruns']} skipped",
        f"simulated plant: 200 Hz, late by p50 {late['p50']:.1f}, p99 {late['p99']:.1f}, max {late['max']:.0f} ms",
        f"{gpus['count']} GPUs behind the NVIDIA library's interface, each for {gpus['each_stands_for']:,}: "
        f"{gpus['clock_writes']} clock writes; {len(gpus['left_throttled']) or 'none'} left throttled at the end",
    ]
    return [*_predicted(facts_of["predicted"]), Section("On real wires", bullets(lines))]


def _predicted(rows: list[dict[str, Any]]) -> list[Section]:
    """The crash by itself on each row's mean, as the site file foretold it and as it came."""
    if not rows:
        return []
    line = (
        f"Load fell by {scaled(rows[0]['drop_w'], 'W')}; a crash at full power would be "
        f"{scaled(rows[0]['full_drop_w'], 'W')}. The figures are how far the row's mean of grid power falls by it."
    )
    heads = ("Limit", "Mean", "Allowed", "Foreseen, full crash", "Foreseen, this one", "Measured")
    body = [
        (
            text(row["limit"]),
            f"{row['mean_s']:g} s",
            *(scaled(row[key], "W") for key in ("allowed_w", "full_w", "predicted_w", "measured_w")),
        )
        for row in rows
    ]
    title = "The crash alone, as rampart check foresees it from the site file"
    return [Section(title, paragraph(line) + table(heads, body, numeric=range(1, len(heads))))]


# ------------------------------------------------------------------------------------------------ fine print


def _notes(record: RunRecord, result: dict[str, Any]) -> list[str]:
    notes = [
        "Verdicts are on plant truth sampled every 5 ms, with each row's assumed metering mean; the figure without a "
        "mean stands beside it (unaveraged).",
        "Work lost: the share of GPU work that jobs asked for and did not get because of caps.",
        f"Curves are minimum and maximum per bucket ({BUCKETS} buckets); pcc.csv has every 50 ms.",
    ]
    if result["controller"] != "none":
        notes.append(
            "Safe against a full crash: share of control cycles, from the first safe one on, at which every job could "
            "have crashed, or every capped GPU risen, without breaking a row. The margin curve is the least room for "
            "that; below 0 MW there was none. What a crash that did come left on each row is in the tables."
        )
    if result["edge"] == "linear":
        notes.append(
            "The trace's samples are joined linearly: no content above half its sampling rate was present, and nothing "
            "is said about it."
        )
    notes += [f"Outside the site file: {sentence}." for sentence in result["beyond_declared"]]
    return notes + [f"{row['id']}: {row['note']}" for row in result["limits"] if row["note"]]
