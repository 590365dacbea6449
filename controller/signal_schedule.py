"""The schedule of accepted grid requests: which lies on top of which, and what follows at the connection point (pure).

Requests of one issuer for one feed lie on top of each other, the newest on top where it applies; requests of different
issuers, and of both kinds, are all in force at once. Every feed has a share of the site: the target at the point of
common coupling is the sum over feeds, an untargeted feed counting with its whole share. Rows for some feeds only are
held by the whole site, which is stricter and needs no meter per feed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controller.types import (
    BandLimit,
    CeilingLimit,
    Direction,
    DroopLimit,
    FeedTarget,
    FloorLimit,
    GridSignal,
    Limit,
    OscillationLimit,
    RampLimit,
    RateLimit,
    SignalKind,
    SwingLimit,
    frozen,
    replace,
)

RAISES_BEFORE_DWELL = 2  # after so many raises within the dwell time, the next waits
CHANGE_FRAC_MIN = 0.005  # of the registered peak: a ramp, swing or rate row below it is under the noise of any site
BAND_FRAC_MIN = 0.0005  # the same for filtered and spectral rows (IESO asks 0.25 % of nominal)
WINDOW_S_MAX = 3600.0

CIRCUMSTANCES = ("signal_id", "correlation_id", "from_s", "until_s", "met_at_s")  # of a layer, not what it says

Slot = tuple[SignalKind, str, str]  # kind, issuer, feed


@frozen
class Layer:
    """One accepted request on one feed. One without target and rows covers older ones with nothing: a revert."""

    kind: SignalKind
    issuer: str
    feed: str
    signal_id: str
    correlation_id: str
    from_s: float
    until_s: float
    asked_w: float | None
    target_w: float | None
    limits: tuple[Limit, ...]
    ramp_exempt: bool
    is_best_effort: bool
    only_tightens: bool  # adds to what lies under it, never covers it
    lives_with_link: bool  # no signed end: held while the link lives, then for the grace
    met_at_s: float

    def covers(self, t_s: float) -> bool:
        return self.from_s <= t_s < self.until_s

    def meets(self, other: Layer) -> bool:
        """There is an instant for both."""
        return self.from_s < other.until_s and other.from_s < self.until_s

    def repeats(self, other: Layer) -> bool:
        """It says the same as one that still holds when it begins, and for no less long."""
        is_same = replace(self, **{name: getattr(other, name) for name in CIRCUMSTANCES}) == other
        return is_same and other.covers(self.from_s) and other.until_s <= self.until_s

    @property
    def bound_w(self) -> float:
        """The most it lets its feed draw; inf where it has no target."""
        return math.inf if self.target_w is None else self.target_w

    @property
    def is_revert(self) -> bool:
        return self.target_w is None and not self.limits


class Schedule:
    """All layers of all issuers and feeds; the last of a slot's list is the newest."""

    def __init__(self, *, share_frac: Mapping[str, float], peak_w: float) -> None:
        self.share_frac = dict(share_frac)
        self._peak_w = peak_w
        self._slots: dict[Slot, list[Layer]] = {}
        self.version = 0

    def layers(self, slot: Slot) -> Sequence[Layer]:
        return self._slots.get(slot, [])

    def everything(self) -> tuple[Layer, ...]:
        """All layers, of each slot in order."""
        return tuple(layer for layers in self._slots.values() for layer in layers)

    def put_back(self, layers: Sequence[Layer]) -> None:
        """Layers that were accepted before, in the order of `everything`."""
        self.version += 1
        for layer in layers:
            self._slots.setdefault((layer.kind, layer.issuer, layer.feed), []).append(layer)

    def lay(self, layer: Layer) -> None:
        """Put a layer on top of its slot.

        Without an end it replaces for good what it covers; with one it lies over it for its time. A revert without an
        end withdraws what is in force at its start and leaves what is scheduled for later. One that only tightens lies
        beside the others, but in the place of one that said the same.
        """
        self.version += 1
        slot = (layer.kind, layer.issuer, layer.feed)
        below = list(self._slots.get(slot, ()))
        if not layer.only_tightens:
            is_open = math.isinf(layer.until_s)
            if not (layer.is_revert and is_open):
                below = [x for x in below if not (layer.from_s <= x.from_s and x.until_s <= layer.until_s)]
            if is_open:
                below = [replace(x, until_s=layer.from_s) if x.covers(layer.from_s) else x for x in below]
        else:
            below = [replace(x, until_s=layer.from_s) if layer.repeats(x) else x for x in below]
        kept = [x for x in below if x.until_s > x.from_s]
        if not (layer.is_revert and math.isinf(layer.until_s)):
            kept.append(layer)
        self._slots[slot] = kept

    def expire(self, now_s: float, *, is_silent: bool) -> None:
        """Forget what ended, and after silence what was to live with the link."""
        for slot, layers in self._slots.items():
            kept = [x for x in layers if x.until_s > now_s and not (is_silent and x.lives_with_link)]
            if len(kept) != len(layers):
                self.version += 1
                self._slots[slot] = kept

    def raises(self, layer: Layer) -> bool:
        """True if the layer on top of its slot would leave any instant less limited than it is now."""
        below = self.layers((layer.kind, layer.issuer, layer.feed))
        times = [layer.from_s] + [t for x in below for t in (x.from_s, x.until_s) if layer.covers(t)]
        for t_s in times:
            target = _binding(below, t_s)
            if layer.bound_w > (math.inf if target is None else target.bound_w):
                return True
            rows = tuple(r for x in _in_force(below, t_s) for r in x.limits)
            if not as_strict(layer.limits, rows):
                return True
        return False

    def next_change_s(self, now_s: float) -> float:
        """The first time after `now_s` at which another set of layers applies."""
        return min((t for t in self._times() if t > now_s), default=math.inf)

    def target_signals(self, now_s: float) -> list[GridSignal]:
        """Targets at the point of common coupling, from now on, one after the other."""
        signals: list[GridSignal] = []
        times = [now_s, *sorted({t for t in self._times() if now_s < t})]
        for i, t_s in enumerate(times):
            until_s = times[i + 1] if i + 1 < len(times) else math.inf
            signal = self._target_at(t_s, until_s, is_now=i == 0)
            if signal is None:
                continue
            last = signals[-1] if signals else None
            if last is not None and last.until_s == t_s and _is_same_wish(last, signal):
                signals[-1] = replace(last, until_s=until_s)
            else:
                signals.append(signal)
        return signals

    def limit_signals(self, now_s: float) -> list[GridSignal]:
        """Rows in force or scheduled; the same request on several feeds once.

        The same is what says the same: the id is an event's own, which nobody signed.
        """
        found: dict[tuple[str, str, float, float, tuple[Limit, ...]], GridSignal] = {}
        for (kind, _, feed), layers in sorted(self._slots.items()):
            for from_s, until_s, layer in _visible(layers, now_s):
                if not layer.limits:
                    continue
                key = (layer.issuer, layer.signal_id, from_s, until_s, layer.limits)
                feeds = (*found[key].feeds, feed) if key in found else (feed,)
                found[key] = GridSignal(
                    kind=kind,
                    issuer=layer.issuer,
                    signal_id=layer.signal_id,
                    correlation_id=layer.correlation_id,
                    feeds=feeds,
                    from_s=from_s,
                    until_s=until_s,
                    target_w=None,
                    limits=layer.limits,
                    is_best_effort=layer.is_best_effort,
                    ramp_exempt=layer.ramp_exempt,
                )
        return list(found.values())

    def feed_targets(self, now_s: float) -> list[FeedTarget]:
        """Every target by feed as its issuer set it, whether in force now or scheduled."""
        return [
            FeedTarget(
                feed=feed,
                issuer=issuer,
                correlation_id=layer.correlation_id,
                asked_w=layer.asked_w,
                applied_w=layer.target_w,
                from_s=from_s,
                until_s=until_s,
                met_at_s=layer.met_at_s,
                is_active=from_s <= now_s,
                is_best_effort=layer.is_best_effort,
            )
            for (_, issuer, feed), layers in sorted(self._slots.items())
            for from_s, until_s, layer in _visible(layers, now_s)
            if layer.asked_w is not None and layer.target_w is not None
        ]

    def _times(self) -> set[float]:
        return {t for layers in self._slots.values() for x in layers for t in (x.from_s, x.until_s)}

    def _target_at(self, t_s: float, until_s: float, *, is_now: bool) -> GridSignal | None:
        """The site's target at one instant: the sum over feeds of the lowest target of each."""
        total_w = 0.0
        binding: list[Layer] = []
        for feed, share in self.share_frac.items():
            lowest = [b for slot, layers in self._slots.items() if slot[2] == feed and (b := _binding(layers, t_s))]
            best = min(lowest, key=lambda x: (x.bound_w, x.signal_id), default=None)
            total_w += share * self._peak_w if best is None else best.bound_w
            binding += [best] if best is not None else []
        if not binding:
            return None
        newest = max(binding, key=lambda x: x.from_s)
        return GridSignal(
            kind=SignalKind.LOAD_TARGET,  # what it is for the core, be it a load target or a ceiling among limits
            issuer=newest.issuer,
            signal_id=newest.signal_id if is_now else f"{newest.signal_id}@{t_s - newest.from_s:g}",
            correlation_id=newest.correlation_id,
            feeds=tuple(x.feed for x in binding),
            from_s=newest.from_s if is_now else t_s,
            until_s=until_s,
            target_w=total_w,
            limits=(),
            is_best_effort=all(x.is_best_effort for x in binding),
            ramp_exempt=any(x.ramp_exempt for x in binding),
        )


