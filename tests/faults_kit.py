"""The story that every row of the matrix tells in the lab: settle, break, react, heal, recover, and truth judged."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.audit.referee import Referee
from controller.modes import Flag
from controller.types import FloatArray, Mode, OperatorOrder, RampLimit, RowVerdict, SwingLimit
from hil.lab_site import LIMIT_FROM_S, LIMIT_MEGAWATT, MW, RAMP_FROM_S, SETTLE_S, lab_scenario
from hil.matrix_lab import Lab, in_lab

RECOVER_S = 30.0  # NORMAL within 30 T after the last dwell of 10 T
DWELL_S = 10.0
COMES_DOWN_S = 12.0  # from the fault on: what the rows left to come down to the ceiling of the state "limit"
CEILING_SLACK = 1.002  # of the ceiling, on means of a second: what the load's ripple leaves between two samples
SEEN_S = 0.25  # two cycles: what a meter says is acted on in the first that hears it

Begin = Callable[[Lab], object]
React = Callable[[Lab, float], Awaitable[None]]


def play(
    state: str,
    *,
    begin: Begin,
    react: React,
    heal: Begin | None = None,
    recovers: bool = True,
    is_judged: bool = True,
    after_start: bool = False,
    reference: Begin | None = None,
    loss: Loss | None = None,
    stays_s: float = 2.0,
    forgets_s: float = 0.0,
    ceiling_slack: float = CEILING_SLACK,
    limit_from_s: float = LIMIT_FROM_S,
    limit_settle_s: float = SETTLE_S["limit"],
    options: dict[str, Any] | None = None,
    **scenario: Any,
) -> Lab:
    """One cell. `begin` makes the fault (from cold: before the first cycle, or just `after_start`), `react` asserts.

    `reference` makes the part of the fault that no knowledge could avoid: the same site with true readings and that
    part alone decides whether a broken limit was forced. `loss`: it is when it is no more than what the battery took
    with it, by truth. `stays_s`: what is judged of NORMAL, once it is back; `forgets_s`: the memory of
    what finds it; `limit_from_s`, `limit_settle_s`: when the ceiling is told, and the fault made there. At the limit
    the ceiling is judged as well.
    """

    def story_of(begin_now: Begin, react_now: React, *, is_reference: bool) -> Callable[[Lab], Awaitable[None]]:
        async def story(lab: Lab) -> None:
            if state == "cold" and not after_start:
                begin_now(lab)
            lab.start()
            await lab.run(settle_s)
            if state != "cold" or after_start:
                begin_now(lab)
            began_s.append(lab.now_s)
            await react_now(lab, lab.now_s)
            (heal or Lab.heal)(lab)
            if not is_reference and recovers:
                await recovered(lab, forgets_s=forgets_s)
                await lab.run(stays_s)
            if not is_reference and state == "limit":
                await lab.run(max(0.0, settle_s + COMES_DOWN_S + 4.0 - lab.now_s))

        return story

    began_s: list[float] = []
    settle_s = limit_settle_s if state == "limit" else SETTLE_S[state]
    scenario["limit_from_s"] = limit_from_s
    lab = in_lab(story_of(begin, react, is_reference=False), lab_scenario(state, **scenario), **(options or {}))
    if is_judged and loss is not None:
        assert not (broken := beyond_loss(lab, began_s[0], loss)), broken
    elif is_judged and (broken := lab.broken()):
        assert reference is not None, f"broken: {broken}"
        twin = in_lab(story_of(reference, _for(20.0), is_reference=True), lab_scenario(state, **scenario))
        assert twin.broken(), f"not forced: {broken}"
    if is_judged and state == "limit":
        assert_under_ceiling(lab, from_s=began_s[0] + COMES_DOWN_S, to_s=lab.now_s, slack=ceiling_slack)
    return lab


def assert_under_ceiling(lab: Lab, *, from_s: float, to_s: float, slack: float = CEILING_SLACK) -> None:
    """The ceiling of the state "limit" between two instants, on means of a second of plant truth. After `verdicts`."""
    top_w = highest_w(lab, from_s=from_s, to_s=to_s)
    assert top_w <= slack * LIMIT_MEGAWATT * MW, f"ceiling: {top_w:.4g} > {LIMIT_MEGAWATT} MW"


def recovery_s(lab: Lab) -> float:
    """30 T after the last dwell; where the envelope's doubt was raised its 60 s of memory come before."""
    return DWELL_S + RECOVER_S + (60.0 if lab.saw(Flag.ENVELOPE_BUSY) else 0.0)


async def recovered(lab: Lab, *, forgets_s: float = 0.0) -> None:
    """NORMAL within the time that is allowed for it; an AssertionError after that."""
    since_s = lab.now_s
    while not is_normal(lab):
        assert lab.now_s - since_s < forgets_s + recovery_s(lab), f"not NORMAL in time; now {lab.last}"
        await lab.run(0.25)


def is_normal(lab: Lab) -> bool:
    """NORMAL, by a cycle of now."""
    return bool(lab.ticks) and lab.now_s - lab.last.t_s <= 1.0 and lab.last.mode is Mode.NORMAL


async def flagged(lab: Lab, *flags: Flag, since_s: float, within_s: float) -> None:
    """One of `flags` within that time; before a controller has seen its site it is given two seconds more."""
    await lab.until(
        lambda: any(lab.saw(flag, since_s=since_s) for flag in flags), within_s=within_s + (2.5 if since_s < 1 else 0.0)
    )


