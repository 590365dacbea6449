"""Job sources that answer nonsense, and a machine in disorder under them: the listing ages, the controller goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from controller.clock import MonotonicClock
from controller.settings import KubernetesSettings
from drivers import hostlist, jobs_mqtt
from drivers.hostlist import expand
from drivers.kubernetes import KubernetesJobs, jobs_of
from drivers.slurm import parse
from tests.test_jobs_mqtt import Bench, document
from tests.test_kubernetes_jobs import Api, api, pod, pod_list, settings_of
from tests.test_slurm_jobs import RULES, slurm

assert api  # a fixture, found by its name


def moved(path: Path, ending: str) -> Path:
    return path.rename(path.with_suffix(ending))


@pytest.mark.wire
async def test_a_token_of_two_lines_is_trouble_and_stays_out_of_the_log(api: KubernetesSettings) -> None:
    source = KubernetesJobs(api, clock=MonotonicClock())
    assert api.token_file is not None
    with Path(api.token_file).open("w") as file:  # noqa: ASYNC230 - one line in a test
        file.write("first\nsecond line")
    await source.poll()
    assert api.token_file in source.trouble and "second line" not in source.trouble and Api.asked == []


@pytest.mark.wire
async def test_an_authority_that_is_being_renewed_is_waited_for(api: KubernetesSettings) -> None:
    """The cluster exchanges its CA file: for the moment without one the poll fails, and the next one reads the new."""
    source = KubernetesJobs(api, clock=MonotonicClock())
    assert api.ca_file is not None
    away = moved(Path(api.ca_file), ".new")
    await source.poll()
    assert "ca_file" in source.trouble
    moved(away, ".crt")
    await source.poll()
    assert source.trouble == "" and source.listing() is not None


@pytest.mark.wire
@pytest.mark.parametrize("more", [5, {"a": 1}, ["x"]])
async def test_a_mark_of_the_next_page_that_is_no_text_is_none(
    more: Any, api: KubernetesSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pod_list(pod("a")) | {"metadata": {"continue": more}}
    monkeypatch.setattr(Api, "do_GET", lambda self: self._send(200, page))
    source = KubernetesJobs(api, clock=MonotonicClock())
    await source.poll()
    assert source.trouble == "" and source.listing() is not None


def test_a_few_characters_that_stand_for_millions_of_nodes_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 KB of ranges took the loop half a minute and a gigabyte before they were counted."""
    expanded: list[int] = []

    def counted(text: str, **how: Any) -> tuple[str, ...]:
        found = expand(text, **how)
        expanded.append(len(found))
        return found

    monkeypatch.setattr(jobs_mqtt, "expand", counted)
    bench = Bench()
    listing = document(bench.clock)
    listing["jobs"][0]["nodes"] = [f"rack{k}-[0-19999]" for k in range(500)]
    bench.send(json.dumps(listing).encode())
    assert bench.feed.listing() is None and bench.feed.refused_count == 1 and "20000 nodes" in bench.feed.trouble
    assert sum(expanded) <= jobs_mqtt.NODES_MAX


def test_ranges_in_one_bracket_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 KB of the same range again and again is one name, and made ten million before it was refused."""
    made: list[int] = []
    monkeypatch.setattr(hostlist, "range", lambda *ends: made.append(1) or range(*ends), raising=False)
    with pytest.raises(ValueError, match="too long"):
        expand(f"n[{','.join(['0-19999'] * 500)}]")
    assert len(made) == 1


def test_a_deadline_beyond_all_numbers_is_none() -> None:
    one = pod("a")
    one["status"]["startTime"] = "2026-01-01T00:00:00Z"
    one["spec"]["activeDeadlineSeconds"] = 10**400
    (job,) = jobs_of([one], settings_of())
    assert job.ends_utc_s is None


def test_a_count_of_gpus_beyond_all_numbers_is_not_followed() -> None:
    job = {"job_id": 1, "job_state": "RUNNING", "nodes": "n1", "gres_detail": ["gpu:" + "1" * 5000]}
    (found,) = parse(json.dumps({"jobs": [job]}).encode(), rules=RULES)
    assert found.parts == ()


async def test_a_machine_that_starts_no_process_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory or of tasks: no listing, and no end of the controller."""

    async def refuse(*command: object, **how: object) -> object:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    source = slurm(tmp_path, "")
    await source.poll()
    assert "Resource temporarily unavailable" in source.trouble
