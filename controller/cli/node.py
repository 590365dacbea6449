"""`rampart node`: what concerns one GPU node."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from drivers.nvml_survey import GpuFinding, Survey

app = typer.Typer()

ANY_DRIVER = r"^(?!0\.)\d+\."  # as in a node's file that names no pattern: any real driver


@app.callback()
def _node() -> None:
    """What concerns one GPU node."""


@app.command()
def doctor(
    config: Path | None = typer.Option(None, "-c", "--config", help="The node's file, for its driver_versions."),
    try_write: bool = typer.Option(False, "--try-write", help="Write each present power limit back to itself."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """What Rampart could and could not do on this node: driver, permission, modes, limits, other writers.

    Exit status: 0 everything it needs is there, 1 something stands in the way, 2 no usable NVML or a bad file.

    Example: rampart node doctor -c /etc/rampart/node.yaml
    """
    from controller.errors import BadInput
    from controller.ports import DriverError
    from drivers.nvml_survey import survey

    pattern = ANY_DRIVER if config is None else _pattern(config)
    try:
        found = survey(driver_versions=pattern, tries_write=try_write)
    except DriverError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error), "kind": type(error).__name__}))
        raise BadInput(str(error)) from None
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | {"is_good": found.is_good}, indent=1))
    else:
        _print(found)
    raise typer.Exit(0 if found.is_good else 1)


def _pattern(config: Path) -> str:
    from controller.config.site import load_settings
    from controller.errors import BadInput

    node = load_settings(config).node
    if node is None:
        raise BadInput(f"{config}: node: required for this command, not given")
    return node.driver_versions


def _print(found: Survey) -> None:
    typer.echo(f"NVIDIA driver {found.driver_version}, {len(found.gpus)} GPUs")
    for gpu in found.gpus:
        typer.echo(_gpu_line(gpu))
    for what, answer in found.can.items():
        typer.echo(f"{what}: {answer}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    for gpu in found.gpus:
        for note in gpu.notes:
            typer.echo(f"note: {gpu.uuid}: {note}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}")
    for gpu in found.gpus:
        for problem in gpu.problems:
            typer.echo(f"problem: {gpu.uuid}: {problem}")
    typer.echo("Rampart has what it needs here." if found.is_good else "Rampart cannot control every GPU here.")


def _gpu_line(gpu: GpuFinding) -> str:
    f = gpu.facts
    if "power_w" not in f:
        return f"  {gpu.uuid}  {gpu.model}  not readable"
    persistence = "persistent" if f.get("persistence_mode") else "not persistent"
    return (
        f"  {gpu.uuid}  {gpu.model}\n"
        f"    {f['power_w']:.0f} W now, limit {f['power_limit_w']:.0f} W (default {f['power_limit_w_default']:.0f}, "
        f"allowed {f['power_limit_w_min']:.0f} to {f['power_limit_w_max']:.0f}), SM {f['sm_clock_mhz']:.0f} MHz of "
        f"{f['clock_mhz_min']} to {f['clock_mhz_max']}, {persistence}, slowest read {f['read_ms_max']:.1f} ms"
    )
