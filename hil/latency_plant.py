"""The plant of the latency bench: V100s behind the fake NVML, a 60 ms battery and a meter behind Modbus, in real time.

It moves in small steps up to the machine's clock whenever it is looked at, keeps its own truth, and notes when the
battery's set-point register was written. Nothing here knows what is being measured.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import numpy as np

from controller.types import FloatArray
from hil.fake_nvml.plant_link import GpuPlantLink
from hil.fake_nvml.state import FakeGpus
from hil.modbus_battery import SunSpecBatteryDevice
from hil.modbus_battery_map import BatteryNameplate
from hil.modbus_meter import sunspec_meter
from hil.modbus_server import RegisterMap
from hil.plant.battery import Battery, BatteryParams, Reversion
from hil.plant.gpu import GpuBank

MODEL = "v100"  # its step response is measured
GPUS = 8
STANDS_FOR = 4_000  # nodes: 32,000 GPUs, 8.9 MW of them
OTHER_W = 1.2e6
BATTERY_W = 8.0e6
BATTERY_J = 4.0 * 3.6e9
LAG_S = 0.060
STEP_S = 0.002
KEPT_S = 20.0
REST_LOAD_FRAC = 0.85
REST_FRAC = 0.25  # of the battery's power: the controller corrects its state of charge with less
CLOCK_REST_S = 1.05  # clocks change at most once a second; a trial inside it would be answered by power limits alone
METER_NOISE_FRAC = 1e-4  # no load is the same twice; a meter that says so is taken for stuck
STALL_S = 0.5  # after a longer stall the plant goes on from now
LINE_TO_NEUTRAL_V = 7_967.0


class LatencyPlant:
    """Everything behind the meter. `has_battery` False leaves the site to its caps."""

    def __init__(self, state: Path, *, has_battery: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.gpus = FakeGpus.create(state, [MODEL] * GPUS, seed=seed)
        self._link = GpuPlantLink(self.gpus, GpuBank(MODEL, GPUS, rng=rng, clock_jitter_frac=0.1), rng=rng)
        self._activity = np.ones(GPUS)
        self.battery = Battery(battery_params())
        self._has_battery = has_battery
        self._t_s = time.monotonic()
        self._truth: deque[tuple[float, float, float]] = deque(maxlen=round(KEPT_S / STEP_S))
        self.pcc_w = self.load_w = OTHER_W
        self.setpoint_ns: list[int] = []
        self.lock_ns: set[int] = set()  # the library keeps only the last write of each GPU
        nameplate = BatteryNameplate(BATTERY_W, BATTERY_W, BATTERY_J / 3600.0, 0.05, 0.95)
        self.device = SunSpecBatteryDevice(self.battery, nameplate)
        self.meter = sunspec_meter(_Meter(self, rng), nominal_voltage_v=LINE_TO_NEUTRAL_V)

    def advance(self) -> None:
        """Every step up to now."""
        now_s = time.monotonic()
        self.lock_ns.update(self.gpus.gpus["clock_write_ns"].tolist())
        if now_s - self._t_s > STALL_S:
            self._t_s = now_s - STEP_S
        while self._t_s + STEP_S <= now_s:
            self._t_s += STEP_S
            power_w = self._link.step(self._t_s, STEP_S, self._activity)
            self.load_w = OTHER_W + STANDS_FOR * float(power_w.sum())
            if self._has_battery:
                self.device.tick(self._t_s)
                self.battery.advance(np.array([self.load_w]), dt_s=STEP_S, pcc_w_before=self.pcc_w)
            self.pcc_w = self.load_w - (self.battery.power_w if self._has_battery else 0.0)
            self._truth.append((self._t_s, self.pcc_w, self.load_w))

    def truth(self, from_s: float) -> tuple[FloatArray, FloatArray]:
        """Times (ends of steps) and power at the point of common coupling since `from_s`."""
        found = np.array([row for row in self._truth if row[0] >= from_s])
        return (found[:, 0], found[:, 1]) if found.size else (np.empty(0), np.empty(0))

    def busy_with(self) -> str:
        """What keeps the site from its natural load; empty when caps hardly bind and the battery is near rest."""
        if time.monotonic_ns() - max(self.lock_ns, default=0) < CLOCK_REST_S * 1e9:
            return "a clock written a moment ago: it may not change again yet"
        natural_w = OTHER_W + STANDS_FOR * GPUS * self._link.bank.model.peak_w
        if self.load_w < REST_LOAD_FRAC * natural_w:  # a site without a battery keeps light caps of its own
            return f"load at {self.load_w:.0f} W"
        rests = abs(self.battery.power_w) < REST_FRAC * BATTERY_W
        return "" if rests else f"battery at {self.battery.power_w:.0f} W"

    def registers(self) -> RegisterMap:
        """The battery's registers, with a note of every write that moved the set-point."""
        return _Noted(self)

    def close(self) -> None:
        self.gpus.close()


def battery_params() -> BatteryParams:
    """A battery of 60 ms: 8 MW, 4 MWh, half full."""
    return BatteryParams(
        charge_w_max=BATTERY_W,
        discharge_w_max=BATTERY_W,
        energy_j=BATTERY_J,
        soc_frac_start=0.5,
        soc_frac_min=0.05,
        soc_frac_max=0.95,
        eta=0.96,
        lag_s=LAG_S,
        follow_lag_s=0.023,
        slope_w_per_s_max=50.0 * BATTERY_W,
        deadband_w=0.0,
        taper_soc_frac=0.05,
        standby_w=0.0,
        follow_reversion=Reversion.FREEZE,
        reversion_w_per_s=BATTERY_W,
    )


class _Meter:
    """The meter's view: the newest step, no delay of its own."""

    import_wh: float | None = 0.0
    export_wh: float | None = 0.0
    frequency_hz: float | None = 60.0
    voltage_pu: float | None = 1.0

    def __init__(self, plant: LatencyPlant, rng: np.random.Generator) -> None:
        self._plant, self._rng = plant, rng

    @property
    def power_w(self) -> float:
        self._plant.advance()
        return self._plant.pcc_w * (1.0 + METER_NOISE_FRAC * float(self._rng.standard_normal()))


class _Noted:
    """A RegisterMap in front of the battery's."""

    def __init__(self, plant: LatencyPlant) -> None:
        self._plant, self._device = plant, plant.device

    def read_registers(self, function: int, address: int, count: int) -> bytes:
        self._plant.advance()
        return self._device.read_registers(function, address, count)

    def read_bits(self, function: int, address: int, count: int) -> list[bool]:
        return list(self._device.read_bits(function, address, count))

    def write_registers(self, address: int, data: bytes) -> None:
        self._plant.advance()
        before_w = self._device.register("704.WSet")
        self._device.write_registers(address, data)
        if self._device.register("704.WSet") != before_w:
            self._plant.setpoint_ns.append(time.monotonic_ns())
