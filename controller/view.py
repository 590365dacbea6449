"""What the envelope is shown: metered history, bounds and acknowledgements, taken from the image and the contract.

The envelope shares no code with contract, planner or reserve; this file only states facts for it. Windows are judged on
metered power with the contract's full allowances: residual and dip are the tracker's margins, not the envelope's.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.fleet import Fleet
from controller.rings import Rings
from controller.settings import BatterySettings
from controller.types import (
    BatterySample,
    BatteryState,
    CeilingLimit,
    Direction,
    EnvelopeBattery,
    Limit,
    RampLimit,
    RateLimit,
    SwingLimit,
    WindowCheck,
)


def rings_for(limits: Iterable[Limit]) -> Rings:
    """One ring per metering mean of the plain rows."""
    return Rings(row.mean_s for row in limits if isinstance(row, RampLimit | SwingLimit | RateLimit))


def window_checks(limits: Iterable[Limit], rings: Rings, now_s: float) -> tuple[WindowCheck, ...]:
    """Every unfiltered row on differences of power, each beside the ring of its mean."""
    views = rings.by_mean(now_s)
    found: list[WindowCheck] = []
    for row in limits:
        if isinstance(row, RampLimit):
            is_up, is_down = row.direction is not Direction.DOWN, row.direction is not Direction.UP
            found.append(WindowCheck(row.id, row.window_s, _room_w(row), 0.0, is_up, is_down, views[row.mean_s]))
        elif isinstance(row, SwingLimit) and row.band_hz is None:
            found.append(WindowCheck(row.id, row.window_s, _room_w(row), 0.0, True, True, views[row.mean_s]))
        elif isinstance(row, RateLimit):
            ring = views[row.mean_s]
            found.append(WindowCheck(row.id, row.horizon_s, row.above_w, row.max_w_per_s, True, True, ring))
    return tuple(found)


def _room_w(row: RampLimit | SwingLimit) -> float:
    """The row's allowance, for the next power against past means: a mean lags a steady ramp by half its span."""
    return row.max_w * (1.0 + 0.5 * row.mean_s / row.window_s)


def ceiling_w(limits: Iterable[Limit], t_s: float) -> float:
    """The lowest ceiling in force at `t_s`; inf without one."""
    return min(
        (row.max_w for row in limits if isinstance(row, CeilingLimit) and row.from_s <= t_s < row.until_s),
        default=float("inf"),
    )


def envelope_battery(
    settings: BatterySettings | None, sample: BatterySample | None, *, is_trusted: bool, two_ticks_s: float
) -> EnvelopeBattery | None:
    """The battery as its nameplate and its own report bound it."""
    if settings is None or sample is None:
        return None
    is_usable = sample.is_remote and sample.state not in (BatteryState.OFF, BatteryState.FAULT)
    stock_j = max(0.0, sample.soc_frac - settings.soc_frac_min) * settings.energy_j
    gives_w = min(sample.discharge_w_max, settings.discharge_w_max) if is_usable and stock_j > 0.0 else 0.0
    reach_w = max(0.0, sample.power_w) + settings.ramp_w_per_s_max * two_ticks_s
    return EnvelopeBattery(
        charge_w_max=min(sample.charge_w_max, settings.charge_w_max),
        discharge_w_max=min(sample.discharge_w_max, settings.discharge_w_max),
        ramp_w_per_s_max=settings.ramp_w_per_s_max,
        supply_w=min(gives_w, reach_w) if is_trusted else 0.0,
        spare_w=max(0.0, gives_w - max(0.0, sample.power_w)) if is_trusted else 0.0,
        deadband_w=settings.deadband_w,
        dwell_s=settings.dwell_s,
        is_eligible=is_usable,
    )


def unmanaged_w(fleet: Fleet, *, other_w_max: float, gpu_peak_w: float) -> float:
    """The most that may be drawn outside our caps: other load, and GPUs that no node has reported."""
    reported_w = float((fleet.table.peak_w * fleet.table.stands_for).sum())
    return other_w_max + max(0.0, gpu_peak_w - reported_w)
