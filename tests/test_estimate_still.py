"""A meter that begins to stick shows our own moves as load: nothing is made of what it repeats."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controller.estimate import Estimate, LoadSource
from controller.estimate_still import RUNS_MIN, Standstill
from controller.types import Following, MeterFlag, replace
from tests.estimate_kit import Bench, meter, node
from tests.tracker_kit import site_of


def read(still: Standstill, samples: Sequence[tuple[float, float | None]], *, from_s: float) -> list[bool]:
    """What was thought at each of these readings, a tenth of a second apart: power in W, energy in Wh."""
    found = []
    for k, (power_w, wh) in enumerate(samples):
        still.take(meter(power_w, from_s + 0.1 * k, wh=wh))
        found.append(still.is_new)
    return found


def lively(count: int, *, each: int = 1) -> list[tuple[float, float | None]]:
    """Readings of values that are read `each` times before they change."""
    return [(60e6 + k // each, 2000.0 * (k // each)) for k in range(count)]


@pytest.mark.parametrize("each", [1, 3])
def test_one_that_stands_twice_as_long_as_it_ever_did_has_no_news(each: int) -> None:
    """Once it is called stuck, how long it stood is no measure of the next time."""
    still, values = Standstill(site_of()), lively(30 * each, each=each)
    assert not any(read(still, values, from_s=0.0))
    assert read(still, values[-1:] * 10, from_s=100.0) == [k >= each for k in range(1, 11)]
    still.stuck()
    assert not any(read(still, [(61e6 + k, 1e6 + 2000.0 * k) for k in range(5)], from_s=200.0))
    assert read(still, [(61e6 + 4, 1e6 + 8000.0)] * 2 * each, from_s=300.0)[-1]


@pytest.mark.parametrize(
    "stands",
    [
        [(61e6, 1e6 + k) for k in range(5)],  # a power that comes again, of a meter that counts
        [(61e6 + k, 1e6) for k in range(5)],  # another power, and a counter that is renewed seldom
        [(61e6, None)] * 5,  # one that does not count
    ],
)
def test_what_is_no_standstill(stands: list[tuple[float, float | None]]) -> None:
    still = Standstill(site_of())
    read(still, lively(60), from_s=0.0)
    assert not any(read(still, stands, from_s=100.0))


def test_where_nothing_is_known_of_it_or_no_loop_hangs_on_it_a_meter_may_stand() -> None:
    new = Standstill(site_of())
    read(new, lively(RUNS_MIN - 1), from_s=0.0)
    assert not any(read(new, [(70e6, 1e9)] * 5, from_s=100.0))
    device = Standstill(replace(site_of(), following=Following.DEVICE))
    read(device, lively(60), from_s=0.0)
    assert not any(read(device, [(70e6, 1e9)] * 5, from_s=100.0))


def stuck(*, has_nodes: bool) -> list[Estimate]:
    """A meter that sticks at 62 MW while the battery takes ever more: what is made of it in the first readings."""
    bench, found = Bench(), []
    for k in range(200):
        gpus = (node([650.0 + k % 2] * 8, bench.now_s, stands_for=10_000),) if has_nodes else ()
        found.append(
            bench.tick(62e6 + min(k, 190), nodes=gpus, battery_w=-0.2e6 * max(k - 190, 0), wh=2000.0 * min(k, 190))
        )
    return found[190:195]


def test_load_does_not_follow_our_own_moves_until_the_meter_is_called_stuck() -> None:
    """It fell by as much as the battery took, and was answered again: seed 1002509 swung by 5.6 of 5 MW."""
    for found in (stuck(has_nodes=True), stuck(has_nodes=False)):
        assert all(abs(each.load_w - 62e6) < 0.1e6 for each in found[:4])
        assert all(MeterFlag.METER_STUCK not in each.flags for each in found[:4])
    assert [each.source for each in stuck(has_nodes=True)[:3]] == [LoadSource.METER, LoadSource.HELD, LoadSource.NODES]
