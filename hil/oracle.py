"""Perfect foresight: the least work any controller could have lost on a load it knew in advance, as a sparse LP.

Same 0.1 s grid, same battery, limits, reserve and final energy as the policy it judges, and no slack: where no such
path exists the answer is None. Chords of the crash-safe set are imposed once a second, which can only help the oracle;
what a rise needs at every step, since the load is at its top for less. Where windows bind, its target runs straight
between instants 1 s apart: exact for what it allows, and blind only to moves within a second.
Units inside are MW and MJ.
"""

from __future__ import annotations

import numpy as np
import piqp
from scipy import sparse

from controller.reserve import CrashReserve
from controller.types import BoolArray, FloatArray, IntArray, frozen

W_PER_UNIT = 1e6
CHORDS = 16
POINTS_PER_WINDOW = 15  # more fill the factorisation: 60 points cost a hundred times 15
DROPPED = 1e4  # added to the bound of a row that need not hold: far beyond any site in MW and MJ
COARSE = 10  # steps between the instants at which chords and window rows are imposed


@frozen
class WindowRow:
    """|P(t) - P(s)| <= max_w within window_s."""

    max_w: float
    window_s: float


@frozen
class OracleCase:
    """The world the oracle lives in. `load_left_w` is None without a reserve; `floor_w` may be switched on at will."""

    step_s: float
    demand_w: FloatArray  # (classes, steps)
    weight: FloatArray  # (classes,)
    base_w: float
    reserve: CrashReserve
    load_left_w: float | None
    is_rise_enforced: bool
    floor_w: float
    slope_w_per_s: float | None  # bound per step; None: only windows
    windows: tuple[WindowRow, ...]
    ceiling_w: FloatArray | None  # (steps,), inf where none
    start_w: float
    start_j: float
    target_w_max: FloatArray | None = None  # (steps,), inf where free: what readiness for an event leaves
    crash_left_w: FloatArray | None = None  # (steps,) load after a crash that must not fill the battery; inf: none


@frozen
class OracleAnswer:
    """Least weighted curtailed energy, and its change per joule of final energy."""

    lost_j: float
    dual_j_per_j: float
    target_w: FloatArray
    energy_j: FloatArray


@frozen
class Slack:
    """What a policy did not keep, per step: an oracle that may do the same cannot be worse.

    `beside_w` is target less power where the battery could not carry the difference; in the steps that the masks mark
    the crash-safe set, or the cover of a rise, was not kept.
    """

    beside_w: FloatArray
    is_unsafe: BoolArray
    is_uncovered: BoolArray


class _Rows:
    """Collects sparse rows `least <= sum value * x[column] <= bound`."""

    def __init__(self) -> None:
        self.row: list[IntArray] = []
        self.column: list[IntArray] = []
        self.value: list[FloatArray] = []
        self.bound: list[FloatArray] = []
        self.least: list[FloatArray] = []
        self.count = 0

    def add(self, bound: FloatArray, *terms: tuple[IntArray, FloatArray | float], is_both_ways: bool = False) -> slice:
        """One row per entry of `bound`; each term is (columns, coefficient), as long as `bound`.

        `is_both_ways` bounds the row from below by the negative of `bound` as well.
        """
        size = len(bound)
        places = np.arange(self.count, self.count + size)
        for columns, coefficient in terms:
            self.row.append(places)
            self.column.append(columns)
            self.value.append(np.broadcast_to(np.asarray(coefficient, dtype=np.float64), (size,)))
        self.bound.append(np.asarray(bound, dtype=np.float64))
        self.least.append(-self.bound[-1] if is_both_ways else np.full(size, -np.inf))
        self.count += size
        return slice(self.count - size, self.count)

    def matrix(self, width: int) -> sparse.csc_matrix:
        if not self.row:
            return sparse.csc_matrix((0, width))
        entries = (np.concatenate(self.value), (np.concatenate(self.row), np.concatenate(self.column)))
        return sparse.csc_matrix(entries, shape=(self.count, width))

    def vector(self) -> FloatArray:
        return np.concatenate(self.bound) if self.bound else np.zeros(0)

    def lower_vector(self) -> FloatArray:
        return np.concatenate(self.least) if self.least else np.zeros(0)


