"""What the bench takes out of one completed cycle of the daemon."""

from __future__ import annotations

import math

from controller.cycle import TickTrace
from controller.fleet import mean_cap_frac
from controller.plan.plan import Plan
from controller.settings import Policy
from hil.run_log import TickView


class Viewer:
    """Turns traces into views. Caps change at the planner's pace, so their mean is taken when a plan was made."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._cap_frac = 1.0

    def view(self, trace: TickTrace, plan: Plan | None) -> TickView:
        """`plan` is the one in force after the cycle."""
        decision = trace.decision
        track = decision.track
        t_s = trace.image.t_mono_s
        planned = plan is not None and plan.t_s == t_s
        if planned:
            self._cap_frac = mean_cap_frac(trace.decision.fleet, trace.decision.readings)
        return TickView(
            t_s=t_s,
            ref_w=track.g_ref_w if track else math.nan,
            low_w=track.low_w if track else math.nan,
            high_w=track.high_w if track else math.nan,
            mode=int(decision.mode.mode),
            cap_frac=self._cap_frac,
            margins=decision.margins,
            planned=planned,
            is_fallback=planned and plan is not None and plan.policy != self._policy.value,
            plan_ms=trace.plan_ms,
            overrun_count=trace.overrun_count,
            violations=tuple(v.invariant for v in trace.checked.violations),
            reasons=tuple(reason.words for reason in decision.mode.reasons if reason.is_set),
        )
