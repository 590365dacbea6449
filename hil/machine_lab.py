"""The wire bench around a machine of its own: the shipped units, run by systemd, against our devices and GPUs.

Files lie where the units look for them, owned as the README's commands own them. What the bench adds is a drop-in of
the units that open GPUs: where the simulated NVML library is, in place of the vendor's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from controller.types import replace
from hil.fake_nvml.build import STATE_VARIABLE, library_dir
from hil.machine import Machine, SystemdUnit
from hil.scenario import Scenario
from hil.wire_config import WireFiles
from hil.wire_lab import WireLab

Story = Callable[["MachineLab"], Awaitable[None]]

BENCH, LIBRARY = "/srv/bench", "/srv/nvml"  # PrivateTmp= hides /tmp from the units
ETC, STATE, RUN = "etc/rampart", "/var/lib/rampart", "/run/rampart"
DROP_IN = f"[Service]\nEnvironment=LD_LIBRARY_PATH={LIBRARY} {STATE_VARIABLE}={BENCH}/gpus\nReadWritePaths={BENCH}\n"
NAMES = ("rampart-site", "rampart-node", "rampart-restore")


class MachineLab(WireLab):
    """One story on one machine; `machine` is there once it runs."""

    def __init__(self, scenario: Scenario, *, root: Path, out: Path, story: Story) -> None:
        async def told(_: WireLab) -> None:
            await story(self)

        super().__init__(scenario, out=out, story=told)
        self._root = root
        self.machine: Machine | None = None
        self._given: WireFiles | None = None

    def unit(self, name: str) -> SystemdUnit:
        assert self.machine is not None
        return SystemdUnit(self.machine, f"rampart-{name}.service")

    async def _start_processes(self, files: WireFiles, run_dir: Path, variables: Mapping[str, str]) -> None:
        """Fill the machine, boot it, and do what `rampart systemd install` says is left to do."""
        del variables
        self._given = files
        self._fill()
        await self.boot()
        for name in ("node", "site"):
            await self.enable(name)

    async def enable(self, name: str) -> None:
        unit = self.unit(name)
        status = await unit.order("enable --now")
        assert status == 0, f"{name} does not start:\n{await unit.journal()}"

    async def boot(self) -> None:
        """Switch it on, and look for the controller's socket in what runs there."""
        assert self._given is not None
        binds = {self.run_dir: BENCH, library_dir(): LIBRARY}
        log = self.out / "machine.log"
        self.machine = await Machine.boot(self._root, name=f"rampart-{os.getpid()}", log=log, binds=binds)
        for command in (
            ("systemd-sysusers",),
            ("systemd-tmpfiles", "--create", "rampart.conf"),
            ("chgrp", "-R", "rampart", f"/{ETC}"),
            ("systemctl", "daemon-reload"),
            ("systemctl", "enable", "rampart-restore"),
        ):
            status, said = await self.machine.run(*command)
            assert status == 0, f"{command}: {said}"
        run_dir, state_dir = (str(self.machine.path(place)) for place in (RUN, STATE))
        self._files = replace(self._given, site=replace(self._given.site, runtime_dir=run_dir, state_dir=state_dir))

    def put(self, name: str, document: Mapping[str, Any]) -> None:
        """A file for the units, as an operator leaves it: root's, to be read by the service's group."""
        path = self._root / ETC / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(document), sort_keys=False), encoding="utf-8")
        path.chmod(0o640)

    def document(self, name: str) -> dict[str, Any]:
        """The file that the bench made for `name`, with folders and keys where the units have theirs."""
        assert self._given is not None
        path = self._given.site_file if name == "site" else self._given.node_file
        text = path.read_text(encoding="utf-8").replace(str(path.parent.resolve() / "keys"), f"/{ETC}/keys")
        raw: dict[str, Any] = yaml.safe_load(text)
        return {key: value for key, value in raw.items() if key not in ("state_dir", "runtime_dir")}

    def _fill(self) -> None:
        assert self._given is not None
        for name in NAMES:
            for place in self._root.glob(f"etc/systemd/system/*.wants/{name}.service"):
                place.unlink()
        for folder in (self._root / ETC, self._root / "var/lib/rampart", self._root / "var/lib/rampart-node"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self._root / "var/log/journal", ignore_errors=True)
        (self._root / ETC).mkdir(mode=0o750)
        shutil.copytree(self._given.site_file.parent / "keys", self._root / ETC / "keys")
        for key in (self._root / ETC / "keys").iterdir():
            key.chmod(0o640)
        for name in ("site", "node"):
            self.put(name, self.document(name))
        for name in ("rampart-node", "rampart-restore"):
            drop_in = self._root / f"etc/systemd/system/{name}.service.d/bench.conf"
            drop_in.parent.mkdir(exist_ok=True)
            drop_in.write_text(DROP_IN, encoding="utf-8")

    async def _stop(self, run_dir: Path) -> None:
        """Units first, then the bench; the machine is switched off whatever happened."""
        try:
            if self.machine is not None:
                for name in ("site", "node"):
                    await self.unit(name).order("stop")
                for name in ("site", "node"):
                    (self.out / f"{name}.journal").write_text(await self.unit(name).journal(), encoding="utf-8")
                await self.machine.off()
        finally:
            await super()._stop(run_dir)


def in_machine(story: Story, scenario: Scenario, root: Path, out: Path) -> MachineLab:
    """Tell the story; the lab is closed when this returns."""
    out.mkdir(parents=True, exist_ok=True)

    async def main() -> MachineLab:
        lab = MachineLab(scenario, root=root, out=out, story=story)
        await lab.tell()
        return lab

    return asyncio.run(main())
