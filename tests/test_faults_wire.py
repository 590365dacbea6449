"""Rows M3 to M6, M8 and M9 on the whole site: shipped drivers, frames and registers in virtual time, judged on truth.

What a driver alone makes of the same faults is in `test_faults_modbus`. Meter or battery stand behind the frame proxy;
the site controller, its nodes and the plant are those of every other row. In each story no reading called good may be
anything but the plant at its stamp, and at the end, without a ceiling, no GPU is held below its top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from controller.modes import Flag
from controller.types import Mode
from hil.lab_site import MW, SETTLE_S, TOP_MHZ
from hil.lab_wire import TIMEOUT_S
from hil.matrix import row
from hil.matrix_lab import Lab
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_proxy import WireFault
from hil.modbus_server import ExceptionCode, RegisterFault, RegisterMap
from tests.faults_kit import Begin, Loss, Person, React, battery, flagged, left_of_drop_w, play
from tests.modbus_kit import Table

pytestmark = pytest.mark.slow  # `make faults` runs it; the drivers' own halves are in the default suite

TOLD_FROM_S = 4.0  # the ceiling: a battery whose timer counts whole seconds is proven by then
AT_LIMIT_S = 72.0  # what nobody followed before that takes room in the rows, so the way down is longer
FREE_S = 12.0  # after NORMAL: caps come back in a plan or two, and raises wait for `raise_dwell_s`
METER_LOST = (Flag.METER_MISSING, Flag.METER_STALE)


def play_wired(
    state: str,
    *,
    begin: Begin,
    react: React,
    takes_battery: bool = False,
    options: dict[str, object] | None = None,
    **how: object,
) -> Lab:
    """One cell; `takes_battery`: the fault takes the battery away, whose part and the load's then is on the meter."""
    if takes_battery and state in ("limit", "ramp"):
        how["loss"] = Loss(left_of_drop_w(state, SETTLE_S[state]))
    lab = play(
        state,
        begin=begin,
        react=react,
        stays_s=FREE_S,
        limit_from_s=TOLD_FROM_S,
        limit_settle_s=AT_LIMIT_S,
        options={"is_wired": True} | (options or {}),
        **how,  # type: ignore[arg-type]
    )
    assert not lab.wire.lies, lab.wire.lies[:5]
    assert state == "limit" or lab.caps_mhz() == [TOP_MHZ] * 4, "a GPU was left below its need"
    return lab


def sick(device: str, fault: WireFault, value: float = 0.0) -> Begin:
    return lambda lab: lab.wire.proxies[device].make(fault, value)


@row("M3")
@pytest.mark.parametrize("fault", [WireFault.WRONG_UNIT, WireFault.WRONG_FUNCTION])
def test_wrong_unit_or_function(state: str, fault: WireFault) -> None:
    """The meter's answers carry another unit or function: none is a value, nodes stand in, nothing rises on them."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, *METER_LOST, since_s=since_s, within_s=1.5)
        await lab.run(5.0)
        assert lab.saw(Flag.DEVICE_GARBAGE, since_s=since_s) and lab.last.mode >= Mode.DEGRADED
        assert lab.wire.proxies["meter"].sick_count > 5 and not lab.raised(since_s + 1.5)

    play_wired(state, begin=sick("meter", fault), react=react)


@row("M4")
def test_late_reply(state: str) -> None:
    """The meter answers after the deadline: the socket is closed each time, and what comes late comes to nobody."""

    async def react(lab: Lab, since_s: float) -> None:
        server, connection = lab.wire.servers["meter"], lab.wire.connections["meter"]
        before, late = server.accepted_count, connection.timeout_count
        await flagged(lab, *METER_LOST, since_s=since_s, within_s=1.5)
        await lab.run(6.0)
        assert lab.saw(Flag.DEVICE_TIMEOUT, since_s=since_s) and lab.last.mode >= Mode.DEGRADED
        late = connection.timeout_count - late
        assert late >= 3 and server.accepted_count - before >= late - 1, "a new connection after each"
        assert not lab.raised(since_s + 1.5)

    play_wired(state, begin=sick("meter", WireFault.DELAY, 1.5 * TIMEOUT_S), react=react)


class Ill:
    """The battery's registers, or what an illness leaves of them; counts what was written to it."""

    def __init__(self, inner: RegisterMap) -> None:
        self._inner = inner
        self.write_count = 0

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        return self._inner.read_registers(function, address, count)

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        return self._inner.read_bits(function, address, count)

    def write_registers(self, address: int, data: bytes) -> None:
        self.write_count += 1
        self._inner.write_registers(address, data)


class Partial(Ill):
    """Of the set-point's two registers it takes the first, of all else everything, and acknowledges all."""

    def __init__(self, device: SunSpecBatteryDevice) -> None:
        super().__init__(device)
        self._low_at = device.registers.address_of("704.WSet") + 1

    def write_registers(self, address: int, data: bytes) -> None:
        k = 2 * (self._low_at - address)
        if 0 <= k < len(data):
            data = data[:k] + self.read_registers(3, self._low_at, 1) + data[k + 2 :]
        super().write_registers(address, data)


class Refusing(Ill):
    """It is read as ever, and answers every write with an exception."""

    def __init__(self, inner: RegisterMap, code: ExceptionCode) -> None:
        super().__init__(inner)
        self._code = code

    def write_registers(self, address: int, data: bytes) -> None:
        self.write_count += 1
        raise RegisterFault(self._code)


