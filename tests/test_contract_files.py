"""Contract files: every shipped profile, how contracts combine, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.config.contract import load_contract, needs_registered_peak
from controller.config.load import data_root
from controller.errors import BadInput
from controller.types import (
    LimitStatus,
    OscillationLimit,
    RampLimit,
    RampReading,
    RateLimit,
    RideThroughLimit,
    SwingLimit,
)

SHIPPED = sorted(path.stem for path in (data_root() / "configs" / "contracts").glob("*.yaml"))
LISTED = [
    "aeso", "atc-spp", "caiso", "caiso-ride-through", "eirgrid", "ercot", "ercot-nprr1191", "ieso", "ieso-ramp",
    "lipa", "nogrr282", "southern",
]  # fmt: skip
ROW = """
name: mine
title: a test
limits:
  - id: r
    kind: swing
    max_megawatt: 5
    window_s: 15
    source: test
    date: "2026"
    status: proposed
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_every_listed_profile_is_shipped() -> None:
    assert set(LISTED) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_and_every_row_says_where_it_comes_from(name: str) -> None:
    contract = load_contract([name], registered_peak_w=100e6)
    assert contract.limits
    for row in contract.limits:
        origin = row.provenance
        assert origin.source and origin.date and origin.assumption
        assert origin.status in (LimitStatus.PUBLISHED, LimitStatus.PROPOSED, LimitStatus.QUOTED)


def test_numbers_of_the_profiles() -> None:
    contract = load_contract(LISTED, registered_peak_w=1000e6)
    rows = {str(row.id): row for row in contract.limits}
    assert len(rows) == len(contract.limits)
    ramp, swing = rows["ieso-ramp.ramp-60s"], rows["ieso-ramp.swing-15s"]
    assert isinstance(ramp, RampLimit) and (ramp.max_w, ramp.window_s, ramp.mean_s) == (20e6, 60.0, 1.0)
    assert isinstance(swing, SwingLimit) and (swing.max_w, swing.window_s, swing.mean_s) == (5e6, 15.0, 1.0)
    line = rows["ieso.oscillation"]
    assert isinstance(line, OscillationLimit) and line.max_w == 2.5e6 and line.band_hz == (0.1, 20.0)
    caiso = rows["caiso.ramp-600s"]
    assert isinstance(caiso, RampLimit) and caiso.reading is RampReading.ENDPOINT and caiso.max_w == 200e6
    short = rows["southern.swing-6s"]
    assert isinstance(short, SwingLimit) and short.mean_s == 0.2
    ercot = rows["ercot.variation-5s"]
    assert isinstance(ercot, SwingLimit) and ercot.mean_s == 0.0 and ercot.band_hz == (0.1, 55.0)
    rate = rows["atc-spp.rate"]
    assert isinstance(rate, RateLimit) and (rate.max_w_per_s, rate.above_w) == (0.5e6, 50e6)
    through = rows["nogrr282.ride-through"]
    assert isinstance(through, RideThroughLimit) and len(through.voltage_pu) == 6


@pytest.mark.parametrize(
    ("peak_w", "down_w", "up_w", "line_w"), [(100e6, 5e6, 2e6, 0.25e6), (2000e6, 20e6, 8e6, 2.5e6)]
)
def test_the_lesser_of_two_limits_holds(peak_w: float, down_w: float, up_w: float, line_w: float) -> None:
    contract = load_contract(["ercot-nprr1191", "ieso"], registered_peak_w=peak_w)
    limits = {str(row.id): row.max_w for row in contract.limits if isinstance(row, RampLimit | OscillationLimit)}
    assert limits["ercot-nprr1191.ramp-down-60s"] == down_w
    assert limits["ercot-nprr1191.ramp-up-60s"] == up_w
    assert limits["ieso.oscillation"] == line_w


def test_contracts_combine_and_name_each_row_once() -> None:
    contract = load_contract(["ieso", "ieso-ramp", "aeso", "aeso"], registered_peak_w=100e6)
    assert contract.name == "ieso+ieso-ramp+aeso"
    assert [str(row.id) for row in contract.limits] == [
        "ieso-ramp.ramp-60s",
        "ieso-ramp.swing-15s",
        "ieso.oscillation",
        "aeso.ramp-60s",
    ]


def test_a_fraction_without_a_registered_peak_is_refused() -> None:
    assert needs_registered_peak(["ieso"]) and not needs_registered_peak(["ieso-ramp", "caiso"])
    assert load_contract(["ieso-ramp"], registered_peak_w=None).registered_peak_w == float("inf")
    with pytest.raises(BadInput, match=r"oscillation.*registered peak"):
        load_contract(["ieso"], registered_peak_w=None)


def test_a_row_may_name_its_own_mean_and_kilowatts(tmp_path: Path) -> None:
    text = ROW.replace("max_megawatt: 5", "max_kilowatt: 5\n    mean_s: 0.5")
    row = load_contract([written(tmp_path, text)], registered_peak_w=1e6).limits[0]
    assert isinstance(row, SwingLimit) and row.max_w == 5000.0 and row.mean_s == 0.5 and str(row.id) == "mine.r"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_megawatt: 5", "max_megawatt: 0", "above 0 is allowed"),
        ("max_megawatt: 5", "max_megawatt: -5", "above 0 is allowed"),
        ("max_megawatt: 5", "max_megawatt: .nan", "finite"),
        ("max_megawatt: 5", "", "max_megawatt, max_kilowatt, max_frac is required"),
        ("window_s: 15", "window_s: 0", "above 0 is allowed"),
        ("max_megawatt: 5", "max_megawatt: 1.0e+308", "at most 1000000 is allowed"),
        ("window_s: 15", "window_s: 1.0e+308", "at most 1000000 is allowed"),
        ("window_s: 15", "window_s: 15\n    mean_s: 1.0e+9", "at most 3600 is allowed"),
        ("window_s: 15", "window_s: 15\n    band_hz: [5, 1]", "first must be below"),
        ("window_s: 15", "window_s: 15\n    band_hz: [1.0e-300, 1]", "at least 0.01 is allowed"),
        ("window_s: 15", "window_s: 15\n    band_hz: [5, 1.0e+300]", "at most 1000 is allowed"),
        ("kind: swing\n    max_megawatt: 5\n    window_s: 15",
         "kind: oscillation\n    max_megawatt: 5\n    band_hz: [0.1, 2]\n    span_s: 1.0e+9", "at most 600 is allowed"),
        ("kind: swing", "kind: sway", "sway"),
        ("kind: swing", "kind: rate", "window_s: unknown key"),
        ("source: test", "colour: red", "source"),
        ("status: proposed", "status: maybe", "maybe"),
        ("limits:", "include: [mine]\nlimits:", "mine"),
        ("name: mine", "name: mine\nextra: 1", "unknown key"),
        ("limits:\n", f"limits:{ROW.split('limits:')[1].rstrip()}\n", "used twice"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_what_is_wrong_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_contract([written(tmp_path, ROW.replace(old, new))], registered_peak_w=1e8)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_circle_of_includes_ends(tmp_path: Path) -> None:
    text = ROW.replace("limits:", f"include: [{tmp_path / 'mine.yaml'}]\nlimits:")
    with pytest.raises(BadInput, match="circle"):
        load_contract([written(tmp_path, text)], registered_peak_w=1e8)


def test_an_unknown_contract_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"nowhere.*ieso"):
        load_contract(["nowhere"], registered_peak_w=1e8)
