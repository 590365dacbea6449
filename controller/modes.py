"""Modes: health flags in, one ordered mode out, with the reason and the way back in words.

Faults set flags; `TABLE` alone says what a flag asks for and how it clears; the highest mode asked for wins. A flag is
a statement ("the meter is stuck"), set anew on every step while it is true. Nothing here detects a fault, reads a clock
or writes to a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, unique

from controller.types import MeterFlag, Mode, NodeFault, SiteFault, frozen

DWELL_CYCLES = 10  # planner periods a flag must stay away before it clears


@unique
class Clear(StrEnum):
    """What must happen before a flag that is no longer set stops counting."""

    WHEN_CLEAR = "once its cause has been gone for ten planner periods"
    ON_NEW_SIGNAL = "with the next verified grid signal or heartbeat"
    ON_OPERATOR = "when an operator resets it"
    NEVER_THIS_BOOT = "by a restart of this process only"


@unique
class Flag(StrEnum):
    """Every condition that can be detected; the value is the name in status, logs and recordings.

    What a meter's checks, a node or the shell find keeps the name they tell it by.
    """

    # Site meters
    METER_STUCK = MeterFlag.METER_STUCK
    METER_STALE = MeterFlag.METER_STALE
    METER_MISSING = MeterFlag.METER_MISSING
    METER_SPIKE = MeterFlag.METER_SPIKE
    METER_UNIT_WRONG = MeterFlag.METER_UNIT_WRONG
    METER_SIGN_SUSPECT = MeterFlag.METER_SIGN_SUSPECT
    METER_SIGN_WRONG = MeterFlag.METER_SIGN_WRONG
    METER_DRIFT = MeterFlag.METER_DRIFT
    METERS_DISAGREE = MeterFlag.METERS_DISAGREE
    METER_SLOW = MeterFlag.METER_SLOW
    METER_LATE = MeterFlag.METER_LATE
    METER_REFRESH = MeterFlag.METER_REFRESH
    COUNTER_RESET = MeterFlag.COUNTER_RESET
    IMAGE_LOST = "image_lost"
    # GPUs and their nodes
    GPU_HUNG = NodeFault.GPU_HUNG
    GPU_LOST = NodeFault.GPU_LOST
    GPU_PERMISSION = NodeFault.GPU_PERMISSION
    GPU_IGNORES_CAPS = NodeFault.GPU_IGNORES_CAPS
    CAP_CLAMPED = NodeFault.CAP_CLAMPED
    FOREIGN_WRITER = NodeFault.FOREIGN_WRITER
    FOREIGN_WRITER_WON = NodeFault.FOREIGN_WRITER_WON
    POWER_ABOVE_CAP = "power_above_cap"
    GPU_RESET = "gpu_reset"
    GPU_THROTTLED = NodeFault.GPU_THROTTLED
    NODE_LOST = "node_lost"
    NODES_ALL_LOST = "nodes_all_lost"
    NODE_LATE = "node_late"
    # Modbus devices
    DEVICE_TIMEOUT = SiteFault.DEVICE_TIMEOUT
    DEVICE_GARBAGE = SiteFault.DEVICE_GARBAGE
    DEVICE_PARTIAL_WRITE = SiteFault.DEVICE_PARTIAL_WRITE
    DEVICE_BUSY = SiteFault.DEVICE_BUSY
    DEVICE_REFUSES = SiteFault.DEVICE_REFUSES
    DEVICE_CHANGED = SiteFault.DEVICE_CHANGED
    DEVICE_WRONG = SiteFault.DEVICE_WRONG
    BATTERY_LIMITED = "battery_limited"
    BATTERY_LOST = "battery_lost"
    BATTERY_MISREAD = "battery_misread"
    BATTERY_LOCKED_OUT = "battery_locked_out"
    BATTERY_NOT_FOLLOWING = "battery_not_following"
    BATTERY_LATE = "battery_late"
    LOAD_BANK_LIMITED = "load_bank_limited"
    LOAD_BANK_LOST = "load_bank_lost"
    LOAD_BANK_LOCKED_OUT = "load_bank_locked_out"
    LOAD_BANK_NOT_OBEYING = "load_bank_not_obeying"
    UPS_ON_BATTERY = "ups_on_battery"
    UPS_ON_BYPASS = "ups_on_bypass"
    UPS_LOW = "ups_low"
    # Grid signals
    GRID_LINK_LOST = "grid_link_lost"
    GRID_SILENT = "grid_silent"
    SIGNAL_DUPLICATE = "signal_duplicate"
    SIGNAL_OUT_OF_ORDER = "signal_out_of_order"
    SIGNAL_OVERSIZED = "signal_oversized"
    SIGNAL_MALFORMED = "signal_malformed"
    SIGNAL_FORGED = "signal_forged"
    SIGNAL_REPLAYED = "signal_replayed"
    SIGNAL_STALE = "signal_stale"
    SIGNAL_ABSURD = "signal_absurd"
    SIGNAL_FLAPPING = "signal_flapping"
    SIGNAL_FLOOD = "signal_flood"
    # Planner
    SOLVER_INVALID = "solver_invalid"
    MODEL_MISMATCH = "model_mismatch"
    ENVELOPE_BUSY = "envelope_busy"
    # Clocks, processes, files
    CLOCK_STEPPED = "clock_stepped"
    CLOCK_UNSYNCED = "clock_unsynced"
    LOOP_STALLED = "loop_stalled"
    RESUMED = "resumed"
    RESTARTED = "restarted"
    DISK_FULL = SiteFault.DISK_FULL
    FILE_REFUSED = SiteFault.FILE_REFUSED
    LEADERSHIP_LOST = "leadership_lost"
    NODE_OBEYS_OTHER = "node_obeys_other"
    NODE_TWINS = NodeFault.NODE_TWINS
    ORIGINALS_CORRUPT = NodeFault.ORIGINALS_CORRUPT
    # People
    OPERATOR_RELEASE = "operator_release"
    OPERATOR_FALLBACK = "operator_fallback"
    OPERATOR_LOCKOUT = "operator_lockout"


@frozen
class Reaction:
    """What one flag asks for. `rows` are the fault catalogue's; `words` is what status says."""

    rows: str
    mode: Mode
    clear: Clear
    words: str


