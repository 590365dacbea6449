"""The energy bench: its trace, its oracle and the procedure that compares policies with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hil.bench_regret import REGRET_MIN_PP, Score, _failed, _missed, score_world
from hil.oracle import Oracle, OracleAnswer, OracleCase, WindowRow
from hil.oracle_curve import LeastLoss
from hil.regret_bound import Promise, bound_case, bounds_of_world
from hil.regret_cases import CASES, MEGA, case_named, make_world, oracle_case
from hil.regret_forecast import Forecaster
from hil.regret_run import Run
from hil.regret_trace import CHECKPOINT_S, DUTY, LOW_PHASE_FRAC, STEP_S, EventKind, reference_trace

SHORT = 0.1  # of a trace: 120 s


def test_the_trace_is_what_its_seed_says() -> None:
    """Same seed, same load; another seed, another; both with one crash, a start, a stop and checkpoints of 11-60 s."""
    first, again, other = reference_trace(5), reference_trace(5), reference_trace(6)
    assert np.array_equal(first.demand_w, again.demand_w)
    assert not np.array_equal(first.demand_w, other.demand_w)
    kinds = [event.kind for event in first.events]
    assert kinds.count(EventKind.CRASH) == kinds.count(EventKind.START) == kinds.count(EventKind.STOP) == 1
    lengths = [e.until_s - e.from_s for e in first.events if e.kind is EventKind.CHECKPOINT]
    assert len(lengths) == 10
    assert all(CHECKPOINT_S[0] <= length <= CHECKPOINT_S[1] for length in lengths)


def test_a_running_job_draws_its_duty() -> None:
    """Mean of job A while it runs: 0.6 at full, 0.4 at 40 %; its noise is 2 %."""
    trace = reference_trace(2)
    running = trace.demand_w[0][trace.level[0] == 2.0] / trace.jobs[0].power_w
    assert running.mean() == pytest.approx(DUTY + (1.0 - DUTY) * LOW_PHASE_FRAC, rel=0.02)
    assert running[running > 0.7].std() == pytest.approx(0.02, rel=0.1)


def test_the_future_does_not_leak_into_a_blind_forecast() -> None:
    """Change everything after a step: the forecast made at that step stays the same, and the schedule's does too
    where no announced event differs."""
    trace = reference_trace(3)
    step = 4000
    later = trace.demand_w.copy()
    later[:, step + 1 :] *= 0.3
    for is_scheduled in (False, True):
        one = Forecaster(trace, is_scheduled=is_scheduled)
        two = Forecaster(replace(trace, demand_w=later), is_scheduled=is_scheduled)
        for at in range(0, step + 1, 500):
            a, b = one.at(at), two.at(at)
            assert np.array_equal(a.mean_w, b.mean_w) and np.array_equal(a.bottom_w, b.bottom_w)
            assert np.array_equal(one.low_path_w(at), two.low_path_w(at))


def test_low_phases_ahead_lie_under_what_comes() -> None:
    """While two jobs run no sample of the next seconds lies under what was foretold; where nothing is announced, the
    low phases that a pause would bring count as well."""
    trace = reference_trace(3)
    known, blind = (Forecaster(trace, is_scheduled=scheduled) for scheduled in (True, False))
    total_w = trace.demand_w.sum(axis=0)
    both = np.flatnonzero((trace.level == 2.0).all(axis=0))
    steps = [step for step in range(3500, 9000, 10) if step in both and step + 200 in both]
    assert len(steps) > 50
    for step in steps:
        ahead = known.low_path_w(step)
        assert bool((total_w[step + 1 : step + 41] >= ahead[:40]).all()), step
        assert bool((blind.low_path_w(step) <= ahead + 1.0).all())


def test_a_schedule_tells_stops_and_never_crashes() -> None:
    """A minute before B stops its forecast falls to nothing; a second before A crashes A's does not."""
    trace = reference_trace(1)
    stop = next(e for e in trace.events if e.kind is EventKind.STOP)
    crash = next(e for e in trace.events if e.kind is EventKind.CRASH)
    known = Forecaster(trace, is_scheduled=True)
    for step in range(0, round(stop.from_s / STEP_S) - 600, 10):
        forecast = known.at(step)
    assert forecast.mean_w[stop.job, 0] > 0.0 and forecast.mean_w[stop.job, -1] < forecast.mean_w[stop.job, 0] * 0.5
    known = Forecaster(trace, is_scheduled=True)
    for step in range(0, round(crash.from_s / STEP_S) - 10, 10):
        forecast = known.at(step)
    assert forecast.mean_w[0, :10].min() >= LOW_PHASE_FRAC * trace.jobs[0].power_w * 0.9


