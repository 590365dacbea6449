"""Scenario files as a person writes them: a site as its controller is configured, the true plant, and what happens.

`site` is a site file as `rampart run` reads it. `plant` is the truth: where a key is not given, the plant is as the
site file says, so that a scenario can make them differ on purpose. Times of events, faults and signals are seconds of
the run.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from controller.config.fields import Fraction, Name, NonNegative, Positive
from controller.config.load import Document

DURATION_S_MAX = 31 * 86_400.0
SEED_MAX = 2**32 - 1

WirePort = Annotated[int, Field(ge=0, le=65535)]

Edge = Literal["linear", "hold"]
Verb = Literal["off", "stuck", "garbage", "wrong", "slow", "delayed", "intermittent"]


# ------------------------------------------------------------------------------------------------ workloads


class RippleDoc(Document):
    """The swing of synchronous iterations, declared because a trace of 1 s samples cannot show it."""

    amplitude_megawatt: Positive  # peak to peak
    period_s: Positive
    duty: Annotated[float, Field(gt=0, lt=1)] = 0.6
    jitter_frac: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    edge_s: Positive = 0.02


class TrainingDoc(Document):
    """A generated synchronous training job; powers are per GPU."""

    kind: Literal["training"]
    iteration_s: Positive = 2.0
    compute_frac: Annotated[float, Field(gt=0, lt=1)] = 0.6
    compute_w: Positive = 640.0
    exchange_w: Positive = 250.0
    jitter_frac: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    noise_frac: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    edge_s: Positive = 0.02
    checkpoint_every_s: Positive | None = 600.0
    checkpoint_s: tuple[Positive, Positive] = (11.0, 60.0)
    checkpoint_w: Positive = 150.0
    checkpoints_s: tuple[NonNegative, ...] = ()
    warmup_s: NonNegative = 0.0
    other_megawatt: NonNegative = 0.0
    clock_bound_frac: Fraction = 0.9

    @field_validator("checkpoint_s")
    @classmethod
    def _shortest_first(cls, span_s: tuple[float, float]) -> tuple[float, float]:
        if span_s[0] > span_s[1]:
            raise ValueError("the shortest first, then the longest")
        return span_s


class InferenceDoc(Document):
    """Serving whose request rate follows the day."""

    kind: Literal["inference"]
    busy_w: Positive = 550.0
    low_frac: Fraction = 0.3
    high_frac: Fraction = 0.85
    noise_frac: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    start_hour: Annotated[float, Field(ge=0, lt=24)] = 9.0
    other_megawatt: NonNegative = 0.0
    clock_bound_frac: Fraction = 0.5


class TraceDoc(Document):
    """Recorded wall power, `scale` times over. Without a file the stand-in runs."""

    kind: Literal["trace"]
    file: str | None = None
    scale: Positive = 1.0
    edge: Edge = "linear"
    edge_s: Positive = 0.25
    non_gpu_frac: Fraction  # share of wall power that is not GPU: only the rest answers to caps
    clock_bound_frac: Fraction = 0.9
    ripple: RippleDoc | None = None
    stand_in: TrainingDoc | None = None


WorkloadDoc = Annotated[TraceDoc | TrainingDoc | InferenceDoc, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------ plant


class ClassPlantDoc(Document):
    """The GPUs of one job class, seen by the controller through `reporting_nodes` nodes called `<id>-<number>`."""

    id: Name
    model: Literal["v100", "a100", "h100", "h200", "b200", "b300"] = "h100"
    gpus: Annotated[int, Field(ge=1, le=10_000_000)]
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] = 8
    reporting_nodes: Annotated[int, Field(ge=1, le=10_000)] = 4
    fallback_clock_mhz: Annotated[int, Field(ge=100, le=5000)]
    workload: WorkloadDoc

    @model_validator(mode="after")
    def _divides(self) -> ClassPlantDoc:
        if self.gpus % (self.gpus_per_node * self.reporting_nodes):
            raise ValueError(
                f"gpus {self.gpus} must be a multiple of gpus_per_node x reporting_nodes"
                f" ({self.gpus_per_node} x {self.reporting_nodes})"
            )
        return self


def node_ids(doc: ClassPlantDoc) -> tuple[str, ...]:
    """The reporting nodes of a class, in order."""
    width = len(str(doc.reporting_nodes - 1))
    return tuple(f"{doc.id}-{k:0{width}d}" for k in range(doc.reporting_nodes))


class BatteryPlantDoc(Document):
    """The real battery, where it differs from what the site file believes."""

    charge_megawatt: Positive | None = None
    discharge_megawatt: Positive | None = None
    energy_megawatt_hour: Positive | None = None
    efficiency_one_way: Annotated[float, Field(gt=0.5, le=1)] | None = None
    lag_s: NonNegative | None = None
    follow_lag_s: NonNegative | None = None
    slope_megawatt_per_s: Positive | None = None
    deadband_megawatt: NonNegative | None = None
    taper_soc: Annotated[float, Field(ge=0, le=0.5)] | None = None
    start_soc: Fraction = 0.5
    standby_kilowatt: NonNegative = 0.0
    follow_reversion: Literal["ramp_to_zero", "freeze"] = "freeze"
    reversion_megawatt_per_s: Positive = 0.3
    read_delay_s: NonNegative | None = None  # age of a reading on arrival; None: as the meter's
    write_latency_s: NonNegative = 0.0  # from write to acknowledgement
    dead_s: NonNegative = 0.0  # from write until it acts


class LoadBankPlantDoc(Document):
    """The real load bank, where it differs from what the site file believes."""

    lag_s: NonNegative | None = None
    ramp_megawatt_per_s: Positive | None = None
    read_delay_s: NonNegative | None = None  # age of a reading on arrival; None: as the meter's
    write_latency_s: NonNegative = 0.0  # from write to acknowledgement


class MeterPlantDoc(Document):
    """The real meter, where it differs from what the site file believes."""

    delay_s: NonNegative | None = None
    refresh_s: Positive | None = None
    window_s: NonNegative = 0.0  # boxcar over truth
    latency_s: NonNegative = 0.0  # of the read itself
    gain: Positive = 1.0
    noise_frac: Annotated[float, Field(ge=0, le=0.2)] = 1e-4  # of the reading; no real meter repeats itself to the bit


class NodePlantDoc(Document):
    """Node agents and the wire to them."""

    telemetry_hz: Annotated[float, Field(gt=0, le=20)] = 5.0
    link_delay_s: NonNegative = 0.02  # one way
    power_window_s: NonNegative = 1.0  # boxcar of the GPUs' own power reading
    sensor_period_s: Positive = 0.1  # sensors out of step with each other show together the mean over their period
    gain: Positive = 1.0  # an A100 reads 0.954 of the truth


class FacilityDoc(Document):
    """All zero: the workload's power is power at the point of common coupling."""

    fixed_megawatt: NonNegative = 0.0
    loss_frac: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    cooling_frac: Annotated[float, Field(ge=0, le=1)] = 0.0
    cooling_tau_s: Positive = 600.0
    ups_share: Fraction = 0.0
    ups_minutes: Positive = 5.0
    ups_transfer_pu: Fraction = 0.85
    ups_hold_s: NonNegative = 1.0
    ups_walk_in_s: NonNegative = 10.0


