"""The AsyncAPI document: as generated, built as AsyncAPI 3.0 asks, and true of every message that is really sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from drivers.asyncapi import GRID, document, text
from drivers.dsx_wire import KINDS, CloudEvent, payload_bytes
from drivers.mqtt import PAYLOAD_BYTES_MAX
from tests.dsx_kit import sender
from tests.dsx_samples import SAMPLES

ROOT = Path(__file__).resolve().parent.parent

# Fixed fields of the objects of AsyncAPI 3.0.0 that the document uses: required, and allowed beside `x-` extensions.
FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "root": (
        {"asyncapi", "info"},
        {"id", "servers", "defaultContentType", "channels", "operations", "components"},
    ),
    "info": (
        {"title", "version"},
        {"description", "termsOfService", "contact", "license", "tags", "externalDocs"},
    ),
    "channel": (
        set(),
        {"address", "messages", "title", "summary", "description", "servers", "parameters", "tags", "bindings"},
    ),
    "operation": (
        {"action", "channel"},
        {"title", "summary", "description", "security", "tags", "bindings", "traits", "messages", "reply"},
    ),
    "message": (
        set(),
        {"headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "bindings"},
    ),
    "parameter": (set(), {"enum", "default", "description", "examples", "location"}),
    "components": (set(), {"schemas", "messages"}),
}
NAME = re.compile(r"^[A-Za-z0-9._-]+$")


def objects(whole: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every object of the document with its kind and where it is."""
    yield "root", "", whole
    yield "info", "info", whole["info"]
    yield "components", "components", whole["components"]
    for kind, group in (("channel", whole["channels"]), ("operation", whole["operations"])):
        yield from ((kind, f"{kind}s.{name}", body) for name, body in group.items())
    yield from (("message", f"messages.{name}", body) for name, body in whole["components"]["messages"].items())
    for name, channel in whole["channels"].items():
        yield from (("parameter", f"channels.{name}.{p}", body) for p, body in channel["parameters"].items())


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [r for v in node.values() for r in references(v)]
    return [r for v in node for r in references(v)] if isinstance(node, list) else []


def at(whole: Any, ref: str) -> Any:
    for step in ref.removeprefix("#/").split("/"):
        whole = whole[step]
    return whole


