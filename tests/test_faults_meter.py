"""Rows S of the fault catalogue: meters of the whole site in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.estimate import LoadEstimator, LoadSource
from controller.modes import Flag
from controller.types import Following, MeterFlag, MeterSample, Mode, Quality, Reading
from hil.lab_site import MW, lab_scenario
from hil.matrix import row
from hil.matrix_lab import Lab
from hil.plant.site import LOAD
from tests.faults_kit import SEEN_S, flagged, play


def altered(**changes: Any) -> Any:
    """A meter hook that replaces fields of the sample."""
    return lambda reading: replace(reading, value=replace(reading.value, **changes))


@row("S1")
def test_stuck_meter(state: str) -> None:
    """The meter repeats one value; nodes serve with a margin, nothing rises, and it is believed again when it moves."""

    async def react(lab: Lab, since_s: float) -> None:
        if state in ("cold", "steady"):
            lab.drop(12.0, 3.0)  # a stuck meter shows only against something that moves
        await flagged(lab, Flag.METER_STUCK, since_s=since_s, within_s=8.0)
        found_s = lab.now_s
        trace = next(t for t in lab.traces if MeterFlag.METER_STUCK in t.decision.estimate.flags)
        assert trace.decision.estimate.source is not LoadSource.METER
        if state != "cold":  # there the 12 MW are still to leave: what nodes alone do about it is no part of this row
            await lab.run(3.0)
            estimate, truth_w = lab.traces[-1].decision.estimate, lab.world.plant.now(LOAD)
            assert estimate.source is not LoadSource.METER and estimate.margin_w > 0.0
            assert abs(estimate.load_w - truth_w) < 3.0 * MW, "near the truth, which the stuck value is not"
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(found_s + SEEN_S)

    play(state, begin=lambda lab: lab.fault("meter", "stuck"), react=react)


@row("S2")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_meter_without_a_number(state: str, value: float) -> None:
    """No number: estimated within a tick or two, no raise, SHED."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_MISSING, since_s=since_s, within_s=1.0)
        await lab.run(8.0)
        assert lab.last.mode >= Mode.SHED and not lab.raised(since_s + SEEN_S)
        first = next(tick for tick in lab.since(since_s) if Flag.METER_MISSING in tick.flags)
        assert state == "cold" or (first.t_s - since_s <= SEEN_S and first.mode >= Mode.SHED)
        found, truth_w = lab.traces[-1].decision.estimate, lab.world.plant.now(LOAD)
        assert abs(found.load_w - truth_w) < 3.0 * MW and found.margin_w > 0.0

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", altered(power_w=value)), react=react)


@row("S3")
def test_spike(state: str) -> None:
    """Ten times for one sample: the load in use does not move, nothing rises on it."""
    spikes(state, count=1)


@pytest.mark.parametrize("state", ["steady", "ramp"])
def test_of_two_spikes_in_a_row_the_meter_is_at_fault(state: str) -> None:
    """Nodes serve in its place until it is borne out again."""
    spikes(state, count=2)


