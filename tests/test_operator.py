"""An operator's orders: what the desk takes and keeps, who may give them on the socket, and what the commands say."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller import control_socket
from controller.cli.main import app
from controller.config.site import parse_site
from controller.control_socket import ControlSocket, Peer, fetch, send_order
from controller.errors import BadInput
from controller.modes import TABLE, Flag, Reason
from controller.operator_desk import OperatorDesk
from controller.reload import Reload
from controller.settings import Settings
from controller.types import Mode, OperatorOrder
from hil.lab_site import SITE

ROOT = Peer(1, 0, 0)

SETTINGS = parse_site({**SITE, "mqtt": {}}, origin="site.yaml")


@dataclass
class Core:
    """What the desk asks of the core."""

    flags: frozenset[Flag] = frozenset()
    reset_obstacles: frozenset[Flag] = frozenset()

    @property
    def reasons(self) -> list[Reason]:
        return [Reason(f, TABLE[f].mode, 0.0, True, TABLE[f].words, TABLE[f].clear.value) for f in sorted(self.flags)]


@dataclass
class Office:
    """A desk, the core it asks, and what was audited."""

    path: Path
    core: Core = field(default_factory=Core)
    audited: list[Mapping[str, object]] = field(default_factory=list)
    files: list[Settings] = field(default_factory=list)  # as they are read

    def __post_init__(self) -> None:
        self.desk = self.reopened()

    def reopened(self) -> OperatorDesk:
        desk = OperatorDesk(self.path, audit=self.audited.append, reload=Reload(SETTINGS, read=self.read))
        desk.ask(self.core)
        return desk

    async def read(self) -> Settings:
        return self.files.pop()

    def take(self, order: str) -> tuple[bool, str]:
        answer = asyncio.run(self.desk.take(order, ROOT))
        lines = answer["lines"]
        assert isinstance(lines, list)
        return bool(answer["ok"]), "; ".join(lines)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path / "operator.json")


# ------------------------------------------------------------------------------------------------ the desk


def test_a_reset_is_told_once_and_says_what_it_clears(office: Office) -> None:
    office.core.flags = frozenset({Flag.ORIGINALS_CORRUPT, Flag.METER_STALE})
    ok, told = office.take("reset")
    assert ok and told == f"cleared: {TABLE[Flag.ORIGINALS_CORRUPT].words}"
    assert office.desk.order() == OperatorOrder(None, is_reset=True)
    assert office.desk.order() is None


def test_a_reset_is_refused_while_its_cause_is_there(office: Office) -> None:
    office.core.flags = office.core.reset_obstacles = frozenset({Flag.METER_UNIT_WRONG, Flag.LEADERSHIP_LOST})
    ok, told = office.take("reset")
    assert not ok and office.desk.order() is None
    assert f"{TABLE[Flag.METER_UNIT_WRONG].words} (the cause is still there)" in told
    assert f"{TABLE[Flag.LEADERSHIP_LOST].words} (only a restart of the controller clears it)" in told


def test_a_reset_clears_what_is_over_and_says_what_is_not(office: Office) -> None:
    office.core.flags = frozenset({Flag.METER_UNIT_WRONG, Flag.DEVICE_CHANGED})
    office.core.reset_obstacles = frozenset({Flag.DEVICE_CHANGED})
    ok, told = office.take("reset")
    assert not ok and "cleared: the site meter" in told and "not cleared: a device changed" in told
    assert office.desk.order() == OperatorOrder(None, is_reset=True)


def test_nothing_to_reset_is_no_error_and_changes_nothing(office: Office) -> None:
    office.core.flags = frozenset({Flag.METER_STALE})
    assert office.take("reset") == (True, "nothing waits for an operator") and office.desk.order() is None


@pytest.mark.parametrize(
    ("order", "mode"), [("release", Mode.RELEASE), ("fallback", Mode.FALLBACK), ("lockout", Mode.LOCKOUT)]
)
def test_an_order_of_a_mode_stands_until_withdrawn_also_over_a_restart(order: str, mode: Mode, office: Office) -> None:
    """GPUs that were given back are not quietly taken again because the controller crashed."""
    assert office.take(order)[0] and office.take(order) == (True, f"{order} is in force already")
    for _ in range(3):
        assert office.desk.order() == OperatorOrder(mode, is_reset=False)
    office.desk = office.reopened()
    assert office.desk.order() == OperatorOrder(mode, is_reset=False)
    if mode is Mode.LOCKOUT:
        ok, told = office.take("resume")
        assert not ok and "rampart reset" in told
        assert office.take("reset")[0] and office.desk.order() == OperatorOrder(None, is_reset=True)
    else:
        assert office.take("resume")[0]
    assert office.desk.order() is None and office.reopened().order() is None


def test_resuming_from_nothing_is_said(office: Office) -> None:
    assert office.take("resume") == (True, "no order is in force: there is nothing to resume from")


def test_an_order_that_cannot_be_kept_is_taken_and_that_is_said(tmp_path: Path) -> None:
    """X2: the disk is full, and the operator needs the site released now."""
    (tmp_path / "state").write_text("", encoding="ascii")
    office = Office(tmp_path / "state" / "operator.json")
    ok, told = office.take("release")
    assert ok and "not kept for a restart" in told and office.desk.order() == OperatorOrder(Mode.RELEASE, False)


@pytest.mark.parametrize("text", ["{", "[]", '{"mode": "NORMAL"}', '{"mode": "SOON"}', "\x00" * 9000])
def test_a_damaged_file_of_the_standing_order_counts_as_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    path.write_text(text, encoding="ascii")
    assert Office(path).desk.order() is None


def test_every_order_is_audited_with_who_gave_it_and_what_became_of_it(office: Office) -> None:
    for order in ("release", "resume", "dance"):
        office.take(order)
    assert [(line["order"], line["ok"], line["uid"]) for line in office.audited] == [
        ("release", True, 0),
        ("resume", True, 0),
        ("dance", False, 0),
    ]
    assert all(line["user"] == "root" and line["lines"] for line in office.audited)


# ------------------------------------------------------------------------------------------------ the socket


@contextmanager
def served(path: Path, desk: OperatorDesk) -> Iterator[None]:
    """The control socket on a loop of its own."""
    loop, server = asyncio.new_event_loop(), ControlSocket(path, snapshot=lambda: {"mode": "NORMAL"}, orders=desk.take)
    stop = asyncio.Event()

    async def main() -> None:
        running = asyncio.ensure_future(server.run())
        await stop.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        deadline_s = time.monotonic() + 10.0
        while not (path.exists() and path.stat().st_mode & 0o777 == 0o660):
            assert time.monotonic() < deadline_s, "it never listened"
            time.sleep(0.01)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10.0)
        loop.close()


def test_the_socket_serves_status_and_takes_orders(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen, may = tmp_path / "site.sock", list[Peer](), control_socket._may_order
    monkeypatch.setattr(control_socket, "_may_order", lambda peer, at: seen.append(peer) or may(peer, at))
    with served(path, office.desk):
        assert path.stat().st_mode & 0o777 == 0o660
        assert asyncio.run(fetch(path)) == {"mode": "NORMAL"}
        assert asyncio.run(send_order(path, "release"))["ok"] is True
        assert asyncio.run(send_order(path, "x" * 2000))["ok"] is False
    assert office.audited[0]["uid"] == os.getuid() and office.audited[0]["pid"] == os.getpid()
    assert seen and set(seen[0].groups) == set(os.getgroups()), "the kernel says the groups, too"
    assert not path.exists()


def test_nonsense_on_the_socket_is_answered_with_the_status(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "site.sock"

    async def say(raw: bytes) -> Any:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(raw)
        try:
            return json.loads(await reader.readline())
        finally:
            writer.close()

    with served(path, office.desk):
        for raw in (
            b"\n",
            b"{\n",
            b"[1]\n",
            b'{"order": 5}\n',
            b"\xff\xfe\n",
            b"[" * 3000 + b"\n",
            b"x" * 9000 + b"\n",
        ):
            assert asyncio.run(say(raw)) == {"mode": "NORMAL"}, raw[:10]
    assert not office.audited


def test_who_may_look_may_not_order(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets somebody through whom it should not have: the order is refused all the same."""
    monkeypatch.setattr(control_socket, "_peer", lambda writer: Peer(7, 65533, 65533))
    path = tmp_path / "site.sock"
    with served(path, office.desk):
        answer = asyncio.run(send_order(path, "release"))
    assert answer["ok"] is False and "may look but not order" in str(answer["lines"]) and office.desk.order() is None