class Dwell:
    """Lets `RAISES_BEFORE_DWELL` raises through within the dwell time, then makes the next one wait for it."""

    def __init__(self, dwell_s: float) -> None:
        self._dwell_s = dwell_s
        self._raises_s: list[float] = []
        self._wait_until_s = -math.inf

    def next_raise_s(self, now_s: float) -> float:
        """The earliest time the next raise may happen."""
        return max(now_s, self._wait_until_s)

    def raised(self, now_s: float) -> None:
        self._raises_s = [t for t in self._raises_s if now_s - t < self._dwell_s] + [now_s]
        if len(self._raises_s) >= RAISES_BEFORE_DWELL:
            self._wait_until_s = now_s + self._dwell_s


def as_strict(new: Sequence[Limit], old: Sequence[Limit]) -> bool:
    """True if every old row is implied by a new one of its kind; what cannot be compared counts as looser."""
    return all(any(_implies(n, o) for n in new) for o in old)


def bounded_row(row: Limit, peak_w: float) -> Limit:
    """The row, raised to the least that a site of this size can tell from its own noise, with a bounded window."""
    least_w, least_band_w = CHANGE_FRAC_MIN * peak_w, BAND_FRAC_MIN * peak_w
    if isinstance(row, RampLimit):
        return replace(row, max_w=max(row.max_w, least_w), window_s=min(row.window_s, WINDOW_S_MAX))
    if isinstance(row, SwingLimit):
        floor_w = least_w if row.band_hz is None else least_band_w
        return replace(row, max_w=max(row.max_w, floor_w), window_s=min(row.window_s, WINDOW_S_MAX))
    if isinstance(row, RateLimit):
        slope = max(row.max_w_per_s, least_w / 60.0)
        return replace(row, above_w=max(row.above_w, least_w), max_w_per_s=slope)
    if isinstance(row, BandLimit | OscillationLimit):
        return replace(row, max_w=max(row.max_w, least_band_w))
    if isinstance(row, DroopLimit):
        return replace(row, max_w=min(row.max_w, peak_w))
    return row


