"""The target's past and the interval's path go together."""

from __future__ import annotations

from controller.contract import AdmissibleInterval
from controller.target_path import KEEP_S, TargetPath
from controller.types import LimitId, RampLimit
from tests.tracker_kit import site_of


def path_of(start_w: float) -> tuple[AdmissibleInterval, TargetPath]:
    interval = AdmissibleInterval(site_of().contract.limits, start_s=0.0, start_w=start_w, tick_s=0.1)
    return interval, TargetPath(interval, start_s=0.0, start_w=start_w)


def test_a_late_meter_is_held_against_the_target_of_its_own_instant() -> None:
    interval, path = path_of(50e6)
    for tick in range(1, 200):
        path.go(0.1 * tick, 50e6 + tick, delay_s=0.525)
        assert path.now_w == interval.now_w
    assert path.at(19.75) == 50e6 + 197
    assert path.at(0.1 * 199 - KEEP_S) == 50e6 + 149
    assert path.at(0.0) == 50e6 + 138, "nothing comes that is older, and the oldest that is kept stands for it"


def test_a_jump_counts_for_meters_since_then_and_for_rows_from_now_on() -> None:
    interval, path = path_of(50e6)
    path.go(1.0, 50e6, delay_s=0.1)
    path.jump(1.1, 52e6, since_s=0.9)
    assert path.now_w == interval.now_w == 52e6 and interval.now_s == 1.1
    assert path.at(0.95) == 52e6


def test_what_strayed_is_spent_though_the_target_stays() -> None:
    interval, path = path_of(50e6)
    path.go(1.0, 50e6, delay_s=0.1)
    path.strayed(3e6)
    row = next(limit for limit in interval.limits if isinstance(limit, RampLimit))
    assert path.now_w == interval.now_w == 50e6
    assert interval.spent_down_w()[LimitId(row.id)] == 3e6
