"""What the envelope corrected, where operators see it: log, status document, metric and `rampart status`."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from controller.cli import status as status_command
from controller.telemetry_envelope import INVARIANTS, EnvelopeTelemetry
from controller.types import Violation
from drivers.metrics import Metrics

ABOVE = Violation(3, "site", "worst case 5600 W above 3300 W")


def test_every_violation_counts_and_few_are_told() -> None:
    """Twenty a second for 15 s: two lines, the second with how many it stands for; another invariant has its own."""
    seen = EnvelopeTelemetry()
    with capture_logs() as lines:
        for tick in range(300):
            seen.observe(tick / 20, 1.8e9 + tick / 20, (ABOVE,))
        seen.observe(15.0, 1.8e9 + 15.0, (Violation(10, "gpu-1", "1 caps below the service floor"),))
    assert [(line["invariant"], line["count"]) for line in lines] == [(3, 1), (3, 200), (10, 1)]
    document = json.loads(json.dumps(seen.document()))
    assert document["violations"] == 301 and document["envelope"]["by_invariant"] == {"3": 300, "10": 1}
    assert document["envelope"]["last"]["rule"] == INVARIANTS[10]


def test_the_metric_is_by_invariant() -> None:
    """Both invariants under one name."""
    seen, metrics = EnvelopeTelemetry(), Metrics(None)
    seen.observe(0.0, 1.8e9, (ABOVE, ABOVE, Violation(7, "gpu-1", "raised")))
    seen.set_metrics(metrics)
    value = metrics._registry.get_sample_value
    assert value("rampart_envelope_violations_count", {"invariant": "3"}) == 2.0
    assert value("rampart_envelope_violations_count", {"invariant": "7"}) == 1.0


def test_the_command_says_what_was_corrected_last(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing where nothing was corrected."""
    document = {"site": "s", "mode": "NORMAL", "contract": "c", "reasons": [], "unmet": [], "power": {}, "margins": []}
    seen = EnvelopeTelemetry()
    status_command._print({**document, **seen.document()})
    assert "envelope" not in capsys.readouterr().out
    seen.observe(0.0, 1.8e9, (ABOVE,))
    status_command._print({**document, **json.loads(json.dumps(seen.document()))})
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "envelope: 1 corrections since the start; the last: worst case under the ceiling: site: worst case" in printed
    )