class Oracle:
    """One world, solved for as many final energies as asked; only one number changes between them."""

    def __init__(self, case: OracleCase) -> None:
        self._case = case
        steps = case.demand_w.shape[1]
        self._steps = steps
        # Classes whose work is worth the same are one: nothing else tells them apart here.
        worth, group = np.unique(case.weight, return_inverse=True)
        self._demand_w = np.array([case.demand_w[group == k].sum(axis=0) for k in range(len(worth))])
        at = {"cut": np.arange(len(worth) * steps).reshape(len(worth), steps)}
        width = len(worth) * steps
        for name in ("charge", "discharge", "target", "energy", "floor"):
            at[name] = np.arange(width, width + steps)
            width += steps
        self._at, self._width = at, width
        self._lower, self._upper = self._bounds()
        self._equal, self._below = _Rows(), _Rows()
        self._reserve_rows: list[slice] = []
        self._cover_rows: list[slice] = []
        self._add_balance()
        self._add_ramps()
        self._add_reserve()
        self._cost = np.zeros(self._width)
        self._cost[at["cut"]] = worth[:, None] * case.step_s
        self._matrix_a = self._equal.matrix(self._width)
        self._matrix_g = self._below.matrix(self._width)
        self._solver: piqp.SparseSolver | None = (
            None  # set up once: finding the order of elimination costs as much again
        )

    def solve(self, final_j: float, *, slack: Slack | None = None) -> OracleAnswer | None:
        """The best path that ends with at least `final_j` and keeps all but `slack`; None when there is none."""
        lower, upper, below = self._lower.copy(), self._upper.copy(), self._below.vector()
        last = int(self._at["energy"][-1])
        lower[last] = max(lower[last], final_j / W_PER_UNIT - 1e-9)
        if slack is not None:
            self._loosen(slack, lower, upper, below)
        solver = self._solver
        if solver is None:
            solver = self._solver = self._set_up(lower, upper, below)
        else:
            solver.update(x_l=lower, x_u=upper, h_u=below)
        if solver.solve() != piqp.PIQP_SOLVED:
            return None
        x = np.asarray(solver.result.x)
        return OracleAnswer(
            lost_j=float(self._cost @ x) * W_PER_UNIT,
            dual_j_per_j=float(solver.result.z_bl[last]),
            target_w=x[self._at["target"]] * W_PER_UNIT,
            energy_j=x[self._at["energy"]] * W_PER_UNIT,
        )

    def _loosen(self, slack: Slack, lower: FloatArray, upper: FloatArray, below: FloatArray) -> None:
        """Lets power stand beside the target as the policy's did, and drops the reserve where the policy had none."""
        floor, target = self._at["floor"], self._at["target"]
        upper[floor] += np.maximum(slack.beside_w, 0.0) / W_PER_UNIT
        lower[floor] -= np.maximum(-slack.beside_w, 0.0) / W_PER_UNIT
        unsafe = np.flatnonzero(slack.is_unsafe)
        if self._case.ceiling_w is not None:
            upper[target[unsafe]] = self._case.ceiling_w[unsafe] / W_PER_UNIT
        else:
            upper[target[unsafe]] = np.inf
        for rows in self._reserve_rows:
            below[rows][slack.is_unsafe[::COARSE]] += DROPPED
        for rows in self._cover_rows:
            below[rows][slack.is_uncovered[1:]] += DROPPED

    def _set_up(self, lower: FloatArray, upper: FloatArray, below: FloatArray) -> piqp.SparseSolver:
        solver = piqp.SparseSolver()
        solver.settings.verbose = False
        solver.settings.max_iter = 250
        solver.settings.eps_abs = 1e-7
        solver.settings.eps_rel = 1e-8
        solver.settings.eps_duality_gap_abs = 1e-3
        solver.settings.eps_duality_gap_rel = 1e-6
        solver.setup(
            P=sparse.csc_matrix((self._width, self._width)),
            c=self._cost,
            A=self._matrix_a,
            b=self._equal.vector(),
            G=self._matrix_g,
            h_l=self._below.lower_vector(),
            h_u=below,
            x_l=lower,
            x_u=upper,
        )
        return solver

    # --------------------------------------------------------------------------------------------------- building

    def _bounds(self) -> tuple[FloatArray, FloatArray]:
        case, at, battery = self._case, self._at, self._case.reserve.battery
        lower, upper = np.zeros(self._width), np.full(self._width, np.inf)
        upper[at["cut"]] = self._demand_w / W_PER_UNIT
        upper[at["charge"]] = battery.charge_w_max / W_PER_UNIT
        upper[at["discharge"]] = battery.discharge_w_max / W_PER_UNIT
        lower[at["energy"]] = battery.energy_j_min / W_PER_UNIT
        upper[at["energy"]] = battery.energy_j_max / W_PER_UNIT
        upper[at["floor"]] = case.floor_w / W_PER_UNIT
        lower[at["target"]] = -np.inf
        if case.target_w_max is not None:
            upper[at["target"]] = case.target_w_max / W_PER_UNIT
        if case.load_left_w is not None:
            reach = (case.load_left_w + battery.charge_w_max) / W_PER_UNIT
            upper[at["target"]] = np.minimum(upper[at["target"]], reach)
        if case.ceiling_w is not None:
            upper[at["target"]] = np.minimum(upper[at["target"]], case.ceiling_w / W_PER_UNIT)
        return lower, upper

    def _add_balance(self) -> None:
        case, at, eta = self._case, self._at, self._case.reserve.battery.eta
        load = (case.demand_w.sum(axis=0) + case.base_w) / W_PER_UNIT
        cuts: list[tuple[IntArray, FloatArray | float]] = [(row, 1.0) for row in at["cut"]]
        self._equal.add(
            load, (at["target"], 1.0), (at["charge"], -1.0), (at["discharge"], 1.0), (at["floor"], -1.0), *cuts
        )
        first = np.zeros(self._steps)
        first[0] = case.start_j / W_PER_UNIT
        dt = case.step_s
        self._equal.add(
            first[:1], (at["energy"][:1], 1.0), (at["charge"][:1], -eta * dt), (at["discharge"][:1], dt / eta)
        )
        self._equal.add(
            first[1:],
            (at["energy"][1:], 1.0),
            (at["energy"][:-1], -1.0),
            (at["charge"][1:], -eta * dt),
            (at["discharge"][1:], dt / eta),
        )

    def _add_ramps(self) -> None:
        """Per-step slope, and windows by doubling: running extremes over 2^k seconds bound one another."""
        case, target = self._case, self._at["target"]
        start = case.start_w / W_PER_UNIT
        if case.slope_w_per_s is not None:
            move = case.slope_w_per_s * case.step_s / W_PER_UNIT
            self._upper[target[0]] = min(self._upper[target[0]], start + move)
            self._lower[target[0]] = max(self._lower[target[0]], start - move)
            moves = np.full(self._steps - 1, move)
            self._below.add(moves, (target[1:], 1.0), (target[:-1], -1.0), is_both_ways=True)
        for window in case.windows:
            if not any(_implies(other, window) for other in case.windows if other is not window):
                self._add_window(window)

    def _add_window(self, window: WindowRow) -> None:
        """Every pair of a grid of a fifteenth of the window, 1 s at least: max - min over the window <= max_w.

        The history before the start is the starting power. Running maxima over 1, 2, 4, ... grid points are variables.
        """
        case, limit = self._case, window.max_w / W_PER_UNIT
        coarse = max(COARSE, int(window.window_s / (POINTS_PER_WINDOW * case.step_s)))
        grid = self._at["target"][coarse - 1 :: coarse]
        span = int(window.window_s / (case.step_s * coarse))
        start = case.start_w / W_PER_UNIT
        early = self._at["target"][: min(self._steps, span * coarse)]
        self._upper[early] = np.minimum(self._upper[early], start + limit)
        self._lower[early] = np.maximum(self._lower[early], start - limit)
        self._straighten(grid, coarse)
        highs, lows, width = grid, grid, 1
        while width < span + 1:
            shift = min(width, span + 1 - width)
            count = len(highs) - shift
            if count <= 0:
                break
            new_high, new_low = self._new(count), self._new(count)
            zero = np.zeros(count)
            for offset in (0, shift):
                self._below.add(zero, (highs[offset : offset + count], 1.0), (new_high, -1.0))
                self._below.add(zero, (new_low, 1.0), (lows[offset : offset + count], -1.0))
            highs, lows, width = new_high, new_low, width + shift
        self._below.add(np.full(len(highs), limit), (highs, 1.0), (lows, -1.0))

    def _straighten(self, grid: IntArray, coarse: int) -> None:
        """The target runs straight between grid points (and from the start to the first), so that all pairs hold."""
        target = self._at["target"]
        steps = np.arange(self._steps)
        right = (steps // coarse) * coarse + coarse - 1  # the grid point at or after each step
        inner = steps[(steps != right) & (right < self._steps)]
        share = (inner % coarse + 1) / coarse
        has_left = right[inner] >= 2 * coarse - 1
        later, first = inner[has_left], inner[~has_left]
        self._equal.add(
            np.zeros(len(later)),
            (target[later], 1.0),
            (target[right[later]], -share[has_left]),
            (target[right[later] - coarse], share[has_left] - 1.0),
        )
        start = self._case.start_w / W_PER_UNIT
        self._equal.add(
            (1.0 - share[~has_left]) * start, (target[first], 1.0), (target[right[first]], -share[~has_left])
        )
        tail = steps[right >= self._steps]
        self._equal.add(np.zeros(len(tail)), (target[tail], 1.0), (np.full(len(tail), grid[-1]), -1.0))

    def _new(self, count: int) -> IntArray:
        """Columns of `count` new free variables."""
        places = np.arange(self._width, self._width + count)
        self._width += count
        self._lower = np.concatenate([self._lower, np.full(count, -np.inf)])
        self._upper = np.concatenate([self._upper, np.full(count, np.inf)])
        return places

    def _add_reserve(self) -> None:
        case, at = self._case, self._at
        battery = case.reserve.battery
        target, energy = at["target"][::COARSE], at["energy"][::COARSE]
        if case.load_left_w is not None and case.reserve.energy_s_per_w > 0.0:
            top_s = 2.0 * case.reserve.energy_s_per_w * battery.charge_w_max
            room_s = 2.0 * np.sqrt(case.reserve.energy_s_per_w * (battery.energy_j_max - battery.energy_j_min))
            chords = case.reserve.chords(count=CHORDS, spacing_s=min(top_s, float(room_s)) / CHORDS)
            left = case.load_left_w / W_PER_UNIT
            for slope, offset in zip(chords.slope_s, chords.offset_j, strict=True):
                bound = np.full(len(target), offset / W_PER_UNIT + slope * left)
                self._reserve_rows.append(self._below.add(bound, (energy, 1.0), (target, slope)))
            reach = np.full(len(target), chords.x_w_max / W_PER_UNIT + left)
            self._reserve_rows.append(self._below.add(reach, (target, 1.0)))
        if case.crash_left_w is not None:
            self._add_crash_room(case.crash_left_w)
        if case.is_rise_enforced:
            self._add_rise()

    def _add_crash_room(self, left_w: FloatArray) -> None:
        """While the target falls on `left_w` the battery charges min(Pc, surplus): tangents of what that stores."""
        reserve, at = self._case.reserve, self._at
        battery = reserve.battery
        places = np.arange(0, self._steps, COARSE)
        places = places[np.isfinite(left_w[places])]
        left, top = left_w[places] / W_PER_UNIT, battery.energy_j_max / W_PER_UNIT
        for share in (np.arange(CHORDS) + 1.0) / CHORDS:  # beyond Pc it charges no faster: the last goes straight on
            touch_w = share * battery.charge_w_max
            slope = 2.0 * reserve.energy_s_per_w * touch_w
            offset = reserve.energy_s_per_w * touch_w * touch_w / W_PER_UNIT
            self._below.add(top + offset + slope * left, (at["energy"][places], 1.0), (at["target"][places], slope))

    def _add_rise(self) -> None:
        """Load at every instant is at most target + cover(e), e as the step begins: tangents, so never less than that.

        Checked less often the oracle would draw what nothing covers, at the top of every ripple between two checks.
        """
        case, at = self._case, self._at
        battery, rise = case.reserve.battery, case.reserve.rise_w_per_s * case.reserve.battery.eta
        top_w = min(battery.discharge_w_max, float(np.sqrt(2.0 * rise * (battery.energy_j_max - battery.energy_j_min))))
        load = (case.demand_w.sum(axis=0) + case.base_w)[1:] / W_PER_UNIT
        for touch_w in top_w * (np.arange(CHORDS) + 0.5) / CHORDS:
            slope = touch_w / rise  # cover^2 <= 2 R eta (e - e_min)
            bound = -slope * load + (0.5 * slope * touch_w - battery.energy_j_min) / W_PER_UNIT
            cuts: list[tuple[IntArray, FloatArray | float]] = [(row[1:], -slope) for row in at["cut"]]
            rows = self._below.add(bound, (at["energy"][:-1], -1.0), (at["target"][1:], -slope), *cuts)
            self._cover_rows.append(rows)


def _implies(first: WindowRow, second: WindowRow) -> bool:
    """Whether `first` forbids all that `second` forbids: a long window is a chain of short ones."""
    links = int(np.ceil(second.window_s / first.window_s - 1e-9))
    is_twin = first.window_s == second.window_s and first.max_w == second.max_w
    return links * first.max_w <= second.max_w * (1.0 + 1e-9) and not is_twin
