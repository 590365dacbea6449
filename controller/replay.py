"""Replay: recorded images through a fresh core, every command compared with the recorded one.

Reads what a recorder wrote (gzip, JSON lines: one header, then cycles), decodes it against the types and compares the
encoded commands exactly; a difference means that code or settings changed, or that the core reads something that is
not in its image. A core that fails where a command was recorded is a difference, too. Never touches a device. A file
that is not a whole recording raises BadInput.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from controller.codec import Json, decode, encode
from controller.core import SiteCore
from controller.decision import Checked, Decision
from controller.errors import BadInput
from controller.files import open_regular
from controller.settings import Settings, SiteSettings
from controller.types import SiteCommand, SiteImage, frozen

FORMAT = "rampart-recording/1"
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
LINE_BYTES_MAX = 64 * 2**20  # ten thousand nodes of eight GPUs take about half of it


class CoreBuilder(Protocol):
    """Makes the core as the daemon makes it; `epoch` is the recorded one."""

    def __call__(self, site: SiteSettings, *, epoch: int) -> SiteCore: ...


@frozen
class Difference:
    """The first cycle whose command is not the recorded one, and where in the command they part."""

    tick: int
    t_s: float
    path: str
    recorded: str
    replayed: str

    def line(self) -> str:
        return f"tick {self.tick} at {self.t_s:.3f} s: {self.path}: recorded {self.recorded}, replayed {self.replayed}"


@frozen
class Replayed:
    """What a replay found. `missing_seq` is the first command number that the recording lacks, where it lacks one.

    `is_cut_short`: the file ends in the middle of a record, as one does whose writer was killed.
    """

    cycles: int
    different: int
    first: Difference | None
    missing_seq: int | None
    is_cut_short: bool = False


@frozen
class Cycle:
    """One recorded cycle; `command` stays encoded, because encoded values are what is compared."""

    image: SiteImage
    command: Json
    is_leader: bool
    is_battery_acknowledged: bool
    is_load_bank_acknowledged: bool


def replay(path: Path, build: CoreBuilder) -> Replayed:
    """Every cycle of the recording at `path` through a core that `build` makes from the recorded settings.

    Command 1 is a start: what a controller that was restarted recorded after it goes through a core of its own.
    """
    end = _End()
    lines = _lines(path, end)
    site = _header(path, lines)
    core: SiteCore | None = None
    cycles = different = last_seq = 0
    first: Difference | None = None
    for number, raw in enumerate(lines, start=2):
        if raw.get("kind") != "cycle":
            continue
        cycle = _cycle(path, number, raw)
        epoch, seq = _numbers(path, number, cycle.command)
        if seq == 1:
            core, last_seq = _built(path, build, site, epoch), 0
        if core is None:
            raise BadInput(f"{path}: line {number}: command {seq}: a recording begins with a start, at command 1")
        if seq != last_seq + 1:
            return Replayed(cycles, different, first, missing_seq=last_seq + 1)
        cycles, last_seq = cycles + 1, seq
        try:
            command = encode(step(core, cycle).command)
        except (
            FAULTS
        ) as error:  # what was recorded has a command, so this core is another, or the recording was changed
            return Replayed(cycles, different + 1, first or _difference(cycle, f"{error!r}"), missing_seq=None)
        if command != cycle.command:
            different += 1
            first = first or _difference(cycle, command)
    if not cycles:
        raise BadInput(f"{path}: holds no cycle; allowed: a recording of at least one")
    return Replayed(cycles, different, first, missing_seq=None, is_cut_short=end.is_cut_short)


def _built(path: Path, build: CoreBuilder, site: SiteSettings, epoch: int) -> SiteCore:
    try:
        return build(site, epoch=epoch)
    except FAULTS as error:
        raise _refused(path, f"header: settings that make no controller: {error!r}") from None


def step(core: SiteCore, cycle: Cycle) -> Checked:
    """One cycle in the order of `controller.cycle`, its acknowledgements taken from the recording."""
    image = cycle.image
    decision: Decision = core.decide(image, is_leader=cycle.is_leader)
    checked = core.check(decision)
    core.acknowledge(image, checked, battery=cycle.is_battery_acknowledged, load_bank=cycle.is_load_bank_acknowledged)
    core.plan_if_due(decision)
    return checked


# ------------------------------------------------------------------------------------------------ reading


@dataclass(slots=True)
class _End:
    """How a recording ended, once it was read."""

    is_cut_short: bool = False


def _lines(path: Path, end: _End) -> Iterator[dict[str, Any]]:
    """Each line as an object. A last line cut short (kill -9 of the writer) ends the recording."""
    number, held = 0, ""
    try:
        with open_regular(path) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
            while line := file.readline(LINE_BYTES_MAX):
                number += 1
                if not line.endswith("\n"):
                    held, end.is_cut_short = line, True
                    break
                yield _object(path, number, line)
    except EOFError:
        end.is_cut_short = True
        if number == 0:
            raise _refused(path, "a gzip file that ends before its first line") from None
    except (gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise _refused(path, str(error)) from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}; allowed: a recording of the daemon or the bench") from None
    if len(held) >= LINE_BYTES_MAX:
        raise _refused(path, f"line {number} is longer than {LINE_BYTES_MAX} bytes")


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raise _refused(path, f"line {number} is not JSON") from None
    if not isinstance(raw, dict):
        raise _refused(path, f"line {number} is not an object")
    return raw


def _header(path: Path, lines: Iterator[dict[str, Any]]) -> SiteSettings:
    head = next(lines, None)
    if head is None or head.get("kind") != "header" or head.get("format") != FORMAT:
        raise _refused(path, f"its first line is no header of format {FORMAT}")
    try:
        settings = decode(Settings, head.get("settings"), at="settings")
    except (ValueError, OverflowError, RecursionError) as error:
        raise _refused(path, f"header: {error}") from None
    assert isinstance(settings, Settings)
    if settings.site is None:
        raise _refused(path, "header: settings without a site")
    return settings.site


def _cycle(path: Path, number: int, raw: dict[str, Any]) -> Cycle:
    try:
        image = decode(SiteImage, raw.get("image"), at="image")
        decode(SiteCommand, raw.get("command"), at="command")
    except (ValueError, OverflowError, RecursionError, AssertionError) as error:
        raise _refused(path, f"line {number}: {error}") from None
    acks, is_leader = raw.get("acks"), raw.get("is_leader")
    taken = [acks.get(name) for name in ("battery", "load_bank")] if isinstance(acks, dict) else [None]
    if not all(isinstance(was, bool) for was in taken) or not isinstance(is_leader, bool):
        raise _refused(path, f"line {number}: acks or is_leader missing")
    assert isinstance(image, SiteImage)
    return Cycle(image, raw["command"], is_leader, *(was is True for was in taken))


def _numbers(path: Path, number: int, command: Json) -> tuple[int, int]:
    epoch, seq = (command.get("epoch"), command.get("seq")) if isinstance(command, dict) else (None, None)
    if not isinstance(epoch, int) or not isinstance(seq, int):
        raise _refused(path, f"line {number}: command without epoch and seq")
    return epoch, seq


def _refused(path: Path, why: str) -> BadInput:
    return BadInput(f"{path}: {why}; allowed: a recording of the daemon or the bench")


# ------------------------------------------------------------------------------------------------ comparing


def _difference(cycle: Cycle, replayed: Json) -> Difference:
    path, one, other = _parting(cycle.command, replayed, "command")
    return Difference(cycle.image.tick, cycle.image.t_mono_s, path, _short(one), _short(other))


def _parting(one: Json, other: Json, at: str) -> tuple[str, Json, Json]:
    """The first place, depth first, where two encoded values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            if one[key] != other[key]:
                return _parting(one[key], other[key], f"{at}.{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                return _parting(a, b, f"{at}[{i}]")
    return at, one, other


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
