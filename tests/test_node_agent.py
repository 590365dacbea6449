"""The node agent over GPUs in memory, in virtual time: it obeys, falls back by itself, and always gives back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.node.gpu_worker import FIGHTS_MAX, PEACE_S, GpuWorker
from controller.node.originals import how_to
from controller.types import AgentState, GpuCap, GpuEvent, GpuTelemetry, NodeFault, NodeReport, Quality, Reading
from hil import vtime
from tests.node_kit import FALLBACK_MHZ, Bench, FakeGpu, play_agent
from tests.node_kit import settings as node_settings


def newest(bench: Bench) -> NodeReport:
    return bench.link.reports[-1]


def test_an_agent_that_is_never_commanded_writes_nothing(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.wait(30.0)
        assert newest(bench).state is AgentState.STARTING and newest(bench).quality.tolist() == [Quality.GOOD] * 2
        assert np.isnan(newest(bench).clock_cap_mhz).all() and newest(bench).power_limit_w.tolist() == [650.0] * 2

    bench = play_agent(tmp_path, story)
    assert all(not gpu.writes and not gpu.restores for gpu in bench.gpus)
    assert not bench.file.path.exists() and bench.guard_starts == 0 and bench.agent.is_given_back


def test_it_obeys_and_acknowledges_what_was_read_back(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1500))
        await bench.until(lambda: newest(bench).acked_seq == 1, within_s=1.0)
        report = newest(bench)
        assert report.state is AgentState.ARMED and report.clock_cap_mhz.tolist() == [1500.0, 1500.0]
        assert (report.acked_epoch, report.is_controllable.all()) == (1, True)

    bench = play_agent(tmp_path, story)
    assert bench.on_disk_at_first_write is True and bench.guard_starts == 1


def test_a_renewed_command_writes_nothing_again(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(10):
            bench.link.send(bench.command(1500))
            await bench.wait(1.0)
        assert newest(bench).acked_seq == 10

    assert [len(gpu.writes) for gpu in play_agent(tmp_path, story).gpus] == [1, 1]


def test_clocks_change_at_most_once_a_second(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for i in range(40):
            bench.link.send(bench.command(1500 if i % 2 else 1200))
            await bench.wait(0.2)

    for gpu in play_agent(tmp_path, story).gpus:
        times = [t for t, _ in gpu.writes]
        assert len(times) >= 4 and min(np.diff(times)) >= 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_a_clean_stop_gives_every_gpu_its_settings_back(tmp_path: Path, count: int) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)
        assert bench.clocks == [900] * count

    bench = play_agent(tmp_path, story, count=count)
    assert bench.clocks == [None] * count and all(gpu.limit_w == 650.0 for gpu in bench.gpus)
    assert bench.agent.is_given_back and not bench.file.path.exists()


def test_a_clean_stop_is_staggered(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)

    times = [gpu.restores[0] for gpu in play_agent(tmp_path, story, count=3, stagger_s=2.0).gpus]
    assert np.diff(times).tolist() == pytest.approx([2.0, 2.0])


def test_a_restore_that_fails_is_tried_again_and_else_stays_on_file(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(2.0)
        bench.gpus[0].failing_restores, bench.gpus[1].failing_restores = 2, 99

    bench = play_agent(tmp_path, story)
    saved = bench.file.load()
    assert bench.clocks == [None, 900] and not bench.agent.is_given_back
    assert saved is not None and [gpu.gpu_id for gpu in saved.gpus] == ["GPU-1"]


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


# ---------------------------------------------------------------------------------------------------------- faults


def test_without_nvml_it_reports_and_recovers_when_the_driver_comes(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        assert newest(bench).state is AgentState.MONITOR_ONLY and newest(bench).gpu_ids == ()
        bench.open_error = None
        await bench.wait(6.0)
        bench.link.send(bench.command(1200))
        await bench.wait(2.0)
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [1200, 1200]

    def broken(bench: Bench) -> None:
        bench.open_error = "no libnvidia-ml.so.1 on this machine"

    bench = play_agent(tmp_path, story, prepare=broken)
    assert [what for subject, what in bench.said if subject == "nvml"][1:] == ["recovered"]


def test_without_permission_it_monitors_and_recovers(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(70):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if bench.clock.now_s() < 40:
                continue
            for gpu in bench.gpus:
                gpu.is_forbidden = False
        assert newest(bench).state is AgentState.ARMED and bench.clocks == [1200, 1200]

    def forbidden(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.is_forbidden = True

    bench = play_agent(tmp_path, story, prepare=forbidden)
    states = [report.state for report in bench.link.reports]
    assert AgentState.MONITOR_ONLY in states
    assert len([1 for subject, what in bench.said if "may not be controlled" in what]) == 2


def test_a_gpu_that_ignores_caps_becomes_uncontrollable_after_two_retries(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(8):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
        report = newest(bench)
        assert report.is_controllable.tolist() == [False, True] and report.acked_seq == 8
        assert np.isnan(report.clock_cap_mhz[0]) and report.clock_cap_mhz[1] == 1200.0
        assert len(bench.gpus[0].writes) == 3

    def deaf(bench: Bench) -> None:
        bench.gpus[0].ignores = True

    play_agent(tmp_path, story, prepare=deaf)


def test_a_gpu_that_hangs_is_missing_and_the_other_is_not(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.gpus[0].hangs = True
        bench.link.send(bench.command(1200))
        await bench.wait(2.0)
        assert newest(bench).quality.tolist() == [Quality.MISSING, Quality.GOOD] and bench.clocks == [None, 1200]
        assert newest(bench).acked_seq == 0
        bench.gpus[0].hangs = False
        await bench.wait(1.0)
        assert newest(bench).quality.tolist() == [Quality.GOOD] * 2 and bench.clocks == [1200, 1200]

    bench = play_agent(tmp_path, story)
    assert [what for subject, what in bench.said if subject == "GPU-0"][-1] == "recovered"


def test_a_foreign_raise_is_overruled_three_times_then_left(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(60):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if bench.clocks[0] == 1200:
                bench.gpus[0].clock_mhz = None
        assert newest(bench).is_controllable.tolist() == [False, True]

    bench = play_agent(tmp_path, story)
    assert len(bench.gpus[0].writes) == 1 + FIGHTS_MAX
    assert any("left to it" in what for _, what in bench.said)


def test_after_peace_the_gpu_is_taken_again(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for i in range(int(PEACE_S) + 60):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if i < 30 and bench.clocks[0] == 1200:
                bench.gpus[0].clock_mhz = None
        assert newest(bench).is_controllable.all() and bench.clocks == [1200, 1200]

    play_agent(tmp_path, story)


def test_a_lower_foreign_limit_is_respected(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200, ttl_s=60.0))
        await bench.wait(2.0)
        bench.gpus[0].limit_w = 300.0
        await bench.wait(5.0)
        assert bench.gpus[0].limit_w == 300.0 and newest(bench).power_limit_w[0] == 300.0
        bench.gpus[0].limit_w = 650.0
        await bench.wait(1.0)

    bench = play_agent(tmp_path, story)
    assert [len(gpu.writes) for gpu in bench.gpus] == [1, 1]
    told = [what for who, what in bench.said if who == "GPU-0"]
    assert told == ["another tool set its power limit to 300 W, in place of 650 W; left as it is", "recovered"]


def test_the_watchdog_is_fed_by_completed_cycles_only(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.wait(2.0)
        before = bench.cycles

        async def stuck(report: NodeReport) -> None:
            await bench.wait(1e6)

        bench.link.publish = stuck  # type: ignore[method-assign]
        await bench.wait(10.0)
        assert before >= 10 and bench.cycles <= before + 1

    play_agent(tmp_path, story)


def test_no_guard_no_write(tmp_path: Path) -> None:
    """A guard that cannot be started leaves nobody to give the GPUs back, so they are not touched."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(900))
        await bench.wait(3.0)
        assert bench.clocks == [None, None]

    def no_guard(bench: Bench) -> None:
        def fail() -> None:
            raise OSError(11, "Resource temporarily unavailable")

        bench.agent._before_first_write = fail

    bench = play_agent(tmp_path, story, prepare=no_guard)
    assert len([1 for subject, _ in bench.said if subject == "guard"]) == 1


