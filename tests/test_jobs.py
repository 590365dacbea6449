"""Jobs of several sources become one list, and each GPU serves the class and job it should, whatever sources fail."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.config.site import parse_site
from controller.errors import BadInput
from controller.fleet import FleetBook
from controller.jobs import NONE, JobBoard, class_of, merge, place
from controller.settings import ClassMembers, JobClassSettings, SiteSettings
from controller.types import (
    AgentState,
    ClassId,
    GpuId,
    GpuSpec,
    Job,
    JobPart,
    NodeId,
    NodeReport,
    Quality,
    Reading,
)

TRAIN = JobClassSettings(ClassId("train"), 40, 0.5, 600.0, 1.0)
SERVE = JobClassSettings(ClassId("serve"), 90, 0.0, 600.0, 1.0)
TUNE = JobClassSettings(ClassId("tune"), 60, 0.25, 600.0, 1.0)
CLASSES = (TRAIN, SERVE, TUNE)


def job(job_id: str, *parts: JobPart, class_id: str = "", **more: object) -> Job:
    return Job(job_id=job_id, source="test", class_id=class_id, parts=parts, **more)  # type: ignore[arg-type]


def site_of(site: SiteSettings) -> SiteSettings:
    from dataclasses import replace

    members = (ClassMembers(ClassId("train"), ("gpu-*",)),)
    return replace(site, classes=CLASSES, members=members)


@pytest.fixture
def site(tmp_path: Path) -> SiteSettings:
    found = parse_site(raw_site(), origin=str(tmp_path / "site.yaml")).site
    assert found is not None
    return site_of(found)


def raw_site(**more: object) -> dict[str, object]:
    return {
        "role": "site",
        "name": "hall",
        "contract": ["ieso-ramp"],
        "registered_peak_megawatt": 1.0,
        "mqtt": {},
        "load": {
            "gpu_peak_megawatt": 0.8,
            "gpu_idle_megawatt": 0.1,
            "gpu_fallback_megawatt": 0.4,
            "other_max_megawatt": 0.2,
        },
        "classes": [{"name": "train", "nodes": ["gpu-*"]}, {"name": "serve"}],
        **more,
    }


def report(node_id: str, gpus: int) -> Reading[NodeReport]:
    specs = tuple(
        GpuSpec(GpuId(f"{node_id}/{i}"), "NVIDIA H100", 70.0, 200.0, 700.0, 700.0, (345, 1980)) for i in range(gpus)
    )
    free = np.full(gpus, np.nan)
    value = NodeReport(
        node_id=NodeId(node_id),
        boot_id="b",
        t_mono_s=0.0,
        state=AgentState.ARMED,
        stands_for=1,
        gpu_ids=tuple(s.gpu_id for s in specs),
        power_w=np.full(gpus, 500.0),
        clock_mhz=np.full(gpus, 1980.0),
        clock_cap_mhz=free,
        power_limit_w=np.full(gpus, 700.0),
        quality=np.zeros(gpus, dtype=np.int8),
        is_controllable=np.ones(gpus, dtype=np.bool_),
        other_w=0.0,
        acked_epoch=0,
        acked_seq=0,
        specs=specs,
        fallback_clock_mhz=900.0,
    )
    return Reading(value, 0.0, Quality.GOOD, node_id)


SPANS = {NodeId("a"): slice(0, 4), NodeId("b.hall.example"): slice(4, 8), NodeId("c"): slice(8, 10)}
INDEX = {GpuId(f"g{i}"): i for i in range(10)}


def placed(*jobs: Job) -> tuple[list[int], list[str | None]]:
    found = place(jobs, spans=SPANS, index=INDEX, classes=CLASSES)
    names = [found.job_ids[j] if j != NONE else None for j in found.job_index.tolist()]
    return found.class_index.tolist(), names


def test_first_source_wins_gpu_by_gpu() -> None:
    """The topic says two GPUs of a node serve; the scheduler holds the whole node for training."""
    topic = job("live", class_id="serve", gpu_ids=(GpuId("g1"), GpuId("g2")))
    slurm = job("slurm-1", JobPart("a"), class_id="train")
    classes, names = placed(*merge([(topic,), (slurm,)]))
    assert classes[:4] == [0, 1, 1, 0]
    assert names[:4] == ["slurm-1", "live", "live", "slurm-1"]
    assert classes[4:] == [NONE] * 6, "nobody spoke of the other nodes"


def test_one_job_told_twice_is_one_job() -> None:
    """The topic names the class of a Slurm job whose nodes only Slurm knows."""
    told = job("slurm-7", class_id="serve", priority=95)
    known = job("slurm-7", JobPart("a"), class_id="train", priority=5, ends_utc_s=99.0)
    (one,) = merge([(told,), (known,)])
    assert (one.class_id, one.priority, one.parts, one.ends_utc_s) == ("serve", 95, (JobPart("a"),), 99.0)


def test_hosts_are_found_by_short_names_unless_two_share_one() -> None:
    assert placed(job("x", JobPart("b"), class_id="serve"))[0][4:8] == [1, 1, 1, 1]
    spans = {NodeId("n.one"): slice(0, 1), NodeId("n.two"): slice(1, 2)}
    twins = place([job("x", JobPart("n"), class_id="serve")], spans=spans, index={}, classes=CLASSES)
    assert twins.class_index.tolist() == [NONE, NONE], "which of the two is meant cannot be known"


def test_shared_node_goes_to_the_job_that_tolerates_least() -> None:
    """Two jobs hold two GPUs each and nobody says which: no GPU may be capped as if it were the flexible one's."""
    flexible, strict = job("f", JobPart("a", 2), class_id="train"), job("s", JobPart("a", 2), class_id="serve")
    classes, names = placed(flexible, strict)
    assert classes[:4] == [1, 1, 1, 1] and set(names[:4]) == {"f+s"}
    classes, names = placed(job("f", JobPart("c", 2), class_id="train"))
    assert classes[8:] == [0, 0] and names[8:] == ["f", "f"], "as many GPUs as the node has are the whole node"


