"""Rows G5, G9 and X6 on the whole site: one node under the agent that ships, judged on plant truth.

What the agent alone makes of them is in `test_faults_gpu`. The node stands for a sixteenth of the GPUs of one job that
runs in step: while an agent that was started anew holds its node at the fallback clock, all the others wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.modes import Flag
from controller.ports import NodeLink
from controller.types import GpuCap, GpuId, Mode, NodeCommand, NodeReport, Reading, SiteCommand
from hil.lab_agent import LabAgent, MixedLink
from hil.lab_site import TOP_MHZ
from hil.matrix import row
from hil.matrix_lab import Lab
from hil.plant.site import OTHER
from tests.faults_kit import Begin, Person, React, flagged, play

pytestmark = pytest.mark.slow  # `make faults` runs it; the agent's own halves are in the default suite

NODE, OTHER_NODE = "training-00", "training-01"
LOWEST_MHZ = 345  # of the plant's H100
NODES = 16
MARK_MHZ = 1305  # a clock that no plan of these stories gives
FREE_S = 12.0  # after NORMAL: raises wait for `raise_dwell_s`


class Stage:
    """The agent of the node, once the lab is open."""

    agent: LabAgent

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def link(self, lab: Lab, bench: NodeLink) -> NodeLink:
        node = lab.link.nodes[NODE]
        gpus = lab.world.plant.fleet.gpus
        other_w = lab.world.plant.now(OTHER) / gpus * len(node.specs)
        self.agent = LabAgent(node, lab.clock, self._state_dir, other_w=other_w)
        self.agent.start()
        return MixedLink(bench, self.agent)

    @property
    def gpus(self) -> Any:
        return self.agent.board.gpus

    def play(self, state: str, *, begin: Begin, react: React, reference: Begin | None = None, **options: object) -> Lab:
        """One cell; at its end, without a ceiling, no GPU is held below its top."""
        lab = play(
            state,
            begin=begin,
            react=react,
            reference=reference,
            stays_s=FREE_S,
            options={"make_link": self.link} | options,
            fleet={"reporting_nodes": NODES},
        )
        assert state == "limit" or lab.caps_mhz() == [TOP_MHZ] * NODES, "a GPU was left below its need"
        return lab


def most(state: str) -> Mode:
    """What the mode may be where the row itself asks for none: at the limit the envelope is busy."""
    return Mode.SHED if state == "limit" else Mode.NORMAL


def out_of_range(caps: Sequence[GpuCap]) -> tuple[GpuCap, ...]:
    """The first below what a GPU can, the second above."""
    return (replace(caps[0], clock_mhz=30), replace(caps[1], clock_mhz=9000), *caps[2:])


@row("G5")
def test_cap_out_of_range_on_the_way(state: str, tmp_path: Path) -> None:
    """Caps reach the agent below and above what its GPUs can: clamped, counted and told, and no reason to degrade."""
    stage = Stage(tmp_path)

    def altered(commands: Sequence[NodeCommand]) -> Sequence[NodeCommand]:
        return [replace(c, caps=out_of_range(c.caps)) if c.node_id == NODE and c.caps else c for c in commands]

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.CAP_CLAMPED, since_s=since_s, within_s=3.0)
        await lab.run(4.0)
        assert lab.worst_mode(since_s) <= most(state)
        assert stage.gpus[0].clock_mhz == LOWEST_MHZ and stage.gpus[1].clock_mhz == TOP_MHZ
        assert sum("invariant 2" in what for _, what in stage.agent.said) >= 2

    stage.play(state, begin=lambda lab: setattr(lab.hooks, "send", altered), react=react)
    written = [cap.clock_mhz for gpu in stage.gpus for cap in gpu.writes if cap.clock_mhz is not None]
    assert written and all(LOWEST_MHZ <= clock <= TOP_MHZ for clock in written)


@row("G5")
def test_cap_out_of_range_in_the_plan(state: str, tmp_path: Path) -> None:
    """The planner asks for less and more than GPUs can: the envelope clamps and counts it; none of it is sent."""
    stage, sent, counted = Stage(tmp_path), [], []

    def begin(lab: Lab) -> None:
        def watch(commands: Sequence[NodeCommand]) -> Sequence[NodeCommand]:
            sent.extend(cap.clock_mhz for c in commands for cap in c.caps if cap.clock_mhz is not None)
            return commands

        lab.hooks.send = watch

    async def react(lab: Lab, since_s: float) -> None:
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: counted.extend(v.invariant for v in trace.checked.violations))
        proposals, left = lab.daemon.core._proposals, [2]
        make = proposals.make

        def wrong(*args: Any, **kwargs: Any) -> SiteCommand:
            command = make(*args, **kwargs)
            if not command.nodes or not left[0]:
                return command
            left[0] -= 1
            first, *others = command.nodes
            return replace(command, nodes=(replace(first, caps=out_of_range(first.caps)), *others))

        proposals.make = wrong  # type: ignore[method-assign]
        await flagged(lab, Flag.CAP_CLAMPED, since_s=since_s, within_s=3.0)
        await lab.run(4.0)
        assert left == [0] and counted.count(2) >= 2 and lab.worst_mode(since_s) <= most(state)
        assert sent and all(LOWEST_MHZ <= clock <= TOP_MHZ for clock in sent)

    stage.play(state, begin=begin, react=react)


def falls_back(lab: Lab) -> None:
    """What a dying agent takes with it whoever controls: its node goes to the fallback clock until it is told again.

    Within a moment 6 of 52 MW are gone, because the whole job waits: where a row is spent to nine tenths it breaks.
    """
    node = lab.link.nodes[NODE]
    node.set_cap(GpuCap(node.specs[0].gpu_id, node.fallback_clock_mhz, None))


@row("G9")
def test_index_reorder(state: str, tmp_path: Path) -> None:
    """A hot swap: one agent finds its GPUs in another order, another node reports them so; all goes by UUID.

    One GPU of each is marked by a clock of its own. It stays that GPU's, in the books of the site and on the node, and
    nothing degrades for it.
    """
    stage, marks = Stage(tmp_path), {GpuId(f"GPU-{NODE}-0"), GpuId(f"GPU-{OTHER_NODE}-0")}

    def marked(commands: Sequence[NodeCommand]) -> Sequence[NodeCommand]:
        """The agent's GPU is told its own clock."""
        return [
            replace(c, caps=tuple(replace(cap, clock_mhz=MARK_MHZ) if cap.gpu_id in marks else cap for cap in c.caps))
            for c in commands
        ]

    def shown(reading: Reading[NodeReport], *, is_swapped: bool) -> Reading[NodeReport]:
        """The other node's GPU shows its own clock."""
        report = reading.value
        if report.node_id != OTHER_NODE:
            return reading
        caps_mhz = np.array([MARK_MHZ, *report.clock_cap_mhz[1:]])
        report = replace(report, clock_cap_mhz=caps_mhz)
        return replace(reading, value=reversed_gpus(report) if is_swapped else report)

    def begin(lab: Lab) -> None:
        lab.hooks.send = marked
        lab.hooks.report = lambda reading: shown(reading, is_swapped=False)

    async def react(lab: Lab, since_s: float) -> None:
        await lab.until(lambda: with_mark(lab) == marks, within_s=5.0)
        at_s = lab.now_s
        await stage.agent.kill()
        stage.gpus.reverse()
        stage.agent.start()
        lab.hooks.report = lambda reading: shown(reading, is_swapped=True)
        await lab.run(5.0)
        assert with_mark(lab) == marks, "bound by UUID, never by place"
        assert [g.spec.gpu_id for g in stage.gpus if g.clock_mhz == MARK_MHZ] == [GpuId(f"GPU-{NODE}-0")]
        assert lab.worst_mode(at_s) <= most(state)

    stage.play(state, begin=begin, react=react, reference=falls_back)


