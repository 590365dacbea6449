"""What is taken off the rows of the admissible interval: residual, dip and spent windows, and the slopes left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import slope_bound
from controller.contract import KEPT_FRAC, KEPT_FRAC_HOPELESS, AdmissibleInterval, Interval
from controller.slope_bound import band_seconds, line_seconds, swing_seconds
from controller.types import BandLimit, FloatArray, Limit, LimitId, OscillationLimit, RateLimit, SwingLimit
from tests.contract_kit import HERE, ceiling, floor_row, known, ramp, rate, swing


def test_slopes_carry_shrinks() -> None:
    """R_n loses residual and dip, R_c the residual alone."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_shrink(0.5e6, {LimitId("swing"): 2e6})
    assert interval.slope_down_w_per_s == pytest.approx(2.5e6 / 15.05, rel=1e-4)
    assert interval.contingency_slope_w_per_s == pytest.approx(4.5e6 / 15.05, rel=1e-4)
    assert interval.slope_up_w_per_s == pytest.approx(4.5e6 / 15.05, rel=1e-4)


def test_residual_may_be_given_per_row() -> None:
    """Each row has its own metering, so its own residual."""
    rows: list[Limit] = [swing(5e6, 15.0), ramp(20e6, 60.0)]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_shrink({LimitId("swing"): 1e6}, {})
    assert interval.slope_down_w_per_s == pytest.approx(4e6 / 15.05, rel=1e-4)


def test_an_overspent_row_keeps_a_share() -> None:
    """A residual as large as the row leaves a tenth, and says so; at twice the row half is kept, and never more."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    for residual_w, kept_frac in ((5e6, KEPT_FRAC), (7.5e6, 0.3), (10e6, KEPT_FRAC_HOPELESS), (60e6, 0.5)):
        interval.set_shrink(residual_w, {})
        assert interval.is_overspent
        assert interval.slope_down_w_per_s == pytest.approx(kept_frac * 5e6 / 15.05, rel=1e-6)
    interval.set_shrink(0.0, {})
    assert not interval.is_overspent


def test_only_rows_in_force_are_spent() -> None:
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.set_limits([ramp(9e6, 15.0)], 1.0)
    assert set(interval.spent_down_w()) == set(interval.spent_up_w()) == {LimitId("ramp")}


def test_spent_windows() -> None:
    """Spent is the window's maximum less the present; the contingency line waits it out."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.push(1.0, 47e6)
    assert interval.spent_down_w()[LimitId("swing")] == pytest.approx(3e6)
    assert interval.spent_up_w()[LimitId("swing")] == pytest.approx(0.0)
    r_c = interval.contingency_slope_w_per_s
    assert interval.contingency_excess_w == pytest.approx(3e6 - r_c * 1.0)
    interval.push(11.0, 47e6)
    assert interval.contingency_excess_w == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize("mean_s", [0.5, 1.0, 2.0])
def test_a_rate_row_without_free_change_is_held_at_its_slope(mean_s: float) -> None:
    """`above: 0` is a row like any other: what its mean hides is free, and its slope can go on for ever."""
    row = replace(rate(1e6, 0.0), mean_s=mean_s)
    interval = AdmissibleInterval([row], start_s=0.0, start_w=50e6, tick_s=0.05)
    assert interval.slope_down_w_per_s == pytest.approx(1e6 * mean_s / (mean_s + 0.05), rel=1e-3)
    for k in range(1, 401):
        interval.push(0.05 * k, interval.bounds(0.05 * k).low_w)
    assert 28e6 <= interval.now_w <= 32e6, "twenty seconds at 1 MW/s, and what the mean hides"


def test_slope_constants_match_the_published_filter() -> None:
    """K of the auditor's filter: 1.95 s from 0.1 Hz, 0.039 s for 5-55 Hz, 3.76 s for the peak to peak of 5 s."""
    assert band_seconds(0.1, 20.0) == pytest.approx(1.95, rel=0.005)
    assert band_seconds(5.0, 55.0) == pytest.approx(0.039, rel=0.01)
    assert swing_seconds(0.1, 55.0, 5.0) == pytest.approx(3.76, rel=0.005)
    assert line_seconds(0.1, 20.0, 20.0) > line_seconds(1.0, 20.0, 20.0)


