"""Slurm's listings as three of its versions print them, and a command that hangs, fails, or talks nonsense."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.clock import MonotonicClock
from controller.settings import JobRule, SlurmSettings
from controller.types import ClassId, JobPart
from drivers.errors import BadReply
from drivers.hostlist import expand
from drivers.slurm import SlurmJobs, parse, reduce

RULES = (
    JobRule(ClassId("serve"), (("partition", "inference"),)),
    JobRule(ClassId("train"), (("account", "lab-*"), ("qos", "normal"))),
)

# `squeue --json` of 24.05: states as lists, times as objects, nodes with their allocation.
NEWER = {
    "job_id": 4711,
    "job_state": ["RUNNING"],
    "name": "pretrain",
    "partition": "h100",
    "qos": "normal",
    "account": "lab-llm",
    "comment": {"administrator": "", "job": "", "system": ""},
    "nodes": "gpu[001-003]",
    "gres_detail": ["gpu:h100:8(IDX:0-7)", "gpu:h100:8(IDX:0-7)", "gpu:h100:4(IDX:0,2,4,6)"],
    "job_resources": {"nodes": {"count": 3, "list": "gpu[001-003]", "allocation": [{"name": "gpu001"}]}},
    "start_time": {"set": True, "infinite": False, "number": 1767225600},
    "end_time": {"set": True, "infinite": False, "number": 1767312000},
    "priority": {"set": True, "infinite": False, "number": 4294901757},
}
# 22.05: one state, plain numbers, a comment of text; node names in job_resources only.
OLDER = {
    "job_id": 12,
    "job_state": "RUNNING",
    "partition": "inference",
    "qos": "high",
    "account": "prod",
    "comment": "nightly rampart:class=tune,tolerated_loss=0.25,priority=80 run",
    "nodes": "",
    "job_resources": {"nodes": "login1,gpu[7,9]"},
    "start_time": 1767225600,
    "end_time": 0,
}
WAITING = {**NEWER, "job_id": 5000, "job_state": ["PENDING"], "nodes": "", "gres_detail": []}
ENDED = {**NEWER, "job_id": 4000, "job_state": ["COMPLETED"]}
CPU_ONLY_NODE = {**NEWER, "job_id": 9, "nodes": "head1,gpu004", "gres_detail": ["", "gpu:2(IDX:0-1)"]}


def listing(*jobs: object) -> bytes:
    return json.dumps({"meta": {"Slurm": {"version": {"major": "24"}}}, "jobs": jobs, "errors": []}).encode()


def test_newer_listing() -> None:
    (job,) = parse(listing(NEWER), rules=RULES)
    assert job.job_id == "slurm-4711" and job.class_id == "train"
    assert job.parts == (JobPart("gpu001", 8), JobPart("gpu002", 8), JobPart("gpu003", 4))
    assert (job.starts_utc_s, job.ends_utc_s, job.is_running) == (1767225600.0, 1767312000.0, True)
    assert job.priority is None, "Slurm's own priority is a rank among its jobs, not ours"


def test_older_listing_and_a_comment_that_speaks_to_us() -> None:
    (job,) = parse(listing(OLDER), rules=RULES)
    assert (job.class_id, job.priority, job.tolerated_loss_frac) == ("tune", 80, 0.25)
    assert job.parts == (JobPart("login1"), JobPart("gpu7"), JobPart("gpu9"))
    assert job.ends_utc_s is None


def test_rules_in_order_and_states() -> None:
    found = parse(listing({**OLDER, "comment": ""}, WAITING, ENDED, CPU_ONLY_NODE), rules=RULES)
    assert [(j.job_id, j.class_id, j.is_running) for j in found] == [
        ("slurm-12", "serve", True),
        ("slurm-5000", "train", False),
        ("slurm-9", "train", True),
    ]
    assert found[2].parts == (JobPart("gpu004", 2),), "a node where the job has no GPU is none of its nodes"


def test_reduced_listing_reads_the_same() -> None:
    whole = {"jobs": [NEWER, OLDER, WAITING, ENDED, CPU_ONLY_NODE], "errors": [], "warnings": []}
    brief = reduce(whole)
    assert parse(json.dumps(brief).encode(), rules=RULES) == parse(json.dumps(whole).encode(), rules=RULES)
    assert len(brief["jobs"]) == 4 and "job_resources" not in brief["jobs"][0]


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"jobs": {}}', b'{"jobs": [], "errors": [{"error": "down"}]}', b"slurm_load: x"]
)
def test_nonsense_is_a_bad_reply(raw: bytes) -> None:
    with pytest.raises(BadReply):
        parse(raw, rules=())


def test_nonsense_in_one_job_is_not_followed() -> None:
    odd = ({"job_id": "1"}, {"job_id": True, "job_state": "RUNNING"}, 7, {"job_id": 2, "job_state": 5})
    assert parse(listing(*odd), rules=()) == ()
    with pytest.raises(BadReply):
        parse(listing({**NEWER, "nodes": "gpu[1-99999999]"}), rules=())


KEYS = st.sampled_from(["jobs", "job_id", "job_state", "nodes", "gres_detail", "comment"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20))
@settings(max_examples=200, deadline=None)
def test_any_json_is_read_or_refused(document: object) -> None:
    try:
        parse(json.dumps(document).encode(), rules=RULES)
    except BadReply:
        return


# ------------------------------------------------------------------------------------------------ host lists


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("gpu1", ("gpu1",)),
        ("gpu[001-003,007],login1", ("gpu001", "gpu002", "gpu003", "gpu007", "login1")),
        ("r[1-2]n[08-09].hall", ("r1n08.hall", "r1n09.hall", "r2n08.hall", "r2n09.hall")),
    ],
)
def test_host_lists(text: str, hosts: tuple[str, ...]) -> None:
    assert expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["gpu[", "gpu]", "a[1-2", "a[2-1]", "a[x]", "a[1-999999999]", "a[1-200]b[1-200]", "a,,b"]
)
def test_bad_host_lists(text: str) -> None:
    with pytest.raises(ValueError, match="host list"):
        expand(text)


# ------------------------------------------------------------------------------------------------ the command


def command(tmp_path: Path, body: str) -> tuple[str, ...]:
    file = tmp_path / "squeue.py"
    file.write_text(body)
    return (sys.executable, str(file))


def slurm(tmp_path: Path, body: str, *, deadline_s: float = 20.0) -> SlurmJobs:
    return SlurmJobs(SlurmSettings(command(tmp_path, body), 15.0, deadline_s, RULES), clock=MonotonicClock())


def is_dead(pid: int) -> bool:
    """Gone, or not yet buried by whoever inherited it."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.wire
