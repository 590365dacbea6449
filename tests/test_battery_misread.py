"""A battery that obeys while its readings stand still, come late, are stamped old or are missing: on the whole site."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import pytest

from controller.modes import Flag
from controller.types import BatterySample, Mode, Quality, Reading
from drivers.errors import DeviceFault
from hil.faults import Fault
from hil.lab_site import MW, SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab
from hil.plant.site import BATTERY, LOAD
from tests.faults_kit import flagged, play

STATES = ("cold", "steady", "limit", "ramp")


async def drop_if_quiet(lab: Lab, state: str) -> None:
    """Readings that are wrong show only against something that moves."""
    if state in ("cold", "steady"):
        lab.drop(8.0, 2.0)


def apart_w(lab: Lab) -> float:
    """How far load and battery, as they are believed, are from the truth of their instants."""
    trace, plant = lab.traces[-1], lab.world.plant
    estimate = trace.decision.estimate
    return max(
        abs(estimate.load_w - plant.value(LOAD, estimate.t_s)),
        abs(estimate.battery_w - plant.value(BATTERY, trace.image.t_mono_s)),
    )


VERBS = (("stuck", 0.0), ("delayed", 0.4), ("delayed", 1.0))
# Before anybody can tell: 8 MW that leave in the first seconds, and a row that a ceiling has spent to nine tenths.
TOO_SOON = {("cold", "stuck", 0.0), ("cold", "delayed", 1.0), ("limit", "stuck", 0.0), ("limit", "delayed", 1.0)}
OVER_FRAC = 0.04


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("verb", "value"), VERBS, ids=["stuck", "0.4s", "1s"])
def test_what_it_was_told_counts_where_its_readings_are_not_true(state: str, verb: str, value: float) -> None:
    """Rows hold, and nobody takes it for lost; for disobedient no longer than until its orders are borne out."""

    async def react(lab: Lab, since_s: float) -> None:
        await drop_if_quiet(lab, state)
        await flagged(lab, Flag.BATTERY_MISREAD, since_s=since_s, within_s=10.0)
        assert lab.last.mode >= Mode.DEGRADED
        found_s = lab.now_s
        for _ in range(20):
            await lab.run(0.5)
            assert apart_w(lab) < 0.5 * MW
        assert not lab.saw(Flag.BATTERY_LOST, since_s=since_s)
        assert not lab.saw(Flag.BATTERY_NOT_FOLLOWING, since_s=found_s)

    is_judged = (state, verb, value) not in TOO_SOON
    lab = play(state, begin=lambda lab: lab.fault("battery", verb, value=value), react=react, is_judged=is_judged)
    assert all(row.worst <= (1.0 + OVER_FRAC) * row.limit for row in lab.broken_rows())


@pytest.mark.parametrize("state", ["steady", "limit", "ramp"])
@pytest.mark.parametrize("is_silent", [False, True], ids=["old", "silent"])
def test_readings_too_old_to_count_are_no_lost_battery_while_orders_are_taken(state: str, is_silent: bool) -> None:
    """S4: answers of a second ago stamped so, or none at all; what was told is borne out by meter and nodes."""
    past: deque[Reading[BatterySample]] = deque(maxlen=12)

    def old(reading: Reading[BatterySample]) -> Reading[BatterySample]:
        past.append(reading)
        return replace(reading, quality=Quality.MISSING) if is_silent else past[0]

    def begin(lab: Lab) -> None:
        lab.hooks.battery = old

    async def react(lab: Lab, since_s: float) -> None:
        await drop_if_quiet(lab, state)
        await flagged(lab, Flag.BATTERY_MISREAD, since_s=since_s, within_s=2.0)
        await lab.run(10.0)
        assert lab.traces[-1].image.battery is not None
        assert lab.traces[-1].image.battery.quality is Quality.MISSING
        assert not lab.saw(Flag.BATTERY_LOST, since_s=since_s)
        assert apart_w(lab) < 0.5 * MW

    play(state, begin=begin, react=react)


def test_readings_too_old_to_count_are_a_lost_battery_once_it_refuses_orders() -> None:
    """Whoever acknowledges nothing does nothing that was told."""

    def refuse(_: object) -> None:
        raise DeviceFault("battery", "tripped")

    def begin(lab: Lab) -> None:
        lab.hooks.battery = lambda reading: replace(reading, quality=Quality.MISSING)

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(3.0)
        assert not lab.saw(Flag.BATTERY_LOST, since_s=since_s)
        lab.hooks.battery_write = refuse
        await flagged(lab, Flag.BATTERY_LOST, since_s=lab.now_s, within_s=0.8)

    play("steady", begin=begin, react=react)


def test_a_state_of_charge_that_stands_still_goes_on_by_what_is_given() -> None:
    async def react(lab: Lab, since_s: float) -> None:
        lab.drop(8.0, 2.0)
        await flagged(lab, Flag.BATTERY_MISREAD, since_s=since_s, within_s=10.0)
        await lab.run(30.0)
        said, believed = lab.traces[-1].image.battery, lab.traces[-1].decision.image.battery
        assert said is not None and believed is not None
        battery = lab.world.plant.battery
        assert battery is not None
        assert math.isclose(believed.value.soc_frac, battery.soc_frac, abs_tol=5e-4)
        assert abs(said.value.soc_frac - battery.soc_frac) > 2e-3

    play("steady", begin=lambda lab: lab.fault("battery", "stuck"), react=react)


@pytest.mark.parametrize(("from_s", "late_s"), [(7.6, 0.25), (8.0, 0.25), (8.0, 0.289)])
def test_a_meter_that_was_late_for_a_moment_is_in_time_again_beside_readings_that_stand_still(
    from_s: float, late_s: float
) -> None:
    """The battery counts as told, so it is a witness that the meter is in time; and its counter says so at once.

    A loop of 20 Hz on a meter that refreshes every 0.2 s swung by 5.5 to 11.6 of 5 MW where it was called late for on.
    """

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(20.0)
        began_s = lab.now_s
        lab.fault("battery", "stuck")
        lab.plan.add(Fault("late", "meter", "delayed", began_s + from_s, began_s + from_s + 3.15, late_s))
        await lab.run(20.0)

    site = {"tracker_hz": 20, "pcc_meter": {**SITE["pcc_meter"], "update_s": 0.2, "delay_s": 0.0107}}
    workload = {"compute_w": 528.4, "exchange_w": 516.2, "iteration_s": 7.24, "edge_s": 1.44}
    lab = in_lab(story, lab_scenario("steady", site=site, workload=workload, fleet={"reporting_nodes": 8}))
    assert all(row.worst < 0.5 * row.limit for row in lab.verdicts().limits)
