"""Reads grid contracts (`configs/contracts/*.yaml` or a file) and makes the `Contract` the core and the referee share.

A file is a list of rows; each row names its kind, its limit, and where it comes from. A limit may be given in more than
one way (`max_megawatt`, `max_kilowatt`, `max_frac`): the least of them holds, which is how texts that say "the lesser
of" are written. Fractions resolve against the site's registered peak. `include` takes the rows of other contracts.
Several contracts combine into one; rows keep the name of the file they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from controller.config.fields import W_PER_KILOWATT, W_PER_MEGAWATT
from controller.config.load import Document, data_path, load_document, parse_document
from controller.errors import BadInput
from controller.files import is_file
from controller.types import (
    ROW_BAND_HZ,
    ROW_POWER_W_MAX,
    ROW_SPAN_S_MAX,
    ROW_SPAN_S_MIN,
    ROW_TIME_S_MAX,
    BandLimit,
    CeilingLimit,
    Contract,
    CurveSegment,
    Direction,
    DroopLimit,
    FloorLimit,
    Limit,
    LimitId,
    LimitStatus,
    OscillationLimit,
    Provenance,
    RampLimit,
    RampReading,
    RateLimit,
    RideThroughLimit,
    SwingLimit,
)

INCLUDE_DEPTH_MAX = 8
MEAN_LONG_S = (
    1.0  # ramp, swing and rate rows whose window is at least WINDOW_LONG_S: their reason is regulation reserve
)
MEAN_SHORT_S = 0.2  # unfiltered windows shorter than that
WINDOW_LONG_S = 15.0

Megawatts = Annotated[float, Field(gt=0.0, le=ROW_POWER_W_MAX / W_PER_MEGAWATT)]
Kilowatts = Annotated[float, Field(gt=0.0, le=ROW_POWER_W_MAX / W_PER_KILOWATT)]
Fraction = Annotated[float, Field(gt=0.0, le=10.0)]
Seconds = Annotated[float, Field(gt=0.0, le=ROW_TIME_S_MAX)]
Instant = Annotated[float, Field(ge=-ROW_TIME_S_MAX, le=ROW_TIME_S_MAX)]
Quantity = Annotated[float, Field(ge=0.0, le=1e3)]  # hertz, or volts per unit
Edge = Annotated[float, Field(ge=ROW_BAND_HZ[0], le=ROW_BAND_HZ[1])]
Band = tuple[Edge, Edge]


class _Row(Document):
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
    status: LimitStatus
    assumption: str = ""
    mean_s: Annotated[float, Field(ge=0.0, le=3600.0)] | None = None

    def provenance(self) -> Provenance:
        return Provenance(self.source, self.date, self.status, " ".join(self.assumption.split()))


class _MaxRow(_Row):
    max_megawatt: Megawatts | None = None
    max_kilowatt: Kilowatts | None = None
    max_frac: Fraction | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> _MaxRow:
        if self.max_megawatt is None and self.max_kilowatt is None and self.max_frac is None:
            raise ValueError("one of max_megawatt, max_kilowatt, max_frac is required (of several, the least holds)")
        return self

    def max_w(self, peak_w: float | None) -> float:
        """The least of the limits given, in watts."""
        return min(_power_w(self.max_megawatt, self.max_kilowatt), _fraction_w(self, self.max_frac, peak_w))


class _BandRow(_MaxRow):
    band_hz: Band

    @model_validator(mode="after")
    def _band_rises(self) -> _BandRow:
        _check_band(self.band_hz)
        return self


class _Ramp(_MaxRow):
    kind: Literal["ramp"]
    window_s: Seconds
    direction: Direction = Direction.BOTH
    reading: RampReading = RampReading.WITHIN
    percentile: Annotated[float, Field(gt=0.0, le=1.0)] | None = None


class _Swing(_MaxRow):
    kind: Literal["swing"]
    window_s: Seconds
    band_hz: Band | None = None

    @model_validator(mode="after")
    def _band_rises(self) -> _Swing:
        if self.band_hz is not None:
            _check_band(self.band_hz)
        return self


class _Rate(_Row):
    kind: Literal["rate"]
    max_megawatt_per_s: Megawatts | None = None
    max_kilowatt_per_s: Kilowatts | None = None
    above_megawatt: Annotated[float, Field(ge=0.0, le=ROW_POWER_W_MAX / W_PER_MEGAWATT)] | None = None
    above_kilowatt: Annotated[float, Field(ge=0.0, le=ROW_POWER_W_MAX / W_PER_KILOWATT)] | None = None
    horizon_s: Seconds = 600.0

    @model_validator(mode="after")
    def _has_a_limit(self) -> _Rate:
        if self.max_megawatt_per_s is None and self.max_kilowatt_per_s is None:
            raise ValueError("one of max_megawatt_per_s, max_kilowatt_per_s is required")
        if self.above_megawatt is None and self.above_kilowatt is None:
            raise ValueError("one of above_megawatt, above_kilowatt is required (0: the rate holds for every change)")
        return self


class _Band(_BandRow):
    kind: Literal["band"]


class _Oscillation(_BandRow):
    kind: Literal["oscillation"]
    span_s: Annotated[float, Field(ge=ROW_SPAN_S_MIN, le=ROW_SPAN_S_MAX)] = 20.0


class _Ceiling(_MaxRow):
    kind: Literal["ceiling"]
    from_s: Instant | None = None
    until_s: Instant | None = None


class _Floor(_Row):
    kind: Literal["floor"]
    min_megawatt: Megawatts | None = None
    min_kilowatt: Kilowatts | None = None
    min_frac: Fraction | None = None
    from_s: Instant | None = None
    until_s: Instant | None = None

    @model_validator(mode="after")
    def _has_a_limit(self) -> _Floor:
        if self.min_megawatt is None and self.min_kilowatt is None and self.min_frac is None:
            raise ValueError("one of min_megawatt, min_kilowatt, min_frac is required (of several, the least holds)")
        return self


class _Segment(Document):
    low: Quantity
    high: Annotated[Quantity, Field(gt=0.0)]
    hold_s: Seconds | None = None  # not given: continuous

    @model_validator(mode="after")
    def _rises(self) -> _Segment:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class _RideThrough(_Row):
    kind: Literal["ride_through"]
    voltage_pu: tuple[_Segment, ...] = ()
    frequency_hz: tuple[_Segment, ...] = ()
    recover_frac: Annotated[float, Field(gt=0.0, le=1.0)]
    recover_s: Seconds
    suspends_ramps: bool

    @model_validator(mode="after")
    def _has_a_continuous_box(self) -> _RideThrough:
        for name, curve in (("voltage_pu", self.voltage_pu), ("frequency_hz", self.frequency_hz)):
            if curve and all(box.hold_s is not None for box in curve):
                raise ValueError(f"{name} needs one box without hold_s (the continuous range)")
        if not self.voltage_pu and not self.frequency_hz:
            raise ValueError("voltage_pu or frequency_hz is required")
        return self


class _Droop(_MaxRow):
    kind: Literal["droop"]
    deadband_hz: Quantity
    megawatt_per_hz: Megawatts | None = None
    kilowatt_per_hz: Kilowatts | None = None
    nominal_hz: Annotated[float, Field(ge=16.0, le=400.0)] = 60.0

    @model_validator(mode="after")
    def _has_a_slope(self) -> _Droop:
        if self.megawatt_per_hz is None and self.kilowatt_per_hz is None:
            raise ValueError("one of megawatt_per_hz, kilowatt_per_hz is required")
        return self


Row = Annotated[
    _Ramp | _Swing | _Rate | _Band | _Oscillation | _Ceiling | _Floor | _RideThrough | _Droop,
    Field(discriminator="kind"),
]


class ContractDocument(Document):
    """One contract file: its name, what it is, and its rows."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]
    title: Annotated[str, Field(min_length=1)]
    note: str = ""
    include: tuple[str, ...] = ()
    limits: tuple[Row, ...] = ()

    @model_validator(mode="after")
    def _rows_are_distinct(self) -> ContractDocument:
        ids = [row.id for row in self.limits]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"limits: id {twice[0]!r} is used twice; each row needs its own")
        if not self.limits and not self.include:
            raise ValueError("limits: at least one row, or include")
        return self


