"""Without a meter ticks come when reports have come; with it, at their own times; a replay has the same commands."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from controller.app import make_core
from controller.clock import Ticker
from controller.estimate import LoadSource
from controller.replay import replay
from controller.tick_phase import NODES_MAX, SLACK_S, TickPhase
from controller.types import NodeId, NodeReport, Reading, SiteImage
from hil import vtime
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab
from hil.run_log import BriefRecorder
from hil.vtime import VirtualClock
from tests.estimate_kit import node

PERIOD_S = 0.2


class Site:
    """Ticks as `phase` wants them, and nodes that report once a period, each so long after the ticks' own times."""

    def __init__(self, *after_s: float, period_s: float = PERIOD_S) -> None:
        self.phase = TickPhase(period_s=period_s)
        self.period_s, self.after_s = period_s, after_s
        self.link_s = self.lag_s = 0.0  # a report's stamp is so much older than its arrival; devices answer so late
        self.scatter_s = 0.0
        self.rng = np.random.default_rng(1)
        self._tick = 500
        self._arrived: list[dict[float, float]] = [{} for _ in after_s]

    def tick(self, *, is_on_nodes: bool = True) -> float:
        """One tick; how long the reports that it has for the first time had been there, on average."""
        self._tick += 1
        now_s = self._tick * self.period_s + self.phase.offset_s + self.lag_s
        self.phase.see(self.image(now_s), is_on_nodes=is_on_nodes)
        return now_s

    def image(self, now_s: float) -> SiteImage:
        return SiteImage(
            t_mono_s=now_s,
            wall_utc_s=now_s,
            tick=self._tick,
            pcc=None,
            battery=None,
            ups={},
            nodes=tuple(self._newest(k, now_s) for k in range(len(self.after_s))),
            signals=(),
            is_grid_link_up=True,
        )

    def _newest(self, k: int, now_s: float) -> Reading[NodeReport]:
        arrived = self._arrived[k]
        for number in range(self._tick - 2, self._tick + 2):
            if (stamp_s := number * self.period_s + self.after_s[k]) not in arrived:
                arrived[stamp_s] = stamp_s + self.link_s + self.rng.exponential(self.scatter_s)
        stamp_s = max(s for s, t_s in arrived.items() if t_s <= now_s)
        told = node([300.0], stamp_s + (0.0 if self.link_s else arrived[stamp_s] - stamp_s))
        return replace(told, value=replace(told.value, node_id=NodeId(f"n{k}")))

    def wait_s(self, now_s: float) -> float:
        """How long ago the newest reports came."""
        return float(np.mean([now_s - max(t for t in a.values() if t <= now_s) for a in self._arrived]))


def test_a_tick_comes_when_the_report_has_come_and_not_a_period_later() -> None:
    """At the first tick the report has waited for 0.18 s; from the next one on for no longer than it takes to read."""
    site = Site(0.02)
    assert site.wait_s(site.tick()) == pytest.approx(0.18)
    assert 0.02 < site.phase.offset_s < 0.04
    assert site.phase.younger_s == pytest.approx(0.17, abs=0.01)
    assert [site.wait_s(site.tick()) < 2.0 * SLACK_S for _ in range(50)] == [True] * 50


def test_a_tick_is_brought_forward_where_that_is_nearer() -> None:
    site = Site(0.14)
    site.tick()
    assert -0.06 < site.phase.offset_s < -0.04
    assert site.wait_s(site.tick()) < 2.0 * SLACK_S and site.phase.younger_s == pytest.approx(0.05, abs=0.01)


def test_ticks_are_at_their_own_times_where_the_load_does_not_rest_on_reports() -> None:
    site = Site(0.02)
    site.tick(is_on_nodes=False)
    assert (site.phase.offset_s, site.phase.younger_s) == (0.0, 0.0)
    site.tick()
    assert site.phase.offset_s > 0.0 and site.phase.younger_s > 0.0
    site.tick(is_on_nodes=False)
    assert (site.phase.offset_s, site.phase.younger_s) == (0.0, 0.0)


@pytest.mark.parametrize("after_s", [tuple(0.2 * k / 40 for k in range(40)), ()])
def test_reports_that_come_at_all_times_or_never_move_no_tick(after_s: tuple[float, ...]) -> None:
    site = Site(*after_s)
    for _ in range(20):
        site.tick()
        assert (site.phase.offset_s, site.phase.younger_s) == (0.0, 0.0)


def test_a_large_fleet_is_not_looked_at() -> None:
    """Even where its reports come together: one that does is a bench's."""
    few, many = Site(*(NODES_MAX * (0.02,))), Site(*((NODES_MAX + 1) * (0.02,)))
    few.tick()
    many.tick()
    assert few.phase.offset_s > 0.0
    assert (many.phase.offset_s, many.phase.younger_s) == (0.0, 0.0)


