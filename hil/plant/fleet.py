"""GPUs by the thousand as a few groups: clocks that move as real ones do, and what power and work follow from them.

A group is the GPUs behind one reporting node and the nodes it stands for; they share caps. Groups of one synchronous
job advance at the pace of the slowest, and the faster ones wait. Curves are those of `gpu_models`; the controller never
sees them and has to find its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from controller.types import FloatArray, frozen
from hil.plant.gpu_models import GpuModel
from hil.plant.workload import Activity, Workload

# Measured on a V100 whose power limit was moved: lower takes effect at once and is settled about 50 ms after the call
# returned; higher starts after about 110 ms and closes 54, 80 and 95 % of the way at 0.22, 0.34 and 0.53 s.
LOWER_DELAY_S, LOWER_LAG_S = 0.020, 0.015
RAISE_DELAY_S, RAISE_LAG_S = 0.110, 0.140
SETTLED_FRAC = 1e-5  # of the clock range; nearer than this a clock counts as arrived
WAITING_POWER_FRAC = 0.35  # of a group's dynamic power while it waits at a barrier: spinning, not computing
ACTIVE_FRAC = 0.02  # a job whose dynamic power is below this share of its peak wants no GPU time


@dataclass(slots=True)
class Job:
    """One job class on its GPUs, and how far its work has come."""

    class_id: str
    kind: GpuModel
    gpus: int
    workload: Workload
    activity: Activity  # of its GPUs
    other_activity: Activity  # of its power beside the GPUs
    work_s: float = 0.0
    demand_gpu_s: float = 0.0
    done_gpu_s: float = 0.0
    idle_w: float = field(init=False)
    dynamic_w_max: float = field(init=False)

    def __post_init__(self) -> None:
        self.idle_w = self.kind.idle_w * self.gpus
        self.dynamic_w_max = max(self.workload.gpu_w_max - self.idle_w, 1.0)


@frozen
class Group:
    """GPUs that share caps: `count` of them, working on job number `job`."""

    node_id: str
    job: int
    count: int


@frozen
class FleetBlock:
    """Power over a run of steps: per group (groups x n), and beside the GPUs (n)."""

    group_w: FloatArray
    other_w: FloatArray


@frozen
class _Drive:
    """What clocks make of one job: its pace, and each group's share of the dynamic power wanted."""

    pace: FloatArray
    dynamic_share: FloatArray


