"""Rows G and X6, X7 of the fault catalogue: the real node agent over failing GPUs, and the site that hears of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.modes import Flag
from controller.node.gpu_worker import FIGHTS_MAX
from controller.types import AgentState, GpuCap, GpuId, Mode, NodeFault, NodeReport, Quality, Reading
from hil.matrix import row
from hil.matrix_lab import Lab
from tests.faults_kit import flagged
from tests.faults_kit import play as play_site
from tests.node_kit import FALLBACK_MHZ, Bench, play_agent
from tests.test_node_agent import newest

Begin = Callable[[Bench], None]
Check = Callable[[Bench], Awaitable[None]]


def agent(state: str, tmp_path: Path, begin: Begin, check: Check) -> Bench:
    """One agent in a state of its caps: no command yet, a cap held, the lowest clock held, a cap that moves."""

    async def story(bench: Bench) -> None:
        if state != "cold":
            held = {"steady": 1200, "limit": 210, "ramp": 1500}[state]
            bench.link.send(bench.command(held))
            await bench.until(lambda: bench.clocks == [held, held], within_s=2.0)
            if state == "ramp":
                bench.link.send(bench.command(1400))
                await bench.wait(0.3)
        begin(bench)
        await check(bench)

    return play_agent(tmp_path, story)


async def commanded(bench: Bench, clock_mhz: int, seconds: float) -> None:
    """Renewed once a second, as the site does."""
    for _ in range(round(seconds)):
        bench.link.send(bench.command(clock_mhz))
        await bench.wait(1.0)


def reports(change: Callable[[NodeReport], NodeReport], *, node: str = "training-0") -> Callable[[Lab], None]:
    """A site whose one node reports as `change` makes it."""

    def hook(reading: Reading[NodeReport]) -> Reading[NodeReport]:
        return replace(reading, value=change(reading.value)) if reading.value.node_id == node else reading

    return lambda lab: setattr(lab.hooks, "report", hook)


def fixed_w(lab: Lab, node: str = "training-0") -> float:
    """What the budget holds for the node beyond command: NaN where its caps count."""
    decision = lab.traces[-1].decision
    return float(decision.readings.acks.fixed_w[decision.fleet.table.spans[node]].mean())  # type: ignore[index]


def lost(quality: Quality) -> Callable[[NodeReport], NodeReport]:
    return lambda r: replace(
        r, quality=np.full(len(r.gpu_ids), quality, dtype=np.int8), power_w=np.full(len(r.gpu_ids), np.nan)
    )


@row("G1")
def test_nvml_call_hangs(state: str, tmp_path: Path) -> None:
    """That GPU is missing, the other obeys; the site counts the missing ones at their caps."""

    def hang(bench: Bench) -> None:
        bench.gpus[0].hangs = True

    async def check(bench: Bench) -> None:
        await commanded(bench, 1095, 4)
        assert newest(bench).quality.tolist() == [Quality.MISSING, Quality.GOOD] and bench.clocks[1] == 1095
        assert newest(bench).faults == (NodeFault.GPU_HUNG,)
        bench.gpus[0].hangs = False
        await commanded(bench, 1095, 2)
        assert bench.clocks == [1095, 1095]

    agent(state, tmp_path, hang, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_HUNG, since_s=since_s, within_s=2.0)
        await lab.run(3.0)
        decision = lab.traces[-1].decision
        span = decision.fleet.table.spans["training-0"]  # type: ignore[index]
        assert (decision.readings.power_w[span] >= decision.readings.acks.caps[1][span] - 1e-6).all()
        assert lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=reports(lost(Quality.MISSING)), react=react)


@row("G2")
def test_gpu_falls_off_the_bus(state: str, tmp_path: Path) -> None:
    def lose(bench: Bench) -> None:
        bench.gpus[0].is_lost = True

    async def check(bench: Bench) -> None:
        await commanded(bench, 1095, 5)
        report = newest(bench)
        assert report.quality.tolist() == [Quality.MISSING, Quality.GOOD] and bench.clocks[1] == 1095
        assert any(subject == "GPU-0" for subject, _ in bench.said)
        assert report.faults == (NodeFault.GPU_LOST,)
        bench.gpus[0].is_lost = False
        await commanded(bench, 1095, 2)

    agent(state, tmp_path, lose, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_LOST, Flag.GPU_HUNG, since_s=since_s, within_s=2.0)

    play_site(state, begin=reports(lost(Quality.MISSING)), react=react)


@row("G3")
def test_permission_denied(state: str, tmp_path: Path) -> None:
    """The agent only reports; the site budgets it at what it may draw."""

    def forbid(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.is_forbidden = True

    async def check(bench: Bench) -> None:
        await commanded(bench, 1050, 4)
        assert newest(bench).state is AgentState.MONITOR_ONLY
        assert newest(bench).quality.tolist() == [Quality.GOOD] * 2
        assert newest(bench).faults == (NodeFault.GPU_PERMISSION,)

    agent(state, tmp_path, forbid, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_PERMISSION, since_s=since_s, within_s=2.0)
        await lab.run(3.0)
        assert fixed_w(lab) > 0.0 and lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=reports(lambda r: replace(r, state=AgentState.MONITOR_ONLY)), react=react)


@row("G4")
def test_set_accepted_not_applied(state: str, tmp_path: Path) -> None:
    """Two retries, then uncontrollable at its actual cap."""

    def deafen(bench: Bench) -> None:
        bench.gpus[0].ignores = True

    async def check(bench: Bench) -> None:
        before = len(bench.gpus[0].writes)
        await commanded(bench, 1050, 8)
        assert newest(bench).is_controllable.tolist() == [False, True]
        assert len(bench.gpus[0].writes) - before <= 4
        assert newest(bench).faults == (NodeFault.GPU_IGNORES_CAPS,)

    agent(state, tmp_path, deafen, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_IGNORES_CAPS, since_s=since_s, within_s=3.0)
        await lab.run(3.0)
        assert fixed_w(lab) > 0.0

    play_site(
        state,
        begin=reports(lambda r: replace(r, is_controllable=np.zeros(len(r.gpu_ids), dtype=np.bool_))),
        react=react,
    )


@row("G5")
def test_cap_out_of_range(state: str, tmp_path: Path) -> None:
    """Below the least and above the most: clamped to the GPU's range, and said."""

    async def check(bench: Bench) -> None:
        for asked, got in ((30, 210), (9000, 1980)):
            bench.link.send(bench.command(asked))
            await bench.until(lambda got=got: bench.clocks == [got, got], within_s=3.0)  # type: ignore[misc]
            await bench.until(lambda: NodeFault.CAP_CLAMPED in newest(bench).faults, within_s=0.5)
        assert sum("invariant 2" in what for _, what in bench.said) >= 2
        for gpu in bench.gpus:
            assert all(cap.clock_mhz is None or 210 <= cap.clock_mhz <= 1980 for _, cap in gpu.writes)

    agent(state, tmp_path, lambda bench: None, check)


