"""The guard: a small process that outlives the agent and gives the GPUs back when the agent dies without doing so.

Started before the first write, in a session of its own, so that Ctrl-C reaches the agent only. It holds one end of a
pipe and nothing of NVML until the other end closes. A byte before that means a clean stop. Where systemd runs the
agent, `ExecStopPost=` does the same and no guard is started. It never races a restarted agent: whoever holds the
node's lock is responsible, and an agent that took it over arms again from the saved file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

CLEAN = b"c"
STOP_S_MAX = 2.0


class Guard:
    """The agent's end."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

    def start(self) -> None:
        """Start it; a second call replaces one that died. Raises OSError where no process can be started."""
        if self.is_alive:
            return
        self._close()
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "controller.node.guard", str(reader), str(self._state_dir)],
                pass_fds=(reader,),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._pipe = writer

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def dismiss(self) -> None:
        """Tell it that everything is given back, and wait for it to go."""
        if self._pipe is not None:
            with suppress(OSError):
                os.write(self._pipe, CLEAN)
        self._close()

    def abandon(self) -> None:
        """Close the pipe without the word: the guard gives back what is still on file."""
        self._close(waits=False)

    def _close(self, *, waits: bool = True) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None and waits:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_S_MAX)
        self._process = None


def main(reader: int, state_dir: Path) -> int:
    """Wait for the agent's end; then restore unless it said that it had. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it goes when the agent goes, not before
    agent_pid = os.getppid()
    if os.read(reader, 1) == CLEAN:
        return 0
    from controller.clock import MonotonicClock
    from controller.node.run import restore_after_death

    return asyncio.run(restore_after_death(state_dir, agent_pid=agent_pid, clock=MonotonicClock()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
