"""How fast many Modbus meters can be read through our driver, beside the bare library in the same run.

The meters are served by a process of their own, each on its own port; the figures are those of the reading process.
Reads are spread over the period, as the phases of real devices are. `cpu_frac` is the share of one core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np
from pymodbus.client import AsyncModbusTcpClient

from controller.clock import MonotonicClock
from controller.settings import ModbusSettings
from controller.types import frozen
from drivers.meter import ModbusMeter, open_meter
from drivers.profile import DeviceProfile
from hil.modbus_meter import sunspec_meter
from hil.modbus_server import ModbusServer

TIMEOUT_S = 1.0
WARMUP_S = 1.0
POWER_BLOCK = (40000 + 2 + 68 + 26, 4)  # what our driver reads each time: Hz and W of model 213

Read = Callable[[], Awaitable[object]]


@frozen
class Rate:
    """Latency of single reads, and what they cost."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_frac: float
    read_count: int
    achieved_hz: float


@frozen
class Result:
    meters: int
    hz: float
    ours: Rate
    bare: Rate

    def as_dict(self) -> dict[str, float]:
        return {
            "meters": self.meters,
            "hz": self.hz,
            "p50_ms": self.ours.p50_ms,
            "p99_ms": self.ours.p99_ms,
            "max_ms": self.ours.max_ms,
            "cpu_frac": self.ours.cpu_frac,
            "achieved_hz": self.ours.achieved_hz,
            "bare_p50_ms": self.bare.p50_ms,
            "bare_p99_ms": self.bare.p99_ms,
            "bare_cpu_frac": self.bare.cpu_frac,
            "bare_achieved_hz": self.bare.achieved_hz,
        }


class _SteadyMeter:
    """A meter whose reading changes with every look, so that nothing can be cached."""

    def __init__(self, number: int) -> None:
        self._power_w = 1e6 * (1 + number)
        self.frequency_hz: float | None = 60.0
        self.voltage_pu: float | None = 1.0
        self.import_wh: float | None = 1e6
        self.export_wh: float | None = 1.0

    @property
    def power_w(self) -> float:
        self._power_w += 8.0  # one step of a float32 near 100 MW
        return self._power_w


def run(profile: DeviceProfile, *, meters: int, hz: float, seconds: float) -> Result:
    """Measure both, one after the other, on the same servers."""
    with _served(meters) as ports:
        return asyncio.run(_measure(profile, ports, hz=hz, seconds=seconds))


async def _measure(profile: DeviceProfile, ports: Sequence[int], *, hz: float, seconds: float) -> Result:
    clock = MonotonicClock()
    devices: list[ModbusMeter] = []
    for number, port in enumerate(ports):
        settings = ModbusSettings(
            name=f"meter-{number}", host="127.0.0.1", port=port, unit_id=1, profile=profile.id, timeout_s=TIMEOUT_S
        )
        devices.append(open_meter(settings, profile=profile, clock=clock))
    for device in devices:  # connected and discovered beforehand, as the bare clients are
        await device.read()
    ours = await _drive([device.read for device in devices], hz=hz, seconds=seconds)
    for device in devices:
        await device.close()
    clients = [AsyncModbusTcpClient("127.0.0.1", port=port, timeout=TIMEOUT_S, retries=0) for port in ports]
    for client in clients:
        await client.connect()
    bare = await _drive([_bare_read(client) for client in clients], hz=hz, seconds=seconds)
    for client in clients:
        client.close()
    return Result(meters=len(ports), hz=hz, ours=ours, bare=bare)


def _bare_read(client: AsyncModbusTcpClient) -> Read:
    async def read() -> float:
        address, count = POWER_BLOCK
        reply = await client.read_holding_registers(address, count=count, device_id=1)
        assert not reply.isError()
        power_w: float = struct.unpack(">ff", struct.pack(">4H", *reply.registers))[1]
        return power_w

    return read


async def _drive(reads: Sequence[Read], *, hz: float, seconds: float) -> Rate:
    """Read every device at `hz` for `seconds` after a warm-up; a device never has two reads in flight."""
    loop = asyncio.get_running_loop()
    period_s = 1.0 / hz
    start_s = loop.time() + 0.05
    from_s, until_s = start_s + WARMUP_S, start_s + WARMUP_S + seconds
    latencies: list[float] = []

    async def one(read: Read, phase_s: float) -> None:
        due_s = start_s + phase_s
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            before_s = loop.time()
            await read()
            if before_s >= from_s:
                latencies.append(loop.time() - before_s)
            due_s += period_s * max(1, math.ceil((loop.time() - due_s) / period_s))  # late: skip, and keep the phase

    tasks = [asyncio.create_task(one(read, period_s * i / len(reads))) for i, read in enumerate(reads)]
    await asyncio.sleep(from_s - loop.time())
    cpu_s, wall_s = time.process_time(), loop.time()
    await asyncio.gather(*tasks)
    cpu_frac = (time.process_time() - cpu_s) / (loop.time() - wall_s)
    p50, p99 = np.percentile(latencies, [50.0, 99.0]) * 1e3
    return Rate(
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=1e3 * max(latencies),
        cpu_frac=cpu_frac,
        read_count=len(latencies),
        achieved_hz=len(latencies) / len(reads) / seconds,
    )


@contextlib.contextmanager
def _served(meters: int) -> Iterator[list[int]]:
    """Ports of that many meters, served until the context ends (or this process does)."""
    command = [sys.executable, "-m", "hil.bench_devices", str(meters)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        ports: list[int] = json.loads(process.stdout.readline())
        try:
            yield ports
        finally:
            process.stdin.close()


async def _serve(meters: int) -> None:
    servers = [ModbusServer({1: sunspec_meter(_SteadyMeter(n), nominal_voltage_v=277.0)}) for n in range(meters)]
    for server in servers:
        await server.start()
    sys.stdout.write(json.dumps([server.port for server in servers]) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until the parent closes it or dies
    for server in servers:
        await server.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends us by our input
    asyncio.run(_serve(int(sys.argv[1])))
