"""Sense keeps its deadline whatever a device does, and never invents freshness."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import pytest

from controller.ports import DriverError, LoadBank
from controller.sense import Sense
from controller.types import (
    LoadBankCommand,
    LoadBankSample,
    LoadBankState,
    MeterSample,
    NodeCommand,
    NodeReport,
    Quality,
    Reading,
    SiteFault,
    Trouble,
)
from drivers.errors import BadReply, DeviceBusy, DeviceChanged, DeviceTimeout, NotSupported, WrongDevice
from tests.clock_kit import HandClock


class ScriptedMeter:
    """Answers, hangs or fails as told; counts reads in flight."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: DriverError | None = None
        self.power_w = 42.0
        self.in_flight = 0
        self.in_flight_max = 0

    async def read(self) -> Reading[MeterSample]:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        if self.fault:
            raise self.fault
        return Reading(MeterSample(self.power_w), self.clock.t_s, Quality.GOOD, "pcc")


class NoNodes:
    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        return {}

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        del commands


def make(
    clock: HandClock, meter: ScriptedMeter, told: list[tuple[str, str]], *, load_bank: LoadBank | None = None
) -> Sense:
    return Sense(
        clock=clock,
        period_s=0.05,
        meter=meter,
        meter_delay_s=0.03,
        battery=None,
        ups={},
        node_link=NoNodes(),
        grid=None,
        on_change=lambda subject, why: told.append((subject, why)),
        load_bank=load_bank,
    )


async def test_a_hanging_meter_does_not_hold_the_cycle() -> None:
    """The image comes within the deadline; the same read serves a later cycle; never two reads at once."""
    clock, told = HandClock(), []
    meter = ScriptedMeter(clock)
    sense = make(clock, meter, told)
    meter.gate.clear()
    for tick in range(3):
        image = await sense.image(tick, overrun_count=0)
        assert image.pcc is not None and image.pcc.quality is Quality.MISSING
    assert meter.in_flight_max == 1
    meter.gate.set()
    await asyncio.sleep(0)
    image = await sense.image(3, overrun_count=0)
    assert image.pcc is not None and image.pcc.value.power_w == 42.0 and image.pcc.is_good
    sense.close()


async def test_a_failing_meter_ages_and_is_told_once() -> None:
    """GOOD, then STALE, then MISSING as the last value ages; lost and recovered are one line each."""
    clock, told = HandClock(), []
    meter = ScriptedMeter(clock)
    sense = make(clock, meter, told)
    await sense.image(0, overrun_count=0)
    meter.fault = DriverError("pcc", "no answer")
    seen = []
    for tick in range(1, 9):
        clock.t_s += 0.05
        image = await sense.image(tick, overrun_count=0)
        assert image.pcc is not None
        seen.append(image.pcc.quality)
    assert seen[0] is Quality.GOOD and Quality.STALE in seen and seen[-1] is Quality.MISSING
    assert seen == sorted(seen)
    meter.fault = None
    await sense.image(9, overrun_count=0)
    assert [subject for subject, _ in told] == ["pcc", "pcc", "pcc"]  # first value, lost, recovered
    assert told[1][1] == "pcc: no answer" and told[2][1] == ""


async def test_a_read_begun_beside_serves_the_next_early_image_which_waits_for_nothing() -> None:
    """While a response is under way the meter is asked after each cycle; the early image takes what has come."""
    clock, told = HandClock(), []
    meter = ScriptedMeter(clock)
    sense = make(clock, meter, told)
    await sense.image(0, overrun_count=0)
    meter.gate.clear()
    clock.t_s += 0.01
    sense.ask_meter()
    await asyncio.sleep(0)
    image = await sense.image(0, overrun_count=0, is_early=True)
    assert image.pcc is not None and image.pcc.t_mono_s == 100.0
    meter.gate.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sense.ask_meter()  # keeps what came, and asks again
    image = await sense.image(0, overrun_count=0, is_early=True)
    assert image.pcc is not None and image.pcc.t_mono_s == clock.t_s and meter.in_flight_max == 1
    sense.close()