def test_document_is_the_generated_one() -> None:
    """A change of a wire model without writing the document again fails here."""
    assert (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8") == text(), "run: python -m drivers.asyncapi"


def test_every_object_has_the_fields_of_the_specification_and_no_others() -> None:
    whole = yaml.safe_load(text())
    for kind, where, body in objects(whole):
        required, allowed = FIELDS[kind]
        own = {key for key in body if not key.startswith("x-")}
        assert required <= own <= required | allowed, (where, own)
    assert whole["asyncapi"] == "3.0.0" and document() == whole
    groups = (whole["channels"], whole["operations"], *whole["components"].values())
    assert all(NAME.match(name) for group in groups for name in group)


def test_every_reference_resolves_and_operations_use_their_own_channels_messages() -> None:
    """Nothing points nowhere; each message has a channel, an operation and, if signed, its payload."""
    whole = yaml.safe_load(text())
    for ref in references(whole):
        assert at(whole, ref) is not None
    assert set(whole["channels"]) == set(whole["operations"]) == set(whole["components"]["messages"])
    for operation in whole["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert all(m["$ref"].startswith(f"{channel}/messages/") for m in operation["messages"])
    for channel in whole["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel["parameters"])
        assert channel["bindings"]["mqtt"]["qos"] in (0, 1, 2) and channel["bindings"]["mqtt"]["retain"] is False
    named = {m["name"] for m in whole["components"]["messages"].values() if "x-signed-payload" in m}
    assert named == set(KINDS) == set(SAMPLES)


class Checker:
    """JSON Schema, as far as the generated document uses it; a keyword it does not know fails the test."""

    KNOWN = frozenset(
        [
            "$ref",
            "anyOf",
            "oneOf",
            "discriminator",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "items",
            "prefixItems",
            "minItems",
            "maxItems",
            "enum",
            "const",
            "pattern",
            "format",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "minLength",
            "maxLength",
            "title",
            "description",
            "default",
        ]
    )
    TYPES: dict[str, Any] = {  # noqa: RUF012 - a constant table
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "number": (int, float), "integer": int,
    }  # fmt: skip

    def __init__(self, whole: dict[str, Any]) -> None:
        self._whole = whole

    def accepts(self, schema: dict[str, Any], value: Any) -> bool:
        assert set(schema) <= self.KNOWN | {k for k in schema if k.startswith("x-")}, set(schema) - self.KNOWN
        if "$ref" in schema:
            return self.accepts(at(self._whole, schema["$ref"]), value)
        for some in ("anyOf", "oneOf"):
            if some in schema and not any(self.accepts(one, value) for one in schema[some]):
                return False
        if "const" in schema and value != schema["const"]:
            return False
        if "enum" in schema and value not in schema["enum"]:
            return False
        if "type" in schema:
            is_bool = isinstance(value, bool)
            if not isinstance(value, self.TYPES[schema["type"]]) or (is_bool and schema["type"] != "boolean"):
                return False
        return self._fits(schema, value)

    def _fits(self, schema: dict[str, Any], value: Any) -> bool:
        if isinstance(value, dict):
            known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
            others = {k: v for k, v in value.items() if k not in known}
            if rest is False and others:
                return False
            if isinstance(rest, dict) and not all(self.accepts(rest, v) for v in others.values()):
                return False
            has_all = all(k in value for k in schema.get("required", ()))
            return has_all and all(self.accepts(known[k], v) for k, v in value.items() if k in known)
        if isinstance(value, list):
            is_long = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
            return is_long and all(self.accepts(schema.get("items", {}), v) for v in value)
        if isinstance(value, str):
            is_long = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", PAYLOAD_BYTES_MAX)
            return is_long and re.search(schema.get("pattern", ""), value) is not None
        if isinstance(value, int | float) and not isinstance(value, bool):
            is_in = schema.get("minimum", value) <= value <= schema.get("maximum", value)
            return is_in and schema.get("exclusiveMinimum", value - 1) < value < schema.get(
                "exclusiveMaximum", value + 1
            )
        return True


@pytest.mark.parametrize("event_type", sorted(KINDS))
def test_what_is_really_sent_is_what_the_document_says(tmp_path: Path, event_type: str) -> None:
    """A sample of each message, signed and encoded: envelope and payload fit their schemas; spoiled, they do not."""
    whole = yaml.safe_load(text())
    checker = Checker(whole)
    message = next(m for m in whole["components"]["messages"].values() if m["name"] == event_type)
    who, _ = sender(tmp_path, "acme")
    data = KINDS[event_type].model.model_validate(SAMPLES[event_type])
    _, raw = who.encode(data, utc_s=1.8e9, correlation_id="0b9c5a52-1f7e-4d3a-9a51-0c4f7d1f2a33")
    event, payload = json.loads(raw), json.loads(payload_bytes(data))
    assert checker.accepts(message["payload"], event)
    assert checker.accepts(message["x-signed-payload"], payload)
    assert not checker.accepts(message["x-signed-payload"], payload | {"surprise": 1})
    for key in payload:
        assert not checker.accepts(message["x-signed-payload"], payload | {key: {"odd": np.pi}}), key
    for key in CloudEvent.model_fields:
        assert not checker.accepts(message["payload"], event | {key: 7}), key


def test_channels_have_the_qos_that_the_specification_asks() -> None:
    """Commands and status at least once, breach traffic exactly once (DSX Flex 1.7.0)."""
    qos = {event_type: qos for _, event_type, _, qos, _ in GRID.values()}
    assert {k.split(".")[1] for k, q in qos.items() if q == 2} == {"powerbreach"}
    assert set(qos.values()) == {1, 2}
