"""A node whose last word is old counts at what its peers make of it, where it was seen to run in step with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from controller.estimate import LoadSource
from controller.estimate_nodes import NodeBook
from controller.modes import Flag
from controller.types import Mode, NodeId, NodeReport, Quality, Reading
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.estimate_kit import TICK_S, Bench, node

GPUS, STANDS_FOR, REPORT_S, OTHER_W = 8, 2_500, 0.2, 8e6
NODES = 4
NODE_W = GPUS * STANDS_FOR
BEGIN_S, ILL_S, DROP_S = 42.0, 50.0, 60.0

Power = Callable[[float], float]


def in_step(t_s: float) -> float:
    """W of each GPU of a job of which a third leaves within half a second."""
    return 600.0 + 15.0 * math.sin(1.7 * t_s) - 200.0 * min(max((t_s - DROP_S) / 0.5, 0.0), 1.0)


def on_its_own(t_s: float) -> float:
    return 500.0 + 15.0 * math.sin(2.9 * t_s)


class Nodes:
    """Four nodes, staggered; the first of them ill from a while before the drop on."""

    def __init__(self, power_of: tuple[Power, ...], *, late_s: float = 0.0, silent_s: float = math.inf) -> None:
        self._power_of, self._late_s, self._silent_s = power_of, late_s, silent_s
        self.has_stamps = True

    def at(self, now_s: float) -> tuple[Reading[NodeReport], ...]:
        return tuple(self._node(k, now_s) for k in range(NODES))

    def _node(self, k: int, now_s: float) -> Reading[NodeReport]:
        late_s = min(self._late_s, max(now_s - ILL_S, 0.0)) if k == 0 else 0.0  # its link stands, then comes late
        heard_s = min(now_s - late_s, self._silent_s) if k == 0 else now_s
        taken_s = heard_s - (heard_s - 0.05 * k) % REPORT_S
        told = node([self._power_of[k](taken_s)] * GPUS, taken_s + late_s, stands_for=STANDS_FOR)
        stamp_s = 1e5 * k + taken_s if self.has_stamps else None
        report = replace(told.value, node_id=NodeId(f"n{k}"), other_w=0.0, taken_s=stamp_s)
        quality = Quality.GOOD if now_s - told.t_mono_s <= 6.0 else Quality.MISSING
        return replace(told, value=report, quality=quality)


def ticks(until_s: float) -> list[float]:
    """From a while before anything is ill on."""
    return [BEGIN_S + 2.0 * TICK_S * k for k in range(round((until_s - BEGIN_S) / (2.0 * TICK_S)))]


def sums(nodes: Nodes, *, until_s: float) -> list[tuple[float, float, float]]:
    """(time, GPUs' power, its bound), sum by sum."""
    book, found = NodeBook(gpu_peak_w=100e6, scale_w=100e6), []
    for now_s in ticks(until_s):
        if book.take(now_s, nodes.at(now_s), metered_w=None):
            found.append((now_s, book.power.gpu_w, book.power.gpu_w_max))
    return found


@pytest.mark.parametrize("ill", [{"late_s": 2.5}, {"silent_s": 59.5}])
def test_a_node_in_step_is_moved_on_by_its_peers(ill: dict[str, float]) -> None:
    """16 MW leave, a quarter of them unseen; what the node said last stays the bound."""
    found = [f for f in sums(Nodes((in_step,) * NODES, **ill), until_s=65.0) if f[0] > DROP_S + 0.6]
    assert max(abs(gpu_w - NODES * NODE_W * in_step(t_s - 0.1)) for t_s, gpu_w, _ in found) < 1e6
    unseen = [high_w - gpu_w for t_s, gpu_w, high_w in found if t_s < DROP_S + 2.0]
    assert min(unseen) == pytest.approx(NODE_W * 200.0, rel=0.2)


@pytest.mark.parametrize("ill", [{"late_s": 2.5}, {"silent_s": 59.5}])
def test_a_node_with_a_job_of_its_own_stays_where_it_was(ill: dict[str, float]) -> None:
    """Its peers fell, and nothing says that it did."""
    found = [
        f for f in sums(Nodes((on_its_own, in_step, in_step, in_step), **ill), until_s=64.0) if f[0] > DROP_S + 0.6
    ]
    off_w = [gpu_w - NODE_W * (3.0 * in_step(t_s - 0.1) + 500.0) for t_s, gpu_w, _ in found]
    assert max(map(abs, off_w)) < 1e6


def test_a_node_that_fell_silent_stays_where_its_peers_left_it_for_long() -> None:
    """Half a minute later nobody knows what they did when it spoke last, and it is read again with that in the sum."""
    nodes = Nodes((in_step,) * NODES, silent_s=59.5)
    found = sums(nodes, until_s=95.0)
    assert found[-1][1] == pytest.approx(NODES * NODE_W * in_step(94.9), abs=2e6)
    book = NodeBook(gpu_peak_w=100e6, scale_w=100e6)
    for now_s in ticks(80.0):
        book.take(now_s, nodes.at(now_s), metered_w=None)
    book.take(80.1, Nodes((in_step,) * NODES).at(80.1), metered_w=None)
    (back,) = book.returned
    assert abs(back.mean_w) < 1e6


def test_an_agent_that_does_not_stamp_counts_at_its_last_word() -> None:
    nodes = Nodes((in_step,) * NODES, silent_s=59.5)
    nodes.has_stamps = False
    found = [gpu_w - NODE_W * 3.0 * in_step(t_s - 0.1) for t_s, gpu_w, _ in sums(nodes, until_s=64.0) if t_s > 61.0]
    assert np.ptp(found) < 1e6 and found[-1] == pytest.approx(NODE_W * in_step(59.4), abs=0.6e6)


def test_the_load_without_a_meter_is_what_nodes_in_step_make_of_it() -> None:
    """The estimator: meter away from 58 s on, one node 2.5 s late from 50 s on, a third of the job leaves at 60 s."""
    bench, nodes, found = Bench(), Nodes((in_step,) * NODES, late_s=2.5), []
    bench.now_s = BEGIN_S - 10.0

    def load_w(t_s: float) -> float:
        return NODES * NODE_W * in_step(t_s) + OTHER_W

    while bench.now_s < 66.0:
        now_s = bench.now_s + TICK_S
        found.append(bench.tick(load_w(now_s - 0.03) if now_s < 58.0 else None, nodes=nodes.at(now_s)))
    assert found[-1].late_nodes == (NodeId("n0"),) and found[round(15.0 / TICK_S)].late_nodes == ()
    blind = [f for f in found if f.source is LoadSource.NODES and f.t_s > DROP_S + 0.6]
    assert len(blind) > 50
    assert max(abs(f.load_w - load_w(f.t_s)) for f in blind) < 1.5e6


def test_a_late_node_is_named_in_the_reasons_and_changes_no_mode() -> None:
    seen: list[tuple[Mode, tuple[str, ...]]] = []

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(10.0)
        lab.fault("node:training-1", "delayed", 1.5)
        await lab.run(4.0)
        seen.append((lab.last.mode, lab.traces[-1].decision.estimate.late_nodes))
        assert lab.saw(Flag.NODE_LATE) and not lab.saw(Flag.NODE_LOST)
        lab.heal()
        await lab.run(14.0)
        assert Flag.NODE_LATE not in lab.last.flags

    in_lab(story, lab_scenario("steady"))
    assert seen == [(Mode.NORMAL, (NodeId("training-1"),))]
