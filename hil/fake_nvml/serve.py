"""A node of simulated GPUs that any program can be run on: plant in this process, the program in a child.

The state file lives in a private temporary folder and goes away with this process. The load is one synchronous job:
all GPUs iterate together (compute, then a gradient exchange at lower power) and pause for a checkpoint now and then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import StrEnum, unique
from pathlib import Path
from types import FrameType

import numpy as np

from controller.errors import BadInput
from controller.types import FloatArray, frozen
from hil.fake_nvml.build import environment
from hil.fake_nvml.plant_link import GpuPlantLink
from hil.fake_nvml.state import FakeGpus
from hil.plant.gpu import GpuBank

STEP_S = 0.010
LAG_S_MAX = 0.5  # after a longer stall simulated time skips ahead instead of hurrying


@unique
class Load(StrEnum):
    """What the simulated GPUs are busy with."""

    TRAINING = "training"
    STEADY = "steady"
    IDLE = "idle"


@frozen
class Training:
    """Shape of the synchronous job; periods of 0.2 to 10 s and near-idle exchanges are what is seen in the field."""

    iteration_s: float = 1.6
    exchange_frac: float = 0.22
    exchange_activity: float = 0.35
    checkpoint_every_s: float = 60.0
    checkpoint_s: float = 4.0
    checkpoint_activity: float = 0.08

    def activity(self, t_s: float) -> float:
        """Activity of every GPU at `t_s` since the job began."""
        if t_s % self.checkpoint_every_s > self.checkpoint_every_s - self.checkpoint_s:
            return self.checkpoint_activity
        is_exchange = (t_s / self.iteration_s) % 1.0 > 1.0 - self.exchange_frac
        return self.exchange_activity if is_exchange else 1.0


def run_gpus(
    *, count: int, model: str, load: Load, seed: int, command: Sequence[str], say: Callable[[str], None]
) -> int:
    """Serve `count` GPUs until `command` ends, or until interrupted when there is none; the exit status to give.

    A command that a signal ended gives 128 + its number, an interrupt without a command 130.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="rampart-gpus-") as folder:
        path = Path(folder) / "state"
        with FakeGpus.create(path, [model] * count, seed=seed) as gpus:
            link = GpuPlantLink(gpus, GpuBank(model, count, rng=rng, spread_frac=0.02), rng=rng)
            gpus.set_process(0 if load is Load.IDLE else os.getpid())
            variables = environment(path)
            if not command:
                say(f"{count} simulated {model} GPUs; run programs on them from another shell after:")
                sys.stdout.write("".join(f"export {k}='{v}'\n" for k, v in variables.items()))
                sys.stdout.flush()
                return _serve(link, load, None)
            try:
                child = subprocess.Popen(list(command), env=os.environ | variables)
            except OSError as error:
                raise BadInput(f"command: {command[0]!r}: {error.strerror or error}") from None
            return _serve(link, load, child)


def _serve(link: GpuPlantLink, load: Load, child: subprocess.Popen[bytes] | None) -> int:
    """Step the plant in real time until the child ends or a signal comes."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if child is not None and not (number == signal.SIGINT and _is_foreground()):
            child.send_signal(number)  # a terminal has sent Ctrl-C to the child already

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        start_s = due_s = time.monotonic()
        while True:
            if child is not None and child.poll() is not None:
                return child.returncode if child.returncode >= 0 else 128 - child.returncode
            if child is None and caught:
                return 128 + caught[0]
            due_s += STEP_S
            link.step(due_s, STEP_S, _activity(link, load, due_s - start_s))
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            elif wait_s < -LAG_S_MAX:
                due_s = time.monotonic()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()


def _activity(link: GpuPlantLink, load: Load, t_s: float) -> FloatArray:
    level = {Load.TRAINING: Training().activity(t_s), Load.STEADY: 1.0, Load.IDLE: 0.0}[load]
    return np.full(link.bank.count, level)


def _is_foreground() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