def flat(steps: int, demand: float) -> OracleCase:
    """A flat load with a small battery: everything can be worked out by hand."""
    world = make_world(case_named("5-500"), 1, shrink=SHORT)
    return OracleCase(
        step_s=0.1,
        demand_w=np.full((1, steps), demand * MEGA),
        weight=np.ones(1),
        base_w=3.5 * MEGA,
        reserve=world.reserve,
        load_left_w=3.5 * MEGA,
        is_rise_enforced=False,
        floor_w=0.0,
        slope_w_per_s=0.1 * MEGA,
        windows=(),
        ceiling_w=None,
        start_w=8.5 * MEGA,
        start_j=250 * MEGA,
    )


def test_the_oracle_knows_a_case_worked_by_hand() -> None:
    """6 MW for 100 s where the grid may give 5: with nothing from the battery exactly 100 MJ are lost, with 20 MJ of
    stored energy 19 MJ fewer."""
    oracle = Oracle(flat(1000, 6.0))
    none, some = oracle.solve(250 * MEGA), oracle.solve(230 * MEGA)
    assert none is not None and some is not None
    assert none.lost_j == pytest.approx(100 * MEGA, rel=1e-4)
    assert some.lost_j == pytest.approx(81 * MEGA, rel=1e-4)
    assert some.dual_j_per_j == pytest.approx(0.95, rel=1e-3)


def test_the_oracle_says_when_there_is_no_path() -> None:
    """More energy at the end than the grid and the battery can bring: None, not a number with slack."""
    assert Oracle(flat(200, 6.0)).solve(490 * MEGA) is None


def test_windows_bind_the_oracle() -> None:
    """A window of 0.5 MW in 15 s: no two instants 1 s apart on the grid break it, and the 60 s window it implies."""
    windows = (WindowRow(2 * MEGA, 60.0), WindowRow(0.5 * MEGA, 15.0))
    case = replace(flat(1000, 6.0), slope_w_per_s=None, windows=windows, start_w=6.0 * MEGA)
    answer = Oracle(case).solve(200 * MEGA)
    assert answer is not None
    path = np.concatenate([np.full(600, 6.0 * MEGA), answer.target_w])
    for lag, limit in ((150, 0.5), (600, 2.0)):
        widest = max(float(np.ptp(path[i : i + lag])) for i in range(0, len(path) - lag, 7))
        assert widest <= limit * MEGA * 1.001
    assert answer.target_w.max() > 6.4 * MEGA  # the allowance is used


def test_the_oracle_carries_every_rise_with_what_the_battery_holds() -> None:
    """Load above the target is what the battery gives: at no step more than it may be counted on for as it begins."""
    world = make_world(case_named("two-sided"), 11, shrink=SHORT)
    answer = Oracle(oracle_case(case_named("two-sided"), world)).solve(160 * MEGA)  # so much that none is burnt
    assert answer is not None
    given_w = -np.diff(answer.energy_j) * world.reserve.battery.eta / STEP_S
    cover_w = np.array([world.reserve.rise_cover_w(energy_j) for energy_j in answer.energy_j[:-1].tolist()])
    is_high = given_w > MEGA
    assert is_high.sum() > 100
    beyond_w = given_w[is_high] - cover_w[is_high]
    assert beyond_w.max() < 0.02 * MEGA  # a tangent lies above the curve by as much
    assert beyond_w.max() > -0.05 * MEGA  # and the cover is used


