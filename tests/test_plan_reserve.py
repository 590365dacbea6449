"""Both reserves in every planner: N-1 with survivors that ripple, and a rise that caps must leave coverable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from controller.plan.plan import STEPS, PlanInput, Planner, PlanStatus
from controller.plan.rule import RuleMaxPlanner, RulePlanner
from controller.reserve import Contingency
from tests import plan_kit
from tests.plan_kit import MEGA, mpc

TOLERANCE_W = 0.02 * MEGA  # two thousandths of the site: what a step along the boundary rounds away
SETTLED = 2  # steps that a plan may still be on its way
_MPC = {rise: mpc(rise=rise, price_every=0) for rise in (False, True)}


def planner_named(name: str, *, rise: bool) -> Planner:
    return {"mpc": _MPC[rise], "rule": RulePlanner(), "rule-max": RuleMaxPlanner()}[name]


def n_minus_1(*, energy: float, target: float, stays: float, ripple: float) -> PlanInput:
    """`stays` MW of other jobs remain when the largest goes, and dip by `ripple` below it at their worst phase."""
    site = plan_kit.given(energy=energy, target=target)
    return replace(
        site,
        load_left_w=np.full(STEPS, (3.5 + stays) * MEGA),
        contingency_ripple_w=ripple * MEGA,
    )


@pytest.mark.parametrize("name", ["mpc", "rule", "rule-max"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    energy=st.floats(0.0, 500.0),
    target=st.floats(4.0, 11.0),
    stays=st.floats(0.0, 3.0),
    ripple=st.floats(0.0, 2.0),
)
def test_the_loss_of_the_largest_job_leaves_room_for_the_others_ripple(
    name: str, energy: float, target: float, stays: float, ripple: float
) -> None:
    """From inside the N-1 set: at every step the survivors' worst dip is within the charging power at the energy
    planned there, and the fall from the target within the battery."""
    site = n_minus_1(energy=energy, target=target, stays=stays, ripple=ripple)
    contingency = Contingency("largest_job", 0.0, float(site.load_left_w[0]), ripple * MEGA, np.inf)
    assume(target * MEGA <= site.reserve.g_safe_w(energy * MEGA, contingency))
    plan = planner_named(name, rise=False).plan(site)
    assert plan.status is PlanStatus.SOLVED
    safe_w = np.array([site.reserve.g_safe_w(e, contingency) for e in plan.energy_path_j.tolist()])
    lowest_w = np.maximum(safe_w, site.low_w)  # where the slopes do not let it come down, it comes down by them
    assert bool((plan.target_w[SETTLED:] <= lowest_w[SETTLED:] + TOLERANCE_W).all())


def test_a_survivors_ripple_costs_as_much_target() -> None:
    """With power the binding condition each megawatt of ripple takes one off the highest target."""
    for name in ("mpc", "rule-max"):
        still, swaying = (
            planner_named(name, rise=False).plan(n_minus_1(energy=20.0, target=8.0, stays=0.0, ripple=ripple))
            for ripple in (0.0, 1.5)
        )
        assert still.target_w[5] - swaying.target_w[5] == pytest.approx(1.5 * MEGA, abs=0.6 * MEGA)


@pytest.mark.parametrize("name", ["mpc", "rule", "rule-max"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(energy=st.floats(0.0, 500.0), target=st.floats(4.0, 11.0), a=st.floats(0.5, 8.0), b=st.floats(0.5, 5.0))
def test_what_caps_let_through_is_covered(name: str, energy: float, target: float, a: float, b: float) -> None:
    """Under an enforced rise every class has a cap, and all at their caps at once are within target and cover."""
    site = plan_kit.given(energy=energy, target=target, demand=(a, b), rise=True)
    plan = planner_named(name, rise=True).plan(site)
    assert plan.status is PlanStatus.SOLVED
    assert bool(np.isfinite(plan.cap_w).all())
    covered_w = plan.target_w[0] + site.reserve.rise_cover_w(energy * MEGA) - site.other_w[0]
    assert float(plan.cap_w.sum()) <= max(covered_w, 0.0) + TOLERANCE_W


@pytest.mark.parametrize("name", ["mpc", "rule", "rule-max"])
def test_where_both_reserves_cannot_be_the_drop_wins(name: str) -> None:
    """The battery is full but for the fall from 8 MW; a rise would want a target of 12. The target stays crash-safe and
    the caps take what the rise lacks."""
    energy_j = plan_kit.given().reserve.energy_safe_j(4.5 * MEGA)
    site = plan_kit.given(energy=energy_j / MEGA, target=8.0, demand=(8.0, 5.0), rise=True)
    short = replace(site, reserve=replace(site.reserve, battery=replace(site.reserve.battery, discharge_w_max=MEGA)))
    planner = planner_named(name, rise=True)
    plan = planner.plan(short)
    safe_w = np.array([short.load_left_w[0] + short.reserve.surplus_safe_w(e) for e in plan.energy_path_j.tolist()])
    assert bool((plan.target_w[SETTLED:] <= np.maximum(safe_w, short.low_w)[SETTLED:] + TOLERANCE_W).all())
    needed_w = short.reserve.g_rise_min_w(energy_j, load_rise_w=float(short.load_return_w[0]))
    assert needed_w > plan.target_w[0] + MEGA  # the rise margin without caps is far below nothing
    assert float(plan.cap_w.sum()) <= plan.target_w[0] + MEGA - short.other_w[0] + TOLERANCE_W
