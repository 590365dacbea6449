"""Copies of the shipped site and node files for one run: where things answer, where keys lie, where state is kept.

Nothing else of a file is changed but what the person asked for on the command line. Keys are made on the spot.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from controller.config.load import read_yaml
from controller.config.site import load_settings
from controller.errors import BadInput
from controller.settings import Role, Settings
from controller.types import frozen
from drivers.jws import write_key_pair
from hil.scenario import Scenario

HOST = "127.0.0.1"


@frozen
class Ports:
    """Where the bench listens."""

    broker: int
    meter: int
    battery: int
    ups: int
    load_bank: int = 0  # none


@frozen
class WireFiles:
    """What the child processes run from, and the settings they will read from it."""

    site_file: Path
    node_file: Path
    site: Settings
    node: Settings
    issuer_keys: Mapping[str, Path]  # private keys of the grid's issuers, by name
    agent_public_key: Path

    @property
    def socket(self) -> Path:
        return Path(self.site.runtime_dir) / "site.sock"

    @property
    def recordings(self) -> Path:
        return Path(self.site.state_dir) / "recordings"


def node_settings(scenario: Scenario) -> Settings:
    """The scenario's node file as it ships; BadInput when the scenario has none or it is not a node's."""
    wire = scenario.doc.wire
    if wire is None:
        raise BadInput(f"{scenario.doc.name}: --wire needs a scenario with the key wire (see the scenario demo)")
    path = scenario.base / wire.node
    settings = load_settings(path)
    if settings.role is not Role.NODE or settings.node is None:
        raise BadInput(f"{path}: role: {settings.role.value}: node is allowed here")
    return settings


def write_files(scenario: Scenario, folder: Path, run_dir: Path, ports: Ports) -> WireFiles:
    """Write both files and the keys under `folder`; sockets go to `run_dir`, whose path is short."""
    assert scenario.doc.wire is not None
    raw_site, raw_node = dict(scenario.doc.site), _mapping(scenario.base / scenario.doc.wire.node)
    for stale in ("keys", "state"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    grid = raw_site.get("grid")
    issuers = [i["name"] for i in grid.get("issuers", ())] if isinstance(grid, dict) else []
    keys = folder / "keys"
    private = {name: write_key_pair(keys, name)[0] for name in issuers}
    agent_private, agent_public = write_key_pair(keys, "agent")
    site = filled_site(raw_site, folder, run_dir, ports, agent_key=agent_private)
    node = filled_node(raw_node, folder, run_dir, ports)
    site_file, node_file = folder / "site.yaml", folder / "node.yaml"
    for path, content in ((site_file, site), (node_file, node)):
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return WireFiles(
        site_file=site_file,
        node_file=node_file,
        site=load_settings(site_file),
        node=load_settings(node_file),
        issuer_keys=private,
        agent_public_key=agent_public,
    )


def filled_site(raw: dict[str, Any], folder: Path, run_dir: Path, ports: Ports, *, agent_key: Path) -> dict[str, Any]:
    """`raw` with addresses, keys and folders of this run."""
    site = dict(raw)
    where = {
        "pcc_meter": ports.meter,
        "battery": ports.battery,
        "load_bank": ports.load_bank,
        "mqtt": ports.broker,
    }
    for key, port in where.items():
        if isinstance(site.get(key), dict):
            site[key] = {**site[key], "host": HOST, "port": port}
    if site.get("ups"):
        site["ups"] = [{**ups, "host": HOST, "port": ports.ups} for ups in site["ups"]]
    if isinstance(site.get("grid"), dict):
        issuers = [
            {**i, "key_files": [str((folder / "keys" / f"{i['name']}.pub.jwk").resolve())]}
            for i in site["grid"].get("issuers", ())
        ]
        site["grid"] = {**site["grid"], "signing_key_file": str(agent_key.resolve()), "issuers": issuers}
    return {**site, **_folders(folder, run_dir, "site")}


def filled_node(raw: dict[str, Any], folder: Path, run_dir: Path, ports: Ports) -> dict[str, Any]:
    """`raw` with the address of this run's broker and its folders."""
    node = {**raw, "mqtt": {**raw.get("mqtt", {}), "host": HOST, "port": ports.broker}}
    return {**node, **_folders(folder, run_dir, "node")}


def _folders(folder: Path, run_dir: Path, role: str) -> dict[str, str]:
    return {"state_dir": str((folder / "state" / role).resolve()), "runtime_dir": str(run_dir / role)}


def _mapping(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: a mapping of keys is allowed")
    return raw
