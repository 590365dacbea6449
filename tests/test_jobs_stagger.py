"""Clocks of independent jobs change one after the other, lowers before raises; tiers that are passed are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.allocate import Curves
from controller.config.gpu import load_curves
from controller.fleet import Fleet
from controller.settings import JobClassSettings
from controller.stagger import Stagger
from controller.tier_watch import TierWatch
from controller.types import ClassId, EnvelopeState, FloatArray
from tests.test_identify import TOP_MHZ, fleet_of, readings

TICK_S = 0.05


class Site:
    """Four jobs of two GPUs under a stagger, with the envelope's books kept as the envelope keeps them."""

    def __init__(self, jobs: int = 4, period_s: float = 1.0) -> None:
        self.fleet: Fleet = fleet_of([0] * (2 * jobs), jobs=[j for j in range(jobs) for _ in range(2)])
        n = self.fleet.count
        self.stagger = Stagger(period_s=period_s)
        self.books = EnvelopeState(
            gpu_ids=self.fleet.table.gpu_ids, caps=np.full((2, n), np.inf), clock_written_s=np.full(n, -np.inf)
        )
        self.t_s = 0.0
        self.changes: list[tuple[float, int, float]] = []  # time, job, new clock
        self.told: list[set[int]] = []

    def plan(self, *clocks: float, is_urgent: bool = False, ticks: int = 20) -> None:
        """One planner period under a clock per job."""
        wanted = np.vstack((np.repeat(np.array(clocks), 2), np.full(self.fleet.count, np.inf)))
        self.stagger.planned(self.t_s, is_urgent=is_urgent)
        told: set[int] = set()
        for _ in range(ticks):
            self.t_s += TICK_S
            found = self.stagger.due(self.t_s, self.fleet, wanted, self.books, self.books.caps, may_rise=True)
            if found is not None:
                told |= set(self.fleet.job_index[found[1]].tolist())
                self._write(found[0])
        self.told.append(told)

    def _write(self, caps: FloatArray) -> None:
        is_new = caps[0] != self.books.caps[0]
        early = is_new & (self.t_s - self.books.clock_written_s < 1.0 - 1e-9)
        assert not early.any(), "a second clock write within a second"
        for gpu in np.flatnonzero(is_new)[::2].tolist():
            self.changes.append((self.t_s, int(self.fleet.job_index[gpu]), float(caps[0, gpu])))
        written = np.where(is_new, self.t_s, self.books.clock_written_s)
        self.books = replace(self.books, caps=caps, clock_written_s=written)


def test_jobs_change_at_different_moments_and_always_the_same_ones() -> None:
    one, two = Site(), Site()
    for site in (one, two):
        site.plan(1500.0, 1500.0, 1500.0, 1500.0)
        site.plan(1200.0, 1200.0, 1200.0, 1200.0)
    assert one.changes == two.changes and len(one.changes) == 8
    first = [t for t, _, _ in one.changes[:4]]
    assert len(set(first)) == 4 and max(first) - min(first) >= 0.25


def test_lowers_come_before_raises() -> None:
    site = Site()
    site.plan(1200.0, 1800.0, 1200.0, 1800.0)
    site.plan(*[1200.0, 1800.0, 1200.0, 1800.0])
    site.changes.clear()
    site.plan(1800.0, 1200.0, 1800.0, 1200.0)
    lowers = [t for t, j, _ in site.changes if j in (1, 3)]
    raises = [t for t, j, _ in site.changes if j in (0, 2)]
    assert len(lowers) == len(raises) == 2 and max(lowers) < min(raises)


def test_urgent_lowers_do_not_wait() -> None:
    site = Site()
    site.plan(900.0, 900.0, 900.0, 900.0, is_urgent=True)
    assert {t for t, _, _ in site.changes} == {TICK_S}


def test_every_node_hears_of_every_plan_in_time() -> None:
    """Commands live five periods: a node is told once a period even when nothing changes for it."""
    site = Site()
    for _ in range(3):
        site.plan(np.inf, np.inf, np.inf, np.inf)
    assert site.told == [{0, 1, 2, 3}] * 3 and site.changes == []


@given(st.lists(st.tuples(*[st.sampled_from([900.0, 1200.0, 1500.0, np.inf])] * 4, st.booleans()), max_size=8))
@settings(max_examples=60, deadline=None)
def test_no_gpu_is_written_twice_a_second_and_all_arrive(plans: list[tuple[float, ...]]) -> None:
    """Whatever the plans are, urgent and short-lived ones too: `_write` asserts the pause; a steady plan is reached."""
    site = Site()
    for *clocks, is_urgent in plans:
        site.plan(*clocks, is_urgent=bool(is_urgent), ticks=7 if is_urgent else 20)
    for _ in range(3):
        site.plan(1200.0, 1500.0, 900.0, np.inf)
    assert site.books.caps[0][::2].tolist() == [1200.0, 1500.0, 900.0, np.inf]


