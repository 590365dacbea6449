"""Emergencies one after the other on the bench's site in virtual time: each is answered as if it were the first."""

from __future__ import annotations

import numpy as np
import pytest

from controller.types import FloatArray
from hil.bench_latency import settled_s
from hil.latency_plant import STEP_S
from hil.latency_site import Way
from tests.latency_kit import Loop, Shown

WARM_UP = 3  # as the bench has it: the first response rests on the prior of the GPUs' curve


def settled(shown: Shown) -> float | None:
    return settled_s(shown.t_s, shown.pcc_w, start_s=shown.start_s, before_w=shown.before_w, target_w=shown.target_w)


def undershoot_frac(shown: Shown) -> float:
    means: FloatArray = np.convolve(shown.pcc_w, np.ones(round(0.1 / STEP_S)), "valid") * STEP_S / 0.1
    return (shown.target_w - float(means.min())) / (shown.before_w - shown.target_w)


@pytest.mark.parametrize("way", list(Way))
def test_every_emergency_settles_however_many_were_before_it(way: Way) -> None:
    """Own steps are neither demand nor ripple nor a rhythm: the tenth response is as good as the fourth."""
    loop, rng = Loop(way), np.random.default_rng(3)
    loop.run(6.0)
    natural_w = loop.load_w
    for number in range(WARM_UP + 8):
        loop.run(float(rng.uniform(0.0, 0.1)))
        shown = loop.emergency()
        demand = loop.core.planning.demand
        assert demand.load_w == pytest.approx(natural_w, rel=0.03), number
        assert demand.ripple_up_w + demand.ripple_down_w < 0.04 * natural_w, number
        if number >= WARM_UP:
            assert settled(shown) is not None, number
            assert undershoot_frac(shown) < 0.05, number
    assert loop.core.tracker is not None and loop.core.tracker.line is None


def test_cycles_that_come_late_do_not_unsettle_it() -> None:
    """Eight trials on a busy machine, a cycle in three more than 4 ms late: all settle, the median as fast."""
    rng = np.random.default_rng(5)
    loop = Loop(Way.COMBINED, late=lambda: float(rng.exponential(0.004)))
    loop.run(6.0)
    found = [settled(loop.emergency()) for _ in range(WARM_UP + 8)][WARM_UP:]
    assert None not in found
    assert float(np.median([s for s in found if s is not None])) < 0.12


def test_a_power_limit_comes_after_its_clock_took_hold() -> None:
    """Caps alone end between one clock step under the target and its tolerance; a limit that cuts would go further."""
    loop = Loop(Way.CAPS)
    loop.run(6.0)
    for _ in range(WARM_UP + 1):
        shown = loop.emergency()
    assert shown.load_w.min() > shown.target_w - 0.05 * (shown.before_w - shown.target_w)
    assert loop.least_limit_w < 210.0, "the worst case of all GPUs is under the target"


def test_a_battery_that_is_lost_for_a_while_is_not_emptied_when_it_is_back() -> None:
    """A plan made without the battery must not bring its charge to the middle of nothing: 40 MW of wish, once."""
    loop = Loop(Way.COMBINED)
    loop.run(6.0)
    for is_lost in (True, False):
        loop.is_battery_lost = is_lost
        loop.run(3.0)
        plan = loop.core.plan
        assert plan is not None and plan.target_w[0] == pytest.approx(loop.load_w, rel=0.05)
        assert abs(loop.battery_w) < 0.05 * loop.load_w
