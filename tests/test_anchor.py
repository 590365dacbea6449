"""Meter and target held against each other: ripple, an event, and a target that is a fiction."""

from __future__ import annotations

from dataclasses import replace

from controller.anchor import ANCHOR_S, Anchor
from controller.contract import AdmissibleInterval
from controller.residual import METERED_MEAN_S, Residual, Unseen
from controller.target_path import TargetPath
from controller.types import LimitId
from tests.test_doubt import MW, told
from tests.tracker_kit import site_of

TICK_S = 0.1


class Meter:
    """A target of 60 MW, and a meter that says what a test wants it to."""

    def __init__(self) -> None:
        site = replace(site_of(), tracker_period_s=TICK_S)
        self.interval = AdmissibleInterval(site.contract.limits, start_s=0.0, start_w=60 * MW, tick_s=TICK_S)
        self.path = TargetPath(self.interval, start_s=0.0, start_w=60 * MW)
        self.residual = Residual((METERED_MEAN_S,), event_w=5 * MW)
        unseen = Unseen(METERED_MEAN_S, event_w=5 * MW)
        self.anchor = Anchor(site, self.path, residual=self.residual, unseen=unseen)
        self.now_s = 0.0

    def says(self, pcc_w: float, *, for_s: float, is_saturated: bool = False) -> None:
        """Tick on."""
        for _ in range(round(for_s / TICK_S)):
            self.now_s += TICK_S
            self.anchor.see(self.now_s, told(self.now_s - 0.03, pcc_w, pcc_w=pcc_w), is_saturated=is_saturated)
            self.path.go(self.now_s, self.path.now_w, delay_s=0.1)


def test_a_target_that_the_battery_cannot_hold_goes_to_the_meter_after_a_while() -> None:
    meter = Meter()
    meter.says(60 * MW, for_s=5.0)
    meter.says(55 * MW, for_s=ANCHOR_S - 2 * TICK_S, is_saturated=True)
    assert meter.path.now_w == 60 * MW
    meter.says(55 * MW, for_s=4 * TICK_S, is_saturated=True)
    assert abs(meter.path.now_w - 55 * MW) < 0.5 * MW
    assert meter.residual.track(METERED_MEAN_S).spread_w == 0.0, "what could not be held is no residual"


def test_what_comes_back_in_time_leaves_the_target() -> None:
    meter = Meter()
    meter.says(60 * MW, for_s=5.0)
    for _ in range(3):
        meter.says(57 * MW, for_s=ANCHOR_S - 1.0)
        meter.says(60 * MW, for_s=2.0)
    assert meter.path.now_w == 60 * MW
    assert meter.residual.track(METERED_MEAN_S).spread_w > 2 * MW


def test_the_rows_know_of_an_event_and_no_residual_of_it_is_kept() -> None:
    meter = Meter()
    meter.says(60 * MW, for_s=5.0)
    meter.says(70 * MW, for_s=1.0)
    assert meter.path.now_w == 60 * MW
    assert meter.interval.spent_down_w()[LimitId("swing")] > 5 * MW
    meter.says(60 * MW, for_s=6.0)
    assert meter.residual.track(METERED_MEAN_S).spread_w < 0.1 * MW
