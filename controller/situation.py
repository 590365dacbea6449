"""What is known at one instant, before anything is decided: all that the parts of one cycle share.

The core looks once; every part reads from here and none looks again.
"""

from __future__ import annotations

from controller.arming import ArmingFacts
from controller.estimate import Estimate
from controller.fleet import Fleet, FleetReadings
from controller.limits import InForce
from controller.modes import Flag, ModeState
from controller.types import EnvelopeState, SiteImage, frozen


@frozen
class Situation:
    """`image` is what was sensed, with the battery as it is believed; `written` are the envelope's books."""

    image: SiteImage
    estimate: Estimate
    fleet: Fleet
    readings: FleetReadings
    mode: ModeState
    arming: ArmingFacts
    in_force: InForce
    written: EnvelopeState
    is_leader: bool

    @property
    def now_s(self) -> float:
        return self.image.t_mono_s

    @property
    def may_raise(self) -> bool:
        """What the envelope would refuse is not asked for: refusals count, and would keep it in doubt for ever."""
        return self.mode.may_raise and Flag.CLOCK_STEPPED not in self.mode.flags and not self.written.is_distrusted
