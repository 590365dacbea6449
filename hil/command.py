"""What `rampart hil run` does: run, judge, write the results, print them, and say by exit status how it went."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from controller.errors import BadInput
from hil.bench import run
from hil.console import LiveLine, print_result
from hil.report_page import write_report
from hil.result import exit_code, result_of, write_result
from hil.scenario import Overrides, load_scenario


def run_and_report(name_or_file: str, overrides: Overrides, *, out: Path | None) -> int:
    """Exit status of the run; results are in `out` when it returns."""
    scenario = load_scenario(name_or_file, overrides)
    folder = out or Path("out") / "hil" / scenario.doc.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror or error}") from None
    console = Console()
    with LiveLine(console, scenario.doc.name) as line:
        record = run(scenario, out=folder, on_progress=line.show)
    result = result_of(record)
    write_result(result, folder / "result.json")
    write_report(record, result, folder / "report.html")
    print_result(console, result)
    console.print(f"[dim]results in[/dim] {folder}", highlight=False)
    return exit_code(result)
