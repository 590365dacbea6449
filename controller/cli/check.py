"""`rampart check`: validates a site file and says what its contract means for this site."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from controller.types import replace

if TYPE_CHECKING:
    from controller.check import CheckFindings
    from controller.settings import OwnSlope, Settings, SiteSettings

app = typer.Typer()


@app.command()
def check(
    config: Path = typer.Option(..., "--config", "-c", help="The site file.", show_default=False),
    ramp: str = typer.Option(
        None, "--ramp", metavar="MW/S", help="Also explain a ramp limit the grid might ask for: 2/5 is 2 MW within 5 s."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Validate a site file; say what each limit allows, what the hardware holds, and what a dead controller does.

    Exit status 0: everything that must hold without a controller is proven; 1: it is not; 2: the file is wrong.

    Example: rampart check -c configs/site.example.yaml
    """
    from controller.check import check_site
    from controller.config.site import load_settings

    settings = load_settings(config)
    _is_reachable_by_name(settings, config)
    known = _from_profiles(settings, config)
    absent = tuple(f"not on this machine: {key}: {path}" for key, path in _absent_files(settings, ""))
    if settings.site is None:
        if as_json:
            typer.echo(json.dumps({"role": settings.role.value, "valid": True, "notes": absent}))
        else:
            typer.echo(f"{config}: valid (role {settings.role.value}: limits are the site controller's)")
            for note in absent:
                typer.echo(f"note: {note}")
        return
    site = settings.site if ramp is None else _with_ramp(settings.site, ramp)
    findings = check_site(site, own_slope=known.slope, expiry_s=known.expiry_s, bank_slope=known.bank_slope)
    findings = replace(findings, notes=(*absent, *_quicker_than_its_kind(settings, known.update_s), *findings.notes))
    if as_json:
        typer.echo(json.dumps({**asdict(findings), "role": settings.role.value, "valid": True}))
    else:
        _print(findings, config)
    if not findings.is_good:
        raise typer.Exit(1)


def _absent_files(settings: object, where: str) -> Iterator[tuple[str, str]]:
    """Keys, certificates and secrets that settings name and this machine has not: `run` would stop, or be deaf."""
    for part in fields(settings):  # type: ignore[arg-type]
        key, value = f"{where}{part.name}", getattr(settings, part.name)
        if part.name.endswith(("_file", "_files")):
            named = (value,) if isinstance(value, str) else value or ()
            yield from ((key, path) for path in named if not _is_there(Path(path)))
        elif is_dataclass(value):
            yield from _absent_files(value, f"{key}.")
        elif isinstance(value, tuple):
            for k, item in enumerate(value):
                if is_dataclass(item):
                    yield from _absent_files(item, f"{key}.{k}.")


def _quicker_than_its_kind(settings: Settings, usual_s: float | None) -> Iterator[str]:
    """A meter that is declared to refresh sooner than the `usual_s` of its profile."""
    if usual_s is None or settings.meter is None or settings.site is None or settings.site.meter is None:
        return
    declared_s = settings.site.meter.update_s
    if declared_s < usual_s:
        yield (
            f"pcc_meter.update_s {declared_s:g}: {settings.meter.profile} is known to refresh every {usual_s:g} s; "
            "measure it, for until a longer one is found out our last moves show as load"
        )


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True  # whoever runs the service may see more than whoever asks
    except OSError:
        return False
    return True


def _with_ramp(site: SiteSettings, text: str) -> SiteSettings:
    from controller.check import with_ramp
    from controller.config.contract import default_mean_s
    from controller.errors import BadInput

    power, _, window = text.partition("/")
    try:
        max_w, window_s = 1e6 * float(power), float(window)
    except ValueError:
        max_w = window_s = 0.0
    if not (0.0 < max_w < math.inf and 0.0 < window_s < math.inf):
        raise BadInput(f"--ramp: {text!r}: MEGAWATT/SECONDS is allowed, both above 0, as in 2/5")
    mean_s = default_mean_s("ramp", window_s=window_s, is_filtered=False)
    return with_ramp(site, max_w=max_w, window_s=window_s, mean_s=mean_s)


