"""A node agent as a process of its own, commanded every half second; run by the wire tests on fake GPUs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from controller.clock import NS_PER_S, MonotonicClock
from controller.node.run import run_node
from controller.sdnotify import Notifier
from controller.types import GpuCap, NodeCommand
from drivers.node_link import LocalLink
from tests.node_kit import NODE, settings


async def command(link: LocalLink, clock: MonotonicClock, clock_mhz: int) -> None:
    seq = 0
    while True:
        report = link.reports().get(NODE)
        if report is not None and report.value.gpu_ids:
            seq += 1
            caps = tuple(GpuCap(gpu_id, clock_mhz, 400.0) for gpu_id in report.value.gpu_ids)
            await link.send([NodeCommand(NODE, 1, seq, 5.0, caps, 0.0, float("inf"))])
        await clock.sleep_until_ns(clock.now_ns() + NS_PER_S // 2)


async def main(state_dir: Path, clock_mhz: int) -> None:
    clock = MonotonicClock()
    link = LocalLink(clock)
    agent = asyncio.ensure_future(
        run_node(
            settings(state_dir),
            link=link.agent(NODE),
            clock=clock,
            say=lambda subject, what: print(subject, what, flush=True),
            notifier=Notifier(),
        )
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, agent.cancel)
    commander = asyncio.ensure_future(command(link, clock, clock_mhz))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await agent
    finally:
        commander.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
