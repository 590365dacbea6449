"""The flex agent on the grid's MQTT topics: takes signed signals in, answers them, and reports state back.

Every message passes size, rate, envelope, signature and schema before the acceptance rules see it; every outcome goes
to the append-only audit log. What was not verified is never answered and never changes anything. The rules are handed
in: this file knows how messages look, not what they may do.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import structlog

from controller.errors import BadInput
from controller.ports import Clock, JobSource, PriceSource, SignalRules, WallSync
from controller.settings import GridSettings, JobClassSettings
from controller.types import (
    GridSignal,
    Margin,
    Outlook,
    RefusalReason,
    SignalOutcome,
    SiteCommand,
    SiteImage,
)
from drivers.audit_log import AuditLog
from drivers.dsx_offer import load_target_offer, ramp_limit_offer
from drivers.dsx_payloads import (
    Payload,
    PowerBreachEnforcementData,
    RequestAnswer,
    SetLoadTargetData,
    SetRampLimitData,
    SignalAnswerData,
    power,
    utc_text,
)
from drivers.dsx_report import GridReporter, site_power_w
from drivers.dsx_wire import (
    LOAD_TARGET_SET,
    POWER_BREACH_ENFORCEMENT,
    RAMP_LIMIT_SET,
    CloudEvent,
    Sender,
    Trace,
    answer_topic,
    decode_envelope,
    enforcement_topic,
    load_target_topic,
    ramp_limit_topic,
    verify_event,
)
from drivers.jws import KeyStore, Signer, WireRefused
from drivers.mqtt import Incoming, Keep, MqttSession

RATE_PER_S_MAX = 20.0  # messages of one topic that are looked at; verifying one takes 0.2 ms
BURST_MAX = 20.0
WAITING_MAX = 16  # messages of one topic beyond the rate; when full the oldest goes
POLL_S = 0.05
KEY_REFRESH_S = 10.0
REFUSALS_LOGGED_S = 10.0  # unverified refusals of one reason: one line per so long, with the count of the rest
QOS_SIGNAL = 1
TRACES_MAX = 512  # trace contexts of accepted signals that are carried on

log = structlog.get_logger("grid")


class DsxGridSource:
    """Implements `ports.GridSource`. `run` must run beside the session's own; `on_outcome` hears each judgement."""

    def __init__(
        self,
        session: MqttSession,
        *,
        settings: GridSettings,
        rules: SignalRules,
        peak_w: float,
        floor_w: float,
        classes: Sequence[JobClassSettings],
        jobs: JobSource | None,
        clock: Clock,
        rng: np.random.Generator,
        audit_path: Path,
        on_outcome: Callable[[SignalOutcome], None] | None = None,
        sync: WallSync | None = None,
    ) -> None:
        self._sync = sync
        self.refused_count: dict[RefusalReason, int] = {}
        self._session = session
        self._settings = settings
        self._rules = rules
        self._keys = KeyStore(settings.issuers)
        self._sender: Sender | None = None
        if settings.signing_key_file is not None:
            signer = Signer(Path(settings.signing_key_file), rng=rng)
            self._sender = Sender("dsx-flex-agent", settings.agent_id, signer, rng)
        self._peak_w = peak_w
        self._clock = clock
        self._on_outcome = on_outcome
        self._audit = AuditLog(audit_path)
        self._present_w: float | None = None
        self._just_set: dict[str, str] = {}  # feed -> correlation id of the target accepted last
        self._traces: OrderedDict[str, Trace] = OrderedDict()  # by correlation id
        self.prices: PriceSource | None = None  # what energy costs, where a bridge knows
        shares = settings.feed_share_frac or tuple(1.0 / len(settings.feeds) for _ in settings.feeds)
        self._reporter = GridReporter(
            settings,
            share_frac=dict(zip(settings.feeds, shares, strict=True)),
            peak_w=peak_w,
            floor_w=floor_w,
            classes=classes,
            jobs=jobs,
            clock=clock,
            rng=rng,
            publish=self._publish,
            write_audit=self.write_audit,
        )
        self._judged: deque[tuple[CloudEvent, Sequence[SignalOutcome], float, float]] = deque()  # to be answered
        self._quiet: dict[RefusalReason, tuple[float, int]] = {}
        self._inboxes = [
            _Inbox(session, load_target_topic(i.name), self._on_load_target, clock) for i in settings.issuers
        ]
        self._inboxes += [
            _Inbox(session, ramp_limit_topic(i.name), self._on_ramp_limit, clock) for i in settings.issuers
        ]
        self._inboxes += [
            _Inbox(session, enforcement_topic(i.name), self._on_enforcement, clock) for i in settings.issuers
        ]

    # ------------------------------------------------------------------------------------------- ports.GridSource

    @property
    def is_link_up(self) -> bool:
        """A session with the broker, and our own ping coming back through it."""
        return self._session.is_up

    @property
    def is_silent(self) -> bool:
        """The link has been gone for longer than the grace: the fallback contract is due."""
        return self._rules.is_silent

    def active(self, now_s: float) -> tuple[GridSignal, ...]:
        self._rules.step(
            now_s=now_s,
            utc_s=self._clock.wall_utc_s(),
            is_link_up=self.is_link_up,
            is_clock_synced=self._sync.is_synced if self._sync is not None else True,
        )
        return self._rules.active(now_s)

    async def report(
        self,
        image: SiteImage,
        command: SiteCommand,
        margins: Sequence[Margin],
        *,
        outlook: Callable[[], Outlook | None] = lambda: None,
    ) -> None:
        """Follow load and targets, publish status and breaches where they change; queues only, never waits."""
        measured = site_power_w(image)
        self._present_w = measured
        if measured is None or self._sender is None:
            return
        targets = self._rules.feed_targets(image.t_mono_s)
        self._reporter.report(image, measured_w=measured, targets=targets, just_set=self._just_set)
        self._just_set.clear()
        energy_prices = self.prices.prices(self._clock.wall_utc_s()) if self.prices is not None else ()
        self._reporter.tell_outlook(image.t_mono_s, outlook, energy_prices)

    async def run(self) -> None:
        """Answer, work off what came faster than it may be looked at, and keep the keys fresh; until cancelled."""
        refresh_due_s = self._clock.now_s() + KEY_REFRESH_S
        try:
            while True:
                await asyncio.sleep(POLL_S)
                for inbox in self._inboxes:
                    inbox.work_off()
                self._answer_judged()
                if self._clock.now_s() >= refresh_due_s:
                    refresh_due_s = self._clock.now_s() + KEY_REFRESH_S
                    self._refresh_keys()
        finally:
            self._audit.close()

    # ------------------------------------------------------------------------------------------- messages in

    def _on_load_target(self, message: Incoming) -> None:
        with _Refusals(self, message):
            event = self._envelope(message, LOAD_TARGET_SET)
            signed, data = verify_event(event, self._keys, SetLoadTargetData)
            self._judge(
                event,
                self._rules.offer(
                    load_target_offer(event, signed, data),
                    now_s=message.t_mono_s,
                    utc_s=self._clock.wall_utc_s(),
                    present_w=self._present_w,
                ),
            )

    def _on_ramp_limit(self, message: Incoming) -> None:
        with _Refusals(self, message):
            event = self._envelope(message, RAMP_LIMIT_SET)
            signed, data = verify_event(event, self._keys, SetRampLimitData)
            self._judge(
                event,
                self._rules.offer(
                    ramp_limit_offer(event, signed, data, peak_w=self._peak_w),
                    now_s=message.t_mono_s,
                    utc_s=self._clock.wall_utc_s(),
                    present_w=self._present_w,
                ),
            )

    def _on_enforcement(self, message: Incoming) -> None:
        """What an infrastructure agent did about a breach: recorded, and what failed is not hinted again.

        Caps follow from telemetry, not from its word.
        """
        with _Refusals(self, message):
            event = self._envelope(message, POWER_BREACH_ENFORCEMENT)
            signed, data = verify_event(event, self._keys, PowerBreachEnforcementData)
            self.write_audit(
                {
                    "event": "enforcement",
                    "issuer": signed.issuer,
                    "key_id": signed.key_id,
                    "message_id": event.id,
                    "breach_id": data.breach_id,
                    "is_ours": self._reporter.enforced(data),
                    "feed": data.feed_tag,
                    "action": data.action,
                    "code": data.code,
                    "results": len(data.results),
                    "failed": [r.resource_id for r in data.results if r.code != "applied"],
                }
            )
            log.info("breach enforcement", issuer=signed.issuer, action=data.action, code=data.code)

    def _envelope(self, message: Incoming, event_type: str) -> CloudEvent:
        event = decode_envelope(message.payload, expected_type=event_type)
        _, _, role, identifier, *_ = message.topic.split("/")
        if (event.source_role, event.source_id) != (role, identifier):
            raise WireRefused(RefusalReason.SOURCE, f"source {event.source} on topic {message.topic}")
        return event

    def _judge(self, event: CloudEvent, outcomes: Sequence[SignalOutcome]) -> None:
        """Pass on and audit what the rules said about one message; `run` answers it, which takes longer."""
        now_s, utc_s = self._clock.now_s(), self._clock.wall_utc_s()
        if self._on_outcome is not None:
            for outcome in outcomes:  # first: an emergency does not wait for the paperwork
                self._on_outcome(outcome)
        for outcome in outcomes:
            self.write_audit(_audit_line(outcome, now_s, utc_s))
            if outcome.reason is not None:
                self.refused_count[outcome.reason] = self.refused_count.get(outcome.reason, 0) + 1
            else:
                self._just_set |= dict.fromkeys(outcome.feeds, outcome.correlation_id)
                self._traces[outcome.correlation_id] = event.trace
                self._traces.move_to_end(outcome.correlation_id)
        while len(self._traces) > TRACES_MAX:
            self._traces.popitem(last=False)
        if outcomes:
            self._judged.append((event, outcomes, now_s, utc_s))

    def _answer_judged(self) -> None:
        """Log and answer what was judged since the last time: signing would hold up the cycle a signal wakes."""
        while self._judged:
            event, outcomes, now_s, utc_s = self._judged.popleft()
            for outcome in outcomes:
                log.info(
                    "grid signal",
                    kind=str(outcome.kind),
                    issuer=outcome.issuer,
                    acceptance=str(outcome.acceptance),
                    reason=str(outcome.reason or ""),
                    detail=outcome.detail,
                )
            data = SignalAnswerData(
                message_id=event.id,
                issuer=outcomes[0].issuer,
                answers=tuple(_answer(o, now_s, utc_s) for o in outcomes),
            )
            cause = event.correlationid or event.id
            self._publish(answer_topic(self._settings.agent_id), data, QOS_SIGNAL, cause, trace=event.trace)

    def refuse(self, message: Incoming, refused: WireRefused) -> None:
        """Count a message that did not get as far as the rules; say so, but not more often than it is useful."""
        reason = refused.reason
        self.refused_count[reason] = self.refused_count.get(reason, 0) + 1
        now_s = self._clock.now_s()
        said_s, quiet = self._quiet.get(reason, (-math.inf, 0))
        if now_s - said_s < REFUSALS_LOGGED_S:
            self._quiet[reason] = (said_s, quiet + 1)
            return
        self._quiet[reason] = (now_s, 0)
        log.warning("grid message refused", reason=str(reason), topic=message.topic, detail=refused.detail)
        self.write_audit(
            {
                "event": "refused_unverified",
                "reason": str(reason),
                "topic": message.topic,
                "detail": refused.detail,
                "more_since_last": quiet,
            }
        )

    def _refresh_keys(self) -> None:
        try:
            if self._keys.refresh():
                log.info("grid keys changed", key_ids=list(self._keys.key_ids))
                self.write_audit({"event": "keys_changed", "key_ids": list(self._keys.key_ids)})
        except BadInput as bad:
            log.error("grid keys cannot be read; those in use stay", cause=str(bad))

    def write_audit(self, line: Mapping[str, object]) -> None:
        """One line of the audit log, stamped in UTC; other bridges write theirs here too."""
        self._audit.append({"utc": utc_text(self._clock.wall_utc_s()), **line})

    def _publish(
        self, topic: str, data: Payload, qos: int, correlation_id: str | None, *, trace: Trace | None = None
    ) -> None:
        """Sign and queue; whatever a signal caused carries its correlation id and goes on with its trace."""
        if self._sender is None:
            return
        if trace is None and correlation_id is not None:
            trace = self._traces.get(correlation_id)
        _, payload = self._sender.encode(
            data, utc_s=self._clock.wall_utc_s(), correlation_id=correlation_id, trace=trace
        )
        self._session.publish(topic, payload, qos=qos, keep=Keep.ALL)


