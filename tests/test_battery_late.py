"""A battery that lets time pass before it acts on an order: found by the meter's word, told, and never imagined."""

from __future__ import annotations

import pytest

from controller.modes import Flag
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab

PULSES = {"compute_w": 540.0, "exchange_w": 460.0, "iteration_s": 3.1, "edge_s": 0.6}


def run(*, dead_s: float, read_late_s: float = 0.0, for_s: float = 25.0) -> Lab:
    """A job that pulses by 8 MW every 3.1 s, followed by our orders."""

    async def story(lab: Lab) -> None:
        if read_late_s:
            lab.fault("battery", "delayed", value=read_late_s)
        lab.start()
        await lab.run(for_s)

    plant = {"dead_s": dead_s} if dead_s else {}
    return in_lab(story, lab_scenario("steady", workload=PULSES, battery_plant=plant, duration_s=60.0))


@pytest.mark.parametrize("dead_s", [0.6, 0.8, 1.2])
def test_a_battery_that_acts_late_is_told(dead_s: float) -> None:
    lab = run(dead_s=dead_s)
    assert lab.saw(Flag.BATTERY_LATE) and not lab.saw(Flag.METER_LATE)
    assert lab.traces[-1].decision.estimate.dead_s == pytest.approx(dead_s, abs=0.06)


@pytest.mark.parametrize("read_late_s", [0.0, 0.4, 0.8])
def test_one_that_acts_in_time_is_not_however_late_it_is_read(read_late_s: float) -> None:
    """What it says late looks as if it acted late; the meter knows better."""
    lab = run(dead_s=0.0, read_late_s=read_late_s)
    assert not lab.saw(Flag.BATTERY_LATE) and lab.traces[-1].decision.estimate.dead_s == 0.0