def load_contract(names: Sequence[str], *, registered_peak_w: float | None) -> Contract:
    """The contracts `names` (shipped names or files) as one, all rows in force at once.

    `registered_peak_w` resolves fractions; None (the contract then carries infinity) is refused by rows that need it.
    A contract named twice counts once. Raises BadInput.
    """
    if not names:
        raise BadInput("contract: name at least one (a shipped profile or a file)")
    if registered_peak_w is not None and not (0.0 < registered_peak_w < math.inf):
        raise BadInput(f"registered peak: {registered_peak_w:g} W: must be a finite power above zero")
    limits: dict[LimitId, Limit] = {}
    titles: list[str] = []
    for name in names:
        document, path = read_contract_document(name)
        _gather(document, path, peak_w=registered_peak_w, into=limits, depth=0)
        if document.name not in titles:
            titles.append(document.name)
    peak_w = math.inf if registered_peak_w is None else registered_peak_w
    return Contract(name="+".join(titles), limits=tuple(limits.values()), registered_peak_w=peak_w)


def with_local_rows(
    contract: Contract | None, rows: Sequence[dict[str, object]], *, origin: str, registered_peak_w: float
) -> Contract:
    """`contract` and the rows a site file gives inline; they need no source, their source is that file."""
    if not rows:
        assert contract is not None
        return contract
    stated = {"source": origin, "date": "0000", "status": LimitStatus.LOCAL.value}
    raw = {"name": "local", "title": "rows of the site file", "limits": [{**stated, **row} for row in rows]}
    document = parse_document(raw, ContractDocument, origin=origin)
    limits: dict[LimitId, Limit] = {limit.id: limit for limit in contract.limits} if contract else {}
    _gather(document, Path(origin), peak_w=registered_peak_w, into=limits, depth=0)
    name = f"{contract.name}+local" if contract else "local"
    return Contract(name=name, limits=tuple(limits.values()), registered_peak_w=registered_peak_w)


