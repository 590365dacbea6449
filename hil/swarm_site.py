"""Sites that the swarm draws: rates, meter, battery and nodes of a sound site, each within what devices are sold with.

The site of the matrix is one of them. What hides there may show on a meter that refreshes seldom or a battery that is
quicker: a software loop once swung by 40 MW on any meter that was not as quick as the bench's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controller.types import frozen
from hil.lab_site import SITE

VARIED_FROM = 1_000_000  # a seed from here on draws its site, too


@frozen
class Ground:
    """What of a site differs from the matrix's, as documents: of the site, of its GPUs and of the battery's plant."""

    site: Mapping[str, Any]
    fleet: Mapping[str, Any]
    battery_plant: Mapping[str, Any]


def draw_ground(seed: int) -> Ground:
    """The site of a seed: the battery can take what the job may drop, and the loop closes within half a second."""
    rng = np.random.default_rng([seed, 78])

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 3)

    def times(low: float, high: float) -> float:
        """Evenly by factors."""
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 4)

    def one_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    battery = {
        "charge_megawatt": between(26, 60),
        "discharge_megawatt": between(8, 30),
        "energy_megawatt_hour": between(3, 20),
        "soc_min": between(0.0, 0.15),
        "soc_max": between(0.85, 1.0),
        "efficiency_one_way": between(0.85, 0.99),
        "lag_s": times(0.01, 0.1),
        "follow_lag_s": times(0.01, 0.05),
        "ramp_megawatt_per_s": times(100, 1400),
        "own_ramp": one_of(True, False),
        "taper_soc": between(0.0, 0.1),
    }
    meter = {
        "delay_s": times(0.01, 0.1),
        "update_s": one_of(0.01, 0.02, 0.05, 0.1, 0.2),
        "nameplate_megawatt": between(100, 250),
    }
    commands = {
        "service_floor": between(0.1, 0.6),
        "grace_s": between(2, 20),
        "raise_dwell_s": between(2, 20),
        "ttl_periods": between(2, 10),
    }
    site = {
        "tracker_hz": one_of(5, 10, 20),
        "planner_hz": one_of(1, 2),
        "pcc_meter": SITE["pcc_meter"] | meter,
        "battery": SITE["battery"] | battery,
        "commands": commands,
    }
    fleet = {"reporting_nodes": one_of(1, 2, 4, 8), "fallback_clock_mhz": one_of(900, 1200, 1500)}
    return Ground(site=site, fleet=fleet, battery_plant={"reversion_megawatt_per_s": between(0.1, 1.0)})
