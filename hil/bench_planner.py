"""`rampart bench planner`: one decision from telemetry to clocks at fleet size, beside CVXPY and the bare solver.

End to end is what the daemon does at the planner's rate: per-GPU telemetry to class demand, plan, class caps to a clock
per GPU. Beside it, on the same data: the same model through `problem.solve`, and the bare update and solve. Apart,
because the daemon spreads them over the ticks in which reports come and turns are due: every node's report read once,
and a command built for every node.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections import deque
from pathlib import Path

import numpy as np

from controller.allocate import Curves, clocks_of_caps, held_back_w
from controller.config.gpu import load_curves
from controller.demand import DemandWindow, split_demand
from controller.fleet import Fleet, FleetReader
from controller.node_commands import node_commands
from controller.parting import NodeParting, job_groups
from controller.plan.model import build_problem
from controller.plan.plan import OFFSET_S, STEPS, JobClass, PlanInput
from controller.plan.shape import PlannerShape, planner_shape
from controller.plan.solve import MpcPlanner
from controller.planner_start import map_in_place
from controller.reserve import BatteryBounds, CrashReserve
from controller.types import (
    AgentState,
    ClassId,
    FleetTable,
    FloatArray,
    GpuId,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    Stamp,
    frozen,
)

SIZES = (8, 1_000, 10_000, 100_000)
CLASSES = 4
IDLE_W, PEAK_W = 75.0, 700.0  # H100 SXM
SLOPE_FRAC_PER_S = 1.0 / 180.0  # of the site's peak: 20 MW in 60 s for a 60 MW site
CYCLES, CVXPY_CYCLES, WARM_UP, WIRE_CYCLES = 300, 20, 20, 8
GPUS_PER_NODE = 8


@frozen
class Row:
    """Milliseconds of one fleet size; `cpu_` is the process's own time, which other load changes little."""

    gpus: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cvxpy_p50_ms: float
    solver_p50_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    cpu_cvxpy_p50_ms: float
    cpu_solver_p50_ms: float
    reports_p50_ms: float  # process time to read a fresh report of every node
    commands_p50_ms: float  # process time to build a command for every node
    rss_first_mb: float  # resident memory after a tenth of the cycles, and at their end
    rss_last_mb: float


def run(*, sizes: tuple[int, ...] = SIZES, cycles: int = CYCLES) -> list[Row]:
    """One row per fleet size."""
    return [_measure(size, cycles) for size in sizes]


def _measure(gpus: int, cycles: int) -> Row:
    bench = _Bench(gpus, seed=1)
    spent = np.empty((cycles, 2))
    rss_first_mb = 0.0
    for step in range(WARM_UP + cycles):
        found = bench.cycle(step)
        if step >= WARM_UP:
            spent[step - WARM_UP] = found
        if step == WARM_UP + cycles // 10:
            rss_first_mb = _rss_mb()
    rss_last_mb = _rss_mb()
    spent *= 1e3
    wire = np.array(bench.wire_s()) * 1e3
    through_cvxpy = np.array(bench.cvxpy_s()) * 1e3
    bare = np.array(bench.solver_s) * 1e3
    return Row(
        gpus=gpus,
        p50_ms=float(np.percentile(spent[:, 0], 50)),
        p99_ms=float(np.percentile(spent[:, 0], 99)),
        max_ms=float(spent[:, 0].max()),
        cvxpy_p50_ms=float(np.median(through_cvxpy[:, 0])),
        solver_p50_ms=float(np.median(bare[:, 0])),
        cpu_p50_ms=float(np.percentile(spent[:, 1], 50)),
        cpu_p99_ms=float(np.percentile(spent[:, 1], 99)),
        cpu_cvxpy_p50_ms=float(np.median(through_cvxpy[:, 1])),
        cpu_solver_p50_ms=float(np.median(bare[:, 1])),
        reports_p50_ms=float(np.median(wire[:, 0])),
        commands_p50_ms=float(np.median(wire[:, 1])),
        rss_first_mb=rss_first_mb,
        rss_last_mb=rss_last_mb,
    )


def _rss_mb() -> float:
    """Resident memory of this process now; its peak where /proc is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


class _Stopwatch:
    """Wall and process time since it was made, seconds."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s


