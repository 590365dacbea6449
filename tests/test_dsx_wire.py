"""Grid messages on the wire: the published schema accepts what we write, and what it refuses we refuse, typed."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.settings import IssuerSettings
from controller.types import (
    BandLimit,
    Direction,
    DroopLimit,
    FloorLimit,
    OscillationLimit,
    RampLimit,
    RateLimit,
    RefusalReason,
    RideThroughLimit,
    SwingLimit,
)
from drivers.dsx_extension import SetRampLimitData
from drivers.dsx_offer import load_target_offer, ramp_limit_offer
from drivers.dsx_payloads import Payload, SetLoadTargetData
from drivers.dsx_wire import (
    KINDS,
    LOAD_TARGET_SET,
    RAMP_LIMIT_SET,
    CloudEvent,
    Sender,
    Trace,
    decode_envelope,
    decode_payload,
    next_traceparent,
    payload_bytes,
    verify_event,
)
from drivers.jws import KeyStore, WireRefused
from drivers.mqtt import PAYLOAD_BYTES_MAX
from tests.dsx_kit import MW, sender

SPEC = Path(__file__).resolve().parent.parent.parent / "shared" / "reference" / "dsx-flex-1.7.0.asyncapi.yaml"
UUID = "0b9c5a52-1f7e-4d3a-9a51-0c4f7d1f2a33"
MEGAWATT = {"value": 60, "unit": "megawatt"}

EXAMPLES: dict[str, dict[str, Any]] = {
    "grid.loadtarget.set.v1": {
        "targets": [
            {
                "interval": {"start_time": "2026-11-20T10:00:00Z", "end_time": "2026-11-20T11:00:00.5+01:00"},
                "feed_tags": ["main-a", "main-b"],
                "load_constraint": MEGAWATT,
                "strategy": {"best_effort": True},
            },
            {"interval": {}, "load_constraint": None},
        ]
    },
    "grid.powerstate.status.v1": {
        "snapshot_time": "2026-11-20T10:00:00Z",
        "feeds": {
            "main-a": {
                "metadata": {k: MEGAWATT for k in ("power_minimum", "power_maximum", "default_constraint")},
                "targets": [
                    {
                        "active": True, "load_constraint": MEGAWATT, "interval": {}, "strategy": {},
                        "correlation_id": UUID,
                    }
                ],
                "calculated_load": MEGAWATT, "in_flight": False, "event": "periodic",
                "power_event_start_time": "2026-11-20T10:00:00Z", "compliant": True,
            }
        },
    },
    "grid.powerbreach.alert.v1": {
        "feed_tag": "main-a", "status": "active", "severity": "warning",
        "breach": {"breach_id": UUID, "detected_at": "2026-11-20T10:00:00Z"},
        "target": {"correlation_id": UUID, "load_constraint": MEGAWATT},
        "measured_load": MEGAWATT,
        "shed_hints": [
            {"resource_id": "n1", "resource_type": "node", "action": "power_cap", "priority": 1,
             "target_power": MEGAWATT}
        ],
        "infrastructure_actions": ["SHUTDOWN_NODES", "TRIP_BREAKERS"],
    },
    "grid.powerbreach.enforcement.v1": {
        "breach_id": UUID, "feed_tag": "main-a", "action": "applied", "code": "partial", "diag_msg": "x",
        "results": [
            {"resource_id": "n1", "resource_type": "gpu", "requested_action": "throttle", "code": "failed",
             "message": "y", "applied_power": MEGAWATT}
        ],
        "timestamp": "2026-11-20T10:00:00Z",
    },
}  # fmt: skip
SCHEMAS = {
    "grid.loadtarget.set.v1": "SetLoadTargetData",
    "grid.powerstate.status.v1": "PowerStateStatusData",
    "grid.powerbreach.alert.v1": "PowerBreachAlertData",
    "grid.powerbreach.enforcement.v1": "PowerBreachEnforcementData",
}


class Schema:
    """The part of JSON Schema the published document uses; refuses to judge anything else."""

    KNOWN = frozenset(
        {"type", "description", "required", "properties", "format", "minimum", "minItems", "default", "enum", "items"}
        | {"examples", "allOf", "oneOf", "$ref", "additionalProperties", "const", "pattern"}
    )

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def accepts(self, schema: dict[str, Any], value: Any) -> bool:
        assert set(schema) <= self.KNOWN, set(schema) - self.KNOWN
        if "$ref" in schema:
            return self.accepts(self._resolve(schema["$ref"]), value)
        return (
            self._type(schema, value)
            and all(self.accepts(s, value) for s in schema.get("allOf", ()))
            and ("oneOf" not in schema or sum(self.accepts(s, value) for s in schema["oneOf"]) == 1)
            and ("const" not in schema or value == schema["const"])
            and ("enum" not in schema or value in schema["enum"])
            and self._content(schema, value)
        )

    def _resolve(self, ref: str) -> dict[str, Any]:
        node: Any = self.document
        for step in ref.removeprefix("#/").split("/"):
            node = node[step]
        assert isinstance(node, dict)
        return node

    def _type(self, schema: dict[str, Any], value: Any) -> bool:
        kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
        wanted = schema.get("type")
        if wanted in ("number", "integer"):
            return isinstance(value, int | float if wanted == "number" else int) and not isinstance(value, bool)
        return wanted is None or isinstance(value, kinds[wanted])

    def _content(self, schema: dict[str, Any], value: Any) -> bool:
        if isinstance(value, dict):
            rest = schema.get("additionalProperties", {})
            known = schema.get("properties", {})
            return all(k in value for k in schema.get("required", ())) and all(
                self.accepts(known.get(k, rest), v) for k, v in value.items()
            )
        if isinstance(value, list):
            return len(value) >= schema.get("minItems", 0) and all(
                self.accepts(schema.get("items", {}), v) for v in value
            )
        if isinstance(value, str):
            return re.search(schema.get("pattern", ""), value) is not None and self._format(schema, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return bool(value >= schema.get("minimum", value))
        return True

    def _format(self, schema: dict[str, Any], value: str) -> bool:
        if schema.get("format") == "date-time":
            try:
                return datetime.fromisoformat(value).tzinfo is not None and "T" in value
            except ValueError:
                return False
        return (
            schema.get("format") != "uuid"
            or re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value) is not None
        )


@pytest.fixture(scope="module")
def schema() -> Schema:
    if not SPEC.exists():
        pytest.skip("the DSX Flex specification is not beside this checkout")
    return Schema(yaml.safe_load(SPEC.read_text()))


def ours(event_type: str, value: object) -> Payload | None:
    try:
        return decode_payload(json.dumps(value).encode(), KINDS[event_type].model)
    except WireRefused:
        return None


@pytest.mark.parametrize("event_type", sorted(EXAMPLES))
def test_example_round_trips(event_type: str, schema: Schema) -> None:
    """Read, written, read again: the same; and the published schema accepts both what came and what we write."""
    published = {"$ref": f"#/components/schemas/{SCHEMAS[event_type]}"}
    assert schema.accepts(published, EXAMPLES[event_type])
    data = ours(event_type, EXAMPLES[event_type])
    assert data is not None
    written = json.loads(payload_bytes(data))
    assert schema.accepts(published, written) and ours(event_type, written) == data


def mutations(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every value of a document in turn replaced by something of another kind, or left out."""
    found: list[tuple[tuple[Any, ...], Any]] = []
    odd: Any
    for odd in (None, -1, "x", True, [], {}, 1e309):
        found.append((path, odd))
    found.append((path, "__absent__"))
    if isinstance(value, dict):
        for key, inner in value.items():
            found += mutations(inner, (*path, key))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            found += mutations(inner, (*path, i))
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new == "__absent__":
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("event_type", sorted(EXAMPLES))
def test_what_the_schema_refuses_we_refuse(event_type: str, schema: Schema) -> None:
    """Each value of each example broken in eight ways: never accepted by us where the schema refuses it."""
    published = {"$ref": f"#/components/schemas/{SCHEMAS[event_type]}"}
    refused = 0
    for path, new in mutations(EXAMPLES[event_type]):
        broken = changed(EXAMPLES[event_type], path, new)
        if not schema.accepts(published, broken):
            refused += 1
            assert ours(event_type, broken) is None, (path, new)
    assert refused > 30


