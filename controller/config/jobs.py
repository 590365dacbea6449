"""The `jobs` section of a site file: where jobs are learnt from, and which class a scheduler's job belongs to."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from controller.config.load import Document
from controller.errors import BadInput
from controller.settings import (
    IssuerSettings,
    JobRule,
    JobsSettings,
    JobTopicSettings,
    KubernetesSettings,
    SlurmSettings,
)
from controller.types import ClassId

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
SLURM_KEYS = ("partition", "qos", "account", "user_name", "name", "comment", "admin_comment", "features", "cluster")
KUBERNETES_KEYS = ("namespace", "priority_class")  # and label:NAME
# Labels that the usual operators put on every pod of one job.
JOB_LABELS = (
    "jobset.sigs.k8s.io/jobset-name",
    "training.kubeflow.org/job-name",
    "leaderworkerset.sigs.k8s.io/name",
    "volcano.sh/job-name",
    "ray.io/cluster",
    "batch.kubernetes.io/job-name",
    "job-name",
)

Pattern = Annotated[str, Field(min_length=1, max_length=256)]
Period = Annotated[float, Field(ge=1, le=600)]


class RuleDoc(Document):
    """`match` names attributes and shell patterns; all must fit."""

    job_class: Annotated[str, Field(alias="class", min_length=1, max_length=64)]
    match: Annotated[dict[str, Pattern], Field(min_length=1, max_length=8)]

    def settings(self) -> JobRule:
        return JobRule(ClassId(self.job_class), tuple(sorted(self.match.items())))


class JobIssuerDoc(Document):
    """Someone whose signature a listing may carry."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    key_files: Annotated[tuple[str, ...], Field(min_length=1)]


class TopicDoc(Document):
    """The topic; without issuers `unsigned: true` says that the broker's access list guards it."""

    topic: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^#+\x00]+$")] | None = None
    issuers: tuple[JobIssuerDoc, ...] = ()
    unsigned: bool = False
    valid_s_max: Annotated[float, Field(gt=0, le=86_400)] = 3_600.0

    @model_validator(mode="after")
    def _trust(self) -> TopicDoc:
        if bool(self.issuers) == self.unsigned:
            raise ValueError("either issuers (keys that sign listings) or unsigned: true, one of them")
        return self


def _known_keys(rules: tuple[RuleDoc, ...], keys: tuple[str, ...], *, prefix: str = "") -> tuple[RuleDoc, ...]:
    """`rules`; ValueError where one asks for an attribute the scheduler does not tell (under `prefix`: any)."""
    for key in (key for rule in rules for key in rule.match):
        if key not in keys and not (prefix and key.startswith(prefix)):
            known = (*keys, f"{prefix}NAME") if prefix else keys
            raise ValueError(f"match: {key!r} is none of {', '.join(known)}")
    return rules


class SlurmDoc(Document):
    """Slurm's own command; it must print its jobs as JSON."""

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ("squeue", "--json")
    period_s: Period = 15.0
    deadline_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    rules: Annotated[tuple[RuleDoc, ...], Field(max_length=256)] = ()

    @field_validator("rules")
    @classmethod
    def _keys(cls, rules: tuple[RuleDoc, ...]) -> tuple[RuleDoc, ...]:
        return _known_keys(rules, SLURM_KEYS)


class KubernetesDoc(Document):
    """The API server, or a file with a pod list."""

    api_url: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    file: str | None = None
    gpu_resource: Annotated[str, Field(min_length=1)] = "nvidia.com/gpu"
    class_label: str = "rampart/class"
    job_labels: tuple[str, ...] = JOB_LABELS
    period_s: Period = 15.0
    deadline_s: Annotated[float, Field(gt=0, le=120)] = 10.0
    rules: Annotated[tuple[RuleDoc, ...], Field(max_length=256)] = ()

    @field_validator("rules")
    @classmethod
    def _keys(cls, rules: tuple[RuleDoc, ...]) -> tuple[RuleDoc, ...]:
        return _known_keys(rules, KUBERNETES_KEYS, prefix="label:")

    @field_validator("api_url")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        url = urllib.parse.urlsplit(value or "https://host")
        if "@" in url.netloc:
            raise ValueError("no user or password in it; secrets are files")
        if url.scheme != "https" or not url.hostname:
            raise ValueError(f"{value!r}: https://HOST[:PORT] is allowed")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> KubernetesDoc:
        if (self.api_url is None) == (self.file is None):
            raise ValueError("either api_url or file, one of them")
        return self


class JobsDoc(Document):
    """All sources; each is optional."""

    stale_s: Annotated[float, Field(ge=5, le=86_400)] = 120.0
    mqtt: TopicDoc | None = None
    slurm: SlurmDoc | None = None
    kubernetes: KubernetesDoc | None = None


def jobs_settings(doc: JobsDoc, *, site: str, classes: tuple[str, ...], base: Path) -> JobsSettings:
    """The section as settings; BadInput where a rule names a class that the site has not."""
    for kind, rules in (
        ("slurm", doc.slurm.rules if doc.slurm else ()),
        ("kubernetes", doc.kubernetes.rules if doc.kubernetes else ()),
    ):
        for i, rule in enumerate(rules):
            if rule.job_class not in classes:
                known = ", ".join(classes) or "none is configured"
                raise BadInput(f"jobs.{kind}.rules.{i}.class: {rule.job_class!r}: classes of this site: {known}")
    return JobsSettings(
        stale_s=doc.stale_s,
        topic=_topic(doc.mqtt, site, base) if doc.mqtt else None,
        slurm=_slurm(doc.slurm) if doc.slurm else None,
        kubernetes=_kubernetes(doc.kubernetes, base) if doc.kubernetes else None,
    )


def _topic(doc: TopicDoc, site: str, base: Path) -> JobTopicSettings:
    issuers = tuple(
        IssuerSettings(i.name, tuple(str(base / k) for k in i.key_files), False, False, False) for i in doc.issuers
    )
    return JobTopicSettings(doc.topic or f"rampart/v1/site/{site}/jobs", issuers, doc.valid_s_max)


def _slurm(doc: SlurmDoc) -> SlurmSettings:
    return SlurmSettings(doc.command, doc.period_s, doc.deadline_s, tuple(rule.settings() for rule in doc.rules))


def _kubernetes(doc: KubernetesDoc, base: Path) -> KubernetesSettings:
    is_api = doc.api_url is not None

    def beside(file: str | None, default: str | None) -> str | None:
        return str(base / file) if file is not None else default

    return KubernetesSettings(
        api_url=doc.api_url,
        token_file=beside(doc.token_file, f"{SERVICE_ACCOUNT}/token" if is_api else None),
        ca_file=beside(doc.ca_file, f"{SERVICE_ACCOUNT}/ca.crt" if is_api else None),
        file=beside(doc.file, None),
        gpu_resource=doc.gpu_resource,
        class_label=doc.class_label,
        job_labels=doc.job_labels,
        period_s=doc.period_s,
        deadline_s=doc.deadline_s,
        rules=tuple(rule.settings() for rule in doc.rules),
    )