@pytest.mark.parametrize(
    ("lo_hz", "hi_hz", "span_s", "k_s"), [(55.0, 110.0, 5.0, 0.0036909), (1.0, 2.0, 600.0, 0.2026563)]
)
def test_a_long_span_or_a_high_band_costs_no_more_and_is_no_looser(
    monkeypatch: pytest.MonkeyPatch, lo_hz: float, hi_hz: float, span_s: float, k_s: float
) -> None:
    """A row of a signal is worked out in a cycle: `k_s`, at every point of the kernel, took up to a minute."""
    counts: list[int] = []
    monkeypatch.setattr(slope_bound, "_without_trend", _counted(slope_bound._without_trend, counts))
    line_seconds.cache_clear()
    assert k_s * (1.0 - 1e-5) <= line_seconds(lo_hz, hi_hz, span_s) <= 1.01 * k_s
    assert max(counts) <= 8000


def _counted(inner: Callable[..., FloatArray], counts: list[int]) -> Callable[..., FloatArray]:
    def run(kernel: FloatArray, t_s: FloatArray) -> FloatArray:
        counts.append(len(kernel))
        return inner(kernel, t_s)

    return run


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_slope_bound_keeps_filtered_rows(seed: int) -> None:
    """Any path along the interval of band, filtered swing and oscillation rows reads below them after the filter."""
    from scipy import signal

    rows: list[Limit] = [
        BandLimit(LimitId("band"), 3e6, (0.1, 5.0), HERE),
        SwingLimit(LimitId("ercot"), 6e6, 5.0, 0.0, HERE, (0.1, 55.0)),
        OscillationLimit(LimitId("line"), 2.5e6, (0.1, 20.0), 20.0, HERE),
    ]
    interval = AdmissibleInterval(rows, start_s=0.0, start_w=50e6, tick_s=0.05)
    rng = np.random.default_rng(seed)
    dt_s, powers, share = 0.05, [50e6], 1.0
    for _ in range(2400):
        if rng.uniform() < 0.02:
            share = float(rng.integers(0, 2))
        t_s = interval.now_s + dt_s
        found = interval.bounds(t_s)
        interval.push(t_s, found.low_w + share * (found.high_w - found.low_w))
        powers.append(interval.now_w)
    fine = np.interp(np.arange(0, 120, 0.005), np.arange(2401) * dt_s, powers)
    for lo_hz, hi_hz, limit_w, is_span in ((0.1, 5.0, 3e6, False), (0.1, 55.0, 6e6, True)):
        sos = signal.butter(4, [lo_hz, hi_hz], "bandpass", fs=200.0, output="sos")
        filtered = signal.sosfiltfilt(sos, fine)[2000:-2000]
        if is_span:
            windows = np.lib.stride_tricks.sliding_window_view(filtered, 1001)[::50]
            assert (windows.max(axis=1) - windows.min(axis=1)).max() <= limit_w
        else:
            assert np.abs(filtered).max() <= limit_w
    window = signal.get_window("hann", 4000)
    for start in range(0, len(fine) - 4000, 2000):
        part = signal.detrend(fine[start : start + 4000]) * window
        lines = 2.0 * np.abs(np.fft.rfft(part)) / window.sum()
        band = np.fft.rfftfreq(4000, 0.005)
        assert lines[(band >= 0.1) & (band <= 20.0)].max() <= 2.5e6


