"""`rampart grid`: make keys, publish a signed limit or load target as an issuer, watch what an agent says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from controller.errors import BadInput, CheckFailed

if TYPE_CHECKING:
    from controller.settings import MqttSettings
    from drivers.dsx_payloads import Payload, SignalAnswerData
    from drivers.dsx_wire import CloudEvent
    from drivers.jws import KeyStore

app = typer.Typer(no_args_is_help=True)
send_app = typer.Typer(no_args_is_help=True)
app.add_typer(send_app, name="send", help="Publish a signed message as an issuer and print the agent's answer.")

YEAR_S = 31_536_000.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

BROKER = typer.Option("mqtt://127.0.0.1:1883", "--broker", help="mqtt://HOST:PORT, or mqtts:// for TLS.")
USERNAME = typer.Option(None, "--username", help="Broker user.")
PASSWORD = typer.Option(None, "--password-file", help="File with the broker password.")
CA = typer.Option(None, "--ca-file", help="CA of the broker's certificate.")
CERT = typer.Option(None, "--cert-file", help="Our certificate, for mTLS.")
KEY = typer.Option(None, "--tls-key-file", help="Key of our certificate.")
ISSUER = typer.Option(..., "--issuer", help="Our name as the agent's configuration knows it.")
SIGNING = typer.Option(..., "--key", help="Private key to sign with (see `rampart grid keygen`).")
AGENT = typer.Option(None, "--agent", help="Agent whose answer is awaited; without it nothing is awaited.")
AGENT_KEY = typer.Option(None, "--agent-key", help="Public key of the agent; the answer is verified with it.")
FEED = typer.Option([], "--feed", help="Feed tag; repeat for several. None: all feeds.")
START_IN = typer.Option(None, "--start-in-s", min=0, max=YEAR_S, help="Begin so many seconds from now.")
FOR_S = typer.Option(None, "--for-s", min=0.1, max=YEAR_S, help="Hold for so many seconds; without it until replaced.")
WAIT = typer.Option(5.0, "--wait-s", min=0.1, max=600.0, help="How long to wait for broker and answer.")


@app.command()
def keygen(
    folder: Path = typer.Argument(..., help="Folder to write to."),
    name: str = typer.Option("issuer", "--name", help="Name of the key pair; part of its key id."),
    algorithm: str = typer.Option("ES256", "--alg", help="ES256 or RS256."),
) -> None:
    """Write a new key pair: NAME.jwk (private, mode 0600) and NAME.pub.jwk (for the receiver's configuration).

    Example: rampart grid keygen keys --name acme
    """
    from drivers.jws import ES256, RS256, read_key, write_key_pair

    if algorithm not in (ES256, RS256):
        raise BadInput(f"--alg: {algorithm!r}: {ES256} or {RS256} is allowed")
    private, public = write_key_pair(folder, name, algorithm=algorithm)
    typer.echo(f"private {private}\npublic  {public}\nkey id  {read_key(public)[1]}")


@send_app.command()
def loadtarget(
    megawatt: float | None = typer.Option(None, "--megawatt", min=0.0, help="Target of each feed named."),
    revert: bool = typer.Option(False, "--revert", help="Withdraw the target in force instead."),
    best_effort: bool = typer.Option(False, "--best-effort", help="Shed only what can be shed without disruption."),
    issuer: str = ISSUER,
    key: Path = SIGNING,
    feed: list[str] = FEED,
    start_in_s: float | None = START_IN,
    for_s: float | None = FOR_S,
    agent: str | None = AGENT,
    agent_key: Path | None = AGENT_KEY,
    wait_s: float = WAIT,
    broker: str = BROKER,
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Publish a DSX Flex load target.

    Example: rampart grid send loadtarget --megawatt 60 --for-s 600 --issuer acme --key acme.jwk --agent site
    """
    from pydantic import ValidationError

    from controller.clock import MonotonicClock
    from drivers.dsx_payloads import Interval, LoadTarget, PowerUnit, SetLoadTargetData, Strategy
    from drivers.dsx_wire import first_fault

    if (megawatt is None) != revert:
        raise BadInput("send loadtarget: give --megawatt X or --revert, one of them")
    try:
        target = LoadTarget(
            interval=Interval(**_interval(MonotonicClock().wall_utc_s(), start_in_s, for_s)),
            feed_tags=tuple(feed),
            load_constraint=None if megawatt is None else PowerUnit(value=megawatt, unit="megawatt"),
            strategy=Strategy(best_effort=best_effort),
        )
    except ValidationError as error:
        raise BadInput(f"send loadtarget: {first_fault(error)}") from None
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    _send(SetLoadTargetData(targets=(target,)), mqtt, issuer, key, agent, agent_key, wait_s)


@send_app.command()
def ramplimit(
    max_megawatt: float | None = typer.Option(None, "--max-megawatt", min=0.0, help="Allowed change in any window."),
    window_s: float = typer.Option(15.0, "--window-s", min=0.1, help="Length of the window."),
    direction: str = typer.Option("both", "--direction", help="up, down or both."),
    ceiling_megawatt: float | None = typer.Option(None, "--ceiling-megawatt", min=0.0, help="Power at most."),
    ramp_exempt: bool = typer.Option(False, "--ramp-exempt", help="Waive ramp rows on the way to the ceiling."),
    limits_file: Path | None = typer.Option(None, "--limits", help="YAML list of rows as the interface has them."),
    revert: bool = typer.Option(False, "--revert", help="Withdraw the rows in force instead."),
    issuer: str = ISSUER,
    key: Path = SIGNING,
    feed: list[str] = FEED,
    start_in_s: float | None = START_IN,
    for_s: float | None = FOR_S,
    agent: str | None = AGENT,
    agent_key: Path | None = AGENT_KEY,
    wait_s: float = WAIT,
    broker: str = BROKER,
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Publish grid limits (our extension): a ramp row, a ceiling, or any rows from a file.

    Example: rampart grid send ramplimit --max-megawatt 5 --window-s 15 --issuer acme --key acme.jwk
    """
    from pydantic import ValidationError

    from controller.clock import MonotonicClock
    from drivers.dsx_payloads import SetRampLimitData
    from drivers.dsx_wire import first_fault

    rows: list[object] = _rows_of(limits_file) if limits_file is not None else []
    if max_megawatt is not None:
        size = {"value": max_megawatt, "unit": "megawatt"}
        rows.append({"kind": "ramp", "id": "ramp", "max": size, "window_s": window_s, "direction": direction})
    if ceiling_megawatt is not None:
        rows.append({"kind": "ceiling", "id": "ceiling", "max": {"value": ceiling_megawatt, "unit": "megawatt"}})
    if bool(rows) == revert:
        raise BadInput("send ramplimit: give rows (--max-megawatt, --ceiling-megawatt, --limits) or --revert")
    request = {
        "interval": _interval(MonotonicClock().wall_utc_s(), start_in_s, for_s),
        "feed_tags": feed,
        "limits": rows or None,
        "ramp_exempt": ramp_exempt,
    }
    try:
        data = SetRampLimitData.model_validate({"requests": [request]})
    except ValidationError as error:
        raise BadInput(f"send ramplimit: {first_fault(error)}") from None
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    _send(data, mqtt, issuer, key, agent, agent_key, wait_s)


@app.command()
def watch(
    agent: str = typer.Option(..., "--agent", help="Agent to listen to."),
    agent_key: Path | None = AGENT_KEY,
    seconds: float | None = typer.Option(None, "--seconds", min=0.1, help="Stop after so long; without it: Ctrl-C."),
    broker: str = BROKER,
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Print an agent's status, breaches and answers as they come.

    Example: rampart grid watch --agent site --agent-key site.pub.jwk
    """
    log_to_stderr()
    _check_names({"--agent": agent})
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    asyncio.run(_watch(mqtt, agent, _agent_keys(agent, agent_key), seconds))


def log_to_stderr() -> None:
    """Changes of the link's state go to standard error: standard output is the command's answer."""
    import sys

    import structlog

    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))  # the stream of this moment


