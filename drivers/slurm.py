"""Jobs from Slurm: runs its own command (`squeue --json` or `scontrol show job --json`) and reads what it prints.

Read-only. The command runs in a child of ours that keeps of its output only what is needed: a listing of thousands of
jobs is tens of megabytes, and reading it here would hold up the control loop. The child and all it started are killed
at the deadline. What is not known of a job is left open, never guessed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from controller.ports import Clock
from controller.settings import JobRule, SlurmSettings
from controller.types import ClassId, Job, JobPart, Quality, Reading
from drivers.deadline import deadline
from drivers.errors import BadReply, DeviceTimeout, DriverUnavailable
from drivers.hostlist import expand
from drivers.job_rules import class_by_rules

RAW_BYTES_MAX = 256 * 2**20  # of the command's own output: about 50,000 jobs
OUTPUT_BYTES_MAX = 8 * 2**20  # of what the child passes on: about 20,000 jobs
JOBS_MAX = 20_000
TEXT_MAX = 1024
# States in which a job holds its GPUs and may draw power; names as `squeue --json` prints them.
RUNNING = frozenset({"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})
WAITING = frozenset({"PENDING"})
ATTRIBUTES = ("partition", "qos", "account", "user_name", "name", "comment", "admin_comment", "features", "cluster")
_GRES = re.compile(r"gpu(?::[^:,()]+)*?:(\d{1,6})(?!\d)(?:\([^)]*\))?")


class SlurmJobs:
    """Polls Slurm while `run` runs."""

    name = "slurm"

    def __init__(self, settings: SlurmSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._reading: Reading[tuple[Job, ...]] | None = None
        self.trouble = ""

    def listing(self) -> Reading[tuple[Job, ...]] | None:
        return self._reading

    async def run(self) -> None:
        """Poll until cancelled; a poll that fails leaves the listing to age."""
        while True:
            due_ns = self._clock.now_ns() + round(self._settings.period_s * 1e9)
            await self.poll()
            await self._clock.sleep_until_ns(due_ns)

    async def poll(self) -> None:
        """One poll; never raises for what Slurm does."""
        asked_s = self._clock.now_s()
        try:
            raw = await _output(self._settings)
            jobs = parse(raw, rules=self._settings.rules)
        except (BadReply, DeviceTimeout, DriverUnavailable) as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        same = self._reading is not None and self._reading.value == jobs
        value = self._reading.value if self._reading is not None and same else jobs
        self._reading = Reading(value, asked_s, Quality.GOOD, self.name)


async def _output(settings: SlurmSettings) -> bytes:
    """What the child prints; raises DeviceTimeout, DriverUnavailable or BadReply."""
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "drivers.slurm",
            *settings.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that one signal ends the command with the child
            limit=OUTPUT_BYTES_MAX,
        )
    except OSError as error:  # out of memory, of tasks or of descriptors
        raise DriverUnavailable("slurm", f"no process can be started: {error.strerror or error}") from None
    assert child.stdout is not None and child.stderr is not None
    try:
        async with deadline("slurm", settings.deadline_s):
            raw, complaint = await asyncio.gather(_bounded(child.stdout), _bounded(child.stderr))
            code = await child.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await asyncio.shield(child.wait())
    if code != 0:
        words = complaint.decode("utf-8", errors="replace").strip().splitlines()
        raise DriverUnavailable("slurm", f"{settings.command[0]}: {words[-1][:200] if words else f'exit {code}'}")
    return raw


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    found = bytearray()
    while chunk := await stream.read(65_536):
        found += chunk
        if len(found) > OUTPUT_BYTES_MAX:
            raise BadReply("slurm", f"more than {OUTPUT_BYTES_MAX} bytes")
    return bytes(found)


# ------------------------------------------------------------------------------------------------ reading


def parse(raw: bytes, *, rules: Sequence[JobRule]) -> tuple[Job, ...]:
    """The jobs of a listing, as printed by Slurm or already reduced; raises BadReply."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadReply("slurm", "the output is not JSON") from None
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise BadReply("slurm", "the output has no list of jobs")
    if not jobs and document.get("errors"):
        raise BadReply("slurm", f"errors: {json.dumps(document['errors'])[:200]}")
    found = (_job(item, rules) for item in jobs[:JOBS_MAX] if isinstance(item, dict))
    return tuple(job for job in found if job is not None)


