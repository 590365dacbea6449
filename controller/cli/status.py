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
    from controller.cli.status_words import headline, lines
    from controller.terminal import open_console

    console = open_console()
    console.print(headline(document), style="bold", highlight=False, markup=False)
    for line in lines(document):
        console.print(f"  {line}", highlight=False, markup=False)