def test_the_floor_draws_what_the_plan_wants_through_the_ripple() -> None:
    """At the top the battery gives it, the grid sees the target; more load than the battery carries sends it away."""
    world = make_world(case_named("4-500-floor"), 11, shrink=SHORT)
    run = Run(world, policy="rule-max", is_scheduled=False)
    run._make_plan(0)
    assert run._plan is not None
    run._plan = replace(run._plan, ballast_w=1.5 * MEGA)
    for load_above_w, drawn_w in ((-1.0, 1.5), (1.0, 1.5), (3.0, 1.0), (4.0, 0.0)):
        before_j = run._energy_j
        assert run._battery_step(run._target_w + load_above_w * MEGA) == pytest.approx(run._target_w)
        given_w = (before_j - run._energy_j) * world.reserve.battery.eta / STEP_S
        assert given_w == pytest.approx((load_above_w + drawn_w) * MEGA)


@pytest.mark.parametrize("case_id", ["4-500-floor", "two-sided"])
def test_no_policy_beats_the_oracle_and_none_leaves_the_set(case_id: str) -> None:
    """On a short trace: regret is not negative, no episode, crash-safe throughout, for mpc and rule-max."""
    case = case_named(case_id)
    world = make_world(case, 11, shrink=SHORT)
    scores = score_world(case, world, seed=11, policies=(("rule-max", "blind"), ("mpc", "scheduled")))
    for score in scores:
        assert score.regret_pp is not None and score.regret_pp >= REGRET_MIN_PP, score
        assert score.episodes == 0, score
        assert score.crash_safe_frac == 1.0, score
        assert score.fallbacks == 0, score


def test_no_controller_breaks_the_row_and_a_lost_reserve_is_seen() -> None:
    """`none` leaves the row broken, and `low-pass` the crash-safe set: the bench sees both."""
    case = case_named("5-500")
    world = make_world(case, 1, shrink=SHORT)
    none, smooth = score_world(case, world, seed=1, policies=(("none", "blind"), ("low-pass", "blind")))
    assert none.episodes >= 1 and none.episode_w_max > MEGA
    assert smooth.crash_safe_frac < 1.0


@pytest.mark.parametrize(("case_id", "policy"), [("4-500", "low-pass"), ("3-120-free", "rule")])
def test_what_was_not_kept_is_all_that_the_oracle_may_break(case_id: str, policy: str) -> None:
    """Who leaves the set or breaks a limit loses less for it, but not less than an oracle that may do the same."""
    case = case_named(case_id)
    world = make_world(case, 1, shrink=0.5)
    out = Run(world, policy=policy, is_scheduled=False).go()
    assert out.episodes > 0 or out.crash_safe_frac < 1.0
    oracle = Oracle(oracle_case(case, world))
    best, alike = oracle.solve(out.final_j), oracle.solve(out.final_j, slack=out.slack)
    assert best is not None and alike is not None
    assert 100.0 * (out.lost_j - alike.lost_j) / out.demand_j >= REGRET_MIN_PP
    assert best.lost_j > alike.lost_j + 2e-4 * out.demand_j  # the oracle used what it was given


def test_who_beats_the_plain_oracle_is_held_to_one_that_breaks_as_much() -> None:
    """Having left the set, `low-pass` loses less than the plain oracle: its score carries the other one's loss too."""
    case = case_named("4-500")
    (score,) = score_world(case, make_world(case, 1, shrink=0.5), seed=1, policies=(("low-pass", "blind"),))
    assert score.regret_pp is not None and score.alike_pp is not None
    assert score.regret_pp < REGRET_MIN_PP <= score.alike_pp


class Bowl:
    """Stands in for an oracle whose least loss is known: flat, then 0.5 and at last 2 J per joule, up to `top_j`."""

    def __init__(self, top_j: float) -> None:
        self.top_j, self.asked = top_j, 0

    def lost_j(self, final_j: float) -> float:
        return max(10.0, 10.0 + 0.5 * (final_j - 100.0), 35.0 + 2.0 * (final_j - 150.0))

    def solve(self, final_j: float) -> OracleAnswer | None:
        self.asked += 1
        if final_j > self.top_j:
            return None
        dual = 0.0 if final_j <= 100.0 else 0.5 if final_j <= 150.0 else 2.0
        return OracleAnswer(self.lost_j(final_j), dual, np.zeros(0), np.zeros(0))


