"""Reads the one YAML of `rampart run` and `rampart check`, and translates it into `Settings`.

Powers are written in kilowatt or megawatt and converted here, once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

from controller.config.contract import load_contract, with_local_rows
from controller.config.fields import J_PER_MEGAWATT_HOUR, W_PER_KILOWATT, W_PER_MEGAWATT
from controller.config.jobs import jobs_settings
from controller.config.load import parse_document, read_yaml
from controller.config.site_documents import (
    BatteryDoc,
    ClassDoc,
    ContingencyDoc,
    FeederDoc,
    GridDoc,
    LoadBankDoc,
    MeterDoc,
    MqttDoc,
    OpenAdrDoc,
    SiteDoc,
    SmoothingDoc,
)
from controller.errors import BadInput
from controller.files import is_file
from controller.settings import (
    BatterySettings,
    ClassMembers,
    ContingencySettings,
    FeederSettings,
    GridSettings,
    IssuerSettings,
    JobClassSettings,
    LoadBankSettings,
    MeterSettings,
    MqttSettings,
    NodeSettings,
    OpenAdrSettings,
    Role,
    Settings,
    SiteSettings,
    SmoothingSettings,
    UpsSettings,
)
from controller.types import (
    ClassId,
    Contract,
    Following,
    Limit,
    NodeId,
    RampLimit,
    SmoothingProfile,
    SwingLimit,
)

LEFT_FRAC_MAX = 0.5  # of a row, to deadband and dwell of a battery: the other half is for the load


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
        sub_meters=tuple(m.settings(m.name) for m in doc.sub_meters),
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
    named = _named(doc.contract, "contract", peak_w=peak_w, base=base)
    contract = with_local_rows(named, doc.limits, origin=origin, registered_peak_w=peak_w)
    fallback = _named(doc.fallback_contract, "fallback_contract", peak_w=peak_w, base=base) or contract
    battery = _battery(doc.battery) if doc.battery else None
    if battery is not None:
        _may_follow(battery, (*contract.limits, *fallback.limits))
    return SiteSettings(
        name=doc.name,
        contract=contract,
        fallback_contract=fallback,
        policy=doc.controller,
        tracker_period_s=1.0 / doc.tracker_hz,
        planner_period_s=1.0 / doc.planner_hz,
        following=battery.following if battery else Following.SOFTWARE,
        meter=_meter(doc.pcc_meter, "pcc") if doc.pcc_meter else None,
        sub_meters=tuple(_meter(m, m.name) for m in doc.sub_meters),
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
        ups=tuple(UpsSettings(name=u.name, node_patterns=u.nodes, low_minutes=u.low_minutes) for u in doc.ups),
        feeders=tuple(_feeder(f) for f in doc.feeders),
    )


def _named(names: tuple[str, ...], key: str, *, peak_w: float, base: Path) -> Contract | None:
    """The contracts that a key of the site file names, as one; None where it names none."""
    resolved = tuple(str(base / n) if is_file(base / n) else n for n in names)
    try:
        return load_contract(resolved, registered_peak_w=peak_w) if resolved else None
    except BadInput as bad:
        raise BadInput(f"{key}: {bad}") from None


def _meter(doc: MeterDoc, name: str) -> MeterSettings:
    return MeterSettings(
        name=name,
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


def _may_follow(battery: BatterySettings, rows: Iterable[Limit]) -> None:
    """Our loop may only close on a battery whose deadband and dwell leave half of every row.

    What a deadband leaves stands on either side of the target; while a dwell lasts grid power goes on as it does, at
    the row's own slope at least. Raises BadInput.
    """
    if battery.following is not Following.SOFTWARE:
        return
    for row in rows:
        if isinstance(row, RampLimit) or (isinstance(row, SwingLimit) and row.band_hz is None):
            left_w = 2.0 * battery.deadband_w + row.max_w / row.window_s * battery.dwell_s
            if left_w > LEFT_FRAC_MAX * row.max_w:
                raise BadInput(
                    f"battery.deadband_megawatt, battery.dwell_s: {left_w / W_PER_MEGAWATT:.3g} MW go unanswered,"
                    f" more than half of the {row.max_w / W_PER_MEGAWATT:.3g} MW of {row.id}: not eligible for"
                    " following: software; following: device is allowed, or no battery"
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


def _feeder(doc: FeederDoc) -> FeederSettings:
    return FeederSettings(
        name=doc.name,
        max_w=doc.limit_megawatt * W_PER_MEGAWATT,
        gpu_peak_w=doc.gpu_peak_megawatt * W_PER_MEGAWATT,
        gpu_fallback_w=doc.gpu_fallback_megawatt * W_PER_MEGAWATT,
        other_w_max=doc.other_max_megawatt * W_PER_MEGAWATT,
        node_patterns=doc.nodes,
        within=doc.within,
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
