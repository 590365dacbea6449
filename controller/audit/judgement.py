"""From a row's score to its verdict: held, held in part, broken, not covered or not binding, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.audit.response import DroopJudge, RideThroughJudge
from controller.audit.rows import TOLERANCE, BandJudge, LevelJudge, MomentKeeper, RateJudge, WindowJudge
from controller.audit.score import Score
from controller.audit.spectrum import LINE_OVER_MEDIAN, NEIGHBOURHOOD_HZ, OscillationJudge
from controller.audit.streams import BandPass, TrailingMean
from controller.audit.verdicts import RecordFacts, RowResult
from controller.types import (
    BandLimit,
    CeilingLimit,
    DroopLimit,
    FloorLimit,
    Limit,
    OscillationLimit,
    RampLimit,
    RampReading,
    RateLimit,
    RideThroughLimit,
    RowVerdict,
    SwingLimit,
)

PERCENTILES = {"p50": 0.50, "p75": 0.75, "p95": 0.95, "p99": 0.99}
PEAK_UNKNOWN_FACTOR = 2.0  # without a registered peak, a site may reach twice what its record shows (our assumption)


@dataclass(slots=True, eq=False)
class Bench:
    """One row and everything that follows it through the record."""

    row: Limit
    mean_s: float
    line_judge: WindowJudge | RateJudge | LevelJudge | None = None
    twin: WindowJudge | RateJudge | LevelJudge | None = None
    own_mean: TrailingMean | None = None
    band_hz: tuple[float, float] | None = None
    filtered_judge: WindowJudge | BandJudge | None = None
    lines: OscillationJudge | None = None
    ride_through: RideThroughJudge | None = None
    droop: DroopJudge | None = None
    raw_keeper: MomentKeeper | None = None

    @property
    def score(self) -> Score:
        for judge in (self.line_judge, self.filtered_judge, self.lines, self.ride_through, self.droop):
            if judge is not None:
                return judge.score
        raise AssertionError("a row without a judge")


def kind(row: Limit) -> str:
    """The row's kind as contracts spell it."""
    names: dict[type, str] = {
        RampLimit: "ramp",
        SwingLimit: "swing",
        RateLimit: "rate",
        BandLimit: "band",
        OscillationLimit: "oscillation",
        CeilingLimit: "ceiling",
        FloorLimit: "floor",
        RideThroughLimit: "ride_through",
        DroopLimit: "droop",
    }
    return names[type(row)]


def window_s(row: Limit) -> float:
    """How far back a row looks; what surrounds a worst moment is cut by it."""
    if isinstance(row, RampLimit | SwingLimit):
        return row.window_s
    if isinstance(row, RateLimit):
        return row.horizon_s
    if isinstance(row, OscillationLimit):
        return row.span_s
    if isinstance(row, BandLimit):
        return max(2.0 / row.band_hz[0], 1.0)
    if isinstance(row, RideThroughLimit):
        return max(5.0 * row.recover_s, 5.0)
    return 60.0


def limit_and_unit(row: Limit) -> tuple[float, str]:
    """The figure a row is judged by, and its unit."""
    if isinstance(row, RateLimit):
        return (row.above_w, "W") if row.above_w > 0.0 else (row.max_w_per_s, "W/s")
    if isinstance(row, FloorLimit):
        return row.min_w, "W"
    if isinstance(row, RideThroughLimit):
        return row.recover_s, "s"
    if isinstance(row, DroopLimit):
        return DroopJudge(row).level, "W"
    return row.max_w, "W"


def result(bench: Bench, record: RecordFacts, band: BandPass | None) -> RowResult:
    """The row's result on the whole record."""
    row, score = bench.row, bench.score
    limit, unit = limit_and_unit(row)
    verdict, note = _verdict(bench, record, band, limit)
    shown = verdict is not RowVerdict.NOT_COVERED and bool(np.isfinite(score.worst_t_s))
    worst = _worst(bench, limit, verdict) if shown else 0.0
    twin = bench.twin.score.worst if bench.twin is not None else None
    ramp = bench.line_judge if isinstance(row, RampLimit) and isinstance(bench.line_judge, WindowJudge) else None
    keeper = getattr(bench.line_judge or bench.filtered_judge, "keeper", None)
    return RowResult(
        id=str(row.id),
        kind=kind(row),
        limit=limit,
        unit=unit,
        mean_s=bench.mean_s,
        worst=worst,
        worst_raw=(twin if twin is not None else worst) if shown else 0.0,
        worst_t_s=score.worst_t_s if shown else 0.0,
        violation_s=score.violation_s,
        episodes=score.episode_count,
        verdict=verdict,
        note=note,
        covered_s=score.covered_s,
        window_s=window_s(row),
        rule=row,
        within=ramp.within if ramp else None,
        endpoint=ramp.endpoint if ramp else None,
        percentiles={name: score.quantile(share) for name, share in PERCENTILES.items()} if shown else {},
        episode_list=score.episodes(),
        judged=keeper.moment() if keeper is not None and shown else None,
        raw=bench.raw_keeper.moment() if bench.raw_keeper is not None and shown else None,
        spectrum=bench.lines.spectrum if bench.lines is not None else None,
    )


def _worst(bench: Bench, limit: float, verdict: RowVerdict) -> float:
    row, score = bench.row, bench.score
    if not isinstance(row, RampLimit) or row.percentile is None:
        return score.worst
    share = score.quantile(row.percentile)  # to 0.1 %; the verdict itself is exact, and has the last word
    return max(share, limit) if verdict is RowVerdict.BROKEN else min(share, limit)


