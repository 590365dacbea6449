"""Actuate: put a checked command on the wires and say what was acknowledged.

The battery's write is started first because it acts in milliseconds; caps leave while it is under way, or a slow
battery would hold them back. A device that fails is an unacknowledged part of the command, never an exception. Nothing
here decides what to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from controller.ports import Battery, DriverError, NodeLink
from controller.types import BatteryCommand, SiteCommand


@dataclass(frozen=True, slots=True)
class Acks:
    """What the wires took. Caps are acknowledged later, by the nodes' own reports."""

    battery: bool
    nodes_sent: bool


class Actuate:
    """Writes commands; at most one battery write is in flight."""

    def __init__(
        self,
        *,
        battery: Battery | None,
        node_link: NodeLink,
        deadline_s: float,
        on_change: Callable[[str, str], None],
    ) -> None:
        self._battery = battery
        self._node_link = node_link
        self._deadline_s = deadline_s
        self._on_change = on_change
        self._write: asyncio.Task[None] | None = None
        self._is_battery_lost = False

    async def apply(self, command: SiteCommand) -> Acks:
        """Write `command`; returns within the deadline whatever the devices do."""
        wanted = command.battery if self._battery is not None else None
        is_free = self._write is None
        if wanted is not None and is_free:
            self._start(wanted)
            await asyncio.sleep(0)  # its first request is on the wire; who takes it at once needs no timer
        nodes_sent = await self._send_nodes(command) if command.nodes else False
        battery = await self._write_battery(wanted, is_started=is_free) if wanted is not None else False
        return Acks(battery=battery, nodes_sent=nodes_sent)

    def _start(self, command: BatteryCommand) -> None:
        assert self._battery is not None
        self._write = asyncio.ensure_future(self._battery.write(command))

    async def _write_battery(self, command: BatteryCommand, *, is_started: bool) -> bool:
        if not is_started:
            if not await self._settle():
                return False  # the last write is still under way: never two at once
            self._start(command)
            await asyncio.sleep(0)
        return await self._settle()

    async def _settle(self) -> bool:
        assert self._write is not None
        if not self._write.done():
            await asyncio.wait((self._write,), timeout=self._deadline_s)
        if not self._write.done():
            return False
        task, self._write = self._write, None
        try:
            task.result()
        except DriverError as error:
            self._say(lost=True, why=str(error))
            return False
        self._say(lost=False, why="")
        return True

    async def _send_nodes(self, command: SiteCommand) -> bool:
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._node_link.send(command.nodes)
        except (DriverError, TimeoutError):
            return False  # the link itself tells of its loss, once; the nodes' dead-man covers the rest
        return True

    def _say(self, *, lost: bool, why: str) -> None:
        if lost != self._is_battery_lost:
            self._is_battery_lost = lost
            self._on_change("battery write", why)

    def close(self) -> None:
        """Cancel a write in flight."""
        if self._write is not None:
            self._write.cancel()
