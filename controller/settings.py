"""Frozen settings as the core sees them: SI units, resolved fractions, no defaults for safety numbers.

`controller.config` reads what people write and makes these; nothing else does. Standard library and `types` only.
"""

from __future__ import annotations

import math
from enum import StrEnum, unique

from controller.types import ClassId, Contract, Following, NodeId, SmoothingProfile, frozen


@unique
class Role(StrEnum):
    SITE = "site"
    NODE = "node"
    BOTH = "both"


@unique
class Policy(StrEnum):
    """Which planner decides. MPC falls back to RULE by itself; NONE holds no limit (bench only)."""

    MPC = "mpc"
    RULE = "rule"
    RULE_MAX = "rule-max"
    NONE = "none"


@unique
class Stance(StrEnum):
    ENFORCE = "enforce"
    REPORT = "report"


@unique
class ContingencyKind(StrEnum):
    FULL_SITE = "full_site"  # every GPU job stops at once
    LARGEST_JOB = "largest_job"  # N-1


@frozen
class ContingencySettings:
    """One event the site must survive, and which of its conditions may cost compute."""

    kind: ContingencyKind
    slew_frac_per_s: float  # of the block that drops; 1.9 measured (NERC white paper 2025)
    transient: Stance
    power: Stance
    energy: Stance
    rise: Stance


@frozen
class MeterSettings:
    """The PCC meter. `delay_s`: how old a sample is on arrival."""

    name: str
    delay_s: float
    update_s: float
    nameplate_w: float  # a reading beyond it is a unit error


@frozen
class BatterySettings:
    """The battery as its profile and nameplate declare it; powers are magnitudes at the PCC."""

    name: str
    charge_w_max: float
    discharge_w_max: float
    energy_j: float  # usable at soc 0..1
    soc_frac_min: float
    soc_frac_max: float
    eta: float  # one way
    lag_s: float  # first-order, of a set-point
    following: Following
    follow_lag_s: float  # first-order, of the device's own following
    ramp_w_per_s_max: float  # the device's own fastest slope
    has_own_ramp: bool  # False: when commands stop it steps, it cannot ramp
    deadband_w: float
    dwell_s: float
    taper_soc_frac: float  # charge limit falls to zero over this last share of soc


@frozen
class LoadBankSettings:
    """A load bank as its profile and nameplate declare it: resistors that can be made to draw power at the PCC.

    `energy_j` is what it takes from cold before it is too hot (inf: it may run for ever), `recovery_w` the power it
    can shed for ever. `step_w` is its smallest step (0: any power).
    """

    name: str
    power_w_max: float
    lag_s: float  # first-order, from the command to the power
    ramp_w_per_s_max: float  # the device's own slope, both ways
    has_own_ramp: bool  # False: when commands stop it steps to 0 W
    step_w: float
    energy_j: float
    recovery_w: float


@frozen
class FeederSettings:
    """A breaker or feeder below the point of common coupling, and the feeder it hangs on.

    `gpu_peak_w`, `gpu_fallback_w` and `other_w_max` are of all that hangs on it: GPUs also of feeders below it, other
    load only what hangs on none of those.
    """

    name: str
    max_w: float
    gpu_peak_w: float  # at their power limits
    gpu_fallback_w: float  # at their nodes' fallback caps
    other_w_max: float
    node_patterns: tuple[str, ...]
    within: str | None


@frozen
class UpsSettings:
    """A UPS: whose GPUs it carries, and how much time left is little."""

    name: str
    node_patterns: tuple[str, ...]
    low_minutes: float


@frozen
class OwnSlope:
    """What slope the battery can be told for when commands stop: the least, the step between slopes (0: any), where.

    `is_shared`: it is also the slope by which set-points are followed, and is set for that.
    """

    min_w_per_s: float
    step_w_per_s: float
    where: str
    is_shared: bool

    def nearest(self, wanted_w_per_s: float) -> float:
        """The steepest slope it can be told that is no steeper than wanted; its least where all are steeper."""
        told = wanted_w_per_s
        if self.step_w_per_s > 0:
            told = self.step_w_per_s * math.floor(wanted_w_per_s / self.step_w_per_s + 1e-9)
        return max(told, self.min_w_per_s)


@frozen
class JobClassSettings:
    """A class of jobs that share priority and flexibility."""

    class_id: ClassId
    priority: int  # higher is kept longer
    tolerated_loss_frac: float  # tier: 0, 0.1, 0.25, 0.5 of throughput over `window_s`
    window_s: float
    weight: float  # cost of lost work relative to 1


@frozen
class ClassMembers:
    """Which nodes belong to a class: shell patterns of node ids, first match wins."""

    class_id: ClassId
    node_patterns: tuple[str, ...]


