"""The quadratic program: its map against CVXPY and Clarabel, its plans against the contract, the fallback ladder."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.plan import solve
from controller.plan.model import build_problem
from controller.plan.plan import STEP_S, STEPS, Plan, PlanInput, PlanStatus, PriceKind
from controller.plan.shape import planner_shape
from controller.plan.solve import MpcPlanner
from controller.planner_start import map_from_child, map_in_place
from tests import plan_kit
from tests.plan_kit import MEGA, SLOPE, battery, ceiling, mpc


def clarabel_cost(planner: MpcPlanner, site: PlanInput) -> tuple[float, float]:
    """Optimal cost of the CVXPY problem by Clarabel, and of our x under the same objective."""
    cp = import_module("cvxpy")
    problem = build_problem(planner.shape.model)
    values = planner.parameters_of(site)
    for parameter in problem.parameters():
        value = values[parameter.name()]
        parameter.value = value.reshape(parameter.shape) if parameter.shape else float(value[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = float(problem.solve(solver=cp.CLARABEL))
    affine = map_in_place(planner.shape.model)
    planner.plan(site)
    x = np.asarray(planner._solver.result.x)
    for variable in problem.variables():
        variable.value = x[affine.x_index[variable.name()]]
    return theirs, float(problem.objective.value)


def check_plan(plan: Plan, site: PlanInput) -> None:
    """What every plan must keep, whoever made it."""
    tolerance_w = 1.0
    assert bool((plan.target_w >= np.minimum(site.low_w, site.high_w) - tolerance_w).all())
    assert bool((plan.target_w <= np.maximum(site.low_w, site.high_w) + tolerance_w).all())
    moves = np.diff(plan.target_w)
    allowed = SLOPE * STEP_S[1:] + tolerance_w
    assert bool((moves <= allowed).all()) and bool((-moves <= allowed).all())
    assert bool((plan.cap_w >= 0.0).all()) and not bool(np.isnan(plan.cap_w).any())


@pytest.mark.parametrize("rise", [False, True])
@pytest.mark.parametrize("energy", [5.0, 250.0, 460.0])
def test_piqp_and_clarabel_agree(rise: bool, energy: float) -> None:
    """Same model, other solver, other method of getting there: the same optimal cost."""
    planner = mpc(rise=rise, price_every=0)
    theirs, ours = clarabel_cost(planner, plan_kit.given(energy=energy, rise=rise, weight=(2.0, 1.0)))
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_the_load_bank_is_a_variable_where_there_is_one() -> None:
    """With a bank that may be switched on, PIQP and Clarabel agree too; it is wanted where surplus has no place."""
    planner = mpc(price_every=0, ballast=True)
    site = replace(plan_kit.given(energy=499.0, target=9.0, demand=(0.5, 0.3)), ballast_w_max=2.0 * MEGA)
    theirs, ours = clarabel_cost(planner, site)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert planner.plan(site).ballast_w > 0.5 * MEGA
    assert mpc(price_every=0).plan(site).ballast_w == 0.0


def test_the_first_plan_is_not_the_first_solve() -> None:
    """The solver has solved before it is handed out: a first solve costs 30 times a later one."""
    planner = mpc(price_every=0)
    assert planner._solver.result.info.status == solve.piqp.PIQP_SOLVED
    assert planner._solver.result.info.iter > 0


def test_the_map_is_the_problem() -> None:
    """At random parameters the affine map gives what `get_problem_data` gives, bounds included."""
    planner = mpc()
    affine = map_in_place(planner.shape.model)
    problem = build_problem(planner.shape.model)
    rng = np.random.default_rng(4)
    theta = rng.uniform(0.1, 2.0, affine.theta_size)
    for parameter in problem.parameters():
        value = theta[affine.theta_slices[parameter.name()]]
        parameter.value = value.reshape(parameter.shape) if parameter.shape else float(value[0])
    data, _, _ = problem.get_problem_data("PIQP")
    c, b, h, lower, upper = affine.split(affine.apply(theta))
    assert np.allclose(c, data["q"], atol=1e-12) and np.allclose(b, data["b"], atol=1e-12)
    assert abs(affine.p - data["P"]).max() == 0.0 and abs(affine.a - data["A"]).max() == 0.0
    g = data["F"].tocsr()
    x = rng.normal(size=len(c))
    theirs = max(float((g @ x - data["G"]).max()), float((data["lower_bounds"] - x).max()))
    ours = max(float((affine.g @ x - h).max()), float((lower - x).max()), float((x - upper).max()))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_child_builds_the_same_map() -> None:
    """The daemon's way of building the map, in a process of its own, gives the same numbers."""
    shape = mpc().shape.model
    here, there = map_in_place(shape), map_from_child(shape)
    assert np.array_equal(here.constant, there.constant)
    assert (here.matrix != there.matrix).nnz == 0
    assert here.theta_slices == there.theta_slices


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    energy=st.floats(0.0, 500.0),
    target=st.floats(3.5, 12.0),
    a=st.floats(0.0, 8.0),
    b=st.floats(0.0, 5.0),
    rise=st.booleans(),
)
def test_plans_keep_the_contract_and_the_crash_safe_set(
    energy: float, target: float, a: float, b: float, rise: bool
) -> None:
    """From any state: solved, inside interval and slopes; crash-safe as soon as slopes let it be."""
    planner = _PLANNERS[rise]
    site = plan_kit.given(energy=energy, target=target, demand=(a, b), rise=rise)
    plan = planner.plan(site)
    assert plan.status is PlanStatus.SOLVED, planner.last_reason
    check_plan(plan, site)
    surplus_w = plan.target_w - site.load_left_w - 1e3  # the solver rounds to watts
    safe_j = np.array([site.reserve.energy_safe_j(x) for x in surplus_w])
    is_safe = plan.energy_path_j <= safe_j + 0.1 * MEGA
    falls = np.append(np.diff(plan.target_w) < -0.99 * SLOPE * STEP_S[1:], False)
    starts_safe = target * MEGA <= site.g_safe_w(energy * MEGA)
    # Unsafe only while on its way down as fast as it may.
    first_safe = int(np.argmax(is_safe)) if bool(is_safe.any()) else STEPS
    if starts_safe and a + b > 0.0:
        assert bool(is_safe[2:].all())
    else:
        assert bool(falls[1 : max(1, first_safe - 1)].all())  # the last step lands where it is safe


