"""Puts a node agent together for the daemon, and restores for the guard and for `rampart restore`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from controller.clock import NS_PER_S
from controller.errors import BadInput
from controller.node.agent import NodeAgent, Opener
from controller.node.gpu_worker import Say
from controller.node.guard import Guard
from controller.node.originals import (
    SERVICE_STATE,
    HowTo,
    NodeLock,
    OriginalsCorrupt,
    OriginalsFile,
    boot_id,
)
from controller.node.restore import Outcome, fall_back, give_back
from controller.ports import AgentLink, Clock, DriverError, GpuNode
from controller.sdnotify import Notifier
from controller.settings import NodeSettings
from controller.types import GpuId
from drivers.nvml import NvmlLibrary
from drivers.nvml_events import gpu_events

log = structlog.get_logger("rampart")

LOCK_WAIT_S = 10.0  # a guard or a restore that is still at work
LOCK_POLL_S = 0.1
GUARD_RETRY_S, GUARD_ATTEMPTS = 5.0, 24


async def run_node(
    settings: NodeSettings,
    *,
    link: AgentLink,
    clock: Clock,
    say: Say,
    notifier: Notifier,
    open_gpus: Opener | None = None,
    on_cycle: Callable[[], None] | None = None,
) -> None:
    """Run this node's agent until cancelled, then give everything back.

    Tells systemd when it serves and feeds its watchdog with every completed cycle; `on_cycle` replaces both in a
    process that also holds the site role. Raises BadInput when another process holds this node or the state directory
    cannot be used.
    """
    state_dir = Path(settings.state_dir)
    doors = _Doors(
        NvmlLibrary(driver_versions=settings.driver_versions, call_deadline_s=settings.call_deadline_s, clock=clock),
        say,
        state_dir=state_dir,
    )
    guard = None if notifier.is_supervised else Guard(state_dir)

    is_ready = False

    def cycle() -> None:
        nonlocal is_ready
        if guard is not None and agent.is_armed and not guard.is_alive:
            guard.start()
        if on_cycle is not None:
            on_cycle()
            return
        if not is_ready:
            notifier.ready(f"node {settings.node_id}")
            is_ready = True
        notifier.feed_watchdog()

    with await _locked(state_dir, clock):
        agent = NodeAgent(
            settings,
            open_gpus=open_gpus or doors.open,
            link=link,
            clock=clock,
            originals=OriginalsFile(state_dir),
            boot_id=boot_id(),
            say=say,
            before_first_write=guard.start if guard else lambda: None,
            on_cycle=cycle,
            more_gpus=None if open_gpus else doors.open_more,
            events=None if open_gpus else gpu_events,
        )
        try:
            await agent.run()
        finally:
            if guard is not None:
                (guard.dismiss if agent.is_given_back else guard.abandon)()


class _Doors:
    """Opens GPUs and says of each that does not open why, once. BadInput for GPUs that the service drives."""

    def __init__(self, library: NvmlLibrary, say: Say, *, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._library = library
        self._say = say
        self._told: dict[str, str] = {}

    async def open(self) -> Sequence[GpuNode]:
        gpus = await self._library.open()
        self._tell_failures()
        require_alone(gpus, state_dir=self._state_dir)
        return gpus

    async def open_more(self, known: frozenset[GpuId]) -> Sequence[GpuNode]:
        gpus = await self._library.open_more(known)
        self._tell_failures()
        require_alone(gpus, state_dir=self._state_dir)
        return gpus

    def _tell_failures(self) -> None:
        failures = {error.device: str(error) for error in self._library.failed}
        for device, what in failures.items():
            if self._told.get(device) != what:
                self._say(device, f"cannot be opened: {what}; looked for again")
        self._told = failures


def require_alone(gpus: Sequence[GpuNode], *, state_dir: Path) -> None:
    """BadInput where the service drives one of `gpus` and this agent, started from a shell, has another state folder.

    The lock is of the folder. Two agents would fight and take each other's caps for what was found: GPUs stayed
    capped when both were gone.
    """
    lock = NodeLock(SERVICE_STATE)
    if state_dir.resolve() == SERVICE_STATE.resolve() or not lock.is_held:
        return
    try:
        saved = OriginalsFile(SERVICE_STATE).load()
    except (OSError, OriginalsCorrupt):
        return
    theirs = [gpu.spec.gpu_id for gpu in gpus if saved is not None and gpu.spec.gpu_id in saved.by_id]
    if theirs:
        raise BadInput(f"{SERVICE_STATE}: the service drives {theirs[0]} (process {lock.holder()}); stop it first")


async def _locked(state_dir: Path, clock: Clock) -> NodeLock:
    """This node's lock; waits for a guard that is still restoring."""
    lock = NodeLock(state_dir)
    deadline_ns = clock.now_ns() + round(LOCK_WAIT_S * NS_PER_S)
    try:
        while not lock.try_acquire():
            if clock.now_ns() >= deadline_ns:
                raise BadInput(f"{state_dir}: another agent drives this node (process {lock.holder()}); stop it first")
            await _sleep(clock, LOCK_POLL_S)
    except OSError as error:
        raise BadInput(f"state_dir: {state_dir}: {error.strerror or error}; it must be writable") from None
    return lock


