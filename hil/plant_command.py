"""What `rampart bench plant` does: prepare traces, make the runs with a progress bar, write the tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from controller.errors import BadInput
from hil.bench_plant import NOT_RUN, Outcome, PreparedTrace, make_jobs, prepare_traces, run_jobs
from hil.plant_cases import FIGURE_TRACE, Case, Group, field_cases, figure_cases, trace_cases
from hil.plant_page import as_json as page_json
from hil.plant_page import broken_promises, markdown, put_between_markers, tables

OUT = Path("out") / "benchmarks"
DEFAULT_TRACES = Path("..") / "shared" / "traces"
TABLE_WIDTH = 160  # narrower tables cannot be read; a narrow terminal scrolls or wraps
GOOD, BROKEN, INTERRUPTED = 0, 1, 130


def bench_plant(
    *,
    traces: str | None,
    seconds_max: float,
    jobs: int,
    only: str | None,
    as_json: bool,
    page: str | None,
    is_full: bool = False,
) -> int:
    """Exit status: 1 when a run failed or a promise was not kept, 130 when it was interrupted."""
    if only is not None and only not in get_args(Group):
        raise BadInput(f"--only {only}: must be one of {', '.join(get_args(Group))}")
    console = Console(stderr=as_json)
    folder = Path(traces) if traces else DEFAULT_TRACES
    prepared, others = prepare_traces(folder, OUT)
    for line in others:
        console.print(f"[dim]not replayed:[/dim] {line}", highlight=False)
    cases = chosen_cases(prepared, only)
    if is_full:
        cases = tuple(case.whole() for case in cases)
    outcomes = _run(cases, prepared, console, seconds_max=seconds_max, processes=jobs)
    cores = os.cpu_count() or 1
    if as_json:
        print(json.dumps(page_json(outcomes, prepared, cores=cores), indent=1))
    else:
        _show(console, outcomes, prepared)
    if page is not None:
        text = f"{_basis(cores=cores)}\n\n{markdown(tables(outcomes, prepared))}"
        kept = put_between_markers(Path(page), text, is_part=only is not None)
        console.print(f"[dim]tables in[/dim] {page}", highlight=False)
        if kept:
            console.print(f"[dim]kept as they were, not measured now:[/dim] {', '.join(kept)}", highlight=False)
    broken = broken_promises(outcomes)
    for line in broken:
        console.print(f"[bold red]not kept:[/bold red] {line}", highlight=False)
    missing = sum(1 for o in outcomes if o.result is None and o.failure == NOT_RUN)
    if missing:
        console.print(f"interrupted: {missing} runs are left; the same command goes on with them", highlight=False)
        return INTERRUPTED
    return BROKEN if broken else GOOD


def chosen_cases(prepared: tuple[PreparedTrace, ...], only: str | None) -> tuple[Case, ...]:
    """The runs asked for, the most telling first. The named figures need their trace."""
    named = [(t.name, t.is_fine) for t in prepared]
    cases: list[Case] = []
    if only in (None, "figures"):
        if any(t.name == FIGURE_TRACE for t in prepared):
            cases += figure_cases(FIGURE_TRACE)
        elif only == "figures":
            raise BadInput(f"--only figures: {FIGURE_TRACE} is not among the traces")
    if only in (None, "traces"):
        cases += trace_cases(named)
    if only in (None, "field"):
        cases += field_cases(named)
    return tuple(cases)


def _run(
    cases: tuple[Case, ...],
    prepared: tuple[PreparedTrace, ...],
    console: Console,
    *,
    seconds_max: float,
    processes: int,
) -> list[Outcome]:
    found = make_jobs(cases, prepared, seconds_max=seconds_max)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} simulated s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with progress:
        task = progress.add_task("plant bench", total=sum(j.duration_s for j in {j.key: j for j in found}.values()))

        def show(done_s: float, name: str) -> None:
            progress.update(task, completed=done_s, description=name or "plant bench")

        return run_jobs(found, out=OUT, processes=processes, on_progress=show)


def _show(console: Console, outcomes: list[Outcome], prepared: tuple[PreparedTrace, ...]) -> None:
    console = Console(file=console.file, width=max(console.width, TABLE_WIDTH))
    for found in tables(outcomes, prepared):
        table = Table(title=found.title)
        for head in found.heads:
            table.add_column(head, overflow="fold")
        for row in found.rows:
            table.add_row(*row)
        console.print(table, highlight=False)


def _basis(*, cores: int) -> str:
    """What the tables were measured on."""
    return (
        f"Measured on {cores} cores, which other work shared. `x real time`: simulated seconds per second of one core."
    )
