"""What nodes, battery and load bank may each use of the contract's slope when commands stop coming.

A battery that charges and a bank that draws let grid power fall as they let go, and so do nodes on their way down to
their fallback caps; one that discharges lets it rise, and so do nodes on their way up. What moves the same way must
keep to one slope together. While little is charged nodes go at once and leave that much of the shortest row free, so
that it may go as it likes. While more is charged they wait until battery and bank are surely back at nothing: the caps
in force bound the load meanwhile. A battery that takes more than nodes have heard of yet has what they left of the
slope. Nodes that will rise always wait: no ceiling hangs on them. Under a ceiling of the grid that their fallback
clocks do not fit they go to a share of those until it ends. Pure; the time is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from controller.contract import AdmissibleInterval
from controller.fleet import Fleet
from controller.settings import SiteSettings
from controller.tracker_io import BatteryAim
from controller.types import CeilingLimit, Following, IntArray, Limit, Stamp, frozen
from controller.view import smallest_row_w

CALM_S = 10.0  # of charging remembered: ripple from 0.1 Hz up shows all of itself in it
KEPT_FRAC, MOST_FRAC = 0.25, 0.5  # of a row: left free at least, and the most that nodes do not wait for
LATE_S = 60.0  # the longest that a shipped profile obeys a command that was told to live for seconds
AWAY_S = 30.0  # a battery's power is gone so long after the controller's death where the contract lets it (FAULTS)
SLOW = 2.0  # times the contract's slope: a device as slow as that may have no flatter one for its end
WAIT_S_MAX = 86_400.0  # a day: as long as a command can say
NO_LIMIT_W_PER_S = 1e12  # stands for "no row bounds this" on the wire, which carries finite numbers only


@frozen
class NodeParting:
    """How all nodes together go to fallback: from `fall_wait_s` or `rise_wait_s` after the end of their commands.

    Beside nodes that fall `fits_w` may let go as it likes; inf where they wait for it. Until `ceiling_s` from now their
    fallback clocks are only `ceiling_frac` of what they are else.
    """

    slope_w_per_s: float
    fall_wait_s: float
    rise_wait_s: float
    fits_w: float = math.inf
    ceiling_frac: float = 1.0
    ceiling_s: float = 0.0


class Parting:
    """One site's shares; `see` at every tick, `nodes` and `told` with every command to nodes."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        battery = site.battery
        # A battery that follows by itself keeps its target: nothing of it moves.
        self._battery = battery if battery is not None and site.following is Following.SOFTWARE else None
        self._moves = self._battery is not None or site.load_bank is not None
        self._row_w = smallest_row_w(site.contract.limits)
        self._ttl_s = site.ttl_periods * site.planner_period_s + site.planner_period_s
        self._now_s, self._charge_w = -math.inf, 0.0
        self._since_s = -math.inf  # when the newer of the two memories below began
        self._before_w = self._top_w = math.inf  # the most that was charged
        self._is_slow = self._is_under_ceiling = False  # as of the last word to the nodes
        self._fits_w = self._told_w = math.inf  # what every node's command in force has room for, and the newest
        self._heard = (0, 0, math.inf)  # epoch and sequence from which on all know the newest, and when the rest ends
        self._release_w_per_s, self._release_until_s = 0.0, -math.inf

    def see(self, now_s: float, *, set_point_w: float | None, ballast_w: float) -> None:
        """What battery and bank are told now; None: the battery takes no orders and obeys whatever it was told last."""
        self._now_s = now_s
        unknown_w = math.inf if self._battery is not None else 0.0
        self._charge_w = ballast_w + (unknown_w if set_point_w is None else max(0.0, -set_point_w))
        if now_s - self._since_s >= CALM_S:
            self._before_w, self._top_w, self._since_s = self._top_w, 0.0, now_s
        self._top_w = max(self._top_w, self._charge_w)
        if self._now_s >= self._heard[2]:
            self._all_know()

    def heard(self, acked: Iterable[tuple[int, int]]) -> None:
        """Epoch and sequence that each node acknowledged; asked for only while `is_unheard`."""
        if all(order >= self._heard[:2] for order in acked):
            self._all_know()

    @property
    def is_unheard(self) -> bool:
        """Nodes were told that there is more to wait for, and not all have said that they heard."""
        return self._fits_w < self._told_w

    @property
    def is_outgrown(self) -> bool:
        """Nodes are to hear at once: more is charged than the newest command has room for."""
        return self._moves and self._charge_w > self._told_w

    def _all_know(self) -> None:
        self._fits_w = self._told_w
        self._heard = (0, 0, math.inf)

    @property
    def waits(self) -> bool:
        """Nodes that will fall are to wait for battery and bank."""
        return self._moves and (self._is_slow or max(self._before_w, self._top_w) > MOST_FRAC * self._row_w)

    def nodes(self, interval: AdmissibleInterval, *, is_release: bool) -> NodeParting:
        """What nodes are told now."""
        slope = min(interval.slope_down_w_per_s, interval.slope_up_w_per_s)
        self._row_w = smallest_row_w(interval.limits)
        self._is_slow = always_waits(self._site, slope, self._row_w)
        if is_release and self._moves and math.isfinite(slope):
            return NodeParting((1.0 - KEPT_FRAC) * slope, 0.0, 0.0, KEPT_FRAC * self._row_w)
        frac, ceiling_s = self.ceiling(interval.limits)
        self._is_under_ceiling = frac < 1.0
        if math.isinf(slope) or not self._moves:
            return NodeParting(finite_slope(slope), 0.0, 0.0, ceiling_frac=frac, ceiling_s=ceiling_s)
        charge_w, discharge_w = self._reach_w()
        rise_wait_s = self._away_s(discharge_w, interval.contingency_rise_w_per_s)
        ceiling_s = max(ceiling_s, self._ttl_s + rise_wait_s)
        if self.waits:
            fall_wait_s = self._away_s(charge_w, interval.contingency_slope_w_per_s)
            return NodeParting(slope, fall_wait_s, rise_wait_s, ceiling_frac=frac, ceiling_s=ceiling_s)
        fits_w = max(self._before_w, self._top_w, KEPT_FRAC * self._row_w)
        return NodeParting((1.0 - fits_w / self._row_w) * slope, 0.0, rise_wait_s, fits_w, frac, ceiling_s)

    def ceiling(self, limits: Iterable[Limit]) -> tuple[float, float]:
        """The share of their fallback clocks that fits under every ceiling known now, and for how long from now, s.

        By the declared powers: the curve of a GPU lies below its chord from idle to the fallback clock.
        """
        site, frac, until_s = self._site, 1.0, self._now_s
        for limit in limits:
            if isinstance(limit, CeilingLimit) and limit.until_s > self._now_s:
                left_w = limit.max_w - site.other_load_w_max - site.gpu_idle_w
                fits_frac = max(0.0, left_w) / max(site.gpu_fallback_w - site.gpu_idle_w, 1.0)
                if fits_frac < 1.0:
                    frac, until_s = min(frac, fits_frac), max(until_s, limit.until_s)
        return frac, min(until_s - self._now_s, WAIT_S_MAX)

    def told(self, parting: NodeParting, stamp: Stamp, *, is_release: bool) -> None:
        """Nodes were told `parting`; what they were told before is in force until all have heard, or it expires."""
        until_s = self._now_s + self._ttl_s
        if is_release:  # never expires
            self._release_w_per_s, self._release_until_s = parting.slope_w_per_s, math.inf
        else:
            self._release_until_s = min(self._release_until_s, until_s)
        if parting.fits_w <= self._fits_w:
            self._told_w = parting.fits_w
            self._all_know()
        elif parting.fits_w != self._told_w:
            self._told_w, self._heard = parting.fits_w, (stamp.epoch, stamp.seq, until_s)

    def fall_w_per_s(self, slope_w_per_s: float) -> float:
        """Of `slope_w_per_s` downward, what battery and bank may use: all of it where nodes have room for them."""
        return slope_w_per_s if self._charge_w <= self._fits_w else self._fits_w / self._row_w * slope_w_per_s

    def rise_w_per_s(self, slope_w_per_s: float) -> float:
        """The same upward: nodes that are being released do not wait."""
        is_releasing = self._now_s < self._release_until_s
        left_w_per_s = slope_w_per_s - (self._release_w_per_s if is_releasing else 0.0)
        return max(left_w_per_s, KEPT_FRAC * slope_w_per_s)

    def battery_w_per_s(self, aim: BatteryAim) -> float:
        """How fast the battery may go back to nothing from `aim`: up where it discharges, else down."""
        if self._battery is None:
            return aim.ramp_w_per_s
        if aim.reference_w <= 0.0:
            return self.fall_w_per_s(aim.ramp_w_per_s)
        rise = self.rise_w_per_s(aim.ramp_w_per_s)
        if not self._is_under_ceiling:
            return rise
        # Nodes come down for it meanwhile, more slowly than they are told: it takes all the time it has.
        return min(rise, max(KEPT_FRAC * rise, aim.reference_w / (AWAY_S - self._ttl_s)))

    def _reach_w(self) -> tuple[float, float]:
        """The most that battery and bank may have to let go, falling and rising; a bank's share is the battery's."""
        battery, bank = self._battery, self._site.load_bank
        charge_w = battery.charge_w_max if battery is not None else 0.0
        discharge_w = battery.discharge_w_max if battery is not None else 0.0
        return (charge_w, discharge_w) if bank is None else (2.0 * max(charge_w, bank.power_w_max), 2.0 * discharge_w)

    def _away_s(self, power_w: float, slope_w_per_s: float) -> float:
        """From the nodes' last command on: theirs may be two planner periods older than the battery's."""
        if self._battery is not None:
            slope_w_per_s = min(slope_w_per_s, self._battery.ramp_w_per_s_max)
        return away_s(self._site, power_w, slope_w_per_s)