@pytest.mark.parametrize("power_w", [math.nan, math.inf, -math.inf])
async def test_a_meter_without_a_number_is_missing_and_never_infinite(power_w: float) -> None:
    """S2: what is infinite would compare as a number further on."""
    clock, told = HandClock(), []
    meter = ScriptedMeter(clock)
    meter.power_w = power_w
    image = await make(clock, meter, told).image(0, overrun_count=0)
    assert image.pcc is not None and image.pcc.quality is Quality.MISSING and math.isnan(image.pcc.value.power_w)


class ScriptedBank:
    """A load bank that answers at once, or fails as told."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.fault: DriverError | None = None

    async def read(self) -> Reading[LoadBankSample]:
        if self.fault:
            raise self.fault
        sample = LoadBankSample(1e6, 2e6, LoadBankState.RUNNING, is_remote=True, setpoint_w=1e6)
        return Reading(sample, self.clock.t_s, Quality.GOOD, "load_bank")

    async def write(self, command: LoadBankCommand) -> None:
        del command


async def test_a_load_bank_that_falls_silent_ages_and_is_told_once() -> None:
    """Its last value stays in the image, ever worse; nothing invents that it still stands ready."""
    clock, told = HandClock(), list[tuple[str, str]]()
    meter, bank = ScriptedMeter(clock), ScriptedBank(clock)
    sense = make(clock, meter, told, load_bank=bank)
    image = await sense.image(0, overrun_count=0)
    assert image.load_bank is not None and image.load_bank.is_good and image.load_bank.value.power_w == 1e6
    bank.fault = DriverError("load_bank", "no answer")
    found = []
    for tick in range(1, 9):
        clock.t_s += 0.05
        image = await sense.image(tick, overrun_count=0)
        assert image.load_bank is not None
        found.append(image.load_bank.quality)
    assert found[0] is Quality.GOOD and Quality.STALE in found and found[-1] is Quality.MISSING
    assert [subject for subject, why in told if why] == ["load_bank"]


@pytest.mark.parametrize(
    ("error", "reads", "expected"),
    [
        (DeviceTimeout("pcc", "late"), 4, SiteFault.DEVICE_TIMEOUT),
        (BadReply("pcc", "garbage"), 4, SiteFault.DEVICE_GARBAGE),
        (DeviceBusy("pcc", "busy"), 4, SiteFault.DEVICE_BUSY),
        (NotSupported("pcc", "no such register"), 4, SiteFault.DEVICE_REFUSES),
        (WrongDevice("pcc", "another product"), 4, SiteFault.DEVICE_WRONG),
        (DeviceTimeout("pcc", "late"), 1, None),  # the last value is fresh yet
        (DeviceChanged("pcc", "scale"), 1, SiteFault.DEVICE_CHANGED),
    ],
)
async def test_what_is_wrong_with_a_device_is_in_the_image_once_its_value_is_old(
    error: DriverError, reads: int, expected: SiteFault | None
) -> None:
    """A slip is no trouble; a device that stays wrong is one, by its own kind, until it answers well again."""
    clock = HandClock()
    meter = ScriptedMeter(clock)
    sense = make(clock, meter, [])
    for _ in range(2):
        assert (await sense.image(0, overrun_count=0)).troubles == ()
        clock.t_s += 0.05
    meter.fault = error
    for _ in range(reads):
        image = await sense.image(0, overrun_count=0)
        clock.t_s += 0.05
    assert image.troubles == (() if expected is None else (Trouble(expected, "pcc"),))
    meter.fault = None
    await sense.image(0, overrun_count=0)
    assert (await sense.image(0, overrun_count=0)).troubles == ()
    sense.close()


async def test_what_others_found_is_in_the_image_too_each_once() -> None:
    clock = HandClock()
    sense = make(clock, ScriptedMeter(clock), [])
    full, late = Trouble(SiteFault.DISK_FULL, "recorder"), Trouble(SiteFault.DEVICE_TIMEOUT, "battery")
    assert (await sense.image(0, overrun_count=0, troubles=(full, late, full))).troubles == (late, full)
    sense.close()