def device(lab: Lab) -> SunSpecBatteryDevice:
    found = lab.wire.registers["battery"]
    assert isinstance(found, SunSpecBatteryDevice)
    return found


@row("M5")
def test_partial_write(state: str) -> None:
    """Half of each set-point is taken: told, nothing is counted on it, and the last whole order is put back."""
    held: list[dict[str, float]] = []
    points = [f"704.{name}" for name in ("WSet", "WSetMod", "WRmp")]

    def begin(lab: Lab) -> None:
        held.append({point: device(lab).register(point) for point in points})
        lab.wire.servers["battery"].units[1] = Partial(device(lab))

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_PARTIAL_WRITE, since_s=since_s, within_s=1.5)
        await lab.run(3.0)
        now = {point: device(lab).register(point) for point in points}
        assert now == held[0] or state == "cold", "the last order that was whole, not half of a newer one"
        assert lab.last.mode >= Mode.DEGRADED and not lab.traces[-1].acks.battery

    play_wired(state, begin=begin, react=react, takes_battery=True)


@row("M6")
def test_busy(state: str) -> None:
    """Exception 6 is asked again each period, for as long as it lasts: no lockout, and well when it ends."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_BUSY, since_s=since_s, within_s=1.5)
        await lab.run(13.0)
        assert ill[0].write_count > 20 and not lab.saw(Flag.BATTERY_LOCKED_OUT)

    ill: list[Refusing] = []

    def begin(lab: Lab) -> None:
        ill.append(Refusing(device(lab), ExceptionCode.DEVICE_BUSY))
        lab.wire.servers["battery"].units[1] = ill[0]

    play_wired(state, begin=begin, react=react, takes_battery=True)


@row("M6")
@pytest.mark.parametrize("code", [ExceptionCode.ILLEGAL_ADDRESS, ExceptionCode.DEVICE_FAILURE])
def test_refusal_locks_the_battery_out(state: str, code: ExceptionCode) -> None:
    """Every order refused for ten periods: locked out, nothing is written any more, until an operator resets."""
    person, ill = Person(), []

    def begin(lab: Lab) -> None:
        ill.append(Refusing(device(lab), code))
        lab.wire.servers["battery"].units[1] = ill[0]

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_REFUSES, since_s=since_s, within_s=1.5)
        await flagged(lab, Flag.BATTERY_LOCKED_OUT, since_s=since_s, within_s=12.0)
        assert lab.now_s - since_s > 9.5, "a glitch is none"
        await lab.run(1.0)
        written = ill[0].write_count
        lab.heal()
        await lab.run(15.0)
        assert ill[0].write_count == written and lab.last.battery_w is None, "none is asked of it, well or not"
        told = lab.last.flags - ({Flag.ENVELOPE_BUSY} if state == "limit" else set())
        assert told == {Flag.BATTERY_LOCKED_OUT} and lab.last.mode >= Mode.DEGRADED
        person.resets = True
        await lab.run(3.0)
        assert lab.last.battery_w is not None and lab.traces[-1].acks.battery, "tried again, and obeyed"

    play_wired(state, begin=begin, react=react, takes_battery=True, options={"operator": person})


@row("M8")
@pytest.mark.parametrize("which", ["meter", "battery"])
def test_another_products_map(state: str, which: str) -> None:
    """Another product answers at the address: not armed, nothing is written to it, well when the right one is back."""
    stranger = Table({40_000: b"NotS" + bytes(200)}, writable=range(40_000, 40_100))

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_WRONG, since_s=since_s, within_s=3.0)
        lost = METER_LOST if which == "meter" else (Flag.BATTERY_LOST,)
        await flagged(lab, *lost, since_s=since_s, within_s=3.0)
        await lab.run(6.0)
        assert lab.last.mode >= Mode.DEGRADED and stranger.writes == []
        if state == "cold" and which == "meter":  # nothing at all is begun on it
            assert all(tick.battery_w is None and math.isnan(tick.caps_mhz) for tick in lab.ticks)

    play_wired(
        state,
        begin=lambda lab: lab.wire.replace_device(which, stranger),
        react=react,
        takes_battery=which == "battery",
    )


@row("M9")
@pytest.mark.parametrize("which", ["meter", "battery"])
def test_half_open(state: str, which: str) -> None:
    """The gateway holds connections and says nothing: told, the battery lets go by its own timer, all comes back."""

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.DEVICE_TIMEOUT, since_s=since_s, within_s=3.0)
        before = lab.wire.servers[which].accepted_count
        if which == "battery":
            await flagged(lab, Flag.BATTERY_LOST, since_s=since_s, within_s=3.0)
            count = device(lab).reversion_count
            await lab.run(6.0)
            await lab.until(lambda: abs(battery(lab).power_w) < 0.5 * MW, within_s=90.0)
            assert state == "cold" or device(lab).reversion_count > count, "by itself: nobody told it"
        else:
            await lab.run(6.0)
            assert not lab.raised(since_s + 1.5)
        assert lab.last.mode >= Mode.DEGRADED
        assert lab.wire.servers[which].accepted_count > before, "a new connection is tried again and again"

    play_wired(state, begin=sick(which, WireFault.HALF_OPEN), react=react, takes_battery=which == "battery")
