"""What the flex agent tells the grid: status per feed on every transition and as heartbeat, breaches, the next minutes.

Builds the payloads and hands them to `publish`; never waits, and reads the wall clock only for the times it reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog

from controller.ports import Clock, JobSource
from controller.settings import GridSettings, JobClassSettings
from controller.types import EnergyPrice, FeedTarget, Outlook, Quality, SiteImage
from drivers.dsx_extension import (
    EnergyPriceState,
    FlexibilityStatusData,
    PathPoint,
    Storage,
)
from drivers.dsx_payloads import (
    ITEMS_MAX,
    BreachDetails,
    BreachTarget,
    FeedEvent,
    FeedMetadata,
    FeedState,
    FeedTargetState,
    Interval,
    Payload,
    PowerBreachAlertData,
    PowerBreachEnforcementData,
    PowerStateStatusData,
    Strategy,
    power,
    utc_text,
)
from drivers.dsx_status import Breach, BreachStatus, BreachWatch, FeedWatch, infrastructure_actions, shed_hints
from drivers.dsx_wire import breach_topic, flexibility_topic, status_topic
from drivers.jws import new_uuid

QOS_STATUS, QOS_BREACH = 1, 2
J_PER_KWH = 3.6e6

log = structlog.get_logger("grid")

Publish = Callable[[str, Payload, int, str | None], None]  # topic, payload, QoS, correlation id of what caused it


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
        self._status_due_s = self._flexibility_due_s = -math.inf
        self._cause: dict[str, str] = {}  # correlation id of the newest target of each feed

    def enforced(self, data: PowerBreachEnforcementData) -> bool:
        """Take what an infrastructure agent says it did; False when it speaks of no breach that is open here."""
        watch = self._breaches.get(data.feed_tag)
        if watch is None or watch.breach is None or watch.breach.breach_id != data.breach_id:
            return False
        refused = {r.resource_id for r in data.results if r.code != "applied"}
        every = {r.resource_id for r in data.results}
        is_applied = data.action == "applied"
        watch.enforced(failed=refused if is_applied else set(), reverted=every - refused)
        return True

    def report(
        self,
        image: SiteImage,
        *,
        measured_w: float,
        targets: Sequence[FeedTarget],
        just_set: Mapping[str, str],
    ) -> None:
        """`just_set`: feeds on which a target was accepted since the last call, with its correlation id."""
        now_s = image.t_mono_s
        self._cause |= just_set
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
            cause = next((self._cause.get(feed) for feed, e in events.items() if step < len(e)), None)
            data = PowerStateStatusData(snapshot_time=utc_text(self._clock.wall_utc_s()), feeds=feeds)
            self._publish(status_topic(self._agent_id), data, QOS_STATUS, cause)

    def tell_outlook(
        self, now_s: float, outlook: Callable[[], Outlook | None], energy_prices: Sequence[EnergyPrice]
    ) -> None:
        """The next minutes, once a status period."""
        if now_s < self._flexibility_due_s or (found := outlook()) is None:
            return
        self._flexibility_due_s = now_s + self._period_s
        data = flexibility(found, utc_s=self._clock.wall_utc_s(), floor_w=self._floor_w, energy_prices=energy_prices)
        self._publish(flexibility_topic(self._agent_id), data, QOS_STATUS, None)

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
                failed=self._breaches[feed].failed,
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
        self._publish(breach_topic(self._agent_id), data, QOS_BREACH, target.correlation_id)
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


def flexibility(
    outlook: Outlook, *, utc_s: float, floor_w: float, energy_prices: Sequence[EnergyPrice]
) -> FlexibilityStatusData:
    """An outlook as the grid hears it; joules become kWh, what a watt costs becomes what a megawatt does."""
    fields: dict[str, object] = {}
    if math.isfinite(outlook.high_w):
        fields["admissible_high"] = power(outlook.high_w)
    if outlook.battery_discharge_w > 0.0 or outlook.battery_charge_w > 0.0:
        fields["storage"] = Storage(
            discharge=power(outlook.battery_discharge_w),
            charge=power(outlook.battery_charge_w),
            energy_kilowatt_hour=outlook.battery_j / J_PER_KWH,
        )
    return FlexibilityStatusData.model_validate(
        {
            "snapshot_time": utc_text(utc_s),
            "forecast": [PathPoint(time=utc_text(utc_s + s), power=power(w)) for s, w in outlook.path],
            "admissible_low": power(outlook.low_w),
            "floor": power(floor_w),
            "sheddable": power(outlook.sheddable_w),
            "marginal_prices": [
                {"limit": p.limit, "gpu_second_per_megawatt": max(0.0, p.gpu_s_per_w) * 1e6, "at_least": p.is_bound}
                for p in outlook.prices
            ],
            "energy_prices": [_energy_price(p) for p in energy_prices[:ITEMS_MAX]],
            **fields,
        }
    )


def _energy_price(price: EnergyPrice) -> EnergyPriceState:
    times = {"start_time": utc_text(price.from_utc_s)}
    if math.isfinite(price.until_utc_s):
        times["end_time"] = utc_text(price.until_utc_s)
    return EnergyPriceState(per_kilowatt_hour=price.per_kwh, currency=price.currency[:8], interval=Interval(**times))


def site_power_w(image: SiteImage) -> float | None:
    """Power at the connection point, or the sum of the nodes where there is no meter; None when neither is known."""
    if image.pcc is not None:
        return image.pcc.value.power_w if image.pcc.quality is not Quality.MISSING else None
    if not image.nodes:
        return None
    return sum(r.value.stands_for * (r.value.other_w + float(np.nansum(r.value.power_w))) for r in image.nodes)
