"""Gets the affine map at start-up without leaving CVXPY in the daemon: a child process builds it and hands it over.

CVXPY costs 115 MB and the map half a megabyte. A map built once is kept for the next start. Where no child can be
started the map is built in place: slower to start and larger, never wrong. Not for use inside a cycle.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import lru_cache

from controller import map_cache
from controller.plan.model import AffineMap, ModelShape, build_map
from controller.plan.shape import PlannerShape
from controller.plan.solve import MpcPlanner

CHILD_TIMEOUT_S = 60.0  # CVXPY imports in a second; a cold file cache on a slow disk may take many
_CHILD = (
    "import pickle, sys\n"
    "from controller.plan.model import build_map\n"
    "shape = pickle.load(sys.stdin.buffer)\n"
    "pickle.dump(build_map(shape), sys.stdout.buffer)\n"
)


@lru_cache(maxsize=8)
def map_in_place(shape: ModelShape) -> AffineMap:
    """Build the map in this process; for benches and tests, which import CVXPY anyway."""
    return build_map(shape)


@lru_cache(maxsize=8)
def map_from_child(shape: ModelShape) -> AffineMap:
    """Build the map in a child of our own making and read it back; in place where that fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=pickle.dumps(shape),
            capture_output=True,
            timeout=CHILD_TIMEOUT_S,
            check=True,
        )
        found: AffineMap = pickle.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, pickle.UnpicklingError, EOFError):
        return build_map(shape)
    assert found.shape == shape
    return found


@lru_cache(maxsize=8)
def map_for_start(shape: ModelShape) -> AffineMap:
    """The map kept from an earlier start, else from a child and kept."""
    found = map_cache.load(shape)
    if found is None:
        found = map_from_child(shape)
        map_cache.keep(found)
    return found


def mpc_planner(shape: PlannerShape, *, is_lean: bool) -> MpcPlanner:
    """A planner for `shape`, warmed up. `is_lean` keeps CVXPY out of this process."""
    affine = map_for_start(shape.model) if is_lean else map_in_place(shape.model)
    return MpcPlanner(shape, affine)
