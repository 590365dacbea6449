"""What the referee says: one result per row, and what was and was not covered. Plain data, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np

from controller.types import FloatArray, Limit, RowVerdict, frozen


@frozen
class Episode:
    """One stretch in which a row was broken; breaks closer together than the row's own memory are one episode."""

    start_s: float
    end_s: float
    worst: float


@frozen
class Gap:
    """A stretch of the record in which nothing is known."""

    start_s: float
    end_s: float


@frozen
class Moment:
    """The surroundings of a row's worst window, thinned to what a plot can show: least and greatest per bucket."""

    t_s: FloatArray
    low: FloatArray
    high: FloatArray


@frozen
class Spectrum:
    """Amplitude of spectral lines (Hann, 2|X|/sum w) over frequency: rms over all spans, and the largest of any."""

    frequency_hz: FloatArray
    mean_w: FloatArray
    largest_w: FloatArray
    span_s: float
    span_count: int


@frozen
class RowResult:
    """One row judged. `worst` and `limit` are in `unit`; a row not covered has worst 0."""

    id: str
    kind: str
    limit: float
    unit: str
    mean_s: float
    worst: float
    worst_raw: float
    worst_t_s: float
    violation_s: float
    episodes: int
    verdict: RowVerdict
    note: str
    covered_s: float
    window_s: float
    rule: Limit
    within: float | None = None  # ramp rows: the reading over every pair of instants
    endpoint: float | None = None  # ramp rows: the reading over the window's two ends
    percentiles: Mapping[str, float] = field(default_factory=dict)  # of the judged figure over time
    episode_list: tuple[Episode, ...] = ()  # the first EPISODES_KEPT
    judged: Moment | None = None
    raw: Moment | None = None
    spectrum: Spectrum | None = None  # oscillation rows: of the worst span

    def to_json(self) -> dict[str, object]:
        """The row as the interfaces promise it, with the extra figures that reports need."""
        row: dict[str, object] = {
            "id": self.id,
            "kind": self.kind,
            "limit": _plain(self.limit),
            "unit": self.unit,
            "mean_s": self.mean_s,
            "worst": _plain(self.worst),
            "worst_raw": _plain(self.worst_raw),
            "worst_t_s": _plain(self.worst_t_s),
            "violation_s": _plain(self.violation_s),
            "episodes": self.episodes,
            "verdict": self.verdict.value,
            "note": self.note,
            "covered_s": _plain(self.covered_s),
            "percentiles": {name: _plain(value) for name, value in self.percentiles.items()},
        }
        if self.within is not None:
            row["within"] = _plain(self.within)
        if self.endpoint is not None:
            row["endpoint"] = _plain(self.endpoint)
        return row


@frozen
class RecordFacts:
    """What the record is: its span, its step, its holes, its range."""

    samples: int
    start_s: float
    end_s: float
    step_s: float
    gap_rule_s: float
    gaps: tuple[Gap, ...]  # the first GAPS_KEPT
    gap_count: int
    gap_s: float
    power_w_min: float
    power_w_mean: float
    power_w_max: float
    registered_peak_w: float | None

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def to_json(self) -> dict[str, object]:
        return {
            "samples": self.samples,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "step_s": self.step_s,
            "gap_rule_s": self.gap_rule_s,
            "gap_count": self.gap_count,
            "gap_s": self.gap_s,
            "gaps": [[gap.start_s, gap.end_s] for gap in self.gaps],
            "power_w_min": self.power_w_min,
            "power_w_mean": self.power_w_mean,
            "power_w_max": self.power_w_max,
            "registered_peak_w": self.registered_peak_w,
        }


@frozen
class Verdicts:
    """The referee's whole answer."""

    contract: str
    limits: tuple[RowResult, ...]
    record: RecordFacts
    overview: Moment | None = None
    spectrum: Spectrum | None = None

    @property
    def is_compliant(self) -> bool:
        """No row is broken."""
        return all(row.verdict is not RowVerdict.BROKEN for row in self.limits)

    @property
    def not_assessed(self) -> tuple[str, ...]:
        """Rows that are neither held, broken nor not binding."""
        assessed = (RowVerdict.HELD, RowVerdict.BROKEN, RowVerdict.NOT_BINDING)
        return tuple(row.id for row in self.limits if row.verdict not in assessed)

    def to_json(self) -> dict[str, object]:
        return {
            "contract": self.contract,
            "limits": [row.to_json() for row in self.limits],
            "compliant": self.is_compliant,
            "not_assessed": list(self.not_assessed),
            "record": self.record.to_json(),
        }


def _plain(value: float) -> float:
    return float(value) if np.isfinite(value) else 0.0
