"""Device profiles for the site's devices: read from their files, and refused where they are not what the site needs."""

from __future__ import annotations

from controller.config.load import data_path, read_yaml
from controller.errors import BadInput
from controller.settings import ModbusSettings
from controller.types import Following
from drivers.profile import DeviceProfile, Dispatch, Kind, parse_profile


def load_profile(name_or_file: str) -> DeviceProfile:
    """A shipped profile by name, or one from a file; BadInput says what is wrong with it."""
    path = data_path("devices", name_or_file)
    return parse_profile(read_yaml(path), origin=str(path))


def profile_for(device: ModbusSettings, kind: Kind, *, key: str) -> DeviceProfile:
    """The profile of the device under `key` of the file; BadInput where it is absent, broken or of another kind."""
    try:
        profile = load_profile(device.profile)
    except BadInput as bad:
        raise BadInput(f"{key}.profile: {bad}") from None
    if profile.kind is not kind:
        raise BadInput(f"{key}.profile: {device.profile!r}: the profile of a {profile.kind}, expected a {kind}")
    return profile


def battery_profile_for(device: ModbusSettings, following: Following) -> tuple[DeviceProfile, Dispatch]:
    """The battery's profile and the way it is driven; BadInput where it cannot be driven as the site asks."""
    profile = profile_for(device, Kind.BATTERY, key="battery")
    dispatch = profile.device if following is Following.DEVICE else profile.software
    if dispatch is None:
        raise BadInput(f"battery.following: {following}: profile {profile.id} cannot be driven that way")
    return profile, dispatch


def load_bank_profile_for(device: ModbusSettings) -> tuple[DeviceProfile, Dispatch]:
    """The load bank's profile and the way it is driven; BadInput where it cannot be driven at all."""
    profile = profile_for(device, Kind.LOAD_BANK, key="load_bank")
    if profile.software is None:
        raise BadInput(f"load_bank.profile: {profile.id}: it can only be read; software (how to write it) is needed")
    return profile, profile.software
