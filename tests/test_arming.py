"""Before the first write: what must be true, what is said of what is not, and what is waited for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.arming import ArmingFacts, holds_back, is_clock_trusted, unmet, unready
from controller.types import AgentState, BatterySample, Mode, NodeId, NodeReport, Quality, Reading, SiteImage
from hil.lab_site import MW, lab_scenario
from hil.matrix_lab import Lab, in_lab

GOOD = ArmingFacts(
    is_power_known=True,
    is_clock_trusted=True,
    has_limits=True,
    is_leader=True,
    is_battery_proven=True,
    unready_nodes=(),
)


def test_all_conditions_met_arms() -> None:
    assert unmet(GOOD) == holds_back(GOOD) == ()


@pytest.mark.parametrize(
    ("missing", "holds_all_back"),
    [
        ({"is_power_known": False}, True),
        ({"is_clock_trusted": False}, True),
        ({"has_limits": False}, True),
        ({"is_leader": False}, False),  # it decides and writes nothing
        ({"is_battery_proven": False}, False),  # the battery alone is held
        ({"unready_nodes": ("n-1",)}, False),  # that node alone
    ],
)
def test_each_condition_alone_is_said_and_holds_back_what_it_must(
    missing: dict[str, Any], holds_all_back: bool
) -> None:
    facts = replace(GOOD, **missing)
    assert len(unmet(facts)) == 1 and bool(holds_back(facts)) is holds_all_back


def test_a_site_without_a_battery_has_nothing_to_prove() -> None:
    assert unmet(replace(GOOD, is_battery_proven=None)) == ()


def test_many_nodes_are_counted_not_listed() -> None:
    (words,) = unmet(replace(GOOD, unready_nodes=tuple(f"n-{k}" for k in range(40))))
    assert "n-0, n-1, n-2 and 37 more" in words and "n-3" not in words


def node(state: AgentState, *, acked_epoch: int = 0) -> Reading[NodeReport]:
    one, on = np.ones(1), np.ones(1, dtype=np.bool_)
    report = NodeReport(
        NodeId(str(state)), "boot", 0.0, state, 1, (), one, one, one, one, np.zeros(1, np.int8), on, 0.0,
        acked_epoch, 0, (), 1200.0,
    )  # fmt: skip
    return Reading(report, 0.0, Quality.GOOD, "node")


def image(*nodes: Reading[NodeReport], is_synced: bool = False) -> SiteImage:
    return SiteImage(0.0, 1.8e9, 0, None, None, {}, nodes, (), True, is_clock_synced=is_synced)


@pytest.mark.parametrize(
    ("seen", "waited_s", "trusted"),
    [
        (image(is_synced=True), 0.0, True),
        (image(), 59.9, False),
        (image(), 60.0, True),
        (image(node(AgentState.STARTING)), 1.0, False),
        (image(node(AgentState.ARMED, acked_epoch=3)), 0.0, True),  # taking over: it was in order when that began
        (image(node(AgentState.FALLBACK, acked_epoch=3)), 0.0, True),
        (image(node(AgentState.FALLBACK)), 0.0, False),  # an agent that inherited caps, and no controller before us
    ],
)
def test_the_clock_is_waited_for_as_long_as_a_site_can(seen: SiteImage, waited_s: float, trusted: bool) -> None:
    assert is_clock_trusted(seen, waited_s=waited_s, grace_s=60.0) is trusted


def test_nodes_that_only_report_are_named() -> None:
    assert unready([node(state) for state in AgentState]) == (str(AgentState.MONITOR_ONLY),)


def telling(timer: Callable[[float | None], float | None]) -> Callable[[Lab], None]:
    """A battery whose reversion timer reads as `timer` makes it."""

    def hook(reading: Reading[BatterySample]) -> Reading[BatterySample]:
        left_s = timer(reading.value.reversion_s_left)
        return replace(reading, value=replace(reading.value, reversion_s_left=left_s))

    return lambda lab: setattr(lab.hooks, "battery", hook)


def test_a_battery_whose_timer_stands_still_is_asked_for_nothing() -> None:
    """It takes every order and shows five seconds left for ever: nothing says that it would let go by itself."""

    async def story(lab: Lab) -> None:
        telling(lambda _: 5.0)(lab)
        lab.start()
        await lab.run(15.0)
        asked = {round(tick.battery_w) for tick in lab.ticks if tick.battery_w is not None}
        assert asked == {0}, "it stood at nothing, and is held there"
        assert any("count down" in words for words in lab.traces[-1].decision.unmet)
        lab.heal()
        await lab.run(2.0)
        assert not lab.traces[-1].decision.unmet and lab.last.battery_w not in (None, 0.0)

    in_lab(story, lab_scenario("steady"))


@pytest.mark.parametrize(("timer", "within_s"), [(lambda s: s and float(math.ceil(s)), 1.6), (lambda _: None, 0.5)])
def test_a_timer_of_whole_seconds_is_waited_for_and_none_at_all_is_not(
    timer: Callable[[float | None], float | None], within_s: float
) -> None:
    """Renewed ten times a second it would read five for ever; the order is left alone until it reads four."""

    async def story(lab: Lab) -> None:
        telling(timer)(lab)
        lab.start()
        await lab.until(lambda: bool(lab.ticks) and lab.last.battery_w is not None, within_s=2.0)
        await lab.until(lambda: not lab.traces[-1].decision.unmet, within_s=within_s)
        await lab.run(1.0)
        assert lab.last.battery_w not in (None, 0.0) and lab.world.plant.battery is not None
        assert lab.world.plant.battery.is_following is False and lab.world.plant.battery.power_w != 0.0

    in_lab(story, lab_scenario("steady"))


@pytest.mark.parametrize("told_s", [0.3, 1.0])
def test_a_ceiling_that_is_told_before_the_battery_is_proven_is_come_down_to_from_where_the_meter_stands(
    told_s: float,
) -> None:
    """For a second nobody follows the load: the target went down from 65.4 MW while the meter stood at 67.6.

    The rows' 5 MW were taken from there, 5.3 of them, and the envelope refused that tick after tick (SHED).
    """
    corrections: list[str] = []

    async def story(lab: Lab) -> None:
        telling(lambda s: s and float(math.ceil(s)))(lab)
        lab.start()
        assert lab.daemon is not None
        lab.daemon.observe(lambda trace: corrections.extend(v.detail for v in trace.checked.violations))
        await lab.run(20.0)

    lab = in_lab(story, lab_scenario("limit", limit_from_s=told_s))
    assert lab.broken() == [] and corrections == []
    assert lab.ticks[-1].ref_w < 64.0 * MW, "it is on its way"


def wrote(lab: Lab) -> bool:
    """Whether any command went out so far."""
    return any(tick.battery_w is not None or not math.isnan(tick.caps_mhz) for tick in lab.ticks)


def test_nothing_is_written_before_the_clock_is_right_or_the_grace_is_over() -> None:
    """Six seconds of grace here; afterwards the contract is held by a clock that nobody vouches for."""

    async def story(lab: Lab) -> None:
        lab.sync.is_synced = False
        lab.start()
        await lab.run(lab.site.grace_s - 0.5)
        assert not wrote(lab) and any("not synchronised" in w for w in lab.traces[-1].decision.held_back)
        await lab.run(2.0)
        assert wrote(lab) and lab.last.mode is Mode.DEGRADED and not lab.traces[-1].decision.held_back

    in_lab(story, lab_scenario("steady"))


def test_a_node_that_only_reports_is_named_and_the_others_are_driven() -> None:
    async def story(lab: Lab) -> None:
        def hook(reading: Reading[NodeReport]) -> Reading[NodeReport]:
            is_one = reading.value.node_id == "training-1"
            return replace(reading, value=replace(reading.value, state=AgentState.MONITOR_ONLY)) if is_one else reading

        lab.hooks.report = hook
        lab.start()
        await lab.run(5.0)
        (words,) = lab.traces[-1].decision.unmet
        assert "training-1" in words and "training-0" not in words and wrote(lab)

    in_lab(story, lab_scenario("steady"))
