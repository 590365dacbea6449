"""Curves of GPU models: rising, sourced, cautious where unknown, and near what was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from controller.config.gpu import load_curves
from controller.gpu_model import UNKNOWN, curve_for

SWEEP = Path(__file__).resolve().parents[2] / "shared" / "traces" / "v100_power_clock_sweep.csv"


def test_every_shipped_curve_rises_and_names_its_source() -> None:
    """Priors are monotone in clock, one at full clock, and say where they come from."""
    for name, curve in load_curves().items():
        fractions = np.linspace(0.2, 1.0, 50)
        share = curve.power_share(fractions)
        assert bool((np.diff(share) > 0.0).all()), name
        assert share[-1] == pytest.approx(1.0)
        assert curve.source
        assert float(curve.clock_for(float(share[20]))) == pytest.approx(float(fractions[20]), abs=0.01)


def test_an_unknown_card_is_assumed_to_save_the_least() -> None:
    """No pattern matches: the chord, below which no convex curve can save less."""
    curves = load_curves()
    assert curve_for("NVIDIA H100 80GB HBM3", curves).name == "h100"
    unknown = curve_for("Some Other Accelerator", curves)
    assert unknown is UNKNOWN
    for f in (0.3, 0.6, 0.9):
        assert all(float(unknown.power_share(f)) >= float(c.power_share(f)) - 1e-9 for c in curves.values())


def test_v100_curve_matches_the_public_sweep() -> None:
    """Power of a compute-bound loop at locked clocks: within 8 % of the dynamic range."""
    if not SWEEP.exists():
        pytest.skip("measured traces are not beside this checkout")
    with SWEEP.open() as lines:
        rows = [r for r in csv.DictReader(line for line in lines if not line.startswith("#"))]
    loop = [r for r in rows if r["workload"] == "matmul_compute_bound" and r["pcap_w"] == "300"]
    power = {float(r["sm_target_mhz"]): float(r["power_mean_w"]) for r in loop}
    top_mhz = max(power)
    curve = load_curves()["v100"]
    for mhz, watts in power.items():
        share = (watts - 45.0) / (power[top_mhz] - 45.0)
        assert float(curve.power_share(mhz / top_mhz)) == pytest.approx(share, abs=0.08)
