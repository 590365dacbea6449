"""The sections of a site file as a person writes them: keys, ranges, and which need which.

Every safety number is required or has a default that is stated in the example file beside its reason. Translation into
the core's settings is `controller.config.site`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from controller.config.fields import LARGEST, Fraction, Name, NonNegative, Port, Positive, is_this_machine
from controller.config.jobs import JobsDoc
from controller.config.load import Document
from controller.settings import ContingencyKind, ModbusSettings, Policy, Role, Stance
from controller.types import Following

CLASSES_MAX = 7  # the planner takes eight; the last is whatever no class names
SUB_METERS_MAX = 16  # read in every cycle
FEEDERS_MAX = 256  # each is checked against the whole fleet at every command
SLEW_PER_S_MIN = 0.01  # a drop slower than this is no contingency: 100 s to lose a load
TIERS = (0.0, 0.1, 0.25, 0.5)  # tolerated throughput loss, as flexibility programmes grade jobs


class ModbusDoc(Document):
    """Where a device answers."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 502
    unit_id: Annotated[int, Field(ge=0, le=247)] = 1
    profile: str
    timeout_s: Annotated[float, Field(gt=0, le=10)] = 0.5

    def settings(self, name: str) -> ModbusSettings:
        return ModbusSettings(
            name=name,
            host=self.host,
            port=self.port,
            unit_id=self.unit_id,
            profile=self.profile,
            timeout_s=self.timeout_s,
        )


class MeterDoc(ModbusDoc):
    """The meter at the point of common coupling."""

    delay_s: Annotated[float, Field(ge=0, le=5)]
    update_s: Annotated[float, Field(gt=0, le=60)]
    nameplate_megawatt: Positive


class SubMeterDoc(MeterDoc):
    """Another meter: of all that the site imports, or of a part that never exports; all of them add up to the PCC's."""

    name: Name


class BatteryDoc(ModbusDoc):
    """The battery; powers at the point of common coupling."""

    charge_megawatt: Positive
    discharge_megawatt: Positive
    energy_megawatt_hour: Positive
    soc_min: Fraction = 0.0
    soc_max: Fraction = 1.0
    efficiency_one_way: Annotated[float, Field(gt=0.5, le=1)] = 0.95
    lag_s: Annotated[float, Field(ge=0, le=60)]
    following: Following
    follow_lag_s: Annotated[float, Field(ge=0, le=10)] = 0.023
    ramp_megawatt_per_s: Positive
    own_ramp: bool = True
    deadband_megawatt: NonNegative = 0.0
    dwell_s: NonNegative = 0.0
    taper_soc: Annotated[float, Field(ge=0, le=0.5)] = 0.05

    @model_validator(mode="after")
    def _order(self) -> BatteryDoc:
        if self.soc_min >= self.soc_max:
            raise ValueError(f"soc_min {self.soc_min} must be below soc_max {self.soc_max}")
        return self


class LoadBankDoc(ModbusDoc):
    """A load bank behind the point of common coupling."""

    power_megawatt: Positive
    lag_s: Annotated[float, Field(ge=0, le=10)]
    ramp_megawatt_per_s: Positive
    own_ramp: bool = True
    step_megawatt: NonNegative = 0.0
    energy_megawatt_hour: Positive | None = None
    recovery_megawatt: NonNegative = 0.0

    @model_validator(mode="after")
    def _fits(self) -> LoadBankDoc:
        if self.step_megawatt > self.power_megawatt:
            raise ValueError(f"step_megawatt {self.step_megawatt} must not exceed power_megawatt {self.power_megawatt}")
        if self.energy_megawatt_hour is None and self.recovery_megawatt > 0.0:
            raise ValueError("recovery_megawatt needs energy_megawatt_hour: without it the bank may run for ever")
        return self


class UpsDoc(ModbusDoc):
    """A UPS, which is only read. `nodes` are shell patterns of the node ids that it carries."""

    name: Name
    nodes: tuple[str, ...] = ("*",)
    low_minutes: Annotated[float, Field(gt=0, le=120)] = 3.0


class FeederDoc(Document):
    """A breaker or feeder: what it carries, and what hangs on it. `nodes` are shell patterns of node ids."""

    name: Name
    limit_megawatt: Positive
    nodes: tuple[str, ...] = ()
    within: Name | None = None
    gpu_peak_megawatt: NonNegative
    gpu_fallback_megawatt: NonNegative
    other_max_megawatt: NonNegative

    @model_validator(mode="after")
    def _order(self) -> FeederDoc:
        if self.gpu_fallback_megawatt > self.gpu_peak_megawatt:
            raise ValueError("expected gpu_fallback_megawatt <= gpu_peak_megawatt")
        return self


