"""What grid messages carry inside their signature: the payloads of DSX Flex 1.7.0, and what all payloads share.

Models only. Unknown keys, wrong types, times without a zone, infinities and nulls that mean nothing are refused. Ours
are in `dsx_extension`. The AsyncAPI document in `docs/` is generated from these models.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from controller.types import ROW_POWER_W_MAX

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
NonNegative = Annotated[float, Field(ge=0)]
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


def utc_text(utc_s: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(min(utc_s, UTC_S_MAX), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def utc_s_of(text: str) -> float:
    """Seconds since 1970 of a checked RFC 3339 text."""
    return datetime.fromisoformat(plain_time(text)).timestamp()


def power(watts: float) -> PowerUnit:
    """A power as our messages carry it: never negative."""
    return PowerUnit(value=max(0.0, watts), unit="watt")
