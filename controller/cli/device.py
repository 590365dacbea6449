"""`rampart device`: find out what answers on a Modbus address, and read it by its profile. Never writes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from controller.errors import BadInput

if TYPE_CHECKING:
    from drivers.probe import Found, Target
    from drivers.profile import DeviceProfile

app = typer.Typer()

TARGET = typer.Argument(metavar="HOST[:PORT]", help="Host, or a URL: rtu+tcp://host:port, serial:///dev/ttyUSB0.")
TIMEOUT = typer.Option(1.0, "--timeout", min=0.05, max=30.0, help="Seconds to wait for each answer.")
JSON = typer.Option(False, "--json", help="Print JSON instead of tables.")


@app.callback()
def _device() -> None:
    """Look at Modbus devices. Nothing here ever writes to one."""


@app.command()
def probe(
    target: str = TARGET,
    unit: int | None = typer.Option(None, "--unit", min=0, max=255, help="Unit id; each profile's own when left out."),
    profile: str | None = typer.Option(None, "--profile", help="Try this profile (name or file) only."),
    against: str | None = typer.Option(
        None, "--against", metavar="HOST[:PORT]", help="A trusted meter to compare with."
    ),
    against_profile: str = typer.Option("sunspec-meter", "--against-profile", help="Profile of the trusted meter."),
    against_unit: int | None = typer.Option(None, "--against-unit", min=0, max=255, help="Unit id of that meter."),
    timeout: float = TIMEOUT,
    as_json: bool = JSON,
) -> None:
    """Say what answers and which profile fits; with --against, whether sign and scale agree with another meter.

    Exit status 0: a profile fits (and agrees), 1: none does, 2: bad input.

    Example: rampart device probe 192.0.2.7:502 --against 192.0.2.8
    """
    from controller.live_profiles import load_profile
    from drivers.probe import compare, probe_device

    profiles = [load_profile(profile)] if profile else shipped_profiles()
    here = _target(target, unit, timeout)
    trusted = load_profile(against_profile) if against else None
    other: Target | None = _target(against, against_unit, timeout) if against else None

    async def run() -> tuple[Found, Any]:
        found = await probe_device(here, profiles)
        best = found.best
        if best is None or other is None or trusted is None:
            return found, None
        return found, await compare(here, best.profile, other, trusted)

    found, comparison = asyncio.run(run())
    if as_json:
        body = found.as_dict() | ({"comparison": comparison.as_dict()} if comparison else {})
        typer.echo(json.dumps(body, indent=2))
    else:
        _show_probe(target, found, comparison)
    is_good = found.best is not None and (against is None or (comparison is not None and comparison.agrees))
    raise typer.Exit(0 if is_good else 1)


@app.command()
def read(
    target: str = TARGET,
    profile: str = typer.Option(..., "--profile", help="Device profile, by name or file."),
    unit: int | None = typer.Option(None, "--unit", min=0, max=255, help="Unit id; the profile's own when left out."),
    timeout: float = TIMEOUT,
    as_json: bool = JSON,
) -> None:
    """Read every point of a profile once. Exit status 0: read, 1: the device does not answer or does not fit.

    Example: rampart device read 192.0.2.7 --profile sunspec-meter
    """
    from controller.live_profiles import load_profile
    from controller.ports import DriverError
    from drivers.probe import read_device

    loaded = load_profile(profile)
    try:
        rows = asyncio.run(read_device(_target(target, unit, timeout), loaded))
    except DriverError as error:
        if as_json:
            typer.echo(json.dumps({"target": target, "profile": loaded.id, "error": str(error)}))
        else:
            typer.echo(f"rampart: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        points = {row.name: {"value": row.value, "unit": row.unit, "meaning": row.meaning} for row in rows}
        body = {"target": target, "profile": loaded.id, "points": points, "doubts": list(loaded.doubts)}
        typer.echo(json.dumps(body, indent=2))
        return
    from rich.table import Table

    from controller.terminal import open_console

    table = Table(title=f"{target}: {loaded.vendor} {loaded.model} ({loaded.id})")
    for heading in ("point", "value", "unit", "remark"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in rows:
        value = "no value" if row.value is None else _number(row.value)
        table.add_row(row.name, value, row.unit, row.remark)
    console = open_console()
    console.print(table)
    for doubt in loaded.doubts:
        console.print(f"doubt: {doubt}", markup=False, highlight=False)


def shipped_profiles() -> list[DeviceProfile]:
    """Every profile in `configs/devices`, by name."""
    from controller.config.load import data_root
    from controller.live_profiles import load_profile

    return [load_profile(str(path)) for path in sorted(Path(data_root() / "configs" / "devices").glob("*.yaml"))]


def _target(text: str, unit: int | None, timeout_s: float) -> Target:
    from drivers.modbus_endpoint import parse_endpoint
    from drivers.probe import Target

    if "://" in text:
        endpoint = parse_endpoint(text, 502)
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            host, port = text, "502"
        if not port.isdigit() or not 1 <= int(port) <= 65535 or not host:
            raise BadInput(f"host: {text!r}: expected HOST or HOST:PORT with a port from 1 to 65535")
        endpoint = parse_endpoint(host, int(port))
    return Target(endpoint=endpoint, unit_id=unit, timeout_s=timeout_s)


def _sockets(profile: DeviceProfile) -> str:
    """What this command means for a daemon that reads the same device."""
    count = profile.sockets_max
    if count == 1:
        return (
            "it takes one connection at a time: while the daemon holds it, this command waits outside, and vice versa"
        )
    return f"it takes {count} connections at a time; the daemon holds one"


def _number(value: float) -> str:
    """Whole numbers in full, others to what a reader can use."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.5g}"


def _show_probe(target: str, found: Found, comparison: Any) -> None:
    from rich.table import Table

    from controller.terminal import open_console

    console = open_console()
    answer = found.answer.removeprefix(f"{target}: ")
    console.print(f"{target}: {answer}", markup=False, highlight=False)
    if not found.is_reachable:
        return
    table = Table()
    for heading in ("profile", "fit", "why"):
        table.add_column(heading)
    for trial in sorted(found.trials, key=lambda trial: -trial.fit.rank):
        table.add_row(trial.profile.id, trial.fit.value, trial.why)
    console.print(table)
    if found.best is None:
        console.print("no profile fits this device")
        return
    best = found.best
    console.print(f"best fit: {best.profile.id} ({best.profile.vendor} {best.profile.model}); {best.reading}")
    for doubt in best.profile.doubts:
        console.print(f"doubt: {doubt}", markup=False, highlight=False)
    console.print(_sockets(best.profile), markup=False, highlight=False)
    if comparison is not None:
        console.print(comparison.text, markup=False, highlight=False)
