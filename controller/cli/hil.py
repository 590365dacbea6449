"""`rampart hil`: the hardware-in-the-loop bench. `hil` is imported inside the commands only."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.callback()
def _hil() -> None:
    """The hardware-in-the-loop bench: the same daemon against simulated devices."""
