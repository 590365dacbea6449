"""Whether the wall clock is synchronised, from the kernel: `adjtimex(2)` in reading mode, without any right.

Every NTP or PTP client that disciplines the system clock keeps the kernel's word about it; when none does, the kernel
lets the largest possible error grow by 500 ppm and gives the clock up at 16 s. Asked at most once a second; never
blocks. A kernel that may not be asked (a container's or a unit's filter of system calls) counts as not synchronised.
"""

from __future__ import annotations

import ctypes
import math
import os

import structlog

from controller.ports import Clock

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised to a reliable server
STA_UNSYNC = 0x0040
PERIOD_S = 1.0

log = structlog.get_logger("rampart")


class Timex(ctypes.Structure):
    """`struct timex` of Linux; its last fields and reserve are read as bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


class KernelSync:
    """Implements `ports.WallSync`."""

    def __init__(self, clock: Clock, *, error_s_max: float, library: ctypes.CDLL | None = None) -> None:
        """`error_s_max`: more than this the wall clock may not be wrong by, as the kernel bounds it."""
        self._clock, self._error_s_max = clock, error_s_max
        self._library = library or ctypes.CDLL(None, use_errno=True)
        self._asked_s = -math.inf
        self._is_synced = False
        self._why: str | None = None

    @property
    def is_synced(self) -> bool:
        now_s = self._clock.now_s()
        if now_s - self._asked_s >= PERIOD_S:
            self._asked_s = now_s
            self._ask()
        return self._is_synced

    def _ask(self) -> None:
        found = Timex()
        state = int(self._library.adjtimex(ctypes.byref(found)))
        error_s = found.maxerror * 1e-6
        why = ""
        if state < 0:
            why = f"the kernel may not be asked: {os.strerror(ctypes.get_errno())}"
        elif state == TIME_ERROR or found.status & STA_UNSYNC:
            why = "no time source disciplines it"
        elif error_s > self._error_s_max:
            why = f"it may be {error_s:.1f} s wrong, more than {self._error_s_max:g} s"
        self._is_synced = not why
        if why != self._why:
            self._why = why
            if why:
                log.warning("wall clock not synchronised", why=why)
            else:
                log.info("wall clock synchronised", error_s=round(error_s, 3))
