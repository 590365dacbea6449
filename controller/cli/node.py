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

CONFIG = typer.Option(None, "-c", "--config", help="The node's file, for its driver_versions.")
GPU = typer.Option([], "--gpu", metavar="UUID", help="Only this GPU; may be given again. Default: all.")
JSON = typer.Option(False, "--json", help="Print JSON.")
ANY_DRIVER = r"^(?!0\.)\d+\."  # as in a node's file that names no pattern: any real driver


@app.callback()
def _node() -> None:
    """What concerns one GPU node."""


@app.command()
def doctor(
    config: Path | None = CONFIG,
    try_write: bool = typer.Option(False, "--try-write", help="Write each present power limit back to itself."),
    as_json: bool = JSON,
) -> None:
    """What Rampart could and could not do on this node: driver, permission, modes, limits, other writers.

    Exit status: 0 everything it needs is there, 1 something stands in the way, 2 no usable NVML or a bad file.

    Example: rampart node doctor -c /etc/rampart/node.yaml
    """
    from controller.errors import BadInput
    from controller.ports import DriverError
    from drivers.nvml_survey import survey

    try:
        found = survey(driver_versions=_driver_versions(config), tries_write=try_write)
    except DriverError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error), "kind": type(error).__name__}))
        raise BadInput(str(error)) from None
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | {"is_good": found.is_good}, indent=1))
    else:
        _print(found)
    raise typer.Exit(0 if found.is_good else 1)


@app.command()
def reload(
    config: Path = typer.Option(..., "-c", "--config", help="The changed node file.", show_default=False),
) -> None:
    """Say whether a changed node file is right. A running agent takes it only when it starts, so nothing is changed.

    Exit status: 1 the file is right and not taken, 2 it is wrong. `systemctl reload rampart-node` does the same.

    Example: rampart node reload -c /etc/rampart/node.yaml
    """
    from controller.config.site import load_settings
    from controller.errors import BadInput, CheckFailed
    from controller.reload import TAKEN_AT_START

    if load_settings(config).node is None:
        raise BadInput(f"{config}: role: site: a node's file is expected here; `rampart reload` is for the controller")
    raise CheckFailed(f"{config}: the file is right, and nothing was changed: {TAKEN_AT_START}")


@app.command()
def smoothing(
    config: Path | None = CONFIG,
    gpu: list[str] = GPU,
    floor: float | None = typer.Option(None, "--floor", min=0.0, max=1.0, help="Share of its maximum held while busy."),
    up: float | None = typer.Option(None, "--up", min=0.0, metavar="W/S", help="Steepest rise of power."),
    down: float | None = typer.Option(None, "--down", min=0.0, metavar="W/S", help="Steepest fall of power."),
    hysteresis: float = typer.Option(0.5, "--hysteresis", min=0.0, metavar="S", help="How long the floor lasts on."),
    preset: int = typer.Option(4, "--preset", min=0, max=4, help="The preset to write and activate."),
    off: bool = typer.Option(False, "--off", help="Switch it off; presets stay."),
    as_json: bool = JSON,
) -> None:
    """Show the hardware power smoothing of Blackwell GPUs, or set it: --floor, --up and --down together, or --off.

    Exit status: 0 done, 1 a GPU refused, 2 bad input or no GPU that has it. It stays set until it is changed or the
    driver is loaded anew; Rampart's agent leaves it as it finds it.

    Example: rampart node smoothing --floor 0.5 --up 200 --down 200
    """
    from controller.cli.node_power import Wish, smoothing_of_gpus
    from controller.errors import BadInput

    given = [value is not None for value in (floor, up, down)]
    if any(given) and (off or not all(given)):
        raise BadInput("--floor, --up and --down go together, and not with --off")
    wish = None
    if floor is not None and up is not None and down is not None:
        wish = Wish(preset=preset, floor_frac=floor, up_w_per_s=up, down_w_per_s=down, hysteresis_s=hysteresis)
    raise typer.Exit(smoothing_of_gpus(_driver_versions(config), gpu, wish=wish, is_off=off, as_json=as_json))


@app.command()
def workload(
    config: Path | None = CONFIG,
    gpu: list[str] = GPU,
    ask: list[str] = typer.Option([], "--ask", metavar="PROFILE", help="Ask for this profile; may be given again."),
    clear: bool = typer.Option(False, "--clear", help="Ask for none."),
    as_json: bool = JSON,
) -> None:
    """Show the workload power profiles of Blackwell GPUs, or ask for exactly those named.

    Exit status: 0 done, 1 a GPU refused, 2 bad input or no GPU that has them. They stay until they are changed or the
    driver is loaded anew; Rampart's agent leaves them as it finds them.

    Example: rampart node workload --ask max_q
    """
    from controller.cli.node_power import workload_of_gpus
    from controller.errors import BadInput

    if ask and clear:
        raise BadInput("--ask and --clear exclude each other")
    wanted = frozenset(ask) if ask or clear else None
    raise typer.Exit(workload_of_gpus(_driver_versions(config), gpu, wanted=wanted, as_json=as_json))


def _driver_versions(config: Path | None) -> str:
    return ANY_DRIVER if config is None else _pattern(config)


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
