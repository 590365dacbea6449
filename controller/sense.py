"""Sense: every device at once, one shared deadline, one frozen `SiteImage`.

A read that misses the deadline goes on in the background and serves a later cycle; there is never more than one read
in flight per device. A device that fails keeps its last value, whose quality falls with age. Nothing here decides.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from controller.ports import (
    Battery,
    Clock,
    DriverError,
    GridSource,
    JobSource,
    LoadBank,
    NodeLink,
    OperatorSource,
    PowerMeter,
    Ups,
    WallSync,
)
from controller.types import (
    SILENT_BATTERY,
    SILENT_LOAD_BANK,
    SILENT_UPS,
    Job,
    MeterSample,
    NodeReport,
    Quality,
    Reading,
    SiteFault,
    SiteImage,
    Trouble,
    replace,
)

T = TypeVar("T")

STALE_PERIODS = 3.0  # FAULTS S4: older than three tracker periods beyond the device's own delay is missing
UPS_PERIOD_S = 1.0  # a UPS is read-only and slow; its battery lasts minutes
NODE_STALE_S = 2.0  # ten reports at the default telemetry rate


class Source(Generic[T]):
    """One device: at most one read in flight, the last reading kept, changes of health told once."""

    def __init__(
        self,
        name: str,
        read: Callable[[], Awaitable[Reading[T]]],
        *,
        stand_in: T,
        fresh_s: float,
        on_change: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self._read = read
        self._fresh_s = fresh_s
        self._on_change = on_change
        self._last = Reading(value=stand_in, t_mono_s=float("-inf"), quality=Quality.MISSING, source=name)
        self._task: asyncio.Task[Reading[T]] | None = None
        self._fault: SiteFault | None = None  # of its newest read
        self._is_lost: bool | None = None  # not known before the first answer or failure

    def start(self) -> asyncio.Task[Reading[T]]:
        """Begin a read unless one is under way; what an earlier one brought is kept."""
        self._take()
        if self._task is None:
            self._task = asyncio.create_task(self._call())
        return self._task

    async def _call(self) -> Reading[T]:
        return await self._read()

    def collect(self, now_s: float) -> Reading[T]:
        """The newest reading, its quality as its age at `now_s` deserves."""
        self._take()
        age_s = self._last.age_s(now_s)
        if age_s <= self._fresh_s:
            return self._last
        quality = Quality.STALE if age_s <= STALE_PERIODS * self._fresh_s else Quality.MISSING
        return Reading(self._last.value, self._last.t_mono_s, max(quality, self._last.quality), self._last.source)

    def _take(self) -> None:
        """What the read in flight brought, if it is done."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            try:
                self._last = task.result()
                self._fault = None
                self._say(lost=self._last.quality is Quality.MISSING, why="no value")
            except DriverError as error:
                self._fault = error.fault
                self._say(lost=True, why=str(error))

    def troubles(self, now_s: float) -> set[Trouble]:
        """What is wrong with it, once its last value is old; another device than was armed, at once."""
        if self._fault is None:
            return set()
        is_fresh = self._last.is_good and self._last.age_s(now_s) <= self._fresh_s
        if is_fresh and self._fault is not SiteFault.DEVICE_CHANGED:
            return set()
        return {Trouble(self._fault, self.name)}

    def _say(self, *, lost: bool, why: str) -> None:
        if lost != self._is_lost:
            self._is_lost = lost
            self._on_change(self.name, why if lost else "")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Sense:
    """Builds the image of one cycle."""

    def __init__(
        self,
        *,
        clock: Clock,
        period_s: float,
        meter: PowerMeter | None,
        meter_delay_s: float,
        battery: Battery | None,
        ups: Mapping[str, Ups],
        sub_meters: Mapping[str, tuple[PowerMeter, float]] | None = None,
        node_link: NodeLink,
        grid: GridSource | None,
        on_change: Callable[[str, str], None],
        jobs: JobSource | None = None,
        sync: WallSync | None = None,
        load_bank: LoadBank | None = None,
        operator: OperatorSource | None = None,
    ) -> None:
        """`sub_meters`: each with how old its values may be on arrival."""
        self._clock = clock
        self._sync = sync
        self._operator = operator
        self._jobs = jobs
        self._told_jobs: tuple[Job, ...] = ()
        self._deadline_s = 0.5 * period_s
        self._node_link = node_link
        self._grid = grid
        fresh_s = period_s + meter_delay_s
        self._meter = (
            Source("pcc", meter.read, stand_in=MeterSample(0.0), fresh_s=fresh_s, on_change=on_change)
            if meter
            else None
        )
        self._battery = (
            Source("battery", battery.read, stand_in=SILENT_BATTERY, fresh_s=fresh_s, on_change=on_change)
            if battery
            else None
        )
        self._load_bank = (
            Source("load_bank", load_bank.read, stand_in=SILENT_LOAD_BANK, fresh_s=fresh_s, on_change=on_change)
            if load_bank
            else None
        )
        self._ups = tuple(
            Source(name, ups[name].read, stand_in=SILENT_UPS, fresh_s=3 * UPS_PERIOD_S, on_change=on_change)
            for name in sorted(ups)
        )
        self._subs = tuple(
            Source(name, meter.read, stand_in=MeterSample(0.0), fresh_s=period_s + delay_s, on_change=on_change)
            for name, (meter, delay_s) in sorted((sub_meters or {}).items())
        )
        self._fast = (self._meter, self._battery, self._load_bank, *self._subs)
        self._ups_ticks = max(1, round(UPS_PERIOD_S / period_s))

    async def image(
        self, tick: int, *, overrun_count: int, is_early: bool = False, troubles: tuple[Trouble, ...] = ()
    ) -> SiteImage:
        """Everything known now; returns within the shared deadline whatever the devices do.

        An early image waits for no device: it is what was known already, with the grid's news. `troubles` are those
        that others found.
        """
        if not is_early:
            await self._read_all(tick)
        now_s = self._clock.now_s()
        reports = self._node_link.reports()
        pcc = _numeric(self._meter.collect(now_s)) if self._meter else None
        battery = self._battery.collect(now_s) if self._battery else None
        return SiteImage(
            t_mono_s=now_s,
            wall_utc_s=self._clock.wall_utc_s(),
            tick=tick,
            pcc=pcc,
            battery=battery,
            ups={source.name: source.collect(now_s) for source in self._ups},
            meters={source.name: _numeric(source.collect(now_s)) for source in self._subs},
            nodes=tuple(_aged(reports[node_id], now_s) for node_id in sorted(reports)),
            signals=self._grid.active(now_s) if self._grid else (),
            is_raise_held=self._grid.is_raise_held if self._grid else False,
            signal_alarms=self._grid.alarms(now_s) if self._grid else (),
            is_grid_link_up=self._grid.is_link_up if self._grid else True,
            overrun_count=overrun_count,
            jobs=self._changed_jobs(now_s),
            troubles=self._troubles(now_s, troubles),
            operator=self._operator.order() if self._operator else None,
            is_clock_synced=self._sync.is_synced if self._sync else True,
            load_bank=self._load_bank.collect(now_s) if self._load_bank else None,
        )

    def _troubles(self, now_s: float, others: tuple[Trouble, ...]) -> tuple[Trouble, ...]:
        """Of the devices that control stands on, and what else was found; each once."""
        found = set(others)
        if self._operator is not None:
            found.update(self._operator.troubles)
        for source in self._fast:
            if source is not None:
                found |= source.troubles(now_s)
        return tuple(sorted(found, key=lambda t: (t.fault, t.subject))) if found else ()

    def ask_meter(self) -> None:
        """Begin a read of the meter that the next early image may find done."""
        if self._meter is not None:
            self._meter.start()

    def _changed_jobs(self, now_s: float) -> tuple[Job, ...] | None:
        """The list of jobs when it is another than in the image before: images are recorded, lists are long."""
        if self._jobs is None or (found := self._jobs.jobs(now_s)) is self._told_jobs:
            return None
        self._told_jobs = found
        return found

    async def _read_all(self, tick: int) -> None:
        due = [source.start() for source in self._fast if source is not None]
        if tick % self._ups_ticks == 0:
            for ups in self._ups:
                ups.start()
        if due:
            await asyncio.sleep(0)  # who answers at once needs no timer
        if waits := [task for task in due if not task.done()]:
            await asyncio.wait(waits, timeout=self._deadline_s)

    def close(self) -> None:
        """Cancel reads in flight."""
        for source in (*self._fast, *self._ups):
            if source is not None:
                source.cancel()


def _numeric(reading: Reading[MeterSample]) -> Reading[MeterSample]:
    """A meter that answers with no number answers nothing; whoever looks further sees NaN, never infinity."""
    if math.isfinite(reading.value.power_w):
        return reading
    nothing = replace(reading.value, power_w=math.nan)
    return Reading(nothing, reading.t_mono_s, Quality.MISSING, reading.source)


def _aged(reading: Reading[NodeReport], now_s: float) -> Reading[NodeReport]:
    age_s = now_s - reading.t_mono_s
    if age_s <= NODE_STALE_S:
        return reading
    quality = Quality.STALE if age_s <= STALE_PERIODS * NODE_STALE_S else Quality.MISSING
    return Reading(reading.value, reading.t_mono_s, max(quality, reading.quality), reading.source)
