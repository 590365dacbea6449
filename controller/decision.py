"""What one cycle decided, and what of it may be written: the two values that pass between core, shell and bench."""

from __future__ import annotations

from dataclasses import dataclass

from controller.arming import holds_back, unmet
from controller.ballast import NO_FLOOR, Floor
from controller.situation import Situation
from controller.tracker_io import TrackerOutput
from controller.types import Margin, SiteCommand, Violation


@dataclass(frozen=True, slots=True)
class Decision(Situation):
    """What one cycle wants to do, and why. `track` is None until the site's power is known for the first time."""

    track: TrackerOutput | None
    proposal: SiteCommand
    floor: Floor = NO_FLOOR  # what a load bank adds to the load that a crash leaves
    why_no_floor: str = ""  # why a load bank that is there adds nothing
    held_w: float = 0.0  # what GPUs' own power floors add

    @classmethod
    def of(
        cls,
        now: Situation,
        *,
        track: TrackerOutput | None,
        proposal: SiteCommand,
        floor: Floor,
        why_no_floor: str,
        held_w: float,
    ) -> Decision:
        """What was decided in this situation."""
        return cls(
            now.image,
            now.estimate,
            now.fleet,
            now.readings,
            now.mode,
            now.arming,
            now.in_force,
            now.written,
            now.is_leader,
            track,
            proposal,
            floor,
            why_no_floor,
            held_w,
        )

    @property
    def held_back(self) -> tuple[str, ...]:
        """What control waits for, in words; empty once it began."""
        return holds_back(self.arming) if self.track is None else ()

    @property
    def unmet(self) -> tuple[str, ...]:
        """Arming conditions not met now, in words."""
        return unmet(self.arming)

    @property
    def margins(self) -> tuple[Margin, ...]:
        return self.track.margins if self.track is not None else ()


@dataclass(frozen=True, slots=True)
class Checked:
    """The command that may be written, and what the envelope found."""

    command: SiteCommand
    violations: tuple[Violation, ...]
