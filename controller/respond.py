"""One emergency at a time: when to use what was armed, what the battery is told meanwhile, when planning goes on.

Holds the state of a response between two cycles and nothing else. Pure; knows no clock but the image's.
"""

from __future__ import annotations

import math

import numpy as np

from controller.emergency import (
    AGAIN_FRAC,
    BRIDGE_PERIOD_S,
    CLOCK_WRITE_S,
    HOLD_S,
    Armed,
    Bridge,
    Steepness,
    caps_of,
    expected_path,
)
from controller.estimate import Estimate
from controller.reserve import BatteryBounds
from controller.settings import SiteSettings
from controller.types import BatterySample, EnvelopeState, FloatArray, Following, replace

GIVEN_BACK_S = 5.0  # after its end, caps that rise are those of the response
RISE_S = 0.8  # V100 record: within 1 % of its end 0.53 s after a limit was raised, and the driver takes GPUs in turn
BRIDGE_S_MAX = 0.5  # a meter that shows nothing new by then is not waited for


class Responder:
    """Answers an emergency target at once; `early_s` says when it wants the next cycle."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._again_w = AGAIN_FRAC * site.registered_peak_w
        self._target_w: float | None = None
        self._bridge: Bridge | None = None
        self._settled_s = -math.inf
        self._began_s = self._held_until_s = self._ended_s = -math.inf
        self.early_s = math.inf
        self.steepness = Steepness()

    @property
    def is_active(self) -> bool:
        return self._target_w is not None

    def holds_plan(self, now_s: float) -> bool:
        """The caps of the response stand; telemetry does not show yet what they did."""
        return now_s < self._held_until_s

    def stop(self, now_s: float) -> None:
        """The emergency is over; planning may go on at once."""
        self._target_w = self._bridge = None
        self._ended_s = now_s
        self._held_until_s = -math.inf
        self.early_s = math.inf

    def moves_until_s(self, now_s: float, before: FloatArray, written: FloatArray) -> float:
        """Until when the load moves by what a response or its end has just written and by no job; -inf: not at all."""
        if before.shape != written.shape:
            return -math.inf
        if self._target_w is not None and self._began_s == now_s and (written < before).any():
            return self._settled_s
        is_given_back = now_s - self._ended_s < GIVEN_BACK_S and (written > before).any()
        return now_s + RISE_S if is_given_back else -math.inf

    def caps(
        self,
        now_s: float,
        *,
        target_w: float,
        armed: Armed | None,
        estimate: Estimate,
        battery: BatterySample | None,
        written: EnvelopeState,
        hard_w: float,
    ) -> FloatArray | None:
        """Caps (2, n) for a target that is new or lower than the last; None where they need not change.

        `battery` is None where there is none to bridge with; then caps go below the top of the ripple.
        """
        if self._target_w is not None and target_w > self._target_w - self._again_w:
            return None
        before = self._bridge
        if armed is not None:  # what the last response taught since then counts as well
            armed = replace(armed, steepness=self.steepness.value)
        self._target_w, self._began_s = target_w, now_s
        caps, to_w = self._lookup(now_s, target_w, armed, estimate, battery is not None, written, hard_w)
        spans = armed.fleet.table.spans.values() if armed is not None else ()
        gpus_per_node = max((span.stop - span.start for span in spans), default=1)
        path = expected_path(now_s, from_w=estimate.load_w, to_w=to_w, gpus_per_node=gpus_per_node)
        self._settled_s = path.settled_s
        if caps is not None and armed is not None:
            self._held_until_s = now_s + HOLD_S
            expected_w = to_w - armed.other_w
            self.steepness.watch(armed, settled_s=path.settled_s, expected_w=expected_w, limits_w=caps[1])
        if battery is not None and self._site.battery is not None and self._site.following is Following.SOFTWARE:
            self._bridge = Bridge(
                path,
                now_s=now_s,
                power_w=battery.power_w if before is None else before.power_w(now_s),
                lag_s=estimate.lag_s,
                ramp_w_per_s=self._site.battery.ramp_w_per_s_max,
            )
        return caps

    def set_point_w(
        self, now_s: float, *, target_w: float, estimate: Estimate, sample: BatterySample | None, bounds: BatteryBounds
    ) -> float | None:
        """The battery's set-point while the caps take hold; None when the load is to be followed as it is measured."""
        self.early_s = math.inf
        if self._bridge is None:
            return None
        is_late = now_s - self._began_s > BRIDGE_S_MAX
        if is_late or self._bridge.is_over(estimate.t_s) or sample is None:
            self._bridge = None
            return None
        if estimate.is_fresh and estimate.pcc_w is not None:
            self._bridge.saw(estimate.t_s, estimate.pcc_w)
        self.early_s = now_s + BRIDGE_PERIOD_S
        return self._bridge.answers_w(
            now_s,
            target_w=target_w,
            charge_w_max=min(bounds.charge_w_max, sample.charge_w_max),
            discharge_w_max=bounds.discharge_w_max,
        )

    def _lookup(
        self,
        now_s: float,
        target_w: float,
        armed: Armed | None,
        estimate: Estimate,
        has_battery: bool,
        written: EnvelopeState,
        hard_w: float,
    ) -> tuple[FloatArray | None, float]:
        if armed is None or armed.fleet.count == 0 or written.gpu_ids is not armed.fleet.table.gpu_ids:
            return None, estimate.load_w  # no node was ever commanded: nothing is known of what caps would do
        gpu_w = target_w - armed.other_w - (0.0 if has_battery else armed.ripple_up_w)
        is_fixed = now_s - written.clock_written_s < CLOCK_WRITE_S
        caps, expected_w = caps_of(armed, gpu_w=gpu_w, last=written.caps, is_clock_fixed=is_fixed, hard_w=hard_w)
        if np.array_equal(caps, written.caps):
            return None, estimate.load_w
        return caps, armed.other_w + expected_w
