"""Composition: joins core and drivers into the daemon. The only file that knows both.

`build` takes settings and the ports to run on; `live_factories` makes the real ones. The bench calls the same `build`
with ports of its own, so that what it judges is what ships.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field

import structlog

from controller.actuate import Actuate
from controller.config.gpu import load_curves
from controller.core import SiteCore
from controller.cycle import Cycle, Observer
from controller.plan.plan import Planner
from controller.plan.rule import RuleMaxPlanner, RulePlanner
from controller.plan.shape import planner_shape
from controller.planner_start import mpc_planner
from controller.ports import (
    Battery,
    Clock,
    GridSource,
    JobSource,
    Lease,
    LoadBank,
    NodeLink,
    OperatorSource,
    PowerMeter,
    Recorder,
    Ups,
    WallSync,
)
from controller.reserve import NO_BATTERY, battery_bounds, crash_slope_w_per_s, reserve_rows
from controller.sense import Sense
from controller.settings import Policy, Settings, SiteSettings, Stance
from controller.types import Direction, frozen

Runner = Callable[[], Awaitable[None]]


@frozen
class Factories:
    """The ports one site controller runs on. `background` are loops that live as long as the daemon."""

    clock: Clock
    meter: PowerMeter | None
    battery: Battery | None
    node_link: NodeLink
    recorder: Recorder
    lease: Lease
    ups: Mapping[str, Ups] = field(default_factory=dict)
    sub_meters: Mapping[str, PowerMeter] = field(default_factory=dict)
    grid: GridSource | None = None
    jobs: JobSource | None = None
    load_bank: LoadBank | None = None
    sync: WallSync | None = None  # None: nothing hangs on the wall clock, or the site answers for it
    operator: OperatorSource | None = None
    feed_watchdog: Callable[[], None] = lambda: None
    background: tuple[Runner, ...] = ()
    counters: Mapping[str, Callable[[], Mapping[str, int]]] = field(default_factory=dict)  # of the links, by name
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # set: the next cycle comes at once


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
    core = make_core(site, epoch=factories.lease.epoch)

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
                load_bank=factories.load_bank,
                node_link=factories.node_link,
                deadline_s=0.5 * site.tracker_period_s,
                on_change=on_change,
            ),
            grid=factories.grid,
            recorder=factories.recorder,
            lease=factories.lease,
            feed_watchdog=factories.feed_watchdog,
            wake=factories.wake,
        ),
        core=core,
        background=factories.background,
    )


def make_core(site: SiteSettings, *, epoch: int) -> SiteCore:
    """The core of a site, with the planner it asks for; what the daemon runs and a replay runs again."""
    return SiteCore(site, epoch=epoch, planner=make_planner(site), curves=load_curves())


def make_planner(site: SiteSettings) -> Planner:
    """The planner the site asks for. A child process builds the quadratic program, which keeps CVXPY out of ours."""
    if site.policy is Policy.RULE_MAX:
        return RuleMaxPlanner()
    if site.policy in (Policy.RULE, Policy.NONE):
        return RulePlanner()
    battery = battery_bounds(site.battery) if site.battery is not None else NO_BATTERY
    rows = {d: reserve_rows(site.contract, direction=d) for d in (Direction.DOWN, Direction.UP)}
    shape = planner_shape(
        classes=len(site.classes) + 1,
        battery=battery,
        fall_w_per_s=crash_slope_w_per_s(rows[Direction.DOWN], residual_w=0.0),
        rise_w_per_s=crash_slope_w_per_s(rows[Direction.UP], residual_w=0.0),
        is_rise_enforced=any(c.rise is Stance.ENFORCE for c in site.contingencies) or site.battery is None,
        peak_w=site.registered_peak_w,
        has_ballast=site.load_bank is not None,
    )
    return mpc_planner(shape, is_lean=True)


def _sense(site: SiteSettings, factories: Factories, on_change: Callable[[str, str], None]) -> Sense:
    return Sense(
        clock=factories.clock,
        period_s=site.tracker_period_s,
        meter=factories.meter,
        meter_delay_s=site.meter.delay_s + site.meter.update_s if site.meter else 0.0,
        battery=factories.battery,
        ups=factories.ups,
        sub_meters={m.name: (factories.sub_meters[m.name], m.delay_s + m.update_s) for m in site.sub_meters},
        node_link=factories.node_link,
        grid=factories.grid,
        jobs=factories.jobs,
        sync=factories.sync,
        load_bank=factories.load_bank,
        operator=factories.operator,
        on_change=on_change,
    )
