"""What no controller can have both of: bounds on regret where an event that nobody announces must not break a limit.

Each bound is an oracle that knows the future of its trace and yet must be ready, at every instant, for an event that
might come at the next one. A controller without foreknowledge acts alike in the world with the event and in the one
without it until the event is there; so whoever promises "no episode at such an event" keeps what this oracle keeps, and
loses no less. The least loss found here, less the plain oracle's, is regret that no such controller avoids.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from enum import StrEnum, unique

import numpy as np

from controller.types import FloatArray, frozen, replace
from hil.oracle import Oracle, OracleCase
from hil.regret_cases import case_named, make_world, oracle_case
from hil.regret_run import World
from hil.regret_trace import DUTY, LOW_PHASE_FRAC, STEP_S
from hil.regret_wave import highest_path_w

SETTLE_S = 150.0  # the energy at the start is given, not chosen: crashes are prepared for from here on


@unique
class Promise(StrEnum):
    """What is kept unbroken although nothing announces it."""

    CHECKPOINT = "checkpoint"  # of any one job that runs
    STOP = "stop"  # of the last job
    CRASH_ROOM = "crash-room"  # after the crash of the first job the battery does not run full: one episode, not two


@frozen
class Bound:
    """Regret in percentage points that keeping `promise` costs at least, mean and range over the seeds scored."""

    promise: Promise
    mean_pp: float
    least_pp: float
    most_pp: float
    seeds: int


def bounds(case_id: str, *, seeds: int, workers: int) -> tuple[Bound, ...]:
    """One bound per promise; seeds without any path that keeps it are left out."""
    found: dict[Promise, list[float]] = {promise: [] for promise in Promise}
    work = [(case_id, seed) for seed in range(1, seeds + 1)]
    for per_promise in _each(work, workers):
        for promise, regret_pp in per_promise.items():
            found[promise].append(regret_pp)
    return tuple(
        Bound(promise, sum(values) / len(values), min(values), max(values), len(values))
        for promise, values in found.items()
        if values
    )


def _each(work: list[tuple[str, int]], workers: int) -> Iterator[dict[Promise, float]]:
    if workers <= 1:
        yield from map(bounds_of_seed, work)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(bounds_of_seed, work)


def bounds_of_seed(job: tuple[str, int]) -> dict[Promise, float]:
    """Least regret of each promise on one seed, at equal final energy."""
    case = case_named(job[0])
    return bounds_of_world(make_world(case, job[1]), oracle_case(case, make_world(case, job[1])))


def bounds_of_world(world: World, free: OracleCase) -> dict[Promise, float]:
    demand_j = float(world.trace.demand_w.sum()) * STEP_S
    best = Oracle(free).solve(world.start_j)
    found: dict[Promise, float] = {}
    if best is None:
        return found
    for promise in Promise:
        answer = Oracle(bound_case(world, free, promise)).solve(world.start_j)
        if answer is not None:
            found[promise] = 100.0 * (answer.lost_j - best.lost_j) / demand_j
    return found


def bound_case(world: World, free: OracleCase, promise: Promise) -> OracleCase:
    """The oracle's world with what `promise` asks for at every instant."""
    if promise is Promise.CRASH_ROOM:
        return replace(free, crash_left_w=_load_after_crash_w(world))
    trace = world.trace
    load_w = trace.demand_w.sum(axis=0) + trace.base_w
    last = len(trace.jobs) - 1
    jobs = range(len(trace.jobs)) if promise is Promise.CHECKPOINT else (last,)
    highest_w = np.full(trace.steps, np.inf)
    for job in jobs:
        stays_w = LOW_PHASE_FRAC * trace.jobs[job].power_w if promise is Promise.CHECKPOINT else 0.0
        after_w = load_w - np.maximum(0.0, trace.demand_w[job] - stays_w)
        is_up = trace.level[job] >= (2.0 if promise is Promise.CHECKPOINT else 1.0)
        highest_w = np.where(is_up, np.minimum(highest_w, _ready_w(world, after_w)), highest_w)
    return replace(free, target_w_max=np.maximum(highest_w, _first_path_w(world)))


def _ready_w(world: World, after_w: FloatArray) -> FloatArray:
    """The highest target that `after_w`, the load from the next step on, lets the battery keep at its power."""
    fall_w = world.reserve.fall_w_per_s * STEP_S
    path_w = highest_path_w(after_w + world.reserve.battery.charge_w_max, fall_w=fall_w)
    ready: FloatArray = np.append(path_w[1:] + fall_w, np.inf)
    return ready


def _first_path_w(world: World) -> FloatArray:
    """The target that falls from its start as fast as it may: what no promise can forbid."""
    steps: FloatArray = 1.0 + np.arange(world.trace.steps, dtype=np.float64)
    return world.start_w - world.reserve.fall_w_per_s * STEP_S * steps


def _load_after_crash_w(world: World) -> FloatArray:
    """Mean load that the other jobs leave if the first one crashes now; inf where it does not run."""
    trace = world.trace
    mean_share = DUTY + (1.0 - DUTY) * LOW_PHASE_FRAC
    share = np.where(trace.level >= 2.0, mean_share, np.where(trace.level >= 1.0, LOW_PHASE_FRAC, 0.0))
    power_w = np.array([job.power_w for job in trace.jobs])[:, None]
    left_w = (share * power_w)[1:].sum(axis=0) + trace.base_w
    times = np.arange(trace.steps) * STEP_S
    after: FloatArray = np.where((trace.level[0] > 0.0) & (times >= SETTLE_S), left_w, np.inf)
    return after
