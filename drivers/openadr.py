"""OpenADR 3 events from a VTN, polled over HTTP: capacity limits and set-points as load targets, prices as prices.

The VTN is known by its TLS certificate and our token; what it says goes through the same acceptance rules as any other
issuer's word, and it may never waive ramp rows. A poll that fails changes nothing: what was accepted holds to its end.
Blocking calls run on a thread of their own with a deadline for the whole poll, and our token goes where the site file
says and nowhere else. A bridge for another protocol (IEEE 2030.5) has the same shape:
`run` beside the daemon, offers to the rules.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.files import read_file
from controller.ports import Clock, DriverError, SignalRules
from controller.settings import OpenAdrSettings
from controller.types import EnergyPrice, OfferedTarget, RefusalReason, SignalKind, SignalOffer, SignalOutcome
from drivers.deadline import DeviceWorker

BODY_BYTES_MAX = 1_048_576
SECRET_BYTES_MAX = 65_536
EVENTS_MAX = 50  # of one page; the specification's largest
INTERVALS_MAX = 64  # what the acceptance rules keep of one issuer and feed
HTTP_S_MAX = 10.0  # of silence
POLL_S_MAX = 25.0  # for a token and the events together, however they trickle
COVER_S = 1.0  # beyond the end of what is withdrawn: two readings of two clocks never agree to the microsecond
HORIZON_S = 366 * 86_400.0
TOKEN_EARLY_S = 30.0  # a token is renewed this long before it expires
NUMBER_MAX = 1e15  # of a payload, in its own unit: far beyond any
W_PER = {"W": 1.0, "KW": 1e3, "MW": 1e6}
LIMITS = ("IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT")  # in the order they are preferred within one interval
PRICE = "PRICE"
DURATION = re.compile(
    r"P(?:(\d+(?:\.\d+)?)W)?(?:(\d+(?:\.\d+)?)D)?(?:T(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?"
)
FOREVER = ("P9999Y", "P0Y")  # the specification's way to say without end

log = structlog.get_logger("openadr")


class VtnRefused(Exception):
    """The VTN did not answer, or not with what the specification says; the text is logged."""


class Model(BaseModel):
    """Base of what the VTN sends. Keys we do not use are the VTN's business; those we use are checked."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class IntervalPeriod(Model):
    start: Annotated[str, Field(max_length=40)]
    duration: Annotated[str, Field(max_length=40)] | None = None


class ValuesMap(Model):
    type: Annotated[str, Field(min_length=1, max_length=128)]
    values: Annotated[list[float | int | str | bool | dict[str, Any]], Field(max_length=64)] = []


class EventInterval(Model):
    id: int = 0
    interval_period: Annotated[IntervalPeriod | None, Field(alias="intervalPeriod")] = None
    payloads: Annotated[list[ValuesMap], Field(max_length=64)]


class PayloadDescriptor(Model):
    payload_type: Annotated[str, Field(alias="payloadType", max_length=128)]
    units: Annotated[str, Field(max_length=32)] | None = None
    currency: Annotated[str, Field(max_length=8)] | None = None


class Event(Model):
    """An event as the specification's 3.0 and 3.1 have it, as far as it concerns a load."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    program_id: Annotated[str, Field(alias="programID", min_length=1, max_length=128)]
    modification_date_time: Annotated[str | None, Field(alias="modificationDateTime", max_length=40)] = None
    priority: Annotated[int, Field(ge=0)] | None = None  # 0 is the highest; none is the lowest
    payload_descriptors: Annotated[list[PayloadDescriptor] | None, Field(alias="payloadDescriptors")] = None
    interval_period: Annotated[IntervalPeriod | None, Field(alias="intervalPeriod")] = None
    intervals: Annotated[list[EventInterval], Field(max_length=1024)]


@dataclass(frozen=True, slots=True)
class Wish:
    """One interval of a load limit, in UTC; `until_utc_s` inf where it has no end."""

    from_utc_s: float
    until_utc_s: float
    target_w: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What all events of a poll say together, later ones over earlier ones where they overlap."""

    wishes: tuple[Wish, ...]
    prices: tuple[EnergyPrice, ...]
    digest: str
    unused: tuple[str, ...]  # payload types that mean nothing to a load


