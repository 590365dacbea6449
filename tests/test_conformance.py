"""The conformance suite: our own agent and issuer pass; a credulous, a silent and a careless one are told apart."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from controller.cli.broker_options import open_event
from controller.cli.conformance import app
from controller.clock import MonotonicClock
from drivers.dsx_payloads import (
    FeedMetadata,
    FeedState,
    FeedTargetState,
    Interval,
    PowerStateStatusData,
    SetLoadTargetData,
    Strategy,
    power,
    utc_text,
)
from drivers.dsx_wire import load_target_topic, status_topic
from drivers.jws import WireRefused, new_uuid
from drivers.mqtt import Incoming, Keep
from hil.broker import EmbeddedBroker, free_port
from hil.conformance import RuleResult, Verdict, is_conformant
from hil.conformance_agent import AgentSuite
from hil.conformance_issuer import IssuerSuite
from tests.dsx_kit import MW, NOTHING, image, sender
from tests.mqtt_kit import running, session, settings
from tests.test_dsx_source import bench, load_target

pytestmark = pytest.mark.wire


def suite(tmp_path: Path, port: int, *, wait_s: float = 3.0) -> AgentSuite:
    return AgentSuite(
        settings(port),
        issuer="acme",
        key_file=tmp_path / "acme.jwk",
        agent="site",
        agent_key_file=tmp_path / "agent.pub.jwk",
        megawatt=60.0,
        wait_s=wait_s,
        folder=tmp_path / "throwaway",
        clock=MonotonicClock(),
        rng=np.random.default_rng(11),
    )


def verdicts(results: list[RuleResult]) -> dict[str, Verdict]:
    return {r.rule: r.verdict for r in results}


async def test_our_agent_conforms(tmp_path: Path) -> None:
    """Every rule holds for the agent this repository ships, the extension included."""
    async with bench(tmp_path) as b:

        async def cycle() -> None:
            while True:
                now_s = MonotonicClock().now_s()
                b.source.active(now_s)
                b.source.report(image(now_s, 50 * MW), NOTHING, ())
                await asyncio.sleep(0.02)

        cycling = asyncio.create_task(cycle())
        results = await suite(tmp_path, b.port).run()
        cycling.cancel()
        await asyncio.gather(cycling, return_exceptions=True)
    assert [(r.rule, r.detail) for r in results if r.verdict is not Verdict.HOLDS] == []
    assert len(results) == 17 and is_conformant(results)


@pytest.mark.parametrize(("end", "said"), [("newer", ""), ("older", "older target is still active"),
                                          ("neither", "newer target is not active")])  # fmt: skip
async def test_the_latest_target_has_to_win_by_the_end_of_the_wait(tmp_path: Path, end: str, said: str) -> None:
    """Two targets within one cycle of an agent: the status of that instant lists the newer before it begins."""
    sender(tmp_path, "acme")
    sender(tmp_path, "agent", role="dsx-flex-agent", seed=7)
    judge = suite(tmp_path, 1, wait_s=0.4)
    asked: list[str] = []

    def tell(*targets: tuple[str, bool]) -> None:
        states = tuple(
            FeedTargetState(
                active=active, load_constraint=power(60 * MW), interval=Interval(), strategy=Strategy(),
                correlation_id=correlation_id,
            )
            for correlation_id, active in targets
        )  # fmt: skip
        metadata = FeedMetadata(power_minimum=power(0), power_maximum=power(1e8), default_constraint=power(1e8))
        feed = FeedState(
            metadata=metadata, targets=states, calculated_load=power(1.0), in_flight=False, event="target_set",
            compliant=True,
        )  # fmt: skip
        status = PowerStateStatusData(snapshot_time=utc_text(1.8e9), feeds={"main": feed})
        judge._statuses.append((None, status))  # type: ignore[arg-type]

    def ask(_: object) -> str:
        asked.append(new_uuid(judge._rng))
        if len(asked) == 2:
            tell((asked[0], True), (asked[1], False))
            later = [(asked[0], end == "older"), (asked[1], end == "newer")]
            asyncio.get_running_loop().call_later(0.1, tell, *later)
        return asked[-1]

    judge._set = ask  # type: ignore[method-assign, assignment]
    result = await judge._judge("latest", judge._rule_latest)
    assert (result.verdict is Verdict.HOLDS) is (end == "newer") and said in result.detail


async def test_credulous_agent_is_found_out(tmp_path: Path) -> None:
    """An agent that follows whatever it can read breaks the rules on forging, replay and schedules."""
    sender(tmp_path, "acme")
    agent, _ = sender(tmp_path, "agent", role="dsx-flex-agent", seed=7)
    agent = type(agent)("dsx-flex-agent", "site", agent.signer, agent.rng)
    async with EmbeddedBroker() as broker:
        s = session(broker.port, "credulous")
        clock = MonotonicClock()

        def believe(message: Incoming) -> None:
            try:
                event, data = open_event(message.payload, None)  # never verifies
            except WireRefused:
                return
            assert isinstance(data, SetLoadTargetData)
            targets = tuple(
                FeedTargetState(
                    active=True, load_constraint=t.load_constraint, interval=Interval(), strategy=Strategy(),
                    correlation_id=event.correlationid or event.id,
                )
                for t in data.targets
                if t.load_constraint is not None
            )  # fmt: skip
            metadata = FeedMetadata(
                power_minimum=power(0), power_maximum=power(100 * MW), default_constraint=power(100 * MW)
            )
            feed = FeedState(
                metadata=metadata, targets=targets, calculated_load=power(1.0), in_flight=False, event="target_set",
                compliant=True,
            )  # fmt: skip
            status = PowerStateStatusData(snapshot_time=utc_text(clock.wall_utc_s()), feeds={"main": feed})
            _, raw = agent.encode(status, utc_s=clock.wall_utc_s())
            s.publish(status_topic("site"), raw, qos=1, keep=Keep.ALL)

        s.on_message(load_target_topic("acme"), believe)
        async with running(s):
            assert await s.wait_up(deadline_s=5)
            results = await suite(tmp_path, broker.port, wait_s=0.5).run()
    found = verdicts(results)
    assert found["a forged signature is ignored"] is Verdict.BROKEN
    assert found["a replayed message is ignored"] is Verdict.BROKEN
    assert found["what a target causes carries its correlation id and trace"] is Verdict.BROKEN
    assert found["a scheduled target is listed and not active"] is Verdict.BROKEN
    assert found["a target for a feed the agent does not have is ignored"] is Verdict.BROKEN
    assert found["best effort is carried into the status"] is Verdict.BROKEN
    assert found["the latest target wins"] is Verdict.HOLDS
    assert found["extension: a ramp limit is answered"] is Verdict.ABSENT
    assert not is_conformant(results)


async def test_issuers_are_judged_by_what_they_publish(tmp_path: Path) -> None:
    """Our own messages hold every rule; a careless issuer's faults are each named."""
    acme, public = sender(tmp_path, "acme")
    judge = IssuerSuite(settings(1), issuer="acme", key_files=(public,), clock=MonotonicClock(), rng=acme.rng)
    assert {r.verdict for r in judge.results()} == {Verdict.UNTESTED} and not is_conformant(judge.results())
    topic = load_target_topic("acme")
    _, good = acme.encode(load_target(60), utc_s=1.8e9)
    judge._on_target(Incoming(topic, good, False, 0.0))
    assert {r.verdict for r in judge.results()} == {Verdict.HOLDS}
    fields: dict[str, Any] = json.loads(good)
    now, later = utc_text(1.8e9), utc_text(1.8e9 + 60)
    _, backwards = acme.encode(load_target(60, start_time=later, end_time=now), utc_s=1.8e9)
    schema = acme.signer.sign(b"{}", content_type="grid.loadtarget.set.v1", utc_s=1.8e9)
    stranger, _ = sender(tmp_path, "stranger")
    for raw, retained in (
        (b"{}", False),
        (good, True),
        (json.dumps(fields | {"source": "//grid/v1/isv/other"}).encode(), False),
        (json.dumps(fields | {"data": schema}).encode(), False),
        (
            json.dumps(fields | {"data": json.loads(stranger.encode(load_target(1), utc_s=1.8e9)[1])["data"]}).encode(),
            False,
        ),
        (backwards, False),
    ):
        judge._on_target(Incoming(topic, raw, retained, 0.0))
    assert {r.rule for r in judge.results() if r.verdict is Verdict.BROKEN} == set(IssuerSuite.RULES)


