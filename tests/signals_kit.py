"""Grid signals as stories on a plain time variable, and the rows they ask for."""

from __future__ import annotations

from dataclasses import replace

from controller.settings import GridSettings
from controller.signals import AcceptanceRules
from controller.types import (
    Direction,
    DroopLimit,
    Limit,
    LimitId,
    OfferedTarget,
    RampLimit,
    SignalKind,
    SignalOffer,
    SignalOutcome,
)
from tests.dsx_kit import MW, SOURCE, bounds, grid, issuer

UTC0 = 1.8e9


def ramp(max_w: float, window_s: float = 15.0, row_id: str = "r") -> RampLimit:
    return RampLimit(LimitId(row_id), max_w, window_s, Direction.BOTH, 1.0, SOURCE)


class Story:
    """A site with its rules and a time that the test moves; UTC runs with it unless the test steps it."""

    def __init__(self, settings: GridSettings | None = None, **changes: float) -> None:
        self.rules = AcceptanceRules(settings or grid(), bounds(**changes))
        self.now_s = 1000.0
        self.utc_step_s = 0.0
        self.is_link_up = True
        self.is_clock_synced = True
        self.present_w: float | None = None
        self._count = 0
        self.wait(0.0)

    @property
    def utc_s(self) -> float:
        return UTC0 + self.now_s + self.utc_step_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.rules.step(
            now_s=self.now_s, utc_s=self.utc_s, is_link_up=self.is_link_up, is_clock_synced=self.is_clock_synced
        )
        self.rules.active(self.now_s)

    def say(
        self,
        target_w: float | None = None,
        *,
        limits: tuple[Limit, ...] = (),
        start: float | None = None,
        end: float | None = None,
        feeds: tuple[str, ...] = (),
        by: str = "acme",
        iat: float | None = 0.0,
        jti: str | None = "new",
        kind: SignalKind = SignalKind.LOAD_TARGET,
        revert: bool | None = None,
        exempt: bool = False,
        due_in_s: float = 0.0,
        best_effort: bool = False,
    ) -> SignalOutcome:
        """One request; `start`, `end` and `iat` are seconds from now."""
        self._count += 1
        n = self._count
        target = OfferedTarget(
            feeds=feeds,
            from_utc_s=None if start is None else self.utc_s + start,
            until_utc_s=None if end is None else self.utc_s + end,
            target_w=target_w,
            limits=limits,
            is_revert=(target_w is None and not limits) if revert is None else revert,
            is_best_effort=best_effort,
            ramp_exempt=exempt,
            due_in_s=due_in_s,
        )
        offer = SignalOffer(
            kind=kind,
            issuer=by,
            key_id="k",
            message_id=f"m{n}",
            correlation_id=f"c{n}",
            digest=f"d{n}",
            iat_utc_s=None if iat is None else self.utc_s + iat,
            jti=f"j{n}" if jti == "new" else jti,
            targets=(target,),
        )
        self.last = offer
        return self.give(offer)

    def rows(self, *limits: Limit, **more: object) -> SignalOutcome:
        return self.say(limits=limits, kind=SignalKind.RAMP_LIMIT, **more)  # type: ignore[arg-type]

    def give(self, offer: SignalOffer) -> SignalOutcome:
        (outcome,) = self.rules.offer(offer, now_s=self.now_s, utc_s=self.utc_s, present_w=self.present_w)
        self.rules.active(self.now_s)
        return outcome

    def target_w(self, in_s: float = 0.0) -> float | None:
        """The lowest target the core sees for an instant from now."""
        t_s = self.now_s + in_s
        seen = [s.target_w for s in self.rules.active(self.now_s) if s.from_s <= t_s < s.until_s]
        return min((w for w in seen if w is not None), default=None)

    def row_ids(self) -> set[str]:
        return {row.id for s in self.rules.active(self.now_s) if s.from_s <= self.now_s < s.until_s for row in s.limits}


TRIPS = DroopLimit(LimitId("droop"), 0.036, 50 * MW, 10 * MW, SOURCE)


def two_feeds() -> Story:
    return Story(replace(grid(issuer("acme"), issuer("bolt"), feeds=("a", "b")), feed_share_frac=(0.25, 0.75)))
