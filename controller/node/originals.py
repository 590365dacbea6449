"""GPU settings as found before the first write, on disk: written whole or not at all, and never overwritten.

The file is what a restarted agent, a guard or `rampart restore` gives back, so it also carries what they need if the
configuration is gone by then. For a damaged file device defaults stand in, which is said; nobody guesses.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from controller.codec import decode, encode
from controller.files import overwrite, read_file, sync_folder, write_whole
from controller.settings import NodeSettings
from controller.types import GpuId, GpuOriginals, GpuSpec, SmoothingFound, frozen, replace

SERVICE_STATE = Path("/var/lib/rampart-node")  # StateDirectory= of systemd/rampart-node.service
FILE_NAME = "originals.json"
LOCK_NAME = "node.lock"
FORMAT = "rampart-originals/2"
OLD_FORMAT = "rampart-originals/1"  # knew nothing of power smoothing
FILE_BYTES_MAX = 16 << 20  # a node of 16 GPUs takes kilobytes


class OriginalsCorrupt(Exception):
    """The file is there and is not what was written."""


@frozen
class HowTo:
    """What giving back or falling back needs to know, kept beside the originals in case the configuration is gone."""

    fallback_clock_mhz: int
    fallback_power_limit_w: float | None
    release_stagger_s: float
    driver_versions: str
    call_deadline_s: float
    arms_floor: bool = False  # power smoothing is written too


def how_to(settings: NodeSettings) -> HowTo:
    return HowTo(
        fallback_clock_mhz=settings.fallback_clock_mhz,
        fallback_power_limit_w=settings.fallback_power_limit_w,
        release_stagger_s=settings.release_stagger_s,
        driver_versions=settings.driver_versions,
        call_deadline_s=settings.call_deadline_s,
        arms_floor=settings.smoothing is not None,
    )


@frozen
class Saved:
    """What the file says: the settings of each GPU, and how to give them back without a configuration.

    `is_stand_in`: what was found was lost with a damaged file, and device defaults took its place.
    """

    boot_id: str
    how_to: HowTo
    gpus: tuple[GpuOriginals, ...]
    is_stand_in: bool = False

    @property
    def by_id(self) -> Mapping[GpuId, GpuOriginals]:
        return {gpu.gpu_id: gpu for gpu in self.gpus}


class OriginalsFile:
    """The file in one state directory. Every method may raise OSError: no disk, no arming."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME

    def load(self) -> Saved | None:
        """What was saved; None where nothing is. OriginalsCorrupt for a damaged file, which stays where it is."""
        try:
            text = read_file(self.path, bytes_max=FILE_BYTES_MAX).decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            text = ""
        try:
            document = json.loads(text)
            body = document["body"]
            if document["format"] not in (FORMAT, OLD_FORMAT) or document["sha256"] != _checksum(body):
                raise ValueError("checksum")
            saved = decode(Saved, _renewed(body) if document["format"] == OLD_FORMAT else body)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise OriginalsCorrupt(f"{self.path}: damaged") from None
        assert isinstance(saved, Saved)
        return saved

    def save(self, how: HowTo, gpus: Sequence[GpuOriginals], *, boot_id: str) -> Saved:
        """Add the GPUs that are not there yet; what is there stays as it is, how to restore follows the newest."""
        before = self.load()
        kept = before.gpus if before else ()
        known = {gpu.gpu_id for gpu in kept}
        added = tuple(gpu for gpu in gpus if gpu.gpu_id not in known)
        saved = Saved(
            boot_id=before.boot_id if before else boot_id,
            how_to=how,
            gpus=(*kept, *added),
            is_stand_in=before.is_stand_in if before else False,
        )
        if saved != before:
            self._write(saved)
        return saved

    def stand_in(self, how: HowTo, specs: Sequence[GpuSpec], *, boot_id: str) -> Saved:
        """Device defaults in the place of a damaged file, of which a copy is kept as `originals.damaged`.

        On disk before anything is done by them: what is set by now must never pass for what was found.
        """
        gpus = device_defaults(specs, arms_floor=how.arms_floor)
        with suppress(OSError):
            shutil.copyfile(self.path, self.path.with_suffix(".damaged"))
        saved = Saved(boot_id=boot_id, how_to=how, gpus=gpus, is_stand_in=True)
        self._write(saved)
        return saved

    def keep_only(self, saved: Saved, gpu_ids: frozenset[GpuId]) -> None:
        """Drop the GPUs that have their settings back; without any left the file goes."""
        left = tuple(gpu for gpu in saved.gpus if gpu.gpu_id in gpu_ids)
        if left:
            self._write(replace(saved, gpus=left))
            return
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _write(self, saved: Saved) -> None:
        body = encode(saved)
        text = json.dumps({"format": FORMAT, "sha256": _checksum(body), "body": body}, indent=1)
        write_whole(self.path, text)


def _renewed(body: dict[str, Any]) -> dict[str, Any]:
    """What an agent of before wrote, in today's form."""
    if any("smoothing" in gpu for gpu in body["gpus"]):
        raise ValueError("a body of today under the name of before")
    gpus = [{**gpu, "smoothing": None} for gpu in body["gpus"]]
    return {**body, "how_to": {**body["how_to"], "arms_floor": False}, "gpus": gpus, "is_stand_in": False}


def device_defaults(specs: Sequence[GpuSpec], *, arms_floor: bool) -> tuple[GpuOriginals, ...]:
    """What stands in for damaged originals: each device's own default limit, no clock lock, no power smoothing."""
    smoothing = SmoothingFound(False, None, 0, None) if arms_floor else None
    return tuple(
        GpuOriginals(
            gpu_id=s.gpu_id,
            power_limit_w=s.power_limit_w_default,
            power_limit_w_default=s.power_limit_w_default,
            requested_limit_w=s.power_limit_w_default,
            locked_clock_mhz=None,
            smoothing=smoothing,
        )
        for s in specs
    )


class NodeLock:
    """Who may write this node's GPUs: one agent, guard or restore at a time. Free again when its owner dies."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / LOCK_NAME
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """True when it is ours now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        with suppress(OSError):  # a full disk: the lock is ours, and who holds it stays unsaid
            overwrite(fd, f"{os.getpid()}\n")
        return True

    @property
    def is_held(self) -> bool:
        """Somebody has it; False also where that cannot be told. Makes nothing."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def holder(self) -> str:
        """Process id of whoever holds it, for a message."""
        try:
            return self._path.read_text(encoding="ascii").strip() or "unknown"
        except (OSError, UnicodeDecodeError):
            return "unknown"

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> NodeLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def boot_id() -> str:
    """The kernel's name for this boot; after another boot GPUs have lost what was set before."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _checksum(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
