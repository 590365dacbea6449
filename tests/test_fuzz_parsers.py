"""Every parser that reads from outside, fed what no friend would send: a typed refusal or a value, nothing else."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.app import make_core
from controller.codec import decode
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.ports import DriverError
from controller.replay import replay
from controller.settings import Settings
from controller.types import SiteImage
from drivers.dsx_payloads import SetLoadTargetData
from drivers.dsx_wire import LOAD_TARGET_SET, WireRefused, decode_envelope, verify_event
from drivers.jws import KeyStore
from drivers.profile import parse_profile
from hil.matrix_lab import SITE
from hil.trace_file import read_trace
from tests.dsx_kit import issuer, sender
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


def changed(document: Any) -> st.SearchStrategy[Any]:
    """`document` with the value at one place replaced, removed, or a key added."""
    places: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        places.append(path)
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in items:
            walk(child, (*path, key))

    walk(document, ())

    def put(pick: tuple[tuple[Any, ...], Any, bool]) -> Any:
        path, value, removes = pick
        whole = json.loads(json.dumps(document))
        if not path:
            return value
        node = whole
        for key in path[:-1]:
            node = node[key]
        if removes:
            del node[path[-1]]
        else:
            node[path[-1]] = value
        return whole

    return st.tuples(st.sampled_from(places), values, st.booleans()).map(put)


# ------------------------------------------------------------------------------------------------ grid messages


@pytest.fixture(scope="module")
def desk() -> tuple[bytes, KeyStore]:
    folder = Path(tempfile.mkdtemp())
    acme, public = sender(folder, "acme")
    data = SetLoadTargetData.model_validate(
        {"targets": [{"interval": {}, "load_constraint": {"value": 60, "unit": "megawatt"}}]}
    )
    return acme.encode(data, utc_s=1.8e9)[1], KeyStore((issuer("acme", (public,)),))


@FUZZ
@given(noise=st.data())
def test_grid_messages(desk: tuple[bytes, KeyStore], noise: st.DataObject) -> None:
    good, keys = desk
    raw = noise.draw(
        st.binary(max_size=300) | damaged(good) | changed(json.loads(good)).map(lambda x: json.dumps(x).encode())
    )
    try:
        verify_event(decode_envelope(raw, expected_type=LOAD_TARGET_SET), keys, SetLoadTargetData)
    except WireRefused:
        return


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


# ------------------------------------------------------------------------------------------------ configuration


@FUZZ
@given(document=values | changed({**SITE, "mqtt": {}}))
def test_site_files(document: Any) -> None:
    try:
        parse_site(document, origin="site.yaml")
    except BadInput as refused:
        assert "\n" not in str(refused)


PROFILES = sorted((Path(__file__).parent.parent / "configs" / "devices").glob("*.yaml"))


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


# ------------------------------------------------------------------------------------------------ records


@FUZZ
@given(raw=values)
def test_codec(raw: Any) -> None:
    for kind in (Settings, SiteImage):
        with pytest.raises((ValueError, OverflowError)):
            decode(kind, raw)


HEAD = json.dumps({"kind": "header", "format": "rampart-recording/1", "settings": None}).encode()


@FUZZ
@given(
    noise=st.binary(max_size=200) | damaged(gzip.compress(HEAD + b"\n")) | st.binary(max_size=200).map(gzip.compress)
)
def test_recordings(noise: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(noise)
    with pytest.raises(BadInput) as refused:
        replay(path, make_core)
    assert "\n" not in str(refused.value).replace(str(path), "")


CSV = b"# a note\nt_s,pcc_w\n0,1\n0.1,2e6\n0.2,\n0.3,4\n"


@FUZZ
@given(noise=st.binary(max_size=200) | damaged(CSV) | st.text(max_size=120).map(str.encode))
def test_traces(noise: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(noise)
    try:
        read_trace(path)
    except BadInput as refused:
        assert "\n" not in str(refused).replace(str(path), "")
