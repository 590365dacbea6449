"""What the grid is told of the next minutes: the plan's path, what could be shed, prices in GPU-seconds."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from controller.emergency import Armed
from controller.outlook import PATH_POINTS, outlook_of
from controller.plan.plan import OFFSET_S, Plan, PlanStatus, Price, PriceKind
from controller.tracker_io import TrackerOutput
from controller.types import BatterySample, BatteryState

TRACK = cast(TrackerOutput, SimpleNamespace(g_ref_w=60.0, low_w=-5.0, high_w=float("inf")))
ARMED = cast(Armed, SimpleNamespace(sheddable_w=12.0, busy_gpu_w=500.0))
BATTERY = BatterySample(0.0, 0.5, 30.0, 20.0, BatteryState.RUNNING, True, 0.0, False)


def plan(**changes: Any) -> Plan:
    zeros = np.zeros(OFFSET_S.size)
    made = Plan(
        t_s=100.0,
        offset_s=OFFSET_S,
        target_w=60.0 + 0.1 * OFFSET_S,
        cap_w=np.zeros(1),
        cap_path_w=np.zeros((1, OFFSET_S.size)),
        chosen_cap_w=np.zeros(1),
        battery_w=zeros,
        energy_path_j=zeros,
        prices=(Price(PriceKind.CEILING, 1000.0, False), Price(PriceKind.RAMP_DOWN, 50.0, True)),
        policy="mpc",
        status=PlanStatus.SOLVED,
        solve_ms=1.0,
    )
    return replace(made, **changes)


def told(given: Plan | None, *, armed: Armed | None = ARMED, battery: BatterySample | None = BATTERY) -> Any:
    return outlook_of(103.0, track=TRACK, plan=given, armed=armed, battery=battery, battery_j=7.2e6)


def test_the_path_is_what_is_left_of_the_plan_from_now_to_its_end() -> None:
    path = told(plan()).path
    assert path[0] == (0.0, 60.0) and len(path) <= PATH_POINTS + 1
    assert path[-1] == pytest.approx((117.0, 72.0))
    assert all(b[0] - a[0] > 0.0 for a, b in pairwise(path))
    assert all(w == pytest.approx(60.0 + 0.1 * (s + 3.0)) for s, w in path[1:])


def test_prices_are_gpu_seconds_and_keep_that_they_are_bounds() -> None:
    found = told(plan()).prices
    assert [(p.limit, p.gpu_s_per_w, p.is_bound) for p in found] == [("ceiling", 2.0, False), ("ramp_down", 0.1, True)]


def test_what_is_not_known_is_not_told() -> None:
    """No plan: the target alone. A plan that is no number: likewise. No GPUs: no prices. No battery: none."""
    assert told(None).path == ((0.0, 60.0),) and told(None).prices == ()
    assert told(plan(target_w=np.full(OFFSET_S.size, np.nan))).path == ((0.0, 60.0),)
    bare = told(plan(), armed=None, battery=None)
    assert (bare.prices, bare.sheddable_w) == ((), 0.0)
    assert (bare.battery_discharge_w, bare.battery_charge_w, bare.battery_j) == (0.0, 0.0, 0.0)
    assert bare.low_w == 0.0 and told(plan()).battery_j == 7.2e6