def _job(raw: Mapping[str, Any], rules: Sequence[JobRule]) -> Job | None:
    states = _states(raw.get("job_state"))
    is_running = bool(states & RUNNING)
    number = raw.get("job_id")
    if not isinstance(number, int) or isinstance(number, bool) or not (is_running or states & WAITING):
        return None
    attributes = {key: text for key in ATTRIBUTES if (text := _text(raw.get(key)))}
    hint = _hint(attributes)
    return Job(
        job_id=f"slurm-{number}",
        source="slurm",
        class_id=ClassId(hint.get("class", "") or class_by_rules(rules, attributes)),
        parts=_parts(raw) if is_running else (),
        priority=_bounded_int(hint.get("priority")),
        tolerated_loss_frac=_share(hint.get("tolerated_loss")),
        starts_utc_s=_instant(raw.get("start_time")),
        ends_utc_s=_instant(raw.get("end_time")),
        is_running=is_running,
    )


def _states(raw: object) -> set[str]:
    """`job_state` is a text in Slurm 21-22 and a list from 23.02 on."""
    items = raw if isinstance(raw, list) else [raw]
    return {item.upper() for item in items if isinstance(item, str)}


def _text(raw: object) -> str:
    """A text field; comments came as text first and as an object by author since."""
    if isinstance(raw, dict):
        return " ".join(part for part in (_text(raw.get(k)) for k in ("administrator", "job")) if part)
    return raw[:TEXT_MAX] if isinstance(raw, str) else ""


def _hint(attributes: Mapping[str, str]) -> dict[str, str]:
    """What a comment says to us: `rampart:class=train,tolerated_loss=0.25,priority=80`."""
    text = f"{attributes.get('comment', '')} {attributes.get('admin_comment', '')}"
    match = re.search(r"\brampart:([A-Za-z0-9_.=,-]{1,200})", text)
    if match is None:
        return {}
    pairs = (item.partition("=") for item in match.group(1).split(","))
    return {key: value for key, _, value in pairs if key in ("class", "priority", "tolerated_loss")}


def _parts(raw: Mapping[str, Any]) -> tuple[JobPart, ...]:
    """Nodes and GPUs of each. `gres_detail` has one entry per node, in the order of the host list."""
    text = _text(raw.get("nodes")) or _allocated(raw.get("job_resources"))
    try:
        hosts = expand(text)
    except ValueError as error:
        raise BadReply("slurm", f"job {raw.get('job_id')}: {error}") from None
    detail = raw.get("gres_detail")
    entries = [item if isinstance(item, str) else "" for item in detail] if isinstance(detail, list) else []
    if len(entries) != len(hosts):
        entries = [""] * len(hosts)  # an exclusive job, or a Slurm that does not say: it holds the nodes
    counts = [sum(int(n) for n in _GRES.findall(entry)) for entry in entries]
    if any(entries) and not all(counts):
        return tuple(JobPart(host, count) for host, count in zip(hosts, counts, strict=True) if count)
    return tuple(JobPart(host, count) for host, count in zip(hosts, counts, strict=True))


def _allocated(raw: object) -> str:
    nodes = raw.get("nodes") if isinstance(raw, dict) else None
    if isinstance(nodes, dict):
        return _text(nodes.get("list"))
    return _text(nodes)


def _instant(raw: object) -> float | None:
    """A time as seconds, or as {set, infinite, number}; 0 and infinity say nothing."""
    if isinstance(raw, dict):
        raw = raw.get("number") if raw.get("set") and not raw.get("infinite") else None
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    return float(raw) if is_number and isinstance(raw, int | float) and 0 < raw < 1e11 else None


def _bounded_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and int(text) <= 100 else None


def _share(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0.0 <= value <= 1.0 else None


# ------------------------------------------------------------------------------------------------ the child

KEPT = (*ATTRIBUTES, "job_id", "job_state", "nodes", "gres_detail", "start_time", "end_time")


def reduce(document: object) -> dict[str, Any]:
    """Of a listing only what `parse` reads."""
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(jobs, list):
        raise ValueError("the output has no list of jobs")
    kept = []
    for job in jobs:
        if isinstance(job, dict) and _states(job.get("job_state")) & (RUNNING | WAITING):
            brief = {key: job[key] for key in KEPT if job.get(key)}
            if "nodes" not in brief and (hosts := _allocated(job.get("job_resources"))):
                brief["nodes"] = hosts
            kept.append(brief)
    return {"jobs": kept, "errors": document.get("errors") or []}


def main(command: Sequence[str]) -> int:
    """Run `command` and print its listing reduced; the exit status is the command's where that is not 0."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 127
    if done.returncode != 0 or len(done.stdout) > RAW_BYTES_MAX:
        return done.returncode or 1
    try:
        json.dump(reduce(json.loads(done.stdout)), sys.stdout, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
