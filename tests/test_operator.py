"""An operator's orders: over the control socket, refused while a cause is there, kept, logged, obeyed and replayed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from controller import control_socket
from controller.app import make_core
from controller.cli.main import app
from controller.cli.status import _print
from controller.cli.status_words import lines
from controller.config.site import parse_site
from controller.control_socket import ControlSocket, Peer, fetch, send_order
from controller.errors import BadInput
from controller.modes import TABLE, Flag, Reason
from controller.operator_desk import OperatorDesk
from controller.reasons import MEANS, said
from controller.reload import Reload
from controller.replay import replay
from controller.settings import Settings
from controller.telemetry import NOTHING_YET, Reporter
from controller.types import AgentState, MeterSample, Mode, NodeReport, OperatorOrder, Reading, Trouble
from drivers.metrics import Metrics
from drivers.recorder import FileRecorder
from hil.lab_site import SITE, lab_scenario
from hil.matrix_lab import Lab, in_lab
from tests.faults_kit import flagged

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


# ------------------------------------------------------------------------------------------------ in the lab


@dataclass
class Orders:
    """An `OperatorSource` that a story writes to."""

    mode: Mode | None = None
    is_reset: bool = False
    troubles: tuple[Trouble, ...] = ()

    def order(self) -> OperatorOrder | None:
        is_reset, self.is_reset = self.is_reset, False
        return OperatorOrder(self.mode, is_reset) if is_reset or self.mode is not None else None


def kilowatts(reading: Reading[MeterSample]) -> Reading[MeterSample]:
    return replace(reading, value=replace(reading.value, power_w=reading.value.power_w / 1e3))


def test_a_meter_locked_out_is_believed_again_after_a_reset_and_not_before() -> None:
    """S5: repaired later. A reset before that changes nothing, and the desk is told why; after it NORMAL returns."""
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(14.0)
        since_s = lab.now_s
        lab.hooks.meter = kilowatts
        await flagged(lab, Flag.METER_UNIT_WRONG, since_s=since_s, within_s=2.0)
        assert lab.daemon is not None
        await lab.run(5.0)
        core = lab.daemon.core
        assert Flag.METER_UNIT_WRONG in core.reset_obstacles
        orders.is_reset = True
        await lab.run(5.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags
        lab.heal()
        await lab.run(15.0)
        assert Flag.METER_UNIT_WRONG in lab.last.flags and lab.last.mode is Mode.SHED, "repaired is not yet looked at"
        assert Flag.METER_UNIT_WRONG not in core.reset_obstacles
        orders.is_reset = True
        await lab.run(1.0)
        assert Flag.METER_UNIT_WRONG not in lab.last.flags
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=40.0)

    assert not in_lab(story, lab_scenario("steady")).broken()


def test_release_gives_a_job_back_whole_inside_the_rows_and_resume_takes_control_again() -> None:
    """At a ceiling, caps at work: all nodes of the job climb at one pace until they are free; then all obey again."""
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(34.0)
        nodes = list(lab.link.nodes.values())
        held_mhz = lab.caps_mhz()
        assert np.isfinite([node.clock_cap_mhz for node in nodes]).all(), "caps at work"
        orders.mode = Mode.RELEASE
        await lab.run(1.0)
        assert lab.last.mode is Mode.RELEASE
        for _ in range(4):
            await lab.run(10.0)
            assert max(lab.caps_mhz()) - min(lab.caps_mhz()) <= 15.0, (
                "a clock step at most: it runs at its slowest's pace"
            )
        assert min(lab.caps_mhz()) > max(held_mhz) and nodes[0].state is not AgentState.RELEASED, (
            "at the contract's slope"
        )
        await lab.until(lambda: {node.state for node in nodes} == {AgentState.RELEASED}, within_s=150.0)
        assert np.isnan([node.clock_cap_mhz for node in nodes]).all()
        orders.mode = None
        await lab.until(lambda: {n.state for n in lab.link.nodes.values()} == {AgentState.ARMED}, within_s=30.0)
        await lab.until(lambda: lab.last.mode <= Mode.SHED and np.isfinite(nodes[0].clock_cap_mhz), within_s=30.0)

    assert not in_lab(story, lab_scenario("limit")).broken()


def test_fallback_and_lockout_do_what_they_say_and_are_left() -> None:
    orders = Orders()

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(14.0)
        orders.mode = Mode.FALLBACK
        await lab.run(3.0)
        assert lab.last.mode is Mode.FALLBACK
        orders.mode = None
        await lab.until(lambda: lab.last.mode is Mode.NORMAL, within_s=60.0)
        orders.mode = Mode.LOCKOUT
        await lab.run(2.0)
        commands = [t.checked.command for t in lab.traces if t.image.t_mono_s > lab.now_s - 1.5]
        assert lab.last.mode is Mode.LOCKOUT and commands and not any(c.battery or c.nodes for c in commands)
        orders.mode = None
        await lab.run(15.0)
        assert lab.last.mode is Mode.LOCKOUT, "until a reset"
        orders.is_reset = True
        await lab.until(lambda: lab.last.mode <= Mode.DEGRADED, within_s=5.0)

    in_lab(story, lab_scenario("steady"))


def test_orders_are_in_the_image_so_a_replay_sees_them_at_the_same_cycles(tmp_path: Path) -> None:
    orders, path = Orders(), tmp_path / "run.jsonl.gz"
    scenario = lab_scenario("steady")
    recorder = FileRecorder(path, header={"settings": scenario.settings}, on_fault=lambda why: None)

    async def story(lab: Lab) -> None:
        lab.operator = orders
        lab.start()
        await lab.run(12.0)
        orders.mode = Mode.RELEASE
        await lab.run(5.0)
        orders.mode, orders.is_reset = None, True
        await lab.run(5.0)
        assert lab.saw(Flag.OPERATOR_RELEASE, since_s=0.0)

    in_lab(story, scenario, recorder=recorder)
    recorder.close()
    found = replay(path, make_core)
    assert found.cycles > 200 and found.different == 0, found.first


# ------------------------------------------------------------------------------------------------ what status says


def test_a_reason_names_who_is_meant_what_to_do_and_what_ends_it() -> None:
    sentences: list[str] = []

    async def story(lab: Lab) -> None:
        lab.start()
        await lab.run(6.0)
        lab.fault("node:training-0", "off")
        await lab.run(9.0)
        trace = lab.traces[-1]
        sentences.extend(said(reason, trace.image) for reason in trace.decision.mode.reasons)
        lab.heal()
        await lab.run(4.0)
        trace = lab.traces[-1]
        sentences.extend(said(reason, trace.image) for reason in trace.decision.mode.reasons)

    in_lab(story, lab_scenario("steady"))
    assert (
        "a node agent is silent; its node counts at nameplate (training-0): look at rampart-node there, and at the"
        " broker; clears once its cause has been gone for ten planner periods"
    ) in sentences
    assert any("(over)" in sentence for sentence in sentences)


def test_status_prints_every_reason_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    shed = {"site": "lab", "mode": "SHED", "mode_since_s": 200.0, "contract": "c", "reasons": ["a", "b"],
            "unmet": ["x"], "power": {"pcc_w": 64_844_786.577, "soc_frac": 0.5, "load_source": "nodes"},
            "margins": []}  # fmt: skip
    _print(shed)
    shown = capsys.readouterr().out
    assert "because a" in shown and "because b" in shown and "SHED for 3 min" in shown
    assert "not met now, though control has begun: x" in shown, "limits are kept all the same"
    assert "64.84 MW" in shown and "state of charge 50.0 %" in shown
    _print(shed | {"mode": "STARTING"})
    assert "not armed: x" in capsys.readouterr().out, "nothing is written"


def test_status_says_how_near_each_limit_is_the_nearest_first() -> None:
    """What the runbook promises of it, on a living site: rows with what is left, caps, classes, signals, the loop."""
    found: list[list[str]] = []

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        reporter = Reporter(lab.site, metrics=Metrics(None), core=lab.daemon.core)
        lab.daemon.observe(reporter.observe)
        await lab.run(8.0)
        found.append(list(lines(json.loads(json.dumps(reporter.document())))))

    in_lab(story, lab_scenario("steady"))
    (told,) = found
    rows = [line for line in told if line.startswith("limit ")]
    assert len(rows) == 2 and "ieso-ramp.swing-15s" in rows[0] and "ieso-ramp.ramp-60s" in rows[1]
    assert all(re.search(r": [\d.]+ [kM]?W of [\d.]+ MW, [\d.]+ [kM]W left", row) for row in rows)
    for start, words in (("grid ", "admissible"), ("load ", "by the meter"), ("battery ", "state of charge"),
                         ("GPUs ", "on "), ("loop ", "skipped")):  # fmt: skip
        assert [line for line in told if line.startswith(start) and words in line], start


def test_status_names_signals_slowed_classes_and_what_runs_out() -> None:
    """Each part by its own words; a controller that only starts has none of them."""
    row = {"id": "r", "worst_w": 4e6, "limit_w": 5e6, "headroom_w": 1e6, "breach_s": 12.0, "is_estimate": True}
    empty = {"id": "s", "worst_w": None, "limit_w": 5e6, "headroom_w": None, "breach_s": None, "is_estimate": False}
    tier = {"class": "train", "tolerated_loss_frac": 0.1, "lost_frac": 0.2, "window_s": 3600.0, "is_exceeded": True}
    starting = {"site": "lab", "mode": "STARTING", "contract": "c", "reasons": [], "unmet": [], "margins": []}
    assert list(lines(starting)) == []
    told = list(lines(starting | {
        "power": {"target_w": 2e6, "load_w": 2e6, "load_source": "lost", "cap_frac": 0.5, "t_eff_s": 0.7},
        "gpus": 8, "nodes": 1, "tiers": [tier, tier | {"class": "calm", "lost_frac": 0.0}],
        "rows": [row, empty, empty | {"id": "target.1"}],
        "signals": [{"id": "1", "kind": "load_target", "issuer": "iso", "target_w": 15e6},
                    {"id": "2", "kind": "ramp_limit", "issuer": "iso", "target_w": None}],
    }))  # fmt: skip
    assert told == [
        "grid    not metered, target 2.00 MW, admissible any to any",
        "load    2.00 MW, nobody measures: the last value, its margin grows",
        "GPUs    8 on 1 node: caps leave 50.0 % of full in the mean",
        "class   train lost 20.00 % of its work within 60 min; 10 % is tolerated  EXCEEDED",
        "signal  load target of 15.00 MW, asked by iso",
        "signal  ramp limit, asked by iso",
        "limit   s: ? of 5.00 MW, ?",
        "limit   target of iso: ? of 5.00 MW, ?",
        "limit   r: 4.00 MW of 5.00 MW, 1.00 MW left (estimate), reached in 12 s at the present slope",
    ]


def test_status_says_what_every_mode_does() -> None:
    """Whoever reads FALLBACK at night need not know the table of modes."""
    assert set(MEANS) == set(Mode)
    seen: dict[str, str] = {}

    async def story(lab: Lab) -> None:
        lab.start()
        assert lab.daemon is not None
        reporter = Reporter(lab.site, metrics=Metrics(None), core=lab.daemon.core)
        lab.daemon.observe(reporter.observe)
        for seconds in (0.05, 3.0, 3.0, 3.0):
            document = reporter.document()
            seen[str(document["mode"])] = str(document["mode_means"])
            await lab.run(seconds)
            if seconds == 3.0:
                lab.fault("meter", "wrong", -1.0)
        seen["last"] = str(reporter.document()["mode_means"])

    in_lab(story, lab_scenario("steady"))
    assert seen["STARTING"] == NOTHING_YET and seen["NORMAL"] == MEANS[Mode.NORMAL]
    assert seen["last"] == MEANS[Mode.FALLBACK]


def test_a_gpu_above_its_limit_is_found_by_its_node() -> None:
    said_of: list[str] = []

    async def story(lab: Lab) -> None:
        def above(reading: Reading[NodeReport]) -> Reading[NodeReport]:
            report = reading.value
            power_w = 1.2 * report.power_limit_w if report.node_id == "training-2" else report.power_w
            return replace(reading, value=replace(report, power_w=power_w))

        lab.hooks.report = above
        lab.start()
        await lab.run(9.0)
        trace = lab.traces[-1]
        said_of.extend(said(reason, trace.image) for reason in trace.decision.mode.reasons)

    in_lab(story, lab_scenario("steady"))
    assert any("more than its power limit" in words and "(training-2)" in words for words in said_of), said_of
