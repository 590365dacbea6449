"""Listings of jobs over MQTT: who may say them, how long they hold, and what is not followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from controller.clock import MonotonicClock
from controller.settings import IssuerSettings, JobTopicSettings
from controller.types import JobPart
from drivers.jobs_mqtt import CONTENT_TYPE, JobsTopic
from drivers.jws import Signer, write_key_pair
from drivers.mqtt import Incoming, Keep
from hil.broker import EmbeddedBroker
from tests.clock_kit import HandClock
from tests.mqtt_kit import running, session, until

TOPIC = "rampart/v1/site/hall/jobs"


class Session:
    handler: Callable[[Incoming], None]

    def on_message(self, topic: str, handler: Callable[[Incoming], None], *, qos: int = 1) -> None:
        assert topic == TOPIC
        self.handler = handler


def document(clock: HandClock | MonotonicClock, **more: object) -> dict[str, object]:
    jobs = [{"job_id": "j1", "class": "train", "nodes": ["gpu-[1-2]"], "priority": 30, "ends_utc_s": 1.8e9}]
    return {"version": 1, "site": "hall", "issued_utc_s": clock.wall_utc_s(), "valid_s": 60.0, "jobs": jobs, **more}


class Bench:
    def __init__(self, issuers: tuple[IssuerSettings, ...] = (), valid_s_max: float = 3600.0) -> None:
        self.clock, session = HandClock(), Session()
        self.refused: list[str] = []
        self.feed = JobsTopic(
            session,  # type: ignore[arg-type]
            settings=JobTopicSettings(TOPIC, issuers, valid_s_max),
            site="hall",
            clock=self.clock,
            on_refused=self.refused.append,
        )
        self._handler = session.handler

    def send(self, payload: bytes | dict[str, object]) -> None:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.clock.t_s += 1.0
        self._handler(Incoming(TOPIC, raw, False, self.clock.t_s))

    def ids(self) -> list[str] | None:
        reading = self.feed.listing()
        return None if reading is None else [job.job_id for job in reading.value]


def test_listing_is_read_and_replaced() -> None:
    bench = Bench()
    assert bench.ids() is None
    bench.send(document(bench.clock))
    reading = bench.feed.listing()
    assert reading is not None
    (job,) = reading.value
    assert job.parts == (JobPart("gpu-1"), JobPart("gpu-2")) and (job.class_id, job.priority) == ("train", 30)
    bench.send(document(bench.clock, jobs=[], issued_utc_s=bench.clock.wall_utc_s() + 1.0))
    assert bench.ids() == [], "a listing replaces the one before"


def test_listing_lives_as_long_as_it_says_and_the_site_allows() -> None:
    """The publisher dies: its listing is fresh to its end and then ages as any source's does."""
    bench = Bench(valid_s_max=30.0)
    bench.send(document(bench.clock, valid_s=600.0))
    assert bench.ids() == ["j1"]
    heard_s = bench.clock.t_s
    bench.clock.t_s += 25.0
    reading = bench.feed.listing()
    assert reading is not None and reading.t_mono_s == bench.clock.t_s
    bench.clock.t_s += 500.0
    reading = bench.feed.listing()
    assert reading is not None and reading.t_mono_s == pytest.approx(heard_s + 29.0)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"site": "other"},
        {"issued_utc_s": 1.0},
        {"issued_utc_s": 9e9},
        {"valid_s": 0},
        {"valid_s": float("nan")},
        {"extra": 1},
        {"jobs": [{"job_id": "x", "priority": 101}]},
        {"jobs": [{"job_id": "x", "nodes": ["a[1-9999999]"]}]},
        {"jobs": [{"job_id": "x", "running": "yes"}]},
        {"jobs": [{"job_id": ""}]},
        {"jobs": {}},
    ],
)
def test_what_is_not_exactly_of_the_form_changes_nothing(change: dict[str, object]) -> None:
    bench = Bench()
    bench.send(document(bench.clock))
    assert bench.ids() == ["j1"]
    bench.send(document(bench.clock, **change))
    assert bench.ids() == ["j1"] and len(bench.refused) == 1 and bench.feed.trouble


def test_older_listing_is_a_replay() -> None:
    bench = Bench()
    old = document(bench.clock, jobs=[])
    bench.send(document(bench.clock, issued_utc_s=bench.clock.wall_utc_s() + 1.0))
    assert bench.ids() == ["j1"]
    bench.send(old)
    assert bench.ids() == ["j1"] and "not newer" in bench.refused[0]


def test_flood_costs_one_reading_per_half_second() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.feed.receive(Incoming(TOPIC, b"\xff" * 100, False, 0.0))
        bench.feed.listing()
    assert bench.feed.refused_count == 1 and len(bench.refused) == 1


def test_signed_topic_follows_known_keys_only(tmp_path: Path) -> None:
    private, public = write_key_pair(tmp_path, "scheduler")
    stranger, _ = write_key_pair(tmp_path, "stranger")
    bench = Bench((IssuerSettings("scheduler", (str(public),), False, False, False),))
    rng = np.random.default_rng(1)

    def signed(key: Path, *, content_type: str = CONTENT_TYPE) -> bytes:
        raw = json.dumps(document(bench.clock, issued_utc_s=bench.clock.wall_utc_s() + 0.5)).encode()
        return Signer(key, rng=rng).sign(raw, content_type=content_type, utc_s=bench.clock.wall_utc_s()).encode("ascii")

    for bad in (
        json.dumps(document(bench.clock)).encode(),
        signed(stranger),
        signed(private, content_type="application/json"),
        signed(private)[:-4] + b"AAAA",
    ):
        bench.send(bad)
        assert bench.ids() is None
    assert bench.feed.refused_count == 4
    bench.send(signed(private))
    assert bench.ids() == ["j1"] and bench.feed.trouble == ""


@pytest.mark.wire
async def test_over_a_broker() -> None:
    async with EmbeddedBroker() as broker:
        site, publisher = session(broker.port, "site"), session(broker.port, "publisher")
        clock = MonotonicClock()
        feed = JobsTopic(site, settings=JobTopicSettings(TOPIC, (), 3600.0), site="hall", clock=clock)
        async with running(site, publisher):
            assert await site.wait_up(deadline_s=5) and await publisher.wait_up(deadline_s=5)
            publisher.publish(TOPIC, json.dumps(document(clock)).encode(), qos=1, keep=Keep.ALL)
            await until(lambda: feed.listing() is not None)
    reading = feed.listing()
    assert reading is not None and [job.job_id for job in reading.value] == ["j1"]
