"""The site of the latency bench as its processes are configured: one node of V100s that stands for thousands."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, unique
from pathlib import Path

import yaml

from controller.types import frozen
from hil.fake_nvml.build import environment
from hil.latency_plant import BATTERY_J, BATTERY_W, GPUS, LAG_S, OTHER_W, STANDS_FOR

NO_DRIVER = "^none$"  # no driver is accepted: the agent reports its GPUs and leaves them alone
MEGA = 1e6
GPU_PEAK_W, GPU_IDLE_W = GPUS * STANDS_FOR * 300.0, GPUS * STANDS_FOR * 42.0


@unique
class Way(StrEnum):
    """Who brings power down."""

    COMBINED = "combined"
    CAPS = "caps"
    BATTERY = "battery"


@frozen
class Ports:
    """Where the servers of one run listen."""

    broker: int
    meter: int
    battery: int


def site_document(way: Way, folder: Path, ports: Ports, *, public: Path) -> dict[str, object]:
    """The site controller's file; `public` is the issuer's key."""
    site: dict[str, object] = {
        "role": "site",
        "name": "latency",
        "registered_peak_megawatt": 12.0,
        "limits": [{"id": "peak", "kind": "ceiling", "max_megawatt": 12.0}],
        "controller": "rule",  # the planner is not what is measured; the MPC would use an idle battery
        "tracker_hz": 20,
        "planner_hz": 1,
        "pcc_meter": {
            "profile": "sunspec-meter",
            "host": "127.0.0.1",
            "port": ports.meter,
            "delay_s": 0.005,
            "update_s": 0.005,
            "nameplate_megawatt": 15,
        },
        "load": {
            "gpu_peak_megawatt": GPU_PEAK_W / MEGA,
            "gpu_idle_megawatt": GPU_IDLE_W / MEGA,
            "gpu_fallback_megawatt": 0.6 * GPU_PEAK_W / MEGA,
            "other_megawatt": OTHER_W / MEGA,
            "other_max_megawatt": OTHER_W / MEGA,
        },
        "classes": [{"name": "training", "nodes": ["node-*"], "priority": 50}],
        "commands": {"raise_dwell_s": 0, "grace_s": 60, "release_stagger_s": 0, "service_floor": 0.3},
        "mqtt": _mqtt(ports),
        "grid": {
            "agent_id": "latency",
            "clock_sync": "assumed",  # the sender of the bench reads our own clock
            "issuers": [
                {"name": "grid", "key_files": [str(public)], "may_set_ramp": True, "may_exempt_ramp": True},
            ],
        },
        "state_dir": str(folder / "site"),
        "runtime_dir": str(folder / "run-site"),
    }
    if way is not Way.CAPS:
        site["battery"] = {
            "profile": "sunspec-battery",
            "host": "127.0.0.1",
            "port": ports.battery,
            "charge_megawatt": BATTERY_W / MEGA,
            "discharge_megawatt": BATTERY_W / MEGA,
            "energy_megawatt_hour": BATTERY_J / 3.6e9,
            "soc_min": 0.05,
            "soc_max": 0.95,
            "lag_s": LAG_S,
            "following": "software",
            "ramp_megawatt_per_s": 50.0 * BATTERY_W / MEGA,
        }
    return site


def write_files(way: Way, folder: Path, ports: Ports, *, public: Path) -> dict[str, tuple[Path, Mapping[str, str]]]:
    """The files of the processes of this way, by name, with what each needs in its environment."""
    node: dict[str, object] = {
        "role": "node",
        "node": {
            "id": "node-1",
            "sampled": {"nodes": STANDS_FOR},
            "telemetry_hz": 5,
            "fallback_clock_mhz": 1200,
            "driver_versions": NO_DRIVER if way is Way.BATTERY else r"^0\.0-hil",
        },
        "mqtt": _mqtt(ports),
        "state_dir": str(folder / "node"),
        "runtime_dir": str(folder / "run-node"),
    }
    documents: dict[str, tuple[dict[str, object], Mapping[str, str]]] = {
        "site controller": (site_document(way, folder, ports, public=public), {}),
        "node agent": (node, environment(folder / "gpus")),
    }
    found: dict[str, tuple[Path, Mapping[str, str]]] = {}
    for name, (document, variables) in documents.items():
        path = folder / f"{name.replace(' ', '-')}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        found[name] = (path, variables)
    return found


def _mqtt(ports: Ports) -> dict[str, object]:
    return {"host": "127.0.0.1", "port": ports.broker, "keepalive_s": 2}
