"""The one YAML that `rampart run` and `rampart check` read, and its translation into `Settings`.

Powers are written in kilowatt or megawatt and converted here, once. Every safety number is required or has a default
that is stated in the example file beside its reason.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from controller.config.contract import load_contract, with_local_rows
from controller.config.jobs import JobsDoc, jobs_settings
from controller.config.load import Document, parse_document, read_yaml
from controller.errors import BadInput
from controller.settings import (
    BatterySettings,
    ClassMembers,
    ContingencyKind,
    ContingencySettings,
    GridSettings,
    IssuerSettings,
    JobClassSettings,
    LoadBankSettings,
    MeterSettings,
    ModbusSettings,
    MqttSettings,
    NodeSettings,
    OpenAdrSettings,
    Policy,
    Role,
    Settings,
    SiteSettings,
    SmoothingSettings,
    Stance,
)
from controller.types import ClassId, Contract, Following, NodeId, SmoothingProfile

W_PER_MEGAWATT = 1e6
W_PER_KILOWATT = 1e3
J_PER_MEGAWATT_HOUR = 3.6e9
CLASSES_MAX = 7  # the planner takes eight; the last is whatever no class names
SLEW_PER_S_MIN = 0.01  # a drop slower than this is no contingency: 100 s to lose a load
TIERS = (0.0, 0.1, 0.25, 0.5)  # tolerated throughput loss, as flexibility programmes grade jobs

LARGEST = 1e6  # megawatts, seconds or their like: far beyond any site, and far from where sums overflow
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


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
    name: Name


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


class IssuerDoc(Document):
    name: Name
    key_files: Annotated[tuple[str, ...], Field(min_length=1)]
    may_set_target: bool = True
    may_set_ramp: bool = False
    may_exempt_ramp: bool = False


class GridDoc(Document):
    """Our identity as flex agent and whom we listen to."""

    agent_id: Name
    feeds: Annotated[tuple[str, ...], Field(min_length=1)] = ("main",)
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
    battery: BatteryDoc | None = None
    load_bank: LoadBankDoc | None = None
    ups: tuple[UpsDoc, ...] = ()
    load: LoadDoc | None = None
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
        return self


def load_settings(path: Path) -> Settings:
    """Read, validate and convert one site file; BadInput says file, key, value and what is allowed."""
    return parse_site(read_yaml(path), origin=str(path))


def parse_site(raw: object, *, origin: str) -> Settings:
    """`raw` (parsed YAML) as Settings. Relative file names are resolved beside `origin`."""
    doc = parse_document(raw, SiteDoc, origin=origin)
    base = Path(origin).resolve().parent
    try:
        return _settings(doc, origin=origin, base=base)
    except BadInput as bad:
        text = str(bad)
        raise BadInput(text if text.startswith(origin) else f"{origin}: {text}") from None


def _settings(doc: SiteDoc, *, origin: str, base: Path) -> Settings:
    return Settings(
        role=doc.role,
        site=_site(doc, base, origin) if doc.role is not Role.NODE else None,
        node=_node(doc) if doc.node is not None else None,
        meter=doc.pcc_meter.settings("pcc") if doc.pcc_meter else None,
        battery=doc.battery.settings("battery") if doc.battery else None,
        ups=tuple(u.settings(u.name) for u in doc.ups),
        mqtt=_mqtt(doc.mqtt, base) if doc.mqtt else None,
        grid=_grid(doc.grid, base) if doc.grid else None,
        state_dir=doc.state_dir or default_dir("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state"),
        runtime_dir=doc.runtime_dir or default_dir("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", ".local/state"),
        metrics_port=doc.metrics_port,
        config_path=origin,
        openadr=_openadr(doc.openadr, base) if doc.openadr else None,
        jobs=(
            jobs_settings(doc.jobs, site=doc.name, classes=tuple(c.name for c in doc.classes), base=base)
            if doc.jobs
            else None
        ),
        load_bank=doc.load_bank.settings("load_bank") if doc.load_bank else None,
    )


def _site(doc: SiteDoc, base: Path, origin: str) -> SiteSettings:
    assert doc.load is not None and doc.registered_peak_megawatt is not None
    peak_w = doc.registered_peak_megawatt * W_PER_MEGAWATT
    load, commands = doc.load, doc.commands
    contract = _contract(doc.contract, doc.limits, peak_w=peak_w, base=base, origin=origin)
    fallback = contract
    if doc.fallback_contract:
        try:
            fallback = _contract(doc.fallback_contract, (), peak_w=peak_w, base=base, origin=origin)
        except BadInput as bad:
            raise BadInput(f"fallback_contract: {bad}") from None
    battery = _battery(doc.battery) if doc.battery else None
    return SiteSettings(
        name=doc.name,
        contract=contract,
        fallback_contract=fallback,
        policy=doc.controller,
        tracker_period_s=1.0 / doc.tracker_hz,
        planner_period_s=1.0 / doc.planner_hz,
        following=battery.following if battery else Following.SOFTWARE,
        meter=_meter(doc.pcc_meter) if doc.pcc_meter else None,
        battery=battery,
        classes=tuple(_class(c) for c in doc.classes),
        members=tuple(ClassMembers(class_id=ClassId(c.name), node_patterns=c.nodes) for c in doc.classes),
        contingencies=tuple(_contingency(c) for c in doc.contingencies),
        registered_peak_w=peak_w,
        gpu_peak_w=load.gpu_peak_megawatt * W_PER_MEGAWATT,
        gpu_idle_w=load.gpu_idle_megawatt * W_PER_MEGAWATT,
        gpu_fallback_w=load.gpu_fallback_megawatt * W_PER_MEGAWATT,
        other_load_w=load.other_megawatt * W_PER_MEGAWATT,
        other_load_w_max=load.other_max_megawatt * W_PER_MEGAWATT,
        guaranteed_floor_w=load.guaranteed_floor_megawatt * W_PER_MEGAWATT,
        service_floor_frac=commands.service_floor,
        ttl_periods=commands.ttl_periods,
        grace_s=commands.grace_s,
        raise_dwell_s=commands.raise_dwell_s,
        max_export_w=commands.max_export_megawatt * W_PER_MEGAWATT,
        release_stagger_s=commands.release_stagger_s,
        load_bank=_load_bank(doc.load_bank) if doc.load_bank else None,
    )


def _contract(
    names: tuple[str, ...], rows: tuple[dict[str, object], ...], *, peak_w: float, base: Path, origin: str
) -> Contract:
    resolved = tuple(str(base / n) if (base / n).is_file() else n for n in names)
    named = load_contract(resolved, registered_peak_w=peak_w) if resolved else None
    return with_local_rows(named, rows, origin=origin, registered_peak_w=peak_w)


def _meter(doc: MeterDoc) -> MeterSettings:
    return MeterSettings(
        name="pcc",
        delay_s=doc.delay_s,
        update_s=doc.update_s,
        nameplate_w=doc.nameplate_megawatt * W_PER_MEGAWATT,
    )


def _battery(doc: BatteryDoc) -> BatterySettings:
    return BatterySettings(
        name="battery",
        charge_w_max=doc.charge_megawatt * W_PER_MEGAWATT,
        discharge_w_max=doc.discharge_megawatt * W_PER_MEGAWATT,
        energy_j=doc.energy_megawatt_hour * J_PER_MEGAWATT_HOUR,
        soc_frac_min=doc.soc_min,
        soc_frac_max=doc.soc_max,
        eta=doc.efficiency_one_way,
        lag_s=doc.lag_s,
        following=doc.following,
        follow_lag_s=doc.follow_lag_s,
        ramp_w_per_s_max=doc.ramp_megawatt_per_s * W_PER_MEGAWATT,
        has_own_ramp=doc.own_ramp,
        deadband_w=doc.deadband_megawatt * W_PER_MEGAWATT,
        dwell_s=doc.dwell_s,
        taper_soc_frac=doc.taper_soc,
    )


def _load_bank(doc: LoadBankDoc) -> LoadBankSettings:
    hours = doc.energy_megawatt_hour
    return LoadBankSettings(
        name="load_bank",
        power_w_max=doc.power_megawatt * W_PER_MEGAWATT,
        lag_s=doc.lag_s,
        ramp_w_per_s_max=doc.ramp_megawatt_per_s * W_PER_MEGAWATT,
        has_own_ramp=doc.own_ramp,
        step_w=doc.step_megawatt * W_PER_MEGAWATT,
        energy_j=math.inf if hours is None else hours * J_PER_MEGAWATT_HOUR,
        recovery_w=doc.recovery_megawatt * W_PER_MEGAWATT,
    )


def _class(doc: ClassDoc) -> JobClassSettings:
    return JobClassSettings(
        class_id=ClassId(doc.name),
        priority=doc.priority,
        tolerated_loss_frac=doc.tolerated_loss,
        window_s=doc.window_s,
        weight=doc.weight,
    )


def _contingency(doc: ContingencyDoc) -> ContingencySettings:
    return ContingencySettings(
        kind=doc.kind,
        slew_frac_per_s=doc.slew_per_s,
        transient=doc.transient,
        power=doc.power,
        energy=doc.energy,
        rise=doc.rise,
    )


def _node(doc: SiteDoc) -> NodeSettings:
    assert doc.node is not None
    node = doc.node
    try:
        re.compile(node.driver_versions)
    except re.error as error:
        raise BadInput(f"node.driver_versions: {node.driver_versions!r}: not a regular expression: {error}") from None
    return NodeSettings(
        node_id=NodeId(node.id),
        stands_for=node.sampled.nodes if node.sampled else 1,
        state_dir=doc.state_dir or default_dir("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state"),
        telemetry_period_s=1.0 / node.telemetry_hz,
        fallback_clock_mhz=node.fallback_clock_mhz,
        fallback_power_limit_w=node.fallback_power_limit_w,
        release_stagger_s=node.release_stagger_s,
        driver_versions=node.driver_versions,
        other_w=node.other_kilowatt * W_PER_KILOWATT,
        call_deadline_s=node.call_deadline_s,
        smoothing=_smoothing(node.smoothing) if node.smoothing else None,
    )


def _smoothing(doc: SmoothingDoc) -> SmoothingSettings:
    profile = SmoothingProfile(doc.floor, doc.ramp_up_w_per_s, doc.ramp_down_w_per_s, doc.hysteresis_s)
    return SmoothingSettings(profile=profile, preset=doc.preset)


def _beside(base: Path, file: str | None) -> str | None:
    return None if file is None else str(base / file)


def _mqtt(doc: MqttDoc, base: Path) -> MqttSettings:
    return MqttSettings(
        host=doc.host,
        port=doc.port,
        keepalive_s=doc.keepalive_s,
        username=doc.username,
        password_file=_beside(base, doc.password_file),
        ca_file=_beside(base, doc.ca_file),
        cert_file=_beside(base, doc.cert_file),
        key_file=_beside(base, doc.key_file),
    )


def _openadr(doc: OpenAdrDoc, base: Path) -> OpenAdrSettings:
    return OpenAdrSettings(
        url=doc.url,
        issuer=doc.issuer,
        program_id=doc.program_id,
        poll_s=doc.poll_s,
        token_file=_beside(base, doc.token_file),
        client_id=doc.client_id,
        client_secret_file=_beside(base, doc.client_secret_file),
    )


def _grid(doc: GridDoc, base: Path) -> GridSettings:
    issuers = tuple(
        IssuerSettings(
            name=i.name,
            key_files=tuple(str(base / k) for k in i.key_files),
            may_set_target=i.may_set_target,
            may_set_ramp=i.may_set_ramp,
            may_exempt_ramp=i.may_exempt_ramp,
        )
        for i in doc.issuers
    )
    return GridSettings(
        agent_id=doc.agent_id,
        feeds=doc.feeds,
        issuers=issuers,
        signing_key_file=_beside(base, doc.signing_key_file),
        clock_skew_s=doc.clock_skew_s,
        is_clock_assumed=doc.clock_sync == "assumed",
        status_period_s=doc.status_period_s,
        feed_share_frac=doc.feed_shares,
    )


def default_dir(systemd_variable: str, xdg_variable: str, home_relative: str) -> str:
    """The folder systemd gives us, else the XDG one, else one under the home of the user."""
    given = os.environ.get(systemd_variable)
    if given:
        return given.split(":")[0]
    base = os.environ.get(xdg_variable)
    return str((Path(base) if base else Path.home() / home_relative) / "rampart")
