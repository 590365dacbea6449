"""Acceptance rules for grid signals: what a verified message may change, from when, how far and for how long (pure).

A message may only do what its issuer is allowed to; nothing unverified, stale or replayed ever loosens a limit; a low
one is bounded by floor and ramp and answered with the time it will be met; a flapping one is followed down at once and
up slowly; silence ends in the fallback contract. Time is an argument of every call. Keys, topics and the audit log live
in the driver; the contract's own rows stay in force beside whatever is accepted here: a signal can only add to them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.settings import GridSettings, IssuerSettings, SiteSettings
from controller.signal_clock import WallClock
from controller.signal_dwell import InForce
from controller.signal_memory import NewestOf, SignalMemory, moved
from controller.signal_request import SignalRequest, refused
from controller.signal_schedule import Layer, Schedule, Slot, bounded_row
from controller.types import (
    CeilingLimit,
    Contract,
    Direction,
    DroopLimit,
    FeedTarget,
    FloorLimit,
    GridSignal,
    Limit,
    OfferedTarget,
    RampLimit,
    RateLimit,
    RefusalReason,
    RideThroughLimit,
    SignalKind,
    SignalOffer,
    SignalOutcome,
    SwingLimit,
    replace,
)

TRANSIT_S_MAX = 10.0  # a message older than skew plus this is stale: no broker path of ours takes longer
IDS_REMEMBERED_MAX = 8192  # an older replay fails the time window anyway
LAYERS_PER_SLOT_MAX = 64
ROWS_AT_ONCE_MAX = 128  # of one issuer; each takes some 40 us of every tick, and a message may bring 64

Refusal = tuple[RefusalReason, str]


@dataclass(frozen=True, slots=True)
class SignalBounds:
    """What the site brings to the rules. `floor_w`: no target is followed below it (critical load)."""

    floor_w: float
    peak_w: float
    contract: Contract
    grace_s: float
    raise_dwell_s: float


def bounds_of(site: SiteSettings) -> SignalBounds:
    """The bounds of a site: its floor is what it draws with every GPU idle, or what it guarantees if that is more."""
    return SignalBounds(
        floor_w=min(max(site.guaranteed_floor_w, site.gpu_idle_w + site.other_load_w), site.registered_peak_w),
        peak_w=site.registered_peak_w,
        contract=site.contract,
        grace_s=site.grace_s,
        raise_dwell_s=site.raise_dwell_s,
    )


def fall_time_s(limits: Iterable[Limit], drop_w: float) -> float:
    """How long a fall of `drop_w` takes under the rows: up to a row's allowance at once, more at the row's slope."""
    longest_s = 0.0
    for row in limits:
        is_down = isinstance(row, SwingLimit) or (isinstance(row, RampLimit) and row.direction is not Direction.UP)
        if isinstance(row, RampLimit | SwingLimit) and is_down and drop_w > row.max_w:
            longest_s = max(longest_s, drop_w / row.max_w * row.window_s if row.max_w > 0 else math.inf)
        elif isinstance(row, RateLimit) and drop_w > row.above_w:
            longest_s = max(longest_s, drop_w / row.max_w_per_s if row.max_w_per_s > 0 else math.inf)
    return longest_s


class AcceptanceRules:
    """The state of all grid signals of one agent; implements `ports.SignalRules`. Time never runs backwards here."""

    def __init__(self, settings: GridSettings, bounds: SignalBounds) -> None:
        shares = settings.feed_share_frac or tuple(1.0 / len(settings.feeds) for _ in settings.feeds)
        assert len(shares) == len(settings.feeds) and abs(sum(shares) - 1.0) < 1e-6, "feed shares must sum to 1"
        self._share = dict(zip(settings.feeds, shares, strict=True))
        self._issuers = {i.name: i for i in settings.issuers}
        self._skew_s = settings.clock_skew_s
        self._clock = WallClock(skew_s=settings.clock_skew_s, grace_s=bounds.grace_s)
        self._bounds = bounds
        self._schedule = Schedule(share_frac=self._share, peak_w=bounds.peak_w)
        self._last_iat: dict[Slot, float] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._link_lost_s: float | None = None
        self._is_silent = False
        self._view = InForce(self._schedule, raise_dwell_s=bounds.raise_dwell_s)

    @property
    def is_silent(self) -> bool:
        """The link has been gone for longer than the grace: the fallback contract is due."""
        return self._is_silent

    @property
    def is_raise_held(self) -> bool:
        """An issuer raises too often: the newest raise waits."""
        return self._view.is_holding

    @property
    def is_clock_suspect(self) -> bool:
        """The wall clock stepped, or had no source of time for longer than the grace: its word loosens nothing."""
        return self._clock.is_suspect

    def step(self, *, now_s: float, utc_s: float, is_link_up: bool, is_clock_synced: bool) -> None:
        """Let time pass: a wall clock in doubt, silence and its grace, requests that ended."""
        self._clock.watch(now_s, utc_s)
        self._clock.watch_source(now_s, is_synced=is_clock_synced)
        if is_link_up:
            self._link_lost_s, self._is_silent = None, False
        elif self._link_lost_s is None:
            self._link_lost_s = now_s
        if self._link_lost_s is not None and now_s - self._link_lost_s >= self._bounds.grace_s:
            self._is_silent = True
        self._schedule.expire(now_s, is_silent=self._is_silent)

    def active(self, now_s: float) -> tuple[GridSignal, ...]:
        """What is in force now or scheduled, at the point of common coupling; sorted by start.

        Target signals do not overlap, but for one that a flapping issuer raised: its old value holds for the dwell.
        """
        return self._view.at(now_s)

    def feed_targets(self, now_s: float) -> tuple[FeedTarget, ...]:
        """The targets of every feed, active and scheduled, as their issuers set them."""
        return tuple(self._schedule.feed_targets(now_s))

    def offer(
        self, offer: SignalOffer, *, now_s: float, utc_s: float, present_w: float | None
    ) -> tuple[SignalOutcome, ...]:
        """One outcome per request. Nothing of a refused request stays; the others of the same message count."""
        self._clock.watch(now_s, utc_s)
        whole = self._refusal_of_message(offer, utc_s)
        if whole is not None:
            return tuple(refused(offer, i, t, *whole) for i, t in enumerate(offer.targets))
        self._remember(offer)
        is_fresh = offer.jti is not None and self._is_timely(offer, utc_s)
        touched: set[Slot] = set()
        outcomes = tuple(
            self._consider(SignalRequest(offer, i, target, now_s, utc_s, present_w, is_fresh), touched)
            for i, target in enumerate(offer.targets)
        )
        if offer.iat_utc_s is not None:
            for slot in touched:
                self._last_iat[slot] = max(offer.iat_utc_s, self._last_iat.get(slot, -math.inf))
        return outcomes

    def memory(self, *, now_s: float, utc_s: float) -> SignalMemory:
        """What a restarted controller must know to hold what this one accepted, and to tell a replay."""
        return SignalMemory(
            utc_s=utc_s,
            layers=tuple(moved(layer, utc_s - now_s) for layer in self._schedule.everything()),
            seen=tuple(self._seen),
            newest=tuple(NewestOf(*slot, iat) for slot, iat in sorted(self._last_iat.items())),
        )

    def recall(self, memory: SignalMemory, *, now_s: float, utc_s: float) -> None:
        """Take back what was kept, before the first offer; what ended and whose issuer or feed is gone stays out.

        A wall clock that stands before the memory cannot say how long we were away: no time has passed, then.
        """
        since_s = max(utc_s, memory.utc_s)
        kept = [moved(layer, now_s - since_s) for layer in memory.layers if self._may_still(layer)]
        self._schedule.put_back([layer for layer in kept if layer.until_s > now_s])
        for identity in memory.seen[-IDS_REMEMBERED_MAX:]:
            self._seen[identity] = None
        self._last_iat |= {(n.kind, n.issuer, n.feed): n.iat_utc_s for n in memory.newest}

    def _may_still(self, layer: Layer) -> bool:
        issuer = self._issuers.get(layer.issuer)
        is_known = issuer is not None and layer.feed in self._share and _may(issuer, layer.kind)
        waives = layer.ramp_exempt or any(_sets_ramps_aside(row) for row in layer.limits)
        return is_known and (not waives or (issuer is not None and issuer.may_exempt_ramp))

    def _is_timely(self, offer: SignalOffer, utc_s: float) -> bool:
        """Signed lately, by our clock; without one to trust, after all that its issuer was heard to say of this."""
        if offer.iat_utc_s is None:
            return False
        if self._clock.has_source:
            return -self._skew_s <= utc_s - offer.iat_utc_s <= self._skew_s + TRANSIT_S_MAX
        heard = [iat for (kind, name, _), iat in self._last_iat.items() if (kind, name) == (offer.kind, offer.issuer)]
        return bool(heard) and offer.iat_utc_s > max(heard)

    def _refusal_of_message(self, offer: SignalOffer, utc_s: float) -> Refusal | None:
        issuer = self._issuers.get(offer.issuer)
        if issuer is None or not _may(issuer, offer.kind):
            return RefusalReason.NOT_PERMITTED, f"{offer.issuer} may not set a {offer.kind}"
        if _identity(offer) in self._seen:
            return RefusalReason.DUPLICATE, "already seen"
        ahead_s = offer.iat_utc_s - utc_s if offer.iat_utc_s is not None else 0.0
        if ahead_s > self._skew_s and not self.is_clock_suspect and self._clock.has_source:
            return RefusalReason.FROM_FUTURE, f"signed {ahead_s:.1f} s ahead of our clock"
        return None

    def _remember(self, offer: SignalOffer) -> None:
        self._seen[_identity(offer)] = None
        while len(self._seen) > IDS_REMEMBERED_MAX:
            self._seen.popitem(last=False)

    def _consider(self, request: SignalRequest, touched: set[Slot]) -> SignalOutcome:
        """Judge one request; lay it on its feeds if it passes."""
        offer, target = request.offer, request.target
        if any(f not in self._share for f in target.feeds):
            return request.refused(RefusalReason.UNKNOWN_FEED, f"feeds here: {', '.join(self._share)}")
        waives = _waiver(target)
        if waives and not self._issuers[offer.issuer].may_exempt_ramp:
            return request.refused(RefusalReason.NOT_PERMITTED, f"{offer.issuer} may not waive ramp rows{waives}")
        slots = [(offer.kind, offer.issuer, f) for f in self._share if not target.feeds or f in target.feeds]
        iat = offer.iat_utc_s
        if iat is not None and any(iat <= self._last_iat.get(s, -math.inf) for s in slots):
            return request.refused(RefusalReason.OUT_OF_ORDER, "not newer than the last of this issuer and feed")
        from_s, until_s, _ = request.interval()
        if until_s <= from_s:
            return request.refused(RefusalReason.EXPIRED, "its interval is over, or ends before it starts")
        limits = tuple(bounded_row(row, self._bounds.peak_w) for row in target.limits)
        layers = [self._layer(request, slot, limits) for slot in slots]
        refusal = self._refusal_of_raise(request, layers) or self._refusal_of_range(layers)
        if refusal is not None:
            return request.refused(*refusal)
        for layer in layers:
            self._schedule.lay(layer)
        touched.update(slots)
        return request.accepted(layers, peak_w=self._bounds.peak_w)

    def _layer(self, request: SignalRequest, slot: Slot, limits: tuple[Limit, ...]) -> Layer:
        """The request on one feed, its target inside the feed's floor and share, with the time it can be met."""
        target = request.target
        from_s, until_s, lives_with_link = request.interval()
        share = self._share[slot[2]]
        applied_w = None
        met_at_s = from_s
        if target.target_w is not None:
            applied_w = min(max(target.target_w, self._bounds.floor_w * share), self._bounds.peak_w * share)
            if request.present_w is not None and not target.ramp_exempt:
                drop_w = request.present_w * share - applied_w
                rows = _scaled(self._bounds.contract.limits, share)
                met_at_s = max(from_s, request.now_s + fall_time_s(rows, drop_w))
        return Layer(
            kind=slot[0],
            issuer=slot[1],
            feed=slot[2],
            signal_id=f"{request.offer.message_id}/{request.index}",
            correlation_id=request.offer.correlation_id,
            from_s=from_s,
            until_s=until_s,
            asked_w=target.target_w,
            target_w=applied_w,
            limits=tuple(_placed(row, from_s, until_s) for row in limits),
            ramp_exempt=target.ramp_exempt,
            is_best_effort=target.is_best_effort,
            only_tightens=not request.is_fresh or self.is_clock_suspect,
            lives_with_link=lives_with_link,
            met_at_s=met_at_s,
        )

    def _refusal_of_raise(self, request: SignalRequest, layers: Sequence[Layer]) -> Refusal | None:
        """What is stale, untimed or judged by a doubtful clock must not loosen anything, now or later."""
        if request.is_fresh and not self.is_clock_suspect:
            return None
        target = request.target
        if not (target.is_revert or _waiver(target) or any(self._schedule.raises(x) for x in layers)):
            return None
        if request.offer.iat_utc_s is None or request.offer.jti is None:
            return RefusalReason.UNTIMED_RAISE, "without signed iat and jti a message may only tighten"
        if self.is_clock_suspect:
            return RefusalReason.CLOCK, "our clock is in doubt; nothing is loosened until it is trusted again"
        if not self._clock.has_source:
            return RefusalReason.CLOCK, "our clock has no source and nothing newer was heard before: only tightens"
        return RefusalReason.STALE_RAISE, f"signed more than {self._skew_s + TRANSIT_S_MAX:.0f} s ago: only tightens"

    def _refusal_of_range(self, layers: Sequence[Layer]) -> Refusal | None:
        ceilings_w = [r.max_w for r in self._bounds.contract.limits if isinstance(r, CeilingLimit)]
        ceiling_w = min([*ceilings_w, self._bounds.peak_w])
        if layers[0].limits and self._rows_at_once(layers) > ROWS_AT_ONCE_MAX:
            return RefusalReason.SCHEDULE_FULL, f"more than {ROWS_AT_ONCE_MAX} rows of {layers[0].issuer} at once"
        for layer in layers:
            if len(self._schedule.layers((layer.kind, layer.issuer, layer.feed))) >= LAYERS_PER_SLOT_MAX:
                return RefusalReason.SCHEDULE_FULL, f"more than {LAYERS_PER_SLOT_MAX} requests on feed {layer.feed}"
            if any(isinstance(r, FloorLimit) and r.min_w > ceiling_w for r in layer.limits):
                return RefusalReason.RANGE, f"a floor above the site's ceiling of {ceiling_w:.0f} W"
        return None

    def _rows_at_once(self, layers: Sequence[Layer]) -> int:
        """Rows of the issuer that would be in force beside each other, those of one request for several feeds once."""
        first, feeds = layers[0], {layer.feed for layer in layers}

        def is_beside(x: Layer) -> bool:
            if x.issuer != first.issuer or not x.meets(first):
                return False
            return x.feed not in feeds or (first.only_tightens and not first.repeats(replace(x, feed=first.feed)))

        beside = {x.signal_id: x for x in self._schedule.everything() if is_beside(x)}
        return len(first.limits) + sum(len(x.limits) for x in beside.values())


