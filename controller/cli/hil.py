"""`rampart hil`: the hardware-in-the-loop bench. `hil` is imported inside the commands only."""

from __future__ import annotations

from typing import Literal

import typer

app = typer.Typer()


@app.callback()
def _hil() -> None:
    """The hardware-in-the-loop bench: the same daemon against simulated devices."""


@app.command("run")
def run(
    scenario: str = typer.Argument(help="A shipped scenario by name, or a file."),
    trace: str = typer.Option(None, "--trace", metavar="CSV", help="Recorded power to replay."),
    scale: float = typer.Option(None, "--scale", metavar="X", help="Multiplies the trace's power."),
    duration: float = typer.Option(None, "--duration", metavar="S", help="Seconds to run; the trace's length if none."),
    contract: list[str] = typer.Option([], "--contract", metavar="NAME", help="Contract or file; may be repeated."),
    controller: Literal["mpc", "rule", "rule-max", "none"] = typer.Option(None, "--controller", help="Who plans."),
    follow: Literal["device", "software"] = typer.Option(None, "--follow", help="Who closes the fast loop."),
    without_load_bank: bool = typer.Option(False, "--without-load-bank", help="The same site without its load bank."),
    edge: Literal["linear", "hold"] = typer.Option(None, "--edge", help="What lies between the trace's samples."),
    clock: Literal["virtual", "real"] = typer.Option(None, "--clock", help="Simulated time, or the machine's."),
    wire: bool = typer.Option(False, "--wire", help="On real wires: the shipped processes, Modbus, MQTT, fake GPUs."),
    seed: int = typer.Option(None, "--seed", metavar="N", help="Seed of everything random."),
    out: str = typer.Option(None, "--out", metavar="DIR", help="Where results go; out/hil/SCENARIO if not given."),
) -> None:
    """Run a scenario against the daemon and judge it on plant truth; exit 1 when a limit was broken.

    Example: rampart hil run campus-90mw --duration 120 --out out/hil/first
    """
    from pathlib import Path

    from hil.command import run_and_report
    from hil.scenario import Overrides

    overrides = Overrides(
        trace=trace,
        scale=scale,
        duration_s=duration,
        contracts=tuple(contract),
        controller=controller,
        follow=follow,
        edge=edge,
        clock=clock,
        seed=seed,
        without_load_bank=without_load_bank,
    )
    raise typer.Exit(run_and_report(scenario, overrides, out=Path(out) if out else None, is_wire=wire))


@app.command("gpus", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def gpus(
    count: int = typer.Option(8, "--count", min=1, max=64, help="How many GPUs the node has."),
    model: str = typer.Option("h100", "--model", help="v100, a100, h100, h200, b200 or b300."),
    load: Literal["training", "steady", "idle"] = typer.Option("training", "--load", help="What keeps them busy."),
    seed: int = typer.Option(0, "--seed", metavar="N", help="Seed of everything random; UUIDs included."),
    command: list[str] = typer.Argument(None, metavar="[-- CMD ...]", help="Program to run on them."),
) -> None:
    """A node of simulated GPUs behind the NVIDIA library's own interface; runs any program on them.

    Without a program it prints the variables to export and serves until Ctrl-C. Exits with the program's status.

    Example: rampart hil gpus --count 8 -- python my_nvml_script.py
    """
    from functools import partial

    from hil.fake_nvml.serve import Load, run_gpus

    status = run_gpus(
        count=count,
        model=model,
        load=Load(load),
        seed=seed,
        command=command or [],
        say=partial(typer.echo, err=True),
    )
    raise typer.Exit(status)
