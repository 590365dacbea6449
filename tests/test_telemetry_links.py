"""What the links count reaches the status document and the metrics under one name each."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

from controller.clock import MonotonicClock
from controller.live import _counters
from controller.node.watch import tell_drops
from controller.telemetry import Reporter
from controller.telemetry_links import LinkTelemetry
from controller.types import NodeId
from drivers.metrics import Metrics
from drivers.mqtt import Incoming
from drivers.node_link import LocalLink, MqttAgentLink, MqttNodeLink
from drivers.node_messages import command_topic
from hil import vtime
from hil.lab_site import lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.mqtt_kit import session


def test_what_a_link_dropped_is_counted_under_its_name() -> None:
    """A report that is none, at the site's end of the wire to its nodes; zeros are told as well."""
    wire = session(1, "site")
    link, metrics = MqttNodeLink(wire), Metrics(None)
    seen = LinkTelemetry(_counters(wire, link, None))
    link._on_report(Incoming("rampart/v1/node/n1/report", b"{}", False, 0.0))
    seen.set_metrics(metrics)
    value = metrics._registry.get_sample_value
    assert value("rampart_link_count", {"link": "nodes", "what": "malformed"}) == 1.0
    assert value("rampart_link_count", {"link": "mqtt", "what": "short_sessions"}) == 0.0
    assert json.loads(json.dumps(seen.document())) == {
        "links": {"mqtt": asdict(wire.counts), "nodes": {**asdict(link.counts), "malformed": 1}}
    }


def test_a_site_without_a_broker_counts_its_own_nodes_alone() -> None:
    assert set(_counters(None, LocalLink(MonotonicClock()), None)) == {"nodes"}


def test_the_reporter_tells_them_before_and_after_the_first_cycle() -> None:
    documents: list[object] = []

    async def story(lab: Lab) -> None:
        metrics = Metrics(None)
        reporter = Reporter(lab.site, metrics=metrics, counters={"nodes": lambda: {"malformed": 7}})
        documents.append(reporter.document()["links"])
        lab.start()
        await lab.run(2.0)
        reporter.observe(lab.traces[-1])
        documents.append(reporter.document()["links"])
        assert metrics._registry.get_sample_value("rampart_link_count", {"link": "nodes", "what": "malformed"}) == 7.0

    in_lab(story, lab_scenario("steady"))
    assert documents == [{"nodes": {"malformed": 7}}] * 2


def test_an_agent_tells_what_its_link_dropped_once_a_minute_and_only_then() -> None:
    """Sessions and messages without one are the link's own story."""
    said: list[tuple[str, str]] = []

    async def story() -> None:
        clock = vtime.VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        wire = session(1, "n1")
        link = MqttAgentLink(wire, node_id=NodeId("n1"), clock=clock)
        telling = asyncio.create_task(
            tell_drops(link.counted, say=lambda who, what: said.append((who, what)), clock=clock)
        )
        await asyncio.sleep(1.0)
        for _ in range(3):
            link._on_command(Incoming(command_topic("n1"), b"{}", False, 0.0))
        wire.counts.sessions = wire.counts.dropped_without_session = 7
        await asyncio.sleep(300.0)
        wire.counts.short_sessions += 2
        await asyncio.sleep(60.0)
        telling.cancel()

    vtime.run(story())
    assert said == [("link", "in the last minute: 3 malformed"), ("link", "in the last minute: 2 short sessions")]
