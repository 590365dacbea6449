"""A status document as lines for a person: what it sees, why its mode is what it is, how near the nearest limit is.

Pure; every part of the document may be absent (a controller that only starts has none of them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

SOURCES = {
    "meter": "by the meter",
    "sub_meters": "by the sub-meters",
    "nodes": "as the nodes report",
    "held": "the last value known",
    "lost": "nobody measures: the last value, its margin grows",
}


def headline(document: dict[str, Any]) -> str:
    since_s = document.get("mode_since_s")
    since = f" for {_duration(since_s)}" if since_s is not None else ""
    return f"{document['site']}  mode {document['mode']}{since}  contract {document['contract']}"


def lines(document: dict[str, Any]) -> Iterator[str]:
    """All below the headline, the gravest first."""
    yield from _mode(document)
    yield from _power(document.get("power", {}))
    yield from _fleet(document)
    yield from _bank(document.get("load_bank"))
    yield from _ups(document.get("ups", ()))
    targets = {f"target.{signal['id']}": f"target of {signal['issuer']}" for signal in document.get("signals", ())}
    for signal in document.get("signals", ()):
        target = f" of {_scaled(signal['target_w'], 'W')}" if signal["target_w"] is not None else ""
        yield f"signal  {signal['kind'].replace('_', ' ')}{target}, asked by {signal['issuer']}"
    for row in sorted(document.get("rows", ()), key=_share_left):
        yield _row(row, targets.get(row["id"], row["id"]))
    for margin in document["margins"]:
        yield f"margin {margin['name']} ({margin['contingency']}): {_amount(margin)}"
    least = document.get("least_margin")
    if least is not None:
        yield f"least margin: {least['name']} ({least['contingency']}), {_amount(least)}"
    yield from _loop(document)


def _mode(document: dict[str, Any]) -> Iterator[str]:
    if means := document.get("mode_means"):
        yield str(means)
    if document.get("is_fallback_contract"):
        yield "the fallback contract is in force"
    for reason in document["reasons"]:
        yield f"because {reason}"
    unmet = "not armed" if document["mode"] == "STARTING" else "not met now, though control has begun"
    for condition in document["unmet"]:
        yield f"{unmet}: {condition}"


def _power(power: dict[str, Any]) -> Iterator[str]:
    pcc_w, target_w, load_w, soc_frac = (power.get(key) for key in ("pcc_w", "target_w", "load_w", "soc_frac"))
    if pcc_w is not None or target_w is not None:
        seen = "not metered" if pcc_w is None else _scaled(pcc_w, "W")
        if target_w is not None:
            band = f"admissible {_bound(power.get('low_w'))} to {_bound(power.get('high_w'))}"
            seen = f"{seen}, target {_scaled(target_w, 'W')}, {band}"
        yield f"grid    {seen}"
    if load_w is not None:
        yield f"load    {_scaled(load_w, 'W')}, {SOURCES.get(str(power.get('load_source')), '')}"
    if soc_frac is not None:
        battery_w = power.get("battery_w") or 0.0
        way = "discharging" if battery_w > 0.0 else "charging"
        yield f"battery {way} {_scaled(abs(battery_w), 'W')}, state of charge {100 * soc_frac:.1f} %"


def _fleet(document: dict[str, Any]) -> Iterator[str]:
    gpus, cap_frac = document.get("gpus"), document.get("power", {}).get("cap_frac")
    if gpus is not None and cap_frac is not None:
        caps = "none is capped" if cap_frac >= 1.0 else f"caps leave {100 * cap_frac:.1f} % of full in the mean"
        nodes = "1 node" if document["nodes"] == 1 else f"{document['nodes']:,} nodes"
        yield f"GPUs    {gpus:,} on {nodes}: {caps}"
    for tier in document.get("tiers", ()):
        if not tier["lost_frac"]:
            continue
        beyond = "  EXCEEDED" if tier["is_exceeded"] else ""
        yield (
            f"class   {tier['class']} lost {100 * tier['lost_frac']:.2f} % of its work within "
            f"{_duration(tier['window_s'])}; {100 * tier['tolerated_loss_frac']:g} % is tolerated{beyond}"
        )


def _bank(bank: dict[str, Any] | None) -> Iterator[str]:
    if bank is not None:
        armed = f"armed, floor {_scaled(bank['floor_w'], 'W')}" if bank["is_armed"] else f"not armed: {bank['why_not']}"
        yield f"load bank {bank['state']}, draws {_scaled(bank['power_w'] or 0.0, 'W')}, {armed}"


def _ups(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    for ups in found:
        if ups["quality"] == "missing":
            yield f"UPS     {ups['name']}: does not answer"
            continue
        left = f", {ups['minutes_left']:.0f} min left" if ups["minutes_left"] is not None else ""
        fed = "ON BATTERY" + left if ups["is_on_battery"] else "on bypass" if ups["is_on_bypass"] else "on the grid"
        yield f"UPS     {ups['name']}: {_scaled(ups['output_w'] or 0.0, 'W')}, {fed}"


def _row(row: dict[str, Any], name: str) -> str:
    left_w = row["headroom_w"]
    left = "?" if left_w is None else f"{_scaled(left_w, 'W')} left"
    soon = f", reached in {_duration(row['breach_s'])} at the present slope" if row["breach_s"] is not None else ""
    about = " (estimate)" if row["is_estimate"] else ""
    worst = "?" if row["worst_w"] is None else _scaled(row["worst_w"], "W")
    return f"limit   {name}: {worst} of {_scaled(row['limit_w'], 'W')}, {left}{about}{soon}"


def _share_left(row: dict[str, Any]) -> float:
    return float(row["headroom_w"] if row["headroom_w"] is not None else 0.0) / max(float(row["limit_w"]), 1.0)


def _loop(document: dict[str, Any]) -> Iterator[str]:
    tick = document.get("tick")
    if tick is not None:
        plan = document.get("plan")
        by = f", planner {plan['policy']} ({plan['status']})" if plan else ""
        reach = document["power"].get("t_eff_s")
        t_eff = f"T_eff {1e3 * reach:.0f} ms, " if reach is not None else ""
        yield f"loop    {t_eff}tick p99 {tick['tick_ms']['p99']:.0f} ms, {tick['overruns']} skipped{by}"
    last = document.get("envelope", {}).get("last")
    if last is not None:
        yield (
            f"envelope: {document['violations']} corrections since the start; the last: {last['rule']}: "
            f"{last['subject']}: {last['found']}"
        )


def _amount(margin: dict[str, Any]) -> str:
    """Infinities are null in the document: a margin that nothing bounds."""
    value = margin["value"]
    return "unbounded" if value is None else _scaled(value, margin["unit"])


def _bound(power_w: float | None) -> str:
    return "any" if power_w is None else _scaled(power_w, "W")


def _scaled(value: float, unit: str) -> str:
    """Four digits, and the prefix that goes with them."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value + 0.0:.0f} {unit}".removeprefix("-") if abs(value) < 0.5 else f"{value:.0f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
