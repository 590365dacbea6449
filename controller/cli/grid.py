"""`rampart grid`: make keys, publish a signed limit or load target as an issuer, watch what agents say."""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from controller.cli.broker_options import (
    BROKER,
    CA,
    CERT,
    KEY,
    PASSWORD,
    USERNAME,
    agent_keys,
    broker_settings,
    check_names,
)
from controller.errors import BadInput
from controller.logs import set_up_logs

if TYPE_CHECKING:
    from drivers.dsx_payloads import Payload

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

YEAR_S = 31_536_000.0
WHAT, WHEN, WHO = "What", "When and where", "Who"
SEND_EPILOG = (
    "More:\n\n"
    "rampart grid send --ramp-megawatt 3 --window-s 15 --for-s 600 ...\n\n"
    "rampart grid send --ceiling-megawatt 40 --ramp-exempt ...\n\n"
    "rampart grid send --withdraw load ...\n\n"
    "RAMPART_BROKER, RAMPART_ISSUER, RAMPART_ISSUER_KEY, RAMPART_AGENT and RAMPART_AGENT_KEY save typing."
)


class Withdrawal(StrEnum):
    """What is taken back."""

    LOAD = "load"
    LIMITS = "limits"


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
    typer.echo(f"private {private}   sign with it: --key, or grid.signing_key_file of an agent")
    typer.echo(f"public  {public}   give it to whoever verifies: key_files of an issuer, or --agent-key")
    typer.echo(f"key id  {read_key(public)[1]}")


