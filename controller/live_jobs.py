"""The job sources of one process, opened from settings: feeds in order of precedence behind one board."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from controller.jobs import JobBoard
from controller.ports import Clock, JobFeed, NodeLink
from controller.settings import JobsSettings, Settings
from controller.types import frozen
from drivers.jobs_mqtt import JobsTopic
from drivers.kubernetes import KubernetesJobs
from drivers.mqtt import MqttSession
from drivers.slurm import SlurmJobs

NOTHING = JobsSettings(stale_s=120.0, topic=None, slurm=None, kubernetes=None)  # node patterns alone

log = structlog.get_logger("rampart")


@frozen
class OpenJobs:
    """The board and the loops that keep its feeds fresh."""

    board: JobBoard
    runners: tuple[Callable[[], Awaitable[None]], ...]


def open_jobs(settings: Settings, *, clock: Clock, session: MqttSession | None, link: NodeLink) -> OpenJobs:
    """All configured feeds; touches neither scheduler nor broker. BadInput on files that a person must mend."""
    site, jobs = settings.site, settings.jobs or NOTHING
    assert site is not None
    feeds: list[JobFeed] = []
    runners: list[Callable[[], Awaitable[None]]] = []
    if jobs.topic is not None and session is not None:
        feeds.append(JobsTopic(session, settings=jobs.topic, site=site.name, clock=clock, on_refused=_say_refused))
    if jobs.slurm is not None:
        slurm = SlurmJobs(jobs.slurm, clock=clock)
        feeds.append(slurm)
        runners.append(slurm.run)
    if jobs.kubernetes is not None:
        kubernetes = KubernetesJobs(jobs.kubernetes, clock=clock)
        feeds.append(kubernetes)
        runners.append(kubernetes.run)
    board = JobBoard(feeds, stale_s=jobs.stale_s, site=site, reports=link.reports, on_change=_say_changed)
    return OpenJobs(board, tuple(runners))


def _say_refused(why: str) -> None:
    log.warning("jobs listing refused", why=why)


def _say_changed(subject: str, why: str) -> None:
    if why:
        log.warning("lost", subject=subject, why=why)
    else:
        log.info("recovered", subject=subject)
