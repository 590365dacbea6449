"""What is wrong with a file, in words for who wrote it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.config.explain import PATTERNS
from controller.config.load import read_yaml
from controller.config.site import parse_site
from controller.errors import BadInput
from hil.scenario import Overrides, parse_scenario
from tests.conftest import ROOT

SITE = ROOT / "configs" / "site.example.yaml"
SCENARIO = ROOT / "configs" / "scenarios" / "campus-90mw.yaml"


def changed(path: Path, key: str, value: object) -> dict[str, Any]:
    """The shipped file with one key, named by its path, set to `value`."""
    raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    at = raw
    *above, last = [int(step) if step.isdigit() else step for step in key.split(".")]
    for step in above:
        at = at[step]
    at[last] = value
    return raw


def test_no_pattern_is_told_as_a_programmer_writes_it() -> None:
    """Every pattern of a document that people write has words."""
    written = {
        pattern
        for path in sorted((ROOT / "controller" / "config").glob("*.py"))
        for pattern in re.findall(r'pattern=r"([^"]+)"', path.read_text(encoding="utf-8"))
    }
    assert written and written <= set(PATTERNS)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("battery.charge_mw", 70, "battery.charge_mw: unknown key; did you mean charge_megawatt?"),
        ("classes.0.priorty", 1, "classes.0.priorty: unknown key; did you mean priority?"),
        ("load.zzz", 1, "load.zzz: unknown key; allowed: gpu_fallback_megawatt, gpu_idle_megawatt, "),
        ("battery.charge_megawatt", "70 MW", "battery.charge_megawatt: '70 MW': a plain number is allowed"),
        ("pcc_meter.port", 502.5, "pcc_meter.port: 502.5: a whole number is allowed"),
        ("contract", "ieso", "contract: 'ieso': a list is allowed, as in [ieso]"),
        ("controller", "mcp", "controller: 'mcp': mpc, rule, rule-max or none is allowed; did you mean mpc?"),
        (
            "battery.following",
            "Devices",
            "battery.following: 'Devices': device or software is allowed; did you mean device?",
        ),
        ("battery.soc_max", 95, "battery.soc_max: 95: at most 1 is allowed"),
        ("pcc_meter.update_s", -1, "pcc_meter.update_s: -1: above 0 is allowed"),
        ("tracker_hz", float("nan"), "tracker_hz: nan: a finite number is allowed"),
        ("mqtt", [], "mqtt: []: keys and values are allowed"),
        ("pcc_meter.host", 5, "pcc_meter.host: 5: text is allowed"),
        ("name", "a b/c", "name: 'a b/c': letters, digits and . _ - are allowed, a letter or digit first"),
    ],
)
def test_a_site_file(key: str, value: object, line: str) -> None:
    """The key as written, its value, and what may stand there; a near miss is named."""
    with pytest.raises(BadInput) as refused:
        parse_site(changed(SITE, key, value), origin="site.yaml")
    assert str(refused.value).startswith(f"site.yaml: {line}"), refused.value


def test_an_entry_that_is_refused_does_not_also_make_its_list_short() -> None:
    with pytest.raises(BadInput) as refused:
        parse_scenario(changed(SCENARIO, "plant.fleet.0.gpus", 0), Overrides(), origin=str(SCENARIO))
    assert str(refused.value).endswith("plant.fleet.0.gpus: 0: at least 1 is allowed")


def test_keys_are_those_of_the_kind_that_was_chosen() -> None:
    """A drop has a slew, a sag has none: the hint is from the event's own kind."""
    drop, sag = ({"kind": kind, "t_s": 1.0, "slew_per": 1.9} for kind in ("drop", "sag"))
    with pytest.raises(BadInput, match=r": events\.0\.slew_per: unknown key; did you mean slew_per_s\?"):
        parse_scenario(changed(SCENARIO, "events", [drop]), Overrides(), origin=str(SCENARIO))
    with pytest.raises(BadInput, match=r"; events\.0\.slew_per: unknown key; allowed: duration_s, "):
        parse_scenario(changed(SCENARIO, "events", [sag]), Overrides(), origin=str(SCENARIO))


def test_a_kind_that_there_is_not_is_named_where_it_stands() -> None:
    event = {"kind": "drip", "t_s": 1.0}
    with pytest.raises(BadInput, match=r": events\.0\.kind: 'drip': .* is allowed; did you mean drop\?$"):
        parse_scenario(changed(SCENARIO, "events", [event]), Overrides(), origin=str(SCENARIO))
    with pytest.raises(BadInput, match=r": plant\.fleet\.0\.workload\.edge: 'lineer': linear or hold is allowed"):
        parse_scenario(changed(SCENARIO, "plant.fleet.0.workload.edge", "lineer"), Overrides(), origin=str(SCENARIO))


def test_of_another_kind_of_file_the_keys_that_may_stand_there_are_told_once() -> None:
    with pytest.raises(BadInput) as refused:
        parse_site(read_yaml(ROOT / "configs" / "contracts" / "ieso.yaml"), origin="ieso.yaml")
    assert str(refused.value).count("allowed: battery, classes, ") == 1
    assert str(refused.value).endswith("; include: unknown key")


def test_a_section_is_not_printed_whole() -> None:
    """Keys that contradict each other are said; the section they stand in is in the file."""
    with pytest.raises(BadInput, match=r"^site\.yaml: battery: soc_min 0\.99 must be below soc_max 0\.95$"):
        parse_site(changed(SITE, "battery.soc_min", 0.99), origin="site.yaml")


def test_the_shipped_file_is_right() -> None:
    parse_site(read_yaml(SITE), origin=str(SITE))