class _Bench:
    """A fleet, its planner and made-up telemetry of jobs that iterate."""

    def __init__(self, gpus: int, *, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._fleet = _fleet(gpus)
        self._curves = Curves.of(self._fleet.models, load_curves())
        self._peak_w = gpus * PEAK_W * 1.25
        self._other_w = 0.25 * gpus * PEAK_W
        slope = SLOPE_FRAC_PER_S * self._peak_w
        self._battery = BatteryBounds(
            charge_w_max=0.7 * self._peak_w,
            discharge_w_max=0.7 * self._peak_w,
            energy_j_min=0.0,
            energy_j_max=0.7 * self._peak_w * 1800.0,
            taper_j=0.05 * 0.7 * self._peak_w * 1800.0,
            eta=0.95,
        )
        self._reserve = CrashReserve(self._battery, slope, slope)
        self._shape: PlannerShape = planner_shape(
            classes=CLASSES,
            battery=self._battery,
            fall_w_per_s=slope,
            rise_w_per_s=slope,
            is_rise_enforced=False,
            peak_w=self._peak_w,
        )
        self._planner = MpcPlanner(self._shape, map_in_place(self._shape.model))
        self._window = DemandWindow(peak_w=self._peak_w)
        self._given: deque[PlanInput] = deque(maxlen=CVXPY_CYCLES + 1)
        self._target_w = 0.7 * self._peak_w
        self.solver_s: deque[tuple[float, float]] = deque(maxlen=2_000)
        self.sink = 0.0  # keeps results alive

    def cycle(self, step: int) -> tuple[float, float]:
        """Wall and process seconds from telemetry to clocks."""
        count, now_s = self._fleet.count, float(step)
        busy = 0.55 + 0.4 * self._rng.random() + 0.05 * self._rng.random(count)
        power_w = IDLE_W + (PEAK_W - IDLE_W) * np.minimum(busy, 1.0)
        clock_mhz = np.full(count, float(self._fleet.table.cap_max[0][0]) * (0.8 + 0.2 * self._rng.random()))
        watch = _Stopwatch()
        held_w = held_back_w(self._fleet, self._curves, power_w=power_w, clock_cap_mhz=clock_mhz)
        class_w = self._fleet.by_class(power_w)
        self._window.add(now_s, float(class_w.sum()) + self._other_w)
        demand = split_demand(self._window.stretch(), class_w=class_w, held_back_w=held_w, other_w=self._other_w)
        given = self._input(now_s, demand.class_w, demand.ripple_up_w, demand.ripple_down_w)
        plan = self._planner.plan(given)
        clocks = clocks_of_caps(self._fleet, self._curves, cap_w=plan.cap_w, peak_w=demand.class_w)
        spent = watch.read()
        self.sink += float(clocks[0])
        self.solver_s.append(self._bare_solve_s())
        self._given.append(given)
        return spent

    def _input(self, now_s: float, class_w: FloatArray, up_w: float, down_w: float) -> PlanInput:
        idle_w = self._fleet.class_idle_w
        slope = self._reserve.fall_w_per_s
        # Deficits come and go, so that the solver meets idle and binding rows.
        energy_j = self._battery.energy_j_max * (0.5 + 0.49 * np.sin(now_s / 17.0))
        classes = tuple(
            JobClass(
                class_id=ClassId(f"class-{k}"),
                priority=50,
                weight=1.0 + k,
                cap_w_min=float(idle_w[k]),
                loss_left_j=0.1 * float(class_w[k]) * 120.0,
                peak_w=PEAK_W * self._fleet.count / CLASSES,
            )
            for k in range(CLASSES)
        )
        return PlanInput(
            t_s=now_s,
            classes=classes,
            demand_w=np.repeat(class_w[:, None], STEPS, axis=1),
            other_w=np.full(STEPS, self._other_w),
            ripple_up_w=np.full(STEPS, up_w),
            ripple_down_w=np.full(STEPS, down_w),
            target_w=self._target_w,
            low_w=self._target_w - slope * OFFSET_S,
            high_w=self._target_w + slope * OFFSET_S,
            ceiling_w=np.full(STEPS, np.inf),
            slope_down_w_per_s=slope,
            slope_up_w_per_s=slope,
            energy_j=float(energy_j),
            reserve=self._reserve,
            load_left_w=np.full(STEPS, self._other_w + float(idle_w.sum())),
            load_return_w=np.full(STEPS, self._other_w + self._fleet.count * PEAK_W),
            contingency_ripple_w=0.0,
            spent_w=0.0,
            spent_rise_w=0.0,
            is_rise_enforced=False,
        )

    def _bare_solve_s(self) -> tuple[float, float]:
        """The bare update and solve, again on the data of the plan just made."""
        watch = _Stopwatch()
        self._planner.solve_again()
        return watch.read()

    def wire_s(self) -> list[tuple[float, float]]:
        """Process seconds to read fresh reports of all nodes, and to build a command for each of them."""
        reader, caps = (
            FleetReader(self._fleet, epoch=1),
            np.vstack((self._fleet.table.floor_mhz, self._fleet.table.peak_w)),
        )
        spent, groups = [], job_groups(self._fleet)
        for cycle in range(WIRE_CYCLES):
            nodes = _reports(self._fleet, t_s=float(cycle), power_w=np.full(self._fleet.count, 500.0 + cycle))
            watch = _Stopwatch()
            reader.read(nodes)
            read_s = watch.read()[1]
            commands = node_commands(
                nodes,
                self._fleet,
                caps,
                stamp=Stamp(1, cycle, 5.0),
                parting=NodeParting(self._reserve.fall_w_per_s, 0.0, 0.0),
                groups=groups,
                is_release=False,
            )
            spent.append((read_s, watch.read()[1] - read_s))
            self.sink += len(commands)
        return spent

    def cvxpy_s(self) -> list[tuple[float, float]]:
        """The same model and numbers through `problem.solve`, its parameters set by name."""
        problem = build_problem(self._shape.model)
        spent = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for given in self._given:
                values = self._planner.parameters_of(given)
                watch = _Stopwatch()
                for parameter in problem.parameters():
                    value = values[parameter.name()]
                    parameter.value = value.reshape(parameter.shape) if parameter.shape else float(value[0])
                problem.solve(solver="PIQP")
                spent.append(watch.read())
        return spent[1:]


def _fleet(gpus: int) -> Fleet:
    """`gpus` H100s in CLASSES classes of equal size; the smallest fleets leave some classes empty."""
    ids = tuple(GpuId(f"gpu-{i}") for i in range(gpus))
    table = FleetTable(
        gpu_ids=ids,
        index={gpu_id: i for i, gpu_id in enumerate(ids)},
        spans={
            NodeId(f"node-{start // GPUS_PER_NODE:05d}"): slice(start, min(start + GPUS_PER_NODE, gpus))
            for start in range(0, gpus, GPUS_PER_NODE)
        },
        cap_min=np.vstack((np.full(gpus, 345.0), np.full(gpus, 200.0))),
        cap_max=np.vstack((np.full(gpus, 1980.0), np.full(gpus, PEAK_W))),
        floor_mhz=np.full(gpus, 345.0 + 0.3 * (1980.0 - 345.0)),
        idle_w=np.full(gpus, IDLE_W),
        peak_w=np.full(gpus, PEAK_W),
        stands_for=np.ones(gpus),
        power_exponent=1.0,
    )
    return Fleet(
        table=table,
        class_ids=tuple(ClassId(f"class-{k}") for k in range(CLASSES)),
        class_index=np.arange(gpus, dtype=np.int64) * CLASSES // gpus,
        models=("NVIDIA H100 80GB HBM3",) * gpus,
        job_index=np.arange(gpus, dtype=np.int64) * CLASSES // gpus,
        job_names=tuple(f"job-{k}" for k in range(CLASSES)),
    )


def _reports(fleet: Fleet, *, t_s: float, power_w: FloatArray) -> tuple[Reading[NodeReport], ...]:
    """A fresh report of every node."""
    table = fleet.table
    found = []
    for node_id, span in table.spans.items():
        count = span.stop - span.start
        report = NodeReport(
            node_id=node_id,
            boot_id="boot",
            t_mono_s=t_s,
            state=AgentState.ARMED,
            stands_for=1,
            gpu_ids=table.gpu_ids[span],
            power_w=power_w[span],
            clock_mhz=table.cap_max[0, span],
            clock_cap_mhz=table.cap_max[0, span],
            power_limit_w=table.cap_max[1, span],
            quality=np.zeros(count, dtype=np.int8),
            is_controllable=np.ones(count, dtype=np.bool_),
            other_w=2000.0,
            acked_epoch=1,
            acked_seq=1,
            specs=(),
            fallback_clock_mhz=1000.0,
        )
        found.append(Reading(report, t_s, Quality.GOOD, "bench"))
    return tuple(found)
