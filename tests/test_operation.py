"""The runbook and the alerting rules name only what is there: metrics, modes, commands."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main
import yaml

from controller.cli.main import app
from controller.types import Mode

ROOT = Path(__file__).resolve().parent.parent
RUNBOOK = (ROOT / "docs" / "operation.md").read_text(encoding="utf-8")
ALERTS = (ROOT / "configs" / "alerts.yaml").read_text(encoding="utf-8")


def test_every_metric_named_is_one_that_is_set() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "controller").glob("telemetry*.py"))
    known = set(re.findall(r'"(rampart_[a-z0-9_]+)"', source))
    for text in (RUNBOOK, ALERTS):
        named = set(re.findall(r"\brampart_[a-z0-9_]+", text))
        assert named and named <= known, named - known


def test_alerts_are_rules_with_a_severity_and_words() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 0
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"} and rule["annotations"]["summary"]


def test_modes_have_the_numbers_the_runbook_says() -> None:
    line = next(line for line in RUNBOOK.splitlines() if line.startswith("| `rampart_mode`"))
    assert {int(n): name for n, name in re.findall(r"(\d) ([A-Z]+)", line)} == {m.value: m.name for m in Mode}
    explained = set(re.findall(r"^\| ([A-Z]+) \|", RUNBOOK, re.MULTILINE))
    assert explained <= {m.name for m in Mode} and explained >= {"DEGRADED", "SHED", "HOLD", "FALLBACK", "LOCKOUT"}


def test_commands_named_are_commands() -> None:
    names = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"\brampart ([a-z]+)", RUNBOOK)) <= names
