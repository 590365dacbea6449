"""The words that tables and reports share: powers, verdicts, rules, the record's facts, the metering assumptions."""

from __future__ import annotations

from collections.abc import Sequence

from controller.audit.verdicts import RecordFacts
from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
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

VERDICT_STYLES = {
    RowVerdict.HELD: "green",
    RowVerdict.HELD_PARTIAL: "yellow",
    RowVerdict.BROKEN: "bold red",
    RowVerdict.NOT_COVERED: "yellow",
    RowVerdict.NOT_BINDING: "cyan",
}


def verdict_style(verdict: RowVerdict) -> str:
    return VERDICT_STYLES[verdict]


def power(value_w: float) -> str:
    """Four figures, in the unit that suits."""
    size = abs(value_w)
    for factor, unit in ((1e6, "MW"), (1e3, "kW")):
        if size >= factor:
            return f"{value_w / factor:.4g} {unit}"
    return f"{value_w:.4g} W"


def amount(value: float, unit: str) -> str:
    """A figure in a row's unit."""
    if unit == "W":
        return power(value)
    if unit == "W/s":
        return f"{power(value)}/s"
    return f"{value:.4g} {unit}"


def rule_in_words(row: Limit) -> str:
    """What a row asks, in one sentence."""
    if isinstance(row, RampLimit):
        return _ramp(row)
    if isinstance(row, SwingLimit):
        band = f" after a {row.band_hz[0]:g}-{row.band_hz[1]:g} Hz filter" if row.band_hz else ""
        return f"Highest minus lowest power in any {row.window_s:g} s{band}: at most {power(row.max_w)}."
    if isinstance(row, RateLimit):
        return (
            f"Changes above {power(row.above_w)} no faster than {power(row.max_w_per_s)}/s, between any two instants "
            f"up to {row.horizon_s:g} s apart. The figure is the largest share of what a change's duration allows, "
            "times the limit."
        )
    if isinstance(row, BandLimit):
        return f"Content between {row.band_hz[0]:g} and {row.band_hz[1]:g} Hz: at most {power(row.max_w)} (peak)."
    if isinstance(row, OscillationLimit):
        return (
            f"Largest spectral line between {row.band_hz[0]:g} and {row.band_hz[1]:g} Hz in any {row.span_s:g} s: "
            f"amplitude at most {power(row.max_w)}."
        )
    if isinstance(row, CeilingLimit):
        return f"Power at most {power(row.max_w)}{_while(row.from_s, row.until_s)}."
    if isinstance(row, FloorLimit):
        return f"Power at least {power(row.min_w)}{_while(row.from_s, row.until_s)}."
    if isinstance(row, RideThroughLimit):
        exempt = " Ramp rows are suspended meanwhile." if row.suspends_ramps else ""
        return (
            f"After a disturbance inside the curves, back to {100 * row.recover_frac:g} % of the power before it "
            f"within {row.recover_s:g} s.{exempt}"
        )
    assert isinstance(row, DroopLimit)
    return (
        f"Beyond {row.deadband_hz:g} Hz of {row.nominal_hz:g} Hz, load answers with {power(row.w_per_hz)}/Hz up to "
        f"{power(row.max_w)}; after 2 s it may fall short by 5 % of that."
    )


def record_lines(facts: RecordFacts, columns: Sequence[str], *, assumed_peak_w: float | None) -> list[str]:
    """The record in a few lines: span, step, holes, range, peak."""
    named = columns[0] if len(columns) == 1 else f"the sum of {len(columns)} columns"
    lines = [
        f"record: {facts.samples:,} samples of {named} over {facts.duration_s:,.6g} s, step {facts.step_s:.4g} s; "
        f"{power(facts.power_w_min)} to {power(facts.power_w_max)}, mean {power(facts.power_w_mean)}"
    ]
    if facts.gap_count:
        lines.append(
            f"gaps: {facts.gap_count}, {facts.gap_s:,.4g} s in all (intervals above {facts.gap_rule_s:.4g} s): "
            "not covered"
        )
    if assumed_peak_w is not None:
        lines.append(f"registered peak not given: the record's highest power, {power(assumed_peak_w)}, stands for it")
    elif facts.registered_peak_w is not None:
        lines.append(f"registered peak: {power(facts.registered_peak_w)}")
    return lines


def assumptions() -> str:
    """How power is metered for the verdicts, where no published text says."""
    return (
        "metering assumed (no published text says how power is averaged): samples joined linearly; trailing mean of "
        "1 s for ramp, swing and rate rows with windows of 15 s and more, 0.2 s for shorter ones, none for filtered "
        "rows; a record no finer than the mean is used as it is. raw: the same figure without the mean."
    )


def _ramp(row: RampLimit) -> str:
    way = {Direction.UP: "Rise", Direction.DOWN: "Fall", Direction.BOTH: "Change"}[row.direction]
    if row.reading is RampReading.ENDPOINT:
        pairs = f"from the start of any {row.window_s:g} s to its end"
    else:
        pairs = f"between any two instants within {row.window_s:g} s"
    share = f", for {100 * row.percentile:g} % of the time" if row.percentile is not None else ""
    return f"{way} {pairs}: at most {power(row.max_w)}{share}."


def _while(from_s: float, until_s: float) -> str:
    since = f" from {from_s:g} s" if from_s > float("-inf") else ""
    to = f" until {until_s:g} s" if until_s < float("inf") else ""
    return since + to
