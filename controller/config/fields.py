"""Kinds of values that files hold, and what their units are worth in the core's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

W_PER_MEGAWATT = 1e6
W_PER_KILOWATT = 1e3
J_PER_MEGAWATT_HOUR = 3.6e9

LARGEST = 1e6  # megawatts, seconds or their like: far beyond any site, and far from where sums overflow
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def is_this_machine(host: str) -> bool:
    """Whether what goes to `host` stays on this machine, so that no wire carries it."""
    return host in ("localhost", "::1") or host.startswith("127.")
