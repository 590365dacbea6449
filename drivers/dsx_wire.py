"""Grid messages on the wire: topics, CloudEvents envelopes, and the signed payload inside them.

Codec only; nothing here judges what a message asks for. A payload that is not signed is never read, unknown CloudEvents
attributes are legal and ignored, and whatever else is wrong is one typed refusal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.types import RefusalReason
from drivers.dsx_extension import FlexibilityStatusData, SetRampLimitData, SignalAnswerData
from drivers.dsx_payloads import (
    Payload,
    PowerBreachAlertData,
    PowerBreachEnforcementData,
    PowerStateStatusData,
    SetLoadTargetData,
    UtcTime,
    Uuid4,
    utc_text,
    without_nulls,
)
from drivers.jws import KeyStore, Signed, Signer, WireRefused, new_uuid
from drivers.mqtt import PAYLOAD_BYTES_MAX

LOAD_TARGET_SET = "grid.loadtarget.set.v1"
POWER_STATE_STATUS = "grid.powerstate.status.v1"
POWER_BREACH_ALERT = "grid.powerbreach.alert.v1"
POWER_BREACH_ENFORCEMENT = "grid.powerbreach.enforcement.v1"
RAMP_LIMIT_SET = "grid.ramplimit.set.v1"
SIGNAL_ANSWER = "grid.signal.answer.v1"
FLEXIBILITY_STATUS = "grid.flexibility.status.v1"

_SOURCE = r"^//grid/v1/(isv|dsx-flex-agent|infra)/[^/]+$"
_TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_JWS = r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"


class CloudEvent(BaseModel):
    """CloudEvents 1.0.2 in structured JSON; `data` is a JWS compact string. Unknown attributes pass."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    specversion: Literal["1.0.2"]
    id: Uuid4
    source: Annotated[str, Field(pattern=_SOURCE, max_length=256)]
    type: Annotated[str, Field(max_length=128)]
    time: UtcTime
    datacontenttype: Literal["application/json"]
    subject: Annotated[str, Field(max_length=128)]
    traceparent: Annotated[str, Field(pattern=_TRACEPARENT)]
    tracestate: Annotated[str, Field(max_length=512)] | None = None
    correlationid: Uuid4 | None = None
    data: Annotated[str, Field(pattern=_JWS, max_length=PAYLOAD_BYTES_MAX)]

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, raw: object) -> object:
        return without_nulls(raw, allowed=frozenset())

    @property
    def trace(self) -> Trace:
        return Trace(self.traceparent, self.tracestate)

    @property
    def source_role(self) -> str:
        return self.source.split("/")[4]

    @property
    def source_id(self) -> str:
        return self.source.split("/")[5]


P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True)
class MessageKind:
    """One message of the interface: its event type, its subject, its payload."""

    event_type: str
    subject: str
    model: type[Payload]


KINDS: dict[str, MessageKind] = {
    k.event_type: k
    for k in (
        MessageKind(LOAD_TARGET_SET, "loadtarget", SetLoadTargetData),
        MessageKind(POWER_STATE_STATUS, "powerstate", PowerStateStatusData),
        MessageKind(POWER_BREACH_ALERT, "powerbreach", PowerBreachAlertData),
        MessageKind(POWER_BREACH_ENFORCEMENT, "powerbreach", PowerBreachEnforcementData),
        MessageKind(RAMP_LIMIT_SET, "ramplimit", SetRampLimitData),
        MessageKind(SIGNAL_ANSWER, "signal", SignalAnswerData),
        MessageKind(FLEXIBILITY_STATUS, "flexibility", FlexibilityStatusData),
    )
}


def load_target_topic(issuer: str) -> str:
    return f"grid/v1/isv/{issuer}/loadtarget/set"


def ramp_limit_topic(issuer: str) -> str:
    return f"grid/v1/isv/{issuer}/ramplimit/set"


def enforcement_topic(infra: str) -> str:
    return f"grid/v1/infra/{infra}/powerbreach/enforcement"


def status_topic(agent: str) -> str:
    return f"grid/v1/dsx-flex-agent/{agent}/powerstate/status"


def breach_topic(agent: str) -> str:
    return f"grid/v1/dsx-flex-agent/{agent}/powerbreach"


