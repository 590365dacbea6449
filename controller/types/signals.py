"""Grid messages on their way in: what was offered, what became of it, and the wish that stands."""

from __future__ import annotations

from enum import StrEnum, unique

from controller.types.limits import Limit
from controller.types.records import frozen


@unique
class SignalKind(StrEnum):
    """What a grid message sets."""

    LOAD_TARGET = "load_target"
    RAMP_LIMIT = "ramp_limit"


@frozen
class GridSignal:
    """A verified and accepted wish of the grid, already bounded by the acceptance rules.

    `from_s` and `until_s` are on the controller's monotonic clock; `target_w` is None when the signal carries limits or
    reverts a target. `ramp_exempt` is the issuer's signed waiver of the ramp rows.
    """

    kind: SignalKind
    issuer: str
    signal_id: str
    correlation_id: str
    feeds: tuple[str, ...]
    from_s: float
    until_s: float
    target_w: float | None
    limits: tuple[Limit, ...]
    is_best_effort: bool
    ramp_exempt: bool


@unique
class Acceptance(StrEnum):
    """What became of a request."""

    ACCEPTED = "accepted"
    BOUNDED = "bounded"  # followed as fast as the contract lets; `met_at_s` says when
    REFUSED = "refused"


@unique
class RefusalReason(StrEnum):
    """Why a grid message, or one request in it, was not followed."""

    OVERSIZED = "oversized"
    FLOOD = "flood"  # more than the issuer's topic may carry
    ENVELOPE = "envelope"  # not a CloudEvent of the expected kind
    SIGNATURE = "signature"
    UNKNOWN_KEY = "unknown_key"
    ALGORITHM = "algorithm"  # not the one pinned to the key
    SOURCE = "source"  # topic, source and key do not name the same issuer
    SCHEMA = "schema"
    NOT_PERMITTED = "not_permitted"
    UNKNOWN_FEED = "unknown_feed"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out_of_order"  # not newer than the last of that issuer and feed
    FROM_FUTURE = "from_future"
    EXPIRED = "expired"
    STALE_RAISE = "stale_raise"  # too old to loosen anything
    UNTIMED_RAISE = "untimed_raise"  # without signed time and id a message may only tighten
    CLOCK = "clock"  # our own clock stepped; nothing is loosened until it is trusted again
    RANGE = "range"
    SCHEDULE_FULL = "schedule_full"


@frozen
class OfferedTarget:
    """One request of a verified message, in UTC, before any rule. No feeds: all. `is_revert` withdraws earlier ones.

    `due_in_s`: how long after its start the target is due. Times in the rows are relative to the start.
    """

    feeds: tuple[str, ...]
    from_utc_s: float | None
    until_utc_s: float | None
    target_w: float | None  # of each feed named
    limits: tuple[Limit, ...]
    is_revert: bool
    is_best_effort: bool
    ramp_exempt: bool
    due_in_s: float = 0.0


@frozen
class SignalOffer:
    """A message whose signature was verified. `iat_utc_s` and `jti` are None when the issuer did not sign them."""

    kind: SignalKind
    issuer: str
    key_id: str
    message_id: str
    correlation_id: str
    digest: str  # of the signed data, so that a message without `jti` can be known again
    iat_utc_s: float | None
    jti: str | None
    targets: tuple[OfferedTarget, ...]


@frozen
class SignalOutcome:
    """What became of one request; every one is written to the audit log. Times on the monotonic clock."""

    kind: SignalKind
    issuer: str
    key_id: str
    message_id: str
    correlation_id: str
    index: int
    feeds: tuple[str, ...]
    acceptance: Acceptance
    reason: RefusalReason | None
    detail: str
    asked_w: float | None
    applied_w: float | None  # of each feed named
    from_s: float | None
    until_s: float | None
    met_at_s: float | None


@frozen
class FeedTarget:
    """A target of one feed as its issuer set it, for the status report."""

    feed: str
    issuer: str
    correlation_id: str
    asked_w: float
    applied_w: float
    from_s: float
    until_s: float
    met_at_s: float
    is_active: bool
    is_best_effort: bool
