"""Commands for a fleet: one per node that is due, each in its slot, caps as planned or none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.node_commands import node_commands
from controller.types import NodeCommand
from hil import bench_planner

SLOPE = 1e5


def commands(*, caps: np.ndarray, due: np.ndarray | None = None, release: bool = False) -> tuple[NodeCommand, ...]:
    """For 20 GPUs on three nodes of 8, 8 and 4."""
    fleet = bench_planner._fleet(20)
    nodes = bench_planner._reports(fleet, t_s=1.0, power_w=np.full(20, 500.0))
    return node_commands(
        nodes,
        fleet,
        caps,
        epoch=3,
        seq=9,
        ttl_s=5.0,
        slope_w_per_s=SLOPE,
        is_release=release,
        is_due=due,
    )


def test_every_node_waits_for_those_before_it() -> None:
    """Each node's slot begins when the GPUs before it could have gone from peak to idle along the site's slope."""
    caps = np.vstack((np.full(20, 1200.0), np.full(20, np.inf)))
    found = commands(caps=caps)
    swing_w = bench_planner.PEAK_W - bench_planner.IDLE_W
    assert [c.release_slot_s for c in found] == pytest.approx([0.0, 8 * swing_w / SLOPE, 16 * swing_w / SLOPE])
    assert [len(c.caps) for c in found] == [8, 8, 4]
    assert all(cap.clock_mhz == 1200 and cap.power_limit_w is None for c in found for cap in c.caps)
    assert {(c.epoch, c.seq, c.ttl_s) for c in found} == {(3, 9, 5.0)}


def test_who_is_not_due_hears_nothing_and_keeps_its_slot() -> None:
    """One GPU of the last node is due: that node alone is told, in the slot it would have had anyway."""
    caps = np.vstack((np.arange(20) * 10.0 + 1000.0, np.full(20, 650.0)))
    due = np.zeros(20, dtype=np.bool_)
    due[17] = True
    (last,) = commands(caps=caps, due=due)
    assert last.node_id == "node-00002" and last.release_slot_s == commands(caps=caps)[2].release_slot_s
    assert [cap.clock_mhz for cap in last.caps] == [1160, 1170, 1180, 1190]
    assert [cap.power_limit_w for cap in last.caps] == [650.0] * 4


def test_a_release_has_no_caps() -> None:
    """Originals come back by their own path, whatever the plan's caps are."""
    caps = np.vstack((np.full(20, 900.0), np.full(20, 500.0)))
    caps[0, 4] = math.inf
    assert commands(caps=caps)[0].caps[4].clock_mhz is None, "free"
    released = commands(caps=caps, release=True)
    assert all(c.is_release and c.caps == () for c in released)
