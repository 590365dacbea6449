"""The site of the process and wire lanes: the shipped demo, its job at work, the rule planner, a minute of battery."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.config.load import data_root
from hil.scenario import Overrides, Scenario, parse_scenario
from hil.wire_lab import WireLab

NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("gcc") is None, reason="needs a C compiler"
)
MW = 1e6
TRACKER_HZ = 5  # what two busy cores can keep beside bench, broker and devices
NORMAL_S = 20.0  # from restart, DESIGN and FAULTS
CAPS_S = 5.0  # from the controller's death to bounded caps
BATTERY_S = 30.0
FALLBACK_MHZ = 1200.0
FIGURES_FILE = Path("out/process/figures.json")
FIGURES: list[dict[str, Any]] = []
DEATH_STEP_W = 5 * MW  # per second: what the 15 s row lets go at once


def lane_scenario(
    *, follow: str = "software", signals: Sequence[dict[str, Any]] = (), start_soc: float = 0.5, **site: Any
) -> Scenario:
    """A training job that runs from the start, for as long as the story lasts."""
    configs = data_root() / "configs"
    raw = yaml.safe_load((configs / "scenarios" / "demo.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((configs / "demo" / "site.yaml").read_text(encoding="utf-8"))
    fleet = raw["plant"]["fleet"][0]
    fleet["workload"] = {
        k: v for k, v in fleet["workload"].items() if not k.startswith("checkpoint")
    }  # steps of its own
    raw["plant"]["battery"]["start_soc"] = start_soc
    raw |= {
        "name": "lane",
        "site": own | {"tracker_hz": TRACKER_HZ} | site,
        "duration_s": 3600.0,
        "events": [],
        "signals": list(signals),
        "wire": {"node": str(configs / "demo" / "node.yaml"), "start_s_max": 60},
    }
    return parse_scenario(raw, Overrides(controller="rule", follow=follow), origin=str(configs / "lane.yaml"))


def are_bounded(lab: WireLab) -> bool:
    """No GPU is free any more: its node holds it, and brings it down at the contract's slope."""
    return bool(np.isfinite(lab.caps_mhz()).all())


def are_at_fallback(lab: WireLab) -> bool:
    return bool((np.nan_to_num(lab.caps_mhz(), nan=1e9) <= FALLBACK_MHZ).all())


def fake_clock(folder: Path, apart: Path) -> dict[str, str]:
    """Variables that set a process's wall clock apart from the machine's by the seconds in the file `apart`."""
    library = folder / "fake_clock.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    source = Path(__file__).with_name("fake_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library), "RAMPART_FAKE_CLOCK": str(apart)}


def figure(name: str, seconds: float, *, at_most: float) -> None:
    """Keep what was measured, for the table at the end and `out/process/figures.json`, and hold it to its goal."""
    FIGURES.append({"figure": name, "measured_s": round(seconds, 2), "goal_s": at_most})
    assert seconds <= at_most, f"{name}: {seconds:.2f} s"


def told_figures() -> list[str]:
    """The table of all figures kept so far, which is also written to its file; empty where none was."""
    if not FIGURES:
        return []
    FIGURES_FILE.parent.mkdir(parents=True, exist_ok=True)
    FIGURES_FILE.write_text(json.dumps(FIGURES, indent=1) + "\n", encoding="utf-8")
    return [f"{f['figure']}: {f['measured_s']:.2f} s (goal {f['goal_s']:g} s)" for f in FIGURES]


def log_of(out: Path, name: str) -> str:
    return (out / "wire" / f"{name}.log").read_text(encoding="utf-8", errors="replace")
