"""Every way a meter can lie: spikes, stuck, units, signs, drift, late."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controller.estimate import Estimate, LoadSource
from controller.types import (
    Following,
    MeterFlag,
    Quality,
)
from tests.estimate_kit import TICK_S, Bench, node
from tests.tracker_kit import site_of


def test_one_spike_is_ignored_two_are_believed() -> None:
    """S3: ten times the load is impossible once and twice; 55 MW more in one sample is ignored once, then true."""
    bench = Bench()
    bench.warm()
    once = bench.tick(600e6)
    assert MeterFlag.METER_SPIKE in once.flags
    assert once.load_w == pytest.approx(60e6, rel=0.01)
    assert bench.tick(60e6).load_w == pytest.approx(60e6)
    bench.warm(20, 30e6)
    assert bench.tick(85e6).load_w == pytest.approx(30e6, rel=0.01)
    assert bench.tick(85e6).load_w == pytest.approx(85e6)


def test_a_drop_is_never_taken_for_a_spike() -> None:
    """A crash must be answered on its first sample."""
    bench = Bench()
    bench.warm(40, 90e6)
    assert bench.tick(28e6).load_w == pytest.approx(28e6)


def test_a_stuck_meter_is_found_while_the_battery_moves() -> None:
    """S1: bit-identical for five samples although our own battery moved 1 MW."""
    bench = Bench()
    bench.warm()
    flags = [bench.tick(60e6, battery_w=0.2e6 * k).flags for k in range(8)]
    assert MeterFlag.METER_STUCK in flags[-1]
    assert MeterFlag.METER_STUCK not in flags[3]
    assert bench.tick(60.01e6, battery_w=1.6e6).source is LoadSource.METER, "and clears when it moves again"


def test_a_still_meter_is_not_stuck_while_nothing_moves() -> None:
    """A quantised meter on a quiet site may repeat itself for ever; so may one behind a device that follows well."""
    bench = Bench()
    assert all(not bench.tick(60e6).flags for _ in range(200))
    device = Bench(site_of(following=Following.DEVICE))
    assert all(not device.tick(60e6, battery_w=0.05e6 * (k % 20)).flags for k in range(200))


def test_a_meter_that_reads_a_thousandth_is_locked_out() -> None:
    """S5: kilowatts taken for watts, three samples in a row against the GPU sum; stays until somebody resets it."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    found = [bench.tick(60e3 + index, nodes=nodes) for index in range(4)]
    assert MeterFlag.METER_UNIT_WRONG in found[-1].flags and not bench.estimator.is_meter_sane
    assert found[-1].source is LoadSource.NODES
    bench.estimator.unlock()
    assert MeterFlag.METER_UNIT_WRONG in bench.tick(60e3, nodes=nodes).flags, "it still is wrong"
    assert MeterFlag.METER_UNIT_WRONG in bench.tick(60e6, nodes=nodes).flags and bench.estimator.is_meter_sane
    bench.estimator.unlock()
    after = bench.tick(60e6 + 1.0, nodes=nodes)
    assert not after.flags and after.source is LoadSource.METER and after.pcc_w == 60e6 + 1.0
    again = [bench.tick(60e3 + index, nodes=nodes) for index in range(4)]
    assert all(e.source is not LoadSource.METER or e.pcc_w == 60e6 + 1.0 for e in again)
    assert MeterFlag.METER_UNIT_WRONG in again[-1].flags


def test_a_battery_that_carries_the_site_is_no_unit_error() -> None:
    """52 MW of GPUs and 52 MW of battery: what is left on the meter is a thousandth of what nodes report, and true."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    carried = [bench.tick(60e3 + index, nodes=nodes, battery_w=52e6) for index in range(8)]
    assert all(MeterFlag.METER_UNIT_WRONG not in e.flags for e in carried)
    lent = [bench.tick(60e3 + index, nodes=nodes, battery_w=40e6) for index in range(4)]
    assert MeterFlag.METER_UNIT_WRONG in lent[-1].flags, "three quarters of it explain nothing"


def test_a_flipped_sign_is_suspect_and_with_nodes_certain() -> None:
    """S6: load cannot be negative; when the flipped value fits the GPUs there is no doubt left."""
    alone = Bench()
    flags = [alone.tick(-60e6 - index).flags for index in range(4)]
    assert MeterFlag.METER_SIGN_SUSPECT in flags[-1]
    sure = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    flags = [sure.tick(-60e6 - index, nodes=nodes).flags for index in range(4)]
    assert MeterFlag.METER_SIGN_WRONG in flags[-1]


def test_two_meters_that_disagree_take_the_higher_import() -> None:
    """S8: 5 % apart for a few seconds."""
    bench = Bench()
    for index in range(200):
        found = bench.tick(60e6 + index, subs={"a": 63e6 + index})
    assert MeterFlag.METERS_DISAGREE in found.flags
    assert found.load_w == pytest.approx(63e6, rel=0.001)
    assert found.quality is Quality.SUSPECT


def test_slow_drift_against_a_second_meter_grows_the_margin() -> None:
    """S7: 1.5 % apart for minutes is drift, not disagreement."""
    bench = Bench()
    for index in range(4000):
        found = bench.tick(60e6 + index % 9, subs={"a": 60.9e6 + index % 9})
    assert found.flags == {MeterFlag.METER_DRIFT}
    assert found.margin_w == pytest.approx(0.03 * 60e6, rel=0.01)


def test_a_slow_meter_is_told() -> None:
    """S9: a new value every 15 s; between them the age rises and the meter does not count."""
    site = site_of()
    assert site.meter is not None
    bench = Bench(replace(site, meter=replace(site.meter, update_s=2.9)))
    flags: set[MeterFlag] = set()
    for index in range(1500):
        stamp_s = math.floor(index * TICK_S / 15.0) * 15.0
        flags |= bench.tick(60e6 + 1e4 * stamp_s, sample_s=stamp_s).flags
    assert MeterFlag.METER_SLOW in flags or MeterFlag.METER_STALE in flags


def test_a_counter_that_steps_back_is_told_once() -> None:
    """S10: the sample after a wrap carries the flag, the next one is clean."""
    bench = Bench()
    bench.tick(60e6, wh=999_999_900.0)
    assert MeterFlag.COUNTER_RESET in bench.tick(60e6 + 1, wh=3.0).flags
    assert not bench.tick(60e6 + 2, wh=4.0).flags


def test_a_lively_meter_is_stuck_as_soon_as_it_repeats_itself() -> None:
    """S1: two hundred different values, then one five times over while the battery moved 0.2 MW: stuck."""
    bench = Bench()
    for index in range(200):
        bench.tick(60e6 + 10.0 * index)
    flags = [bench.tick(60e6, battery_w=0.04e6 * k).flags for k in range(8)]
    assert MeterFlag.METER_STUCK in flags[-1] and MeterFlag.METER_STUCK not in flags[2]
    repeating = Bench()
    for index in range(200):
        repeating.tick(60e6 + 10.0 * (index // 6))  # a meter that is read more often than it is renewed
    assert all(not repeating.tick(60e6, battery_w=0.04e6 * k).flags for k in range(8))


def test_what_no_site_can_draw_is_never_believed() -> None:
    """S3, S5: ten times the load, however often: the nodes serve."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    for index in range(30):
        bench.tick(60e6 + index, nodes=nodes)
    found = [bench.tick(600e6 + index, nodes=nodes) for index in range(20)]
    assert all(f.load_w < 70e6 for f in found)
    assert found[-1].source is LoadSource.NODES and MeterFlag.METER_MISSING in found[-1].flags
    assert bench.tick(60e6, nodes=nodes).source is LoadSource.METER


