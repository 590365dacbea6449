"""`rampart conformance`: play the other side of the grid interface, and print which of its rules hold."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from controller.cli.broker_options import CA, CERT, KEY, PASSWORD, USERNAME, broker_settings
from controller.errors import BadInput, CheckFailed
from controller.logs import set_up_logs

if TYPE_CHECKING:
    from hil.conformance import RuleResult

app = typer.Typer()


@app.command()
def conformance(
    broker: str = typer.Option(..., "--broker", help="mqtt://HOST:PORT, or mqtts:// for TLS."),
    role: str = typer.Option(..., "--role", help="What is tested: agent or isv."),
    issuer: str = typer.Option("conformance", "--issuer", help="Issuer we play (agent), or the one tested (isv)."),
    key: Path = typer.Option(..., "--key", help="agent: our private key, known to it. isv: its public key."),
    agent: str = typer.Option("site", "--agent", help="Identifier of the agent tested."),
    agent_key: Path | None = typer.Option(None, "--agent-key", help="Public key of the agent tested."),
    megawatt: float = typer.Option(10.0, "--megawatt", min=1e-6, help="A target the agent tested may be given."),
    wait_s: float = typer.Option(5.0, "--wait-s", min=0.1, max=600, help="How long one reaction may take."),
    seconds: float = typer.Option(60.0, "--seconds", min=0.1, help="isv: how long to listen."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    username: str | None = USERNAME,
    password_file: str | None = PASSWORD,
    ca_file: str | None = CA,
    cert_file: str | None = CERT,
    tls_key_file: str | None = KEY,
) -> None:
    """Test an implementation of the grid interface. Exit 0: no rule broken; 1: broken, or nothing to judge.

    Example: rampart conformance --broker mqtt://127.0.0.1:1883 --role agent --key acme.jwk --agent-key site.pub.jwk
    """
    import numpy as np

    from controller.clock import MonotonicClock
    from hil.conformance import is_conformant
    from hil.conformance_agent import AgentSuite
    from hil.conformance_issuer import IssuerSuite

    set_up_logs()
    mqtt = broker_settings(broker, username, password_file, ca_file, cert_file, tls_key_file)
    clock, rng = MonotonicClock(), np.random.default_rng()
    suite: AgentSuite | IssuerSuite

    async def test_agent(folder: str, agent_key_file: Path) -> list[RuleResult]:
        nonlocal suite
        suite = AgentSuite(
            mqtt,
            issuer=issuer,
            key_file=key,
            agent=agent,
            agent_key_file=agent_key_file,
            megawatt=megawatt,
            wait_s=wait_s,
            folder=Path(folder),
            clock=clock,
            rng=rng,
        )
        return await suite.run()

    async def test_issuer() -> list[RuleResult]:
        nonlocal suite
        suite = IssuerSuite(mqtt, issuer=issuer, key_files=(str(key),), clock=clock, rng=rng)
        return await suite.run(seconds=seconds, wait_s=wait_s)

    if role == "agent":
        if agent_key is None:
            raise BadInput("conformance: --role agent needs --agent-key, the agent's public key")
        with tempfile.TemporaryDirectory() as folder:
            results = asyncio.run(test_agent(folder, agent_key))
    elif role == "isv":
        results = asyncio.run(test_issuer())
    else:
        raise BadInput(f"--role: {role!r}: agent or isv is allowed")
    if not results:
        raise CheckFailed(f"{mqtt.host}:{mqtt.port}: no broker session: {suite.down_reason}")
    _print(results, as_json=as_json)
    if not is_conformant(results):
        raise typer.Exit(1)


def _print(results: list[RuleResult], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(r) for r in results], indent=1))
        return
    width = max(len(r.rule) for r in results)
    for r in results:
        typer.echo(f"{r.verdict.upper():8}  {r.rule:{width}}  {r.detail}".rstrip())