def test_what_ticks_may_gain_is_little_where_they_are_quick() -> None:
    """At 20 Hz a report waits for 0.04 s at most; at 100 Hz no longer than it may be late by chance."""
    site, quick = Site(0.01, period_s=0.05), Site(0.01, period_s=0.01)
    for _ in range(5):
        site.tick()
        quick.tick()
    assert site.wait_s(site.tick()) < 2.0 * SLACK_S and quick.phase.offset_s == 0.0


def test_ticks_come_after_most_of_what_scatters() -> None:
    """Of reports that come 10 ms late on average, some by 40: few wait for another tick, and ticks hardly move."""
    site = Site(0.02)
    site.scatter_s = 0.01
    waits_s, offsets_s = [], []
    for _ in range(200):
        waits_s.append(site.wait_s(site.tick()))
        offsets_s.append(site.phase.offset_s)
    assert np.mean(waits_s[20:]) < 0.05
    assert sum(a != b for a, b in pairwise(offsets_s[20:])) < 20


def test_a_report_that_was_not_there_came_later_than_its_stamp_says() -> None:
    """Stamps are 50 ms older than arrivals: a tick just after them would find nothing and wait for a whole period."""
    site = Site(0.02)
    site.link_s = 0.05
    waits_s = [site.wait_s(site.tick()) for _ in range(40)]
    assert max(waits_s[-20:]) < 0.03


def test_ticks_that_look_later_because_a_device_is_waited_for_come_earlier() -> None:
    """A meter that begins to answer leaves 0.08 s less between a tick and its look at reports."""
    site = Site(0.12)
    site.lag_s = 0.08
    for _ in range(5):
        site.tick()
    site.lag_s = 0.0
    waits_s = [site.wait_s(site.tick()) for _ in range(60)]
    assert max(waits_s[-10:]) < 0.03


def test_a_cycle_before_its_tick_moves_nothing_and_a_node_that_is_silent_does_not_count() -> None:
    site = Site(0.02)
    site.phase.see(site.image(100.11), is_on_nodes=True)
    site.tick()
    offset_s, image = site.phase.offset_s, site.image(site._tick * PERIOD_S + 0.1)
    site.phase.see(image, is_on_nodes=True)
    assert site.phase.offset_s == offset_s
    silent = TickPhase(period_s=PERIOD_S)
    silent.see(replace(image, t_mono_s=200.0), is_on_nodes=True)
    assert silent.offset_s == 0.0


def test_a_ticker_moves_its_ticks_and_skips_none() -> None:
    """Put off by 30 ms, then brought forward by 80, then at its own times again."""

    async def main() -> tuple[list[tuple[int, float]], int]:
        clock = VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        ticker = Ticker(clock, period_s=PERIOD_S)
        seen = []
        for offset_s in (0.0, 0.0, 0.03, 0.03, -0.08, -0.08, 0.0):
            seen.append((await ticker.tick(offset_s=offset_s), round(clock.now_s(), 6)))
        return seen, ticker.overrun_count

    seen, overruns = vtime.run(main())
    assert seen == [(0, 0.0), (1, 0.2), (2, 0.43), (3, 0.63), (4, 0.72), (5, 0.92), (6, 1.2)]
    assert overruns == 0


def test_a_job_that_leaves_while_the_meter_is_stuck_is_answered_when_it_is_reported(tmp_path: Path) -> None:
    """16 MW leave in half a second at 5 Hz, and reports come 0.02 s after a tick: 6.4 of 5 MW where they
    wait for 0.18, and 3.5 where they do not.

    With the meter back ticks are where they were, none was skipped, and the recording replays.
    """
    given = lab_scenario("steady", site={"tracker_hz": 5}, fleet={"reporting_nodes": 1})
    path = tmp_path / "run.jsonl.gz"
    sources: list[LoadSource] = []
    with gzip.open(path, "wt", encoding="utf-8") as file:

        async def story(lab: Lab) -> None:
            lab.recorder = BriefRecorder(file, lab.clock, until_s=1e9, header={"settings": given.settings})
            lab.start()
            assert lab.daemon is not None
            lab.daemon.observe(lambda trace: sources.append(trace.decision.estimate.source))
            await lab.run(20.0)
            lab.fault("meter", "stuck")
            await lab.run(5.0)
            lab.drop(16.0, 0.5)
            await lab.run(10.0)
            lab.heal()
            await lab.run(20.0)

        lab = in_lab(story, given)
    assert lab.broken() == []
    after_s = np.array([math.remainder(tick.t_s, PERIOD_S) for tick in lab.ticks])
    is_blind = np.array([source is LoadSource.NODES for source in sources])
    assert is_blind.sum() > 60 and np.median(after_s[is_blind]) == pytest.approx(0.025, abs=0.006)
    was_blind = np.concatenate(([False], is_blind[:-1]))
    assert np.abs(after_s[~was_blind]).max() < 1e-6
    assert lab.traces[-1].overrun_count == 0
    found = replay(path, make_core)
    assert (found.different, found.first, found.missing_seq) == (0, None, None) and found.cycles == len(lab.ticks)
