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
from functools import partial
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
from drivers.dsx_answer import audit_line, request_answer
from drivers.dsx_extension import SetRampLimitData, SignalAnswerData
from drivers.dsx_inbox import RATE_PER_S_MAX, Inbox
from drivers.dsx_offer import load_target_offer, ramp_limit_offer
from drivers.dsx_payloads import (
    Payload,
    PowerBreachEnforcementData,
    SetLoadTargetData,
    utc_text,
)
from drivers.dsx_report import GridReporter, site_power_w
from drivers.dsx_short import shortened
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
    payload_bytes,
    ramp_limit_topic,
    verify_event,
)
from drivers.jws import KeyStore, Signer, WireRefused
from drivers.mqtt import PAYLOAD_BYTES_MAX, Incoming, Keep, MqttSession

POLL_S = 0.05
KEY_REFRESH_S = 10.0
ALARM_S = 60.0  # how long the status tells of a refusal
REFUSALS_LOGGED_S = 10.0  # unverified refusals of one reason: one line per so long, with the count of the rest
QOS_SIGNAL, QOS_ENFORCEMENT = 1, 2  # as DSX Flex 1.7.0 has its channels
DATA_BYTES_MAX = (PAYLOAD_BYTES_MAX - 4096) * 3 // 4  # of what we sign: base64 in an envelope of less than 4 KiB
ENFORCEMENTS_MAX = 1024  # remembered, to tell a replay
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
        self._alarmed_s: dict[RefusalReason, float] = {}
        self._session = session
        self._settings = settings
        self._rules = rules
        self._keys = KeyStore(settings.issuers)
        self._key_trouble = ""
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
        self._enforcements: OrderedDict[str, None] = OrderedDict()  # by digest
        self._topics: dict[str, tuple[Callable[[Incoming], None], int]] = {}
        for i in settings.issuers:
            self._topics[load_target_topic(i.name)] = self._on_load_target, QOS_SIGNAL
            self._topics[ramp_limit_topic(i.name)] = self._on_ramp_limit, QOS_SIGNAL
            self._topics[enforcement_topic(i.name)] = self._on_enforcement, QOS_ENFORCEMENT
        self._inboxes = [
            Inbox(session, topic, handler, clock, partial(self._dropped, topic), qos=qos)
            for topic, (handler, qos) in self._topics.items()
        ]

        session.on_oversized(self._on_oversized)

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

    @property
    def is_raise_held(self) -> bool:
        return self._rules.is_raise_held

    def alarms(self, now_s: float) -> tuple[RefusalReason, ...]:
        return tuple(sorted(reason for reason, t_s in self._alarmed_s.items() if now_s - t_s < ALARM_S))

    def report(
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
            if signed.digest in self._enforcements:
                raise WireRefused(RefusalReason.DUPLICATE, "already seen")
            self._enforcements[signed.digest] = None
            while len(self._enforcements) > ENFORCEMENTS_MAX:
                self._enforcements.popitem(last=False)
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

    def _on_oversized(self, topic: str, size: int) -> None:
        """The session drops what is too large; on a topic of ours it is said."""
        if topic in self._topics:
            detail = f"{size} bytes; {PAYLOAD_BYTES_MAX} are allowed"
            self._refuse(RefusalReason.OVERSIZED, topic, detail, "refused_unverified")

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
        outcomes = self._not_replayed(event, outcomes)
        for outcome in outcomes:
            self.write_audit(audit_line(outcome, now_s, utc_s))
            if outcome.reason is not None:
                self._count(outcome.reason)
            else:
                if (outcome.applied_w or 0.0) > (outcome.asked_w or 0.0):
                    self._alarmed_s[RefusalReason.RANGE] = now_s  # followed as far as the floor
                self._just_set |= dict.fromkeys(outcome.feeds, outcome.correlation_id)
                self._traces[outcome.correlation_id] = event.trace
                self._traces.move_to_end(outcome.correlation_id)
        while len(self._traces) > TRACES_MAX:
            self._traces.popitem(last=False)
        if outcomes:
            self._judged.append((event, outcomes, now_s, utc_s))

    def _not_replayed(self, event: CloudEvent, outcomes: Sequence[SignalOutcome]) -> Sequence[SignalOutcome]:
        """Without a replay: anyone who reaches the broker can send it, so it counts as what was not signed."""
        if any(o.reason is not RefusalReason.DUPLICATE for o in outcomes):
            return outcomes
        for outcome in outcomes[:1]:
            self._refuse(RefusalReason.DUPLICATE, f"{outcome.kind} of {event.source}", outcome.detail, "refused_replay")
        return ()

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
                answers=tuple(request_answer(o, now_s, utc_s) for o in outcomes),
            )
            cause = event.correlationid or event.id
            self._publish(answer_topic(self._settings.agent_id), data, QOS_SIGNAL, cause, trace=event.trace)

    def refuse(self, message: Incoming, refused: WireRefused) -> None:
        """Count a message that did not get as far as the rules; say so, but not more often than it is useful."""
        self._refuse(refused.reason, message.topic, refused.detail, "refused_unverified")

    def _refuse(self, reason: RefusalReason, where: str, detail: str, event: str) -> None:
        self._count(reason)
        now_s = self._clock.now_s()
        said_s, quiet = self._quiet.get(reason, (-math.inf, 0))
        if now_s - said_s < REFUSALS_LOGGED_S:
            self._quiet[reason] = (said_s, quiet + 1)
            return
        self._quiet[reason] = (now_s, 0)
        log.warning("grid message refused", reason=str(reason), where=where, detail=detail)
        self.write_audit(
            {"event": event, "reason": str(reason), "where": where, "detail": detail, "more_since_last": quiet}
        )

    def _count(self, reason: RefusalReason) -> None:
        self.refused_count[reason] = self.refused_count.get(reason, 0) + 1
        self._alarmed_s[reason] = self._clock.now_s()

    def _dropped(self, topic: str) -> None:
        """More came on a topic than is looked at; the newest are kept."""
        self._refuse(
            RefusalReason.FLOOD, topic, f"more than {RATE_PER_S_MAX:g} messages a second", "refused_unverified"
        )

    def _refresh_keys(self) -> None:
        try:
            if self._keys.refresh():
                log.info("grid keys changed", key_ids=list(self._keys.key_ids))
                self.write_audit({"event": "keys_changed", "key_ids": list(self._keys.key_ids)})
            self._key_trouble = ""
        except BadInput as bad:
            if str(bad) != self._key_trouble:
                self._key_trouble = str(bad)
                log.error("grid keys cannot be read; those in use stay", cause=self._key_trouble)

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
        if len(payload_bytes(data)) > DATA_BYTES_MAX:
            data = shortened(data)
            if (size := len(payload_bytes(data))) > DATA_BYTES_MAX:
                log.error("grid message not sent", topic=topic, bytes=size, allowed=DATA_BYTES_MAX)
                return
        _, payload = self._sender.encode(
            data, utc_s=self._clock.wall_utc_s(), correlation_id=correlation_id, trace=trace
        )
        self._session.publish(topic, payload, qos=qos, keep=Keep.ALL)


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
