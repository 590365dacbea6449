"""The loop: sense, decide, check, act, plan, record. Read `Cycle.step` first; everything else in Rampart serves it.

A grid signal, or the core in an emergency, may ask for a cycle before its tick: the same cycle, only earlier, on what
the devices said last. Ticks come off their own times by what the core says (`controller/tick_phase.py`). The loop has
no branch on what is simulated or real. The watchdog is fed only by a completed cycle, and planning comes after acting,
so that the tracker never waits for the planner.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from controller.actuate import Acks, Actuate
from controller.clock import NS_PER_S, Ticker
from controller.core import SiteCore
from controller.decision import Checked, Decision
from controller.plan.plan import Plan
from controller.ports import Clock, GridSource, Lease, Recorder
from controller.sense import Sense
from controller.types import Quality, SiteFault, SiteImage, Trouble, frozen

R = TypeVar("R")

STALL_PERIODS = 5  # FAULTS C3: after a longer stall the watchdog is not fed


@frozen
class TickTrace:
    """One completed cycle, for status, metrics and the bench."""

    image: SiteImage
    decision: Decision
    checked: Checked
    acks: Acks
    tick_ms: float  # from the instant the tick was due to the set-point acknowledged
    plan: Plan | None  # in force from the next tick on
    is_planned: bool  # in this cycle
    plan_ms: float
    overrun_count: int


Observer = Callable[[TickTrace], None]


class Cycle:
    """Runs the core at the tracker's rate."""

    def __init__(
        self,
        *,
        clock: Clock,
        period_s: float,
        sense: Sense,
        core: SiteCore,
        actuate: Actuate,
        grid: GridSource | None,
        recorder: Recorder,
        lease: Lease,
        feed_watchdog: Callable[[], None],
        wake: asyncio.Event | None = None,
    ) -> None:
        """`wake` is set by whoever has news that should not wait for the next tick."""
        self._clock = clock
        self._wake = wake or asyncio.Event()
        self._period_s = period_s
        self._sense = sense
        self._core = core
        self._actuate = actuate
        self._grid = grid
        self._recorder = recorder
        self._lease = lease
        self._feed_watchdog = feed_watchdog
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> None:
        """Call `observer` after every completed cycle; it must be quick and must not raise."""
        self._observers.append(observer)

    async def run(self) -> None:
        """Cycle until cancelled."""
        ticker = Ticker(self._clock, period_s=self._period_s)
        tick = -1
        due = self._waking(ticker.tick())
        try:
            while True:
                await self._until_due(due, tick=tick, overrun_count=ticker.overrun_count)
                tick = await due
                await self.step(tick, due_ns=ticker.due_ns, overrun_count=ticker.overrun_count)
                due = self._waking(ticker.tick(offset_s=self._core.tick_offset_s))
        finally:
            due.cancel()
            self._sense.close()
            self._actuate.close()

    def _waking(self, wait: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """A wait whose end wakes the loop, as news does."""
        task = asyncio.create_task(wait)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            self._wake.set()

    async def _until_due(self, due: asyncio.Task[int], *, tick: int, overrun_count: int) -> None:
        """Early cycles, at news and in time for what the core has to do, until the next tick is due."""
        while True:
            early_s, sleep = self._core.early_s, None
            if math.isfinite(early_s):
                sleep = self._waking(self._clock.sleep_until_ns(math.ceil(early_s * NS_PER_S) + 1))
            try:
                await self._wake.wait()
            finally:
                if sleep is not None:
                    sleep.cancel()
            self._wake.clear()
            if due.done():
                return
            await self.step(tick, due_ns=self._clock.now_ns(), overrun_count=overrun_count, is_early=True)

    async def step(self, tick: int, *, due_ns: int, overrun_count: int, is_early: bool = False) -> None:
        """One cycle; an early one waits for no device."""
        image = await self._sense.image(tick, overrun_count=overrun_count, is_early=is_early, troubles=self._troubles())
        self._lease.see([r.value.acked_epoch for r in image.nodes if r.quality is not Quality.MISSING])
        is_leader = self._lease.is_held  # asked once: what is recorded is what was decided with
        decision = self._core.decide(image, is_leader=is_leader)
        checked = self._core.check(decision)
        acks = await self._actuate.apply(checked.command)
        if self._core.early_s - image.t_mono_s < self._period_s:  # a response is under way
            self._sense.ask_meter()  # after the writes, which may share its wire
        acted_ns = self._clock.now_ns()
        self._core.acknowledge(image, checked, battery=acks.battery, load_bank=acks.load_bank)
        planned = self._core.plan_if_due(decision)
        plan_ms = (self._clock.now_ns() - acted_ns) * 1e3 / NS_PER_S if planned else 0.0
        self._recorder.record("cycle", _record(image, checked, is_leader, acks))
        trace = TickTrace(
            image=image,
            decision=decision,
            checked=checked,
            acks=acks,
            tick_ms=(acted_ns - due_ns) * 1e3 / NS_PER_S,
            plan=self._core.plan,
            is_planned=planned,
            plan_ms=plan_ms,
            overrun_count=overrun_count,
        )
        for observer in self._observers:
            observer(trace)
        if self._grid is not None:
            self._grid.report(image, checked.command, decision.margins, outlook=lambda: self._core.outlook(decision))
        if (self._clock.now_ns() - due_ns) <= STALL_PERIODS * self._period_s * NS_PER_S:
            self._feed_watchdog()

    def _troubles(self) -> tuple[Trouble, ...]:
        """What this cycle's own writes and records met last."""
        own = self._actuate.troubles
        return (*own, Trouble(SiteFault.DISK_FULL, "recorder")) if self._recorder.has_failed else own


def _record(image: SiteImage, checked: Checked, is_leader: bool, acks: Acks) -> Mapping[str, object]:
    return {"image": image, "command": checked.command, "is_leader": is_leader, "acks": acks}
