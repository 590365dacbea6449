"""A node that is taken back in the midst of giving back, and one that is told old news again and again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controller.types import GpuCap, GpuId, NodeFault
from tests.node_kit import Bench, play_agent


def test_a_node_taken_back_stops_giving_back(tmp_path: Path) -> None:
    """`rampart release`, and `rampart resume` while the GPUs still come back one by one: no later one gets free."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200))
        await bench.wait(1.0)
        assert bench.clocks == [1200] * 4
        bench.link.send(bench.command(None, is_release=True))
        await bench.until(lambda: sum(len(gpu.restores) for gpu in bench.gpus) == 2, within_s=10)
        bench.link.send(bench.command(1200))
        await bench.wait(1.5)
        assert bench.clocks == [1200] * 4
        bench.link.send(bench.command(1200))
        await bench.wait(4.0)
        assert [len(gpu.restores) for gpu in bench.gpus] == [1, 1, 0, 0] and bench.clocks == [1200] * 4
        assert NodeFault.FOREIGN_WRITER not in bench.link.reports[-1].faults

    bench = play_agent(tmp_path, story, count=4, stagger_s=2.0)
    assert not [what for _, what in bench.said if "another tool" in what]
    assert bench.clocks == [None] * 4 and bench.agent.is_given_back


def test_a_second_release_gives_all_back_again(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(2):
            bench.link.send(bench.command(1200))
            await bench.wait(1.5)
            bench.link.send(bench.command(None, is_release=True))
            await bench.until(lambda: bench.clocks == [None] * 2, within_s=10)
        assert [len(gpu.restores) for gpu in bench.gpus] == [2, 2]

    play_agent(tmp_path, story, count=2, stagger_s=1.0)


def test_old_commands_are_one_line_however_many(tmp_path: Path) -> None:
    """A deposed controller, or whoever can publish to this node, repeats itself: the log stays readable."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200, epoch=7, ttl_s=60.0))
        await bench.wait(1.0)
        for k in range(500):
            bench.link.send(replace(bench.command(1980, epoch=3), seq=k))
        await bench.wait(20.0)
        assert bench.clocks == [1200] * 2

    bench = play_agent(tmp_path, story)
    lines = [what for subject, what in bench.said if subject == "envelope"]
    assert len(lines) == 1 and "epoch 3" in lines[0]


def test_names_of_gpus_that_nobody_has_are_one_line(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        for k in range(50):
            stranger = GpuCap(GpuId(f"GPU-stranger-{k}"), 1200, None)
            bench.link.send(replace(bench.command(1200), caps=(stranger,)))
        await bench.wait(5.0)

    bench = play_agent(tmp_path, story)
    assert len([what for subject, what in bench.said if subject == "envelope"]) == 1


def test_what_is_refused_later_is_told_again_with_how_often(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200, epoch=7, ttl_s=60.0))
        await bench.wait(1.0)
        for _ in range(3):
            bench.link.send(bench.command(1980, epoch=3))
        await bench.wait(70.0)
        bench.link.send(bench.command(1980, epoch=3))
        bench.link.send(bench.command(9999, epoch=7))
        await bench.wait(1.0)

    bench = play_agent(tmp_path, story)
    lines = [what for subject, what in bench.said if subject == "envelope"]
    assert "(and 2 more since)" in lines[1] and "out of range" in lines[2], lines