def read_events(body: bytes, *, program_id: str | None) -> Reading:
    """The events in the VTN's answer. Raises VtnRefused for anything the specification does not allow."""
    try:
        raw = json.loads(body)
        if not isinstance(raw, list):
            raise VtnRefused("the answer is not a list of events")
        events = [Event.model_validate(item) for item in raw]
    except (ValueError, RecursionError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else error
        raise VtnRefused(f"the answer is not a list of events: {str(why)[:200]}") from None
    mine = [e for e in events if program_id is None or e.program_id == program_id]
    wishes: list[Wish] = []
    prices: list[EnergyPrice] = []
    unused: set[str] = set()
    for event in sorted(mine, key=_weakest_first):
        _read_event(event, wishes, prices, unused)
    if len(wishes) > INTERVALS_MAX:
        raise VtnRefused(f"{len(wishes)} limits at once; at most {INTERVALS_MAX} are taken")
    digest = hashlib.sha256(repr((wishes, prices)).encode()).hexdigest()
    return Reading(tuple(wishes), tuple(prices), digest, tuple(sorted(unused)))


def _weakest_first(event: Event) -> tuple[float, str, str]:
    priority = -math.inf if event.priority is None else -event.priority
    return priority, event.modification_date_time or "", event.id


def _read_event(event: Event, wishes: list[Wish], prices: list[EnergyPrice], unused: set[str]) -> None:
    units = {d.payload_type: d for d in event.payload_descriptors or ()}
    next_s: float | None = None
    for interval in event.intervals:
        period = interval.interval_period
        default = event.interval_period
        if period is not None:
            from_s, until_s = _span(period.start, period.duration)
        elif default is not None:
            duration = default.duration
            from_s, until_s = _span(default.start, duration) if next_s is None else _after(next_s, duration)
        else:
            raise VtnRefused(f"event {event.id}: interval {interval.id} has no time")
        next_s = until_s
        found = {p.type: p.values for p in interval.payloads}
        limit = next((kind for kind in LIMITS if kind in found), None)
        if limit is not None:
            value_w = _number(event, limit, found[limit]) * _scale(event, units.get(limit))
            wishes.append(Wish(from_s, until_s, max(0.0, value_w)))
        if PRICE in found:
            unit = units.get(PRICE)
            per_kwh = _number(event, PRICE, found[PRICE])
            prices.append(EnergyPrice(from_s, until_s, per_kwh, (unit.currency if unit else None) or ""))
        unused |= found.keys() - {PRICE, *LIMITS}


def _number(event: Event, kind: str, values: Sequence[object]) -> float:
    value = values[0] if values else None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > NUMBER_MAX:
        raise VtnRefused(f"event {event.id}: {kind} has no number")
    return float(value)


def _scale(event: Event, descriptor: PayloadDescriptor | None) -> float:
    units = "KW" if descriptor is None or descriptor.units is None else descriptor.units.upper()
    if units not in W_PER:
        raise VtnRefused(f"event {event.id}: unit {units}; allowed: {', '.join(W_PER)}")
    return W_PER[units]


def _span(start: str, duration: str | None) -> tuple[float, float]:
    try:
        at = datetime.fromisoformat(start)
    except ValueError:
        raise VtnRefused(f"start {start!r} is no time") from None
    if at.tzinfo is None:
        raise VtnRefused(f"start {start!r} has no zone")
    return _after(at.timestamp(), duration)


def _after(from_s: float, duration: str | None) -> tuple[float, float]:
    if math.isinf(from_s):
        raise VtnRefused("an interval after one without end")
    if duration is None or duration in FOREVER:
        return from_s, math.inf
    found = DURATION.fullmatch(duration)
    if found is None or not any(found.groups()):
        raise VtnRefused(f"duration {duration!r}; allowed: weeks, days, hours, minutes, seconds as in PT1H")
    weeks, days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    try:
        span = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        return from_s, math.inf
    return from_s, from_s + span.total_seconds()


# --------------------------------------------------------------------------------------------------- HTTP


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the library would carry our token to another host, and take its word over plain HTTP."""

    def redirect_request(self, *args: object) -> None:
        return None


_open = urllib.request.build_opener(_Stay).open


class VtnClient:
    """Blocking calls to one VTN; used from one worker at a time."""

    def __init__(self, settings: OpenAdrSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._token = ""
        self._token_until_s = -math.inf

    def events(self) -> bytes:
        """The body of `GET /events`. Raises VtnRefused."""
        query = {"skip": "0", "limit": str(EVENTS_MAX)}
        if self._settings.program_id is not None:
            query["programID"] = self._settings.program_id
        url = f"{self._settings.url.rstrip('/')}/events?{urllib.parse.urlencode(query)}"
        headers = {"Accept": "application/json"}
        if token := self._bearer():
            headers["Authorization"] = f"Bearer {token}"
        return self._call(urllib.request.Request(url, headers=headers))

    def _bearer(self) -> str:
        settings = self._settings
        if settings.token_file is not None:
            return _as_header(_secret(settings.token_file), settings.token_file)
        if settings.client_id is None or settings.client_secret_file is None:
            return ""
        if self._clock.now_s() < self._token_until_s:
            return self._token
        form = {
            "grant_type": "client_credentials",
            "client_id": settings.client_id,
            "client_secret": _secret(settings.client_secret_file),
            "scope": "read_all",
        }
        url = f"{settings.url.rstrip('/')}/auth/token"
        body = self._call(urllib.request.Request(url, data=urllib.parse.urlencode(form).encode(), method="POST"))
        try:
            answer = json.loads(body)
            self._token = _as_header(str(answer["access_token"]), "its access_token")
            lasts_s = float(answer.get("expires_in", 3600.0))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise VtnRefused("the token endpoint's answer holds no access_token") from None
        self._token_until_s = self._clock.now_s() + max(0.0, lasts_s - TOKEN_EARLY_S)
        return self._token

    def _call(self, request: urllib.request.Request) -> bytes:
        try:
            with _open(request, timeout=HTTP_S_MAX) as answer:
                body: bytes = answer.read(BODY_BYTES_MAX + 1)
                missing_count = (
                    answer.length or 0
                )  # of those announced; what is read in part may read well all the same
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                self._token_until_s = -math.inf
            raise VtnRefused(f"{request.full_url}: HTTP status {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise VtnRefused(f"{request.full_url}: {str(error)[:200]}") from None
        if missing_count and len(body) <= BODY_BYTES_MAX:
            raise VtnRefused(f"{request.full_url}: the answer broke off")
        if len(body) > BODY_BYTES_MAX:
            raise VtnRefused(f"{request.full_url}: answer larger than {BODY_BYTES_MAX} bytes")
        return body


def _secret(path: str) -> str:
    try:
        return read_file(Path(path), bytes_max=SECRET_BYTES_MAX).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise VtnRefused(f"{path}: {error}") from None


def _as_header(token: str, where: str) -> str:
    """A token that fits into a header; the library would put one that does not into its error, and so into the log."""
    if not (token.isascii() and token.isprintable()):
        raise VtnRefused(f"{where}: no token: one line of printable characters is allowed")
    return token


# --------------------------------------------------------------------------------------------------- bridge


class OpenAdrBridge:
    """Implements `ports.PriceSource`; `run` polls until cancelled. `on_outcome` hears what the rules say."""

    def __init__(
        self,
        settings: OpenAdrSettings,
        *,
        rules: SignalRules,
        clock: Clock,
        on_outcome: Callable[[SignalOutcome], None] | None = None,
        write_audit: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:
        self.is_answering = False
        self.last_error = ""
        self._settings = settings
        self._client = VtnClient(settings, clock)
        self._worker = DeviceWorker("vtn")
        self._rules = rules
        self._clock = clock
        self._on_outcome = on_outcome
        self._write_audit = write_audit
        self._seen = ""
        # UTC: until when the last offer said something; an earlier process may have, for as long as programmes reach.
        self._covered_until_s = clock.wall_utc_s() + HORIZON_S
        self._prices: tuple[EnergyPrice, ...] = ()
        self._poll_count = 0

    def prices(self, utc_s: float) -> tuple[EnergyPrice, ...]:
        """Prices in force or to come at `utc_s`, sorted by start."""
        left = (p for p in self._prices if p.until_utc_s > utc_s)
        return tuple(sorted(left, key=lambda p: p.from_utc_s))

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            while True:
                await self.poll()
                await self._clock.sleep_until_ns(self._clock.now_ns() + round(self._settings.poll_s * 1e9))
        finally:
            self._worker.close()

    async def poll(self) -> None:
        """Ask once; on success hand what changed to the rules, on failure leave everything as it was."""
        self._poll_count += 1
        try:
            body = await self._worker.call(self._client.events, deadline_s=POLL_S_MAX, name="events")
            found = read_events(body, program_id=self._settings.program_id)
        except (VtnRefused, DriverError) as refused:
            if self.is_answering or not self.last_error:
                log.warning("vtn lost", url=self._settings.url, why=str(refused))
            self.is_answering, self.last_error = False, str(refused)
            return
        if not self.is_answering:
            log.info("vtn answers", url=self._settings.url)
        self.is_answering, self.last_error = True, ""
        self._prices = found.prices
        if found.digest != self._seen:
            self._seen = found.digest
            self._offer(found)

    def _offer(self, found: Reading) -> None:
        """The VTN's present word replaces its last one whole; what our clock stood in the way of is asked again."""
        utc_s = self._clock.wall_utc_s()
        targets = [self._target(w.from_utc_s, w.until_utc_s, w.target_w) for w in found.wishes if w.until_utc_s > utc_s]
        if self._covered_until_s > utc_s:
            targets.insert(0, self._target(None, self._covered_until_s + COVER_S, None))
        covered_before_s = self._covered_until_s
        self._covered_until_s = max((w.until_utc_s for w in found.wishes), default=-math.inf)
        if not targets:
            return
        offer = SignalOffer(
            kind=SignalKind.LOAD_TARGET,
            issuer=self._settings.issuer,
            key_id="vtn",
            message_id=f"openadr-{self._poll_count}",
            correlation_id=found.digest[:32],
            digest=found.digest,
            iat_utc_s=utc_s,  # what a poll brings is the VTN's word of now
            jti=f"{found.digest[:32]}-{self._poll_count}",
            targets=tuple(targets),
        )
        outcomes = self._rules.offer(offer, now_s=self._clock.now_s(), utc_s=utc_s, present_w=None)
        if any(outcome.reason is RefusalReason.CLOCK for outcome in outcomes):
            self._seen, self._covered_until_s = "", max(self._covered_until_s, covered_before_s)
        for outcome in outcomes:
            log.info(
                "openadr event",
                acceptance=str(outcome.acceptance),
                reason=str(outcome.reason or ""),
                asked_w=outcome.asked_w,
            )
            if self._on_outcome is not None:
                self._on_outcome(outcome)
            if self._write_audit is not None:
                self._write_audit(
                    {"event": "openadr", "acceptance": str(outcome.acceptance), "asked_w": outcome.asked_w}
                )

    @staticmethod
    def _target(from_utc_s: float | None, until_utc_s: float, target_w: float | None) -> OfferedTarget:
        return OfferedTarget(
            feeds=(),
            from_utc_s=from_utc_s,
            until_utc_s=until_utc_s if math.isfinite(until_utc_s) else None,
            target_w=target_w,
            limits=(),
            is_revert=target_w is None,
            is_best_effort=False,
            ramp_exempt=False,
        )