def test_after_a_wrong_sign_the_first_good_sample_is_not_mixed_with_the_last_bad_one() -> None:
    """S6: the jump back is a spike to be ignored once, and what stands meanwhile is not the flipped value."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    for index in range(10):
        bench.tick(60e6 + index, nodes=nodes)
    for index in range(10):
        bench.tick(-60e6 - index, nodes=nodes)
    back = bench.tick(60e6, nodes=nodes)
    assert back.pcc_w is None or back.pcc_w > 0.0


def test_a_slow_meter_corrects_the_nodes_and_takes_no_turns_with_them() -> None:
    """S9: a sample every 15 s. Once it is known to be slow its samples no longer make it the source."""
    bench = Bench()
    nodes = (node([650.0] * 8, 0.0, stands_for=10_000),)
    sources = []
    for index in range(1500):
        stamp_s = math.floor(index * TICK_S / 15.0) * 15.0
        sources.append(bench.tick(60e6 + 1e4 * stamp_s, sample_s=stamp_s, nodes=nodes).source)
    assert LoadSource.METER not in sources[400:]


def counted(bench: Bench, power_w: float, *, late_s: float = 0.0) -> Estimate:
    """A tick of a site that draws `power_w`, with the counter's sample of `late_s` ago."""
    wh = 1e6 + (bench.now_s + TICK_S - late_s) * power_w / 3_600.0
    return bench.tick(power_w + 10.0 * (round(bench.now_s / TICK_S) % 7), wh=wh)


def test_a_late_meter_is_told_and_its_samples_are_moved_to_their_time() -> None:
    """2 s late from one sample on, stamped as new: told by the first of them; without nodes it serves, shifted."""
    bench = Bench()
    for _ in range(100):
        found = counted(bench, 60e6)
    assert not found.flags
    first = counted(bench, 60e6, late_s=2.0)
    assert MeterFlag.METER_LATE in first.flags and not first.is_fresh
    for _ in range(60):
        found = counted(bench, 60e6, late_s=2.0)
    assert found.source is LoadSource.METER and found.is_fresh
    assert bench.now_s - found.t_s == pytest.approx(2.03, abs=0.02)
    assert found.delay_s == pytest.approx(2.03, abs=0.02) and found.t_eff_s > 2.0
    again = counted(bench, 60e6)
    assert not again.flags & {MeterFlag.METER_LATE} and bench.now_s - again.t_s == pytest.approx(0.03)


def test_a_meter_whose_count_stands_for_long_is_lost_though_nobody_else_speaks() -> None:
    """Everything it shows stands still, freshly stamped, and no battery moves that could tell: after five seconds."""
    bench = Bench()
    for _ in range(100):
        counted(bench, 60e6)
    found = [bench.tick(60e6, wh=1e6 + 5.0 * 60e6 / 3_600.0) for _ in range(160)]
    assert found[80].source is LoadSource.METER and MeterFlag.METER_LATE in found[80].flags
    assert found[-1].source is LoadSource.LOST and found[-1].margin_w > 10e6
    assert MeterFlag.METER_MISSING in found[-1].flags


def test_nodes_are_younger_than_a_meter_that_is_two_seconds_late() -> None:
    bench = Bench()
    for k in range(200):
        nodes = (node([650.0 + k % 3] * 8, bench.now_s, stands_for=10_000),)
        late_s = 2.0 if k >= 150 else 0.0
        wh = 1e6 + (bench.now_s + TICK_S - late_s) * 60e6 / 3_600.0
        found = bench.tick(60e6 + 10.0 * (k % 7), nodes=nodes, wh=wh)
        assert (MeterFlag.METER_LATE in found.flags) == (k >= 150)
    assert found.source is LoadSource.NODES
