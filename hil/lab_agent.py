"""One node of the lab under the agent that ships: its GPUs are the plant's, its link is the one inside a process.

The other nodes are the bench's. What the agent locks on eight GPUs moves the group of the plant that they stand for, as
their mean; each GPU shows that group's clock and power, moved by what its own lock is off the mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from controller.node.agent import NodeAgent
from controller.node.originals import OriginalsFile
from controller.ports import Clock, NodeLink
from controller.settings import NodeSettings
from controller.types import (
    GpuCap,
    GpuOriginals,
    GpuSpec,
    GpuTelemetry,
    NodeCommand,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    SmoothingProfile,
)
from drivers.errors import NotSupported
from drivers.node_link import LocalLink
from hil.nodes import SimNode

TELEMETRY_S = 0.2
CALL_DEADLINE_S = 1.0
POWER_WINDOW_S = 1.0  # NVML's mean


class PlantGpu:
    """One GPU of a reporting node; `limit_w` as it is found."""

    def __init__(self, board: Board, spec: GpuSpec, clock: Clock) -> None:
        self.spec = spec
        self.clock_mhz: int | None = None
        self.limit_w = spec.power_limit_w_default
        self.writes: list[GpuCap] = []
        self._board, self._clock = board, clock

    async def read(self) -> Reading[GpuTelemetry]:
        """As the driver shows it: mean power, clock, and the lock that it was told."""
        share = self.seen_mhz / self._board.mean_mhz
        power_w = self.spec.idle_w + (self._board.power_w - self.spec.idle_w) * share
        cap = None if self.clock_mhz is None else float(self.clock_mhz)
        seen = GpuTelemetry(power_w, power_w, self.seen_mhz, cap, self.limit_w, self.limit_w, None, None, 0)
        return Reading(seen, self._clock.now_s(), Quality.GOOD, self.spec.gpu_id)

    async def write(self, cap: GpuCap) -> None:
        self.writes.append(cap)
        self.clock_mhz = cap.clock_mhz
        self.limit_w = self.spec.power_limit_w_default if cap.power_limit_w is None else cap.power_limit_w
        self._board.steer()

    async def restore(self, originals: GpuOriginals) -> None:
        self.clock_mhz, self.limit_w = None, originals.power_limit_w
        self._board.steer()

    async def originals(self, *, preset: int | None = None) -> GpuOriginals:
        return GpuOriginals(self.spec.gpu_id, self.limit_w, self.spec.power_limit_w_default, self.limit_w, None, None)

    async def holds_floor(self, floor: SmoothingProfile, *, preset: int) -> bool:
        raise NotSupported(self.spec.gpu_id, "no power smoothing")

    async def arm_floor(self, floor: SmoothingProfile, *, preset: int) -> None:
        raise NotSupported(self.spec.gpu_id, "no power smoothing")

    @property
    def wanted_mhz(self) -> float:
        return self.spec.clock_mhz_max if self.clock_mhz is None else float(self.clock_mhz)

    @property
    def seen_mhz(self) -> float:
        apart_mhz = self.wanted_mhz - self._board.wanted_mhz
        return min(max(self._board.mean_mhz + apart_mhz, self.spec.clock_mhz_min), self.spec.clock_mhz_max)


class Board:
    """The GPUs of one node, and the group of the plant that they stand for."""

    def __init__(self, node: SimNode, clock: Clock) -> None:
        self._node = node
        self.gpus = [PlantGpu(self, spec, clock) for spec in node.specs]

    @property
    def mean_mhz(self) -> float:
        return self._node.clock_mhz

    @property
    def wanted_mhz(self) -> float:
        return sum(gpu.wanted_mhz for gpu in self.gpus) / len(self.gpus)

    @property
    def power_w(self) -> float:
        return self._node.power_w(POWER_WINDOW_S)

    def steer(self) -> None:
        """Bring what the GPUs are set to into the plant."""
        is_free = all(gpu.clock_mhz is None for gpu in self.gpus)
        limit_w = sum(gpu.limit_w for gpu in self.gpus) / len(self.gpus)
        self._node.set_cap(GpuCap(self.gpus[0].spec.gpu_id, None if is_free else round(self.wanted_mhz), limit_w))


class LabAgent:
    """The agent of one node: started, killed as by kill -9, started anew over the same GPUs and the same files."""

    def __init__(self, node: SimNode, clock: Clock, state_dir: Path, *, other_w: float) -> None:
        self.board = Board(node, clock)
        self.said: list[tuple[str, str]] = []
        self.file = OriginalsFile(state_dir)
        self.node_id = node.node_id
        self.link = LocalLink(clock)
        self._end = self.link.agent(node.node_id)
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._settings = NodeSettings(
            node_id=node.node_id,
            stands_for=node.stands_for,
            state_dir=str(state_dir),
            telemetry_period_s=TELEMETRY_S,
            fallback_clock_mhz=node.fallback_clock_mhz,
            fallback_power_limit_w=None,
            release_stagger_s=0.0,
            driver_versions=".*",
            other_w=other_w,
            call_deadline_s=CALL_DEADLINE_S,
        )

    def start(self) -> None:
        """A new process on this node."""
        agent = NodeAgent(
            self._settings,
            open_gpus=self._open,
            link=self._end,
            clock=self._clock,
            originals=self.file,
            boot_id="boot-1",
            say=lambda subject, what: self.said.append((subject, what)),
        )
        self._task = asyncio.ensure_future(agent.run())
        self._agent = agent

    async def kill(self) -> None:
        """Nothing is given back, nothing is written."""
        assert self._task is not None
        self._agent.release = _nothing  # type: ignore[method-assign]
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _open(self) -> Sequence[PlantGpu]:
        return self.board.gpus


class MixedLink:
    """A `NodeLink` to the bench's nodes and to one that has a real agent."""

    def __init__(self, bench: NodeLink, agent: LabAgent) -> None:
        self._bench, self._agent = bench, agent

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        others = {node_id: r for node_id, r in self._bench.reports().items() if node_id != self._agent.node_id}
        return others | dict(self._agent.link.reports())

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        mine: NodeId = self._agent.node_id
        await self._bench.send([command for command in commands if command.node_id != mine])
        await self._agent.link.send([command for command in commands if command.node_id == mine])


async def _nothing() -> None: ...
