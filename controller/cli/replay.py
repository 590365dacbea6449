"""`rampart replay`: a recording through the core again."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer()


@app.command()
def replay(
    file: Path = typer.Argument(metavar="FILE", help="A recording (recording.jsonl.gz) of the daemon or the bench."),
) -> None:
    """Run recorded images through the core and compare every command with the recorded one.

    Exit status 0: every command is the same; 1: at least one differs, or records are missing from the middle;
    2: the file is not a recording.

    Example: rampart replay out/hil/campus-90mw/recording.jsonl.gz
    """
    from controller.app import make_core
    from controller.replay import replay as run

    found = run(file, make_core)
    if found.first is not None:
        typer.echo(f"{found.different} of {found.cycles} commands differ; the first: {found.first.line()}")
        raise typer.Exit(1)
    if found.missing_seq is not None:
        typer.echo(
            f"{found.cycles} commands are the same; command {found.missing_seq} and what follows is not recorded"
        )
        raise typer.Exit(1)
    end = (
        "; the file ends in the middle of a record: its writer was killed, or it was cut" if found.is_cut_short else ""
    )
    typer.echo(f"{found.cycles} commands, every one the same{end}")