def needs_registered_peak(names: Sequence[str]) -> bool:
    """Whether any row of these contracts is a fraction of the registered peak."""
    return any(_has_fraction(*read_contract_document(name), depth=0) for name in names)


def read_contract_document(name_or_file: str) -> tuple[ContractDocument, Path]:
    """The validated file behind a name, and where it was found."""
    path = data_path("contracts", name_or_file)
    return load_document(path, ContractDocument), path


def default_mean_s(kind: str, *, window_s: float, is_filtered: bool) -> float:
    """The trailing mean we assume where a text does not say how power is averaged."""
    if is_filtered or kind not in ("ramp", "swing", "rate"):
        return 0.0
    return MEAN_LONG_S if window_s >= WINDOW_LONG_S else MEAN_SHORT_S


def _gather(
    document: ContractDocument, path: Path, *, peak_w: float | None, into: dict[LimitId, Limit], depth: int
) -> None:
    for included, included_path in _includes(document, path, depth):
        _gather(included, included_path, peak_w=peak_w, into=into, depth=depth + 1)
    for row in document.limits:
        limit_id = LimitId(f"{document.name}.{row.id}")
        try:
            limit = _resolve(row, limit_id, peak_w)
        except BadInput as bad:
            raise BadInput(f"{path}: {bad}") from None
        if into.get(limit_id, limit) != limit:
            raise BadInput(f"{path}: limits: {limit_id}: another contract of the same name has a different such row")
        into[limit_id] = limit


def _includes(document: ContractDocument, path: Path, depth: int) -> list[tuple[ContractDocument, Path]]:
    if document.include and depth >= INCLUDE_DEPTH_MAX:
        raise BadInput(
            f"{path}: include: {document.include[0]}: nested deeper than {INCLUDE_DEPTH_MAX}, or in a circle"
        )
    found = []
    for name in document.include:
        beside = path.parent / name
        found.append(read_contract_document(str(beside) if is_file(beside) else name))
    return found