def _may(issuer: IssuerSettings, kind: SignalKind) -> bool:
    return issuer.may_set_target if kind is SignalKind.LOAD_TARGET else issuer.may_set_ramp


def _waiver(target: OfferedTarget) -> str:
    """In what way a request sets the contract's ramp rows aside; empty where it leaves them as they are.

    A droop row does so as much as `ramp_exempt`: its trip goes past planner and rows.
    """
    if target.ramp_exempt:
        return " for a target"
    row = next((row for row in target.limits if _sets_ramps_aside(row)), None)
    return f" by row {row.id}" if row is not None else ""


def _sets_ramps_aside(row: Limit) -> bool:
    return isinstance(row, DroopLimit) or (isinstance(row, RideThroughLimit) and row.suspends_ramps)


def _identity(offer: SignalOffer) -> str:
    return f"{offer.issuer} {offer.jti if offer.jti is not None else offer.digest}"


def _scaled(limits: Iterable[Limit], share: float) -> list[Limit]:
    """The contract's falling rows as one feed of this share may use them while all feeds fall at once."""
    rows: list[Limit] = []
    for row in limits:
        if isinstance(row, RampLimit | SwingLimit):
            rows.append(replace(row, max_w=row.max_w * share))
        elif isinstance(row, RateLimit):
            rows.append(replace(row, max_w_per_s=row.max_w_per_s * share, above_w=row.above_w * share))
    return rows


def _placed(row: Limit, from_s: float, until_s: float) -> Limit:
    """A row whose own times run from the start of its request, put on the monotonic clock."""
    if isinstance(row, FloorLimit):
        return replace(row, from_s=from_s + row.from_s, until_s=until_s)
    return row
