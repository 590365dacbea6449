"""What a story may do to the ports of a lab: hooks into all that passes, leadership and the kernel's word on time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controller.lease import is_deposed
from controller.ports import Battery, NodeLink, PowerMeter
from controller.types import BatteryCommand, BatterySample, MeterSample, NodeCommand, NodeReport, Reading


@dataclass(slots=True)
class Hooks:
    """What a story may do to a port beyond the fault plan's verbs; each takes what passed and returns what arrives."""

    meter: Callable[[Reading[MeterSample]], Reading[MeterSample]] = lambda r: r
    battery: Callable[[Reading[BatterySample]], Reading[BatterySample]] = lambda r: r
    battery_write: Callable[[BatteryCommand], None] = lambda _: None
    report: Callable[[Reading[NodeReport]], Reading[NodeReport]] = lambda r: r
    send: Callable[[Sequence[NodeCommand]], Sequence[NodeCommand]] = lambda c: c


@dataclass(slots=True)
class LabLease:
    """Leadership that a story can take away."""

    epoch: int = 1
    is_held: bool = True

    def see(self, acked: Sequence[int]) -> None:
        self.is_held = self.is_held and not is_deposed(self.epoch, acked)


@dataclass(slots=True)
class LabSync:
    """The kernel's word on the wall clock, given by a story."""

    is_synced: bool = True


class HookedMeter:
    def __init__(self, inner: PowerMeter, hooks: Hooks) -> None:
        self._inner, self._hooks = inner, hooks

    async def read(self) -> Reading[MeterSample]:
        return self._hooks.meter(await self._inner.read())


class HookedBattery:
    def __init__(self, inner: Battery, hooks: Hooks) -> None:
        self._inner, self._hooks = inner, hooks

    async def read(self) -> Reading[BatterySample]:
        return self._hooks.battery(await self._inner.read())

    async def write(self, command: BatteryCommand) -> None:
        self._hooks.battery_write(command)
        await self._inner.write(command)


class HookedLink:
    def __init__(self, inner: NodeLink, hooks: Hooks) -> None:
        self._inner, self._hooks = inner, hooks

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        return {node_id: self._hooks.report(reading) for node_id, reading in self._inner.reports().items()}

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        await self._inner.send(self._hooks.send(commands))
