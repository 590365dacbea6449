"""What an agent publishes, in a person's words: one line per feed, breach, answer or outlook."""

from __future__ import annotations

from drivers.dsx_extension import FlexibilityStatusData, SignalAnswerData
from drivers.dsx_payloads import (
    FeedState,
    Payload,
    PowerBreachAlertData,
    PowerStateStatusData,
    PowerUnit,
)
from drivers.dsx_wire import payload_bytes

HINTS_SHOWN = 5


def words(data: Payload) -> list[str]:
    """Lines for one payload."""
    if isinstance(data, PowerStateStatusData):
        return [_feed(name, feed) for name, feed in sorted(data.feeds.items())]
    if isinstance(data, PowerBreachAlertData):
        return [_breach(data)]
    if isinstance(data, SignalAnswerData):
        return answer_lines(data)
    if isinstance(data, FlexibilityStatusData):
        return [_outlook(data)]
    return [payload_bytes(data).decode()]


def answer_lines(data: SignalAnswerData) -> list[str]:
    """One line per request: what became of it, and why."""
    lines = []
    for a in data.answers:
        parts = [a.acceptance, f"feeds={','.join(a.feed_tags) or 'all'}"]
        parts += [f"applied={_power(a.applied)}"] if a.applied is not None else []
        parts += [f"met_at={a.met_at}"] if a.met_at is not None else []
        parts += [f"reason={a.reason}"] if a.reason is not None else []
        parts += [f"({a.detail})"] if a.detail else []
        lines.append(" ".join(parts))
    return lines


def _feed(name: str, feed: FeedState) -> str:
    parts = [f"feed {name}: {_power(feed.calculated_load)}", f"event={feed.event}"]
    parts.append("compliant" if feed.compliant else "NOT COMPLIANT")
    parts += ["in flight"] if feed.in_flight else []
    for t in feed.targets:
        end = f" until {t.interval.end_time}" if t.interval.end_time else ""
        start = "" if t.active else f" from {t.interval.start_time}"
        effort = ", best effort" if t.strategy.best_effort else ""
        parts.append(
            f"target {_power(t.load_constraint)} ({'active' if t.active else 'scheduled'}{start}{end}{effort})"
        )
    return "; ".join(parts)


def _breach(data: PowerBreachAlertData) -> str:
    over = f"{_power(data.measured_load)} where {_power(data.target.load_constraint)} was asked"
    parts = [f"breach {data.breach.breach_id[:8]} {data.status} ({data.severity}) on feed {data.feed_tag}: {over}"]
    hints = data.shed_hints or ()
    for h in hints[:HINTS_SHOWN]:
        to = f" to {_power(h.target_power)}" if h.target_power is not None else ""
        parts.append(f"{h.priority}. {h.action} {h.resource_type} {h.resource_id}{to}")
    if len(hints) > HINTS_SHOWN:
        parts.append(f"and {len(hints) - HINTS_SHOWN} more")
    return "; ".join(parts)


def _outlook(data: FlexibilityStatusData) -> str:
    high = "any" if data.admissible_high is None else _power(data.admissible_high)
    parts = [f"outlook: {_power(data.forecast[0].power) if data.forecast else 'no plan'}"]
    if len(data.forecast) > 1:
        parts.append(f"{_power(data.forecast[-1].power)} at {data.forecast[-1].time}")
    parts.append(f"admissible now {_power(data.admissible_low)} to {high}")
    parts.append(f"can shed {_power(data.sheddable)} of GPU power")
    if data.storage is not None:
        parts.append(f"battery {_power(data.storage.discharge)}, {data.storage.energy_kilowatt_hour:,.0f} kWh")
    for p in data.marginal_prices:
        least = ">= " if p.at_least else ""
        parts.append(f"{p.limit} {least}{p.gpu_second_per_megawatt:,.0f} GPU-s/MW")
    for e in data.energy_prices[:1]:
        parts.append(f"energy {e.per_kilowatt_hour:g} {e.currency}/kWh".replace(" /", "/"))
    return "; ".join(parts)


def _power(unit: PowerUnit) -> str:
    watts = unit.watts
    if watts >= 1e6:
        return f"{watts / 1e6:.4g} MW"
    return f"{watts / 1e3:.4g} kW" if watts >= 1e3 else f"{watts:.4g} W"
