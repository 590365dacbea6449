"""Gives GPUs their saved settings back, or puts them at the fallback cap; used by the agent, the guard and the command.

Idempotent. One GPU's failure never keeps another from being restored; what failed is said and stays on file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from controller.clock import NS_PER_S
from controller.node.originals import HowTo, Saved
from controller.ports import Clock, DriverError, GpuNode
from controller.types import GpuCap, GpuId, GpuOriginals, frozen

ATTEMPTS = 3
RETRY_S = 0.3


@frozen
class Outcome:
    """One GPU after the attempt; `error` is empty on success."""

    gpu_id: GpuId
    error: str

    @property
    def is_done(self) -> bool:
        return not self.error


async def give_back(gpus: Sequence[GpuNode], saved: Saved, *, clock: Clock) -> tuple[Outcome, ...]:
    """Restore every saved GPU, `release_stagger_s` apart. A saved GPU that is not among `gpus` counts as failed."""
    originals, present = saved.by_id, {gpu.spec.gpu_id: gpu for gpu in gpus}
    actions: dict[GpuId, Callable[[], Awaitable[None]]] = {
        gpu_id: _restore_call(gpu, originals[gpu_id]) for gpu_id, gpu in present.items() if gpu_id in originals
    }
    return await _each(sorted(originals), actions, stagger_s=saved.how_to.release_stagger_s, clock=clock)


async def fall_back(gpus: Sequence[GpuNode], saved: Saved, *, clock: Clock) -> tuple[Outcome, ...]:
    """Put every saved GPU at the fallback cap; its saved settings stay on file."""
    originals, present = saved.by_id, {gpu.spec.gpu_id: gpu for gpu in gpus}
    actions: dict[GpuId, Callable[[], Awaitable[None]]] = {
        gpu_id: _fallback_call(gpu, saved.how_to) for gpu_id, gpu in present.items() if gpu_id in originals
    }
    return await _each(sorted(originals), actions, stagger_s=saved.how_to.release_stagger_s, clock=clock)


def fallback_cap(gpu: GpuNode, how: HowTo) -> GpuCap:
    """The fallback cap as this GPU knows it: the nearest supported clock at or below, the limit within its range."""
    spec = gpu.spec
    clock = max((c for c in spec.clocks_mhz if c <= how.fallback_clock_mhz), default=spec.clock_mhz_min)
    limit_w = how.fallback_power_limit_w
    if limit_w is not None:
        limit_w = min(max(limit_w, spec.power_limit_w_min), spec.power_limit_w_max)
    return GpuCap(spec.gpu_id, clock, limit_w)


def _restore_call(gpu: GpuNode, originals: GpuOriginals) -> Callable[[], Awaitable[None]]:
    return lambda: gpu.restore(originals)


def _fallback_call(gpu: GpuNode, how: HowTo) -> Callable[[], Awaitable[None]]:
    return lambda: gpu.write(fallback_cap(gpu, how))


async def _each(
    gpu_ids: Sequence[GpuId],
    actions: Mapping[GpuId, Callable[[], Awaitable[None]]],
    *,
    stagger_s: float,
    clock: Clock,
) -> tuple[Outcome, ...]:
    async def one(i: int, gpu_id: GpuId) -> Outcome:
        if i and stagger_s > 0:
            await _sleep(clock, i * stagger_s)
        action = actions.get(gpu_id)
        return Outcome(gpu_id, "not found on this node" if action is None else await _attempt(action, clock))

    return tuple(await asyncio.gather(*(one(i, gpu_id) for i, gpu_id in enumerate(gpu_ids))))


async def _attempt(action: Callable[[], Awaitable[None]], clock: Clock) -> str:
    error = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await _sleep(clock, RETRY_S)
        try:
            await action()
        except DriverError as failed:
            error = str(failed)
        else:
            return ""
    return error


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep_until_ns(clock.now_ns() + round(seconds * NS_PER_S))
