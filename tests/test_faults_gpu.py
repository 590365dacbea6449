"""Rows G and X6, X7 of the fault catalogue: the real node agent over failing GPUs, and the site that hears of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.fleet import LOST_S
from controller.modes import Flag
from controller.node.gpu_worker import FIGHTS_MAX, REFUSED_S, RETRIES
from controller.types import (
    AgentState,
    FloatArray,
    GpuCap,
    GpuId,
    Mode,
    NodeFault,
    NodeReport,
    Quality,
    Reading,
)
from hil.faults import Fault
from hil.lab_site import lab_scenario
from hil.matrix import row
from hil.matrix_lab import Lab, in_lab
from tests.faults_kit import Person, flagged
from tests.faults_kit import play as play_site
from tests.node_kit import FALLBACK_MHZ, Bench, newest, play_agent

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
        return replace(reading, value=change(reading.value)) if node in ("*", reading.value.node_id) else reading

    return lambda lab: setattr(lab.hooks, "report", hook)


def fixed_w(lab: Lab, node: str = "training-0") -> FloatArray:
    """What the budget holds for each GPU of the node whatever it is told: NaN where its caps count."""
    decision = lab.traces[-1].decision
    return decision.readings.acks.fixed_w[decision.fleet.table.spans[node]]  # type: ignore[index]


def limits_w(lab: Lab, node: str = "training-0") -> FloatArray:
    """The power limits that the node reports."""
    return next(r.value.power_limit_w for r in lab.traces[-1].image.nodes if r.value.node_id == node)


def orders_w(lab: Lab, node: str = "training-0") -> FloatArray:
    """The power limits in force for the node by the envelope's books; inf is free."""
    decision = lab.traces[-1].decision
    return books(lab)[1, decision.fleet.table.spans[node]]  # type: ignore[index]


def unread(*told: NodeFault) -> Callable[[NodeReport], NodeReport]:
    """No GPU of the node can be read any more; the agent says why."""
    return lambda r: replace(
        r,
        quality=np.full(len(r.gpu_ids), Quality.MISSING, dtype=np.int8),
        power_w=np.full(len(r.gpu_ids), np.nan),
        faults=told,
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
        assert fixed_w(lab) == pytest.approx(limits_w(lab)), "a cap that it was told and may never have taken counts"
        assert decision.readings.power_w[span] == pytest.approx(limits_w(lab))
        assert lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=reports(unread(NodeFault.GPU_HUNG)), react=react)


@row("G2")
def test_gpu_falls_off_the_bus(state: str, tmp_path: Path) -> None:
    """Nothing is written to it; the site counts it at its last limit for a minute, then as idle."""

    def lose(bench: Bench) -> None:
        bench.gpus[0].is_lost = True

    async def check(bench: Bench) -> None:
        before = len(bench.gpus[0].writes)
        await commanded(bench, 1095, 5)
        report = newest(bench)
        assert report.quality.tolist() == [Quality.MISSING, Quality.GOOD] and bench.clocks[1] == 1095
        assert any(subject == "GPU-0" for subject, _ in bench.said) and len(bench.gpus[0].writes) == before
        assert report.faults == (NodeFault.GPU_LOST,)
        bench.gpus[0].is_lost = False
        await commanded(bench, 1095, 2)
        assert bench.clocks == [1095, 1095], "taken back into the fold"

    agent(state, tmp_path, lose, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_LOST, since_s=since_s, within_s=2.0)
        await lab.run(3.0)
        assert fixed_w(lab) == pytest.approx(limits_w(lab))
        await lab.run(LOST_S)
        idle_w = lab.traces[-1].decision.fleet.table.idle_w[0]
        assert fixed_w(lab) == pytest.approx(np.full(8, idle_w)) and lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=reports(unread(NodeFault.GPU_LOST)), react=react)


