"""The node agent when nobody commands it, after a kill, and without a place for originals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from controller.node.originals import how_to
from controller.types import AgentState, NodeFault
from hil import vtime
from tests.node_kit import FALLBACK_MHZ, Bench, newest, play_agent
from tests.node_kit import settings as node_settings

# ---------------------------------------------------------------------------------------------------------- dead-man


def test_when_commands_stop_it_falls_back_after_ttl_and_slot(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1800, ttl_s=5.0, release_slot_s=3.0))
        await bench.until(lambda: bench.clocks == [1800, 1800], within_s=1.0)
        assert await bench.until(lambda: newest(bench).state is AgentState.FALLBACK, within_s=6.0) >= 4.8
        assert bench.clocks == [1800, 1800]
        waited_s = await bench.until(lambda: bench.clocks == [FALLBACK_MHZ] * 2, within_s=4.5)
        assert waited_s >= 2.8

    play_agent(tmp_path, story)


@pytest.mark.parametrize(("ttl_s", "slot_s"), [(5.07, 0.0), (4.93, 1.07)])
def test_it_falls_back_at_the_deadline_itself_and_not_at_the_next_report(
    ttl_s: float, slot_s: float, tmp_path: Path
) -> None:
    """Reports go out five times a second; expiry and slot lie between two of them."""

    async def story(bench: Bench) -> None:
        for clock_mhz in (1700, 1800):  # the deadline is the last command's
            bench.link.send(bench.command(clock_mhz, ttl_s=ttl_s, release_slot_s=slot_s))
            await bench.wait(1.5)
        await bench.wait(8.0)

    for gpu in play_agent(tmp_path, story).gpus:
        (_, _), (held_s, held), (fell_s, fallback) = gpu.writes
        assert (held.clock_mhz, fallback.clock_mhz) == (1800, FALLBACK_MHZ)
        assert fell_s - held_s == pytest.approx(ttl_s + slot_s, abs=0.02)


def test_the_way_to_fallback_is_no_steeper_than_commanded(tmp_path: Path) -> None:
    """Two GPUs with a swing of 630 W each at 100 W/s: by either curve no second may be worth more than 100 W."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1980, release_w_per_s=100.0))
        await bench.until(lambda: bench.clocks == [FALLBACK_MHZ] * 2, within_s=60.0)

    for gpu in play_agent(tmp_path, story).gpus:
        steps = [(t, (cap.clock_mhz or 1980) / 1980) for t, cap in gpu.writes]
        assert len(steps) > 8
        for (t0, a), (t1, b) in pairwise(steps):
            worth_w = 2 * 630.0 * max(abs(a - b), abs(a**3.3 - b**3.3))
            assert worth_w <= 100.0 * max(t1 - t0, 1.2) + 2 * 630 * 3.3 * 15 / 1980