class LoadDoc(Document):
    """What the site can draw."""

    gpu_peak_megawatt: NonNegative
    gpu_idle_megawatt: NonNegative
    gpu_fallback_megawatt: NonNegative
    other_megawatt: NonNegative = 0.0
    other_max_megawatt: NonNegative
    guaranteed_floor_megawatt: NonNegative = 0.0

    @model_validator(mode="after")
    def _order(self) -> LoadDoc:
        if not self.gpu_idle_megawatt <= self.gpu_fallback_megawatt <= self.gpu_peak_megawatt:
            raise ValueError("expected gpu_idle_megawatt <= gpu_fallback_megawatt <= gpu_peak_megawatt")
        if self.other_megawatt > self.other_max_megawatt:
            raise ValueError("expected other_megawatt <= other_max_megawatt")
        return self


class ClassDoc(Document):
    """A class of jobs: `nodes` are shell patterns of node ids."""

    name: Name
    nodes: tuple[str, ...] = ()
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    tolerated_loss: Fraction = 0.1
    window_s: Annotated[float, Field(gt=0, le=86_400)] = 3_600.0
    weight: Positive = 1.0

    @field_validator("tolerated_loss")
    @classmethod
    def _tier(cls, value: float) -> float:
        if value not in TIERS:
            raise ValueError(f"one of {', '.join(f'{tier:g}' for tier in TIERS)}")
        return value


class ContingencyDoc(Document):
    """An event to survive; each condition is enforced (may cost compute) or reported."""

    kind: ContingencyKind
    slew_per_s: Annotated[float, Field(ge=SLEW_PER_S_MIN, le=LARGEST)] = 1.9
    transient: Stance = Stance.REPORT
    power: Stance = Stance.ENFORCE
    energy: Stance = Stance.ENFORCE
    rise: Stance = Stance.REPORT


class MqttDoc(Document):
    """The broker. Passwords and keys are files, never values."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 1883
    keepalive_s: Annotated[int, Field(ge=1, le=300)] = 2
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @model_validator(mode="after")
    def _secret(self) -> MqttDoc:
        is_clear = self.ca_file is None and self.cert_file is None
        if self.password_file is not None and is_clear and not is_this_machine(self.host):
            raise ValueError("password_file needs ca_file beyond this machine: no password travels in the clear")
        return self


class IssuerDoc(Document):
    """Someone whose signed messages are followed, and what they may set."""

    name: Name
    key_files: Annotated[tuple[str, ...], Field(min_length=1)]
    may_set_target: bool = True
    may_set_ramp: bool = False
    may_exempt_ramp: bool = False


class GridDoc(Document):
    """Our identity as flex agent and whom we listen to."""

    agent_id: Name
    feeds: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(min_length=1, max_length=64)
    ] = ("main",)
    feed_shares: tuple[Fraction, ...] = ()
    issuers: tuple[IssuerDoc, ...] = ()
    signing_key_file: str | None = None
    clock_skew_s: Annotated[float, Field(ge=0, le=300)] = 5.0
    clock_sync: Literal["kernel", "assumed"] = "kernel"
    status_period_s: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @model_validator(mode="after")
    def _shares(self) -> GridDoc:
        if self.feed_shares and (len(self.feed_shares) != len(self.feeds) or abs(sum(self.feed_shares) - 1.0) > 1e-6):
            raise ValueError(f"feed_shares: one per feed ({len(self.feeds)}), together 1")
        return self


class OpenAdrDoc(Document):
    """A VTN to poll. With `token_file`, or with `client_id` and `client_secret_file` at its token endpoint, or open."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]
    issuer: Name = "openadr"
    program_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    poll_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    token_file: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None

    @model_validator(mode="after")
    def _secrets(self) -> OpenAdrDoc:
        if (self.client_id is None) != (self.client_secret_file is None):
            raise ValueError("client_id and client_secret_file belong together; give both or none")
        if self.token_file is not None and self.client_id is not None:
            raise ValueError("token_file or client_id, one of them")
        is_local = self.url.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]"))
        if self.url.startswith("http:") and not is_local:
            raise ValueError("url: https is required beyond this machine")
        if "@" in self.url.split("/")[2]:
            raise ValueError("url: no user or password in it; secrets are files")
        return self


class SampledDoc(Document):
    """This node stands for `nodes` like it."""

    nodes: Annotated[int, Field(ge=1, le=1_000_000)]


class SmoothingDoc(Document):
    """Hardware power smoothing that the agent arms and gives back (Blackwell)."""

    floor: Annotated[float, Field(gt=0, le=1)]
    ramp_up_w_per_s: Annotated[float, Field(gt=0, le=1e6)]
    ramp_down_w_per_s: Annotated[float, Field(gt=0, le=1e6)]
    hysteresis_s: Annotated[float, Field(gt=0, le=600)]
    preset: Annotated[int, Field(ge=0, le=4)] = 4


