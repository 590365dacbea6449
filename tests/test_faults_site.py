"""Rows P and C of the fault catalogue: planner and clocks of the whole site in virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import piqp
import pytest

from controller.modes import Flag
from controller.plan.solve import SHIFTS_MAX, MpcPlanner
from controller.types import AgentState, Mode, Reading
from hil import vtime
from hil.lab_site import MW
from hil.matrix import row
from hil.matrix_lab import Lab
from tests.faults_kit import SEEN_S, Begin, battery, broken_between, flagged, mean_at, play, step_w

GPU_PEAK_W = 700.0


# ------------------------------------------------------------------------------------------------ planner


def planner(lab: Lab) -> MpcPlanner:
    assert lab.daemon is not None
    found = lab.daemon.core.planning._planner
    assert isinstance(found, MpcPlanner)
    return found


class Sick:
    """The planner's solver, whose word is replaced and nothing else."""

    def __init__(self, solver: Any) -> None:
        self.inner = solver

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def ends_with(status: Any) -> Begin:
    """The solver ends with `status` from now on."""

    class Ends(Sick):
        def solve(self) -> Any:
            self.inner.solve()
            return status

    return lambda lab: setattr(planner(lab), "_solver", Ends(planner(lab)._solver))


def heal_solver(lab: Lab) -> None:
    sick: Any = planner(lab)._solver
    planner(lab)._solver = sick.inner


async def sheds(lab: Lab, since_s: float, state: str) -> None:
    """Shifted plans first, three at most, then the rule planner: caps and battery go on, nothing rises, SHED."""
    await flagged(lab, Flag.SOLVER_INVALID, since_s=since_s, within_s=6.0)
    found_s = lab.now_s
    await lab.run(5.0)
    assert lab.last.mode >= Mode.SHED and (lab.last.plan_policy, lab.last.plan_status) == ("mpc", "rule")
    assert lab.last.battery_w is not None and not lab.raised(found_s + SEEN_S)
    shifted_s = [tick.t_s for tick in lab.since(since_s) if tick.plan_status == "shifted"]
    assert state == "cold" or shifted_s, "the last plan is good for a while"
    assert not shifted_s or max(shifted_s) - min(shifted_s) <= SHIFTS_MAX * lab.site.planner_period_s


def solver_fails(state: str, begin: Begin) -> None:
    async def react(lab: Lab, since_s: float) -> None:
        await sheds(lab, since_s, state)

    play(state, begin=begin, react=react, heal=heal_solver, after_start=True, policy="mpc")


@row("P1")
def test_infeasible(state: str) -> None:
    """The solver finds no solution; the numbers it leaves behind are not looked at."""
    solver_fails(state, ends_with(piqp.PIQP_PRIMAL_INFEASIBLE))


@row("P2")
def test_solver_late(state: str) -> None:
    """The iteration budget is spent, however good what it has by then may be."""
    solver_fails(state, ends_with(piqp.PIQP_MAX_ITER_REACHED))


@row("P3")
def test_solution_not_finite(state: str) -> None:
    """The solver's own result holds a NaN: the real check refuses it."""

    class Poisoned(Sick):
        @property
        def result(self) -> Any:
            true = self.inner.result

            class Result:
                x = np.full(np.asarray(true.x).shape, np.nan)
                info = true.info

            return Result

    solver_fails(state, lambda lab: setattr(planner(lab), "_solver", Poisoned(planner(lab)._solver)))


