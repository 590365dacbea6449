"""Our Modbus driver behind a wire that is sick frame by frame: never a wrong value, and well again by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from drivers.errors import BadReply, DeviceBusy, DeviceFault, DeviceGone, DeviceTimeout
from drivers.modbus import ModbusDevice
from hil.modbus_proxy import ModbusProxy, WireFault
from hil.modbus_server import ModbusServer
from tests.modbus_kit import TIMEOUT_S, Table, device, u16

pytestmark = pytest.mark.wire

REGISTERS = 40
LOST = (DeviceTimeout, DeviceGone, BadReply, DeviceBusy)


def truth(address: int) -> bytes:
    return u16(1000 + 7 * address)


@asynccontextmanager
async def sick_wire(seed: int = 1) -> AsyncIterator[tuple[ModbusDevice, ModbusProxy, Table]]:
    """Each register holds what its address says, so that a reply to another request cannot pass for an answer."""
    table = Table({0: b"".join(truth(k) for k in range(REGISTERS))}, writable=range(REGISTERS))
    async with (
        ModbusServer({1: table}) as server,
        ModbusProxy(server.host, server.port, rng=np.random.default_rng(seed)) as proxy,
    ):
        dut = device(proxy.port)
        dut.allow(range(REGISTERS))
        assert await dut.read_registers(3, 0, 1) == truth(0)
        try:
            yield dut, proxy, table
        finally:
            await dut.connection.close()


async def asked(dut: ModbusDevice, *, times: int, pause_s: float = 0.0) -> Counter[str]:
    """What became of so many reads; a value that is not the truth fails at once."""
    found: Counter[str] = Counter()
    for k in range(times):
        address, count = 1 + k % 11, 1 + k % 3
        try:
            data = await dut.read_registers(3, address, count)
        except LOST as error:
            found[type(error).__name__] += 1
            await asyncio.sleep(0.02)
        except DeviceFault:
            found["DeviceFault"] += 1
        else:
            assert data == b"".join(truth(address + i) for i in range(count)), "a value that nobody sent"
            found["value"] += 1
        await asyncio.sleep(pause_s)
    return found


async def heals(dut: ModbusDevice, proxy: ModbusProxy) -> None:
    proxy.heal()
    async with asyncio.timeout(8.0):
        while (await asked(dut, times=4))["value"] < 4:
            pass


@pytest.mark.parametrize("fault", [WireFault.DUPLICATE, WireFault.SPLIT])
async def test_what_a_stream_may_do_costs_nothing(fault: WireFault) -> None:
    """TCP keeps no frames together, and a reply that comes twice is known by its transaction id."""
    async with sick_wire() as (dut, proxy, _):
        proxy.make(fault)
        assert (await asked(dut, times=30))["value"] == 30 and proxy.sick_count >= 30
        await heals(dut, proxy)


async def test_a_delay_below_the_deadline_is_waited_for_and_one_above_is_not_taken_later() -> None:
    async with sick_wire() as (dut, proxy, _):
        proxy.make(WireFault.DELAY, 0.5 * TIMEOUT_S)
        assert (await asked(dut, times=6))["value"] == 6
        proxy.make(WireFault.DELAY, 1.7 * TIMEOUT_S)
        found = await asked(dut, times=6, pause_s=0.5 * TIMEOUT_S)
        assert found["value"] == 0 and found["DeviceTimeout"] >= 1
        await heals(dut, proxy)


@pytest.mark.parametrize(
    "fault",
    [
        WireFault.DROP,
        WireFault.CUT,
        WireFault.REORDER,
        WireFault.COALESCE,
        WireFault.HALF_OPEN,
        WireFault.WRONG_UNIT,
        WireFault.WRONG_FUNCTION,
        WireFault.GARBAGE,
        WireFault.REFUSED,
    ],
)
async def test_what_cannot_be_an_answer_is_none(fault: WireFault) -> None:
    """No value while it lasts; the connection is made anew, and all is well when it is over."""
    async with sick_wire() as (dut, proxy, _):
        proxy.make(fault)
        if fault is WireFault.REFUSED:
            proxy.reset()
        found = await asked(dut, times=8)
        assert found["value"] == 0, found
        await heals(dut, proxy)


@pytest.mark.parametrize("seed", range(2))
async def test_one_frame_in_three_suffers_anything(seed: int) -> None:
    """Faults change under way: some reads succeed, none lies."""
    rng = np.random.default_rng(seed)
    async with sick_wire(seed) as (dut, proxy, _):
        got = 0
        for _ in range(12):
            fault = list(WireFault)[int(rng.integers(len(WireFault)))]
            proxy.make(fault, 0.03 if fault is WireFault.DELAY else 6, share=0.33)
            got += (await asked(dut, times=6))["value"]
        assert got > 0
        await heals(dut, proxy)


@pytest.mark.parametrize(("code", "kind"), [(4, "DeviceFault"), (6, "DeviceBusy"), (0x0B, "DeviceTimeout")])
async def test_exceptions_are_told_apart_and_keep_the_connection(code: int, kind: str) -> None:
    """A gateway whose target is silent (0x0B) is a timeout of the target, not of the gateway."""
    async with sick_wire() as (dut, proxy, table):
        before = dut.connection.connect_count
        proxy.make(WireFault.EXCEPTION, code)
        assert await asked(dut, times=4) == Counter({kind: 4})
        with pytest.raises((*LOST, DeviceFault)):
            await dut.write_registers(3, u16(9))
        assert table.writes == [] and dut.connection.connect_count == before
        await heals(dut, proxy)


async def test_a_write_whose_answer_is_lost_has_still_happened_once() -> None:
    """The driver says that it does not know; it does not send again by itself."""
    async with sick_wire() as (dut, proxy, table):
        proxy.make(WireFault.DROP)
        with pytest.raises(DeviceTimeout):
            await dut.write_registers(2, u16(77))
        assert len(table.writes) == 1
        await heals_write(dut, proxy)
        assert len(table.writes) == 2


async def heals_write(dut: ModbusDevice, proxy: ModbusProxy) -> None:
    proxy.heal()
    async with asyncio.timeout(5.0):
        while True:
            try:
                return await dut.write_registers(2, truth(2))
            except LOST:
                await asyncio.sleep(0.05)
