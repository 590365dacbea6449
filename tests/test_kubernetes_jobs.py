"""Pods as an API server lists them, over real TLS from a stub of our own, and from a file."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.clock import MonotonicClock
from controller.config.jobs import JOB_LABELS
from controller.errors import BadInput
from controller.settings import JobRule, KubernetesSettings
from controller.types import ClassId, JobPart
from drivers.errors import BadReply
from drivers.kubernetes import KubernetesJobs, jobs_of, pods_of

RULES = (
    JobRule(ClassId("serve"), (("priority_class", "production-*"),)),
    JobRule(ClassId("train"), (("label:team", "llm"), ("namespace", "research"))),
)


def settings_of(**more: object) -> KubernetesSettings:
    fields: dict[str, object] = {
        "api_url": None,
        "token_file": None,
        "ca_file": None,
        "file": None,
        "gpu_resource": "nvidia.com/gpu",
        "class_label": "rampart/class",
        "job_labels": JOB_LABELS,
        "period_s": 15.0,
        "deadline_s": 5.0,
        "rules": RULES,
    }
    return KubernetesSettings(**(fields | more))  # type: ignore[arg-type]


def pod(name: str, node: str = "gpu-1", gpus: object = "8", **more: Any) -> dict[str, Any]:
    """A pod in the shape of `GET /api/v1/pods`, cut to what a cluster always sends."""
    return {
        "metadata": {
            "name": name,
            "namespace": more.get("namespace", "research"),
            "labels": more.get("labels", {"team": "llm"}),
            "annotations": more.get("annotations", {}),
            "ownerReferences": more.get("owners", []),
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node,
            "priorityClassName": more.get("priority_class", ""),
            "containers": [
                {"name": "main", "resources": {"limits": {"nvidia.com/gpu": gpus, "cpu": "8"}, "requests": {}}},
                {"name": "sidecar", "resources": {}},
            ],
            **({"activeDeadlineSeconds": more["lasts_s"]} if "lasts_s" in more else {}),
        },
        "status": {"phase": more.get("phase", "Running"), "startTime": "2026-01-01T00:00:00Z"},
    }


def pod_list(*pods: object, more: str = "") -> dict[str, Any]:
    return {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "1", "continue": more},
        "items": pods,
    }


def test_pods_of_one_job_are_one_job() -> None:
    """Two workers of a job set on two nodes: one job, its class by rule, its end by its deadline."""
    labels = {"team": "llm", "jobset.sigs.k8s.io/jobset-name": "pretrain"}
    pods = [pod("w-0", "gpu-1", labels=labels, lasts_s=3600), pod("w-1", "gpu-2", gpus=4, labels=labels)]
    (job,) = jobs_of(pods, settings_of())
    assert job.job_id == "k8s-research/pretrain" and job.class_id == "train"
    assert job.parts == (JobPart("gpu-1", 8), JobPart("gpu-2", 4))
    assert job.starts_utc_s == 1767225600.0 and job.ends_utc_s == 1767229200.0


def test_class_by_annotation_then_label_then_rule() -> None:
    told = pod("a", annotations={"rampart/class": "tune", "rampart/tolerated-loss": "0.25", "rampart/priority": "70"})
    labelled = pod("b", labels={"rampart/class": "serve", "team": "llm"})
    ruled = pod("c", priority_class="production-high", namespace="prod", labels={})
    unknown = pod("d", namespace="prod", labels={})
    found = {j.job_id: j for j in jobs_of([told, labelled, ruled, unknown], settings_of())}
    assert [found[k].class_id for k in sorted(found)] == ["serve", "", "tune", "serve"]
    tune = found["k8s-research/a"]
    assert (tune.tolerated_loss_frac, tune.priority) == (0.25, 70)


def test_owner_names_the_job_where_no_label_does() -> None:
    owners = [{"kind": "ReplicaSet", "name": "infer-7d9", "controller": True}]
    pods = [pod("infer-7d9-x", owners=owners), pod("infer-7d9-y", "gpu-2", owners=owners), pod("lone", "gpu-3")]
    assert [j.job_id for j in jobs_of(pods, settings_of())] == ["k8s-research/infer-7d9", "k8s-research/lone"]


def test_only_running_pods_with_gpus_and_a_node_count() -> None:
    pods = [
        pod("done", phase="Succeeded"),
        pod("cpu", gpus="0"),
        pod("odd", gpus="many"),
        pod("unbound", node=""),
        pod("named", annotations={"rampart/gpus": "GPU-1,GPU-2", "rampart/checkpoints-utc-s": "20,10,x"}),
    ]
    (job,) = jobs_of(pods, settings_of())
    assert (job.job_id, job.parts, job.gpu_ids) == ("k8s-research/named", (), ("GPU-1", "GPU-2"))
    assert job.checkpoints_utc_s == (10.0, 20.0)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*pod("x"), "items", "kind", "name"]), inner),
        max_leaves=15,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_is_read_or_refused(document: object) -> None:
    for raw in (document, {"kind": "PodList", "items": [document, {"spec": document, "status": {"phase": "Running"}}]}):
        try:
            jobs_of(pods_of(json.dumps(raw).encode()), settings_of())
        except BadReply:
            continue


# ------------------------------------------------------------------------------------------------ the API server


class Api(http.server.BaseHTTPRequestHandler):
    """Two pages of pods for whoever has the token."""

    token = "first"
    asked: ClassVar[list[str]] = []
    status = 200

    def do_GET(self) -> None:
        Api.asked.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {Api.token}" or Api.status != 200:
            return self._send(401 if Api.status == 200 else Api.status, {"kind": "Status", "message": "no"})
        is_second = "continue=page%202" in self.path
        page = pod_list(pod("b", "gpu-2")) if is_second else pod_list(pod("a"), pod("cpu", gpus="0"), more="page 2")
        return self._send(200, page)

    def _send(self, status: int, document: object) -> None:
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own authority for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesSettings]:
    cert, key = certificate(tmp_path, "ca")
    Api.asked, Api.status, Api.token = [], 200, "first"
    server = http.server.ThreadingHTTPServer(("localhost", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    (tmp_path / "token").write_text("first\n")
    yield settings_of(
        api_url=f"https://localhost:{server.server_port}",
        token_file=str(tmp_path / "token"),
        ca_file=str(cert),
    )
    server.shutdown()
    server.server_close()


@pytest.mark.wire
async def test_all_pages_are_read_with_the_token_of_the_moment(api: KubernetesSettings) -> None:
    source = KubernetesJobs(api, clock=MonotonicClock())
    await source.poll()
    reading = source.listing()
    assert source.trouble == "" and reading is not None
    assert [j.job_id for j in reading.value] == ["k8s-research/a", "k8s-research/b"]
    assert len(Api.asked) == 2 and all("status.phase%3DRunning" in path for path in Api.asked)
    Api.token = "second"
    await source.poll()
    assert "HTTP 401" in source.trouble and source.listing() is reading, "what was known ages; it is not forgotten"
    assert api.token_file is not None
    with Path(api.token_file).open("w") as file:  # noqa: ASYNC230 - one line in a test
        file.write("second")
    await source.poll()
    again = source.listing()
    assert source.trouble == "" and again is not None and again.value is reading.value


@pytest.mark.wire
async def test_server_of_another_authority_is_not_believed(api: KubernetesSettings, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "other")
    source = KubernetesJobs(
        settings_of(api_url=api.api_url, token_file=api.token_file, ca_file=str(other)), clock=MonotonicClock()
    )
    await source.poll()
    assert "certificate verify failed" in source.trouble and source.listing() is None and Api.asked == []


@pytest.mark.wire
async def test_absent_or_broken_server_is_trouble(api: KubernetesSettings) -> None:
    Api.status = 503
    source = KubernetesJobs(api, clock=MonotonicClock())
    await source.poll()
    assert "HTTP 503" in source.trouble
    nobody = KubernetesJobs(settings_of(api_url="https://localhost:1", ca_file=api.ca_file), clock=MonotonicClock())
    await nobody.poll()
    assert "refused" in nobody.trouble.lower()


def test_missing_ca_is_the_persons_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ca_file"):
        KubernetesJobs(settings_of(api_url="https://x", ca_file=str(tmp_path / "none")), clock=MonotonicClock())


@pytest.mark.wire
async def test_file_counts_from_when_it_was_written(tmp_path: Path) -> None:
    """A pod list that a cron job writes: when that job dies, the list ages like any other."""
    file = tmp_path / "pods.json"
    file.write_text(json.dumps({**pod_list(pod("a")), "kind": "List"}))
    clock = MonotonicClock()
    os.utime(file, (clock.wall_utc_s() - 300.0, clock.wall_utc_s() - 300.0))
    source = KubernetesJobs(settings_of(file=str(file)), clock=clock)
    await source.poll()
    reading = source.listing()
    assert reading is not None and 299.0 < clock.now_s() - reading.t_mono_s < 310.0
    file.unlink()
    await source.poll()
    assert "No such file" in source.trouble
