"""Everything that reads bytes from outside, each with good examples to start from and what it may raise.

`test_fuzz_parsers` feeds them by rules, `fuzz_guided` by coverage. A target returns or raises one of its refusals.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from controller.app import make_core
from controller.codec import decode, encode
from controller.config.contract import ContractDocument
from controller.config.load import parse_document, read_yaml
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.node.originals import OriginalsCorrupt, OriginalsFile
from controller.ports import DriverError
from controller.replay import replay
from controller.settings import JobRule
from controller.signal_memory import SignalMemory
from controller.signals import AcceptanceRules
from controller.types import ClassId
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_payloads import PowerBreachEnforcementData, SetLoadTargetData
from drivers.dsx_wire import LOAD_TARGET_SET, WireRefused, decode_envelope, decode_payload, verify_event
from drivers.hostlist import expand
from drivers.jws import KeyStore, read_key
from drivers.kubernetes import jobs_of, pods_of
from drivers.node_messages import decode_command, decode_report, encode_command, encode_report
from drivers.openadr import VtnRefused, read_events
from drivers.profile import parse_profile
from drivers.signal_store import SignalStore
from drivers.slurm import parse
from hil.scenario import Overrides, parse_scenario
from hil.trace_file import read_trace
from tests.dsx_kit import MW, bounds, grid, issuer, sender
from tests.signals_kit import Story
from tests.test_envelope_node import GOOD
from tests.test_jobs_mqtt import Bench, document
from tests.test_kubernetes_jobs import pod, settings_of
from tests.test_node_link import report
from tests.test_openadr import event
from tests.test_slurm_jobs import NEWER, OLDER, WAITING

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True, slots=True)
class Target:
    """`is_json`: the good examples are JSON, and may be damaged as documents as well as bytes."""

    name: str
    feed: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    good: tuple[bytes, ...]
    is_json: bool = True

    def __call__(self, raw: bytes) -> None:
        try:
            self.feed(raw)
        except self.refusals as refused:
            text = str(refused)
            assert len(text) < 4000, "a refusal is a line, not a dump"


def _dump(*documents: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(item, default=str).encode() for item in documents)


_FOLDER = tempfile.TemporaryDirectory(prefix="rampart-fuzz-")  # gone with the process


def _folder() -> Path:
    return Path(_FOLDER.name)


def _file(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    def feed(raw: bytes) -> object:
        path = _folder() / name
        path.write_bytes(raw)
        return read(path)

    return feed


def _yaml(parse_it: Callable[[object, str], object], name: str) -> Callable[[bytes], object]:
    return _file(lambda path: parse_it(read_yaml(path), path.name), name)


def _grid_event() -> tuple[Callable[[bytes], object], bytes]:
    acme, public = sender(_folder(), "acme")
    data = SetLoadTargetData.model_validate(LOAD_TARGET)
    keys = KeyStore((issuer("acme", (public,)),))
    good = acme.encode(data, utc_s=1.8e9)[1]
    return lambda raw: verify_event(decode_envelope(raw, expected_type=LOAD_TARGET_SET), keys, SetLoadTargetData), good


def _jobs(raw: bytes) -> object:
    bench = Bench()
    bench.send(raw)
    return bench.ids()


def _memory(raw: bytes) -> object:
    """The whole way of a restart: file, codec, rules, and what is in force then."""

    async def start() -> object:
        path = _folder() / "signals.json"
        path.write_bytes(raw)
        kept = SignalStore(path, take=lambda: None).load()
        if kept is None:
            return None
        memory = decode(SignalMemory, kept, at="signals")
        assert isinstance(memory, SignalMemory)
        rules = AcceptanceRules(grid(), bounds())
        rules.recall(memory, now_s=100.0, utc_s=1.8e9)
        rules.step(now_s=101.0, utc_s=1.8e9 + 1.0, is_link_up=True, is_clock_synced=True)
        return rules.active(101.0), rules.feed_targets(101.0), rules.memory(now_s=101.0, utc_s=1.8e9)

    return asyncio.run(start())


def _remembered() -> bytes:
    site = Story()
    site.say(60 * MW, end=500.0)
    site.wait(1.0)
    site.say(50 * MW, start=5.0)
    return json.dumps(encode(site.rules.memory(now_s=site.now_s, utc_s=site.utc_s))).encode()


def _originals(raw: bytes) -> object:
    path = _folder() / "state" / "originals.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return OriginalsFile(path.parent).load()


LOAD_TARGET = {"targets": [{"interval": {}, "load_constraint": {"value": 60, "unit": "megawatt"}}]}
RAMP_LIMIT = {
    "requests": [
        {
            "interval": {"start_time": "2027-01-15T08:00:00Z"},
            "feed_tags": ["main"],
            "limits": [
                {"kind": "ramp", "id": "r", "max": {"value": 5, "unit": "megawatt"}, "window_s": 15, "direction": "up"},
                {"kind": "ceiling", "id": "c", "max": {"value": 60, "unit": "megawatt"}},
            ],
        }
    ]
}
RULES = (JobRule(ClassId("serve"), (("partition", "inference"),)),)
PLAIN_SITE = {
    **yaml.safe_load((CONFIGS / "site.example.yaml").read_text(encoding="utf-8")),
    "mqtt": {},
}
RECORDING_HEAD = json.dumps({"kind": "header", "format": "rampart-recording/1", "settings": None}).encode()


@cache
def targets() -> tuple[Target, ...]:
    """Every parser of the outside, by name."""
    grid_event, grid_good = _grid_event()
    wire = (WireRefused,)
    return (
        Target("grid-event", grid_event, wire, (grid_good,)),
        Target("load-target", lambda b: decode_payload(b, SetLoadTargetData), wire, _dump(LOAD_TARGET)),
        Target("ramp-limit", lambda b: decode_payload(b, SetRampLimitData), wire, _dump(RAMP_LIMIT)),
        Target("enforcement", lambda b: decode_payload(b, PowerBreachEnforcementData), wire, _dump({"breach_id": "b"})),
        Target("node-report", lambda b: decode_report(b, t_mono_s=5.0), (), (encode_report(report(), age_s=0.1),)),
        Target("node-command", decode_command, (), (encode_command(GOOD),)),
        Target("jobs-topic", _jobs, (), _dump(document(Bench().clock))),
        Target("slurm", lambda b: parse(b, rules=RULES), (DriverError,), _dump({"jobs": [NEWER, OLDER, WAITING]})),
        Target(
            "kubernetes",
            lambda b: jobs_of(pods_of(b), settings_of()),
            (DriverError,),
            _dump({"kind": "PodList", "items": [pod("a"), pod("b", gpus="4")]}),
        ),
        Target(
            "openadr",
            lambda b: read_events(b, program_id=None),
            (VtnRefused,),
            _dump([event([[("IMPORT_CAPACITY_LIMIT", 5.0), ("PRICE", 0.1)]], start="2027-01-15T08:00:00Z")]),
        ),
        Target(
            "host-list", lambda b: expand(b.decode("utf-8", "replace")), (ValueError,), (b"gpu[001-004,007],n1",), False
        ),
        Target("key", _file(read_key, "key.jwk"), (BadInput,), ((_folder() / "acme.pub.jwk").read_bytes(),)),
        Target("site", _yaml(lambda raw, at: parse_site(raw, origin=at), "site.yaml"), (BadInput,), _dump(PLAIN_SITE)),
        Target(
            "node",
            _yaml(lambda raw, at: parse_site(raw, origin=at), "node.yaml"),
            (BadInput,),
            ((CONFIGS / "node.example.yaml").read_bytes(),),
            False,
        ),
        Target(
            "contract",
            _yaml(lambda raw, at: parse_document(raw, ContractDocument, origin=at), "contract.yaml"),
            (BadInput,),
            tuple(p.read_bytes() for p in sorted((CONFIGS / "contracts").glob("*.yaml"))[:6]),
            False,
        ),
        Target(
            "profile",
            _yaml(lambda raw, at: parse_profile(raw, origin=at), "profile.yaml"),
            (BadInput,),
            ((CONFIGS / "devices" / "sunspec-meter.yaml").read_bytes(),),
            False,
        ),
        Target(
            "scenario",
            _yaml(
                lambda raw, at: parse_scenario(raw, Overrides(), origin=str(CONFIGS / "scenarios" / at)), "campus.yaml"
            ),
            (BadInput,),
            ((CONFIGS / "scenarios" / "campus-90mw.yaml").read_bytes(),),
            False,
        ),
        Target(
            "trace", _file(read_trace, "trace.csv"), (BadInput,), (b"# a note\nt_s,pcc_w\n0,1\n0.1,2e6\n0.2,\n",), False
        ),
        Target(
            "recording",
            _file(lambda path: replay(path, make_core), "recording.gz"),
            (BadInput,),
            (gzip.compress(RECORDING_HEAD + b"\n"), zlib.compress(RECORDING_HEAD)),
            False,
        ),
        Target("signal-memory", _memory, (ValueError, OverflowError), (_remembered(),)),
        Target(
            "originals",
            _originals,
            (OriginalsCorrupt,),
            _dump({"format": "rampart-originals/1", "sha256": "", "body": {}}),
        ),
    )
