"""Jobs from an MQTT topic: one JSON document lists all jobs of a site, signed by a known key or guarded by the broker.

A listing replaces the one before. It lives as long as it says, never longer than the site allows, and is refused when
it is older than the last, for another site, or not exactly of the published form. At most one document is read every
half second, whatever the topic carries; only the newest counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.errors import BadInput
from controller.ports import Clock
from controller.settings import JobTopicSettings
from controller.types import GpuId, Job, JobPart, Quality, Reading
from drivers.hostlist import expand
from drivers.jws import KeyStore, WireRefused
from drivers.mqtt import Incoming, MqttSession

CONTENT_TYPE = "application/vnd.rampart.jobs+json"
READ_PERIOD_S = 0.5  # verifying and reading 64 KiB takes a few milliseconds of the loop; a flood may not take more
SKEW_S = 60.0  # a listing from further in the future than clocks differ is refused
JOBS_MAX = 5_000
NODES_MAX = 20_000  # of one listing

Text = Annotated[str, Field(min_length=1, max_length=128)]
Instant = Annotated[float, Field(ge=0, le=1e11)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class JobMessage(_Message):
    """One job. `nodes` are whole nodes, as names or host lists; `gpus` single GPUs by UUID."""

    job_id: Text
    job_class: Annotated[str, Field(alias="class", max_length=64)] = ""
    nodes: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=4096)] = []
    gpus: Annotated[list[Text], Field(max_length=4096)] = []
    priority: Annotated[int, Field(ge=0, le=100)] | None = None
    tolerated_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    starts_utc_s: Instant | None = None
    ends_utc_s: Instant | None = None
    checkpoints_utc_s: Annotated[list[Instant], Field(max_length=64)] = []
    running: bool = True


class ListingMessage(_Message):
    """All jobs of one site at one instant."""

    version: Annotated[int, Field(ge=1, le=1)]
    site: Text
    issued_utc_s: Instant
    valid_s: Annotated[float, Field(gt=0, le=86_400)]
    jobs: Annotated[list[JobMessage], Field(max_length=JOBS_MAX)]


class JobsTopic:
    """The newest valid listing of the topic. Make it before the session runs."""

    name = "mqtt"

    def __init__(
        self,
        session: MqttSession,
        *,
        settings: JobTopicSettings,
        site: str,
        clock: Clock,
        on_refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._site = site
        self._clock = clock
        self._on_refused = on_refused
        self._keys = KeyStore(settings.issuers) if settings.issuers else None
        self._pending: Incoming | None = None
        self._read_s = -math.inf
        self._jobs: tuple[Job, ...] = ()
        self._issued_utc_s = -math.inf
        self._until_s = -math.inf
        self._heard_s: float | None = None
        self.refused_count = 0
        self.trouble = self._key_trouble = ""
        session.on_message(settings.topic, self.receive)

    def receive(self, message: Incoming) -> None:
        """Keep the newest document; it is read when somebody asks."""
        self._pending = message

    def listing(self) -> Reading[tuple[Job, ...]] | None:
        """The listing in force, fresh as long as it is valid."""
        now_s = self._clock.now_s()
        if self._pending is not None and now_s - self._read_s >= READ_PERIOD_S:
            message, self._pending, self._read_s = self._pending, None, now_s
            self._take(message.payload, now_s)
        if self._heard_s is None:
            return None
        return Reading(self._jobs, min(now_s, self._until_s), Quality.GOOD, self.name)

    def _take(self, payload: bytes, now_s: float) -> None:
        try:
            listing = self._read(payload)
            jobs = _jobs(listing)
        except (ValueError, WireRefused, BadInput) as error:
            self._refuse(str(error))
            return
        self.trouble = ""
        self._issued_utc_s = listing.issued_utc_s
        age_s = max(0.0, self._clock.wall_utc_s() - listing.issued_utc_s)
        self._until_s = now_s - age_s + min(listing.valid_s, self._settings.valid_s_max)
        self._heard_s = now_s
        if jobs != self._jobs:
            self._jobs = jobs

    def _read(self, payload: bytes) -> ListingMessage:
        """The listing in `payload`; ValueError or WireRefused say why there is none that counts."""
        content = payload
        if self._keys is not None:
            self._refresh_keys(self._keys)
            signed = self._keys.verify(payload.decode("ascii", errors="replace"))
            if signed.content_type != CONTENT_TYPE:
                raise ValueError(f"signed as {signed.content_type!r}, not as {CONTENT_TYPE}")
            content = signed.payload
        try:
            listing = ListingMessage.model_validate(json.loads(content))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
        except (RecursionError, UnicodeDecodeError, json.JSONDecodeError):
            raise ValueError("not JSON") from None
        if listing.site != self._site:
            raise ValueError(f"for site {listing.site!r}")
        if listing.issued_utc_s <= self._issued_utc_s:
            raise ValueError("not newer than the listing before")
        age_s = self._clock.wall_utc_s() - listing.issued_utc_s
        if not -SKEW_S <= age_s <= min(listing.valid_s, self._settings.valid_s_max):
            raise ValueError(f"issued {age_s:.0f} s ago, no longer or not yet valid")
        return listing

    def _refresh_keys(self, keys: KeyStore) -> None:
        """A file that is wrong is said once; the other keys stay in use."""
        try:
            keys.refresh()
            self._key_trouble = ""
        except BadInput as bad:
            if str(bad) != self._key_trouble:
                self._key_trouble = str(bad)
                self._on_refused(f"keys: {bad}")

    def _refuse(self, why: str) -> None:
        self.refused_count += 1
        if why != self.trouble:
            self.trouble = why
            self._on_refused(why)


def _jobs(listing: ListingMessage) -> tuple[Job, ...]:
    """The jobs; ValueError as soon as they have too many nodes: a few characters may stand for thousands."""
    jobs: list[Job] = []
    room = NODES_MAX
    for message in listing.jobs:
        nodes: list[str] = []
        for name in message.nodes:
            try:
                nodes += expand(name, most=room - len(nodes))
            except ValueError as error:
                raise ValueError(f"job {message.job_id}: {error}; {NODES_MAX} nodes are allowed in all") from None
        jobs.append(_job(message, tuple(dict.fromkeys(nodes))))
        room -= len(nodes)
    return tuple(jobs)


def _job(message: JobMessage, nodes: tuple[str, ...]) -> Job:
    return Job(
        job_id=message.job_id,
        source="mqtt",
        class_id=message.job_class,
        parts=tuple(JobPart(host) for host in nodes),
        gpu_ids=tuple(GpuId(gpu) for gpu in message.gpus),
        priority=message.priority,
        tolerated_loss_frac=message.tolerated_loss,
        starts_utc_s=message.starts_utc_s,
        ends_utc_s=message.ends_utc_s,
        checkpoints_utc_s=tuple(sorted(message.checkpoints_utc_s)),
        is_running=message.running,
    )