def test_the_oracles_curve_is_solved_only_where_its_neighbours_leave_it_open() -> None:
    """Every answer is within the tolerance below the true one; on straight pieces most are not solved for."""
    bowl = Bowl(top_j=1000.0)
    asked = [0.0, 20.0, 50.0, 80.0, 90.0, 120.0, 125.0, 130.0, 140.0, 180.0, 190.0, 200.0]
    found = LeastLoss(bowl, tolerance_j=0.01).at(asked)
    for final_j in asked:
        value = found[final_j]
        assert value is not None
        assert bowl.lost_j(final_j) - 0.01 <= value.lost_j <= bowl.lost_j(final_j) + 1e-9
    assert bowl.asked <= 8
    loose = Bowl(top_j=1000.0)
    LeastLoss(loose, tolerance_j=1e3).at(asked)
    assert loose.asked == 2


def test_the_oracles_curve_ends_where_no_path_does() -> None:
    """Energies that cannot be reached have no answer; those that can have one, whatever their neighbours."""
    found = LeastLoss(Bowl(top_j=125.0), tolerance_j=0.01).at([50.0, 110.0, 120.0, 140.0, 160.0])
    assert [found[final_j] is None for final_j in (50.0, 110.0, 120.0, 140.0, 160.0)] == [False] * 3 + [True] * 2
    assert found[110.0] is not None and found[110.0].lost_j == pytest.approx(15.0, abs=0.02)
    assert LeastLoss(Bowl(top_j=0.0), tolerance_j=0.01).at([50.0]) == {50.0: None}


def test_the_oracles_curve_is_the_oracle() -> None:
    """On a real trace the curve between two solved energies agrees with solving there."""
    case = case_named("5-500")
    world = make_world(case, 2, shrink=SHORT)
    finals = [world.start_j * share for share in (0.9, 0.95, 1.0, 1.02)]
    tolerance_j = 1e-6 * float(world.trace.demand_w.sum()) * STEP_S
    found = LeastLoss(Oracle(oracle_case(case, world)), tolerance_j=tolerance_j).at(finals)
    for final_j in finals:
        answer, value = Oracle(oracle_case(case, world)).solve(final_j), found[final_j]
        assert answer is not None and value is not None
        assert value.lost_j == pytest.approx(answer.lost_j, abs=2.0 * tolerance_j)


def test_a_forecaster_says_the_same_to_whoever_asks_next() -> None:
    """Two policies that share a forecaster see what each would see with one of its own: nothing of what comes later."""
    case = case_named("3-120-free")
    world = make_world(case, 1, shrink=SHORT)
    shared = Forecaster(world.trace, is_scheduled=False)
    Run(world, policy="rule-max", is_scheduled=False, forecaster=shared).go()
    second = Run(world, policy="mpc", is_scheduled=False, forecaster=shared).go()
    alone = Run(world, policy="mpc", is_scheduled=False).go()
    assert bool((second.target_w == alone.target_w).all()) and second.lost_j == alone.lost_j


def test_a_crash_is_ridden_down_inside_the_row() -> None:
    """Through the crash and for a minute after it grid power stays on the row with the reserve in force."""
    case = case_named("5-500")
    world = make_world(case, 4, shrink=SHORT)
    assert any(event.kind is EventKind.CRASH for event in world.trace.events)
    out = Run(world, policy="mpc", is_scheduled=False).go()
    assert out.episodes == 0
    assert float(np.abs(np.diff(out.target_w)).max()) <= 0.0101 * MEGA


@pytest.mark.slow
def test_weighted_loss_goes_where_it_is_cheap() -> None:
    """The case with tiers: mpc loses at least a fifth less weighted work than rule-max, and none of the class that
    tolerates nothing."""
    case = case_named("tiers")
    world = make_world(case, 2, shrink=0.25)
    out = {policy: Run(world, policy=policy, is_scheduled=False).go() for policy in ("rule-max", "mpc")}
    assert out["mpc"].lost_j <= 0.8 * out["rule-max"].lost_j
    assert out["mpc"].curtailed_j[0] <= 0.02 * out["mpc"].curtailed_j.sum()