class _Inbox:
    """One topic behind a token bucket: a flood of it costs neither the loop nor the other issuers anything."""

    def __init__(self, session: MqttSession, topic: str, handler: Callable[[Incoming], None], clock: Clock) -> None:
        self._handler = handler
        self._clock = clock
        self._tokens = BURST_MAX
        self._filled_s = clock.now_s()
        self._waiting: deque[Incoming] = deque(maxlen=WAITING_MAX)
        session.on_message(topic, self.put)

    def put(self, message: Incoming) -> None:
        self._waiting.append(message)
        self.work_off()

    def work_off(self) -> None:
        now_s = self._clock.now_s()
        self._tokens = min(BURST_MAX, self._tokens + (now_s - self._filled_s) * RATE_PER_S_MAX)
        self._filled_s = now_s
        while self._waiting and self._tokens >= 1.0:
            self._tokens -= 1.0
            self._handler(self._waiting.popleft())


class _Refusals:
    """Turns a typed refusal inside the block into a counted, rate-limited line; lets everything else through."""

    def __init__(self, source: DsxGridSource, message: Incoming) -> None:
        self._source = source
        self._message = message

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, WireRefused):
            self._source.refuse(self._message, error)
            return True
        return False


def _audit_line(o: SignalOutcome, now_s: float, utc_s: float) -> dict[str, object]:
    def utc(t_s: float | None) -> str | None:
        return None if t_s is None or not math.isfinite(t_s) else utc_text(utc_s + t_s - now_s)

    return {
        "event": "signal",
        "kind": str(o.kind),
        "issuer": o.issuer,
        "key_id": o.key_id,
        "message_id": o.message_id,
        "correlation_id": o.correlation_id,
        "index": o.index,
        "feeds": list(o.feeds),
        "acceptance": str(o.acceptance),
        "reason": str(o.reason) if o.reason else None,
        "detail": o.detail,
        "asked_w": o.asked_w,
        "applied_w": o.applied_w,
        "from": utc(o.from_s),
        "until": utc(o.until_s),
        "met_at": utc(o.met_at_s),
    }


def _answer(o: SignalOutcome, now_s: float, utc_s: float) -> RequestAnswer:
    fields: dict[str, object] = {}
    if o.reason is not None:
        fields["reason"] = str(o.reason)
    if o.applied_w is not None:
        fields["applied"] = power(o.applied_w)
    if o.met_at_s is not None and math.isfinite(o.met_at_s):
        fields["met_at"] = utc_text(utc_s + o.met_at_s - now_s)
    return RequestAnswer.model_validate(
        {"index": o.index, "feed_tags": o.feeds, "acceptance": o.acceptance.value, "detail": o.detail, **fields}
    )
