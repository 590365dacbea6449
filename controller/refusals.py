"""Devices that refuse every order for ten planner periods are locked out until an operator resets (FAULTS M6). Pure.

One refusal ends by itself more often than not (a card that starts anew, a mode that is being changed), and a battery
lost for good to a glitch would be worse than the glitch; so it is asked again meanwhile, and any order that it takes
ends the count. What says of itself that it is in local control, off or in fault refuses with good reason, and comes
back when that is over. A device that is locked out is shown to control as one that takes no orders; none is written.
"""

from __future__ import annotations

from controller.modes import DWELL_CYCLES
from controller.types import SiteFault, SiteImage, replace


class Refusals:
    """One site's battery and load bank; `see` with every image, `took` when an order was acknowledged."""

    def __init__(self, *, period_s: float) -> None:
        self._after_s = DWELL_CYCLES * period_s
        self._since_s: dict[str, float] = {}
        self.locked_out: frozenset[str] = frozenset()

    def reset(self) -> None:
        """An operator wants them tried again."""
        self._since_s.clear()
        self.locked_out = frozenset()

    def took(self, device: str) -> None:
        """It obeyed."""
        self._since_s.pop(device, None)

    def see(self, image: SiteImage) -> SiteImage:
        """The image as control may see it."""
        if not image.troubles and not self._since_s and not self.locked_out:
            return image
        refusing = {
            trouble.subject
            for trouble in image.troubles
            if trouble.fault is SiteFault.DEVICE_REFUSES and _takes_orders(image, trouble.subject)
        }
        now_s = image.t_mono_s
        self._since_s = {device: self._since_s.get(device, now_s) for device in sorted(refusing)}
        self.locked_out |= {device for device, since_s in self._since_s.items() if now_s - since_s >= self._after_s}
        return _without_orders(image, self.locked_out) if self.locked_out else image


def _takes_orders(image: SiteImage, device: str) -> bool:
    """By its own word it should."""
    readings = {"battery": image.battery, "load_bank": image.load_bank}
    reading = readings.get(device)
    return reading is not None and reading.value.takes_orders


def _without_orders(image: SiteImage, locked: frozenset[str]) -> SiteImage:
    battery, bank = image.battery, image.load_bank
    if "battery" in locked and battery is not None:
        battery = replace(battery, value=replace(battery.value, is_remote=False))
    if "load_bank" in locked and bank is not None:
        bank = replace(bank, value=replace(bank.value, is_remote=False))
    return replace(image, battery=battery, load_bank=bank)