def _rows() -> dict[Flag, Reaction]:
    normal, degraded, shed, hold, fallback = Mode.NORMAL, Mode.DEGRADED, Mode.SHED, Mode.HOLD, Mode.FALLBACK
    when, signal, operator, never = Clear.WHEN_CLEAR, Clear.ON_NEW_SIGNAL, Clear.ON_OPERATOR, Clear.NEVER_THIS_BOOT
    f = Flag
    rows: tuple[tuple[Flag, str, Mode, Clear, str], ...] = (
        (f.METER_STUCK, "S1", degraded, when, "the site meter repeats one value while power moves; nodes stand in"),
        (f.METER_MISSING, "S2", shed, when, "the site meter gives no usable value; power is estimated, nothing rises"),
        (f.METER_SPIKE, "S3", degraded, when, "the site meter jumped beyond what the site can do"),
        (f.METER_STALE, "S4", degraded, when, "the site meter's reading is old"),
        (f.METER_UNIT_WRONG, "S5", shed, operator, "the site meter is off by about a thousand: unit error; locked out"),
        (f.METER_SIGN_SUSPECT, "S6", degraded, when, "the site meter reads negative load: sign suspect"),
        (f.METER_SIGN_WRONG, "S6", fallback, when, "the only site meter shows the load negative: sign wrong"),
        (f.METER_DRIFT, "S7", degraded, when, "the site meter drifts away from a second meter; margin grows"),
        (f.METERS_DISAGREE, "S8", degraded, when, "two meters disagree; the higher import counts"),
        (f.METER_SLOW, "S9", degraded, when, "the site meter is slower than declared; rises are limited"),
        (f.METER_LATE, "S4", degraded, when, "the site meter shows what was true before its time stamp"),
        (f.METER_REFRESH, "S9", normal, when, "the site meter's values stand for longer than declared"),
        (f.COUNTER_RESET, "S10", normal, when, "an energy counter wrapped or was reset; re-based"),
        (f.IMAGE_LOST, "S2", hold, when, "neither meter nor node reports: site power is unknown"),
        (f.GPU_HUNG, "G1", degraded, when, "an NVML call hangs; that GPU counts at its largest cap"),
        (f.GPU_LOST, "G2", degraded, when, "a GPU fell off the bus"),
        (f.GPU_PERMISSION, "G3", degraded, when, "a node may not set clocks; it only reports"),
        (f.GPU_IGNORES_CAPS, "G4", degraded, when, "a GPU accepts caps and does not apply them"),
        (f.CAP_CLAMPED, "G5", normal, when, "a cap outside a GPU's range was clamped"),
        (f.FOREIGN_WRITER, "G6", degraded, when, "another tool changes GPU settings"),
        (f.FOREIGN_WRITER_WON, "G6", fallback, operator, "another tool holds most GPUs after three fights"),
        (f.POWER_ABOVE_CAP, "G7", degraded, when, "a GPU draws more than its power limit; that limit steps down"),
        (f.GPU_RESET, "G8", degraded, when, "a node booted again; its GPUs are armed again"),
        (f.GPU_THROTTLED, "G10", normal, when, "a GPU slows itself (heat or power brake)"),
        (f.DEVICE_TIMEOUT, "M1 M4 M9", degraded, when, "a Modbus device does not answer in time"),
        (f.DEVICE_GARBAGE, "M2 M3", degraded, when, "a Modbus device sends what cannot be right; dropped"),
        (f.DEVICE_PARTIAL_WRITE, "M5", degraded, when, "the battery does not show what was written to it"),
        (f.DEVICE_BUSY, "M6", normal, when, "a Modbus device is busy; tried again next period"),
        (f.DEVICE_REFUSES, "M6", degraded, when, "a Modbus device refuses what it is asked; tried again"),
        (f.DEVICE_CHANGED, "M7", degraded, operator, "a device changed model, scale or layout; locked out"),
        (f.DEVICE_WRONG, "M8", degraded, when, "another product answers at a device's address; not armed"),
        (f.GRID_LINK_LOST, "Q1", degraded, when, "the grid link is down; the last limits hold until grace ends"),
        (f.GRID_SILENT, "Q1", degraded, signal, "the grid was silent beyond its grace; the fallback contract holds"),
        (f.SIGNAL_DUPLICATE, "Q2", normal, when, "a grid message came twice; ignored"),
        (f.SIGNAL_OUT_OF_ORDER, "Q3", normal, when, "a grid message came out of order; ignored"),
        (f.SIGNAL_OVERSIZED, "Q4", normal, when, "an oversized grid message was dropped"),
        (f.SIGNAL_MALFORMED, "Q5", normal, when, "a malformed grid message was dropped"),
        (f.SIGNAL_FORGED, "Q6", normal, when, "a grid message failed its signature check: security event"),
        (f.SIGNAL_REPLAYED, "Q7", normal, when, "an old grid message was replayed; dropped"),
        (f.SIGNAL_STALE, "Q8", normal, when, "a grid message that was over already was dropped"),
        (f.SIGNAL_ABSURD, "Q9", normal, when, "a grid limit beyond reason was bounded"),
        (f.SIGNAL_FLAPPING, "Q10", normal, when, "a grid limit flaps; raises wait"),
        (f.SIGNAL_FLOOD, "Q11", normal, when, "grid messages flood in; the newest are kept"),
        (f.SOLVER_INVALID, "P1 P2 P3", shed, when, "no usable answer of the solver in time; the rule planner decides"),
        (f.MODEL_MISMATCH, "P5", degraded, when, "GPU power strays from the model; margin grows"),
        (f.ENVELOPE_BUSY, "P5", shed, when, "the envelope overruled the planner too often; it is not trusted"),
        (f.CLOCK_STEPPED, "C1", degraded, when, "the wall clock stepped; nothing rises until it is in step again"),
        (f.CLOCK_UNSYNCED, "C2", degraded, when, "the wall clock is not synchronised; grid signals may only tighten"),
        (f.LOOP_STALLED, "C3", degraded, when, "the control loop stalled; cycles were skipped"),
        (f.RESUMED, "C4", degraded, when, "the machine was paused; commands expired, arming again"),
        (f.RESTARTED, "X1", degraded, when, "the controller restarted and takes over from its nodes' state"),
        (f.DISK_FULL, "X2", normal, when, "recording stopped, control goes on: the disk is full or gone"),
        (f.FILE_REFUSED, "X5", normal, when, "the site file was changed and is wrong; what runs keeps its settings"),
        (f.LEADERSHIP_LOST, "X4", Mode.LOCKOUT, never, "another controller leads this site; this one stepped down"),
        (
            f.NODE_OBEYS_OTHER,
            "X4",
            degraded,
            when,
            "a node obeys a higher epoch than ours; nothing of it is counted on",
        ),
        (f.NODE_TWINS, "-", degraded, when, "two agents take turns under one node name"),
        (f.ORIGINALS_CORRUPT, "X6", normal, operator, "saved GPU settings were damaged; device defaults stand in"),
        (f.NODE_LOST, "X7", degraded, when, "a node agent is silent; its node counts at nameplate"),
        (f.NODES_ALL_LOST, "X7", hold, when, "no node agent answers: load cannot be moved"),
        (f.NODE_LATE, "-", normal, when, "a node's reports come late; its peers tell what it draws by now"),
        (f.BATTERY_LIMITED, "B1", degraded, when, "the battery is off, faulted or in local control; not planned on"),
        (f.BATTERY_LOST, "B1", degraded, when, "the battery does not report; planned without it"),
        (f.BATTERY_LOCKED_OUT, "M6", degraded, operator, "the battery refused every order for ten periods; locked out"),
        (
            f.BATTERY_MISREAD,
            "S4",
            degraded,
            when,
            "the battery obeys, but its readings are old, stand still or are missing",
        ),
        (f.BATTERY_NOT_FOLLOWING, "B2", degraded, when, "the battery does not follow; it is let go of"),
        (f.BATTERY_LATE, "B2", degraded, when, "the battery acts late on its orders: unfit to follow load"),
        (f.LOAD_BANK_LIMITED, "B1", degraded, when, "the load bank is off, faulted, hot or in local control; no floor"),
        (f.LOAD_BANK_LOST, "B1", degraded, when, "the load bank does not report; its floor counts for nothing"),
        (
            f.LOAD_BANK_LOCKED_OUT,
            "M6",
            degraded,
            operator,
            "the load bank refused every order for ten periods; locked out",
        ),
        (f.LOAD_BANK_NOT_OBEYING, "B2", degraded, when, "the load bank does not draw what it is told; no floor"),
        (
            f.UPS_ON_BATTERY,
            "-",
            degraded,
            when,
            "a UPS carries its load from its battery: that load is not on the grid",
        ),
        (f.UPS_ON_BYPASS, "-", normal, when, "a UPS is on bypass: its load is not protected"),
        (f.UPS_LOW, "-", degraded, when, "a UPS's battery is nearly empty: GPUs behind it come down to fallback"),
        (f.OPERATOR_RELEASE, "-", Mode.RELEASE, when, "an operator asked to give all settings back"),
        (f.OPERATOR_FALLBACK, "-", fallback, when, "an operator asked for fallback"),
        (f.OPERATOR_LOCKOUT, "-", Mode.LOCKOUT, operator, "an operator locked the controller out"),
    )
    return {flag: Reaction(row, mode, clear, words) for flag, row, mode, clear, words in rows}


