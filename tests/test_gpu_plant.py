"""The simulated GPUs against measured ones: power-clock curves, limits, bursts, and the sensor that looks at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import BadInput
from controller.types import FloatArray
from hil.plant.gpu import REASON_POWER_CAP, GpuBank
from hil.plant.gpu_models import MODELS, V100, model
from hil.sensors import SENSORS, GpuSensorBank, SensorFault, SensorModel

NONE = np.array([np.nan])


def settled(bank: GpuBank, *, seconds: float = 3.0, activity: float = 1.0, dt_s: float = 0.01) -> float:
    """Mean power of the second half of a run."""
    powers = [bank.step(dt_s, np.full(bank.count, activity))[0] for _ in range(round(seconds / dt_s))]
    return float(np.mean(powers[len(powers) // 2 :]))


def pace_of(bank: GpuBank) -> float:
    """Speed of compute-bound work at the present clock."""
    return float(bank.model.pace(bank.clock_mhz / bank.model.clock_mhz_max)[0])


def locked(key: str, clock_mhz: float) -> tuple[float, float]:
    """Power and work rate under a clock lock."""
    bank = GpuBank(key, 1)
    bank.set_clock_lock(np.array([0.0]), np.array([clock_mhz]))
    return settled(bank), pace_of(bank)


def limited(key: str, limit_w: float) -> tuple[float, float]:
    """Power and work rate under a power limit."""
    bank = GpuBank(key, 1)
    bank.set_power_limit(np.array([limit_w]))
    return settled(bank), pace_of(bank)


# ------------------------------------------------------------------------------------------------- measured curves


@pytest.mark.parametrize(
    ("key", "clock_mhz", "power_w"),
    [("a100", c, p) for c, p in [(1005, 135), (1110, 152), (1200, 179), (1305, 225), (1410, 296)]]
    + [("b300", c, p) for c, p in [(926, 450), (1152, 550), (1457, 700), (1935, 900)]],
)
def test_power_over_clock_is_the_measured_one(key: str, clock_mhz: float, power_w: float) -> None:
    assert locked(key, clock_mhz)[0] == pytest.approx(power_w, rel=0.02)


@pytest.mark.parametrize(
    ("key", "limit_w", "work"),
    [("a100", 300 * f, w) for f, w in [(0.5, 0.766), (0.58, 0.831), (0.67, 0.887), (0.75, 0.922), (0.83, 0.952)]]
    + [("b300", p, w) for p, w in [(900, 0.947), (700, 0.770), (550, 0.613), (450, 0.496)]]
    + [("h200", 0.71 * 700, 0.80), ("h200", 0.50 * 700, 0.63)],
)
def test_work_under_a_power_limit_is_the_measured_one(key: str, limit_w: float, work: float) -> None:
    power_w, rate = limited(key, limit_w)
    assert rate == pytest.approx(work, abs=0.035)
    assert 0.97 * limit_w <= power_w <= 0.996 * limit_w, "a cap holds steady draw just below itself"


def test_v100_matmul_matches_the_clock_sweep(traces: Path) -> None:
    rows = np.genfromtxt(traces / "v100_power_clock_sweep.csv", delimiter=",", skip_header=1, names=True, dtype=None)
    seen = [r for r in rows if r["workload"] == "matmul_compute_bound" and r["pcap_w"] == 300]
    assert len(seen) == 3
    fastest = max(r["iters_per_s"] for r in seen)
    top_rate = locked("v100", 1380)[1]
    for row in seen:
        power_w, rate = locked("v100", float(row["sm_mean_mhz"]))
        assert power_w == pytest.approx(row["power_mean_w"], rel=0.06)
        if row["sm_mean_mhz"] > 900:  # at 405 MHz the memory clock falls too, which the plant does not model
            assert rate / top_rate == pytest.approx(row["iters_per_s"] / fastest, rel=0.03)


def test_an_uncapped_gpu_loses_no_work() -> None:
    for key in MODELS:
        bank = GpuBank(key, 1)
        settled(bank)
        assert pace_of(bank) == 1.0, key
        assert bank.event_reasons[0] == 0, key


def test_memory_bound_work_ignores_the_clock_and_compute_bound_does_not() -> None:
    half = np.array([0.5])
    assert model("a100").pace(half, clock_bound_frac=0.0)[0] == 1.0
    assert model("a100").pace(half)[0] == pytest.approx(0.5**0.98)


# ------------------------------------------------------------------------------------------------------- dynamics


def crossings(t: FloatArray, p: FloatArray, *, start_s: float) -> list[float]:
    """Times after `start_s` at which 20 % and 80 % of the way between the settled 197 and 275 W are passed."""
    low_w, high_w = 197.0, 275.0
    near = (t > start_s - 0.1) & (t < start_s + 0.8)
    t, p = t[near] - start_s, p[near]
    is_up = p[-1] > p[0]
    found = []
    for share in (0.2, 0.8):
        level = low_w + (high_w - low_w) * (share if is_up else 1.0 - share)
        passed = (p[:-1] < level) & (p[1:] >= level) if is_up else (p[:-1] > level) & (p[1:] <= level)
        k = int(np.flatnonzero(passed)[0])
        found.append(float(t[k] + (level - p[k]) / (p[k + 1] - p[k]) * (t[k + 1] - t[k])))
    return found


def simulated_step(phase_s: float) -> tuple[FloatArray, FloatArray]:
    """Sensor samples while limits of 280, 200 and 280 W are set by calls that return at 2 and 4 s."""
    dt_s, bank = 0.001, GpuBank(V100, 1)
    sensor = GpuSensorBank(SENSORS["v100"], 1, rng=np.random.default_rng(0), phase_s=np.array([phase_s]))
    samples: dict[float, float] = {}
    for k in range(5600):
        is_low = 2.0 <= k * dt_s + V100.limit_call_s < 4.0  # a call takes effect at its beginning
        bank.set_power_limit(np.array([200.0 if is_low else 280.0]))
        sensor.step(dt_s, bank.step(dt_s, np.ones(1)))
        samples[sensor.sample_t_s[0]] = sensor.instant_w[0]
    return np.array([*samples]), np.array([*samples.values()])


def test_v100_power_limit_step_matches_the_record(traces: Path) -> None:
    """20 % and 80 % times of both steps, counted from the call's return, within 20 % of the measured ones."""
    record = np.genfromtxt(
        traces / "v100_power_limit_step_280_200_280_nvml_5ms.csv", delimiter=",", skip_header=2, usecols=(0, 1)
    )
    fresh = np.concatenate([[0], np.flatnonzero(np.diff(record[:, 1])) + 1])  # polled faster than it updates
    t, p = record[fresh, 0], record[fresh, 1]
    measured = [*crossings(t, p, start_s=10.0), *crossings(t, p, start_s=20.0)]
    runs = [simulated_step(phase) for phase in np.arange(0.0, 0.020, 0.004)]  # the sensor's phase is not known
    simulated = np.mean([[*crossings(*r, start_s=2.0), *crossings(*r, start_s=4.0)] for r in runs], axis=0)
    assert simulated == pytest.approx(measured, rel=0.20)