@row("G3")
def test_permission_denied(state: str, tmp_path: Path) -> None:
    """The agent tries once and then only reports; the site budgets it at the limits it has."""

    def forbid(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.is_forbidden = True

    async def check(bench: Bench) -> None:
        tried = [worker.status.write_count for worker in bench.agent._workers.values()]
        await commanded(bench, 1050, 4)
        assert [w.status.write_count - n for w, n in zip(bench.agent._workers.values(), tried, strict=True)] == [1, 1]
        assert newest(bench).state is AgentState.MONITOR_ONLY
        assert newest(bench).quality.tolist() == [Quality.GOOD] * 2
        assert newest(bench).faults == (NodeFault.GPU_PERMISSION,)

    agent(state, tmp_path, forbid, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_PERMISSION, since_s=since_s, within_s=2.0)
        await lab.run(3.0)
        assert fixed_w(lab) == pytest.approx(np.full(8, 650.0)) and lab.last.mode >= Mode.DEGRADED

    def only_reports(report: NodeReport) -> NodeReport:
        return replace(report, state=AgentState.MONITOR_ONLY, power_limit_w=np.full(len(report.gpu_ids), 650.0))

    play_site(state, begin=reports(only_reports), react=react)


@row("G4")
def test_set_accepted_not_applied(state: str, tmp_path: Path) -> None:
    """Two retries, then uncontrollable at its actual cap."""

    def deafen(bench: Bench) -> None:
        bench.gpus[0].ignores = True

    async def check(bench: Bench) -> None:
        before = len(bench.gpus[0].writes)
        await commanded(bench, 1050, 8)
        assert newest(bench).is_controllable.tolist() == [False, True]
        assert len(bench.gpus[0].writes) - before == 1 + RETRIES == 3
        actual = {"cold": np.nan, "steady": 1200.0, "limit": 210.0}.get(state)
        assert actual is None or newest(bench).clock_cap_mhz.tolist() == pytest.approx([actual, 1050.0], nan_ok=True)
        assert newest(bench).faults == (NodeFault.GPU_IGNORES_CAPS,)

    agent(state, tmp_path, deafen, check)

    def pretend(bench: Bench) -> None:
        """As NVML has it: the lock is accepted, nothing reads it back, and the clock stays where it was."""
        bench.gpus[0].pretends = True

    async def check_clock(bench: Bench) -> None:
        before, was_mhz, lower_mhz = len(bench.gpus[0].writes), bench.clocks[0], 405
        if state == "limit":  # at the lowest clock there is nothing lower to ignore
            return
        await commanded(bench, lower_mhz, 8)
        assert bench.clocks[0] == was_mhz and newest(bench).is_controllable.tolist() == [False, True]
        assert len(bench.gpus[0].writes) - before == 1 + RETRIES
        assert newest(bench).faults == (NodeFault.GPU_IGNORES_CAPS,)
        bench.gpus[0].pretends = False
        await commanded(bench, lower_mhz, round(REFUSED_S))
        assert bench.clocks == [lower_mhz] * 2 and newest(bench).is_controllable.all(), "by itself, at the same cap"

    agent(state, tmp_path / "clock", pretend, check_clock)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_IGNORES_CAPS, since_s=since_s, within_s=3.0)
        await lab.run(3.0)
        assert fixed_w(lab) == pytest.approx(limits_w(lab))

    play_site(
        state,
        begin=reports(lambda r: replace(r, is_controllable=np.zeros(len(r.gpu_ids), dtype=np.bool_))),
        react=react,
    )


def test_gpus_that_ignore_their_caps_come_back_without_a_step() -> None:
    """All GPUs of the site, on the way down to a ceiling of 54 MW, which the battery then keeps alone.

    Caps that nobody takes are not lowered further: who takes them again would take all of that at once.
    """

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(24.0)
        began_s = lab.now_s
        lab.plan.add(Fault("deaf", "node:*", "wrong", began_s, began_s + 40.0, 1.0))
        await flagged(lab, Flag.GPU_IGNORES_CAPS, since_s=began_s, within_s=5.0)
        held = books(lab)
        await lab.run(35.0)
        assert np.isfinite(fixed_w(lab)).all() and (books(lab) == held).all()
        await lab.run(REFUSED_S + 20.0)
        assert np.isnan(fixed_w(lab)).all() and lab.worst_mode(began_s) <= Mode.SHED

    assert not in_lab(story, lab_scenario("limit")).broken()


def test_nodes_that_may_still_hear_are_told_no_less_than_if_all_took_their_caps() -> None:
    """No meter, and every report 2.9 s late, at a ceiling: no GPU counts as one that takes caps, and all of them do.

    What they may draw at most, all together, is no reason to tell each the least that there is.
    """

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(45.0)
        before = books(lab).copy()
        lab.fault("meter", "off")
        lab.fault("node:*", "slow", value=2.9)
        for _ in range(11):
            await lab.run(1.0)
            assert (books(lab)[1] >= 0.9 * np.minimum(before[1], 700.0)).all()

    in_lab(story, lab_scenario("limit"))


