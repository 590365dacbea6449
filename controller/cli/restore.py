"""`rampart restore`: gives this node's GPUs the settings back that Rampart found, or puts them at the fallback cap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from controller.node.originals import HowTo
    from controller.node.restore import Outcome

app = typer.Typer()


class Goal(StrEnum):
    """Where the GPUs should end up."""

    ORIGINALS = "originals"
    FALLBACK = "fallback"


@app.command()
def restore(
    to: Goal = typer.Option(Goal.ORIGINALS, "--to", help="The settings found before the first write, or the fallback."),
    state_dir: Path | None = typer.Option(
        None, "--state-dir", help="Where the agent keeps its state. Default: the user's folder and the service's."
    ),
    config: Path | None = typer.Option(None, "-c", "--config", help="The node's file, for its state_dir."),
) -> None:
    """Give this node's GPUs their settings back. Does nothing, and says so, where nothing was changed.

    As ExecStopPost of a service that was stopped on purpose (systemd says SERVICE_RESULT=success) `--to fallback` gives
    all back: an agent that was stopped before it had armed again left that to us.

    Exit status: 0 done or nothing to do, 1 a GPU could not be restored, 2 an agent is running or NVML is unusable.

    Example: rampart restore -c /etc/rampart/node.yaml
    """
    from controller.config.site import default_dir, load_settings
    from controller.errors import BadInput
    from controller.logs import set_up_logs
    from controller.node.originals import SERVICE_STATE, how_to

    set_up_logs()
    spare: HowTo | None = None
    own = Path(default_dir("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state"))
    if config is not None:
        settings = load_settings(config)
        if settings.node is None:
            raise BadInput(f"{config}: node: required for this command, not given")
        spare = how_to(settings.node)
        configured = Path(settings.node.state_dir)
        state_dir = state_dir or (configured if configured != own else None)
    # A file without `state_dir`, as the service's own, means another folder to the service than to a person's shell.
    folders = [state_dir] if state_dir else list(dict.fromkeys((own, SERVICE_STATE)))
    if os.environ.get("SERVICE_RESULT") == "success":
        to = Goal.ORIGINALS
    outcomes = [outcome for folder in folders for outcome in _restored(folder, to, spare)]
    raise typer.Exit(_report(outcomes, to, folders))


def _restored(folder: Path, to: Goal, spare: HowTo | None) -> Sequence[Outcome]:
    """What became of each GPU whose settings are saved in `folder`; nothing where there are none."""
    import asyncio

    from controller.clock import MonotonicClock
    from controller.errors import BadInput
    from controller.node.originals import NodeLock
    from controller.node.run import restore_node
    from controller.ports import DriverError

    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: not a folder; --state-dir: the folder where the agent keeps its state is allowed")
    if not folder.is_dir():
        return ()
    lock = NodeLock(folder)
    try:
        if not lock.try_acquire():
            raise BadInput(f"{folder}: an agent drives this node (process {lock.holder()}); stop it, it gives all back")
        with lock:
            work = restore_node(folder, to_fallback=to is Goal.FALLBACK, clock=MonotonicClock(), spare=spare)
            return asyncio.run(work)
    except DriverError as error:
        raise BadInput(f"GPUs not restored: {error}") from None
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror or error}") from None


def _report(outcomes: Sequence[Outcome], to: Goal, folders: Sequence[Path]) -> int:
    if not outcomes:
        typer.echo(f"nothing to do: no saved settings in {' or '.join(map(str, folders))}")
        return 0
    done = "original settings given back" if to is Goal.ORIGINALS else "at the fallback cap"
    for outcome in outcomes:
        typer.echo(f"{outcome.gpu_id}: {outcome.error or done}", err=bool(outcome.error))
    return 0 if all(outcome.is_done for outcome in outcomes) else 1
