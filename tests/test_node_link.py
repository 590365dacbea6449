"""The wire between site and nodes: what is said arrives unchanged, and nothing else is ever obeyed."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.clock import MonotonicClock
from controller.types import AgentState, GpuCap, GpuId, GpuSpec, NodeCommand, NodeFault, NodeId, NodeReport, Quality
from drivers.mqtt import Incoming
from drivers.node_link import COMMANDS_WAITING_MAX, TWINS_TOLD_S, LocalLink, MqttAgentLink, MqttNodeLink
from drivers.node_messages import (
    command_topic,
    decode_command,
    decode_report,
    encode_command,
    encode_report,
    report_topic,
)
from hil.broker import EmbeddedBroker
from tests.mqtt_kit import running, session, until

SPEC_WIRE = {
    "model": "H100",
    "idle_w": 70.0,
    "power_limit_w_min": 200.0,
    "power_limit_w_max": 700.0,
    "power_limit_w_default": 700.0,
    "clocks_mhz": [210, 1980],
}


def spec(gpu_id: str, idle_w: float = 70.0) -> GpuSpec:
    return GpuSpec(GpuId(gpu_id), "H100", idle_w, 200.0, 700.0, 700.0, tuple(range(210, 1981, 15)))


def report(node_id: str = "n1", gpus: int = 2, **changes: object) -> NodeReport:
    ids = tuple(GpuId(f"GPU-{i}") for i in range(gpus))
    fields: dict[str, object] = {
        "node_id": NodeId(node_id),
        "boot_id": "b",
        "t_mono_s": 100.0,
        "state": AgentState.ARMED,
        "stands_for": 300,
        "gpu_ids": ids,
        "power_w": np.linspace(100.1, 700.0, gpus),
        "clock_mhz": np.full(gpus, 1410.0),
        "clock_cap_mhz": np.full(gpus, math.nan),
        "power_limit_w": np.full(gpus, 700.0),
        "quality": np.full(gpus, int(Quality.STALE), dtype=np.int8),
        "is_controllable": np.arange(gpus) % 2 == 0,
        "other_w": 812.5,
        "acked_epoch": 3,
        "acked_seq": 41,
        "specs": tuple(spec(g, idle_w=70.0 + i) for i, g in enumerate(ids)),
        "fallback_clock_mhz": 1200.0,
    }
    return NodeReport(**(fields | changes))  # type: ignore[arg-type]


def command(node_id: str = "n1", seq: int = 1, **changes: object) -> NodeCommand:
    fields: dict[str, object] = {
        "node_id": NodeId(node_id),
        "epoch": 2,
        "seq": seq,
        "ttl_s": 5.0,
        "caps": (GpuCap(GpuId("GPU-0"), 1200, 500.5), GpuCap(GpuId("GPU-1"), None, None)),
        "release_slot_s": 12.5,
        "release_w_per_s": math.inf,
    }
    return NodeCommand(**(fields | changes))  # type: ignore[arg-type]


def assert_same(a: NodeReport, b: NodeReport) -> None:
    for name in NodeReport.__slots__:
        if name != "t_mono_s":
            left, right = getattr(a, name), getattr(b, name)
            is_array = isinstance(left, np.ndarray)
            assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f") if is_array else left == right, name


def test_report_round_trip_and_age() -> None:
    """Every field survives the wire, NaN included; its time is put on the receiver's clock by the age it had."""
    sent = report(gpus=8, instant_w=np.array([50.0, math.nan, *np.linspace(90.1, 710.0, 6)]), taken_s=0.0)
    got = decode_report(encode_report(sent, age_s=0.25), t_mono_s=50.0)
    assert got is not None and got.t_mono_s == 49.75
    assert_same(sent, got)


def test_a_report_with_nothing_wrong_is_what_older_sites_and_agents_know() -> None:
    """Site and nodes are upgraded one after the other: what there is nothing to say of is not on the wire."""
    wire = json.loads(encode_report(report(), age_s=0.0))
    assert not {"faults", "floor", "instant_w", "taken_s"} & set(wire)
    back = decode_report(json.dumps(wire).encode(), t_mono_s=5.0)
    assert back is not None and back.faults == () and back.floor is None
    assert back.instant_w is None and back.taken_s is None


