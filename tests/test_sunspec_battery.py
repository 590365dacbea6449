"""The battery's register side on a plain time variable, and our driver in front of it over a real wire."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from controller.types import BatteryCommand, BatteryState, Following, Quality
from drivers.battery import ModbusBattery, open_battery
from drivers.errors import InvalidValue, NotApplied, NotSupported, Refused, WrongDevice
from drivers.identity import Identity
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_battery_map import BatteryNameplate, FollowState
from hil.modbus_server import ExceptionCode, ModbusServer, RegisterFault
from hil.plant.battery import Battery, BatteryParams, Reversion
from tests.clock_kit import HandClock
from tests.modbus_kit import CLOCK, Plant, i32, profile, settings, u16, u32

NAMEPLATE = BatteryNameplate(discharge_w_max=70e6, charge_w_max=70e6, energy_wh=35e6)
COMMAND = BatteryCommand(Following.SOFTWARE, 5e6, ramp_w_per_s=35e6, epoch=1, seq=1, ttl_s=4.2)


class Rig:
    """A battery device whose writes are kept in order, and whose time is moved by the test."""

    def __init__(self, **options: object) -> None:
        self.plant = Plant(power_w=0.0)
        self.device = SunSpecBatteryDevice(self.plant, NAMEPLATE, **options)  # type: ignore[arg-type]
        self.t_s = 100.0
        self.device.tick(self.t_s)
        self.frames: list[tuple[int, bytes]] = []

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        return self.device.read_registers(function, address, count)

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        return self.device.read_bits(function, address, count)

    def write_registers(self, address: int, data: bytes) -> None:
        self.device.write_registers(address, data)
        self.frames.append((address, data))

    def at(self, point: str) -> int:
        return self.device.registers.address_of(point)

    def put(self, point: str, data: bytes) -> None:
        self.device.write_registers(self.at(point), data)

    def get(self, point: str, words: int = 1) -> int:
        data = self.device.read_registers(3, self.at(point), words)
        return int.from_bytes(data, "big", signed=True)

    def run(self, seconds: float, *, step_s: float = 0.05) -> None:
        for _ in range(round(seconds / step_s)):
            self.t_s += step_s
            self.device.tick(self.t_s)

    def names(self) -> list[str]:
        """Points written, in order, one name per frame (its first point)."""
        where = {self.at(p): p for p in POINTS}
        return [where[address] for address, _ in self.frames]


POINTS = (
    [f"704.{name}" for name in ("WSetEna", "WSetMod", "WSet", "WSetRvrt", "WSetEnaRvrt", "WSetRvrtTms", "WRmp")]
    + [f"64901.{name}" for name in ("FlwEna", "FlwTgt", "FlwRmp", "FlwRvrtTms", "FlwRvrtMod", "RvrtRmp")]
    + ["715.ControllerHb"]
)


# ------------------------------------------------------------------------------------------------ the device


def test_a_setpoint_is_delivered_and_reverts_at_its_slope_when_nobody_renews_it() -> None:
    """WRmp 10 %/s of 70 MW is 7 MW/s: 14 MW take 2 s up; at 3 s the timer ends and 2 s later power is zero."""
    rig = Rig()
    rig.put("704.WRmp", u16(10))
    rig.put("704.WSetRvrtTms", u32(3))
    rig.put("704.WSetEnaRvrt", u16(1))
    rig.put("704.WSetMod", u16(1))
    rig.put("704.WSet", i32(14_000_000))
    assert rig.plant.orders == [], "nothing moves before it is enabled"
    rig.put("704.WSetEna", u16(1))
    rig.run(1.0)
    assert rig.plant.power_w == pytest.approx(7e6)
    assert rig.get("704.WSetRvrtRem", 2) == 2
    rig.run(1.5)
    assert rig.plant.power_w == 14e6
    rig.run(1.5)
    assert rig.device.reversion_count == 1
    assert rig.plant.power_w == pytest.approx(14e6 - 7e6 * 1.0, rel=0.06)
    rig.run(1.5)
    assert rig.plant.power_w == 0.0
    assert (rig.get("704.WSetEna"), rig.get("704.WSet", 2), rig.get("704.WSetRvrtRem", 2)) == (1, 0, 0)


def test_writing_enable_again_restarts_the_timer_and_a_value_alone_does_not() -> None:
    rig = Rig()
    for point, data in (("704.WSetRvrtTms", u32(2)), ("704.WSet", i32(1_000_000)), ("704.WSetEna", u16(1))):
        rig.put(point, data)
    rig.run(1.5)
    rig.put("704.WSetEna", u16(1))
    rig.run(1.5)
    assert rig.device.reversion_count == 0
    rig.put("704.WSet", i32(2_000_000))
    rig.run(0.6)
    assert rig.device.reversion_count == 1


def test_reversion_to_disabled_ends_idle_and_uses_the_vendor_slope_if_there_is_one() -> None:
    rig = Rig()
    rig.put("64901.RvrtRmp", u32(1_000_000))
    for point, data in (("704.WSetRvrtTms", u32(1)), ("704.WSet", i32(2_000_000)), ("704.WSetEna", u16(1))):
        rig.put(point, data)
    assert rig.plant.power_w == 2e6, "no slope is set for set-points"
    rig.run(2.0)
    assert rig.plant.power_w == pytest.approx(1e6, rel=0.06)
    rig.run(2.0)
    assert rig.plant.orders[-1] == ("idle", 0.0) and rig.get("704.WSetEna") == 0


def test_following_holds_its_last_target_or_ramps_to_zero_when_its_time_is_up() -> None:
    for mode, state in ((0, FollowState.EXPIRED_HOLDING), (1, FollowState.EXPIRED_STOPPED)):
        rig = Rig()
        rig.put("64901.RvrtRmp", u32(1_000_000))
        rig.put("64901.FlwRvrtTms", u32(1))
        rig.put("64901.FlwRvrtMod", u16(mode))
        rig.put("64901.FlwTgt", i32(80_000_000))
        rig.put("64901.FlwEna", u16(1))
        rig.plant.power_w = 3e6  # what following made it deliver
        rig.run(2.0)
        assert rig.device.follow_state is state
        assert [order[0] for order in rig.plant.orders[:1]] == ["follow"]
        if mode == 0:
            assert rig.plant.orders == [("follow", 80e6)]
        else:
            assert rig.plant.power_w == pytest.approx(2e6, rel=0.06)


def test_one_way_of_control_ends_the_other() -> None:
    rig = Rig()
    rig.put("64901.FlwTgt", i32(80_000_000))
    rig.put("64901.FlwEna", u16(1))
    rig.put("704.WSet", i32(1_000_000))
    rig.put("704.WSetEna", u16(1))
    assert rig.get("64901.FlwEna") == 0 and rig.plant.orders[-1] == ("setpoint", 1e6)
    rig.put("64901.FlwEna", u16(1))
    assert rig.get("704.WSetEna") == 0 and rig.plant.orders[-1] == ("follow", 80e6)


def test_a_controller_whose_heartbeat_stops_is_treated_as_gone() -> None:
    rig = Rig(heartbeat_timeout_s=2.0)
    rig.put("704.WSet", i32(1_000_000))
    rig.put("704.WSetEna", u16(1))
    rig.run(5.0)
    assert rig.device.reversion_count == 0, "a controller that never beat is not missed"
    rig.put("715.ControllerHb", u32(1))
    rig.run(1.9)
    assert rig.device.reversion_count == 0
    rig.run(0.3)
    assert rig.device.reversion_count == 1 and rig.plant.power_w == 0.0


@pytest.mark.parametrize(
    ("point", "data", "code"),
    [
        ("704.WSet", i32(70_000_001), ExceptionCode.ILLEGAL_VALUE),
        ("704.WSetMod", u16(2), ExceptionCode.ILLEGAL_VALUE),
        ("713.SoC", u16(1), ExceptionCode.ILLEGAL_ADDRESS),
    ],
)
def test_what_cannot_be_written_is_refused_and_changes_nothing(point: str, data: bytes, code: ExceptionCode) -> None:
    rig = Rig()
    before = rig.device.read_registers(3, rig.at("704.WSetEna"), 40)
    with pytest.raises(RegisterFault) as caught:
        rig.put(point, data)
    assert caught.value.code is code
    assert rig.device.read_registers(3, rig.at("704.WSetEna"), 40) == before


def test_local_control_refuses_commands() -> None:
    rig = Rig()
    rig.plant.is_remote = False
    with pytest.raises(RegisterFault):
        rig.put("704.WSetEna", u16(1))
    assert rig.get("715.LocRemCtl") == 1


def test_the_plants_own_battery_obeys_and_follows_behind_the_registers() -> None:
    """5 ms steps of the real model: 10 MW asked for arrive; then it holds the connection point at 75 MW."""
    params = BatteryParams(
        charge_w_max=70e6,
        discharge_w_max=70e6,
        energy_j=35e6 * 3600.0,
        soc_frac_start=0.5,
        soc_frac_min=0.0,
        soc_frac_max=1.0,
        eta=0.95,
        lag_s=0.06,
        follow_lag_s=0.023,
        slope_w_per_s_max=95e6,
        deadband_w=0.0,
        taper_soc_frac=0.05,
        standby_w=0.0,
        follow_reversion=Reversion.FREEZE,
        reversion_w_per_s=1e6,
    )
    battery = Battery(params)
    device = SunSpecBatteryDevice(battery, NAMEPLATE)
    load_w = np.full(1, 90e6)

    def run(seconds: float, t_s: float) -> float:
        for _ in range(round(seconds / 0.005)):
            t_s += 0.005
            device.tick(t_s)
            battery.advance(load_w, dt_s=0.005, pcc_w_before=90e6)
        return t_s

    def put(point: str, data: bytes) -> None:
        device.write_registers(device.registers.address_of(point), data)

    device.tick(0.0)
    put("704.WSet", i32(10_000_000))
    put("704.WSetEna", u16(1))
    t_s = run(1.0, 0.0)
    assert battery.power_w == pytest.approx(10e6, rel=0.01)
    put("64901.FlwRmp", u32(10_000_000))
    put("64901.FlwTgt", i32(75_000_000))
    put("64901.FlwEna", u16(1))
    run(3.0, t_s)
    assert battery.power_w == pytest.approx(15e6, rel=0.01)


# ------------------------------------------------------------------------------------------ driver and device


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
async def server(rig: Rig) -> AsyncIterator[ModbusServer]:
    async with ModbusServer({1: rig}) as server:
        yield server


def opened(
    server: ModbusServer, name: str = "sunspec-battery-follow", *, identity: Identity | None = None
) -> ModbusBattery:
    return open_battery(
        settings(server.port, timeout_s=1.0),
        profile=profile(name),
        clock=CLOCK,
        charge_w_max=70e6,
        discharge_w_max=70e6,
        identity=identity,
    )


@pytest.mark.wire
async def test_state_is_read_as_the_plant_has_it(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    rig.plant.power_w, rig.plant.soc_frac = -7.25e6, 0.4321
    reading = await battery.read()
    sample = reading.value
    assert reading.quality is Quality.GOOD
    assert (sample.power_w, sample.state) == (-7.25e6, BatteryState.RUNNING)
    assert sample.soc_frac == pytest.approx(0.4321)
    assert (sample.charge_w_max, sample.discharge_w_max, sample.is_remote) == (70e6, 60e6, True)
    assert not sample.is_following and sample.reversion_s_left == 0.0
    await battery.close()


@pytest.mark.wire
async def test_a_battery_that_may_not_run_is_off(rig: Rig, server: ModbusServer) -> None:
    """703 ES: somebody else took the permission to run; nothing may be planned with it."""
    battery = opened(server)
    rig.device.is_permitted = False
    assert (await battery.read()).value.state is BatteryState.OFF
    await battery.close()


@pytest.mark.wire
async def test_arming_writes_slope_and_expiry_first_and_enable_last(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    await battery.write(replace(COMMAND, expiry_w_per_s=3e5))
    names = rig.names()
    order = ["64901.RvrtRmp", "704.WRmp", "704.WSetRvrtTms", "704.WSetRvrt", "704.WSetEnaRvrt", "704.WSetMod"]
    assert [name for name in names if name in order] == order
    assert names[-1] == "704.WSetEna" and names.count("704.WSetEna") == 1
    assert rig.get("704.WSetRvrtTms", 2) == 5, "4.2 s are rounded up"
    assert rig.get("704.WRmp") == 50 and rig.get("64901.RvrtRmp", 2) == 300_000
    assert (await battery.read()).value.reversion_s_left == 5.0
    await battery.close()


@pytest.mark.wire
async def test_a_renewal_is_one_frame_and_keeps_the_battery_from_reverting(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    await battery.write(COMMAND)
    rig.frames.clear()
    for seq in range(2, 6):
        rig.run(3.0)
        await battery.write(replace(COMMAND, reference_w=6e6, seq=seq))
    assert rig.names().count("704.WSetEna") == 4
    assert set(rig.names()) <= {"704.WSetEna", "715.ControllerHb"}
    assert rig.device.reversion_count == 0 and rig.plant.power_w == 6e6
    await battery.close()


@pytest.mark.wire
async def test_a_changed_slope_is_written_before_the_value_it_is_for(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    await battery.write(COMMAND)
    rig.frames.clear()
    await battery.write(replace(COMMAND, ramp_w_per_s=7e6, reference_w=1e6))
    assert [name for name in rig.names() if name.startswith("704")] == ["704.WRmp", "704.WSetEna"]
    await battery.close()


@pytest.mark.wire
async def test_following_is_told_a_target_and_read_back(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    await battery.write(BatteryCommand(Following.DEVICE, 85e6, ramp_w_per_s=3.3e5, epoch=1, seq=1, ttl_s=5.0))
    assert rig.plant.orders == [("follow", 85e6)]
    assert rig.names()[-1] == "64901.FlwEna"
    sample = (await battery.read()).value
    assert sample.is_following and sample.reference_w == 85e6 and sample.reversion_s_left == 5.0
    await battery.write(COMMAND)
    sample = (await battery.read()).value
    assert not sample.is_following and sample.reference_w == 5e6
    await battery.close()


@pytest.mark.wire
async def test_after_a_restart_of_the_device_everything_is_written_again(rig: Rig, server: ModbusServer) -> None:
    """A renewal alone would enable a set-point without a timer."""
    from tests.modbus_kit import until

    battery = opened(server)
    await battery.write(COMMAND)
    fresh = Rig()
    server.units[1] = fresh
    server.drop_clients()
    await until(lambda: not battery._map.device.connection.is_connected)
    await until(lambda: battery._map.device.connection.is_connected)
    await battery.write(COMMAND)
    assert "704.WSetRvrtTms" in fresh.names() and fresh.device.set_seconds_left == 5
    await battery.close()


@pytest.mark.wire
async def test_a_timer_that_was_lost_is_noticed_and_armed_again(rig: Rig, server: ModbusServer) -> None:
    """The device forgot its settings without dropping the connection: one failed write, then the full order."""
    battery = opened(server)
    await battery.write(COMMAND)
    fresh = Rig()
    server.units[1] = fresh
    with pytest.raises(NotApplied, match="timer"):
        await battery.write(COMMAND)
    await battery.write(COMMAND)
    assert fresh.device.set_seconds_left == 5
    await battery.close()


@pytest.mark.wire
async def test_a_device_that_acknowledges_and_does_not_take_a_value_is_found_out(
    rig: Rig, server: ModbusServer
) -> None:
    class Deaf(Rig):
        def write_registers(self, address: int, data: bytes) -> None:
            if address != self.at("704.WRmp"):
                super().write_registers(address, data)

    server.units[1] = Deaf()
    battery = opened(server)
    with pytest.raises(NotApplied, match="set_ramp"):
        await battery.write(COMMAND)
    await battery.close()


@pytest.mark.wire
async def test_a_command_cancelled_half_way_is_followed_by_the_full_order(rig: Rig, server: ModbusServer) -> None:
    """Cancelled after the new slope was written: going back to the old slope must write it again."""
    battery = opened(server)
    await battery.write(COMMAND)

    class Cancelling(Rig):
        def write_registers(self, address: int, data: bytes) -> None:
            super().write_registers(address, data)
            if address == self.at("704.WRmp"):
                task.cancel()

    server.units[1] = cancelling = Cancelling()
    task = asyncio.create_task(battery.write(replace(COMMAND, ramp_w_per_s=7e6)))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelling.get("704.WRmp") == 10
    server.units[1] = rig
    rig.put("704.WRmp", u16(10))
    await battery.write(COMMAND)
    assert rig.get("704.WRmp") == 50
    await battery.close()


@pytest.mark.wire
async def test_what_cannot_be_commanded_is_refused_before_anything_is_sent(rig: Rig, server: ModbusServer) -> None:
    battery = opened(server)
    await battery.read()
    with pytest.raises(InvalidValue):
        await battery.write(replace(COMMAND, reference_w=math.nan))
    with pytest.raises(InvalidValue):
        await battery.write(replace(COMMAND, reference_w=3e9))
    assert rig.frames == []
    with pytest.raises(InvalidValue):
        await battery.write(replace(COMMAND, reference_w=71e6))  # the device's own limit
    rig.plant.is_remote = False
    await battery.close()
    local = opened(server)
    await local.read()
    rig.frames.clear()
    with pytest.raises(Refused, match="local"):
        await local.write(COMMAND)
    assert rig.frames == []
    await local.close()


@pytest.mark.wire
async def test_a_battery_without_following_is_not_driven_as_if_it_had() -> None:
    plain = Rig(has_following=False)
    async with ModbusServer({1: plain}) as server:
        battery = opened(server, "sunspec-battery")
        with pytest.raises(NotSupported):
            await battery.write(replace(COMMAND, following=Following.DEVICE))
        await battery.write(COMMAND)
        plain.run(0.1)
        assert plain.plant.orders[-1][0] == "setpoint" and plain.plant.power_w > 0
        await battery.close()
        wrong = opened(server, "sunspec-battery-follow")
        with pytest.raises(WrongDevice, match="64901"):
            await wrong.read()
        await wrong.close()


@pytest.mark.wire
async def test_a_device_whose_heartbeat_stands_still_is_stale(rig: Rig, server: ModbusServer) -> None:
    clock = HandClock()
    battery = open_battery(
        settings(server.port, timeout_s=1.0),
        profile=profile("sunspec-battery"),
        clock=clock,
        charge_w_max=1.0,
        discharge_w_max=1.0,
    )
    for _ in range(5):
        clock.t_s += 1.0
        rig.run(1.0)
        assert (await battery.read()).quality is Quality.GOOD
    clock.t_s += 2.9
    assert (await battery.read()).quality is Quality.GOOD
    clock.t_s += 0.2
    assert (await battery.read()).quality is Quality.STALE
    await battery.close()
