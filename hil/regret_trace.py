"""Reference load of the energy bench: two synchronous jobs that iterate, checkpoint, start, stop and crash.

Every draw comes from the seed. Per-job uncapped power on a 0.1 s grid, the events that made it, and which of them a
schedule would announce. Job powers come on top of what idle GPUs draw.
"""

from __future__ import annotations

from enum import StrEnum, unique

import numpy as np

from controller.types import FloatArray, frozen

STEP_S = 0.1
LOW_PHASE_FRAC = 0.4  # of a job's power: in the communication phase, and all through a checkpoint
DUTY = 0.6
NOISE_FRAC = 0.02
CHECKPOINTS = 10
CHECKPOINT_S = (11.0, 60.0)


@unique
class EventKind(StrEnum):
    START = "start"
    STOP = "stop"
    CHECKPOINT = "checkpoint"
    CRASH = "crash"
    RESTART = "restart"


@frozen
class JobShape:
    """A synchronous job: full power, iteration period."""

    name: str
    power_w: float
    period_s: float


@frozen
class Event:
    kind: EventKind
    job: int
    from_s: float
    until_s: float  # end of a checkpoint or of the down time after a crash; else equal to from_s


@frozen
class ReferenceTrace:
    """`demand_w` is (jobs, steps); `level` is (jobs, steps): 0 down, 1 checkpoint, 2 running."""

    seed: int
    jobs: tuple[JobShape, ...]
    demand_w: FloatArray
    level: FloatArray
    announced: FloatArray  # level as a schedule knows it: crashes and restarts unknown
    events: tuple[Event, ...]
    idle_w: float
    other_w: float

    @property
    def steps(self) -> int:
        return int(self.demand_w.shape[1])

    @property
    def duration_s(self) -> float:
        return self.steps * STEP_S

    @property
    def base_w(self) -> float:
        """What stays when every job is gone."""
        return self.idle_w + self.other_w


JOB_A = JobShape("a", 6e6, 2.0)
JOB_B = JobShape("b", 3e6, 3.7)


def reference_trace(
    seed: int, *, duration_s: float = 1200.0, jobs: tuple[JobShape, ...] = (JOB_A, JOB_B)
) -> ReferenceTrace:
    """The trace of `seed`. Job 0 runs throughout and crashes once; the last job starts and stops; all checkpoint.

    The times scale with `duration_s`; the number and length of checkpoints do not.
    """
    rng = np.random.default_rng([seed, 20260601])
    steps = round(duration_s / STEP_S)
    t_s: FloatArray = np.arange(steps, dtype=np.float64) * STEP_S
    announced = np.full((len(jobs), steps), 2.0)
    events: list[Event] = []

    last = len(jobs) - 1
    start_s = float(rng.uniform(0.05, 0.25)) * duration_s
    stop_s = float(rng.uniform(0.70, 0.92)) * duration_s
    announced[last, (t_s < start_s) | (t_s >= stop_s)] = 0.0
    events += [Event(EventKind.START, last, start_s, start_s), Event(EventKind.STOP, last, stop_s, stop_s)]

    for _ in range(CHECKPOINTS):
        checkpoint = _place_checkpoint(rng, announced, t_s, duration_s=duration_s)
        if checkpoint is not None:
            events.append(checkpoint)

    level = announced.copy()
    crash_s = float(rng.uniform(0.15, 0.85)) * duration_s
    down_s = float(rng.uniform(60.0, 180.0))
    level[0, (t_s >= crash_s) & (t_s < crash_s + down_s)] = 0.0
    events.append(Event(EventKind.CRASH, 0, crash_s, min(crash_s + down_s, duration_s)))
    if crash_s + down_s < duration_s:
        events.append(Event(EventKind.RESTART, 0, crash_s + down_s, crash_s + down_s))

    demand = np.zeros_like(level)
    for index, job in enumerate(jobs):
        phase = ((t_s + rng.uniform(0.0, job.period_s)) % job.period_s) / job.period_s
        wave = np.where(phase < DUTY, 1.0, LOW_PHASE_FRAC)
        share = np.where(level[index] >= 2.0, wave, np.where(level[index] >= 1.0, LOW_PHASE_FRAC, 0.0))
        noise = 1.0 + NOISE_FRAC * rng.standard_normal(steps)
        demand[index] = np.maximum(0.0, job.power_w * share * noise)
    return ReferenceTrace(
        seed=seed,
        jobs=jobs,
        demand_w=demand,
        level=level,
        announced=announced,
        events=tuple(sorted(events, key=lambda event: event.from_s)),
        idle_w=1.5e6,
        other_w=2e6,
    )


def _place_checkpoint(
    rng: np.random.Generator, announced: FloatArray, t_s: FloatArray, *, duration_s: float
) -> Event | None:
    """Put one checkpoint where its job runs and no other checkpoint of it is near; None if 50 draws find no place."""
    jobs = announced.shape[0]
    for _ in range(50):
        job = int(rng.integers(jobs))
        length_s = float(rng.uniform(*CHECKPOINT_S))
        from_s = float(rng.uniform(0.02 * duration_s, duration_s - length_s))
        near = (t_s >= from_s - 5.0) & (t_s < from_s + length_s + 5.0)
        if bool((announced[job, near] >= 2.0).all()):
            announced[job, (t_s >= from_s) & (t_s < from_s + length_s)] = 1.0
            return Event(EventKind.CHECKPOINT, job, from_s, from_s + length_s)
    return None
