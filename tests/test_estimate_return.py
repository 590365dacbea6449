"""A meter that was wrong or away is first held against the nodes, whose load moves all the time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from controller.estimate import Estimate, LoadSource
from controller.types import (
    MeterFlag,
    NodeReport,
    Quality,
    Reading,
)
from tests.estimate_kit import TICK_S, Bench, node


class Moving:
    """A site of GPUs and 8 MW beside them whose load moves all the time; its battery answers the estimate at once."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.battery_w = [0.0]  # of each tick
        self.nodes: tuple[Reading[NodeReport], ...] = ()

    def load_w(self, t_s: float) -> float:
        return 60e6 + 2e6 * math.sin(t_s) + 0.3e6 * math.sin(5.0 * t_s)

    def grid_w(self, t_s: float) -> float:
        k = min(max(math.ceil(t_s / TICK_S - 1e-6) - 1, 0), len(self.battery_w) - 1)
        return self.load_w(t_s) - self.battery_w[k]

    def run(
        self, seconds: float, shown: Callable[[float], float | None], *, nodes_until_s: float = math.inf
    ) -> list[Estimate]:
        """`shown`: what the meter says in a sample stamped so."""
        found = []
        for _ in range(round(seconds / TICK_S)):
            now_s = self.bench.now_s + TICK_S
            if now_s < nodes_until_s:
                gpu_w = (self.load_w(math.floor(now_s * 5.0) / 5.0 - 0.6) - 8e6) / 80_000.0
                self.nodes = (node([gpu_w] * 8, now_s, stands_for=10_000),)
            battery_w = self.battery_w[-1]
            found.append(self.bench.tick(shown(now_s), nodes=self.nodes, battery_w=battery_w, sample_s=now_s))
            self.battery_w.append(found[-1].load_w - 60e6)
        return found

    def warm(self) -> None:
        found = self.run(20.0, self.grid_w)
        assert found[-1].source is LoadSource.METER and not found[-1].flags


@pytest.mark.parametrize(("factor", "for_s"), [(-1.0, 1.0), (10.0, 1.0), (None, 3.0)])
def test_a_meter_that_was_wrong_or_away_is_first_held_against_the_nodes(factor: float | None, for_s: float) -> None:
    """When it is back it does not serve at once, but as soon as the nodes have borne it out."""
    site = Moving()
    site.warm()
    site.run(for_s, lambda t: None if factor is None else factor * site.grid_w(t))
    back = [f.source for f in site.run(4.0, site.grid_w)]
    assert LoadSource.METER not in back[: round(1.0 / TICK_S)]
    assert back[round(3.0 / TICK_S) :] == [LoadSource.METER] * round(1.0 / TICK_S)


def test_a_meter_that_comes_back_late_from_a_silence_never_serves() -> None:
    """It has no counter. Its samples are 1.5 s old and not what the nodes make of the time of their stamps."""
    site = Moving()
    site.warm()
    site.run(5.0, lambda _: None)
    back = site.run(4.5, lambda t: site.grid_w(t - 1.5))
    assert LoadSource.METER not in [f.source for f in back]
    assert max(abs(f.load_w - site.load_w(f.t_s)) for f in back) < 0.5e6


def test_nodes_that_contradict_a_meter_that_was_away_do_so_for_some_seconds_only() -> None:
    """What they leave out changed meanwhile: 3 MW of chillers started."""
    site = Moving()
    site.warm()
    site.run(5.0, lambda _: None)
    back = site.run(7.0, lambda t: site.grid_w(t) + 3e6)
    assert back[round(4.0 / TICK_S)].source is LoadSource.NODES
    assert back[-1].source is LoadSource.METER


def test_a_meter_that_misses_a_sample_serves_again_at_once() -> None:
    site = Moving()
    site.warm()
    site.run(0.5, lambda _: None)
    assert site.run(TICK_S, site.grid_w)[0].source is LoadSource.METER


