"""The guard's decisions: who is responsible after the agent's end, and how long it keeps trying."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from controller.node import guard, run
from controller.node.originals import NodeLock
from controller.node.restore import Outcome
from controller.types import GpuId
from drivers.errors import DriverUnavailable
from hil import vtime

DONE, FAILED = Outcome(GpuId("GPU-0"), ""), Outcome(GpuId("GPU-0"), "no answer")


class Script:
    """Stands in for the restoring itself: one answer per attempt, the last one for ever."""

    def __init__(self, *answers: Outcome | str) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    async def __call__(self, state_dir: Path, *, to_fallback: bool, clock: vtime.VirtualClock) -> Sequence[Outcome]:
        assert not to_fallback and not NodeLock(state_dir).try_acquire(), "restores without holding the lock"
        self.times.append(clock.now_s())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            raise DriverUnavailable("nvml", answer)
        return (answer,)


def after_death(folder: Path, script: Script, monkeypatch: pytest.MonkeyPatch, *, agent_pid: int = 1) -> int:
    monkeypatch.setattr(run, "restore_node", script)

    async def main() -> int:
        clock = vtime.VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        return await run.restore_after_death(folder, agent_pid=agent_pid, clock=clock)

    return vtime.run(main())


def test_it_restores_at_once_and_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(DONE)
    assert after_death(tmp_path, script, monkeypatch) == 0 and script.times == [0.0]
    assert NodeLock(tmp_path).try_acquire()


def test_it_tries_again_while_nvml_is_wedged_or_a_gpu_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script("driver not loaded", FAILED, DONE)
    assert after_death(tmp_path, script, monkeypatch) == 0
    assert script.times == pytest.approx([0.0, run.GUARD_RETRY_S, 2 * run.GUARD_RETRY_S])


def test_it_gives_up_in_the_end_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script("driver not loaded")
    assert after_death(tmp_path, script, monkeypatch) == 1 and len(script.times) == run.GUARD_ATTEMPTS


def test_a_new_agent_that_holds_the_node_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(DONE)
    with NodeLock(tmp_path) as theirs:
        assert theirs.try_acquire()
        assert after_death(tmp_path, script, monkeypatch) == 0 and script.times == []


def test_an_agent_that_is_still_dying_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe may close before the kernel lets go of the lock: that holder is the one being buried."""
    script, theirs, waits = Script(DONE), NodeLock(tmp_path), []
    assert theirs.try_acquire()
    ask = NodeLock.holder

    def holder(self: NodeLock) -> str:
        waits.append(1)
        if len(waits) == 5:
            theirs.release()
        return ask(self)

    monkeypatch.setattr(NodeLock, "holder", holder)
    assert after_death(tmp_path, script, monkeypatch, agent_pid=os.getpid()) == 0
    assert len(waits) == 5 and script.times == pytest.approx([5 * run.LOCK_POLL_S])


def test_the_word_of_a_clean_stop_sends_it_away(tmp_path: Path) -> None:
    """As real processes: dismissed it goes with 0 and has touched nothing; a second dismissal is harmless."""
    watch = guard.Guard(tmp_path)
    watch.start()
    process = watch._process
    assert process is not None and watch.is_alive and os.getsid(process.pid) == process.pid
    watch.start()
    assert watch._process is process
    watch.dismiss()
    watch.dismiss()
    assert process.wait(timeout=10) == 0 and not watch.is_alive and list(tmp_path.iterdir()) == []


def test_a_guard_that_died_is_replaced(tmp_path: Path) -> None:
    watch = guard.Guard(tmp_path)
    watch.start()
    assert watch._process is not None
    first = watch._process
    first.kill()
    first.wait()
    watch.start()
    assert watch.is_alive and watch._process is not first
    watch.dismiss()