def away_s(site: SiteSettings, power_w: float, slope_w_per_s: float) -> float:
    """How long nodes wait for `power_w` that goes at `slope_w_per_s`, from the end of their own last command."""
    travel_s = power_w / slope_w_per_s if slope_w_per_s > 0.0 else math.inf
    return min(travel_s + 2.0 * site.planner_period_s + LATE_S, WAIT_S_MAX)


def always_waits(site: SiteSettings, slope_w_per_s: float, row_w: float) -> bool:
    """Whether nodes wait even for a battery that discharges.

    One that is slow may be unable to let go as slowly as a part of the slope asks, and one that is smaller than every
    row (`row_w` the smallest), which may step, lends a ceiling too little to share a row for.
    """
    battery = site.battery
    if battery is None:
        return False
    is_small = max(battery.charge_w_max, battery.discharge_w_max) <= row_w
    return is_small or battery.ramp_w_per_s_max <= SLOW * slope_w_per_s


def job_groups(fleet: Fleet) -> IntArray:
    """Per node, in the table's order, which nodes must keep one pace (0, 1, ...): those that share a job.

    A synchronous job runs at the pace of its slowest node: one node that goes ahead takes the whole job's power along.
    """
    spans = list(fleet.table.spans.values())
    first = np.array([fleet.job_index[span.start] if span.stop > span.start else 0 for span in spans], dtype=np.int64)
    label = np.arange(len(fleet.job_names), dtype=np.int64)
    of_gpu = np.repeat(first, [span.stop - span.start for span in spans])
    while True:
        before = label.copy()
        np.minimum.at(label, fleet.job_index, before[of_gpu])
        np.minimum.at(label, of_gpu, label[fleet.job_index])
        if (label == before).all():
            break
    found: IntArray = np.unique(label[first], return_inverse=True)[1].astype(np.int64) if spans else first
    return found


def finite_slope(slope_w_per_s: float) -> float:
    """As the wire carries it."""
    return slope_w_per_s if math.isfinite(slope_w_per_s) else NO_LIMIT_W_PER_S
