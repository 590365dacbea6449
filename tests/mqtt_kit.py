"""What the tests over MQTT share: settings for a loopback broker, sessions that run for the length of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np

from controller.clock import MonotonicClock
from controller.settings import MqttSettings
from drivers.mqtt import MqttSession


def settings(port: int, **changes: object) -> MqttSettings:
    fields: dict[str, object] = {
        "host": "127.0.0.1",
        "port": port,
        "keepalive_s": 1,
        "username": None,
        "password_file": None,
        "ca_file": None,
        "cert_file": None,
        "key_file": None,
    }
    return MqttSettings(**(fields | changes))  # type: ignore[arg-type]


def session(port: int, client_id: str, **changes: object) -> MqttSession:
    rng = np.random.default_rng(7)
    return MqttSession(settings(port, **changes), client_id=client_id, clock=MonotonicClock(), rng=rng)


@asynccontextmanager
async def running(*sessions: MqttSession) -> AsyncIterator[None]:
    """Each session's `run` as a task, cancelled at the end."""
    tasks = [asyncio.create_task(s.run()) for s in sessions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object], *, deadline_s: float = 10.0) -> None:
    """Wait for a condition to hold; a story that never comes true fails."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - the conditions are of other objects' state
            await asyncio.sleep(0.005)
