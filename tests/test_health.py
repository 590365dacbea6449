"""What is wrong at one image, as flags: what nodes and devices tell, and what an operator asks for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from controller.estimate import Estimate, LoadEstimator
from controller.health import Health, HealthInput
from controller.modes import Flag
from controller.settings import SiteSettings
from controller.types import (
    AgentState,
    BatterySample,
    BatteryState,
    EnvelopeState,
    GpuId,
    MeterSample,
    Mode,
    NodeFault,
    NodeId,
    NodeReport,
    OperatorOrder,
    Quality,
    Reading,
    SiteFault,
    SiteImage,
    Trouble,
)
from tests.tracker_kit import site_of

SITE: SiteSettings = site_of()


def node(name: str, *faults: NodeFault, count: int = 2, stands_for: int = 1, **changes: object) -> Reading[NodeReport]:
    ones = np.ones(count)
    fields: dict[str, object] = {
        "node_id": NodeId(name),
        "boot_id": "boot",
        "t_mono_s": 0.0,
        "state": AgentState.ARMED,
        "stands_for": stands_for,
        "gpu_ids": tuple(GpuId(f"{name}-{k}") for k in range(count)),
        "power_w": 400.0 * ones,
        "clock_mhz": 1500.0 * ones,
        "clock_cap_mhz": 1500.0 * ones,
        "power_limit_w": 700.0 * ones,
        "quality": np.zeros(count, np.int8),
        "is_controllable": np.ones(count, np.bool_),
        "other_w": 0.0,
        "acked_epoch": 1,
        "acked_seq": 1,
        "specs": (),
        "fallback_clock_mhz": 1200.0,
        "faults": faults,
    }
    return Reading(NodeReport(**(fields | changes)), 0.0, Quality.GOOD, name)  # type: ignore[arg-type]


def battery(*, is_remote: bool = True, state: BatteryState = BatteryState.RUNNING) -> Reading[BatterySample]:
    return Reading(BatterySample(0.0, 0.5, 70e6, 70e6, state, is_remote, 0.0, False), 0.0, Quality.GOOD, "battery")


def found(
    *nodes: Reading[NodeReport],
    is_clamped: bool = False,
    blind_ticks: int = 0,
    locked_out: frozenset[str] = frozenset(),
    **image: object,
) -> frozenset[Flag]:
    """The flags at a first image of a site that is well but for what is given; blind: no power from anywhere."""
    pcc = Reading(MeterSample(60e6), 0.0, Quality.GOOD, "pcc")
    fields: dict[str, object] = {"battery": battery()} | image
    seen = SiteImage(0.0, 1.8e9, 0, pcc, ups={}, nodes=nodes, signals=(), is_grid_link_up=True, **fields)  # type: ignore[arg-type]
    estimator, nothing = LoadEstimator(SITE), Reading(MeterSample(math.nan), 0.0, Quality.MISSING, "pcc")
    estimate: Estimate = estimator.step(0.0, pcc=pcc, battery=seen.battery, nodes=(), meters={})
    for k in range(blind_ticks):
        estimate = estimator.step(
            (k + 1) * SITE.tracker_period_s, pcc=nothing, battery=seen.battery, nodes=(), meters={}
        )
    given = HealthInput(
        estimate=estimate,
        is_leader=True,
        is_cap_clamped=is_clamped,
        is_grid_silent=False,
        is_model_wrong=False,
        plan=None,
        written=EnvelopeState(),
        locked_out=locked_out,
    )
    return Health(SITE, epoch=1).step(seen, given)


def test_a_site_that_is_well_has_no_flag() -> None:
    assert found(node("a"), node("b")) == frozenset()


@pytest.mark.parametrize(("ticks", "is_blind"), [(1, False), (3, True)])
def test_a_site_whose_power_nobody_measures_is_blind_after_an_instant(ticks: int, is_blind: bool) -> None:
    assert (Flag.IMAGE_LOST in found(blind_ticks=ticks)) is is_blind


@pytest.mark.parametrize("fault", [fault for fault in NodeFault if fault is not NodeFault.FOREIGN_WRITER_WON])
def test_what_a_node_tells_is_a_flag_while_the_node_is_heard(fault: NodeFault) -> None:
    told = node("a", fault)
    assert found(told, node("b")) == {Flag(fault.value)}
    assert found(replace(told, quality=Quality.MISSING), node("b")) == {Flag.NODE_LOST}


def test_a_node_that_obeys_a_higher_epoch_is_told_of_while_it_is_heard() -> None:
    other = node("a", acked_epoch=2)
    assert found(other, node("b")) == {Flag.NODE_OBEYS_OTHER, Flag.RESTARTED}, "somebody led it before this start"
    assert Flag.NODE_OBEYS_OTHER not in found(replace(other, quality=Quality.MISSING), node("b"))
    assert found(node("a", acked_epoch=0), node("b")) == frozenset(), "one that was told nothing yet"


def test_what_a_node_shows_without_saying_it() -> None:
    """An agent of the bench, or an older one, sends telemetry alone."""
    missing = np.array([3, 0], np.int8)
    assert found(node("a", quality=missing)) == {Flag.GPU_HUNG}
    assert found(node("a", NodeFault.GPU_LOST, quality=missing)) == {Flag.GPU_LOST}
    assert found(node("a", state=AgentState.MONITOR_ONLY)) == {Flag.GPU_PERMISSION}
    deaf = np.array([False, True])
    assert found(node("a", is_controllable=deaf)) == {Flag.GPU_IGNORES_CAPS}
    assert found(node("a", NodeFault.FOREIGN_WRITER, is_controllable=deaf)) == {Flag.FOREIGN_WRITER}


@pytest.mark.parametrize(
    ("won_for", "free_for", "has_won"), [(1, 1, False), (2, 1, True), (1, 2, False), (3, 2, True), (1, 0, True)]
)
def test_another_tool_has_won_where_it_holds_most_gpus_of_the_site(won_for: int, free_for: int, has_won: bool) -> None:
    """Sampled nodes count for all they stand for."""
    won = node("a", NodeFault.FOREIGN_WRITER, NodeFault.FOREIGN_WRITER_WON, stands_for=won_for)
    others = (node("b", stands_for=free_for),) if free_for else ()
    assert (Flag.FOREIGN_WRITER_WON in found(won, *others)) is has_won


@pytest.mark.parametrize("fault", list(SiteFault))
def test_what_the_shell_found_is_a_flag(fault: SiteFault) -> None:
    assert found(troubles=(Trouble(fault, "battery"),)) == {Flag(fault.value)}


@pytest.mark.parametrize("why", [{"is_remote": False}, {"state": BatteryState.FAULT}])
def test_a_battery_that_says_why_it_refuses_is_not_told_of_twice(why: dict[str, object]) -> None:
    refusal = Trouble(SiteFault.DEVICE_REFUSES, "battery")
    limited = battery(**why)  # type: ignore[arg-type]
    assert found(battery=limited, troubles=(refusal,)) == {Flag.BATTERY_LIMITED}
    late = Trouble(SiteFault.DEVICE_TIMEOUT, "battery")
    assert found(battery=limited, troubles=(late,)) == {Flag.BATTERY_LIMITED, Flag.DEVICE_TIMEOUT}


def test_a_clamped_cap_and_a_raise_that_waits_are_told() -> None:
    assert found(is_clamped=True) == {Flag.CAP_CLAMPED}
    assert found(is_raise_held=True) == {Flag.SIGNAL_FLAPPING}


@pytest.mark.parametrize(
    ("mode", "flag"),
    [
        (Mode.RELEASE, Flag.OPERATOR_RELEASE),
        (Mode.FALLBACK, Flag.OPERATOR_FALLBACK),
        (Mode.LOCKOUT, Flag.OPERATOR_LOCKOUT),
        (None, None),
    ],
)
def test_an_operators_order_is_a_flag_while_it_stands(mode: Mode | None, flag: Flag | None) -> None:
    assert found(operator=OperatorOrder(mode, is_reset=False)) == ({flag} if flag is not None else set())
