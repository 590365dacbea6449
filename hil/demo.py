"""A run on wires as a person watches it: a live board while it runs, and what only wires can tell after it.

The board is drawn by a thread of its own a few times a second from the last snapshot, so that drawing never holds up
the plant. Without a terminal it is one line every few seconds.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hil.report_page import scaled
from hil.wire import Snapshot

REFRESH_HZ = 4.0
LINE_EVERY_S = 5.0
BAR_CELLS = 56
HAPPENINGS_SHOWN = 6
SWITCH_S = 0.0005  # how long the drawing thread may hold the interpreter while the plant waits


class Board:
    """Shows snapshots until it is left."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._snapshot = Snapshot("starting")
        self._told_s, self._stage = -math.inf, ""
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=REFRESH_HZ, transient=True, screen=False
        )
        self._switch_s = sys.getswitchinterval()

    def __enter__(self) -> Board:
        sys.setswitchinterval(SWITCH_S)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        sys.setswitchinterval(self._switch_s)

    def show(self, snapshot: Snapshot) -> None:
        """Take the newest; quick."""
        self._snapshot = snapshot
        if not self._console.is_terminal:
            self._say(snapshot)

    def _say(self, snapshot: Snapshot) -> None:
        """One line per stage, and one every few seconds of the run."""
        progress = snapshot.progress
        if progress is None:
            stage = snapshot.stage.partition(";")[0]
            if stage != self._stage:
                self._stage = stage
                self._console.print(stage, highlight=False)
        elif progress.t_s >= self._told_s + LINE_EVERY_S:
            self._told_s = progress.t_s
            p = progress
            self._console.print(
                f"{p.t_s:5.1f} s  grid {_mw(p.pcc_w)} MW in {_mw(p.low_w)}..{_mw(p.high_w)}, load {_mw(p.load_w)}, "
                f"battery {_mw(p.battery_w)} at {100 * p.soc_frac:.1f} %, caps {100 * p.cap_frac:.0f} %, "
                f"mode {snapshot.mode}",
                highlight=False,
            )

    def _draw(self) -> RenderableType:
        snapshot = self._snapshot
        p = snapshot.progress
        if p is None:
            return Text.assemble((f"{self._title}  ", "bold"), (snapshot.stage, "dim"))
        head = Text.assemble(
            (f"{self._title}  ", "bold"), f"{p.t_s:.0f} of {p.duration_s:.0f} s  ", _mode(snapshot.mode)
        )
        top_w = max(1.0, 1.15 * max(p.load_w, p.pcc_w, _finite(p.high_w)))
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        band = f"within {_mw(p.low_w)} .. {_mw(p.high_w)}, target {_mw(p.ref_w)}"
        table.add_row("grid power", f"{_mw(p.pcc_w)} MW", _bar(p.pcc_w, top_w, "blue", mark_w=p.ref_w))
        table.add_row("", "", Text(band, style="dim"))
        table.add_row("load", f"{_mw(p.load_w)} MW", _bar(p.load_w, top_w, "bright_black"))
        way = "discharging" if p.battery_w > 0 else "charging"
        table.add_row("battery", f"{_mw(p.battery_w)} MW", _bar(abs(p.battery_w), top_w, "green", note=way))
        table.add_row("charge", f"{100 * p.soc_frac:.1f} %", _bar(p.soc_frac, 1.0, "magenta"))
        table.add_row("GPU caps", f"{100 * p.cap_frac:.0f} %", _bar(p.cap_frac, 1.0, "yellow"))
        lines = [Text(f"{h.t_s:7.1f} s  {h.detail}", style="dim") for h in snapshot.happenings[-HAPPENINGS_SHOWN:]]
        return Group(head, table, *lines)


