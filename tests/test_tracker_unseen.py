"""The target where nobody holds it, or nobody measures how well: it is no wish, and rows keep what is left free."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from controller.allowances import SPENT_FRAC_MIN, STARTUP_FRAC
from controller.estimate import LoadSource
from controller.modes import Flag
from controller.tracker import Tracker
from controller.tracker_io import TrackerOutput
from controller.types import LimitId, MeterFlag, Mode, Quality
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.tracker_kit import estimate_without_meter, quiet_input, sample_of, site_of

TICK_S = 0.05


def test_the_target_goes_with_the_meter_while_the_battery_does_not_follow() -> None:
    """Planned 10 MW higher, and nobody moves power there: when the battery obeys again nothing is to be caught up."""
    site, known = site_of(), estimate_without_meter(load_w=60e6, grid_w=60e6)
    known = replace(known, source=LoadSource.METER, pcc_w=60e6, quality=Quality.GOOD)
    found: dict[bool, TrackerOutput] = {}
    for is_disobeying in (False, True):
        tracker = Tracker(site, start_s=0.0, start_w=60e6)
        for tick in range(1200):
            estimate = replace(known, t_s=tick * TICK_S - 0.03, is_fresh=True)
            sample = sample_of(site, 0.0, 17e6 * 3600.0, 0.0)
            given = quiet_input(tick * TICK_S, estimate, battery=sample, target_w=70e6, mode=Mode.DEGRADED)
            found[is_disobeying] = tracker.step(replace(given, is_disobeyed=is_disobeying))
    assert found[False].g_ref_w > 61e6
    assert abs(found[True].g_ref_w - 60e6) < 0.7e6


def test_the_target_is_what_the_meter_reads_while_the_battery_is_held_where_it_stands() -> None:
    """Not its mean: the rows must know of the top that a ripple had in that second, and the way down begins there."""
    site, known = site_of(), estimate_without_meter(load_w=60e6, grid_w=60e6)
    tracker = Tracker(site, start_s=0.0, start_w=60e6)
    for tick in range(10):
        metered_w = 60e6 + tick * 0.2e6
        estimate = replace(known, source=LoadSource.METER, t_s=tick * TICK_S, grid_w=metered_w, is_fresh=True)
        sample = sample_of(site, 0.0, 17e6 * 3600.0, 0.0)
        given = quiet_input(tick * TICK_S, estimate, battery=sample, target_w=50e6, mode=Mode.NORMAL)
        assert tracker.step(replace(given, is_unproven=True)).g_ref_w == metered_w
    assert tracker.step(given).g_ref_w == pytest.approx(metered_w, abs=0.1e6), "from there on as planned"
    assert tracker.interval.spent_down_w()[LimitId("swing")] == pytest.approx(0.0, abs=0.1e6)


def test_rows_keep_free_what_nodes_say_that_following_leaves() -> None:
    """No meter; by the nodes power goes 1.5 MW up and down around the target: a row of 5 MW has 2 left, not 4.8."""
    site, known = site_of(), estimate_without_meter(load_w=60e6, grid_w=60e6)
    tracker = Tracker(site, start_s=0.0, start_w=60e6)
    for tick in range(500):
        now_s = tick * TICK_S
        grid_w = tracker.g_ref_w + 1.5e6 * math.sin(2.0 * math.pi * now_s / 4.0)
        estimate = replace(known, t_s=now_s - 0.7, grid_w=grid_w, is_fresh=True)
        sample = sample_of(site, 0.0, 17e6 * 3600.0, 0.0)
        found = tracker.step(quiet_input(now_s, estimate, battery=sample, target_w=60e6, mode=Mode.SHED))
    assert found.residual_w[LimitId("swing")] > 2.5e6


@pytest.mark.parametrize("is_late", [False, True])
def test_rows_keep_as_much_free_as_in_the_first_minute_while_the_meter_is_late(*, is_late: bool) -> None:
    """What following leaves is not seen in time, for as long as a window reaches back to it (seed 7070)."""
    site, known = site_of(), estimate_without_meter(load_w=60e6, grid_w=60e6)
    known = replace(known, source=LoadSource.METER, pcc_w=60e6, quality=Quality.GOOD)
    tracker = Tracker(site, start_s=0.0, start_w=60e6)
    for tick in range(1500):
        now_s = tick * TICK_S
        flags = frozenset({MeterFlag.METER_LATE} if is_late and 65.0 < now_s < 67.0 else ())
        sample = sample_of(site, 0.0, 17e6 * 3600.0, 0.0)
        estimate = replace(known, t_s=now_s - 0.03, is_fresh=True, flags=flags)
        found = tracker.step(quiet_input(now_s, estimate, battery=sample, target_w=60e6, mode=Mode.DEGRADED))
    assert found.residual_w[LimitId("swing")] == pytest.approx((STARTUP_FRAC if is_late else SPENT_FRAC_MIN) * 5e6)


def test_a_battery_in_local_control_whose_readings_stand_still_lets_the_target_go() -> None:
    """It refuses, and says that it is well: the planner's target must not creep away from the meter meanwhile."""

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(5.0)
        lab.fault("battery", "stuck")
        await lab.run(27.0)

    events = [{"kind": "battery_local", "t_s": 6.0, "duration_s": 60.0}]
    workload = {"compute_w": 495.0, "exchange_w": 491.0}
    lab = in_lab(story, lab_scenario("steady", events_docs=events, workload=workload, start_soc=0.3, duration_s=40.0))
    assert lab.saw(Flag.BATTERY_NOT_FOLLOWING)
    lab.verdicts()
    metered_w = float(np.mean(lab.pcc_w()[-200:]))
    assert abs(lab.last.ref_w - metered_w) < 1.2e6