def _is_same_wish(a: GridSignal, b: GridSignal) -> bool:
    """True if two target signals differ in nothing but their time and the suffix that tells their spans apart."""
    return replace(a, signal_id="", from_s=0.0, until_s=0.0) == replace(b, signal_id="", from_s=0.0, until_s=0.0)


def _implies(n: Limit, o: Limit) -> bool:
    """Row `n` held means row `o` held."""
    if isinstance(n, RampLimit) and isinstance(o, RampLimit):
        covers = n.direction in (o.direction, Direction.BOTH) and n.percentile in (o.percentile, None)
        is_tight = n.max_w <= o.max_w and n.window_s >= o.window_s and n.mean_s <= o.mean_s
        return covers and is_tight and n.reading in (o.reading, "within")
    if isinstance(n, SwingLimit) and isinstance(o, SwingLimit):
        is_tight = n.max_w <= o.max_w and n.window_s >= o.window_s and n.mean_s <= o.mean_s
        return is_tight and n.band_hz == o.band_hz
    if isinstance(n, RateLimit) and isinstance(o, RateLimit):
        return n.max_w_per_s <= o.max_w_per_s and n.above_w <= o.above_w and n.horizon_s >= o.horizon_s
    if isinstance(n, BandLimit) and isinstance(o, BandLimit):
        return n.max_w <= o.max_w and n.band_hz == o.band_hz
    if isinstance(n, OscillationLimit) and isinstance(o, OscillationLimit):
        wide = n.band_hz[0] <= o.band_hz[0] and n.band_hz[1] >= o.band_hz[1]
        return n.max_w <= o.max_w and wide and n.span_s == o.span_s
    if isinstance(n, CeilingLimit) and isinstance(o, CeilingLimit):
        return n.max_w <= o.max_w and n.from_s <= o.from_s and n.until_s >= o.until_s
    if isinstance(n, FloorLimit) and isinstance(o, FloorLimit):
        return n.min_w >= o.min_w and n.from_s <= o.from_s and n.until_s >= o.until_s
    return replace(n, id=o.id, provenance=o.provenance) == o  # rows of other kinds only where they say the same


