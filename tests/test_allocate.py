"""From class caps to clocks and back: one clock per class, never above the cap's power, never below the floor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.allocate import (
    CLOCK_STEP_MHZ,
    Curves,
    clocks_of_caps,
    fit_worst_case,
    held_back_w,
    lowered,
    worst_case_w,
)
from controller.config.gpu import load_curves
from controller.fleet import Fleet
from controller.types import ClassId, FleetTable, GpuId

IDLE_W, PEAK_W, CLOCK_MIN, CLOCK_MAX = 75.0, 700.0, 345.0, 1980.0


def fleet(models: tuple[str, ...], classes: tuple[int, ...]) -> Fleet:
    n = len(models)
    ids = tuple(GpuId(f"g{i}") for i in range(n))
    return Fleet(
        table=FleetTable(
            gpu_ids=ids,
            index={g: i for i, g in enumerate(ids)},
            spans={},
            cap_min=np.vstack((np.full(n, CLOCK_MIN), np.full(n, 200.0))),
            cap_max=np.vstack((np.full(n, CLOCK_MAX), np.full(n, PEAK_W))),
            floor_mhz=np.full(n, 600.0),
            idle_w=np.full(n, IDLE_W),
            peak_w=np.full(n, PEAK_W),
            stands_for=np.ones(n),
            power_exponent=1.0,
        ),
        class_ids=(ClassId("a"), ClassId("b")),
        class_index=np.array(classes, dtype=np.int64),
        models=models,
        job_index=np.array(classes, dtype=np.int64),
        job_names=("a", "b"),
    )


@given(share=st.floats(0.0, 1.2))
def test_gpus_of_a_class_get_one_clock_that_keeps_the_cap(share: float) -> None:
    """At the clock handed out the class draws at most its cap, unless the service floor is in the way."""
    site = fleet(("NVIDIA H100",) * 6, (0, 0, 0, 1, 1, 1))
    curves = Curves.of(site.models, load_curves())
    peak_w = np.array([3 * PEAK_W, 3 * PEAK_W])
    cap_w = np.array([3 * (IDLE_W + share * (PEAK_W - IDLE_W)), np.inf])
    clocks = clocks_of_caps(site, curves, cap_w=cap_w, peak_w=peak_w)
    assert len(set(clocks[:3].tolist())) == 1
    assert bool(np.isinf(clocks[3:]).all())
    if share >= 1.0:
        assert np.isinf(clocks[0])
        return
    assert 600.0 <= clocks[0] <= CLOCK_MAX
    drawn_w = IDLE_W + (PEAK_W - IDLE_W) * float(curves.power_share(np.full(6, clocks[0] / CLOCK_MAX))[0])
    if clocks[0] > 600.0:
        assert 3 * drawn_w <= cap_w[0] * 1.002
        step_up = IDLE_W + (PEAK_W - IDLE_W) * float(
            curves.power_share(np.full(6, (clocks[0] + 2 * CLOCK_STEP_MHZ) / CLOCK_MAX))[0]
        )
        assert 3 * step_up >= cap_w[0] * 0.998  # and not needlessly low


def test_a_mixed_class_gets_the_clock_of_each_curve() -> None:
    """Two models in one class at the same share of power: each its own clock, from its own curve."""
    site = fleet(("NVIDIA H100", "Tesla V100"), (0, 0))
    curves = Curves.of(site.models, load_curves())
    clocks = clocks_of_caps(site, curves, cap_w=np.array([900.0, np.inf]), peak_w=np.array([1400.0, 1.0]))
    assert clocks[0] != clocks[1]
    known = load_curves()
    for clock, name in zip(clocks, ("h100", "v100"), strict=True):
        share = float(known[name].power_share(clock / CLOCK_MAX))
        assert share == pytest.approx((900.0 - 150.0) / (1400.0 - 150.0), abs=0.03)


@given(fraction=st.floats(0.4, 1.0), busy=st.floats(0.2, 1.0))
def test_held_back_power_is_what_the_cap_took(fraction: float, busy: float) -> None:
    """A job that would draw X, capped to a clock, is seen as drawing less; adding back gives X."""
    site = fleet(("NVIDIA H100",) * 4, (0, 0, 1, 1))
    curves = Curves.of(site.models, load_curves())
    wanted_w = IDLE_W + busy * (PEAK_W - IDLE_W)
    share = float(load_curves()["h100"].power_share(fraction))
    drawn = np.full(4, IDLE_W + busy * share * (PEAK_W - IDLE_W))
    held = held_back_w(site, curves, power_w=drawn, clock_cap_mhz=np.full(4, fraction * CLOCK_MAX))
    assert drawn[:2].sum() + held[0] == pytest.approx(2 * wanted_w, rel=5e-3)


def test_an_uncapped_fleet_holds_nothing_back() -> None:
    site = fleet(("NVIDIA H100",) * 4, (0, 0, 1, 1))
    curves = Curves.of(site.models, load_curves())
    held = held_back_w(site, curves, power_w=np.full(4, 500.0), clock_cap_mhz=np.full(4, np.inf))
    assert bool((held == 0.0).all())


def test_gpus_that_obey_make_up_for_those_that_do_not() -> None:
    """Two of four draw 650 W whatever they are told: the others come down to what is left."""
    site = fleet(("NVIDIA H100",) * 4, (0, 0, 0, 0))
    curves, free = Curves.of(site.models, load_curves()), np.full((2, 4), np.inf)
    fixed_w, hard_w = np.array([650.0, np.nan, 650.0, np.nan]), 2 * 650.0 + 2 * 400.0
    caps = fit_worst_case(site, curves, free, among=np.isnan(fixed_w), hard_w=hard_w - 2 * 650.0)
    assert np.isinf(caps[:, [0, 2]]).all()
    assert 0.99 * hard_w < worst_case_w(site, caps, fixed_w=fixed_w) <= hard_w


@pytest.mark.parametrize(
    ("fall_w", "among", "clocks_mhz"),
    [
        (np.inf, (True, True), (1845.0, 1935.0)),
        (31.0, (True, True), (1935.0, 1965.0)),  # a third of the 91 W, in steps of a GPU
        (1.0, (True, True), (1965.0, 1965.0)),  # one step at least: what a plan asks for is not put off for ever
        (31.0, (True, False), (1965.0, 1935.0)),  # the other's 23 W come first
        (1.0, (False, False), (1845.0, 1935.0)),
    ],
)
def test_clocks_go_no_lower_at_once_than_takes_off_what_may_go(
    fall_w: float, among: tuple[bool, ...], clocks_mhz: tuple[float, ...]
) -> None:
    """Two GPUs of 600 W go 135 and 45 MHz lower, and two are free; those that rise do."""
    site = fleet(("NVIDIA H100",) * 4, (0, 0, 1, 1))
    curves, wanted = Curves.of(site.models, load_curves()), np.array([1845.0, 1935.0, np.inf, 1500.0])
    before = np.array([np.inf, np.inf, np.inf, 1200.0])
    may_wait, power_w = np.array([*among, True, True]), np.full(4, 600.0)
    found = lowered(site, curves, wanted, among=may_wait, before_mhz=before, power_w=power_w, fall_w=fall_w)
    assert found[:2] == pytest.approx(clocks_mhz) and found[2] == np.inf and found[3] == 1500.0
