"""The direction of imports: a core that could reach a socket, a driver that could reach a planner, would fail here."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("controller", "drivers", "hil")

BASE = {"controller.types", "controller.settings", "controller.errors", "controller.codec"}
PORTS = BASE | {"controller.ports"}
CORE_LOW = {
    f"controller.{name}"
    for name in (
        "contract",
        "contract_rows",
        "slope_bound",
        "reserve",
        "gpu_floor",
        "gpu_model",
        "headroom",
        "feeders",
        "ups_watch",
        "fleet",
        "jobs",
        "rings",
        "residual",
    )
}
CORE_MID = {
    f"controller.{name}"
    for name in (
        "estimate",
        "estimate_bank",
        "estimate_battery",
        "estimate_bridge",
        "estimate_checks",
        "estimate_subs",
        "estimate_counter",
        "estimate_dead",
        "estimate_delay",
        "estimate_lag",
        "estimate_late_nodes",
        "estimate_nodes",
        "estimate_peers",
        "estimate_sender",
        "estimate_stamp",
        "estimate_still",
        "estimate_trust",
        "estimate_witness",
        "forecast",
        "identify",
        "mismatch",
        "demand",
        "doubt",
        "droop",
        "limits",
        "predict",
        "tick_phase",
        "check",
        "check_death",
    )
}
CORE_HIGH = {
    f"controller.{name}"
    for name in (
        "allocate",
        "ballast",
        "follow",
        "aim",
        "allowances",
        "anchor",
        "reach",
        "survival",
        "target_path",
        "tracker",
        "tracker_io",
        "emergency",
        "respond",
        "schedule",
        "planning",
        "glide",
        "stagger",
        "swing",
        "doubt",
        "tier_watch",
        "outlook",
    )
}
CORE_TOP = {
    f"controller.{name}"
    for name in (
        "modes",
        "advice",
        "arming",
        "health",
        "signals",
        "signal_clock",
        "signal_dwell",
        "signal_request",
        "signal_schedule",
        "signal_memory",
        "decision",
        "view",
        "room",
        "refusals",
        "unheld",
        "above_cap",
        "follow_watch",
        "node_commands",
        "node_orders",
        "parting",
        "situation",
        "steering",
        "plan_basis",
        "proposal",
        "core",
    )
}
CORE = CORE_LOW | CORE_MID | CORE_HIGH | CORE_TOP
ENVELOPES = {"controller.envelope", "controller.envelope_bank", "controller.envelope_node"}
FORBIDDEN_IN_CORE = {"asyncio", "socket", "threading", "time", "subprocess", "logging", "structlog", "os", "pathlib"}


@cache
def modules() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts if parts[-1] != "__init__" else parts[:-1]), path))
    return found


@cache
def imports(path: Path, *, lazily: bool = True) -> frozenset[str]:
    """Absolute module names that `path` imports; `lazily` includes imports inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own(names: frozenset[str]) -> set[str]:
    """Our own modules among `names` (members of a module are dropped)."""
    known = {name for name, _ in modules()}
    return set(names & known - set(PACKAGES))


def is_types(name: str) -> bool:
    return name == "controller.types" or name.startswith("controller.types.")


def is_core(name: str) -> bool:
    return name in CORE or name.startswith("controller.plan.")


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_down(name: str, path: Path) -> None:
    """Each layer imports only what lies below it."""
    used = own(imports(path)) - {"controller.plan", "controller.config", "controller.audit", "controller.node"}
    if is_types(name):
        assert all(is_types(module) for module in used)
    elif name in BASE:
        assert used <= {"controller.types"}
    elif name == "controller.ports":
        assert used <= BASE
    elif name in ENVELOPES:
        assert used <= {"controller.types"}
    elif name in CORE_LOW:
        assert used <= PORTS | CORE_LOW
    elif is_core(name):
        allowed = PORTS | CORE | ENVELOPES | {m for m, _ in modules() if m.startswith("controller.plan")}
        assert used <= allowed | {"controller.core"}
    elif name.startswith("controller.audit"):
        assert used <= BASE | {m for m, _ in modules() if m.startswith("controller.audit")}
    elif name.startswith("drivers"):
        assert {m for m in used if not m.startswith("drivers")} <= PORTS | {"controller.signals", "controller.files"}
    if not name.startswith(("hil", "controller.cli")):
        assert not {m for m in used if m.startswith("hil")}, "only the command line may import the bench"
    joins = (
        "controller.cli",
        "controller.app",
        "controller.live",
        "controller.session",
        "controller.telemetry",
        "controller.node",
    )
    if name.startswith("controller") and not name.startswith(joins):
        assert not {m for m in used if m.startswith("drivers")}, "the core never sees a driver"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_core_has_no_outside(name: str, path: Path) -> None:
    """The pure core has no event loop, no I/O and no clock."""
    if is_core(name) or name in ENVELOPES or name in BASE or is_types(name):
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & FORBIDDEN_IN_CORE


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_core_knows_nothing_by_its_address(name: str, path: Path) -> None:
    """Where an object lies is not in the image: a replay has no object twice, and would decide otherwise."""
    if is_core(name) or name in ENVELOPES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not {call.func.id for call in calls if isinstance(call.func, ast.Name)} & {"id", "hash"}


def test_bench_is_imported_lazily() -> None:
    """`rampart run` must not pay for the bench: the CLI imports `hil` inside functions only."""
    for name, path in modules():
        if name.startswith("controller.cli"):
            assert not {m for m in imports(path, lazily=False) if m.split(".")[0] == "hil"}, name


def test_types_have_one_door_and_no_circle() -> None:
    """All import `controller.types` itself; inside, each module stands on those below it alone."""
    inside = {name: own(imports(path)) for name, path in modules() if is_types(name)}
    order = graphlib.TopologicalSorter(inside).static_order()
    assert list(order)[-1] == "controller.types"
    for name, path in modules():
        if not is_types(name):
            assert not {m for m in own(imports(path)) if is_types(m)} - {"controller.types"}, name


def test_packages_are_empty() -> None:
    """The import packages hold no code of their own."""
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").read_text(encoding="utf-8").strip() == ""
