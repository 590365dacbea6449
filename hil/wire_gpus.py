"""The GPUs of the sampled node behind the fake NVML: each stands for one group of the plant's fleet.

What the node agent writes (clock locks, power limits) moves the group after the dead time of real GPUs; what the group
draws comes back through the sensor model. The settings found before the run are kept, to be compared at its end.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from controller.errors import BadInput
from controller.types import FloatArray
from hil.fake_nvml.state import NS_PER_S, FakeGpus
from hil.plant.fleet import ACTIVE_FRAC, LOWER_DELAY_S, RAISE_DELAY_S
from hil.plant.gpu_models import model
from hil.plant.site import GROUP_0, SitePlant
from hil.sensors import SENSORS, GpuSensorBank

STEP_S = 0.01  # of the sensors
AMBIENT_C, HOT_C = 32.0, 68.0  # idle and at the default limit
UTIL_TAU_S = 0.16  # NVML's utilisation is a mean over about 1/6 s to 1 s
OTHER_TOOL_GPU, OTHER_TOOL_FRAC = 5, 0.97  # one GPU is found with a limit that somebody set on purpose


class WireGpus:
    """State file, sensors and the way into the fleet."""

    def __init__(self, path: Path, plant: SitePlant, *, model_name: str, rng: np.random.Generator, seed: int) -> None:
        self._plant = plant
        groups = plant.fleet.groups
        self.count = len(groups)
        self._stands_for = np.array([g.count for g in groups], dtype=np.float64)
        self._model = model(model_name)
        self.gpus = FakeGpus.create(path, [self._model] * self.count, seed=seed)
        if self.count > OTHER_TOOL_GPU:
            self.gpus.foreign_write(OTHER_TOOL_GPU, limit_w=OTHER_TOOL_FRAC * self._model.limit_w_default)
        self._found = self._settings()
        sensor = SENSORS[self._model.key]
        self._sensors = GpuSensorBank(sensor, self.count, rng=rng, start_w=float(self._truth_w(0.0).mean()))
        self._clock_mhz = np.full(self.count, np.nan)
        self._limit_w = self.gpus.power_limit_w()
        for group, limit_w in enumerate(self._limit_w):
            plant.fleet.limit_power(group, float(limit_w))
        self._energy_j = np.zeros(self.count)
        self._util_frac = np.zeros(self.count)
        self._stepped_s = 0.0

    def step(self, now_s: float, *, machine_ns: int) -> None:
        """Bring orders into the plant and readings out of it; `now_s` is plant time."""
        self._take_orders(now_s)
        dt_s = now_s - self._stepped_s
        if 0.0 < dt_s < STEP_S:
            return
        truth_w = self._truth_w(self._stepped_s)
        self._stepped_s = now_s
        if dt_s > 0.0:  # plant time stands still until the run begins; readings are shown all the same
            self._sensors.step(dt_s, truth_w)
        self._energy_j = self._energy_j + truth_w * dt_s
        idle_w = self._model.idle_w
        share = np.clip((truth_w - idle_w) / (self._model.limit_w_default - idle_w), 0.0, 1.0)
        busy = (share > ACTIVE_FRAC).astype(np.float64)
        self._util_frac = self._util_frac + (busy - self._util_frac) * min(1.0, dt_s / UTIL_TAU_S)
        self.gpus.publish(
            t_mono_ns=machine_ns,
            instant_w=self._sensors.instant_w,
            mean_w=self._sensors.mean_w,
            energy_j=self._energy_j,
            clock_mhz=self._plant.fleet.clock_frac * self._model.clock_mhz_max,
            util_frac=self._util_frac,
            temperature_c=AMBIENT_C + (HOT_C - AMBIENT_C) * share,
            event_reasons=np.zeros(self.count, dtype=np.int64),
            throttle_s=np.zeros(self.count),
        )

    def left_throttled(self) -> tuple[str, ...]:
        """GPUs whose settings are not as they were found, by UUID."""
        now = self._settings()
        return tuple(u for u, found, left in zip(self.gpus.uuids(), self._found, now, strict=True) if found != left)

    def writes(self) -> tuple[int, int]:
        """How often clock locks and power limits were written, all GPUs together."""
        clocks, limits = self.gpus.write_counts()
        return int(clocks.sum()), int(limits.sum())

    def close(self) -> None:
        self.gpus.close()

    def _settings(self) -> list[tuple[float | None, float | None, float]]:
        low, high = self.gpus.clock_lock_mhz()
        limit = self.gpus.power_limit_w()
        return [
            (None if np.isnan(a) else float(a), None if np.isnan(b) else float(b), float(w))
            for a, b, w in zip(low, high, limit, strict=True)
        ]

    def _take_orders(self, now_s: float) -> None:
        fleet, plant = self._plant.fleet, self._plant
        now_ns = round(now_s * NS_PER_S)
        clock_mhz = self.gpus.clock_lock_mhz()[1]
        is_same = (clock_mhz == self._clock_mhz) | (np.isnan(clock_mhz) & np.isnan(self._clock_mhz))
        for group in np.flatnonzero(~is_same):
            locked = float(clock_mhz[group])
            frac = 1.0 if np.isnan(locked) else locked / self._model.clock_mhz_max
            delay_ns = round(fleet.dead_time_s(int(group), frac) * NS_PER_S)
            plant.schedule(now_ns + delay_ns, partial(fleet.steer, int(group), frac))
        limit_w = self.gpus.power_limit_w()
        for group in np.flatnonzero(limit_w != self._limit_w):
            delay_s = LOWER_DELAY_S if limit_w[group] < self._limit_w[group] else RAISE_DELAY_S
            order = partial(fleet.limit_power, int(group), float(limit_w[group]))
            plant.schedule(now_ns + round(delay_s * NS_PER_S), order)
        self._clock_mhz, self._limit_w = clock_mhz, limit_w

    def _truth_w(self, from_s: float) -> FloatArray:
        """Mean power of one GPU of each group since `from_s`."""
        plant, now_s = self._plant, self._plant.now_s
        rows = range(GROUP_0, GROUP_0 + self.count)
        group_w = np.array([plant.mean(row, from_s=from_s, to_s=now_s) for row in rows])
        return group_w / self._stands_for


def check_sample(stands_for: int, plant: SitePlant, *, origin: str) -> None:
    """Node file and fleet must speak of the same GPUs: one group per GPU of the node, as large as its sample."""
    counts = {group.count for group in plant.fleet.groups}
    if counts != {stands_for}:
        raise BadInput(
            f"{origin}: node.sampled.nodes: {stands_for}: the scenario's fleet has groups of"
            f" {', '.join(str(c) for c in sorted(counts))} GPUs, one group for each GPU of the node"
        )
