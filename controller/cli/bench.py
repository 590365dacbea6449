"""`rampart bench`: performance, each figure beside its baseline in the same run."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.callback()
def _bench() -> None:
    """Performance, each figure beside its baseline in the same run."""


@app.command()
def devices(
    meters: int = typer.Option(100, min=1, max=1000, help="Meters, each on a connection of its own."),
    hz: float = typer.Option(10.0, min=0.1, max=1000.0, help="Reads per second of each."),
    seconds: float = typer.Option(10.0, min=1.0, max=600.0, help="Time measured for ours and for the bare library."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Read many Modbus meters through our driver, then through the bare library, and compare."""
    import json

    from controller.cli.device import load_profile
    from hil.bench_devices import run

    result = run(load_profile("sunspec-meter"), meters=meters, hz=hz, seconds=seconds)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    typer.echo(f"{meters} meters at {hz:g} Hz over loopback, {seconds:g} s each")
    for name, rate in (("rampart driver", result.ours), ("bare pymodbus", result.bare)):
        typer.echo(
            f"  {name:<15} p50 {rate.p50_ms:6.2f} ms   p99 {rate.p99_ms:6.2f} ms   max {rate.max_ms:6.2f} ms   "
            f"{100 * rate.cpu_frac:5.1f} % of a core   {rate.achieved_hz:.2f} Hz reached"
        )