@row("G6")
def test_another_tool_changes_caps(state: str, tmp_path: Path) -> None:
    """Overruled three times, then left to it and no longer counted as controllable."""

    async def check(bench: Bench) -> None:
        for _ in range(30):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if bench.clocks[0] == 1200:
                bench.gpus[0].clock_mhz = None
        assert newest(bench).is_controllable.tolist() == [False, True]
        assert newest(bench).faults == (NodeFault.FOREIGN_WRITER,), "half of its GPUs are not most"
        assert any("left to it" in what for _, what in bench.said)
        assert sum(cap.clock_mhz == 1200 for _, cap in bench.gpus[0].writes) <= 2 + FIGHTS_MAX

    agent(state, tmp_path, lambda bench: None, check)


@row("G7")
def test_power_above_cap(state: str) -> None:
    """Averages above the power limit for five periods: flagged, and the load counts as what is drawn."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.POWER_ABOVE_CAP, since_s=since_s, within_s=9.0)
        assert lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=reports(lambda r: replace(r, power_w=1.2 * r.power_limit_w)), react=react)


@row("G8")
def test_driver_reload(state: str, tmp_path: Path) -> None:
    """A reset unlocks the clock behind our back: set again at the next look; the site hears of the new boot."""

    def reset(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.clock_mhz = None

    async def check(bench: Bench) -> None:
        await commanded(bench, 1095, 4)
        assert bench.clocks == [1095, 1095]

    agent(state, tmp_path, reset, check)

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":
            await lab.run(2.0)
            reports(lambda r: replace(r, boot_id="another"))(lab)
        await flagged(lab, Flag.GPU_RESET, since_s=since_s, within_s=1.0)

    begin = reports(lambda r: r) if state == "cold" else reports(lambda r: replace(r, boot_id="another"))
    play_site(state, begin=begin, react=react)


@row("G9")
def test_index_reorder(state: str, tmp_path: Path) -> None:
    """The GPUs change places: each keeps the cap of its UUID; a cap that names none of them is refused."""

    async def check(bench: Bench) -> None:
        bench.gpus.reverse()
        caps = tuple(GpuCap(gpu.spec.gpu_id, clock, None) for gpu, clock in zip(bench.gpus, (900, 1500), strict=True))
        bench.link.send(replace(bench.command(1200), caps=(*caps, GpuCap(GpuId("0"), 300, None))))
        await bench.wait(3.0)
        assert {gpu.spec.gpu_id: gpu.clock_mhz for gpu in bench.gpus} == {"GPU-1": 900, "GPU-0": 1500}
        assert any("invariant 1" in what for _, what in bench.said)

    agent(state, tmp_path, lambda bench: None, check)


@row("G10")
def test_thermal_slowdown(state: str) -> None:
    """A GPU slows itself: less demand, no action, nothing worse than before."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(8.0)
        assert lab.worst_mode(since_s) <= (Mode.SHED if state == "limit" else Mode.NORMAL)

    play_site(
        state,
        begin=reports(lambda r: replace(r, power_w=0.8 * r.power_w, clock_mhz=np.minimum(r.clock_mhz, 1200.0))),
        react=react,
    )


