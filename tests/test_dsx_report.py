"""What the flex agent tells the grid, without a broker: feeds apart, breaches from first to last, the next minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.settings import GridSettings, JobClassSettings
from controller.types import (
    ClassId,
    EnergyPrice,
    FeedTarget,
    GpuId,
    GpuSpec,
    LimitPrice,
    MeterSample,
    NodeId,
    NodeReport,
    Outlook,
    Quality,
    Reading,
    SiteImage,
)
from drivers.dsx_extension import FlexibilityStatusData
from drivers.dsx_payloads import (
    EnforcementResult,
    Payload,
    PowerBreachAlertData,
    PowerBreachEnforcementData,
    PowerStateStatusData,
    utc_text,
)
from drivers.dsx_report import GridReporter
from tests.dsx_kit import MW, grid, image
from tests.test_node_link import report

CAUSE = "0b9c5a52-1f7e-4d3a-9a51-0c4f7d1f2a33"
OUTLOOK = Outlook(((0.0, 60 * MW), (30.0, 55 * MW)), 50 * MW, float("inf"), 8 * MW, 0.0, 0.0, 0.0, ())


class Jobs:
    """Every GPU is of the class named in its id."""

    def __init__(self, nodes: tuple[NodeReport, ...]) -> None:
        self._of = {g: str(g).split("-")[0] for n in nodes for g in n.gpu_ids}

    def jobs(self, now_s: float) -> tuple[()]:
        return ()

    def assignment(self) -> Mapping[GpuId, str]:
        return self._of


class Desk:
    """A reporter and what it published: (topic, payload, correlation id)."""

    def __init__(self, settings: GridSettings | None = None, nodes: tuple[NodeReport, ...] = ()) -> None:
        settings = settings or grid()
        self.said: list[tuple[str, Payload, str | None]] = []
        self.audit: list[Mapping[str, object]] = []
        self.nodes = nodes
        share = 1.0 / len(settings.feeds)
        classes = [
            JobClassSettings(ClassId(name), priority=priority, tolerated_loss_frac=0.1, window_s=3600.0, weight=1.0)
            for name, priority in (("batch", 10), ("training", 50))
        ]
        self.reporter = GridReporter(
            settings,
            share_frac=dict.fromkeys(settings.feeds, share),
            peak_w=100 * MW,
            floor_w=20 * MW,
            classes=classes,
            jobs=Jobs(nodes),
            clock=MonotonicClock(),
            rng=np.random.default_rng(3),
            publish=lambda topic, data, qos, cause: self.said.append((topic, data, cause)),
            write_audit=self.audit.append,
        )

    def see(
        self, now_s: float, power_w: float, *targets: FeedTarget, set_: Mapping[str, str] | None = None, **feeds: float
    ) -> None:
        meters = {f: Reading(MeterSample(w), now_s, Quality.GOOD, f) for f, w in feeds.items()}
        nodes = tuple(Reading(n, now_s, Quality.GOOD, n.node_id) for n in self.nodes)
        seen: SiteImage = replace(image(now_s, power_w), meters=meters, nodes=nodes)
        self.reporter.report(seen, measured_w=power_w, targets=targets, just_set=set_ or {})

    def of(self, kind: type[Payload]) -> list[Any]:
        return [data for _, data, _ in self.said if isinstance(data, kind)]


def target(megawatt: float, feed: str = "main", **changes: Any) -> FeedTarget:
    given = FeedTarget(
        feed=feed,
        issuer="acme",
        correlation_id=CAUSE,
        asked_w=megawatt * MW,
        applied_w=megawatt * MW,
        from_s=0.0,
        until_s=float("inf"),
        met_at_s=0.0,
        is_active=True,
        is_best_effort=False,
    )
    return replace(given, **changes)


def node(name: str, kind: str, watts: float) -> NodeReport:
    gpus = tuple(GpuId(f"{kind}-{name}-{i}") for i in range(2))
    spec = GpuSpec(gpus[0], "h100", 70.0, 200.0, 700.0, 700.0, (345, 1980))
    return replace(
        report(name, 2),
        node_id=NodeId(name),
        gpu_ids=gpus,
        power_w=np.full(2, watts),
        specs=(spec, replace(spec, gpu_id=gpus[1])),
        stands_for=1000,
        other_w=0.0,
    )


def test_each_feed_has_its_own_meter_ramp_state_and_compliance() -> None:
    """Only the feed above its target is in flight and not compliant; transitions name their cause, heartbeats none."""
    desk = Desk(grid(feeds=("a", "b")))
    desk.see(0.0, 80 * MW, a=48 * MW, b=32 * MW)
    desk.see(1.0, 80 * MW, target(40, "a"), target(40, "b"), set_={"a": CAUSE}, a=48 * MW, b=32 * MW)
    desk.see(2.0, 72 * MW, target(40, "a"), target(40, "b"), a=40 * MW, b=32 * MW)
    desk.see(40.0, 72 * MW, target(40, "a"), target(40, "b"), a=40 * MW, b=32 * MW)
    events = [(s.feeds["a"].event, s.feeds["b"].event) for s in desk.of(PowerStateStatusData)]
    assert events == [
        ("periodic", "periodic"),
        ("target_set", "periodic"),
        ("start_ramp_down", "periodic"),
        ("end_ramp_down", "periodic"),
        ("periodic", "periodic"),
    ]
    during = desk.of(PowerStateStatusData)[2].feeds
    assert (during["a"].in_flight, during["a"].compliant) == (True, False)
    assert (during["b"].in_flight, during["b"].compliant) == (False, True)
    assert during["a"].calculated_load.watts == 48 * MW and during["a"].metadata.power_maximum.watts == 50 * MW
    assert [cause for _, _, cause in desk.said] == [None, CAUSE, CAUSE, CAUSE, None]


def test_a_hint_that_failed_is_replaced_at_once_and_the_breach_keeps_its_id() -> None:
    """Batch is to give before training; the node whose BMC did not answer is not asked again in this breach."""
    nodes = (node("n1", "training", 600.0), node("n2", "batch", 500.0), node("n3", "batch", 600.0))
    desk = Desk(nodes=nodes)
    for t_s in (0.0, 6.0):
        desk.see(t_s, 61.0 * MW, target(60))
    (first,) = desk.of(PowerBreachAlertData)
    assert (first.status, first.severity) == ("active", "warning")
    assert [(h.resource_id, h.priority) for h in first.shed_hints] == [("n3", 1), ("n2", 2)]
    assert first.shed_hints[0].target_power.watts == pytest.approx(400.0), "its two GPUs at their least limit"
    outcome = PowerBreachEnforcementData(
        breach_id=first.breach.breach_id,
        feed_tag="main",
        action="applied",
        code="partial",
        results=(
            EnforcementResult(resource_id="n3", resource_type="node", requested_action="power_cap", code="failed"),
            EnforcementResult(resource_id="n2", resource_type="node", requested_action="power_cap", code="applied"),
        ),
        timestamp=utc_text(1.8e9),
    )
    assert desk.reporter.enforced(outcome)
    desk.see(7.0, 61.0 * MW, target(60))
    desk.see(8.0, 61.0 * MW, target(60))
    assert desk.reporter.enforced(outcome), "said again, it brings nothing new"
    desk.see(9.0, 61.0 * MW, target(60))
    _, second = desk.of(PowerBreachAlertData)
    assert second.status == "escalated" and second.breach.breach_id == first.breach.breach_id
    assert [h.resource_id for h in second.shed_hints] == ["n2", "n1"]
    for t_s in (10.0, 16.0):
        desk.see(t_s, 59.0 * MW, target(60))
    last = desk.of(PowerBreachAlertData)[-1]
    assert last.status == "resolved" and last.breach.breach_id == first.breach.breach_id and last.shed_hints is None
    assert not desk.reporter.enforced(outcome), "the breach is over"
    assert {cause for _, data, cause in desk.said if isinstance(data, PowerBreachAlertData)} == {CAUSE}


@pytest.mark.parametrize(("megawatt", "severity"), [(62.0, "warning"), (71.0, "warning"), (73.0, "critical")])
def test_severity_is_the_specifications_fifth_of_the_target(megawatt: float, severity: str) -> None:
    desk = Desk()
    for t_s in (0.0, 6.0):
        desk.see(t_s, megawatt * MW, target(60))
    (alert,) = desk.of(PowerBreachAlertData)
    assert (alert.status, alert.severity) == ("active", severity)


@pytest.mark.parametrize(
    "changes", [{"is_best_effort": True}, {"is_active": False}, {"met_at_s": 100.0}, {"applied_w": 65 * MW}]
)
def test_no_breach_of_what_was_not_promised(changes: dict[str, Any]) -> None:
    """Best effort, a schedule, a target not due yet, a target bounded to more: above it is no breach."""
    desk = Desk()
    for t_s in (0.0, 6.0, 12.0):
        desk.see(t_s, 64 * MW, target(60, **changes))
    assert desk.of(PowerBreachAlertData) == []


def test_the_next_minutes_are_told_once_a_period_with_prices_in_gpu_seconds_per_megawatt() -> None:
    desk = Desk()
    priced = replace(
        OUTLOOK,
        prices=(LimitPrice("ramp_down", 0.002, False), LimitPrice("ceiling", 0.5, True)),
        battery_discharge_w=20 * MW,
        battery_j=36e9,
    )
    energy = (EnergyPrice(1.8e9, float("inf"), -0.02, "EUR"),)
    for t_s in (0.0, 10.0, 29.0, 31.0):
        desk.reporter.tell_outlook(t_s, lambda: priced, energy)
    found = desk.of(FlexibilityStatusData)
    assert len(found) == 2
    assert [(p.limit, p.gpu_second_per_megawatt, p.at_least) for p in found[0].marginal_prices] == [
        ("ramp_down", 2000.0, False),
        ("ceiling", 500_000.0, True),
    ]
    assert found[0].admissible_high is None and found[0].admissible_low.watts == 50 * MW
    assert found[0].storage.energy_kilowatt_hour == 10_000.0 and found[0].sheddable.watts == 8 * MW
    assert [p.power.watts for p in found[0].forecast] == [60 * MW, 55 * MW]
    assert found[0].energy_prices[0].per_kilowatt_hour == -0.02


def test_without_a_plan_or_a_battery_nothing_is_made_up() -> None:
    desk = Desk()
    desk.reporter.tell_outlook(0.0, lambda: None, ())
    assert desk.said == []
    desk.reporter.tell_outlook(1.0, lambda: OUTLOOK, ())
    (found,) = desk.of(FlexibilityStatusData)
    assert found.storage is None and found.marginal_prices == () and found.energy_prices == ()