def _in_force(layers: Sequence[Layer], t_s: float) -> list[Layer]:
    """The layer on top at `t_s`, and every one that only tightens."""
    over: list[Layer] = []
    for layer in reversed(layers):
        if layer.covers(t_s):
            over.append(layer)
            if not layer.only_tightens:
                break
    return over + [x for x in layers if x.only_tightens and x.covers(t_s) and x not in over]


def _binding(layers: Sequence[Layer], t_s: float) -> Layer | None:
    """The layer that sets the slot's target at `t_s`: the lowest of those in force."""
    return min(
        (x for x in _in_force(layers, t_s) if x.target_w is not None),
        key=lambda x: (x.bound_w, x.signal_id),
        default=None,
    )


def _visible(layers: Sequence[Layer], now_s: float) -> list[tuple[float, float, Layer]]:
    """When each layer of a slot is in force, from now on, as (from, until, layer)."""
    times = [now_s, *sorted({t for x in layers for t in (x.from_s, x.until_s) if now_s < t})]
    spans: dict[str, tuple[float, float, Layer]] = {}
    done: list[tuple[float, float, Layer]] = []
    for i, t_s in enumerate(times):
        until_s = times[i + 1] if i + 1 < len(times) else math.inf
        for layer in _in_force(layers, t_s):
            open_span = spans.get(layer.signal_id)
            if open_span is not None and open_span[1] == t_s:
                spans[layer.signal_id] = (open_span[0], until_s, layer)
                continue
            if open_span is not None:
                done.append(open_span)
            spans[layer.signal_id] = (min(layer.from_s, t_s) if t_s == now_s else t_s, until_s, layer)
    return sorted([*done, *spans.values()], key=lambda s: (s[0], s[2].signal_id))
