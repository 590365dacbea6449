"""Scenarios by shipped name or file, with what the command line changes about them, validated as one.

Nothing here simulates; `hil.world` builds the plant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller.config.fields import LARGEST
from controller.config.load import data_path, parse_document, read_yaml
from controller.config.site import parse_site
from controller.errors import BadInput
from controller.files import is_file
from controller.settings import Settings
from controller.types import frozen
from hil.scenario_documents import DURATION_S_MAX, SEED_MAX, ScenarioDoc


@frozen
class Overrides:
    """What the command line may change about a scenario; None leaves it."""

    trace: str | None = None
    scale: float | None = None
    duration_s: float | None = None
    contracts: tuple[str, ...] = ()
    controller: str | None = None
    follow: str | None = None
    edge: str | None = None
    clock: str | None = None
    seed: int | None = None
    without_load_bank: bool = False

    def __post_init__(self) -> None:
        """BadInput names the option, where the scenario's own check could only name the file."""
        for option, value, most in (("--scale", self.scale, LARGEST), ("--duration", self.duration_s, DURATION_S_MAX)):
            if value is not None and not 0.0 < value <= most:
                raise BadInput(f"{option} {value:g}: above 0 and at most {most:g} is allowed")
        if self.seed is not None and not 0 <= self.seed <= SEED_MAX:
            raise BadInput(f"--seed {self.seed}: 0 to {SEED_MAX} is allowed")


@frozen
class Scenario:
    """A validated scenario, the settings its controller runs from, and where its relative files lie."""

    doc: ScenarioDoc
    settings: Settings
    base: Path


def load_scenario(name_or_file: str, overrides: Overrides) -> Scenario:
    """The scenario by shipped name or file, with `overrides`. BadInput says what is wrong, in one line."""
    path = data_path("scenarios", name_or_file)
    return parse_scenario(read_yaml(path), overrides, origin=str(path))


def parse_scenario(raw: object, overrides: Overrides, *, origin: str) -> Scenario:
    """`raw` (parsed YAML) with `overrides` as a scenario. Relative file names are resolved beside `origin`."""
    if isinstance(raw, dict) and isinstance(raw.get("site"), str):
        raw = {**raw, "site": read_yaml(Path(origin).resolve().parent / raw["site"])}
    first = parse_document(raw, ScenarioDoc, origin=origin)
    assert isinstance(raw, dict)
    changed = _override_plant(dict(raw), overrides, first)
    site = _override_site(dict(first.site), overrides, origin=origin)
    doc = parse_document({**changed, "site": site}, ScenarioDoc, origin=origin)
    return Scenario(doc=doc, settings=parse_site(site, origin=origin), base=Path(origin).resolve().parent)


def _override_site(site: dict[str, Any], overrides: Overrides, *, origin: str) -> dict[str, Any]:
    site.setdefault("role", "site")
    site.setdefault("mqtt", {})  # ports depth has no broker; a site file needs to name one
    if overrides.contracts:
        site["contract"] = [_beside_caller(name) for name in overrides.contracts]
        site.pop("limits", None)
    if overrides.controller is not None:
        site["controller"] = overrides.controller
    if overrides.follow is not None:
        if not isinstance(site.get("battery"), dict):
            raise BadInput(f"{origin}: --follow {overrides.follow}: this site has no battery")
        site["battery"] = {**site["battery"], "following": overrides.follow}
    if overrides.without_load_bank and site.pop("load_bank", None) is None:
        raise BadInput(f"{origin}: --without-load-bank: this site has none")
    return site


def _beside_caller(name: str) -> str:
    """A contract file named on the command line is relative to where the command runs, not to the scenario."""
    try:
        data_path("contracts", name)
    except BadInput as bad:
        raise BadInput(f"--contract: {bad}") from None
    return str(Path(name).resolve()) if is_file(Path(name)) else name


def _override_plant(raw: dict[str, Any], overrides: Overrides, first: ScenarioDoc) -> dict[str, Any]:
    for key, value in (("duration_s", overrides.duration_s), ("clock", overrides.clock), ("seed", overrides.seed)):
        if value is not None:
            raw[key] = value
    changes: dict[str, object] = {}
    if overrides.trace is not None:
        changes["file"] = str(Path(overrides.trace).resolve())
    if overrides.scale is not None:
        changes["scale"] = overrides.scale
    if overrides.edge is not None:
        changes["edge"] = overrides.edge
    if not changes:
        return raw
    traced = [c.id for c in first.plant.fleet if c.workload.kind == "trace"]
    if len(traced) != 1:
        raise BadInput(
            f"{first.name}: --trace, --scale and --edge need a scenario with one trace, it has {len(traced)}"
        )
    plant = dict(raw["plant"])
    plant["fleet"] = [
        {**c, "workload": {**c["workload"], **changes}} if c["id"] == traced[0] else c for c in plant["fleet"]
    ]
    raw["plant"] = plant
    return raw
