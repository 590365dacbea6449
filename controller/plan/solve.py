"""The fast path: numbers into the affine map, vectors into PIQP, a checked and projected plan out.

No CVXPY here. A solution counts only when the solver says solved, every value is finite and our own residuals are
small; otherwise the ladder answers: the last plan moved on in time (three times at most), then `rule`, then hold. Every
rung is counted. The planner never raises for what `PlanInput` allows, and never reads a clock.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import piqp
from scipy import sparse

from controller.plan.caps import cap_need, cap_spare, caps_of_cut
from controller.plan.model import NEAR_STEPS, WEAR_COST, AffineMap
from controller.plan.path import hold, onto_slopes, reachable, shifted
from controller.plan.plan import OFFSET_S, STEP_S, Plan, PlanInput, PlanStatus, Price, PriceKind
from controller.plan.rule import RulePlanner, Sharing, class_peaks_w
from controller.plan.shape import CHORDS, RISE_CHORDS, PlannerShape
from controller.reserve import CrashReserve
from controller.types import BoolArray, FloatArray, frozen, replace

FAR = 1e3  # stands for infinity in scaled units: a site and its battery are about 10
BOX_MIN = 1e-4  # scaled: an interior point needs room between bounds; a cut this small is no cap
SHIFTS_MAX = 3
RESIDUAL_MAX = 1e-4  # scaled units: 0.001 % of a site
# What a stored joule is worth when the present state ends, in work of the cheapest class: nearly all of it where the
# load of the last minutes, good and bad, outgrows the largest target; next to nothing where the battery refills itself.
VALUE_SHORT = 0.8
VALUE_AMPLE = 0.01
VALUE_BAND = 0.05  # of the largest target, on either side of it: the estimate is no better
TYPICAL_S = 600.0  # memory of load and largest target: several checkpoints long
TYPICAL_FRAC = 0.6  # of the classes' peak: what is assumed before anything was seen
SLACK_TINY = 1e-5
# Parameters at 1, all others at 0: a program with room everywhere, to warm the solver up on.
HARMLESS = frozenset(
    {
        "charge_max",
        "discharge_max",
        "cover_max",
        "cut_max",
        "energy_high",
        "energy_now",
        "high",
        "weight",
        "fall",
        "rise",
    }
    | {"chord", "late_chord", "surplus_max", "tier_left", "left", "trough"}
)
LEAN_FRAC = 1e-3  # of a unit of power: nearer to a chord than this is on it


class MpcPlanner:
    """Plans with the quadratic program; `counts` says how each plan came about."""

    def __init__(self, shape: PlannerShape, affine: AffineMap, *, price_every: int = 60) -> None:
        """`price_every` plans the marginal prices are found anew, which costs a second solve; 0: never."""
        assert affine.shape == shape.model, "the map was built for another site"
        self.shape = shape
        self.counts: Counter[PlanStatus] = Counter()
        self.last_reason = ""  # why the last plan was not solved; empty when it was
        self._affine = affine
        # Equalities, inequalities and the variables themselves: all that has bounds, in one product.
        itself = sparse.identity(affine.sizes[3], format="csr")
        self._rows = sparse.csr_matrix(sparse.vstack([affine.a, affine.g, itself]))
        self._free_below = np.full(affine.sizes[2], -np.inf)
        self._back = sparse.csr_matrix(affine.matrix.T)
        self._near = _Chords.of(shape.model.fall_slopes_s)
        self._late = _Chords.of(shape.model.late_slopes_s)
        self._theta = np.zeros(affine.theta_size)
        self._stacked: FloatArray = affine.constant
        self._chords_of: CrashReserve | None = None  # the reserve whose chords lie in theta
        self._surplus_max_w, self._chords_top_j = 0.0, math.inf
        self._reach = (np.empty(0),) * 4  # bounds and allowances of the input at hand
        self._price_every = price_every
        self._cycle = 0
        self._prices: tuple[Price, ...] = ()
        self._last: Plan | None = None
        self._shifts = 0
        self._typical: tuple[float, float, float] | None = None  # time, load and largest target, slowly averaged
        self._fallback = RulePlanner(name="mpc", sharing=Sharing.ORDERED)
        self._solver = self._warm_solver()

    def plan(self, given: PlanInput) -> Plan:
        """The next plan, from the highest rung of the ladder that holds."""
        stacked = self._stack(given)
        x, solve_ms = self._solve(stacked) if stacked is not None else (None, 0.0)
        if x is not None:
            assert stacked is not None
            if self._price_every and self._cycle % self._price_every == 0:
                self._prices = self._find_prices(given, stacked)
            self._cycle += 1
            plan = self._read(given, x, stacked, solve_ms)
            self._last, self._shifts, self.last_reason = plan, 0, ""
        else:
            plan = self._fall_back(given)
        self.counts[plan.status] += 1
        return plan

    def solve_again(self) -> None:
        """Update and solve on the last data once more, unchecked: the bare cost of a plan, for the bench."""
        c, b, h, lower, upper = self._affine.split(self._stacked)
        self._solver.update(c=c, b=b, h_u=h, x_l=lower, x_u=upper)
        self._solver.solve()

    def parameters_of(self, given: PlanInput) -> dict[str, FloatArray]:
        """The program's parameters for `given`, by name: what the same model would be handed through CVXPY."""
        assert self._stack(given) is not None, self.last_reason
        return {name: self._theta[place].copy() for name, place in self._affine.theta_slices.items()}

    # ------------------------------------------------------------------------------------------------ numbers in

    def _warm_solver(self) -> piqp.SparseSolver:
        """Set up the solver on harmless data and solve once: the first solve costs 30 times a later one."""
        affine = self._affine
        theta = self._theta
        for name in HARMLESS & affine.theta_slices.keys():
            theta[affine.theta_slices[name]] = 1.0
        c, b, h, lower, upper = affine.split(affine.apply(theta))
        solver = piqp.SparseSolver()
        solver.settings.verbose = False
        solver.settings.compute_timings = True
        solver.settings.max_iter = 80
        # A residual of 1e-6 is a ten-millionth of the site; the default of 1e-8 costs a third more iterations.
        solver.settings.eps_abs = 1e-6
        solver.settings.eps_rel = 1e-7
        solver.settings.eps_duality_gap_abs = 1e-5
        solver.settings.eps_duality_gap_rel = 1e-6
        solver.setup(P=affine.p, c=c, A=affine.a, b=b, G=affine.g, h_u=h, x_l=lower, x_u=upper)
        solver.solve()
        return solver

    def _stack(self, given: PlanInput) -> FloatArray | None:
        """Scaled solver data for this input; None where it does not fit the program or is not finite."""
        model, scale = self.shape.model, self.shape.scale_w
        if given.demand_w.shape != (model.classes, model.steps) or len(given.classes) != model.classes:
            self.last_reason = "shape"
            return None
        battery, put = given.reserve.battery, self._put
        scale_j, span_s = scale * model.energy_s, float(OFFSET_S[model.steps - 1])
        load = given.load_w() / scale
        if given.reserve != self._chords_of and not self._put_chords(given.reserve, scale_j):
            self.last_reason = "battery"
            return None
        if given.energy_j > self._chords_top_j:  # derated while fuller than the shape that stands in for it
            self.last_reason = "battery"
            return None
        low, high, fall, rise = self._reach = reachable(given)
        charge_w = battery.charge_limit_w(given.energy_j)
        discharge_w = battery.discharge_limit_w(given.energy_j)
        decay_w = given.reserve.fall_w_per_s * OFFSET_S[: model.steps]
        spent_w = np.maximum(0.0, given.spent_w - decay_w) if given.spent_w > 0.0 else 0.0
        floor_w = np.array([job_class.cap_w_min for job_class in given.classes])
        weights = np.array([job_class.weight for job_class in given.classes])
        cheapest = float(weights.min())
        put("load", load)
        put("trough", load + (charge_w - given.ripple_down_w) / scale)
        put("ready", (given.load_return_w - discharge_w) / scale)
        put("low", low / scale)
        put("high", high / scale)
        put("fall", fall / scale)
        put("rise", rise / scale)
        put("cut_max", np.maximum(BOX_MIN, (given.demand_w - floor_w[:, None]) / scale).ravel())
        put("charge_max", charge_w / scale)
        put("discharge_max", discharge_w / scale)
        put("energy_now", given.energy_j / scale_j)
        put("energy_low", min(battery.energy_j_min, given.energy_j) / scale_j)
        put("energy_high", max(battery.energy_j_max, given.energy_j) / scale_j)
        put("surplus_max", (self._surplus_max_w - given.contingency_ripple_w) / scale)
        put("left", (given.load_left_w - spent_w) / scale)
        put("tier_left", np.array([job_class.loss_left_j for job_class in given.classes]) / (scale * span_s))
        put("weight", weights / cheapest)
        put("final_value", self._stored_worth(given) * battery.eta)
        put("wear", WEAR_COST)
        if model.has_ballast:
            put("ballast_max", given.ballast_w_max / scale)
        if model.rise_slopes_s:
            rise_chords = given.reserve.rise_chords(count=RISE_CHORDS, spacing_s=self.shape.rise_spacing_s)
            put("rise_chord", np.array(rise_chords.offset_j) / scale_j)
            put("cover_max", min(discharge_w, rise_chords.x_w_max) / scale)
            put("peak", load + given.ripple_up_w / scale)
        else:
            put("peak", load + (given.ripple_up_w - discharge_w) / scale)
        np.minimum(np.maximum(self._theta, -FAR, out=self._theta), FAR, out=self._theta)
        if math.isnan(self._theta.sum()):  # all others are finite now
            self._chords_of = None  # whatever was no number may have been the chords
            self.last_reason = "input not finite"
            return None
        stacked = self._stacked = self._affine.apply(self._theta)
        return stacked

    def _put_chords(self, reserve: CrashReserve, scale_j: float) -> bool:
        """Chords of `reserve` into theta; False where the program was built for another battery."""
        built_s, held = self.shape.model.fall_slopes_s[0], reserve
        if reserve.taper_s > built_s * (1.0 + 1e-6):
            held = reserve.tapered_as(built_s)
        near = held.chords(count=CHORDS, spacing_s=self.shape.spacing_s)
        late = held.chords(count=CHORDS // 2, spacing_s=2.0 * self.shape.spacing_s)
        if not _are_alike(near.slope_s, self.shape.model.fall_slopes_s):
            return False
        self._put("chord", np.array(near.offset_j) / scale_j)
        self._put("late_chord", np.array(late.offset_j) / scale_j)
        self._chords_of, self._surplus_max_w = reserve, near.x_w_max
        self._chords_top_j = math.inf if held is reserve else held.battery.energy_j_max
        return True

    def _stored_worth(self, given: PlanInput) -> float:
        """Worth of a stored joule, between VALUE_AMPLE and VALUE_SHORT: typical load against the largest target."""
        load_w = float(given.load_w()[0])
        top_w = float(given.load_left_w.max()) + given.reserve.battery.charge_w_max
        if self._typical is None:
            peak_w = sum(job_class.peak_w for job_class in given.classes)
            typical_w = max(load_w, float(given.other_w[0]) + TYPICAL_FRAC * peak_w)
        else:
            then_s, typical_w, then_top_w = self._typical
            keep = math.exp(-max(0.0, given.t_s - then_s) / TYPICAL_S)
            typical_w = keep * typical_w + (1.0 - keep) * load_w
            top_w = max(top_w, keep * then_top_w + (1.0 - keep) * top_w)
        if math.isfinite(typical_w) and math.isfinite(top_w):
            self._typical = (given.t_s, typical_w, top_w)
        shortness = (typical_w / max(top_w, 1.0) - 1.0 + VALUE_BAND) / (2.0 * VALUE_BAND)
        return VALUE_AMPLE + (VALUE_SHORT - VALUE_AMPLE) * min(1.0, max(0.0, shortness))

    def _put(self, name: str, value: FloatArray | float) -> None:
        self._theta[self._affine.theta_slices[name]] = value

    # ------------------------------------------------------------------------------------------------ one solve

    def _solve(self, stacked: FloatArray) -> tuple[FloatArray | None, float]:
        """The solution and the solver's own time in ms; None where it cannot be trusted."""
        c, b, h, lower, upper = self._affine.split(stacked)
        solver = self._solver
        solver.update(c=c, b=b, h_u=h, x_l=lower, x_u=upper)
        status = solver.solve()
        solve_ms = float(solver.result.info.run_time) * 1e3
        if status != piqp.PIQP_SOLVED:
            self.last_reason = f"solver: {status.name}"
            return None, solve_ms
        x: FloatArray = np.array(solver.result.x, dtype=np.float64)
        sides = self._rows @ x
        below = float((np.concatenate((b, self._free_below, lower)) - sides).max())
        above = float((sides - np.concatenate((b, h, upper))).max())
        if not (below <= RESIDUAL_MAX and above <= RESIDUAL_MAX):  # nor does what is no number pass
            self.last_reason = f"residual {max(below, above):.1e}"
            return None, solve_ms
        return x, solve_ms

    def _read(self, given: PlanInput, x: FloatArray, stacked: FloatArray, solve_ms: float) -> Plan:
        """The plan in watts, projected onto its bounds."""
        _, _, _, lower, upper = self._affine.split(stacked)
        x = np.minimum(np.maximum(x, lower), upper)
        scale, index = self.shape.scale_w, self._affine.x_index
        scale_j = scale * self.shape.model.energy_s
        low, high, fall, rise = self._reach
        energy_path_j = x[index["energy"]] * scale_j
        wish_w = self._off_chords(given, x[index["target"]] * scale, energy_path_j)
        target_w = onto_slopes(wish_w, low, high, fall, rise)
        cut_w = x[index["cut"]] * scale
        peak_w = class_peaks_w(given)
        cap_path = caps_of_cut(given, cut_w, peak_w)
        chosen = cap_path[:, 0].copy()
        cap_need(given, cap_path, peak_w, cut_w=cut_w, target_w=target_w, energy_path_j=energy_path_j)
        if given.is_rise_enforced:
            # The program counts with the energy at a step's end; a cap holds from its start.
            start_j = [given.energy_j, *energy_path_j[:-1].tolist()]
            cover_w = np.array([given.cover_w(energy_j) for energy_j in start_j])
            if "cover" in index:
                cover_w = np.minimum(cover_w, x[index["cover"]] * scale)
            cap_spare(given, cap_path, peak_w, gpu_w_max=target_w + cover_w - given.other_w)
        return Plan(
            t_s=given.t_s,
            offset_s=OFFSET_S[: given.steps],
            target_w=target_w,
            cap_w=cap_path[:, 0].copy(),
            cap_path_w=cap_path,
            chosen_cap_w=chosen,
            battery_w=(x[index["discharge"]] - x[index["charge"]]) * scale,
            energy_path_j=energy_path_j,
            prices=self._prices,
            policy="mpc",
            status=PlanStatus.SOLVED,
            solve_ms=solve_ms,
            ballast_w=float(x[index["ballast"]][0]) * scale if "ballast" in index else 0.0,
        )

    def _off_chords(self, given: PlanInput, target_w: FloatArray, energy_path_j: FloatArray) -> FloatArray:
        """Where the target leans on a chord it may go up to the set's own boundary: what the chord gave away."""
        surplus_w = np.empty_like(target_w)
        surplus_w[:NEAR_STEPS] = self._near.surplus_w(self._chord_j("chord"), energy_path_j[:NEAR_STEPS])
        surplus_w[NEAR_STEPS:] = self._late.surplus_w(self._chord_j("late_chord"), energy_path_j[NEAR_STEPS:])
        leans = target_w - given.load_left_w > surplus_w - LEAN_FRAC * self.shape.scale_w
        if not bool(leans.any()):
            return target_w
        raised = target_w.copy()
        for step in np.flatnonzero(leans).tolist():
            exact_w = given.reserve.surplus_safe_w(float(energy_path_j[step]), spent_w=given.spent_w)
            safe_w = float(given.load_left_w[step]) + exact_w - given.contingency_ripple_w
            raised[step] = max(float(target_w[step]), safe_w)
        return raised

    def _chord_j(self, name: str) -> FloatArray:
        offset_j: FloatArray = self._theta[self._affine.theta_slices[name]] * (
            self.shape.scale_w * self.shape.model.energy_s
        )
        return offset_j

    # ------------------------------------------------------------------------------------------------ the ladder

    def _fall_back(self, given: PlanInput) -> Plan:
        if self._last is not None and self._shifts < SHIFTS_MAX:
            self._shifts += 1
            return shifted(self._last, given)
        plan = self._fallback.plan(given)
        if bool(np.isfinite(plan.target_w).all()) and not bool(np.isnan(plan.cap_w).any()):
            return replace(plan, status=PlanStatus.RULE, prices=())
        return hold(given, self._last)

    # ------------------------------------------------------------------------------------------------ prices

    def _find_prices(self, given: PlanInput, stacked: FloatArray) -> tuple[Price, ...]:
        """Marginal prices from a second solve that counts work alone; empty when it fails.

        The gradient of the optimal cost by theta is the map's transpose times (x, -y, -z_u, z_bl, -z_bu).
        """
        kept = self._theta.copy()
        self._put("wear", 0.0)
        self._put("final_value", 0.0)
        self._put("ready", -FAR)  # readiness is no work lost
        work_alone = self._affine.apply(self._theta)
        self._theta = kept
        reason = self.last_reason
        x, _ = self._solve(work_alone)
        if x is None:
            self.last_reason = reason
            return ()
        result = self._solver.result
        duals = np.concatenate([x, -result.y, -result.z_u, result.z_bl, -result.z_bu])
        gradient = self._back @ np.nan_to_num(duals)
        index = self._affine.x_index
        slack = max(float(x[index[name]].max()) for name in ("spill", "deficit", "overrun", "over_tier"))
        return _prices(given, gradient, self._affine.theta_slices, is_bound=slack > SLACK_TINY)


@frozen
class _Chords:
    """Chords that have a slope: which of the given ones, and the slopes as a column."""

    steep: BoolArray
    slope_s: FloatArray

    @classmethod
    def of(cls, slopes_s: tuple[float, ...]) -> _Chords:
        slopes = np.array(slopes_s)
        return cls(slopes > 0.0, slopes[slopes > 0.0][:, None])

    def surplus_w(self, offset_j: FloatArray, energy_j: FloatArray) -> FloatArray:
        """The surplus that these chords leave at each energy."""
        surplus_w: FloatArray = ((offset_j[self.steep, None] - energy_j) / self.slope_s).min(axis=0)
        return surplus_w


def _are_alike(found_s: tuple[float, ...], built_s: tuple[float, ...]) -> bool:
    return found_s == built_s or bool(np.allclose(found_s, built_s, rtol=1e-6))


def _prices(given: PlanInput, gradient: FloatArray, slices: dict[str, slice], *, is_bound: bool) -> tuple[Price, ...]:
    """Saved curtailment per watt of relaxation; ramps per watt per minute of slope."""
    minute_share = STEP_S[: given.steps] / 60.0
    at_ceiling = given.high_w >= given.ceiling_w - 1.0
    is_charge_bound = given.target_w_max() < given.high_w  # no row of the contract is what costs there
    high = np.where(is_charge_bound, 0.0, -gradient[slices["high"]])
    found = {
        PriceKind.RAMP_DOWN: float(-gradient[slices["fall"]] @ minute_share)
        + float(gradient[slices["low"]][0] * minute_share[0]),
        PriceKind.RAMP_UP: float(-gradient[slices["rise"]] @ minute_share)
        + (0.0 if bool(at_ceiling[0]) else float(high[0] * minute_share[0])),
        PriceKind.CEILING: float(high[at_ceiling].sum()),
        PriceKind.RESERVE: float(-gradient[slices["left"]].sum()),
    }
    return tuple(Price(kind, max(0.0, value), is_bound) for kind, value in found.items())