def test_a_clock_lock_takes_effect_after_the_switching_time_and_bounds_peaks() -> None:
    bank = GpuBank("h100", 2)
    settled(bank, seconds=0.5)
    bank.set_clock_lock(np.array([210.0, np.nan]), np.array([1200.0, np.nan]))
    bank.step(0.01, np.ones(2))
    assert bank.clock_mhz[0] == 1980.0, "not yet"
    powers = np.array([bank.step(0.01, np.full(2, (k // 50) % 2)) for k in range(300)])
    steady_w = bank.demand_w(np.full(2, 1200.0), np.ones(2))[0]
    assert bank.clock_mhz.tolist() == [1200.0, 1980.0]
    assert powers[30:, 0].max() <= steady_w + 1e-6, "no burst passes a clock lock"
    assert np.isnan(bank.clock_lock_mhz[1])


def test_a_power_limit_lets_bursts_through_and_holds_the_steady_part() -> None:
    """Iterations of 1 s under a 64 % limit: peaks between 105 and 143 % of it, as measured on B300."""
    bank = GpuBank("b300", 1)
    bank.set_power_limit(np.array([700.0]))
    powers = np.array([bank.step(0.005, np.array([0.2 if k % 200 > 120 else 1.0]))[0] for k in range(2000)])[400:]
    assert 1.05 <= powers.max() / 700.0 <= 1.43
    assert powers.mean() < 700.0
    steady = GpuBank("b300", 1)
    steady.set_power_limit(np.array([700.0]))
    assert settled(steady) <= 700.0
    assert steady.event_reasons[0] == REASON_POWER_CAP and steady.throttle_s[0] > 1.0


def test_smoothing_holds_a_floor_and_bounds_slopes_while_busy() -> None:
    bank = GpuBank("b200", 1)
    bank.set_smoothing(np.array([500.0]), np.array([1000.0]), np.array([400.0]), np.array([0.0]))
    up = [bank.step(0.01, np.ones(1))[0] for _ in range(200)]
    assert max(np.diff(up)) <= 1000.0 * 0.01 + 1e-6
    down = [bank.step(0.01, np.array([0.1]))[0] for _ in range(300)]
    assert min(np.diff(down)) >= -400.0 * 0.01 - 1e-6 and down[-1] == pytest.approx(500.0)


@given(
    activity=st.floats(0.0, 1.2),
    clock_mhz=st.floats(300.0, 1980.0),
    lower_mhz=st.floats(0.0, 200.0),
    limit_w=st.floats(200.0, 700.0),
)
def test_a_lower_lock_never_draws_more(activity: float, clock_mhz: float, lower_mhz: float, limit_w: float) -> None:
    bank = GpuBank("h100", 2)
    high = np.array([clock_mhz, clock_mhz - lower_mhz])
    bank.set_clock_lock(np.full(2, 210.0), high)
    bank.set_power_limit(np.full(2, limit_w))
    energy_j = np.zeros(2)
    for _ in range(100):
        power_w = bank.step(0.02, np.full(2, activity))
        energy_j += power_w * 0.02
        assert (power_w >= bank.model.idle_w - 1e-9).all()
    assert power_w[1] <= power_w[0] + 1e-6
    assert bank.energy_j == pytest.approx(energy_j)


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"'h900': no such simulated GPU; known: a100"):
        model("h900")


# --------------------------------------------------------------------------------------------------------- sensors


def follow_meter(meter: FloatArray, sensor: SensorModel, *, phase_s: float) -> tuple[FloatArray, FloatArray]:
    bank = GpuSensorBank(sensor, 1, rng=np.random.default_rng(0), phase_s=np.array([phase_s]), start_w=meter[0, 1])
    out = np.empty(len(meter) - 1)
    for k in range(len(meter) - 1):
        bank.step(meter[k + 1, 0] - meter[k, 0], meter[k : k + 1, 1])
        out[k] = bank.instant_w[0]
    return meter[1:, 0], out


def test_a100_sensor_reads_what_nvml_read_of_the_metered_truth(traces: Path) -> None:
    """The external meter's record through the sensor model, against NVML's own record of the same seconds."""
    nvml = np.genfromtxt(traces / "a100_step6s_nvml_13ms.csv", delimiter=",", skip_header=2, usecols=(0, 1))
    meter = np.genfromtxt(traces / "a100_step6s_pmd_1khz.csv", delimiter=",", skip_header=2)
    inside = (nvml[:, 0] > 0.1) & (nvml[:, 0] < 13.9)

    def error_w(sensor: SensorModel) -> FloatArray:
        t, seen = follow_meter(meter, sensor, phase_s=0.0)  # NVML's updates fall on tenths of a second in this record
        error: FloatArray = np.abs(np.interp(nvml[inside, 0], t, seen) - nvml[inside, 1])
        return error

    error = error_w(SENSORS["a100"])
    assert np.median(error) < 0.6 and error.mean() < 1.5
    ideal = error_w(SensorModel(period_s=0.1, window_s=0.025, mean_s=1.0, gain=1.0))
    assert np.median(ideal) > 4.0, "without the gain error this test would not tell"


def test_a_sparse_window_scatters_on_a_fast_square_wave_while_its_mean_is_right() -> None:
    sensor = SensorModel(period_s=0.1003, window_s=0.005, mean_s=1.0, gain=1.0)
    bank = GpuSensorBank(sensor, 1, rng=np.random.default_rng(0), phase_s=np.zeros(1))
    seen, means = [], []
    for k in range(20_000):
        bank.step(0.001, np.array([200.0 if k % 20 < 10 else 60.0]))
        if k % 100 == 99 and k > 2000:
            seen.append(bank.instant_w[0])
            means.append(bank.mean_w[0])
    assert max(seen) - min(seen) > 100.0
    assert np.mean(seen) == pytest.approx(130.0, rel=0.05)
    assert max(abs(np.array(means) - 130.0)) < 2.0


def test_the_mean_reading_rises_over_a_second_after_a_step() -> None:
    bank = GpuSensorBank(SENSORS["h100"], 1, rng=np.random.default_rng(0), phase_s=np.zeros(1), start_w=70.0)
    for _ in range(50):
        bank.step(0.01, np.array([700.0]))
    assert bank.instant_w[0] == pytest.approx(700.0)
    assert bank.mean_w[0] == pytest.approx(70.0 + 0.5 * 630.0, rel=0.02)
    for _ in range(60):
        bank.step(0.01, np.array([700.0]))
    assert bank.mean_w[0] == pytest.approx(700.0)


def test_sensor_faults() -> None:
    bank = GpuSensorBank(SENSORS["h100"], 3, rng=np.random.default_rng(0), phase_s=np.zeros(3), start_w=100.0)
    bank.set_fault(0, SensorFault.STUCK)
    bank.set_fault(1, SensorFault.NAN)
    for _ in range(20):
        bank.step(0.01, np.full(3, 500.0))
    assert bank.instant_w[0] == 100.0 and np.isnan(bank.instant_w[1]) and bank.instant_w[2] == pytest.approx(500.0)
    bank.set_fault(2, SensorFault.SPIKE)
    spikes = []
    for _ in range(30):
        bank.step(0.01, np.full(3, 500.0))
        spikes.append(bank.instant_w[2])
    assert max(spikes) == pytest.approx(5000.0) and spikes[-1] == pytest.approx(500.0)
