"""Scenario documents: shipped ones load, overrides do what the command line promises, wrong ones say where and why."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.config.load import data_root
from controller.errors import BadInput
from controller.settings import Policy
from controller.types import Following
from hil.plant.site import LOAD
from hil.scenario import Overrides, load_scenario, parse_scenario
from hil.world import build_world

SHIPPED = sorted(p.stem for p in (data_root() / "configs" / "scenarios").glob("*.yaml"))
NONE = Overrides()


def campus() -> dict[str, Any]:
    text = (data_root() / "configs" / "scenarios" / "campus-90mw.yaml").read_text(encoding="utf-8")
    raw: dict[str, Any] = yaml.safe_load(text)
    return raw


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_builds_a_plant_without_any_file(name: str) -> None:
    world = build_world(load_scenario(name, NONE))
    world.plant.advance_ns(2_000_000_000)
    assert 1e6 < world.plant.now(LOAD) < 200e6


def test_overrides_reach_site_and_plant(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("t_s,a_w,b_w\n0,200000,200000\n2,210000,\n4,200000,200000\n6,220000,200000\n", encoding="utf-8")
    scenario = load_scenario(
        "campus-90mw",
        Overrides(
            trace=str(trace),
            scale=100.0,
            contracts=("aeso", "ercot"),
            controller="rule",
            follow="device",
            edge="hold",
            seed=7,
        ),
    )
    site = scenario.settings.site
    assert site is not None and site.battery is not None
    assert site.policy is Policy.RULE and site.following is Following.DEVICE and site.contract.name == "aeso+ercot"
    assert scenario.doc.seed == 7
    world = build_world(scenario)
    assert world.duration_s == 6.0
    world.plant.advance_ns(1_900_000_000)
    assert world.plant.now(LOAD) == pytest.approx(40e6)  # held until 2 s
    world.plant.advance_ns(2_300_000_000)
    assert world.plant.now(LOAD) == pytest.approx(41e6)  # an empty cell holds the value before


def test_the_same_seed_builds_the_same_world_and_another_does_not() -> None:
    def load_w(seed: int) -> float:
        world = build_world(load_scenario("campus-90mw", Overrides(seed=seed)))
        world.plant.advance_ns(100_000_000_000)
        return world.plant.mean(LOAD, from_s=90.0, to_s=100.0)

    assert load_w(3) == load_w(3)
    assert load_w(3) != load_w(4)


def test_the_plant_may_differ_from_what_the_site_believes() -> None:
    raw = campus()
    raw["plant"]["battery"] = {"charge_megawatt": 30, "lag_s": 0.2}
    world = build_world(parse_scenario(raw, NONE, origin="x.yaml"))
    assert world.plant.battery is not None
    assert world.plant.battery.params.charge_w_max == 30e6
    assert world.plant.battery.params.discharge_w_max == 70e6


def test_a_fault_that_is_off_needs_no_quotes() -> None:
    faults = yaml.safe_load("[{port: meter, verb: off, t_s: 1}, {port: grid, verb: stuck, t_s: 2}]")
    doc = parse_scenario({**campus(), "faults": faults}, NONE, origin="x.yaml").doc
    assert [fault.verb for fault in doc.faults] == ["off", "stuck"]


def edit(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    *steps, last = path.split(".")
    at: Any = raw
    for step in steps:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("duration_s", -1, "duration_s"),
        ("plant.fleet.0.gpus", 1001, "multiple"),
        ("plant.fleet.0.model", "h999", "model"),
        ("plant.fleet.0.workload.kind", "mining", "workload"),
        ("plant.fleet.0.workload.non_gpu_frac", 1.5, "non_gpu_frac"),
        ("plant.fleet.0.workload", {"kind": "training", "checkpoint_s": [9, 4]}, "the shortest first"),
        ("plant.battery.magic", 1, "unknown key"),
        ("events", [{"kind": "drop", "t_s": 5}], "slew_per_s"),
        ("events", [{"kind": "drop", "t_s": 5, "within_s": 1, "job": "ghost"}], "ghost"),
        ("faults", [{"port": "toaster", "verb": "off", "t_s": 1}], "port"),
        ("faults", [{"port": "meter", "verb": "explode", "t_s": 1}], "verb"),
        ("faults", [{"port": "meter", "verb": True, "t_s": 1}], "verb"),
        ("signals", [{"kind": "load_target", "t_s": 1}], "megawatt"),
        ("site.battery.soc_min", 2, "soc_min"),
        ("site.contract", ["no-such-contract"], "no-such-contract"),
        ("seed", "one", "seed"),
    ],
)
def test_wrong_input_is_one_line_that_names_the_key(path: str, value: object, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_scenario(edit(campus(), path, value), NONE, origin="my.yaml")
    assert says in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("my.yaml")


def test_unknown_scenarios_and_missing_traces_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="campus-90mw"):
        load_scenario("no-such-scenario", NONE)
    with pytest.raises(BadInput, match="nowhere"):
        build_world(load_scenario("campus-90mw", Overrides(trace=str(tmp_path / "nowhere.csv"))))
    raw = campus()
    del raw["plant"]["fleet"][0]["workload"]["stand_in"]
    with pytest.raises(BadInput, match="--trace"):
        build_world(parse_scenario(raw, NONE, origin="x.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "t_s,pcc_w\n0,1\n",  # one sample
        "t_s,pcc_w\n0,1\n1,-5\n2,1\n",  # a load that exports
        "t_s,pcc_w\n0,1\n2,1\n1,1\n",  # time runs backwards
        "t_s,power_mw\n0,1\n1,1\n",
        "t_s,pcc_w\n0,1\n1,lots\n",
        "",
    ],
)
def test_garbled_traces_are_bad_input(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "bad.csv"
    trace.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"bad\.csv"):
        build_world(load_scenario("campus-90mw", Overrides(trace=str(trace))))