@app.command(epilog=SEND_EPILOG, no_args_is_help=True)
def send(
    load_megawatt: float | None = typer.Option(
        None, "--load-megawatt", min=0.0, help="Load target of each feed named (DSX Flex).", rich_help_panel=WHAT
    ),
    best_effort: bool = typer.Option(
        False, "--best-effort", help="With a load target: shed only without disruption.", rich_help_panel=WHAT
    ),
    ramp_megawatt: float | None = typer.Option(
        None, "--ramp-megawatt", min=0.0, help="Change allowed within any window.", rich_help_panel=WHAT
    ),
    window_s: float | None = typer.Option(
        None, "--window-s", min=0.1, help="Length of the ramp's window.", rich_help_panel=WHAT
    ),
    direction: str = typer.Option("both", "--direction", help="Of the ramp: up, down or both.", rich_help_panel=WHAT),
    ceiling_megawatt: float | None = typer.Option(
        None, "--ceiling-megawatt", min=0.0, help="Power at most.", rich_help_panel=WHAT
    ),
    ramp_exempt: bool = typer.Option(
        False, "--ramp-exempt", help="Emergency: waive ramp rows on the way to the ceiling.", rich_help_panel=WHAT
    ),
    limits: Path | None = typer.Option(
        None, "--limits", help="YAML list of rows as docs/asyncapi.yaml has them.", rich_help_panel=WHAT
    ),
    withdraw: Withdrawal | None = typer.Option(
        None, "--withdraw", help="Take back what is in force: the load target, or the limits.", rich_help_panel=WHAT
    ),
    feed: list[str] = typer.Option(
        [], "--feed", help="Feed tag; repeat for several. None: all feeds.", rich_help_panel=WHEN
    ),
    start_in_s: float | None = typer.Option(
        None, "--start-in-s", min=0, max=YEAR_S, help="Begin so many seconds from now.", rich_help_panel=WHEN
    ),
    for_s: float | None = typer.Option(
        None, "--for-s", min=0.1, max=YEAR_S, help="Hold so long; without it until replaced.", rich_help_panel=WHEN
    ),
    issuer: str = typer.Option(
        ..., "--issuer", envvar="RAMPART_ISSUER", help="Our name as the agent knows it.", rich_help_panel=WHO
    ),
    key: Path = typer.Option(
        ..., "--key", envvar="RAMPART_ISSUER_KEY", help="Private key to sign with (grid keygen).", rich_help_panel=WHO
    ),
    agent: str | None = typer.Option(
        None, "--agent", envvar="RAMPART_AGENT", help="Wait for this agent's answer.", rich_help_panel=WHO
    ),
    agent_key: Path | None = typer.Option(
        None, "--agent-key", envvar="RAMPART_AGENT_KEY", help="Its public key; verifies it.", rich_help_panel=WHO
    ),
    wait_s: float = typer.Option(
        5.0, "--wait-s", min=0.1, max=600.0, help="How long to wait for broker and answer.", rich_help_panel=WHO
    ),
    broker: str = BROKER,
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Publish a signed load target, or grid limits (our extension), as an issuer; print the agent's answer.

    Example: rampart grid send --load-megawatt 60 --for-s 600 --issuer acme --key acme.jwk --agent site

    Exit status 0: sent, and not refused where an answer was awaited; 1: refused, or no answer.
    """
    from controller.cli.grid_client import Recipient
    from controller.cli.grid_client import send as publish
    from controller.cli.grid_words import answer_lines

    rows = _rows(ramp_megawatt, window_s, direction, ceiling_megawatt, limits)
    asked = [load_megawatt is not None, bool(rows), withdraw is not None]
    if sum(asked) != 1:
        raise BadInput(
            "send: give a load target (--load-megawatt), limits (--ramp-megawatt, --ceiling-megawatt, --limits) "
            "or --withdraw load|limits, one of the three"
        )
    where = {"interval": _interval(start_in_s, for_s), "feed_tags": feed}
    data: Payload
    if load_megawatt is not None or withdraw is Withdrawal.LOAD:
        if ramp_exempt:
            raise BadInput("send: --ramp-exempt belongs to --ceiling-megawatt, not to a load target")
        data = _load_target(load_megawatt, best_effort=best_effort, where=where)
    else:
        if best_effort:
            raise BadInput("send: --best-effort belongs to a load target")
        data = _limits(rows, ramp_exempt=ramp_exempt, where=where)
    set_up_logs(logging.WARNING)  # the answer, or why there is none, says how the link was
    check_names({"--issuer": issuer, "--agent": agent})
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    to = Recipient(agent, agent_keys(agent, agent_key), wait_s)
    answer = asyncio.run(publish(data, mqtt, issuer=issuer, key_file=key, to=to))
    if answer is None:
        typer.echo("sent; name an --agent to wait for its answer")
        return
    for line in answer_lines(answer):
        typer.echo(line)
    if any(a.acceptance == "refused" for a in answer.answers):
        raise typer.Exit(1)


@app.command()
def watch(
    agent: str | None = typer.Option(
        None, "--agent", envvar="RAMPART_AGENT", help="Agent to listen to; without it every agent."
    ),
    agent_key: Path | None = typer.Option(
        None, "--agent-key", envvar="RAMPART_AGENT_KEY", help="Its public key; without it nothing is verified."
    ),
    seconds: float | None = typer.Option(None, "--seconds", min=0.1, help="Stop after so long; without it: Ctrl-C."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line, as it was published."),
    broker: str = BROKER,
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Print status, breaches, answers and outlook of agents as they come.

    Example: rampart grid watch --agent site --agent-key site.pub.jwk
    """
    from controller.cli.grid_client import watch as listen
    from controller.cli.grid_words import words
    from drivers.dsx_wire import CloudEvent, payload_bytes

    set_up_logs()
    check_names({"--agent": agent})
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    keys = agent_keys(agent, agent_key)
    mark = "" if keys is not None else " (unverified)"

    def show(event: CloudEvent, data: Payload) -> None:
        if as_json:
            head = f'"time":"{event.time}","source":"{event.source}","type":"{event.type}"'
            typer.echo(f'{{{head},"data":{payload_bytes(data).decode()}}}')
            return
        for line in words(data):
            typer.echo(f"{event.time[11:19]} {event.source_id}{mark} {line}")

    def refused(line: str) -> None:
        typer.echo(line, err=True)

    asyncio.run(listen(mqtt, agent=agent, keys=keys, seconds=seconds, show=show, refused=refused))


def _load_target(megawatt: float | None, *, best_effort: bool, where: dict[str, Any]) -> Payload:
    from drivers.dsx_payloads import SetLoadTargetData

    constraint = None if megawatt is None else {"value": megawatt, "unit": "megawatt"}
    request = {**where, "load_constraint": constraint, "strategy": {"best_effort": best_effort}}
    return _made(SetLoadTargetData, {"targets": [request]})


def _limits(rows: list[object], *, ramp_exempt: bool, where: dict[str, Any]) -> Payload:
    from drivers.dsx_extension import SetRampLimitData

    return _made(SetRampLimitData, {"requests": [{**where, "limits": rows or None, "ramp_exempt": ramp_exempt}]})


def _made(model: type[Payload], fields: dict[str, object]) -> Payload:
    """What we would refuse we do not send."""
    from pydantic import ValidationError

    from drivers.dsx_wire import first_fault

    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise BadInput(f"send: {first_fault(error)}") from None


def _rows(
    ramp_megawatt: float | None,
    window_s: float | None,
    direction: str,
    ceiling_megawatt: float | None,
    limits: Path | None,
) -> list[object]:
    from controller.config.load import read_yaml

    rows: list[object] = []
    if limits is not None:
        found = read_yaml(limits)
        if not isinstance(found, list) or not found:
            raise BadInput(f"{limits}: a list of rows is allowed")
        rows += found
    if (ramp_megawatt is None) != (window_s is None):
        raise BadInput("send: --ramp-megawatt and --window-s belong together")
    if ramp_megawatt is not None:
        size = {"value": ramp_megawatt, "unit": "megawatt"}
        rows.append({"kind": "ramp", "id": "ramp", "max": size, "window_s": window_s, "direction": direction})
    if ceiling_megawatt is not None:
        rows.append({"kind": "ceiling", "id": "ceiling", "max": {"value": ceiling_megawatt, "unit": "megawatt"}})
    return rows


def _interval(start_in_s: float | None, for_s: float | None) -> dict[str, str]:
    from controller.clock import MonotonicClock
    from drivers.dsx_payloads import utc_text

    utc_s = MonotonicClock().wall_utc_s()
    times = {}
    if start_in_s is not None:
        times["start_time"] = utc_text(utc_s + start_in_s)
    if for_s is not None:
        times["end_time"] = utc_text(utc_s + (start_in_s or 0.0) + for_s)
    return times