@pytest.mark.parametrize(
    "bad",
    [
        {"targets": [], },
        {"targets": [{"interval": {}, "load_constraint": MEGAWATT, "extra": 1}]},
        {"targets": [{"interval": {"start_time": "2026-11-20T10:00:00"}, "load_constraint": MEGAWATT}]},
        {"targets": [{"interval": {"start_time": "2026-13-20T10:00:00Z"}, "load_constraint": MEGAWATT}]},
        {"targets": [{"interval": {"end_time": "9999-12-31T23:59:59-14:00"}, "load_constraint": MEGAWATT}]},
        {"targets": [{"interval": {"end_time": 1.8e9}, "load_constraint": MEGAWATT}]},
        {"targets": [{"interval": {}, "load_constraint": {"value": "60", "unit": "megawatt"}}]},
        {"targets": [{"interval": {}, "load_constraint": {"value": 60, "unit": "mw"}}]},
        {"targets": [{"interval": {}, "load_constraint": MEGAWATT, "feed_tags": [""]}]},
    ],
)  # fmt: skip
def test_strict_inside_the_signature(bad: object) -> None:
    """Unknown keys, times without a zone or out of reason, wrong types: the whole message is dropped."""
    assert ours(LOAD_TARGET_SET, bad) is None


def event(
    tmp_path: Path, data: dict[str, Any], event_type: str = LOAD_TARGET_SET, **more: Any
) -> tuple[bytes, KeyStore]:
    publisher, public = sender(tmp_path, "acme")
    payload = decode_payload(json.dumps(data).encode(), KINDS[event_type].model)
    _, raw = publisher.encode(payload, utc_s=1.8e9, **more)
    return raw, KeyStore([IssuerSettings("acme", (public,), True, True, True)])