@pytest.mark.parametrize("row", [rate(0.5e6, 6e6), swing(5e6, 15.0)])
def test_shrinks_reach_bounds_and_projection_alike(row: Limit) -> None:
    """1 MW of residual and, downwards, 2 MW of dip come off what bounds and projection leave of the row."""
    interval = AdmissibleInterval([row], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    interval.push(0.1, 50e6)
    max_w = 6e6 if isinstance(row, RateLimit) else 5e6
    interval.set_shrink(1e6, {row.id: 2e6})
    found = interval.bounds(0.2)
    low, high = interval.project([0.2])
    assert found.low_w == pytest.approx(50e6 - max_w + 3e6, rel=1e-4) == low[0]
    assert found.high_w == pytest.approx(50e6 + max_w - 1e6, rel=1e-4) == high[0]


def test_slopes_of_rate_rows_last_for_ever() -> None:
    """The stated slope can be walked for ten minutes without the interval stopping it, and not much more than it."""
    for sign in (1.0, -1.0):
        interval = AdmissibleInterval([rate(0.5e6, 6e6)], start_s=0.0, start_w=500e6, tick_s=0.5)
        interval._known_since_s = -1e9
        assert interval.slope_down_w_per_s == pytest.approx(0.5e6 * 12.0 / 12.5, rel=1e-4)
        interval.set_shrink(1e6, {})
        slope = interval.slope_up_w_per_s if sign > 0 else interval.slope_down_w_per_s
        assert slope == pytest.approx((0.5e6 * 12.0 - 1e6) / 12.5, rel=1e-4)
        for _ in range(1200):
            wanted_w = interval.now_w + sign * slope * 0.5
            assert interval.bounds(interval.now_s + 0.5).clip(wanted_w) == pytest.approx(wanted_w, abs=1.0)
            interval.push(interval.now_s + 0.5, wanted_w)


def test_a_spent_window_survives_a_change_of_slope() -> None:
    """The contingency line is drawn anew when a shrink changes R_c: 4 MW spent 5 s ago, at the new slope."""
    interval = AdmissibleInterval([swing(5e6, 15.0)], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval._known_since_s = -1e9
    interval.push(0.1, 46e6)
    interval.push(5.0, 46e6)
    interval.set_shrink(2e6, {})
    r_c = interval.contingency_slope_w_per_s
    assert r_c == pytest.approx(3e6 / 15.1, rel=1e-4)
    assert interval.contingency_excess_w == pytest.approx(4e6 - 5.0 * r_c, rel=1e-4)
    assert interval.contingency_excess_up_w == 0.0
    interval.push(5.1, 49e6)
    interval.push(9.0, 49e6)
    interval.set_shrink(0.0, {})
    assert interval.contingency_excess_up_w == pytest.approx(3e6 - 4.0 * 5e6 / 15.1, rel=1e-4)


def test_spent_windows_of_rate_rows() -> None:
    """A 2 MW fall has spent 2 MW of a rate row's flat part downwards and nothing upwards."""
    interval = AdmissibleInterval([rate(0.5e6, 6e6)], start_s=0.0, start_w=50e6, tick_s=0.05)
    interval.push(1.0, 48e6)
    assert interval.spent_down_w()[LimitId("rate")] == pytest.approx(2e6, rel=1e-4)
    assert interval.spent_up_w()[LimitId("rate")] == pytest.approx(0.0, abs=10.0)


def test_projection_knows_the_slope_of_bands() -> None:
    """Ten seconds ahead a band row leaves ten seconds of its slope either way."""
    band = BandLimit(LimitId("band"), 1e6, (0.1, 5.0), HERE)
    interval = AdmissibleInterval([band], start_s=0.0, start_w=50e6, tick_s=0.1)
    low, high = interval.project([10.0])
    reach_w = 10.0 * 1e6 / band_seconds(0.1, 5.0)
    assert interval.band_slope_w_per_s == pytest.approx(reach_w / 10.0, rel=1e-4)
    assert (low[0], high[0]) == (pytest.approx(50e6 - reach_w, rel=1e-4), pytest.approx(50e6 + reach_w, rel=1e-4))


@pytest.mark.parametrize("residual", [0.0, {}])
@pytest.mark.parametrize("row", [swing(100.0, 15.0), rate(10.0, 100.0), ramp(100.0, 15.0)])
def test_a_site_of_a_few_watts_gets_every_watt_of_its_rows(row: Limit, residual: float | dict[LimitId, float]) -> None:
    """Nothing but rounding is taken off where nothing was measured: 100 W are 100 W, at once and as a slope."""
    interval = known([row, ceiling(950.0, -1.0), floor_row(1.0, -1.0)], start_w=1000.0)
    interval.set_shrink(5.0, {})
    interval.set_shrink(residual, {})
    assert (interval.now_w - interval.bounds(0.1).low_w) == pytest.approx(100.0, abs=0.01)
    assert interval.slope_down_w_per_s == pytest.approx(
        100.0 / (15.1 if not isinstance(row, RateLimit) else 10.1), 1e-4
    )
    assert interval.slope_up_w_per_s == interval.slope_down_w_per_s == interval.contingency_slope_w_per_s
    assert interval.due_status()[0].met_at_s == pytest.approx(50.0 / interval.slope_down_w_per_s, rel=1e-4)
    assert interval.spent_down_w()[row.id] == pytest.approx(0.0, abs=0.01)


def test_a_new_interval_takes_nothing_off() -> None:
    """Before any residual is measured the whole allowance counts."""
    interval = AdmissibleInterval([swing(100.0, 10.0)], start_s=-1000.0, start_w=1000.0, tick_s=0.1)
    interval.push(0.0, 1000.0)
    assert interval.bounds(0.1).low_w == pytest.approx(900.0, abs=0.01)


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        (BandLimit(LimitId("f"), 100.0, (0.1, 5.0), HERE), band_seconds(0.1, 5.0)),
        (SwingLimit(LimitId("f"), 100.0, 5.0, 0.0, HERE, (0.1, 55.0)), swing_seconds(0.1, 55.0, 5.0)),
        (OscillationLimit(LimitId("f"), 100.0, (0.1, 20.0), 20.0, HERE), line_seconds(0.1, 20.0, 20.0)),
    ],
)
def test_filtered_rows_bound_the_slope_and_keep_half(row: Limit, seconds: float) -> None:
    """Each kind by its own constant, both ways, now and ahead; a residual takes at most half of it."""
    interval = known([row], start_w=1000.0)
    slope = 100.0 / seconds
    assert interval.band_slope_w_per_s == pytest.approx(slope, rel=1e-4)
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (
        pytest.approx(1000.0 - 0.1 * slope, abs=1e-3),
        pytest.approx(1000.0 + 0.1 * slope, abs=1e-3),
    )
    interval.push(50.0, 1000.0)
    low, high = interval.project([50.5])
    assert (low[0], high[0]) == (pytest.approx(1000.0 - 0.5 * slope, 1e-6), pytest.approx(1000.0 + 0.5 * slope, 1e-6))
    interval.set_shrink(20.0, {})
    assert interval.band_slope_w_per_s == pytest.approx(0.8 * slope, rel=1e-4) and not interval.is_overspent
    interval.set_shrink(70.0, {})
    assert interval.band_slope_w_per_s == pytest.approx(0.5 * slope, rel=1e-4) and interval.is_overspent


