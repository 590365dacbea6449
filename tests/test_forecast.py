"""Lines: found where they are, to the millihertz, and fed forward without dragging old steps along."""

from __future__ import annotations

import numpy as np
import pytest

from controller.follow import FollowerSettings, SoftwareFollower, Way
from controller.forecast import LineForecast

TICK_S = 0.05


def feed(wave: np.ndarray, *, offset_s: float = 0.013) -> LineForecast:
    """Samples between grid points, as a meter's delay leaves them."""
    forecast = LineForecast(tick_s=TICK_S, amplitude_w_min=0.1e6)
    for index, value in enumerate(wave):
        forecast.add(index * TICK_S + offset_s, float(value))
    return forecast


def sine(frequency_hz: float, seconds: float = 40.0, size_w: float = 2e6) -> np.ndarray:
    t_s = np.arange(0.0, seconds, TICK_S) + 0.013
    return np.asarray(60e6 + size_w * np.sin(2 * np.pi * frequency_hz * t_s))


@pytest.mark.parametrize("frequency_hz", [0.27, 0.7, 1.31, 2.0, 3.77, 4.9])
def test_a_line_is_found_to_the_millihertz(frequency_hz: float) -> None:
    """Frequency within 1 mHz and amplitude within 15 % (a Hann window's scallop), with noise on top."""
    rng = np.random.default_rng(7)
    wave = sine(frequency_hz)
    line = feed(wave + rng.normal(size=len(wave)) * 0.2e6).line
    assert line is not None
    assert line.frequency_hz == pytest.approx(frequency_hz, abs=2e-3)
    assert line.amplitude_w == pytest.approx(2e6, rel=0.17)
    assert line.confidence > 0.8


def test_phase_is_that_of_the_cosine_now() -> None:
    """Amplitude and phase at `t_s` rebuild the wave."""
    line = feed(sine(1.3)).line
    assert line is not None
    expected = 2e6 * np.sin(2 * np.pi * 1.3 * line.t_s)
    assert line.amplitude_w * np.cos(line.phase_rad) == pytest.approx(expected, abs=0.45e6)


def test_noise_and_slow_ramps_have_no_line() -> None:
    """Neither white noise, nor a random walk, nor a ramp is a line."""
    rng = np.random.default_rng(5)
    assert feed(60e6 + rng.normal(size=800) * 0.5e6).line is None
    assert feed(60e6 + np.arange(800) * 0.02e6).line is None
    assert feed(np.full(800, 60e6)).line is None


def test_the_fundamental_is_chosen_over_its_harmonic() -> None:
    """Two pulses per iteration: the second harmonic is larger, the period is still the iteration's."""
    t_s = np.arange(0.0, 40.0, TICK_S) + 0.013
    wave = 60e6 + 0.8e6 * np.sin(2 * np.pi * 0.8 * t_s) + 2e6 * np.sin(2 * np.pi * 1.6 * t_s)
    line = feed(wave).line
    assert line is not None
    assert line.frequency_hz == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("frequency_hz", [0.7, 1.7, 3.1])
def test_ripple_is_forecast_ahead(frequency_hz: float) -> None:
    """0.2 s beyond the newest sample the forecast is within 6 % of the wave."""
    forecast = feed(sine(frequency_hz))
    end_s = 799 * TICK_S + 0.013
    for ahead_s in (0.0, 0.1, 0.2):
        truth = 2e6 * np.sin(2 * np.pi * frequency_hz * (end_s + ahead_s))
        assert forecast.ripple_w(end_s + ahead_s) == pytest.approx(truth, abs=0.12e6)


def test_an_old_step_does_not_come_back_a_period_later() -> None:
    """One 30 MW drop two periods ago: the median of three periods leaves the forecast at the ripple's size."""
    wave = sine(1.0)
    wave[-50:] -= 30e6
    forecast = feed(wave)
    end_s = 799 * TICK_S
    assert all(abs(forecast.ripple_w(end_s + lead)) < 3e6 for lead in np.arange(0.0, 0.5, 0.05))


