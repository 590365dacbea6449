"""What the flex agent tells the grid: a status per feed on every transition and as heartbeat, and the life of breaches.

Builds the payloads and hands them to `publish`; never waits, and reads the wall clock only for the times it reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog

from controller.ports import Clock, JobSource
from controller.settings import GridSettings, JobClassSettings
from controller.types import FeedTarget, Quality, SiteImage
from drivers.dsx_payloads import (
    BreachDetails,
    BreachTarget,
    FeedEvent,
    FeedMetadata,
    FeedState,
    FeedTargetState,
    Interval,
    Payload,
    PowerBreachAlertData,
    PowerStateStatusData,
    Strategy,
    power,
    utc_text,
)
from drivers.dsx_status import Breach, BreachStatus, BreachWatch, FeedWatch, infrastructure_actions, shed_hints
from drivers.dsx_wire import breach_topic, status_topic
from drivers.jws import new_uuid

QOS_STATUS, QOS_BREACH = 1, 2

log = structlog.get_logger("grid")

Publish = Callable[[str, Payload, int], None]


class GridReporter:
    """Follows load and targets, and publishes where something changed or the heartbeat is due."""

    def __init__(
        self,
        settings: GridSettings,
        *,
        share_frac: Mapping[str, float],
        peak_w: float,
        floor_w: float,
        classes: Sequence[JobClassSettings],
        jobs: JobSource | None,
        clock: Clock,
        rng: np.random.Generator,
        publish: Publish,
        write_audit: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._agent_id, self._period_s = settings.agent_id, settings.status_period_s
        self._share = dict(share_frac)
        self._peak_w, self._floor_w = peak_w, floor_w
        self._priorities = {str(c.class_id): c.priority for c in classes}
        self._jobs = jobs
        self._clock = clock
        self._publish = publish
        self._write_audit = write_audit
        self._watches = {feed: FeedWatch() for feed in self._share}
        self._breaches = {feed: BreachWatch(lambda: new_uuid(rng)) for feed in self._share}
        self._status_due_s = -math.inf

    @property
    def breach_ids(self) -> set[str]:
        """Breaches that are not resolved."""
        return {b.breach.breach_id for b in self._breaches.values() if b.breach is not None}

    def report(self, image: SiteImage, *, measured_w: float, targets: Sequence[FeedTarget], just_set: set[str]) -> None:
        """`just_set`: feeds on which a target was accepted since the last call."""
        now_s = image.t_mono_s
        events: dict[str, list[FeedEvent]] = {}
        for feed, share in self._share.items():
            meter = image.meters.get(feed)
            feed_w = meter.value.power_w if meter is not None and meter.is_good else measured_w * share
            own = [t for t in targets if t.feed == feed]
            said: list[FeedEvent] = ["target_set"] if feed in just_set else []
            events[feed] = said + self._watches[feed].update(now_s, measured_w=feed_w, targets=own)
            breach = self._breaches[feed].update(now_s, measured_w=feed_w, targets=own)
            if breach is not None:
                self._publish_breach(feed, breach, feed_w, image)
        self._publish_status(now_s, targets, events)

    def _publish_status(
        self, now_s: float, targets: Sequence[FeedTarget], events: Mapping[str, list[FeedEvent]]
    ) -> None:
        """One snapshot per step of the transition, and one for the heartbeat when nothing happened."""
        steps = max((len(e) for e in events.values()), default=0)
        if steps == 0 and now_s < self._status_due_s:
            return
        self._status_due_s = now_s + self._period_s
        for step in range(max(1, steps)):
            feeds = {
                feed: self._feed_state(feed, now_s, targets, e[step] if step < len(e) else "periodic")
                for feed, e in events.items()
            }
            data = PowerStateStatusData(snapshot_time=utc_text(self._clock.wall_utc_s()), feeds=feeds)
            self._publish(status_topic(self._agent_id), data, QOS_STATUS)

    def _feed_state(self, feed: str, now_s: float, targets: Sequence[FeedTarget], event: FeedEvent) -> FeedState:
        share, view = self._share[feed], self._watches[feed].view
        metadata = FeedMetadata(
            power_minimum=power(self._floor_w * share),
            power_maximum=power(self._peak_w * share),
            default_constraint=power(self._peak_w * share),
        )
        start = {} if view.event_start_s is None else {"power_event_start_time": self._utc(view.event_start_s, now_s)}
        return FeedState(
            metadata=metadata,
            targets=tuple(self._target_state(t, now_s) for t in targets if t.feed == feed),
            calculated_load=power(view.measured_w),
            in_flight=view.is_in_flight,
            event=event,
            compliant=view.is_compliant,
            **start,
        )

    def _target_state(self, target: FeedTarget, now_s: float) -> FeedTargetState:
        times = {"start_time": self._utc(target.from_s, now_s)}
        if math.isfinite(target.until_s):
            times["end_time"] = self._utc(target.until_s, now_s)
        return FeedTargetState(
            active=target.is_active,
            load_constraint=power(target.asked_w),
            interval=Interval(**times),
            strategy=Strategy(best_effort=target.is_best_effort),
            correlation_id=target.correlation_id,
        )

    def _publish_breach(self, feed: str, breach: Breach, measured_w: float, image: SiteImage) -> None:
        now_s, target = image.t_mono_s, breach.target
        is_over = breach.status is BreachStatus.RESOLVED
        times = {"detected_at": self._utc(breach.detected_s, now_s)}
        hints = {}
        if is_over:
            times["resolved_at"] = self._utc(now_s, now_s)
        else:
            hints["shed_hints"] = shed_hints(
                [r.value for r in image.nodes],
                excess_w=measured_w - target.applied_w,
                jobs=self._jobs.assignment() if self._jobs is not None else {},
                priorities=self._priorities,
            )
        data = PowerBreachAlertData(
            feed_tag=feed,
            status=breach.status.value,
            severity="critical" if breach.is_critical else "warning",
            breach=BreachDetails(breach_id=breach.breach_id, **times),
            target=BreachTarget(correlation_id=target.correlation_id, load_constraint=power(target.asked_w)),
            measured_load=power(measured_w),
            infrastructure_actions=infrastructure_actions(breach),
            **hints,
        )
        self._publish(breach_topic(self._agent_id), data, QOS_BREACH)
        self._write_audit(
            {
                "event": "breach",
                "breach_id": breach.breach_id,
                "feed": feed,
                "status": str(breach.status),
                "measured_w": measured_w,
                "target_w": target.applied_w,
            }
        )
        log.warning("breach", feed=feed, status=str(breach.status), measured_w=measured_w, target_w=target.applied_w)

    def _utc(self, t_mono_s: float, now_s: float) -> str:
        return utc_text(self._clock.wall_utc_s() + t_mono_s - now_s)


def site_power_w(image: SiteImage) -> float | None:
    """Power at the connection point, or the sum of the nodes where there is no meter; None when neither is known."""
    if image.pcc is not None:
        return image.pcc.value.power_w if image.pcc.quality is not Quality.MISSING else None
    if not image.nodes:
        return None
    return sum(r.value.stands_for * (r.value.other_w + float(np.nansum(r.value.power_w))) for r in image.nodes)
