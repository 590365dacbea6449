"""Curves of GPU models against what was measured, and their identification from telemetry."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from controller.config.gpu import load_curves
from controller.gpu_identify import CurveIdentifier
from controller.gpu_model import UNKNOWN, curve_for
from controller.types import FloatArray

SWEEP = Path(__file__).resolve().parents[2] / "shared" / "traces" / "v100_power_clock_sweep.csv"


def identifier(count: int = 1, *, model: str = "h100") -> CurveIdentifier:
    curve = load_curves()[model]
    return CurveIdentifier([curve] * count, idle_w=np.full(count, 75.0), peak_w=np.full(count, 700.0))


def feed(found: CurveIdentifier, truth: object, *, steps: int, seed: int = 3, low: float = 0.5) -> None:
    """Observations of a card whose clock wanders between `low` and full; `truth(f)` is its power."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        f = rng.uniform(low, 1.0, 1)
        found.observe(f, np.asarray(truth(f)) + rng.normal(0.0, 5.0, 1))  # type: ignore[operator]


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
        pytest.skip("no ../shared/traces beside this checkout")
    with SWEEP.open() as lines:
        rows = [r for r in csv.DictReader(line for line in lines if not line.startswith("#"))]
    loop = [r for r in rows if r["workload"] == "matmul_compute_bound" and r["pcap_w"] == "300"]
    power = {float(r["sm_target_mhz"]): float(r["power_mean_w"]) for r in loop}
    top_mhz = max(power)
    curve = load_curves()["v100"]
    for mhz, watts in power.items():
        share = (watts - 45.0) / (power[top_mhz] - 45.0)
        assert float(curve.power_share(mhz / top_mhz)) == pytest.approx(share, abs=0.08)


def test_identification_finds_a_curve_that_is_not_the_prior() -> None:
    """A card 20 % hungrier and steeper than its model's prior: after 150 observations the error is noise."""

    def truth(f: FloatArray) -> FloatArray:
        return 90.0 + 250.0 * f + 480.0 * f**3

    found = identifier()
    at = np.array([0.8])
    before = abs(float(found.power_w(at)[0]) - float(truth(at)[0]))
    feed(found, truth, steps=150)
    after = abs(float(found.power_w(at)[0]) - float(truth(at)[0]))
    assert before > 40.0 and after < 12.0


def test_confidence_grows_where_clocks_were_seen_and_not_elsewhere() -> None:
    """Sigma falls at the clocks that were visited; at half clock, never visited, it stays wide."""
    found = identifier()
    wide = float(found.sigma_at_w(np.array([0.95]))[0])
    feed(found, lambda f: 75.0 + 625.0 * load_curves()["h100"].power_share(f), steps=100, low=0.9)
    near, far = float(found.sigma_at_w(np.array([0.95]))[0]), float(found.sigma_at_w(np.array([0.3]))[0])
    assert near < 0.5 * wide
    assert far > 2.0 * near


def test_a_clock_that_never_moves_erases_nothing() -> None:
    """Three thousand equal observations: the curve elsewhere keeps its prior and its width stays bounded."""
    found = identifier()
    at = np.array([0.5])
    prior_w, prior_sigma = float(found.power_w(at)[0]), float(found.sigma_at_w(at)[0])
    full_w = found.power_w(np.array([1.0]))
    for _ in range(3_000):
        found.observe(np.array([1.0]), full_w)
    assert float(found.power_w(at)[0]) == pytest.approx(prior_w, abs=20.0)
    assert float(found.sigma_at_w(at)[0]) <= 1.05 * prior_sigma


def test_a_cap_that_does_nothing_is_found_out() -> None:
    """Group 0 answers to its clock, group 1 (bound by memory, power unmoved) does not: only the second is inert."""
    found = identifier(2)
    curve = load_curves()["h100"]
    rng = np.random.default_rng(1)
    last = found.known()
    for move in range(12):
        f = 1.0 if move % 2 == 0 else 0.7
        for _ in range(5):
            power = np.array([75.0 + 625.0 * float(curve.power_share(f)), 400.0]) + rng.normal(0.0, 3.0, 2)
            last = found.observe(np.array([f, f]), power)
    assert list(last.is_inert) == [False, True]
    assert last.effect[0] == pytest.approx(1.0, abs=0.3)


def test_missing_readings_are_not_observations() -> None:
    """A silent group changes nothing; another group's reading is taken all the same."""
    found = identifier(2)
    before = found.power_w(np.array([0.8, 0.8]))
    found.observe(np.array([np.nan, 0.8]), np.array([np.nan, 500.0]))
    after = found.power_w(np.array([0.8, 0.8]))
    assert after[0] == before[0] and after[1] != before[1]


def test_idle_and_peak_follow_what_is_seen() -> None:
    """A lower draw than the nameplate's idle, a higher one than its peak: both are remembered."""
    found = identifier()
    found.observe(np.array([1.0]), np.array([735.0]))
    last = found.observe(np.array([0.2]), np.array([70.0]))
    assert last.peak_w[0] == pytest.approx(735.0, abs=0.2)
    assert last.idle_w[0] == pytest.approx(70.0, abs=0.2)