_PLANNERS = {rise: mpc(rise=rise, price_every=0) for rise in (False, True)}


def test_the_cheap_class_gives_first_and_only_what_its_tier_lets() -> None:
    """Energy is out: class 1 (weight 1) is capped, class 0 (weight 4) is not, until the tier of class 1 is spent."""
    planner = mpc()
    free = planner.plan(plan_kit.given(energy=0.0, target=8.5, weight=(4.0, 1.0)))
    assert free.cap_path_w[1, 5] < free.cap_path_w[0, 5]
    tight = planner.plan(plan_kit.given(energy=0.0, target=8.5, weight=(4.0, 1.0), loss_left=(1e4, 10.0)))
    tight_cut = np.maximum(0.0, 2.3 * MEGA - tight.cap_path_w[1]) @ STEP_S
    free_cut = np.maximum(0.0, 2.3 * MEGA - free.cap_path_w[1]) @ STEP_S
    assert tight_cut < 0.6 * free_cut


def test_a_ceiling_ahead_is_prepared() -> None:
    """The target meets the ceiling when it is due, along the slope, and not before it must."""
    planner = mpc()
    site = ceiling(plan_kit.given(target=8.0, energy=300.0), to=6.5, step=18)
    plan = planner.plan(site)
    check_plan(plan, site)
    assert plan.target_w[18] <= 6.5 * MEGA + 1.0
    assert plan.target_w[0] > 7.8 * MEGA


def test_charging_stops_at_the_registered_peak_and_has_no_price_there() -> None:
    """What is stored has a worth, and no row of the contract is what keeps it out."""
    planner = mpc()
    low = plan_kit.given(energy=40.0, demand=(2.0, 1.0), target=7.9)
    free = planner.plan(low)
    plan = planner.plan(replace(low, import_w_max=7.9 * MEGA))
    assert plan.status is PlanStatus.SOLVED and bool(np.isinf(plan.cap_path_w).all())
    assert free.target_w.max() > 8.1 * MEGA, "the story"
    assert plan.target_w.max() <= 7.9 * MEGA + 1.0
    rises = {p.kind: p.joule_per_w for p in plan.prices}, {p.kind: p.joule_per_w for p in free.prices}
    assert rises[0].get(PriceKind.RAMP_UP, 0.0) <= rises[1].get(PriceKind.RAMP_UP, 0.0) + 1e-6


