"""Rows M of the fault catalogue: the drivers over loopback against a sick wire, and the site that loses the device.

M3 to M6, M8 and M9 on the whole site, by the same drivers, are in `test_faults_wire`.

On the wire the four states are: a fault before the first connection, between reads, with the battery at its full
set-point, and while the set-point moves with every write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.modes import Flag
from controller.types import BatteryCommand, Following, Mode, Reading
from drivers.battery import ModbusBattery
from drivers.errors import (
    BadReply,
    DeviceBusy,
    DeviceChanged,
    DeviceFault,
    DeviceGone,
    DeviceTimeout,
    DriverError,
    NotApplied,
    NotSupported,
    WrongDevice,
)
from drivers.identity import IdentityBook
from drivers.modbus import ModbusDevice
from drivers.sunspec import layout
from hil.lab_site import SETTLE_S
from hil.matrix import row
from hil.matrix_lab import Lab
from hil.modbus_server import ExceptionCode, ModbusServer, RegisterFault
from tests.faults_kit import Loss, flagged, left_of_drop_w
from tests.faults_kit import play as play_site
from tests.modbus_kit import TIMEOUT_S, ScriptedServer, Table, device, reply, u16, until
from tests.test_sunspec_battery import Rig, opened

pytestmark = pytest.mark.wire

FULL_W = 70e6
Answer = Callable[[bytes], Sequence[bytes | float]]


def site_loses(state: str, error: Exception, *, flag: Flag = Flag.METER_MISSING) -> None:
    """The site's meter answers with `error` for six seconds: it ages, nothing rises, and all is well afterwards.

    The mode's reasons say what the wire met, beside what became of the meter.
    """

    def fail(reading: Reading[Any]) -> Reading[Any]:
        raise error

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, flag, Flag.METER_STALE, since_s=since_s, within_s=1.5)
        await lab.run(4.0)
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(since_s + 1.0)
        assert isinstance(error, DriverError) and lab.saw(Flag(error.fault.value), since_s=since_s)

    play_site(state, begin=lambda lab: setattr(lab.hooks, "meter", fail), react=react, following="device")


def good(request: bytes) -> Sequence[bytes | float]:
    if request[7] == 3:
        return [reply(request, b"\x03\x02\x00\x2a")]
    return [reply(request, request[7:12])]  # a write is echoed


@contextlib.asynccontextmanager
async def wire(state: str, bad: Answer) -> AsyncIterator[tuple[ModbusDevice, list[Answer]]]:
    """A device that answers well until the fault begins; `way[0] = good` heals it."""
    way: list[Answer] = [bad if state == "cold" else good]
    async with ScriptedServer(lambda request: way[0](request)) as server:
        dut = device(server.port)
        dut.allow(range(16))
        if state != "cold":
            assert await dut.read_registers(3, 0, 1) == u16(42)
            if state in ("limit", "ramp"):
                for value in (0xFFFF,) if state == "limit" else (1, 2, 3):
                    await dut.write_registers(0, u16(value, 0))
            way[0] = bad
        yield dut, way
        await dut.connection.close()


async def heals(dut: ModbusDevice, way: list[Answer], *, anew: bool = True) -> None:
    """It is read again before long, over a connection that is new where the old one could not be trusted."""
    before = dut.connection.connect_count
    way[0] = good
    async with asyncio.timeout(5.0):
        while True:
            try:
                assert await dut.read_registers(3, 0, 1) == u16(42)
                break
            except (DeviceTimeout, DeviceGone, BadReply):
                await asyncio.sleep(0.02)
    assert (dut.connection.connect_count > before) is anew


async def never(dut: ModbusDevice, *kinds: type[Exception], times: int = 2) -> None:
    """No value comes of it, only one of `kinds`."""
    for _ in range(times):
        with pytest.raises(kinds):
            await dut.read_registers(3, 0, 1)


@row("M1")
async def test_timeout(state: str) -> None:
    """The socket is closed at the deadline; until another stands, whoever asks is told at once."""
    async with wire(state, lambda _: []) as (dut, way):
        await never(dut, DeviceTimeout, times=1)
        assert not dut.connection.is_connected, "closed"
        await never(dut, DeviceGone, times=3)  # at once, and without a new socket each
        await heals(dut, way)
    await asyncio.to_thread(site_loses, state, DeviceTimeout("meter", "no answer"))


@row("M2")
async def test_garbage(state: str) -> None:
    """Nothing of it is a value; the connection that it came on is given up."""
    async with wire(state, lambda _: [b"\xff\x00\x13\x37\x00\x02garbage"]) as (dut, way):
        await never(dut, BadReply, DeviceTimeout, DeviceGone, times=3)
        await heals(dut, way)
    await asyncio.to_thread(site_loses, state, BadReply("meter", "not a frame"))


@row("M3")
@pytest.mark.parametrize("wrong", ["unit", "function"])
async def test_wrong_unit_or_function(state: str, wrong: str) -> None:
    """A reply that looks good but for its unit or function: dropped, never a value."""

    def bad(request: bytes) -> Sequence[bytes | float]:
        if wrong == "unit":
            return [reply(request, b"\x03\x02\x00\x63", unit=9)]
        return [reply(request, b"\x04\x02\x00\x63")]

    async with wire(state, bad) as (dut, way):
        await never(dut, BadReply, DeviceTimeout, DeviceGone)
        await heals(dut, way, anew=wrong == "unit")  # an answer of another function is one to our own request


@row("M4")
async def test_late_reply(state: str) -> None:
    """The answer to the last request arrives during the next one: never taken for it."""

    def late(request: bytes) -> Sequence[bytes | float]:
        return [1.5 * TIMEOUT_S, reply(request, b"\x03\x02\x00\x63")]

    async with wire(state, late) as (dut, way):
        await never(dut, DeviceTimeout, DeviceGone, times=1)
        assert not dut.connection.is_connected, "closed after the timeout: what comes now, comes to nobody"
        await heals(dut, way)


async def armed(state: str, battery: ModbusBattery) -> BatteryCommand:
    """The battery as the state has it; returns the command that comes next."""
    command = BatteryCommand(Following.SOFTWARE, 5e6, ramp_w_per_s=35e6, epoch=1, seq=1, ttl_s=4.2)
    if state == "limit":
        command = replace(command, reference_w=FULL_W)
    if state != "cold":
        await battery.write(command)
    if state == "ramp":
        for k in range(3):
            command = replace(command, reference_w=5e6 + k * 1e6, seq=2 + k)
            await battery.write(command)
    return replace(command, seq=10, reference_w=command.reference_w - 1e6, ramp_w_per_s=28e6)


@row("M5")
async def test_partial_write(state: str) -> None:
    """One register of the block is not taken: found by read-back, the last whole order put back, then all of it again.

    Enable is written last. In the cold nothing whole was there before; the device's own timer ends what it holds then.
    """

    class Partial(Rig):
        is_sick = False

        def write_registers(self, address: int, data: bytes) -> None:
            if not (self.is_sick and address == self.at("704.WRmp")):
                super().write_registers(address, data)

    rig = Partial()
    async with ModbusServer({1: rig}) as server:
        battery = opened(server)
        command = await armed(state, battery)
        before = rig.get("704.WSet", 2), rig.get("704.WRmp")
        rig.is_sick = True
        for k in range(2):
            with pytest.raises(NotApplied):
                await battery.write(replace(command, seq=10 + k))
            now = rig.get("704.WSet", 2), rig.get("704.WRmp")
            assert state == "cold" or now == before, "neither the new value nor the old one with the new slope"
        assert rig.get("704.WSetRvrtRem", 2) > 0
        rig.is_sick, rig.frames = False, []
        await battery.write(replace(command, seq=12))
        names = rig.names()
        assert "704.WRmp" in names and names[-1] == "704.WSetEna"
        assert rig.get("704.WSet", 2) == command.reference_w and rig.get("704.WRmp") == 40
        await battery.close()


@row("M6")
@pytest.mark.parametrize(
    "code", [ExceptionCode.ILLEGAL_ADDRESS, ExceptionCode.DEVICE_FAILURE, ExceptionCode.DEVICE_BUSY]
)
async def test_exception_codes(state: str, code: ExceptionCode) -> None:
    """Busy is tried again, the others are told apart; the connection stays."""
    kind = {2: NotSupported, 4: DeviceFault, 6: DeviceBusy}[int(code)]

    def bad(request: bytes) -> Sequence[bytes | float]:
        return [reply(request, bytes((request[7] | 0x80, int(code))))]

    async with wire(state, bad) as (dut, way):
        await never(dut, kind)
        way[0] = good
        assert await dut.read_registers(3, 0, 1) == u16(42)


@row("M6")
async def test_a_battery_without_the_register_is_left_alone(state: str) -> None:
    """A device that has no place for an order is asked again every few seconds; over another connection, at once."""

    class Lacks(Rig):
        is_sick = False

        def write_registers(self, address: int, data: bytes) -> None:
            if self.is_sick and address <= self.at("704.WRmp") < address + len(data) // 2:
                raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
            super().write_registers(address, data)

    rig = Lacks()
    async with ModbusServer({1: rig}) as server:
        battery = opened(server)
        command = await armed(state, battery)
        rig.is_sick = True
        with pytest.raises(NotSupported):
            await battery.write(command)
        held, rig.frames = rig.get("704.WSet", 2), []
        for k in range(3):
            with pytest.raises(NotSupported, match="asked again"):
                await battery.write(replace(command, seq=11 + k))
        assert not rig.frames and rig.get("704.WSet", 2) == held, "nothing of it is written"
        assert (await battery.read()).value.power_w is not None, "and it is read all the same"
        rig.is_sick = False
        connection = battery._map.device.connection
        server.drop_clients()
        await until(lambda: not connection.is_connected)
        async with asyncio.timeout(5.0):
            while not rig.frames:
                with contextlib.suppress(DeviceGone, DeviceTimeout):
                    await battery.write(replace(command, seq=20))
                await asyncio.sleep(0.02)
        assert rig.get("704.WSet", 2) == command.reference_w
        await battery.close()


class Rescaled(Rig):
    """The same battery after a firmware update: its set-point counts in kilowatts."""

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        data = super().read_registers(function, address, count)
        at = self.at("704.WSet_SF")
        if address <= at < address + count:
            k = 2 * (at - address)
            return data[:k] + (3).to_bytes(2, "big", signed=True) + data[k + 2 :]
        return data


class Moved(Rig):
    """The same battery after a firmware update: another model stands where one was."""

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        data = super().read_registers(function, address, count)
        at = self.at("715.ControllerHb") - layout(715)["ControllerHb"].offset
        if address <= at < address + count:
            k = 2 * (at - address)
            return data[:k] + (716).to_bytes(2, "big") + data[k + 2 :]
        return data


@row("M7")
@pytest.mark.parametrize("update", [Rescaled, Moved])
async def test_firmware_update(state: str, update: type[Rig], tmp_path: Path) -> None:
    """What the battery is was kept: over a reconnect, and in the cold over a restart. Nothing is written to another."""
    file = tmp_path / "devices.json"
    rig = Rig()
    async with ModbusServer({1: rig}) as server:
        before = opened(server, identity=IdentityBook(file).of("battery"))
        command = await armed("steady" if state == "cold" else state, before)
        connection = before._map.device.connection
        if state == "cold":
            await before.close()
        changed = update()
        server.units[1] = changed  # before the link drops, or the next connection may still find the old one
        server.drop_clients()  # firmware comes with a restart
        await until(lambda: not connection.is_connected)
        battery = opened(server, identity=IdentityBook(file).of("battery")) if state == "cold" else before
        await refused(lambda: battery.write(command))
        await refused(battery.read)
        assert not changed.plant.orders and not changed.frames
        server.units[1] = rig
        server.drop_clients()
        await refused(lambda: battery.write(command))  # a person looks first
        await battery.close()
        file.unlink()
        server.units[1] = changed
        accepted = opened(server, identity=IdentityBook(file).of("battery"))
        if update is Rescaled:  # a map without a model that the profile needs is another product's, whoever looked
            await accepted.read()
        await accepted.close()
    await asyncio.to_thread(site_loses_battery, state)


async def test_an_order_given_while_the_link_comes_back_is_for_nobody_unknown() -> None:
    """The battery is exchanged during a reconnect; a renewal that waits for the link asks first who answers there."""
    rig, changed, go = Rig(), Moved(), asyncio.Event()
    async with ModbusServer({1: rig}) as server:
        battery = opened(server)
        command = await armed("steady", battery)
        connection = battery._map.device.connection
        connect = connection._connect

        async def held() -> bool:
            await go.wait()
            return await connect()

        connection._connect = held  # type: ignore[method-assign]
        server.units[1] = changed
        server.drop_clients()
        await until(lambda: not connection.is_connected and not connection._attempted.is_set())
        order = asyncio.create_task(battery.write(command))
        await asyncio.sleep(0.02)
        go.set()
        with pytest.raises(DeviceChanged):
            await order
        assert not changed.frames and not changed.plant.orders
        await battery.close()


async def refused(attempt: Callable[[], Awaitable[object]]) -> None:
    """DeviceChanged, once the wire is there to tell."""
    async with asyncio.timeout(5.0):
        while True:
            try:
                await attempt()
            except DeviceChanged:
                return
            except (DeviceGone, DeviceTimeout):
                await asyncio.sleep(0.02)
            else:
                pytest.fail("taken for the battery that was armed")


def site_loses_battery(state: str) -> None:
    """The site is told, plans without the battery, and waits for a person.

    The device takes no order any more, so what the load does meanwhile is on the meter whoever controls.
    """

    def fail(_: object) -> Any:
        raise DeviceChanged("battery", "scale factor at 40093 is not as when it was armed first")

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_CHANGED, since_s=since_s, within_s=1.5)
        await lab.run(4.0)
        assert lab.saw(Flag.BATTERY_LOST, since_s=since_s) and lab.last.mode >= Mode.DEGRADED
        lab.heal()
        await lab.run(15.0)
        assert Flag.DEVICE_CHANGED in lab.last.flags, "until an operator acts"

    def begin(lab: Lab) -> None:
        lab.hooks.battery = lab.hooks.battery_write = fail

    forced = Loss(left_of_drop_w(state, SETTLE_S[state])) if state in ("limit", "ramp") else None
    play_site(state, begin=begin, react=react, recovers=False, loss=forced)


@row("M8")
async def test_another_products_map(state: str) -> None:
    """Another product answers at the address: refused at arming, nothing is written to it."""
    stranger = Table({40_000: b"NotS" + bytes(200)}, writable=range(40_000, 40_100))
    rig = Rig()
    async with ModbusServer({1: rig if state != "cold" else stranger}) as server:
        battery = opened(server)
        command = BatteryCommand(Following.SOFTWARE, 5e6, ramp_w_per_s=35e6, epoch=1, seq=20, ttl_s=4.2)
        if state != "cold":
            command = await armed(state, battery)
            await battery.close()
            server.units[1] = stranger
            battery = opened(server)
        with pytest.raises((WrongDevice, NotSupported)):
            await battery.write(command)
        with pytest.raises((WrongDevice, NotSupported)):
            await battery.read()
        assert stranger.writes == []
        await battery.close()


@row("M9")
async def test_half_open(state: str) -> None:
    """The gateway holds the connection and never answers again; the device reverts by itself, the driver comes back."""
    rig = Rig()
    silent = [False]

    class Gateway(ModbusServer):
        def answer(self, unit: int, pdu: bytes) -> bytes | None:
            return None if silent[0] else super().answer(unit, pdu)

    async with Gateway({1: rig}) as server:
        battery = opened(server)
        silent[0] = state == "cold"
        command = await armed(state, battery)
        silent[0] = True
        with pytest.raises((DeviceTimeout, DeviceGone)):
            async with asyncio.timeout(5.0):
                await battery.write(command)
        rig.run(12.0)
        assert rig.plant.power_w == 0.0, "the device lets go by itself"
        silent[0] = False
        async with asyncio.timeout(8.0):
            while True:
                try:
                    await battery.write(replace(command, seq=30))
                    break
                except (DeviceTimeout, DeviceGone, NotApplied):
                    await asyncio.sleep(0.02)
        await battery.close()
