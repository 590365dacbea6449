"""A run on wires as a person starts it: ended in order by Ctrl-C or SIGTERM.

`pcc.csv` is whole or not there, and what an earlier run left is gone before this one begins: an interrupted run must
not look finished.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from controller.errors import BadInput
from controller.settings import Policy
from hil.bench import RunRecord
from hil.run_log import whole_file
from hil.scenario import Scenario
from hil.wire import Snapshot, WireBench


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; everything is stopped by the time this is raised."""


def run_wire(scenario: Scenario, *, out: Path, show: Callable[[Snapshot], None]) -> RunRecord:
    """Run `scenario` on wires; `pcc.csv`, the recording, the files and the logs of both processes go to `out`.

    Raises BadInput, ChildDied, NotReady or Interrupted; by then every process is gone.
    """
    site = scenario.settings.site
    assert site is not None, "a scenario's site file has role site"
    if site.policy is Policy.NONE:
        raise BadInput("--controller none: --wire runs the shipped processes; leave one of the two out")
    if scenario.settings.grid is None or site.meter is None or site.battery is None:
        raise BadInput(f"{scenario.doc.name}: --wire needs pcc_meter, battery and grid in the site file")
    with whole_file(out / "pcc.csv") as csv_file:
        for stale in ("result.json", "report.html", "recording.jsonl.gz"):
            (out / stale).unlink(missing_ok=True)  # of an earlier run: an interrupted one must not look finished
        bench = WireBench(scenario, site, out=out, csv_file=csv_file, show=show)
        return asyncio.run(supervised(bench))


async def supervised(bench: WireBench) -> RunRecord:
    """The run, ended early by Ctrl-C or SIGTERM; a second one kills what is left."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_asked = False

    def ask() -> None:
        nonlocal is_asked
        if is_asked:
            bench.kill()
        elif not bench.is_stopping:
            is_asked = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    try:
        return await bench.run_through()
    except asyncio.CancelledError:
        if is_asked:
            left = len(bench.left_throttled)
            state = f"{left} GPUs left throttled" if left else "every GPU at the settings it had"
            raise Interrupted(f"interrupted: processes stopped, {state}") from None
        raise