def test_waiting_jobs_hold_nothing() -> None:
    assert placed(job("p", JobPart("a"), class_id="serve", is_running=False))[0][:4] == [NONE] * 4


@pytest.mark.parametrize(
    ("tier", "priority", "expected"),
    [(0.3, None, "tune"), (0.5, None, "train"), (0.1, 10, "serve"), (None, 55, "tune"), (0.0, None, "serve")],
)
def test_class_by_tier_is_never_more_flexible_than_the_job(
    tier: float | None, priority: int | None, expected: str
) -> None:
    k = class_of(job("j", tolerated_loss_frac=tier, priority=priority), CLASSES)
    assert CLASSES[k].class_id == expected


def test_unknown_class_is_told_and_left_to_the_node() -> None:
    found = place([job("j", JobPart("a"), class_id="gone")], spans=SPANS, index=INDEX, classes=CLASSES)
    assert found.unknown_classes == ("gone",) and found.class_index[:4].tolist() == [NONE] * 4
    assert found.job_index[0] == 0, "it is a job of its own all the same"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "zz"]), st.integers(0, 5), st.sampled_from(["", "train", "serve", "x"])
        ),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_placement_is_whole_and_repeatable(raw: list[tuple[str, int, str]]) -> None:
    """Every GPU of a node has one job or none, classes are known ones, and the same list places the same."""
    jobs = [job(f"j{i}", JobPart(node, count), class_id=name) for i, (node, count, name) in enumerate(raw)]
    one = place(jobs, spans=SPANS, index=INDEX, classes=CLASSES)
    two = place(jobs, spans=SPANS, index=INDEX, classes=CLASSES)
    assert np.array_equal(one.class_index, two.class_index) and np.array_equal(one.job_index, two.job_index)
    for span in SPANS.values():
        assert len(set(one.job_index[span].tolist())) == 1
    assert ((one.class_index >= NONE) & (one.class_index < len(CLASSES))).all()
    assert (one.job_index < len(one.job_ids)).all()


# ------------------------------------------------------------------------------------------------ the fleet


def test_fleet_takes_jobs_over_patterns_and_keeps_its_table(site: SiteSettings) -> None:
    """A job comes and goes: classes follow, and the table the envelope keeps its books on stays the same."""
    book = FleetBook(site)
    nodes = (report("gpu-1", 4), report("other", 2))
    before = book.fleet(nodes)
    assert before.class_index.tolist() == [0] * 4 + [3] * 2
    assert [before.job_names[j] for j in before.job_index.tolist()] == ["train"] * 4 + ["other"] * 2
    book.set_jobs((job("slurm-1", JobPart("gpu-1"), class_id="serve"), job("x", JobPart("other", 1))))
    with_jobs = book.fleet(nodes)
    assert with_jobs.table is before.table
    assert with_jobs.class_index.tolist() == [1] * 4 + [3] * 2
    assert [with_jobs.job_names[j] for j in with_jobs.job_index.tolist()] == ["slurm-1"] * 4 + ["x"] * 2
    book.set_jobs(())
    assert book.fleet(nodes).class_index.tolist() == before.class_index.tolist()


