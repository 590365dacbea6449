"""The daemon as it ships, over a broker: bytes that mean nothing change nothing, a restart forgets nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.app import Daemon, Factories, build, make_core
from controller.clock import MonotonicClock
from controller.config.site import parse_site
from controller.live import live_factories
from controller.replay import replay
from controller.session import open_session
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_wire import Sender, enforcement_topic, load_target_topic, ramp_limit_topic
from drivers.mqtt import Keep, MqttSession
from drivers.node_messages import report_topic
from hil.broker import EmbeddedBroker
from tests.dsx_kit import sender
from tests.mqtt_kit import running, session, until

pytestmark = pytest.mark.wire
TARGET_W = 6.0e6


@dataclass
class Running:
    daemon: Daemon
    factories: Factories
    task: asyncio.Task[None]
    folder: Path

    def targets_w(self) -> list[float | None]:
        assert self.factories.grid is not None
        return [s.target_w for s in self.factories.grid.active(MonotonicClock().now_s())]

    def audit(self) -> list[dict[str, Any]]:
        path = self.folder / "state" / "grid-audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@asynccontextmanager
async def daemon(folder: Path, port: int, public: str) -> AsyncIterator[Running]:
    document = {
        "role": "site",
        "registered_peak_megawatt": 10,
        "limits": [{"id": "peak", "kind": "ceiling", "max_megawatt": 9}],
        "controller": "rule",
        "load": {"gpu_peak_megawatt": 8, "gpu_idle_megawatt": 1, "gpu_fallback_megawatt": 4, "other_max_megawatt": 1},
        "commands": {"raise_dwell_s": 0},
        "mqtt": {"port": port, "keepalive_s": 1},
        "grid": {
            "agent_id": "fuzz",
            "clock_sync": "assumed",  # the sender reads our own clock
            "issuers": [{"name": "acme", "key_files": [public], "may_set_ramp": True, "may_exempt_ramp": True}],
        },
        "state_dir": str(folder / "state"),
        "runtime_dir": str(folder / "run"),
    }
    settings = parse_site(document, origin=str(folder / "site.yaml"))
    clock = MonotonicClock()
    link = open_session(settings, clock=clock, client_id="site")
    async with live_factories(settings, clock=clock, session=link, node_link=None, feed_watchdog=lambda: None) as made:
        found = build(settings, made)
        task = asyncio.create_task(found.run())
        try:
            assert link is not None
            await until(lambda: link.is_up)
            yield Running(found, made, task, folder)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def ceiling(who: Sender, watts: float | None, *, exempt: bool = False) -> bytes:
    rows = None if watts is None else [{"kind": "ceiling", "id": "c", "max": {"value": watts, "unit": "watt"}}]
    request: dict[str, Any] = {"interval": {}, "limits": rows, "ramp_exempt": exempt}
    data = SetRampLimitData.model_validate({"requests": [request]})
    return who.encode(data, utc_s=MonotonicClock().wall_utc_s())[1]


def nonsense(rng: np.random.Generator, good: bytes) -> bytes:
    """Bytes as they might come: noise, nearly JSON, deep or huge, and signed messages that were cut or changed."""
    kind = int(rng.integers(8))
    cut = int(rng.integers(1, len(good)))
    changed = bytearray(good)
    changed[cut] ^= int(rng.integers(1, 256))
    return (
        rng.bytes(int(rng.integers(0, 2000))),
        b"",
        b"[" * 60_000,
        good[:cut],
        bytes(changed),
        json.dumps({"specversion": "1.0.2", "data": float(rng.normal())}).encode(),
        json.dumps({k: None for k in json.loads(good)}).encode(),
        b"\xff\xfe" + good,
    )[kind]


async def test_any_bytes_on_any_topic_leave_controller_and_limit_as_they_were(tmp_path: Path) -> None:
    acme, public = sender(tmp_path, "acme")
    rng = np.random.default_rng(11)
    async with EmbeddedBroker() as broker:
        grid: MqttSession = session(broker.port, "acme")
        async with daemon(tmp_path, broker.port, public) as site, running(grid):
            await grid.wait_up(deadline_s=5.0)
            good = ceiling(acme, TARGET_W)
            grid.publish(ramp_limit_topic("acme"), good, qos=1, keep=Keep.ALL)
            await until(lambda: site.targets_w() == [TARGET_W])
            topics = [
                load_target_topic("acme"),
                ramp_limit_topic("acme"),
                enforcement_topic("acme"),
                report_topic("node-1"),
                "rampart/v1/ping/site",
            ]
            for number in range(150):
                grid.publish(topics[number % len(topics)], nonsense(rng, good), qos=1, keep=Keep.ALL)
                if number % 10 == 9:
                    await grid.wait_sent(deadline_s=5.0)
            ticks: list[int] = []
            site.daemon.observe(lambda trace: ticks.append(trace.image.tick))
            await until(lambda: len(ticks) >= 5)
            assert not site.task.done()
            assert site.targets_w() == [TARGET_W]
            refused = [line for line in site.audit() if line["event"] == "refused_unverified"]
            reasons = [line["reason"] for line in refused]
            assert reasons and len(reasons) == len(set(reasons)), "one line per reason in ten seconds"
            assert site.factories.grid.refused_count  # type: ignore[union-attr]


async def test_a_signal_wakes_the_loop_and_an_emergency_is_in_force_with_the_cycle_it_wakes(tmp_path: Path) -> None:
    acme, public = sender(tmp_path, "acme")
    async with EmbeddedBroker() as broker:
        grid = session(broker.port, "acme")
        async with daemon(tmp_path, broker.port, public) as site, running(grid):
            await grid.wait_up(deadline_s=5.0)
            seen: list[tuple[int, float | None]] = []
            site.daemon.observe(lambda t: seen.append((t.image.tick, t.decision.in_force.exempt_target_w)))
            await until(lambda: len(seen) > 2)
            grid.publish(ramp_limit_topic("acme"), ceiling(acme, TARGET_W, exempt=True), qos=1, keep=Keep.ALL)
            await until(lambda: seen[-1][1] == TARGET_W)
            first = next(i for i, (_, target_w) in enumerate(seen) if target_w == TARGET_W)
            number = seen[first][0]  # an early cycle carries the number of the tick before it
            await until(lambda: [tick for tick, _ in seen].count(number) == 2)
            await until(lambda: len(seen) > first + 3)
    (recording,) = (tmp_path / "state" / "recordings").glob("*.jsonl.gz")
    replayed = replay(recording, lambda found, *, epoch: make_core(found, epoch=epoch))
    assert replayed.cycles >= len(seen) and replayed.first is None, "early cycles replay like any other"


async def test_a_restarted_controller_still_holds_what_was_accepted_and_knows_a_replay(tmp_path: Path) -> None:
    acme, public = sender(tmp_path, "acme")
    async with EmbeddedBroker() as broker:
        grid = session(broker.port, "acme")
        async with running(grid):
            await grid.wait_up(deadline_s=5.0)
            message = ceiling(acme, TARGET_W, exempt=True)
            async with daemon(tmp_path, broker.port, public) as site:
                grid.publish(ramp_limit_topic("acme"), message, qos=1, keep=Keep.ALL)
                await until(lambda: site.targets_w() == [TARGET_W])
            async with daemon(tmp_path, broker.port, public) as site:
                assert site.targets_w() == [TARGET_W]
                grid.publish(ramp_limit_topic("acme"), ceiling(acme, None), qos=1, keep=Keep.ALL)
                await until(lambda: site.targets_w() == [])
                grid.publish(ramp_limit_topic("acme"), message, qos=1, keep=Keep.ALL)
                await until(lambda: any(line.get("reason") == "duplicate" for line in site.audit()))
                assert site.targets_w() == []
            async with daemon(tmp_path, broker.port, public) as site:
                assert site.targets_w() == []


async def test_a_damaged_file_of_signals_is_put_aside(tmp_path: Path) -> None:
    _, public = sender(tmp_path, "acme")
    state = tmp_path / "state"
    state.mkdir()
    async with EmbeddedBroker() as broker:
        for content in (b"\x00\x01", b'{"utc_s": 1}', b"[" * 100_000):
            (state / "signals.json").write_bytes(content)
            async with daemon(tmp_path, broker.port, public) as site:
                assert site.targets_w() == []
            assert (state / "signals.json.damaged").read_bytes() == content
