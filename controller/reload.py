"""A site file that changed while control runs: taken whole by a restart of this process, or refused whole and told of.

Control never runs on parts of two files. A restart is what every crash goes through anyway (recorded state, nodes that
bridge it, no bump in power), so a right file is taken that way and there is no second one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from controller.control_socket import done, refused
from controller.errors import BadInput
from controller.settings import Role, Settings
from controller.types import SiteFault, Trouble

TAKEN_AT_START = (
    "what drives GPUs takes its file when it starts; a restart (`systemctl restart rampart-node`) gives its GPUs back"
    " first"
)
ANSWER_S = 0.2  # the answer reaches whoever asked before the socket closes

log = structlog.get_logger("rampart")


class Restart(Exception):
    """This process is to begin anew with the file as it is now."""


class Reload:
    """Looks at the file again when asked to."""

    def __init__(self, running: Settings, *, read: Callable[[], Awaitable[Settings]]) -> None:
        """`running`: the settings in force. `read`: those on disk, beside the cycles; raises BadInput."""
        self._running, self._read = running, read
        self._is_refused = False
        self._wants_restart = asyncio.Event()

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The file on disk is not what runs, and cannot be."""
        return (Trouble(SiteFault.FILE_REFUSED, self._running.config_path),) if self._is_refused else ()

    @property
    def is_wanted(self) -> bool:
        """A right file waits for the restart that takes it."""
        return self._wants_restart.is_set()

    async def ask(self) -> dict[str, object]:
        """Take it or refuse it; the answer to an operator."""
        try:
            found = await self._read()
        except BadInput as bad:
            self._is_refused = True
            log.error("the changed file is refused; what runs keeps its settings", why=str(bad))
            return refused(str(bad), "what runs keeps its settings")
        self._is_refused = False
        if found == self._running:
            return done("nothing in the file has changed")
        if self._running.role is not Role.SITE:
            return refused(f"the file is right, and nothing was changed: {TAKEN_AT_START}")
        log.warning("the file changed and is right: restarting with it")
        self._wants_restart.set()
        return done("the file is right: the controller restarts with it, and is back in NORMAL within 20 s")

    async def hang_up(self) -> None:
        """SIGHUP of a supervisor, or of whoever is used to it: as `ask`, answered in the log."""
        answer = await self.ask()
        log.warning("asked by SIGHUP to take the file", is_taken=answer["ok"], answer=answer["lines"])

    async def until_wanted(self) -> NoReturn:
        """Raises Restart once a right file asks for it."""
        await self._wants_restart.wait()
        await asyncio.sleep(ANSWER_S)
        raise Restart


def begin_anew() -> NoReturn:
    """The same command in the same process: its supervisor sees no death."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