async def test_command_line(tmp_path: Path) -> None:
    """Listening to our own issuer exits 0 and prints each rule; no broker is one line; nonsense is bad input."""
    acme, public = sender(tmp_path, "acme")

    def run(port: int, *args: str) -> Any:
        return CliRunner().invoke(app, ["--broker", f"127.0.0.1:{port}", "--issuer", "acme", "--key", public, *args])

    async with EmbeddedBroker() as broker:
        s = session(broker.port, "acme")
        async with running(s):
            assert await s.wait_up(deadline_s=5)
            judged = asyncio.create_task(
                asyncio.to_thread(run, broker.port, "--role", "isv", "--seconds", "0.6", "--json")
            )
            while not judged.done():
                _, raw = acme.encode(load_target(60), utc_s=MonotonicClock().wall_utc_s())
                s.publish(load_target_topic("acme"), raw, qos=1, keep=Keep.ALL)
                await asyncio.sleep(0.1)
            result = judged.result()
        assert result.exit_code == 0, result.output
        assert {r["verdict"] for r in json.loads(result.output[result.output.index("[\n") :])} == {"holds"}
        odd = await asyncio.to_thread(run, broker.port, "--role", "other")
        keyless = await asyncio.to_thread(run, broker.port, "--role", "agent")
    assert "agent or isv" in str(odd.exception) and "--agent-key" in str(keyless.exception)
    absent = await asyncio.to_thread(run, free_port(), "--role", "isv", "--seconds", "0.1", "--wait-s", "0.3")
    assert "no broker session" in str(absent.exception)