TABLE: dict[Flag, Reaction] = _rows()
# What a flag proves wrong ends with it, without its dwell: a battery that obeys was never a disobedient one.
REFUTES: dict[Flag, Flag] = {Flag.BATTERY_MISREAD: Flag.BATTERY_NOT_FOLLOWING}
# Rows of the catalogue that need no flag, and why.
UNFLAGGED: dict[str, str] = {
    "G9": "GPUs are bound by UUID alone; an index is never asked",
    "P4": "the solver lives in this process: its crash is the controller's death (X1)",
    "X3": "the kernel ends this process at MemoryMax: the controller's death (X1)",
}


@frozen
class Reason:
    """One flag that counts now. `is_set` is False while only its clear condition keeps it."""

    flag: Flag
    mode: Mode
    since_s: float
    is_set: bool
    words: str
    clears: str


@dataclass(frozen=True, slots=True)
class ModeState:
    """The mode and every flag that counts, the gravest first."""

    mode: Mode
    since_s: float
    reasons: tuple[Reason, ...]
    flags: frozenset[Flag] = field(init=False)  # asked for again and again in a cycle

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", frozenset(reason.flag for reason in self.reasons))

    @property
    def may_raise(self) -> bool:
        """True where the mode itself does not forbid raising a cap or cutting battery discharge."""
        return self.mode <= Mode.DEGRADED


