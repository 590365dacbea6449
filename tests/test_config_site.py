"""The site file: shipped examples load, and what a tired person types is answered in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from controller.check import check_site
from controller.cli.main import app, main
from controller.config.explain import _models
from controller.config.load import read_yaml
from controller.config.site import load_settings, parse_site
from controller.config.site_documents import SiteDoc
from controller.errors import BadInput
from controller.settings import Role
from controller.types import CeilingLimit, Following, LimitStatus

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "configs" / "site.example.yaml"
NODE = ROOT / "configs" / "node.example.yaml"


BANK = {"profile": "rampart-load-bank", "power_megawatt": 10, "lag_s": 0.05, "ramp_megawatt_per_s": 100}


def raw_site() -> dict[str, object]:
    raw = read_yaml(SITE)
    assert isinstance(raw, dict)
    return raw


def test_the_shipped_site_converts_once() -> None:
    """Megawatts become watts, megawatt hours become joules, fractions are resolved."""
    settings = load_settings(SITE)
    assert settings.role is Role.SITE and settings.site is not None
    battery = settings.site.battery
    assert battery is not None and battery.charge_w_max == 70e6 and battery.energy_j == 35 * 3.6e9
    assert battery.following is Following.DEVICE
    assert settings.site.tracker_period_s == 0.05
    assert [limit.id for limit in settings.site.contract.limits] == ["ieso-ramp.ramp-60s", "ieso-ramp.swing-15s"]


def test_a_load_bank_is_read_in_watts_and_joules() -> None:
    """Without an energy it may run for ever; without the key there is none."""
    site = parse_site({**raw_site(), "load_bank": BANK}, origin="campus.yaml")
    assert site.site is not None and site.site.load_bank is not None and site.load_bank is not None
    bank = site.site.load_bank
    assert (bank.power_w_max, bank.ramp_w_per_s_max, bank.energy_j, bank.has_own_ramp) == (10e6, 100e6, math.inf, True)
    assert site.load_bank.profile == "rampart-load-bank"
    hot = parse_site({**raw_site(), "load_bank": {**BANK, "energy_megawatt_hour": 0.5}}, origin="campus.yaml")
    assert hot.site is not None and hot.site.load_bank is not None and hot.site.load_bank.energy_j == 1.8e9
    plain = load_settings(SITE)
    assert plain.site is not None and plain.site.load_bank is None and plain.load_bank is None


def test_the_shipped_node_has_its_own_rows() -> None:
    """Rows given inline are limits like any other, with the file as their source."""
    settings = load_settings(NODE)
    assert settings.site is not None and settings.node is not None and settings.meter is None
    ceiling = settings.site.contract.limits[1]
    assert isinstance(ceiling, CeilingLimit) and ceiling.max_w == 6500.0
    assert ceiling.provenance.status is LimitStatus.LOCAL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rolle": "site"}, "rolle: unknown key"),
        ({"role": "king"}, "role: 'king'"),
        ({"tracker_hz": 0}, "tracker_hz: 0"),
        ({"tracker_hz": "fast"}, "tracker_hz: 'fast'"),
        ({"registered_peak_megawatt": -1}, "registered_peak_megawatt: -1"),
        ({"contract": ["atlantis"]}, "contract: atlantis: no such file, nor one of the shipped contracts"),
        ({"contract": ["IESO_ramp"]}, "did you mean ieso-ramp?"),
        ({"fallback_contract": ["atlantis"]}, "fallback_contract: atlantis: no such file"),
        ({"contract": [], "limits": []}, "needs contract"),
        ({"pcc_meter": None}, "battery needs pcc_meter"),
        ({"battery": None, "load_bank": BANK}, "load_bank needs battery"),
        ({"load_bank": {**BANK, "power_megawatt": 0}}, "load_bank.power_megawatt: 0"),
        ({"load_bank": {**BANK, "step_megawatt": 11}}, "step_megawatt 11.0 must not exceed"),
        ({"load_bank": {**BANK, "recovery_megawatt": 1}}, "recovery_megawatt needs energy_megawatt_hour"),
        ({"load_bank": {**BANK, "power_kilowatt": 1}}, "load_bank.power_kilowatt: unknown key"),
        ({"mqtt": None, "grid": None}, "needs mqtt"),
        ({"limits": [{"id": "x", "kind": "ramp", "max_megawatt": 0, "window_s": 15}]}, "max_megawatt: 0"),
        ({"limits": [{"id": "x", "kind": "ramp", "max_megawatt": 5}]}, "window_s: required"),
        ({"registered_peak_megawatt": float("inf")}, "registered_peak_megawatt"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], said: str) -> None:
    """File, key, value and what is allowed, in one line."""
    with pytest.raises(BadInput) as caught:
        parse_site({**raw_site(), **change}, origin="campus.yaml")
    text = str(caught.value)
    assert text.startswith("campus.yaml: ") and said in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"role: [site", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"", "expected keys and values"),
        (b"a: " + b"[" * 2000, "not valid YAML"),
    ],
)
def test_files_that_are_not_configurations(tmp_path: Path, content: bytes, said: str) -> None:
    """Garbage is said to be garbage, with the file's name."""
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_check_prints_words_and_exits_by_its_verdict(tmp_path: Path) -> None:
    """`check` explains each row; a fallback above the ceiling is a failed proof, exit 1."""
    runner = CliRunner()
    good = runner.invoke(app, ["check", "-c", str(NODE)])
    assert good.exit_code == 0 and "fallback fits without a controller" in good.output
    text = NODE.read_text(encoding="utf-8").replace("max_kilowatt: 6.5", "max_kilowatt: 5.5")
    tight = tmp_path / "tight.yaml"
    tight.write_text(text, encoding="utf-8")
    bad = runner.invoke(app, ["check", "-c", str(tight)])
    assert bad.exit_code == 1 and "NOT PROVEN" in bad.output


