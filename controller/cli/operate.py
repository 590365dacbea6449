"""Orders to the running controller: `rampart reset`, `release`, `fallback`, `lockout`, `resume`, `reload`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import typer

from controller.cli.status import find_socket, no_answer
from controller.errors import CheckFailed

app = typer.Typer()

SOCKET = typer.Option(None, "--socket", help="Control socket; default: the runtime folder's.")


@app.command()
def reset(socket: Path | None = SOCKET) -> None:
    """Clear what waits for an operator: lockouts, refused devices, security events. Refused while a cause is there.

    `rampart status` names what waits. Exit status 0: all is cleared; 1: something stays, and why.

    Example: rampart reset
    """
    _order("reset", socket)


@app.command()
def release(socket: Path | None = SOCKET) -> None:
    """Give every GPU its own settings back, one node after the other at the contract's slope, and keep off them.

    Stands, also over a restart of the controller, until `rampart resume`. The battery goes on holding the limits.

    Example: rampart release
    """
    _order("release", socket)


@app.command()
def fallback(socket: Path | None = SOCKET) -> None:
    """Bring all nodes to their fallback caps and the battery back to nothing, at the contract's slope.

    Stands, also over a restart of the controller, until `rampart resume`.

    Example: rampart fallback
    """
    _order("fallback", socket)


@app.command()
def lockout(socket: Path | None = SOCKET) -> None:
    """Write nothing any more: nodes and battery fall back by themselves. Stands until `rampart reset`.

    Example: rampart lockout
    """
    _order("lockout", socket)


@app.command()
def resume(socket: Path | None = SOCKET) -> None:
    """End `rampart release` or `rampart fallback`: control comes back after ten planner periods.

    Example: rampart resume
    """
    _order("resume", socket)


@app.command()
def reload(socket: Path | None = SOCKET) -> None:
    """Take the changed site file by a restart that power does not show, or refuse it whole where it is wrong.

    Exit status 0: taken, or nothing has changed; 1: refused, and what runs keeps its settings. `systemctl reload
    rampart-site` does the same. A node agent takes its file when it starts: see `rampart node reload`.

    Example: rampart reload
    """
    _order("reload", socket)


def _socket_for(order: str, socket: Path | None) -> Path:
    """The controller's socket; where only a node agent runs, what a reload would come to is said."""
    try:
        return find_socket(socket)
    except CheckFailed as nobody:
        from controller.node.originals import SERVICE_STATE, NodeLock
        from controller.reload import TAKEN_AT_START

        if order == "reload" and socket is None and NodeLock(SERVICE_STATE).is_held:
            raise CheckFailed(f"only a node agent runs here, and nothing was changed: {TAKEN_AT_START}") from None
        raise nobody


def _order(order: str, socket: Path | None) -> None:
    from controller.control_socket import send_order

    path = _socket_for(order, socket)
    try:
        answer: dict[str, Any] = asyncio.run(send_order(path, order))
    except (OSError, TimeoutError, ValueError) as error:
        raise no_answer(path, error) from None
    lines = [str(line) for line in answer.get("lines", [])]
    if not answer.get("ok"):
        raise CheckFailed("; ".join(lines) or f"{path}: the controller did not take the order")
    for line in lines:
        typer.echo(line)
