"""Which limits are in force now: the site's contract, or its fallback, and what accepted grid signals add.

A signal only ever adds rows; the contract's own stay. A load target becomes a ceiling from its start on. When the grid
has been silent for longer than the site's grace, the fallback contract takes the contract's place. A droop row of the
contract becomes an emergency target while the meter's frequency is outside its deadband. Pure.
"""

from __future__ import annotations

from controller.droop import DroopTrip
from controller.settings import SiteSettings
from controller.types import (
    CeilingLimit,
    DroopLimit,
    GridSignal,
    Limit,
    LimitId,
    LimitStatus,
    Provenance,
    SignalKind,
    SiteImage,
    frozen,
)

HORIZON_S = 900.0  # a scheduled target further ahead than any ramp needs is not looked at yet


@frozen
class InForce:
    """The limits in force, and the emergency target where an issuer waived its ramps or frequency tripped a droop row.

    `waits_s`: when the next emergency target begins that is known by now; inf: none.
    """

    limits: tuple[Limit, ...]
    is_fallback: bool
    exempt_target_w: float | None
    exempt_until_s: float
    waits_s: float = float("inf")


class LimitBook:
    """Keeps track of silence; `in_force` gives the same object until something changes."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._lost_since_s: float | None = None
        self._key: object = None
        self.found = InForce(site.contract.limits, False, None, float("-inf"))  # as of the last image
        self._droop = DroopTrip()
        self._lowers: dict[str, bool] = {}  # emergency targets that began, and whether they were below the power then

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
        self._look_at_emergencies(image, known)
        rows = [row for row in self.found.limits if isinstance(row, DroopLimit)]
        droop_w = self._droop.target_w(rows, image.pcc)
        key = (is_fallback, known, begun, droop_w)
        if key != self._key:
            self._key = key
            self.found = self._build(known, now_s, droop_w, is_fallback=is_fallback)
        return self.found

    def _look_at_emergencies(self, image: SiteImage, known: tuple[GridSignal, ...]) -> None:
        """A target above what the site draws when it begins is a ceiling like any other: nothing is lifted to it."""
        power_w = image.pcc.value.power_w if image.pcc is not None and image.pcc.is_good else float("inf")
        exempt = [s for s in known if s.ramp_exempt and s.from_s <= image.t_mono_s and s.target_w is not None]
        self._lowers = {
            s.signal_id: self._lowers.get(s.signal_id, s.target_w is not None and s.target_w < power_w) for s in exempt
        }

    def _build(
        self, signals: tuple[GridSignal, ...], now_s: float, droop_w: float | None, *, is_fallback: bool
    ) -> InForce:
        contract = self._site.fallback_contract if is_fallback else self._site.contract
        limits: list[Limit] = list(contract.limits)
        exempt_w, exempt_until_s, waits_s = None, float("-inf"), float("inf")
        if droop_w is not None:
            exempt_w, exempt_until_s = droop_w, float("inf")
            limits.append(_droop_ceiling(droop_w))
        for signal in signals:
            has_begun = signal.from_s <= now_s
            if signal.ramp_exempt and not has_begun:
                waits_s = min(waits_s, signal.from_s)
            if signal.kind is SignalKind.RAMP_LIMIT:
                limits += signal.limits if has_begun else ()
            elif signal.target_w is not None:
                limits.append(_ceiling(signal))
                if self._lowers.get(signal.signal_id, False):
                    exempt_w = signal.target_w if exempt_w is None else min(exempt_w, signal.target_w)
                    exempt_until_s = max(exempt_until_s, signal.until_s)
        return InForce(tuple(limits), is_fallback, exempt_w, exempt_until_s, waits_s)


def _ceiling(signal: GridSignal) -> CeilingLimit:
    assert signal.target_w is not None
    return CeilingLimit(
        id=LimitId(f"target.{signal.signal_id}"),
        max_w=signal.target_w,
        from_s=signal.from_s,
        provenance=Provenance(f"load target of {signal.issuer}", "", LimitStatus.LOCAL),
        until_s=signal.until_s,
    )


def _droop_ceiling(target_w: float) -> CeilingLimit:
    """What keeps the planner from lifting the load again while the frequency is low."""
    return CeilingLimit(
        id=LimitId("droop.target"),
        max_w=target_w,
        from_s=float("-inf"),
        provenance=Provenance("the contract's droop row", "", LimitStatus.LOCAL),
    )
