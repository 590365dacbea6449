"""The six cases of the energy bench: battery, limits, reserve and what each asks of `mpc`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controller.reserve import BatteryBounds, CrashReserve
from controller.types import (
    CeilingLimit,
    Direction,
    FloatArray,
    Limit,
    LimitId,
    LimitStatus,
    Provenance,
    RampLimit,
    frozen,
)
from hil.oracle import OracleCase, WindowRow
from hil.regret_run import World
from hil.regret_trace import JOB_A, JOB_B, STEP_S, JobShape, ReferenceTrace, reference_trace

MEGA = 1e6
ETA = 0.95  # one way
SLOPE_W_PER_S = 0.1 * MEGA
POINT_S = 1e-6  # a window this short judges neighbouring points alone: the row counts per step
START_FRAC = 0.5  # of the battery
BENCH = Provenance("energy bench", "2026-06-01", LimitStatus.LOCAL)


@frozen
class Case:
    """One case. `goals` maps a variant to the largest mean regret in percentage points asked of mpc; None: no such."""

    case_id: str
    power_w: float
    energy_j: float
    has_reserve: bool = True
    is_rise_enforced: bool = False
    floor_w: float = 0.0
    windows: tuple[WindowRow, ...] = ()
    jobs: tuple[JobShape, ...] = (JOB_A, JOB_B)
    duration_s: float = 1200.0
    weight: tuple[float, ...] = (1.0, 1.0)
    tolerated_loss: tuple[float, ...] = (1.0, 1.0)
    ceiling_frac: float | None = None  # of the mean load before it, for 20 min in the middle
    goal_blind_pp: float | None = None
    goal_scheduled_pp: float | None = None


# Classes of `tiers`: one that tolerates nothing, one a tenth, one a half; weights as their owners would pay.
TIER_JOBS = (JobShape("steady", 3e6, 2.0), JobShape("tenth", 3e6, 2.9), JobShape("half", 3e6, 3.7))

CASES: tuple[Case, ...] = (
    Case("5-500", 5 * MEGA, 500 * MEGA, goal_blind_pp=0.10, goal_scheduled_pp=0.05),
    Case("4-500", 4 * MEGA, 500 * MEGA, goal_blind_pp=0.10),
    Case("4-500-floor", 4 * MEGA, 500 * MEGA, floor_w=2 * MEGA, goal_blind_pp=0.10, goal_scheduled_pp=0.03),
    Case("3-120-free", 3 * MEGA, 120 * MEGA, has_reserve=False, goal_blind_pp=0.5, goal_scheduled_pp=0.5),
    Case(
        "tiers",
        5 * MEGA,
        500 * MEGA,
        jobs=TIER_JOBS,
        duration_s=2400.0,
        weight=(4.0, 2.0, 1.0),
        tolerated_loss=(0.0, 0.1, 0.5),
        ceiling_frac=0.75,
    ),
    Case(
        "two-sided",
        5 * MEGA,
        250 * MEGA,
        is_rise_enforced=True,
        windows=(WindowRow(2 * MEGA, 60.0), WindowRow(0.5 * MEGA, 15.0)),
        goal_blind_pp=0.3,
        goal_scheduled_pp=0.3,
    ),
)
TIER_WINDOW_S = 600.0
CEILING_FROM_S, CEILING_UNTIL_S = 600.0, 1800.0


def case_named(case_id: str) -> Case:
    return next(case for case in CASES if case.case_id == case_id)


def make_world(case: Case, seed: int, *, shrink: float = 1.0) -> World:
    """The world of `case` and `seed`; `shrink` below 1 shortens the trace for tests."""
    trace = reference_trace(seed, duration_s=case.duration_s * shrink, jobs=case.jobs)
    battery = BatteryBounds(
        charge_w_max=case.power_w,
        discharge_w_max=case.power_w,
        energy_j_min=0.0,
        energy_j_max=case.energy_j,
        taper_j=0.0,
        eta=ETA,
    )
    limits, slope, ceiling = _limits(case, trace, shrink)
    reserve = CrashReserve(battery, slope, slope)
    start_j = START_FRAC * case.energy_j
    first_w = float(trace.demand_w[:, : round(5.0 / STEP_S)].sum(axis=0).mean()) + trace.base_w
    left_w = trace.base_w + case.floor_w
    safe_w = left_w + reserve.surplus_safe_w(start_j) if case.has_reserve else first_w
    start_w = min(first_w, safe_w)
    if case.is_rise_enforced:
        start_w = max(start_w, min(safe_w, first_w - reserve.rise_cover_w(start_j)))
    return World(
        trace=trace,
        limits=limits,
        reserve=reserve,
        has_reserve=case.has_reserve,
        is_rise_enforced=case.is_rise_enforced,
        floor_w=case.floor_w,
        start_w=start_w,
        start_j=start_j,
        weight=np.array(case.weight),
        tolerated_loss=np.array(case.tolerated_loss),
        tier_window_s=TIER_WINDOW_S * shrink,
        ceiling_w=ceiling,
    )


def oracle_case(case: Case, world: World) -> OracleCase:
    """The same world as the oracle sees it."""
    return OracleCase(
        step_s=STEP_S,
        demand_w=world.trace.demand_w,
        weight=world.weight,
        base_w=world.trace.base_w,
        reserve=world.reserve,
        load_left_w=world.load_left_w if world.has_reserve else None,
        is_rise_enforced=world.is_rise_enforced,
        floor_w=world.floor_w,
        slope_w_per_s=None if case.windows else SLOPE_W_PER_S,
        windows=case.windows,
        ceiling_w=world.ceiling_w,
        start_w=world.start_w,
        start_j=world.start_j,
    )


def _limits(case: Case, trace: ReferenceTrace, shrink: float) -> tuple[tuple[Limit, ...], float, FloatArray | None]:
    """The contract's rows, the slope they let through for ever, and the ceiling per step."""
    row: Callable[[str, float, float], RampLimit] = lambda name, max_w, window_s: RampLimit(  # noqa: E731
        LimitId(name), max_w, window_s, Direction.BOTH, 0.0, BENCH
    )
    limits: list[Limit] = [row(f"within-{w.window_s:g}s", w.max_w, w.window_s) for w in case.windows]
    slope = min((w.max_w / (w.window_s + STEP_S) for w in case.windows), default=SLOPE_W_PER_S)
    if not case.windows:
        limits.append(row("per-step", SLOPE_W_PER_S * STEP_S, POINT_S))
    if case.ceiling_frac is None:
        return tuple(limits), slope, None
    from_s, until_s = CEILING_FROM_S * shrink, CEILING_UNTIL_S * shrink
    before = trace.demand_w[:, : round(from_s / STEP_S)].sum(axis=0).mean() + trace.base_w
    max_w = float(case.ceiling_frac * before)
    limits.append(CeilingLimit(LimitId("ceiling"), max_w, from_s, BENCH, 0.0, until_s))
    times = (np.arange(trace.steps) + 1) * STEP_S
    ceiling: FloatArray = np.where((times >= from_s) & (times < until_s), max_w, np.inf)
    return tuple(limits), slope, ceiling