def print_wire(console: Console, result: dict[str, Any], folder: Path) -> None:
    """Processes, loops and GPUs of a run on wires, and what was predicted for it."""
    facts = result["on_wires"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, process in facts["processes"].items():
        left = "stopped cleanly" if process["stopped_cleanly"] else "[red]had to be killed[/red]"
        table.add_row(name, f"{process['rss_bytes_max'] / 1e6:.0f} MB resident at most, {left}")
    late, tick = facts["plant_late_ms"], result["tracker"]["tick_ms"]
    table.add_row(
        "plant loop", f"200 Hz, late by p50 {late['p50']:.1f}, p99 {late['p99']:.1f}, max {late['max']:.0f} ms"
    )
    table.add_row(
        "controller",
        f"{result['tracker']['ticks']} ticks, due to acknowledged p50 {tick['p50']:.1f}, p99 {tick['p99']:.1f} ms, "
        f"{result['tracker']['overruns']} skipped",
    )
    gpus = facts["gpus"]
    throttled = gpus["left_throttled"]
    table.add_row(
        "GPUs",
        f"{gpus['count']}, each for {gpus['each_stands_for']:,}: {gpus['clock_writes']} clock and "
        f"{gpus['limit_writes']} power-limit writes; "
        + (f"[red]{len(throttled)} left throttled[/red]" if throttled else "every one back at the settings it had"),
    )
    for answer in facts["answers"]:
        table.add_row(answer["signal"], f"{answer['acceptance']} {answer['detail']}".strip())
    console.print(table)
    _print_predictions(console, facts["predicted"])
    for row in result["limits"]:
        if row["verdict"] == "broken":
            beyond = 100.0 * (row["worst"] / row["limit"] - 1.0) if row["limit"] > 0.0 else 0.0
            console.print(
                f"[bold red]broken[/bold red] {row['id']}: {scaled(row['worst'], row['unit'])} where "
                f"{scaled(row['limit'], row['unit'])} is allowed ({beyond:+.0f} %), for {row['violation_s']:.1f} s, "
                f"worst at {row['worst_t_s']:.1f} s",
                highlight=False,
            )
    if facts["processes_left"]:
        console.print(f"[red]{facts['processes_left']} processes had to be killed[/red]")
    console.print(f"[dim]logs and configuration of both processes in[/dim] {folder / 'wire'}", highlight=False)


def _print_predictions(console: Console, predicted: list[dict[str, Any]]) -> None:
    """A full crash as `rampart check` foresees it from the site file, beside what the crash read."""
    if not predicted:
        return
    full_w, drop_w = predicted[0]["full_drop_w"], predicted[0]["drop_w"]
    title = (
        f"the crash alone ({_mw(drop_w)} MW; a full one is {_mw(full_w)} MW), as `rampart check` foresees it from the "
        "site file"
    )
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("limit", overflow="fold")
    for name in ("mean", "allowed", "full", "this one", "measured", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in predicted:
        off = f"{100 * (row['predicted_w'] / row['measured_w'] - 1.0):+.0f} %" if row["measured_w"] > 0.0 else "-"
        cells = [f"{_mw(row[key])} MW" for key in ("allowed_w", "full_w", "predicted_w", "measured_w")]
        style = "red" if row["full_breaks"] else None
        table.add_row(row["limit"], f"{row['mean_s']:g} s", *cells, off, style=style)
    console.print(table)


def _bar(value: float, top: float, colour: str, *, mark_w: float = math.nan, note: str = "") -> Text:
    cells = round(BAR_CELLS * min(max(value / top, 0.0), 1.0))
    bar = ["█"] * cells + ["·"] * (BAR_CELLS - cells)
    text = Text("".join(bar), style=colour)
    if math.isfinite(mark_w):
        at = min(max(round(BAR_CELLS * mark_w / top), 0), BAR_CELLS - 1)
        text = Text.assemble(("".join(bar[:at]), colour), ("│", "bold yellow"), ("".join(bar[at + 1 :]), colour))
    return Text.assemble(text, f" {note}")


def _mode(mode: str) -> Text:
    return Text(mode, style="green" if mode == "NORMAL" else "bold red")


def _finite(value: float) -> float:
    return value if math.isfinite(value) and abs(value) < 1e12 else 0.0


def _mw(power_w: float) -> str:
    return f"{power_w / 1e6:.2f}" if math.isfinite(power_w) and abs(power_w) < 1e12 else "-"
