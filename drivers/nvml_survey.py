"""A read-only look at this node's NVML: what answers, what is set, who else may write, what we may do.

Blocking; for a person's command, not for the daemon. With `tries_write` the present power limit of each GPU is written
back to itself, which changes nothing and proves the permission.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import pynvml

from controller.ports import DriverError
from drivers.errors import NotSupported, PermissionDenied
from drivers.nvml_calls import (
    FIELDS,
    GpuCalls,
    Identity,
    RawSample,
    enumerate_uuids,
    initialise,
    shut_down,
    typed,
)
from drivers.nvml_smoothing import read_smoothing
from drivers.nvml_workload import read_workload

CAP_SYS_ADMIN = 21
READS = 5
LIMIT_TOLERANCE_W = 1.0
BUSY_PERCENT = 50
FREE_CLOCK_FRAC = 0.9
# Daemons that may set caps or clocks of their own (names as in /proc/PID/comm, at most 15 characters).
WRITERS = ("nv-hostengine", "dcgmi", "zeusd", "nvidia-powerd", "nvsm_core")


@dataclass(slots=True)
class GpuFinding:
    """One GPU: facts, what keeps us from controlling it (`problems`), what a person should know (`notes`)."""

    uuid: str
    model: str = ""
    facts: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Survey:
    """The node as found. `can`: what Rampart could do here; each entry says yes, no or unproven."""

    driver_version: str
    gpus: list[GpuFinding]
    problems: list[str]
    notes: list[str]
    can: dict[str, str]

    @property
    def is_good(self) -> bool:
        return not self.problems and not any(g.problems for g in self.gpus)


def survey(*, driver_versions: str, tries_write: bool) -> Survey:
    """Look at everything. Raises DriverError when NVML itself does not open."""
    version = initialise()
    try:
        uuids, failed = enumerate_uuids()
        found = Survey(version, [_look(u, tries_write) for u in uuids], [str(e) for e in failed], [], {})
    finally:
        shut_down()
    if not uuids:
        found.problems.append("the driver lists no GPU")
    is_accepted = re.search(driver_versions, version) is not None
    if not is_accepted:
        found.problems.append(f"driver {version} does not match driver_versions {driver_versions!r}: monitoring only")
    writers = other_writers()
    if writers:
        found.notes.append(f"running here and able to set caps of their own: {', '.join(writers)}")
    found.can = _abilities(found, is_accepted=is_accepted, tried=tries_write)
    return found


def other_writers() -> list[str]:
    """Names of running programs known to write GPU settings."""
    names: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(path.read_text().strip())
        except OSError:
            continue  # it ended meanwhile
    return sorted(names.intersection(w[:15] for w in WRITERS))


def has_sys_admin() -> bool:
    """Whether this process holds CAP_SYS_ADMIN, which NVML's setters ask for."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_ADMIN & 1)


def _look(uuid: str, tries_write: bool) -> GpuFinding:
    finding = GpuFinding(uuid)
    calls = GpuCalls(uuid)
    try:
        identity = calls.identify()
        finding.model = identity.name
        samples, took_s = [], []
        for _ in range(READS):
            begin_s = perf_counter()
            samples.append(calls.read())
            took_s.append(perf_counter() - begin_s)
        _describe(finding, identity, samples[-1], max(took_s))
        _describe_modes(finding, uuid)
        _describe_power_features(finding, calls)
        _note_settings(finding, identity, samples)
        if tries_write:
            _try_write(finding, calls, samples[-1])
    except DriverError as error:
        finding.problems.append(str(error).removeprefix(f"{uuid}: "))
    return finding


def _describe(finding: GpuFinding, identity: Identity, sample: RawSample, read_s_max: float) -> None:
    finding.facts |= {
        "power_w": sample.instant_w,
        "power_mean_w": sample.mean_w if identity.has_true_mean else None,
        "sm_clock_mhz": sample.clock_mhz,
        "clock_mhz_min": identity.clocks_mhz[0],
        "clock_mhz_max": identity.clocks_mhz[-1],
        "power_limit_w": sample.limit_w,
        "power_limit_w_requested": sample.requested_w,
        "power_limit_w_default": identity.limit_w_default,
        "power_limit_w_min": identity.limit_w_min,
        "power_limit_w_max": identity.limit_w_max,
        "has_energy_counter": sample.energy_j is not None,
        "is_mig": identity.is_mig,
        "event_reasons": sample.event_reasons,
        "read_ms_max": read_s_max * 1e3,
    }
    if identity.is_mig:
        finding.notes.append("MIG is on: power and clocks are of the whole GPU; its instances cannot be told apart")
    if sample.energy_j is None:
        finding.notes.append("no energy counter: means are made from samples, and nothing checks the power sensor")


def _describe_modes(finding: GpuFinding, uuid: str) -> None:
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    try:
        with typed(uuid, "persistence mode"):
            is_persistent = bool(pynvml.nvmlDeviceGetPersistenceMode(handle))
    except NotSupported:
        is_persistent = False
    try:
        with typed(uuid, "utilisation"):
            finding.facts["utilisation_percent"] = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except NotSupported:
        pass  # so it is in MIG mode, where load belongs to instances
    finding.facts["persistence_mode"] = is_persistent
    if not is_persistent:
        finding.notes.append(
            "persistence mode is off: caps are lost whenever no program holds the GPU "
            "(nvidia-smi -pm 1, or nvidia-persistenced)"
        )
    try:
        with typed(uuid, "fields"):
            answers = pynvml.nvmlDeviceGetFieldValues(handle, FIELDS)
    except NotSupported:
        finding.notes.append("no field values: this driver is older than R460; power is read by the older calls")
        return
    missing = [int(a.fieldId) for a in answers if a.nvmlReturn != pynvml.NVML_SUCCESS]
    finding.facts["fields_missing"] = ",".join(map(str, missing))


