"""What the site makes of node reports: what a GPU may draw beyond command, and which draw more than they may."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.above_cap import FOUND_PERIODS, KEPT_S, STEP_FRAC, AboveCap
from controller.fleet import LOST_S, Fleet, FleetBook, FleetReader
from controller.settings import SiteSettings
from controller.types import NodeFault, NodeReport, Quality, Reading
from tests.test_jobs import report, site

__all__ = ["site"]  # the fixture

GOOD, MISSING = int(Quality.GOOD), int(Quality.MISSING)


def at(t_s: float, *, quality: tuple[int, int] = (GOOD, GOOD), limit_w: float = 650.0, **fields: object) -> NodeReport:
    """One node of two GPUs, as it reports at `t_s`."""
    known = report("gpu-1", 2).value
    return replace(  # type: ignore[return-value]
        known,
        t_mono_s=t_s,
        power_w=np.array([300.0, 300.0]),
        power_limit_w=np.full(2, limit_w),
        quality=np.array(quality, np.int8),
        **fields,  # type: ignore[arg-type]
    )


def heard(told: NodeReport, quality: Quality = Quality.GOOD) -> tuple[Reading[NodeReport], ...]:
    return (Reading(told, told.t_mono_s, quality, told.node_id),)


@pytest.fixture
def reader(site: SiteSettings) -> FleetReader:
    return FleetReader(FleetBook(site).fleet(heard(at(0.0))), epoch=7)


def test_a_lost_gpu_counts_at_its_last_limit_for_a_minute_and_then_as_idle(reader: FleetReader) -> None:
    """Back on the bus its caps count again; a second loss begins a minute of its own."""
    idle_w = reader.fleet.table.idle_w[0]
    lost = (MISSING, GOOD)

    def fixed_w(told: NodeReport) -> float:
        found = reader.read(heard(told)).acks.fixed_w
        assert np.isnan(found[1]), "the other one obeys"
        return float(found[0])

    assert np.isnan(fixed_w(at(0.0)))
    assert fixed_w(at(1.0, quality=lost, faults=(NodeFault.GPU_LOST,))) == 650.0
    assert fixed_w(at(LOST_S, quality=lost, faults=(NodeFault.GPU_LOST,))) == 650.0
    assert fixed_w(at(LOST_S + 1.0, quality=lost, faults=(NodeFault.GPU_LOST,))) == idle_w
    assert np.isnan(fixed_w(at(LOST_S + 2.0)))
    assert fixed_w(at(LOST_S + 3.0, quality=lost, faults=(NodeFault.GPU_LOST,))) == 650.0


def test_a_node_that_obeys_a_higher_epoch_is_not_ours_until_it_obeys_us_again(reader: FleetReader) -> None:
    """Its reports are alike but for the epoch: nothing but that tells."""
    ours = at(0.0, acked_epoch=7)
    assert np.isnan(reader.read(heard(ours)).acks.fixed_w).all()
    assert reader.read(heard(replace(ours, acked_epoch=8))).acks.fixed_w.tolist() == [650.0, 650.0]
    assert np.isnan(reader.read(heard(replace(ours, acked_epoch=7))).acks.fixed_w).all()


def test_a_gpu_that_may_only_hang_never_counts_as_idle(reader: FleetReader) -> None:
    """The node tells of one lost and one hung GPU and names neither: both may still draw."""
    both = (NodeFault.GPU_HUNG, NodeFault.GPU_LOST)
    for t_s in (0.0, LOST_S, 3.0 * LOST_S):
        found = reader.read(heard(at(t_s, quality=(MISSING, MISSING), faults=both)))
        assert found.acks.fixed_w.tolist() == [650.0, 650.0] and not found.acks.is_fresh.any()


def test_a_silent_node_counts_at_nameplate_whatever_was_lost_before(reader: FleetReader) -> None:
    lost = {"quality": (MISSING, GOOD), "faults": (NodeFault.GPU_LOST,)}
    for t_s in (0.0, LOST_S + 1.0):
        reader.read(heard(at(t_s, **lost)))  # type: ignore[arg-type]
    silent = heard(at(LOST_S + 1.0, **lost), Quality.MISSING)  # type: ignore[arg-type]
    assert reader.read(silent).acks.fixed_w.tolist() == [reader.fleet.table.peak_w[0]] * 2


def test_only_one_gpu_that_stays_above_its_limit_is_found(reader: FleetReader) -> None:
    """Above by turns is what averages do; the same one for five periods is not."""
    above = AboveCap(period_s=1.0)

    def seen(t_s: float, *power_w: float) -> tuple[AboveCap, Fleet]:
        found = reader.read(heard(replace(at(t_s, limit_w=400.0), power_w=np.array(power_w))))
        above.counted(t_s, reader.fleet, found)
        return above, reader.fleet

    for k in range(20):
        seen(float(k), 500.0 if k % 2 else 300.0, 300.0 if k % 2 else 500.0)
        assert not above.is_found
    for k in range(20, 27):
        seen(float(k), 500.0, 300.0)
        assert above.is_found is (k - 19 >= FOUND_PERIODS), k
    seen(27.0, 300.0, 300.0)
    assert not above.is_found


def test_its_limit_steps_down_after_others_made_room_and_comes_back_in_steps(reader: FleetReader) -> None:
    above, free = AboveCap(period_s=1.0), np.full((2, 2), np.inf)
    limit_w, lowered = 400.0, []
    for k in range(20):
        told = replace(at(float(k), limit_w=limit_w), power_w=np.array([500.0, 300.0]))
        readings = above.counted(float(k), reader.fleet, reader.read(heard(told)))
        assert bool(readings.acks.fixed_w[0] == 500.0) is (k >= FOUND_PERIODS), "others see what it draws first"
        lowered.append(above.lowered(float(k), readings, free)[1].tolist())
    assert lowered[int(FOUND_PERIODS)] == [np.inf, np.inf] and lowered[int(FOUND_PERIODS) + 1] == [380.0, np.inf]
    assert lowered[-1] == [342.0, np.inf], "three steps, five periods apart"
    steps = set()
    for k in range(20, 20 + 16 * int(KEPT_S)):
        readings = above.counted(float(k), reader.fleet, reader.read(heard(at(float(k), limit_w=limit_w))))
        steps.add(above.lowered(float(k), readings, free)[1][0])
    assert sorted(steps)[:2] == [342.0, pytest.approx(342.0 / STEP_FRAC)] and max(steps) == np.inf, "its own again"
