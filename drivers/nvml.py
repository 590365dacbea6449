"""GPUs over NVML, as a node agent drives them: one worker per GPU, a deadline on every call, keyed by UUID.

NVML cannot say which clocks are locked. `clock_cap_mhz` is therefore what the driver last accepted from us, for as long
as the measured clock agrees with it; a clock above the lock, a counter that restarted or a GPU that was lost withdraws
it, and the agent applies its cap again. For the same reason `originals()` knows of no earlier lock: what is given back
is "no lock", unless the agent's own saved state says otherwise.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from controller.ports import Clock, DriverError
from controller.types import (
    GpuCap,
    GpuId,
    GpuOriginals,
    GpuSpec,
    GpuTelemetry,
    Quality,
    Reading,
    SmoothingFound,
    SmoothingProfile,
)
from drivers.deadline import DeviceWorker
from drivers.errors import DeviceGone, DriverUnavailable, InvalidValue, NotApplied, NotSupported, WrongDevice
from drivers.nvml_calls import GpuCalls, Identity, RawSample, enumerate_uuids, initialise, shut_down
from drivers.nvml_mean import MeanPower
from drivers.nvml_smoothing import (
    find_smoothing,
    give_smoothing_back,
    is_held,
    read_smoothing,
    write_smoothing,
)

T = TypeVar("T")

OPEN_S_MAX = 15.0  # initialising a driver without persistence mode takes seconds per GPU
CLOCK_SETTLE_S = 0.6  # clock switches take 1 to 500 ms (arXiv 2502.20075)
# A limit that meets power which the clock has not brought below it yet makes the GPU cut to 7 % below the limit
# for a tenth of a second (V100 step record: 185 W under 200 W). Clock switch 25 ms and three times 18 ms, same record.
LIMIT_AFTER_CLOCK_S = 0.1
LIMIT_TOLERANCE_W = 1.0  # read-back of a power limit
TEMPERATURE_EVERY = 10  # reads; it moves over tens of seconds
POWER_OVER_LIMIT = 1.6  # bursts reach 143 % of a limit (B300); no reading is right above this
IDLE_SHARE = 0.10  # of the highest limit, where no prior for the model is given


def usual_idle_w(model: str, power_limit_w_max: float) -> float:
    """Stand-in for idle power where nothing better is known of a model."""
    return IDLE_SHARE * power_limit_w_max


class NvmlLibrary:
    """The NVML of this node: opened, closed and opened again; keeps each GPU's worker across that.

    An agent whose driver is missing starts degraded: `open` raises DriverUnavailable (or another DriverError) and may
    be called again at any time. The library file itself cannot be exchanged under a running process: after a driver
    upgrade a version mismatch stays until the process restarts.
    """

    def __init__(
        self,
        *,
        driver_versions: str,
        call_deadline_s: float,
        clock: Clock,
        idle_w_of: Callable[[str, float], float] = usual_idle_w,
    ) -> None:
        self._driver_versions = driver_versions  # pattern of those that may be written to
        self._call_deadline_s = call_deadline_s
        self._clock = clock
        self._idle_w_of = idle_w_of
        self._worker = DeviceWorker("nvml")
        self._workers: dict[str, DeviceWorker] = {}
        self._is_open = False
        self.driver_version = ""
        self.failed: tuple[DriverError, ...] = ()  # GPUs that are listed and do not answer

    @property
    def is_accepted(self) -> bool:
        """Whether the driver's version is one this node may write to; others are only monitored."""
        return re.search(self._driver_versions, self.driver_version) is not None

    async def open(self) -> list[NvmlGpu]:
        """Initialise NVML and identify every GPU, sorted by UUID. One that fails is in `failed`, not in the way."""
        await self.close()
        self.driver_version = await self._worker.call(initialise, deadline_s=OPEN_S_MAX, name="initialise")
        self._is_open = True
        uuids, failed = await self._worker.call(enumerate_uuids, deadline_s=OPEN_S_MAX, name="list GPUs")
        gpus: list[NvmlGpu] = []
        for uuid in sorted(uuids):
            try:
                gpus.append(await self.open_gpu(GpuId(uuid)))
            except DriverError as error:
                failed.append(error)
        self.failed = tuple(failed)
        if not gpus:
            why = str(failed[0]) if failed else "the driver lists no GPU"
            raise DriverUnavailable("nvml", why)
        return gpus

    async def open_gpu(self, gpu_id: GpuId) -> NvmlGpu:
        """One GPU by UUID, e.g. one that came back."""
        worker = self._workers.setdefault(gpu_id, DeviceWorker(gpu_id))
        calls = GpuCalls(gpu_id)
        identity = await worker.call(calls.identify, deadline_s=OPEN_S_MAX, name="identify")
        refusal = None
        if not self.is_accepted:
            pattern = self._driver_versions
            refusal = f"driver {self.driver_version} does not match driver_versions {pattern!r}: monitoring only"
        return NvmlGpu(
            calls,
            identity,
            worker,
            clock=self._clock,
            call_deadline_s=self._call_deadline_s,
            idle_w=self._idle_w_of(identity.name, identity.limit_w_max),
            refusal=refusal,
        )

    async def open_more(self, known: frozenset[GpuId]) -> list[NvmlGpu]:
        """GPUs the driver lists now and that are not `known`: what came back or was put in. Sorted by UUID.

        A driver that lost its state (its module was loaded anew) is initialised again first: GPUs opened before find
        their handles by UUID. Raises DriverError while it does not answer.
        """
        try:
            uuids, failed = await self._worker.call(enumerate_uuids, deadline_s=OPEN_S_MAX, name="list GPUs")
        except DriverUnavailable:
            await self.close()
            self.driver_version = await self._worker.call(initialise, deadline_s=OPEN_S_MAX, name="initialise")
            self._is_open = True
            uuids, failed = await self._worker.call(enumerate_uuids, deadline_s=OPEN_S_MAX, name="list GPUs")
        gpus: list[NvmlGpu] = []
        for uuid in sorted(set(uuids) - known):
            try:
                gpus.append(await self.open_gpu(GpuId(uuid)))
            except DriverError as error:
                failed.append(error)
        self.failed = tuple(failed)
        return gpus

    async def close(self) -> None:
        """Release NVML. Settings stay as they are: giving them back is the agent's business, before this."""
        if self._is_open:
            self._is_open = False
            await self._worker.call(shut_down, deadline_s=OPEN_S_MAX, name="shut down")


