"""What must outlive a restart of the site controller: accepted requests, and the ids that tell a replay (pure).

Times are kept in UTC, because the monotonic clock begins anew with every boot.
"""

from __future__ import annotations

from controller.signal_schedule import Layer
from controller.types import CeilingLimit, FloorLimit, Limit, SignalKind, frozen, replace


@frozen
class NewestOf:
    """The newest signed time heard of one issuer for one feed."""

    kind: SignalKind
    issuer: str
    feed: str
    iat_utc_s: float


@frozen
class SignalMemory:
    """The state of the acceptance rules at `utc_s`; times of layers and rows are UTC seconds, infinite ones stay so."""

    utc_s: float
    layers: tuple[Layer, ...]
    seen: tuple[str, ...]
    newest: tuple[NewestOf, ...]


def moved(layer: Layer, by_s: float) -> Layer:
    """The layer on another clock: every time in it plus `by_s`."""
    return replace(
        layer,
        from_s=layer.from_s + by_s,
        until_s=layer.until_s + by_s,
        met_at_s=layer.met_at_s + by_s,
        limits=tuple(_moved_row(row, by_s) for row in layer.limits),
    )


def _moved_row(row: Limit, by_s: float) -> Limit:
    if isinstance(row, FloorLimit | CeilingLimit):
        return replace(row, from_s=row.from_s + by_s, until_s=row.until_s + by_s)
    return row