def test_samples_of_other_gpus_than_named_are_no_report() -> None:
    wire = json.loads(encode_report(report(gpus=8, instant_w=np.full(8, 300.0)), age_s=0.0))
    wire["instant_w"] = wire["instant_w"][:7]
    assert decode_report(json.dumps(wire).encode(), t_mono_s=5.0) is None


def test_equal_specs_are_sent_once() -> None:
    """Eight GPUs of one model cost one specification on the wire, and each gets it back."""
    ids = tuple(GpuId(f"GPU-{i}") for i in range(8))
    sent = report(gpus=8, specs=tuple(spec(g) for g in ids))
    payload = encode_report(sent, age_s=0.0)
    assert len(json.loads(payload)["specs"]) == 1 and len(payload) < 4096
    got = decode_report(payload, t_mono_s=0.0)
    assert got is not None and got.specs == sent.specs


def test_command_round_trip() -> None:
    """Caps, nulls, an infinite slope and a release survive the wire."""
    under = command(ceiling_frac=0.7, ceiling_s=900.0)
    for sent in (command(), command(caps=(), is_release=True, release_w_per_s=1e4), under):
        assert decode_command(encode_command(sent)) == sent
    assert not {"ceiling_frac", "ceiling_s"} & set(json.loads(encode_command(command()))), "older agents know it"


@pytest.mark.parametrize(
    "change",
    [
        {"ttl_s": -1.0},
        {"ttl_s": 1e9},
        {"ttl_s": "5"},
        {"seq": 1.5},
        {"epoch": -1},
        {"extra": 1},
        {"caps": [{"gpu_id": "a", "clock_mhz": 0, "power_limit_w": None}]},
        {"caps": [{"gpu_id": "a", "clock_mhz": None, "power_limit_w": None}] * 2},
        {"node_id": "a/b"},
        {"is_release": 1},
        {"ceiling_frac": 1.1},
        {"ceiling_s": -1.0},
    ],
)
def test_command_that_is_not_exactly_one_is_dropped(change: dict[str, object]) -> None:
    """Wrong types, ranges, keys and a GPU named twice make a command nobody obeys."""
    good = json.loads(encode_command(command()))
    assert decode_command(json.dumps(good).encode()) is not None
    assert decode_command(json.dumps(good | change).encode()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"power_w": [1.0]},
        {"power_w": [1.0, "nan"]},
        {"spec_of": [0, 9]},
        {"gpu_ids": ["a", "a"]},
        {"state": "dancing"},
        {"quality": [0, 7]},
        {"stands_for": 0},
        {"other_w": -5.0},
        {"power_w": [1.0, -1.0]},
        {"clock_mhz": [1.0, 30_000.0]},
        {"clock_cap_mhz": [-1e9, 1.0]},
        {"power_limit_w": [-1.0, 1.0]},
        {"specs": [{**SPEC_WIRE, "clocks_mhz": [1980, 210]}], "spec_of": [0, 0]},
        {"specs": [{**SPEC_WIRE, "clocks_mhz": [210, 210]}], "spec_of": [0, 0]},
        {"specs": [{**SPEC_WIRE, "power_limit_w_min": 701.0}], "spec_of": [0, 0]},
    ],
)
def test_report_that_is_not_exactly_one_is_dropped(change: dict[str, object]) -> None:
    """Arrays that disagree, values out of range and unknown states make no report: one lock below nothing in one
    node's report ended the site's process."""
    good = json.loads(encode_report(report(), age_s=0.0))
    assert decode_report(json.dumps(good | {"specs": [SPEC_WIRE], "spec_of": [0, 0]}).encode(), t_mono_s=0.0)
    assert decode_report(json.dumps(good | change).encode(), t_mono_s=0.0) is None


@given(st.binary(max_size=300))
def test_any_bytes_decode_to_nothing_or_a_message(payload: bytes) -> None:
    """No bytes make the decoders raise."""
    decode_report(payload, t_mono_s=0.0)
    decode_command(payload)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["node_id", "caps", "seq", "specs", "power_w", "x"]), inner, max_size=5)
        ),
        max_leaves=20,
    )
)
def test_any_json_decodes_to_nothing_or_a_message(value: object) -> None:
    """Nor does any JSON shape."""
    payload = json.dumps(value).encode()
    decode_report(payload, t_mono_s=0.0)
    decode_command(payload)


