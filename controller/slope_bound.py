"""How steep a reference may be so that a filtered or spectral row holds whatever its shape: slope <= max_w / K.

A linear reading of power is `integral k(u) P(u) du` with a kernel k that sums to zero, so by parts it equals minus the
integral of K(u) P'(u) with K the running integral of k: its magnitude is at most max|P'| times the L1 norm of K. The
bound needs a path without jumps and is attained by some path, so no smaller constant is safe. Kernels follow the
auditor's filter and spectrum; constants are computed on first use and kept. Nothing here knows a contract.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from controller.types import FloatArray

FILTER_ORDER = 4  # the auditor's Butterworth order, run forwards and backwards
NYQUIST_SHARE = 0.999  # a band that reaches further is a high pass from its lower edge
SAMPLES_PER_S = 200.0  # slowest truth the auditor accepts; the constants move by < 0.1 % at 400
SETTLE_PERIODS = 12.0  # periods of the lower edge on either side of the step; what is left is < 1e-6 of it
PHASES = 12  # phases tried per line: the norm varies by < 1 % between neighbours
SPAN_PERIODS_MAX = 400.0  # of the lower edge: a longer span has the same norm to 1e-6
SPAN_POINTS_MAX = 8000  # of the kernel: more take seconds of a control cycle, and make the norm smaller by < 1 %
LINES = 24  # frequencies tried, from the lower edge up; the norm falls as 1/f, so the lower edge decides


@lru_cache(maxsize=64)
def band_seconds(lo_hz: float, hi_hz: float) -> float:
    """K of a `band` row in seconds: L1 norm of the step response of the filter. 1.95 for bands from 0.1 Hz."""
    response, dt_s = _step_response(lo_hz, hi_hz)
    return float(np.abs(response).sum() * dt_s)


@lru_cache(maxsize=64)
def swing_seconds(lo_hz: float, hi_hz: float, window_s: float) -> float:
    """K of a filtered `swing` row: the largest L1 norm of S(t) - S(t - lag), lag <= window. 3.76 for 0.1-55 Hz, 5 s."""
    response, dt_s = _step_response(lo_hz, hi_hz)
    lag_max = min(round(window_s / dt_s), len(response) - 1)
    lags = np.unique(np.linspace(1, max(1, lag_max), 200).round().astype(int))
    norms = [_lagged_norm(response, int(lag)) for lag in lags]
    return float(max(norms) * dt_s)


@lru_cache(maxsize=64)
def line_seconds(lo_hz: float, hi_hz: float, span_s: float) -> float:
    """K of an `oscillation` row: worst line of the detrended Hann spectrum of one span, over phase and frequency."""
    span_s = min(span_s, SPAN_PERIODS_MAX / lo_hz)
    dt_s = min(0.005, 0.05 / max(hi_hz, lo_hz)) if hi_hz < 5.0 * lo_hz else 0.005
    dt_s = max(dt_s, span_s / SPAN_POINTS_MAX)
    count = round(span_s / dt_s)
    t_s = np.asarray((np.arange(count) + 0.5) * dt_s, dtype=np.float64)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * t_s / span_s)
    top_hz = min(hi_hz, lo_hz * 16.0, 0.25 / dt_s)
    worst = 0.0
    for line_hz in np.linspace(lo_hz, max(lo_hz, top_hz), LINES):
        for phase in np.arange(PHASES) * np.pi / PHASES:
            wave = np.cos(2.0 * np.pi * line_hz * t_s + phase)
            kernel = np.asarray(2.0 * window * wave / window.sum(), dtype=np.float64)
            worst = max(worst, float(np.abs(np.cumsum(_without_trend(kernel, t_s))).sum() * dt_s))
    return worst


def _step_response(lo_hz: float, hi_hz: float) -> tuple[FloatArray, float]:
    """The zero-phase filter's answer to a unit step in the middle of the record."""
    from scipy import signal  # costs 0.3 s to import; sites without a filtered row never pay it

    rate_hz = max(SAMPLES_PER_S, 3.6 * min(hi_hz, 1000.0))
    side_s = max(20.0 / hi_hz, SETTLE_PERIODS / lo_hz)
    side = min(round(side_s * rate_hz), 200_000)
    step = np.concatenate([np.zeros(side), np.ones(side)])
    if hi_hz >= NYQUIST_SHARE * rate_hz / 2.0:
        sos = signal.butter(FILTER_ORDER, lo_hz, "highpass", fs=rate_hz, output="sos")
    else:
        sos = signal.butter(FILTER_ORDER, [lo_hz, hi_hz], "bandpass", fs=rate_hz, output="sos")
    return np.asarray(signal.sosfiltfilt(sos, step), dtype=np.float64), 1.0 / rate_hz


def _lagged_norm(response: FloatArray, lag: int) -> float:
    inner = np.abs(response[lag:] - response[:-lag]).sum()
    return float(inner + np.abs(response[:lag]).sum() + np.abs(response[-lag:]).sum())


def _without_trend(kernel: FloatArray, t_s: FloatArray) -> FloatArray:
    """Removing the record's trend first is the same as removing it from the kernel: the projection is symmetric."""
    centred = t_s - t_s.mean()
    return np.asarray(kernel - kernel.mean() - centred * (kernel @ centred) / (centred @ centred), dtype=np.float64)