def test_members_of_the_sockets_group_may_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("", encoding="ascii")
    group = path.stat().st_gid
    assert control_socket._may_order(Peer(1, 65533, group), path)
    assert control_socket._may_order(Peer(1, 65534, 65534, (7, group)), path), "as PrivateUsers= shows a member"
    assert control_socket._may_order(Peer(1, os.geteuid(), 65533), path)
    assert not control_socket._may_order(Peer(1, 65533, 65533), path)


def test_a_member_by_a_further_group_may_order(office: Office) -> None:
    """As `usermod -aG rampart` leaves a person: neither user nor first group of theirs is the service's."""
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        path, member = Path(folder) / "site.sock", 54321
        path.parent.chmod(0o755)
        with served(path, office.desk):
            os.chown(path, -1, member)
            path.chmod(0o666)  # whom the file keeps out is asked for nothing
            assert asked_by(path, groups=(54322, member))["ok"] is True
            assert asked_by(path, groups=(54322,))["ok"] is False


def asked_by(path: Path, *, groups: tuple[int, ...]) -> Any:
    """The answer to an order of somebody in `groups`."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups(groups)
            os.setgid(65533)
            os.setuid(65533)
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(str(path))
                wire.sendall(b'{"order": "release"}\n')
                os.write(writing, wire.makefile("rb").readline())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        return json.loads(answer.read())


def test_the_commands_say_what_became_of_the_order(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "site.sock"
    office.core.flags = office.core.reset_obstacles = frozenset({Flag.METER_UNIT_WRONG})
    with served(path, office.desk):
        run = CliRunner().invoke
        done = run(app, ["release", "--socket", str(path)])
        assert done.exit_code == 0 and "until `rampart resume`" in done.stdout
        assert run(app, ["resume", "--socket", str(path)]).exit_code == 0
        refused = run(app, ["reset", "--socket", str(path)])
        assert refused.exit_code == 1 and "cause is still there" in str(refused.exception)
        for order in ("fallback", "lockout"):
            assert run(app, [order, "--socket", str(path)]).exit_code == 0
        office.files.append(SETTINGS)
        same = run(app, ["reload", "--socket", str(path)])
        assert same.exit_code == 0 and "nothing in the file has changed" in same.stdout
    gone = run(app, ["reset", "--socket", str(path)])
    assert gone.exit_code == 1 and "no controller answers" in str(gone.exception)


@pytest.mark.parametrize("command", ["status", "reset", "release"])
def test_a_folder_that_may_not_be_entered_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """/run/rampart lets its group in alone: whoever is not of it hears so."""

    def refuse(_: Path, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    said = CliRunner().invoke(app, [command, "--socket", str(tmp_path / "site.sock")])
    assert isinstance(said.exception, BadInput) and "the group of the service" in str(said.exception)


@pytest.mark.parametrize("order", ["reset", "release", "fallback", "lockout", "resume", "reload"])
def test_each_command_has_help_with_an_example(order: str) -> None:
    shown = CliRunner().invoke(app, [order, "--help"])
    assert shown.exit_code == 0 and f"Example: rampart {order}" in shown.stdout
