"""The OpenADR 3 bridge against a VTN that serves standard-shaped events over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from controller.clock import MonotonicClock
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.settings import IssuerSettings, OpenAdrSettings
from controller.signals import AcceptanceRules
from drivers.openadr import BODY_BYTES_MAX, OpenAdrBridge, VtnRefused, read_events
from tests.dsx_kit import MW, bounds, grid

ISO = "%Y-%m-%dT%H:%M:%SZ"


def at(utc_s: float) -> str:
    return datetime.fromtimestamp(utc_s, UTC).strftime(ISO)


def event(
    payloads: list[list[tuple[str, float]]],
    *,
    start: str,
    duration: str = "PT1H",
    event_id: str = "event-1",
    priority: int | None = 0,
    units: dict[str, dict[str, str]] | None = None,
) -> dict[str, Any]:
    """An event as a VTN of version 3.0 or 3.1 shows it."""
    return {
        "id": event_id,
        "createdDateTime": "2026-06-01T08:00:00Z",
        "modificationDateTime": "2026-06-01T08:00:00Z",
        "objectType": "EVENT",
        "programID": "program-1",
        "eventName": "peak",
        "priority": priority,
        "targets": None,
        "reportDescriptors": None,
        "payloadDescriptors": [
            {"objectType": "EVENT_PAYLOAD_DESCRIPTOR", "payloadType": kind, **more}
            for kind, more in (units or {}).items()
        ],
        "intervalPeriod": {"start": start, "duration": duration, "randomizeStart": "PT0S"},
        "intervals": [
            {"id": i, "payloads": [{"type": kind, "values": [value]} for kind, value in found]}
            for i, found in enumerate(payloads)
        ],
    }


class Vtn(ThreadingHTTPServer):
    """Serves `events`, asks for the token it gives out, and counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: object = []
        self.raw: bytes | None = None
        self.status = 200
        self.needs_token = ""
        self.queries: list[dict[str, list[str]]] = []
        self.token_requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/openadr3/3.0.1"


class _Handler(BaseHTTPRequestHandler):
    server: Vtn

    def do_GET(self) -> None:
        self.server.queries.append(parse_qs(urlparse(self.path).query))
        if self.server.needs_token and self.headers["Authorization"] != f"Bearer {self.server.needs_token}":
            self._answer(403, b"{}")
            return
        body = self.server.raw if self.server.raw is not None else json.dumps(self.server.events).encode()
        self._answer(self.server.status, body)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.token_requests += 1
        is_good = form["client_id"] == ["ven"] and form["client_secret"] == ["quiet"]
        answer = {"access_token": self.server.needs_token, "token_type": "Bearer", "expires_in": 3600}
        self._answer(200 if is_good else 403, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def vtn() -> Iterator[Vtn]:
    server = Vtn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def settings(url: str, **changes: Any) -> OpenAdrSettings:
    fields: dict[str, Any] = {
        "url": url,
        "issuer": "vtn",
        "program_id": "program-1",
        "poll_s": 30.0,
        "token_file": None,
        "client_id": None,
        "client_secret_file": None,
    }
    return OpenAdrSettings(**(fields | changes))


def bridge(vtn: Vtn, **changes: Any) -> tuple[OpenAdrBridge, AcceptanceRules]:
    rules = AcceptanceRules(grid(IssuerSettings("vtn", (), True, False, False)), bounds(raise_dwell_s=0.0))
    return OpenAdrBridge(settings(vtn.url, **changes), rules=rules, clock=MonotonicClock()), rules


def targets(rules: AcceptanceRules) -> list[float | None]:
    now_s = MonotonicClock().now_s()
    return [s.target_w for s in rules.active(now_s)]


def utc_s() -> float:
    return MonotonicClock().wall_utc_s()


async def test_capacity_limits_become_load_targets_and_prices_are_kept(vtn: Vtn) -> None:
    now_s = utc_s()
    vtn.events = [
        event(
            [[("IMPORT_CAPACITY_LIMIT", 60_000), ("PRICE", 0.41)], [("IMPORT_CAPACITY_LIMIT", 70_000)]],
            start=at(now_s - 60),
            units={"IMPORT_CAPACITY_LIMIT": {"units": "KW"}, "PRICE": {"units": "KWH", "currency": "USD"}},
        )
    ]
    found, rules = bridge(vtn)
    await found.poll()
    assert targets(rules) == [60.0 * MW, 70.0 * MW]
    (price,) = found.prices(utc_s())
    assert (price.per_kwh, price.currency) == (0.41, "USD")
    assert vtn.queries[0]["programID"] == ["program-1"]


async def test_an_event_withdrawn_at_the_vtn_is_withdrawn_here(vtn: Vtn) -> None:
    vtn.events = [event([[("DISPATCH_SETPOINT", 50_000)]], start=at(utc_s() - 60))]
    found, rules = bridge(vtn)
    await found.poll()
    assert targets(rules) == [50.0 * MW]
    vtn.events = []
    await found.poll()
    assert [t for t in targets(rules) if t is not None] == []


async def test_a_changed_event_replaces_what_it_said_before(vtn: Vtn) -> None:
    found, rules = bridge(vtn)
    for kilowatt in (50_000, 80_000, 40_000):
        vtn.events = [event([[("DISPATCH_SETPOINT", kilowatt)]], start=at(utc_s() - 60))]
        await found.poll()
        assert targets(rules) == [kilowatt * 1e3]


async def test_a_silent_or_broken_vtn_changes_nothing(vtn: Vtn) -> None:
    vtn.events = [event([[("IMPORT_CAPACITY_LIMIT", 60_000)]], start=at(utc_s() - 60))]
    found, rules = bridge(vtn)
    await found.poll()
    for vtn.status, vtn.raw in (
        (500, b"oops"),
        (200, b"not json"),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b"[" * 100_000),
        (200, b" " * (BODY_BYTES_MAX + 10)),
    ):
        await found.poll()
        assert not found.is_answering and found.last_error
        assert targets(rules) == [60.0 * MW]
    vtn.status, vtn.raw = 200, None
    await found.poll()
    assert found.is_answering


