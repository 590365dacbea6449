"""From the plant bench's results to its tables: in the terminal, as Markdown between two markers of a page, as JSON.

Every number is out of a result; a run that failed or was cut short says so in its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controller.errors import BadInput
from controller.files import write_whole
from controller.types import frozen
from hil.bench_plant import NOT_RUN, Outcome, PreparedTrace
from hil.plant_cases import Case

BEGIN, END = "<!-- rampart bench plant: begin -->", "<!-- rampart bench plant: end -->"
SWING, RAMP = "ieso-ramp.swing-15s", "ieso-ramp.ramp-60s"
NO_ROW = "-"
SAFE_HEAD = "crash-safe: transient, power, energy (%)"
BROKEN_SHOWN = 4
FIGURES, TRACES, FIELD, RECORDS = "Named figures", "Every trace", "The field site", "Records"
TITLES = ("", FIGURES, TRACES, FIELD, RECORDS)  # in reading order, after what is said of all of them


@frozen
class TableText:
    """A table as text; every row as long as `heads`."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(outcomes: Sequence[Outcome], traces: Sequence[PreparedTrace]) -> tuple[TableText, ...]:
    """What the bench shows, in reading order; a table without rows is left out."""
    alone = {_place(o.job.case): o.result for o in outcomes if o.job.case.controller == "none" and o.result}
    found = (
        _figures([o for o in outcomes if o.job.case.group == "figures"]),
        _traces([o for o in outcomes if o.job.case.group == "traces"], alone),
        _traces([o for o in outcomes if o.job.case.group == "field"], alone, title=FIELD),
        _records(traces),
    )
    return tuple(t for t in found if t.rows)


