"""Jobs from Kubernetes: the running pods that hold GPUs, from the API server or from a file with a pod list.

Read-only: one `GET` of pods over HTTPS with the service account's token and the cluster's CA, page by page under one
deadline, on a thread of its own. Pages are small, so that reading one never holds up the control loop. Which GPUs of a
node a pod has, the API does not say; an annotation may.
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from controller.errors import BadInput
from controller.files import read_file
from controller.ports import Clock, DriverError
from controller.settings import KubernetesSettings
from controller.types import GpuId, Job, JobPart, Quality, Reading
from drivers.deadline import DeviceWorker
from drivers.errors import BadReply, DeviceTimeout, DriverUnavailable, PermissionDenied
from drivers.job_rules import class_by_rules

PAGE_PODS = 100  # about half a megabyte; 5 ms to read
PAGE_BYTES_MAX = 8 * 2**20
PAGES_MAX = 500
FILE_BYTES_MAX = 16 * 2**20
TOKEN_BYTES_MAX = 65_536
GPUS_MAX = 1024  # of one pod
LASTS_S_MAX = 10**10  # centuries
ANNOTATION = "rampart/"  # gpus, class, priority, tolerated-loss, ends-utc-s, checkpoints-utc-s
QUERY = "fieldSelector=status.phase%3DRunning"


class KubernetesJobs:
    """Polls the API server, or reads the file, while `run` runs."""

    name = "kubernetes"

    def __init__(self, settings: KubernetesSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._worker = DeviceWorker(self.name)
        self._reading: Reading[tuple[Job, ...]] | None = None
        self.trouble = ""
        if settings.api_url is not None:
            tls_context(settings)  # a wrong file is the person's to mend: said before anything starts

    def listing(self) -> Reading[tuple[Job, ...]] | None:
        return self._reading

    async def run(self) -> None:
        """Poll until cancelled; a poll that fails leaves the listing to age."""
        try:
            while True:
                due_ns = self._clock.now_ns() + round(self._settings.period_s * 1e9)
                await self.poll()
                await self._clock.sleep_until_ns(due_ns)
        finally:
            self._worker.close()

    async def poll(self) -> None:
        """One poll; never raises for what the server does."""
        asked_s, utc_s = self._clock.now_s(), self._clock.wall_utc_s()
        try:
            jobs, age_s = await self._worker.call(
                lambda: _read(self._settings, utc_s=utc_s), deadline_s=self._settings.deadline_s, name="pods"
            )
        except (DriverError, BadInput) as error:  # a file that was there at the start: it is being renewed
            self.trouble = str(error)
            return
        self.trouble = ""
        same = self._reading is not None and self._reading.value == jobs
        value = self._reading.value if self._reading is not None and same else jobs
        self._reading = Reading(value, asked_s - age_s, Quality.GOOD, self.name)


def tls_context(settings: KubernetesSettings) -> ssl.SSLContext:
    """TLS against the cluster's CA alone; BadInput on the file."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"jobs.kubernetes.ca_file: {settings.ca_file}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


# ------------------------------------------------------------------------------------------------ fetching


def _read(settings: KubernetesSettings, *, utc_s: float) -> tuple[tuple[Job, ...], float]:
    """Jobs and how old they are; on the worker's thread."""
    if settings.file is not None:
        path = Path(settings.file)
        try:
            status = path.stat()
            raw = read_file(path, bytes_max=FILE_BYTES_MAX)
        except OSError as error:
            raise DriverUnavailable("kubernetes", f"{path}: {error.strerror or error}") from None
        return jobs_of(pods_of(raw), settings), max(0.0, utc_s - status.st_mtime)
    return jobs_of(_fetch(settings), settings), 0.0


