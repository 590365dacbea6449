"""When each job's clocks change: jobs one after the other through the planner period, lowers before raises.

Independent jobs whose clocks change at one instant can lock their iterations to each other. So each job has a place in
the period, the same every time: first those that must go lower, then those that may rise. What is urgent, and what the
ceiling needs, goes lower at once. A GPU's clock is proposed anew a second after its last change at the earliest.
Pure; the envelope's books say what was written and when.
"""

from __future__ import annotations

import numpy as np

from controller.fleet import Fleet
from controller.types import BoolArray, EnvelopeState, FloatArray

LOWER_SPAN = 0.4  # of the planner period: the first part is for lowers
RAISE_FROM, RAISE_SPAN = 0.5, 0.4
SLOTS = 8  # at 20 Hz and a period of a second one tick each; more would check the whole fleet at every tick
CLOCK_WRITE_S = 1.0  # per GPU, as the envelope holds it
EARLY_S = 1e-6  # a tick that is due now by rounding is due


class Stagger:
    """Turns the caps of a plan into what is proposed at each tick; each change is proposed once per plan."""

    def __init__(self, *, period_s: float) -> None:
        self._period_s = period_s
        self._planned_s = -np.inf
        self._is_urgent = False
        self._is_done = True
        self._told = self._fell = self._rose = np.empty(0, dtype=np.bool_)  # per GPU, of this plan

    def planned(self, now_s: float, *, is_urgent: bool) -> None:
        """A plan takes effect."""
        self._planned_s, self._is_urgent, self._is_done = now_s, is_urgent, False
        self._told = np.empty(0, dtype=np.bool_)

    def due(
        self,
        now_s: float,
        fleet: Fleet,
        wanted: FloatArray,
        written: EnvelopeState,
        acked: FloatArray,
        *,
        may_rise: bool,
    ) -> tuple[FloatArray, BoolArray] | None:
        """Caps to propose now (2, n), and the GPUs (n,) whose nodes are to hear them; None: nothing is due.

        `wanted` are the plan's caps; `written` the envelope's books; `acked` what was read back, for GPUs it is new to.
        Raises wait where they may not go yet.
        """
        phase = (now_s - self._planned_s + EARLY_S) / self._period_s
        if self._is_done:
            return None
        table, n = fleet.table, fleet.count
        if len(self._told) != n:
            self._told, self._fell, self._rose = (np.zeros(n, dtype=np.bool_) for _ in range(3))
        is_known = written.gpu_ids is table.gpu_ids
        last = written.caps if is_known else np.where(acked < table.cap_max, acked, np.inf)
        written_s = written.clock_written_s if is_known else np.full(n, -np.inf)
        may_write = (now_s - written_s >= CLOCK_WRITE_S) | (wanted[0] == last[0])
        jobs = max(len(fleet.job_names), 1)
        place = np.floor(fleet.job_index * (min(jobs, SLOTS) / jobs)) / min(jobs, SLOTS)
        falls = (wanted < last).any(axis=0) & ~self._fell
        rises = (wanted > last).any(axis=0) & ~self._rose & ~falls
        is_turn = phase >= LOWER_SPAN * place
        falls_now = falls & may_write & (self._is_urgent | is_turn)
        begins = RAISE_FROM if falls.any() else 0.0  # with nothing to lower there is nothing to wait for
        rises_now = rises & may_write & may_rise & (phase >= begins + RAISE_SPAN * place)
        caps = np.where(falls_now, np.minimum(last, wanted), np.where(rises_now, wanted, last))
        is_due = falls_now | rises_now | (~self._told & is_turn)
        self._told, self._fell, self._rose = self._told | is_due, self._fell | falls_now, self._rose | rises_now
        is_left = bool((falls & ~falls_now).any() or (rises & ~rises_now).any() or falls_now.any())
        self._is_done = not is_left and bool(self._told.all())
        return (caps, is_due) if is_due.any() else None
