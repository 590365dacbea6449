"""`rampart systemd install`: writes the shipped units with the paths of this installation."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

app = typer.Typer()

CONFIG_DIR = "/etc/rampart"
HIDDEN = ("/home/", "/root/", "/run/user/")  # what ProtectHome=yes hides from the services
PLACES = {".service": "etc/systemd/system", ".sysusers.conf": "etc/sysusers.d", ".tmpfiles.conf": "etc/tmpfiles.d"}


@app.callback()
def _systemd() -> None:
    """Services for systemd."""


@app.command()
def install(
    root: Path = typer.Option(Path("/"), "--root", help="Install below this folder, e.g. an image being built."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be written; write nothing."),
) -> None:
    """Write units, the service user and its folders; say what was done and what is left to do.

    Example: rampart systemd install --dry-run
    """
    from controller.errors import BadInput

    if root.exists() and not root.is_dir():
        raise BadInput(f"--root {root}: a folder is allowed")
    bin_dir = Path(sys.prefix) / "bin"
    for path, text in rendered(bin_dir).items():
        target = root / path
        if dry_run:
            typer.echo(f"# {target}\n{text}")
            continue
        try:
            typer.echo(f"{_write(target, text)}: {target}")
        except OSError as error:
            raise BadInput(f"{target}: {error.strerror or error}; run as root, or give --root") from None
    if any(str(bin_dir).startswith(hidden) for hidden in HIDDEN):
        typer.echo(f"warning: {bin_dir} is hidden from the services (ProtectHome=yes): install below /opt", err=True)
    if not dry_run:
        typer.echo(f"Next: put site.yaml or node.yaml into {CONFIG_DIR}, then")
        typer.echo("  systemd-sysusers && systemd-tmpfiles --create rampart.conf && systemctl daemon-reload")
        typer.echo("  systemctl enable rampart-restore && systemctl enable --now rampart-node   # on a GPU node")
        typer.echo("  systemctl enable --now rampart-site   # on the site controller")


def rendered(bin_dir: Path) -> dict[Path, str]:
    """Every shipped file by its place below the root, with the paths of this installation in it."""
    from controller.config.load import data_root

    files: dict[Path, str] = {}
    for source in sorted((data_root() / "systemd").iterdir()):
        for suffix, place in PLACES.items():
            if source.name.endswith(suffix):
                name = source.name if suffix == ".service" else f"{source.name.removesuffix(suffix)}.conf"
                text = source.read_text(encoding="utf-8")
                files[Path(place) / name] = text.replace("@BIN@", _escaped(bin_dir)).replace("@CONFIG@", CONFIG_DIR)
    return files


def _escaped(path: Path) -> str:
    """As a unit file spells it: percent signs are specifiers there, and blanks end a word."""
    return str(path).replace("\\", "\\\\").replace("%", "%%").replace(" ", "\\x20")


def _write(target: Path, text: str) -> str:
    """Readable by all, as systemd wants it; what happened, in a word."""
    before = target.read_text(encoding="utf-8") if target.is_file() else None
    if before == text:
        return "unchanged"
    from controller.files import write_whole

    write_whole(target, text, mode=0o644)
    return "written" if before is None else "replaced"