def reversed_gpus(report: NodeReport) -> NodeReport:
    """The same GPUs, listed the other way round."""
    arrays = ("power_w", "instant_w", "clock_mhz", "clock_cap_mhz", "power_limit_w", "quality", "is_controllable")
    turned: dict[str, Any] = {name: np.ascontiguousarray(getattr(report, name)[::-1]) for name in arrays}
    return replace(report, gpu_ids=report.gpu_ids[::-1], specs=report.specs[::-1], **turned)


def with_mark(lab: Lab) -> set[GpuId]:
    """The GPUs that the site counts with the marked clock."""
    if not lab.traces:
        return set()
    decision = lab.traces[-1].decision
    caps_mhz = decision.readings.acks.caps[0]
    return {gpu for gpu, k in decision.fleet.table.index.items() if caps_mhz[k] == MARK_MHZ}


@row("X6")
def test_corrupt_originals(state: str, tmp_path: Path) -> None:
    """The agent dies, its file is damaged, it starts anew: told until an operator resets, and control goes on.

    It takes over at the caps of its fallback and is given the site's again; its GPUs have their makers' limits.
    """
    stage, person = Stage(tmp_path), Person()

    def begin(lab: Lab) -> None:
        if state == "cold":  # the agent has not looked at it yet
            (tmp_path / "originals.json").write_text("{ damaged", encoding="utf-8")

    async def react(lab: Lab, since_s: float) -> None:
        if state != "cold":
            await stage.agent.kill()
            stage.agent.file.path.write_text("{ damaged", encoding="utf-8")
            stage.agent.start()
        await flagged(lab, Flag.ORIGINALS_CORRUPT, since_s=since_s, within_s=3.0)
        await lab.run(8.0)
        assert any(subject == "originals" and "defaults" in what for subject, what in stage.agent.said)
        assert lab.last.mode <= most(state) and Flag.ORIGINALS_CORRUPT in lab.last.flags
        assert stage.agent.link.reports()[NODE].value.is_controllable.all()
        saved = stage.agent.file.load()
        assert saved is not None and saved.is_stand_in
        assert all(found.power_limit_w == 700.0 and found.locked_clock_mhz is None for found in saved.gpus)
        if state == "steady":
            await lab.run(70.0)
            assert Flag.ORIGINALS_CORRUPT in lab.last.flags, "until an operator has looked"
            person.resets = True
            await lab.run(1.0)
            assert Flag.ORIGINALS_CORRUPT not in lab.last.flags

    stage.play(state, begin=begin, react=react, reference=falls_back, operator=person)
