"""Runs a scenario: the daemon that ships, on simulated ports, in virtual or real time, judged on plant truth.

The daemon is built by `app.build` from the scenario's site file and knows nothing of a bench. The referee gets every
sample of truth, the tick log what the controller decided, and `hil.result` makes the verdict of it. With no controller
the plant runs alone: the uncontrolled site.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from controller.audit.referee import Referee
from controller.audit.verdicts import Verdicts
from controller.ports import Clock, Recorder
from controller.settings import Policy, Settings, SiteSettings
from controller.types import FloatArray, frozen
from hil import vtime
from hil.factories import make_factories
from hil.plant.site import BATTERY, LOAD, NS_PER_S, PCC, SOC, TruthBlock
from hil.ports import NoRecorder
from hil.run_log import (
    BriefRecorder,
    MarginLog,
    ModeLog,
    OffsetClock,
    Stopwatch,
    TickView,
    whole_file,
)
from hil.scenario import Scenario
from hil.signal_plan import grid_signals, span_referees
from hil.truth_log import Moments, PccCsv, Rows, TickLog
from hil.vtime import VirtualClock
from hil.world import World, build_world

START_UTC_S = 1_767_225_600.0  # 2026-01-01: the wall clock of a virtual world begins here, whatever the machine's says
PROGRESS_STEPS = 400
REAL_PUMP_S = 0.01  # how often real time moves the plant when nobody asks for it

if TYPE_CHECKING:
    from controller.app import Factories, Runner

OnTick = Callable[[TickView], None]
DaemonBuilder = Callable[[Settings, "Factories", OnTick], "Runner"]


@frozen
class Progress:
    """Where a run stands; powers of this instant."""

    t_s: float
    duration_s: float
    pcc_w: float
    load_w: float
    battery_w: float
    soc_frac: float
    ref_w: float
    low_w: float
    high_w: float
    cap_frac: float
    ratio: float  # simulated seconds per second of the machine


@frozen
class SignalVerdict:
    """One accepted signal judged on truth from the time it had to be met."""

    signal_id: str
    verdicts: Verdicts


@frozen
class WireFacts:
    """What only a run on real wires can tell: `facts` goes into `result.json` as it is, the rest into its own keys."""

    tick_count: int
    tick_ms: Mapping[str, float]  # p50, p99, max, as the controller measured them
    overruns: int
    plan_count: int
    plan_ms: Mapping[str, float]
    fallbacks: int
    violations: Mapping[int, int]  # how often the envelope narrowed a command, by invariant
    left_all_clean: bool  # no GPU throttled, no process that had to be killed
    facts: Mapping[str, object]


@frozen
class RunRecord:
    """Everything a run left behind; `hil.result` turns it into `result.json`."""

    scenario: Scenario
    world: World
    verdicts: Verdicts
    signal_verdicts: tuple[SignalVerdict, ...]
    ticks: TickLog
    margins: MarginLog
    modes: ModeLog
    stopwatch: Stopwatch
    moments: Moments
    rows: Rows
    start_soc_frac: float | None
    wall_s: float
    cpu_s: float
    wire: WireFacts | None = None


# ------------------------------------------------------------------------------------------------ running


def run(
    scenario: Scenario,
    *,
    out: Path | None = None,
    build: DaemonBuilder | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_start: Callable[[World], None] = lambda _: None,
) -> RunRecord:
    """Run `scenario` to its end; `pcc.csv` and the recording go to `out` while it runs, whole or not at all.

    `on_start` is shown the plant before the first step.
    """
    site = scenario.settings.site
    assert site is not None, "a scenario's site file has role site"
    with contextlib.ExitStack() as stack:
        csv_file = stack.enter_context(whole_file(out / "pcc.csv")) if out else None
        is_recorded = out is not None and site.policy is not Policy.NONE
        recording = stack.enter_context(whole_file(out / "recording.jsonl.gz")) if out and is_recorded else None
        bench = Bench(scenario, site, csv_file=csv_file, recording=recording, build=build, on_progress=on_progress)
        on_start(bench.world)
        stack.enter_context(rare_collections())
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        if scenario.doc.clock == "virtual":
            vtime.run(bench.in_virtual_time())
        else:
            asyncio.run(bench.in_real_time())
        return bench.record(wall_s=time.perf_counter() - started_s, cpu_s=time.process_time() - started_cpu_s)


class Bench:
    """One run in progress. Whoever moves the plant elsewhere (`hears_live` False) hands the truth over by `hear`."""

    def __init__(
        self,
        scenario: Scenario,
        site: SiteSettings,
        *,
        csv_file: TextIO | None,
        recording: TextIO | None,
        build: DaemonBuilder | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        hears_live: bool = True,
    ) -> None:
        self._scenario, self._site = scenario, site
        self._recording = recording
        self._build = build or build_daemon
        self._on_progress = on_progress
        self._started_s = time.perf_counter()
        self.world = build_world(scenario)
        plant = self.world.plant
        self._start_soc = plant.battery.soc_frac if plant.battery else None
        self._ticks, self._margins, self._modes = TickLog(), MarginLog(), ModeLog()
        self._stopwatch = Stopwatch()
        self._last: TickView | None = None
        self._referee = Referee(site.contract)
        self._signals = grid_signals(scenario, site)
        self._signal_referees = span_referees(scenario, site)
        self._moments = Moments([e.t_s for e in scenario.doc.events])
        self._csv = PccCsv(csv_file, self._ticks)
        if hears_live:
            plant.listen(self.hear)

    async def in_virtual_time(self) -> None:
        loop = vtime.running_loop()
        await self._go(VirtualClock(loop, start_utc_s=START_UTC_S))

    async def in_real_time(self) -> None:
        await self._go(OffsetClock(), pump=True)

    async def _go(self, clock: Clock, *, pump: bool = False) -> None:
        end_ns = round(self.world.duration_s * NS_PER_S)
        if self._site.policy is Policy.NONE:
            await self._watch(clock, end_ns, pump=pump)
        else:
            runner = self._build(self._scenario.settings, self._factories(clock), self.on_tick)
            daemon = asyncio.ensure_future(runner())
            watch = asyncio.ensure_future(self._watch(clock, end_ns, pump=pump))
            try:
                await asyncio.wait((daemon, watch), return_when=asyncio.FIRST_COMPLETED)
                if daemon.done():
                    daemon.result()  # a daemon never returns by itself: this raises what ended it
                    raise RuntimeError("the daemon returned before the run was over")
            finally:
                for task in (daemon, watch):
                    task.cancel()
                await asyncio.gather(daemon, watch, return_exceptions=True)
        self.world.plant.advance_ns(end_ns)
        self.world.plant.finish()
        self.close()

    async def _watch(self, clock: Clock, end_ns: int, *, pump: bool) -> None:
        """Move the plant when nobody else does, and tell how far the run is."""
        step_ns = round(REAL_PUMP_S * NS_PER_S) if pump else max(end_ns // PROGRESS_STEPS, NS_PER_S)
        told_s = -1.0
        t_ns = 0
        while t_ns < end_ns:
            t_ns = min(max(t_ns + step_ns, clock.now_ns() if pump else 0), end_ns)
            await clock.sleep_until_ns(t_ns)
            self.world.plant.advance_ns(min(clock.now_ns(), end_ns))
            if not pump or clock.now_s() - told_s >= 0.25:
                told_s = clock.now_s()
                self._on_progress(self.progress())

    def _factories(self, clock: Clock) -> Factories:
        return make_factories(
            self._scenario, self.world, clock, recorder=self._recorder(clock), stopwatch=self._stopwatch
        )

    def _recorder(self, clock: Clock) -> Recorder:
        if self._recording is None:
            return NoRecorder()
        return BriefRecorder(
            self._recording,
            clock,
            until_s=self._scenario.doc.record_s,
            header={"settings": self._scenario.settings},
        )

    def on_tick(self, view: TickView) -> None:
        least_w = min((m.value for m in view.margins if m.unit == "W"), default=float("nan"))
        self._ticks.add(
            t_s=view.t_s,
            ref_w=view.ref_w,
            low_w=view.low_w,
            high_w=view.high_w,
            margin_w=least_w,
            cap_frac=view.cap_frac,
            mode=view.mode,
        )
        self._margins.add(view.margins)
        self._modes.add(view)
        self._stopwatch.completed(view, plan_budget_ms=self._site.planner_period_s * 1e3)
        self._last = view

    def hear(self, block: TruthBlock) -> None:
        """Judge, write and keep one block of truth; blocks come in order and without gaps."""
        self._judge(block)
        self._csv(block)
        self._moments(block)

    def close(self) -> None:
        """No truth comes any more."""
        self._csv.close()

    def _judge(self, block: TruthBlock) -> None:
        t_s: FloatArray = block.t0_s + np.arange(block.pcc_w.size, dtype=np.float64) * block.dt_s
        senses = {"voltage_pu": block.voltage_pu, "frequency_hz": block.frequency_hz}
        self._referee.feed(t_s, block.pcc_w, **senses)
        for span in self._signal_referees:
            inside = (t_s >= span.from_s) & (t_s <= span.until_s)
            if inside.any():
                span.is_fed = True
                span.referee.feed(t_s[inside], block.pcc_w[inside])

    def progress(self) -> Progress:
        plant, view = self.world.plant, self._last
        return Progress(
            t_s=plant.now_s,
            duration_s=self.world.duration_s,
            pcc_w=plant.now(PCC),
            load_w=plant.now(LOAD),
            battery_w=plant.now(BATTERY),
            soc_frac=plant.now(SOC),
            ref_w=view.ref_w if view else float("nan"),
            low_w=view.low_w if view else float("nan"),
            high_w=view.high_w if view else float("nan"),
            cap_frac=view.cap_frac if view else 1.0,
            ratio=plant.now_s / max(time.perf_counter() - self._started_s, 1e-9),
        )

    def record(self, *, wall_s: float, cpu_s: float) -> RunRecord:
        return RunRecord(
            scenario=self._scenario,
            world=self.world,
            verdicts=self._referee.finish(),
            signal_verdicts=tuple(
                SignalVerdict(s.signal_id, s.referee.finish()) for s in self._signal_referees if s.is_fed
            ),
            ticks=self._ticks,
            margins=self._margins,
            modes=self._modes,
            stopwatch=self._stopwatch,
            moments=self._moments,
            rows=self._csv.rows(),
            start_soc_frac=self._start_soc,
            wall_s=wall_s,
            cpu_s=cpu_s,
        )


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage seldom: a run makes little of it in cycles, and looking for it costs a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def build_daemon(settings: Settings, factories: Factories, on_tick: OnTick) -> Runner:
    """The daemon that ships, its cycles shown to `on_tick`."""
    from controller.app import build
    from hil.tick_view import Viewer

    daemon = build(settings, factories)
    site = settings.site
    assert site is not None
    viewer = Viewer(site.policy)
    daemon.observe(lambda trace: on_tick(viewer.view(trace, daemon.core.plan)))
    return daemon.run
