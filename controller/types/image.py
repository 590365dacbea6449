"""All that was known at one instant: the only input of a cycle, and what else travels in it (jobs, orders)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from controller.types.faults import Mode, Trouble
from controller.types.gpus import NodeReport
from controller.types.readings import BatterySample, LoadBankSample, MeterSample, Reading, UpsSample
from controller.types.records import frozen
from controller.types.scalars import GpuId
from controller.types.signals import GridSignal, RefusalReason


@frozen
class JobPart:
    """What a job holds of one node: `count` GPUs, which ones is not known; 0 means all of them."""

    node: str  # as the source names it
    count: int = 0


@frozen
class Job:
    """A job as a source tells it. `class_id` is empty where the source names none; times are UTC, None: not known."""

    job_id: str
    source: str
    class_id: str
    parts: tuple[JobPart, ...]
    gpu_ids: tuple[GpuId, ...] = ()  # named one by one, beside `parts`
    priority: int | None = None  # 0..100, as in the site file
    tolerated_loss_frac: float | None = None
    starts_utc_s: float | None = None
    ends_utc_s: float | None = None
    checkpoints_utc_s: tuple[float, ...] = ()
    is_running: bool = True


@frozen
class OperatorOrder:
    """What the people who run the site want: a mode that stands until they withdraw it, and a reset, told once."""

    mode: Mode | None
    is_reset: bool


@frozen
class SiteImage:
    """All that was known at one instant; the only input of a cycle.

    `pcc` is None on a site without a meter. `nodes` is sorted by node id. `wall_utc_s` serves signals and records only.
    """

    t_mono_s: float
    wall_utc_s: float
    tick: int
    pcc: Reading[MeterSample] | None
    battery: Reading[BatterySample] | None
    ups: Mapping[str, Reading[UpsSample]]
    nodes: tuple[Reading[NodeReport], ...]
    signals: tuple[GridSignal, ...]
    is_grid_link_up: bool
    overrun_count: int = 0
    meters: Mapping[str, Reading[MeterSample]] = field(default_factory=dict)  # sub-meters, by name
    jobs: tuple[Job, ...] | None = None  # merged from all sources, first wins; None: as in the image before
    troubles: tuple[Trouble, ...] = ()  # while they last
    is_raise_held: bool = False  # a flapping grid limit: the newest raise waits
    operator: OperatorOrder | None = None  # None: nobody asks for anything
    is_clock_synced: bool = True  # False: nothing disciplines the wall clock; True where nothing hangs on it
    load_bank: Reading[LoadBankSample] | None = None  # None on a site without one
    signal_alarms: tuple[RefusalReason, ...] = ()  # why grid messages were not followed in the last minute
