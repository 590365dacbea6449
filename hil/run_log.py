"""What a run remembers of the daemon under test: its ticks, its margins, how long it computed, its recording.

Real time is read here, and only to time the computation; nothing in a run depends on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from controller.clock import MonotonicClock
from controller.codec import encode
from controller.errors import BadInput
from controller.ports import Battery, Clock, PowerMeter, Recorder
from controller.types import BatteryCommand, BatterySample, Margin, MeterSample, Reading, frozen
from hil.vtime import NS_PER_S

RECORDING_FORMAT = "rampart-recording/1"
CHANGES_MAX = 1_000  # of the mode, kept with their reasons: more than anyone reads, and a bound for a run of weeks


@frozen
class TickView:
    """What the bench keeps of one completed cycle of the daemon."""

    t_s: float
    ref_w: float
    low_w: float
    high_w: float
    mode: int
    cap_frac: float  # the tighter of clock and power limit on each GPU, relative to full; the mean
    margins: tuple[Margin, ...]
    planned: bool
    is_fallback: bool  # the plan in force did not come from the planner asked for
    plan_ms: float
    overrun_count: int
    violations: tuple[int, ...] = ()  # invariants of the envelope that the proposal broke
    reasons: tuple[str, ...] = ()  # why the mode is what it is, the gravest first


class MarginLog:
    """Per tick: which conditions of safety held. Kept as counts, not as a history."""

    def __init__(self) -> None:
        self.tick_count = 0  # after first entry
        self.safe_count = 0
        self.held: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.least: dict[str, float] = {}
        self._has_entered = False

    def add(self, margins: Sequence[Margin]) -> None:
        """Count one tick. Nothing counts before the first tick at which every margin holds."""
        is_safe = all(m.value >= 0.0 for m in margins)
        self._has_entered = self._has_entered or (is_safe and bool(margins))
        for m in margins:
            self.least[m.name] = min(self.least.get(m.name, m.value), m.value)
        by_name: dict[str, bool] = {}
        for m in margins:
            condition = m.name.partition(":")[0]  # a transient margin names its row behind a colon
            by_name[condition] = by_name.get(condition, True) and m.value >= 0.0
        for name, holds in by_name.items():
            self.seen[name] = self.seen.get(name, 0) + 1
            self.held[name] = self.held.get(name, 0) + int(holds)
        if self._has_entered and margins:
            self.tick_count += 1
            self.safe_count += int(is_safe)


@frozen
class ModeChange:
    """From when on another mode was in force, and why."""

    t_s: float
    mode: int
    reasons: tuple[str, ...]


class ModeLog:
    """How long each mode was in force, in ticks, when and why it changed, and what the envelope had to defend."""

    def __init__(self) -> None:
        self.ticks: dict[int, int] = {}
        self.changes: list[ModeChange] = []  # the first is the mode at the start
        self.violations: dict[int, int] = {}

    def add(self, view: TickView) -> None:
        if (not self.changes or self.changes[-1].mode != view.mode) and len(self.changes) < CHANGES_MAX:
            self.changes.append(ModeChange(view.t_s, view.mode, view.reasons))
        self.ticks[view.mode] = self.ticks.get(view.mode, 0) + 1
        for invariant in view.violations:
            self.violations[invariant] = self.violations.get(invariant, 0) + 1


class Stopwatch:
    """Real time that a tick takes to compute: from the meter's answer to the battery's set-point, plant excluded."""

    def __init__(self) -> None:
        self.tick_ms = array("d")
        self.plan_ms = array("d")
        self.plan_count = 0
        self.fallback_count = 0
        self.miss_count = 0
        self.overrun_count = 0
        self._started_ns = 0
        self._acted_ns = 0
        self._decided_ns = 0

    def start(self) -> None:
        self._started_ns = time.perf_counter_ns()

    def acted(self) -> None:
        self._acted_ns = time.perf_counter_ns()
        if self._started_ns:
            self.tick_ms.append((self._acted_ns - self._started_ns) / 1e6)
            self._started_ns = 0

    def decided(self) -> None:
        """The cycle is about to be recorded: planning, if it was due, is done."""
        self._decided_ns = time.perf_counter_ns()

    def completed(self, view: TickView, *, plan_budget_ms: float) -> None:
        """One cycle is over; when it planned, planning took from acting to recording."""
        self.overrun_count = view.overrun_count
        if not view.planned:
            return
        plan_ms = view.plan_ms or (self._decided_ns - self._acted_ns) / 1e6
        self.plan_count += 1
        self.plan_ms.append(plan_ms)
        self.fallback_count += int(view.is_fallback)
        self.miss_count += int(plan_ms > plan_budget_ms)


class TimedMeter:
    """A meter that starts the stopwatch when it has answered."""

    def __init__(self, inner: PowerMeter, stopwatch: Stopwatch) -> None:
        self._inner, self._stopwatch = inner, stopwatch

    async def read(self) -> Reading[MeterSample]:
        reading = await self._inner.read()
        self._stopwatch.start()
        return reading


class TimedBattery:
    """A battery that stops it when it is written to."""

    def __init__(self, inner: Battery, stopwatch: Stopwatch) -> None:
        self._inner, self._stopwatch = inner, stopwatch

    async def read(self) -> Reading[BatterySample]:
        return await self._inner.read()

    async def write(self, command: BatteryCommand) -> None:
        self._stopwatch.acted()
        await self._inner.write(command)


class TimedRecorder:
    """A recorder that tells the stopwatch when a cycle is recorded."""

    def __init__(self, inner: Recorder, stopwatch: Stopwatch) -> None:
        self._inner, self._stopwatch = inner, stopwatch

    @property
    def has_failed(self) -> bool:
        return self._inner.has_failed

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        self._stopwatch.decided()
        self._inner.record(kind, payload)


class BriefRecorder:
    """The recording of a run's first part, written at once, in the format of the daemon's own recorder."""

    has_failed = False

    def __init__(self, file: TextIO, clock: Clock, *, until_s: float, header: Mapping[str, object]) -> None:
        self._file, self._clock, self._until_s = file, clock, until_s
        self.record("header", {"format": RECORDING_FORMAT, **header})

    def record(self, kind: str, payload: Mapping[str, object]) -> None:
        if self._clock.now_s() <= self._until_s:
            body = {key: encode(value) for key, value in payload.items()}
            self._file.write(json.dumps({"kind": kind, **body}, separators=(",", ":")) + "\n")


class OffsetClock:
    """The machine's clock, counted from when the run began."""

    def __init__(self) -> None:
        self._inner = MonotonicClock()
        self._start_ns = self._inner.now_ns()

    def now_ns(self) -> int:
        return self._inner.now_ns() - self._start_ns

    def now_s(self) -> float:
        return self.now_ns() / NS_PER_S

    def wall_utc_s(self) -> float:
        return self._inner.wall_utc_s()

    async def sleep_until_ns(self, t_ns: int) -> None:
        await self._inner.sleep_until_ns(t_ns + self._start_ns)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Two runs must not share a folder: each would replace, or run from, the other's files. BadInput where one does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"--out {folder}: another run is writing there; give another folder") from None
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with (
            gzip.open(partial, "wt", compresslevel=1) if path.suffix == ".gz" else partial.open("w", encoding="utf-8")
        ) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
