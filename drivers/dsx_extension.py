"""What grid messages carry that DSX Flex does not know: ramp limits, answers to an issuer, and what a site could give.

Models only, as strict as those of `dsx_payloads`. The AsyncAPI document in `docs/` is generated from these models.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from controller.types import ROW_BAND_HZ, ROW_SPAN_S_MAX, ROW_SPAN_S_MIN, ROW_TIME_S_MAX
from drivers.dsx_payloads import ITEMS_MAX, Interval, NonNegative, Payload, PowerUnit, Tag, UtcTime

Duration = Annotated[float, Field(gt=0, le=ROW_TIME_S_MAX)]
Quantity = Annotated[float, Field(ge=0, le=1e3)]  # hertz, or volts per unit
Delay = Annotated[float, Field(ge=0, le=ROW_TIME_S_MAX)]
Edge = Annotated[float, Field(ge=ROW_BAND_HZ[0], le=ROW_BAND_HZ[1])]
Band = Annotated[tuple[Edge, Edge], Field(strict=False)]


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
