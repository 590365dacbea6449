"""Ties simulated GPUs to the fake NVML state: caps in, a step of plant and sensors, readings out."""

from __future__ import annotations

import numpy as np

from controller.types import FloatArray
from hil.fake_nvml.state import NS_PER_S, FakeGpus
from hil.plant.gpu import GpuBank
from hil.sensors import SENSORS, GpuSensorBank

UTIL_TAU_S = 0.16  # NVML's utilisation is a mean over about 1/6 s to 1 s


class GpuPlantLink:
    """One node's plant behind the fake library. `bank` and `sensors` are open to the bench (faults, work)."""

    def __init__(self, gpus: FakeGpus, bank: GpuBank, *, rng: np.random.Generator) -> None:
        assert gpus.count == bank.count
        self.gpus = gpus
        self.bank = bank
        self.sensors = GpuSensorBank(SENSORS[bank.model.key], bank.count, rng=rng, start_w=bank.model.idle_w)
        self._util_frac = np.zeros(bank.count)
        self._was_smoothing = False

    def step(self, t_s: float, dt_s: float, activity: FloatArray) -> FloatArray:
        """Advance to monotonic time `t_s`, the end of a step of `dt_s`; the true mean power of the step, W, (n,).

        A GPU that is lost or absent goes on drawing its idle power.
        """
        gpus, bank = self.gpus, self.bank
        bank.set_clock_lock(*gpus.clock_lock_mhz())
        bank.set_power_limit(gpus.power_limit_w())
        is_smoothing = bool(gpus.gpus["smoothing_is_enabled"].any())
        if is_smoothing or self._was_smoothing:
            bank.set_smoothing(*gpus.smoothing())
        self._was_smoothing = is_smoothing
        gone = (gpus.gpus["is_lost"] != 0) | (gpus.gpus["is_absent"] != 0)
        power_w = bank.step(dt_s, np.where(gone, 0.0, activity))
        self.sensors.step(dt_s, power_w)
        self._util_frac += (np.minimum(bank.activity, 1.0) - self._util_frac) * min(1.0, dt_s / UTIL_TAU_S)
        gpus.publish(
            t_mono_ns=int(t_s * NS_PER_S),
            instant_w=self.sensors.instant_w,
            mean_w=self.sensors.mean_w,
            energy_j=bank.energy_j,
            clock_mhz=bank.clock_mhz,
            util_frac=self._util_frac,
            temperature_c=bank.temperature_c,
            event_reasons=bank.event_reasons,
            throttle_s=bank.throttle_s,
        )
        return power_w
