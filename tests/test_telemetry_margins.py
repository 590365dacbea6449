"""The crash-safe set's margins by name, where operators see them: the status document and `rampart status`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from controller.cli import status as status_command
from controller.config.site import load_settings
from controller.settings import SiteSettings
from controller.telemetry import least_margin, margin_fields
from controller.types import Margin

EXAMPLE = Path(__file__).parents[1] / "configs" / "site.example.yaml"
MARGINS = (
    Margin("transient:ieso-5", "full_site", -2e6, "W"),
    Margin("power", "full_site", 30e6, "W"),
    Margin("energy", "largest_job", 9e9, "J"),
    Margin("rise", "full_site", math.inf, "W"),
)


@pytest.fixture(scope="module")
def site() -> SiteSettings:
    settings = load_settings(EXAMPLE)
    assert settings.site is not None
    return settings.site


def test_every_margin_has_its_name_and_the_least_is_told(site: SiteSettings) -> None:
    """Four conditions of two contingencies; the transient is the one that is broken, and says by how much."""
    document = json.loads(json.dumps(margin_fields(MARGINS, site)))
    assert [(m["name"], m["contingency"]) for m in document["margins"]] == [(m.name, m.contingency) for m in MARGINS]
    assert document["margins"][3]["value"] is None  # JSON has no infinity
    assert document["least_margin"]["name"] == "transient:ieso-5"
    assert document["least_margin"]["frac"] == pytest.approx(-2.0 / 70.0)


def test_watts_and_joules_are_weighed_by_the_battery(site: SiteSettings) -> None:
    """3 MW of 70 are nearer to breaking than 9 GJ of 126; 1 GJ is nearer than 3 MW."""
    power, roomy, tight = (
        Margin("power", "c", 3e6, "W"),
        Margin("energy", "c", 9e9, "J"),
        Margin("energy", "c", 1e9, "J"),
    )
    found = [least_margin((power, other), site) for other in (roomy, tight)]
    assert [least[0].name for least in found if least is not None] == ["power", "energy"]
    assert margin_fields((), site) == {"margins": [], "least_margin": None}


def test_the_command_prints_them(site: SiteSettings, capsys: pytest.CaptureFixture[str]) -> None:
    """`rampart status` names every margin, an unbounded one too, and the least."""
    document = {"site": "s", "mode": "NORMAL", "contract": "c", "reasons": [], "unmet": [], "power": {}}
    status_command._print({**document, **json.loads(json.dumps(margin_fields(MARGINS, site)))})
    printed = capsys.readouterr().out
    assert "margin power (full_site): 30.00 MW" in printed
    assert "margin rise (full_site): unbounded" in printed
    assert "least margin: transient:ieso-5 (full_site), -2.00 MW" in printed