def test_signed_event_round_trips(tmp_path: Path, schema: Schema) -> None:
    """Our envelope is one the published schema accepts, with unknown attributes too; trace and correlation are kept."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    raw, keys = event(tmp_path, EXAMPLES[LOAD_TARGET_SET], correlation_id=UUID, trace=Trace(parent, "a=1"))
    fields = json.loads(raw)
    assert schema.accepts({"$ref": "#/components/schemas/LoadTargetSetEvent"}, fields)
    with_more = json.dumps(fields | {"partitionkey": "x", "sequence": 7}).encode()
    got = decode_envelope(with_more, expected_type=LOAD_TARGET_SET)
    assert got.correlationid == UUID and got.traceparent.split("-")[1] == parent.split("-")[1]
    assert got.traceparent != parent and got.tracestate == "a=1"
    signed, data = verify_event(got, keys, SetLoadTargetData)
    assert data == ours(LOAD_TARGET_SET, EXAMPLES[LOAD_TARGET_SET])
    assert signed.iat_utc_s == 1.8e9 and signed.jti is not None


def test_envelope_faults(tmp_path: Path, schema: Schema) -> None:
    """Each required attribute missing, null or wrong: refused as an envelope, by the schema and by us."""
    raw, _ = event(tmp_path, EXAMPLES[LOAD_TARGET_SET], correlation_id=UUID)
    fields = json.loads(raw)
    published = {"$ref": "#/components/schemas/LoadTargetSetEvent"}
    cases = [{k: v for k, v in fields.items() if k != gone} for gone in fields if gone != "correlationid"]
    cases += [fields | {k: None} for k in fields]
    cases += [
        fields | change
        for change in (
            {"specversion": "1.0"}, {"id": "x"}, {"source": "//grid/v1/other/acme"}, {"type": "grid.other.v1"},
            {"time": "now"}, {"datacontenttype": "text/plain"}, {"traceparent": "00-xyz"}, {"data": "a.b"},
        )
    ]  # fmt: skip
    for case in cases:
        assert not schema.accepts(published, case), case
        with pytest.raises(WireRefused) as caught:
            decode_envelope(json.dumps(case).encode(), expected_type=LOAD_TARGET_SET)
        assert caught.value.reason is RefusalReason.ENVELOPE
    unsigned = json.dumps(fields | {"data": EXAMPLES[LOAD_TARGET_SET]}).encode()
    with pytest.raises(WireRefused):  # the schema allows plain text; an unsigned payload is never read
        decode_envelope(unsigned, expected_type=LOAD_TARGET_SET)
    with pytest.raises(WireRefused) as caught:
        decode_envelope(b" " * (PAYLOAD_BYTES_MAX + 1), expected_type=LOAD_TARGET_SET)
    assert caught.value.reason is RefusalReason.OVERSIZED


def test_signed_by_one_sent_as_another(tmp_path: Path) -> None:
    """A payload signed for another source, or for another type of event, does not count."""
    raw, keys = event(tmp_path, EXAMPLES[LOAD_TARGET_SET])
    fields = json.loads(raw)
    for change in ({"source": "//grid/v1/isv/other"}, {"type": RAMP_LIMIT_SET}):
        moved = CloudEvent.model_validate(fields | change)
        with pytest.raises(WireRefused) as caught:
            verify_event(moved, keys, SetLoadTargetData)
        assert caught.value.reason is RefusalReason.SOURCE


ROWS: list[dict[str, Any]] = [
    {"kind": "ramp", "id": "a", "max": MEGAWATT, "window_s": 15, "direction": "up"},
    {"kind": "swing", "id": "b", "max_frac": 0.05, "window_s": 5.0},
    {"kind": "swing", "id": "b2", "max_frac": 0.05, "window_s": 5.0, "band_hz": [0.1, 55.0]},
    {"kind": "rate", "id": "c", "max_per_s": {"value": 500, "unit": "kilowatt"}, "above": MEGAWATT},
    {"kind": "band", "id": "d", "max": MEGAWATT, "band_hz": [0.1, 5]},
    {"kind": "oscillation", "id": "e", "max_frac": 0.0025, "band_hz": [0.1, 20]},
    {"kind": "ceiling", "id": "f", "max": MEGAWATT, "by_s": 30},
    {"kind": "floor", "id": "g", "min": {"value": 30, "unit": "megawatt"}, "by_s": 10},
    {"kind": "ride_through", "id": "h",
     "voltage_pu": [{"low": 0.9, "high": 1.1}, {"low": 0.5, "high": 0.8, "hold_s": 0.5}],
     "recover_frac": 0.9, "recover_s": 1.0},
    {"kind": "droop", "id": "i", "deadband_hz": 0.036, "per_hz": MEGAWATT, "max": MEGAWATT, "nominal_hz": 50},
]  # fmt: skip


def ramp_offer(tmp_path: Path, *requests: dict[str, Any]) -> Any:
    raw, keys = event(tmp_path, {"requests": list(requests)}, RAMP_LIMIT_SET)
    got = decode_envelope(raw, expected_type=RAMP_LIMIT_SET)
    signed, data = verify_event(got, keys, SetRampLimitData)
    return ramp_limit_offer(got, signed, data, peak_w=100 * MW)


def test_rows_of_every_kind_become_limits(tmp_path: Path) -> None:
    """Each kind of section 5 in SI, shares of the peak resolved, the mean by window length, the ceiling as target."""
    offer = ramp_offer(tmp_path, {"interval": {}, "limits": ROWS, "ramp_exempt": True})
    (target,) = offer.targets
    assert (target.target_w, target.due_in_s, target.ramp_exempt) == (60 * MW, 30.0, True)
    rows = {row.id.removeprefix("acme/"): row for row in target.limits}
    assert isinstance(rows["a"], RampLimit) and rows["a"].direction is Direction.UP and rows["a"].mean_s == 1.0
    assert isinstance(rows["b"], SwingLimit) and (rows["b"].max_w, rows["b"].mean_s) == (5 * MW, 0.2)
    assert isinstance(rows["b2"], SwingLimit) and (rows["b2"].band_hz, rows["b2"].mean_s) == ((0.1, 55.0), 0.0)
    assert isinstance(rows["c"], RateLimit) and (rows["c"].max_w_per_s, rows["c"].above_w) == (5e5, 60 * MW)
    assert isinstance(rows["d"], BandLimit) and rows["d"].band_hz == (0.1, 5.0)
    assert isinstance(rows["e"], OscillationLimit) and rows["e"].max_w == 250e3 and rows["e"].span_s == 20.0
    assert isinstance(rows["g"], FloorLimit) and (rows["g"].min_w, rows["g"].from_s) == (30 * MW, 10.0)
    assert isinstance(rows["h"], RideThroughLimit) and rows["h"].voltage_pu[0].hold_s == float("inf")
    assert isinstance(rows["i"], DroopLimit) and (rows["i"].w_per_hz, rows["i"].nominal_hz) == (60 * MW, 50)
    assert all("acme" in row.provenance.source for row in rows.values()) and len(rows) == 9
    assert ramp_offer(tmp_path / "b", {"interval": {}, "limits": None}).targets[0].is_revert


@pytest.mark.parametrize(
    ("rows", "exempt"),
    [
        ([ROWS[0], ROWS[0]], False),
        ([ROWS[6], ROWS[6] | {"id": "z"}], False),
        ([ROWS[0]], True),
        ([ROWS[4] | {"band_hz": [5, 0.1]}], False),
        ([ROWS[8] | {"frequency_hz": [{"low": 61, "high": 60}]}], False),
    ],
)
def test_rows_that_clash_are_refused(tmp_path: Path, rows: list[dict[str, Any]], exempt: bool) -> None:
    """Two rows of one id, two ceilings, a waiver without a ceiling, a band or curve upside down."""
    with pytest.raises(WireRefused) as caught:
        ramp_offer(tmp_path, {"interval": {}, "limits": rows, "ramp_exempt": exempt})
    assert caught.value.reason is RefusalReason.SCHEMA


@pytest.mark.parametrize(
    "row",
    [
        ROWS[0] | {"max_frac": 0.1}, {k: v for k, v in ROWS[0].items() if k != "max"}, ROWS[0] | {"window_s": 0},
        ROWS[0] | {"kind": "other"}, ROWS[0] | {"window_s": float("inf")}, ROWS[0] | {"percentile": 0.5},
        ROWS[1] | {"max_frac": 1.5}, ROWS[4] | {"band_hz": [0.1]}, ROWS[9] | {"nominal_hz": 400},
        ROWS[0] | {"direction": "sideways"}, ROWS[0] | {"id": ""},
        ROWS[0] | {"window_s": 1e12}, ROWS[4] | {"band_hz": [1e-300, 60.0]}, ROWS[4] | {"band_hz": [60.0, 1e300]},
        ROWS[5] | {"span_s": 1e12}, ROWS[5] | {"span_s": 1e-300}, ROWS[7] | {"by_s": 1e12},
        ROWS[8] | {"recover_s": 1e12}, ROWS[9] | {"deadband_hz": 1e12},
    ],
)  # fmt: skip
def test_bad_rows_are_refused(row: dict[str, Any]) -> None:
    """One wrong field drops the message; a span of 1e12 s took all memory, a band from 1e-300 Hz is no filter."""
    assert ours(RAMP_LIMIT_SET, {"requests": [{"interval": {}, "limits": [row]}]}) is None


def test_a_power_beyond_any_site_is_a_number_still(tmp_path: Path) -> None:
    """1e308 MW is finite on the wire and infinite in watts, and no row may be infinite: it is held to 1 TW."""
    huge = {"value": 1e308, "unit": "megawatt"}
    offer = ramp_offer(tmp_path, {"interval": {}, "limits": [ROWS[0] | {"max": huge}, ROWS[6] | {"max": huge}]})
    row = offer.targets[0].limits[0]
    assert isinstance(row, RampLimit) and row.max_w == 1e12 and offer.targets[0].target_w == 1e12


def test_load_target_becomes_an_offer(tmp_path: Path) -> None:
    """Times in UTC seconds whatever the zone, powers in watts, null as a revert; no correlation id: the event's own."""
    raw, keys = event(tmp_path, EXAMPLES[LOAD_TARGET_SET])
    got = decode_envelope(raw, expected_type=LOAD_TARGET_SET)
    signed, data = verify_event(got, keys, SetLoadTargetData)
    offer = load_target_offer(got, signed, data)
    first, second = offer.targets
    assert first.until_utc_s is not None and first.from_utc_s is not None
    assert first.until_utc_s - first.from_utc_s == 0.5
    assert (first.target_w, first.feeds, first.is_best_effort) == (60 * MW, ("main-a", "main-b"), True)
    assert second.is_revert and second.target_w is None and offer.correlation_id == got.id


@given(st.binary(max_size=200))
def test_any_bytes_are_one_typed_refusal(raw: bytes) -> None:
    """No bytes make the parsers raise anything but their refusal."""
    for kind in KINDS.values():
        with pytest.raises(WireRefused):
            decode_envelope(raw, expected_type=kind.event_type)
        try:
            decode_payload(raw, kind.model)
        except WireRefused as refused:
            assert len(refused.detail) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6) | st.sampled_from(ROWS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["targets", "requests", "interval", "limits", "load_constraint", "value", "unit", "feeds"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(JSON)
def test_any_json_is_a_payload_or_one_typed_refusal(value: object) -> None:
    """Nor does any JSON."""
    for event_type in KINDS:
        ours(event_type, value)


def test_deep_nesting_is_a_refusal() -> None:
    """A document nested beyond any reason ends in the refusal, not in a recursion error."""
    with pytest.raises(WireRefused):
        decode_envelope(b'{"a":' * 9000 + b"1" + b"}" * 9000, expected_type=LOAD_TARGET_SET)


def test_new_trace_where_there_was_none() -> None:
    """Without a parent a new, well-formed trace begins."""
    text = next_traceparent(None, np.random.default_rng(1))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", text)
    assert Sender.__slots__
