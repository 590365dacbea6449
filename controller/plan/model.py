"""The planner's quadratic program, written once in CVXPY, and the affine map from its parameters to solver data.

Nothing here runs in a control cycle: `build_map` costs about a second at start-up and its result is plain numpy. The
matrices P, A and G never depend on a parameter; that is asserted, not hoped. Powers are in units of `scale_w` (of the
order of a tenth of the site), energies in scale_w x energy_s, times in seconds. docs/planner.md states the equations.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import sparse

from controller.plan.plan import STEP_S, STEPS
from controller.types import FloatArray, IntArray, frozen

# Capping by y at the top of a square ripple costs half of y in the mean: a duty of 0.5, whatever the job's.
PEAK_SHARE = 0.5
# Costs, per unit of curtailed energy of weight 1.
SPILL_COST = 50.0  # power beyond the battery, beside the contract: only when nothing else is left
RESERVE_COST_PER_S = 20.0  # a watt beyond the crash-safe set for a second
TIER_COST = 5.0  # curtailing beyond what a tier tolerates
RETURN_S = 100.0  # the present state (a job down, a checkpoint) ends once in about this time, unannounced
# Electricity beside the work it does: 0.1 $/kWh against 2-3 $ for the 0.7 kWh of a GPU-hour.
BALLAST_COST = 0.03
WEAR_COST = 0.002  # per unit of energy through the battery: breaks ties between moving and resting
TARGET_COST = 1e-4  # pulls the target to the top of its band where nothing else decides: no idle headroom
SPREAD_COST = 2e-4  # quadratic, on curtailment: shares a cut among equals
RISE_COST = 1e-6  # keeps the unused cover variable finite
DISCOUNT_PER_S = 5e-4  # curtailment later is a little cheaper than now: it may turn out not to be needed
SOLVER = "PIQP"
# Steps (14 s) with finely spaced chords; what lies beyond is planned again many times before it comes.
NEAR_STEPS = 10


@frozen
class ModelShape:
    """What fixes the program's matrices: change any of it and the map is built anew."""

    classes: int
    eta: float
    fall_slopes_s: tuple[float, ...]  # `reserve.chord_slopes_s`, imposed up to NEAR_STEPS
    late_slopes_s: tuple[float, ...]  # the same at twice the spacing, imposed after it
    rise_slopes_s: tuple[float, ...]  # empty: the rise is not enforced, and the battery covers what it can give
    has_ballast: bool  # a load bank may be switched on
    energy_s: float  # unit of energy over unit of power: about a tenth of the battery, so that both are near 10
    ready_cost: float  # per squared unit of power and second: a target too low for a job's return
    steps: int = STEPS

    def __post_init__(self) -> None:
        assert 1 <= self.classes <= 16 and 0.0 < self.eta <= 1.0 and NEAR_STEPS < self.steps <= STEPS


