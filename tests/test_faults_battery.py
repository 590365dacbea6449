"""Rows B of the fault catalogue: the battery of the whole site in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.allocate import worst_case_w
from controller.modes import Flag
from controller.types import MeterSample, Mode, Reading
from controller.view import envelope_battery
from hil.lab_site import MW, SETTLE_S
from hil.matrix import row
from hil.matrix_lab import Lab
from tests.faults_kit import Loss, battery, flagged, left_of_drop_w, play


def caps_w(lab: Lab) -> float:
    """What all GPUs may draw at their worst by the envelope's books."""
    assert lab.daemon is not None
    decision = lab.traces[-1].decision
    return worst_case_w(decision.fleet, lab.daemon.core._written.caps, fixed_w=decision.readings.acks.fixed_w)


@row("B1")
@pytest.mark.parametrize("kind", ["local", "trip", "derate"])
def test_battery_limited(state: str, kind: str) -> None:
    """Local control, a trip, a derate to 5 %: planned without what is gone, within a period.

    What goes with the battery is on the meter whoever controls: at the limit and in the ramp the rows may be passed by
    that much, and by no more. Cold and steady every row holds.
    """

    def begin(lab: Lab) -> None:
        if kind == "local":
            battery(lab).is_remote = False
        elif kind == "trip":
            battery(lab).trip()
        else:
            battery(lab).derate_frac = 0.05

    def heal(lab: Lab) -> None:
        battery(lab).is_remote, battery(lab).derate_frac = True, 1.0
        if kind == "trip":
            battery(lab).reset()

    async def react(lab: Lab, since_s: float) -> None:
        before_w = caps_w(lab) if state == "limit" else 0.0
        await lab.run(1.0 if state != "cold" else 3.0)
        assert lab.daemon is not None and lab.daemon.core.tracker is not None
        if kind != "derate":
            assert lab.saw(Flag.BATTERY_LIMITED, since_s=since_s) and lab.last.mode >= Mode.DEGRADED
            assert not lab.saw(Flag.BATTERY_NOT_FOLLOWING, since_s=since_s), "nothing was asked of it"
        sample = lab.traces[-1].image.battery
        assert sample is not None
        usable = sample.value.is_remote and sample.value.state.value != "fault"
        bounds = lab.daemon.core.tracker.battery_now(sample.value if usable else None)
        assert bounds.discharge_w_max <= 0.05 * 12 * MW + 1.0
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w <= 0.05 * 12 * MW + 1.0, "no credit for what is gone"
        await lab.run(14.0 if state != "limit" else 29.0)
        assert state != "limit" or caps_w(lab) < before_w - 2.5 * MW, "caps take over, as fast as the rows let them"
        assert not lab.saw(Flag.ENVELOPE_BUSY, since_s=since_s), "planner and envelope mean the same caps"

    forced = Loss(left_of_drop_w(state, SETTLE_S[state])) if state in ("limit", "ramp") else None
    play(state, begin=begin, react=react, heal=heal, loss=forced)


@row("B2")
def test_battery_does_not_follow(state: str) -> None:
    """It acknowledges and goes to nothing: seen within 3 T, no credit, caps in its place, told to stand at nothing.

    It is tried again once it did as it was told for the dwell.
    """

    def begin(lab: Lab) -> None:
        battery(lab).is_deaf = True

    def heal(lab: Lab) -> None:
        battery(lab).is_deaf = False

    async def react(lab: Lab, since_s: float) -> None:
        if state in ("cold", "steady"):
            lab.drop(8.0, 2.0)  # a battery with nothing to do cannot be found out
        await flagged(lab, Flag.BATTERY_NOT_FOLLOWING, since_s=since_s, within_s=8.0)
        assert lab.last.battery_w is not None and abs(lab.last.battery_w) < 0.1 * MW, "nothing for who follows nothing"
        await lab.run(1.0)
        assert lab.last.mode >= Mode.DEGRADED
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w == shown.spare_w == 0.0
        await lab.run(4.0)
        asked_w = [t.battery_w for t in lab.since(since_s) if Flag.BATTERY_NOT_FOLLOWING in t.flags]
        held = [w is not None and abs(w) < 0.1 * MW for w in asked_w]
        assert sum(held) >= 0.9 * len(held), "where the target is found anew the envelope bends it for one tick"

    change_w = 8.0 * MW if state in ("cold", "steady") else left_of_drop_w(state, SETTLE_S[state])
    change_w += 0.5 * MW if state == "cold" else 0.0  # of ripple, which nothing showed before the fault
    play(state, begin=begin, react=react, heal=heal, loss=Loss(change_w))


def test_a_battery_that_should_follow_by_itself_and_does_not_is_found_out_by_the_meter() -> None:
    """B2 under device following: load leaves, the meter shows it, the battery could take it and does not."""

    def begin(lab: Lab) -> None:
        battery(lab).is_deaf = True

    def heal(lab: Lab) -> None:
        battery(lab).is_deaf = False

    async def react(lab: Lab, since_s: float) -> None:
        lab.drop(8.0, 2.0)
        await flagged(lab, Flag.BATTERY_NOT_FOLLOWING, since_s=since_s, within_s=6.0)
        await lab.run(1.0)
        assert lab.last.mode >= Mode.DEGRADED
        shown = envelope_battery(lab.site, lab.traces[-1].image, lab.last.flags)
        assert shown is not None and shown.supply_w == shown.spare_w == 0.0
        assert lab.last.battery_w is not None and abs(lab.last.battery_w) < 0.1 * MW, "nothing for who follows nothing"

    play("steady", begin=begin, react=react, heal=heal, loss=Loss(8.0 * MW), following="device")


@pytest.mark.parametrize("gain", [0.97, 1.03])
def test_a_meter_three_percent_apart_from_the_batterys_own_is_no_disobedience(gain: float) -> None:
    def apart(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        return replace(reading, value=replace(reading.value, power_w=gain * reading.value.power_w))

    async def react(lab: Lab, since_s: float) -> None:
        lab.drop(8.0, 2.0)
        await lab.run(30.0)
        assert not lab.saw(Flag.BATTERY_NOT_FOLLOWING, since_s=since_s)

    play("steady", begin=lambda lab: setattr(lab.hooks, "meter", apart), react=react, following="device")


def test_a_battery_out_of_reach_is_no_fault_of_the_solver() -> None:
    """Without a battery the program is not asked, so it cannot have failed: DEGRADED, and caps may rise again."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(8.0)
        assert lab.last.mode is Mode.DEGRADED and not lab.saw(Flag.SOLVER_INVALID, since_s=since_s)
        assert lab.last.plan_policy == "mpc" and lab.last.plan_status == "rule"

    def begin(lab: Lab) -> None:
        battery(lab).is_remote = False

    def heal(lab: Lab) -> None:
        battery(lab).is_remote = True

    play("steady", begin=begin, react=react, heal=heal, policy="mpc")
