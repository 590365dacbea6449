"""Actuate writes once at a time and reports what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.actuate import Actuate
from controller.ports import DriverError
from controller.types import (
    BatteryCommand,
    BatterySample,
    Following,
    LoadBankCommand,
    LoadBankSample,
    NodeCommand,
    NodeId,
    NodeReport,
    Reading,
    SiteCommand,
    SiteFault,
    Trouble,
)
from drivers.errors import DeviceBusy, DeviceChanged, NotApplied, NotSupported


class ScriptedBattery:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: DriverError | None = None
        self.written: list[float] = []
        self.in_flight_max = 0
        self._in_flight = 0

    async def read(self) -> Reading[BatterySample]:
        raise DriverError("battery", "not read here")

    async def write(self, command: BatteryCommand) -> None:
        self._in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self._in_flight)
        try:
            await self.gate.wait()
        finally:
            self._in_flight -= 1
        if self.fault:
            raise self.fault
        self.written.append(command.reference_w)


class Link:
    def __init__(self) -> None:
        self.sent: list[NodeCommand] = []
        self.fault: DriverError | None = None

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        return {}

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        if self.fault:
            raise self.fault
        self.sent.extend(commands)


def command(seq: int) -> SiteCommand:
    battery = BatteryCommand(Following.SOFTWARE, float(seq), 1e6, epoch=1, seq=seq, ttl_s=5.0)
    node = NodeCommand(NodeId("n"), 1, seq, 5.0, (), 0.0, 1.0)
    return SiteCommand(epoch=1, seq=seq, battery=battery, nodes=(node,))


def make(battery: ScriptedBattery, link: Link, told: list[tuple[str, str]]) -> Actuate:
    return Actuate(battery=battery, node_link=link, deadline_s=0.02, on_change=lambda s, w: told.append((s, w)))


async def test_a_write_under_way_is_never_doubled() -> None:
    """While one write hangs the next commands are not acknowledged and not queued; then the newest goes out."""
    battery, link, told = ScriptedBattery(), Link(), []
    actuate = make(battery, link, told)
    battery.gate.clear()
    for seq in (1, 2, 3):
        assert not (await actuate.apply(command(seq))).battery
    assert battery.in_flight_max == 1
    battery.gate.set()
    acks = await actuate.apply(command(4))
    assert acks.battery and acks.nodes_sent
    assert battery.written == [1.0, 4.0]


async def test_faults_become_missing_acknowledgements() -> None:
    """A refused write and a lost link never raise; each change of state is told once."""
    battery, link, told = ScriptedBattery(), Link(), []
    actuate = make(battery, link, told)
    battery.fault = DriverError("battery", "locked to local")
    link.fault = DriverError("mqtt", "down")
    for seq in (1, 2):
        acks = await actuate.apply(command(seq))
        assert not acks.battery and not acks.nodes_sent
    battery.fault = None
    assert (await actuate.apply(command(3))).battery
    assert told == [("battery write", "battery: locked to local"), ("battery write", "")]


async def test_who_is_asked_nothing_refuses_nothing() -> None:
    """Refusals are told from the third on; once no order is given any more they are over, whatever would come now."""
    battery, link, told = ScriptedBattery(), Link(), []
    actuate = make(battery, link, told)
    battery.fault = NotSupported("battery", "no such register")
    for seq in (1, 2, 3):
        assert not (await actuate.apply(command(seq))).battery
    assert actuate.troubles == (Trouble(SiteFault.DEVICE_REFUSES, "battery"),)
    await actuate.apply(replace(command(4), battery=None))
    assert actuate.troubles == ()


async def test_caps_leave_while_the_battery_is_still_being_written() -> None:
    """A battery that takes its time, or hangs, does not hold the caps back: they may have a GPU to stop."""
    battery, link, told = ScriptedBattery(), Link(), []
    actuate = Actuate(battery=battery, node_link=link, deadline_s=5.0, on_change=lambda s, w: told.append((s, w)))
    battery.gate.clear()
    applying = asyncio.ensure_future(actuate.apply(command(1)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [c.seq for c in link.sent] == [1] and not applying.done() and battery.in_flight_max == 1
    battery.gate.set()
    acks = await applying
    assert acks.battery and acks.nodes_sent and battery.written == [1.0]


async def test_closing_cancels_the_write_in_flight() -> None:
    """At the end nothing goes on writing behind our back; with nothing under way closing is nothing."""
    battery, link, told = ScriptedBattery(), Link(), []
    actuate = make(battery, link, told)
    actuate.close()
    battery.gate.clear()
    assert not (await actuate.apply(command(1))).battery
    actuate.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    battery.gate.set()
    await asyncio.sleep(0)
    assert battery.written == []


class ScriptedBank:
    """A load bank that keeps a shared diary of who was written to when."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: DriverError | None = None

    async def read(self) -> Reading[LoadBankSample]:
        raise DriverError("load_bank", "not read here")

    async def write(self, command: LoadBankCommand) -> None:
        await self.gate.wait()
        if self.fault:
            raise self.fault
        self.diary.append(f"bank {command.setpoint_w:g}")


