"""`rampart run`: the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from controller.types import replace

if TYPE_CHECKING:
    from controller.ports import AgentLink, NodeLink
    from controller.reload import Reload
    from controller.sdnotify import Notifier
    from controller.settings import Settings

app = typer.Typer()

INTERRUPTED = 130
# For so long a thread that writes a file may keep the interpreter from a loop that woke; the usual 5 ms is half of what
# an emergency has. Also so long a driver call waits while the agent hands out the others.
SWITCH_S = 0.0005


@app.command()
def run(
    config: Path = typer.Option(..., "--config", "-c", help="The site or node file.", show_default=False),
) -> None:
    """Run the controller of a site, the agent of a GPU node, or both, until stopped.

    A device or broker that is absent is waited for; what a person must mend is one line and exit status 2. SIGTERM,
    Ctrl-C and a terminal that closes stop cleanly: a node gives its GPUs their own settings back first. Under systemd
    SIGHUP is `rampart reload`, answered in the log.

    Examples: rampart run -c /etc/rampart/site.yaml    rampart run -c configs/node.example.yaml
    """
    from controller.config.site import load_settings
    from controller.logs import set_up_logs
    from controller.reload import Restart, begin_anew

    settings = load_settings(config)
    set_up_logs()
    sys.setswitchinterval(SWITCH_S)
    try:
        status = asyncio.run(_until_stopped(lambda: _serve(settings)))
    except Restart:
        begin_anew()
    raise typer.Exit(status)


async def _until_stopped(serve: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `serve` until it ends or a signal asks it to; the exit status."""
    loop = asyncio.get_running_loop()
    status = 0
    task = asyncio.ensure_future(serve())

    def stop(with_status: int) -> None:
        nonlocal status
        status = with_status
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    loop.add_signal_handler(signal.SIGHUP, stop, 0)  # its terminal closed: the default would end it as a crash does
    loop.add_signal_handler(signal.SIGINT, stop, INTERRUPTED)
    try:
        await task
    except asyncio.CancelledError:
        return status
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group
    return status


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that brought a task group down: what a person should read."""
    first = group.exceptions[0]
    return _first_cause(first) if isinstance(first, BaseExceptionGroup) else first


async def _serve(settings: Settings) -> None:
    from controller.clock import MonotonicClock
    from controller.node.watch import tell_drops
    from controller.sdnotify import Notifier
    from controller.session import open_session
    from controller.settings import Role
    from drivers.node_link import LocalLink, MqttAgentLink

    clock, notifier = MonotonicClock(), Notifier()
    if settings.role is Role.NODE:
        assert settings.node is not None
        session = open_session(settings, clock=clock, client_id=f"rampart-node-{settings.node.node_id}")
        assert session is not None
        link = MqttAgentLink(session, node_id=settings.node.node_id, clock=clock)
        _heed_hangup(_reload_of(settings), notifier)
        async with _beside(session.run), _beside(lambda: tell_drops(link.counted, say=_say, clock=clock)):
            notifier.ready()
            await _node(settings, link, notifier, on_cycle=None)
    elif settings.role is Role.SITE:
        assert settings.site is not None
        await _site(settings, node_link=None, notifier=notifier)
    else:
        assert settings.node is not None
        local = LocalLink(clock)
        agent_link = local.agent(settings.node.node_id)
        async with _beside(lambda: _site(settings, node_link=local, notifier=notifier)):
            await _node(settings, agent_link, notifier, on_cycle=lambda: None)


def _reload_of(settings: Settings) -> Reload:
    from controller.config.site import load_settings
    from controller.reload import Reload

    return Reload(settings, read=lambda: asyncio.to_thread(load_settings, Path(settings.config_path)))


def _heed_hangup(reload: Reload, notifier: Notifier) -> None:
    """Nobody's terminal closes under a supervisor: there SIGHUP asks for the file, as of any other daemon."""
    if not notifier.is_supervised:
        return
    asked: set[asyncio.Task[None]] = set()

    def ask() -> None:
        task = asyncio.ensure_future(reload.hang_up())
        asked.add(task)
        task.add_done_callback(asked.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, ask)


def _keep_what_is_there() -> None:
    """What start-up made stays: a full collection need not look at it, which takes an agent 30 ms at any moment."""
    gc.collect()
    gc.freeze()


@contextlib.asynccontextmanager
async def _beside(runner: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """`runner` lives as long as the body; whichever of the two fails ends both."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(runner())
        try:
            yield
        finally:
            task.cancel()


def _say(subject: str, what: str) -> None:
    """What a node has to tell, as a line of the log."""
    import structlog

    structlog.get_logger("rampart").info(what, subject=subject)


async def _node(
    settings: Settings, link: AgentLink, notifier: Notifier, *, on_cycle: Callable[[], None] | None
) -> None:
    from controller.clock import MonotonicClock
    from controller.node.run import run_node

    assert settings.node is not None
    _keep_what_is_there()
    await run_node(
        settings.node,
        link=link,
        clock=MonotonicClock(),
        say=_say,
        notifier=notifier,
        on_cycle=on_cycle,
    )


async def _site(settings: Settings, *, node_link: NodeLink | None, notifier: Notifier) -> None:
    from controller.app import build
    from controller.clock import MonotonicClock
    from controller.control_socket import ControlSocket
    from controller.live import live_factories
    from controller.operator_desk import OperatorDesk
    from controller.session import open_session
    from controller.telemetry import Reporter
    from drivers.audit_log import AuditLog
    from drivers.dsx_payloads import utc_text
    from drivers.metrics import Metrics

    assert settings.site is not None
    clock = MonotonicClock()
    # Another's process number may be the same: in two containers both are 1, and would throw each other out.
    name = f"rampart-site-{settings.site.name}-{secrets.token_hex(4)}"
    session = open_session(settings, clock=clock, client_id=name)
    async with live_factories(
        settings, clock=clock, session=session, node_link=node_link, feed_watchdog=notifier.feed_watchdog
    ) as factories:
        audit = AuditLog(Path(settings.state_dir) / "operator-audit.jsonl")
        reload = _reload_of(settings)
        _heed_hangup(reload, notifier)
        desk = OperatorDesk(
            Path(settings.state_dir) / "operator.json",
            audit=lambda line: audit.append({"utc": utc_text(clock.wall_utc_s()), **line}),
            reload=reload,
        )
        daemon = build(settings, replace(factories, operator=desk))
        reporter = Reporter(
            settings.site, metrics=Metrics(settings.metrics_port), core=daemon.core, counters=factories.counters
        )
        daemon.observe(reporter.observe)
        desk.ask(daemon.core)
        socket = ControlSocket(Path(settings.runtime_dir) / "site.sock", snapshot=reporter.document, orders=desk.take)
        _keep_what_is_there()
        notifier.ready(f"{settings.site.contract.name}")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(socket.run())
                group.create_task(daemon.run())
                group.create_task(reload.until_wanted())
        finally:
            if not reload.is_wanted:  # the supervisor would end what begins anew
                notifier.stopping()
            reporter.close()
            audit.close()
