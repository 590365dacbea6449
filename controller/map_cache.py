"""Keeps the planner's affine map between starts, in the user's cache folder: numbers only, under a name made of inputs.

The name is a hash of the shape, of the source that builds the map and of the versions of what it is built with, so that
a map never outlives its origin. A file holds plain arrays and their checksum; one that is damaged, foreign or readable
by no one counts as absent. Losing the folder costs two seconds at the next start and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from scipy import sparse

from controller.plan import model, plan
from controller.plan.model import AffineMap, ModelShape
from controller.types import FloatArray

FORMAT = 1
BUILT_WITH = ("cvxpy", "numpy", "scipy")
KEPT_MAX = 64  # maps of a hundred kilobytes: one for each site and contract that this user ran
CHECK_BYTES = 32
GROUP_OR_OTHERS_WRITE = 0o022


def load(shape: ModelShape) -> AffineMap | None:
    """The map kept for `shape`; None where there is none that can be trusted."""
    path = _path(shape)
    if path is None or not _is_ours(path.parent) or not _is_ours(path):
        return None
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[CHECK_BYTES:]).digest() != content[:CHECK_BYTES]:
            return None
        with np.load(io.BytesIO(content[CHECK_BYTES:]), allow_pickle=False) as arrays:
            return _map_of(shape, dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def keep(found: AffineMap) -> None:
    """Keep `found` for the next start, whole or not at all; where the folder cannot be written nothing is kept."""
    path = _path(found.shape)
    if path is None:
        return
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **_arrays_of(found))
    body = content.getvalue()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as partial:
            partial.write(hashlib.sha256(body).digest() + body)
        Path(partial.name).replace(path)
        _drop_oldest(path.parent)


def _drop_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.map"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in files[KEPT_MAX:]:
        path.unlink(missing_ok=True)


def _path(shape: ModelShape) -> Path | None:
    """Where the map of `shape` lies; None without a home or without the library it is built with."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(given) if given else Path.home() / ".cache"
        return root / "rampart" / "planner" / f"{_name(shape)}.map"
    except (RuntimeError, PackageNotFoundError, OSError):
        return None


def _name(shape: ModelShape) -> str:
    digest = hashlib.sha256(f"{FORMAT} {shape!r} {platform.machine()} {platform.python_version()}".encode())
    for library in BUILT_WITH:
        digest.update(f" {library} {version(library)}".encode())
    for module in (model, plan):  # the equations, and the steps of the horizon
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:32]


def _is_ours(path: Path) -> bool:
    """Written by this user alone: nobody else may choose what the planner plans with."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & GROUP_OR_OTHERS_WRITE


# ------------------------------------------------------------------------------------------------ arrays


def _arrays_of(found: AffineMap) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "constant": found.constant,
        "sizes": np.array(found.sizes),
        "theta_names": np.array(list(found.theta_slices)),
        "theta_places": np.array([(s.start, s.stop) for s in found.theta_slices.values()]),
    }
    for name in ("p", "a", "g", "matrix"):
        part = getattr(found, name)
        arrays |= {f"{name}_data": part.data, f"{name}_indices": part.indices, f"{name}_indptr": part.indptr}
        arrays[f"{name}_shape"] = np.array(part.shape)
    for name, places in found.x_index.items():
        arrays[f"x_{name}"] = places
    return arrays


def _map_of(shape: ModelShape, arrays: dict[str, FloatArray]) -> AffineMap:
    c, b, h, lower, upper = (int(size) for size in arrays["sizes"])
    names = [str(name) for name in arrays["theta_names"]]
    places = [slice(int(start), int(stop)) for start, stop in arrays["theta_places"]]
    return AffineMap(
        shape=shape,
        p=sparse.csc_matrix(_triple(arrays, "p"), shape=tuple(arrays["p_shape"])),
        a=sparse.csc_matrix(_triple(arrays, "a"), shape=tuple(arrays["a_shape"])),
        g=sparse.csc_matrix(_triple(arrays, "g"), shape=tuple(arrays["g_shape"])),
        constant=arrays["constant"],
        matrix=sparse.csr_matrix(_triple(arrays, "matrix"), shape=tuple(arrays["matrix_shape"])),
        sizes=(c, b, h, lower, upper),
        theta_slices=dict(zip(names, places, strict=True)),
        x_index={name[2:]: places.astype(np.int64) for name, places in arrays.items() if name.startswith("x_")},
    )


def _triple(arrays: dict[str, FloatArray], name: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    return arrays[f"{name}_data"], arrays[f"{name}_indices"], arrays[f"{name}_indptr"]
