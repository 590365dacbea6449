"""The same links over a real mosquitto: the shipped access list, TLS, a killed and a frozen broker, retained lies."""

from __future__ import annotations

import asyncio
import datetime
import getpass
import ipaddress
import json
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from controller.cli.conformance import app as conformance_app
from controller.clock import MonotonicClock
from controller.signals import AcceptanceRules
from controller.types import NodeId, Outlook, RefusalReason, SignalOutcome
from drivers.dsx import DsxGridSource
from drivers.dsx_wire import answer_topic, breach_topic, flexibility_topic, load_target_topic, status_topic
from drivers.mqtt import PAYLOAD_BYTES_MAX, Incoming, Keep
from drivers.node_link import MqttAgentLink, MqttNodeLink
from drivers.node_messages import command_topic
from hil.broker import free_port
from tests.dsx_kit import MW, NOTHING, bounds, grid, image, issuer, sender
from tests.mqtt_kit import running, session, until
from tests.test_dsx_source import load_target
from tests.test_node_link import command, report

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
PASSWD = shutil.which("mosquitto_passwd")
SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "mosquitto"

pytestmark = [pytest.mark.wire, pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")]


class Broker:
    """A mosquitto of our own on a loopback port, in a folder of its own: with `lines`, or with a whole `text`."""

    def __init__(self, folder: Path, *lines: str, text: str | None = None) -> None:
        self.port = free_port()
        self.conf = folder / "mosquitto.conf"
        head = [
            f"user {getpass.getuser()}",
            f"listener {self.port} 127.0.0.1",
            "set_tcp_nodelay true",
            "message_size_limit 65536",
        ]
        made = "\n".join([*head, *lines]) if text is None else f"{head[0]}\n{text.replace('PORT', str(self.port))}"
        self.conf.write_text(made + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [MOSQUITTO, "-c", str(self.conf)], stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(5)
            self.process = None


@asynccontextmanager
async def mosquitto(folder: Path, *lines: str, text: str | None = None) -> AsyncIterator[Broker]:
    broker = Broker(folder, *lines, text=text)
    await broker.start()
    try:
        yield broker
    finally:
        broker.stop()


async def test_restart_and_freeze_are_seen_and_mended(tmp_path: Path) -> None:
    """Killed: down at once, up by itself. Stopped in its tracks: down within the rule, up when it goes on."""
    async with mosquitto(tmp_path, "allow_anonymous true") as broker:
        a = session(broker.port, "a")
        async with running(a):
            assert await a.wait_up(deadline_s=5)
            broker.stop(signal.SIGKILL)
            await until(lambda: not a.is_up)
            await broker.start()
            assert await a.wait_up(deadline_s=10)
            assert broker.process is not None
            broker.process.send_signal(signal.SIGSTOP)
            await until(lambda: not a.is_up)
            broker.process.send_signal(signal.SIGCONT)
            assert await a.wait_up(deadline_s=10)


async def test_two_processes_of_one_name_are_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each throws the other out as soon as it is there; nobody would see more than a link that comes and goes."""
    async with mosquitto(tmp_path, "allow_anonymous true") as broker:
        a, b = session(broker.port, "same"), session(broker.port, "same")
        async with running(a, b):
            await until(lambda: a.counts.short_sessions > 3, deadline_s=30.0)
            assert b.counts.short_sessions > 0
    said = [line for line in capsys.readouterr().out.splitlines() if "as soon as they are up" in line]
    assert 1 <= len(said) <= 2 and all("another process with this client id" in line for line in said)


async def test_shipped_access_list(tmp_path: Path) -> None:
    """Site and node reach each other; no node commands another, no issuer speaks as another, no stranger gets in."""
    assert PASSWD is not None
    passwords = tmp_path / "passwd"
    passwords.touch(mode=0o600)
    users = ("site", "n1", "n2", "acme")
    for user in users:
        add = [PASSWD, "-b", str(passwords), user, f"pw-{user}"]
        subprocess.run(add, check=True, stderr=subprocess.DEVNULL)  # noqa: ASYNC221 - takes milliseconds
        (tmp_path / user).write_text(f"pw-{user}\n")
    (tmp_path / "acl").write_text((SHIPPED / "rampart.acl").read_text())
    (tmp_path / "acl").chmod(0o600)
    (tmp_path / "wrong").write_text("wrong")
    lines = ("allow_anonymous false", f"password_file {passwords}", f"acl_file {tmp_path / 'acl'}")
    async with mosquitto(tmp_path, *lines) as broker:
        site_s, n1_s, n2_s, acme_s = (
            session(broker.port, u, username=u, password_file=str(tmp_path / u)) for u in users
        )
        stranger = session(broker.port, "x", username="n1", password_file=str(tmp_path / "wrong"))
        site = MqttNodeLink(site_s)
        n1 = MqttAgentLink(n1_s, node_id=NodeId("n1"), clock=MonotonicClock())
        heard: list[Incoming] = []
        site_s.on_message("grid/v1/isv/+/loadtarget/set", heard.append)
        async with running(site_s, n1_s, n2_s, acme_s, stranger):
            for s in (site_s, n1_s, n2_s, acme_s):
                assert await s.wait_up(deadline_s=5), s.down_reason
            n2_s.publish(command_topic("n1"), b"forged", qos=1, keep=Keep.ALL)
            acme_s.publish(command_topic("n1"), b"forged", qos=1, keep=Keep.ALL)
            acme_s.publish(load_target_topic("other"), b"forged", qos=1, keep=Keep.ALL)
            n2_s.publish("rampart/v1/node/n1/report", b"forged", qos=1, keep=Keep.ALL)
            assert await n2_s.wait_sent(deadline_s=5) and await acme_s.wait_sent(deadline_s=5)
            await n1.publish(report(t_mono_s=MonotonicClock().now_s()))
            await site.send([command()])
            acme_s.publish(load_target_topic("acme"), b"own", qos=1, keep=Keep.ALL)
            await until(lambda: "n1" in site.reports() and heard and not n1._commands._queue.empty())
            assert n1.counts.malformed == 0 and site.counts.malformed == 0
            assert [m.payload for m in heard] == [b"own"]
            assert not stranger.is_up and "authori" in stranger.down_reason.lower()


def certificate(
    folder: Path, name: str, ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A key and certificate in `folder/name.key` and `.pem`; self-signed as CA when `ca` is None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca[0].subject if ca else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((ca[1] if ca else key).public_key()), critical=False
        )
    )
    made = builder.sign(ca[1] if ca else key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made, key


async def test_mutual_tls_with_the_certificate_as_identity(tmp_path: Path) -> None:
    """With a certificate of the site's CA a node is in under its own name; without one, or with another, not."""
    ca = certificate(tmp_path, "ca", None)
    certificate(tmp_path, "broker", ca)
    certificate(tmp_path, "n1", ca)
    certificate(tmp_path, "other-ca", None)
    (tmp_path / "acl").write_text((SHIPPED / "rampart.acl").read_text())
    (tmp_path / "acl").chmod(0o600)
    shipped = (SHIPPED / "mosquitto.conf").read_text()
    wanted = ("tls_version", "require_certificate", "use_identity_as_username")
    lines = [x for x in shipped.splitlines() if x.startswith(wanted)]
    assert len(lines) == 3
    lines += [f"cafile {tmp_path}/ca.pem", f"certfile {tmp_path}/broker.pem", f"keyfile {tmp_path}/broker.key"]
    async with mosquitto(tmp_path, *lines, f"acl_file {tmp_path / 'acl'}", "allow_anonymous false") as broker:
        own = {"cert_file": f"{tmp_path}/n1.pem", "key_file": f"{tmp_path}/n1.key"}
        inside = session(broker.port, "n1", ca_file=f"{tmp_path}/ca.pem", **own)
        bare = session(broker.port, "bare", ca_file=f"{tmp_path}/ca.pem")
        wrong = session(broker.port, "wrong", ca_file=f"{tmp_path}/other-ca.pem", **own)
        async with running(inside, bare, wrong):
            assert await inside.wait_up(deadline_s=10), inside.down_reason
            await until(lambda: "certificate" in wrong.down_reason.lower())
            await until(lambda: bare.down_reason != "not connected yet")
            assert not bare.is_up and not wrong.is_up


def shipped(folder: Path, *, has_passwords: bool) -> str:
    """The shipped configuration, every line of it, on files of ours; its comments say how to go over to passwords."""
    text = (SHIPPED / "mosquitto.conf").read_text()
    for name, path in (
        ("/etc/mosquitto/rampart.acl", folder / "acl"),
        ("/etc/mosquitto/rampart.passwd", folder / "passwd"),
        ("/etc/mosquitto/certs", folder),
        ("listener 8883", "listener PORT 127.0.0.1"),
    ):
        assert name in text, name
        text = text.replace(name, str(path))
    if has_passwords:
        for line in ("require_certificate true\n", "use_identity_as_username true\n"):
            assert line in text
            text = text.replace(line, "")
        for line in ("require_certificate false", "password_file"):
            assert f"# {line}" in text
            text = text.replace(f"# {line}", line)
    (folder / "acl").write_text((SHIPPED / "rampart.acl").read_text())
    (folder / "acl").chmod(0o600)
    return text


@pytest.mark.parametrize("has_passwords", [False, True])
async def test_the_shipped_files_serve_a_site_and_its_grid(tmp_path: Path, has_passwords: bool) -> None:
    """Over mutual TLS, and over passwords in TLS: a signed target is followed, answered, reported; no one else in."""
    ca = certificate(tmp_path, "ca", None)
    users = ("site", "acme", "infra-1")
    for name in ("broker", *users):
        certificate(tmp_path, name, ca)
    if has_passwords:
        assert PASSWD is not None
        (tmp_path / "passwd").touch(mode=0o600)
        for user in users:
            add = [PASSWD, "-b", str(tmp_path / "passwd"), user, f"pw-{user}"]
            subprocess.run(add, check=True, stderr=subprocess.DEVNULL)  # noqa: ASYNC221 - takes milliseconds
            (tmp_path / f"{user}.secret").write_text(f"pw-{user}\n")

    def credentials(user: str) -> dict[str, str]:
        if has_passwords:
            return {"username": user, "password_file": f"{tmp_path}/{user}.secret", "ca_file": f"{tmp_path}/ca.pem"}
        files = {"cert_file": f"{tmp_path}/{user}.pem", "key_file": f"{tmp_path}/{user}.key"}
        return {**files, "ca_file": f"{tmp_path}/ca.pem"}

    acme, public = sender(tmp_path, "grid-acme")
    acme = type(acme)("isv", "acme", acme.signer, acme.rng)
    sender(tmp_path, "grid-site", role="dsx-flex-agent", seed=7)
    settings = grid(issuer("acme", (public,)), signing_key_file=str(tmp_path / "grid-site.jwk"))
    async with mosquitto(tmp_path, text=shipped(tmp_path, has_passwords=has_passwords)) as broker:
        site, issuer_, infra = (session(broker.port, u, **credentials(u)) for u in users)
        stranger = session(broker.port, "stranger", ca_file=f"{tmp_path}/ca.pem")
        clock = MonotonicClock()
        source = DsxGridSource(
            site, settings=settings, rules=AcceptanceRules(settings, bounds()), peak_w=100 * MW, floor_w=20 * MW,
            classes=(), jobs=None, clock=clock, rng=np.random.default_rng(1), audit_path=tmp_path / "audit.jsonl",
        )  # fmt: skip
        heard: list[str] = []
        for topic in (answer_topic("site"), status_topic("site"), flexibility_topic("site"), breach_topic("site")):
            issuer_.on_message(topic, lambda m: heard.append(m.topic.rsplit("/", 1)[1]))
        spied: list[Incoming] = []
        infra.on_message("grid/v1/isv/#", spied.append)
        run = asyncio.create_task(source.run())
        async with running(site, issuer_, infra, stranger):
            for s in (site, issuer_):
                assert await s.wait_up(deadline_s=10), s.down_reason
            _, raw = acme.encode(load_target(60), utc_s=clock.wall_utc_s())
            issuer_.publish(load_target_topic("acme"), raw, qos=1, keep=Keep.ALL)
            await until(lambda: [x.target_w for x in source.active(clock.now_s())] == [60 * MW])
            outlook = Outlook(((0.0, 60 * MW),), 50 * MW, 70 * MW, 8 * MW, 0.0, 0.0, 0.0, ())
            for ahead_s in (0.0, 300.0, 306.0):
                source.report(image(clock.now_s() + ahead_s, 75 * MW), NOTHING, (), outlook=lambda: outlook)
            await until(lambda: {"answer", "status", "powerbreach"} <= set(heard) and heard.count("status") >= 3)
            assert not spied and not stranger.is_up
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_conformance_of_both_roles_over_the_shipped_broker(tmp_path: Path) -> None:
    """Mutual TLS and the shipped access list: the command judges our agent as an issuer, our issuer as an agent."""
    ca = certificate(tmp_path, "ca", None)
    for name in ("broker", "site", "acme"):
        certificate(tmp_path, name, ca)
    acme, public = sender(tmp_path, "grid-acme")
    acme = type(acme)("isv", "acme", acme.signer, acme.rng)
    _, agent_public = sender(tmp_path, "grid-site", role="dsx-flex-agent", seed=7)
    settings = grid(issuer("acme", (public,)), feeds=("a", "b"), signing_key_file=str(tmp_path / "grid-site.jwk"))
    async with mosquitto(tmp_path, text=shipped(tmp_path, has_passwords=False)) as broker:

        def judge(user: str, *args: str) -> Any:
            files = ("--cert-file", f"{tmp_path}/{user}.pem", "--tls-key-file", f"{tmp_path}/{user}.key")
            where = ("--broker", f"mqtts://127.0.0.1:{broker.port}", "--ca-file", f"{tmp_path}/ca.pem", *files)
            return CliRunner().invoke(conformance_app, [*where, "--issuer", "acme", "--json", *args])

        own = {"ca_file": f"{tmp_path}/ca.pem"}
        own |= {"cert_file": f"{tmp_path}/site.pem", "key_file": f"{tmp_path}/site.key"}
        site, clock = session(broker.port, "site", **own), MonotonicClock()
        source = DsxGridSource(
            site, settings=settings, rules=AcceptanceRules(settings, bounds(raise_dwell_s=0.0)), peak_w=100 * MW,
            floor_w=20 * MW, classes=(), jobs=None, clock=clock, rng=np.random.default_rng(1),
            audit_path=tmp_path / "audit.jsonl",
        )  # fmt: skip

        async def cycle() -> None:
            while True:
                source.active(clock.now_s())
                source.report(image(clock.now_s(), 50 * MW), NOTHING, ())
                await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(source.run()), asyncio.create_task(cycle())]
        async with running(site):
            assert await site.wait_up(deadline_s=10), site.down_reason
            private = str(tmp_path / "grid-acme.jwk")
            keys = ("--key", private, "--agent", "site", "--agent-key", agent_public, "--megawatt", "40")
            of_agent = await asyncio.to_thread(judge, "acme", "--role", "agent", *keys)
            listening = asyncio.create_task(
                asyncio.to_thread(judge, "site", "--role", "isv", "--key", public, "--seconds", "1.5")
            )
            own |= {"cert_file": f"{tmp_path}/acme.pem", "key_file": f"{tmp_path}/acme.key"}
            issuer_ = session(broker.port, "acme", **own)
            async with running(issuer_):
                assert await issuer_.wait_up(deadline_s=10), issuer_.down_reason
                while not listening.done():
                    _, raw = acme.encode(load_target(60), utc_s=clock.wall_utc_s())
                    issuer_.publish(load_target_topic("acme"), raw, qos=1, keep=Keep.ALL)
                    await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for result in (of_agent, listening.result()):
        assert result.exit_code == 0, result.output
        found = json.loads(result.output[result.output.index("[\n") :])
        assert {r["verdict"] for r in found} == {"holds"}, found


async def test_retained_stale_signal_and_flood_at_connect(tmp_path: Path) -> None:
    """An agent that joins finds an old withdrawal retained: it is judged stale. A flood of large packets passes by."""
    acme, public = sender(tmp_path, "acme")
    settings = grid(issuer("acme", (public,)))
    async with mosquitto(tmp_path, "allow_anonymous true") as broker:
        publisher, agent = session(broker.port, "acme"), session(broker.port, "site")
        clock = MonotonicClock()
        outcomes: list[SignalOutcome] = []
        rules = AcceptanceRules(settings, bounds())
        source = DsxGridSource(
            agent, settings=settings, rules=rules, peak_w=100 * MW, floor_w=20 * MW, classes=(), jobs=None, clock=clock,
            rng=np.random.default_rng(1), audit_path=tmp_path / "audit.jsonl", on_outcome=outcomes.append,
        )  # fmt: skip
        run = asyncio.create_task(source.run())
        async with running(publisher):
            assert await publisher.wait_up(deadline_s=5)
            _, stale = acme.encode(load_target(None), utc_s=clock.wall_utc_s() - 3600)
            async with publisher._new_client() as other:
                await other.publish(load_target_topic("acme"), stale, qos=1, retain=True)
            assert await publisher.wait_up(deadline_s=10)
            async with running(agent):
                assert await agent.wait_up(deadline_s=5)
                await until(lambda: outcomes)
                assert outcomes[0].reason is RefusalReason.STALE_RAISE
                big = b"x" * (PAYLOAD_BYTES_MAX - 100)
                for _ in range(200):
                    publisher._events.append((load_target_topic("acme"), big, 1))
                _, good = acme.encode(load_target(60), utc_s=clock.wall_utc_s())
                publisher.publish(load_target_topic("acme"), good, qos=1, keep=Keep.ALL)
                await until(lambda: len(outcomes) == 2)
                signals = source.active(clock.now_s())
                assert [s.target_w for s in signals] == [60 * MW] and source.refused_count[RefusalReason.ENVELOPE] < 60
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
