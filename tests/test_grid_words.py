"""What a person at a terminal reads of an agent's messages."""

from __future__ import annotations

from typing import Any

import pytest

from controller.cli.grid_words import words
from drivers.dsx_extension import FlexibilityStatusData, SignalAnswerData
from drivers.dsx_payloads import PowerBreachAlertData, PowerStateStatusData, SetLoadTargetData

UUID = "0b9c5a52-1f7e-4d3a-9a51-0c4f7d1f2a33"
NOW = "2026-11-20T10:00:00Z"


def mw(value: float) -> dict[str, Any]:
    return {"value": value, "unit": "megawatt"}


def feed(**changes: Any) -> dict[str, Any]:
    target = {
        "active": True,
        "load_constraint": mw(60),
        "interval": {"end_time": NOW},
        "strategy": {"best_effort": True},
        "correlation_id": UUID,
    }
    return {
        "metadata": {"power_minimum": mw(1), "power_maximum": mw(90), "default_constraint": mw(90)},
        "targets": [target],
        "calculated_load": {"value": 58_250, "unit": "kilowatt"},
        "in_flight": True,
        "event": "start_ramp_down",
        "compliant": False,
        **changes,
    }


def test_every_feed_is_a_line() -> None:
    data = {"snapshot_time": NOW, "feeds": {"b": feed(targets=[], in_flight=False, compliant=True), "a": feed()}}
    assert words(PowerStateStatusData.model_validate(data)) == [
        "feed a: 58.25 MW; event=start_ramp_down; NOT COMPLIANT; in flight; "
        f"target 60 MW (active until {NOW}, best effort)",
        "feed b: 58.25 MW; event=start_ramp_down; compliant",
    ]


@pytest.mark.parametrize(("count", "end"), [(1, "n0 to 900 W"), (7, "and 2 more")])
def test_a_breach_names_its_first_hints(count: int, end: str) -> None:
    hint = {"resource_type": "node", "action": "power_cap", "target_power": {"value": 900, "unit": "watt"}}
    data = {
        "feed_tag": "main",
        "status": "active",
        "severity": "warning",
        "breach": {"breach_id": UUID, "detected_at": NOW},
        "target": {"correlation_id": UUID, "load_constraint": mw(60)},
        "measured_load": mw(63),
        "shed_hints": [{**hint, "resource_id": f"n{i}", "priority": i + 1} for i in range(count)],
        "infrastructure_actions": [],
    }
    (line,) = words(PowerBreachAlertData.model_validate(data))
    start = "breach 0b9c5a52 active (warning) on feed main: 63 MW where 60 MW was asked; 1. power_cap node n0 to 900 W"
    assert line.startswith(start) and line.endswith(end)


def test_an_answer_says_what_and_why() -> None:
    answers = [
        {"index": 0, "feed_tags": [], "acceptance": "bounded", "applied": mw(20), "met_at": NOW, "detail": "floor"},
        {"index": 1, "feed_tags": ["x"], "acceptance": "refused", "reason": "unknown_feed"},
    ]
    data = {"message_id": UUID, "issuer": "acme", "answers": answers}
    assert words(SignalAnswerData.model_validate(data)) == [
        f"bounded feeds=all applied=20 MW met_at={NOW} (floor)",
        "refused feeds=x reason=unknown_feed",
    ]


def test_an_outlook_gives_prices_as_bounds_where_they_are() -> None:
    data = {
        "snapshot_time": NOW,
        "forecast": [{"time": NOW, "power": mw(60)}, {"time": NOW, "power": mw(55)}],
        "admissible_low": mw(50),
        "floor": mw(20),
        "sheddable": mw(8),
        "storage": {"discharge": mw(20), "charge": mw(20), "energy_kilowatt_hour": 5000.0},
        "marginal_prices": [
            {"limit": "ramp_down", "gpu_second_per_megawatt": 1200.0},
            {"limit": "ceiling", "gpu_second_per_megawatt": 500.0, "at_least": True},
        ],
        "energy_prices": [{"per_kilowatt_hour": 0.21, "currency": "EUR", "interval": {}}],
    }
    assert words(FlexibilityStatusData.model_validate(data)) == [
        f"outlook: 60 MW; 55 MW at {NOW}; admissible now 50 MW to any; can shed 8 MW of GPU power; "
        "battery 20 MW, 5,000 kWh; ramp_down 1,200 GPU-s/MW; ceiling >= 500 GPU-s/MW; energy 0.21 EUR/kWh"
    ]


def test_what_has_no_words_is_shown_as_it_is() -> None:
    data = SetLoadTargetData.model_validate({"targets": [{"interval": {}, "load_constraint": None}]})
    assert words(data) == [
        '{"targets":[{"interval":{},"feed_tags":[],"load_constraint":null,"strategy":{"best_effort":false}}]}'
    ]
