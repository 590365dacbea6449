"""What grid messages carry inside their signature: DSX Flex 1.7.0 payloads and our ramp-limit extension.

Models only. Unknown keys, wrong types, times without a zone, infinities and nulls that mean nothing are refused. The
AsyncAPI document in `docs/` is generated from these models.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from controller.types import (
    ROW_BAND_HZ,
    ROW_POWER_W_MAX,
    ROW_SPAN_S_MAX,
    ROW_SPAN_S_MIN,
    ROW_TIME_S_MAX,
)

ITEMS_MAX = 64  # requests in a message, rows in a request, feeds in a request
RESULTS_MAX = 4096
YEARS = range(2000, 2200)
UTC_S_MAX = 253_000_000_000.0  # within the year 9987; later is said as this

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_UUID4 = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"


def _check_time(text: str) -> str:
    if _RFC3339.fullmatch(text) is None:
        raise ValueError("a time as in RFC 3339, with its zone, is allowed")
    try:
        year = datetime.fromisoformat(plain_time(text)).year
    except (ValueError, OverflowError):
        raise ValueError("no such time") from None
    if year not in YEARS:
        raise ValueError(f"a year from {YEARS.start} to {YEARS.stop - 1} is allowed")
    return text


def plain_time(text: str) -> str:
    """RFC 3339 as the standard library reads it: capital letters, at most microseconds."""
    return re.sub(r"(\.\d{6})\d+", r"\1", text.upper())


def without_nulls(raw: object, *, allowed: frozenset[str]) -> object:
    """Refuse an explicit null where the schema knows only presence or absence."""
    if isinstance(raw, dict):
        nulls = [str(k)[:40] for k, v in raw.items() if v is None and k not in allowed]
        if nulls:
            raise ValueError(f"null is not allowed for {', '.join(nulls[:5])}; leave it out")
    return raw


UtcTime = Annotated[str, AfterValidator(_check_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Uuid4 = Annotated[str, Field(pattern=_UUID4, json_schema_extra={"format": "uuid"})]
Tag = Annotated[str, Field(min_length=1, max_length=128)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Duration = Annotated[float, Field(gt=0, le=ROW_TIME_S_MAX)]
Quantity = Annotated[float, Field(ge=0, le=1e3)]  # hertz, or volts per unit
Delay = Annotated[float, Field(ge=0, le=ROW_TIME_S_MAX)]
WATTS = {"watt": 1.0, "kilowatt": 1e3, "megawatt": 1e6}


class Payload(BaseModel):
    """Base of everything inside a signature: exact types, known keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    nullable: ClassVar[frozenset[str]] = frozenset()  # keys at which a null means something; elsewhere it is refused

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, raw: object) -> object:
        return without_nulls(raw, allowed=cls.nullable)


# --------------------------------------------------------------------------------------------------- DSX Flex 1.7.0


class PowerUnit(Payload):
    """A power with its unit, never negative."""

    value: NonNegative
    unit: Literal["watt", "kilowatt", "megawatt"]

    @property
    def watts(self) -> float:
        """In watts; what is beyond any site is no more than that, and no infinity."""
        return min(self.value * WATTS[self.unit], ROW_POWER_W_MAX)


class Interval(Payload):
    """When a request holds: from now unless it says otherwise, until replaced unless it says otherwise."""

    start_time: UtcTime | None = None
    end_time: UtcTime | None = None


class Strategy(Payload):
    """How load may be shed."""

    best_effort: bool = False


class LoadTarget(Payload):
    """One request for a load; a null constraint withdraws earlier ones."""

    nullable: ClassVar[frozenset[str]] = frozenset({"load_constraint"})

    interval: Interval
    feed_tags: Annotated[tuple[Tag, ...], Field(max_length=ITEMS_MAX, strict=False)] = ()
    load_constraint: PowerUnit | None
    strategy: Strategy = Strategy()


class SetLoadTargetData(Payload):
    """Payload of `grid.loadtarget.set.v1`."""

    targets: Annotated[tuple[LoadTarget, ...], Field(min_length=1, max_length=ITEMS_MAX, strict=False)]


class FeedMetadata(Payload):
    """What a feed is built for."""

    power_minimum: PowerUnit
    power_maximum: PowerUnit
    default_constraint: PowerUnit


class FeedTargetState(Payload):
    """A target of a feed, in force or scheduled."""

    active: bool
    load_constraint: PowerUnit
    interval: Interval
    strategy: Strategy
    correlation_id: Uuid4


FeedEvent = Literal["target_set", "start_ramp_down", "end_ramp_down", "start_ramp_up", "end_ramp_up", "periodic"]


