"""What each device was when it was first armed, and a refusal once it is something else.

Firmware updates move models and change scale factors; a set-point written by what held before is then wrong by powers
of ten. The fingerprint of a device is kept over reconnects and, with a file, over restarts. A change locks the device
out until a person removes the file: reading by a map in doubt is no better than writing by it. Scale factors beside
values that are only read travel with the value in one frame, are followed, and are not part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from controller.files import write_whole
from drivers.errors import DeviceChanged
from drivers.sunspec import ModelAt

FILE_BYTES_MAX = 1 << 20

log = structlog.get_logger("rampart")

Facts = dict[str, int]  # "model 704 at 40070" -> its length, "scale factor at 40093" -> its exponent


@dataclass(slots=True)
class Identity:
    """One device as first armed. `changed` is why it is locked out; empty while it is not."""

    name: str
    known: Facts
    book: IdentityBook
    changed: str = ""

    def require(self) -> None:
        """DeviceChanged once a change was seen."""
        if self.changed:
            raise DeviceChanged(self.name, self.changed)

    def see_models(self, profile: str, models: Iterable[ModelAt]) -> None:
        """The map of models, in full."""
        found = {f"{profile}: model {m.model_id} at {m.address}": m.length for m in models}
        before = {fact: value for fact, value in self.known.items() if fact.startswith(f"{profile}: model ")}
        if before and before != found:
            odd = sorted(set(before.items()) ^ set(found.items()))
            self._refuse(f"{odd[0][0]} (length {odd[0][1]}) is not as when it was armed first")
        self._keep(found)

    def see_scales(self, scales: Mapping[int, int]) -> None:
        """Scale factors of controls: address -> exponent."""
        found = {f"scale factor at {address}": exponent for address, exponent in scales.items()}
        for fact, exponent in found.items():
            if self.known.get(fact, exponent) != exponent:
                self._refuse(f"{fact} was {self.known[fact]} when it was armed first and is {exponent}")
        self._keep(found)

    def _keep(self, found: Facts) -> None:
        if any(fact not in self.known for fact in found):
            self.known |= found
            self.book.save()

    def _refuse(self, what: str) -> None:
        cure = f"; if that is meant, remove {self.book.path}" if self.book.path else ""
        self.changed = f"{what}: locked out{cure}"
        self.require()


class IdentityBook:
    """All devices of a site. Without a path it remembers for as long as the process lives."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        loaded = self._load() if path is not None else {}
        self._devices = {name: Identity(name, facts, self) for name, facts in loaded.items()}

    def of(self, name: str) -> Identity:
        """The identity of the device of this name."""
        return self._devices.setdefault(name, Identity(name, {}, self))

    def save(self) -> None:
        """Write the file anew; a disk that refuses is said, not fatal."""
        if self.path is None:
            return
        whole = {name: device.known for name, device in sorted(self._devices.items())}
        try:
            write_whole(self.path, json.dumps(whole, indent=1) + "\n")
        except OSError as error:
            log.error("device identities cannot be kept", path=str(self.path), cause=error.strerror or str(error))

    def _load(self) -> dict[str, Facts]:
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                return _checked(json.loads(file.read(FILE_BYTES_MAX)))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.error("device identities cannot be read; learnt anew", path=str(self.path), cause=str(error)[:200])
            return {}


def _checked(raw: object) -> dict[str, Facts]:
    if not isinstance(raw, dict):
        raise ValueError("not a table of devices")
    for facts in raw.values():
        if not isinstance(facts, dict) or not all(type(value) is int for value in facts.values()):
            raise ValueError("not a table of facts")
    return raw