def test_a_new_cap_is_written_at_once_and_not_at_the_next_period(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        await bench.wait(0.11)
        sent_s = bench.clock.now_s()
        bench.link.send(bench.command(1200))
        await bench.wait(0.05)
        assert all(0 <= gpu.writes[0][0] - sent_s < 0.03 for gpu in bench.gpus)

    play_agent(tmp_path, story)


# --------------------------------------------------------------------------------------------- what comes, what is told


def test_a_gpu_that_appears_later_is_saved_taken_over_and_given_back(tmp_path: Path) -> None:
    """It did not answer when the agent started, or was put in since."""

    async def story(bench: Bench) -> None:
        late = FakeGpu("GPU-9", bench.clock, limit_w=500.0)
        bench.late.append(late)
        await bench.until(lambda: len(newest(bench).gpu_ids) == 3, within_s=40.0)
        assert newest(bench).gpu_ids[-1] == "GPU-9" and bench.said.count(("GPU-9", "found and taken over")) == 1
        saved = bench.file.load()
        assert saved is not None and saved.by_id[late.spec.gpu_id].power_limit_w == 500.0
        assert not late.writes, "left as it is until it is commanded"
        bench.gpus.append(late)
        bench.link.send(bench.command(1200, ttl_s=3.0))
        await bench.wait(2.0)
        assert late.clock_mhz == 1200
        await bench.wait(6.0)
        assert late.clock_mhz == FALLBACK_MHZ, "its dead-man is the node's"

    bench = play_agent(tmp_path, story)
    assert bench.gpus[-1].clock_mhz is None and bench.gpus[-1].restores
    assert not bench.file.path.exists()


def test_a_gpu_that_an_earlier_agent_left_capped_comes_back_at_fallback(tmp_path: Path) -> None:
    """Killed while it drove three; the restarted agent finds two, and the third a minute later."""

    async def drive(bench: Bench) -> None:
        bench.link.send(bench.command(900, ttl_s=60.0))
        await bench.wait(2.0)

    play_agent(tmp_path, drive, stop=False, count=3)

    async def story(bench: Bench) -> None:
        late = FakeGpu("GPU-2", bench.clock)
        bench.late.append(late)
        await bench.until(lambda: late.clock_mhz == FALLBACK_MHZ, within_s=40.0)
        saved = bench.file.load()
        assert saved is not None and len(saved.gpus) == 3

    play_agent(tmp_path, story)


def test_while_the_driver_is_away_looking_for_gpus_harms_nothing(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.open_error = "unloaded"
        await bench.wait(100.0)
        bench.open_error = None
        bench.late.append(FakeGpu("GPU-9", bench.clock))
        await bench.until(lambda: len(newest(bench).gpu_ids) == 3, within_s=40.0)

    play_agent(tmp_path, story)


def test_what_a_gpu_tells_is_said_once_and_it_is_read_at_once(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.said.clear()
        before = bench.gpus[1].read_count
        fallen = GpuEvent(bench.gpus[1].spec.gpu_id, "xid", 79, "Xid 79: the GPU has fallen off the bus")
        await bench.events.put(fallen)
        await bench.wait(0.001)
        assert bench.gpus[1].read_count == before + 1, "not at the next period"
        for _ in range(50):
            await bench.events.put(fallen)
        await bench.events.put(GpuEvent(None, "xid", 13, "Xid 13"))
        await bench.wait(61.0)
        assert bench.said == [("GPU-1", fallen.text), ("nvml", "Xid 13")]
        await bench.events.put(fallen)
        await bench.wait(1.0)
        assert bench.said[-1] == ("GPU-1", f"{fallen.text} (and 50 more since)")

    play_agent(tmp_path, story)


def test_a_limit_that_is_not_ours_is_said_and_our_own_restore_is_not(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200, ttl_s=60.0))
        await bench.wait(2.0)
        bench.gpus[0].found_w = bench.gpus[0].limit_w = 690.0
        await bench.wait(1.0)
        assert ("GPU-0", "another tool set its power limit to 690 W, in place of 650 W; left as it is") in bench.said
        bench.said.clear()
        bench.link.send(bench.command(None, is_release=True))
        await bench.wait(10.0)
        assert bench.gpus[0].limit_w == 650.0
        assert [what for _, what in bench.said if "power limit" in what] == []

    play_agent(tmp_path, story)


async def test_news_for_a_healthy_gpu_is_written_before_anything_is_read() -> None:
    """An emergency does not wait for telemetry; a GPU that could not be read last time is read first."""
    clock = MonotonicClock()
    gpu = FakeGpu("GPU-a", clock)
    calls: list[str] = []
    read, write = gpu.read, gpu.write

    async def noted_read() -> Reading[GpuTelemetry]:
        calls.append("read")
        return await read()

    async def noted_write(cap: GpuCap) -> None:
        calls.append("write")
        await write(cap)

    gpu.read, gpu.write = noted_read, noted_write  # type: ignore[method-assign]
    worker = GpuWorker(gpu, clock=clock, say=lambda *_: None)
    worker.want(GpuCap(gpu.spec.gpu_id, 1500, None), (1, 1))
    await worker.step()
    assert calls == ["read", "write", "read"], "never read yet"
    worker._wrote_clock_s -= 1.0
    worker.want(GpuCap(gpu.spec.gpu_id, 1200, None), (1, 2))
    await worker.step()
    assert calls[3:] == ["write", "read"] and worker.status.applied == (1, 2)
    gpu.is_lost = True
    await worker.step()
    gpu.is_lost = False
    worker._wrote_clock_s -= 1.0
    worker.want(GpuCap(gpu.spec.gpu_id, 1000, None), (1, 3))
    del calls[:]
    await worker.step()
    assert calls == ["read", "write", "read"]


@pytest.mark.parametrize(("taken", "has_won"), [(1, False), (2, True)])
def test_another_tool_that_holds_most_gpus_of_the_node_has_won(taken: int, has_won: bool, tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(30):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            for gpu in bench.gpus[:taken]:
                if gpu.clock_mhz == 1200:
                    gpu.clock_mhz = None
        found = set(newest(bench).faults)
        assert NodeFault.FOREIGN_WRITER in found and (NodeFault.FOREIGN_WRITER_WON in found) is has_won

    play_agent(tmp_path, story)


@pytest.mark.parametrize(("reasons", "is_told"), [(0x40, True), (0x80, True), (0x04, False), (0x01, False)])
def test_heat_and_power_brakes_are_told_and_our_own_caps_are_not(reasons: int, is_told: bool, tmp_path: Path) -> None:
    """0x01 is an idle GPU, 0x04 one at its power limit: neither slows itself."""

    async def story(bench: Bench) -> None:
        bench.gpus[1].slowed_by = reasons
        await bench.wait(1.0)
        assert newest(bench).faults == ((NodeFault.GPU_THROTTLED,) if is_told else ())
        bench.gpus[1].slowed_by = 0
        await bench.wait(1.0)
        assert newest(bench).faults == ()

    play_agent(tmp_path, story)
