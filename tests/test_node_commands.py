"""Commands for a fleet: one per node that is due, each in its slot, caps as planned or none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from controller.node_commands import node_commands
from controller.parting import WAIT_S_MAX, NodeParting, job_groups
from controller.types import NodeCommand, Stamp
from hil import bench_planner

SLOPE = 1e5


def commands(
    *,
    caps: np.ndarray,
    due: np.ndarray | None = None,
    release: bool = False,
    waits_s: tuple[float, float] = (0.0, 0.0),
    jobs: tuple[int, int, int] = (0, 1, 2),
    parting: NodeParting | None = None,
) -> tuple[NodeCommand, ...]:
    """For 20 GPUs on three nodes of 8, 8 and 4, each with the job given; fallback is at 1200 MHz."""
    fleet = replace(
        bench_planner._fleet(20),
        job_index=np.repeat(np.array(jobs, dtype=np.int64), (8, 8, 4)),
        job_names=("a", "b", "c"),
    )
    nodes = bench_planner._reports(fleet, t_s=1.0, power_w=np.full(20, 500.0))
    return node_commands(
        [replace(n, value=replace(n.value, fallback_clock_mhz=1200.0)) for n in nodes],
        fleet,
        caps,
        stamp=Stamp(3, 9, 5.0),
        parting=parting or NodeParting(SLOPE, *waits_s),
        groups=job_groups(fleet),
        is_release=release,
        is_due=due,
    )


def test_every_job_waits_for_those_before_it() -> None:
    """Each job's slot begins when the GPUs before it could have gone from peak to idle along the site's slope."""
    caps = np.vstack((np.full(20, 1200.0), np.full(20, np.inf)))
    found = commands(caps=caps)
    swing_w = bench_planner.PEAK_W - bench_planner.IDLE_W
    assert [c.release_slot_s for c in found] == pytest.approx([0.0, 8 * swing_w / SLOPE, 16 * swing_w / SLOPE])
    assert [c.release_w_per_s for c in found] == pytest.approx([SLOPE] * 3)
    assert [len(c.caps) for c in found] == [8, 8, 4]
    assert all(cap.clock_mhz == 1200 and cap.power_limit_w is None for c in found for cap in c.caps)
    assert {(c.epoch, c.seq, c.ttl_s) for c in found} == {(3, 9, 5.0)}


def test_nodes_of_one_job_go_together_and_share_the_slope() -> None:
    """The first and the last serve one job: 12 GPUs, of which they have 8 and 4."""
    caps = np.vstack((np.full(20, 1200.0), np.full(20, np.inf)))
    found = commands(caps=caps, jobs=(0, 1, 0))
    swing_w = bench_planner.PEAK_W - bench_planner.IDLE_W
    assert [c.release_slot_s for c in found] == pytest.approx([0.0, 12 * swing_w / SLOPE, 0.0])
    assert [c.release_w_per_s for c in found] == pytest.approx([SLOPE * 8 / 12, SLOPE, SLOPE * 4 / 12])


def test_a_node_waits_for_what_moves_its_own_way() -> None:
    """One will fall, one stays, one has GPUs on both sides of its fallback clock; a release asks no such thing."""
    caps = np.full((2, 20), np.inf)
    caps[0, 8:16], caps[0, 16:18], caps[0, 18:] = 1200.0, 1190.0, 1210.0
    for waits_s in ((10.0, 30.0), (40.0, 30.0)):
        found = commands(caps=caps, waits_s=waits_s, jobs=(0, 0, 0))
        assert [c.release_slot_s for c in found] == [waits_s[0], 0.0, max(waits_s)]
    caps[0, 16:] = 1190.0
    assert commands(caps=caps, waits_s=(40.0, 30.0), jobs=(0, 0, 0))[2].release_slot_s == 30.0
    assert {c.release_slot_s for c in commands(caps=caps, waits_s=(40.0, 30.0), jobs=(0, 0, 0), release=True)} == {0.0}


def test_under_a_ceiling_nodes_aim_at_a_share_and_return_from_it_in_turn() -> None:
    """Three quarters of 1200 MHz: 1000 falls and waits as such, 800 rises; the way back has turns."""
    told = NodeParting(SLOPE, 10.0, 30.0, ceiling_frac=0.75, ceiling_s=200.0)
    caps = np.vstack((np.repeat([1000.0, 800.0, 900.0], (8, 8, 4)), np.full(20, np.inf)))
    found = commands(caps=caps, parting=told)
    turns_s = [k * (bench_planner.PEAK_W - bench_planner.IDLE_W) / SLOPE for k in (0, 8, 16)]
    slots_s = [t + wait_s for t, wait_s in zip(turns_s, (10.0, 30.0, 0.0), strict=True)]
    assert [c.release_slot_s for c in found] == pytest.approx(slots_s)
    assert [c.ceiling_s for c in found] == pytest.approx([200.0 + t for t in turns_s])
    assert {c.ceiling_frac for c in found} == {0.75}
    assert {(c.ceiling_frac, c.ceiling_s) for c in commands(caps=caps)} == {(1.0, 0.0)}


def test_under_a_ceiling_no_node_goes_below_its_service_floor() -> None:
    """The least share that is said is that of the floor, and never more than all of the fallback clock."""
    caps = np.full((2, 20), np.inf)
    floor_mhz = float(bench_planner._fleet(20).table.floor_mhz[0])
    low = commands(caps=caps, parting=NodeParting(SLOPE, 0.0, 0.0, ceiling_frac=0.0, ceiling_s=5.0))
    assert [c.ceiling_frac for c in low] == pytest.approx([floor_mhz / 1200.0] * 3)


def test_no_slot_is_longer_than_the_wire_can_say() -> None:
    caps = np.full((2, 20), np.inf)
    assert {c.release_slot_s for c in commands(caps=caps, waits_s=(math.inf, 0.0))} == {WAIT_S_MAX}


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
