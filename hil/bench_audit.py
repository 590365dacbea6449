"""Measures how fast the referee judges a record, beside the plain way of writing the same check.

The record is synthetic plant truth at 1 kHz. The baseline judges the same two window rows (20 MW in 60 s, 5 MW in 15 s
on 1 s means) with a running mean and scipy's rolling extremes over the whole record at once: samples only, no exact
windows, no broken time, no episodes, no gaps, and memory that grows with the record.
"""

from __future__ import annotations

import resource
import time

import numpy as np
from scipy import ndimage

from controller.audit.referee import Referee
from controller.config.contract import load_contract
from controller.types import FloatArray, frozen

RATE_HZ = 1000.0
FEED_SAMPLES = 100_000
DAY_SAMPLES = 86_400_000
ALL_ROWS = ("ieso", "caiso", "ercot", "ercot-nprr1191", "aeso", "southern", "atc-spp", "lipa")


@frozen
class AuditBench:
    """Samples judged per second: two rows (as the baseline), every profile at once, and the baseline."""

    samples: int
    samples_per_s: float
    all_profiles_samples_per_s: float
    baseline_samples_per_s: float
    worst_differs_frac: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, object]:
        return {
            "samples_per_s": self.samples_per_s,
            "samples": self.samples,
            "day_at_1khz_s": DAY_SAMPLES / self.samples_per_s,
            "all_profiles_samples_per_s": self.all_profiles_samples_per_s,
            "all_profiles_day_at_1khz_s": DAY_SAMPLES / self.all_profiles_samples_per_s,
            "baseline": "scipy.ndimage rolling extremes of a running mean, whole record, samples only",
            "baseline_samples_per_s": self.baseline_samples_per_s,
            "worst_differs_frac": self.worst_differs_frac,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def run(*, samples: int, seed: int) -> AuditBench:
    """All three on one record of `samples`; the referee is fed in pieces, as the bench and the command do."""
    t, p = record(samples, seed)
    seconds, worst_w = _referee(("ieso-ramp",), t, p)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    all_seconds, _ = _referee(ALL_ROWS, t, p)
    begin = time.perf_counter()
    baseline_w = baseline_worst_w(p)
    baseline_seconds = time.perf_counter() - begin
    differs = max(abs(a - b) / b for a, b in zip(worst_w, baseline_w, strict=True))
    return AuditBench(
        samples=samples,
        samples_per_s=samples / seconds,
        all_profiles_samples_per_s=samples / all_seconds,
        baseline_samples_per_s=samples / baseline_seconds,
        worst_differs_frac=differs,
        peak_memory_bytes=memory,
    )


def record(samples: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """A site of 80 MW: slow drift, iteration ripple at 1.7 Hz, noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE_HZ
    p = 80e6 + 5e6 * np.sin(2 * np.pi * t / 300.0) + 2e6 * np.sin(2 * np.pi * 1.7 * t)
    p += rng.normal(0.0, 0.5e6, samples)
    return t, p


def baseline_worst_w(p: FloatArray) -> tuple[float, float]:
    """Worst of ramp (60 s) and swing (15 s) on 1 s means, the plain way."""
    count = round(RATE_HZ)
    sums = np.concatenate(([0.0], np.cumsum(p)))
    mean = (sums[count:] - sums[:-count]) / count
    low = ndimage.minimum_filter1d(mean, 60 * count + 1, origin=30 * count)
    high = ndimage.maximum_filter1d(mean, 60 * count + 1, origin=30 * count)
    ramp = float(max(np.max(mean - low), np.max(high - mean)))
    low = ndimage.minimum_filter1d(mean, 15 * count + 1, origin=15 * count // 2)
    high = ndimage.maximum_filter1d(mean, 15 * count + 1, origin=15 * count // 2)
    return ramp, float(np.max(high - low))


def _referee(names: tuple[str, ...], t: FloatArray, p: FloatArray) -> tuple[float, tuple[float, ...]]:
    referee = Referee(load_contract(names, registered_peak_w=100e6))
    begin = time.perf_counter()
    for a in range(0, t.size, FEED_SAMPLES):
        referee.feed(t[a : a + FEED_SAMPLES], p[a : a + FEED_SAMPLES])
    verdicts = referee.finish()
    return time.perf_counter() - begin, tuple(row.worst for row in verdicts.limits)
