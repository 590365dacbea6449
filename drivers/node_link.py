"""The wire between the site controller and its node agents: both ends over MQTT, and a pair inside one process.

What is malformed, retained or meant for another node is dropped and counted, and never obeyed. Nothing is kept by the
broker: a command that finds no session is lost, and the node's dead-man timer, which counts from receipt on the node's
own clock, covers the loss.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from controller.ports import Clock
from controller.types import NodeCommand, NodeFault, NodeId, NodeReport, Quality, Reading, replace
from drivers.mqtt import Incoming, Keep, MqttSession
from drivers.node_messages import (
    TOPIC_ROOT,
    command_topic,
    decode_command,
    decode_report,
    encode_command,
    encode_report,
    report_topic,
)

NODES_MAX = 65_536  # heard of by one site; further ids are dropped and counted
TWINS_TOLD_S = 60.0  # after two agents were last seen to take turns
COMMANDS_WAITING_MAX = 16  # for one agent; when full the oldest goes, the newest command is the one that counts


# --------------------------------------------------------------------------------------------------- over MQTT


@dataclass(slots=True)
class LinkCounts:
    """What was dropped on one end of the wire, for metrics."""

    malformed: int = 0
    misdirected: int = 0
    retained: int = 0
    overflowed: int = 0


class MqttNodeLink:
    """The site's end: the newest report of every node, and commands out at QoS 1."""

    def __init__(self, session: MqttSession) -> None:
        self.counts = LinkCounts()
        self._session = session
        self._reports: dict[str, Reading[NodeReport]] = {}
        self._twins: dict[str, _Twins] = {}
        session.on_message(f"{TOPIC_ROOT}/+/report", self._on_report, qos=0)

    @property
    def is_up(self) -> bool:
        return self._session.is_up

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        """The newest report by node id, stamped on arrival less the age its sender declared."""
        return dict(self._reports)

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        """Queue each command; one still waiting for the same node is replaced. Without a session they are dropped."""
        for command in commands:
            self._session.publish(command_topic(command.node_id), encode_command(command), qos=1, keep=Keep.NEWEST)

    def _on_report(self, message: Incoming) -> None:
        if message.is_retained:
            self.counts.retained += 1
            return
        report = decode_report(message.payload, t_mono_s=message.t_mono_s)
        if report is None:
            self.counts.malformed += 1
            return
        is_full = len(self._reports) >= NODES_MAX and report.node_id not in self._reports
        if message.topic != report_topic(report.node_id) or is_full:
            self.counts.misdirected += 1
            return
        if self._twins.setdefault(report.node_id, _Twins()).are_seen(report.boot_id, message.t_mono_s):
            report = replace(report, faults=tuple(sorted({*report.faults, NodeFault.NODE_TWINS})))
        self._reports[report.node_id] = Reading(report, report.t_mono_s, Quality.GOOD, report.node_id)


class _Twins:
    """Whether two machines report under one name: a boot that was over is there again.

    Their sessions throw each other out of the broker for ever, so each is heard for seconds at a time.
    """

    def __init__(self) -> None:
        self._boot_id = self._boot_before = ""
        self._seen_s = -math.inf

    def are_seen(self, boot_id: str, now_s: float) -> bool:
        if boot_id != self._boot_id:
            if boot_id == self._boot_before:
                self._seen_s = now_s
            self._boot_id, self._boot_before = boot_id, self._boot_id
        return now_s - self._seen_s < TWINS_TOLD_S


class _Commands:
    """Commands waiting for one agent, newest kept."""

    def __init__(self, counts: LinkCounts) -> None:
        self._counts = counts
        self._queue: asyncio.Queue[NodeCommand] = asyncio.Queue(COMMANDS_WAITING_MAX)

    def put(self, command: NodeCommand) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self._counts.overflowed += 1
        self._queue.put_nowait(command)

    async def stream(self) -> AsyncIterator[NodeCommand]:
        while True:
            yield await self._queue.get()


class MqttAgentLink:
    """The node's end: its report out at QoS 0 (the next one replaces a lost one), its commands in."""

    def __init__(self, session: MqttSession, *, node_id: NodeId, clock: Clock) -> None:
        self.counts = LinkCounts()
        self._session = session
        self._node_id = node_id
        self._clock = clock
        self._commands = _Commands(self.counts)
        session.on_message(command_topic(node_id), self._on_command)

    @property
    def is_up(self) -> bool:
        return self._session.is_up

    def counted(self) -> dict[str, int]:
        """All that this end counts: of the link and of its session."""
        return {**asdict(self._session.counts), **asdict(self.counts)}

    async def publish(self, report: NodeReport) -> None:
        """Queue the report with its present age; dropped without a session."""
        payload = encode_report(report, age_s=self._clock.now_s() - report.t_mono_s)
        self._session.publish(report_topic(report.node_id), payload, qos=0, keep=Keep.NEWEST)

    def commands(self) -> AsyncIterator[NodeCommand]:
        """Commands for this node in order of arrival."""
        return self._commands.stream()

    def _on_command(self, message: Incoming) -> None:
        if message.is_retained:  # nobody may leave an order lying about for a node that comes back later
            self.counts.retained += 1
            return
        command = decode_command(message.payload)
        if command is None:
            self.counts.malformed += 1
        elif command.node_id != self._node_id:
            self.counts.misdirected += 1
        else:
            self._commands.put(command)


# --------------------------------------------------------------------------------------------------- in one process


class LocalLink:
    """Both ends in one process, for a single-node site and for the bench; the same drops, no bytes."""

    is_up = True

    def __init__(self, clock: Clock) -> None:
        self.counts = LinkCounts()
        self._clock = clock
        self._reports: dict[str, Reading[NodeReport]] = {}
        self._agents: dict[str, _Commands] = {}

    def agent(self, node_id: NodeId) -> LocalAgentLink:
        """The end for one node; ask once per node."""
        assert node_id not in self._agents, f"{node_id} has an agent end already"
        commands = self._agents[node_id] = _Commands(self.counts)
        return LocalAgentLink(self, commands)

    def reports(self) -> Mapping[str, Reading[NodeReport]]:
        return dict(self._reports)

    async def send(self, commands: Sequence[NodeCommand]) -> None:
        """Hand each command to its node; one for a node without an agent end is dropped and counted."""
        for command in commands:
            waiting = self._agents.get(command.node_id)
            if waiting is None:
                self.counts.misdirected += 1
            else:
                waiting.put(command)

    def _take(self, report: NodeReport) -> None:
        t_mono_s = min(report.t_mono_s, self._clock.now_s())
        self._reports[report.node_id] = Reading(
            replace(report, t_mono_s=t_mono_s), t_mono_s, Quality.GOOD, report.node_id
        )


class LocalAgentLink:
    """The node's end of a LocalLink."""

    is_up = True

    def __init__(self, link: LocalLink, commands: _Commands) -> None:
        self._link = link
        self._commands = commands

    async def publish(self, report: NodeReport) -> None:
        self._link._take(report)

    def commands(self) -> AsyncIterator[NodeCommand]:
        return self._commands.stream()
