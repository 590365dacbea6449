"""The pre-armed response to an emergency: caps for any power level, lowest priority first, and the battery's part.

Everything that takes thought is done with the last plan, while nothing is wrong; a response only looks it up. The
battery is fed what the caps are expected to do to the load, not what the meter says of it later: so the sum goes to the
target without first going below it. Pure; powers in watts, arrays per class (K,) or per GPU (n,).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from controller.allocate import Curves, fit_worst_case
from controller.fleet import Fleet
from controller.types import BoolArray, FloatArray, frozen

# From the cycle that sends a cap to the driver's call on the node: command, broker, agent (`rampart bench latency`).
COMMAND_S = 0.005
# From the call to the first fall, and the time constant of the fall: V100 power-limit step record (280 to 200 W).
CAP_DEAD_S = 0.025
CAP_LAG_S = 0.018
CALL_S = 0.010  # assumed: of one clock lock; the driver takes the calls of a node one after the other
SETTLED_LAGS = 4.0  # 2 % of the step is left
BRIDGE_PERIOD_S = 0.010  # between two set-points while the caps take hold
LEAD_FRAC_MAX = 0.7  # of the battery's whole step, beyond either end: a set-point that a late cycle leaves in force
PAST_CYCLES = 64  # of them remembered: more than a response has
REACH_S = 0.030  # a set-point aims at where the battery is to be this much later: a late cycle must not overshoot
LATE_S_MAX = 0.012  # the fall may be seen to run this much behind the path, or ahead of it
MISS_GAIN = 0.8  # share of what path and meter differ by that one sample corrects
MISS_FRAC_MAX = 0.4  # of the expected fall: more is no error of the path but another event, and the tracker's business
HOLD_S = 2.0  # telemetry needs so long to show what the caps did; until then the planner would plan on the past
CLOCK_WRITE_S = 1.0  # clocks change at most once a second; inside it a power limit does the work
LIMIT_STEADY_FRAC = 0.985  # share of a power limit that steady draw settles at (98.5 to 99.6 % measured)
LIMITED_SHARE = LIMIT_STEADY_FRAC - 0.001  # of their power limits: what GPUs draw there their clocks do not set
# When the load is looked at after the caps took hold: a GPU's own loop that cut too low is back by then (90 ms, V100
# record), and it lasts for more than half an iteration of the usual jobs.
LEARN_FROM_S, LEARN_UNTIL_S = 0.3, 0.9
LEARN_GAIN = 0.5
LEARN_SHARE_MIN, LEARN_SHARE_MAX = 0.05, 0.95  # outside, a share says little about the curve
STEEPNESS_MAX = 2.0
AGAIN_FRAC = 0.01  # of the registered peak: a target that moved by less needs no new caps


@frozen
class CapTable:
    """What each class may draw at each total of GPU power.

    `level_w` (M,) ascends; `share` (M, K) is each class's dynamic power relative to its demand. Between two rows
    everything is linear, so the table is exact for every level with few rows.
    """

    level_w: FloatArray
    share: FloatArray

    @classmethod
    def build(
        cls,
        *,
        idle_w: FloatArray,
        demand_w: FloatArray,
        floor_share: FloatArray,
        least_share: FloatArray,
        priority: Sequence[int],
    ) -> CapTable:
        """Classes give in order of priority, first each to its service floor, then each to what its clocks can do."""
        dynamic_w = np.maximum(demand_w - idle_w, 0.0)
        least = np.minimum(least_share, 1.0)
        order = sorted(range(len(priority)), key=lambda k: (priority[k], k))
        share = np.ones_like(dynamic_w)
        rows = [share]
        for bottom in (np.clip(floor_share, least, 1.0), least):
            for k in order:
                share = share.copy()
                share[k] = min(share[k], float(bottom[k]))
                rows.append(share)
        table = np.array(rows[::-1])
        fixed_w = np.minimum(idle_w, demand_w).sum()
        return cls(fixed_w + table @ dynamic_w, table)

    def at(self, gpu_w: float) -> FloatArray:
        """Share of each class (K,) at a total of `gpu_w`; the least and the most where it lies outside the table."""
        return np.array([np.interp(gpu_w, self.level_w, column) for column in self.share.T])


@frozen
class Armed:
    """One plan's preparation: the table and what turns its shares into clocks and clocks into power."""

    fleet: Fleet
    curves: Curves
    table: CapTable
    demand_w: FloatArray  # (K,) mean uncapped draw
    other_w: float
    ripple_up_w: float
    steepness: float  # exponent on the curves' dynamic share, as earlier responses showed it; 1 is the prior

    @classmethod
    def arm(
        cls,
        fleet: Fleet,
        curves: Curves,
        *,
        demand_w: FloatArray,
        other_w: float,
        ripple_up_w: float,
        priority: Sequence[int],
        steepness: float = 1.0,
    ) -> Armed:
        """Prepare a response for the fleet as it is now."""
        known = fleet.table
        floor = curves.power_share(np.minimum(known.floor_mhz / known.cap_max[0], 1.0)) ** steepness
        least = curves.power_share(known.cap_min[0] / known.cap_max[0]) ** steepness
        table = CapTable.build(
            idle_w=fleet.class_idle_w,
            demand_w=demand_w,
            floor_share=_class_mean(fleet, floor),
            least_share=_class_mean(fleet, least),
            priority=priority,
        )
        return cls(fleet, curves, table, demand_w, other_w, ripple_up_w, steepness)

    @property
    def fixed_w(self) -> float:
        """What the GPUs draw at any clock."""
        return float(np.minimum(self.fleet.class_idle_w, self.demand_w).sum())

    @property
    def dynamic_w(self) -> float:
        """What they draw above that when nothing caps them."""
        return float(np.maximum(self.demand_w - self.fleet.class_idle_w, 0.0).sum())

    @property
    def sheddable_w(self) -> float:
        """What the GPUs can give before any class goes below its service floor."""
        level_w = self.table.level_w
        return float(level_w[-1] - level_w[len(level_w) // 2])  # in the table's middle every class is at its floor

    @property
    def busy_gpu_w(self) -> float:
        """Mean uncapped draw of one GPU; 0 without any."""
        return float(self.demand_w.sum()) / max(float(self.fleet.table.stands_for.sum()), 1.0)

    def clocks_mhz(self, gpu_w: float) -> FloatArray:
        """Clock of each GPU (n,) at which all of them draw at most `gpu_w` in the mean; inf is free."""
        known = self.fleet.table
        share = self.table.at(gpu_w)[self.fleet.class_index]
        clock = np.floor(self.curves.clock_for(share ** (1.0 / self.steepness)) * known.cap_max[0] + 1e-6)
        return np.where(share >= 1.0, np.inf, np.clip(clock, known.cap_min[0], known.cap_max[0]))

    def power_w(self, clocks_mhz: FloatArray) -> float:
        """Mean draw of all GPUs under these clocks."""
        share = self._share(clocks_mhz)
        idle_w = self.fleet.class_idle_w
        dynamic_w = np.maximum(self.demand_w - idle_w, 0.0)
        return float((np.minimum(idle_w, self.demand_w) + dynamic_w * _class_mean(self.fleet, share)).sum())

    def limits_w(self, clocks_mhz: FloatArray) -> FloatArray:
        """Power limit of each GPU (n,) that holds it where the clock would, for GPUs whose clock may not change now."""
        known = self.fleet.table
        count = self.fleet.class_count
        each_w = np.maximum(self.demand_w - self.fleet.class_idle_w, 0.0) / np.maximum(count, 1.0)
        share = self._share(clocks_mhz)
        draw_w = known.idle_w + each_w[self.fleet.class_index] * share
        limit_w = np.clip(np.ceil(draw_w / LIMIT_STEADY_FRAC), known.cap_min[1], known.cap_max[1])
        return np.where(np.isinf(clocks_mhz), np.inf, limit_w)

    def _share(self, clocks_mhz: FloatArray) -> FloatArray:
        fraction = np.minimum(clocks_mhz / self.fleet.table.cap_max[0], 1.0)
        share: FloatArray = self.curves.power_share(fraction) ** self.steepness
        return share


def caps_of(
    armed: Armed, *, gpu_w: float, last: FloatArray, is_clock_fixed: BoolArray, hard_w: float
) -> tuple[FloatArray, float]:
    """Caps (2, n) for a total of `gpu_w`, nowhere above `last`, and the power expected under them.

    Where a clock was written less than a second ago it stays, and a power limit takes its place. Power limits also
    bring the worst case of all GPUs down to `hard_w`; the clocks are left to the mean, or the site would undershoot.
    """
    wish_mhz = np.minimum(armed.clocks_mhz(gpu_w), last[0])
    is_late = is_clock_fixed & (wish_mhz < last[0])
    clock_mhz = np.where(is_late, last[0], wish_mhz)
    limit_w = np.where(is_late, np.minimum(armed.limits_w(wish_mhz), last[1]), last[1])
    unlimited, every = np.stack((clock_mhz, np.full_like(clock_mhz, np.inf))), np.ones_like(is_late)
    worst_w = fit_worst_case(armed.fleet, armed.curves, unlimited, among=every, hard_w=hard_w)[1]
    return np.stack((clock_mhz, np.minimum(limit_w, worst_w))), armed.power_w(wish_mhz)


class Steepness:
    """Learns from each response how much steeper than its prior the fleet's power falls with its clocks."""

    def __init__(self) -> None:
        self.value = 1.0
        self._has_learned = False
        self._from_s = self._until_s = -math.inf
        self._armed: Armed | None = None
        self._expected_w = 0.0
        self._bound_w = math.inf
        self._sum_w = 0.0
        self._count = 0

    def watch(self, armed: Armed, *, settled_s: float, expected_w: float, limits_w: FloatArray | None = None) -> None:
        """Caps were sent under which all GPUs are expected to draw `expected_w` from `settled_s` on.

        `limits_w` (n,): the power limits among them, inf where there is none. Where they bind, clocks show nothing.
        """
        self._armed, self._expected_w = armed, expected_w
        table = armed.fleet.table
        bound_w = table.peak_w if limits_w is None else np.minimum(limits_w, table.peak_w)
        self._bound_w = float((bound_w * table.stands_for).sum())
        self._from_s, self._until_s = settled_s + LEARN_FROM_S, settled_s + LEARN_UNTIL_S
        self._sum_w, self._count = 0.0, 0

    def saw(self, t_s: float, load_w: float) -> None:
        """A fresh load sample of the site."""
        armed = self._armed
        if armed is None or t_s < self._from_s:
            return
        self._sum_w, self._count = self._sum_w + load_w, self._count + 1
        if t_s < self._until_s:
            return
        self._armed = None
        dynamic_w = max(armed.dynamic_w, 1.0)
        expected = (self._expected_w - armed.fixed_w) / dynamic_w
        gpu_w = self._sum_w / self._count - armed.other_w
        actual = (gpu_w - armed.fixed_w) / dynamic_w
        if min(expected, actual) > LEARN_SHARE_MIN and max(expected, actual) < LEARN_SHARE_MAX:
            found = armed.steepness * math.log(actual) / math.log(expected)
            if gpu_w >= LIMITED_SHARE * self._bound_w and found > self.value:
                return  # a power limit holds what the clocks would have let through
            gain = LEARN_GAIN if self._has_learned else 1.0  # the prior is of the model of GPU, not of what runs on it
            self._has_learned = True
            self.value += gain * (min(max(found, 1.0 / STEEPNESS_MAX), STEEPNESS_MAX) - self.value)


@frozen
class CapPath:
    """The load expected while caps take hold: GPU after GPU, from `begin_s` on for `spread_s`, each first-order."""

    begin_s: float
    spread_s: float
    from_w: float
    to_w: float

    def load_w(self, t_s: float) -> float:
        since_s = t_s - self.begin_s
        if since_s <= 0.0:
            return self.from_w
        if self.spread_s <= 0.0:
            left = math.exp(-since_s / CAP_LAG_S)
        else:  # the mean of the falls that began, and of those that did not yet
            begun_s = min(since_s, self.spread_s)
            fallen = math.exp((begun_s - since_s) / CAP_LAG_S) - math.exp(-since_s / CAP_LAG_S)
            left = (self.spread_s - begun_s + CAP_LAG_S * fallen) / self.spread_s
        return self.to_w + (self.from_w - self.to_w) * left

    @property
    def settled_s(self) -> float:
        return self.begin_s + self.spread_s + SETTLED_LAGS * CAP_LAG_S

    def late_s(self, t_s: float, load_w: float) -> float:
        """By how much the fall runs behind this path where the load is `load_w` at `t_s`, within LATE_S_MAX."""
        early_s, late_s = t_s - LATE_S_MAX, t_s + LATE_S_MAX
        for _ in range(10):  # the path only falls; a thousandth of the interval is left
            middle_s = 0.5 * (early_s + late_s)
            early_s, late_s = (middle_s, late_s) if self.load_w(middle_s) >= load_w else (early_s, middle_s)
        return t_s - early_s


def expected_path(now_s: float, *, from_w: float, to_w: float, gpus_per_node: int) -> CapPath:
    """What caps sent now will do; caps never raise the load."""
    spread_s = CALL_S * max(0, gpus_per_node - 1)
    return CapPath(now_s + COMMAND_S + CAP_DEAD_S, spread_s, from_w, min(from_w, to_w))


class Bridge:
    """Leads a first-order battery along `path` less the target, from where it stands now.

    Once the first caps bite, each sample of the meter says how late the fall is, and after that by how much the load is
    off the path; both within bounds, because a loop this quick must not be led far astray by a sample or a late cycle.
    """

    def __init__(self, path: CapPath, *, now_s: float, power_w: float, lag_s: float, ramp_w_per_s: float) -> None:
        self.path = path
        self._lag_s = max(lag_s, 1e-3)
        self._ramp_w_per_s = ramp_w_per_s
        self._t_s = now_s
        self._power_w = self._set_w = power_w
        self._past: deque[tuple[float, float]] = deque([(now_s, power_w)], maxlen=PAST_CYCLES)
        self._start_w = power_w
        self._late_s = self._miss_w = 0.0
        self._seen_s = path.begin_s + 0.5 * CAP_LAG_S  # before it the meter shows the battery's lag more than the caps

    def saw(self, t_s: float, pcc_w: float) -> None:
        """A sample of the meter: the load it shows, with the battery where it was at that instant."""
        if t_s <= self._seen_s:
            return
        self._seen_s = t_s
        path = self.path
        times, powers = zip(*self._past, strict=True)
        load_w = pcc_w + float(np.interp(t_s, times, powers))
        if t_s < path.begin_s + path.spread_s + CAP_LAG_S:  # later, what is off is the end and not the time
            self._late_s += MISS_GAIN * (path.late_s(t_s, load_w) - self._late_s)
        bound_w = MISS_FRAC_MAX * (path.from_w - path.to_w)
        miss_w = min(max(load_w - path.load_w(t_s - self._late_s), -bound_w), bound_w)
        self._miss_w += MISS_GAIN * (miss_w - self._miss_w)

    def is_over(self, sample_s: float) -> bool:
        """The meter shows the load as the caps left it: from here on it is better followed than expected."""
        return sample_s >= self.path.settled_s

    def answers_w(self, now_s: float, *, target_w: float, charge_w_max: float, discharge_w_max: float) -> float:
        """The set-point at `now_s`: the battery's own lag undone, within what it can do."""
        power_w = self.power_w(now_s)
        self._past.append((now_s, power_w))
        wanted_w = self.path.load_w(now_s + REACH_S - self._late_s) + self._miss_w - target_w
        kept = math.exp(-REACH_S / self._lag_s)
        lead_w = (wanted_w - power_w * kept) / (1.0 - kept)
        top_w = self.path.from_w - target_w
        spare_w = LEAD_FRAC_MAX * abs(top_w - self._start_w)
        low_w = min(self._start_w, self.path.to_w - target_w) - spare_w
        high_w = max(self._start_w, top_w) + spare_w
        self._set_w = min(max(lead_w, low_w, -charge_w_max), high_w, discharge_w_max)
        return self._set_w

    def power_w(self, now_s: float) -> float:
        """Where the battery is by now, as far as its lag and slope are known."""
        elapsed_s = max(0.0, now_s - self._t_s)
        step_w = (self._set_w - self._power_w) * (1.0 - math.exp(-elapsed_s / self._lag_s))
        most_w = self._ramp_w_per_s * elapsed_s
        self._power_w += min(max(step_w, -most_w), most_w)
        self._t_s = now_s
        return self._power_w


def _class_mean(fleet: Fleet, share: FloatArray) -> FloatArray:
    """Mean of a per-GPU share over each class, (K,); 1 for a class without GPUs."""
    total = fleet.class_count
    return np.where(total > 0.0, fleet.by_class(share) / np.maximum(total, 1e-9), 1.0)
