"""The `rampart` command: one file per command group, and one place that turns errors into lines and exit codes.

Exit status: 0 good, 1 a limit was broken or a check failed, 2 bad input, 3 internal error, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback

import typer

from controller.cli import registry
from controller.errors import BadInput, CheckFailed

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="rampart",
    help="Keep an AI data centre inside its grid operator's limits, at almost no cost in compute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"rampart {version('rampart-power')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Keep an AI data centre inside its grid operator's limits, at almost no cost in compute."""


registry.add_all(app)


def main() -> None:
    """Entry point: runs a command and maps its errors to the documented exit codes."""
    try:
        app(standalone_mode=True)
    except BadInput as bad:
        typer.echo(f"rampart: {_one_line(bad)}", err=True)
        sys.exit(2)
    except CheckFailed as failed:
        typer.echo(f"rampart: {_one_line(failed)}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            traceback.print_exc()
        else:
            typer.echo(f"rampart: output: {error.strerror}", err=True)
        sys.exit(3)
    except Exception:  # noqa: BLE001 - an error of ours, not of the person: all of it on standard error, and its own status
        traceback.print_exc()
        sys.exit(3)


def _one_line(error: Exception) -> str:
    """A message as one line, whatever a file name or a value in it holds."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))


if __name__ == "__main__":
    main()
