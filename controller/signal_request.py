"""One request of a grid message: from when until when it holds, and what its issuer is answered (pure).

A request is judged at the instant it came: by `controller.signals`, which lays it on the feeds it names or refuses it.
Nothing here changes what is in force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.signal_schedule import Layer, bounded_row
from controller.types import Acceptance, OfferedTarget, RefusalReason, SignalOffer, SignalOutcome, frozen

UNTIMED_HOLD_S = 900.0  # how long a tightening holds that carries no signed time and no signed end
PRESENT_TOLERANCE_S = 0.05  # a target met this late is met in time


@frozen
class SignalRequest:
    """One request of a message, with the instant it is judged at."""

    offer: SignalOffer
    index: int
    target: OfferedTarget
    now_s: float
    utc_s: float
    present_w: float | None
    is_fresh: bool  # signed time and id, and not older than a message may be

    def interval(self) -> tuple[float, float, bool]:
        """From and until on the monotonic clock, and whether the end hangs on the link instead of a signed time."""
        target = self.target
        from_s = self.now_s
        if target.from_utc_s is not None:
            from_s = max(from_s, self.now_s + target.from_utc_s - self.utc_s)
        if target.until_utc_s is not None:
            return from_s, self.now_s + target.until_utc_s - self.utc_s, False
        if not self.is_fresh:
            return from_s, from_s + UNTIMED_HOLD_S, False
        return from_s, math.inf, True

    def refused(self, reason: RefusalReason, detail: str) -> SignalOutcome:
        """The answer: nothing of it stays."""
        return refused(self.offer, self.index, self.target, reason, detail)

    def accepted(self, layers: Sequence[Layer], *, peak_w: float) -> SignalOutcome:
        """The answer: accepted as asked, or bounded, saying how and when it will be met."""
        first, target = layers[0], self.target
        met_at_s = max(x.met_at_s for x in layers)
        is_late = met_at_s > first.from_s + target.due_in_s + PRESENT_TOLERANCE_S
        is_floored = any(x.target_w is not None and x.asked_w is not None and x.target_w > x.asked_w for x in layers)
        raised = [row.id for row in target.limits if bounded_row(row, peak_w) != row]
        details = []
        if is_floored:
            details.append(f"held at the floor of {max(x.target_w or 0.0 for x in layers):.0f} W")
        if any(x.target_w is not None and x.asked_w is not None and x.target_w < x.asked_w for x in layers):
            details.append("above the feed's share of the registered peak: the contract holds")
        if is_late:
            details.append("followed as fast as the ramp rows allow")
        if raised:
            details.append(f"bounded to what a site can hold: {', '.join(raised)}")
        if first.only_tightens:
            details.append("tightens only: no fresh signed time")
        return SignalOutcome(
            kind=self.offer.kind,
            issuer=self.offer.issuer,
            key_id=self.offer.key_id,
            message_id=self.offer.message_id,
            correlation_id=self.offer.correlation_id,
            index=self.index,
            feeds=tuple(x.feed for x in layers),
            acceptance=Acceptance.BOUNDED if is_late or is_floored or raised else Acceptance.ACCEPTED,
            reason=None,
            detail="; ".join(details),
            asked_w=target.target_w,
            applied_w=first.target_w,
            from_s=first.from_s,
            until_s=first.until_s,
            met_at_s=met_at_s,
        )


def refused(offer: SignalOffer, index: int, target: OfferedTarget, reason: RefusalReason, detail: str) -> SignalOutcome:
    """The same of a request that is not judged by itself, because its message is refused."""
    return SignalOutcome(
        kind=offer.kind,
        issuer=offer.issuer,
        key_id=offer.key_id,
        message_id=offer.message_id,
        correlation_id=offer.correlation_id,
        index=index,
        feeds=target.feeds,
        acceptance=Acceptance.REFUSED,
        reason=reason,
        detail=detail,
        asked_w=target.target_w,
        applied_w=None,
        from_s=None,
        until_s=None,
        met_at_s=None,
    )
