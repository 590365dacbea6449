"""How late reports come is told by their senders' clocks, which agree with nobody's and may jump."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.estimate_sender import MEMORY_S, OLDER_MAX, Heard, SenderClocks
from controller.types import Quality
from tests.estimate_kit import node

UP_S = 4.2e6  # the sender's clock is ahead of ours by so much
WAY_S = 0.02


class Sender:
    """One node that reports five times a second, and the site's end."""

    def __init__(self) -> None:
        self.clocks, self.t_s, self.up_s, self.boot_id = SenderClocks(), 0.0, UP_S, "b"

    def hear(self, *, late_s: float = 0.0, taken_ago_s: float = 0.0, has_stamp: bool = True) -> Heard:
        """The report of `taken_ago_s` ago; it comes late."""
        self.t_s += 0.2
        told = node([300.0], self.t_s - taken_ago_s + WAY_S + late_s)
        stamp_s = self.up_s + self.t_s - taken_ago_s if has_stamp else None
        report = replace(told.value, taken_s=stamp_s, boot_id=self.boot_id)
        return self.clocks.heard([replace(told, value=report)])[0]

    def steady(self, seconds: float, *, late_s: float = 0.0) -> Heard:
        for _ in range(round(seconds / 0.2)):
            found = self.hear(late_s=late_s)
        return found


def test_a_report_is_late_by_what_its_way_takes_beyond_the_quickest() -> None:
    """From its first report on; the clocks are weeks apart, and nobody sets them."""
    sender = Sender()
    found = sender.steady(10.0)
    assert found.late_s == pytest.approx(0.0, abs=1e-6) and found.interval_s == pytest.approx(0.2)
    found = sender.hear(late_s=2.5)
    assert found.late_s == pytest.approx(2.5) and found.taken_s == pytest.approx(sender.t_s + WAY_S)
    assert sender.hear().late_s == pytest.approx(0.0, abs=1e-6)


def test_the_quickest_way_is_learnt_at_once_and_forgotten_after_minutes() -> None:
    sender = Sender()
    assert sender.steady(5.0, late_s=1.0).late_s == pytest.approx(0.0, abs=1e-6), (
        "late from the first report on is usual"
    )
    assert sender.hear().late_s == pytest.approx(0.0, abs=1e-6)
    assert sender.hear(late_s=1.0).late_s == pytest.approx(1.0)
    assert sender.steady(MEMORY_S - 20.0, late_s=1.0).late_s == pytest.approx(1.0)
    assert sender.steady(40.0, late_s=1.0).late_s == pytest.approx(0.0, abs=1e-6)


def test_a_crystal_that_runs_slow_is_not_late() -> None:
    sender = Sender()
    for _ in range(5000):
        sender.up_s -= 0.2 * 100e-6
        found = sender.hear()
    assert found.late_s < 0.04


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, -3.0, 3.0])
@pytest.mark.parametrize("is_boot", [True, False])
def test_a_clock_that_steps_is_learnt_anew(step_s: float, *, is_boot: bool) -> None:
    """Nothing is late by it, and within a second what comes counts again; what is late then is told as before."""
    sender = Sender()
    sender.steady(10.0)
    sender.up_s += step_s
    sender.boot_id = "c" if is_boot else "b"
    for k in range(OLDER_MAX):
        found = sender.hear()
        assert found.late_s == pytest.approx(0.0, abs=1e-6)
        assert k + 1 < OLDER_MAX or found.taken_s == pytest.approx(sender.t_s + WAY_S)
    assert sender.hear(late_s=1.5).late_s == pytest.approx(1.5)


def test_what_was_overtaken_is_no_news_and_its_link_is_alive() -> None:
    sender = Sender()
    newest = sender.steady(10.0)
    found = sender.hear(late_s=1.0, taken_ago_s=1.1)
    assert found.reading.value is newest.reading.value and found.taken_s == newest.taken_s
    assert sender.hear().taken_s == pytest.approx(sender.t_s + WAY_S)


def test_a_report_that_is_only_older_by_now_is_the_same() -> None:
    sender = Sender()
    found = sender.steady(2.0)
    again = replace(found.reading, quality=Quality.STALE)
    heard = sender.clocks.heard([again])[0]
    assert heard.reading.quality is Quality.STALE and heard.taken_s == found.taken_s
    copied = replace(again, value=replace(again.value), quality=Quality.MISSING)  # as a replay has it
    heard = sender.clocks.heard([copied])[0]
    assert heard.reading.quality is Quality.MISSING and heard.taken_s == found.taken_s


def test_an_older_agent_is_never_late() -> None:
    sender = Sender()
    for late_s in (0.0, 0.0, 2.0):
        found = sender.hear(late_s=late_s, has_stamp=False)
    assert found.late_s == 0.0 and found.taken_s == pytest.approx(sender.t_s + WAY_S + 2.0)
