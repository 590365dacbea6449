"""A read-only UPS with the register layout of a Vertiv Liebert APM (IS-UNITY card) in front of a plant's UPS.

Addresses are the card's Modicon numbers less 30001 (input registers) and 10001 (discrete inputs).
"""

from __future__ import annotations

from collections.abc import Sequence

from hil.modbus_image import RegisterImage, encoder
from hil.modbus_server import ExceptionCode, RegisterFault, UpsModel

FIRST, LAST = 30385, 30449
SOURCE_NORMAL, SOURCE_BYPASS, SOURCE_BATTERY = 3, 4, 5
ON_BATTERY_INPUT, ON_BYPASS_INPUT = 10052 - 10001, 10053 - 10001


class LiebertUpsDevice(RegisterImage):
    """Function 4 for values, function 2 for alarms; powers in kW and kVA, so one register counts to 65 MW."""

    def __init__(self, ups: UpsModel) -> None:
        super().__init__(FIRST - 30001, LAST - FIRST + 1, functions=(4,))
        self._ups = ups
        whole, tenths = encoder("uint16"), encoder("uint16", scale=0.1)
        for number in (30385, 30386, 30387, 30419, 30420, 30421):
            self.bind(number - 30001, 1, lambda: ups.voltage_v, whole)
        for number in (30391, 30425):
            self.bind(number - 30001, 1, lambda: ups.input_frequency_hz, tenths)
        for number in (30432, 30433, 30434):
            self.bind(number - 30001, 1, lambda: 100.0 * ups.load_frac, whole)
        self.bind(30408 - 30001, 1, lambda: ups.minutes_left, whole)
        self.bind(30415 - 30001, 1, lambda: 2, whole)
        self.bind(30437 - 30001, 1, lambda: ups.output_va / 1e3, whole)
        self.bind(30438 - 30001, 1, lambda: ups.output_w / 1e3, whole)
        self.bind(30445 - 30001, 1, lambda: 0 if ups.is_on_bypass else 1, whole)
        self.bind(30447 - 30001, 1, self._source, whole)

    def read_bits(self, function: int, address: int, count: int) -> Sequence[bool]:
        if function != 2:
            raise RegisterFault(ExceptionCode.ILLEGAL_FUNCTION)
        if address < ON_BATTERY_INPUT or address + count > ON_BYPASS_INPUT + 1:
            raise RegisterFault(ExceptionCode.ILLEGAL_ADDRESS)
        return (self._ups.is_on_battery, self._ups.is_on_bypass)[address - ON_BATTERY_INPUT :][:count]

    def _source(self) -> int:
        if self._ups.is_on_battery:
            return SOURCE_BATTERY
        return SOURCE_BYPASS if self._ups.is_on_bypass else SOURCE_NORMAL