def answer_topic(agent: str) -> str:
    return f"grid/v1/dsx-flex-agent/{agent}/signal/answer"


def flexibility_topic(agent: str) -> str:
    return f"grid/v1/dsx-flex-agent/{agent}/flexibility/status"


def decode_envelope(payload: bytes, *, expected_type: str) -> CloudEvent:
    """The envelope of an event of the expected type. Raises WireRefused only."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise WireRefused(RefusalReason.OVERSIZED, f"{len(payload)} bytes; {PAYLOAD_BYTES_MAX} are allowed")
    try:
        event = CloudEvent.model_validate_json(payload)
    except ValidationError as error:
        raise WireRefused(RefusalReason.ENVELOPE, first_fault(error)) from None
    if event.type != expected_type:
        raise WireRefused(RefusalReason.ENVELOPE, f"type {event.type!r} on a topic for {expected_type}")
    return event


def verify_event(event: CloudEvent, keys: KeyStore, model: type[P]) -> tuple[Signed, P]:
    """The signed payload of an event, its signer being the one the event names. Raises WireRefused only."""
    signed = keys.verify(event.data)
    if signed.issuer != event.source_id:
        raise WireRefused(RefusalReason.SOURCE, f"signed by {signed.issuer}, sent as {event.source_id}")
    if signed.content_type is not None and signed.content_type != event.type:
        raise WireRefused(RefusalReason.SOURCE, f"signed as {signed.content_type}, sent as {event.type}")
    return signed, decode_payload(signed.payload, model)


def decode_payload(payload: bytes, model: type[P]) -> P:
    """A payload as its model. Raises WireRefused only."""
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        raise WireRefused(RefusalReason.SCHEMA, first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """The first fault of a validation, short enough for a log line whatever was sent."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step)[:40] for step in fault["loc"][:8]) or "message"
    return f"{where}: {fault['msg'][:160]}"


@dataclass(frozen=True, slots=True)
class Trace:
    """The W3C trace context of an event that others are the answer to."""

    parent: str
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """Our identity on the wire: the source we claim, and the key that proves it."""

    role: Literal["isv", "dsx-flex-agent", "infra"]
    identifier: str
    signer: Signer
    rng: np.random.Generator

    def encode(
        self, data: Payload, *, utc_s: float, correlation_id: str | None = None, trace: Trace | None = None
    ) -> tuple[str, bytes]:
        """The event's id and its bytes. A given trace is carried on with a new parent id."""
        kind = next(k for k in KINDS.values() if k.model is type(data))
        event_id = new_uuid(self.rng)
        body = payload_bytes(data)
        fields = {
            "specversion": "1.0.2",
            "id": event_id,
            "source": f"//grid/v1/{self.role}/{self.identifier}",
            "type": kind.event_type,
            "time": utc_text(utc_s),
            "datacontenttype": "application/json",
            "subject": kind.subject,
            "traceparent": next_traceparent(trace.parent if trace is not None else None, self.rng),
            "data": self.signer.sign(body, content_type=kind.event_type, utc_s=utc_s),
        }
        if trace is not None and trace.state is not None:
            fields["tracestate"] = trace.state
        if correlation_id is not None:
            fields["correlationid"] = correlation_id
        CloudEvent.model_validate(fields)  # what we would refuse we do not send
        return event_id, json.dumps(fields, separators=(",", ":")).encode()


def next_traceparent(parent: str | None, rng: np.random.Generator) -> str:
    """A W3C trace context: the trace of `parent` where there is one, else a new trace."""
    trace_id, flags = (parent.split("-")[1], parent.split("-")[3]) if parent else (rng.bytes(16).hex(), "01")
    return f"00-{trace_id}-{rng.bytes(8).hex()}-{flags}"


def payload_bytes(data: Payload) -> bytes:
    """A payload as bytes: what is absent is left out, a null that means something is kept."""
    return json.dumps(_plain(data), separators=(",", ":"), allow_nan=False).encode()


def _plain(value: object) -> object:
    if isinstance(value, Payload):
        fields = {k: getattr(value, k) for k in type(value).model_fields}
        return {k: _plain(v) for k, v in fields.items() if v is not None or k in value.nullable}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
