"""From what a class may draw to the clock of each of its GPUs, and back: what the caps in force hold back.

GPUs of one class get one clock fraction, so that a synchronous job slows as one. Clocks are rounded down to a step the
GPU has. Vectorised over GPUs; the planner's numbers are per class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from controller.fleet import Fleet
from controller.gpu_model import UNKNOWN, GpuCurve, PowerCurve, curve_for
from controller.types import BoolArray, Feeder, FloatArray, IntArray, frozen

TABLE = 2048  # points of a curve for look-up: the steepest curve moves 0.2 % from one to the next
SHARE_MIN = 0.05  # a GPU slowed further says too little of what it would draw
CLOCK_STEP_MHZ = 15.0  # of every NVIDIA data-centre GPU since Volta


@frozen
class Curves:
    """Which curve each GPU of a fleet follows."""

    known: tuple[PowerCurve, ...]
    index: IntArray  # (n,)

    @classmethod
    def of(cls, models: Sequence[str], curves: Mapping[str, GpuCurve]) -> Curves:
        found = [curve_for(model, curves) for model in models]
        known = tuple({curve.name: curve for curve in found}.values()) or (UNKNOWN,)  # before any node reported
        order = {curve.name: i for i, curve in enumerate(known)}
        return cls(known, np.array([order[curve.name] for curve in found], dtype=np.int64))

    def power_share(self, clock_frac: FloatArray) -> FloatArray:
        """Dynamic power share of each GPU at its clock fraction (n,), from a table: within 0.1 % of the curve."""
        share: FloatArray = _share_table(self.known).take(self._place(np.clip(clock_frac, 0.0, 1.0)))
        return share

    def held_share(self, clock_frac: FloatArray) -> FloatArray:
        """What a GPU at this clock fraction, 0 to 1 (n,), is kept from drawing, relative to what it draws."""
        held: FloatArray = _held_table(self.known).take(self._place(clock_frac))
        return held

    def _place(self, clock_frac: FloatArray) -> IntArray:
        place: IntArray = (clock_frac * (TABLE - 1) + 0.5).astype(np.int64)
        if len(self.known) > 1:
            place += TABLE * self.index
        return place

    def clock_for(self, share: FloatArray) -> FloatArray:
        """The clock fraction at which each GPU draws `share` (n,) of its dynamic power."""
        clock = np.empty_like(share)
        for i, curve in enumerate(self.known):
            mine = self.index == i
            clock[mine] = curve.clock_for(share[mine])
        return clock

    def clock_of_group(self, share: FloatArray, group: IntArray) -> FloatArray:
        """The same where GPUs of one group, `group` (n,), have one share, `share` (groups,)."""
        table = np.array([curve.clock_for(share) for curve in self.known])
        clock: FloatArray = table[0].take(group) if len(self.known) == 1 else table[self.index, group]
        return clock


@lru_cache(maxsize=8)
def _share_table(known: tuple[PowerCurve, ...]) -> FloatArray:
    fractions = np.linspace(0.0, 1.0, TABLE)
    return np.concatenate([curve.power_share(fractions) for curve in known])


@lru_cache(maxsize=8)
def _held_table(known: tuple[GpuCurve, ...]) -> FloatArray:
    held: FloatArray = 1.0 / np.maximum(_share_table(known), SHARE_MIN) - 1.0
    return held


def clocks_of_caps(fleet: Fleet, curves: Curves, *, cap_w: FloatArray, peak_w: FloatArray) -> FloatArray:
    """Locked clock of each GPU (n,), inf where its class is free.

    `cap_w` (K,) bounds each class; `peak_w` (K,) is what it would draw uncapped at the top of its ripple. Never below
    the service floor: what that cannot reach, the envelope and the next plan must find elsewhere.
    """
    table = fleet.table
    idle_w = fleet.class_idle_w
    spare_w = np.maximum(peak_w - idle_w, 1.0)
    share = np.clip((cap_w - idle_w) / spare_w, 0.0, np.inf)
    is_free = share >= 1.0
    if bool(is_free.all()):
        return np.full(fleet.count, np.inf)
    clock = curves.clock_of_group(np.minimum(share, 1.0), fleet.class_index) * table.cap_max[0]
    stepped = table.cap_min[0] + np.floor((clock - table.cap_min[0]) / CLOCK_STEP_MHZ) * CLOCK_STEP_MHZ
    bounded = np.clip(stepped, table.floor_mhz, table.cap_max[0])
    return np.where(is_free[fleet.class_index], np.inf, bounded)


def one_clock_per_job(fleet: Fleet, clock_mhz: FloatArray) -> FloatArray:
    """The lowest clock of each job's GPUs for all of them (n,): a synchronous job goes at the pace of its slowest."""
    lowest = np.full(len(fleet.job_names), np.inf)
    np.minimum.at(lowest, fleet.job_index, clock_mhz)
    wanted, table = lowest[fleet.job_index], fleet.table
    stepped = table.cap_min[0] + np.floor((wanted - table.cap_min[0]) / CLOCK_STEP_MHZ) * CLOCK_STEP_MHZ
    bounded = np.clip(stepped, table.floor_mhz, table.cap_max[0])
    return np.where(wanted >= table.cap_max[0], np.inf, bounded)


