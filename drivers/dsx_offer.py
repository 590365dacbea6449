"""From verified grid payloads to offers for the acceptance rules: SI units, UTC seconds, rows as limits."""

from __future__ import annotations

from typing import assert_never

from controller.types import (
    BandLimit,
    CurveSegment,
    Direction,
    DroopLimit,
    FloorLimit,
    Limit,
    LimitId,
    LimitStatus,
    OfferedTarget,
    OscillationLimit,
    Provenance,
    RampLimit,
    RateLimit,
    RefusalReason,
    RideThroughLimit,
    SignalKind,
    SignalOffer,
    SwingLimit,
)
from drivers.dsx_extension import (
    AnyRow,
    BandRow,
    CeilingRow,
    DroopRow,
    FloorRow,
    OscillationRow,
    RampLimitRequest,
    RampRow,
    RateRow,
    RideThroughRow,
    Segment,
    SetRampLimitData,
    SizedRow,
    SwingRow,
)
from drivers.dsx_payloads import Interval, SetLoadTargetData, utc_s_of
from drivers.dsx_wire import CloudEvent
from drivers.jws import Signed, WireRefused

LONG_WINDOW_S = 15.0  # from here on ramp and swing rows are judged on means of 1 s, below on 0.2 s
MEAN_LONG_S, MEAN_SHORT_S = 1.0, 0.2


def load_target_offer(event: CloudEvent, signed: Signed, data: SetLoadTargetData) -> SignalOffer:
    """A DSX Flex load target as an offer."""
    targets = []
    for t in data.targets:
        from_utc_s, until_utc_s = _interval(t.interval)
        targets.append(
            OfferedTarget(
                feeds=t.feed_tags,
                from_utc_s=from_utc_s,
                until_utc_s=until_utc_s,
                target_w=None if t.load_constraint is None else t.load_constraint.watts,
                limits=(),
                is_revert=t.load_constraint is None,
                is_best_effort=t.strategy.best_effort,
                ramp_exempt=False,
            )
        )
    return _offer(SignalKind.LOAD_TARGET, event, signed, tuple(targets))


def ramp_limit_offer(event: CloudEvent, signed: Signed, data: SetRampLimitData, *, peak_w: float) -> SignalOffer:
    """Our ramp-limit message as an offer; shares of the peak become watts. Raises WireRefused for rows that clash."""
    targets = tuple(_ramp_request(r, event, signed, peak_w) for r in data.requests)
    return _offer(SignalKind.RAMP_LIMIT, event, signed, targets)


def _offer(kind: SignalKind, event: CloudEvent, signed: Signed, targets: tuple[OfferedTarget, ...]) -> SignalOffer:
    return SignalOffer(
        kind=kind,
        issuer=signed.issuer,
        key_id=signed.key_id,
        message_id=event.id,
        correlation_id=event.correlationid or event.id,
        digest=signed.digest,
        iat_utc_s=signed.iat_utc_s,
        jti=signed.jti,
        targets=targets,
    )


def _ramp_request(request: RampLimitRequest, event: CloudEvent, signed: Signed, peak_w: float) -> OfferedTarget:
    from_utc_s, until_utc_s = _interval(request.interval)
    rows = request.limits or ()
    if len({r.id for r in rows}) != len(rows):
        raise WireRefused(RefusalReason.SCHEMA, "limits: two rows have one id")
    ceilings = [r for r in rows if isinstance(r, CeilingRow)]
    if len(ceilings) > 1:
        raise WireRefused(RefusalReason.SCHEMA, "limits: one ceiling in a request is allowed")
    if request.ramp_exempt and not ceilings:
        raise WireRefused(RefusalReason.SCHEMA, "ramp_exempt: allowed with a ceiling only")
    provenance = Provenance(source=f"grid signal of {signed.issuer}", date=event.time[:10], status=LimitStatus.LOCAL)
    return OfferedTarget(
        feeds=request.feed_tags,
        from_utc_s=from_utc_s,
        until_utc_s=until_utc_s,
        target_w=_size_w(ceilings[0], peak_w) if ceilings else None,
        limits=tuple(_limit(r, signed.issuer, provenance, peak_w) for r in rows if not isinstance(r, CeilingRow)),
        is_revert=request.limits is None,
        is_best_effort=False,
        ramp_exempt=request.ramp_exempt,
        due_in_s=ceilings[0].by_s if ceilings else 0.0,
    )


def _limit(row: AnyRow, issuer: str, provenance: Provenance, peak_w: float) -> Limit:
    """One row of the wire as the limit that controller and auditor share."""
    limit_id = LimitId(f"{issuer}/{row.id}")
    if isinstance(row, RampRow):
        return RampLimit(
            limit_id, _size_w(row, peak_w), row.window_s, Direction(row.direction), _mean_s(row.window_s), provenance
        )
    if isinstance(row, SwingRow):
        band = _band(row.band_hz) if row.band_hz is not None else None
        mean_s = _mean_s(row.window_s) if band is None else 0.0
        return SwingLimit(limit_id, _size_w(row, peak_w), row.window_s, mean_s, provenance, band)
    if isinstance(row, RateRow):
        return RateLimit(limit_id, row.max_per_s.watts, row.above.watts, MEAN_LONG_S, provenance)
    if isinstance(row, BandRow):
        return BandLimit(limit_id, _size_w(row, peak_w), _band(row.band_hz), provenance)
    if isinstance(row, OscillationRow):
        return OscillationLimit(limit_id, _size_w(row, peak_w), _band(row.band_hz), row.span_s, provenance)
    if isinstance(row, FloorRow):
        return FloorLimit(limit_id, row.min.watts, row.by_s, provenance)
    if isinstance(row, RideThroughRow):
        return RideThroughLimit(
            limit_id,
            _curve(row.voltage_pu),
            _curve(row.frequency_hz),
            row.recover_frac,
            row.recover_s,
            row.suspends_ramps,
            provenance,
        )
    if isinstance(row, DroopRow):
        return DroopLimit(limit_id, row.deadband_hz, row.per_hz.watts, row.max.watts, provenance, row.nominal_hz)
    if isinstance(row, CeilingRow):
        raise AssertionError("a ceiling is the request's target, not a row")
    assert_never(row)


def _interval(interval: Interval) -> tuple[float | None, float | None]:
    start, end = interval.start_time, interval.end_time
    return None if start is None else utc_s_of(start), None if end is None else utc_s_of(end)


def _size_w(row: SizedRow, peak_w: float) -> float:
    return row.max.watts if row.max is not None else (row.max_frac or 0.0) * peak_w


def _mean_s(window_s: float) -> float:
    return MEAN_LONG_S if window_s >= LONG_WINDOW_S else MEAN_SHORT_S


def _band(band_hz: tuple[float, float]) -> tuple[float, float]:
    if band_hz[0] >= band_hz[1]:
        raise WireRefused(RefusalReason.SCHEMA, f"band_hz: {band_hz[0]} to {band_hz[1]} is no band")
    return band_hz


def _curve(segments: tuple[Segment, ...]) -> tuple[CurveSegment, ...]:
    if any(s.low >= s.high for s in segments):
        raise WireRefused(RefusalReason.SCHEMA, "ride_through: low is not below high")
    return tuple(CurveSegment(s.low, s.high, float("inf") if s.hold_s is None else s.hold_s) for s in segments)