def test_prices_appear_where_a_limit_costs_work() -> None:
    """Energy is out and the reserve binds: a watt of floor is worth work. With plenty of everything nothing is."""
    planner = mpc()
    planner.plan(plan_kit.given(energy=0.0, target=8.4))
    short = {price.kind: price for price in planner.plan(plan_kit.given(energy=0.0, target=8.4)).prices}
    assert short[PriceKind.RESERVE].joule_per_w > 20.0
    assert not short[PriceKind.RESERVE].is_bound
    ample = {price.kind: price for price in planner.plan(plan_kit.given(energy=250.0, demand=(1.0, 0.5))).prices}
    assert all(price.joule_per_w < 0.1 for price in ample.values())


def test_the_reserve_price_is_the_derivative_of_lost_work() -> None:
    """Raise the load left by 10 kW and solve again: lost work changes by the price times 10 kW."""
    planner = mpc()
    site = plan_kit.given(energy=0.0, target=8.4)
    price = next(p for p in planner.plan(site).prices if p.kind is PriceKind.RESERVE).joule_per_w

    def lost_j(more_w: float) -> float:
        raised = replace(site, load_left_w=site.load_left_w + more_w)
        fresh = mpc()
        fresh.plan(raised)
        x = np.asarray(fresh._solver.result.x)  # the last solve is the one that counts work alone
        cut = x[map_in_place(fresh.shape.model).x_index["cut"]].sum(axis=0) * fresh.shape.scale_w
        late = STEP_S * np.exp(-5e-4 * (np.cumsum(STEP_S) - STEP_S))
        return float(cut @ late)

    assert (lost_j(0.0) - lost_j(1e4)) / 1e4 == pytest.approx(price, rel=0.1)


def test_a_price_behind_a_slack_is_a_bound() -> None:
    """The target cannot come down to the crash-safe set in time: what the reserve would be worth is only bounded."""
    planner = mpc()
    stuck = plan_kit.given(energy=495.0, target=12.0, demand=(7.0, 4.0))
    prices = planner.plan(stuck).prices
    assert prices and all(price.is_bound for price in prices)


class BrokenSolver:
    """Stands in for PIQP and reports what it is told."""

    def __init__(self, real: object, *, status: object, spoil: bool = False) -> None:
        self._real, self._status, self._spoil = real, status, spoil

    @property
    def result(self) -> object:
        result = self._real.result  # type: ignore[attr-defined]
        return SimpleNamespace(x=result.x + 0.5, info=result.info) if self._spoil else result

    def update(self, **data: object) -> None:
        self._real.update(**data)  # type: ignore[attr-defined]

    def solve(self) -> object:
        solved = self._real.solve()  # type: ignore[attr-defined]
        return self._status or solved


def test_the_ladder_shifts_three_times_then_rules() -> None:
    """A solver that stops answering: three shifted plans, then rule, each counted, targets continuous."""
    planner = mpc(price_every=0)
    site = plan_kit.given(energy=100.0)
    solved = planner.plan(site)
    planner._solver = BrokenSolver(planner._solver, status=solve.piqp.PIQP_NUMERICS)  # type: ignore[assignment]
    found = [planner.plan(replace(site, t_s=site.t_s + 1.0 + tick)) for tick in range(5)]
    assert [plan.status for plan in found] == [PlanStatus.SHIFTED] * 3 + [PlanStatus.RULE] * 2
    later_w = solved.target_at(site.t_s + 4.0, start_w=site.target_w)
    assert found[2].target_at(site.t_s + 4.0, start_w=later_w) == pytest.approx(later_w, rel=1e-3)
    assert planner.counts[PlanStatus.SHIFTED] == 3 and "solver" in planner.last_reason


def test_a_wrong_answer_reported_as_solved_is_refused() -> None:
    """The solver says solved and the numbers do not satisfy the rows: the plan is not used."""
    planner = mpc(price_every=0)
    site = plan_kit.given()
    planner.plan(site)
    planner._solver = BrokenSolver(planner._solver, status=None, spoil=True)  # type: ignore[assignment]
    assert planner.plan(site).status is PlanStatus.SHIFTED
    assert "residual" in planner.last_reason