def lowered(
    fleet: Fleet,
    curves: Curves,
    clock_mhz: FloatArray,
    *,
    among: BoolArray,
    before_mhz: FloatArray,
    power_w: FloatArray,
    fall_w: float,
) -> FloatArray:
    """`clock_mhz` (n,), no further below `before_mhz` (n,) than takes off `fall_w` of what is drawn, `power_w` (n,).

    Every clock `among` (n,) that goes lower goes by the same share of its way, in whole steps and by one at least; the
    others go all of it. Inf is free.
    """
    table = fleet.table
    before = np.minimum(before_mhz, table.cap_max[0])
    after = np.minimum(clock_mhz, before)
    way_mhz = before - after
    moves = among & (way_mhz > 0.0)
    if math.isinf(fall_w) or not bool(moves.any()):
        return clock_mhz
    kept = curves.power_share(after / table.cap_max[0]) / curves.power_share(before / table.cap_max[0])
    off_w = np.maximum(power_w - table.idle_w, 0.0) * (1.0 - kept) * table.stands_for
    left_w, some_w = max(0.0, fall_w - float(off_w[~moves].sum())), float(off_w[moves].sum())
    if some_w <= left_w:
        return clock_mhz
    steps = np.maximum(np.floor(left_w / some_w * way_mhz / CLOCK_STEP_MHZ), 1.0)
    return np.where(moves, np.maximum(clock_mhz, before - steps * CLOCK_STEP_MHZ), clock_mhz)


def has_mixed_jobs(fleet: Fleet, curves: Curves) -> bool:
    """Whether any job has GPUs that would get clocks of their own: of several classes or curves."""
    kinds = fleet.class_index * len(curves.known) + curves.index
    pairs = np.unique(np.stack((fleet.job_index, kinds)), axis=1)
    return int(pairs.shape[1]) > len(fleet.job_names)


def fit_worst_case(fleet: Fleet, curves: Curves, caps: FloatArray, *, among: BoolArray, hard_w: float) -> FloatArray:
    """Caps (2, n), no higher than those given, under which the GPUs `among` (n,) draw at most `hard_w` together.

    Inf is free. A clock alone bounds power only by the chord of its curve; where that is not enough every GPU gets the
    same share of its range above idle as a power limit, and the clock that its curve draws there.
    """
    if float((drawn_w(fleet, caps) * fleet.table.stands_for)[among].sum()) <= hard_w:
        return caps
    return _shared(fleet, curves, caps, among=among, hard_w=hard_w)


def fit_feeders(
    fleet: Fleet, curves: Curves, caps: FloatArray, feeders: Sequence[Feeder], *, fixed_w: FloatArray
) -> FloatArray:
    """Caps (2, n), no higher than those given, under which all that hangs on each feeder fits its limit.

    `fixed_w` (n,) is what a GPU draws whatever it is told, NaN where caps count. A job of which a part goes lower does
    so whole.
    """
    found, told = caps, np.isnan(fixed_w)
    for feeder in feeders:
        fixed = np.where(told, drawn_w(fleet, found), fixed_w) * fleet.table.stands_for
        if float(fixed[feeder.is_below].sum()) <= feeder.room_w:
            continue
        among = feeder.is_below & told
        hard_w = feeder.room_w - float(fixed[feeder.is_below & ~told].sum())
        found = _shared(fleet, curves, found, among=among, hard_w=hard_w)
    if found is caps:
        return caps
    return np.vstack((np.minimum(found[0], one_clock_per_job(fleet, found[0])), found[1]))


