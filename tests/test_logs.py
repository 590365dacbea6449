"""The log lines themselves: a log that cannot be written ends nothing, and no peer's text can forge a line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
import structlog

from controller.logs import set_up_logs


class Full(io.StringIO):
    """Standard error on a full disk, a closed pipe or a hung-up terminal."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("make", [Full, io.StringIO, Terminal])
def test_a_log_that_cannot_be_written_does_not_end_control(
    make: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that holds the log fills up, or who read it is gone: whoever logs goes on."""
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs()
    structlog.get_logger("rampart").warning("lost", subject="meter")
    stream.close()
    structlog.get_logger("rampart").warning("lost", subject="battery")


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_text_from_outside_stays_in_its_value(make: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of somebody's JSON with a line end or a terminal's escape in it is shown, not acted on."""
    stream = make()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs()
    forged = "x\nlevel=error event=forged \x1b[2J\u202e\u2028"
    structlog.get_logger("rampart").warning("refused", why=forged, keys=[forged], where={"a": forged})
    own = "\x1b[0m"  # colours of ours may be there on a terminal
    said = stream.getvalue().rstrip("\n")
    assert "\n" not in said and "\x1b[2J" not in said and "\u202e" not in said and "\u2028" not in said
    assert "forged" in said and (own in said or "\x1b" not in said)
