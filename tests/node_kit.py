"""GPUs in memory for tests of the node, with the faults real ones have, and an agent over them in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from controller.clock import NS_PER_S
from controller.node.agent import NodeAgent
from controller.node.originals import OriginalsFile
from controller.ports import Clock
from controller.settings import NodeSettings, SmoothingSettings
from controller.types import (
    GpuCap,
    GpuEvent,
    GpuId,
    GpuOriginals,
    GpuSpec,
    GpuTelemetry,
    NodeCommand,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    SmoothingFound,
    SmoothingProfile,
)
from drivers.errors import DeviceGone, DeviceTimeout, DriverUnavailable, NotSupported, PermissionDenied
from drivers.nvml import CLOCK_SETTLE_S
from hil import vtime

NODE = NodeId("n1")
CLOCKS = tuple(range(210, 1981, 15))
FALLBACK_MHZ = 1005


def spec(name: str) -> GpuSpec:
    return GpuSpec(GpuId(name), "test", 70.0, 200.0, 700.0, 700.0, CLOCKS)


class FakeGpu:
    """One GPU: what is set, what was written when, and what goes wrong."""

    def __init__(self, name: str, clock: Clock, *, limit_w: float = 650.0) -> None:
        self.spec = spec(name)
        self.clock = clock
        self.clock_mhz: int | None = None
        self.limit_w = self.found_w = limit_w
        self.writes: list[tuple[float, GpuCap]] = []
        self.restores: list[float] = []
        self.is_forbidden = self.is_lost = self.ignores = self.hangs = False
        self.pretends = False  # accepts clocks and runs on as before; what it runs at withdraws the lock, as over NVML
        self._claimed: tuple[float, int | None] | None = None
        self.slowed_by = 0  # NVML's clock event reasons
        self.failing_restores = 0
        self.smoothing: SmoothingProfile | None = None  # in force
        self.has_circuit = True
        self.floor_writes = 0
        self.loses_floor = False
        self.read_count = 0

    async def read(self) -> Reading[GpuTelemetry]:
        self._check()
        clock_mhz = float(self.clock_mhz or 1980)
        cap = None if self.clock_mhz is None else float(self.clock_mhz)
        if self._claimed is not None:
            since_s, lock_mhz = self._claimed
            is_seen = self.clock.now_s() - since_s >= CLOCK_SETTLE_S and clock_mhz > (lock_mhz or 1980)
            cap = None if is_seen or lock_mhz is None else float(lock_mhz)
        self.read_count += 1
        seen = GpuTelemetry(300.0, 300.0, clock_mhz, cap, self.limit_w, self.limit_w, None, None, self.slowed_by)
        return Reading(seen, self.clock.now_s(), Quality.GOOD, self.spec.gpu_id)

    async def write(self, cap: GpuCap) -> None:
        self._check()
        if self.is_forbidden:
            raise PermissionDenied(self.spec.gpu_id, "lock clocks: this needs CAP_SYS_ADMIN")
        self.writes.append((self.clock.now_s(), cap))
        self._claimed = (self.clock.now_s(), cap.clock_mhz) if self.pretends else None
        if not self.ignores:
            self.clock_mhz = self.clock_mhz if self.pretends else cap.clock_mhz
            self.limit_w = self.found_w if cap.power_limit_w is None else cap.power_limit_w

    async def restore(self, originals: GpuOriginals) -> None:
        self._check()
        if self.failing_restores > 0:
            self.failing_restores -= 1
            raise DeviceTimeout(self.spec.gpu_id, "unlock clocks: no answer")
        self.restores.append(self.clock.now_s())
        self.clock_mhz, self.limit_w = None, originals.power_limit_w
        if originals.smoothing is not None:
            self.smoothing = originals.smoothing.profile if originals.smoothing.is_enabled else None

    async def originals(self, *, preset: int | None = None) -> GpuOriginals:
        self._check()
        found = None
        if preset is not None and self.has_circuit:
            found = SmoothingFound(self.smoothing is not None, 0, preset, self.smoothing)
        return GpuOriginals(self.spec.gpu_id, self.limit_w, 700.0, self.limit_w, None, found)

    async def holds_floor(self, floor: SmoothingProfile, *, preset: int) -> bool:
        self._check()
        if not self.has_circuit:
            raise NotSupported(self.spec.gpu_id, "no power smoothing")
        return self.smoothing == floor

    async def arm_floor(self, floor: SmoothingProfile, *, preset: int) -> None:
        self._check()
        if self.is_forbidden:
            raise PermissionDenied(self.spec.gpu_id, "set power smoothing: this needs CAP_SYS_ADMIN")
        self.floor_writes += 1
        self.smoothing = None if self.loses_floor else floor

    def _check(self) -> None:
        if self.is_lost:
            raise DeviceGone(self.spec.gpu_id, "fallen off the bus")
        if self.hangs:
            raise DeviceTimeout(self.spec.gpu_id, "no answer within 1 s")


class TestLink:
    """The agent's end of a wire that a test holds the other end of."""

    __test__ = False

    def __init__(self, clock: Clock) -> None:
        self.reports: list[NodeReport] = []
        self._clock = clock
        self._waiting: list[NodeCommand] = []

    def send(self, command: NodeCommand) -> None:
        self._waiting.append(command)

    async def publish(self, report: NodeReport) -> None:
        self.reports.append(report)

    async def commands(self) -> AsyncIterator[NodeCommand]:
        while True:
            while self._waiting:
                yield self._waiting.pop(0)
            await self._clock.sleep_until_ns(self._clock.now_ns() + NS_PER_S // 100)


FLOOR = SmoothingProfile(0.4, 1000.0, 20.0, 2.0)


def settings(
    state_dir: Path, *, stagger_s: float = 0.0, limit_w: float | None = None, has_floor: bool = False
) -> NodeSettings:
    return NodeSettings(
        node_id=NODE,
        stands_for=1,
        state_dir=str(state_dir),
        telemetry_period_s=0.2,
        fallback_clock_mhz=FALLBACK_MHZ,
        fallback_power_limit_w=limit_w,
        release_stagger_s=stagger_s,
        driver_versions=".*",
        other_w=500.0,
        call_deadline_s=1.0,
        smoothing=SmoothingSettings(FLOOR, preset=4) if has_floor else None,
    )


class Bench:
    """An agent over fake GPUs on a clock of the test's choice."""

    def __init__(
        self, state_dir: Path, clock: Clock, *, count: int = 2, stagger_s: float = 0.0, has_floor: bool = False
    ) -> None:
        self.clock = clock
        self.gpus = [FakeGpu(f"GPU-{i}", clock) for i in range(count)]
        self.link = TestLink(clock)
        self.said: list[tuple[str, str]] = []
        self.file = OriginalsFile(state_dir)
        self.open_error: str | None = None
        self.late: list[FakeGpu] = []  # there, and not answering before the next look
        self.events: asyncio.Queue[GpuEvent] = asyncio.Queue()
        self.guard_starts = 0
        self.on_disk_at_first_write: bool | None = None
        self.cycles = 0
        self._seq = 0
        self.agent = NodeAgent(
            settings(state_dir, stagger_s=stagger_s, has_floor=has_floor),
            open_gpus=self._open,
            link=self.link,
            clock=clock,
            originals=self.file,
            boot_id="boot-1",
            say=lambda subject, what: self.said.append((subject, what)),
            before_first_write=self._guard,
            on_cycle=self._cycle,
            more_gpus=self._more,
            events=self._hear,
        )

    def _cycle(self) -> None:
        self.cycles += 1

    def _guard(self) -> None:
        self.guard_starts += 1
        self.on_disk_at_first_write = self.file.path.is_file()

    async def _open(self) -> list[FakeGpu]:
        if self.open_error:
            raise DriverUnavailable("nvml", self.open_error)
        return self.gpus

    async def _more(self, known: frozenset[GpuId]) -> list[FakeGpu]:
        if self.open_error:
            raise DriverUnavailable("nvml", self.open_error)
        return [gpu for gpu in self.late if gpu.spec.gpu_id not in known]

    async def _hear(self, gpu_ids: Sequence[GpuId]) -> AsyncIterator[GpuEvent]:
        while True:
            yield await self.events.get()

    def command(self, clock_mhz: int | None, *, epoch: int = 1, **changes: object) -> NodeCommand:
        self._seq += 1
        caps = tuple(GpuCap(gpu.spec.gpu_id, clock_mhz, None) for gpu in self.gpus)
        fields: dict[str, object] = {"ttl_s": 5.0, "release_slot_s": 0.0, "release_w_per_s": float("inf")} | changes
        return NodeCommand(NODE, epoch, self._seq, caps=caps, **fields)  # type: ignore[arg-type]

    async def wait(self, seconds: float) -> None:
        await self.clock.sleep_until_ns(self.clock.now_ns() + round(seconds * NS_PER_S))

    async def until(self, holds: Callable[[], bool], *, within_s: float) -> float:
        """Seconds until `holds`; fails after `within_s`."""
        start_s = self.clock.now_s()
        while not holds():
            assert self.clock.now_s() - start_s <= within_s, "did not happen in time"
            await self.wait(0.05)
        return self.clock.now_s() - start_s

    @property
    def clocks(self) -> list[int | None]:
        return [gpu.clock_mhz for gpu in self.gpus]


def play_agent(
    state_dir: Path,
    story: Callable[[Bench], Awaitable[None]],
    *,
    stop: bool = True,
    prepare: Callable[[Bench], None] | None = None,
    settle_s: float = 1.0,
    **kind: Any,
) -> Bench:
    """Run an agent through `story`, then stop it as SIGTERM does (or leave it as kill -9 does)."""

    async def main() -> Bench:
        bench = Bench(state_dir, vtime.VirtualClock(vtime.running_loop(), start_utc_s=0.0), **kind)
        if prepare is not None:
            prepare(bench)
        if not stop:
            bench.agent.release = _nothing  # type: ignore[method-assign]
        task = asyncio.create_task(bench.agent.run())
        await bench.wait(settle_s)
        await story(bench)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return bench

    return vtime.run(main())


async def _nothing() -> None: ...


def newest(bench: Bench) -> NodeReport:
    """The agent's last report."""
    return bench.link.reports[-1]
