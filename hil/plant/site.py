"""The whole plant in one stepper: jobs, GPUs, facility, battery and grid, moved together every few milliseconds.

Time moves only by `advance_ns`, in whole steps on an integer grid; what is ordered in between takes effect at the next
step, and scheduled changes (clocks after their dead time, declared events) at theirs. Truth is kept in a window long
enough for every sensor, and handed to the listeners in blocks, once and without gaps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from controller.types import FloatArray, frozen
from hil.plant.battery import Battery
from hil.plant.facility import Facility
from hil.plant.fleet import Fleet
from hil.plant.grid import Grid
from hil.plant.load_bank import LoadBank

NS_PER_S = 1_000_000_000
STEP_NS = 5_000_000  # 200 Hz, the slowest at which the referee takes plant truth
BLOCK_STEPS = 6_000  # 30 s of truth per block
WINDOW_STEPS = 2_400  # 12 s kept for sensors: the longest boxcar and delay of any simulated one


@frozen
class TruthBlock:
    """Plant truth on the step grid; sample i is at `t0_s` + i * `dt_s`."""

    t0_s: float
    dt_s: float
    pcc_w: FloatArray
    load_w: FloatArray
    battery_w: FloatArray
    soc_frac: FloatArray
    frequency_hz: FloatArray
    voltage_pu: FloatArray
    ballast_w: FloatArray  # what the load bank draws; not in `load_w`


TRUTH = ("pcc_w", "load_w", "battery_w", "soc_frac", "frequency_hz", "voltage_pu", "ballast_w")  # arrays of a block

TruthListener = Callable[[TruthBlock], None]

PCC, LOAD, BATTERY, SOC, FREQUENCY, VOLTAGE, OTHER, IMPORTED_J, BALLAST, GROUP_0 = range(10)


class SitePlant:
    """Everything behind the meter, and the grid in front of it."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        facility: Facility,
        battery: Battery | None,
        grid: Grid,
        load_bank: LoadBank | None = None,
        step_ns: int = STEP_NS,
    ) -> None:
        self.fleet, self.facility, self.battery, self.grid = fleet, facility, battery, grid
        self.load_bank = load_bank
        self.step_ns = step_ns
        self._dt_s = step_ns / NS_PER_S
        self._actions: list[tuple[int, int, Callable[[], None]]] = []
        self._action_count = 0
        self._listeners: list[TruthListener] = []
        self._rows = GROUP_0 + len(fleet.groups)
        self._log = np.zeros((self._rows, WINDOW_STEPS + BLOCK_STEPS))
        self._log[FREQUENCY], self._log[VOLTAGE] = grid.nominal_hz, 1.0  # what a grid shows until it first moves
        self._filled = 0  # columns in use
        self._given = 0  # columns the listeners have had
        self._first_step = 0  # step number of column 0
        self._t_s = self._times()
        self._imported_j = 0.0  # what was exported is not taken off: an import counter only grows
        self._step = -1  # the newest step taken; the first is at 0 s
        self.advance_ns(0)

    # -- time

    @property
    def dt_s(self) -> float:
        return self._dt_s

    @property
    def now_s(self) -> float:
        return self._step * self._dt_s

    def listen(self, listener: TruthListener) -> None:
        """Hand every block of truth, from the first sample on, to `listener`."""
        assert self._given == 0, "listeners join before the first block is given out"
        self._listeners.append(listener)

    def schedule(self, t_ns: int, action: Callable[[], None]) -> None:
        """Run `action` just before the first step that ends after `t_ns`."""
        self._action_count += 1
        heapq.heappush(self._actions, (t_ns, self._action_count, action))

    def advance_ns(self, until_ns: int) -> None:
        """Take every step that ends at or before `until_ns`; nothing when there is none."""
        last = until_ns // self.step_ns
        while self._step < last:
            while self._actions and self._actions[0][0] < (self._step + 1) * self.step_ns:
                heapq.heappop(self._actions)[2]()
            stop = last
            if self._actions:
                stop = min(last, max(self._actions[0][0] // self.step_ns, self._step + 1))
            self._take(min(stop - self._step, self._room()))

    def finish(self) -> None:
        """Give out what is left of the truth."""
        self._give()

    # -- truth

    def value(self, row: int, t_s: float) -> float:
        """Truth of `row` at the newest step at or before `t_s`, within the kept window."""
        return float(self._log[row, self._column(t_s)])

    def at(self, t_s: float) -> list[float]:
        """Truth of every row at that step."""
        found: list[float] = self._log[:, self._column(t_s)].tolist()
        return found

    def mean(self, row: int, *, from_s: float, to_s: float) -> float:
        """Mean of `row` over the steps in (from, to]; the step at `to_s` alone when the span holds none."""
        last = self._column(to_s)
        first = min(self._column(from_s) + 1, last)
        return float(np.add.reduce(self._log[row, first : last + 1])) / (last + 1 - first)

    def now(self, row: int) -> float:
        return float(self._log[row, self._filled - 1])

    # -- steps

    def _take(self, n: int) -> None:
        """`n` steps during which nothing is ordered."""
        dt_s = self._dt_s
        columns = slice(self._filled, self._filled + n)
        t_s, log = self._t_s[columns], self._log[:, columns]
        block = self.fleet.advance(t_s, dt_s=dt_s)
        log[GROUP_0:], log[OTHER] = block.group_w, block.other_w
        it_w = np.add.reduce(block.group_w) + block.other_w
        is_steady = self.grid.is_steady
        if not is_steady:
            log[VOLTAGE] = self.grid.voltage_pu(t_s)
        if self.facility.is_plain:
            self.facility.it_w = float(it_w[-1])
            load_w = it_w + self.facility.params.fixed_w
        else:
            load_w = self.facility.advance(it_w, t_s, log[VOLTAGE], dt_s=dt_s)
        log[LOAD] = load_w
        if self.load_bank is not None:
            log[BALLAST] = self.load_bank.advance(n, dt_s=dt_s)
            load_w = load_w + log[BALLAST]
        pcc_w = load_w
        if self.battery is not None:
            before_w = self.now(PCC) if self._filled else float(load_w[0])
            power_w, soc_frac = self.battery.advance(load_w, dt_s=dt_s, pcc_w_before=before_w)
            log[BATTERY], log[SOC] = power_w, soc_frac
            pcc_w = load_w - power_w
        log[PCC] = pcc_w
        if not is_steady:
            log[FREQUENCY] = self.grid.advance(pcc_w, dt_s=dt_s)
        log[IMPORTED_J] = imported_j = self._imported_j + np.maximum(pcc_w, 0.0).cumsum() * dt_s
        self._imported_j = float(imported_j[-1])
        self._filled += n
        self._step += n

    def _room(self) -> int:
        """Free columns; makes some by giving out a block and keeping the sensors' window."""
        if self._filled == self._log.shape[1]:
            self._give()
            keep = self._log[:, -WINDOW_STEPS:].copy()
            self._log[:, :WINDOW_STEPS] = keep
            self._first_step += self._filled - WINDOW_STEPS
            self._filled = self._given = WINDOW_STEPS
            self._t_s = self._times()
        return self._log.shape[1] - self._filled

    def _times(self) -> FloatArray:
        """The end of each step of the log."""
        columns = self._log.shape[1]
        return np.arange(self._first_step, self._first_step + columns, dtype=np.float64) * self._dt_s

    def _give(self) -> None:
        if self._given == self._filled:
            return
        span = slice(self._given, self._filled)
        rows = self._log[:, span].copy()
        block = TruthBlock(
            t0_s=(self._first_step + self._given) * self._dt_s,
            dt_s=self._dt_s,
            pcc_w=rows[PCC],
            load_w=rows[LOAD],
            battery_w=rows[BATTERY],
            soc_frac=rows[SOC],
            frequency_hz=rows[FREQUENCY],
            voltage_pu=rows[VOLTAGE],
            ballast_w=rows[BALLAST],
        )
        self._given = self._filled
        for listener in self._listeners:
            listener(block)

    def _column(self, t_s: float) -> int:
        step = int(t_s / self._dt_s + 1e-6)
        return min(max(step - self._first_step, 0), self._filled - 1)