def test_refused_raise_is_asked_once_a_plan() -> None:
    """The envelope takes a raise back and counts it: asking at every tick would put the planner in doubt."""
    site = Site(jobs=1)
    site.plan(900.0)
    wanted = np.vstack((np.full(2, 1500.0), np.full(2, np.inf)))
    site.stagger.planned(2.0, is_urgent=False)
    found = [
        site.stagger.due(2.0 + i * TICK_S, site.fleet, wanted, site.books, site.books.caps, may_rise=True)
        for i in range(1, 20)
    ]
    assert sum(f is not None and bool((f[0] > site.books.caps).any()) for f in found) == 1


# ------------------------------------------------------------------------------------------------ tiers


def test_loss_beyond_a_tier_is_told_and_forgotten_with_its_window() -> None:
    """Half of the clock for two minutes of a ten-minute window: beyond 5 %, within 25 %; over when it rolled out."""
    fleet = fleet_of([0, 0, 1, 1])
    curves = Curves.of(fleet.models, load_curves())
    classes = [
        JobClassSettings(ClassId("train"), 50, 0.25, 600.0, 1.0),
        JobClassSettings(ClassId("serve"), 50, 0.0, 600.0, 1.0),
        JobClassSettings(ClassId("tune"), 50, 0.1, 60.0, 1.0),
        JobClassSettings(ClassId("rest"), 50, 0.1, 600.0, 1.0),
    ]
    watch = TierWatch(classes)
    power = np.full(4, 500.0)

    def pass_time(seconds: float, clock: float) -> None:
        caps = np.array([clock, clock, clock, clock]) * TOP_MHZ if clock < 1.0 else np.full(4, np.inf)
        for _ in range(round(seconds)):
            pass_time.t_s += 1.0  # type: ignore[attr-defined]
            watch.book(pass_time.t_s, fleet, readings(fleet, power, caps), curves)  # type: ignore[attr-defined]

    pass_time.t_s = 0.0  # type: ignore[attr-defined]
    pass_time(600, 1.0)
    assert [s.is_exceeded for s in watch.states] == [False] * 4
    pass_time(120, 0.5)
    train, serve, tune, _ = watch.states
    assert serve.lost_frac == pytest.approx(0.2 * (1.0 - 0.5**0.98), rel=0.05)
    assert serve.is_exceeded and not train.is_exceeded and tune.lost_frac == 0.0
    pass_time(620, 1.0)
    assert not watch.states[1].is_exceeded and watch.states[1].lost_frac == pytest.approx(0.0, abs=1e-9)


def test_loss_is_told_at_once_when_the_window_can_no_longer_hold_it() -> None:
    """A class without tolerance is beyond it with its first lost second, long before its hour is full."""
    fleet = fleet_of([1, 1])
    watch = TierWatch([JobClassSettings(ClassId(c), 50, 0.0, 3600.0, 1.0) for c in ("a", "b", "c", "d")])
    curves = Curves.of(fleet.models, load_curves())
    for t_s in range(30):
        watch.book(float(t_s), fleet, readings(fleet, np.full(2, 500.0), np.full(2, 0.5 * TOP_MHZ)), curves)
    assert [s.is_exceeded for s in watch.states] == [False, True, False, False]


def test_idle_gpus_lose_nothing() -> None:
    fleet = fleet_of([0, 0])
    watch = TierWatch([JobClassSettings(ClassId("a"), 50, 0.0, 600.0, 1.0)] * 4)
    curves = Curves.of(fleet.models, load_curves())
    for t_s in range(30):
        watch.book(float(t_s), fleet, readings(fleet, np.full(2, 75.0), np.full(2, 900.0)), curves)
    assert not watch.states[0].is_exceeded and watch.states[0].lost_frac == 0.0


def test_raises_wait_while_they_may_not_go_and_lowers_do_not() -> None:
    """Of two jobs one falls and one rises; the fall comes in its turn, the rise once it may."""
    site = Site(jobs=2)
    site.books = replace(site.books, caps=np.vstack((np.repeat([1500.0, 900.0], 2), np.full(4, np.inf))))
    wanted = np.vstack((np.repeat([900.0, 1500.0], 2), np.full(4, np.inf)))
    site.stagger.planned(0.0, is_urgent=False)
    for tick in range(1, 20):
        found = site.stagger.due(tick * TICK_S, site.fleet, wanted, site.books, site.books.caps, may_rise=False)
        if found is not None:
            site.books = replace(site.books, caps=found[0])
    assert site.books.caps[0].tolist() == [900.0] * 4
    last = site.stagger.due(1.0, site.fleet, wanted, site.books, site.books.caps, may_rise=True)
    assert last is not None and last[0][0].tolist() == [900.0, 900.0, 1500.0, 1500.0]
