"""What a battery or a load bank does by itself when commands stop, as its profile says, before anybody asks it.

The slope that matters is the one by which it returns to zero when commands stop: that of the profile's own expiry
control where it has one, else that of its set-points, which following needs steep.
"""

from __future__ import annotations

import math

from controller.settings import OwnSlope
from drivers.profile import Control, DeviceProfile, Dispatch, Source
from drivers.sunspec import layout

PERCENT = 100.0


def own_slope(profile: DeviceProfile, dispatch: Dispatch, *, rating_w: float) -> OwnSlope | None:
    """The slopes that `dispatch` can tell; None where the profile tells the device no slope at all."""
    by_source = {profile.controls[name].source: name for name in dispatch.arm}
    for source, unit_w in (
        (Source.EXPIRY_RAMP_W_PER_S, 1.0),
        (Source.RAMP_W_PER_S, 1.0),
        (Source.RAMP_PERCENT_PER_S, rating_w / PERCENT),
    ):
        name = by_source.get(source)
        if name is not None:
            control = profile.controls[name]
            least = max(control.min or 0.0, 0.0)
            is_shared = source is not Source.EXPIRY_RAMP_W_PER_S
            return OwnSlope(least * unit_w, _step(control) * unit_w, _where(name, control, profile), is_shared)
    return None


def own_expiry_s(profile: DeviceProfile, dispatch: Dispatch, *, ttl_s: float) -> float:
    """How long the device obeys a command that was told to live `ttl_s`; inf where it never lets go by itself."""
    for name in dispatch.arm:
        control = profile.controls[name]
        if control.source is Source.TTL_S:
            unit_s = _step(control) or ttl_s
            told_s = unit_s * (math.ceil(ttl_s / unit_s - 1e-6) if control.rounding == "up" else round(ttl_s / unit_s))
            return min(max(told_s, control.min or 0.0), math.inf if control.max is None else control.max)
    return math.inf if dispatch.expiry_s is None else dispatch.expiry_s


def _step(control: Control) -> float:
    """What one count of the register is worth, in the control's unit; 0 where it carries fractions."""
    if control.type is not None and control.type.startswith("float"):
        return 0.0
    if control.sunspec is not None and control.alternatives:
        alias, _, point = control.alternatives[0].partition(".")
        found = layout(int(alias)).get(point) if alias.isdigit() else None
        if found is not None and (found.kind.startswith("float") or found.scale_offset is not None):
            return 0.0  # the device's scale factor decides; it is not known before it is read
    return abs(control.scale) if control.scale_offset is None else 0.0


def _where(name: str, control: Control, profile: DeviceProfile) -> str:
    if control.alternatives:
        place = control.alternatives[0]
    elif control.addresses:
        place = f"register {control.addresses[0]}"
    else:
        place = f"model {control.model} offset {control.offset}"
    return f"{name} ({place}) of profile {profile.id}"