def broker_settings(
    url: str,
    username: str | None,
    password_file: str | None,
    ca_file: str | None,
    cert_file: str | None,
    key_file: str | None,
) -> MqttSettings:
    """Broker settings from a URL and the TLS and password files."""
    from urllib.parse import urlsplit

    from controller.settings import MqttSettings

    allowed = f"--broker: {url!r}: mqtt://HOST:PORT or mqtts://HOST:PORT is allowed"
    try:
        parts = urlsplit(url if "//" in url else f"mqtt://{url}")
        port = parts.port
    except ValueError:
        raise BadInput(allowed) from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or parts.path not in ("", "/"):
        raise BadInput(allowed)
    if parts.password is not None:
        raise BadInput("--broker: a password in the URL is not allowed; use --password-file")
    if parts.scheme == "mqtts" and ca_file is None:
        raise BadInput("--broker: mqtts needs --ca-file")
    default_port = 8883 if parts.scheme == "mqtts" else 1883
    name = username or parts.username
    return MqttSettings(parts.hostname, port or default_port, 2, name, password_file, ca_file, cert_file, key_file)


def _check_names(names: dict[str, str | None]) -> None:
    """Names become parts of topics, where a slash or a wildcard would name another one."""
    for option, name in names.items():
        if name is not None and not NAME.fullmatch(name):
            raise BadInput(f"{option}: {name[:80]!r}: letters, digits, . _ - are allowed, at most 64")