def test_a_command_in_time_keeps_the_caps(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(20):
            bench.link.send(bench.command(1500, ttl_s=2.0))
            await bench.wait(1.5)
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [1500, 1500]
        await bench.wait(3.0)
        assert newest(bench).state is AgentState.FALLBACK
        bench.link.send(bench.command(1395, ttl_s=2.0))
        await bench.wait(1.5)
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [1395, 1395]

    play_agent(tmp_path, story)


def test_a_pause_of_the_process_expires_its_commands(tmp_path: Path) -> None:
    """Suspended for an hour and woken: the cap of then is not obeyed a moment longer."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1800, ttl_s=90.0))
        await bench.wait(2.0)
        vtime.running_loop().stall_ns(10 * 10**9)
        await bench.wait(3.0)
        assert newest(bench).state is AgentState.FALLBACK and bench.clocks == [FALLBACK_MHZ] * 2

    assert any(subject == "agent" and "paused" in what for subject, what in play_agent(tmp_path, story).said)


def test_release_by_the_site_gives_originals_back_and_the_node_stays(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)
        bench.link.send(bench.command(None, is_release=True, release_slot_s=4.0))
        await bench.wait(3.0)
        assert bench.clocks == [900, 900]
        await bench.until(lambda: newest(bench).state is AgentState.RELEASED, within_s=3.0)
        await bench.wait(20.0)
        assert all(len(gpu.restores) == 1 for gpu in bench.gpus) and bench.clocks == [None, None]
        bench.link.send(bench.command(1200))
        await bench.wait(2.0)
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [1200, 1200]

    assert play_agent(tmp_path, story).clocks == [None, None]


def test_an_older_controller_is_not_obeyed(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1500, epoch=7))
        await bench.wait(2.0)
        bench.link.send(bench.command(900, epoch=6))
        await bench.wait(2.0)
        assert bench.clocks == [1500, 1500] and newest(bench).acked_epoch == 7

    assert any(subject == "envelope" for subject, _ in play_agent(tmp_path, story).said)


# ---------------------------------------------------------------------------------------------- death and restart


def test_after_kill_the_next_agent_arms_from_file_and_gives_the_first_originals_back(tmp_path: Path) -> None:
    """kill -9 left 900 MHz behind. The next agent falls back, obeys, and returns what the first one had found."""

    async def first(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)

    assert play_agent(tmp_path, first, stop=False).clocks == [900, 900]

    async def second(bench: Bench) -> None:
        await bench.until(lambda: bench.clocks == [FALLBACK_MHZ] * 2, within_s=2.0)
        assert newest(bench).state is AgentState.FALLBACK
        bench.link.send(bench.command(1200))
        await bench.wait(2.0)
        assert newest(bench).state is AgentState.ARMED

    def as_left(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.clock_mhz, gpu.limit_w = 900, 500.0

    bench = play_agent(tmp_path, second, prepare=as_left)
    assert bench.clocks == [None, None] and [gpu.limit_w for gpu in bench.gpus] == [650.0, 650.0]
    assert not bench.file.path.exists()


def test_damaged_originals_become_device_defaults_with_an_alarm(tmp_path: Path) -> None:
    (tmp_path / "originals.json").write_text('{"format": "rampart-originals/1", "sha256": "0", "body": {}}')

    async def story(bench: Bench) -> None:
        await bench.wait(2.0)

    bench = play_agent(tmp_path, story)
    assert [gpu.limit_w for gpu in bench.gpus] == [700.0, 700.0] and bench.clocks == [None, None]
    assert any(subject == "originals" and "damaged" in what for subject, what in bench.said)
    assert (tmp_path / "originals.damaged").exists()


def test_defaults_that_stood_in_before_the_start_are_told_and_given_back(tmp_path: Path) -> None:
    """Under systemd `restore` finds the damage first: the agent inherits device defaults, and the site hears of it."""

    async def story(bench: Bench) -> None:
        await bench.wait(2.0)
        assert NodeFault.ORIGINALS_CORRUPT in bench.link.reports[-1].faults

    def damaged(bench: Bench) -> None:
        bench.file.stand_in(how_to(node_settings(tmp_path)), [gpu.spec for gpu in bench.gpus], boot_id="b")
        for gpu in bench.gpus:
            gpu.clock_mhz, gpu.limit_w = 900, 500.0

    bench = play_agent(tmp_path, story, prepare=damaged)
    assert [gpu.limit_w for gpu in bench.gpus] == [700.0, 700.0] and bench.clocks == [None, None]
    assert any(subject == "originals" and "stand in" in what for subject, what in bench.said)


def test_without_a_place_for_originals_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: the node reports and obeys nothing; with room again it arms by itself."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)
        assert newest(bench).state is AgentState.MONITOR_ONLY and not newest(bench).is_controllable.any()
        assert bench.clocks == [None, None]
        monkeypatch.undo()
        await bench.wait(6.0)
        bench.link.send(bench.command(900))
        await bench.wait(2.0)
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [900, 900]

    monkeypatch.setattr("controller.files.os.fsync", full)
    play_agent(tmp_path, story)