class SwingDoc(Document):
    """A grid whose frequency answers the site: the swing equation, with a governor."""

    rating_megawatt: Positive
    inertia_s: Positive = 4.0
    damping_pu: NonNegative = 1.0
    droop_pu: Positive = 0.05
    governor_tau_s: Positive = 0.5


class GridPlantDoc(Document):
    """The grid; stiff where no swing is given."""

    nominal_hz: Annotated[float, Field(ge=16, le=400)] = 60.0
    swing: SwingDoc | None = None  # None: stiff


class PlantDoc(Document):
    """What the site file cannot know."""

    fleet: Annotated[tuple[ClassPlantDoc, ...], Field(min_length=1, max_length=64)]
    battery: BatteryPlantDoc = BatteryPlantDoc()
    load_bank: LoadBankPlantDoc = LoadBankPlantDoc()
    meter: MeterPlantDoc = MeterPlantDoc()
    nodes: NodePlantDoc = NodePlantDoc()
    facility: FacilityDoc = FacilityDoc()
    grid: GridPlantDoc = GridPlantDoc()

    @model_validator(mode="after")
    def _distinct(self) -> PlantDoc:
        ids = [c.id for c in self.fleet]
        if len(set(ids)) != len(ids):
            raise ValueError("fleet: ids must differ")
        return self


# ------------------------------------------------------------------------------------------------ what happens


class DropDoc(Document):
    """A block of load leaves: a crash, or any stop the job did not announce."""

    kind: Literal["drop"]
    t_s: NonNegative
    job: str | None = None  # None: the largest
    megawatt: Positive | None = None  # None: the whole job
    slew_per_s: Positive | None = None  # of the block
    within_s: Positive | None = None
    at_full_load: bool = False  # wait for the first moment from `t_s` on at which the job draws its most
    restart_after_s: Positive | None = None
    restart_within_s: Positive = 60.0

    @model_validator(mode="after")
    def _one_speed(self) -> DropDoc:
        if (self.slew_per_s is None) == (self.within_s is None):
            raise ValueError("give one of slew_per_s and within_s")
        return self


class StartDoc(Document):
    """A stopped job starts; a job whose first event is a start is idle until then."""

    kind: Literal["start"]
    t_s: NonNegative
    job: str | None = None
    within_s: Positive = 10.0


class StopDoc(Document):
    """A job ends in order."""

    kind: Literal["stop"]
    t_s: NonNegative
    job: str | None = None
    within_s: Positive = 10.0


