"""The kept affine map: the same numbers as a fresh one, and absent whenever anything about it is in doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller import map_cache, planner_start
from controller.plan import model
from controller.plan.model import AffineMap, ModelShape
from controller.planner_start import map_for_start, map_in_place
from tests.plan_kit import mpc


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rampart" / "planner"


@pytest.fixture(scope="module")
def fresh() -> AffineMap:
    return map_in_place(mpc().shape.model)


def test_a_kept_map_has_every_number_of_the_fresh_one(folder: Path, fresh: AffineMap) -> None:
    map_cache.keep(fresh)
    found = map_cache.load(fresh.shape)
    assert found is not None
    assert found.shape == fresh.shape
    assert found.sizes == fresh.sizes
    assert found.theta_slices == fresh.theta_slices
    assert np.array_equal(found.constant, fresh.constant), "infinities included"
    for name in ("p", "a", "g", "matrix"):
        here, there = getattr(fresh, name), getattr(found, name)
        assert type(here) is type(there)
        assert here.shape == there.shape
        for part in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(here, part), getattr(there, part)), f"{name}.{part}"
    assert fresh.x_index.keys() == found.x_index.keys()
    assert all(np.array_equal(found.x_index[name], places) for name, places in fresh.x_index.items())


def test_another_shape_is_another_map(folder: Path, fresh: AffineMap) -> None:
    map_cache.keep(fresh)
    assert map_cache.load(replace(fresh.shape, eta=0.5 * fresh.shape.eta)) is None


def test_another_source_or_library_is_another_map(
    folder: Path, fresh: AffineMap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upgrade of CVXPY, or a changed equation, does not find what was built before it."""
    map_cache.keep(fresh)
    with monkeypatch.context() as upgraded:
        upgraded.setattr(map_cache, "version", lambda library: "99.0")
        assert map_cache.load(fresh.shape) is None
    source = tmp_path / "model.py"
    source.write_text("another equation", encoding="utf-8")
    with monkeypatch.context() as changed:
        changed.setattr(model, "__file__", str(source))
        assert map_cache.load(fresh.shape) is None
    assert map_cache.load(fresh.shape) is not None


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_file_counts_as_absent(folder: Path, fresh: AffineMap, at: int) -> None:
    map_cache.keep(fresh)
    (path,) = folder.glob("*.map")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    assert map_cache.load(fresh.shape) is None
    path.write_bytes(bytes(content[:1000]))
    assert map_cache.load(fresh.shape) is None


def test_a_file_that_others_may_write_is_not_trusted(folder: Path, fresh: AffineMap) -> None:
    map_cache.keep(fresh)
    (path,) = folder.glob("*.map")
    path.chmod(0o666)
    assert map_cache.load(fresh.shape) is None
    path.chmod(0o600)
    folder.chmod(0o777)
    assert map_cache.load(fresh.shape) is None


def test_without_a_place_to_write_the_start_still_works(
    fresh: AffineMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache folder's name is taken by a file: nothing is kept, nothing is raised."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    map_cache.keep(fresh)
    assert map_cache.load(fresh.shape) is None


def test_the_second_start_starts_no_child(folder: Path, fresh: AffineMap, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[ModelShape] = []

    def child(shape: ModelShape) -> AffineMap:
        built.append(shape)
        return fresh

    monkeypatch.setattr(planner_start, "map_from_child", child)
    for _ in range(2):
        map_for_start.cache_clear()  # a process of its own each time
        assert map_for_start(fresh.shape).sizes == fresh.sizes
    map_for_start.cache_clear()
    assert built == [fresh.shape]


def test_the_oldest_maps_go(folder: Path, fresh: AffineMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_cache, "KEPT_MAX", 2)
    for eta in (0.5, 0.6, 0.7):
        map_cache.keep(replace(fresh, shape=replace(fresh.shape, eta=eta)))
    assert len(list(folder.glob("*"))) == 2