@pytest.mark.parametrize(
    ("ceiling_kilowatt", "said"),
    [(6.5, "GPUs are kept to 4 kW of 5.6 kW"), (2.0, "GPUs are kept to 0 kW of 5.6 kW"), (8.2, "fit under it")],
)
def test_check_says_what_a_ceiling_leaves_the_gpus(ceiling_kilowatt: float, said: str) -> None:
    """A GPU that is capped day and night by a ceiling's worst case must not be a riddle at 3 a.m."""
    raw = yaml.safe_load(NODE.read_text(encoding="utf-8"))
    raw["limits"][1]["max_kilowatt"] = ceiling_kilowatt
    site = parse_site(raw, origin=str(NODE)).site
    assert site is not None
    rise, ceiling = check_site(site).rows
    assert said in ceiling.hardware and rise.hardware == "rises are softened by caps"
    assert site.battery is None


def test_check_names_files_that_this_machine_has_not(tmp_path: Path) -> None:
    """A site file is often checked elsewhere than it runs; what `run` will miss is said, and nothing that is there."""
    raw = yaml.safe_load(SITE.read_text(encoding="utf-8"))
    there = tmp_path / "iso.pub.pem"
    there.write_text("", encoding="utf-8")
    raw["grid"]["issuers"][0]["key_files"] = [str(there), str(tmp_path / "gone.pem")]
    raw["mqtt"]["ca_file"] = str(tmp_path / "ca.pem")
    raw["mqtt"].pop("password_file")
    raw["mqtt"].pop("username")
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    done = CliRunner().invoke(app, ["check", "-c", str(path), "--json"])
    notes = [note for note in json.loads(done.output)["notes"] if note.startswith("not on this machine")]
    assert done.exit_code == 0 and [note.split(": ")[1] for note in notes] == [
        "mqtt.ca_file", "grid.issuers.0.key_files", "grid.signing_key_file",
    ]  # fmt: skip
    assert "gone.pem" in notes[1] and str(there) not in done.output


