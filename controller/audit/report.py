"""The audit report: what a power engineer hands to a utility. Built from `Verdicts` alone; the bench reuses it.

`render` and `Section` come from `page`; `verdict_section`, `record_section`, `row_sections`, `spectrum_section` and
`method_section` are each usable in another page.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.audit.figures import line_figure, moment_figure, overview, spectrum_figure
from controller.audit.page import (
    Figure,
    Section,
    banner,
    facts,
    paragraph,
    render,
    table,
    tag,
    text,
)
from controller.audit.verdicts import RowResult, Verdicts
from controller.audit.words import amount, assumptions, power, rule_in_words
from controller.types import (
    CeilingLimit,
    FloorLimit,
    RowVerdict,
)

__all__ = ["Figure", "Section", "audit_report", "render"]

EPISODES_SHOWN = 20
TONES = {
    RowVerdict.HELD: "good",
    RowVerdict.HELD_PARTIAL: "part",
    RowVerdict.BROKEN: "bad",
    RowVerdict.NOT_COVERED: "part",
    RowVerdict.NOT_BINDING: "none",
}


def audit_report(
    verdicts: Verdicts,
    *,
    subject: str,
    columns: Sequence[str],
    start_utc: str | None = None,
    assumed_peak_w: float | None = None,
) -> str:
    """The whole page."""
    named = columns[0] if len(columns) == 1 else f"sum of {len(columns)} columns"
    start = f", from {start_utc}" if start_utc else ""
    sections = [
        verdict_section(verdicts),
        record_section(verdicts, assumed_peak_w=assumed_peak_w),
        *row_sections(verdicts),
        spectrum_section(verdicts),
        uncovered_section(verdicts),
        method_section(verdicts),
    ]
    return render(
        f"Power audit: {subject}",
        [s for s in sections if s is not None],
        subtitle=f"Judged against {verdicts.contract.replace('+', ', ')}. Power: {named}{start}.",
        footer="Made by rampart audit. Figures can be zoomed by dragging; double click to reset.",
    )


def verdict_section(verdicts: Verdicts) -> Section:
    """The answer, then one line per row."""
    broken = [row for row in verdicts.limits if row.verdict is RowVerdict.BROKEN]
    missing = f" Not assessed in full: {', '.join(verdicts.not_assessed)}." if verdicts.not_assessed else ""
    if broken:
        head = banner(
            f"Not compliant: {len(broken)} of {len(verdicts.limits)} rows broken",
            f"{', '.join(row.id for row in broken)}.{missing}",
            tone="bad",
        )
    else:
        tone = "part" if verdicts.not_assessed else "good"
        head = banner("Compliant: no row is broken", (missing or " Every row was assessed.").strip(), tone=tone)
    rows = [_verdict_row(row) for row in verdicts.limits]
    names = ("Row", "Verdict", "Worst", "Limit", "Of limit", "Unaveraged", "At", "Broken for", "Episodes", "Mean")
    return Section("", head + table(names, rows, numeric=range(2, 10)))


def _verdict_row(row: RowResult) -> tuple[str, ...]:
    is_seen = row.verdict is not RowVerdict.NOT_COVERED
    return (
        f"<b>{text(row.id)}</b>",
        tag(row.verdict.value.replace("_", " "), tone=TONES[row.verdict]),
        text(amount(row.worst, row.unit)) if is_seen else "-",
        text(amount(row.limit, row.unit)),
        f"{100.0 * row.worst / row.limit:.1f} %" if is_seen and row.limit else "-",
        text(amount(row.worst_raw, row.unit)) if is_seen else "-",
        f"{row.worst_t_s:,.1f} s" if is_seen else "-",
        f"{row.violation_s:,.1f} s" if row.episodes else "-",
        str(row.episodes) if row.episodes else "-",
        f"{row.mean_s:g} s" if row.mean_s else "none",
    )


def record_section(verdicts: Verdicts, *, assumed_peak_w: float | None = None) -> Section:
    """What was judged: its figures, and the whole record in one plot."""
    record = verdicts.record
    peak = power(record.registered_peak_w) if record.registered_peak_w is not None else "not given"
    pairs = [
        ("duration", _duration(record.duration_s)),
        ("samples", f"{record.samples:,}"),
        ("step", f"{record.step_s:.4g} s"),
        ("lowest / highest", f"{power(record.power_w_min)} / {power(record.power_w_max)}"),
        ("mean", power(record.power_w_mean)),
        ("registered peak" + (" (assumed)" if assumed_peak_w is not None else ""), peak),
        ("gaps", f"{record.gap_count} ({record.gap_s:.4g} s)" if record.gap_count else "none"),
    ]
    note = ""
    if assumed_peak_w is not None:
        note = paragraph("The registered peak was not given; the record's highest power stands for it in fractions.")
    figures = (Figure(overview(verdicts), ""),) if verdicts.overview is not None else ()
    return Section("The record", facts(pairs) + note, figures)


def row_sections(verdicts: Verdicts) -> list[Section]:
    """For every row that was seen: what it asks, its worst moment, its distribution and its episodes."""
    found = [Section("Row by row")]
    for row in verdicts.limits:
        tone = TONES[row.verdict]
        head = f"<h3>{text(row.id)} {tag(row.verdict.value.replace('_', ' '), tone=tone)}</h3>"
        head += paragraph(rule_in_words(row.rule))
        head += paragraph(_origin(row), small=True)
        if row.note:
            head += paragraph(row.note[0].upper() + row.note[1:] + ".", small=True)
        if row.verdict is RowVerdict.NOT_COVERED:
            found.append(Section("", head))
            continue
        figures = tuple(f for f in (moment_figure(row), line_figure(row)) if f is not None)
        found.append(Section("", head + _figures_of(row), figures))
        if row.episode_list:
            found.append(Section("", _episodes(row)))
    return found


def spectrum_section(verdicts: Verdicts) -> Section | None:
    """Content of power from 0.1 to 55 Hz over the whole record."""
    spectrum = verdicts.spectrum
    heading = "Spectrum, 0.1 to 55 Hz"
    if spectrum is None:
        reason = "The record is too short, too coarse or too broken up for a spectrum between 0.1 and 55 Hz."
        return Section(heading, paragraph(reason))
    figure = spectrum_figure(spectrum, verdicts)
    nyquist_hz = 0.5 / verdicts.record.step_s
    line = (
        f"{spectrum.span_count} Hann-windowed spans of {spectrum.span_s:g} s, half overlapping, linear trend removed; "
        "amplitude of a steady line reads as its peak."
    )
    if nyquist_hz < 55.0:
        line += f" The record shows nothing above {nyquist_hz:.4g} Hz."
    return Section(heading, paragraph(line, small=True), (Figure(figure, "", 360),))


def uncovered_section(verdicts: Verdicts) -> Section:
    """What was not covered, and why."""
    record = verdicts.record
    lines: list[str] = []
    for row in verdicts.limits:
        short_s = record.duration_s - row.covered_s
        if row.verdict is RowVerdict.NOT_COVERED:
            lines.append(f"{row.id}: not covered: {row.note}.")
        elif short_s > 0.5 * record.step_s + 1e-9 and row.kind != "ride_through":
            why = _why(row, has_gaps=record.gap_count > 0)
            lines.append(f"{row.id}: {_duration(short_s)} of {_duration(record.duration_s)} not covered{why}.")
    body = "".join(paragraph(line) for line in lines) or paragraph("Every row covers the whole record.")
    if record.gap_count:
        rule = (
            f"An interval above {record.gap_rule_s:.4g} s between two samples is a gap. Nothing is assumed inside it."
        )
        rows = [(f"{g.start_s:,.3f} s", f"{g.end_s:,.3f} s", f"{g.end_s - g.start_s:,.3f} s") for g in record.gaps]
        body += paragraph(rule) + table(("From", "To", "Length"), rows[:EPISODES_SHOWN], numeric=(0, 1, 2))
        if record.gap_count > EPISODES_SHOWN:
            body += paragraph(f"... and {record.gap_count - EPISODES_SHOWN} more.", small=True)
    return Section("What was not covered", body)


def method_section(verdicts: Verdicts) -> Section:
    """Metering assumptions, and where each row comes from."""
    rows = [
        (
            f"<b>{text(row.id)}</b>",
            text(row.rule.provenance.source),
            text(row.rule.provenance.date),
            text(row.rule.provenance.status.value),
            text(row.rule.provenance.assumption or "-"),
        )
        for row in verdicts.limits
    ]
    line = assumptions()
    body = paragraph(line[0].upper() + line[1:])
    body += paragraph(
        "Windows are exact on the joined line: every pair of instants, not every pair of samples. Filters: "
        "Butterworth, order 4, forwards and backwards; the first and last period of the lower corner are not covered. "
        "Broken time is the total length of the window ends at which a row does not hold."
    )
    return Section(
        "Method and sources", body + table(("Row", "Source", "Date", "Status", "What in it is our assumption"), rows)
    )


# --------------------------------------------------------------------------------------------------- words


def _figures_of(row: RowResult) -> str:
    pairs = [("Worst", row.worst), ("Limit", row.limit), ("Worst, unaveraged", row.worst_raw)]
    if row.within is not None and row.endpoint is not None:
        pairs += [("Every pair of instants", row.within), ("Window's two ends only", row.endpoint)]
    pairs += [(f"{name[1:]} % of the time below", value) for name, value in row.percentiles.items()]
    names = [name for name, _ in pairs]
    return table(names, [[text(amount(value, row.unit)) for _, value in pairs]], numeric=range(len(pairs)))


def _episodes(row: RowResult) -> str:
    ranked = sorted(row.episode_list, key=lambda e: e.start_s - e.end_s)[:EPISODES_SHOWN]
    rows = [
        (f"{e.start_s:,.2f} s", f"{e.end_s:,.2f} s", f"{e.end_s - e.start_s:,.2f} s", text(amount(e.worst, row.unit)))
        for e in sorted(ranked, key=lambda e: e.start_s)
    ]
    more = row.episodes - len(rows)
    note = paragraph(f"The {len(rows)} longest of {row.episodes} episodes.", small=True) if more > 0 else ""
    return note + table(("From", "To", "Length", "Worst in it"), rows, numeric=(0, 1, 2, 3))


def _origin(row: RowResult) -> str:
    origin = row.rule.provenance
    own = f" Our assumption: {origin.assumption}" if origin.assumption else ""
    return f"{origin.source}, {origin.date} ({origin.status.value}).{own}"


def _why(row: RowResult, *, has_gaps: bool) -> str:
    reasons = ["the gaps"] if has_gaps else []
    if getattr(row.rule, "band_hz", None) is not None:
        reasons.append("the ends of the record and of each gap, where a filter or a span has no past or no future")
    elif row.mean_s > 0.0:
        reasons.append(f"the first {row.mean_s:g} s of the record and after each gap, where the mean is not yet whole")
    if (
        row.kind == "ramp"
        and row.verdict is not RowVerdict.NOT_COVERED
        and getattr(row.rule, "reading", "") == "endpoint"
    ):
        reasons.append("window ends less than a window after the record's start")
    if isinstance(row.rule, CeilingLimit | FloorLimit):
        reasons.append("times in which the row does not apply")
    return f" ({'; '.join(reasons)})" if reasons else ""


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.4g} s"
    if seconds < 7200.0:
        return f"{seconds / 60.0:.4g} min"
    return f"{seconds / 3600.0:.4g} h"
