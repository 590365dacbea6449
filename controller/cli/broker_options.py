"""What every command that speaks over a broker shares: its options, settings made of them, and opening an event."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from controller.errors import BadInput

if TYPE_CHECKING:
    from controller.settings import MqttSettings
    from drivers.dsx_payloads import Payload
    from drivers.dsx_wire import CloudEvent
    from drivers.jws import KeyStore

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
GROUP = "Broker"
BROKER = typer.Option(
    "mqtt://127.0.0.1:1883",
    "--broker",
    envvar="RAMPART_BROKER",
    help="mqtt://HOST:PORT, or mqtts:// for TLS.",
    rich_help_panel=GROUP,
)
USERNAME = typer.Option(None, "--username", envvar="RAMPART_BROKER_USER", help="Broker user.", rich_help_panel=GROUP)
PASSWORD = typer.Option(
    None,
    "--password-file",
    envvar="RAMPART_BROKER_PASSWORD_FILE",
    help="File with the broker password.",
    rich_help_panel=GROUP,
)
CA = typer.Option(
    None, "--ca-file", envvar="RAMPART_CA_FILE", help="CA of the broker's certificate.", rich_help_panel=GROUP
)
CERT = typer.Option(
    None, "--cert-file", envvar="RAMPART_CERT_FILE", help="Our certificate, for mutual TLS.", rich_help_panel=GROUP
)
KEY = typer.Option(
    None, "--tls-key-file", envvar="RAMPART_TLS_KEY_FILE", help="Key of our certificate.", rich_help_panel=GROUP
)


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

    from controller.config.fields import is_this_machine
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
    is_clear = parts.scheme == "mqtt" and ca_file is None and cert_file is None
    if password_file is not None and is_clear and not is_this_machine(parts.hostname):
        raise BadInput("--password-file: needs mqtts:// and --ca-file: no password travels in the clear")
    default_port = 8883 if parts.scheme == "mqtts" else 1883
    name = username or parts.username
    return MqttSettings(parts.hostname, port or default_port, 2, name, password_file, ca_file, cert_file, key_file)


def check_names(names: dict[str, str | None]) -> None:
    """Names become parts of topics, where a slash or a wildcard would name another one."""
    for option, name in names.items():
        if name is not None and not NAME.fullmatch(name):
            raise BadInput(f"{option}: {name[:80]!r}: letters, digits, . _ - are allowed, at most 64")


def agent_keys(agent: str | None, agent_key: Path | None) -> KeyStore | None:
    """The key an agent's messages are verified with; None where none is given."""
    from controller.settings import IssuerSettings
    from drivers.jws import KeyStore

    if agent_key is None:
        return None
    if agent is None:
        raise BadInput("--agent-key: belongs to one agent; name it with --agent")
    return KeyStore([IssuerSettings(agent, (str(agent_key),), False, False, False)])


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
