"""Registers of a simulated load bank, as `configs/devices/rampart-load-bank.yaml` describes them.

The layout is written down here a second time, by hand, so that driver and device cannot agree on a mistake. A write
must cover whole controls; under local control every write is refused. Power, limits, heat and the reversion timer are
the plant's.
"""

from __future__ import annotations

import struct
from typing import Protocol

from controller.types import LoadBankState
from hil.modbus_image import RegisterImage, encoder
from hil.modbus_server import ExceptionCode, RegisterFault

STATES = {LoadBankState.OFF: 0, LoadBankState.STANDBY: 1, LoadBankState.RUNNING: 2, LoadBankState.FAULT: 3}
CONTROLS = {100: ">f", 102: ">f", 104: ">H", 105: ">f", 107: ">H"}  # ramp, expiry ramp, expiry, set-point, enable
RAMP, EXPIRY_RAMP, EXPIRY, SETPOINT, ENABLE = CONTROLS
COUNT = 108
J_PER_WH = 3_600.0


class LoadBankModel(Protocol):
    """A load bank as its PLC drives it."""

    @property
    def power_w(self) -> float: ...
    @property
    def power_w_limit(self) -> float: ...
    @property
    def setpoint_w(self) -> float: ...
    @property
    def reversion_s_left(self) -> float | None: ...
    @property
    def state(self) -> LoadBankState: ...
    @property
    def is_remote(self) -> bool: ...
    @property
    def energy_j_left(self) -> float | None: ...
    @property
    def uptime_s(self) -> float: ...

    def order(self, setpoint_w: float, *, ramp_w_per_s: float, expiry_w_per_s: float, expiry_s: float) -> None:
        """Hold `setpoint_w` for `expiry_s`, then go to 0 W at `expiry_w_per_s`."""


class LoadBankDevice(RegisterImage):
    """A RegisterMap that drives `bank`. An order is carried out when `enable` is written as 1."""

    def __init__(self, bank: LoadBankModel) -> None:
        super().__init__(0, COUNT)
        self._bank = bank
        self._told: dict[int, float] = dict.fromkeys(CONTROLS, 0.0)
        whole = encoder("uint16")
        for address, live in ((0, lambda: bank.power_w), (2, lambda: bank.power_w_limit), (4, lambda: bank.setpoint_w)):
            self.bind(address, 2, live, encoder("float32"))
        self.bind(6, 1, self._seconds_left, whole)
        self.bind(7, 1, lambda: STATES[bank.state], whole)
        self.bind(8, 1, lambda: int(bank.is_remote), whole)
        self.bind(9, 2, self._energy_wh, encoder("uint32"))
        self.bind(11, 1, lambda: None, encoder("int16"))  # no thermometer
        self.bind(12, 1, lambda: int(bank.uptime_s) % 65536, whole)

    def write_registers(self, address: int, data: bytes) -> None:
        told, at = dict(self._told), address
        while at < address + len(data) // 2:
            form = CONTROLS.get(at)
            words = 0 if form is None else struct.calcsize(form) // 2
            chunk = data[2 * (at - address) : 2 * (at - address + words)]
            if form is None or len(chunk) < 2 * words:
                raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
            told[at] = float(struct.unpack(form, chunk)[0])
            at += words
        if not self._bank.is_remote:
            raise RegisterFault(ExceptionCode.DEVICE_FAILURE)
        self._told = told
        self.put(address, data)
        if address <= ENABLE < at and told[ENABLE] == 1:
            self._bank.order(
                told[SETPOINT], ramp_w_per_s=told[RAMP], expiry_w_per_s=told[EXPIRY_RAMP], expiry_s=told[EXPIRY]
            )

    def _seconds_left(self) -> float:
        left_s = self._bank.reversion_s_left
        return 0.0 if left_s is None else max(1.0, left_s)  # whole seconds: it runs until it has run out

    def _energy_wh(self) -> float | None:
        left_j = self._bank.energy_j_left
        return None if left_j is None else left_j / J_PER_WH