class NvmlGpu:
    """One GPU: `ports.GpuNode` over NVML."""

    def __init__(
        self,
        calls: GpuCalls,
        identity: Identity,
        worker: DeviceWorker,
        *,
        clock: Clock,
        call_deadline_s: float,
        idle_w: float,
        refusal: str | None,
    ) -> None:
        self.spec = GpuSpec(
            gpu_id=GpuId(identity.uuid),
            model=identity.name,
            idle_w=idle_w,
            power_limit_w_min=identity.limit_w_min,
            power_limit_w_max=identity.limit_w_max,
            power_limit_w_default=identity.limit_w_default,
            clocks_mhz=identity.clocks_mhz,
        )
        self.identity = identity
        self.calls = calls
        self._worker = worker
        self._clock = clock
        self._deadline_s = call_deadline_s
        self._refusal = refusal
        self._mean = MeanPower.of(identity)
        self._reads = 0
        self._temperature_c: float | None = None
        self._lock_mhz: tuple[int, int] | None = None
        self._lock_s = 0.0
        self._is_lock_known = False  # False: a lock may be there that we did not set
        self._limit_found_w: float | None = None  # requested limit before our first write
        self.foreign_write_count = 0  # reads that found another limit requested than we asked for
        self._limit_asked_w: float | None = None

    # ------------------------------------------------------------------------------------------------------------ read

    async def read(self) -> Reading[GpuTelemetry]:
        """Power, clocks and limits in force; stamped before the call, so never younger than it is."""
        t_s = self._clock.now_s()
        self._reads += 1
        wants_temperature = self._reads % TEMPERATURE_EVERY == 1
        raw, temperature_c = await self.run(lambda: self._sample(wants_temperature), "read")
        if wants_temperature:
            self._temperature_c = temperature_c
        if self._mean.add(t_s, raw):
            self._distrust_lock()  # the counter restarted: driver reload or reset, our settings are gone
        self._check_lock(t_s, raw.clock_mhz)
        self._check_foreign(raw.requested_w)
        telemetry = GpuTelemetry(
            power_w=self._mean.mean_w,
            instant_w=raw.instant_w,
            clock_mhz=raw.clock_mhz,
            clock_cap_mhz=None if self._lock_mhz is None else float(self._lock_mhz[1]),
            power_limit_w=raw.limit_w,
            requested_limit_w=raw.requested_w,
            energy_j=raw.energy_j,
            temperature_c=self._temperature_c,
            throttle_reasons=raw.event_reasons,
        )
        return Reading(telemetry, t_s, self._quality(telemetry), f"nvml {self.spec.gpu_id}")

    def _sample(self, wants_temperature: bool) -> tuple[RawSample, float | None]:
        return self.calls.read(), self.calls.temperature_c() if wants_temperature else None

    def _quality(self, seen: GpuTelemetry) -> Quality:
        """SUSPECT where power is impossible or the energy counter tells another story over ten seconds."""
        top_w = POWER_OVER_LIMIT * self.spec.power_limit_w_max
        is_possible = 0.0 < seen.instant_w <= top_w and 0.0 < seen.power_w <= top_w
        return Quality.GOOD if is_possible and self._mean.agrees else Quality.SUSPECT

    def _check_lock(self, now_s: float, clock_mhz: float) -> None:
        if self._lock_mhz is None or now_s - self._lock_s < CLOCK_SETTLE_S:
            return
        if clock_mhz > self._lock_mhz[1] + self._step_mhz():
            self._distrust_lock()

    def _distrust_lock(self) -> None:
        self._lock_mhz = None
        self._is_lock_known = False

    def _check_foreign(self, requested_w: float | None) -> None:
        asked_w = self._limit_asked_w
        if asked_w is not None and requested_w is not None and abs(requested_w - asked_w) > LIMIT_TOLERANCE_W:
            self.foreign_write_count += 1

    def _step_mhz(self) -> float:
        clocks = self.spec.clocks_mhz
        return max((b - a for a, b in pairwise(clocks)), default=0)

    # ----------------------------------------------------------------------------------------------------------- write

    async def write(self, cap: GpuCap) -> None:
        """Apply a cap, writing only what changes. None for the clock unlocks it; None for the limit gives ours back.

        Raises InvalidValue outside the GPU's range, NotApplied when the read-back differs, WrongDevice when this
        driver's version may not be written to.
        """
        assert cap.gpu_id == self.spec.gpu_id
        self.refuse_if_monitoring()
        await self._write_clock(None if cap.clock_mhz is None else (self.spec.clock_mhz_min, cap.clock_mhz))
        if cap.power_limit_w is not None:
            await self._write_limit(cap.power_limit_w)
        elif self._limit_found_w is not None:
            await self._write_limit(self._limit_found_w)

    def refuse_if_monitoring(self) -> None:
        """WrongDevice when this driver's version may not be written to."""
        if self._refusal is not None:
            raise WrongDevice(self.spec.gpu_id, self._refusal)

    async def originals(self, *, preset: int | None = None) -> GpuOriginals:
        """Limits as found, and power smoothing where `preset` of it is to be written.

        The locked clock is always None: NVML cannot be asked for it.
        """
        requested_w = await self.run(self.calls.requested_limit_w, "read power limit")
        smoothing: SmoothingFound | None = None
        if preset is not None:
            with contextlib.suppress(NotSupported):
                smoothing = await self.run(lambda: find_smoothing(self.calls, preset), "read power smoothing")
        return GpuOriginals(
            gpu_id=self.spec.gpu_id,
            power_limit_w=requested_w,
            power_limit_w_default=self.spec.power_limit_w_default,
            requested_limit_w=requested_w,
            locked_clock_mhz=None,
            smoothing=smoothing,
        )

    async def holds_floor(self, floor: SmoothingProfile, *, preset: int) -> bool:
        """Whether power smoothing is on with this preset and it reads back as `floor`."""
        state = await self.run(lambda: read_smoothing(self.calls), "read power smoothing")
        return is_held(state, preset, floor)

    async def arm_floor(self, floor: SmoothingProfile, *, preset: int) -> None:
        """Store `floor` as the preset, activate it, switch smoothing on; NotApplied when the read-back differs."""
        self.refuse_if_monitoring()
        await self.run(lambda: write_smoothing(self.calls, preset, floor), "set power smoothing")

    async def restore(self, originals: GpuOriginals) -> None:
        """Give the saved settings back, whatever we believe is set now; each is tried even if another fails.

        A saved limit outside the GPU's range (it was replaced, or the file is from another model) becomes its default.
        """
        assert originals.gpu_id == self.spec.gpu_id
        failed: DriverError | None = None
        self._distrust_lock()
        try:
            await self._write_clock(originals.locked_clock_mhz)
        except NotSupported:
            pass  # a GPU that cannot lock clocks has none locked
        except DriverError as error:
            failed = error
        if (found := originals.smoothing) is not None:
            try:
                await self.run(lambda: give_smoothing_back(self.calls, found), "give power smoothing back")
            except NotSupported:
                pass  # another GPU than the one that had it
            except DriverError as error:
                failed = error
        wish_w = originals.power_limit_w if originals.requested_limit_w is None else originals.requested_limit_w
        is_possible = self.spec.power_limit_w_min <= wish_w <= self.spec.power_limit_w_max
        self._limit_asked_w = None
        await self._write_limit(wish_w if is_possible else self.spec.power_limit_w_default)
        self._limit_asked_w = self._limit_found_w = None
        if failed is not None:
            raise failed

    async def _write_clock(self, lock_mhz: tuple[int, int] | None) -> None:
        if self._is_lock_known and lock_mhz == self._lock_mhz:
            return
        if lock_mhz is None:
            await self.run(self.calls.unlock_clocks, "unlock clocks")
        else:
            low, high = lock_mhz
            if not self.spec.clock_mhz_min <= low <= high <= self.spec.clock_mhz_max:
                allowed = f"{self.spec.clock_mhz_min} to {self.spec.clock_mhz_max} MHz"
                raise InvalidValue(self.spec.gpu_id, f"clock {low}-{high} MHz: allowed {allowed}")
            self._distrust_lock()  # until the driver accepted the new one, either may be in force
            await self.run(lambda: self.calls.lock_clocks(low, high), "lock clocks")
        self._lock_mhz, self._lock_s, self._is_lock_known = lock_mhz, self._clock.now_s(), True

    async def _write_limit(self, limit_w: float) -> None:
        if not self.spec.power_limit_w_min <= limit_w <= self.spec.power_limit_w_max:
            allowed = f"{self.spec.power_limit_w_min:g} to {self.spec.power_limit_w_max:g} W"
            raise InvalidValue(self.spec.gpu_id, f"power limit {limit_w:g} W: allowed {allowed}")
        now_w = await self.run(self.calls.requested_limit_w, "read power limit")
        if self._limit_found_w is None:
            self._limit_found_w = now_w
        self._limit_asked_w = limit_w
        if abs(now_w - limit_w) <= LIMIT_TOLERANCE_W:
            return
        if limit_w < now_w and self._lock_mhz is not None:
            await self._clock.sleep_until_ns(round((self._lock_s + LIMIT_AFTER_CLOCK_S) * 1e9))
        requested_w, enforced_w = await self.run(lambda: self.calls.set_limit(limit_w), "set power limit")
        if abs(requested_w - limit_w) > LIMIT_TOLERANCE_W or enforced_w > limit_w + LIMIT_TOLERANCE_W:
            raise NotApplied(
                self.spec.gpu_id,
                f"power limit {limit_w:g} W: requested reads {requested_w:g}, enforced {enforced_w:g} W",
            )

    async def run(self, fn: Callable[[], T], name: str) -> T:
        """A blocking call on this GPU's worker, within the node's call deadline."""
        try:
            return await self._worker.call(fn, deadline_s=self._deadline_s, name=name)
        except (DeviceGone, DriverUnavailable):
            self.calls.forget_handle()
            self._distrust_lock()  # after it comes back its settings are the factory's
            raise
