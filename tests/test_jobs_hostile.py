"""Job sources that answer nonsense, and a machine in disorder under them: the listing ages, the controller goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from controller.clock import MonotonicClock
from controller.settings import KubernetesSettings
from drivers.kubernetes import KubernetesJobs, jobs_of
from drivers.slurm import parse
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
