"""Compiles the fake NVML library once per user and says how a child process finds it.

The result lies in a cache folder named by a hash of sources and flags, under the exact file name that
`nvidia-ml-py` loads. It is written to a temporary folder and renamed, so two first users cannot see half a library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from controller.errors import BadInput

SOURCE_DIR = Path(__file__).resolve().parent / "src"
LIBRARY_NAME = "libnvidia-ml.so.1"  # the only name nvidia-ml-py tries
STATE_VARIABLE = "RAMPART_FAKE_NVML_STATE"
FLAGS = (
    "-shared",
    "-fPIC",
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-fvisibility=hidden",
    f"-Wl,-soname,{LIBRARY_NAME}",
)
COMPILE_S_MAX = 120.0


def library_dir() -> Path:
    """The folder that holds the compiled library; compiles it on first use. BadInput without a C compiler."""
    target = _cache_root() / "fake_nvml" / _key()
    if not (target / LIBRARY_NAME).is_file():
        _compile(target)
    return target


def environment(state_path: Path | str) -> dict[str, str]:
    """Variables that make a child process find the library and the state of its plant."""
    path = os.pathsep.join(p for p in (str(library_dir()), os.environ.get("LD_LIBRARY_PATH", "")) if p)
    return {"LD_LIBRARY_PATH": path, STATE_VARIABLE: str(Path(state_path).resolve())}


def _cache_root() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "rampart"


def _sources() -> list[Path]:
    return sorted(SOURCE_DIR.glob("*.c"))


def _key() -> str:
    digest = hashlib.sha256(f"{platform.machine()} {FLAGS}".encode())
    for path in sorted([*_sources(), *SOURCE_DIR.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(target: Path) -> None:
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None or shutil.which(compiler) is None:
        raise BadInput(f"CC: {compiler or 'not set'}: no C compiler found; the simulated GPUs need cc, gcc or clang")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            command = [compiler, *FLAGS, "-o", str(made / LIBRARY_NAME), *map(str, _sources()), "-lpthread"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False)
            if done.returncode != 0:
                why = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[0]
                raise BadInput(f"CC: {compiler}: cannot compile the simulated NVML library: {why}")
            _publish(made, target)
    except OSError as error:
        raise BadInput(f"XDG_CACHE_HOME: {target.parent}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise BadInput(f"CC: {compiler}: gave no result within {COMPILE_S_MAX:g} s") from None


def _publish(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not (target / LIBRARY_NAME).is_file():  # otherwise another process was first, with the same content
            raise
