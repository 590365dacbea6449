"""A bench run in the terminal: one live line while it runs, then the table of limits and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from hil.bench import Progress as Where
from hil.report_page import mode_events, scaled

WIDE_COLUMNS = 110
WIDE_ONLY = ("worst raw", "at")
VERDICT_STYLE = {"held": "green", "held_partial": "green", "broken": "bold red", "not_covered": "yellow"}


class LiveLine:
    """A progress bar with the site's powers beside it."""

    def __init__(self, console: Console, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=1.0, state="")

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, where: Where) -> None:
        band = "" if math.isnan(where.low_w) else f" in {_short(where.low_w)}..{_short(where.high_w)}"
        state = (
            f"grid {_short(where.pcc_w)}{band} MW, load {_short(where.load_w)}, battery {_short(where.battery_w)} at "
            f"{100 * where.soc_frac:.0f} %, caps {100 * where.cap_frac:.0f} %, {where.ratio:.0f} x"
        )
        self._progress.update(self._task, completed=where.t_s / where.duration_s, state=state)


def print_beyond(console: Console, sentences: Iterable[str]) -> None:
    """What a scenario asks of its site beyond what that declares."""
    for sentence in sentences:
        console.print(f"outside the site file: {sentence}", style="yellow", highlight=False, markup=False)


def print_result(console: Console, result: dict[str, Any]) -> None:
    """The verdict of every row, then work, battery, margins and each unannounced event."""
    console.print(_limits(result, is_wide=console.width >= WIDE_COLUMNS))
    console.print(_costs(result))
    if result["contingency"]:
        console.print(_alone(result))
    for event in sorted(result["events"] + result["faults"] + mode_events(result), key=lambda e: e["t_s"]):
        console.print(f"  {event['t_s']:9.1f} s  {event['id']}: {event['detail']}", highlight=False)
    if result["not_assessed"]:
        console.print("not assessed: " + ", ".join(result["not_assessed"]), style="yellow", highlight=False)
    if result["edge"] == "linear":
        console.print("linear edges: no content above half the trace's sampling rate was present", style="dim")


def _limits(result: dict[str, Any], *, is_wide: bool) -> Table:
    """One row a line at 80 columns: what a narrow terminal has no room for is in the report."""
    title = f"{result['scenario']}: {result['contract']}, controller {result['controller']}"
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    table.add_column("limit", overflow="fold")
    names = ["worst", "allowed", "worst raw", "at", "broken for", "verdict"]
    for name in names if is_wide else [name for name in names if name not in WIDE_ONLY]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["limits"]:
        style = VERDICT_STYLE.get(row["verdict"], "dim")
        cells = [scaled(row["worst"], row["unit"]), scaled(row["limit"], row["unit"])]
        if is_wide:
            cells += [scaled(row["worst_raw"], row["unit"]), f"{row['worst_t_s']:.1f} s"]
        verdict = row["verdict"].replace("_", " ")
        table.add_row(row["id"], *cells, f"{row['violation_s']:.1f} s", f"[{style}]{verdict}[/{style}]")
    return table


def _costs(result: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("work lost", f"{100 * result['work']['lost_frac']:.3f} %")
    battery = result["battery"]
    if battery is not None:
        table.add_row(
            "battery",
            f"peak {battery['peak_w'] / 1e6:.1f} MW, {battery['throughput_wh'] / 1e6:.2f} MWh through, state of charge "
            f"{100 * battery['start_soc_frac']:.1f} to {100 * battery['end_soc_frac']:.1f} %",
        )
    if result["controller"] != "none":
        by_name = ", ".join(f"{k} {100 * v:.1f} %" for k, v in result["crash_safe"].items() if v is not None)
        table.add_row("crash-safe", f"{100 * result['crash_safe_frac']:.2f} % of ticks ({by_name or 'no margins'})")
        if set(result["modes"]) != {"normal"} or result["envelope"]["violations"]:
            modes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in result["modes"].items())
            broken = ", ".join(f"{n} of invariant {k}" for k, n in result["envelope"]["violations"].items())
            table.add_row("modes", f"{modes}; envelope: {broken or 'nothing to correct'}")
        tick, solve = result["tracker"]["tick_ms"], result["planner"]["solve_ms"]
        table.add_row(
            "computing",
            f"tick p50 {tick['p50']:.2f} p99 {tick['p99']:.2f} ms, plan p50 {solve['p50']:.2f} "
            f"p99 {solve['p99']:.2f} ms, {result['planner']['fallbacks']} fallbacks "
            f"of {result['planner']['cycles']} plans",
        )
    took = f"{result['duration_s']:.0f} s in {result['wall_ms'] / 1e3:.1f} s"
    if result["clock"] == "virtual":
        wall, cpu = result["duration_s"] / result["wall_ms"] * 1e3, result["duration_s"] / result["cpu_ms"] * 1e3
        took += f": {wall:.0f} x real time ({cpu:.0f} x by time of one core)"
    table.add_row("run", took)
    return table


def _alone(result: dict[str, Any]) -> Table:
    table = Table(title="unannounced events, each alone")
    table.add_column("event")
    for name in ("drop", "slew", "dip raw", "area", "back after"):
        table.add_column(name, justify="right")
    for e in result["contingency"]:
        if e["dip_raw_w"] is None:
            continue
        table.add_row(
            f"{e['id']} at {e['t_s']:.0f} s",
            f"{e['drop_w'] / 1e6:.1f} MW",
            "at once" if e["slew_w_per_s"] is None else f"{e['slew_w_per_s'] / 1e6:.0f} MW/s",
            f"{e['dip_raw_w'] / 1e6:.2f} MW",
            f"{e['area_j'] / 1e6:.2f} MJ",
            "not within a minute" if e["back_inside_s"] is None else f"{e['back_inside_s']:.2f} s",
        )
    return table


def _short(power_w: float) -> str:
    return f"{power_w / 1e6:.1f}" if abs(power_w) < 1e12 else "-"
