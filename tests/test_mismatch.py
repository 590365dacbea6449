"""The model of GPU power is wrong where a card draws what no job could at its clock; nothing less proves it."""

from __future__ import annotations

import numpy as np

from controller.allocate import Curves
from controller.config.gpu import load_curves
from controller.mismatch import LAG_S, ModelWatch
from tests.test_identify import TOP_MHZ, fleet_of, readings


class Watched:
    """Four cards of 700 W, each for ten, on the H100's curve, a report every half second."""

    def __init__(self) -> None:
        self.watch, self.t_s, self.fleet = ModelWatch(), 0.0, fleet_of([0] * 4)
        self.curves = Curves.of(self.fleet.models, load_curves())

    def runs(self, seconds: float, *, clock: float, power_w: float, limit_w: float | None = None) -> bool:
        for _ in range(round(seconds / 0.5)):
            self.t_s += 0.5
            limits_w = np.full(4, limit_w) if limit_w is not None else None
            now = readings(self.fleet, np.full(4, power_w), np.full(4, TOP_MHZ * clock), limit_w=limits_w)
            self.watch.saw(self.t_s, self.fleet, now, self.curves)
        return self.watch.is_wrong


def test_the_hottest_job_fits_the_model_and_more_does_not() -> None:
    site = Watched()
    most_w = float((site.fleet.table.idle_w + site.curves.power_share(np.full(4, 0.7)) * 628.0)[0])
    assert not site.runs(30.0, clock=0.7, power_w=most_w)
    assert site.watch.margin_w == 0.0
    assert site.runs(10.0, clock=0.7, power_w=most_w + 80.0)
    assert 0.0 < site.watch.margin_w <= 40 * 80.0
    assert not site.runs(60.0, clock=0.7, power_w=most_w)
    assert site.watch.margin_w < 1.0


def test_power_of_a_clock_that_has_just_been_left_is_no_proof() -> None:
    site = Watched()
    site.runs(10.0, clock=1.0, power_w=690.0)
    assert not site.runs(LAG_S - 0.5, clock=0.6, power_w=690.0)
    assert not site.runs(10.0, clock=1.0, power_w=700.0), "a clock that is hardly lower says nothing"


def test_what_is_not_a_number_proves_nothing() -> None:
    site = Watched()
    assert not site.runs(20.0, clock=0.6, power_w=float("nan"))
    assert site.watch.margin_w == 0.0


def test_power_that_a_limit_holds_is_no_proof_and_keeps_no_margin() -> None:
    """At a ceiling the limit is what counts: a margin on top of it lowered caps for good, and they taught nothing."""
    site = Watched()
    most_w = float((site.fleet.table.idle_w + site.curves.power_share(np.full(4, 0.6)) * 628.0)[0])
    limit_w = most_w + 80.0
    assert site.runs(10.0, clock=0.6, power_w=limit_w)
    assert not site.runs(60.0, clock=0.6, power_w=limit_w, limit_w=limit_w)
    assert site.watch.margin_w < 1.0
    assert site.runs(10.0, clock=0.6, power_w=1.1 * limit_w, limit_w=limit_w), "a limit that is passed holds nothing"
    assert not site.runs(60.0, clock=0.6, power_w=0.98 * limit_w, limit_w=limit_w)
    assert site.runs(10.0, clock=0.6, power_w=0.9 * limit_w, limit_w=limit_w), "nor one that is far"
    assert not site.runs(60.0, clock=0.6, power_w=most_w)
    assert site.runs(10.0, clock=0.6, power_w=700.0, limit_w=700.0), "nor the card's own"
