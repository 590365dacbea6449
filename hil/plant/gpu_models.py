"""The GPU models the plant can simulate: identity as NVML shows it, power-clock curves, actuation dynamics.

Every part of the bench takes its GPUs from here: single GPUs behind the fake NVML (`hil.plant.gpu`) and fleets by the
thousand (`hil.plant.fleet`). Measured points are used where there are any; the rest is stated as an assumption beside
the number. Activity 1 stays just inside the default limit (a GPU settles at 98.5 % of it), so an uncapped GPU loses no
work to it. Nothing here is shared with the controller, which has its own idea of each model in `configs/gpus/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from controller.errors import BadInput
from controller.types import FloatArray, frozen

GIB = 1 << 30
GRID = 256  # points of the inverse of a curve; a clock step is at least 1/130 of the range


@frozen
class Points:
    """Measured: power at activity 1 over SM clocks, ascending to the highest."""

    mhz: tuple[float, ...]
    watts: tuple[float, ...]

    def share(self, f: FloatArray, *, idle_w: float) -> FloatArray:
        shares = (np.array(self.watts) - idle_w) / (self.watts[-1] - idle_w)
        found: FloatArray = np.interp(f, np.array(self.mhz) / self.mhz[-1], shares)
        return found


@frozen
class Shape:
    """Fitted: dynamic power goes as `linear` f + (1 - linear) f ** `exponent` of the clock fraction f."""

    linear: float
    exponent: float
    peak_w: float

    def share(self, f: FloatArray, *, idle_w: float) -> FloatArray:
        found: FloatArray = self.linear * f + (1.0 - self.linear) * f**self.exponent
        return found


@frozen
class GpuModel:
    """One GPU model. `curve`: power at activity 1 over the SM clock.

    `work_exponent`: throughput of compute-bound work over relative clock. `hil.plant.gpu` describes the dynamics.
    """

    key: str
    name: str
    architecture: int  # NVML's number: 5 Volta, 7 Ampere, 9 Hopper, 10 Blackwell
    compute_capability: tuple[int, int]
    pci_device_id: int
    core_count: int
    memory_bytes: int
    memory_clock_mhz: int
    base_clock_mhz: int
    clock_mhz_min: int
    clock_mhz_max: int
    clock_step_mhz: float
    idle_w: float
    limit_w_min: float
    limit_w_max: float
    limit_w_default: float
    curve: Points | Shape
    work_exponent: float
    clock_switch_s: float  # from the call to the new clock
    limit_call_s: float  # how long the power-limit call takes to return; its effect is counted from its beginning
    cut_delay_s: float  # how long power must exceed the limit before the loop cuts
    has_mean_power: bool = True  # field 185 answers and GetPowerUsage is a 1 s mean: not before Ampere, not on GA100
    has_mig: bool = True
    has_power_smoothing: bool = False

    def clocks_mhz(self) -> tuple[int, ...]:
        """Supported SM clocks, ascending. Steps of 7.5 MHz are listed rounded down, as the driver does."""
        count = int((self.clock_mhz_max - self.clock_mhz_min) / self.clock_step_mhz)
        return tuple(int(self.clock_mhz_max - k * self.clock_step_mhz) for k in range(count, -1, -1))

    @property
    def peak_w(self) -> float:
        """Power at full clock and activity 1."""
        return self.curve.watts[-1] if isinstance(self.curve, Points) else self.curve.peak_w

    def power_share(self, clock_frac: FloatArray) -> FloatArray:
        """Dynamic power (above idle) relative to full clock."""
        return self.curve.share(clock_frac, idle_w=self.idle_w)

    def pace(self, clock_frac: FloatArray, *, clock_bound_frac: float = 1.0) -> FloatArray:
        """Speed of work relative to full clock: 1 / (b / x^k + 1 - b), x the relative clock.

        b: share of the work's time, at full clock, that depends on the clock (0: memory-bound).
        """
        return 1.0 / (clock_bound_frac / clock_frac**self.work_exponent + (1.0 - clock_bound_frac))

    def clock_for_share(self, share: float) -> float:
        """The clock fraction at which dynamic power is `share` of its full value."""
        return float(np.interp(share, *_inverse(self)))


@lru_cache(maxsize=32)
def _inverse(kind: GpuModel) -> tuple[FloatArray, FloatArray]:
    """Shares of dynamic power, ascending, and the clock fraction of each."""
    grid = np.linspace(kind.clock_mhz_min / kind.clock_mhz_max, 1.0, GRID)
    return kind.power_share(grid), grid


def model(key: str) -> GpuModel:
    """The model named `key`, upper or lower case; BadInput that lists the known ones."""
    found = MODELS.get(key.lower())
    if found is None:
        raise BadInput(f"model: {key!r}: no such simulated GPU; known: {', '.join(sorted(MODELS))}")
    return found


# Measured on a V100-SXM2-32GB: matmul at 405, 945 and 1380 MHz (clock sweep), 1327 and 1530 MHz (power-limit step).
V100 = GpuModel(
    key="v100",
    name="Tesla V100-SXM2-32GB",
    architecture=5,
    compute_capability=(7, 0),
    pci_device_id=0x1DB510DE,
    core_count=5120,
    memory_bytes=32 * GIB,
    memory_clock_mhz=877,
    base_clock_mhz=1290,
    clock_mhz_min=135,
    clock_mhz_max=1530,
    clock_step_mhz=7.5,
    idle_w=42.0,
    limit_w_min=150.0,
    limit_w_max=300.0,
    limit_w_default=300.0,
    curve=Points(
        (135.0, 405.0, 945.0, 1327.0, 1380.0, 1462.0, 1530.0),
        (48.0, 61.0, 117.0, 197.0, 213.0, 246.0, 277.0),
    ),
    work_exponent=0.97,
    clock_switch_s=0.025,
    limit_call_s=0.050,  # from the step record: power fell before the call returned
    cut_delay_s=0.025,
    has_mean_power=False,
    has_mig=False,
)

# 1005/1110/1200/1305/1410 MHz -> 135/152/179/225/296 W, (P - 55 W) ~ f^3.3, work ~ f^0.98; idle 56 W.
A100 = GpuModel(
    key="a100",
    name="NVIDIA A100-PCIE-40GB",
    architecture=7,
    compute_capability=(8, 0),
    pci_device_id=0x20F110DE,
    core_count=6912,
    memory_bytes=40 * GIB,
    memory_clock_mhz=1215,
    base_clock_mhz=765,
    clock_mhz_min=210,
    clock_mhz_max=1410,
    clock_step_mhz=15.0,
    idle_w=56.0,
    limit_w_min=150.0,
    limit_w_max=300.0,
    limit_w_default=300.0,
    curve=Points(
        (210.0, 705.0, 1005.0, 1110.0, 1200.0, 1305.0, 1410.0),
        (66.0, 92.0, 135.0, 152.0, 179.0, 225.0, 295.0),  # the first two are extrapolated towards idle
    ),
    work_exponent=0.98,
    clock_switch_s=0.045,
    limit_call_s=0.030,
    cut_delay_s=0.030,
    has_mean_power=False,
)

# Idle 70-75 W, 700 W; curve from H200 throughput under power limits (71 % -> 0.79-0.81, 50 % -> 0.61-0.65, MLPerf).
H100 = GpuModel(
    key="h100",
    name="NVIDIA H100 80GB HBM3",
    architecture=9,
    compute_capability=(9, 0),
    pci_device_id=0x233010DE,
    core_count=16896,
    memory_bytes=80 * GIB,
    memory_clock_mhz=2619,
    base_clock_mhz=1590,
    clock_mhz_min=345,
    clock_mhz_max=1980,
    clock_step_mhz=15.0,
    idle_w=72.0,
    limit_w_min=200.0,
    limit_w_max=700.0,
    limit_w_default=700.0,
    curve=Shape(linear=0.6, exponent=3.0, peak_w=688.0),
    work_exponent=0.98,
    clock_switch_s=0.050,
    limit_call_s=0.020,
    cut_delay_s=0.060,
)

H200 = GpuModel(
    key="h200",
    name="NVIDIA H200",
    architecture=9,
    compute_capability=(9, 0),
    pci_device_id=0x233510DE,
    core_count=16896,
    memory_bytes=141 * GIB,
    memory_clock_mhz=3201,
    base_clock_mhz=1590,
    clock_mhz_min=345,
    clock_mhz_max=1980,
    clock_step_mhz=15.0,
    idle_w=75.0,
    limit_w_min=200.0,
    limit_w_max=700.0,
    limit_w_default=700.0,
    curve=Shape(linear=0.6, exponent=3.0, peak_w=688.0),
    work_exponent=0.98,
    clock_switch_s=0.050,
    limit_call_s=0.020,
    cut_delay_s=0.060,
)

# 8 x B200 server: 2.8-10.25 kW at the wall; the exponent is that of the B300's measured points.
B200 = GpuModel(
    key="b200",
    name="NVIDIA B200",
    architecture=10,
    compute_capability=(10, 0),
    pci_device_id=0x290110DE,
    core_count=18944,
    memory_bytes=180 * GIB,
    memory_clock_mhz=3996,
    base_clock_mhz=1665,
    clock_mhz_min=120,
    clock_mhz_max=1965,
    clock_step_mhz=7.5,
    idle_w=140.0,
    limit_w_min=200.0,
    limit_w_max=1000.0,
    limit_w_default=1000.0,
    curve=Shape(linear=0.0, exponent=1.3, peak_w=984.0),
    work_exponent=0.95,
    clock_switch_s=0.060,
    limit_call_s=0.020,
    cut_delay_s=0.100,
    has_power_smoothing=True,
)

# GEMM at 926/1152/1457/1935 MHz: 450/550/700/900 W, work 0.496/0.613/0.770/0.947; idle 183.5 W, 1100 W.
B300 = GpuModel(
    key="b300",
    name="NVIDIA B300 SXM6 AC",
    architecture=10,
    compute_capability=(10, 3),
    pci_device_id=0x318210DE,
    core_count=20480,
    memory_bytes=288 * GIB,
    memory_clock_mhz=3996,
    base_clock_mhz=1665,
    clock_mhz_min=120,
    clock_mhz_max=2032,
    clock_step_mhz=7.5,
    idle_w=183.5,
    limit_w_min=200.0,
    limit_w_max=1100.0,
    limit_w_default=1100.0,
    curve=Points(
        (120.0, 600.0, 926.0, 1152.0, 1457.0, 1935.0, 2032.0),
        (215.0, 330.0, 450.0, 550.0, 700.0, 900.0, 1080.0),  # the first two are extrapolated towards idle
    ),
    work_exponent=0.85,
    clock_switch_s=0.060,
    limit_call_s=0.020,
    cut_delay_s=0.100,
    has_power_smoothing=True,
)

MODELS: Mapping[str, GpuModel] = MappingProxyType({m.key: m for m in (V100, A100, H100, H200, B200, B300)})
