"""Every parser that reads from outside, fed what no friend would send: a typed refusal or a value, nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.codec import decode
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.ports import DriverError
from controller.settings import Settings
from controller.types import SiteImage
from drivers.profile import parse_profile
from tests.fuzz_targets import PLAIN_SITE, Target, targets
from tests.modbus_kit import ScriptedServer, device

EXAMPLES = int(os.environ.get("RAMPART_FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
values = st.recursive(scalars, lambda x: st.lists(x, max_size=5) | st.dictionaries(st.text(max_size=12), x, max_size=5))


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """`text` with a few bytes changed, a part cut out or doubled."""

    def change(given_: tuple[int, int, bytes]) -> bytes:
        start, length, new = given_
        start %= max(len(text), 1)
        return text[:start] + new + text[start + length :]

    return st.tuples(st.integers(0, len(text)), st.integers(0, 60), st.binary(max_size=20)).map(change)


def places_of(document: Any) -> list[tuple[Any, ...]]:
    """The way to every value in `document`, itself the first."""
    places: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        places.append(path)
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            walk(child, (*path, key))

    walk(document, ())
    return places


def put(document: Any, path: tuple[Any, ...], value: Any, *, removes: bool = False) -> Any:
    """A copy of `document` with the value at one place replaced or removed."""
    if not path:
        return value
    whole = json.loads(json.dumps(document))
    node = whole
    for key in path[:-1]:
        node = node[key]
    if removes:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return whole


def changed(document: Any) -> st.SearchStrategy[Any]:
    """`document` with the value at one place replaced or removed."""
    picks = st.tuples(st.sampled_from(places_of(document)), values, st.booleans())
    return picks.map(lambda pick: put(document, pick[0], pick[1], removes=pick[2]))


# ------------------------------------------------------------------------------------------------ whatever takes bytes


NESTED = b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"- " * 2000, b'"' + b"x" * 70_000 + b'"'


def fed(target: Target) -> st.SearchStrategy[bytes]:
    """Noise, damage to good examples, and for documents other values in their places."""
    found = st.binary(max_size=300) | st.sampled_from(target.good).flatmap(damaged)
    if target.is_json:
        documents = st.sampled_from([json.loads(good) for good in target.good])
        found |= documents.flatmap(changed).map(lambda x: json.dumps(x).encode())
        found |= values.map(lambda x: json.dumps(x).encode())
    return found


@FUZZ
@pytest.mark.parametrize("target", targets(), ids=lambda t: t.name)
@given(noise=st.data())
def test_bytes_from_outside(target: Target, noise: st.DataObject) -> None:
    """A value or the typed refusal: no other error, and no refusal longer than a line can be."""
    target(noise.draw(fed(target)))


@pytest.mark.parametrize("target", targets(), ids=lambda t: t.name)
def test_good_examples_and_towers(target: Target) -> None:
    """What a friend sends is read; nesting, digits and texts without end are refused like any noise."""
    for raw in (*target.good, *NESTED):
        target(raw)


EXTREMES: tuple[Any, ...] = (
    10**400,
    -(10**400),
    2**63,
    1e308,
    float("inf"),
    float("nan"),
    "9" * 5000,
    "\ud800",
    [[]] * 70,
    {"": None},
)


@pytest.mark.parametrize("target", [t for t in targets() if t.is_json], ids=lambda t: t.name)
def test_every_value_of_a_good_example_may_be_an_extreme(target: Target) -> None:
    """Whole numbers that no float holds, floats that no JSON has, half a character: chance hardly ever brings them."""
    for document in map(json.loads, target.good):
        for place in places_of(document):
            for extreme in EXTREMES:
                target(json.dumps(put(document, place, extreme)).encode())


# ------------------------------------------------------------------------------------------------ Modbus replies


@pytest.mark.wire
@settings(parent=FUZZ, max_examples=max(EXAMPLES // 4, 10))
@given(
    replies=st.lists(st.binary(max_size=40) | st.tuples(st.binary(max_size=12), st.booleans()), min_size=1, max_size=4)
)
def test_modbus_replies(replies: list[bytes | tuple[bytes, bool]]) -> None:
    """Whatever comes back: a value of the right length or a typed error, within its time, and one socket at most."""

    async def main() -> None:
        queue = list(replies)

        def script(request: bytes) -> list[bytes | float]:
            answer = queue.pop(0) if queue else b""
            if isinstance(answer, tuple):  # a right header around any content
                pdu, is_whole = answer
                length = len(pdu) + 1 if is_whole else 200
                answer = request[:4] + struct.pack(">H", length) + request[6:7] + pdu
            return [answer] if answer else []

        async with ScriptedServer(script) as server:
            dut = device(server.port, timeout_s=0.03)
            for _ in range(len(replies)):
                try:
                    async with asyncio.timeout(3.0):
                        assert len(await dut.read_registers(3, 0, 2)) == 4
                except DriverError:
                    pass
            assert server.open_count <= 2
            await dut.connection.close()

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------ documents


PROFILES = sorted((Path(__file__).parent.parent / "configs" / "devices").glob("*.yaml"))


@FUZZ
@given(document=values | changed(json.loads(json.dumps(PLAIN_SITE))))
def test_site_files(document: Any) -> None:
    try:
        parse_site(document, origin="site.yaml")
    except BadInput as refused:
        assert "\n" not in str(refused)


@FUZZ
@given(noise=st.data())
def test_device_profiles(noise: st.DataObject) -> None:
    path = noise.draw(st.sampled_from(PROFILES))
    known = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))  # keys as text
    document = noise.draw(values | changed(known))
    try:
        parse_profile(document, origin=path.name)
    except BadInput as refused:
        assert "\n" not in str(refused)


@FUZZ
@given(raw=values)
def test_codec(raw: Any) -> None:
    for kind in (Settings, SiteImage):
        with pytest.raises((ValueError, OverflowError)):
            decode(kind, raw)
