"""The grid's side of a wire run: signed DSX Flex messages, published at their times, and the agent's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from controller.clock import MonotonicClock
from controller.errors import BadInput
from controller.settings import GridSettings, IssuerSettings, MqttSettings
from controller.types import CeilingLimit, FloorLimit, GridSignal, Limit, RampLimit, SignalKind, SwingLimit, frozen
from drivers.dsx_extension import RequestAnswer, SetRampLimitData, SignalAnswerData
from drivers.dsx_payloads import (
    Interval,
    LoadTarget,
    Payload,
    PowerStateStatusData,
    SetLoadTargetData,
    Strategy,
    power,
    utc_text,
)
from drivers.dsx_wire import (
    POWER_STATE_STATUS,
    SIGNAL_ANSWER,
    Sender,
    answer_topic,
    decode_envelope,
    first_fault,
    load_target_topic,
    ramp_limit_topic,
    status_topic,
    verify_event,
)
from drivers.jws import KeyStore, Signer, WireRefused, new_uuid
from drivers.mqtt import Incoming, Keep, MqttSession
from hil.wire_devices import RunClock

QOS = 1


@frozen
class Answer:
    """What the agent said to one signal."""

    signal_id: str
    t_s: float
    answer: RequestAnswer


class Issuer:
    """Publishes as every issuer the site listens to; hears the agent's verified answers and status."""

    def __init__(
        self,
        mqtt: MqttSettings,
        grid: GridSettings,
        *,
        private_keys: Mapping[str, Path],
        agent_public_key: Path,
        clock: RunClock,
        rng: np.random.Generator,
        on_answer: Callable[[Answer], None],
    ) -> None:
        self.session = MqttSession(mqtt, client_id=f"grid-{new_uuid(rng)[:8]}", clock=MonotonicClock(), rng=rng)
        self.status_count = 0
        self._clock, self._rng, self._on_answer = clock, rng, on_answer
        self._senders = {
            name: Sender("isv", name, Signer(path, rng=rng), rng) for name, path in sorted(private_keys.items())
        }
        agent = IssuerSettings(grid.agent_id, (str(agent_public_key),), False, False, False)
        self._keys = KeyStore([agent])
        self._sent: dict[str, str] = {}  # message id -> signal id
        self.session.on_message(answer_topic(grid.agent_id), self._take_answer)
        self.session.on_message(status_topic(grid.agent_id), self._take_status)

    def publish(self, signal: GridSignal) -> None:
        """Sign and publish `signal`; BadInput when its issuer is none of the site's."""
        sender = self._senders.get(signal.issuer)
        if sender is None:
            known = ", ".join(sorted(self._senders)) or "none"
            raise BadInput(f"signals: issuer {signal.issuer!r}: the site file knows {known}")
        utc_s = self._clock.wall_utc_s()
        event_id, payload = sender.encode(
            payload_of(signal, now_s=self._clock.now_s(), utc_s=utc_s), utc_s=utc_s, correlation_id=new_uuid(self._rng)
        )
        self._sent[event_id] = signal.signal_id
        topic = load_target_topic if signal.kind is SignalKind.LOAD_TARGET else ramp_limit_topic
        self.session.publish(topic(signal.issuer), payload, qos=QOS, keep=Keep.ALL)

    def _take_answer(self, message: Incoming) -> None:
        try:
            event = decode_envelope(message.payload, expected_type=SIGNAL_ANSWER)
            _, data = verify_event(event, self._keys, SignalAnswerData)
        except WireRefused:
            return
        signal_id = self._sent.get(data.message_id)
        if signal_id is not None:
            for answer in data.answers:
                self._on_answer(Answer(signal_id, self._clock.now_s(), answer))

    def _take_status(self, message: Incoming) -> None:
        try:
            event = decode_envelope(message.payload, expected_type=POWER_STATE_STATUS)
            verify_event(event, self._keys, PowerStateStatusData)
        except WireRefused:
            return
        self.status_count += 1


def payload_of(signal: GridSignal, *, now_s: float, utc_s: float) -> Payload:
    """The message that carries `signal`: times in UTC, left out where they are now or never."""
    start = utc_text(utc_s + signal.from_s - now_s) if signal.from_s > now_s + 1.0 else None
    end = utc_text(utc_s + signal.until_s - now_s) if np.isfinite(signal.until_s) else None
    times = {k: v for k, v in (("start_time", start), ("end_time", end)) if v is not None}
    try:
        if signal.kind is SignalKind.LOAD_TARGET:
            assert signal.target_w is not None
            target = LoadTarget(
                interval=Interval(**times),
                feed_tags=signal.feeds,
                load_constraint=power(signal.target_w),
                strategy=Strategy(best_effort=signal.is_best_effort),
            )
            return SetLoadTargetData(targets=(target,))
        request = {
            "interval": times,
            "feed_tags": signal.feeds,
            "limits": _rows(signal.limits),
            "ramp_exempt": signal.ramp_exempt,
        }
        return SetRampLimitData.model_validate({"requests": [request]})
    except ValidationError as error:
        raise BadInput(f"signals: {signal.signal_id}: {first_fault(error)}") from None


def _rows(limits: Sequence[Limit]) -> list[dict[str, object]]:
    return [_row(limit) for limit in limits]


def _row(limit: Limit) -> dict[str, object]:
    name = limit.id.rpartition(".")[2]
    if isinstance(limit, RampLimit):
        return {
            "kind": "ramp",
            "id": name,
            "max": _watt(limit.max_w),
            "window_s": limit.window_s,
            "direction": limit.direction.value,
        }
    if isinstance(limit, SwingLimit):
        row: dict[str, object] = {"kind": "swing", "id": name, "max": _watt(limit.max_w), "window_s": limit.window_s}
        return row if limit.band_hz is None else {**row, "band_hz": list(limit.band_hz)}
    if isinstance(limit, CeilingLimit):
        return {"kind": "ceiling", "id": name, "max": _watt(limit.max_w)}
    if isinstance(limit, FloorLimit):
        return {"kind": "floor", "id": name, "min": _watt(limit.min_w)}
    raise BadInput(f"signals: {limit.id}: a ramp, swing, ceiling or floor row can be published on wires")


def _watt(value_w: float) -> dict[str, object]:
    return {"value": value_w, "unit": "watt"}