@frozen
class _Latch:
    since_s: float
    seen_s: float


class ModeMachine:
    """Remembers flags until their clear condition is met.

    `holds_by_device`: the battery follows load by itself, so a held target is safe. Where we close the loop a held
    set-point would pass the raw ripple on, so HOLD goes on to FALLBACK.
    """

    def __init__(self, *, period_s: float, holds_by_device: bool) -> None:
        assert period_s > 0
        self._dwell_s = DWELL_CYCLES * period_s
        self._holds_by_device = holds_by_device
        self._latches: dict[Flag, _Latch] = {}
        self._mode: Mode | None = None  # of the last step
        self._counted: dict[Flag, tuple[float, bool]] = {}  # since when, and whether set, as of the last step
        self._told: ModeState | None = None  # made of these

    def step(
        self,
        flags: frozenset[Flag],
        *,
        now_s: float,
        has_new_signal: bool = False,
        is_operator_reset: bool = False,
    ) -> ModeState:
        """The mode at `now_s`, given the flags that are set now and the events since the last step."""
        for flag in flags:
            before = self._latches.get(flag)
            self._latches[flag] = _Latch(before.since_s if before else now_s, now_s)
        refuted = {REFUTES[flag] for flag in flags & REFUTES.keys()}
        for flag, latch in list(self._latches.items()):
            if flag in flags:
                continue
            if flag in refuted or self._is_clear(
                flag, latch, now_s=now_s, has_new_signal=has_new_signal, is_operator_reset=is_operator_reset
            ):
                del self._latches[flag]
        return self._state(flags, now_s)

    def _is_clear(
        self, flag: Flag, latch: _Latch, *, now_s: float, has_new_signal: bool, is_operator_reset: bool
    ) -> bool:
        clear = TABLE[flag].clear
        if clear is Clear.WHEN_CLEAR:
            return is_operator_reset or now_s - latch.seen_s >= self._dwell_s
        if clear is Clear.ON_NEW_SIGNAL:
            return is_operator_reset or has_new_signal
        return clear is Clear.ON_OPERATOR and is_operator_reset

    def _state(self, flags: frozenset[Flag], now_s: float) -> ModeState:
        """The last one while nothing began, ended or ceased to be set; it tells of nothing else."""
        counted = {flag: (latch.since_s, flag in flags) for flag, latch in self._latches.items()}
        if self._told is None or counted != self._counted:
            self._counted, self._told = counted, self._made(counted, now_s)
        return self._told

    def _made(self, counted: Mapping[Flag, tuple[float, bool]], now_s: float) -> ModeState:
        reasons = [
            Reason(
                flag=flag,
                mode=self._escalated(TABLE[flag].mode),
                since_s=since_s,
                is_set=is_set,
                words=TABLE[flag].words,
                clears=TABLE[flag].clear.value,
            )
            for flag, (since_s, is_set) in counted.items()
        ]
        reasons.sort(key=lambda reason: (-reason.mode, reason.since_s, reason.flag))
        mode = reasons[0].mode if reasons else Mode.NORMAL
        if mode is not self._mode:
            self._mode, self._mode_since_s = mode, now_s
        return ModeState(mode=mode, since_s=self._mode_since_s, reasons=tuple(reasons))

    def _escalated(self, mode: Mode) -> Mode:
        return Mode.FALLBACK if mode is Mode.HOLD and not self._holds_by_device else mode
