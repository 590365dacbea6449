"""`rampart bench`: performance, each figure beside its baseline in the same run."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.callback()
def _bench() -> None:
    """Performance, each figure beside its baseline in the same run."""
