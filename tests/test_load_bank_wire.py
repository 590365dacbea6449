"""The load bank's driver in front of the simulated bank's registers, over a real wire."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import BadInput
from controller.live_profiles import load_bank_profile_for
from controller.types import LoadBankCommand, LoadBankState, Quality
from drivers.errors import InvalidValue, NotApplied, Refused
from drivers.load_bank import ModbusLoadBank, open_load_bank
from drivers.profile import parse_profile
from hil.modbus_load_bank import LoadBankDevice
from hil.modbus_server import RegisterFault
from hil.plant.load_bank import LoadBank, LoadBankParams
from tests.modbus_kit import CLOCK, f32, profile, serving, settings, u16

pytestmark = pytest.mark.wire
COMMAND = LoadBankCommand(2e6, ramp_w_per_s=20e6, expiry_w_per_s=0.5e6, epoch=1, seq=1, ttl_s=4.2)


class Shown:
    """A bank in memory as its PLC shows it; the test moves its time."""

    def __init__(self, **changes: object) -> None:
        params = {
            "power_w_max": 10e6,
            "lag_s": 0.0,
            "ramp_w_per_s_max": 20e6,
            "has_own_ramp": True,
            "energy_j": 3.6e9,
            "recovery_w": 0.0,
        }
        self.bank = LoadBank(LoadBankParams(**{**params, **changes}))  # type: ignore[arg-type]
        self.frames: list[int] = []
        self.uptime_s = 5.0
        self.device = LoadBankDevice(self)

    power_w = property(lambda self: self.bank.power_w)
    power_w_limit = property(lambda self: self.bank.power_w_limit)
    setpoint_w = property(lambda self: self.bank.setpoint_w)
    reversion_s_left = property(lambda self: self.bank.reversion_s_left)
    state = property(lambda self: self.bank.state)
    is_remote = property(lambda self: self.bank.is_remote)
    energy_j_left = property(lambda self: self.bank.energy_j_left)

    def order(self, setpoint_w: float, *, ramp_w_per_s: float, expiry_w_per_s: float, expiry_s: float) -> None:
        self.bank.set_setpoint(setpoint_w, ramp_w_per_s)
        self.bank.arm_reversion(expiry_s, slope_w_per_s=expiry_w_per_s)
        self.frames.append(round(setpoint_w))

    def run(self, seconds: float) -> None:
        self.bank.advance(round(seconds / 0.01), dt_s=0.01)


def opened(port: int) -> ModbusLoadBank:
    return open_load_bank(settings(port), profile=profile("rampart-load-bank"), clock=CLOCK, power_w_max=10e6)


async def test_an_order_is_carried_out_read_back_and_lapses_at_its_own_slope() -> None:
    """2 MW at 20 MW/s for 4.2 s, rounded up to 5; then half a megawatt a second back to nothing."""
    shown = Shown()
    async with serving(shown.device) as server:
        bank = opened(server.port)
        before = (await bank.read()).value
        assert before.state is LoadBankState.STANDBY and before.is_remote and before.power_w_max == 10e6
        assert before.energy_j_left == pytest.approx(3.6e9)
        await bank.write(COMMAND)
        shown.run(0.2)
        after = await bank.read()
        assert after.quality is Quality.GOOD and after.value.state is LoadBankState.RUNNING
        assert after.value.power_w == pytest.approx(2e6) and after.value.setpoint_w == 2e6
        assert after.value.reversion_s_left == 5
        shown.run(3.0)
        await bank.write(LoadBankCommand(2e6, 20e6, 0.5e6, epoch=1, seq=2, ttl_s=4.2))
        shown.run(4.0)
        assert (await bank.read()).value.power_w == pytest.approx(2e6), "renewed, it goes on"
        shown.run(3.0)
        fading = (await bank.read()).value
        assert 0.9e6 < fading.power_w < 1.1e6 and fading.setpoint_w == 0.0 and fading.state is LoadBankState.STANDBY
        await bank.close()


async def test_a_renewal_is_one_frame_and_never_leaves_a_value_without_its_timer() -> None:
    """The controls follow each other: a full order is one write, and so is every later one."""
    shown = Shown()
    writes: list[tuple[int, int]] = []
    inner = shown.device.write_registers

    def noted(address: int, data: bytes) -> None:
        writes.append((address, len(data) // 2))
        inner(address, data)

    shown.device.write_registers = noted  # type: ignore[method-assign]
    async with serving(shown.device) as server:
        bank = opened(server.port)
        await bank.write(COMMAND)
        await bank.write(LoadBankCommand(3e6, 20e6, 0.5e6, epoch=1, seq=2, ttl_s=4.2))
        await bank.close()
    assert writes == [(100, 8), (105, 3)] and shown.frames == [2_000_000, 3_000_000]


async def test_what_must_not_be_written_is_refused() -> None:
    """Local control, a negative set-point, a register that is no control, half a control."""
    shown = Shown()
    async with serving(shown.device) as server:
        bank = opened(server.port)
        await bank.read()
        with pytest.raises(InvalidValue):
            await bank.write(LoadBankCommand(-1.0, 20e6, 0.5e6, epoch=1, seq=1, ttl_s=4.2))
        shown.bank.is_remote = False
        await bank.read()
        with pytest.raises(Refused):
            await bank.write(COMMAND)
        assert shown.frames == []
        with pytest.raises(InvalidValue):  # not on the allow-list of the profile
            await bank._map.device.write_registers(0, f32(1.0))
        await bank.close()
    for address, data in ((0, f32(1.0)), (100, u16(1)), (107, u16(1, 1))):
        with pytest.raises(RegisterFault):
            shown.device.write_registers(address, data)


async def test_a_bank_that_acknowledges_and_keeps_another_value_is_found_out() -> None:
    """Read-back, not the acknowledgement, is what counts; the next command goes out whole."""
    shown = Shown()
    async with serving(shown.device) as server:
        bank = opened(server.port)
        inner = shown.device.read_registers
        shown.device.read_registers = (  # type: ignore[method-assign]
            lambda function, address, count: bytes(2 * count) if address >= 100 else inner(function, address, count)
        )
        with pytest.raises(NotApplied):
            await bank.write(COMMAND)
        await bank.close()


async def test_a_timer_that_does_not_run_counts_as_not_applied() -> None:
    """A bank that would hold its power for ever after our death is not armed."""
    shown = Shown()
    shown.bank.arm_reversion = lambda *_, **__: None  # type: ignore[method-assign]
    async with serving(shown.device) as server:
        bank = opened(server.port)
        with pytest.raises(NotApplied, match="timer"):
            await bank.write(COMMAND)
        await bank.close()


async def test_a_plc_that_stands_still_is_no_good_reading() -> None:
    """Its heartbeat stops: the values are old, however politely they are given."""
    shown = Shown()
    clock = type("C", (), {"t_s": 10.0, "now_s": lambda self: self.t_s})()
    async with serving(shown.device) as server:
        bank = open_load_bank(
            settings(server.port), profile=profile("rampart-load-bank"), clock=clock, power_w_max=10e6
        )
        assert (await bank.read()).quality is Quality.GOOD
        clock.t_s += 4.0
        assert (await bank.read()).quality is Quality.STALE
        shown.uptime_s += 4.0
        assert (await bank.read()).quality is Quality.GOOD
        await bank.close()


def test_a_profile_of_a_bank_must_say_how_to_write_and_no_more() -> None:
    """A meter's profile, one that only reads, and one that claims to follow load are refused."""
    with pytest.raises(BadInput, match="expected a load_bank"):
        load_bank_profile_for(replace(settings(1), profile="sunspec-meter"))
    raw = profile("rampart-load-bank").model_dump(exclude_none=True, mode="json")
    with pytest.raises(BadInput, match="only a battery follows"):
        parse_profile({**raw, "device": raw["software"]}, origin="x.yaml")


