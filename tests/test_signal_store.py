"""The file of accepted signals on a disk that refuses for a while: what was accepted is kept as soon as it can be."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from controller.files import write_whole
from drivers import signal_store
from drivers.signal_store import SignalStore
from tests.mqtt_kit import until


async def test_what_a_full_disk_refused_is_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit accepted on a full disk must outlive a restart an hour later, although nothing new was accepted since."""
    path, write = tmp_path / "signals.json", write_whole
    is_full = True

    def on_disk(path: Path, text: str) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(signal_store, "write_whole", on_disk)
    monkeypatch.setattr(signal_store, "RETRY_S", 0.05)
    store = SignalStore(path, take=lambda: {"limit": 40})
    running = asyncio.create_task(store.run())
    store.changed()
    await asyncio.sleep(0.2)
    assert store.load() is None
    is_full = False
    await until(lambda: store.load() is not None)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert json.loads(path.read_text()) == {"limit": 40}