def test_a_gap_starts_afresh() -> None:
    """After two seconds without samples nothing old is used."""
    forecast = feed(sine(1.0))
    assert forecast.line is not None
    forecast.add(50.0, 60e6)
    assert forecast.line is None
    assert forecast.ripple_w(50.1) == 0.0


def follow(load_w: np.ndarray, *, step: int = 10, delay: int = 6, lag_s: float = 0.06) -> tuple[np.ndarray, list[Way]]:
    """Load at 200 Hz through a follower at 20 Hz, meter 30 ms late, battery lag 60 ms: what stays on the meter."""
    dt_s = 0.005
    forecast = LineForecast(tick_s=step * dt_s, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(
        FollowerSettings(step * dt_s, delay * dt_s, 0.06), forecast=forecast, ripple_w_min=0.2e6
    )
    gain = 1.0 - np.exp(-dt_s / lag_s)
    power = command = float(load_w[0])
    left, ways = np.empty(len(load_w)), []
    for index, value in enumerate(load_w):
        if index % step == 0:
            then = max(0, index - delay)
            sample_s = (index - delay) * dt_s
            command = follower.step(index * dt_s, sample_s=sample_s, load_w=float(load_w[then]), is_fresh=True)
            ways.append(follower.way)
        power += gain * (command - power)
        left[index] = value - power
    return left, ways


def wave_w(frequency_hz: float, seconds: float, *, size_w: float = 1.8e6) -> np.ndarray:
    t_s = np.arange(0.0, seconds, 0.005)
    return np.asarray(60e6 + size_w * np.sin(2 * np.pi * frequency_hz * t_s))


@pytest.mark.parametrize("frequency_hz", [1.0, 2.0, 3.3])
def test_forward_feeding_removes_a_line_that_following_would_amplify(frequency_hz: float) -> None:
    """A 3.6 MW ripple: plain following leaves 66 to 140 % of it, feeding forward less than a third."""
    left, ways = follow(wave_w(frequency_hz, 60.0))
    assert np.ptp(left[-4000:]) < 1.1e6
    assert ways[-1] in (Way.FORWARD, Way.FORWARD_SLOW)


def test_what_would_be_amplified_and_cannot_be_forecast_is_left_alone() -> None:
    """Narrow-band noise around 4 Hz: plain following would leave 1.4 times as much as there is, ours 1.15 at most."""
    rng = np.random.default_rng(8)
    t_s = np.arange(0.0, 90.0, 0.005)
    phase = np.cumsum(2 * np.pi * (4.0 + 1.2 * np.repeat(rng.normal(size=len(t_s) // 60 + 1), 60)[: len(t_s)]) * 0.005)
    load_w = 60e6 + 2e6 * np.sin(phase)
    left, _ = follow(load_w)
    assert left[-8000:].std() < 1.15 * load_w[-8000:].std()


def test_a_slope_is_followed_without_lag() -> None:
    """10 MW/s for two seconds, as a trace's edges: less than 0.35 MW stays, a plain follower leaves 1.1."""
    t_s = np.arange(0.0, 20.0, 0.005)
    load_w = 60e6 + np.clip(t_s - 10.0, 0.0, 2.0) * 10e6
    left, _ = follow(load_w)
    middle = (t_s > 11.0) & (t_s < 12.0)
    assert np.abs(left[middle]).max() < 0.35e6


def test_one_spike_is_not_extrapolated() -> None:
    """A single sample 20 MW up moves the command by 20 MW, never by more: two slopes must agree before one counts."""
    forecast = LineForecast(tick_s=0.05, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.05, 0.03, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    found = []
    for index in range(200):
        load_w = 80e6 if index == 100 else 60e6
        found.append(follower.step(index * 0.05, sample_s=index * 0.05 - 0.03, load_w=load_w, is_fresh=True))
    assert max(found) <= 80e6
    assert min(found) >= 60e6 - 1.0


@pytest.mark.parametrize("ripple_w", [1e3, 2e6])
def test_a_way_is_not_chosen_by_what_is_nobodys_business(ripple_w: float) -> None:
    """Noise of a kilowatt or of 2 MW: both are answered better by a mean, and only one matters."""
    forecast = LineForecast(tick_s=0.05, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.05, 0.03, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    rng = np.random.default_rng(1)
    for k in range(400):
        load_w = 60e6 + ripple_w * float(rng.normal())
        follower.step(k * 0.05, sample_s=k * 0.05 - 0.03, load_w=load_w, is_fresh=True)
    assert (follower.way is Way.LEAD) == (ripple_w < 0.2e6)


@pytest.mark.parametrize("true_lag_s", [0.03, 0.06, 0.12])
def test_a_drop_is_answered_at_once_whatever_the_ripple(true_lag_s: float) -> None:
    """A line, then a 32 MW drop: on 1 s means no more than the drop's share of dead time and lag is left."""
    load_w = wave_w(1.7, 60.0)
    load_w[9001:] = 28e6
    left, _ = follow(load_w, lag_s=true_lag_s)
    sums = np.concatenate([[0.0], np.cumsum(left)])
    mean = (sums[200:] - sums[:-200]) / 200
    dead_s = 0.03 + 0.05 + true_lag_s
    assert np.abs(mean[8500:]).max() < 34e6 * dead_s * 1.15
    assert np.abs(mean[-200:]).max() < 0.1e6


def test_how_a_drop_begins_is_not_learnt_as_ripple() -> None:
    """Nodes show 15 MW leave in four samples. Known as ripple by the third, 8 MW of it were left (12 of 5 MW)."""
    forecast = LineForecast(tick_s=0.1, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.1, 0.15, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    before = [(0.1 * k, 67e6 + 1.2e6 * float(np.sin(2.5 * k))) for k in range(300)]
    drop = [(30.1, 64.1e6), (30.3, 58.6e6), (30.4, 56.1e6), (30.6, 52.4e6)]
    for t_s, load_w in before + drop:
        follower.step(t_s, sample_s=t_s - 0.15, load_w=load_w, is_fresh=True)
        assert follower.ripple_w < 3e6
    assert follower.ripple_w > 1.1e6, "what was known of it stays known"


def test_stale_samples_repeat_the_command() -> None:
    """Without new samples nothing is learned and the command stays where it is."""
    forecast = LineForecast(tick_s=0.05, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.05, 0.03, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    first = follower.step(0.0, sample_s=-0.03, load_w=60e6, is_fresh=True)
    again = [follower.step(0.05 * k, sample_s=-0.03, load_w=60e6, is_fresh=False) for k in range(1, 10)]
    assert again == [first] * 9


def test_a_load_that_was_not_true_leaves_no_slope_behind() -> None:
    """It seemed to fall at 24 MW a second, and did not: what is answered next is the load as it is now known."""
    forecast = LineForecast(tick_s=0.05, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.05, 0.6, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    for k in range(20):
        follower.step(k * 0.05, sample_s=k * 0.05 - 0.6, load_w=63e6 - 1.2e6 * k, is_fresh=True)
    assert abs(follower.step(1.0, sample_s=0.35, load_w=59e6, is_fresh=False) - 59e6) > 5e6
    follower.restart()
    assert follower.step(1.05, sample_s=0.35, load_w=59e6, is_fresh=False) == pytest.approx(59e6)


def test_no_slope_is_extrapolated_for_longer_than_a_second() -> None:
    forecast = LineForecast(tick_s=0.05, amplitude_w_min=0.2e6)
    follower = SoftwareFollower(FollowerSettings(0.05, 4.5, 0.06), forecast=forecast, ripple_w_min=0.2e6)
    for k in range(20):
        found_w = follower.step(k * 0.05, sample_s=k * 0.05 - 4.5, load_w=60e6 + 0.1e6 * k, is_fresh=True)
    assert found_w - (60e6 + 1.9e6) < 2e6
