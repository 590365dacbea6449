"""From a scenario to a world: the plant as declared, its events on the schedule, and how long it runs.

Randomness comes from the scenario's seed alone, one stream per user of it, so that adding a workload does not change
the noise of a sensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from controller.config.fields import W_PER_MEGAWATT
from controller.errors import BadInput
from controller.types import BatteryState, LoadBankState, frozen
from hil.plant import events as happen
from hil.plant.battery import Battery, BatteryParams, Reversion
from hil.plant.facility import Facility, FacilityParams
from hil.plant.fleet import Fleet, Group, Job
from hil.plant.gpu_models import GpuModel, model
from hil.plant.grid import Grid, SwingParams
from hil.plant.load_bank import LoadBank, LoadBankParams
from hil.plant.site import NS_PER_S, SitePlant
from hil.plant.workload import (
    Activity,
    Curve,
    TrainingShape,
    Workload,
    inference_workload,
    ripple_curve,
    trace_curve,
    trace_workload,
    training_workload,
)
from hil.scenario import Scenario
from hil.scenario_documents import (
    BatteryEventDoc,
    ClassPlantDoc,
    DropDoc,
    EventDoc,
    GenerationLossDoc,
    InferenceDoc,
    LoadBankEventDoc,
    RippleDoc,
    SagDoc,
    StartDoc,
    StopDoc,
    TraceDoc,
    TrainingDoc,
    node_ids,
)
from hil.trace_file import Trace, read_trace

DEFAULT_DURATION_S = 1_800.0


@frozen
class Happening:
    """Something that came about in a run. `drop_w` and `within_s` are given for a block of load that left."""

    t_s: float
    id: str
    kind: str
    detail: str
    drop_w: float = 0.0
    within_s: float = 0.0


@dataclass(slots=True)
class World:
    """A plant, its diary, and the streams of randomness its sensors draw from."""

    plant: SitePlant
    duration_s: float
    seed: int
    diary: list[Happening] = field(default_factory=list)
    trace_names: tuple[str, ...] = ()

    def rng(self, stream: int) -> np.random.Generator:
        """A generator of its own for each use."""
        return np.random.default_rng([self.seed, stream])


def build_world(scenario: Scenario) -> World:
    """The plant at 0 s with everything that will happen to it scheduled."""
    doc = scenario.doc
    traces = _read_traces(scenario)
    longest_s = max((t.duration_s for t in traces.values()), default=None)
    duration_s = doc.duration_s or longest_s or DEFAULT_DURATION_S
    jobs = tuple(
        _job(c, traces.get(c.id), rng=np.random.default_rng([doc.seed, 100 + k]), until_s=duration_s)
        for k, c in enumerate(doc.plant.fleet)
    )
    for event in doc.events:
        _idle_until_started(event, jobs, doc.events)
    fleet = Fleet(jobs, _groups(doc.plant.fleet))
    f = doc.plant.facility
    facility = Facility(
        FacilityParams(
            fixed_w=f.fixed_megawatt * W_PER_MEGAWATT,
            loss_frac=f.loss_frac,
            cooling_frac=f.cooling_frac,
            cooling_tau_s=f.cooling_tau_s,
            ups_share=f.ups_share,
            ups_minutes=f.ups_minutes,
            ups_transfer_pu=f.ups_transfer_pu,
            ups_hold_s=f.ups_hold_s,
            ups_walk_in_s=f.ups_walk_in_s,
        ),
        it_w=_start_w(jobs),
    )
    plant = SitePlant(
        fleet=fleet,
        facility=facility,
        battery=_battery(scenario),
        grid=_grid(scenario),
        load_bank=_load_bank(scenario),
    )
    world = World(
        plant=plant, duration_s=duration_s, seed=doc.seed, trace_names=tuple(sorted(t.name for t in traces.values()))
    )
    for number, event in enumerate(doc.events):
        if event.t_s < duration_s:
            _schedule(world, event, name=f"{event.kind}-{number}")
    return world


# ------------------------------------------------------------------------------------------------ building


def _read_traces(scenario: Scenario) -> dict[str, Trace]:
    traces: dict[str, Trace] = {}
    for c in scenario.doc.plant.fleet:
        if isinstance(c.workload, TraceDoc):
            if c.workload.file is not None:
                traces[c.id] = read_trace(Path(scenario.base / c.workload.file))
            elif c.workload.stand_in is None:
                raise BadInput(f"{scenario.doc.name}: {c.id}: needs a trace: give --trace FILE")
    return traces


def _job(doc: ClassPlantDoc, trace: Trace | None, *, rng: np.random.Generator, until_s: float) -> Job:
    kind = model(doc.model)
    activity = Activity(share=1.0)
    workload = _workload(doc, doc.workload, trace, kind=kind, rng=rng, until_s=until_s)
    return Job(doc.id, kind, doc.gpus, workload, activity, Activity(share=1.0))


def _workload(
    doc: ClassPlantDoc,
    work: TraceDoc | TrainingDoc | InferenceDoc,
    trace: Trace | None,
    *,
    kind: GpuModel,
    rng: np.random.Generator,
    until_s: float,
) -> Workload:
    if isinstance(work, TraceDoc):
        if trace is None:
            assert work.stand_in is not None
            return _workload(doc, work.stand_in, None, kind=kind, rng=rng, until_s=until_s)
        wall = trace_curve(trace.t_s, trace.power_w * work.scale, edge_s=work.edge_s if work.edge == "hold" else None)
        return trace_workload(
            wall,
            non_gpu_frac=work.non_gpu_frac,
            clock_bound_frac=work.clock_bound_frac,
            ripple=_ripple(work.ripple, rng=rng, until_s=until_s) if work.ripple else None,
        )
    if isinstance(work, TrainingDoc):
        return training_workload(
            rng,
            gpus=doc.gpus,
            shape=_shape(work),
            idle_w=kind.idle_w,
            other_w=work.other_megawatt * W_PER_MEGAWATT,
            clock_bound_frac=work.clock_bound_frac,
            until_s=until_s,
        )
    return inference_workload(
        rng,
        gpus=doc.gpus,
        busy_w=work.busy_w,
        idle_w=kind.idle_w,
        low_frac=work.low_frac,
        high_frac=work.high_frac,
        noise_frac=work.noise_frac,
        start_hour=work.start_hour,
        other_w=work.other_megawatt * W_PER_MEGAWATT,
        clock_bound_frac=work.clock_bound_frac,
        until_s=until_s,
    )


def _shape(work: TrainingDoc) -> TrainingShape:
    return TrainingShape(
        iteration_s=work.iteration_s,
        compute_frac=work.compute_frac,
        compute_w=work.compute_w,
        exchange_w=work.exchange_w,
        jitter_frac=work.jitter_frac,
        noise_frac=work.noise_frac,
        edge_s=work.edge_s,
        checkpoint_every_s=work.checkpoint_every_s,
        checkpoint_s=work.checkpoint_s,
        checkpoint_w=work.checkpoint_w,
        warmup_s=work.warmup_s,
        checkpoints_s=work.checkpoints_s,
    )


def _ripple(doc: RippleDoc, *, rng: np.random.Generator, until_s: float) -> Curve:
    return ripple_curve(
        rng,
        amplitude_w=doc.amplitude_megawatt * W_PER_MEGAWATT,
        period_s=doc.period_s,
        duty=doc.duty,
        jitter_frac=doc.jitter_frac,
        edge_s=doc.edge_s,
        until_s=until_s,
    )


def _groups(fleet: tuple[ClassPlantDoc, ...]) -> tuple[Group, ...]:
    return tuple(
        Group(node_id, job, c.gpus // c.reporting_nodes) for job, c in enumerate(fleet) for node_id in node_ids(c)
    )


def _start_w(jobs: tuple[Job, ...]) -> float:
    """IT power at 0 s, so that cooling starts in balance."""
    zero = np.zeros(1)
    total_w = 0.0
    for job in jobs:
        gpu_w, other_w = job.workload.demand_w(zero)
        dynamic_w = max(float(gpu_w[0]) - job.idle_w, 0.0)
        total_w += min(float(gpu_w[0]), job.idle_w) + dynamic_w * job.activity.share
        total_w += float(other_w[0]) * job.other_activity.share + job.workload.other_base_w
    return total_w


def _battery(scenario: Scenario) -> Battery | None:
    believed = scenario.settings.site.battery if scenario.settings.site else None
    if believed is None:
        return None
    doc = scenario.doc.plant.battery

    def megawatt(value: float | None, otherwise_w: float) -> float:
        return otherwise_w if value is None else value * W_PER_MEGAWATT

    def plain(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    hours = doc.energy_megawatt_hour
    return Battery(
        BatteryParams(
            charge_w_max=megawatt(doc.charge_megawatt, believed.charge_w_max),
            discharge_w_max=megawatt(doc.discharge_megawatt, believed.discharge_w_max),
            energy_j=believed.energy_j if hours is None else hours * 3_600.0 * W_PER_MEGAWATT,
            soc_frac_start=doc.start_soc,
            soc_frac_min=believed.soc_frac_min,
            soc_frac_max=believed.soc_frac_max,
            eta=plain(doc.efficiency_one_way, believed.eta),
            lag_s=plain(doc.lag_s, believed.lag_s),
            follow_lag_s=plain(doc.follow_lag_s, believed.follow_lag_s),
            slope_w_per_s_max=megawatt(doc.slope_megawatt_per_s, believed.ramp_w_per_s_max),
            deadband_w=megawatt(doc.deadband_megawatt, believed.deadband_w),
            taper_soc_frac=plain(doc.taper_soc, believed.taper_soc_frac),
            standby_w=doc.standby_kilowatt * 1e3,
            follow_reversion=Reversion(doc.follow_reversion),
            reversion_w_per_s=doc.reversion_megawatt_per_s * W_PER_MEGAWATT,
        )
    )


def _load_bank(scenario: Scenario) -> LoadBank | None:
    believed = scenario.settings.site.load_bank if scenario.settings.site else None
    if believed is None:
        return None
    doc = scenario.doc.plant.load_bank
    ramp = doc.ramp_megawatt_per_s
    return LoadBank(
        LoadBankParams(
            power_w_max=believed.power_w_max,
            lag_s=believed.lag_s if doc.lag_s is None else doc.lag_s,
            ramp_w_per_s_max=believed.ramp_w_per_s_max if ramp is None else ramp * W_PER_MEGAWATT,
            has_own_ramp=believed.has_own_ramp,
            energy_j=believed.energy_j,
            recovery_w=believed.recovery_w,
        )
    )


def _grid(scenario: Scenario) -> Grid:
    doc = scenario.doc.plant.grid
    swing = doc.swing
    if swing is None:
        return Grid(nominal_hz=doc.nominal_hz, swing=None)
    return Grid(
        nominal_hz=doc.nominal_hz,
        swing=SwingParams(
            rating_w=swing.rating_megawatt * W_PER_MEGAWATT,
            inertia_s=swing.inertia_s,
            damping_pu=swing.damping_pu,
            droop_pu=swing.droop_pu,
            governor_tau_s=swing.governor_tau_s,
        ),
    )


# ------------------------------------------------------------------------------------------------ events


def _idle_until_started(event: EventDoc, jobs: tuple[Job, ...], all_events: tuple[EventDoc, ...]) -> None:
    """A job whose first event is a start has not begun at 0 s."""
    if not isinstance(event, StartDoc):
        return
    job = next((j for j in jobs if j.class_id == event.job), max(jobs, key=lambda j: j.gpus))
    mine = [e for e in all_events if isinstance(e, StartDoc | StopDoc | DropDoc) and e.job == event.job]
    if min(mine, key=lambda e: e.t_s) is event:
        job.activity = Activity(share=0.0)


def _schedule(world: World, event: EventDoc, *, name: str) -> None:
    world.plant.schedule(_ns(event.t_s), partial(_happen, world, event, name))


def _happen(world: World, event: EventDoc, name: str) -> None:
    if isinstance(event, DropDoc):
        _drop(world, event, name)
    elif isinstance(event, StartDoc):
        happen.revive(world.plant, happen.job_named(world.plant, event.job), within_s=event.within_s)
        _note(world, event, name, f"starts within {event.within_s:g} s")
    elif isinstance(event, StopDoc):
        job = happen.job_named(world.plant, event.job)
        done = happen.drop_load(world.plant, job, block_w=None, within_s=event.within_s)
        _note(world, event, name, f"{done.drop_w / 1e6:.1f} MW stop", drop_w=done.drop_w, within_s=event.within_s)
    elif isinstance(event, SagDoc):
        world.plant.grid.sag(t_s=event.t_s, duration_s=event.duration_s, voltage_pu=event.voltage_pu)
        _note(world, event, name, f"{event.voltage_pu:g} pu for {event.duration_s:g} s")
    elif isinstance(event, GenerationLossDoc):
        lost_w = event.megawatt * W_PER_MEGAWATT
        world.plant.grid.lose_generation(lost_w)
        if event.duration_s is not None:
            world.plant.schedule(_ns(event.t_s + event.duration_s), partial(world.plant.grid.lose_generation, -lost_w))
        _note(world, event, name, f"{event.megawatt:g} MW lost elsewhere")
    else:
        _device_event(world, event, name)


def _drop(world: World, event: DropDoc, name: str) -> None:
    job = happen.job_named(world.plant, event.job)
    if event.at_full_load and not happen.is_at_full_load(job):
        soon_ns = _ns(world.plant.now_s) + 2 * world.plant.step_ns  # the next step but one: this one is under way
        world.plant.schedule(soon_ns, partial(_happen, world, event, name))
        return
    within_s = event.within_s if event.within_s is not None else 1.0 / (event.slew_per_s or 1.0)
    block_w = event.megawatt * W_PER_MEGAWATT if event.megawatt is not None else None
    done = happen.drop_load(world.plant, job, block_w=block_w, within_s=within_s)
    detail = f"{done.drop_w / 1e6:.1f} MW within {within_s:.3g} s"
    _note(world, event, name, detail, drop_w=done.drop_w, within_s=within_s)
    if event.restart_after_s is not None:
        world.plant.schedule(_ns(event.t_s + event.restart_after_s), partial(_restart, world, event, name))


def _restart(world: World, event: DropDoc, name: str) -> None:
    happen.revive(world.plant, happen.job_named(world.plant, event.job), within_s=event.restart_within_s)
    detail = f"back within {event.restart_within_s:g} s"
    world.diary.append(Happening(t_s=world.plant.now_s, id=f"{name}-restart", kind="restart", detail=detail))


def _device_event(world: World, event: BatteryEventDoc | LoadBankEventDoc, name: str) -> None:
    device = world.plant.load_bank if isinstance(event, LoadBankEventDoc) else world.plant.battery
    if device is None:
        return
    dropped_w = abs(device.power_w) if event.kind.endswith("_trip") else 0.0
    _set_device(device, event, is_on=True)
    _note(world, event, name, f"at {device.power_w / 1e6:.1f} MW", drop_w=dropped_w, within_s=0.0)
    if event.duration_s is not None:
        world.plant.schedule(_ns(event.t_s + event.duration_s), partial(_set_device, device, event, is_on=False))


def _set_device(device: Battery | LoadBank, event: BatteryEventDoc | LoadBankEventDoc, *, is_on: bool) -> None:
    if event.kind.endswith("_trip"):
        if is_on:
            device.trip()
        elif device.state in (BatteryState.FAULT, LoadBankState.FAULT):
            device.reset()
    elif event.kind.endswith("_deaf"):
        device.is_deaf = is_on
    elif event.kind.endswith("_local"):
        device.is_remote = not is_on
    else:
        device.derate_frac = event.derate_frac if is_on else 1.0


def _note(world: World, event: EventDoc, name: str, detail: str, *, drop_w: float = 0.0, within_s: float = 0.0) -> None:
    world.diary.append(
        Happening(t_s=world.plant.now_s, id=name, kind=event.kind, detail=detail, drop_w=drop_w, within_s=within_s)
    )


def _ns(t_s: float) -> int:
    return round(t_s * NS_PER_S)
