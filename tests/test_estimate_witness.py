"""Whose word stands for the battery: meter and nodes against what it says and what it was told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from controller.estimate_witness import AccountWitness

PEAK_W = 80e6
TICK_S = 0.1
DELAY_S = 0.6  # of node reports, which are means of a second


class Site:
    """A load, a battery that is told to keep 50 MW on the meter, and what is said of both."""

    def __init__(
        self,
        load_w: Callable[[float], float],
        *,
        true_w: Callable[[float, float], float],
        read_w: Callable[[float, float], float],
        has_nodes: bool = True,
    ) -> None:
        """`true_w` and `read_w` make what it gives and says at t of what it was told then."""
        self.load_w, self.true_w, self.read_w, self.has_nodes = load_w, true_w, read_w, has_nodes
        self.witness = AccountWitness(scale_w=PEAK_W)
        self.step = 0

    def told_w(self, t_s: float) -> float:
        return self.load_w(t_s - TICK_S) - 50e6

    def run(self, until_s: float) -> float:
        """The first instant at which orders count, or inf."""
        while (t_s := self.step * TICK_S) < until_s:
            told_w = self.told_w(t_s)
            true_w = self.true_w(t_s, told_w)
            read_w = self.read_w(t_s, told_w)
            self.witness.compared(t_s, read_w=read_w, told_w=told_w)
            self.witness.metered(t_s, self.load_w(t_s) - true_w, read_w=read_w, told_w=told_w)
            if self.has_nodes and self.step % 2 == 0:
                back_s = [t_s - DELAY_S - 0.5 + 0.1 * k for k in range(11)]
                self.witness.reported(t_s, load_w=sum(map(self.load_w, back_s)) / 11, delay_s=DELAY_S)
            self.step += 1
            if self.witness.bears_out_orders(t_s, is_silent=math.isnan(read_w)):
                return t_s
        return math.inf


def waves(t_s: float) -> float:
    """A ripple of 3 MW every 5 s."""
    return 56e6 + 3e6 * math.sin(2.0 * math.pi * t_s / 5.0)


def ramp(t_s: float) -> float:
    """2 MW/s, without any ripple."""
    return 56e6 + 2e6 * min(max(t_s - 5.0, 0.0), 6.0)


def obeys(t_s: float, told_w: float) -> float:
    return told_w


def held(value_w: float, from_s: float) -> Callable[[float, float], float]:
    return lambda t_s, told_w: value_w if t_s >= from_s else told_w


def test_readings_that_stand_still_are_found_within_two_seconds() -> None:
    site = Site(waves, true_w=obeys, read_w=held(6e6, 10.0))
    assert site.run(10.0) == math.inf
    assert site.run(20.0) <= 12.0


@pytest.mark.parametrize("late_ticks", [3, 4, 8, 20])
def test_a_loop_that_answers_old_readings_is_found_by_its_own_moves_without_nodes(late_ticks: int) -> None:
    """Load is rebuilt from what the battery said it gave some time ago, and the loop swings ever wider."""
    witness, orders = AccountWitness(scale_w=PEAK_W), [6e6] * (late_ticks + 1)
    swings_w = []
    for step in range(300):
        t_s = step * TICK_S
        told_w, read_w = orders[-1], orders[-1 - late_ticks]
        metered_w = waves(t_s) - told_w
        witness.metered(t_s, metered_w, read_w=read_w, told_w=told_w)
        is_told = witness.bears_out_orders(t_s, is_silent=False)
        orders.append(metered_w + (told_w if is_told else read_w) - 50e6)
        swings_w.append(abs(metered_w - 50e6))
    assert witness.bears_out_orders(30.0, is_silent=False)
    assert max(swings_w[-50:]) < 0.5e6 and max(swings_w) < 3.5e6, "little more than the load itself"


def test_a_steady_slope_is_told_by_nodes_alone() -> None:
    """Without nodes a battery that stands still on a slope looks as one that obeys on none: nothing is said."""
    assert Site(ramp, true_w=obeys, read_w=held(6e6, 4.0)).run(11.0) <= 7.5
    alone = Site(ramp, true_w=obeys, read_w=held(6e6, 4.0), has_nodes=False)
    assert alone.run(11.0) == math.inf


@pytest.mark.parametrize("has_nodes", [True, False])
@pytest.mark.parametrize("load_w", [waves, ramp])
def test_a_battery_that_truly_stands_still_is_believed(load_w: Callable[[float], float], has_nodes: bool) -> None:
    """B2: it acknowledges and does nothing, and says so."""
    stands = held(6e6, 4.0)
    assert Site(load_w, true_w=stands, read_w=stands, has_nodes=has_nodes).run(30.0) == math.inf


def test_readings_that_are_true_are_never_doubted() -> None:
    site = Site(waves, true_w=obeys, read_w=obeys)
    assert site.run(60.0) == math.inf
    assert not site.witness.doubts_reading and not site.witness.are_apart(60.0)


def test_it_speaks_again() -> None:
    """Once its readings follow what it was told, its own word counts; while nothing moves nobody knows."""
    site = Site(waves, true_w=obeys, read_w=lambda t_s, told_w: 6e6 if 10.0 <= t_s < 30.0 else told_w)
    assert site.run(20.0) <= 12.0
    site.run(29.9)
    assert site.witness.bears_out_orders(29.9, is_silent=False)
    while site.step * TICK_S < 40.0 and site.witness.bears_out_orders(site.step * TICK_S, is_silent=False):
        site.run(site.step * TICK_S + TICK_S / 2.0)
    assert site.step * TICK_S <= 36.0
    site.run(36.0)
    assert not site.witness.are_apart(site.step * TICK_S)


def test_one_that_stops_obeying_while_its_readings_are_not_believed_is_believed_again() -> None:
    """Its readings were late and are true now; it stands still: what it was told explains nothing any more."""
    stands = held(6e6, 20.0)
    site = Site(waves, true_w=stands, read_w=lambda t_s, told_w: 6e6 if t_s >= 10.0 else told_w)
    assert site.run(20.0) <= 12.0
    while site.step * TICK_S < 30.0 and site.witness.bears_out_orders(site.step * TICK_S, is_silent=False):
        site.run(site.step * TICK_S + TICK_S / 2.0)
    assert site.step * TICK_S <= 22.0


def test_a_silent_battery_counts_by_its_orders_while_they_are_borne_out() -> None:
    """Nodes bear them out all the time; without their word it is a lost battery after two seconds."""
    silent = Site(waves, true_w=obeys, read_w=lambda t_s, told_w: math.nan if t_s >= 10.0 else told_w)
    assert silent.run(10.0) == math.inf
    assert silent.run(11.0) <= 10.1
    last_s = (silent.step - 1) * TICK_S
    assert silent.witness.bears_out_orders(last_s + 1.5, is_silent=True)
    assert not silent.witness.bears_out_orders(last_s + 2.5, is_silent=True)
    nobody = Site(waves, true_w=obeys, read_w=lambda t_s, told_w: math.nan, has_nodes=False)
    assert nobody.run(30.0) == math.inf


def test_a_silent_battery_that_does_not_obey_is_lost() -> None:
    site = Site(waves, true_w=held(6e6, 10.0), read_w=lambda t_s, told_w: math.nan if t_s >= 10.0 else told_w)
    assert site.run(10.5) <= 10.1
    while site.step * TICK_S < 30.0 and site.witness.bears_out_orders(site.step * TICK_S, is_silent=True):
        site.run(site.step * TICK_S + TICK_S / 2.0)
    assert site.step * TICK_S <= 14.0
