"""The node agent over GPUs in memory, in virtual time: it obeys, gives back, and tells what comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.node.gpu_worker import GpuWorker
from controller.types import AgentState, GpuCap, GpuEvent, GpuTelemetry, NodeFault, Quality, Reading
from tests.node_kit import FALLBACK_MHZ, Bench, FakeGpu, newest, play_agent


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


def test_an_agent_that_starts_tells_of_no_gpu_that_it_has_not_asked_yet(tmp_path: Path) -> None:
    """A GPU without a reading counts as one that hangs, and each restart would degrade the site; one that does hang is
    told of once it had its time.
    """

    async def story(bench: Bench) -> None:
        await bench.wait(1.0)

    bench = play_agent(tmp_path / "well", story, settle_s=0.0)
    assert len(bench.link.reports) >= 4
    assert all(quality == Quality.GOOD for report in bench.link.reports for quality in report.quality)

    def hang(bench: Bench) -> None:
        bench.gpus[0].read = asyncio.Event().wait  # type: ignore[assignment,method-assign]

    bench = play_agent(tmp_path / "ill", story, settle_s=0.0, prepare=hang)
    assert not bench.link.reports
    bench = play_agent(tmp_path / "iller", story, settle_s=2.0, prepare=hang)
    assert newest(bench).quality.tolist() == [Quality.MISSING, Quality.GOOD]