class Fleet:
    """All groups and jobs. Clock targets are set by `steer`, after the dead time the caller schedules."""

    def __init__(self, jobs: tuple[Job, ...], groups: tuple[Group, ...]) -> None:
        self.jobs, self.groups = jobs, groups
        self._of_job = [
            np.array([k for k, g in enumerate(groups) if g.job == j], dtype=np.int64) for j in range(len(jobs))
        ]
        for job, members in zip(jobs, self._of_job, strict=True):
            assert sum(groups[k].count for k in members) == job.gpus, (
                f"{job.class_id}: groups do not add up to its GPUs"
            )
        self.clock_frac = np.ones(len(groups))
        self._target = np.ones(len(groups))
        self._lag_s = np.full(len(groups), RAISE_LAG_S)
        self._limit_w = np.array([jobs[g.job].kind.limit_w_max for g in groups])
        self._share_of_job = np.array([g.count / jobs[g.job].gpus for g in groups])
        self._shares = [self._share_of_job[members][:, None] for members in self._of_job]
        self._drives: list[_Drive | None] = [None] * len(jobs)  # while no clock moves
        self._is_moving = False
        self._is_limited = False
        self._is_still = True  # neither, in this block
        self._dynamic_w = [np.zeros(1)] * len(jobs)  # of the last block, what a power limiter reacts to

    def dead_time_s(self, group: int, clock_frac: float) -> float:
        """How long after the call a clock begins to move."""
        return RAISE_DELAY_S if clock_frac > self._target[group] else LOWER_DELAY_S

    def steer(self, group: int, clock_frac: float) -> None:
        """Let `group`'s clocks go to `clock_frac` from now on."""
        kind = self.jobs[self.groups[group].job].kind
        low = kind.clock_mhz_min / kind.clock_mhz_max
        self._target[group] = min(max(clock_frac, low), 1.0)
        self._lag_s[group] = RAISE_LAG_S if self._target[group] > self.clock_frac[group] else LOWER_LAG_S
        self._is_moving = True

    def limit_power(self, group: int, limit_w: float) -> None:
        """Set the power limit of each GPU of `group`; the limiter reacts to the power of the block before."""
        kind = self.jobs[self.groups[group].job].kind
        self._limit_w[group] = min(max(limit_w, kind.limit_w_min), kind.limit_w_max)
        tops = np.array([self.jobs[g.job].kind.limit_w_max for g in self.groups])
        self._is_limited = bool(np.any(self._limit_w < tops))

    def power_limit_w(self, group: int) -> float:
        return float(self._limit_w[group])

    @property
    def gpus(self) -> int:
        return sum(job.gpus for job in self.jobs)

    @property
    def idle_w(self) -> float:
        return sum(job.idle_w for job in self.jobs)

    def work(self) -> tuple[float, float]:
        """GPU-seconds wanted and done since the start."""
        return sum(j.demand_gpu_s for j in self.jobs), sum(j.done_gpu_s for j in self.jobs)

    def advance(self, t_s: FloatArray, *, dt_s: float) -> FleetBlock:
        """Power at each instant of `t_s` (the ends of equal steps), moving clocks and work to the last."""
        self._is_still = not (self._is_moving or self._is_limited)
        if not self._is_still:
            self._drives = [None] * len(self.jobs)
        clocks = self._clocks(t_s.size, dt_s)
        if len(self.jobs) == 1:
            return FleetBlock(*self._advance_job(0, self.jobs[0], clocks, t_s, dt_s=dt_s))
        group_w = np.empty((len(self.groups), t_s.size))
        other_w = np.zeros(t_s.size)
        for index, job in enumerate(self.jobs):
            members = self._of_job[index]
            power_w, beside_w = self._advance_job(index, job, clocks[members], t_s, dt_s=dt_s)
            group_w[members] = power_w
            other_w += beside_w
        return FleetBlock(group_w=group_w, other_w=other_w)

    def _clocks(self, n: int, dt_s: float) -> FloatArray:
        """Clock fraction of each group over the block: one column when nothing moves."""
        if not self._is_moving:
            return self._limited(self.clock_frac[:, None])
        steps_s = dt_s * _steps(n)
        gap = (self.clock_frac - self._target)[:, None] * np.exp(-steps_s[None, :] / self._lag_s[:, None])
        clocks: FloatArray = self._target[:, None] + gap
        self.clock_frac = clocks[:, -1].copy()
        if float(np.abs(gap[:, -1]).max()) < SETTLED_FRAC:
            self.clock_frac[:] = self._target
            self._is_moving = False
        return self._limited(clocks)

    def _limited(self, clocks: FloatArray) -> FloatArray:
        """The lower of locked clock and what the power limiter allows."""
        if not self._is_limited:
            return clocks
        result = clocks.copy()
        means_w = [float(dynamic_w.sum()) / dynamic_w.size for dynamic_w in self._dynamic_w]
        for k, group in enumerate(self.groups):
            job = self.jobs[group.job]
            per_gpu_w = means_w[group.job] / job.gpus
            room_w = self._limit_w[k] - job.kind.idle_w
            if per_gpu_w > room_w:
                result[k] = np.minimum(result[k], job.kind.clock_for_share(room_w / per_gpu_w))
        return result

    def _advance_job(
        self, index: int, job: Job, clocks: FloatArray, t_s: FloatArray, *, dt_s: float
    ) -> tuple[FloatArray, FloatArray]:
        """Power of the job's groups (members x n) and beside its GPUs (n)."""
        work = job.workload
        drive = self._drive_of(index, job, clocks)
        alive = _activity(job.activity, t_s)
        other_alive = _activity(job.other_activity, t_s)
        if work.is_wall_timed:
            at_s = t_s
        else:
            at_s = job.work_s + _progress(drive.pace, alive, t_s.size, dt_s)
            job.work_s = float(at_s[-1])
        wanted_w, beside_w = work.demand_w(at_s)
        dynamic_w = _of_alive(np.maximum(wanted_w - job.idle_w, 0.0), alive)
        static_w = np.minimum(wanted_w, job.idle_w)
        self._account(job, dynamic_w, alive, drive.pace, dt_s=dt_s)
        self._dynamic_w[index] = dynamic_w
        group_w = self._shares[index] * static_w + drive.dynamic_share * dynamic_w
        return group_w, _of_alive(beside_w, other_alive) + work.other_base_w

    def _drive_of(self, index: int, job: Job, clocks: FloatArray) -> _Drive:
        """Pace and power shares at these clocks; computed anew only when clocks move."""
        known = self._drives[index]
        if known is not None:
            return known
        pace, group_pace = self._pace(job.workload, job.kind, clocks)
        busy = WAITING_POWER_FRAC + (1.0 - WAITING_POWER_FRAC) * pace / group_pace
        drive = _Drive(pace, self._shares[index] * (job.kind.power_share(clocks) * busy))
        if self._is_still:
            self._drives[index] = drive
        return drive

    @staticmethod
    def _pace(work: Workload, kind: GpuModel, clocks: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Progress per second of the job and of each group alone; a barrier makes the slowest group's the job's."""
        group_pace = kind.pace(clocks, clock_bound_frac=work.clock_bound_frac)
        if work.is_synchronous:
            return group_pace.min(axis=0), group_pace
        mean = group_pace.mean(axis=0)
        return mean, mean  # nobody waits for anybody

    @staticmethod
    def _account(job: Job, dynamic_w: FloatArray, alive: FloatArray | float, pace: FloatArray, *, dt_s: float) -> None:
        """GPU-seconds wanted and done over the block."""
        is_active = dynamic_w > ACTIVE_FRAC * job.dynamic_w_max
        is_whole = isinstance(alive, float) and alive == 1.0 and pace.size == 1 and pace[0] == 1.0
        if is_whole and not job.workload.is_wall_timed:
            gpu_s = float(np.count_nonzero(is_active)) * job.gpus * dt_s  # all that is wanted is done
            job.demand_gpu_s += gpu_s
            job.done_gpu_s += gpu_s
            return
        wants = is_active * alive
        if job.workload.is_wall_timed:
            # Requests occupy GPUs in proportion to their power above idle; slower GPUs serve fewer of them when full.
            wants = wants * np.minimum(dynamic_w / job.dynamic_w_max, 1.0)
        job.demand_gpu_s += float(wants.sum()) * job.gpus * dt_s
        job.done_gpu_s += float((wants * pace).sum()) * job.gpus * dt_s


def _progress(pace: FloatArray, alive: FloatArray | float, n: int, dt_s: float) -> FloatArray:
    """Work done by the end of each step; a dead job makes none."""
    if isinstance(alive, float):
        if alive <= 0.0:
            return np.zeros(n)
        if pace.size == 1:
            return _steps(n) * (dt_s * float(pace[0]))
    result: FloatArray = dt_s * np.cumsum(np.broadcast_to(pace, (n,)) * np.asarray(alive > 0.0))
    return result


@lru_cache(maxsize=256)
def _steps(n: int) -> FloatArray:
    return np.arange(1, n + 1, dtype=np.float64)


def _activity(activity: Activity, t_s: FloatArray) -> FloatArray | float:
    return activity.share if activity.is_settled(float(t_s[0])) else activity.at(t_s)


def _of_alive(power_w: FloatArray, alive: FloatArray | float) -> FloatArray:
    """What is drawn by the part of a job that is alive, which is nearly always all of it."""
    return power_w if isinstance(alive, float) and alive == 1.0 else power_w * alive
