"""The work behind `rampart node smoothing` and `rampart node workload`: one GPU after the other, each outcome told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import typer

from controller.clock import MonotonicClock
from controller.errors import BadInput
from controller.ports import DriverError
from controller.types import SmoothingProfile, frozen
from drivers.errors import NotSupported
from drivers.nvml import NvmlGpu, NvmlLibrary
from drivers.nvml_smoothing import PowerSmoothing
from drivers.nvml_workload import WorkloadProfiles

CALL_S_MAX = 5.0

Do = Callable[[NvmlGpu], Awaitable[Any]]


@frozen
class Wish:
    """What a person asked the smoothing circuit for."""

    preset: int
    floor_frac: float
    up_w_per_s: float
    down_w_per_s: float
    hysteresis_s: float

    @property
    def profile(self) -> SmoothingProfile:
        return SmoothingProfile(self.floor_frac, self.up_w_per_s, self.down_w_per_s, self.hysteresis_s)


def smoothing_of_gpus(
    driver_versions: str, gpus: Sequence[str], *, wish: Wish | None, is_off: bool, as_json: bool
) -> int:
    """Set, switch off or show; exit status."""

    async def one(gpu: NvmlGpu) -> Any:
        circuit = PowerSmoothing(gpu)
        if wish is not None:
            return await circuit.write(wish.preset, wish.profile)
        if is_off:
            await circuit.disable()
        return await circuit.read()

    def line(state: Any) -> str:
        profile = state.profile
        word = "on" if state.is_enabled else "off"
        return (
            f"{word}, preset {state.active_profile}: floor {profile.floor_frac:.0%} of at most"
            f" {state.floor_frac_max:.0%}, {profile.up_w_per_s:g} W/s up, {profile.down_w_per_s:g} W/s down, floor"
            f" outlasts load by {profile.hysteresis_s:g} s; {state.lifetime_frac:.0%} of the circuit's life left"
        )

    return _on_gpus(driver_versions, gpus, one, line, what="power smoothing", as_json=as_json)


def workload_of_gpus(driver_versions: str, gpus: Sequence[str], *, wanted: frozenset[str] | None, as_json: bool) -> int:
    """Ask or show; exit status."""

    async def one(gpu: NvmlGpu) -> Any:
        profiles = WorkloadProfiles(gpu)
        return await (profiles.read() if wanted is None else profiles.request(wanted))

    def line(state: Any) -> str:
        def names(found: frozenset[str]) -> str:
            return ", ".join(sorted(found)) or "none"

        return f"asked for {names(state.requested)}; in force {names(state.enforced)}; offered {names(state.offered)}"

    return _on_gpus(driver_versions, gpus, one, line, what="workload power profiles", as_json=as_json)


def _on_gpus(
    driver_versions: str, only: Sequence[str], do: Do, line: Callable[[Any], str], *, what: str, as_json: bool
) -> int:
    try:
        found, failed = asyncio.run(_each(driver_versions, only, do))
    except DriverError as error:
        raise BadInput(str(error)) from None
    if not found and failed and all(isinstance(why, NotSupported) for why in failed.values()):
        raise BadInput(f"no GPU of this node has {what}")
    if as_json:
        rows = {uuid: _plain(state) for uuid, state in found.items()}
        typer.echo(json.dumps(rows | {uuid: {"error": str(why)} for uuid, why in failed.items()}, indent=1))
    else:
        for uuid, state in found.items():
            typer.echo(f"{uuid}  {line(state)}")
        for problem in failed.values():
            typer.echo(f"problem: {problem}")
    return 1 if failed else 0


async def _each(driver_versions: str, only: Sequence[str], do: Do) -> tuple[dict[str, Any], dict[str, DriverError]]:
    library = NvmlLibrary(driver_versions=driver_versions, call_deadline_s=CALL_S_MAX, clock=MonotonicClock())
    gpus = {gpu.spec.gpu_id: gpu for gpu in await library.open()}
    strangers = sorted(set(only) - set(gpus))
    if strangers:
        raise BadInput(f"--gpu: {strangers[0]!r}: this node has {', '.join(sorted(gpus))}")
    found: dict[str, Any] = {}
    failed: dict[str, DriverError] = {}
    for uuid, gpu in sorted(gpus.items()):
        if not only or uuid in only:
            try:
                found[uuid] = await do(gpu)
            except DriverError as error:
                failed[uuid] = error
    await library.close()
    return found, failed


def _plain(state: Any) -> dict[str, Any]:
    """As JSON has it: sets become sorted lists."""
    return {
        key: sorted(value) if isinstance(value, frozenset) else value
        for key, value in dataclasses.asdict(state).items()
    }