@frozen
class AffineMap:
    """Solver data as functions of theta: [c, b, h_u, x_l, x_u] = constant + matrix @ theta; P, A, G stay.

    `theta_slices` says where each parameter lies in theta, `x_index` where each variable lies in x.
    """

    shape: ModelShape
    p: sparse.csc_matrix
    a: sparse.csc_matrix
    g: sparse.csc_matrix
    constant: FloatArray
    matrix: sparse.csr_matrix
    sizes: tuple[int, int, int, int, int]
    theta_slices: dict[str, slice]
    x_index: dict[str, IntArray]

    @property
    def theta_size(self) -> int:
        return int(self.matrix.shape[1])

    def split(self, stacked: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """c, b, h_u, x_l, x_u as views of one stacked vector."""
        count_c, count_b, count_h, count_x, _ = self.sizes
        b_at, h_at = count_c, count_c + count_b
        lower_at = h_at + count_h
        upper_at = lower_at + count_x
        c, b, h = stacked[:b_at], stacked[b_at:h_at], stacked[h_at:lower_at]
        return c, b, h, stacked[lower_at:upper_at], stacked[upper_at:]

    def apply(self, theta: FloatArray) -> FloatArray:
        """The stacked data for `theta`."""
        stacked: FloatArray = self.constant + self.matrix @ theta
        return stacked


def build_problem(shape: ModelShape) -> Any:
    """The CVXPY problem; its parameters and variables carry the names of `AffineMap`."""
    cp: Any = import_module("cvxpy")  # 115 MB and 0.65 s: paid only where a map is built

    count, steps, eta = shape.classes, shape.steps, shape.eta
    dt = STEP_S[:steps]

    def given(name: str, *size: int) -> Any:
        return cp.Parameter(size, name=name)

    def unsigned(name: str, *size: int) -> Any:
        return cp.Variable(size, name=name, nonneg=True)

    load, peak, trough = given("load", steps), given("peak", steps), given("trough", steps)
    fall, rise, energy_now = given("fall", steps), given("rise", steps), given("energy_now")
    left, surplus_max = given("left", steps), given("surplus_max")
    tier_left, weight = given("tier_left", count), given("weight", count)
    final_value, wear = given("final_value"), given("wear")

    cut, charge, discharge = unsigned("cut", count, steps), unsigned("charge", steps), unsigned("discharge", steps)
    energy, target = cp.Variable(steps, name="energy"), cp.Variable(steps, name="target")
    spill, deficit = unsigned("spill", steps), unsigned("deficit", steps)
    overrun, over_tier = unsigned("overrun", steps), unsigned("over_tier", count)
    missing = unsigned("missing", steps)
    # Variables that nothing could move are left out: every column costs time in each of the solver's iterations.
    cover = unsigned("cover", steps) if shape.rise_slopes_s else 0.0
    ballast = unsigned("ballast", steps) if shape.has_ballast else 0.0

    # The worth of stored energy counts at the instant the present state ends, which may be any; so does readiness.
    survives = np.exp(-np.concatenate([[0.0], np.cumsum(dt)]) / RETURN_S)
    ends = survives[:-1] - survives[1:]
    ends[-1] += survives[-1]

    total_cut = cp.sum(cut, axis=0)
    flow = (eta * charge - discharge / eta) / shape.energy_s
    rows = [
        cut <= given("cut_max", count, steps),
        charge <= given("charge_max", steps),
        discharge <= given("discharge_max", steps),
        energy >= given("energy_low", steps),
        energy <= given("energy_high", steps),
        target >= given("low", steps),
        target <= given("high", steps),
        target - charge + discharge + total_cut + deficit - spill - ballast == load,
        energy[0] - dt[0] * flow[0] == energy_now,
        energy[1:] - energy[:-1] - cp.multiply(dt[1:], flow[1:]) == 0,
        target[1:] - target[:-1] <= rise[1:],
        target[:-1] - target[1:] <= fall[1:],
        total_cut / PEAK_SHARE + target + cover + deficit >= peak,
        target - spill <= trough,
        target + cp.multiply(1.0 / np.sqrt(dt * survives[:-1]), missing) >= given("ready", steps),
        target - overrun <= left + surplus_max,
        cut @ (dt / dt.sum()) - over_tier <= tier_left,
    ]
    near, late = slice(0, NEAR_STEPS), slice(NEAR_STEPS, steps)
    for name, slopes, where in (("chord", shape.fall_slopes_s, near), ("late_chord", shape.late_slopes_s, late)):
        offset = given(name, len(slopes))
        for i, slope in enumerate(slopes):
            if slope == 0.0:  # no taper: the first chord is energy_high again
                continue
            steep = slope / shape.energy_s
            rows.append(energy[where] + steep * (target[where] - overrun[where]) <= offset[i] + steep * left[where])
    if shape.has_ballast:
        rows.append(ballast <= given("ballast_max", steps))
    if shape.rise_slopes_s:
        rows.append(cover <= given("cover_max", steps))
        rise_chord = given("rise_chord", len(shape.rise_slopes_s))
        rows.extend(
            slope / shape.energy_s * cover - energy <= rise_chord[i] for i, slope in enumerate(shape.rise_slopes_s)
        )

    later = dt * np.exp(-DISCOUNT_PER_S * (np.cumsum(dt) - dt))
    cost = weight @ (cut @ later)
    cost += SPREAD_COST * float(dt.mean()) * cp.sum_squares(cut)
    cost += wear * (dt @ (charge + discharge)) - final_value * shape.energy_s * (ends @ energy)
    cost += (
        SPILL_COST * (dt @ (spill + deficit))
        + RESERVE_COST_PER_S * (dt @ overrun)
        + TIER_COST * float(dt.sum()) * cp.sum(over_tier)
    )
    cost += shape.ready_cost * cp.sum_squares(missing)
    cost -= TARGET_COST * (dt @ target)
    if shape.has_ballast:
        cost += BALLAST_COST * (dt @ ballast)
    if shape.rise_slopes_s:
        cost += RISE_COST * (dt @ cover)
    return cp.Problem(cp.Minimize(cost), rows)


def build_map(shape: ModelShape) -> AffineMap:
    """Find the map by evaluating the public `get_problem_data` at zero and at every unit vector of theta."""
    problem = build_problem(shape)
    parameters = sorted(problem.parameters(), key=lambda parameter: parameter.name())
    slices: dict[str, slice] = {}
    start = 0
    for parameter in parameters:
        slices[parameter.name()] = slice(start, start + max(1, parameter.size))
        start += max(1, parameter.size)

    theta = np.zeros(start)
    matrices, constant, sizes = _data_at(problem, parameters, slices, theta)
    columns = []
    for index in range(start):
        theta[index] = 1.0
        there, stacked, _ = _data_at(problem, parameters, slices, theta)
        theta[index] = 0.0
        for here, moved in zip(matrices, there, strict=True):
            assert (here != moved).nnz == 0, "a matrix of the program depends on a parameter"
        with np.errstate(invalid="ignore"):
            columns.append(sparse.csc_matrix(np.nan_to_num(stacked - constant).reshape(-1, 1)))
    found = AffineMap(
        shape=shape,
        p=matrices[0],
        a=matrices[1],
        g=matrices[2],
        constant=constant,
        matrix=sparse.csr_matrix(sparse.hstack(columns)),
        sizes=sizes,
        theta_slices=slices,
        x_index=_variable_index(problem, sizes),
    )
    return _rows_to_bounds(found)


def _rows_to_bounds(found: AffineMap) -> AffineMap:
    """Move every inequality on a single variable into x_l or x_u: a third fewer rows for the solver."""
    g = sparse.csr_matrix(found.g)
    single = np.flatnonzero(np.diff(g.indptr) == 1)
    columns, values = g.indices[g.indptr[single]], g.data[g.indptr[single]]
    count_c, count_b, count_h, count_x, _ = found.sizes
    starts = np.cumsum([0, *found.sizes])
    source = starts[2] + single
    place = np.where(values > 0.0, starts[4], starts[3]) + columns
    assert len(np.unique(place)) == len(place), "two rows bound one side of one variable"
    stays = np.ones(len(found.constant), dtype=bool)
    stays[source] = False
    matrix = sparse.lil_matrix(found.matrix)
    constant = found.constant.copy()
    for row, column, value in zip(source, place, values, strict=True):
        assert not np.isfinite(constant[column]) and matrix[column].nnz == 0, "a variable is bounded twice"
        constant[column] = constant[row] / value
        matrix[column] = matrix[row] / value
    kept = np.setdiff1d(np.arange(count_h), single)
    return AffineMap(
        shape=found.shape,
        p=found.p,
        a=found.a,
        g=sparse.csc_matrix(g[kept]),
        constant=constant[stays],
        matrix=sparse.csr_matrix(matrix)[stays],
        sizes=(count_c, count_b, len(kept), count_x, count_x),
        theta_slices=found.theta_slices,
        x_index=found.x_index,
    )


Matrices = tuple[sparse.csc_matrix, sparse.csc_matrix, sparse.csc_matrix]


def _data_at(
    problem: Any, parameters: list[Any], slices: dict[str, slice], theta: FloatArray
) -> tuple[Matrices, FloatArray, tuple[int, int, int, int, int]]:
    """Matrices and stacked vectors of the problem at `theta`."""
    for parameter in parameters:
        value = theta[slices[parameter.name()]]
        parameter.value = value.reshape(parameter.shape) if parameter.shape else float(value[0])
    data, _, _ = problem.get_problem_data(SOLVER)
    count = data["P"].shape[0]
    lower, upper = data.get("lower_bounds"), data.get("upper_bounds")
    lower = np.full(count, -np.inf) if lower is None else np.asarray(lower, dtype=np.float64)
    upper = np.full(count, np.inf) if upper is None else np.asarray(upper, dtype=np.float64)
    parts = (data["q"], data["b"], data["G"], lower, upper)
    matrices = tuple(sparse.csc_matrix(data[key]) for key in ("P", "A", "F"))
    sizes = tuple(len(part) for part in parts)
    return matrices, np.concatenate(parts), sizes  # type: ignore[return-value]  # fixed lengths by construction


def _variable_index(problem: Any, sizes: tuple[int, int, int, int, int]) -> dict[str, IntArray]:
    """Where each variable lies in x: hand the problem the solution x = 0, 1, 2, ... and read its variables."""
    _, chain, inverse = problem.get_problem_data(SOLVER)
    count, equalities, inequalities, _, _ = sizes
    info = SimpleNamespace(run_time=0.0, primal_obj=0.0, iter=0, status=SimpleNamespace(name="PIQP_SOLVED"))
    counted = SimpleNamespace(
        x=np.arange(count, dtype=np.float64), y=np.zeros(equalities), z_u=np.zeros(inequalities), info=info
    )
    problem.unpack_results(counted, chain, inverse)
    index = {v.name(): np.asarray(np.rint(v.value), dtype=np.int64).copy() for v in problem.variables()}
    found = np.sort(np.concatenate([places.ravel() for places in index.values()]))
    assert np.array_equal(found, np.arange(count)), "variables of the problem and of the solver differ"
    return index