class FeedState(Payload):
    """One feed as it is now."""

    metadata: FeedMetadata
    targets: Annotated[tuple[FeedTargetState, ...], Field(strict=False)]
    calculated_load: PowerUnit
    in_flight: bool
    event: FeedEvent
    power_event_start_time: UtcTime | None = None
    compliant: bool


class PowerStateStatusData(Payload):
    """Payload of `grid.powerstate.status.v1`."""

    snapshot_time: UtcTime
    feeds: dict[str, FeedState]


class ShedHint(Payload):
    """A piece of advice for whoever enforces: what to throttle, and in which order."""

    resource_id: str
    resource_type: Literal["node", "gpu", "chassis"]
    action: Literal["power_cap", "throttle", "suspend"]
    priority: Annotated[int, Field(ge=1)]
    target_power: PowerUnit | None = None


class BreachDetails(Payload):
    """Which breach, and when."""

    breach_id: Uuid4
    detected_at: UtcTime
    resolved_at: UtcTime | None = None


class BreachTarget(Payload):
    """The target that is exceeded."""

    correlation_id: Uuid4
    load_constraint: PowerUnit


InfrastructureAction = Literal["SHUTDOWN_NODES", "SHUTDOWN_RACKS", "CUT_DATA_FEEDS", "TRIP_BREAKERS"]


class PowerBreachAlertData(Payload):
    """Payload of `grid.powerbreach.alert.v1`."""

    feed_tag: str
    status: Literal["active", "escalated", "resolved"]
    severity: Literal["warning", "critical"]
    breach: BreachDetails
    target: BreachTarget
    measured_load: PowerUnit
    shed_hints: Annotated[tuple[ShedHint, ...], Field(strict=False)] | None = None
    infrastructure_actions: Annotated[tuple[InfrastructureAction, ...], Field(strict=False)]


class EnforcementResult(Payload):
    """What became of one hint."""

    resource_id: str
    resource_type: Literal["node", "gpu", "chassis"]
    requested_action: Literal["power_cap", "throttle", "suspend"]
    code: Literal["applied", "failed", "skipped"]
    message: str | None = None
    applied_power: PowerUnit | None = None


class PowerBreachEnforcementData(Payload):
    """Payload of `grid.powerbreach.enforcement.v1`."""

    breach_id: Uuid4
    feed_tag: str
    action: Literal["applied", "reverted"]
    code: Literal["success", "partial", "error"]
    diag_msg: str | None = None
    results: Annotated[tuple[EnforcementResult, ...], Field(max_length=RESULTS_MAX, strict=False)]
    timestamp: UtcTime


# --------------------------------------------------------------------------------------------------- our extension


class Row(Payload):
    """What every row of a ramp-limit request has."""

    id: Annotated[str, Field(min_length=1, max_length=64)]


class SizedRow(Row):
    """A row with a size: a power, or a share of the registered peak; exactly one."""

    max: PowerUnit | None = None
    max_frac: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_size(self) -> SizedRow:
        if (self.max is None) == (self.max_frac is None):
            raise ValueError("give max or max_frac, one of them")
        return self


Edge = Annotated[float, Field(ge=ROW_BAND_HZ[0], le=ROW_BAND_HZ[1])]
Band = Annotated[tuple[Edge, Edge], Field(strict=False)]


class RampRow(SizedRow):
    """Change within any window, one way or both."""

    kind: Literal["ramp"]
    window_s: Duration
    direction: Literal["up", "down", "both"] = "both"


class SwingRow(SizedRow):
    """Largest less smallest power within any window, of filtered power where a band is given."""

    kind: Literal["swing"]
    window_s: Duration
    band_hz: Band | None = None


class RateRow(Row):
    """Slope of changes larger than `above`."""

    kind: Literal["rate"]
    max_per_s: PowerUnit
    above: PowerUnit


class BandRow(SizedRow):
    """Peak of filtered power."""

    kind: Literal["band"]
    band_hz: Band


class OscillationRow(SizedRow):
    """Largest spectral line in a band."""

    kind: Literal["oscillation"]
    band_hz: Band
    span_s: Annotated[float, Field(ge=ROW_SPAN_S_MIN, le=ROW_SPAN_S_MAX)] = 20.0


class CeilingRow(SizedRow):
    """Power at most, due `by_s` after the interval begins."""

    kind: Literal["ceiling"]
    by_s: Delay = 0.0


class FloorRow(Row):
    """Power at least, due `by_s` after the interval begins."""

    kind: Literal["floor"]
    min: PowerUnit
    by_s: Delay = 0.0


class Segment(Payload):
    """A box of a ride-through curve; without `hold_s` it is continuous."""

    low: Quantity
    high: Annotated[Quantity, Field(gt=0)]
    hold_s: Delay | None = None


