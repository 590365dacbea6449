"""The node agent and GPUs that are away, deaf, hung, or written to by another tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from controller.node.gpu_worker import CLOCK_WRITE_S, FIGHTS_MAX, JUDGED_S, PEACE_S, RETRIES
from controller.types import AgentState, NodeFault, NodeReport, Quality
from drivers.nvml import CLOCK_SETTLE_S
from tests.node_kit import Bench, newest, play_agent


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


def test_a_locked_clock_that_was_ignored_is_written_again_until_the_gpu_keeps_to_it(tmp_path: Path) -> None:
    """Nobody changes the cap meanwhile. Three writes a second apart, then three every half minute; no fight is seen."""

    async def story(bench: Bench) -> None:
        gpu = bench.gpus[0]
        for k in range(60):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if k == 10:
                report = newest(bench)
                assert len(gpu.writes) == 1 + RETRIES and report.is_controllable.tolist() == [False, True]
                assert report.faults == (NodeFault.GPU_IGNORES_CAPS,) and np.isnan(report.clock_cap_mhz[0])
                gpu.pretends = False
        assert newest(bench).is_controllable.all() and newest(bench).faults == () and bench.clocks == [1200, 1200]
        assert len(gpu.writes) == 2 + RETRIES and len(bench.gpus[1].writes) == 1
        assert np.diff([t for t, _ in gpu.writes]).min() >= CLOCK_WRITE_S

    def pretender(bench: Bench) -> None:
        bench.gpus[0].pretends = True

    bench = play_agent(tmp_path, story, prepare=pretender)
    said = [what for who, what in bench.said if who == "GPU-0"]
    assert said == ["does not take its cap: it runs at 1980 MHz, locked to 1200; tried again every 30 s", "recovered"]


def test_a_clock_that_is_ignored_while_caps_move_is_found_as_well(tmp_path: Path) -> None:
    """A new cap every second is a new write every second: none of them may hide that the one before did nothing."""

    async def story(bench: Bench) -> None:
        bench.gpus[0].pretends = True
        for k in range(6):
            bench.link.send(bench.command(1500 - 15 * k))
            await bench.wait(1.01)
        assert newest(bench).is_controllable.tolist() == [False, True]
        assert len(bench.gpus[0].writes) == 1 + RETRIES

    play_agent(tmp_path, story)


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


def test_the_worker_judges_no_clock_before_the_driver_does() -> None:
    assert JUDGED_S >= CLOCK_SETTLE_S
