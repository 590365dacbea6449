"""`rampart status`: what the running controller knows of itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import typer

from controller.errors import BadInput, CheckFailed

app = typer.Typer()


@app.command()
def status(
    socket: Path | None = typer.Option(None, "--socket", help="Status socket; default: the runtime folder's."),
    as_json: bool = typer.Option(False, "--json", help="Print the whole document."),
) -> None:
    """Say what the running controller sees, does and why its mode is what it is.

    Exit status 0: mode is STARTING, NORMAL or DEGRADED; 1: worse, or the controller does not answer.

    Example: rampart status --json
    """
    from controller.control_socket import fetch

    path = find_socket(socket)
    try:
        document: dict[str, Any] = asyncio.run(fetch(path))
    except (OSError, TimeoutError, ValueError) as error:
        raise no_answer(path, error) from None
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        _print(document)
    if document.get("mode") not in ("STARTING", "NORMAL", "DEGRADED"):
        raise typer.Exit(1)


SERVICE_SOCKET = Path("/run/rampart/site.sock")  # RuntimeDirectory= of systemd/rampart-site.service


def find_socket(given: Path | None) -> Path:
    """The control socket that was named, or the one that is there. BadInput where its folder may not be looked into."""
    from controller.config.site import default_dir

    runtime = Path(default_dir("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", ".local/state"))
    candidates = [given] if given else list(dict.fromkeys((runtime / "site.sock", SERVICE_SOCKET)))
    for candidate in candidates:
        try:
            candidate.stat()
        except PermissionError:
            raise _not_permitted(candidate) from None
        except OSError:
            continue
        return candidate
    raise CheckFailed(f"{' and '.join(map(str, candidates))}: no such socket, no controller answers here")


def no_answer(path: Path, error: Exception) -> BadInput | CheckFailed:
    """What to tell a person whose question got no answer."""
    if isinstance(error, PermissionError):
        return _not_permitted(path)
    return CheckFailed(f"{path}: no controller answers here")


def _not_permitted(path: Path) -> BadInput:
    return BadInput(f"{path}: permission denied; root and the group of the service may use it")


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    from controller.terminal import open_console

    console = open_console()
    since_s = document.get("mode_since_s")
    since = f" for {_duration(since_s)}" if since_s is not None else ""
    console.print(
        f"[bold]{document['site']}[/bold]  mode [bold]{document['mode']}[/bold]{since}  contract {document['contract']}"
    )
    if means := document.get("mode_means"):
        console.print(f"  {means}")
    if document.get("is_fallback_contract"):
        console.print("  the fallback contract is in force")
    for reason in document["reasons"]:
        console.print(f"  because {reason}")
    unmet = "not armed" if document["mode"] == "STARTING" else "not met now, though control has begun"
    for condition in document["unmet"]:
        console.print(f"  {unmet}: {condition}")
    last = document.get("envelope", {}).get("last")
    if last is not None:
        console.print(
            f"  envelope: {document['violations']} corrections since the start; the last: {last['rule']}: "
            f"{last['subject']}: {last['found']}"
        )
    table = Table(show_header=False)
    for key, value in document["power"].items():
        table.add_row(key, _shown(key, value))
    console.print(table)
    bank = document.get("load_bank")
    if bank is not None:
        armed = f"armed, floor {_scaled(bank['floor_w'], 'W')}" if bank["is_armed"] else f"not armed: {bank['why_not']}"
        console.print(f"  load bank {bank['state']}, draws {_scaled(bank['power_w'] or 0.0, 'W')}, {armed}")
    for margin in document["margins"]:
        console.print(f"  margin {margin['name']} ({margin['contingency']}): {_amount(margin)}")
    least = document.get("least_margin")
    if least is not None:
        console.print(f"  least margin: {least['name']} ({least['contingency']}), {_amount(least)}")


def _amount(margin: dict[str, Any]) -> str:
    """Infinities are null in the document: a margin that nothing bounds."""
    value = margin["value"]
    return "unbounded" if value is None else _scaled(value, margin["unit"])


def _shown(key: str, value: object) -> str:
    """A field of the document as a person reads it: powers in the unit that fits them."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return _scaled(value, "W") if "_w" in key else f"{value:,.3f}"


def _scaled(value: float, unit: str) -> str:
    """Four digits, and the prefix that goes with them."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