def _shared(fleet: Fleet, curves: Curves, caps: FloatArray, *, among: BoolArray, hard_w: float) -> FloatArray:
    """The same share of their range to each GPU of `among`, where it is less than it has."""
    table = fleet.table
    range_w = table.peak_w - table.idle_w
    spare_w = hard_w - float((table.idle_w * table.stands_for)[among].sum())
    share = np.clip(spare_w / max(float((range_w * table.stands_for)[among].sum()), 1.0), 0.0, 1.0)
    shared_w = np.maximum(np.floor((table.idle_w + range_w * share) * 10.0) / 10.0, table.cap_min[1])
    clock = curves.clock_of_group(np.array([share]), np.zeros(fleet.count, dtype=np.int64)) * table.cap_max[0]
    stepped = table.cap_min[0] + np.floor((clock - table.cap_min[0]) / CLOCK_STEP_MHZ) * CLOCK_STEP_MHZ
    bounded = np.clip(stepped, table.floor_mhz, table.cap_max[0])
    return np.where(among, np.minimum(caps, (bounded, shared_w)), caps)


def worst_case_w(fleet: Fleet, caps: FloatArray, *, fixed_w: FloatArray) -> float:
    """What all GPUs may draw together under `caps` (2, n), by the chord of their curves; inf is free.

    `fixed_w` (n,) is what a GPU draws whatever it is told, NaN where caps count.
    """
    each_w = np.where(np.isnan(fixed_w), drawn_w(fleet, caps), fixed_w)
    return float((each_w * fleet.table.stands_for).sum())


def drawn_w(fleet: Fleet, caps: FloatArray) -> FloatArray:
    """What each GPU (n,) may draw by itself under `caps` (2, n), if it takes them; inf is free."""
    table = fleet.table
    chord_w = table.idle_w + (table.peak_w - table.idle_w) * np.minimum(caps[0] / table.cap_max[0], 1.0)
    drawn_w: FloatArray = np.minimum(chord_w, np.minimum(caps[1], table.peak_w))
    return drawn_w


def cap_fall_w(fleet: Fleet, before: FloatArray, after: FloatArray, *, steepness: float) -> float:
    """The most that true power may fall when caps go from `before` to `after` (2, n), W; a rise makes up for none.

    By clock or by limit, whichever is more: a limit takes off what it goes down by, a clock its part of the chord times
    `steepness`, under a limit that binds as well.
    """
    table = fleet.table
    shares = [np.minimum(caps[0] / table.cap_max[0], 1.0) for caps in (before, after)]
    limits = [np.minimum(caps[1], table.peak_w) for caps in (before, after)]
    by_clock_w = steepness * (table.peak_w - table.idle_w) * (shares[0] - shares[1])
    return float((np.maximum(np.maximum(by_clock_w, limits[0] - limits[1]), 0.0) * table.stands_for).sum())


def draw_rise_w(fleet: Fleet, before: FloatArray, after: FloatArray) -> float:
    """How far the worst case of GPUs that may draw more under `after` (2, n) goes up, W; a fall makes up for none."""
    rise_w = np.maximum(drawn_w(fleet, after) - drawn_w(fleet, before), 0.0)
    return float((rise_w * fleet.table.stands_for).sum())


def held_back_w(fleet: Fleet, curves: Curves, *, power_w: FloatArray, clock_cap_mhz: FloatArray) -> FloatArray:
    """What the locked clocks in force keep each class from drawing, (K,); `power_w` (n,) is drawn now."""
    table = fleet.table
    fraction = np.minimum(clock_cap_mhz / table.cap_max[0], 1.0)
    return fleet.by_class(np.maximum(power_w - table.idle_w, 0.0) * curves.held_share(fraction))