def _interval(utc_s: float, start_in_s: float | None, for_s: float | None) -> dict[str, str]:
    from drivers.dsx_payloads import utc_text

    times = {}
    if start_in_s is not None:
        times["start_time"] = utc_text(utc_s + start_in_s)
    if for_s is not None:
        times["end_time"] = utc_text(utc_s + (start_in_s or 0.0) + for_s)
    return times


def _rows_of(path: Path) -> list[object]:
    from controller.config.load import read_yaml

    rows = read_yaml(path)
    if not isinstance(rows, list):
        raise BadInput(f"{path}: a list of rows is allowed")
    return rows


def _agent_keys(agent: str, agent_key: Path | None) -> KeyStore | None:
    from controller.settings import IssuerSettings
    from drivers.jws import KeyStore

    if agent_key is None:
        return None
    return KeyStore([IssuerSettings(agent, (str(agent_key),), False, False, False)])


def _send(
    data: Payload, mqtt: MqttSettings, issuer: str, key: Path, agent: str | None, agent_key: Path | None, wait_s: float
) -> None:
    log_to_stderr()
    _check_names({"--issuer": issuer, "--agent": agent})
    keys = _agent_keys(agent, agent_key) if agent is not None else None
    answer = asyncio.run(_send_and_wait(data, mqtt, issuer, key, agent, keys, wait_s))
    if answer is None:
        typer.echo("sent")
        return
    is_refused = False
    for a in answer.answers:
        is_refused |= a.acceptance == "refused"
        parts = [a.acceptance, f"feeds={','.join(a.feed_tags) or 'all'}"]
        parts += [f"applied_megawatt={a.applied.watts / 1e6:g}"] if a.applied is not None else []
        parts += [f"met_at={a.met_at}"] if a.met_at is not None else []
        parts += [f"reason={a.reason}"] if a.reason is not None else []
        parts += [f"({a.detail})"] if a.detail else []
        typer.echo(" ".join(parts))
    if is_refused:
        raise typer.Exit(1)


