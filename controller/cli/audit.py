"""`rampart audit`: the referee on any power record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from controller.audit.verdicts import Verdicts
    from controller.config.record import RecordFile
    from controller.types import Contract

app = typer.Typer()

WIDE_COLUMNS = 100  # below it the table leaves out what the JSON has anyway
PROGRESS_FROM_BYTES = 50_000_000  # shorter files are done before a bar is read


@app.command("audit")
def audit(
    csv: Path = typer.Argument(..., metavar="CSV", help="Power record: first column time (seconds or ISO 8601)."),
    contract: list[str] = typer.Option(
        ..., "--contract", metavar="NAME|FILE", help="Shipped profile or file; give it again to combine several."
    ),
    column: str | None = typer.Option(None, help="Power column. Default: pcc_w, else the sum of all *_w, *_kw, ..."),
    scale: float = typer.Option(1.0, help="Multiply power by this."),
    unit: str | None = typer.Option(None, metavar="W|kW|MW", help="Unit of the power column. Default: by its name."),
    registered_peak_megawatt: float | None = typer.Option(
        None, help="The site's registered peak. Default: the record's highest power, where a row needs one."
    ),
    gap_s: float | None = typer.Option(
        None, help="Longest interval that is not a gap. Default: 3 steps, at least 20 ms."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
    html: Path | None = typer.Option(None, metavar="FILE", help="Write a report that opens in any browser, offline."),
) -> None:
    """Judge a power record against grid contracts. Exit 0: no row broken; 1: broken; 2: bad input.

    Example: rampart audit meter.csv --contract ieso-ramp --html report.html
    """
    from controller.config.record import open_record
    from controller.errors import BadInput

    if gap_s is not None and not gap_s > 0.0:
        raise BadInput(f"--gap-s {gap_s:g}: must be above zero")
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"--html {html}: a name that ends in .html is allowed, so that no other file is overwritten")
    record = open_record(csv, column=column, unit=unit, scale=scale)
    rules, assumed_peak = _contract(contract, registered_peak_megawatt, record)
    verdicts = _judge(record, rules, gap_s=gap_s, with_spectrum=html is not None)
    if html is not None:
        _write_report(html, verdicts, record, assumed_peak)
    if as_json:
        typer.echo(json.dumps(_document(verdicts, record, assumed_peak), indent=2))
    else:
        _print_table(verdicts, record, assumed_peak)
        if html is not None:
            typer.echo(f"report: {html}")
    if not verdicts.is_compliant:
        raise typer.Exit(1)


def _contract(names: list[str], peak_megawatt: float | None, record: RecordFile) -> tuple[Contract, float | None]:
    """The contract, and the peak assumed where fractions needed one that was not given."""
    from controller.config.contract import load_contract, needs_registered_peak
    from controller.errors import BadInput

    if peak_megawatt is not None:
        return load_contract(names, registered_peak_w=peak_megawatt * 1e6), None
    if not needs_registered_peak(names):
        return load_contract(names, registered_peak_w=None), None
    highest_w = record.highest_w()
    if highest_w <= 0.0:
        raise BadInput(
            f"{record.path}: power is never above zero, and {', '.join(names)} has fractions of the registered peak: "
            "give --registered-peak-megawatt"
        )
    return load_contract(names, registered_peak_w=highest_w), highest_w


def _judge(record: RecordFile, rules: Contract, *, gap_s: float | None, with_spectrum: bool) -> Verdicts:
    from rich.console import Console
    from rich.progress import Progress

    from controller.audit.referee import Referee

    referee = Referee(rules, gap_s=gap_s, with_spectrum=with_spectrum)
    quiet = record.size_bytes < PROGRESS_FROM_BYTES
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task(f"judging {record.path.name}", total=1.0)
        for block in record.blocks():
            referee.feed(block.t_s, block.power_w, voltage_pu=block.voltage_pu, frequency_hz=block.frequency_hz)
            progress.update(task, completed=block.done_frac)
        return referee.finish()


def _document(verdicts: Verdicts, record: RecordFile, assumed_peak: float | None) -> dict[str, object]:
    document = verdicts.to_json()
    facts = document["record"]
    assert isinstance(facts, dict)
    facts["file"] = record.path.name
    facts["columns"] = list(record.power_columns)
    facts["start_utc"] = record.start_utc.isoformat() if record.start_utc is not None else None
    facts["registered_peak_assumed"] = assumed_peak is not None
    return document


def _print_table(verdicts: Verdicts, record: RecordFile, assumed_peak: float | None) -> None:
    from rich import box
    from rich.table import Table

    from controller.audit.words import amount, assumptions, record_lines, verdict_style
    from controller.terminal import open_console

    console = open_console()
    is_wide = console.width >= WIDE_COLUMNS
    title = f"{record.path.name} against {verdicts.contract}"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("row", "verdict", "worst", "limit", *(("raw", "mean") if is_wide else ()), "at", "broken for"):
        is_row = name == "row"  # broken over lines where there is no room, for its end tells one row from the next
        justify: Literal["left", "right"] = "left" if name in ("row", "verdict") else "right"
        table.add_column(name, justify=justify, no_wrap=not is_row, overflow="fold" if is_row else "ellipsis")
    for row in verdicts.limits:
        is_seen = row.verdict.value != "not_covered"
        wide = (amount(row.worst_raw, row.unit) if is_seen else "-", f"{row.mean_s:g} s" if row.mean_s else "none")
        table.add_row(
            row.id,
            f"[{verdict_style(row.verdict)}]{row.verdict.value.replace('_', ' ')}[/]",
            amount(row.worst, row.unit) if is_seen else "-",
            amount(row.limit, row.unit),
            *(wide if is_wide else ()),
            f"{row.worst_t_s:,.1f} s" if is_seen else "-",
            f"{row.violation_s:,.1f} s ({row.episodes}x)" if row.episodes else "-",
        )
    console.print(table)
    for line in record_lines(verdicts.record, record.power_columns, assumed_peak_w=assumed_peak):
        console.print(line, style="dim", highlight=False)
    for row in verdicts.limits:
        if row.note:
            console.print(f"{row.id}: {row.note}", style="dim", highlight=False, markup=False)
    console.print(assumptions(), style="dim", highlight=False)
    word = "[green]compliant: no row broken[/]" if verdicts.is_compliant else "[bold red]not compliant[/]"
    missing = f"; not assessed: {', '.join(verdicts.not_assessed)}" if verdicts.not_assessed else ""
    console.print(f"{word}{missing}", highlight=False)


def _write_report(path: Path, verdicts: Verdicts, record: RecordFile, assumed_peak: float | None) -> None:
    from controller.audit.report import audit_report
    from controller.errors import BadInput
    from controller.files import write_whole

    page = audit_report(
        verdicts,
        subject=record.path.name,
        columns=record.power_columns,
        start_utc=record.start_utc.isoformat() if record.start_utc is not None else None,
        assumed_peak_w=assumed_peak,
    )
    try:
        write_whole(path, page)
    except OSError as error:
        raise BadInput(f"--html {path}: {error.strerror or error}") from None