def _describe_power_features(finding: GpuFinding, calls: GpuCalls) -> None:
    """What only some GPUs have: power smoothing, workload profiles, a module's power, events."""
    module_w = calls.module_power_w()
    finding.facts["module_power_w"] = module_w
    if module_w is not None:
        finding.notes.append(
            f"it shares a module with a CPU: the module draws {module_w:.0f} W; caps here are those of the GPU alone"
        )
    try:
        smoothing = read_smoothing(calls)
    except NotSupported:
        finding.facts["has_power_smoothing"] = False
    else:
        finding.facts |= {
            "has_power_smoothing": True,
            "smoothing_is_enabled": smoothing.is_enabled,
            "smoothing_floor_frac": smoothing.profile.floor_frac,
            "smoothing_lifetime_frac": smoothing.lifetime_frac,
        }
        if smoothing.is_enabled:
            finding.notes.append(
                f"power smoothing is on: a floor of {smoothing.profile.floor_frac:.0%} while busy, "
                f"{smoothing.profile.up_w_per_s:g} W/s up, {smoothing.profile.down_w_per_s:g} W/s down; "
                f"{smoothing.lifetime_frac:.0%} of its circuit's life is left"
            )
    try:
        workload = read_workload(calls)
    except NotSupported:
        finding.facts["has_workload_profiles"] = False
    else:
        finding.facts |= {
            "has_workload_profiles": True,
            "workload_requested": ",".join(sorted(workload.requested)),
            "workload_enforced": ",".join(sorted(workload.enforced)),
        }
        if workload.requested:
            finding.notes.append(
                f"workload profiles {', '.join(sorted(workload.requested))} were asked for, "
                f"{', '.join(sorted(workload.enforced)) or 'none'} in force"
            )
    finding.facts["has_events"] = _has_events(calls)


def _has_events(calls: GpuCalls) -> bool:
    try:
        with typed(calls.uuid, "event types"):
            types = int(pynvml.nvmlDeviceGetSupportedEventTypes(calls.handle()))
    except NotSupported:
        return False
    return bool(types & pynvml.nvmlEventTypeXidCriticalError)


def _note_settings(finding: GpuFinding, identity: Identity, samples: list[RawSample]) -> None:
    last = samples[-1]
    requested_w = last.requested_w
    if requested_w is not None and abs(requested_w - identity.limit_w_default) > LIMIT_TOLERANCE_W:
        finding.notes.append(
            f"power limit {requested_w:g} W was set by someone (default {identity.limit_w_default:g} W): "
            "it would be saved and given back"
        )
    if requested_w is not None and last.limit_w < requested_w - LIMIT_TOLERANCE_W:
        finding.notes.append(
            f"{last.limit_w:g} W enforced below the requested {requested_w:g} W: module or thermal cap"
        )
    if len({s.requested_w for s in samples}) > 1:
        finding.problems.append("the power limit changed while we looked: another program is writing it")
    busy = finding.facts.get("utilisation_percent")
    is_free = last.event_reasons & ~pynvml.nvmlClocksEventReasonApplicationsClocksSetting == 0
    is_slow = last.clock_mhz < FREE_CLOCK_FRAC * identity.clocks_mhz[-1]
    if isinstance(busy, int) and busy > BUSY_PERCENT and is_free and is_slow:
        finding.notes.append(
            f"busy at {last.clock_mhz:g} of {identity.clocks_mhz[-1]} MHz with no reason given: "
            "its clocks look locked, and a clean stop would unlock them"
        )


def _try_write(finding: GpuFinding, calls: GpuCalls, sample: RawSample) -> None:
    if sample.requested_w is None:
        return
    try:
        calls.set_limit(sample.requested_w)
        finding.facts["may_write"] = True
    except PermissionDenied as error:
        finding.facts["may_write"] = False
        finding.problems.append(str(error).removeprefix(f"{calls.uuid}: "))


def _abilities(found: Survey, *, is_accepted: bool, tried: bool) -> dict[str, str]:
    reads = [g for g in found.gpus if "power_w" in g.facts]
    answer = f"yes, {len(reads)} of {len(found.gpus)} GPUs" if reads else "no"
    can = {"monitor power": answer}
    if not is_accepted:
        control = "no: driver version not accepted"
    elif tried:
        allowed = sum(bool(g.facts.get("may_write")) for g in found.gpus)
        control = f"yes, proven on {allowed} of {len(found.gpus)} GPUs" if allowed else "no: writing is refused"
    elif has_sys_admin():
        control = "should (CAP_SYS_ADMIN held; --try-write proves it)"
    else:
        control = "not from this shell: no CAP_SYS_ADMIN (the service unit grants it; sudo to try)"
        found.notes.append("this shell lacks CAP_SYS_ADMIN; reading works without it, setting caps does not")
    can["lock clocks and set power limits"] = control
    smoothing = sum(bool(g.facts.get("has_power_smoothing")) for g in found.gpus)
    can["use hardware power smoothing"] = f"{smoothing} of {len(found.gpus)} GPUs have it" if smoothing else "no"
    workload = sum(bool(g.facts.get("has_workload_profiles")) for g in found.gpus)
    can["use workload power profiles"] = f"{workload} of {len(found.gpus)} GPUs have them" if workload else "no"
    hears = sum(bool(g.facts.get("has_events")) for g in found.gpus)
    can["hear of GPU errors (Xid) at once"] = f"yes, {hears} of {len(found.gpus)} GPUs" if hears else "no"
    return can
