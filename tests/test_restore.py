"""Giving settings back, over GPUs in memory: staggered, every GPU for itself, and what failed stays on file."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.main import app
from controller.config.load import data_root
from controller.errors import BadInput
from controller.node import originals
from controller.node.originals import NodeLock, OriginalsFile, how_to
from controller.node.restore import Outcome
from controller.node.run import restore_node
from controller.types import GpuCap
from hil import vtime
from tests.node_kit import FALLBACK_MHZ, FakeGpu, settings


class Left:
    """Three GPUs as a dead agent left them, and its file."""

    def __init__(self, folder: Path, *, stagger_s: float = 0.0, boot_id: str = "other boot") -> None:
        self.folder = folder
        self.clock = vtime.VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        self.gpus = [FakeGpu(f"GPU-{i}", self.clock) for i in range(3)]
        self._settings = settings(folder, stagger_s=stagger_s, limit_w=400.0)
        self._boot_id = boot_id

    async def leave(self) -> None:
        found = [await gpu.originals() for gpu in self.gpus]
        OriginalsFile(self.folder).save(how_to(self._settings), found, boot_id=self._boot_id)
        for gpu in self.gpus:
            await gpu.write(GpuCap(gpu.spec.gpu_id, 900, 300.0))

    async def restore(self, *, to_fallback: bool = False) -> Sequence[Outcome]:
        async def opened() -> list[FakeGpu]:
            return self.gpus

        return await restore_node(self.folder, to_fallback=to_fallback, clock=self.clock, open_gpus=opened)


def play(folder: Path, story: Callable[[Left], Awaitable[None]], *, stagger_s: float = 0.0, boot_id: str = "b") -> None:
    async def main() -> None:
        left = Left(folder, stagger_s=stagger_s, boot_id=boot_id)
        await left.leave()
        await story(left)

    vtime.run(main())


def test_originals_come_back_and_the_file_goes(tmp_path: Path) -> None:
    async def story(left: Left) -> None:
        assert all(outcome.is_done for outcome in await left.restore())
        assert [(gpu.clock_mhz, gpu.limit_w) for gpu in left.gpus] == [(None, 650.0)] * 3
        assert OriginalsFile(tmp_path).load() is None and await left.restore() == ()

    play(tmp_path, story)


def test_fallback_keeps_the_file(tmp_path: Path) -> None:
    async def story(left: Left) -> None:
        for _ in range(2):
            assert all(outcome.is_done for outcome in await left.restore(to_fallback=True))
        assert [(gpu.clock_mhz, gpu.limit_w) for gpu in left.gpus] == [(FALLBACK_MHZ, 400.0)] * 3
        saved = OriginalsFile(tmp_path).load()
        assert saved is not None and {gpu.power_limit_w for gpu in saved.gpus} == {650.0}

    play(tmp_path, story)


@pytest.mark.parametrize("to_fallback", [False, True])
def test_gpus_follow_one_another(tmp_path: Path, to_fallback: bool) -> None:
    async def story(left: Left) -> None:
        start_s = left.clock.now_s()
        await left.restore(to_fallback=to_fallback)
        times = [gpu.writes[-1][0] if to_fallback else gpu.restores[0] for gpu in left.gpus]
        assert [t - start_s for t in times] == pytest.approx([0.0, 4.0, 8.0])

    play(tmp_path, story, stagger_s=4.0)


def test_one_that_fails_holds_up_no_other_and_stays_on_file(tmp_path: Path) -> None:
    async def story(left: Left) -> None:
        left.gpus[0].is_lost = True
        outcomes = await left.restore()
        assert [outcome.is_done for outcome in outcomes] == [False, True, True] and "bus" in outcomes[0].error
        saved = OriginalsFile(tmp_path).load()
        assert saved is not None and [gpu.gpu_id for gpu in saved.gpus] == ["GPU-0"]
        left.gpus[0].is_lost = False
        assert [outcome.is_done for outcome in await left.restore()] == [True]

    play(tmp_path, story)


def test_a_gpu_taken_out_is_forgotten_after_the_next_boot_only(tmp_path: Path) -> None:
    from controller.node.originals import boot_id

    for name, is_kept in ((boot_id(), True), ("the boot before", False)):

        async def story(left: Left, is_kept: bool = is_kept) -> None:
            left.gpus = left.gpus[1:]
            outcomes = await left.restore()
            assert outcomes[0].error == "not found on this node"
            assert (OriginalsFile(left.folder).load() is not None) is is_kept

        play(tmp_path / name.replace(" ", ""), story, boot_id=name)


def test_damaged_originals_become_device_defaults(tmp_path: Path) -> None:
    async def story(left: Left) -> None:
        (tmp_path / "originals.json").write_text("{")
        assert all(outcome.is_done for outcome in await left.restore())
        assert [(gpu.clock_mhz, gpu.limit_w) for gpu in left.gpus] == [(None, 700.0)] * 3

    play(tmp_path, story)


def test_to_fallback_with_damaged_originals_leaves_device_defaults_for_the_next_agent(tmp_path: Path) -> None:
    """As after a crash under systemd: the agent that starts next must not take limits in force for what was found."""

    async def story(left: Left) -> None:
        (tmp_path / "originals.json").write_text("{")
        assert all(outcome.is_done for outcome in await left.restore(to_fallback=True))
        saved = OriginalsFile(tmp_path).load()
        assert saved is not None and saved.is_stand_in
        assert [gpu.power_limit_w for gpu in saved.gpus] == [700.0] * 3
        assert all(outcome.is_done for outcome in await left.restore())
        assert [(gpu.clock_mhz, gpu.limit_w) for gpu in left.gpus] == [(None, 700.0)] * 3

    play(tmp_path, story)


# -------------------------------------------------------------------------------------------------------- the command


def test_where_nothing_was_changed_it_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        done = CliRunner().invoke(app, ["restore", "--state-dir", str(folder)])
        assert done.exit_code == 0 and "nothing to do" in done.output
    assert not (tmp_path / "absent").exists()


def test_it_refuses_while_an_agent_drives_the_node(tmp_path: Path) -> None:
    with NodeLock(tmp_path) as lock:
        assert lock.try_acquire()
        done = CliRunner().invoke(app, ["restore", "--state-dir", str(tmp_path)])
    assert isinstance(done.exception, BadInput) and "stop it" in str(done.exception)


@pytest.mark.parametrize("words", [(), ("--config", "node.yaml")])
def test_settings_that_the_service_saved_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """`sudo rampart restore` at 3 a.m.: the agent under systemd keeps its state elsewhere than a person's own agent."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(data_root() / "configs" / "node.example.yaml", "node.yaml")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    service = tmp_path / "service"
    monkeypatch.setattr(originals, "SERVICE_STATE", service)
    absent = CliRunner().invoke(app, ["restore", *words])
    assert absent.exit_code == 0 and f"no saved settings in {tmp_path / 'mine'}" in absent.output.replace("\n", "")
    assert str(service) in absent.output and not service.exists() and not (tmp_path / "mine").exists()
    with NodeLock(service) as lock:
        assert lock.try_acquire()
        done = CliRunner().invoke(app, ["restore", *words])
        elsewhere = CliRunner().invoke(app, ["restore", *words, "--state-dir", str(tmp_path / "mine")])
    assert isinstance(done.exception, BadInput) and str(service) in str(done.exception)
    assert elsewhere.exit_code == 0 and str(service) not in elsewhere.output


def test_the_folder_looked_into_is_the_one_of_the_shipped_unit() -> None:
    unit = (data_root() / "systemd" / "rampart-node.service").read_text(encoding="utf-8")
    assert f"--state-dir {originals.SERVICE_STATE}\n" in unit


def test_a_goal_it_does_not_know_is_wrong_input() -> None:
    assert CliRunner().invoke(app, ["restore", "--to", "heaven"]).exit_code == 2