def test_a_tenth_of_an_overspent_row_is_kept() -> None:
    """However large the residual, a tenth of a plain row stays; below that nothing is said to be overspent."""
    interval = known([swing(100.0, 10.0)], start_w=1000.0)
    assert not interval.is_overspent
    interval.set_shrink(89.0, {})
    assert interval.bounds(0.1).low_w == pytest.approx(989.0, abs=0.01) and not interval.is_overspent
    interval.set_shrink(95.0, {})
    assert interval.bounds(0.1).low_w == pytest.approx(990.0, abs=0.01) and interval.is_overspent
    assert KEPT_FRAC == 0.1
    interval.set_shrink(0.0, {})
    assert not interval.is_overspent


def test_a_row_that_allows_nothing_holds_and_promises_nothing() -> None:
    """No change allowed: the path holds, a lower ceiling is never met, and nothing of the row was overspent."""
    interval = known([swing(0.0, 10.0), ceiling(40.0, -1.0), floor_row(60.0, -1.0)], start_w=50.0)
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (50.0, 50.0) and not interval.is_overspent
    assert [(d.met_at_s, d.is_bounded) for d in interval.due_status()] == [(math.inf, True), (math.inf, True)]


def test_a_dip_alone_takes_its_share_of_falls() -> None:
    """The contingency dip changes while the residual stays: falls shrink, rises and the contingency slope do not."""
    interval = known([swing(5e6, 15.0)])
    interval.set_shrink(1e6, {})
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    found = interval.bounds(0.1)
    assert (found.low_w, found.high_w) == (pytest.approx(48e6, rel=1e-6), pytest.approx(54e6, rel=1e-6))
    assert interval.contingency_slope_w_per_s == pytest.approx(4e6 / 15.1, rel=1e-4)
    assert interval.contingency_rise_w_per_s == interval.slope_up_w_per_s == pytest.approx(4e6 / 15.1, rel=1e-4)