def test_not_a_number_holds() -> None:
    """NaN in the input and nothing to shift: the target stays, caps stay, no exception."""
    planner = mpc()
    site = plan_kit.given(target=7.0)
    plan = planner.plan(replace(site, demand_w=np.full_like(site.demand_w, np.nan)))
    assert plan.status is PlanStatus.HOLD
    assert bool((plan.target_w == 7.0 * MEGA).all())
    assert planner.plan(site).status is PlanStatus.SOLVED


def test_without_a_battery_caps_follow_the_slope() -> None:
    """No battery: the target climbs at the slope and the cap keeps load at or under it."""
    none = plan_kit.battery(power=0.0, energy=0.0, taper_frac=0.0)
    planner = mpc(bounds=none, rise=True)
    site = replace(
        plan_kit.given(target=6.0, energy=0.0, bounds=none, rise=True),
        load_left_w=np.full(STEPS, np.inf),
        ripple_up_w=np.zeros(STEPS),
        ripple_down_w=np.zeros(STEPS),
    )
    plan = planner.plan(site)
    assert plan.status is PlanStatus.SOLVED, planner.last_reason
    assert plan.cap_w.sum() + 3.5 * MEGA <= plan.target_w[0] + 0.01 * MEGA
    assert plan.target_w[0] == pytest.approx(6.1 * MEGA, rel=1e-3)


def test_a_megawatt_more_or_a_thousand_less_is_the_same_plan() -> None:
    """A site a thousand times smaller plans the same shape: numbers are scaled inside."""
    big = mpc(price_every=0).plan(plan_kit.given(energy=20.0))
    site = plan_kit.given(energy=20.0)
    shrink = 1e-3

    def small(values: np.ndarray) -> np.ndarray:
        return values * shrink

    bounds = site.reserve.battery
    tiny = replace(
        bounds,
        charge_w_max=bounds.charge_w_max * shrink,
        discharge_w_max=bounds.discharge_w_max * shrink,
        energy_j_max=bounds.energy_j_max * shrink,
        taper_j=bounds.taper_j * shrink,
    )
    shape = planner_shape(
        classes=2,
        battery=tiny,
        fall_w_per_s=SLOPE * shrink,
        rise_w_per_s=SLOPE * shrink,
        is_rise_enforced=False,
        peak_w=13 * MEGA * shrink,
    )
    planner = MpcPlanner(shape, map_in_place(shape.model))
    plan = planner.plan(
        replace(
            site,
            classes=tuple(replace(c, peak_w=c.peak_w * shrink) for c in site.classes),
            demand_w=small(site.demand_w),
            other_w=small(site.other_w),
            ripple_up_w=small(site.ripple_up_w),
            ripple_down_w=small(site.ripple_down_w),
            target_w=site.target_w * shrink,
            low_w=small(site.low_w),
            high_w=small(site.high_w),
            slope_down_w_per_s=SLOPE * shrink,
            slope_up_w_per_s=SLOPE * shrink,
            energy_j=site.energy_j * shrink,
            reserve=replace(site.reserve, battery=tiny, fall_w_per_s=SLOPE * shrink, rise_w_per_s=SLOPE * shrink),
            load_left_w=small(site.load_left_w),
            load_return_w=small(site.load_return_w),
        )
    )
    assert plan.status is PlanStatus.SOLVED
    assert np.allclose(plan.target_w / shrink, big.target_w, rtol=1e-4)


def test_a_derated_battery_is_planned_for_and_one_too_full_is_left_to_the_rule() -> None:
    """At half its charging power the program goes on, inside what that half can ride down; near full it says no."""
    whole = battery()
    half = replace(whole, charge_w_max=0.5 * whole.charge_w_max)
    planner, site = mpc(), plan_kit.given(target=5.0, bounds=half)
    plan = planner.plan(site)
    assert plan.status is PlanStatus.SOLVED, planner.last_reason
    assert (plan.target_w - site.load_left_w <= half.charge_w_max + 1.0).all()
    by_whole = mpc().plan(plan_kit.given(target=5.0))
    assert plan.target_w[-1] < by_whole.target_w[-1], "the whole battery lets it go higher"
    full = planner.plan(replace(site, energy_j=0.995 * whole.energy_j_max))
    assert full.status is not PlanStatus.SOLVED and planner.last_reason == "battery"