@frozen
class SiteSettings:
    """One site. `other_load_w` is what Rampart does not control, when no meter tells."""

    name: str
    contract: Contract
    fallback_contract: Contract
    policy: Policy
    tracker_period_s: float
    planner_period_s: float
    following: Following
    meter: MeterSettings | None
    battery: BatterySettings | None
    classes: tuple[JobClassSettings, ...]
    members: tuple[ClassMembers, ...]
    contingencies: tuple[ContingencySettings, ...]
    registered_peak_w: float
    gpu_peak_w: float  # all GPUs of the site at their nameplate
    gpu_idle_w: float  # all GPUs idle
    gpu_fallback_w: float  # all GPUs at their fallback caps
    other_load_w: float
    other_load_w_max: float
    guaranteed_floor_w: float  # load that stays after a crash whatever Rampart does; 0: none
    service_floor_frac: float  # of a node's clock range: no cap below it
    ttl_periods: float  # command TTL in planner periods (5 by default in config)
    grace_s: float  # after the grid link is lost, before the fallback contract
    raise_dwell_s: float
    max_export_w: float
    release_stagger_s: float
    load_bank: LoadBankSettings | None = None
    feeders: tuple[FeederSettings, ...] = ()
    ups: tuple[UpsSettings, ...] = ()
    sub_meters: tuple[MeterSettings, ...] = ()  # together they show what the PCC meter shows


@frozen
class SmoothingSettings:
    """The power floor a node's GPUs hold by themselves, and the preset it is written into."""

    profile: SmoothingProfile
    preset: int


@frozen
class NodeSettings:
    """One node agent."""

    node_id: NodeId
    stands_for: int
    state_dir: str
    telemetry_period_s: float
    fallback_clock_mhz: int
    fallback_power_limit_w: float | None
    release_stagger_s: float
    driver_versions: str  # pattern the NVML driver version must match
    other_w: float  # the node's draw beside its GPUs
    call_deadline_s: float
    smoothing: SmoothingSettings | None = None


@frozen
class ModbusSettings:
    """Where a Modbus device answers and which profile reads it."""

    name: str
    host: str
    port: int
    unit_id: int
    profile: str
    timeout_s: float


@frozen
class MqttSettings:
    """The broker both links use. Secrets come by file."""

    host: str
    port: int
    keepalive_s: int
    username: str | None
    password_file: str | None
    ca_file: str | None
    cert_file: str | None
    key_file: str | None


@frozen
class IssuerSettings:
    """Someone who may publish signals, the keys they sign with (public, PEM or JWK file) and what they may change."""

    name: str
    key_files: tuple[str, ...]
    may_set_target: bool
    may_set_ramp: bool
    may_exempt_ramp: bool


@frozen
class GridSettings:
    """Our identity as flex agent and whom we listen to."""

    agent_id: str
    feeds: tuple[str, ...]
    issuers: tuple[IssuerSettings, ...]
    signing_key_file: str | None
    clock_skew_s: float
    status_period_s: float
    feed_share_frac: tuple[float, ...] = ()  # of the registered peak, in the order of `feeds`; empty: equal shares
    is_clock_assumed: bool = False  # the site answers for the wall clock; False: the kernel is asked


@frozen
class JobRule:
    """Which class a scheduler's job belongs to: every pair is an attribute and a shell pattern it must match."""

    class_id: ClassId
    matches: tuple[tuple[str, str], ...]


@frozen
class JobTopicSettings:
    """Jobs over MQTT. Without issuers the broker's access list is all that guards the topic."""

    topic: str
    issuers: tuple[IssuerSettings, ...]
    valid_s_max: float  # no listing lives longer, whatever it says


@frozen
class SlurmSettings:
    """Jobs from Slurm: `command` prints its jobs as JSON."""

    command: tuple[str, ...]
    period_s: float
    deadline_s: float
    rules: tuple[JobRule, ...]


@frozen
class KubernetesSettings:
    """Jobs from a Kubernetes API server, or from a file that holds a pod list."""

    api_url: str | None
    token_file: str | None
    ca_file: str | None
    file: str | None
    gpu_resource: str
    class_label: str
    job_labels: tuple[str, ...]  # the first one a pod has names its job
    period_s: float
    deadline_s: float
    rules: tuple[JobRule, ...]


@frozen
class JobsSettings:
    """Where jobs are learnt from; a listing older than `stale_s` no longer counts."""

    stale_s: float
    topic: JobTopicSettings | None
    slurm: SlurmSettings | None
    kubernetes: KubernetesSettings | None


@frozen
class OpenAdrSettings:
    """A VTN whose events become load targets and prices; `issuer` is its name in answers and audit."""

    url: str
    issuer: str
    program_id: str | None
    poll_s: float
    token_file: str | None
    client_id: str | None
    client_secret_file: str | None


@frozen
class Settings:
    """Everything one process runs from."""

    role: Role
    site: SiteSettings | None
    node: NodeSettings | None
    meter: ModbusSettings | None
    battery: ModbusSettings | None
    ups: tuple[ModbusSettings, ...]
    mqtt: MqttSettings | None
    grid: GridSettings | None
    state_dir: str
    runtime_dir: str
    metrics_port: int | None
    config_path: str
    openadr: OpenAdrSettings | None = None
    jobs: JobsSettings | None = None
    load_bank: ModbusSettings | None = None
    sub_meters: tuple[ModbusSettings, ...] = ()
