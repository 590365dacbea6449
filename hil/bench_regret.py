"""`rampart bench regret`: what planning costs beside perfect foresight, per case, policy and what was announced.

For each seed the same world goes to every policy; the oracle then gets the policy's own final energy. A seed whose
oracle finds no path is reported infeasible and not scored. A policy that broke a limit or left the crash-safe set may
lose less than the oracle; it is then held to an oracle that may break the same, where and as much as it did. Regret
below what chords and tolerance explain means that the two lived in different worlds: the bench fails.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import fields

from controller.types import frozen
from hil.oracle import Oracle
from hil.oracle_curve import Least, LeastLoss
from hil.regret_cases import CASES, Case, case_named, make_world, oracle_case
from hil.regret_forecast import Forecaster
from hil.regret_run import Outcome, Run, World

REGRET_MIN_PP = -0.005
CURVE_PP = 1e-4  # of the demand: a tenth of the last digit printed
EPISODE_FACTOR = 1.25  # an unavoidable episode may be this much larger than its event forces
TIERS_SAVING = 0.20  # of rule-max's weighted loss, asked in the case with tiers
POLICIES: tuple[tuple[str, str], ...] = (
    ("none", "blind"),
    ("low-pass", "blind"),
    ("rule", "blind"),
    ("rule-max", "blind"),
    ("mpc", "blind"),
    ("mpc", "scheduled"),
)
# Sharing a cut cheapest class first needs no solver: shown beside `mpc` where classes differ.
EXTRA: dict[str, tuple[tuple[str, str], ...]] = {"tiers": (("rule-max-ordered", "blind"),)}
WORKERS_MAX = 2


@frozen
class Score:
    """One policy on one seed of one case. `regret_pp` is None where the oracle found no path."""

    case: str
    policy: str
    variant: str
    seed: int
    lost_frac: float
    oracle_lost_frac: float | None
    oracle_start_lost_frac: float | None
    regret_pp: float | None
    alike_pp: float | None  # the same beside an oracle that may break what the policy broke, where the plain one loses
    final_less_start_j: float
    dual: float
    episodes: int
    unforced_episodes: int
    episode_w_max: float
    forced_w: float
    crash_safe_frac: float
    tier_excess_j: float
    fallbacks: int


@frozen
class Line:
    """One row of the table: mean and worst over the seeds scored."""

    case: str
    policy: str
    variant: str
    lost_frac: float
    oracle_lost_frac: float
    regret_pp: float
    regret_pp_worst: float
    episodes: int
    unforced_episodes: int
    episode_w_max: float
    episode_over_forced: float  # largest ratio of an episode to what its event forced; 0 without a forced event
    crash_safe_frac: float
    oracle_start_lost_frac: float
    final_less_start_j: float
    dual: float
    tier_excess_j: float
    fallbacks: int
    infeasible: int


@frozen
class Result:
    seeds: int
    lines: tuple[Line, ...]
    missed: tuple[str, ...]  # goals, in words
    failed: tuple[str, ...]  # the bench itself is wrong
    wall_s: float

    def as_dict(self) -> dict[str, object]:
        cases = [{f.name: getattr(line, f.name) for f in fields(line)} for line in self.lines]
        return {"seeds": self.seeds, "cases": cases, "missed": list(self.missed), "failed": list(self.failed)}


def run(*, seeds: int, cases: tuple[str, ...], workers: int | None, on_done: Callable[[int, int], None]) -> Result:
    """Every case and seed, two at a time; `on_done(done, total)` after each."""
    started = time.perf_counter()
    names = cases or tuple(case.case_id for case in CASES)
    # Long cases first, so that the last worker does not end alone.
    order = sorted(names, key=lambda name: -case_named(name).duration_s)
    work = [(name, seed) for name in order for seed in range(1, seeds + 1)]
    scores: list[Score] = []
    for done, found in enumerate(_scored(work, workers or min(WORKERS_MAX, os.cpu_count() or 1)), start=1):
        scores.extend(found)
        on_done(done, len(work))
    lines = tuple(_lines(scores, names))
    return Result(
        seeds=seeds,
        lines=lines,
        missed=tuple(_missed(lines)),
        failed=tuple(_failed(scores)),
        wall_s=time.perf_counter() - started,
    )


def _scored(work: list[tuple[str, int]], workers: int) -> Iterator[list[Score]]:
    if workers <= 1:
        yield from map(score_seed, work)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(score_seed, work)


def score_seed(job: tuple[str, int]) -> list[Score]:
    """All policies of one case on one seed, in the same world."""
    case, seed = case_named(job[0]), job[1]
    return score_world(case, make_world(case, seed), seed=seed, policies=_policies(case))


def score_world(case: Case, world: World, *, seed: int, policies: tuple[tuple[str, str], ...]) -> list[Score]:
    """The given policies in one world, each beside the oracle with its own final energy."""
    forecasters = {variant: Forecaster(world.trace, is_scheduled=variant == "scheduled") for _, variant in policies}
    outs = {
        (policy, variant): Run(
            world, policy=policy, is_scheduled=variant == "scheduled", forecaster=forecasters[variant]
        ).go()
        for policy, variant in policies
    }
    oracle = Oracle(oracle_case(case, world))
    demand_j = next(iter(outs.values())).demand_j
    curve = LeastLoss(oracle, tolerance_j=CURVE_PP / 100.0 * demand_j)
    least = curve.at([world.start_j, *(out.final_j for out in outs.values())])
    at_start = least[world.start_j]
    scores = []
    for (policy, variant), out in outs.items():
        best = least[out.final_j]
        alike = best if policy == "none" else _alike(oracle, out, best)
        scores.append(_score(case, world, out, best, alike, at_start, key=(policy, variant, seed)))
    return scores


def _alike(oracle: Oracle, out: Outcome, best: Least | None) -> Least | None:
    """What an oracle loses that may break what the policy broke; `best` where that already tells them apart.

    Such an oracle loses no more than the plain one: who did not beat the plain one cannot beat it. `none` has no target
    that the oracle's could be likened to.
    """
    if out.slack is None or (best is not None and 100.0 * (out.lost_j - best.lost_j) / out.demand_j >= REGRET_MIN_PP):
        return best
    answer = oracle.solve(out.final_j, slack=out.slack)
    return Least(answer.lost_j, answer.dual_j_per_j) if answer is not None else None


def _score(
    case: Case,
    world: World,
    out: Outcome,
    best: Least | None,
    alike: Least | None,
    at_start: Least | None,
    *,
    key: tuple[str, str, int],
) -> Score:
    policy, variant, seed = key
    return Score(
        case=case.case_id,
        policy=policy,
        variant=variant,
        seed=seed,
        lost_frac=out.lost_j / out.demand_j,
        oracle_lost_frac=best.lost_j / out.demand_j if best else None,
        oracle_start_lost_frac=at_start.lost_j / out.demand_j if at_start else None,
        regret_pp=100.0 * (out.lost_j - best.lost_j) / out.demand_j if best else None,
        alike_pp=100.0 * (out.lost_j - alike.lost_j) / out.demand_j if alike else None,
        final_less_start_j=out.final_j - world.start_j,
        dual=best.dual_j_per_j if best else 0.0,
        episodes=out.episodes,
        unforced_episodes=out.unforced_episodes,
        episode_w_max=out.episode_w_max,
        forced_w=out.forced_w,
        crash_safe_frac=out.crash_safe_frac,
        tier_excess_j=float(out.tier_excess_j.sum()),
        fallbacks=out.fallbacks,
    )


def _policies(case: Case) -> tuple[tuple[str, str], ...]:
    return POLICIES + EXTRA.get(case.case_id, ())


def _lines(scores: list[Score], names: tuple[str, ...]) -> Iterator[Line]:
    for name in names:
        for policy, variant in _policies(case_named(name)):
            mine = [s for s in scores if (s.case, s.policy, s.variant) == (name, policy, variant)]
            scored = [s for s in mine if s.regret_pp is not None]
            if scored:
                yield _line(mine, scored)


def _line(mine: list[Score], scored: list[Score]) -> Line:
    def mean(name: str) -> float:
        return sum(float(getattr(score, name) or 0.0) for score in scored) / len(scored)

    first = scored[0]
    ratios = [s.episode_w_max / s.forced_w for s in mine if s.forced_w > 0.0 and s.unforced_episodes == 0]
    return Line(
        case=first.case,
        policy=first.policy,
        variant=first.variant,
        lost_frac=mean("lost_frac"),
        oracle_lost_frac=mean("oracle_lost_frac"),
        regret_pp=mean("regret_pp"),
        regret_pp_worst=max(float(s.regret_pp or 0.0) for s in scored),
        episodes=sum(s.episodes for s in mine),
        unforced_episodes=sum(s.unforced_episodes for s in mine),
        episode_w_max=max(s.episode_w_max for s in mine),
        episode_over_forced=max(ratios, default=0.0),
        crash_safe_frac=min(s.crash_safe_frac for s in mine),
        oracle_start_lost_frac=mean("oracle_start_lost_frac"),
        final_less_start_j=mean("final_less_start_j"),
        dual=mean("dual"),
        tier_excess_j=mean("tier_excess_j"),
        fallbacks=sum(s.fallbacks for s in mine),
        infeasible=len(mine) - len(scored),
    )


def _failed(scores: list[Score]) -> Iterator[str]:
    """No policy may beat an oracle that keeps no more than it did; `none` keeps nothing and is not held to it."""
    for score in scores:
        if score.policy != "none" and score.alike_pp is not None and score.alike_pp < REGRET_MIN_PP:
            yield (
                f"{score.case} {score.policy} {score.variant} seed {score.seed}: regret {score.alike_pp:.4f} pp is "
                f"below {REGRET_MIN_PP}: policy and oracle are not in the same world"
            )


def _missed(lines: tuple[Line, ...]) -> Iterator[str]:
    """The goals asked of `mpc` that this run does not reach."""
    by_key = {(line.case, line.policy, line.variant): line for line in lines}
    for line in lines:
        if line.policy != "mpc":
            continue
        case, name = case_named(line.case), f"{line.case} mpc {line.variant}"
        goal = case.goal_blind_pp if line.variant == "blind" else case.goal_scheduled_pp
        if goal is not None and line.regret_pp > goal:
            yield f"{name}: regret {line.regret_pp:.3f} pp, goal {goal:g}"
        if case.has_reserve and line.episodes:
            yield f"{name}: {line.episodes} episodes, goal none"
        if case.has_reserve and line.crash_safe_frac < 1.0:
            yield f"{name}: crash-safe {100 * line.crash_safe_frac:.2f} %, goal 100 %"
        if not case.has_reserve and line.unforced_episodes:
            yield f"{name}: {line.unforced_episodes} episodes away from the crash, goal none"
        if not case.has_reserve and line.episode_over_forced > EPISODE_FACTOR:
            yield f"{name}: largest episode {line.episode_over_forced:.2f} x its forced size, goal {EPISODE_FACTOR:g}"
        rival = by_key.get((line.case, "rule-max", "blind"))
        if line.case == "4-500" and rival is not None and line.regret_pp > rival.regret_pp + 1e-3:
            yield f"{name}: regret {line.regret_pp:.3f} pp, rule-max {rival.regret_pp:.3f}"
        if line.case == "tiers" and rival is not None and line.lost_frac > (1.0 - TIERS_SAVING) * rival.lost_frac:
            saved = 1.0 - line.lost_frac / rival.lost_frac
            yield f"{name}: weighted loss {100 * saved:.0f} % below rule-max, goal {100 * TIERS_SAVING:.0f} %"