def _fetch(settings: KubernetesSettings) -> Iterable[Mapping[str, Any]]:
    """All running pods, page by page on one connection."""
    assert settings.api_url is not None
    url = urllib.parse.urlsplit(settings.api_url)
    assert url.hostname is not None, "checked where the site file is read"
    connection = http.client.HTTPSConnection(
        url.hostname, url.port or 443, timeout=settings.deadline_s, context=tls_context(settings)
    )
    headers = {"Accept": "application/json", "User-Agent": "rampart"}
    if settings.token_file is not None:
        headers["Authorization"] = f"Bearer {_token(settings.token_file)}"  # read anew: the cluster rotates it
    pods: list[Mapping[str, Any]] = []
    more = ""
    try:
        for _ in range(PAGES_MAX):
            target = f"{url.path.rstrip('/')}/api/v1/pods?{QUERY}&limit={PAGE_PODS}"
            connection.request("GET", target + (f"&continue={urllib.parse.quote(more)}" if more else ""), None, headers)
            answer = connection.getresponse()
            raw = answer.read(PAGE_BYTES_MAX + 1)
            _check(answer.status, raw)
            document = _document(raw)
            pods.extend(pod for pod in _items(document) if gpu_count(pod, settings.gpu_resource))
            metadata = document.get("metadata")
            more = _text(_map(metadata).get("continue"))
            if not more:
                return pods
    except TimeoutError:
        raise DeviceTimeout("kubernetes", f"{settings.api_url}: no answer within {settings.deadline_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DriverUnavailable("kubernetes", f"{settings.api_url}: {error}") from None
    finally:
        connection.close()
    raise BadReply("kubernetes", f"more than {PAGES_MAX} pages of pods")


def _token(path: str) -> str:
    try:
        token = read_file(Path(path), bytes_max=TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PermissionDenied("kubernetes", f"token: {path}: {error}") from None
    if not token.isprintable():  # the library would put it into its error, and so into the log
        raise PermissionDenied("kubernetes", f"token: {path}: more than one line")
    return token


def _check(status: int, raw: bytes) -> None:
    if status in (401, 403):
        raise PermissionDenied("kubernetes", f"HTTP {status}: the account may not list pods")
    if status != 200:
        raise DriverUnavailable("kubernetes", f"HTTP {status}: {raw[:120].decode('utf-8', errors='replace')}")
    if len(raw) > PAGE_BYTES_MAX:
        raise BadReply("kubernetes", f"a page of more than {PAGE_BYTES_MAX} bytes")


# ------------------------------------------------------------------------------------------------ reading


def pods_of(raw: bytes) -> list[Mapping[str, Any]]:
    """The pods of a pod list, as `kubectl get pods -A -o json` prints it; raises BadReply."""
    return _items(_document(raw))


def _document(raw: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadReply("kubernetes", "not JSON") from None
    if not isinstance(document, dict):
        raise BadReply("kubernetes", "not a list of pods")
    return document


def _items(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    items = document.get("items")
    if not isinstance(items, list) or document.get("kind") not in ("PodList", "List"):
        raise BadReply("kubernetes", "not a list of pods")
    return [item for item in items if isinstance(item, dict)]


def gpu_count(pod: Mapping[str, Any], resource: str) -> int:
    """GPUs a pod holds: its containers together, or the largest of those that run before them."""
    spec = _map(pod.get("spec"))
    main = sum(_gpus(c, resource) for c in _list(spec.get("containers")))
    first = max((_gpus(c, resource) for c in _list(spec.get("initContainers"))), default=0)
    return min(max(main, first), GPUS_MAX)


def _gpus(container: Mapping[str, Any], resource: str) -> int:
    limits = _map(_map(container.get("resources")).get("limits"))
    raw = limits.get(resource)
    return int(raw) if isinstance(raw, int | str) and str(raw).isdecimal() and len(str(raw)) <= 6 else 0


def jobs_of(pods: Iterable[Mapping[str, Any]], settings: KubernetesSettings) -> tuple[Job, ...]:
    """Pods that hold GPUs and run, joined to jobs; sorted by job id."""
    members: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        is_running = _map(pod.get("status")).get("phase") == "Running"
        has_node = bool(_text(_map(pod.get("spec")).get("nodeName")))
        if is_running and has_node and gpu_count(pod, settings.gpu_resource):
            members.setdefault(_job_id(pod, settings.job_labels), []).append(pod)
    return tuple(_job(job_id, members[job_id], settings) for job_id in sorted(members))


def _job_id(pod: Mapping[str, Any], job_labels: Sequence[str]) -> str:
    """Namespace and the first known label; else the pod's owner; else the pod itself."""
    metadata = _map(pod.get("metadata"))
    labels = _map(metadata.get("labels"))
    space = _text(metadata.get("namespace")) or "default"
    name = next((text for label in job_labels if (text := _text(labels.get(label)))), "")
    if not name:
        owners = _list(metadata.get("ownerReferences"))
        name = next((_text(owner.get("name")) for owner in owners if owner.get("controller") is True), "")
    return f"k8s-{space}/{name or _text(metadata.get('name'))}"


def _job(job_id: str, pods: Sequence[Mapping[str, Any]], settings: KubernetesSettings) -> Job:
    counts: dict[str, int] = {}
    gpu_ids: list[GpuId] = []
    for pod in pods:
        named = [GpuId(g) for g in _hint(pod, "gpus").split(",") if g][:GPUS_MAX]
        gpu_ids.extend(named)
        if not named:
            node = _text(_map(pod.get("spec")).get("nodeName"))
            counts[node] = counts.get(node, 0) + gpu_count(pod, settings.gpu_resource)
    first = pods[0]
    return Job(
        job_id=job_id,
        source="kubernetes",
        class_id=_class(first, settings),
        parts=tuple(JobPart(node, counts[node]) for node in sorted(counts)),
        gpu_ids=tuple(sorted(set(gpu_ids))),
        priority=_whole(_hint(first, "priority")),
        tolerated_loss_frac=_number(_hint(first, "tolerated-loss"), most=1.0),
        starts_utc_s=min((t for p in pods if (t := _time(_map(p.get("status")).get("startTime")))), default=None),
        ends_utc_s=_ends(first),
        checkpoints_utc_s=_times(_hint(first, "checkpoints-utc-s")),
    )


def _class(pod: Mapping[str, Any], settings: KubernetesSettings) -> str:
    metadata = _map(pod.get("metadata"))
    labels = _map(metadata.get("labels"))
    named = _hint(pod, "class") or _text(labels.get(settings.class_label))
    if named:
        return named
    attributes = {f"label:{key}": _text(value) for key, value in labels.items()}
    attributes["namespace"] = _text(metadata.get("namespace"))
    attributes["priority_class"] = _text(_map(pod.get("spec")).get("priorityClassName"))
    return class_by_rules(settings.rules, attributes)


def _ends(pod: Mapping[str, Any]) -> float | None:
    """Its announced end, else when its deadline ends it."""
    announced = _number(_hint(pod, "ends-utc-s"), most=1e11)
    if announced is not None:
        return announced
    began = _time(_map(pod.get("status")).get("startTime"))
    lasts = _map(pod.get("spec")).get("activeDeadlineSeconds")
    return began + lasts if began is not None and isinstance(lasts, int) and 0 <= lasts <= LASTS_S_MAX else None


def _hint(pod: Mapping[str, Any], key: str) -> str:
    return _text(_map(_map(pod.get("metadata")).get("annotations")).get(ANNOTATION + key))


def _time(raw: object) -> float | None:
    try:
        return datetime.fromisoformat(raw).timestamp() if isinstance(raw, str) else None
    except (ValueError, OverflowError):
        return None


def _times(text: str) -> tuple[float, ...]:
    found = (_number(item, most=1e11) for item in text.split(",")[:64])
    return tuple(sorted(t for t in found if t is not None))


def _number(text: str, *, most: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0.0 <= value <= most else None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= 3 and int(text) <= 100 else None


def _map(raw: object) -> Mapping[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _list(raw: object) -> list[Mapping[str, Any]]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []


def _text(raw: object) -> str:
    return raw[:4096] if isinstance(raw, str) else ""
