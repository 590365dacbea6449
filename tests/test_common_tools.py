"""Unmodified gpustat, nvitop and zeus on simulated GPUs, each as a person would start it.

`make tools` installs them into a folder of their own and runs this; they are no dependency of Rampart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # and not of the wire lane: these tools are installed by `make tools` alone

BIN = Path(os.environ.get("RAMPART_TOOLS", ROOT / ".venv-tools" / "bin"))
MODELS = {"v100": 300, "a100": 300, "h100": 700, "b200": 1000}

ZEUS = """
import json, os, time
from zeus.device import get_gpus
from zeus.monitor import ZeusMonitor

gpus = get_gpus(ensure_homogeneous=True)
low, high = gpus.get_power_management_limit_constraints(0)
memory = max(gpus.get_supported_memory_clocks(0))
clocks = gpus.get_supported_graphics_clocks(0, memory)
gpus.set_power_management_limit(0, (low + high) // 2)
gpus.set_gpu_locked_clocks(1, min(clocks), clocks[len(clocks) // 2])
monitor = ZeusMonitor(gpu_indices=list(range(len(gpus))), cpu_indices=[])
time.sleep(1.5)
monitor.begin_window("a second", sync_execution=False)
time.sleep(1.0)
energy = monitor.end_window("a second", sync_execution=False).gpu_energy
limits = [gpus.get_power_management_limit(i) for i in range(len(gpus))]
powers = [gpus.get_instant_power_usage(i) for i in range(len(gpus))]
gpus.reset_power_management_limit(0)
gpus.reset_gpu_locked_clocks(1)
print(json.dumps({"limits": limits, "energy": list(energy.values()), "powers": powers,
                  "restored": gpus.get_power_management_limit(0), "high": high, "middle": (low + high) // 2}))
"""


def on_fake_gpus(*command: str, model: str = "h100", count: int = 8) -> str:
    """What `command` printed on `count` simulated GPUs under a steady load."""
    rampart = [sys.executable, "-m", "controller.cli.main", "hil", "gpus", "--count", str(count), "--model", model]
    done = subprocess.run(
        [*rampart, "--load", "steady", "--", *command], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tool(name: str) -> str:
    path = BIN / name
    if not path.is_file():
        pytest.fail(f"{path}: not there; `make tools` installs it")
    return str(path)


@pytest.mark.parametrize("model", MODELS)
def test_gpustat_shows_every_gpu(model: str) -> None:
    shown = json.loads(on_fake_gpus(tool("gpustat"), "--json", model=model))["gpus"]
    assert [g["index"] for g in shown] == list(range(8)) and len({g["uuid"] for g in shown}) == 8
    for gpu in shown:
        assert gpu["enforced.power.limit"] == MODELS[model] and 0 < gpu["power.draw"] <= MODELS[model]
        assert 0 < gpu["utilization.gpu"] <= 100 and gpu["temperature.gpu"] >= 30
        assert gpu["processes"][0]["username"]
    assert len(on_fake_gpus(tool("gpustat"), "-a", "--no-color", model=model).splitlines()) == 9


@pytest.mark.parametrize("model", MODELS)
def test_nvitop_draws_its_page(model: str) -> None:
    page = on_fake_gpus(tool("nvitop"), "--once", "--ascii", model=model)
    assert page.count(f"/ {MODELS[model]}W") == 8 and "0.0-hil" in page
    assert "N/A  N/A" not in page and "Error" not in page


@pytest.mark.parametrize("model", MODELS)
def test_zeus_measures_caps_and_gives_back(model: str) -> None:
    seen = json.loads(on_fake_gpus(tool("python"), "-c", ZEUS, model=model, count=4).splitlines()[-1])
    assert seen["limits"] == [seen["middle"], seen["high"], seen["high"], seen["high"]]
    assert seen["restored"] == seen["high"]
    capped, slowed, *free = seen["energy"]
    assert capped < 0.9 * min(free) and slowed < 0.9 * min(free), "a limit and a locked clock both show in the energy"
    assert all(0 < w <= 1.01 * seen["high"] for w in seen["powers"])