def test_a_slow_meter_is_away_between_its_samples_and_corrects_all_the_same() -> None:
    """A sample every 15 s, and a load of 2 MW that no node reports: when it speaks, the estimate is what it says."""
    site = Moving()
    site.warm()
    last = site.run(60.0, lambda t: site.grid_w(t) + 2e6 if t % 15.0 < TICK_S else None)
    assert {f.source for f in last[round(4.0 / TICK_S) :]} == {LoadSource.NODES}
    spoke_s = 75.0
    told = next(f for f in last if f.t_s >= spoke_s - 1e-6)
    assert told.load_w == pytest.approx(site.load_w(told.t_s) + 2e6, abs=0.1e6)


def test_nodes_without_a_single_power_reading_do_not_stand_in_for_the_meter() -> None:
    """Their last values were load once; what GPUs draw now nobody knows."""
    bench = Bench()
    for k in range(100):
        bench.tick(60e6 + 10.0 * (k % 7), nodes=(node([650.0 + k % 3] * 8, bench.now_s, stands_for=10_000),))
    found = [bench.tick(None, nodes=(node([math.nan] * 8, bench.now_s, stands_for=10_000),)) for _ in range(20)]
    assert found[-1].source is LoadSource.LOST and found[-1].quality is Quality.MISSING
    assert found[-1].load_w == pytest.approx(60e6, rel=1e-3)
    half = [650.0] * 4 + [math.nan] * 4
    partly = [bench.tick(None, nodes=(node(half, bench.now_s, stands_for=10_000),)) for _ in range(20)]
    assert partly[-1].source is LoadSource.NODES, "half of them is something"


def test_what_was_held_is_not_as_old_as_the_sample_that_ended_it() -> None:
    """Late by 4 s from one sample on: the load held for that tick is of the tick before, and so is its age."""
    bench = Bench()
    for k in range(200):
        nodes = (node([650.0 + k % 3] * 8, bench.now_s, stands_for=10_000),)
        wh = 1e6 + (bench.now_s + TICK_S - (4.0 if k == 199 else 0.0)) * 60e6 / 3_600.0
        found = bench.tick(60e6 + 10.0 * (k % 7), nodes=nodes, wh=wh)
    assert found.source is LoadSource.HELD and MeterFlag.METER_LATE in found.flags
    assert found.delay_s < 0.1


def test_what_cannot_be_is_not_held_against_the_nodes() -> None:
    """A minute of nonsense does not teach that meter and nodes are always apart: lateness is still found after it."""
    site = Moving()
    site.warm()
    site.run(60.0, lambda t: 3e12 * math.sin(7.0 * t))
    back = site.run(6.0, site.grid_w)
    assert back[-1].source is LoadSource.METER
    late = site.run(6.0, lambda t: site.grid_w(t - 2.5))
    assert any(MeterFlag.METER_LATE in f.flags for f in late)
    assert any(f.is_revised for f in late) and not any(f.is_revised for f in back)


def test_nodes_that_fell_silent_are_no_witness_against_a_meter_that_is_back() -> None:
    site = Moving()
    site.warm()
    site.run(3.0, lambda _: None, nodes_until_s=21.0)
    assert {f.source for f in site.run(1.0, site.grid_w, nodes_until_s=21.0)} == {LoadSource.METER}


@pytest.mark.parametrize("missing", [0, 4])
def test_a_gpu_whose_power_is_no_number_draws_what_it_drew(missing: int) -> None:
    """Half of them, said to be good or not, and the meter lost: load stands, and the bound takes in their caps."""
    site = Moving()
    site.warm()
    before_w = site.bench.estimator._nodes.gpu_w
    dumb = node([math.nan] * 4 + [650.0] * 4, site.bench.now_s, missing=missing, stands_for=10_000)
    found = site.bench.tick(None, nodes=(dumb,))
    found = [site.bench.tick(None, nodes=(dumb,)) for _ in range(40)][-1]
    known_w = 4 * 650.0 * 10_000
    assert found.gpu_w == pytest.approx(before_w / 2.0 + known_w)
    assert found.gpu_w_max == pytest.approx(4 * 700.0 * 10_000 + known_w)
