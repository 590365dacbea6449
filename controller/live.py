"""The real ports of one process: Modbus, MQTT, lease and recorder, opened from settings and closed together.

Beside `app` this is where core and drivers meet. Opening touches no device: what is absent at start is a lost device
like any other and comes back by itself; only what a person must mend (a key file, a profile, a lease that another
controller holds) is refused here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import structlog

from controller.app import Factories, Runner
from controller.codec import decode, encode
from controller.errors import BadInput
from controller.lease import FileLease
from controller.live_jobs import open_jobs
from controller.live_profiles import battery_profile_for, load_bank_profile_for, profile_for
from controller.ports import Battery, Clock, JobSource, LoadBank, NodeLink, PowerMeter, Ups, WallSync
from controller.settings import (
    GridSettings,
    IssuerSettings,
    OpenAdrSettings,
    Settings,
    SiteSettings,
)
from controller.signal_memory import SignalMemory
from controller.signals import AcceptanceRules, bounds_of
from controller.types import Acceptance, SignalOutcome, frozen, replace
from drivers.battery import open_battery
from drivers.clock_sync import KernelSync
from drivers.dsx import DsxGridSource
from drivers.identity import IdentityBook
from drivers.load_bank import open_load_bank
from drivers.meter import open_meter
from drivers.modbus import ModbusPool
from drivers.mqtt import MqttSession
from drivers.node_link import LocalLink, MqttNodeLink
from drivers.openadr import OpenAdrBridge
from drivers.profile import Kind
from drivers.recorder import FileRecorder
from drivers.signal_store import SignalStore
from drivers.ups import open_ups

SKEW_S_MIN = 1.0  # a skew of zero asks for what no kernel promises
RECORDINGS_KEPT = 20  # the oldest go; a day of one 20 Hz controller is about 1 GB

log = structlog.get_logger("rampart")


@frozen
class Devices:
    """The Modbus devices of a site, on connections shared per endpoint."""

    meter: PowerMeter | None
    battery: Battery | None
    load_bank: LoadBank | None
    ups: dict[str, Ups]
    sub_meters: dict[str, PowerMeter]


@contextlib.asynccontextmanager
async def live_factories(
    settings: Settings,
    *,
    clock: Clock,
    session: MqttSession | None,
    node_link: NodeLink | None,
    feed_watchdog: Callable[[], None],
) -> AsyncIterator[Factories]:
    """Ports on the devices of `settings`. `node_link` is given for a node in the same process, else nodes use MQTT."""
    site = settings.site
    assert site is not None
    state_dir = Path(settings.state_dir)
    lease = FileLease(state_dir)
    pool = ModbusPool()
    try:
        book = IdentityBook(state_dir / "devices.json")
        devices = _open_devices(settings, site, clock=clock, pool=pool, book=book)
        background: list[Runner] = [session.run] if session is not None else []
        wake = asyncio.Event()
        link = node_link
        if link is None:
            assert session is not None, "a site without nodes of its own has a broker"
            link = MqttNodeLink(session)
        jobs = open_jobs(settings, clock=clock, session=session, link=link)
        background.extend(jobs.runners)
        sync = _open_sync(settings, clock)
        grid, runners = _open_grid(
            settings, site, clock=clock, session=session, state_dir=state_dir, wake=wake, jobs=jobs.board, sync=sync
        )
        background.extend(runners)
        recorder = _open_recorder(settings, clock, state_dir, epoch=lease.epoch)
        try:
            yield Factories(
                clock=clock,
                meter=devices.meter,
                battery=devices.battery,
                load_bank=devices.load_bank,
                ups=devices.ups,
                sub_meters=devices.sub_meters,
                node_link=link,
                recorder=recorder,
                lease=lease,
                grid=grid,
                jobs=jobs.board if settings.jobs is not None else None,
                sync=sync,
                feed_watchdog=feed_watchdog,
                background=tuple(background),
                counters=_counters(session, link, grid),
                wake=wake,
            )
        finally:
            recorder.close()
    finally:
        await pool.close()
        lease.close()


def _counters(
    session: MqttSession | None, link: NodeLink, grid: DsxGridSource | None
) -> dict[str, Callable[[], Mapping[str, int]]]:
    """What each link counts: made, dropped and refused, for status and metrics."""
    found: dict[str, Callable[[], Mapping[str, int]]] = {}
    if session is not None:
        found["mqtt"] = lambda: asdict(session.counts)
    if isinstance(link, MqttNodeLink | LocalLink):
        found["nodes"] = lambda: asdict(link.counts)
    if grid is not None:
        found["grid"] = lambda: {reason.value: count for reason, count in grid.refused_count.items()}
    return found


def _open_devices(
    settings: Settings, site: SiteSettings, *, clock: Clock, pool: ModbusPool, book: IdentityBook
) -> Devices:
    meter: PowerMeter | None = None
    battery: Battery | None = None
    load_bank: LoadBank | None = None
    delay_s = site.meter.delay_s if site.meter else 0.0
    if settings.meter is not None:
        meter = open_meter(
            settings.meter,
            profile=profile_for(settings.meter, Kind.METER, key="pcc_meter"),
            clock=clock,
            delay_s=delay_s,
            pool=pool,
            identity=book.of(settings.meter.name),
        )
    if settings.battery is not None:
        assert site.battery is not None
        battery = open_battery(
            settings.battery,
            profile=battery_profile_for(settings.battery, site.battery.following)[0],
            clock=clock,
            charge_w_max=site.battery.charge_w_max,
            discharge_w_max=site.battery.discharge_w_max,
            pool=pool,
            identity=book.of(settings.battery.name),
        )
    if settings.load_bank is not None:
        assert site.load_bank is not None
        load_bank = open_load_bank(
            settings.load_bank,
            profile=load_bank_profile_for(settings.load_bank)[0],
            clock=clock,
            power_w_max=site.load_bank.power_w_max,
            pool=pool,
            identity=book.of(settings.load_bank.name),
        )
    ups: dict[str, Ups] = {}
    for k, device in enumerate(settings.ups):
        profile = profile_for(device, Kind.UPS, key=f"ups.{k}")
        ups[device.name] = open_ups(device, profile=profile, clock=clock, pool=pool)
    sub_meters: dict[str, PowerMeter] = {}
    for k, (device, told) in enumerate(zip(settings.sub_meters, site.sub_meters, strict=True)):
        sub_meters[device.name] = open_meter(
            device,
            profile=profile_for(device, Kind.METER, key=f"sub_meters.{k}"),
            clock=clock,
            delay_s=told.delay_s,
            pool=pool,
            identity=book.of(device.name),
        )
    return Devices(meter, battery, load_bank, ups, sub_meters)


def _open_sync(settings: Settings, clock: Clock) -> WallSync | None:
    """Only grid signals hang on the wall clock; where they do, the kernel is asked unless the site answers for it."""
    if settings.grid is None or settings.grid.is_clock_assumed:
        return None
    return KernelSync(clock, error_s_max=max(settings.grid.clock_skew_s, SKEW_S_MIN))


def _open_grid(
    settings: Settings,
    site: SiteSettings,
    *,
    clock: Clock,
    session: MqttSession | None,
    state_dir: Path,
    wake: asyncio.Event,
    jobs: JobSource,
    sync: WallSync | None,
) -> tuple[DsxGridSource | None, Sequence[Runner]]:
    """The way to the grid and what runs beside it: other bridges, and the file of accepted signals."""
    if settings.grid is None or session is None:
        return None, ()
    bounds = bounds_of(site)
    rules = AcceptanceRules(_with_bridges(settings.grid, settings.openadr), bounds)
    store = _recalled(state_dir / "signals.json", rules, clock)

    def on_outcome(outcome: SignalOutcome) -> None:
        if outcome.acceptance is not Acceptance.REFUSED:
            wake.set()  # whether it is an emergency the core sees for itself
            store.changed()

    grid = DsxGridSource(
        session,
        settings=settings.grid,
        rules=rules,
        peak_w=site.registered_peak_w,
        floor_w=bounds.floor_w,
        classes=site.classes,
        jobs=jobs,
        clock=clock,
        rng=_fresh_rng(),
        audit_path=state_dir / "grid-audit.jsonl",
        on_outcome=on_outcome,
        sync=sync,
    )
    runners: list[Runner] = [grid.run, store.run]
    if settings.openadr is not None:
        bridge = OpenAdrBridge(
            settings.openadr, rules=rules, clock=clock, on_outcome=on_outcome, write_audit=grid.write_audit
        )
        grid.prices = bridge
        runners.append(bridge.run)
    return grid, runners


def _with_bridges(grid: GridSettings, openadr: OpenAdrSettings | None) -> GridSettings:
    """The issuers the rules know: those of the broker, and a VTN, which has no key there and may set targets only."""
    if openadr is None:
        return grid
    return replace(grid, issuers=(*grid.issuers, IssuerSettings(openadr.issuer, (), True, False, False)))


def _recalled(path: Path, rules: AcceptanceRules, clock: Clock) -> SignalStore:
    """The file of accepted signals, and what it held taken back into `rules`."""
    store = SignalStore(path, take=lambda: encode(rules.memory(now_s=clock.now_s(), utc_s=clock.wall_utc_s())))
    kept = store.load()
    if kept is None:
        return store
    try:
        memory = decode(SignalMemory, kept, at="signals")
    except (ValueError, OverflowError, RecursionError) as error:
        store.put_aside(str(error))
        return store
    assert isinstance(memory, SignalMemory)
    rules.recall(memory, now_s=clock.now_s(), utc_s=clock.wall_utc_s())
    return store


def _open_recorder(settings: Settings, clock: Clock, state_dir: Path, *, epoch: int) -> FileRecorder:
    """A file of this start alone: two within a second, or before a clock that was set back, share none."""
    folder = state_dir / "recordings"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.jsonl.gz"))[: -RECORDINGS_KEPT + 1]:
            old.unlink()
    except OSError as error:
        raise BadInput(f"state_dir: {folder}: {error.strerror or error}; it must be writable") from None
    return FileRecorder(
        folder / f"{int(clock.wall_utc_s())}-{epoch}.jsonl.gz",
        header={"settings": settings},
        on_fault=lambda why: log.error("recorder stopped", why=why),
    )


def _fresh_rng() -> np.random.Generator:
    """Randomness of back-off and message ids: no one depends on repeating it."""
    return np.random.default_rng()
