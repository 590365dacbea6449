"""A fake NVIDIA node inside the test process: the compiled library under the unmodified `pynvml`, stepped by hand."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pynvml

from controller.ports import Clock
from drivers.nvml import NvmlLibrary
from hil.fake_nvml.build import LIBRARY_NAME, STATE_VARIABLE, library_dir
from hil.fake_nvml.plant_link import GpuPlantLink
from hil.fake_nvml.state import FakeGpus
from hil.plant.gpu import GpuBank
from tests.clock_kit import HandClock

STEP_S = 0.01


@dataclass
class FakeNode:
    """State, plant and clock of one node; `run` advances all three together."""

    gpus: FakeGpus
    link: GpuPlantLink
    clock: HandClock

    def run(self, seconds: float, activity: float = 1.0) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.clock.t_ns += round(STEP_S * 1e9)
            self.link.step(self.clock.now_s(), STEP_S, np.full(self.gpus.count, activity))


@contextmanager
def fake_node(folder: Path, model: str = "h100", count: int = 2) -> Iterator[FakeNode]:
    """`pynvml` of this process speaks to a fresh node for the duration; calls take no time unless told otherwise."""
    path = folder / "gpus.state"
    rng = np.random.default_rng(1)
    before = os.environ.get(STATE_VARIABLE)
    with FakeGpus.create(path, [model] * count) as gpus:
        gpus.set_latency("*", 0.0)
        os.environ[STATE_VARIABLE] = str(path)
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml.nvmlLib = ctypes.CDLL(str(library_dir() / LIBRARY_NAME))
        try:
            yield FakeNode(gpus, GpuPlantLink(gpus, GpuBank(model, count), rng=rng), HandClock())
        finally:
            gpus.hang("*", 0.0)
            while pynvml.nvmlLib.nvmlShutdown() == 0:
                pass
            pynvml.nvmlLib = None
            pynvml._nvmlGetFunctionPointer_cache.clear()
            os.environ.pop(STATE_VARIABLE)
            if before is not None:
                os.environ[STATE_VARIABLE] = before


def library(clock: Clock, *, driver_versions: str = r"^0\.0-hil$", call_deadline_s: float = 5.0) -> NvmlLibrary:
    """NVML as the agent opens it; writes are accepted on the simulated driver only."""
    return NvmlLibrary(driver_versions=driver_versions, call_deadline_s=call_deadline_s, clock=clock)
