"""The node agent: obeys the site's caps while they live, falls back by itself when they expire, reports, gives back.

Starts degraded without NVML or permission and recovers by itself. Nothing is written before the settings found are on
disk. `run` ends only by cancellation, and then gives every GPU its settings back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from controller.clock import NS_PER_S, Ticker
from controller.envelope_node import check_node
from controller.node.deadman import Deadman, Orders
from controller.node.gpu_worker import MISSING_S, GpuWorker, Say
from controller.node.originals import OriginalsCorrupt, OriginalsFile, Saved, how_to
from controller.node.restore import Outcome, give_back
from controller.node.watch import LOOK_S, EventLog, Events, MoreGpus, hear_events
from controller.ports import AgentLink, Clock, DriverError, GpuNode
from controller.settings import NodeSettings
from controller.types import AgentState, FloatArray, GpuId, GpuOriginals, NodeFault, NodeFloor, NodeReport, Quality

RETRY_S = 5.0
TOLD_S = 60.0  # the site hears of damaged originals for so long after the start
CLAMPED_TOLD_S = 2.0
PAUSE_S = 5.0  # a gap between two cycles longer than this is a suspend, and no command outlives it (FAULTS C4)

Opener = Callable[[], Awaitable[Sequence[GpuNode]]]


class NodeAgent:
    """One node. `before_first_write` starts the guard; `on_cycle` feeds the watchdog.

    `more_gpus` opens GPUs that are not among those given and are there now; `events` is what GPUs tell by themselves.
    """

    def __init__(
        self,
        settings: NodeSettings,
        *,
        open_gpus: Opener,
        link: AgentLink,
        clock: Clock,
        originals: OriginalsFile,
        boot_id: str,
        say: Say,
        before_first_write: Callable[[], None] = lambda: None,
        on_cycle: Callable[[], None] = lambda: None,
        more_gpus: MoreGpus | None = None,
        events: Events | None = None,
    ) -> None:
        self._settings = settings
        self._open_gpus = open_gpus
        self._link = link
        self._clock = clock
        self._file = originals
        self._boot_id = boot_id
        self._say = say
        self._before_first_write = before_first_write
        self._on_cycle = on_cycle
        self._more_gpus = more_gpus
        self._events = events
        self._workers: dict[GpuId, GpuWorker] = {}
        self._deadman: Deadman | None = None
        self._saved: Saved | None = None
        self._is_inherited = False
        self._is_guarded = False
        self._corrupt_s = self._clamped_s = -math.inf  # when originals were found damaged, and a cap out of range
        self._returned: frozenset[GpuId] = frozenset()
        self._giving: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}
        self._log = EventLog(clock, say)  # of what others may repeat as often as they like
        self._cycle_s = math.nan
        self._opened_s = math.inf
        self._heard = asyncio.Event()  # a command was taken: the dead-man is due at another time
        self.is_given_back = False  # True after a release that left nothing behind

    # ----------------------------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """Serve until cancelled; then give back what was changed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive())
                tasks.create_task(self._find_gpus(tasks))
                tasks.create_task(self._keep_deadline())
                await self._serve()
        finally:
            await self.release()

    @property
    def is_armed(self) -> bool:
        """True once something may have been written."""
        return self._is_guarded

    async def release(self) -> None:
        """Originals back on every GPU that may differ from them, then the file goes. Safe to call again."""
        if self._giving is not None:
            self._giving.cancel()
        saved = self._saved
        if saved is None or self.is_given_back:
            return
        outcomes: Sequence[Outcome] = ()
        if self._is_inherited or any(worker.was_written for worker in self._workers.values()):
            gpus = [worker.gpu for worker in self._workers.values()]
            outcomes = await give_back(gpus, saved, clock=self._clock)
        for outcome in outcomes:
            if outcome.error:
                self._say(outcome.gpu_id, f"settings not given back: {outcome.error}")
        failed = frozenset(outcome.gpu_id for outcome in outcomes if outcome.error)
        try:
            self._file.keep_only(saved, failed)
        except OSError as error:
            self._say("originals", f"{error.strerror or error}; the file stays")
        self.is_given_back = not failed

    # ------------------------------------------------------------------------------------------------------------ GPUs

    async def _find_gpus(self, tasks: asyncio.TaskGroup) -> None:
        """Open the GPUs, for as long as it takes; start a worker for each; save what was found, as long as it takes."""
        gpus, found = await self._opened()
        self._deadman = Deadman(
            [gpu.spec for gpu in gpus],
            fallback_clock_mhz=self._settings.fallback_clock_mhz,
            fallback_power_limit_w=self._settings.fallback_power_limit_w,
            is_inherited=self._is_inherited,
        )
        for gpu in sorted(gpus, key=lambda gpu: gpu.spec.gpu_id):
            self._start_worker(gpu, tasks)
        self._opened_s = self._clock.now_s()
        while self._saved is None:
            try:
                self._saved = self._file.save(how_to(self._settings), found, boot_id=self._boot_id)
            except OSError as error:
                self._tell("originals", f"cannot be saved: {error.strerror or error}; monitoring only")
                await self._sleep(RETRY_S)
        self._tell("originals", "")
        if self._events is not None:
            tasks.create_task(
                hear_events(self._events, sorted(self._workers), log=self._log, nudge=self._nudge, clock=self._clock)
            )
        if self._more_gpus is not None:
            await self._look_for_more(self._more_gpus, tasks)

    def _start_worker(self, gpu: GpuNode, tasks: asyncio.TaskGroup) -> None:
        worker = GpuWorker(gpu, clock=self._clock, say=self._say)
        self._workers[gpu.spec.gpu_id] = worker
        tasks.create_task(self._drive(worker))

    def _nudge(self, gpu_id: GpuId) -> None:
        """Let this GPU be read now."""
        if gpu_id in self._workers:
            self._workers[gpu_id].news.set()

    async def _look_for_more(self, more_gpus: MoreGpus, tasks: asyncio.TaskGroup) -> None:
        """GPUs that did not answer at the start, or were put in since, join once what was found on them is saved."""
        while True:
            await self._sleep(LOOK_S)
            try:
                for gpu in await more_gpus(frozenset(self._workers)):
                    await self._adopt(gpu, tasks)
            except (DriverError, OSError):
                continue  # tried again at the next look

    async def _adopt(self, gpu: GpuNode, tasks: asyncio.TaskGroup) -> None:
        assert self._saved is not None and self._deadman is not None
        gpu_id = gpu.spec.gpu_id
        is_known = gpu_id in self._saved.by_id
        found = () if is_known else (await gpu.originals(preset=self._preset),)
        self._saved = self._file.save(how_to(self._settings), found, boot_id=self._boot_id)
        self._deadman.add(gpu.spec, is_inherited=is_known)
        self._start_worker(gpu, tasks)
        self._say(gpu_id, "found and taken over")

    async def _opened(self) -> tuple[Sequence[GpuNode], Sequence[GpuOriginals]]:
        """The GPUs and the settings found on those that are not on file yet."""
        while True:
            try:
                gpus = await self._open_gpus()
                found = await self._found(gpus)
            except (DriverError, OSError) as error:
                self._tell("nvml", f"{error}; tried again every {RETRY_S:g} s")
                await self._sleep(RETRY_S)
                continue
            self._tell("nvml", "")
            return gpus, found

    async def _found(self, gpus: Sequence[GpuNode]) -> Sequence[GpuOriginals]:
        try:
            before = self._file.load()
        except OriginalsCorrupt as corrupt:
            self._tell("originals", f"{corrupt}; device defaults stand in")
            specs = [gpu.spec for gpu in gpus]
            before = self._file.stand_in(how_to(self._settings), specs, boot_id=self._boot_id)
        if before is not None and before.is_stand_in:
            self._corrupt_s = self._clock.now_s()
            if "originals" not in self._told:  # `rampart restore` found it first, as after every crash under systemd
                self._tell("originals", "the file was damaged; device defaults stand in")
        self._is_inherited = before is not None and bool(before.gpus)
        known = before.by_id if before else {}
        return [await gpu.originals(preset=self._preset) for gpu in gpus if gpu.spec.gpu_id not in known]

    @property
    def _preset(self) -> int | None:
        """The preset of power smoothing that will be written; None: smoothing is left alone."""
        return self._settings.smoothing.preset if self._settings.smoothing is not None else None

    def _tell(self, subject: str, what: str) -> None:
        """One line per change of state."""
        if self._told.get(subject, "") != what:
            self._told[subject] = what
            self._say(subject, what or "recovered")

    async def _drive(self, worker: GpuWorker) -> None:
        """This GPU's own loop, once a telemetry period or when it is told something new; no other GPU waits for it."""
        period_ns = round(self._settings.telemetry_period_s * NS_PER_S)
        due_ns = self._clock.now_ns()
        while True:
            await worker.step()
            await worker.keep_floor()
            due_ns = max(due_ns + period_ns, self._clock.now_ns())
            if await self._until(due_ns, worker.news):
                due_ns = self._clock.now_ns()

    # ------------------------------------------------------------------------------------------------------- commands

    async def _receive(self) -> None:
        async for command in self._link.commands():
            deadman = self._deadman
            if deadman is None or self._saved is None:
                continue
            specs = {gpu_id: worker.gpu.spec for gpu_id, worker in self._workers.items()}
            verdict = check_node(command, node_id=self._settings.node_id, specs=specs, last=deadman.last)
            for violation in verdict.violations:
                if violation.invariant == 2:
                    self._clamped_s = self._clock.now_s()
                kind = f"{violation.invariant} {violation.subject if violation.subject in specs else ''}"
                what = f"invariant {violation.invariant}: {violation.subject}: {violation.detail}"
                self._log.say("envelope", what, kind=kind)
            if verdict.command is not None:
                deadman.accept(verdict.command, now_s=self._clock.now_s())
                self._order(deadman.step(now_s=self._clock.now_s()))
                self._heard.set()

    async def _keep_deadline(self) -> None:
        """The dead-man at its own instants: what a command's end asks for does not wait for the next report."""
        while True:
            due_s = self._deadman.due_s if self._deadman is not None and self._saved is not None else math.inf
            due_ns = math.ceil(due_s * NS_PER_S) + 1 if math.isfinite(due_s) else None
            if not await self._until(due_ns, self._heard) and self._deadman is not None:
                self._order(self._deadman.step(now_s=self._clock.now_s()))

    async def _until(self, due_ns: int | None, news: asyncio.Event) -> bool:
        """Sleep until `due_ns` (None: without end) or until there is `news`, which is then taken; True for news."""
        heard: asyncio.Future[bool] = asyncio.ensure_future(news.wait())
        waits: set[asyncio.Future[bool] | asyncio.Future[None]] = {heard}
        if due_ns is not None:
            waits.add(asyncio.ensure_future(self._clock.sleep_until_ns(due_ns)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        is_news = news.is_set()
        news.clear()
        return is_news

    async def _serve(self) -> None:
        """Every telemetry period: the dead-man's orders out to the workers, a report to the site."""
        ticker = Ticker(self._clock, period_s=self._settings.telemetry_period_s)
        while True:
            await ticker.tick()
            now_s = self._clock.now_s()
            if self._deadman is not None and self._saved is not None:
                if now_s - self._cycle_s > PAUSE_S:
                    self._say("agent", f"paused for {now_s - self._cycle_s:.1f} s; commands expired")
                    self._deadman.forget()
                self._order(self._deadman.step(now_s=now_s))
            self._cycle_s = now_s
            await self._report(now_s)
            self._on_cycle()

    def _order(self, orders: Orders) -> None:
        floor = None if orders.gives_back else self._settings.smoothing
        if (orders.caps or orders.gives_back or floor is not None) and not self._is_guarded:
            try:
                self._before_first_write()
            except OSError as error:
                self._tell("guard", f"cannot be started: {error.strerror or error}; nothing is written without it")
                return
            self._is_guarded = True
        if not orders.gives_back:
            self._stop_giving()
        for gpu_id, worker in self._workers.items():
            worker.want(orders.caps.get(gpu_id), orders.order)
            worker.want_floor(floor if self._is_floor_saved(gpu_id) else None)
        if orders.gives_back and (self._giving is None or self._giving.done()):
            self._giving = asyncio.create_task(self._give_back())

    def _is_floor_saved(self, gpu_id: GpuId) -> bool:
        """What is not on file as found could not be given back, so it is not written."""
        found = self._saved.by_id.get(gpu_id) if self._saved is not None else None
        return found is not None and found.smoothing is not None

    def _stop_giving(self) -> None:
        """The site took this node back: GPUs that have not had their turn keep theirs, the others are written anew."""
        giving, self._giving = self._giving, None
        self._returned = frozenset()
        if giving is not None:
            giving.cancel()
            for worker in self._workers.values():
                worker.forget_settings()

    async def _give_back(self) -> None:
        """The site released this node: originals once; the file stays until the agent stops."""
        assert self._saved is not None
        left = sorted(set(self._workers) - self._returned)
        if left:
            outcomes = await give_back([self._workers[g].gpu for g in left], self._saved, clock=self._clock)
            done = {outcome.gpu_id for outcome in outcomes if outcome.is_done}
            self._returned |= done
            for gpu_id in done:
                self._workers[gpu_id].forget_settings()

    # -------------------------------------------------------------------------------------------------------- reports

    async def _report(self, now_s: float) -> None:
        if not self._has_looked(now_s):
            return
        try:
            await self._link.publish(self.report(now_s))
        except DriverError:
            return  # the link tells of its own loss; the next report replaces this one

    def _has_looked(self, now_s: float) -> bool:
        """Every GPU was read once, or had its time for it: one that was not asked yet would be told as hanging."""
        is_read = all(worker.status.reading is not None for worker in self._workers.values())
        return is_read or now_s - self._opened_s >= MISSING_S

    def report(self, now_s: float) -> NodeReport:
        """Telemetry as of `now_s`; what was not read is NaN, a clock that is not locked too."""
        workers = [self._workers[gpu_id] for gpu_id in sorted(self._workers)]
        epoch, seq = self._acked(workers)
        return NodeReport(
            node_id=self._settings.node_id,
            boot_id=self._boot_id,
            t_mono_s=now_s,
            state=self._state(workers),
            stands_for=self._settings.stands_for,
            gpu_ids=tuple(worker.gpu.spec.gpu_id for worker in workers),
            power_w=_array([w.status.reading.value.power_w if w.status.reading else math.nan for w in workers]),
            clock_mhz=_array([w.status.reading.value.clock_mhz if w.status.reading else math.nan for w in workers]),
            clock_cap_mhz=_array([_cap_mhz(worker) for worker in workers]),
            power_limit_w=_array([_limit_w(worker) for worker in workers]),
            quality=np.array([_quality(worker, now_s) for worker in workers], dtype=np.int8),
            is_controllable=np.array([self._saved is not None and w.status.is_controllable for w in workers], bool),
            other_w=self._settings.other_w,
            acked_epoch=epoch,
            acked_seq=seq,
            specs=tuple(worker.gpu.spec for worker in workers),
            fallback_clock_mhz=float(self._settings.fallback_clock_mhz),
            floor=self._floor(workers, now_s),
            instant_w=_array([w.status.reading.value.instant_w if w.status.reading else math.nan for w in workers]),
            faults=self._faults(workers, now_s),
            taken_s=now_s,
        )

    def _floor(self, workers: Sequence[GpuWorker], now_s: float) -> NodeFloor | None:
        """What the armed GPUs hold above idle when their jobs stop; None where nothing is armed."""
        smoothing = self._settings.smoothing
        armed = [w for w in workers if w.status.has_floor and _quality(w, now_s) is Quality.GOOD]
        if smoothing is None or not armed:
            return None
        power_w = 0.0
        for worker in armed:
            spec, reading = worker.gpu.spec, worker.status.reading
            assert reading is not None
            held_w = min(smoothing.profile.floor_frac * spec.power_limit_w_max, reading.value.power_w)
            power_w += max(0.0, min(held_w, reading.value.power_limit_w) - spec.idle_w)
        return NodeFloor(power_w, smoothing.profile.hysteresis_s, len(armed) * smoothing.profile.down_w_per_s)

    def _faults(self, workers: Sequence[GpuWorker], now_s: float) -> tuple[NodeFault, ...]:
        found: set[NodeFault] = set().union(*(worker.faults(now_s) for worker in workers))
        if 2 * sum(worker.is_left for worker in workers) > len(workers):
            found.add(NodeFault.FOREIGN_WRITER_WON)
        if now_s - self._corrupt_s < TOLD_S:
            found.add(NodeFault.ORIGINALS_CORRUPT)
        if now_s - self._clamped_s < CLAMPED_TOLD_S:
            found.add(NodeFault.CAP_CLAMPED)
        return tuple(sorted(found))

    def _state(self, workers: Sequence[GpuWorker]) -> AgentState:
        if self._deadman is None or self._saved is None or not workers:
            return AgentState.MONITOR_ONLY
        if all(worker.status.is_forbidden for worker in workers):
            return AgentState.MONITOR_ONLY
        return self._deadman.state

    def _acked(self, workers: Sequence[GpuWorker]) -> tuple[int, int]:
        """The newest command that every controllable GPU has read back."""
        orders = [worker.status.applied for worker in workers if worker.status.is_controllable]
        return max(min(orders, default=(0, 0)), (0, 0))

    async def _sleep(self, seconds: float) -> None:
        await self._clock.sleep_until_ns(self._clock.now_ns() + round(seconds * NS_PER_S))


def _array(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _cap_mhz(worker: GpuWorker) -> float:
    reading = worker.status.reading
    return math.nan if reading is None or reading.value.clock_cap_mhz is None else reading.value.clock_cap_mhz


def _limit_w(worker: GpuWorker) -> float:
    reading = worker.status.reading
    return worker.gpu.spec.power_limit_w_max if reading is None else reading.value.power_limit_w


def _quality(worker: GpuWorker, now_s: float) -> Quality:
    reading = worker.status.reading
    if reading is None or reading.age_s(now_s) > MISSING_S:
        return Quality.MISSING
    return reading.quality