def test_retained_and_misdirected_are_never_obeyed() -> None:
    """A retained command, one on another node's topic and one naming another node are counted and go nowhere."""
    link = MqttAgentLink(session(1, "n1"), node_id=NodeId("n1"), clock=MonotonicClock())
    link._on_command(Incoming(command_topic("n1"), encode_command(command()), True, 0.0))
    link._on_command(Incoming(command_topic("n1"), encode_command(command("n2")), False, 0.0))
    link._on_command(Incoming(command_topic("n1"), b"{}", False, 0.0))
    assert (link.counts.retained, link.counts.misdirected, link.counts.malformed) == (1, 1, 1)
    assert link._commands._queue.empty()
    site = MqttNodeLink(session(1, "site"))
    site._on_report(Incoming(report_topic("n2"), encode_report(report("n1"), age_s=0.0), False, 1.0))
    site._on_report(Incoming(report_topic("n1"), encode_report(report("n1"), age_s=0.0), True, 1.0))
    assert site.reports() == {} and (site.counts.misdirected, site.counts.retained) == (1, 1)


def test_two_machines_under_one_name_are_told_of_and_a_restart_is_not() -> None:
    """Their sessions throw each other out, so reports come from either in turn: a boot that was over is back."""
    site = MqttNodeLink(session(1, "site"))

    def told(boot_id: str, now_s: float) -> tuple[NodeFault, ...]:
        seen = encode_report(report(boot_id=boot_id), age_s=0.0)
        site._on_report(Incoming(report_topic("n1"), seen, False, now_s))
        return site.reports()["n1"].value.faults

    assert told("one", 0.0) == told("one", 1.0) == told("two", 2.0) == told("two", 3.0) == ()
    assert told("one", 4.0) == told("two", 8.0) == told("two", 8.0 + TWINS_TOLD_S - 1.0) == (NodeFault.NODE_TWINS,)
    assert told("two", 8.0 + TWINS_TOLD_S) == told("three", 70.0) == ()


async def test_agent_that_does_not_listen_keeps_the_newest() -> None:
    """Commands for a busy agent are bounded; the oldest go, the newest stays last."""
    link = LocalLink(MonotonicClock())
    agent = link.agent(NodeId("n1"))
    await link.send([command(seq=n) for n in range(COMMANDS_WAITING_MAX + 4)])
    commands = agent.commands()
    got = [(await anext(commands)).seq for _ in range(COMMANDS_WAITING_MAX)]
    assert got == list(range(4, COMMANDS_WAITING_MAX + 4)) and link.counts.overflowed == 4


async def test_local_link_carries_both_ways() -> None:
    """In one process a report shows at the site at once, and a command for an unknown node is counted."""
    link = LocalLink(MonotonicClock())
    agent = link.agent(NodeId("n1"))
    sent = report(t_mono_s=MonotonicClock().now_s())
    await agent.publish(sent)
    assert link.reports()["n1"].value.t_mono_s == sent.t_mono_s
    await link.send([command("nobody")])
    assert link.counts.misdirected == 1


@pytest.mark.wire
async def test_site_and_agent_over_a_broker() -> None:
    """Reports and commands cross a real broker; a retained command waiting there is not obeyed by a node that joins."""
    async with EmbeddedBroker() as broker:
        site_session, node_session = session(broker.port, "site"), session(broker.port, "n1")
        attacker = session(broker.port, "x")
        site = MqttNodeLink(site_session)
        agent = MqttAgentLink(node_session, node_id=NodeId("n1"), clock=MonotonicClock())
        async with running(site_session, attacker):
            assert await site_session.wait_up(deadline_s=5) and await attacker.wait_up(deadline_s=5)
            client = attacker._new_client()
            async with client:
                await client.publish(command_topic("n1"), encode_command(command(seq=99)), qos=1, retain=True)
            async with running(node_session):
                assert await node_session.wait_up(deadline_s=5)
                await until(lambda: agent.counts.retained == 1)
                now_s = MonotonicClock().now_s()
                await agent.publish(report(t_mono_s=now_s - 0.5))
                await until(lambda: "n1" in site.reports())
                age_s = MonotonicClock().now_s() - site.reports()["n1"].t_mono_s
                assert 0.5 <= age_s < 2.0
                await site.send([command(seq=1), command("n2"), command(seq=2)])
                commands = agent.commands()
                async with asyncio.timeout(5):
                    assert (await anext(commands)).seq == 2  # the newer one replaced the one still waiting
        assert agent.counts.malformed == 0