async def test_a_token_is_fetched_once_and_sent(vtn: Vtn, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("quiet\n")
    vtn.needs_token = "abc"
    found, _ = bridge(vtn, client_id="ven", client_secret_file=str(secret))
    await found.poll()
    await found.poll()
    assert found.is_answering and vtn.token_requests == 1


async def test_a_limit_below_the_floor_is_bounded_as_any_issuers(vtn: Vtn) -> None:
    vtn.events = [event([[("IMPORT_CAPACITY_LIMIT", 0)]], start=at(utc_s() - 60))]
    found, rules = bridge(vtn)
    await found.poll()
    assert targets(rules) == [20.0 * MW]


def test_of_two_events_at_once_the_one_of_higher_priority_comes_last_and_lies_on_top() -> None:
    weak = event([[("DISPATCH_SETPOINT", 1)]], start="2026-06-01T00:00:00Z", event_id="weak", priority=5)
    none = event([[("DISPATCH_SETPOINT", 2)]], start="2026-06-01T00:00:00Z", event_id="none", priority=None)
    strong = event([[("DISPATCH_SETPOINT", 3)]], start="2026-06-01T00:00:00Z", event_id="strong", priority=0)
    found = read_events(json.dumps([strong, none, weak]).encode(), program_id=None)
    assert [w.target_w for w in found.wishes] == [2e3, 1e3, 3e3]


def test_what_means_nothing_to_a_load_is_named_and_left() -> None:
    body = json.dumps([event([[("GHG", 300.0), ("SIMPLE", 2)]], start="2026-06-01T00:00:00Z")]).encode()
    found = read_events(body, program_id=None)
    assert found.wishes == () and found.unused == ("GHG", "SIMPLE")


@pytest.mark.parametrize(
    "change",
    [
        {"start": "yesterday"},
        {"start": "2026-06-01T00:00:00"},
        {"duration": "an hour"},
        {"duration": "P"},
        {"units": {"DISPATCH_SETPOINT": {"units": "HP"}}},
    ],
)
def test_events_that_the_specification_does_not_allow_are_refused_whole(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"start": "2026-06-01T00:00:00Z"} | change
    with pytest.raises(VtnRefused):
        read_events(json.dumps([event([[("DISPATCH_SETPOINT", 1)]], **fields)]).encode(), program_id=None)


def test_units_scale_and_events_of_other_programs_do_not_count() -> None:
    one = event(
        [[("DISPATCH_SETPOINT", 2.5)]],
        start="2026-06-01T00:00:00Z",
        units={"DISPATCH_SETPOINT": {"units": "MW"}},
        duration="P9999Y",
    )
    body = json.dumps([one]).encode()
    (wish,) = read_events(body, program_id="program-1").wishes
    assert wish.target_w == 2.5 * MW and wish.until_utc_s == float("inf")
    assert read_events(body, program_id="another").wishes == ()


SITE: dict[str, Any] = {
    "role": "site",
    "registered_peak_megawatt": 10,
    "limits": [{"id": "c", "kind": "ceiling", "max_megawatt": 9}],
    "load": {
        "gpu_peak_megawatt": 8,
        "gpu_idle_megawatt": 1,
        "gpu_fallback_megawatt": 4,
        "other_max_megawatt": 1,
    },
    "mqtt": {"port": 1883},
    "grid": {"agent_id": "a", "issuers": [{"name": "iso", "key_files": ["iso.pem"]}]},
}


def test_the_site_file_takes_a_vtn() -> None:
    found = parse_site(SITE | {"openadr": {"url": "https://vtn.example/openadr3", "poll_s": 10}}, origin="site.yaml")
    assert found.openadr is not None and found.openadr.poll_s == 10.0


@pytest.mark.parametrize(
    ("openadr", "word"),
    [
        ({"url": "http://vtn.example"}, "https"),
        ({"url": "https://vtn.example", "client_id": "x"}, "client_secret_file"),
        ({"url": "https://vtn.example", "issuer": "iso"}, "issuer"),
        ({"url": "ftp://vtn.example"}, "url"),
    ],
)
def test_a_vtn_that_cannot_be_used_is_refused_in_a_line(openadr: dict[str, Any], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        parse_site(SITE | {"openadr": openadr}, origin="site.yaml")