@row("X6")
def test_corrupt_originals(state: str, tmp_path: Path) -> None:
    """Damaged file at the next start: device defaults and an alarm, nothing guessed."""
    if state != "cold":
        agent_left(state, tmp_path)
    path = next(iter(Path(tmp_path).glob("*originals*")), Path(tmp_path) / "originals.json")
    path.write_text("{ damaged", encoding="utf-8")

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command(1200))
        await bench.wait(3.0)
        assert newest(bench).faults == (NodeFault.ORIGINALS_CORRUPT,)
        await bench.wait(60.0)
        assert newest(bench).faults == (), "said, not for ever"

    bench = play_agent(tmp_path, story)
    assert any(subject == "originals" and "defaults" in what for subject, what in bench.said)
    assert [gpu.limit_w for gpu in bench.gpus] == [700.0, 700.0] and bench.clocks == [None, None]


def agent_left(state: str, tmp_path: Path) -> None:
    """An agent that held caps and was killed."""

    async def story(bench: Bench) -> None:
        bench.link.send(bench.command({"steady": 1200, "limit": 210, "ramp": 1500}[state]))
        await bench.wait(1.5)
        if state == "ramp":
            bench.link.send(bench.command(1400))
            await bench.wait(0.2)

    play_agent(tmp_path, story, stop=False)


@row("X7")
def test_agent_dies(state: str, tmp_path: Path) -> None:
    """The site budgets the silent node at nameplate; the next agent takes over at fallback and gives back what was."""
    if state != "cold":
        agent_left(state, tmp_path)

        async def story(bench: Bench) -> None:
            await bench.until(lambda: bench.clocks == [FALLBACK_MHZ] * 2, within_s=60.0)

        bench = play_agent(tmp_path, story)
        assert bench.clocks == [None, None] and all(gpu.limit_w == 650.0 for gpu in bench.gpus)

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":  # a node never heard of is in the unmanaged part of the budget, not lost
            await lab.run(10.0)
            assert len(lab.traces[-1].image.nodes) == 3
            return
        await flagged(lab, Flag.NODE_LOST, since_s=since_s, within_s=7.5)
        await lab.run(2.0)
        assert fixed_w(lab) == pytest.approx(700.0) and lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=lambda lab: lab.fault("node:training-0", "off"), react=react)
