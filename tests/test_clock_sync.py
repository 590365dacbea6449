"""What the kernel says of the wall clock, and what it costs when it says nothing."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import pytest

from controller.types import Acceptance, RefusalReason
from drivers.clock_sync import STA_UNSYNC, TIME_ERROR, KernelSync, Timex
from tests.signals_kit import Story


class Kernel:
    """Answers as `adjtimex` does."""

    def __init__(self) -> None:
        self.state, self.status, self.maxerror = 0, 0x2001, 30_000
        self.asked = 0

    def adjtimex(self, pointer: Any) -> int:
        self.asked += 1
        found = pointer._obj
        assert found.modes == 0, "only asked, never set"
        found.status, found.maxerror = self.status, self.maxerror
        if self.state < 0:
            ctypes.set_errno(errno.EPERM)
        return self.state


class Time:
    t_s = 0.0

    def now_s(self) -> float:
        return self.t_s


def made() -> tuple[KernelSync, Kernel, Time]:
    kernel, time = Kernel(), Time()
    return KernelSync(time, error_s_max=5.0, library=kernel), kernel, time  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sick", [{"state": TIME_ERROR}, {"status": STA_UNSYNC}, {"maxerror": 6_000_000}, {"state": -1}], ids=str
)
def test_every_way_of_being_lost_is_told(sick: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    sync, kernel, time = made()
    assert sync.is_synced
    for name, value in sick.items():
        setattr(kernel, name, value)
    assert sync.is_synced and kernel.asked == 1, "asked once a second"
    time.t_s = 1.0
    assert not sync.is_synced
    time.t_s = 3.0
    assert not sync.is_synced
    said = capsys.readouterr()
    assert (said.out + said.err).count("wall clock not synchronised") == 1, "told once, wherever the log goes"


def test_the_layout_is_the_kernels() -> None:
    """`struct timex` of Linux on 64 bits has 208 bytes; ours may only be longer. This kernel answers it."""
    found = Timex()
    assert ctypes.sizeof(Timex) >= 208
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(found))
    if state < 0:
        pytest.skip(f"this kernel may not be asked: errno {ctypes.get_errno()}")
    assert 0 <= state <= TIME_ERROR and found.maxerror >= 0
    assert (state == TIME_ERROR) == bool(found.status & STA_UNSYNC)


def test_order_counts_for_the_grace_and_then_nothing_is_loosened() -> None:
    story = Story(grace_s=60.0)
    assert story.say(50e6).acceptance is not Acceptance.REFUSED
    story.is_clock_synced = False
    story.wait(1.0)
    assert story.say(60e6, iat=40.0).acceptance is Acceptance.ACCEPTED, "newer than what was heard"
    story.wait(30.0)
    assert story.say(70e6, iat=0.0).reason is RefusalReason.OUT_OF_ORDER
    story.wait(31.0)
    assert story.say(70e6, iat=60.0).reason is RefusalReason.CLOCK
    assert story.say(40e6, iat=61.0).acceptance is not Acceptance.REFUSED, "lower always"
    story.is_clock_synced = True
    story.wait(60.0)
    assert story.say(70e6, iat=2.0).acceptance is Acceptance.ACCEPTED


def test_an_issuer_never_heard_before_loosens_nothing_without_a_clock() -> None:
    story = Story(grace_s=60.0)
    story.say(50e6, by="acme", iat=None, jti=None)
    story.is_clock_synced = False
    story.wait(1.0)
    assert story.say(60e6, iat=0.0).reason is RefusalReason.CLOCK
