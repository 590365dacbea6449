"""One sample of each payload of the grid interface, with every optional part filled in."""

from __future__ import annotations

from typing import Any

from drivers.dsx_wire import (
    FLEXIBILITY_STATUS,
    LOAD_TARGET_SET,
    POWER_BREACH_ALERT,
    POWER_BREACH_ENFORCEMENT,
    POWER_STATE_STATUS,
    RAMP_LIMIT_SET,
    SIGNAL_ANSWER,
)

UUID = "0b9c5a52-1f7e-4d3a-9a51-0c4f7d1f2a33"
NOW = "2026-11-20T10:00:00Z"
MW = {"value": 60.0, "unit": "megawatt"}
SPAN = {"start_time": NOW, "end_time": "2026-11-20T11:00:00.5+01:00"}
HINT = {"resource_id": "n1", "resource_type": "node", "action": "power_cap", "priority": 1, "target_power": MW}
OUTCOME = {
    "resource_id": "n1",
    "resource_type": "node",
    "requested_action": "power_cap",
    "code": "failed",
    "message": "BMC unreachable",
    "applied_power": MW,
}
ROWS: list[dict[str, Any]] = [
    {"kind": "ramp", "id": "a", "max": MW, "window_s": 60.0, "direction": "down"},
    {"kind": "swing", "id": "b", "max_frac": 0.1, "window_s": 5.0, "band_hz": [0.1, 55.0]},
    {"kind": "rate", "id": "c", "max_per_s": MW, "above": MW},
    {"kind": "band", "id": "d", "max": MW, "band_hz": [0.1, 5.0]},
    {"kind": "oscillation", "id": "e", "max": MW, "band_hz": [0.1, 20.0], "span_s": 20.0},
    {"kind": "ceiling", "id": "f", "max": MW, "by_s": 30.0},
    {"kind": "floor", "id": "g", "min": MW, "by_s": 30.0},
    {
        "kind": "ride_through",
        "id": "h",
        "voltage_pu": [{"low": 0.9, "high": 1.1}],
        "frequency_hz": [{"low": 57.0, "high": 58.8, "hold_s": 299.0}],
        "recover_frac": 0.9,
        "recover_s": 2.0,
        "suspends_ramps": True,
    },
    {"kind": "droop", "id": "i", "deadband_hz": 0.036, "per_hz": MW, "max": MW, "nominal_hz": 60.0},
]
FEED = {
    "metadata": {"power_minimum": MW, "power_maximum": MW, "default_constraint": MW},
    "targets": [
        {
            "active": True,
            "load_constraint": MW,
            "interval": SPAN,
            "strategy": {"best_effort": True},
            "correlation_id": UUID,
        }
    ],
    "calculated_load": MW,
    "in_flight": True,
    "event": "start_ramp_down",
    "power_event_start_time": NOW,
    "compliant": False,
}

SAMPLES: dict[str, dict[str, Any]] = {
    LOAD_TARGET_SET: {
        "targets": [
            {"interval": SPAN, "feed_tags": ["a"], "load_constraint": MW, "strategy": {"best_effort": True}},
            {"interval": {}, "load_constraint": None},
        ]
    },
    RAMP_LIMIT_SET: {
        "requests": [
            {"interval": SPAN, "feed_tags": ["a"], "limits": ROWS, "ramp_exempt": True},
            {"interval": {}, "limits": None},
        ]
    },
    POWER_STATE_STATUS: {"snapshot_time": NOW, "feeds": {"a": FEED}},
    POWER_BREACH_ALERT: {
        "feed_tag": "a",
        "status": "resolved",
        "severity": "critical",
        "breach": {"breach_id": UUID, "detected_at": NOW, "resolved_at": NOW},
        "target": {"correlation_id": UUID, "load_constraint": MW},
        "measured_load": MW,
        "shed_hints": [HINT],
        "infrastructure_actions": ["SHUTDOWN_NODES", "TRIP_BREAKERS"],
    },
    POWER_BREACH_ENFORCEMENT: {
        "breach_id": UUID,
        "feed_tag": "a",
        "action": "reverted",
        "code": "partial",
        "diag_msg": "one of two",
        "results": [OUTCOME],
        "timestamp": NOW,
    },
    SIGNAL_ANSWER: {
        "message_id": UUID,
        "issuer": "acme",
        "answers": [
            {
                "index": 0,
                "feed_tags": ["a"],
                "acceptance": "bounded",
                "reason": "range",
                "detail": "held at the floor",
                "applied": MW,
                "met_at": NOW,
            }
        ],
    },
    FLEXIBILITY_STATUS: {
        "snapshot_time": NOW,
        "forecast": [{"time": NOW, "power": MW}],
        "admissible_low": MW,
        "admissible_high": MW,
        "floor": MW,
        "sheddable": MW,
        "storage": {"discharge": MW, "charge": MW, "energy_kilowatt_hour": 5000.0},
        "marginal_prices": [{"limit": "ceiling", "gpu_second_per_megawatt": 500.0, "at_least": True}],
        "energy_prices": [{"per_kilowatt_hour": -0.01, "currency": "EUR", "interval": SPAN}],
    },
}
