"""What one cycle decided, and what of it may be written: the two values that pass between core, shell and bench."""

from __future__ import annotations

from controller.arming import holds_back, unmet
from controller.ballast import NO_FLOOR, Floor
from controller.estimate import Estimate
from controller.fleet import Fleet, FleetReadings
from controller.limits import InForce
from controller.modes import ModeState
from controller.situation import Situation
from controller.tracker_io import TrackerOutput
from controller.types import Margin, SiteCommand, SiteImage, Violation, frozen


@frozen
class Decision:
    """What one cycle wants to do, and why. `track` is None until the site's power is known for the first time."""

    situation: Situation
    track: TrackerOutput | None
    proposal: SiteCommand
    floor: Floor = NO_FLOOR  # what a load bank adds to the load that a crash leaves
    why_no_floor: str = ""  # why a load bank that is there adds nothing
    held_w: float = 0.0  # what GPUs' own power floors add

    @property
    def held_back(self) -> tuple[str, ...]:
        """What control waits for, in words; empty once it began."""
        return holds_back(self.situation.arming) if self.track is None else ()

    @property
    def unmet(self) -> tuple[str, ...]:
        """Arming conditions not met now, in words."""
        return unmet(self.situation.arming)

    @property
    def margins(self) -> tuple[Margin, ...]:
        return self.track.margins if self.track is not None else ()

    # What it was decided on is asked for everywhere.

    @property
    def image(self) -> SiteImage:
        return self.situation.image

    @property
    def estimate(self) -> Estimate:
        return self.situation.estimate

    @property
    def fleet(self) -> Fleet:
        return self.situation.fleet

    @property
    def readings(self) -> FleetReadings:
        return self.situation.readings

    @property
    def mode(self) -> ModeState:
        return self.situation.mode

    @property
    def in_force(self) -> InForce:
        return self.situation.in_force


@frozen
class Checked:
    """The command that may be written, and what the envelope found."""

    command: SiteCommand
    violations: tuple[Violation, ...]