async def _send_and_wait(
    data: Payload,
    mqtt: MqttSettings,
    issuer: str,
    key: Path,
    agent: str | None,
    keys: KeyStore | None,
    wait_s: float,
) -> SignalAnswerData | None:
    """Publish, and wait for the answer to exactly this message where an agent is named."""
    import numpy as np

    from controller.clock import MonotonicClock
    from drivers.dsx_payloads import SetLoadTargetData, SignalAnswerData
    from drivers.dsx_wire import Sender, answer_topic, load_target_topic, ramp_limit_topic
    from drivers.jws import Signer, WireRefused, new_uuid
    from drivers.mqtt import Incoming, Keep, MqttSession

    clock, rng = MonotonicClock(), np.random.default_rng()
    sender = Sender("isv", issuer, Signer(key, rng=rng), rng)
    session = MqttSession(mqtt, client_id=f"rampart-send-{new_uuid(rng)[:8]}", clock=clock, rng=rng)
    answers: asyncio.Queue[SignalAnswerData] = asyncio.Queue()

    def take(message: Incoming) -> None:
        try:
            _, answer = open_event(message.payload, keys)
        except WireRefused:
            return
        if isinstance(answer, SignalAnswerData) and answer.message_id == event_id:
            answers.put_nowait(answer)

    if agent is not None:
        session.on_message(answer_topic(agent), take)
    run = asyncio.create_task(session.run())
    try:
        if not await session.wait_up(deadline_s=wait_s):
            raise CheckFailed(f"{mqtt.host}:{mqtt.port}: no broker session within {wait_s:g} s: {session.down_reason}")
        event_id, payload = sender.encode(data, utc_s=clock.wall_utc_s(), correlation_id=new_uuid(rng))
        is_target = isinstance(data, SetLoadTargetData)
        topic = load_target_topic(issuer) if is_target else ramp_limit_topic(issuer)
        session.publish(topic, payload, qos=1, keep=Keep.ALL)
        if agent is None:
            await session.wait_sent(deadline_s=wait_s)
            return None
        async with asyncio.timeout(wait_s):
            return await answers.get()
    except TimeoutError:
        raise CheckFailed(
            f"no answer of {agent} within {wait_s:g} s: does it know issuer {issuer} and its key?"
        ) from None
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def _watch(mqtt: MqttSettings, agent: str, keys: KeyStore | None, seconds: float | None) -> None:
    import numpy as np

    from controller.clock import MonotonicClock
    from drivers.dsx_wire import answer_topic, breach_topic, payload_bytes, status_topic
    from drivers.jws import WireRefused, new_uuid
    from drivers.mqtt import Incoming, MqttSession

    rng = np.random.default_rng()
    session = MqttSession(mqtt, client_id=f"rampart-watch-{new_uuid(rng)[:8]}", clock=MonotonicClock(), rng=rng)

    def show(message: Incoming) -> None:
        try:
            event, data = open_event(message.payload, keys)
        except WireRefused as refused:
            typer.echo(f"{message.topic}: refused: {refused.detail}", err=True)
            return
        typer.echo(f"{event.time} {event.type} {payload_bytes(data).decode()}")

    for topic in (status_topic(agent), breach_topic(agent), answer_topic(agent)):
        session.on_message(topic, show)
    try:
        async with asyncio.timeout(seconds):
            await session.run()
    except TimeoutError:
        if session.counts.sessions == 0:
            raise CheckFailed(f"{mqtt.host}:{mqtt.port}: no broker session: {session.down_reason}") from None


def open_event(payload: bytes, keys: KeyStore | None) -> tuple[CloudEvent, Payload]:
    """Any event of the interface; verified where `keys` are given, else only looked into. Raises WireRefused."""
    import base64

    from pydantic import ValidationError

    from controller.types import RefusalReason
    from drivers.dsx_wire import KINDS, CloudEvent, decode_payload, first_fault, verify_event
    from drivers.jws import WireRefused

    try:
        event = CloudEvent.model_validate_json(payload)
    except ValidationError as error:
        raise WireRefused(RefusalReason.ENVELOPE, first_fault(error)) from None
    kind = KINDS.get(event.type)
    if kind is None:
        raise WireRefused(RefusalReason.ENVELOPE, f"type {event.type!r} is none of the interface's")
    if keys is not None:
        return event, verify_event(event, keys, kind.model)[1]
    body = event.data.split(".")[1]
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        raise WireRefused(RefusalReason.SIGNATURE, "not base64url") from None
    return event, decode_payload(raw, kind.model)