# --------------------------------------------------------------------------------------------------------- restore


async def restore_after_death(state_dir: Path, *, agent_pid: int, clock: Clock) -> int:
    """The guard's work: originals back, unless a new agent took over; tries for two minutes. Exit status."""
    lock = NodeLock(state_dir)
    for attempt in range(GUARD_ATTEMPTS):
        if attempt:
            await _sleep(clock, GUARD_RETRY_S)
        while not lock.try_acquire():
            if lock.holder() != str(agent_pid):
                return 0
            await _sleep(clock, LOCK_POLL_S)  # the dying agent still holds it
        with lock:
            try:
                outcomes = await restore_node(state_dir, to_fallback=False, clock=clock)
            except (DriverError, OSError):
                continue  # NVML is wedged or gone: it may come back
        if all(outcome.is_done for outcome in outcomes):
            return 0
    return 1


async def restore_node(
    state_dir: Path, *, to_fallback: bool, clock: Clock, spare: HowTo | None = None, open_gpus: Opener | None = None
) -> Sequence[Outcome]:
    """Give back what is on file (or go to fallback), and drop from the file what is given back. Needs the lock.

    `spare` says how where the file is damaged; then each device's defaults stand in for the originals. Raises
    DriverError where NVML does not answer, OSError where the file cannot be used.
    """
    file = OriginalsFile(state_dir)
    try:
        saved = file.load()
    except OriginalsCorrupt:
        saved = None
        how = spare or HowTo(
            fallback_clock_mhz=0,  # the lowest each GPU knows; only used when fallback was asked for
            fallback_power_limit_w=None,
            release_stagger_s=0.0,
            driver_versions="",
            call_deadline_s=2.0,
        )
        gpus = await _open(how, clock, open_gpus)
        saved = file.stand_in(how, [gpu.spec for gpu in gpus], boot_id=boot_id())
        log.error("originals damaged", file=str(file.path), instead="device defaults")
    else:
        if saved is None:
            return ()
        gpus = await _open(saved.how_to, clock, open_gpus)
    if to_fallback:
        return await fall_back(gpus, saved, clock=clock)
    outcomes = await give_back(gpus, saved, clock=clock)
    is_other_boot = saved.boot_id != boot_id()
    present = {gpu.spec.gpu_id for gpu in gpus}
    kept = {o.gpu_id for o in outcomes if not o.is_done and not (is_other_boot and o.gpu_id not in present)}
    file.keep_only(saved, frozenset(kept))
    return outcomes


async def _open(how: HowTo, clock: Clock, open_gpus: Opener | None) -> Sequence[GpuNode]:
    if open_gpus is not None:
        return await open_gpus()
    library = NvmlLibrary(driver_versions=how.driver_versions, call_deadline_s=how.call_deadline_s, clock=clock)
    return await library.open()


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep_until_ns(clock.now_ns() + round(seconds * NS_PER_S))