class SagDoc(Document):
    """Voltage at the point of common coupling falls to `voltage_pu` for a while."""

    kind: Literal["sag"]
    t_s: NonNegative
    voltage_pu: Fraction
    duration_s: Positive


class GenerationLossDoc(Document):
    """A generator elsewhere trips; felt where the grid swings."""

    kind: Literal["generation_loss"]
    t_s: NonNegative
    megawatt: Positive
    duration_s: Positive | None = None


class BatteryEventDoc(Document):
    """The battery itself: trips, goes deaf (acknowledges, does not follow), local, or derates to `derate_frac`."""

    kind: Literal["battery_trip", "battery_deaf", "battery_local", "battery_derate"]
    t_s: NonNegative
    duration_s: Positive | None = None
    derate_frac: Fraction = 0.5


class LoadBankEventDoc(Document):
    """The load bank itself: trips, goes deaf (acknowledges, does not obey), local, or derates to `derate_frac`."""

    kind: Literal["load_bank_trip", "load_bank_deaf", "load_bank_local", "load_bank_derate"]
    t_s: NonNegative
    duration_s: Positive | None = None
    derate_frac: Fraction = 0.5


EventDoc = Annotated[
    DropDoc | StartDoc | StopDoc | SagDoc | GenerationLossDoc | BatteryEventDoc | LoadBankEventDoc,
    Field(discriminator="kind"),
]


def _as_written(verb: object) -> object:
    """YAML takes an `off` without quotes for false."""
    return "off" if verb is False else verb


class FaultDoc(Document):
    """A fault of a port: `meter`, `battery`, `load_bank`, `ups`, `grid`, or `node:<pattern>`."""

    id: str | None = None
    t_s: NonNegative
    duration_s: Positive | None = None  # None: to the end
    port: Annotated[str, Field(pattern=r"^(meter|battery|load_bank|ups|grid|node:.+)$")]
    verb: Annotated[Verb, BeforeValidator(_as_written)]
    value: float | None = None  # factor (wrong), seconds (slow, delayed), probability (intermittent)


class SignalDoc(Document):
    """An accepted grid signal, known from `t_s` on."""

    t_s: NonNegative
    kind: Literal["load_target", "ramp_limit"]
    issuer: Name = "grid"
    from_s: NonNegative | None = None  # None: at once
    until_s: Positive | None = None
    by_s: NonNegative | None = None  # judged from this long after it came into force; None: not judged
    megawatt: NonNegative | None = None
    contract: tuple[str, ...] = ()
    limits: tuple[dict[str, Any], ...] = ()
    is_best_effort: bool = False
    ramp_exempt: bool = False

    @model_validator(mode="after")
    def _has_content(self) -> SignalDoc:
        if self.kind == "load_target" and self.megawatt is None:
            raise ValueError("a load_target needs megawatt")
        if self.kind == "ramp_limit" and not (self.contract or self.limits):
            raise ValueError("a ramp_limit needs contract (names) or limits (rows)")
        return self


class WireDoc(Document):
    """How the scenario runs on real wires. A port of 0 takes a free one."""

    node: str  # the node agent's file, beside the scenario
    broker_port: WirePort = 0
    meter_port: WirePort = 0
    battery_port: WirePort = 0
    load_bank_port: WirePort = 0
    ups_port: WirePort = 0
    start_s_max: Positive = 60.0  # how long the processes may take until they control


class ScenarioDoc(Document):
    """The whole file."""

    name: Name
    title: str = ""
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] = 1
    duration_s: Annotated[float, Field(gt=0, le=DURATION_S_MAX)] | None = None  # None: the longest trace, else 1,800 s
    record_s: NonNegative = 120.0  # how much of the run's start the recording keeps
    clock: Literal["virtual", "real"] = "virtual"
    site: dict[str, Any]  # or the name of a site file beside this one
    wire: WireDoc | None = None
    plant: PlantDoc
    events: tuple[EventDoc, ...] = ()
    faults: tuple[FaultDoc, ...] = ()
    signals: tuple[SignalDoc, ...] = ()

    @model_validator(mode="after")
    def _faults_reach_a_node(self) -> ScenarioDoc:
        """A fault of nobody would pass for one that was survived."""
        nodes = [node_id for c in self.plant.fleet for node_id in node_ids(c)]
        for k, fault in enumerate(self.faults):
            kind, _, pattern = fault.port.partition(":")
            if kind == "node" and not any(fnmatchcase(node_id, pattern) for node_id in nodes):
                raise ValueError(f"faults.{k}.port: {fault.port!r}: nodes here are {nodes[0]} to {nodes[-1]}")
        return self

    @model_validator(mode="after")
    def _jobs_exist(self) -> ScenarioDoc:
        known = {c.id for c in self.plant.fleet}
        for event in self.events:
            job = getattr(event, "job", None)
            if job is not None and job not in known:
                raise ValueError(f"events: job {job!r}: known are {', '.join(sorted(known))}")
        return self
