"""What `rampart hil run` does: run, judge, write the results, print them, and say by exit status how it went."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import structlog
from rich.console import Console

from controller.errors import BadInput
from controller.logs import set_up_logs
from controller.terminal import open_console
from controller.types import replace
from hil.bench import RunRecord, run
from hil.console import LiveLine, print_beyond, print_result
from hil.declared import beyond_declared
from hil.report_page import write_report
from hil.result import exit_code, result_of, write_result
from hil.run_log import alone_in
from hil.scenario import Overrides, Scenario, load_scenario
from hil.world import World

CHECK_FAILED, INTERNAL, INTERRUPTED = 1, 3, 130


def run_and_report(name_or_file: str, overrides: Overrides, *, out: Path | None, is_wire: bool = False) -> int:
    """Exit status of the run; results are in `out` when it returns."""
    set_up_logs(logging.ERROR)  # what the daemon under test logs would break the progress line; it is in the report
    if is_wire:
        overrides = _in_real_time(overrides)
    scenario = load_scenario(name_or_file, overrides)
    folder = out or Path("out") / "hil" / scenario.doc.name
    if folder.is_file():
        raise BadInput(f"--out {folder}: is a file; a folder is allowed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # a folder that takes no file is told before the run, not after it
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror or error}") from None
    console = open_console()
    with alone_in(folder):
        return _on_wires(scenario, console, folder) if is_wire else _in_process(scenario, console, folder)


def _in_process(scenario: Scenario, console: Console, folder: Path) -> int:
    def warn(world: World) -> None:
        assert scenario.settings.site is not None
        print_beyond(console, beyond_declared(world, scenario.settings.site))

    with LiveLine(console, scenario.doc.name) as line:
        record = run(scenario, out=folder, on_progress=line.show, on_start=warn)
    result = _write(record, folder)
    print_result(console, result)
    console.print(f"[dim]results in[/dim] {folder}", highlight=False, soft_wrap=True)
    return exit_code(result)


def _on_wires(scenario: Scenario, console: Console, folder: Path) -> int:
    from hil.demo import Board, print_wire
    from hil.wire import NotReady
    from hil.wire_children import ChildDied
    from hil.wire_run import Interrupted, run_wire

    # The grid's own link says when it comes up; the board and the processes' logs say all that matters.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        with Board(console, scenario.doc.name) as board:
            record = run_wire(scenario, out=folder, show=board.show)
    except Interrupted as interrupted:
        console.print(str(interrupted), highlight=False)
        return INTERRUPTED
    except (ChildDied, NotReady) as error:
        console.print(f"rampart: {error}", highlight=False, markup=False, soft_wrap=True)  # paths stay whole
        return INTERNAL
    result = _write(record, folder)
    print_result(console, result)
    print_wire(console, result, folder)
    console.print(f"[dim]results in[/dim] {folder}", highlight=False, soft_wrap=True)
    assert record.wire is not None
    return exit_code(result) if record.wire.left_all_clean else CHECK_FAILED


def _write(record: RunRecord, folder: Path) -> dict[str, object]:
    result = result_of(record)
    write_result(result, folder / "result.json")
    write_report(record, result, folder / "report.html")
    return result


def _in_real_time(overrides: Overrides) -> Overrides:
    if overrides.clock == "virtual":
        raise BadInput("--clock virtual: --wire runs on the real clock; leave one of the two out")
    return replace(overrides, clock="real")
