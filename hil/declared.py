"""What a scenario's jobs would draw, held against what its site declares, in words for whoever runs it.

Caps, reserves and plausibility of the meter are all made from the site file. A trace scaled beyond it is a site that
nobody described: the run is made, but what it shows is no fault of the controller. Only each job by itself is looked
at, without losses and cooling; what several jobs come to together depends on when.
"""

from __future__ import annotations

import numpy as np

from controller.estimate_checks import most_believed_w
from controller.settings import SiteSettings
from hil.plant.fleet import Job
from hil.world import World

W_PER_MEGAWATT = 1e6


def beyond_declared(world: World, site: SiteSettings) -> tuple[str, ...]:
    """One sentence for each job that the site file has no room for, or next to nothing of; empty when all fit."""
    return tuple(said for job in world.plant.fleet.jobs if (said := _said(job, world.duration_s, site)))


def _said(job: Job, duration_s: float, site: SiteSettings) -> str:
    t_s = job.workload.gpu.t_s[job.workload.gpu.t_s <= duration_s]
    gpu_w, other_w = job.workload.demand_w(np.append(t_s, duration_s))
    top = int((gpu_w + other_w).argmax())
    wants = f"{job.class_id} wants up to {_megawatt(gpu_w[top] + other_w[top])}"
    if gpu_w.max() > site.gpu_peak_w or other_w.max() > site.other_load_w_max:
        return (
            f"{wants} (GPUs {_megawatt(gpu_w[top])}, other {_megawatt(other_w[top])}), more than the site declares "
            f"(GPUs {_megawatt(site.gpu_peak_w)}, other {_megawatt(site.other_load_w_max)}): no reserve is kept for "
            f"that, and a meter that shows more than {_megawatt(most_believed_w(site))} is taken for a broken one"
        )
    if gpu_w.max() < site.gpu_idle_w:
        return f"{wants}, less than the site's GPUs draw at rest ({_megawatt(site.gpu_idle_w)}): its scale is too small"
    return ""


def _megawatt(power_w: float) -> str:
    return f"{power_w / W_PER_MEGAWATT:.2f} MW"
