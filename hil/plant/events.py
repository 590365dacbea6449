"""What happens to a plant from outside: jobs that start, stop or crash, sags, lost generators, battery trips.

Each function changes the plant at the instant it is called; the bench schedules it there. An event that removes a block
of power says how large it was, so that its effect on the grid can be judged alone.
"""

from __future__ import annotations

import numpy as np

from controller.types import frozen
from hil.plant.fleet import Job
from hil.plant.site import SitePlant

FULL_LOAD_FRAC = 0.95  # of the job's greatest draw
FULL_LOAD_S = 0.3  # of work: longer than a follower needs to settle


@frozen
class Drop:
    """A block of load that left: how much, and within what time."""

    t_s: float
    drop_w: float
    within_s: float


def drop_load(plant: SitePlant, job: Job, *, block_w: float | None, within_s: float) -> Drop:
    """Take `block_w` off the job within `within_s`: its GPUs first, then the power that comes with them.

    None takes what the GPUs draw above idle: a server whose job died keeps most of its other power (8 x H100 idle at
    2.1 kW, of which the GPUs are 0.6). A block larger than the job takes the job.
    """
    now_s = plant.now_s
    gpu_w, other_w = _living_w(job)
    wanted_w = gpu_w if block_w is None else min(block_w, gpu_w + other_w)
    from_gpu_w = min(wanted_w, gpu_w)
    from_other_w = min(wanted_w - from_gpu_w, other_w)
    gpu_share = job.activity.share * (1.0 - _ratio(from_gpu_w, gpu_w))
    other_share = job.other_activity.share * (1.0 - _ratio(from_other_w, other_w))
    job.activity.move(t_s=now_s, share=gpu_share, within_s=within_s)
    job.other_activity.move(t_s=now_s, share=other_share, within_s=within_s)
    return Drop(t_s=now_s, drop_w=from_gpu_w + from_other_w, within_s=within_s)


def is_at_full_load(job: Job) -> bool:
    """The job draws its most, and has for a while: the worst phase of its iterations for a follower."""
    work_s = job.work_s - np.array([0.0, 0.5 * FULL_LOAD_S, FULL_LOAD_S])
    gpu_w, _ = job.workload.demand_w(work_s)
    return bool(np.all(gpu_w >= FULL_LOAD_FRAC * job.workload.gpu_w_max))


def revive(plant: SitePlant, job: Job, *, within_s: float) -> None:
    """Bring the job back to full strength; it goes on where its work had come to."""
    job.activity.move(t_s=plant.now_s, share=1.0, within_s=within_s)
    job.other_activity.move(t_s=plant.now_s, share=1.0, within_s=within_s)


def job_named(plant: SitePlant, class_id: str | None) -> Job:
    """The job of that class; the largest when no name is given."""
    jobs = plant.fleet.jobs
    if class_id is None:
        return max(jobs, key=lambda job: job.gpus)
    return next(job for job in jobs if job.class_id == class_id)


def _living_w(job: Job) -> tuple[float, float]:
    """What the job draws above idle at this point of its work and at full clocks: its GPUs, and beside them."""
    gpu_w, other_w = job.workload.demand_w(np.array([job.work_s]))
    return (
        max(float(gpu_w[0]) - job.idle_w, 0.0) * job.activity.share,
        float(other_w[0]) * job.other_activity.share,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else 0.0