def _has_fraction(document: ContractDocument, path: Path, *, depth: int) -> bool:
    own = any(getattr(row, "max_frac", None) or getattr(row, "min_frac", None) for row in document.limits)
    return own or any(_has_fraction(*pair, depth=depth + 1) for pair in _includes(document, path, depth))


def _resolve(row: Row, limit_id: LimitId, peak_w: float | None) -> Limit:
    origin = row.provenance()
    mean_s = row.mean_s if row.mean_s is not None else _default_mean_s(row)
    if isinstance(row, _Ramp):
        return RampLimit(
            limit_id, row.max_w(peak_w), row.window_s, row.direction, mean_s, origin, row.reading, row.percentile
        )
    if isinstance(row, _Swing):
        return SwingLimit(limit_id, row.max_w(peak_w), row.window_s, mean_s, origin, row.band_hz)
    if isinstance(row, _Rate):
        rate = _power_w(row.max_megawatt_per_s, row.max_kilowatt_per_s)
        above = _power_w(row.above_megawatt, row.above_kilowatt)
        return RateLimit(limit_id, rate, above, mean_s, origin, row.horizon_s)
    if isinstance(row, _Band):
        return BandLimit(limit_id, row.max_w(peak_w), row.band_hz, origin, mean_s)
    if isinstance(row, _Oscillation):
        return OscillationLimit(limit_id, row.max_w(peak_w), row.band_hz, row.span_s, origin, mean_s)
    if isinstance(row, _Ceiling):
        start, end = _span(row, row.from_s, row.until_s)
        return CeilingLimit(limit_id, row.max_w(peak_w), start, origin, mean_s, end)
    if isinstance(row, _Floor):
        start, end = _span(row, row.from_s, row.until_s)
        least = min(_power_w(row.min_megawatt, row.min_kilowatt), _fraction_w(row, row.min_frac, peak_w))
        return FloorLimit(limit_id, least, start, origin, mean_s, end)
    if isinstance(row, _RideThrough):
        return RideThroughLimit(
            limit_id,
            _curve(row.voltage_pu),
            _curve(row.frequency_hz),
            row.recover_frac,
            row.recover_s,
            row.suspends_ramps,
            origin,
            mean_s,
        )
    slope = _power_w(row.megawatt_per_hz, row.kilowatt_per_hz)
    return DroopLimit(limit_id, row.deadband_hz, slope, row.max_w(peak_w), origin, row.nominal_hz, mean_s)


def _default_mean_s(row: Row) -> float:
    window_s = row.horizon_s if isinstance(row, _Rate) else getattr(row, "window_s", 0.0)
    return default_mean_s(row.kind, window_s=window_s, is_filtered=getattr(row, "band_hz", None) is not None)


def _power_w(megawatt: float | None, kilowatt: float | None) -> float:
    return min(
        math.inf if megawatt is None else megawatt * 1e6,
        math.inf if kilowatt is None else kilowatt * 1e3,
    )


def _fraction_w(row: _Row, fraction: float | None, peak_w: float | None) -> float:
    if fraction is None:
        return math.inf
    if peak_w is None:
        raise BadInput(
            f"limits: {row.id}: {fraction:g} is a fraction of the registered peak, which was not given "
            "(registered_peak_megawatt in a site file, --registered-peak-megawatt on the command line)"
        )
    return fraction * peak_w


def _span(row: _Row, from_s: float | None, until_s: float | None) -> tuple[float, float]:
    start = -math.inf if from_s is None else from_s
    end = math.inf if until_s is None else until_s
    if end <= start:
        raise BadInput(f"limits: {row.id}: until_s: {end:g}: must be later than from_s ({start:g})")
    return start, end


def _curve(segments: tuple[_Segment, ...]) -> tuple[CurveSegment, ...]:
    return tuple(CurveSegment(s.low, s.high, math.inf if s.hold_s is None else s.hold_s) for s in segments)


def _check_band(band_hz: tuple[float, float]) -> None:
    if band_hz[0] >= band_hz[1]:
        raise ValueError(f"band_hz: {list(band_hz)}: the first must be below the second")
