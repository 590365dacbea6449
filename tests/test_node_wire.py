"""Death of a node agent, as real processes on the fake NVML: whatever kills it, the GPUs get their settings back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hil.fake_nvml.build import environment
from hil.fake_nvml.state import FakeGpus
from tests.conftest import ROOT
from tests.node_kit import FALLBACK_MHZ

pytestmark = [
    pytest.mark.wire,
    pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="needs a C compiler"),
]

CAP_MHZ = 900
FOUND_W = 600.0
RESTORE_S_MAX = 5.0  # what DESIGN promises for every way of dying
START_S_MAX = 20.0


class World:
    """Two fake GPUs, found at a limit of 600 W, and the processes on them."""

    def __init__(self, folder: Path, gpus: FakeGpus) -> None:
        self.state_dir = folder / "state"
        self.gpus = gpus
        self._environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"} | environment(folder / "gpus")
        self._processes: list[subprocess.Popen[bytes]] = []

    def agent(self, clock_mhz: int = CAP_MHZ, **variables: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.node_process", str(self.state_dir), str(clock_mhz)]
        process = subprocess.Popen(command, env=self._environment | variables, cwd=ROOT, start_new_session=True)
        self._processes.append(process)
        return process

    def restore(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.prefix) / "bin" / "rampart"), "restore", "--state-dir", str(self.state_dir), *options]
        environment = self._environment | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    def caps(self) -> list[float]:
        return [float(x) for x in self.gpus.clock_lock_mhz()[1]]

    def is_at(self, clock_mhz: float) -> bool:
        return self.caps() == [clock_mhz] * 2

    def is_given_back(self) -> bool:
        return bool(np.isnan(self.caps()).all()) and self.gpus.power_limit_w().tolist() == [FOUND_W] * 2

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with FakeGpus.create(tmp_path / "gpus", ["h100", "h100"]) as gpus:
        for gpu in range(2):
            gpus.foreign_write(gpu, limit_w=FOUND_W)
        world = World(tmp_path, gpus)
        assert world.is_given_back()
        try:
            yield world
        finally:
            world.end()


def bound(path: Path) -> socket.socket:
    """The supervisor's end of the notification socket."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(str(path))
    end.settimeout(5.0)
    return end


def until(holds: Callable[[], bool], *, within_s: float) -> float:
    start_s = time.monotonic()
    while not holds():
        assert time.monotonic() - start_s < within_s, f"not within {within_s} s"
        time.sleep(0.02)
    return time.monotonic() - start_s


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=["term", "interrupt", "kill"])
def test_whatever_ends_the_agent_the_gpus_get_their_settings_back(world: World, number: signal.Signals) -> None:
    agent = world.agent()
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    until(lambda: world.gpus.power_limit_w().tolist() == [400.0, 400.0], within_s=2.0)
    agent.send_signal(number)
    until(world.is_given_back, within_s=RESTORE_S_MAX)
    until(lambda: not (world.state_dir / "originals.json").exists(), within_s=2.0)
    assert agent.wait(timeout=10) == (0 if number is not signal.SIGKILL else -signal.SIGKILL)


def test_ctrl_c_of_the_whole_group_leaves_the_guard_alone(world: World) -> None:
    """The terminal signals everyone in the foreground group; the guard is not in it, and the agent cleans up."""
    agent = world.agent()
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    os.killpg(agent.pid, signal.SIGINT)
    until(world.is_given_back, within_s=RESTORE_S_MAX)
    assert agent.wait(timeout=10) == 0


def test_a_restarted_agent_and_the_guard_of_the_dead_one_do_not_fight(world: World) -> None:
    """kill -9 and an immediate restart: whoever gets the lock first, the new caps stand and originals return."""
    first = world.agent()
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    first.kill()
    second = world.agent(clock_mhz=1200)
    until(lambda: world.is_at(1200), within_s=START_S_MAX)
    time.sleep(1.0)
    assert world.is_at(1200)
    second.terminate()
    until(world.is_given_back, within_s=RESTORE_S_MAX)
    assert second.wait(timeout=10) == 0


def test_under_systemd_a_crash_goes_to_fallback_and_the_next_stop_gives_back(world: World, tmp_path: Path) -> None:
    """No guard there: ExecStopPost puts the GPUs at fallback, the restarted agent arms from file, stops clean."""
    supervised = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"}
    with closing(bound(tmp_path / "notify")) as supervisor:
        first = world.agent(**supervised)
        until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
        assert supervisor.recv(100) == b"READY=1\nSTATUS=node n1" and supervisor.recv(100) == b"WATCHDOG=1"
    first.kill()
    first.wait()
    time.sleep(0.5)
    assert world.is_at(CAP_MHZ)
    done = world.restore("--to", "fallback")
    assert done.returncode == 0 and done.stdout.count("at the fallback cap") == 2
    assert world.is_at(FALLBACK_MHZ) and (world.state_dir / "originals.json").exists()
    second = world.agent(**supervised)
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    second.terminate()
    assert second.wait(timeout=10) == 0 and world.is_given_back()


def test_a_service_stopped_before_its_agent_armed_again_gives_back(world: World, tmp_path: Path) -> None:
    """Killed, at fallback, started and stopped at once: the second agent knew of nothing, ExecStopPost does."""
    first = world.agent(NOTIFY_SOCKET=str(tmp_path / "notify"))
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    first.kill()
    first.wait()
    assert world.restore("--to", "fallback", SERVICE_RESULT="signal").returncode == 0 and world.is_at(FALLBACK_MHZ)
    done = world.restore("--to", "fallback", SERVICE_RESULT="success")
    assert done.returncode == 0 and done.stdout.count("original settings given back") == 2 and world.is_given_back()


def test_restore_waits_for_no_agent_and_gives_back_what_a_dead_one_left(world: World, tmp_path: Path) -> None:
    agent = world.agent(NOTIFY_SOCKET=str(tmp_path / "notify"))
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    refused = world.restore()
    assert refused.returncode == 2 and str(agent.pid) in refused.stderr and world.is_at(CAP_MHZ)
    agent.kill()
    agent.wait()
    done = world.restore()
    assert done.returncode == 0 and done.stdout.count("original settings given back") == 2 and world.is_given_back()


def test_restore_of_damaged_originals_gives_device_defaults(world: World, tmp_path: Path) -> None:
    agent = world.agent(NOTIFY_SOCKET=str(tmp_path / "notify"))
    until(lambda: world.is_at(CAP_MHZ), within_s=START_S_MAX)
    agent.kill()
    agent.wait()
    (world.state_dir / "originals.json").write_text("half a file")
    assert world.restore().returncode == 0
    assert world.gpus.power_limit_w().tolist() == [700.0, 700.0] and not any(
        x > 0 for x in world.caps() if np.isfinite(x)
    )