def _is_broken(bench: Bench, limit: float) -> bool:
    row, score = bench.row, bench.score
    if score.covered_s <= 0.0 or not np.isfinite(score.worst_t_s):
        return False
    if isinstance(row, FloorLimit):
        return score.worst < limit * (1.0 - TOLERANCE)
    if isinstance(row, RampLimit) and row.percentile is not None:
        return score.violation_s > (1.0 - row.percentile) * score.covered_s * (1.0 + TOLERANCE)
    return score.worst > limit * (1.0 + TOLERANCE)


def _verdict(bench: Bench, record: RecordFacts, band: BandPass | None, limit: float) -> tuple[RowVerdict, str]:
    row, score = bench.row, bench.score
    cut = band.is_cut if band is not None else bench.lines.is_cut if bench.lines is not None else False
    notes = _notes(bench, record, is_cut=cut)
    if _is_broken(bench, limit):
        return RowVerdict.BROKEN, "; ".join(notes)
    largest_w = _largest_change_w(record)
    can_bind = not isinstance(row, RampLimit | SwingLimit | RateLimit) or getattr(row, "band_hz", None) is not None
    if not can_bind and isinstance(row, RampLimit | SwingLimit) and row.max_w > largest_w:
        peak = (
            "" if record.registered_peak_w is not None else " (registered peak not given: twice the record's highest)"
        )
        return RowVerdict.NOT_BINDING, "; ".join(
            [f"no change at this site can reach {row.max_w / 1e6:g} MW: at most {largest_w / 1e6:.4g} MW{peak}", *notes]
        )
    if score.covered_s <= 0.0 or not np.isfinite(score.worst_t_s):
        return RowVerdict.NOT_COVERED, _why_not_covered(bench, record)
    return (RowVerdict.HELD_PARTIAL if cut or record.gap_count else RowVerdict.HELD), "; ".join(notes)


def _notes(bench: Bench, record: RecordFacts, *, is_cut: bool) -> list[str]:
    row, notes = bench.row, []
    if is_cut:
        notes.append(f"the record shows nothing above {0.5 / record.step_s:.4g} Hz: the band is judged below it only")
    if record.gap_count:
        notes.append(f"{record.gap_count} gap(s), {record.gap_s:.4g} s in all, not covered")
    if row.mean_s > 0.0 and bench.mean_s == 0.0:
        notes.append(f"record step {record.step_s:.4g} s is no finer than the {row.mean_s:g} s mean: used as it is")
    span_s = window_s(row) if isinstance(row, RampLimit | SwingLimit) else 0.0
    is_endpoint = isinstance(row, RampLimit) and row.reading is RampReading.ENDPOINT
    if span_s > record.duration_s and not is_endpoint:
        notes.append(f"the record ({record.duration_s:.4g} s) is shorter than the window: judged over what is there")
    if is_endpoint:
        notes.append("compares the window's two ends only: blind to waves whose period divides it")
    if bench.lines is not None and bench.score.covered_s > 0.0 and bench.score.worst == 0.0:
        notes.append(
            f"nothing in the band stands {LINE_OVER_MEDIAN:g} times above the median within {NEIGHBOURHOOD_HZ:g} Hz of "
            "it, so that nothing counts as a line"
        )
    if bench.ride_through is not None and bench.ride_through.exempt_count:
        notes.append(f"{bench.ride_through.exempt_count} disturbance(s) outlasted the curve and are not counted")
    return notes


def _why_not_covered(bench: Bench, record: RecordFacts) -> str:
    row = bench.row
    nyquist_hz = 0.5 / record.step_s
    if isinstance(row, RideThroughLimit):
        has = bench.ride_through is not None and bench.ride_through.exempt_count
        return (
            "every disturbance outlasted the curve"
            if has
            else "no disturbance of voltage or frequency in the record, or neither was recorded"
        )
    if isinstance(row, DroopLimit):
        return "no frequency excursion in the record, or frequency was not recorded"
    if isinstance(row, CeilingLimit | FloorLimit):
        return "the record does not reach the time in which this row applies"
    if isinstance(row, OscillationLimit):
        if row.band_hz[0] >= nyquist_hz:
            return f"the record shows nothing above {nyquist_hz:.4g} Hz; the band begins at {row.band_hz[0]:g} Hz"
        return f"no gapless stretch as long as the {row.span_s:g} s span"
    band_hz = getattr(row, "band_hz", None)
    if band_hz is not None:
        if band_hz[0] >= 0.999 * nyquist_hz:
            return f"the record shows nothing above {nyquist_hz:.4g} Hz; the band begins at {band_hz[0]:g} Hz"
        return f"no gapless stretch longer than the {2.0 / band_hz[0]:.4g} s that the filter's two ends take"
    if isinstance(row, RampLimit) and row.reading is RampReading.ENDPOINT:
        return f"no gapless stretch longer than the {row.window_s:g} s window"
    return "nothing of the record can be judged"


def _largest_change_w(record: RecordFacts) -> float:
    highest = max(record.power_w_max, 0.0)
    lowest = min(record.power_w_min, 0.0)
    if record.registered_peak_w is None:
        return PEAK_UNKNOWN_FACTOR * (highest - lowest)
    return max(record.registered_peak_w, highest) - lowest