@row("P4")
def test_solver_crash_ends_the_process_and_the_next_one_takes_over(state: str) -> None:
    """The solver lives in the controller's process: its crash is the controller's death, and restart is the cure."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.kill()
        await lab.run(3.0)
        await lab.restart()
        await lab.until(lambda: bool(lab.ticks) and lab.last.plan_status == "solved", within_s=10.0)
        span.append((since_s, lab.now_s))

    span: list[tuple[float, float]] = []
    lab = play(
        state, begin=lambda lab: None, react=react, after_start=True, policy="mpc", is_judged=False, stays_s=20.0
    )
    assert step_w(lab, from_s=span[0][0], to_s=span[0][1]) <= 5 * MW
    assert not (broken := broken_between(lab, span[0][0] + 3.0)), broken  # the next controller is there from then on


@row("P5")
def test_model_mismatch(state: str) -> None:
    """GPUs report more than any job could draw at their clocks: flagged, margin up, and no correction without end.

    A model that no cap tests is neither right nor wrong, so a ceiling is there where the state has none.
    """

    def above_the_model(reading: Reading[Any]) -> Reading[Any]:
        report = reading.value
        return replace(reading, value=replace(report, power_w=np.full_like(report.power_w, 0.95 * GPU_PEAK_W)))

    async def react(lab: Lab, since_s: float) -> None:
        await flagged(lab, Flag.MODEL_MISMATCH, since_s=since_s, within_s=30.0)
        assert lab.last.mode >= Mode.DEGRADED and lab.daemon is not None
        assert lab.daemon.core.planning.model_margin_w > 0.0
        await lab.run(10.0)
        assert float(lab.daemon.core.planning.demand.class_w.sum()) <= 1.5 * lab.site.gpu_peak_w + 1.0, "wound up"

    ceiling_megawatt = {"ramp": 46.0}.get(state, 60.0)
    target = {"t_s": 1.0, "kind": "load_target", "megawatt": ceiling_megawatt, "by_s": 30.0}
    play(
        state,
        begin=lambda lab: setattr(lab.hooks, "report", above_the_model),
        react=react,
        signals=[] if state == "limit" else [target],
    )


# ------------------------------------------------------------------------------------------------ clocks


@row("C1")
@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_wall_clock_steps(state: str, step_s: float) -> None:
    """An hour either way: control goes on, nothing rises until the dwell is over."""

    async def react(lab: Lab, since_s: float) -> None:
        if state == "cold":
            await lab.run(2.0)
            lab.clock.step_wall_s(step_s)
        await flagged(lab, Flag.CLOCK_STEPPED, since_s=since_s, within_s=3.0)
        count = len(lab.ticks)
        await lab.run(5.0)
        assert len(lab.ticks) - count >= 48, "control paused"
        assert lab.last.mode >= Mode.DEGRADED and not lab.raised(lab.now_s - 4.5)

    begin = (lambda lab: None) if state == "cold" else (lambda lab: lab.clock.step_wall_s(step_s))
    play(state, begin=begin, react=react)


STALL_S = 2.5


@row("C3")
def test_event_loop_stalls(state: str) -> None:
    """2.5 s without the loop: cycles are skipped, not made up for; DEGRADED; the stalled cycle feeds no watchdog.

    Where our loop closes on the battery its set-point stands as well, so what the load does meanwhile is on the meter
    whoever controls; a row is forced where that alone, from a meter on its target, breaks it.
    """

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(0.5)
        count, at_s = len(lab.ticks), lab.now_s
        began_s.append(at_s)
        vtime.running_loop().stall_ns(round(STALL_S * 1e9))
        await lab.run(1.0)
        assert len(lab.ticks) - count <= 13, "skipped cycles were run in a burst"
        assert lab.saw(Flag.LOOP_STALLED, since_s=at_s) and lab.last.mode >= Mode.DEGRADED
        first = next(tick for tick in lab.ticks if tick.t_s > at_s + 0.2)
        assert first.t_s >= at_s + STALL_S - 0.2, "the cycle that stalled"
        assert not [t for t in lab.kicks if at_s + 0.2 < t < first.t_s + 0.05], "it feeds no watchdog"
        assert [t for t in lab.kicks if t > first.t_s + 0.05], "the next one does"

    began_s: list[float] = []
    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False, stays_s=20.0)
    broken = lab.broken()
    assert not (after := broken_between(lab, began_s[0] + STALL_S)), after
    if broken:
        change_w = mean_at(lab, began_s[0]) - mean_at(lab, began_s[0] + STALL_S)
        assert abs(change_w) > 5 * MW, f"not forced: {broken}"


def test_a_battery_that_follows_by_itself_holds_through_a_stall() -> None:
    """The same stall in the same ramp: the device goes on following its last target, and every row is held."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(0.5)
        vtime.running_loop().stall_ns(round(STALL_S * 1e9))
        await lab.run(1.0)

    play("ramp", begin=lambda lab: None, react=react, after_start=True, following="device")


@row("C4")
def test_suspend_and_resume(state: str) -> None:
    """12 s of suspend: commands expire at the nodes and the battery; on resume it is noted and armed again."""

    async def react(lab: Lab, since_s: float) -> None:
        await lab.run(3.0)
        at_s = lab.now_s
        held_w = abs(battery(lab).power_w)
        vtime.running_loop().stall_ns(12_000_000_000)
        await lab.run(0.25)
        seen = [r.value for t in lab.traces if t.image.t_mono_s > at_s + 11.0 for r in t.image.nodes]
        fallen = {report.node_id for report in seen if report.state is AgentState.FALLBACK}
        assert fallen == set(lab.link.nodes), "caps expired at the nodes"
        before = lab.traces[-1].image.battery
        assert before is not None and (held_w < 1 * MW or abs(before.value.power_w) < held_w), "and at the battery"
        await lab.run(1.75)
        assert lab.saw(Flag.RESUMED, since_s=at_s) and lab.worst_mode(at_s) >= Mode.DEGRADED
        await lab.run(6.0)
        assert all(node.state.value == "armed" for node in lab.link.nodes.values())
        span.append((at_s, at_s + 14.0))

    span: list[tuple[float, float]] = []
    lab = play(state, begin=lambda lab: None, react=react, after_start=True, is_judged=False, stays_s=20.0)
    assert step_w(lab, from_s=span[0][0], to_s=span[0][1]) <= 5 * MW
    assert not (broken := broken_between(lab, span[0][0] + 12.0)), broken  # resumed: every row, from then on