def test_a_promise_about_a_stop_costs_what_the_stop_frees() -> None:
    """To be ready for B's stop at every moment costs work, for a pause of a job next to none; and the oracle that keeps
    the promise never has its target higher than the battery reaches above what the stop leaves."""
    case = case_named("3-120-free")
    world = make_world(case, 1, shrink=0.25)
    free = oracle_case(case, world)
    found = bounds_of_world(world, free)
    assert found[Promise.STOP] > 0.5
    assert -0.001 < found[Promise.CHECKPOINT] < 0.2 * found[Promise.STOP]
    ready = bound_case(world, free, Promise.STOP)
    answer = Oracle(ready).solve(world.start_j)
    assert answer is not None and ready.target_w_max is not None
    assert bool((answer.target_w <= ready.target_w_max + 10.0).all())
    running = world.trace.level[-1] >= 1.0
    lowest_w = world.trace.base_w + LOW_PHASE_FRAC * world.trace.jobs[0].power_w * 0.9
    settled = running & (np.arange(world.trace.steps) > 600)
    assert float(ready.target_w_max[settled].min()) >= lowest_w


def test_room_for_a_crash_keeps_the_battery_lower() -> None:
    """With the promise the battery is never fuller than what the fall after a crash leaves it."""
    case = case_named("3-120-free")
    world = make_world(case, 3, shrink=0.25)
    case_with = bound_case(world, oracle_case(case, world), Promise.CRASH_ROOM)
    assert case_with.crash_left_w is not None
    answer = Oracle(case_with).solve(world.start_j)
    assert answer is not None
    at = np.flatnonzero(np.isfinite(case_with.crash_left_w[::10])) * 10
    surplus_w = answer.target_w[at] - case_with.crash_left_w[at]
    k = world.reserve.energy_s_per_w
    pc_w = world.reserve.battery.charge_w_max
    inside_w = np.clip(surplus_w, 0.0, pc_w)
    stored_j = k * inside_w**2 + 2.0 * k * pc_w * np.maximum(surplus_w - pc_w, 0.0)
    assert bool((answer.energy_j[at] + stored_j <= world.reserve.battery.energy_j_max + 0.5 * MEGA).all())


def test_a_bench_that_is_wrong_says_so() -> None:
    """A comparable policy below the oracle by more than the tolerance is a failure of the bench, named."""
    good = Score(
        case="5-500",
        policy="mpc",
        variant="blind",
        seed=1,
        lost_frac=0.1,
        oracle_lost_frac=0.1,
        oracle_start_lost_frac=0.1,
        regret_pp=-0.001,
        alike_pp=-0.001,
        final_less_start_j=0.0,
        dual=0.9,
        episodes=0,
        unforced_episodes=0,
        episode_w_max=0.0,
        forced_w=0.0,
        crash_safe_frac=1.0,
        tier_excess_j=0.0,
        fallbacks=0,
    )
    assert list(_failed([good])) == []
    assert "seed 1" in next(_failed([replace(good, alike_pp=-0.1)]))
    assert "seed 1" in next(_failed([replace(good, alike_pp=-0.1, episodes=3)]))
    assert list(_failed([replace(good, alike_pp=-0.1, policy="none")])) == []


def test_missed_goals_are_named() -> None:
    """An episode in a case with a reserve is printed, whatever the regret."""
    from hil.bench_regret import _line

    case = case_named("5-500")
    world = make_world(case, 1, shrink=SHORT)
    (score,) = score_world(case, world, seed=1, policies=(("rule-max", "blind"),))
    clean = replace(score, policy="mpc", regret_pp=0.01)
    assert list(_missed((_line([clean], [clean]),))) == []
    bad = replace(clean, episodes=1, regret_pp=0.5)
    assert len(list(_missed((_line([bad], [bad]),)))) == 2


def test_every_case_has_a_world_and_an_oracle() -> None:
    """All six cases build, with the start inside the crash-safe set where there is one."""
    for case in CASES:
        world = make_world(case, 3, shrink=SHORT)
        assert oracle_case(case, world).demand_w.shape[0] == len(case.jobs)
        if case.has_reserve:
            safe_w = world.load_left_w + world.reserve.surplus_safe_w(world.start_j)
            assert world.start_w <= safe_w + 1.0