@pytest.mark.parametrize(("update_s", "is_told"), [(0.02, True), (0.1, False), (0.2, False)])
def test_check_asks_about_a_meter_quicker_than_its_kind(tmp_path: Path, update_s: float, is_told: bool) -> None:
    """A refresh declared shorter than it is makes a loop answer its own moves."""
    raw = yaml.safe_load(SITE.read_text(encoding="utf-8"))
    raw["pcc_meter"]["update_s"] = update_s
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    done = CliRunner().invoke(app, ["check", "-c", str(path), "--json"])
    told = [note for note in json.loads(done.output)["notes"] if note.startswith("pcc_meter.update_s")]
    assert done.exit_code == 0
    assert bool(told) == is_told and all("refresh every 0.1 s" in note for note in told)


@pytest.mark.parametrize(
    ("battery", "is_eligible"),
    [
        ({"deadband_megawatt": 1.2}, True),
        ({"deadband_megawatt": 1.3}, False),
        ({"dwell_s": 7.0}, True),
        ({"dwell_s": 8.0}, False),
        ({"deadband_megawatt": 1.0, "dwell_s": 4.0}, False),
        ({"deadband_megawatt": 1.3, "dwell_s": 8.0, "following": "device"}, True),
    ],
)
def test_our_loop_closes_on_no_battery_whose_deadband_or_dwell_spends_the_rows(
    battery: dict[str, object], is_eligible: bool
) -> None:
    """5 MW in 15 s: half of it may go unanswered, on both sides of a deadband and in the time of a dwell."""
    raw = yaml.safe_load(SITE.read_text(encoding="utf-8"))
    raw["battery"] |= {"following": "software"} | battery
    if is_eligible:
        assert parse_site(raw, origin=str(SITE)).site is not None
    else:
        with pytest.raises(BadInput, match=r"battery.deadband_megawatt.*swing-15s: not eligible"):
            parse_site(raw, origin=str(SITE))


@pytest.mark.parametrize(("host", "is_allowed"), [("192.0.2.20", False), ("127.0.0.1", True), ("localhost", True)])
def test_no_password_travels_in_the_clear(host: str, is_allowed: bool) -> None:
    """A broker password needs TLS unless it never leaves this machine; nor does an address carry one."""
    raw = yaml.safe_load(SITE.read_text(encoding="utf-8"))
    raw["mqtt"] = {"host": host, "username": "site", "password_file": "secret"}
    if is_allowed:
        assert parse_site(raw, origin=str(SITE)).mqtt is not None
    else:
        with pytest.raises(BadInput, match=r"mqtt: .*ca_file"):
            parse_site(raw, origin=str(SITE))
    raw["mqtt"] = {"host": host, "ca_file": "ca.pem"}
    for key in ("openadr", "jobs"):
        url = "https://user:word@vtn.example"
        document = {"url": url} if key == "openadr" else {"kubernetes": {"api_url": url}}
        with pytest.raises(BadInput, match="url") as caught:
            parse_site(raw | {key: document}, origin=str(SITE))
        assert key in str(caught.value)


def test_every_key_of_a_site_file_is_explained() -> None:
    """In one of the two examples, or on a page that they name; a key that nobody finds is not there."""
    examples = SITE.read_text(encoding="utf-8") + NODE.read_text(encoding="utf-8")
    pages = [ROOT / page for page in set(re.findall(r"docs/[a-z-]+\.md", examples))]
    assert len(pages) >= 4
    told = set(re.findall(r"\w+", examples + "".join(page.read_text(encoding="utf-8") for page in pages)))
    seen: set[type[BaseModel]] = set()

    def keys(model: type[BaseModel]) -> Iterator[str]:
        seen.add(model)
        for name, field in model.model_fields.items():
            yield field.alias or name
            for below in _models(field.annotation) - seen:
                yield from keys(below)

    known = set(keys(SiteDoc))
    assert len(known) > 100 and sorted(known - told) == []


def test_bad_input_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file gives no traceback."""
    monkeypatch.setattr("sys.argv", ["rampart", "check", "-c", "no-such-file.yaml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "rampart: no-such-file.yaml: No such file or directory\n"