def broken_promises(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for each run that failed or did not do what its row promises."""
    lines = []
    for o in outcomes:
        case, name = o.job.case, f"{o.job.case.title} ({o.job.case.edge}, {o.job.case.follow or 'no controller'})"
        if o.result is None:
            lines += [] if o.failure == NOT_RUN else [f"{name}: {o.failure}"]
            continue
        if o.job.is_cut:
            continue
        if case.must and case.must != _verdict(o.result):
            lines.append(f"{name}: should be {case.must}, is {_verdict(o.result)}")
        lost = float(o.result["work"]["lost_frac"])
        if case.lost_frac_max is not None and lost > case.lost_frac_max:
            lines.append(
                f"{name}: {100 * lost:.2f} % of the work lost, at most {100 * case.lost_frac_max:g} % promised"
            )
    return lines


def as_json(outcomes: Sequence[Outcome], traces: Sequence[PreparedTrace], *, cores: int) -> dict[str, object]:
    """All of it, for programs."""
    return {
        "cores": cores,
        "traces": [asdict(t) for t in traces],
        "rows": [
            {
                **asdict(o.job.case),
                "duration_s": o.job.duration_s,
                "lost_frac": o.result["work"]["lost_frac"] if o.result else None,
                "compliant": o.result["compliant"] if o.result else None,
                "limits": o.result["limits"] if o.result else [],
                "crash_safe_frac": o.result["crash_safe_frac"] if o.result else None,
                "crash_safe": o.result["crash_safe"] if o.result else None,
                "contingency": o.result["contingency"] if o.result else [],
                "speed_ratio": speed(o) if o.result else None,
                "failure": o.failure,
            }
            for o in outcomes
        ],
        "broken_promises": broken_promises(outcomes),
    }


def speed(outcome: Outcome) -> float:
    """Simulated seconds per second of one core."""
    assert outcome.result is not None
    return outcome.job.duration_s / max(float(outcome.result["cpu_s"]), 1e-9)


# ------------------------------------------------------------------------------------------------ tables


def _figures(outcomes: Sequence[Outcome]) -> TableText:
    heads = (
        "run",
        "edges",
        "following",
        "s",
        "work lost",
        "verdict",
        "nearest or broken rows",
        SAFE_HEAD,
        "x real time",
    )
    rows = []
    for o in outcomes:
        case = o.job.case
        head = (case.title, case.edge, case.follow or NO_ROW, f"{o.job.duration_s:.0f}")
        if o.result is None:
            rows.append((*head, NO_ROW, _why(o), *[NO_ROW] * 3))
            continue
        rows.append((*head, _lost(o), _verdict(o.result), _said(o.result), _safe(o), f"{speed(o):.0f}"))
    return TableText(FIGURES, heads, tuple(rows))


def _traces(
    outcomes: Sequence[Outcome], alone: Mapping[tuple[str, str], dict[str, Any]], *, title: str = TRACES
) -> TableText:
    heads = (
        "trace",
        "edges",
        "following",
        "target",
        "s",
        "work lost",
        "swing/15 s, of 5 MW",
        "ramp/60 s, of 20 MW",
        "verdict",
        "uncontrolled swing, ramp",
        SAFE_HEAD,
        "x real time",
    )
    rows = []
    for o in outcomes:
        case = o.job.case
        if case.controller == "none":
            continue  # stands beside the others, as their uncontrolled figures
        target = "-25 %" if case.has_target else NO_ROW
        head = (short_name(case.trace), case.edge, case.follow or NO_ROW, target, f"{o.job.duration_s:.0f}")
        if o.result is None:
            rows.append((*head, *[NO_ROW] * 3, _why(o), *[NO_ROW] * 3))
            continue
        before = alone.get(_place(case))
        uncontrolled = f"{_row(before, SWING)}, {_row(before, RAMP)}" if before else NO_ROW
        cells = (_lost(o), _row(o.result, SWING), _row(o.result, RAMP), _verdict_and_target(o.result), uncontrolled)
        rows.append((*head, *cells, _safe(o), f"{speed(o):.0f}"))
    return TableText(title, heads, tuple(rows))


def _records(traces: Sequence[PreparedTrace]) -> TableText:
    rows = tuple(
        (
            t.name,
            f"{t.step_s:g} s",
            f"{t.record_s:.0f} s" + (f" x {t.repeats}" if t.repeats > 1 else ""),
            f"x {t.scale:,.1f}",
            f"{t.mean_w / 1e6:.1f} MW",
        )
        for t in traces
    )
    return TableText(RECORDS, ("file", "step", "length", "multiplier", "mean"), rows)


def short_name(trace: str) -> str:
    return trace.removesuffix(".csv").removeprefix("mlperf_")


def _place(case: Case) -> tuple[str, str]:
    return case.trace, case.edge


def _why(outcome: Outcome) -> str:
    return outcome.failure if outcome.failure == NOT_RUN else f"failed: {outcome.failure}"


def _lost(outcome: Outcome) -> str:
    assert outcome.result is not None
    if outcome.job.case.controller == "none":
        return NO_ROW
    return f"{100 * float(outcome.result['work']['lost_frac']):.2f} %"


def _verdict(result: Mapping[str, Any]) -> str:
    return "held" if result["compliant"] else "broken"


def _verdict_and_target(result: Mapping[str, Any]) -> str:
    """The verdict, and where a target was to be met, by how much it was."""
    for row in result["limits"]:
        if row["id"].startswith("signal."):
            over_w = row["worst"] - row["limit"]
            said = "met" if row["verdict"] == "held" else f"passed by {over_w / 1e6:.2f} MW"
            return f"{_verdict(result)}; {row['limit'] / 1e6:.1f} MW {said}"
    return _verdict(result)


def _row(result: Mapping[str, Any] | None, limit_id: str) -> str:
    """Worst figure of a row in MW; the seconds it was broken for."""
    row = next((r for r in result["limits"] if r["id"] == limit_id), None) if result else None
    if row is None:
        return NO_ROW
    broken = f" ({row['violation_s']:.0f} s)" if row["verdict"] == "broken" else ""
    return f"{row['worst'] / 1e6:.2f}{broken}"


def _said(result: Mapping[str, Any]) -> str:
    """Every broken row with its figures, worst first; of a run that held, the row with the least room."""
    rows = [r for r in result["limits"] if r["unit"].startswith("W") and r["limit"] > 0.0]
    rows.sort(key=lambda r: -r["worst"] / r["limit"])
    broken = [r for r in rows if r["verdict"] == "broken"]
    shown = [_one(r, with_time=True) for r in broken[:BROKEN_SHOWN]]
    if len(broken) > BROKEN_SHOWN:
        shown.append(f"and {len(broken) - BROKEN_SHOWN} more")
    if not broken:
        shown = [_one(r, with_time=False) for r in rows if r["verdict"] in ("held", "held_partial")][:1]
    shown += [f"dip {e['dip_raw_w'] / 1e6:.1f} MW raw" for e in result["contingency"] if e.get("dip_raw_w")]
    return "; ".join(shown) or NO_ROW


def _one(row: Mapping[str, Any], *, with_time: bool) -> str:
    unit = "MW/s" if row["unit"] == "W/s" else "MW"
    text = f"{row['id']} {row['worst'] / 1e6:.2f} of {row['limit'] / 1e6:.2f} {unit}"
    return f"{text}, {row['violation_s']:.1f} s" if with_time else text


def _safe(outcome: Outcome) -> str:
    """Shares of ticks at which each condition of a full crash held."""
    result = outcome.result
    assert result is not None
    if outcome.job.case.controller == "none":
        return NO_ROW
    shares = [result["crash_safe"].get(name) for name in ("transient", "power", "energy")]
    return ", ".join(NO_ROW if share is None else f"{100 * share:.1f}" for share in shares)


# ------------------------------------------------------------------------------------------------ rendering


def markdown(found: Sequence[TableText]) -> str:
    """The tables as Markdown."""
    parts = []
    for table in found:
        lines = [f"### {table.title}", "", "| " + " | ".join(table.heads) + " |", "|---" * len(table.heads) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def put_between_markers(path: Path, text: str, *, is_part: bool = False) -> tuple[str, ...]:
    """Replace what stands between the markers of `path`; a page that is not there yet is made of the text alone.

    With `is_part` the page keeps tables that `text` has none of, in their places; their titles are returned.
    """
    try:
        page = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
        before, has_begin, rest = page.partition(BEGIN)
        known, has_end, after = rest.partition(END)
        if not (has_begin and has_end):
            raise BadInput(f"--out {path}: no lines {BEGIN} and {END} to write the tables between")
        kept: tuple[str, ...] = ()
        if is_part:
            text, kept = _merged(known, text)
        write_whole(path, f"{before}{BEGIN}\n{text.rstrip()}\n{END}{after}")
    except OSError as error:
        raise BadInput(f"--out {path}: {error.strerror or error}") from None
    return kept


def _merged(known: str, text: str) -> tuple[str, tuple[str, ...]]:
    """`text` with the tables of `known` that it has none of, in reading order; the titles of those."""
    old, new = _by_title(known), _by_title(text)
    kept = tuple(title for title in old if title not in new)
    titles = sorted({**old, **new}, key=lambda title: TITLES.index(title) if title in TITLES else len(TITLES))
    return "\n".join(new.get(title) or old[title] for title in titles), kept


def _by_title(text: str) -> dict[str, str]:
    """Each table with its heading, by its title; what stands before the first is under no title."""
    first, *parts = re.split(r"^### ", text, flags=re.MULTILINE)
    found = {"": first.strip() + "\n"} if first.strip() else {}
    return found | {part.partition("\n")[0]: f"### {part.rstrip()}\n" for part in parts}