def test_a_jump_at_one_instant_is_remembered_without_any_row() -> None:
    """No row, no slope: a jump of 12 MW in no time still stands above the present until time passes."""
    interval = AdmissibleInterval([], start_s=0.0, start_w=50e6, tick_s=0.1)
    interval.reanchor(0.0, 38e6)
    assert interval.contingency_excess_w == 12e6 and interval.contingency_excess_up_w == 0.0
    interval.reanchor(0.0, 60e6)
    assert interval.contingency_excess_up_w == 22e6


def test_what_rose_is_spent_upwards_and_comes_back_with_time() -> None:
    """A dip of 4 MW one second ago has used 4 MW of the rise; each second gives R_c of it back."""
    interval = known([swing(5e6, 15.0)])
    interval.push(1.0, 46e6)
    interval.push(2.0, 50e6)
    rise = interval.contingency_rise_w_per_s
    assert interval.contingency_excess_up_w == pytest.approx(4e6 - rise, rel=1e-6)
    interval.push(6.0, 50e6)
    assert interval.contingency_excess_up_w == pytest.approx(4e6 - 5.0 * rise, rel=1e-6)
    interval = known([rate(0.5e6, 6e6)])
    interval.push(1.0, 52e6)
    assert interval.spent_down_w()[LimitId("rate")] == pytest.approx(0.0, abs=10.0)
    assert interval.spent_up_w()[LimitId("rate")] == pytest.approx(2e6, rel=1e-4)


def test_the_same_shrink_again_changes_nothing() -> None:
    """Every tick tells the residual; one that is as it was leaves the interval as it was."""
    interval = known([swing(5e6, 15.0)])
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    before = interval.bounds(0.1)
    interval.set_shrink(1e6, {LimitId("swing"): 2e6})
    assert interval.bounds(0.1) == before == Interval(pytest.approx(48e6), pytest.approx(54e6))


@pytest.mark.parametrize(("residual_w", "kept_w"), [(10.0, 1.0), (10.5, 1.2), (15.0, 3.0), (20.0, 5.0), (40.0, 5.0)])
def test_an_overspent_row_of_ten_watts_keeps_a_share_of_them(residual_w: float, kept_w: float) -> None:
    """A tenth while the residual is no more than the row, and from there to half; of 10 W as of 10 MW."""
    interval = AdmissibleInterval([swing(10.0, 15.0)], start_s=0.0, start_w=50.0, tick_s=0.05)
    interval.set_shrink(residual_w, {})
    assert interval.is_overspent and interval.slope_down_w_per_s == pytest.approx(kept_w / 15.05, rel=1e-6)


def test_a_row_that_allows_nothing_keeps_nothing() -> None:
    """Of no allowance there is no share, whatever the residual."""
    interval = AdmissibleInterval([swing(0.0, 15.0)], start_s=0.0, start_w=50.0, tick_s=0.05)
    interval.set_shrink(5.0, {})
    assert interval.slope_down_w_per_s == interval.slope_up_w_per_s == 0.0
