"""Composition: joins core and drivers into the daemon. The only file that knows both.

`build` takes settings and the ports to run on; `live_factories` makes the real ones. The bench calls the same `build`
with ports of its own, so that what it judges is what ships.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from controller.actuate import Actuate
from controller.core import SiteCore
from controller.cycle import Cycle, Observer
from controller.ports import Battery, Clock, GridSource, JobSource, Lease, NodeLink, PowerMeter, Recorder, Ups
from controller.sense import Sense
from controller.settings import Settings, SiteSettings

Runner = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Factories:
    """The ports one site controller runs on. `background` are loops that live as long as the daemon."""

    clock: Clock
    meter: PowerMeter | None
    battery: Battery | None
    node_link: NodeLink
    recorder: Recorder
    lease: Lease
    ups: Mapping[str, Ups] = field(default_factory=dict)
    grid: GridSource | None = None
    jobs: JobSource | None = None
    feed_watchdog: Callable[[], None] = lambda: None
    background: tuple[Runner, ...] = ()


class Daemon:
    """The site controller, ready to run."""

    def __init__(self, *, cycle: Cycle, core: SiteCore, background: tuple[Runner, ...]) -> None:
        self.cycle = cycle
        self.core = core
        self._background = background

    def observe(self, observer: Observer) -> None:
        """Call `observer` after every completed cycle."""
        self.cycle.observe(observer)

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for runner in self._background:
                group.create_task(_as_coroutine(runner))
            group.create_task(self.cycle.run())


async def _as_coroutine(runner: Runner) -> None:
    await runner()


def build(settings: Settings, factories: Factories) -> Daemon:
    """The daemon of a site (role site or both), joined to `factories`."""
    site = settings.site
    assert site is not None, "a node agent is built by controller.node"
    log = structlog.get_logger("rampart")
    core = SiteCore(site, epoch=factories.lease.epoch, jobs=factories.jobs)

    def on_change(subject: str, why: str) -> None:
        if why:
            log.warning("lost", subject=subject, why=why)
        else:
            log.info("recovered", subject=subject)

    return Daemon(
        cycle=Cycle(
            clock=factories.clock,
            period_s=site.tracker_period_s,
            sense=_sense(site, factories, on_change),
            core=core,
            actuate=Actuate(
                battery=factories.battery,
                node_link=factories.node_link,
                deadline_s=0.5 * site.tracker_period_s,
                on_change=on_change,
            ),
            grid=factories.grid,
            recorder=factories.recorder,
            lease=factories.lease,
            feed_watchdog=factories.feed_watchdog,
        ),
        core=core,
        background=factories.background,
    )


def _sense(site: SiteSettings, factories: Factories, on_change: Callable[[str, str], None]) -> Sense:
    return Sense(
        clock=factories.clock,
        period_s=site.tracker_period_s,
        meter=factories.meter,
        meter_delay_s=site.meter.delay_s + site.meter.update_s if site.meter else 0.0,
        battery=factories.battery,
        ups=factories.ups,
        node_link=factories.node_link,
        grid=factories.grid,
        on_change=on_change,
    )
