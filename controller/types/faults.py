"""Names of what meters, nodes and devices can be found to have, by who finds it, and the modes that faults lead to.

The one place of these names: the mode table (`controller.modes`) takes them from here beside those it adds.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum, unique

from controller.types.records import frozen


@unique
class Mode(IntEnum):
    """Ordered: the higher wins."""

    NORMAL = 0
    DEGRADED = 1
    SHED = 2
    HOLD = 3
    RELEASE = 4
    FALLBACK = 5
    LOCKOUT = 6


@unique
class MeterFlag(StrEnum):
    """What can be wrong with a meter; the values are the mode table's names."""

    METER_STUCK = "meter_stuck"
    METER_STALE = "meter_stale"
    METER_MISSING = "meter_missing"
    METER_SPIKE = "meter_spike"
    METER_UNIT_WRONG = "meter_unit_wrong"
    METER_SIGN_SUSPECT = "meter_sign_suspect"
    METER_SIGN_WRONG = "meter_sign_wrong"
    METER_DRIFT = "meter_drift"
    METERS_DISAGREE = "meters_disagree"
    METER_SLOW = "meter_slow"
    METER_LATE = "meter_late"
    METER_REFRESH = "meter_refresh"
    COUNTER_RESET = "counter_reset"


@unique
class NodeFault(StrEnum):
    """What is wrong with a node's GPUs, files or name, in its report; the values are the mode table's names."""

    GPU_HUNG = "gpu_hung"
    GPU_LOST = "gpu_lost"
    GPU_PERMISSION = "gpu_permission"
    GPU_IGNORES_CAPS = "gpu_ignores_caps"
    GPU_THROTTLED = "gpu_throttled"
    FOREIGN_WRITER = "foreign_writer"
    FOREIGN_WRITER_WON = "foreign_writer_won"  # most of its GPUs are left to another tool
    CAP_CLAMPED = "cap_clamped"
    ORIGINALS_CORRUPT = "originals_corrupt"
    NODE_TWINS = "node_twins"  # found by the site's end of the wire: two agents take turns under one name


@unique
class SiteFault(StrEnum):
    """What the shell found wrong with devices and files of its own; the values are the mode table's names."""

    DEVICE_TIMEOUT = "device_timeout"
    DEVICE_GARBAGE = "device_garbage"
    DEVICE_PARTIAL_WRITE = "device_partial_write"
    DEVICE_BUSY = "device_busy"
    DEVICE_REFUSES = "device_refuses"
    DEVICE_CHANGED = "device_changed"
    DEVICE_WRONG = "device_wrong"
    DISK_FULL = "disk_full"
    FILE_REFUSED = "file_refused"


@frozen
class Trouble:
    """One fault and the device or part that has it."""

    fault: SiteFault
    subject: str
