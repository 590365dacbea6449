"""Judges a power record against a contract, block by block, in bounded memory; the bench and the auditor share it.

Samples are joined linearly, windows are exact on that line, averaging and filters are those of the contract's rows. A
gap is reported and not covered: nothing is assumed in it, yet two instants on its two sides still count for a window
that holds both. Blocks are cut the same way however the record is fed, so feeding in pieces gives the same verdicts to
the last bit. It never reads files, clocks or settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from controller.audit import judgement
from controller.audit.judgement import Bench
from controller.audit.response import DroopJudge, RideThroughJudge, Sensed, disturbed
from controller.audit.rows import BandJudge, LevelJudge, MomentKeeper, RateJudge, WindowJudge
from controller.audit.score import Overview
from controller.audit.spectrum import OscillationJudge, SpectrumOfRecord
from controller.audit.streams import BandPass, TrailingMean, UniformGrid
from controller.audit.verdicts import Gap, Moment, RecordFacts, Verdicts
from controller.audit.windows import BoolArray, Polyline
from controller.types import (
    BandLimit,
    CeilingLimit,
    Contract,
    DroopLimit,
    FloatArray,
    FloorLimit,
    Limit,
    OscillationLimit,
    RampLimit,
    RateLimit,
    RideThroughLimit,
    SwingLimit,
)

STEP_SAMPLES = 4096  # the record's step is the median over its first samples
GAP_STEPS = 3.0  # an interval longer than this many steps is a gap
GAP_S_MIN = 0.02  # but never less than one mains cycle: power is not defined below it
GAPS_KEPT = 1000
BLOCK_SAMPLES = 1 << 19
HISTORY_S = 900.0  # of raw power kept for plots of a worst moment: the longest window, and the filters' delay


class Referee:
    """Feed it a record in order, then `finish`. Not usable after that."""

    def __init__(
        self,
        contract: Contract,
        *,
        gap_s: float | None = None,
        with_spectrum: bool = False,
        with_moments: bool = True,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._contract = contract
        self._gap_s_given = gap_s
        self._with_spectrum = with_spectrum
        self._with_moments = with_moments
        self._block_samples = block_samples
        self._waiting: list[Sensed] = []
        self._waiting_count = 0
        self._course: _Course | None = None
        self._last_t = -math.inf

    def feed(
        self,
        t_s: FloatArray,
        power_w: FloatArray,
        *,
        voltage_pu: FloatArray | None = None,
        frequency_hz: FloatArray | None = None,
    ) -> None:
        """Take the next samples. Times in seconds, strictly increasing over all calls; ValueError otherwise."""
        t = np.ascontiguousarray(t_s, dtype=np.float64)
        block = Sensed(t, np.ascontiguousarray(power_w, dtype=np.float64), voltage_pu, frequency_hz)
        if not t.size:
            return
        if t.shape != block.q.shape or t.ndim != 1:
            raise ValueError(f"times {t.shape} and powers {block.q.shape} must be two lists of equal length")
        if not (np.isfinite(t).all() and np.isfinite(block.q).all()):
            raise ValueError("times and powers must be finite numbers")
        if t[0] <= self._last_t or (t.size > 1 and float(np.diff(t).min()) <= 0.0):
            raise ValueError("times must increase")
        self._last_t = float(t[-1])
        self._waiting.append(block)
        self._waiting_count += t.size
        if self._waiting_count >= self._block_samples:
            self._drain(is_last=False)

    def finish(self) -> Verdicts:
        """The verdicts on everything fed; ValueError when nothing was."""
        self._drain(is_last=True)
        if self._course is None:
            raise ValueError("the record is empty")
        return self._course.finish()

    def _drain(self, *, is_last: bool) -> None:
        if not self._waiting:
            return
        held = self._waiting[0]
        if len(self._waiting) > 1:
            held = _concatenate(self._waiting)
        if self._course is None:
            step_s = float(np.median(np.diff(held.t[: STEP_SAMPLES + 1]))) if held.t.size > 1 else 1.0
            gap_s = self._gap_s_given if self._gap_s_given is not None else max(GAP_STEPS * step_s, GAP_S_MIN)
            self._course = _Course(self._contract, held, step_s=step_s, gap_s=gap_s, extras=self._extras)
        a = 0
        while held.t.size - a >= self._block_samples or (is_last and a < held.t.size):
            b = min(a + self._block_samples, held.t.size)
            self._course.feed(held.part(a, b))
            a = b
        rest = held.part(a, held.t.size)
        self._waiting = [rest] if rest.t.size else []
        self._waiting_count = rest.t.size

    @property
    def _extras(self) -> tuple[bool, bool]:
        return self._with_spectrum, self._with_moments


def judge(
    t_s: FloatArray,
    power_w: FloatArray,
    contract: Contract,
    *,
    voltage_pu: FloatArray | None = None,
    frequency_hz: FloatArray | None = None,
    gap_s: float | None = None,
    with_spectrum: bool = False,
) -> Verdicts:
    """Verdicts on a whole record at once."""
    referee = Referee(contract, gap_s=gap_s, with_spectrum=with_spectrum)
    referee.feed(t_s, power_w, voltage_pu=voltage_pu, frequency_hz=frequency_hz)
    return referee.finish()


@dataclass(slots=True)
class _Totals:
    samples: int = 0
    start_s: float = math.nan
    end_s: float = math.nan
    gap_count: int = 0
    gap_s: float = 0.0
    low_w: float = math.inf
    high_w: float = -math.inf
    area_j: float = 0.0
    known_s: float = 0.0


class _Course:
    """One record under way: its step is known, every row has its judge."""

    def __init__(
        self, contract: Contract, first: Sensed, *, step_s: float, gap_s: float, extras: tuple[bool, bool]
    ) -> None:
        self._contract = contract
        self._step_s = step_s
        self._gap_rule_s = gap_s
        with_spectrum, self._with_moments = extras
        self._totals = _Totals(start_s=float(first.t[0]))
        self._gaps: list[Gap] = []
        self._last: Polyline | None = None
        self._benches = [self._bench(row) for row in contract.limits]
        self._means = {b.mean_s: TrailingMean(b.mean_s) for b in self._benches if b.line_judge is not None}
        self._grid = UniformGrid(step_s)
        self._filters = {b.band_hz: BandPass(b.band_hz, step_s) for b in self._benches if b.band_hz is not None}
        self._spectrum = SpectrumOfRecord(step_s=step_s) if with_spectrum else None
        self._needs_grid = bool(self._filters) or with_spectrum or any(b.lines is not None for b in self._benches)
        self._overview = Overview(start_s=float(first.t[0]), step_s=step_s)
        self._history: Polyline | None = None
        self._suspending = [
            row
            for row in contract.limits
            if isinstance(row, RideThroughLimit) and row.suspends_ramps and RideThroughJudge(row).is_sensed(first)
        ]
        self._suspended_until_s = -math.inf

    def _bench(self, row: Limit) -> Bench:
        """Everything that follows one row."""
        # A record no finer than the mean is used as it is: it is a mean already, or cannot be told from one.
        mean_s = row.mean_s if self._step_s < row.mean_s * (1.0 - 1e-6) else 0.0
        bench = Bench(row=row, mean_s=mean_s)
        if isinstance(row, SwingLimit) and row.band_hz is not None:
            bench.band_hz = row.band_hz
            bench.filtered_judge = WindowJudge(row, sample_step_s=self._step_s)
        elif isinstance(row, BandLimit):
            bench.band_hz = row.band_hz
            bench.filtered_judge = BandJudge(row, step_s=self._step_s)
        elif isinstance(row, OscillationLimit):
            bench.lines = OscillationJudge(row, step_s=self._step_s)
        elif isinstance(row, RideThroughLimit):
            bench.ride_through = RideThroughJudge(row)
        elif isinstance(row, DroopLimit):
            bench.droop = DroopJudge(row)
        else:
            bench.line_judge = _line_judge(row, twin=False)
            bench.twin = _line_judge(row, twin=True) if mean_s > 0.0 else None
        span_s = judgement.window_s(row)
        bench.raw_keeper = MomentKeeper(before_s=1.5 * span_s, after_s=0.5 * span_s)
        return bench

    def feed(self, block: Sensed) -> None:
        line = self._with_gaps(block)
        self._count(line)
        self._overview.feed(line)
        history = line if self._history is None else self._history.joined(line)
        self._feed_responses(block)
        worse = self._feed_lines(line, block)
        if self._needs_grid:
            worse |= self._feed_grid(line)
        if self._with_moments:
            self._keep_moments(history, line, worse)
        self._history = history.tail_from(float(line.t[-1]) - HISTORY_S)

    def _with_gaps(self, block: Sensed) -> Polyline:
        before = self._totals.end_s if self._totals.samples else float(block.t[0])
        gap = np.diff(block.t, prepend=before) > self._gap_rule_s * (1.0 + 1e-9)
        return Polyline(block.t, block.q, gap)

    def _count(self, line: Polyline) -> None:
        totals = self._totals
        lines = line if self._last is None else self._last.joined(line)
        dt = np.diff(lines.t)
        known = ~lines.gap[1:]
        totals.area_j += float(np.sum((0.5 * (lines.q[1:] + lines.q[:-1]) * dt)[known]))
        totals.known_s += float(np.sum(dt[known]))
        for i in np.flatnonzero(~known):
            totals.gap_count += 1
            totals.gap_s += float(dt[i])
            if len(self._gaps) < GAPS_KEPT:
                self._gaps.append(Gap(float(lines.t[i]), float(lines.t[i + 1])))
        totals.samples += len(line)
        totals.end_s = float(line.t[-1])
        totals.low_w = min(totals.low_w, float(line.q.min()))
        totals.high_w = max(totals.high_w, float(line.q.max()))
        self._last = line.tail_from(float(line.t[-1]))

    def _feed_responses(self, block: Sensed) -> None:
        for bench in self._benches:
            if bench.ride_through is not None and bench.ride_through.is_sensed(block):
                bench.ride_through.feed(block)
            if bench.droop is not None and block.frequency_hz is not None:
                bench.droop.feed(block)

    def _feed_lines(self, line: Polyline, block: Sensed) -> set[int]:
        """Rows on averaged power; parts suspended by a fault's recovery are left out of the ramp rows."""
        worse: set[int] = set()
        for mean_s, stage in self._means.items():
            mean = stage.feed(line)
            for bench in self._benches:
                judge_of_row = bench.line_judge
                if judge_of_row is None or bench.mean_s != mean_s:
                    continue
                if self._suspending and not isinstance(judge_of_row, LevelJudge):
                    continue
                if judge_of_row.feed(mean):
                    worse.add(id(bench))
        for bench in self._benches:
            if bench.twin is not None and not (self._suspending and not isinstance(bench.twin, LevelJudge)):
                bench.twin.feed(line)
        if self._suspending:
            worse |= self._feed_suspended(line, self._suspended(block))
        return worse

    def _suspended(self, block: Sensed) -> BoolArray:
        out = np.zeros(block.t.size, dtype=np.bool_)
        for row in self._suspending:
            marks = np.where(disturbed(row, block), block.t + row.recover_s, -np.inf)
            marks[0] = max(marks[0], self._suspended_until_s)
            until = np.maximum.accumulate(marks)
            out |= block.t <= until
            self._suspended_until_s = max(self._suspended_until_s, float(until[-1]))
        return out

    def _feed_suspended(self, line: Polyline, suspended: BoolArray) -> set[int]:
        worse: set[int] = set()
        cuts = np.flatnonzero(np.diff(suspended.astype(np.int8))) + 1
        for a, b in zip(np.concatenate(([0], cuts)), np.concatenate((cuts, [len(line)])), strict=True):
            for bench in self._benches:
                own = bench.line_judge
                if own is None or isinstance(own, LevelJudge):
                    continue
                if bench.own_mean is None:
                    bench.own_mean = TrailingMean(bench.mean_s)
                if suspended[a]:
                    for past in (own, bench.twin, bench.own_mean):
                        if past is not None:
                            past.reset()
                    continue
                part = Polyline(line.t[a:b], line.q[a:b], line.gap[a:b])
                if own.feed(bench.own_mean.feed(part)):
                    worse.add(id(bench))
                if bench.twin is not None:
                    bench.twin.feed(part)
        return worse

    def _feed_grid(self, line: Polyline) -> set[int]:
        worse: set[int] = set()
        for starts, start_s, values in self._grid.feed(line):
            for band_hz, stage in self._filters.items():
                for filtered, is_near_edge in stage.feed(starts, start_s, values):
                    worse |= self._feed_filtered(band_hz, filtered, is_near_edge=is_near_edge)
            for bench in self._benches:
                if bench.lines is not None and bench.lines.feed(starts, start_s, values):
                    worse.add(id(bench))
            if self._spectrum is not None:
                self._spectrum.feed(starts, start_s, values)
        return worse

    def _feed_filtered(self, band_hz: tuple[float, float], filtered: Polyline, *, is_near_edge: bool) -> set[int]:
        worse: set[int] = set()
        for bench in self._benches:
            if bench.band_hz != band_hz or bench.filtered_judge is None:
                continue
            if bench.filtered_judge.feed(filtered, is_near_edge=is_near_edge):
                worse.add(id(bench))
        return worse

    def _keep_moments(self, history: Polyline, line: Polyline, worse: set[int]) -> None:
        for bench in self._benches:
            if bench.raw_keeper is not None and bench.score is not None:
                is_new = id(bench) in worse
                bench.raw_keeper.see(history if is_new else line, bench.score.worst_t_s if is_new else None)

    def finish(self) -> Verdicts:
        late: set[int] = set()
        for band_hz, stage in self._filters.items():
            for filtered, is_near_edge in stage.finish():
                late |= self._feed_filtered(band_hz, filtered, is_near_edge=is_near_edge)
        for bench in self._benches:
            if bench.ride_through is not None:
                bench.ride_through.finish()
        if self._with_moments and self._history is not None:
            self._keep_moments(self._history, self._history.tail_from(math.inf), late)
        record = self._facts()
        rows = tuple(
            judgement.result(bench, record, self._filters.get(bench.band_hz) if bench.band_hz else None)
            for bench in self._benches
        )
        spectrum = self._spectrum.result() if self._spectrum is not None else None
        overview: Moment | None = self._overview.moment() if self._with_moments else None
        return Verdicts(self._contract.name, rows, record, overview, spectrum)

    def _facts(self) -> RecordFacts:
        totals = self._totals
        peak_w = self._contract.registered_peak_w
        return RecordFacts(
            samples=totals.samples,
            start_s=totals.start_s,
            end_s=totals.end_s,
            step_s=self._step_s,
            gap_rule_s=self._gap_rule_s,
            gaps=tuple(self._gaps),
            gap_count=totals.gap_count,
            gap_s=totals.gap_s,
            power_w_min=totals.low_w,
            power_w_mean=totals.area_j / totals.known_s if totals.known_s > 0.0 else totals.low_w,
            power_w_max=totals.high_w,
            registered_peak_w=peak_w if 0.0 < peak_w < math.inf else None,
        )


def _line_judge(
    row: RampLimit | SwingLimit | RateLimit | CeilingLimit | FloorLimit, *, twin: bool
) -> WindowJudge | RateJudge | LevelJudge:
    if isinstance(row, RateLimit):
        return RateJudge(row, twin=twin)
    if isinstance(row, CeilingLimit | FloorLimit):
        return LevelJudge(row, twin=twin)
    return WindowJudge(row, twin=twin)


def _concatenate(blocks: list[Sensed]) -> Sensed:
    """All blocks as one; a quantity missing in any is missing in all."""

    def whole(parts: list[FloatArray | None]) -> FloatArray | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    return Sensed(
        np.concatenate([b.t for b in blocks]),
        np.concatenate([b.q for b in blocks]),
        whole([b.voltage_pu for b in blocks]),
        whole([b.frequency_hz for b in blocks]),
    )
