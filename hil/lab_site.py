"""The small site that one fault is tried on, as documents, and four states: cold, steady, at the limit, in a ramp."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hil.scenario import Overrides, Scenario, parse_scenario

MW = 1e6
TOP_MHZ = 1980.0  # of the lab's GPUs
LIMIT_MEGAWATT = 54.0  # of the state "limit": more below the load of about 66 MW than the battery alone can give
LIMIT_FROM_S, LIMIT_BY_S = 1.0, 30.0
SETTLE_S = {"cold": 0.0, "steady": 14.0, "limit": 34.0, "ramp": 17.0}
RAMP_FROM_S = 14.0

SITE: dict[str, Any] = {
    "role": "site",
    "name": "lab",
    "contract": ["ieso-ramp"],
    "fallback_contract": ["ieso-ramp"],
    "registered_peak_megawatt": 100,
    "controller": "rule",
    "tracker_hz": 10,
    "planner_hz": 1,
    "pcc_meter": {"profile": "sunspec-meter", "delay_s": 0.03, "update_s": 0.01, "nameplate_megawatt": 120},
    "battery": {
        "profile": "sunspec-battery-follow",
        "charge_megawatt": 30,
        "discharge_megawatt": 12,
        "energy_megawatt_hour": 6,
        "soc_min": 0.05,
        "soc_max": 0.95,
        "efficiency_one_way": 0.95,
        "lag_s": 0.06,
        "following": "software",
        "follow_lag_s": 0.023,
        "ramp_megawatt_per_s": 1400,
        "taper_soc": 0.05,
    },
    "load": {
        "gpu_peak_megawatt": 71.7,
        "gpu_idle_megawatt": 7.4,
        "gpu_fallback_megawatt": 45,
        "other_megawatt": 10,
        "other_max_megawatt": 14,
    },
    "classes": [{"name": "training", "nodes": ["training-*"], "priority": 80, "tolerated_loss": 0.1}],
    "contingencies": [
        {
            "kind": "full_site",
            "slew_per_s": 1.9,
            "transient": "report",
            "power": "report",
            "energy": "report",
            "rise": "report",
        }
    ],
    "commands": {"service_floor": 0.3, "grace_s": 6, "raise_dwell_s": 6},
}
FLEET: dict[str, Any] = {
    "id": "training",
    "model": "h100",
    "gpus": 102400,
    "gpus_per_node": 8,
    "reporting_nodes": 4,
    "fallback_clock_mhz": 1200,
    "workload": {
        "kind": "training",
        "iteration_s": 4,
        "compute_frac": 0.6,
        "compute_w": 560,
        "exchange_w": 535,
        "edge_s": 0.5,
        "jitter_frac": 0.05,
        "noise_frac": 0.002,
        "checkpoint_every_s": None,
        "other_megawatt": 10,
    },
}


def lab_scenario(
    state: str,
    *,
    following: str = "software",
    policy: str = "rule",
    seed: int = 1,
    duration_s: float = 600.0,
    site: Mapping[str, Any] | None = None,
    events_docs: Sequence[Mapping[str, Any]] = (),
    signals: Sequence[Mapping[str, Any]] = (),
    workload: Mapping[str, Any] | None = None,
    start_soc: float = 0.5,
    fleet: Mapping[str, Any] | None = None,
    battery_plant: Mapping[str, Any] | None = None,
    facility: Mapping[str, Any] | None = None,
    meter_plant: Mapping[str, Any] | None = None,
    limit_from_s: float = LIMIT_FROM_S,
) -> Scenario:
    """The site of the matrix on its way into `state`, or what `site`, `fleet`, `facility` and the like make of it.

    `limit_from_s`: when the ceiling of the state "limit" becomes known.
    """
    settings = copy.deepcopy(SITE | dict(site or {}))
    settings["controller"] = policy
    if settings.get("battery"):
        settings["battery"]["following"] = following
    raw: dict[str, Any] = {
        "name": "lab",
        "seed": seed,
        "duration_s": duration_s,
        "site": settings,
        "plant": {
            "fleet": [FLEET | dict(fleet or {}) | {"workload": FLEET["workload"] | dict(workload or {})}],
            "battery": {"reversion_megawatt_per_s": 0.3, "start_soc": start_soc} | dict(battery_plant or {}),
            "meter": dict(meter_plant or {}),
        },
        "events": [dict(e) for e in events_docs],
        "signals": [dict(s) for s in signals],
    }
    if facility is not None:
        raw["plant"]["facility"] = dict(facility)
    if state == "limit":
        by_s = LIMIT_BY_S + limit_from_s - LIMIT_FROM_S
        raw["signals"].append({"t_s": limit_from_s, "kind": "load_target", "megawatt": LIMIT_MEGAWATT, "by_s": by_s})
    if state == "ramp":
        raw["events"].append({"kind": "drop", "t_s": RAMP_FROM_S, "megawatt": 25, "within_s": 8.0})
    return parse_scenario(raw, Overrides(), origin="lab.yaml")
