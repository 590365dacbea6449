"""Actuate: put a checked command on the wires and say what was acknowledged.

The battery's write is started first because it acts in milliseconds; caps leave while it is under way, or a slow
battery would hold them back. What a load bank gives up leaves at once too; what it takes on leaves after the caps,
which may be making room for it. A device that fails is an unacknowledged part of the command, never an exception.
Nothing here decides what to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from controller.ports import Battery, DriverError, LoadBank, NodeLink
from controller.types import SiteCommand, SiteFault, Trouble, frozen

FAILURES_TOLD = 3  # writes in a row; one may be late on a busy wire

C = TypeVar("C")


@frozen
class Acks:
    """What the wires took. Caps are acknowledged later, by the nodes' own reports."""

    battery: bool
    nodes_sent: bool
    load_bank: bool = False


class Actuate:
    """Writes commands; at most one write per device is in flight."""

    def __init__(
        self,
        *,
        battery: Battery | None,
        node_link: NodeLink,
        deadline_s: float,
        on_change: Callable[[str, str], None],
        load_bank: LoadBank | None = None,
    ) -> None:
        self._battery = None if battery is None else _Writer("battery write", battery.write, deadline_s, on_change)
        self._bank = None if load_bank is None else _Writer("load bank write", load_bank.write, deadline_s, on_change)
        self._node_link = node_link
        self._deadline_s = deadline_s
        self._ballast_w = 0.0  # last started

    async def apply(self, command: SiteCommand) -> Acks:
        """Write `command`; returns within the deadline whatever the devices do."""
        battery, bank, ballast = self._battery, self._bank, command.load_bank
        is_lower = ballast is not None and ballast.setpoint_w <= self._ballast_w
        if battery is not None:
            await battery.begin(command.battery)
        if bank is not None and is_lower:
            await bank.begin(ballast)
        nodes_sent = await self._send_nodes(command) if command.nodes else False
        if bank is None:
            return Acks(battery=await battery.end() if battery is not None else False, nodes_sent=nodes_sent)
        if not is_lower:
            await bank.begin(ballast)
        if ballast is not None:
            self._ballast_w = ballast.setpoint_w
        if battery is None:
            return Acks(battery=False, nodes_sent=nodes_sent, load_bank=await bank.end())
        acks = await asyncio.gather(battery.end(), bank.end())
        return Acks(battery=acks[0], nodes_sent=nodes_sent, load_bank=acks[1])

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong with writing to devices now."""
        writers = (("battery", self._battery), ("load_bank", self._bank))
        return tuple(
            Trouble(writer.fault, name) for name, writer in writers if writer is not None and writer.fault is not None
        )

    async def _send_nodes(self, command: SiteCommand) -> bool:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._node_link.send(command.nodes)
        except (DriverError, TimeoutError):
            return False  # the link itself tells of its loss, once; the nodes' dead-man covers the rest
        return True

    def close(self) -> None:
        """Cancel writes in flight."""
        for writer in (self._battery, self._bank):
            if writer is not None:
                writer.cancel()


class _Writer(Generic[C]):
    """One device: a write that misses the deadline goes on, and the next begins only once it is over."""

    def __init__(
        self,
        name: str,
        write: Callable[[C], Awaitable[None]],
        deadline_s: float,
        on_change: Callable[[str, str], None],
    ) -> None:
        self._name, self._write, self._deadline_s, self._on_change = name, write, deadline_s, on_change
        self._task: asyncio.Task[None] | None = None
        self._wanted: C | None = None
        self._is_begun = self._is_lost = False
        self._failures = 0  # writes that failed in a row
        self._fault: SiteFault | None = None

    async def begin(self, command: C | None) -> None:
        """Put the first request on the wire unless a write is under way; who takes it at once needs no timer."""
        self._wanted = command
        self._is_begun = self._task is None
        if command is None and self._is_begun:
            self._failures, self._fault = 0, None  # who is asked nothing refuses nothing
        if command is not None and self._is_begun:
            await self._start(command)

    async def end(self) -> bool:
        """Whether the command was taken; one that could not begin yet does so now."""
        if self._wanted is None:
            return False
        if not self._is_begun:
            if not await self._settle():
                return False  # the last write is still under way: never two at once
            await self._start(self._wanted)
        return await self._settle()

    async def _start(self, command: C) -> None:
        self._task = asyncio.create_task(self._call(command))
        await asyncio.sleep(0)

    async def _call(self, command: C) -> None:
        await self._write(command)

    async def _settle(self) -> bool:
        assert self._task is not None
        if not self._task.done():
            await asyncio.wait((self._task,), timeout=self._deadline_s)
        if not self._task.done():
            return False
        task, self._task = self._task, None
        try:
            task.result()
        except DriverError as error:
            self._failures, self._fault = self._failures + 1, error.fault
            self._say(lost=True, why=str(error))
            return False
        self._failures, self._fault = 0, None
        self._say(lost=False, why="")
        return True

    def _say(self, *, lost: bool, why: str) -> None:
        if lost != self._is_lost:
            self._is_lost = lost
            self._on_change(self._name, why)

    @property
    def fault(self) -> SiteFault | None:
        """What is wrong with writing, where it is more than one write that was late."""
        is_told = self._failures >= FAILURES_TOLD or self._fault is SiteFault.DEVICE_CHANGED
        return self._fault if is_told else None

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