def test_without_a_slope_of_its_own_it_drops_out_and_hot_it_stops() -> None:
    """A step at the end of its order; and 1 MJ at 1 MW is one second, then it is back only cooled."""
    step = LoadBank(LoadBankParams(1e6, 0.0, 1e9, has_own_ramp=False, energy_j=float("inf"), recovery_w=0.0))
    step.set_setpoint(1e6, 1e9)
    step.arm_reversion(0.5, slope_w_per_s=1e3)
    assert step.advance(40, dt_s=0.01)[-1] == pytest.approx(1e6) and step.advance(20, dt_s=0.01)[-1] == 0.0
    hot = LoadBank(LoadBankParams(1e6, 0.0, 1e9, has_own_ramp=True, energy_j=1e6, recovery_w=0.1e6))
    hot.set_setpoint(1e6, 1e9)
    assert hot.advance(100, dt_s=0.01)[-1] == pytest.approx(1e6) and hot.state is LoadBankState.RUNNING
    assert hot.advance(20, dt_s=0.01)[-1] == 0.0 and hot.state is LoadBankState.FAULT and hot.power_w_limit == 0.0
    hot.advance(100, dt_s=0.01)
    assert hot.state is LoadBankState.RUNNING and hot.advance(1, dt_s=0.01)[-1] > 0.0