class RideThroughRow(Row):
    """Stay connected inside the curves, and be back in time."""

    kind: Literal["ride_through"]
    voltage_pu: Annotated[tuple[Segment, ...], Field(max_length=ITEMS_MAX, strict=False)] = ()
    frequency_hz: Annotated[tuple[Segment, ...], Field(max_length=ITEMS_MAX, strict=False)] = ()
    recover_frac: Annotated[float, Field(gt=0, le=1)]
    recover_s: Duration
    suspends_ramps: bool = False


class DroopRow(Row):
    """Response to frequency."""

    kind: Literal["droop"]
    deadband_hz: Quantity
    per_hz: PowerUnit
    max: PowerUnit
    nominal_hz: Annotated[float, Field(ge=45, le=65)] = 60.0


AnyRow = Annotated[
    RampRow | SwingRow | RateRow | BandRow | OscillationRow | CeilingRow | FloorRow | RideThroughRow | DroopRow,
    Field(discriminator="kind"),
]


class RampLimitRequest(Payload):
    """One request for rows; null withdraws earlier ones. `ramp_exempt` waives ramp rows for its ceiling."""

    nullable: ClassVar[frozenset[str]] = frozenset({"limits"})

    interval: Interval
    feed_tags: Annotated[tuple[Tag, ...], Field(max_length=ITEMS_MAX, strict=False)] = ()
    limits: Annotated[tuple[AnyRow, ...], Field(min_length=1, max_length=ITEMS_MAX, strict=False)] | None
    ramp_exempt: bool = False


class SetRampLimitData(Payload):
    """Payload of `grid.ramplimit.set.v1`."""

    requests: Annotated[tuple[RampLimitRequest, ...], Field(min_length=1, max_length=ITEMS_MAX, strict=False)]


class RequestAnswer(Payload):
    """What became of one request; `met_at` is when it will be held, `applied` what is held where that differs."""

    index: Annotated[int, Field(ge=0)]
    feed_tags: Annotated[tuple[str, ...], Field(strict=False)]
    acceptance: Literal["accepted", "bounded", "refused"]
    reason: str | None = None
    detail: str = ""
    applied: PowerUnit | None = None
    met_at: UtcTime | None = None


class SignalAnswerData(Payload):
    """Payload of `grid.signal.answer.v1`: the agent's answer to one message of one issuer."""

    message_id: Annotated[str, Field(max_length=128)]
    issuer: str
    answers: Annotated[tuple[RequestAnswer, ...], Field(strict=False)]


class PathPoint(Payload):
    """Where power is to be at an instant; what happens in between is on a straight line."""

    time: UtcTime
    power: PowerUnit


class Storage(Payload):
    """What the battery could do from now on."""

    discharge: PowerUnit
    charge: PowerUnit
    energy_kilowatt_hour: NonNegative


class MarginalPrice(Payload):
    """Work that a little relaxation of a kind of limit would save, as of now.

    Per megawatt of ceiling or reserve, per megawatt a minute of ramp. `at_least`: the limit cannot be met at any price,
    so the true one is this or more.
    """

    limit: Literal["ramp_down", "ramp_up", "ceiling", "reserve"]
    gpu_second_per_megawatt: NonNegative
    at_least: bool = False


class EnergyPriceState(Payload):
    """What energy costs, as a VTN told; it steers nothing here."""

    per_kilowatt_hour: float
    currency: Annotated[str, Field(max_length=8)] = ""
    interval: Interval


class FlexibilityStatusData(Payload):
    """Payload of `grid.flexibility.status.v1`: what the site intends, could give, and what its limits cost it."""

    snapshot_time: UtcTime
    forecast: Annotated[tuple[PathPoint, ...], Field(max_length=ITEMS_MAX, strict=False)]
    admissible_low: PowerUnit
    admissible_high: PowerUnit | None = None  # absent: no row in force bounds a rise
    floor: PowerUnit
    sheddable: PowerUnit
    storage: Storage | None = None
    marginal_prices: Annotated[tuple[MarginalPrice, ...], Field(max_length=ITEMS_MAX, strict=False)]
    energy_prices: Annotated[tuple[EnergyPriceState, ...], Field(max_length=ITEMS_MAX, strict=False)]


def utc_text(utc_s: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(min(utc_s, UTC_S_MAX), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def utc_s_of(text: str) -> float:
    """Seconds since 1970 of a checked RFC 3339 text."""
    return datetime.fromisoformat(plain_time(text)).timestamp()


def power(watts: float) -> PowerUnit:
    """A power as our messages carry it: never negative."""
    return PowerUnit(value=max(0.0, watts), unit="watt")