def second_means(lab: Lab, *, from_s: float, to_s: float) -> tuple[FloatArray, int]:
    """1 s means of true power between two instants, at every step of the plant; how many steps a second has."""
    means, per_s = _means(lab, lab.pcc_w())
    return means[round(from_s * per_s) : round(to_s * per_s)], per_s


def _means(lab: Lab, power_w: FloatArray) -> tuple[FloatArray, int]:
    per_s = round(1e9 / lab.world.plant.step_ns)
    return np.convolve(power_w, np.full(per_s, 1.0 / per_s), mode="valid"), per_s


def highest_w(lab: Lab, *, from_s: float, to_s: float) -> float:
    """The highest 1 s mean of true power between two instants. After `verdicts`."""
    return float(second_means(lab, from_s=round(from_s), to_s=round(to_s))[0].max())


def step_w(lab: Lab, *, from_s: float, to_s: float) -> float:
    """The largest change of the 1 s mean of true power within a second, between two instants. Ends the run."""
    lab.verdicts()
    means, per_s = second_means(lab, from_s=round(from_s), to_s=round(to_s))
    return float(np.abs(means[per_s:] - means[:-per_s]).max())


def load_step_w(lab: Lab, *, from_s: float, to_s: float) -> float:
    """The same of true load, which nobody follows where there is no controller. After `verdicts`."""
    means, per_s = _means(lab, lab.pcc_w() + lab.battery_w())
    part = means[round(from_s) * per_s : round(to_s) * per_s]
    return float(np.abs(part[per_s:] - part[:-per_s]).max())


def broken_between(lab: Lab, from_s: float, to_s: float = math.inf) -> list[str]:
    """Rows broken on the truth between two instants alone, as of a record that begins with the first. After `verdicts`.

    For stories in which the rows are not asked for all the time: a controller that died, or a machine that stood still.
    """
    per_s = round(1e9 / lab.world.plant.step_ns)
    pcc_w = lab.pcc_w()[round(from_s * per_s) :]
    pcc_w = pcc_w if math.isinf(to_s) else pcc_w[: round((to_s - from_s) * per_s)]
    referee = Referee(lab.site.contract)
    referee.feed(np.arange(pcc_w.size, dtype=np.float64) / per_s, pcc_w)
    found = [r for r in referee.finish().limits if r.verdict is RowVerdict.BROKEN]
    return [f"{r.id}: {r.worst:.4g} > {r.limit:.4g} at {from_s + r.worst_t_s:.1f} s" for r in found]


def moved_w(lab: Lab, *, from_s: float, to_s: float, window_s: float) -> tuple[float, float]:
    """The largest fall and the largest rise of the 1 s mean of true power within a window. After `verdicts`."""
    (means, per_s), step = second_means(lab, from_s=from_s, to_s=to_s), 20
    windows = np.lib.stride_tricks.sliding_window_view(means[::step], round(window_s * per_s / step) + 1)
    return float((windows[:, 0] - windows.min(axis=1)).max()), float((windows.max(axis=1) - windows[:, 0]).max())


def mean_at(lab: Lab, t_s: float) -> float:
    """The mean of true power over the second before `t_s`."""
    per_s = round(1e9 / lab.world.plant.step_ns)
    end = round(t_s * per_s)
    return float(lab.pcc_w()[end - per_s : end].mean())


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes without a battery: the load's own change after the fault, which nobody can follow any more."""

    change_w: float = 0.0


def left_of_drop_w(state: str, lab_s: float) -> float:
    """What of the ramp's 25 MW in 8 s is still to leave."""
    return 25 * MW * (1.0 - (lab_s - RAMP_FROM_S) / 8.0) if state == "ramp" else 0.0


def beyond_loss(lab: Lab, at_s: float, loss: Loss) -> list[str]:
    """Rows broken on truth by more than the loss explains, whatever the controller did about it. Ends the run.

    On the meter are the battery's power at `at_s`, the load's change and the ripple that nobody follows now, on top of
    what the row's window had seen before.
    """
    broken = lab.broken_rows()
    per_s = round(1e9 / lab.world.plant.step_ns)
    at, mean = max(round(at_s * per_s), 1), np.full(per_s, 1.0 / per_s)
    pcc_w, battery_w = lab.pcc_w()[:at], lab.battery_w()[:at]

    def range_w(power_w: FloatArray, seconds: float) -> float:
        last_w = power_w[-round(seconds * per_s) :]
        return float(np.ptp(np.convolve(last_w, mean, mode="valid"))) if last_w.size >= per_s else 0.0

    windows_s = {row.id: row.window_s for row in lab.site.contract.limits if isinstance(row, RampLimit | SwingLimit)}
    lost_w = abs(float(battery_w[-1])) + abs(loss.change_w) + range_w(pcc_w + battery_w, 8.0)
    found = []
    for row in broken:
        explained_w = lost_w + range_w(pcc_w, windows_s[row.id])
        if row.worst > explained_w:
            found.append(f"{row.id}: {row.worst / 1e6:.2f} MW; the loss explains {explained_w / 1e6:.2f}")
    return found


def _for(seconds: float) -> React:
    async def wait(lab: Lab, since_s: float) -> None:
        await lab.run(seconds)

    return wait


def battery(lab: Lab) -> Any:
    """The plant's own, to be made ill."""
    return lab.world.plant.battery


class Person:
    """An operator who resets once when told to."""

    resets = False
    troubles = ()

    def order(self) -> OperatorOrder | None:
        asked, self.resets = self.resets, False
        return OperatorOrder(None, is_reset=True) if asked else None