def spikes(state: str, *, count: int) -> None:
    left = [count]

    def spike(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        if not left[0]:
            return reading
        left[0] -= 1
        return replace(reading, value=replace(reading.value, power_w=reading.value.power_w * 10))

    async def react(lab: Lab, since_s: float) -> None:
        if state != "cold":  # before its first value the site is not seen, and says nothing of it
            await flagged(lab, Flag.METER_SPIKE, since_s=since_s, within_s=1.0)
        hit = [k for k, t in enumerate(lab.ticks) if Flag.METER_SPIKE in t.flags and t.t_s <= since_s + SEEN_S]
        assert not any(lab.ticks[k].raised_gpu for k in hit)
        ref_w = [tick.ref_w for tick in lab.ticks]
        going_w = [max(0.0, ref_w[k - 1] - ref_w[k - 2]) for k in hit if k > 1]  # the plan's own way goes on
        steps_w = [ref_w[k] - ref_w[k - 1] for k in hit if k > 1]
        assert all(step <= 1.1 * own + 1.0 for step, own in zip(steps_w, going_w, strict=True)), "raised on it"
        await lab.run(1.5)
        loads = [t.decision.estimate.load_w for t in lab.traces]
        assert max(loads) < 75 * MW, "no load of this site, and none that any cap was lowered for"
        assert lab.saw(Flag.METER_MISSING, since_s=since_s) is (count > 1 and state != "cold")
        worst = lab.worst_mode(since_s)
        assert state == "limit" or worst <= (Mode.SHED if count > 1 else Mode.DEGRADED), worst

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", spike), react=react)


@row("S4")
def test_stale_time_stamp(state: str) -> None:
    """The sample's time is five seconds ago: it counts as missing, and nothing rises."""

    def old(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        return replace(reading, t_mono_s=reading.t_mono_s - 5.0)

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_STALE, Flag.METER_MISSING, since_s=since_s, within_s=1.5)
        await lab.run(5.0)
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(since_s + SEEN_S)
        assert lab.traces[-1].decision.estimate.source is not LoadSource.METER

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", old), react=react)


@row("S5")
def test_unit_error(state: str) -> None:
    """Kilowatts read as watts: locked out until an operator acts, however good it looks afterwards."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_UNIT_WRONG, since_s=since_s, within_s=4.0)
        await lab.run(5.0)
        assert lab.last.mode >= Mode.SHED and not lab.raised(since_s + SEEN_S)
        lab.heal()
        await lab.run(20.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags and lab.last.mode >= Mode.SHED
        assert lab.traces[-1].decision.estimate.source is not LoadSource.METER, "nor is it believed meanwhile"
        if state == "cold":  # refused at arming: nothing was ever written on its word
            assert all(tick.battery_w is None and math.isnan(tick.caps_mhz) for tick in lab.ticks)
            assert lab.traces[-1].decision.held_back

    play(state, begin=lambda lab: lab.fault("meter", "wrong", 1e-3), react=react, recovers=False)


@row("S6")
def test_sign_flipped(state: str) -> None:
    """Import reads as export: the only meter, so FALLBACK."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.until(lambda: lab.worst_mode(since_s) >= Mode.FALLBACK, within_s=4.0)
        assert lab.saw(Flag.METER_SIGN_WRONG, since_s=since_s) or lab.saw(Flag.METER_SIGN_SUSPECT, since_s=since_s)
        await lab.run(5.0)

    play(state, begin=lambda lab: lab.fault("meter", "wrong", -1.0), react=react)


class Meters:
    """An estimator with a site meter and one sub-meter beside it, in the load profile of a state."""

    def __init__(self, state: str) -> None:
        site = lab_scenario(state).settings.site
        assert site is not None
        self.site = replace(site, battery=None, following=Following.DEVICE)
        self.estimator = LoadEstimator(self.site)
        self.state, self.tick = state, 0

    def load_w(self, t_s: float) -> float:
        level = {"cold": 60.0, "steady": 60.0, "limit": 84.0, "ramp": 80.0 - 0.05 * t_s}
        return (level[self.state] + 0.5 * math.sin(t_s)) * MW

    def step(self, *, gain: float) -> Any:
        t_s = self.tick * 0.1
        self.tick += 1
        load_w = self.load_w(t_s)

        def at(power_w: float, name: str) -> Reading[MeterSample]:
            return Reading(MeterSample(power_w), t_s, Quality.GOOD, name)

        return self.estimator.step(
            t_s, pcc=at(load_w * gain, "pcc"), battery=None, nodes=(), meters={"sub": at(load_w, "sub")}
        )


@row("S7")
def test_slow_drift(state: str) -> None:
    """1 % an hour against a sub-meter: flagged before it is 3 %, margin grows, cleared when it is right again."""
    meters = Meters(state)
    if state != "cold":
        for _ in range(100):
            assert not meters.step(gain=1.0).flags
    for k in range(3000):  # two hours' drift in five minutes: the residual, not its speed, is what is judged
        found = meters.step(gain=1.0 - 0.02 * k / 3000)
    assert MeterFlag.METER_DRIFT in found.flags and found.margin_w > 0.01 * found.load_w
    for _ in range(4000):
        found = meters.step(gain=1.0)
    assert not found.flags and found.margin_w == 0.0


@row("S8")
def test_meters_disagree(state: str) -> None:
    """5 % apart: flagged, the higher import counts, whichever meter shows it."""
    for gain in (0.95, 1.05):
        meters = Meters(state)
        if state != "cold":
            for _ in range(100):
                assert not meters.step(gain=1.0).flags
        for _ in range(100):
            t_s = meters.tick * 0.1
            found = meters.step(gain=gain)
        assert MeterFlag.METERS_DISAGREE in found.flags
        assert found.pcc_w == pytest.approx(meters.load_w(t_s) * max(gain, 1.0))


REVENUE = {"name": "revenue", "profile": "sunspec-meter", "delay_s": 0.1, "update_s": 0.2, "nameplate_megawatt": 120}


UNSEEN = 1.031  # of the ceiling: two meters differ by up to 3 % before one of them is wrong


def wrong_by(share: float, *, within_s: float) -> Any:
    """A meter hook that comes to read wrong by a share, little by little, from 12 s on: at the limit rows are spent."""
    begun_s: list[float] = []

    def hook(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        begun_s[:] = begun_s or [reading.t_mono_s]
        part = min(1.0, max(0.0, reading.t_mono_s - begun_s[0] - 12.0) / within_s)
        return replace(reading, value=replace(reading.value, power_w=(1.0 + part * share) * reading.value.power_w))

    return hook


@row("S7")
def test_slow_drift_on_the_site(state: str) -> None:
    """A second meter is read beside: the drift is a reason of the mode, margin grows, and goes once it is right."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_DRIFT, since_s=since_s, within_s=200.0)
        found = lab.traces[-1].decision.estimate
        assert lab.last.mode >= Mode.DEGRADED and found.margin_w > 0.02 * found.load_w

    begin = lambda lab: setattr(lab.hooks, "meter", wrong_by(-0.02, within_s=150.0))  # noqa: E731
    play(state, begin=begin, react=react, site={"sub_meters": [REVENUE]}, forgets_s=100.0, ceiling_slack=UNSEEN)


@row("S8")
def test_meters_disagree_on_the_site(state: str) -> None:
    """5 % apart: a reason of the mode, and the higher import is what counts, which is the other meter's."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METERS_DISAGREE, since_s=since_s, within_s=55.0)
        await lab.run(30.0)
        found, image = lab.traces[-1].decision.estimate, lab.traces[-1].image
        assert lab.last.mode >= Mode.DEGRADED and image.pcc is not None
        highest_w = max(image.pcc.value.power_w, image.meters["revenue"].value.power_w)
        assert found.pcc_w == pytest.approx(highest_w, rel=0.02)

    begin = lambda lab: setattr(lab.hooks, "meter", wrong_by(-0.05, within_s=25.0))  # noqa: E731
    play(state, begin=begin, react=react, site={"sub_meters": [REVENUE]}, forgets_s=100.0, ceiling_slack=UNSEEN)


@row("S2")
def test_another_meter_stands_in_for_one_that_is_silent(state: str) -> None:
    """Where the site has one, and the battery follows by itself: its value with a margin, and not what nodes report.

    Where our loop closes on it nodes go on standing in: see `controller.estimate_subs`.
    """

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.METER_MISSING, since_s=since_s, within_s=1.5)
        await lab.run(5.0)
        found, truth_w = lab.traces[-1].decision.estimate, lab.world.plant.now(LOAD)
        assert found.source is LoadSource.SUB_METERS and found.margin_w > 0.02 * found.load_w
        assert abs(found.load_w - truth_w) < 3.0 * MW
        assert lab.last.mode >= Mode.SHED and not lab.raised(since_s + 1.5)

    def begin(lab: Lab) -> None:
        lab.fault("meter", "off")

    play(state, begin=begin, react=react, site={"sub_meters": [REVENUE]}, following="device")


@row("S9")
def test_slow_meter(state: str) -> None:
    """A sample every 15 s: used with its age or not at all, and never raised on."""
    held: list[Reading[MeterSample]] = []

    def slow(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        if not held or reading.t_mono_s - held[-1].t_mono_s >= 15.0:
            held.append(reading)
        return held[-1]

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(20.0)
        slow_flags = {Flag.METER_SLOW, Flag.METER_STALE, Flag.METER_MISSING}
        assert any(tick.flags & slow_flags for tick in lab.since(since_s))
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(since_s + 0.5)

    play(state, begin=lambda lab: setattr(lab.hooks, "meter", slow), react=react)


@row("S10")
def test_counter_reset(state: str) -> None:
    """The energy counter starts again at zero: noted, power untouched."""
    base: list[float] = []

    def wrapped(reading: Reading[MeterSample]) -> Reading[MeterSample]:
        counted = reading.value.import_wh or 0.0
        base.append(counted)
        return replace(reading, value=replace(reading.value, import_wh=counted - base[0]))

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":  # nothing was counted before the first cycle: the counter falls after it
            await lab.run(1.0)
            lab.hooks.meter = altered(import_wh=0.0)
        await flagged(lab, Flag.COUNTER_RESET, since_s=since_s, within_s=1.0)
        assert lab.worst_mode(since_s) <= (Mode.SHED if state == "limit" else Mode.NORMAL)
        await lab.run(3.0)

    begin = (lambda lab: None) if state == "cold" else (lambda lab: setattr(lab.hooks, "meter", wrapped))
    play(state, begin=begin, react=react)
