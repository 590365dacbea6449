"""What one cycle proposes to write: battery, load bank and nodes in one numbered command, for the envelope to judge.

All three let go by themselves when commands stop; here they are told how, so that together they keep to one slope.
Nothing is proposed while this process does not lead, knows no target, or is locked out. Pure.
"""

from __future__ import annotations

from controller.arming import BatteryProof
from controller.ballast import Ballast, expiry_share
from controller.node_orders import CapsNow, NodeOrders
from controller.parting import Parting, finite_slope
from controller.planning import Planning
from controller.settings import Policy, SiteSettings
from controller.situation import Situation
from controller.tracker import Tracker
from controller.tracker_io import BatteryAim, TrackerOutput
from controller.types import BatteryCommand, Following, Mode, NodeCommand, SiteCommand, Stamp
from controller.view import battery_sample


class Proposals:
    """One site's; `make` in every cycle."""

    def __init__(self, site: SiteSettings, *, epoch: int, orders: NodeOrders, proof: BatteryProof) -> None:
        self._site = site
        self._epoch = epoch
        self._seq = 0
        self._orders = orders
        self._proof = proof
        self._parting = Parting(site)

    def make(
        self,
        now: Situation,
        *,
        tracker: Tracker | None,
        track: TrackerOutput | None,
        ballast: Ballast,
        planning: Planning,
        caps: CapsNow,
    ) -> SiteCommand:
        """What this cycle asks for; `caps` are the plan's, as far as they may go now."""
        self._seq += 1
        stamp = Stamp(self._epoch, self._seq, self._site.ttl_periods * self._site.planner_period_s)
        may_write = now.is_leader and now.mode.mode is not Mode.LOCKOUT and self._site.policy is not Policy.NONE
        if tracker is None or track is None or not may_write:
            return SiteCommand(stamp.epoch, stamp.seq, None, ())
        bank = ballast.order(
            now,
            tracker=tracker,
            track=track,
            planned_w=planning.plan.ballast_w if planning.plan is not None else 0.0,
            stamp=stamp,
            fall_w_per_s=self._parting.fall_w_per_s(tracker.interval.contingency_slope_w_per_s),
        )
        ballast_w = bank.setpoint_w if bank is not None else 0.0
        self._see_what_parts(now, track.aim, ballast_w)
        battery = self._battery(now, track.aim, ballast_w, stamp) if track.aim is not None else None
        nodes = self._nodes(now, tracker, caps, stamp)
        return SiteCommand(stamp.epoch, stamp.seq, battery, nodes, bank)

    def _see_what_parts(self, now: Situation, aim: BatteryAim | None, ballast_w: float) -> None:
        """What battery and bank will have to let go, and which nodes have heard of it."""
        self._parting.see(now.now_s, set_point_w=_set_point_w(now, aim), ballast_w=ballast_w)
        if self._parting.is_unheard:
            self._parting.heard((r.value.acked_epoch, r.value.acked_seq) for r in now.image.nodes)

    def _battery(self, now: Situation, aim: BatteryAim, ballast_w: float, stamp: Stamp) -> BatteryCommand | None:
        """None while a battery that is to prove itself needs time to count down."""
        if self._proof.waits(now.now_s):
            return None
        assert self._site.battery is not None
        expiry = self._parting.battery_w_per_s(aim) * expiry_share(ballast_w)
        return BatteryCommand(
            following=aim.following,
            reference_w=aim.reference_w if self._proof.is_given else self._standing_w(now),
            ramp_w_per_s=self._site.battery.ramp_w_per_s_max,
            expiry_w_per_s=finite_slope(expiry),
            epoch=stamp.epoch,
            seq=stamp.seq,
            ttl_s=stamp.ttl_s,
        )

    def _standing_w(self, now: Situation) -> float:
        """The reference by which the battery stays as it is: to be taken whole before anything is asked of it."""
        assert now.image.battery is not None
        is_device = self._site.following is Following.DEVICE
        return now.estimate.grid_w if is_device else now.image.battery.value.power_w

    def _nodes(self, now: Situation, tracker: Tracker, caps: CapsNow, stamp: Stamp) -> tuple[NodeCommand, ...]:
        """None before the first plan for this fleet."""
        if now.fleet.count == 0 or caps.caps.shape != (2, now.fleet.count):
            return ()
        return self._orders.commands(now, caps, interval=tracker.interval, parting=self._parting, stamp=stamp)


def _set_point_w(now: Situation, aim: BatteryAim | None) -> float | None:
    """What the battery holds or is on its way to, whichever it will have to let go; None where it takes no orders."""
    if aim is None:
        return None
    sample = battery_sample(now.image)
    return sample.power_w if aim.is_let_go and sample is not None else aim.reference_w