class NodeDoc(Document):
    """One node agent."""

    id: Name
    sampled: SampledDoc | None = None
    telemetry_hz: Annotated[float, Field(gt=0, le=50)] = 5.0
    fallback_clock_mhz: Annotated[int, Field(ge=100, le=5000)]
    fallback_power_limit_w: Annotated[float, Field(gt=0, le=5000)] | None = None
    release_stagger_s: NonNegative = 0.0
    driver_versions: str = r"^(?!0\.)\d+\."
    other_kilowatt: NonNegative = 0.0
    call_deadline_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    smoothing: SmoothingDoc | None = None


class CommandsDoc(Document):
    """How long commands live and how fast things are given back."""

    ttl_periods: Annotated[float, Field(gt=1, le=10)] = 4.8
    grace_s: NonNegative = 60.0
    raise_dwell_s: NonNegative = 60.0
    release_stagger_s: NonNegative = 30.0
    service_floor: Fraction = 0.3
    max_export_megawatt: NonNegative = 0.0


class SiteDoc(Document):
    """The whole file. Which sections are required depends on `role`."""

    role: Role
    name: Name = "site"
    contract: tuple[str, ...] = ()
    limits: tuple[dict[str, object], ...] = ()
    fallback_contract: tuple[str, ...] = ()
    registered_peak_megawatt: Positive | None = None
    controller: Policy = Policy.MPC
    tracker_hz: Annotated[float, Field(ge=1, le=100)] = 20.0
    planner_hz: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    pcc_meter: MeterDoc | None = None
    sub_meters: Annotated[tuple[SubMeterDoc, ...], Field(max_length=SUB_METERS_MAX)] = ()
    battery: BatteryDoc | None = None
    load_bank: LoadBankDoc | None = None
    ups: tuple[UpsDoc, ...] = ()
    load: LoadDoc | None = None
    feeders: Annotated[tuple[FeederDoc, ...], Field(max_length=FEEDERS_MAX)] = ()
    classes: Annotated[tuple[ClassDoc, ...], Field(max_length=CLASSES_MAX)] = ()
    contingencies: tuple[ContingencyDoc, ...] = ()
    commands: CommandsDoc = CommandsDoc()
    mqtt: MqttDoc | None = None
    grid: GridDoc | None = None
    openadr: OpenAdrDoc | None = None
    jobs: JobsDoc | None = None
    node: NodeDoc | None = None
    state_dir: str | None = None
    runtime_dir: str | None = None
    metrics_port: Port | None = None

    @model_validator(mode="after")
    def _complete(self) -> SiteDoc:
        needs: dict[Role, tuple[str, ...]] = {
            Role.SITE: ("load", "registered_peak_megawatt", "mqtt"),
            Role.NODE: ("node", "mqtt"),
            Role.BOTH: ("load", "registered_peak_megawatt", "node"),
        }
        missing = [key for key in needs[self.role] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"role {self.role.value} needs {', '.join(missing)}")
        if self.role is not Role.NODE and not (self.contract or self.limits):
            raise ValueError(f"role {self.role.value} needs contract (names or files) or limits (rows)")
        if self.battery is not None and self.pcc_meter is None:
            raise ValueError("battery needs pcc_meter: without a meter nothing says what the battery should follow")
        if self.load_bank is not None and self.battery is None:
            raise ValueError("load_bank needs battery: the bank only lends it what it cannot take itself")
        if self.grid is not None and self.mqtt is None:
            raise ValueError("grid needs mqtt")
        if self.openadr is not None and self.grid is None:
            raise ValueError("openadr needs grid: its feeds and their shares")
        issuers = {issuer.name for issuer in self.grid.issuers} if self.grid is not None else set()
        if self.openadr is not None and self.openadr.issuer in issuers:
            raise ValueError(f"openadr.issuer: {self.openadr.issuer} is one of grid.issuers; give another name")
        if self.jobs is not None and self.jobs.mqtt is not None and self.mqtt is None:
            raise ValueError("jobs.mqtt needs mqtt")
        if self.jobs is not None and self.role is Role.NODE:
            raise ValueError("jobs belongs to role site or both")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("classes: names must differ")
        meters = [m.name for m in self.sub_meters]
        if len({"pcc", "battery", "load_bank", *meters}) != 3 + len(meters):
            raise ValueError("sub_meters: names must differ, and be none of pcc, battery, load_bank")
        if meters and self.pcc_meter is None:
            raise ValueError("sub_meters needs pcc_meter: they are held against it")
        return self

    @model_validator(mode="after")
    def _tree(self) -> SiteDoc:
        above = {feeder.name: feeder.within for feeder in self.feeders}
        if len(above) != len(self.feeders):
            raise ValueError("feeders: names must differ")
        for name in above:
            path, at = [name], above[name]
            while at is not None:
                if at not in above:
                    raise ValueError(f"feeders: {path[-1]}: within: no feeder is called {at}")
                if at in path:
                    raise ValueError(f"feeders: {name} hangs on itself: {', '.join([*path, at])}")
                path.append(at)
                at = above[at]
        return self
