"""Which file holds which command. Groups import their heavy parts only when a command runs."""

from __future__ import annotations

from importlib import import_module

import typer

# (module under controller.cli, group name or None for top-level commands, help of the group)
GROUPS: tuple[tuple[str, str | None, str], ...] = (
    ("audit", None, ""),
    ("run", None, ""),
    ("check", None, ""),
    ("status", None, ""),
    ("operate", None, ""),
    ("replay", None, ""),
    ("device", "device", "Look at Modbus devices."),
    ("hil", "hil", "Run the hardware-in-the-loop bench."),
    ("conformance", None, ""),
    ("grid", "grid", "Speak with the grid: keys, signed signals, status."),
    ("node", "node", "What concerns one GPU node."),
    ("restore", None, ""),
    ("systemd", "systemd", "Install services."),
    ("bench", "bench", "Measure performance beside a baseline."),
)


def add_all(app: typer.Typer) -> None:
    """Attach every command group: each module has a Typer called `app`."""
    for module, name, help_text in GROUPS:
        group: typer.Typer = import_module(f"controller.cli.{module}").app
        if name is None:
            app.add_typer(group)
        else:
            app.add_typer(group, name=name, help=help_text, no_args_is_help=True)
