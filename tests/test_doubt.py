"""A small step of the sole meter: chiller or meter? Left on the meter where the answer to a lie would break a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.doubt import CONFIRM_S, StepDoubt
from controller.estimate import Estimate, LoadSource
from controller.tracker import Tracker
from controller.tracker_io import TrackerInput, TrackerOutput
from controller.types import CeilingLimit, LimitId, Mode
from tests.tracker_kit import HERE, estimate_without_meter, sample_of, site_of

MW = 1e6
TICK_S = 0.1


def told(t_s: float, load_w: float, *, pcc_w: float = 60 * MW, gpu_w: float = 40 * MW) -> Estimate:
    """What a good meter says at `t_s`, and nodes of their GPUs."""
    blank = estimate_without_meter(load_w=load_w, grid_w=pcc_w)
    return replace(blank, t_s=t_s, pcc_w=pcc_w, gpu_w=gpu_w, source=LoadSource.METER, is_fresh=True)


def seen(edge_w: float, *, until_s: float = 9.95) -> tuple[StepDoubt, float]:
    """A load with edges of `edge_w` from sample to sample, until then; the load at the end."""
    doubt, load_w = StepDoubt(), 50 * MW
    for k in range(round(until_s / TICK_S)):
        load_w = 50 * MW + edge_w * (k // 10 % 2)
        assert doubt.see(told(k * TICK_S, load_w)) == 0.0
    return doubt, load_w


@pytest.mark.parametrize("step_w", [1.2 * MW, -1.8 * MW])
def test_a_step_that_this_load_never_makes_is_seen(step_w: float) -> None:
    doubt, load_w = seen(0.1 * MW)
    assert doubt.see(told(10.0, load_w + step_w, pcc_w=60 * MW + step_w)) == pytest.approx(step_w)
    assert doubt.see(told(10.1, load_w + step_w)) == 0.0, "it is over"


@pytest.mark.parametrize(
    ("edge_w", "step_w"),
    [(0.1 * MW, 0.2 * MW), (0.5 * MW, 1.4 * MW), (0.1 * MW, 5.0 * MW)],
    ids=["within a meter's class", "as ripple has them", "more than two good meters may differ by"],
)
def test_what_else_a_load_does_is_no_such_step(edge_w: float, step_w: float) -> None:
    doubt, load_w = seen(edge_w)
    assert doubt.see(told(10.0, load_w + step_w)) == 0.0


def test_nothing_is_said_of_a_load_that_was_not_watched() -> None:
    """Seconds after the start, after a gap, and where nodes stand in for the meter."""
    doubt, load_w = seen(0.1 * MW, until_s=2.0)
    assert doubt.see(told(2.0, load_w + MW)) == 0.0
    doubt, load_w = seen(0.1 * MW)
    assert doubt.see(told(11.0, load_w + MW)) == 0.0
    doubt, load_w = seen(0.1 * MW)
    assert doubt.see(replace(told(10.0, load_w + MW), source=LoadSource.NODES)) == 0.0
    assert doubt.see(told(10.1, load_w + 2 * MW)) == 0.0


def test_a_ramp_shows_itself_with_the_next_sample() -> None:
    doubt, load_w = seen(0.1 * MW)
    doubt.see(first := told(10.0, load_w + MW))
    doubt.leave(first)
    assert doubt.withdrawn_w(first) == 0.0
    doubt.see(second := told(10.1, load_w + 1.9 * MW))
    assert doubt.withdrawn_w(second) == pytest.approx(MW)
    assert doubt.left_w(10.1, second, 60.0) == (0.0, 0.0)
    assert doubt.withdrawn_w(second) == 0.0, "once"


@pytest.mark.parametrize("step_w", [1.2 * MW, -1.2 * MW])
def test_what_was_left_counts_for_a_window_unless_nodes_show_it_too(step_w: float) -> None:
    for gpu_w, is_kept in ((40 * MW + 0.9 * step_w, False), (40 * MW - 0.9 * step_w, True)):
        doubt, load_w = seen(0.1 * MW)
        doubt.see(first := told(10.0, load_w + step_w, pcc_w=60 * MW + step_w))
        doubt.leave(first)
        whole = (1.2 * MW, 0.0) if step_w > 0.0 else (0.0, 1.2 * MW)
        assert doubt.left_w(10.0, first, 60.0) == pytest.approx(whole)
        later = told(10.0 + 0.9 * CONFIRM_S, load_w + step_w, gpu_w=gpu_w)
        assert doubt.left_w(later.t_s, later, 60.0) == (pytest.approx(whole) if is_kept else (0.0, 0.0))
        assert doubt.left_w(75.0, later, 60.0) == (0.0, 0.0)


class Site:
    """A tracker 10 ticks a second on a load of 60 MW, when its first minute is past and a ceiling came down on it."""

    def __init__(self, ceiling_w: float) -> None:
        self.site = replace(site_of(), tracker_period_s=TICK_S)
        self.tracker = Tracker(self.site, start_s=0.0, start_w=60 * MW)
        self.now_s, self.load_w, self.reference_w = 0.0, 60 * MW, 0.0
        for _ in range(700):
            self.tick()
        ceiling = CeilingLimit(LimitId("ceiling"), ceiling_w, self.now_s, HERE)
        self.tracker.set_limits((*self.site.contract.limits, ceiling), self.now_s)
        for _ in range(10):
            self.tick()

    def tick(self, *, reads_w: float = 0.0) -> TrackerOutput:
        """One tick on; the meter reads `reads_w` more than there is."""
        pcc_w = self.load_w - self.reference_w + reads_w
        found = self.tracker.step(
            TrackerInput(
                now_s=self.now_s,
                estimate=told(self.now_s - 0.03, self.load_w + reads_w, pcc_w=pcc_w),
                battery=sample_of(self.site, self.reference_w, 17e6 * 3600.0, self.reference_w),
                target_w=60 * MW,
                mode=Mode.NORMAL,
                watches=(),
                load_rise_w=100 * MW,
            )
        )
        assert found.aim is not None
        self.now_s, self.reference_w = self.now_s + TICK_S, found.aim.reference_w
        return found


def test_where_the_fall_is_spent_a_small_step_is_left_on_the_meter() -> None:
    """The ceiling took all that the rows leave; a meter that begins to read 1.2 MW too much makes nothing fall."""
    site = Site(ceiling_w=50 * MW)
    before_w, grid_w = site.reference_w, site.load_w - site.reference_w
    for _ in range(30):
        found = site.tick(reads_w=1.2 * MW)
        assert site.load_w - site.reference_w > grid_w - 0.1 * MW
    assert found.g_ref_w == pytest.approx(grid_w + 1.2 * MW, abs=0.1 * MW)
    assert site.reference_w == pytest.approx(before_w, abs=0.1 * MW)


def test_where_the_ceiling_is_met_a_step_that_may_be_load_is_answered() -> None:
    """4.5 MW down are nearly all that the row lets go: what the meter shows above the ceiling counts, true or not."""
    site = Site(ceiling_w=55.5 * MW)
    before_w = site.reference_w
    assert before_w == pytest.approx(4.5 * MW, abs=0.2 * MW)
    for _ in range(3):
        site.tick(reads_w=1.2 * MW)
    assert site.reference_w == pytest.approx(before_w + 1.2 * MW, abs=0.1 * MW)
