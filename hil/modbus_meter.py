"""A SunSpec power meter (models 1 and 213) in front of a plant's meter."""

from __future__ import annotations

import math

from hil.modbus_image import ModelSpec, SunSpecImage
from hil.modbus_server import MeterModel


def common_model(*, manufacturer: str, model: str, serial: str, version: str) -> ModelSpec:
    """SunSpec model 1: who made this."""
    fixed: dict[str, float | int | str] = {
        "Mn": manufacturer,
        "Md": model,
        "Opt": "",
        "Vr": version,
        "SN": serial,
        "DA": 1,
    }
    return ModelSpec(model_id=1, fixed=fixed, live={})


def sunspec_meter(
    meter: MeterModel, *, nominal_voltage_v: float, nominal_frequency_hz: float = 60.0, base: int = 40000
) -> SunSpecImage:
    """Registers of a three-phase meter; `nominal_voltage_v` is line to neutral, as `PhV` reports it."""

    def voltage_v() -> float | None:
        return None if meter.voltage_pu is None else meter.voltage_pu * nominal_voltage_v

    def line_voltage_v() -> float | None:
        phase = voltage_v()
        return None if phase is None else phase * math.sqrt(3.0)

    def total_current_a() -> float | None:
        phase = voltage_v()
        return abs(meter.power_w) / phase if phase else None

    def phase_current_a() -> float | None:
        total = total_current_a()
        return None if total is None else total / 3.0

    live = {
        "A": total_current_a,
        "W": lambda: meter.power_w,
        "VA": lambda: abs(meter.power_w),
        "VAR": lambda: 0.0,
        "PF": lambda: 1.0,
        "Hz": lambda: nominal_frequency_hz if meter.frequency_hz is None else meter.frequency_hz,
        "PhV": voltage_v,
        "PPV": line_voltage_v,
        "TotWhImp": lambda: meter.import_wh,
        "TotWhExp": lambda: meter.export_wh,
    }
    for phase in ("A", "B", "C"):
        live[f"Aph{phase}"] = phase_current_a
        live[f"Wph{phase}"] = lambda: meter.power_w / 3.0
        live[f"PhVph{phase}"] = voltage_v
    for pair in ("AB", "BC", "CA"):
        live[f"PPVph{pair}"] = line_voltage_v
    identity = common_model(manufacturer="Rampart", model="PCC meter", serial="SIM-METER-1", version="1")
    return SunSpecImage([identity, ModelSpec(model_id=213, fixed={"Evt": 0}, live=live)], base=base)
