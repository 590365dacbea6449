"""What the site may tell its grid about the next minutes, and the energy price it is told."""

from __future__ import annotations

from controller.types.records import frozen


@frozen
class EnergyPrice:
    """What energy costs for a while, per kWh, as someone outside told; `currency` is ISO 4217, or empty if not told."""

    from_utc_s: float
    until_utc_s: float
    per_kwh: float
    currency: str


@frozen
class LimitPrice:
    """What a relaxation of one kind of limit would save now: GPU-seconds of work per watt (ramps: per watt a minute).

    `is_bound`: the true price is at least this, because the limit cannot be met at any price.
    """

    limit: str
    gpu_s_per_w: float
    is_bound: bool


@frozen
class Outlook:
    """What a site may tell its grid of the next minutes: where its power is to go, and what it could give.

    `path`: (seconds from now, W at the point of common coupling). `low_w` and `high_w`: where power may be at the next
    instant under every row in force. `sheddable_w`: GPU power above the service floors.
    """

    path: tuple[tuple[float, float], ...]
    low_w: float
    high_w: float
    sheddable_w: float
    battery_discharge_w: float
    battery_charge_w: float
    battery_j: float
    prices: tuple[LimitPrice, ...]
