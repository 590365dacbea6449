"""An operator's orders on their way to the core: taken or refused, kept over a restart, logged, put into an image.

The core acts on what is in its image and on nothing else, so a replay sees the same orders at the same cycles. An order
of a mode stands until it is withdrawn, also through a crash of the controller: GPUs that were given back are not
quietly taken again. A reset is refused while what it should clear is still there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum, unique
from pathlib import Path
from typing import Protocol

import structlog

from controller.control_socket import Peer, done, refused
from controller.files import write_whole
from controller.modes import TABLE, Clear, Flag, Reason
from controller.reload import Reload
from controller.types import Mode, OperatorOrder, Trouble

FILE_BYTES_MAX = 4096

log = structlog.get_logger("operator")

Audit = Callable[[Mapping[str, object]], None]


@unique
class Order(StrEnum):
    """What an operator may ask for."""

    RESET = "reset"
    RELEASE = "release"
    FALLBACK = "fallback"
    LOCKOUT = "lockout"
    RESUME = "resume"
    RELOAD = "reload"


MODES = {Order.RELEASE: Mode.RELEASE, Order.FALLBACK: Mode.FALLBACK, Order.LOCKOUT: Mode.LOCKOUT}
BEGINS = {
    Mode.RELEASE: "every GPU gets its own settings back, one node after the other; until `rampart resume`",
    Mode.FALLBACK: "nodes go to their fallback caps and the battery back to nothing; until `rampart resume`",
    Mode.LOCKOUT: "nothing is written any more, nodes and battery fall back by themselves; until `rampart reset`",
}


class Core(Protocol):
    """What the desk asks of `controller.core.SiteCore`."""

    @property
    def reasons(self) -> Sequence[Reason]:
        """Why the mode is what it is, as of the last cycle."""

    @property
    def reset_obstacles(self) -> frozenset[Flag]:
        """Flags that a reset cannot clear now: their cause is still there, or nobody can tell."""


class OperatorDesk:
    """Implements `ports.OperatorSource`."""

    def __init__(self, path: Path, *, audit: Audit, reload: Reload) -> None:
        """`path`: where a standing order is kept."""
        self._path = path
        self._audit = audit
        self._reload = reload
        self._mode = _kept(path)
        self._is_reset = False
        self._core: Core | None = None
        if self._mode is not None:
            log.warning("an operator's order from before the restart stands", order=self._mode.name)

    def ask(self, core: Core) -> None:
        """Learn from `core` why the mode is what it is and which causes are still there."""
        self._core = core

    def order(self) -> OperatorOrder | None:
        """For the next image; a reset is given out once."""
        is_reset, self._is_reset = self._is_reset, False
        return OperatorOrder(self._mode, is_reset) if is_reset or self._mode is not None else None

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return self._reload.troubles

    async def take(self, order: str, peer: Peer) -> Mapping[str, object]:
        """Obey or refuse; every order is logged and audited, whatever became of it."""
        try:
            known = Order(order)
        except ValueError:
            answer = refused(f"unknown order {order[:40]!r}: {', '.join(Order)} are allowed")
        else:
            answer = await self._answer(known)
        line = {"order": order[:40], "user": peer.name, "uid": peer.uid, "pid": peer.pid, **answer}
        log.warning("operator's order", **line)
        self._audit(line)
        return answer

    async def _answer(self, order: Order) -> dict[str, object]:
        if order is Order.RELOAD:
            return await self._reload.ask()
        if order is Order.RESET:
            return self._reset()
        if order is Order.RESUME:
            return self._resume()
        if self._mode is MODES[order]:
            return done(f"{order} is in force already")
        self._mode = MODES[order]
        return done(BEGINS[self._mode], *self._keep())

    def _resume(self) -> dict[str, object]:
        if self._mode is None:
            return done("no order is in force: there is nothing to resume from")
        if self._mode is Mode.LOCKOUT:
            return refused("an operator locked the controller out: only `rampart reset` ends that")
        ended, self._mode = self._mode, None
        return done(f"{ended.name} ends; control resumes after the dwell of ten planner periods", *self._keep())

    def _reset(self) -> dict[str, object]:
        """Clear what waits for an operator and is over; say of the rest why it stays."""
        reasons = self._core.reasons if self._core is not None else ()
        obstacles = self._core.reset_obstacles if self._core is not None else frozenset()
        waiting = [r for r in reasons if TABLE[r.flag].clear in (Clear.ON_OPERATOR, Clear.NEVER_THIS_BOOT)]
        standing = [r for r in waiting if r.flag in obstacles]
        over = [r for r in waiting if r not in standing]
        lines = [f"not cleared: {r.words} ({_why(r)})" for r in standing]
        if not over and self._mode is not Mode.LOCKOUT:
            return refused(*lines) if standing else done("nothing waits for an operator")
        self._is_reset = True
        if self._mode is Mode.LOCKOUT:
            self._mode = None
            lines += self._keep()
        cleared = [f"cleared: {r.words}" for r in over] or ["the lockout ends"]
        return {"ok": not standing, "lines": [*cleared, *lines]}

    def _keep(self) -> tuple[str, ...]:
        """The standing order on disk, or a word about why it is not there."""
        try:
            if self._mode is None:
                self._path.unlink(missing_ok=True)
            else:
                write_whole(self._path, json.dumps({"mode": self._mode.name}))
        except OSError as error:
            return (f"not kept for a restart of the controller: {self._path}: {error.strerror or error}",)
        return ()


def _why(reason: Reason) -> str:
    is_for_ever = TABLE[reason.flag].clear is Clear.NEVER_THIS_BOOT
    return "only a restart of the controller clears it" if is_for_ever else "the cause is still there"


def _kept(path: Path) -> Mode | None:
    """The order that stood when the last controller ended; a damaged file counts as none, and is said."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(FILE_BYTES_MAX))["mode"]
        mode = Mode[found]
        if mode not in BEGINS:
            raise ValueError(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.error("an operator's order cannot be read back; none is in force", path=str(path), cause=str(error))
        return None
    return mode