def books(lab: Lab) -> FloatArray:
    """Clocks and power limits in force by the envelope's books."""
    assert lab.daemon is not None
    return lab.daemon.core._written.caps


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
    """Overruled three times, then left to it; where it holds most GPUs of the site: FALLBACK, until a person acts."""

    async def check(bench: Bench) -> None:
        for _ in range(30):
            bench.link.send(bench.command(1200))
            await bench.wait(1.0)
            if bench.clocks[0] == 1200:
                bench.gpus[0].clock_mhz = None
        assert newest(bench).is_controllable.tolist() == [False, True]
        assert newest(bench).faults == (NodeFault.FOREIGN_WRITER,), "half of its GPUs are not most"
        assert any("left to it" in what for _, what in bench.said)
        assert sum(cap.clock_mhz == 1200 for _, cap in bench.gpus[0].writes) == 1 + FIGHTS_MAX == 4

    agent(state, tmp_path, lambda bench: None, check)
    person = Person()

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.FOREIGN_WRITER_WON, since_s=since_s, within_s=2.0)
        assert lab.last.mode is Mode.FALLBACK
        lab.heal()
        await lab.run(15.0)
        assert lab.last.mode is Mode.FALLBACK, "until an operator acts"
        person.resets = True

    def taken(report: NodeReport) -> NodeReport:
        none = np.zeros(len(report.gpu_ids), dtype=np.bool_)
        return replace(report, is_controllable=none, faults=(NodeFault.FOREIGN_WRITER, NodeFault.FOREIGN_WRITER_WON))

    play_site(state, begin=reports(taken, node="*"), react=react, options={"operator": person})


@row("G7")
def test_power_above_cap(state: str) -> None:
    """Five periods above the power limit: it counts at what it draws, others make room, then its limit steps down."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.POWER_ABOVE_CAP, since_s=since_s, within_s=9.0)
        found_s, others = lab.now_s, [orders_w(lab, f"training-{k}").copy() for k in (1, 2, 3)]
        assert lab.last.mode >= Mode.DEGRADED
        assert fixed_w(lab) == pytest.approx(1.2 * limits_w(lab)), "a limit that does not hold bounds nothing"
        before = np.minimum(orders_w(lab), 700.0)
        assert found_s - since_s >= 5.0 - 0.3
        await lab.until(lambda: bool((orders_w(lab) <= 0.96 * before).all()), within_s=4.0)
        if state == "limit":  # where a ceiling binds, room was made before
            assert all((orders_w(lab, f"training-{k}") <= was).all() for k, was in zip((1, 2, 3), others, strict=True))

    play_site(state, begin=reports(lambda r: replace(r, power_w=1.2 * r.power_limit_w)), react=react)


@row("G8")
def test_driver_reload(state: str, tmp_path: Path) -> None:
    """A reset unlocks the clock behind our back: set again at the next look; the site hears of the new boot."""
    held = {"cold": FALLBACK_MHZ, "steady": 1200, "limit": 210, "ramp": 1395}[state]

    def reset(bench: Bench) -> None:
        for gpu in bench.gpus:
            gpu.clock_mhz = None

    async def check(bench: Bench) -> None:
        await commanded(bench, held, 3)  # the same as before: nothing but the reset asks for a write
        assert bench.clocks == [held, held] and newest(bench).is_controllable.all()

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
def test_thermal_slowdown(state: str, tmp_path: Path) -> None:
    """A GPU slows itself: said, less demand, and no action. No cap goes lower for it, nothing is worse than before."""

    def heat(bench: Bench) -> None:
        bench.gpus[0].slowed_by = 0x40

    async def check(bench: Bench) -> None:
        before = [len(gpu.writes) for gpu in bench.gpus]
        await bench.wait(2.0)
        assert newest(bench).faults == (NodeFault.GPU_THROTTLED,) and newest(bench).is_controllable.all()
        moves = 1 if state == "ramp" else 0  # the one under way
        assert all(len(gpu.writes) - was <= moves for gpu, was in zip(bench.gpus, before, strict=True))

    agent(state, tmp_path, heat, check)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.GPU_THROTTLED, since_s=since_s, within_s=1.0)
        await lab.run(8.0)
        assert lab.worst_mode(since_s) <= (Mode.SHED if state == "limit" else Mode.NORMAL)
        assert fixed_w(lab) == pytest.approx(np.full(8, np.nan), nan_ok=True), "its caps count as before"
        assert state == "limit" or lab.caps_mhz() == [1980.0] * 4

    def slowed(report: NodeReport) -> NodeReport:
        clock_mhz = np.minimum(report.clock_mhz, 1200.0)
        return replace(report, power_w=0.8 * report.power_w, clock_mhz=clock_mhz, faults=(NodeFault.GPU_THROTTLED,))

    play_site(state, begin=reports(slowed), react=react)


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
        assert fixed_w(lab) == pytest.approx(np.full(8, 700.0)) and lab.last.mode >= Mode.DEGRADED

    play_site(state, begin=lambda lab: lab.fault("node:training-0", "off"), react=react)
