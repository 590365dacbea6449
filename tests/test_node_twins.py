"""Two agents on the GPUs of one node: the second, started from a shell beside the service, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.node import run
from controller.node.originals import NodeLock, OriginalsFile, how_to
from controller.types import GpuOriginals
from hil import vtime
from tests.node_kit import FakeGpu, settings


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "service"
    monkeypatch.setattr(run, "SERVICE_STATE", folder)
    return folder


def gpus() -> list[FakeGpu]:
    async def made() -> list[FakeGpu]:
        clock = vtime.VirtualClock(vtime.running_loop(), start_utc_s=0.0)
        return [FakeGpu("GPU-0", clock), FakeGpu("GPU-1", clock)]

    return vtime.run(made())


def save(folder: Path, *names: str) -> None:
    found = tuple(GpuOriginals(name, 650.0, 700.0, 650.0, None) for name in names)  # type: ignore[arg-type]
    OriginalsFile(folder).save(how_to(settings(folder)), found, boot_id="boot-1")


def test_gpus_that_the_running_service_drives_are_left_to_it(service: Path, tmp_path: Path) -> None:
    """Its caps would be saved as what was found, and GPUs stay capped after both had stopped."""
    with NodeLock(service) as lock:
        assert lock.try_acquire()
        save(service, "GPU-1")
        with pytest.raises(BadInput, match=r"the service drives GPU-1 \(process \d+\); stop it first"):
            run.require_alone(gpus(), state_dir=tmp_path / "own")
        run.require_alone(gpus(), state_dir=service)  # the service itself
        run.require_alone(gpus()[:1], state_dir=tmp_path / "own")


@pytest.mark.parametrize("left", [(), ("GPU-0", "GPU-1")])
def test_a_service_that_does_not_run_stands_in_nobodys_way(
    left: tuple[str, ...], service: Path, tmp_path: Path
) -> None:
    """Not installed, or dead with its originals on file: no folder is made on the way."""
    if left:
        save(service, *left)
    run.require_alone(gpus(), state_dir=tmp_path / "own")
    assert service.exists() == bool(left)


def test_a_damaged_file_of_the_service_is_its_own_business(service: Path, tmp_path: Path) -> None:
    with NodeLock(service) as lock:
        assert lock.try_acquire()
        (service / "originals.json").write_text("half")
        run.require_alone(gpus(), state_dir=tmp_path / "own")