def _is_reachable_by_name(settings: Settings, config: Path) -> None:
    """Whether every device's host can be one: `rampart run` would refuse it, or wait for it for ever."""
    from controller.errors import BadInput
    from drivers.modbus_endpoint import parse_endpoint

    devices = [("pcc_meter", settings.meter), ("battery", settings.battery), ("load_bank", settings.load_bank)]
    devices += [(f"ups.{k}", ups) for k, ups in enumerate(settings.ups)]
    devices += [(f"sub_meters.{k}", meter) for k, meter in enumerate(settings.sub_meters)]
    for key, device in devices:
        try:
            if device is not None:
                parse_endpoint(device.host, device.port)
        except BadInput as bad:
            raise BadInput(f"{config}: {key}.{bad}") from None


class _FromProfiles(NamedTuple):
    """What profiles tell: what devices do when their controller is dead, and how often the meter refreshes."""

    slope: OwnSlope | None = None  # of the battery
    expiry_s: float | None = None
    bank_slope: OwnSlope | None = None  # of the load bank
    update_s: float | None = None  # of the meter


def _from_profiles(settings: Settings, config: Path) -> _FromProfiles:
    """What `rampart run` would refuse of the profiles at its start is refused here."""
    from controller.errors import BadInput
    from controller.live_profiles import battery_profile_for, load_bank_profile_for, profile_for
    from drivers.profile import Kind
    from drivers.profile_slope import own_expiry_s, own_slope

    site = settings.site
    try:
        found = _FromProfiles()
        if settings.meter is not None:
            found = found._replace(update_s=profile_for(settings.meter, Kind.METER, key="pcc_meter").update_s)
        for k, sub_meter in enumerate(settings.sub_meters):
            profile_for(sub_meter, Kind.METER, key=f"sub_meters.{k}")
        for k, ups in enumerate(settings.ups):
            profile_for(ups, Kind.UPS, key=f"ups.{k}")
        if settings.battery is not None and site is not None and site.battery is not None:
            profile, dispatch = battery_profile_for(settings.battery, site.battery.following)
            slope = own_slope(profile, dispatch, rating_w=max(site.battery.charge_w_max, site.battery.discharge_w_max))
            expiry_s = own_expiry_s(profile, dispatch, ttl_s=site.ttl_periods * site.planner_period_s)
            found = found._replace(slope=slope, expiry_s=expiry_s)
        if settings.load_bank is not None and site is not None and site.load_bank is not None:
            profile, dispatch = load_bank_profile_for(settings.load_bank)
            found = found._replace(bank_slope=own_slope(profile, dispatch, rating_w=site.load_bank.power_w_max))
    except BadInput as bad:
        raise BadInput(f"{config}: {bad}") from None
    return found


def _print(findings: CheckFindings, config: Path) -> None:
    from rich.table import Table

    from controller.check_death import megawatt
    from controller.terminal import open_console

    console = open_console()
    console.print(f"[bold]{config}[/bold]: valid; contract [bold]{findings.contract}[/bold]")
    if findings.t_eff_s is not None:
        ripple = "  ".join(f"{hz:g} Hz {share:.2f}" for hz, share in findings.leftover)
        console.print(f"T_eff {findings.t_eff_s * 1e3:.0f} ms; share of a load ripple left on the meter: {ripple}")
    table = Table(title="Limits", title_justify="left", expand=True)
    for column in ("row", "allows", "binds", "declared hardware"):
        table.add_column(column, overflow="fold")
    for row in findings.rows:
        style = {True: None, False: "red", None: "yellow"}[row.holds]
        table.add_row(row.id, row.allows, row.binds, row.hardware, style=style)
    console.print(table)
    for proof in findings.proofs:
        mark = "[green]proven[/green]" if proof.is_proven else "[red]NOT PROVEN[/red]"
        console.print(f"{mark}  {proof.name}: {proof.words}")
    console.print(f"death_step_w {findings.death_step_w:.0f} ({megawatt(findings.death_step_w)})")
    for note in findings.notes:
        console.print(f"note: {note}")