async def test_command_is_run_and_read(tmp_path: Path) -> None:
    source = slurm(tmp_path, f"print({listing(NEWER).decode()!r})")
    assert source.listing() is None
    await source.poll()
    reading = source.listing()
    assert reading is not None and source.trouble == "" and [j.job_id for j in reading.value] == ["slurm-4711"]
    await source.poll()
    again = source.listing()
    assert again is not None and again.value is reading.value and again.t_mono_s > reading.t_mono_s


@pytest.mark.wire
async def test_hanging_command_is_killed_with_its_children(tmp_path: Path) -> None:
    """A controller that does not answer: the poll ends at its deadline, and nothing of it stays behind."""
    marker = tmp_path / "pid"
    body = f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    source = slurm(tmp_path, body, deadline_s=4.0)
    await source.poll()
    assert source.listing() is None and "within 4 s" in source.trouble
    pid = int(marker.read_text())
    for _ in range(100):
        if is_dead(pid):
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the command outlived its poll")


@pytest.mark.wire
async def test_failing_command_says_why_and_keeps_the_listing(tmp_path: Path) -> None:
    good = slurm(tmp_path, f"print({listing(NEWER).decode()!r})")
    await good.poll()
    before = good.listing()
    (tmp_path / "squeue.py").write_text("import sys\nsys.exit('slurm_load_jobs error: Unable to contact controller')")
    await good.poll()
    assert good.listing() is before and "Unable to contact controller" in good.trouble
    missing = SlurmJobs(SlurmSettings(("no-such-squeue",), 15.0, 20.0, ()), clock=good._clock)
    await missing.poll()
    assert "No such file" in missing.trouble
