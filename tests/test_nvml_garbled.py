"""GPUs that answer what no GPU should: a line about that GPU, and the others are driven as ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from drivers.errors import BadReply
from tests.nvml_kit import FakeNode, fake_node, library

pytestmark = pytest.mark.wire


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with fake_node(tmp_path) as found:
        yield found


def garbled(*args: Any) -> Any:
    b"\xff".decode()


@pytest.mark.parametrize(
    ("call", "answer", "word"),
    [
        ("nvmlDeviceGetSupportedMemoryClocks", lambda handle: [], "no clocks"),
        ("nvmlDeviceGetSupportedGraphicsClocks", lambda handle, memory: [], "no clocks"),
        ("nvmlDeviceGetName", garbled, "no text"),
        ("nvmlDeviceGetUUID", garbled, "no text"),
    ],
)
async def test_one_gpu_out_of_its_mind_is_left_out(
    call: str, answer: Any, word: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged InfoROM, or a GPU without clocks to choose from, as the library's own special case has it."""
    healthy, asked = getattr(pynvml, call), []

    def first_is_odd(*args: Any) -> Any:
        asked.append(args)
        return answer(*args) if len(asked) == 1 else healthy(*args)

    monkeypatch.setattr(pynvml, call, first_is_odd)
    found = library(node.clock)
    assert len(await found.open()) == node.gpus.count - 1
    (failed,) = found.failed
    assert word in str(failed)


async def test_a_driver_without_a_readable_version_is_a_bad_reply(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", garbled)
    with pytest.raises(BadReply, match="driver version"):
        await library(node.clock).open()