class DiaryLink(Link):
    def __init__(self, diary: list[str]) -> None:
        super().__init__()
        self.diary = diary

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        self.diary.append("caps")


def with_bank(seq: int, setpoint_w: float) -> SiteCommand:
    return replace(command(seq), load_bank=LoadBankCommand(setpoint_w, 1e6, 1e6, epoch=1, seq=seq, ttl_s=5.0))


async def test_what_a_bank_gives_up_goes_first_and_what_it_takes_on_goes_last() -> None:
    """More ballast is more import: it waits for the caps of the same command; less ballast never waits."""
    diary: list[str] = []
    actuate = Actuate(
        battery=ScriptedBattery(),
        load_bank=ScriptedBank(diary),
        node_link=DiaryLink(diary),
        deadline_s=0.02,
        on_change=lambda s, w: None,
    )
    for seq, setpoint_w in ((1, 0.0), (2, 2.0), (3, 1.0)):
        acks = await actuate.apply(with_bank(seq, setpoint_w))
        assert acks.load_bank and acks.battery and acks.nodes_sent
    assert diary == ["bank 0", "caps", "caps", "bank 2", "bank 1", "caps"]


async def test_a_bank_that_hangs_or_refuses_holds_nothing_else_back() -> None:
    """Its command is not acknowledged, the battery's is; the loss is told once, and so is the end of it."""
    diary: list[str] = []
    told: list[tuple[str, str]] = []
    bank, battery = ScriptedBank(diary), ScriptedBattery()
    actuate = Actuate(
        battery=battery,
        load_bank=bank,
        node_link=Link(),
        deadline_s=0.02,
        on_change=lambda s, w: told.append((s, w)),
    )
    bank.gate.clear()
    for seq in (1, 2):
        acks = await actuate.apply(with_bank(seq, 0.0))
        assert acks.battery and not acks.load_bank
    bank.gate.set()
    bank.fault = DriverError("load_bank", "local control")
    assert not (await actuate.apply(with_bank(3, 0.0))).load_bank
    bank.fault = None
    assert (await actuate.apply(with_bank(4, 0.0))).load_bank
    assert [what for what, _ in told] == ["load bank write", "load bank write"] and told[1][1] == ""
    actuate.close()


async def test_writes_that_keep_failing_are_told_by_their_kind() -> None:
    """One late write is none, three in a row are; the first one taken ends it. A changed device is told at once."""
    battery = ScriptedBattery()
    actuate = make(battery, Link(), [])
    battery.fault = NotApplied("battery", "reads back other")
    for seq in range(1, 4):
        assert actuate.troubles == ()
        await actuate.apply(command(seq))
    assert actuate.troubles == (Trouble(SiteFault.DEVICE_PARTIAL_WRITE, "battery"),)
    battery.fault = None
    await actuate.apply(command(4))
    assert actuate.troubles == ()
    battery.fault = DeviceChanged("battery", "scale")
    await actuate.apply(command(5))
    assert actuate.troubles == (Trouble(SiteFault.DEVICE_CHANGED, "battery"),)


async def test_a_bank_alone_and_a_command_without_ballast() -> None:
    """No battery: only the bank is written, and only when the command has a part for it."""
    diary: list[str] = []
    actuate = Actuate(
        battery=None,
        load_bank=ScriptedBank(diary),
        node_link=DiaryLink(diary),
        deadline_s=0.02,
        on_change=lambda s, w: None,
    )
    acks = await actuate.apply(with_bank(1, 2.0))
    assert acks.load_bank and not acks.battery and diary == ["caps", "bank 2"]
    acks = await actuate.apply(command(2))
    assert not acks.load_bank and diary == ["caps", "bank 2", "caps"]


async def test_nothing_to_write_is_no_acknowledgement() -> None:
    battery = ScriptedBattery()
    actuate = Actuate(battery=battery, node_link=Link(), deadline_s=0.02, on_change=lambda s, w: None)
    acks = await actuate.apply(replace(command(1), battery=None, nodes=()))
    assert not acks.battery and not acks.nodes_sent and battery.written == []
    none = Actuate(battery=None, node_link=Link(), deadline_s=0.02, on_change=lambda s, w: None)
    assert not (await none.apply(command(2))).battery


async def test_a_bank_whose_writes_fail_is_told_of_by_its_own_name() -> None:
    bank = ScriptedBank([])
    actuate = Actuate(
        battery=None, load_bank=bank, node_link=Link(), deadline_s=0.02, on_change=lambda subject, why: None
    )
    bank.fault = DeviceBusy("load_bank", "busy")
    for seq in range(1, 4):
        assert actuate.troubles == ()
        await actuate.apply(with_bank(seq, 1.0))
    assert actuate.troubles == (Trouble(SiteFault.DEVICE_BUSY, "load_bank"),)
