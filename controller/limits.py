"""Which limits are in force now: the site's contract, or its fallback, and what accepted grid signals add.

A signal only ever adds rows; the contract's own stay. A load target becomes a ceiling from its start on. When the grid
has been silent for longer than the site's grace, the fallback contract takes the contract's place. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.settings import SiteSettings
from controller.types import CeilingLimit, GridSignal, Limit, LimitId, LimitStatus, Provenance, SignalKind, SiteImage

HORIZON_S = 900.0  # a scheduled target further ahead than any ramp needs is not looked at yet


@dataclass(frozen=True, slots=True)
class InForce:
    """The limits in force, and the emergency target where an issuer waived its ramps."""

    limits: tuple[Limit, ...]
    is_fallback: bool
    exempt_target_w: float | None
    exempt_until_s: float


class LimitBook:
    """Keeps track of silence; `in_force` gives the same object until something changes."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._lost_since_s: float | None = None
        self._key: object = None
        self._found = InForce(site.contract.limits, False, None, float("-inf"))

    def in_force(self, image: SiteImage) -> InForce:
        """The limits at the instant of `image`."""
        now_s = image.t_mono_s
        if image.is_grid_link_up:
            self._lost_since_s = None
        elif self._lost_since_s is None:
            self._lost_since_s = now_s
        silent_s = now_s - self._lost_since_s if self._lost_since_s is not None else 0.0
        is_fallback = silent_s > self._site.grace_s
        known = tuple(s for s in image.signals if s.from_s - HORIZON_S <= now_s < s.until_s)
        begun = tuple(s.signal_id for s in known if s.from_s <= now_s)
        key = (is_fallback, known, begun)
        if key != self._key:
            self._key = key
            self._found = self._build(known, now_s, is_fallback=is_fallback)
        return self._found

    def _build(self, signals: tuple[GridSignal, ...], now_s: float, *, is_fallback: bool) -> InForce:
        contract = self._site.fallback_contract if is_fallback else self._site.contract
        limits: list[Limit] = list(contract.limits)
        exempt_w, exempt_until_s = None, float("-inf")
        for signal in signals:
            has_begun = signal.from_s <= now_s
            if signal.kind is SignalKind.RAMP_LIMIT:
                limits += signal.limits if has_begun else ()
            elif signal.target_w is not None:
                limits.append(_ceiling(signal))
                if signal.ramp_exempt and has_begun:
                    exempt_w = signal.target_w if exempt_w is None else min(exempt_w, signal.target_w)
                    exempt_until_s = max(exempt_until_s, signal.until_s)
        return InForce(tuple(limits), is_fallback, exempt_w, exempt_until_s)


def _ceiling(signal: GridSignal) -> CeilingLimit:
    assert signal.target_w is not None
    return CeilingLimit(
        id=LimitId(f"target.{signal.signal_id}"),
        max_w=signal.target_w,
        from_s=signal.from_s,
        provenance=Provenance(f"load target of {signal.issuer}", "", LimitStatus.LOCAL),
        until_s=signal.until_s,
    )
