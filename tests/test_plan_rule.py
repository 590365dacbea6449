"""Planners without a solver, the tier ledger and the time grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.plan.plan import FIRST_STEP_S, OFFSET_S, SPAN_S, STEP_S, STEPS, PlanStatus
from controller.plan.rule import (
    RECOVERY_S,
    RuleMaxPlanner,
    RulePlanner,
    Sharing,
    class_peaks_w,
    cut_classes,
    share_cut,
)
from controller.plan.tier import TierLedger
from controller.planning import at_once_w_max
from controller.reserve import CrashReserve
from tests import plan_kit
from tests.plan_kit import MEGA, SLOPE


def test_the_grid_is_geometric_and_ends_at_its_span() -> None:
    assert len(STEP_S) == STEPS
    assert STEP_S[0] == pytest.approx(FIRST_STEP_S, rel=1e-6) and OFFSET_S[-1] == pytest.approx(SPAN_S)
    ratios = STEP_S[1:] / STEP_S[:-1]
    assert ratios.max() == pytest.approx(ratios.min()) and ratios[0] > 1.0


@given(energy=st.floats(0.0, 500.0), target=st.floats(3.5, 12.0), a=st.floats(0.0, 8.0), kind=st.sampled_from([0, 1]))
def test_every_rule_stays_in_interval_and_slope(energy: float, target: float, a: float, kind: int) -> None:
    planner = (RulePlanner(), RuleMaxPlanner())[kind]
    site = plan_kit.given(energy=energy, target=target, demand=(a, 2.0))
    plan = planner.plan(site)
    assert bool((plan.target_w >= site.low_w - 1.0).all()) and bool((plan.target_w <= site.high_w + 1.0).all())
    assert bool((np.abs(np.diff(plan.target_w)) <= SLOPE * STEP_S[1:] + 1.0).all())
    assert bool((plan.energy_path_j >= 0.0).all()) and bool((plan.energy_path_j <= 500 * MEGA).all())


def test_rule_max_goes_as_high_as_a_crash_allows() -> None:
    """Half full: the target climbs to load left plus charging power and stays."""
    site = plan_kit.given(energy=250.0, target=8.2)
    plan = RuleMaxPlanner().plan(site)
    assert plan.target_w[-1] == pytest.approx(8.5 * MEGA)
    assert plan.status is PlanStatus.SOLVED and bool(np.isinf(plan.cap_w).all())


def test_rule_brings_the_battery_back_to_its_middle() -> None:
    """Above the middle the target stands under the load, below it over."""
    low = RulePlanner().plan(plan_kit.given(energy=40.0, demand=(2.0, 1.0), target=6.5))
    high = RulePlanner().plan(plan_kit.given(energy=450.0, demand=(2.0, 1.0), target=6.5))
    load_w = 6.5 * MEGA
    assert low.target_w[5] > load_w > high.target_w[5]


def test_a_full_battery_is_brought_to_its_middle_by_itself_and_never_by_caps() -> None:
    """It would take more power than it has to be there in time; it gives half of that, and no GPU is held for it."""
    bounds = plan_kit.battery(power=3.0, energy=2000.0)
    site = plan_kit.given(energy=1600.0, demand=(2.0, 1.0), target=6.5, bounds=bounds)
    plan = RulePlanner().plan(site)
    gives_w = 1.5 * MEGA
    assert gives_w < 600.0 * MEGA / RECOVERY_S, "the story"
    assert plan.target_w.min() == pytest.approx(6.5 * MEGA - gives_w + site.ripple_up_w.max())
    assert bool(np.isinf(plan.cap_path_w).all())


def test_charging_stops_at_the_registered_peak_and_never_asks_for_caps() -> None:
    """A battery near its bottom would take 1 MW; the peak leaves it 0.9. A contract that keeps power up comes first."""
    low = plan_kit.given(energy=40.0, demand=(2.0, 1.0), target=7.4)
    bound = replace(low, import_w_max=7.4 * MEGA)
    free, plan = RulePlanner().plan(low), RulePlanner().plan(bound)
    assert free.target_w.max() > 7.5 * MEGA, "the story"
    assert plan.target_w.max() == pytest.approx(7.4 * MEGA) and bool(np.isinf(plan.cap_path_w).all())
    kept_up = RulePlanner().plan(replace(bound, low_w=np.full(STEPS, 7.45 * MEGA)))
    assert kept_up.target_w.min() == pytest.approx(7.45 * MEGA)


def test_an_empty_battery_caps_what_is_left() -> None:
    """No energy: peaks together fit under target less other load, shared in proportion or cheapest first."""
    site = plan_kit.given(energy=0.0, target=8.5, demand=(3.0, 2.3), weight=(2.0, 1.0))
    for sharing in Sharing:
        plan = RuleMaxPlanner(sharing=sharing).plan(site)
        assert plan.cap_w.sum() <= plan.target_w[0] - 3.5 * MEGA + 1.0
    ordered = RuleMaxPlanner(sharing=Sharing.ORDERED).plan(site)
    assert ordered.cap_w[0] >= 3.0 * MEGA + 5.3 * 0.3 * MEGA * 3.0 / 5.3 - 1.0  # the dear class keeps all


@given(excess=st.floats(0.0, 20.0), first=st.floats(0.0, 5.0), second=st.floats(0.0, 5.0))
def test_a_cut_is_complete_and_never_too_deep(excess: float, first: float, second: float) -> None:
    site, give = plan_kit.given(), np.array([first, second]) * MEGA
    for sharing in Sharing:
        cut = share_cut(site, give, excess * MEGA, sharing=sharing)
        assert bool((cut <= give + 1e-6).all()) and bool((cut >= 0.0).all())
        assert cut.sum() == pytest.approx(min(excess * MEGA, give.sum()), rel=1e-9, abs=1e-6)


def test_an_enforced_rise_caps_idle_classes_too() -> None:
    """Nothing to cut, and still every class is bounded: together they may rise to what the battery covers."""
    site = plan_kit.given(energy=250.0, rise=True)
    caps = cut_classes(site, class_peaks_w(site)[:, 0], 9.5 * MEGA, sharing=Sharing.PROPORTIONAL)
    assert caps.sum() == pytest.approx(9.5 * MEGA)
    assert bool(
        np.isinf(
            cut_classes(
                replace(site, is_rise_enforced=False), class_peaks_w(site)[:, 0], 9.5 * MEGA, sharing=Sharing.ORDERED
            )
        ).all()
    )


def test_a_ledger_tells_what_a_tier_leaves_and_what_broke_it() -> None:
    """A tenth tolerated over ten minutes at 1 MW: spent evenly it lasts, beyond it the excess is reported."""
    ledger = TierLedger(np.array([0.1, 1.0]), window_s=600.0)
    for _ in range(6000):
        ledger.add(0.1, np.array([MEGA, MEGA]), np.array([0.1 * MEGA, 0.9 * MEGA]))
    assert ledger.excess_j[0] <= 1.0 and ledger.excess_j[1] == 0.0
    assert ledger.loss_left_j(60.0)[0] <= 0.1 * MEGA * 6.0 and np.isinf(ledger.loss_left_j(60.0)[1])
    for _ in range(1200):
        ledger.add(0.1, np.array([MEGA, MEGA]), np.array([0.5 * MEGA, 0.0]))
    assert ledger.excess_j[0] == pytest.approx(0.4 * MEGA * 120.0, rel=0.05)
    assert ledger.loss_left_j(60.0)[0] == 0.0


def test_a_ledger_is_paced() -> None:
    """An untouched window does not let everything go in the first two minutes."""
    ledger = TierLedger(np.array([0.5]), window_s=600.0)
    for _ in range(6000):
        ledger.add(0.1, np.array([MEGA]), np.array([0.0]))
    left_j = float(ledger.loss_left_j(120.0)[0])
    assert 0.5 * MEGA * 120.0 <= left_j <= 0.5 * MEGA * 600.0 * 0.5


@pytest.mark.parametrize("power", [0.0, 0.05])
def test_without_a_follower_caps_keep_ceilings_and_nothing_else(power: float) -> None:
    """A battery gone or derated below the ripple: caps at the mean would lower it, and that mean ask for the next."""
    site = plan_kit.given(target=10.3, bounds=plan_kit.battery(power=power))
    assert np.isinf(RulePlanner().plan(site).cap_w).all()
    for low, left in ((6.0, 7.0), (9.0, 9.0)):  # no deeper than the ceiling, no faster than the rows
        ceiled = replace(site, ceiling_w=np.full(STEPS, 7.0 * MEGA), low_w=np.full(STEPS, low * MEGA))
        caps = RulePlanner().plan(ceiled).cap_w
        assert float(caps.sum()) == pytest.approx((left - 3.5) * MEGA, abs=0.1 * MEGA)


def test_what_caps_let_go_at_once_fits_what_the_rows_leave() -> None:
    """0.2 s on the meter is a fifth on a mean of a second; without a battery it stays, and its ripple with it."""
    site = plan_kit.given()
    left_w = float(site.high_w[0]) - site.target_w
    assert at_once_w_max(site, target_w=site.target_w, t_eff_s=0.2) == pytest.approx(5.0 * left_w)
    assert at_once_w_max(site, target_w=site.target_w + 2.0 * left_w, t_eff_s=0.2) == 0.0
    flat = replace(site, ripple_up_w=np.full(STEPS, 0.1 * left_w), ripple_down_w=np.full(STEPS, 0.1 * left_w))
    alone = replace(flat, reserve=CrashReserve(plan_kit.battery(power=0.0), SLOPE, SLOPE))
    assert at_once_w_max(alone, target_w=site.target_w, t_eff_s=0.2) == pytest.approx(0.8 * left_w)
    swinging = replace(alone, ripple_up_w=np.full(STEPS, 5.0 * left_w))
    assert at_once_w_max(swinging, target_w=site.target_w, t_eff_s=0.2) == 0.0
