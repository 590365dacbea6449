"""Whether each class keeps its tier: throughput lost to the caps in force, over that class's own rolling window.

The planner's ledger paces what may be spent; this one watches what was, from the clocks read back, whoever ordered them
(plan, envelope, fallback). A loss beyond the tier is never hidden: it is a state, told when it begins and when it ends.
Pure; times come from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controller.allocate import Curves
from controller.fleet import Fleet, FleetReadings
from controller.plan.tier import TierLedger
from controller.settings import JobClassSettings
from controller.types import ClassId, FloatArray, frozen

ACTIVE_SHARE = 0.05  # of the range above idle: a GPU that draws less has no throughput to lose
LIMITED_SHARE = 0.97  # of its power limit: a GPU there is slowed by it
SLACK_FRAC = 0.001  # of demand: a clock rounded down by one step loses less
STEP_S_MAX = 10.0  # a longer gap was not seen, so nothing is booked for it


@frozen
class TierState:
    """One class: throughput lost over its window as a share of what it wanted, and whether that is beyond its tier.

    A window that is not full yet counts as if the present demand had always been.
    """

    class_id: ClassId
    tolerated_loss_frac: float
    lost_frac: float
    window_s: float
    is_exceeded: bool


class TierWatch:
    """Books of all classes; `classes` in the order of the fleet's."""

    def __init__(self, classes: Sequence[JobClassSettings]) -> None:
        self._classes = tuple(classes)
        self._ledgers = tuple(TierLedger(np.array([1.0]), window_s=c.window_s) for c in classes)
        self._booked_s: float | None = None
        self._states: tuple[TierState, ...] = ()

    @property
    def states(self) -> tuple[TierState, ...]:
        """As of the last booking."""
        return self._states

    def book(self, now_s: float, fleet: Fleet, readings: FleetReadings, curves: Curves) -> None:
        """What the caps in force cost since the last call."""
        if self._booked_s is not None and 0.0 < now_s - self._booked_s <= STEP_S_MAX:
            wanted, lost = lost_throughput(fleet, readings, curves)
            for k, ledger in enumerate(self._ledgers):
                ledger.add(now_s - self._booked_s, wanted[k : k + 1], lost[k : k + 1])
        self._booked_s = now_s
        self._states = tuple(_state(c, ledger) for c, ledger in zip(self._classes, self._ledgers, strict=True))


def lost_throughput(fleet: Fleet, readings: FleetReadings, curves: Curves) -> tuple[FloatArray, FloatArray]:
    """GPUs at work per class (K,), and of those the ones' worth that the clocks in force take."""
    table, caps = fleet.table, readings.acks.caps
    range_w = np.maximum(table.peak_w - table.idle_w, 1.0)
    is_active = (readings.power_w - table.idle_w > ACTIVE_SHARE * range_w) & readings.is_read
    clock = np.minimum(caps[0] / table.cap_max[0], 1.0)
    is_limited = (readings.power_w >= LIMITED_SHARE * caps[1]) & (caps[1] < table.peak_w)
    if is_limited.any():
        limit_clock = curves.clock_for(np.clip((caps[1] - table.idle_w) / range_w, 0.0, 1.0))
        clock = np.where(is_limited, np.minimum(clock, limit_clock), clock)
    done = np.empty(fleet.count)
    for i, curve in enumerate(curves.known):
        mine = curves.index == i
        done[mine] = curve.work_share(clock[mine])
    return fleet.by_class(is_active.astype(np.float64)), fleet.by_class(is_active * (1.0 - done))


def _state(settings: JobClassSettings, ledger: TierLedger) -> TierState:
    wanted, lost = ledger.spent()
    share = float(lost[0] / wanted[0]) if wanted[0] > 0.0 else 0.0
    tier = settings.tolerated_loss_frac
    return TierState(settings.class_id, tier, share, settings.window_s, share > tier + SLACK_FRAC)
