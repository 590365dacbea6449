"""The AsyncAPI 3 document of every message Rampart sends and takes over MQTT, generated from the wire models.

`docs/asyncapi.yaml` is this document written out; a test compares the two, so they cannot drift apart. Run
`python -m drivers.asyncapi` to write it again after a change of the models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from drivers.dsx_wire import (
    FLEXIBILITY_STATUS,
    KINDS,
    LOAD_TARGET_SET,
    POWER_BREACH_ALERT,
    POWER_BREACH_ENFORCEMENT,
    POWER_STATE_STATUS,
    RAMP_LIMIT_SET,
    SIGNAL_ANSWER,
    CloudEvent,
    answer_topic,
    breach_topic,
    enforcement_topic,
    flexibility_topic,
    load_target_topic,
    ramp_limit_topic,
    status_topic,
)
from drivers.mqtt import PAYLOAD_BYTES_MAX
from drivers.node_messages import CommandWire, ReportWire, command_topic, report_topic

VERSION = "1.0.0"
DESCRIPTION = (
    "Grid signals follow DSX Flex 1.7.0; ramplimit/set, signal/answer and flexibility/status are Rampart's additions "
    "in the same envelope. "
    "MQTT 3.1.1 only. The data of a grid event is a JWS compact string (ES256 or RS256, pinned to the key id); "
    "x-signed-payload is the JSON inside it. Publishers put iat and jti in the protected header; without them a "
    f"message may only tighten. Packets above {PAYLOAD_BYTES_MAX} bytes are dropped. Generated from the wire models; "
    "operations are those of the site controller."
)
DEFS = "#/components/schemas/{model}"

# name of the channel -> (address, event type, who sends, QoS, what it is for)
GRID = {
    "loadTargetSet": (load_target_topic("{issuer}"), LOAD_TARGET_SET, "issuer", 1, "An issuer sets a load target."),
    "rampLimitSet": (ramp_limit_topic("{issuer}"), RAMP_LIMIT_SET, "issuer", 1, "An issuer sets grid limits."),
    "powerStateStatus": (status_topic("{agent}"), POWER_STATE_STATUS, "agent", 1, "The agent's state, feed by feed."),
    "powerBreachAlert": (breach_topic("{agent}"), POWER_BREACH_ALERT, "agent", 2, "A target is exceeded, or no more."),
    "signalAnswer": (answer_topic("{agent}"), SIGNAL_ANSWER, "agent", 1, "What became of one issuer's message."),
    "flexibilityStatus": (
        flexibility_topic("{agent}"),
        FLEXIBILITY_STATUS,
        "agent",
        1,
        "Where power is to go, what the site could give, and what its limits cost it.",
    ),
    "powerBreachEnforcement": (
        enforcement_topic("{infra}"), POWER_BREACH_ENFORCEMENT, "infrastructure agent", 2, "What was done on a breach.",
    ),
}  # fmt: skip
NODE: dict[str, tuple[str, type[BaseModel], str, int, str]] = {
    "nodeReport": (report_topic("{node}"), ReportWire, "node agent", 0, "Telemetry of one node; never retained."),
    "nodeCommand": (command_topic("{node}"), CommandWire, "site", 1, "Caps with a time to live; never retained."),
}


def document() -> dict[str, Any]:
    """The whole document as plain data."""
    schemas: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    _add_schemas(schemas, CloudEvent)
    for name, (address, event_type, who, qos, text) in GRID.items():
        model = KINDS[event_type].model
        _add_schemas(schemas, model)
        messages[name] = {
            "name": event_type,
            "contentType": "application/cloudevents+json",
            "payload": {"$ref": DEFS.format(model=CloudEvent.__name__)},
            "x-signed-payload": {"$ref": DEFS.format(model=model.__name__)},
            "x-subject": KINDS[event_type].subject,
        }
        channels[name] = _channel(address, name, qos, text)
        operations[name] = _operation(name, sends=who == "agent", who=who)
    for name, (address, wire, who, qos, text) in NODE.items():
        _add_schemas(schemas, wire)
        messages[name] = {
            "name": name,
            "contentType": "application/json",
            "payload": {"$ref": DEFS.format(model=wire.__name__)},
        }
        channels[name] = _channel(address, name, qos, text)
        operations[name] = _operation(name, sends=who == "site", who=who)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rampart over MQTT",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/cloudevents+json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": dict(sorted(schemas.items()))},
    }


def text() -> str:
    """The document as it stands in `docs/`."""
    head = "# Generated from the wire models by `python -m drivers.asyncapi`; do not edit.\n"
    return head + yaml.safe_dump(document(), sort_keys=False, width=110, allow_unicode=True)


def _channel(address: str, message: str, qos: int, text_: str) -> dict[str, Any]:
    parameter = address[address.index("{") + 1 : address.index("}")]
    return {
        "address": address,
        "description": text_,
        "parameters": {parameter: {"description": f"Name of the {parameter}."}},
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {"mqtt": {"qos": qos, "retain": False}},
    }


def _operation(name: str, *, sends: bool, who: str) -> dict[str, Any]:
    return {
        "action": "send" if sends else "receive",
        "summary": f"Sent by the {who}.",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
    }


def _add_schemas(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    """The model and all it refers to; two different models of one name are a programming error."""
    schema = model.model_json_schema(ref_template=DEFS)
    found = {**schema.pop("$defs", {}), model.__name__: schema}
    for name, body in found.items():
        assert schemas.setdefault(name, body) == body, f"two schemas are called {name}"


if __name__ == "__main__":
    path = Path(__file__).resolve().parent.parent / "docs" / "asyncapi.yaml"
    path.write_text(text(), encoding="utf-8")
    print(path)