# ------------------------------------------------------------------------------------------------ the board


class Feed:
    def __init__(self, name: str) -> None:
        self.name = name
        self.reading: Reading[tuple[Job, ...]] | None = None
        self.trouble = ""

    def listing(self) -> Reading[tuple[Job, ...]] | None:
        return self.reading

    def says(self, t_s: float, *jobs: Job) -> None:
        self.reading = Reading(jobs, t_s, Quality.GOOD, self.name)


def test_silent_source_ages_out_once_and_returns(site: SiteSettings) -> None:
    """Slurm stops answering: its jobs count for two minutes, then the patterns decide; one line each way."""
    said: list[tuple[str, str]] = []
    slurm = Feed("slurm")
    nodes = {"gpu-1": report("gpu-1", 2)}
    board = JobBoard(
        [slurm], stale_s=120.0, site=site, reports=lambda: nodes, on_change=lambda *words: said.append(words)
    )
    slurm.says(0.0, job("slurm-1", JobPart("gpu-1"), class_id="serve"))
    first = board.jobs(1.0)
    assert board.jobs(50.0) is first and board.assignment() == {"gpu-1/0": "serve", "gpu-1/1": "serve"}
    slurm.trouble = "squeue: Unable to contact slurm controller"
    assert board.jobs(119.0) is first and said == []
    for t_s in (121.0, 140.0, 600.0):
        assert board.jobs(t_s) == ()
    assert len(said) == 1 and "Unable to contact" in said[0][1] and board.lost == ("slurm",)
    assert board.assignment() == {"gpu-1/0": "train", "gpu-1/1": "train"}
    slurm.says(700.0, job("slurm-1", JobPart("gpu-1"), class_id="serve"))
    assert len(board.jobs(700.0)) == 1
    assert said[1:] == [("jobs from slurm", "")]


def test_source_that_never_speaks_is_told_after_its_grace(site: SiteSettings) -> None:
    said: list[tuple[str, str]] = []
    board = JobBoard(
        [Feed("kubernetes")], stale_s=10.0, site=site, reports=dict, on_change=lambda *words: said.append(words)
    )
    board.jobs(1000.0)
    board.jobs(1009.0)
    assert said == []
    board.jobs(1011.0)
    assert len(said) == 1


# ------------------------------------------------------------------------------------------------ the site file


def test_site_file_gives_sources(tmp_path: Path) -> None:
    jobs = {
        "mqtt": {"unsigned": True},
        "slurm": {"rules": [{"class": "serve", "match": {"qos": "high*"}}]},
        "kubernetes": {"file": "pods.json"},
    }
    found = parse_site(raw_site(jobs=jobs), origin=str(tmp_path / "s.yaml")).jobs
    assert found is not None and found.topic is not None and found.slurm is not None and found.kubernetes is not None
    assert found.topic.topic == "rampart/v1/site/hall/jobs"
    assert found.slurm.command == ("squeue", "--json") and found.slurm.rules[0].matches == (("qos", "high*"),)
    assert found.kubernetes.file == str(tmp_path / "pods.json")


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"mqtt": {}}, "issuers"),
        ({"slurm": {"rules": [{"class": "nope", "match": {"qos": "x"}}]}}, "classes of this site: train, serve"),
        ({"slurm": {"rules": [{"class": "train", "match": {"queue": "x"}}]}}, "'queue' is none of partition"),
        ({"kubernetes": {"api_url": "http://plain"}}, "https://HOST"),
        ({"kubernetes": {}}, "either api_url or file"),
        ({"slurm": {"period_s": 0.01}}, "period_s"),
    ],
)
def test_wrong_job_sections_say_what_is_allowed(tmp_path: Path, jobs: object, words: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_site(raw_site(jobs=jobs), origin=str(tmp_path / "s.yaml"))
    assert words in str(refused.value) and "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------ recording


def test_jobs_are_in_the_recorded_image_once_per_change() -> None:
    """A replay sees what the core saw: the list when it changed, and that it did not in between."""
    from controller.codec import decode, encode
    from controller.types import SiteImage

    image = SiteImage(
        t_mono_s=1.0,
        wall_utc_s=2.0,
        tick=0,
        pcc=None,
        battery=None,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
        jobs=(job("slurm-1", JobPart("a", 2), class_id="train", checkpoints_utc_s=(5.0,)),),
    )
    raw = json.loads(gzip.decompress(gzip.compress(json.dumps(encode(image)).encode())))
    assert decode(SiteImage, raw) == image
