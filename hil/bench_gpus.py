"""What reading a node's GPUs costs: our driver at its rate, and the bare calls it makes, on the same simulated GPUs.

The plant runs in the parent, the reading in a child of its own, so that the figures are the reader's alone. Calls take
the time they take on real GPUs (they sleep); `cpu_frac` is the share of one core that the reader burns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pynvml

from controller.clock import MonotonicClock
from controller.types import frozen
from drivers.nvml import TEMPERATURE_EVERY, NvmlGpu, NvmlLibrary
from drivers.nvml_calls import FIELDS
from hil.fake_nvml.serve import Load, run_gpus

WARMUP_S = 1.0


@frozen
class GpuCost:
    """Shares of a core, and the time one read takes, ours and bare."""

    gpus: int
    hz: float
    cpu_frac: float
    bare_cpu_frac: float
    achieved_hz: float
    read_ms: float
    bare_read_ms: float

    def as_dict(self) -> dict[str, float]:
        return {f"gpu_{name}" if name != "gpus" else name: value for name, value in asdict(self).items()}


def run(*, gpus: int, hz: float, seconds: float, model: str = "h100") -> GpuCost:
    """Measure both in a child process; OSError or ValueError when it gives no figures."""
    with tempfile.TemporaryDirectory(prefix="rampart-bench-") as folder:
        out = Path(folder) / "cost.json"
        command = [sys.executable, "-m", "hil.bench_gpus", str(hz), str(seconds), str(out)]
        run_gpus(count=gpus, model=model, load=Load.TRAINING, seed=1, command=command, say=lambda line: None)
        return GpuCost(**json.loads(out.read_text(encoding="utf-8")))


async def _ours(gpus: Sequence[NvmlGpu], *, hz: float, seconds: float) -> tuple[float, float, float]:
    """Share of a core, reads per second of each GPU, and mean milliseconds of a read."""
    loop = asyncio.get_running_loop()
    start_s = loop.time() + 0.05
    from_s, until_s = start_s + WARMUP_S, start_s + WARMUP_S + seconds
    took_s: list[float] = []

    async def one(gpu: NvmlGpu, due_s: float) -> None:
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            before_s = loop.time()
            await gpu.read()
            if before_s >= from_s:
                took_s.append(loop.time() - before_s)
            due_s = max(due_s + 1.0 / hz, loop.time())

    tasks = [asyncio.create_task(one(gpu, start_s)) for gpu in gpus]
    await asyncio.sleep(from_s - loop.time())
    cpu_s, wall_s = time.process_time(), loop.time()
    await asyncio.gather(*tasks)
    share = (time.process_time() - cpu_s) / (loop.time() - wall_s)
    return share, len(took_s) / len(gpus) / seconds, 1e3 * sum(took_s) / len(took_s)


def _bare(uuids: Sequence[str], *, hz: float, seconds: float) -> tuple[float, float]:
    """The same calls in a plain loop: share of a core, and mean milliseconds of a read."""
    handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()) for uuid in uuids]
    step_s = 1.0 / hz / len(handles)
    reads: list[Callable[[], object]] = []
    due_s = time.monotonic()
    until_s, cpu_s, wall_s, took_s = due_s + seconds, time.process_time(), due_s, 0.0
    count = 0
    while due_s < until_s:
        time.sleep(max(0.0, due_s - time.monotonic()))
        handle = handles[count % len(handles)]
        before_s = time.monotonic()
        reads = [
            lambda: pynvml.nvmlDeviceGetFieldValues(handle, FIELDS),  # noqa: B023 - called in this round
            lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),  # noqa: B023
            lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),  # noqa: B023
        ]
        if count // len(handles) % TEMPERATURE_EVERY == 0:
            reads.append(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))  # noqa: B023
        for read in reads:
            read()
        took_s += time.monotonic() - before_s
        count += 1
        due_s += step_s
    return (time.process_time() - cpu_s) / (time.monotonic() - wall_s), 1e3 * took_s / count


async def _measure(hz: float, seconds: float) -> GpuCost:
    library = NvmlLibrary(driver_versions=".*", call_deadline_s=2.0, clock=MonotonicClock())
    gpus = await library.open()
    cpu_frac, achieved_hz, read_ms = await _ours(gpus, hz=hz, seconds=seconds)
    bare_cpu_frac, bare_read_ms = _bare([g.spec.gpu_id for g in gpus], hz=hz, seconds=seconds)
    await library.close()
    return GpuCost(len(gpus), hz, cpu_frac, bare_cpu_frac, achieved_hz, read_ms, bare_read_ms)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C reaches the whole group: what there is to say, the parent says
    cost = asyncio.run(_measure(float(sys.argv[1]), float(sys.argv[2])))
    Path(sys.argv[3]).write_text(json.dumps(asdict(cost)), encoding="utf-8")
