"""What the tests of the grid link share: an issuer with keys, an agent's settings and bounds, a site image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from controller.settings import GridSettings, IssuerSettings
from controller.signals import SignalBounds
from controller.types import (
    Contract,
    Direction,
    LimitId,
    LimitStatus,
    MeterSample,
    Provenance,
    Quality,
    RampLimit,
    Reading,
    SiteCommand,
    SiteImage,
)
from drivers.dsx_wire import Sender
from drivers.jws import Signer, write_key_pair

MW = 1e6
SOURCE = Provenance("test", "2026-01-01", LimitStatus.LOCAL)
CONTRACT = Contract(
    "ieso-ramp",
    (
        RampLimit(LimitId("minute"), 20 * MW, 60.0, Direction.BOTH, 1.0, SOURCE),
        RampLimit(LimitId("quarter"), 5 * MW, 15.0, Direction.BOTH, 1.0, SOURCE),
    ),
    100 * MW,
)


def bounds(**changes: float) -> SignalBounds:
    fields: dict[str, float] = {"floor_w": 20 * MW, "peak_w": 100 * MW, "grace_s": 60.0, "raise_dwell_s": 60.0}
    return SignalBounds(contract=CONTRACT, **(fields | changes))


def issuer(name: str = "acme", key_files: tuple[str, ...] = (), **may: bool) -> IssuerSettings:
    rights = {"may_set_target": True, "may_set_ramp": True, "may_exempt_ramp": True} | may
    return IssuerSettings(name, key_files, **rights)


def grid(
    *issuers: IssuerSettings, feeds: tuple[str, ...] = ("main",), signing_key_file: str | None = None
) -> GridSettings:
    return GridSettings("site", feeds, issuers or (issuer(),), signing_key_file, 5.0, 30.0)


def sender(folder: Path, name: str, *, role: str = "isv", seed: int = 5) -> tuple[Sender, str]:
    """A publisher with a fresh key, and the file of its public key."""
    private, public = write_key_pair(folder, name)
    rng = np.random.default_rng(seed)
    return Sender(role, name, Signer(private, rng=rng), rng), str(public)  # type: ignore[arg-type]


def image(now_s: float, power_w: float) -> SiteImage:
    return SiteImage(
        t_mono_s=now_s,
        wall_utc_s=1.8e9,
        tick=0,
        pcc=Reading(MeterSample(power_w), now_s, Quality.GOOD, "pcc"),
        battery=None,
        ups={},
        nodes=(),
        signals=(),
        is_grid_link_up=True,
    )


NOTHING = SiteCommand(0, 0, None, ())
