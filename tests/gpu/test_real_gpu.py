"""The read-only lane on a real NVIDIA GPU: the driver reads it, nothing is written, and what it saw is recorded.

`make test-gpu` runs it and leaves `out/gpu/seen.json`. No setter is called anywhere in this file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pynvml
import pytest

from controller.clock import MonotonicClock
from controller.types import Quality
from drivers.nvml_survey import survey
from tests.conftest import NO_GPU, ROOT
from tests.nvml_kit import library

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason=NO_GPU),
]
ANY_DRIVER = r"^\d+\."
SEEN = ROOT / "out" / "gpu" / "seen.json"


def keep(part: str, seen: Any) -> None:
    """Add a part to the record of this machine."""
    SEEN.parent.mkdir(parents=True, exist_ok=True)
    whole = json.loads(SEEN.read_text()) if SEEN.is_file() else {}
    SEEN.write_text(json.dumps(whole | {part: seen}, indent=1) + "\n")


async def test_every_gpu_reads_plausibly_for_three_seconds() -> None:
    nvml = library(MonotonicClock(), driver_versions=ANY_DRIVER)
    gpus = await nvml.open()
    samples: dict[str, list[dict[str, Any]]] = {g.spec.gpu_id: [] for g in gpus}
    for _ in range(30):
        for gpu in gpus:
            reading = await gpu.read()
            assert reading.quality is Quality.GOOD
            samples[gpu.spec.gpu_id].append(dataclasses.asdict(reading.value) | {"t_s": reading.t_mono_s})
        await asyncio.sleep(0.1)
    await nvml.close()
    keep("driver", nvml.driver_version)
    keep("specs", [dataclasses.asdict(g.spec) for g in gpus])
    keep("samples", samples)
    for gpu in gpus:
        spec, seen = gpu.spec, samples[gpu.spec.gpu_id]
        assert spec.power_limit_w_min < spec.power_limit_w_default <= spec.power_limit_w_max
        assert len(spec.clocks_mhz) > 10 and spec.clock_mhz_min < spec.clock_mhz_max
        assert all(1.0 < s["power_w"] <= 1.6 * spec.power_limit_w_max for s in seen)
        assert all(spec.power_limit_w_min <= s["power_limit_w"] <= spec.power_limit_w_max for s in seen)
        energies = [s["energy_j"] for s in seen if s["energy_j"] is not None]
        assert energies == sorted(energies)
        if energies:
            counted_w = (energies[-1] - energies[0]) / (seen[-1]["t_s"] - seen[0]["t_s"])
            reported_w = sum(s["power_w"] for s in seen) / len(seen)
            assert counted_w == pytest.approx(reported_w, rel=0.25, abs=25.0)


def test_survey_and_raw_field_answers_are_recorded() -> None:
    found = survey(driver_versions=ANY_DRIVER, tries_write=False)
    keep("survey", dataclasses.asdict(found))
    assert found.gpus and all(g.facts for g in found.gpus)
    pynvml.nvmlInit()
    try:
        ids = [82, 83, *range(185, 193), 74, 269, 270, 271, 251, 258]
        answers = pynvml.nvmlDeviceGetFieldValues(pynvml.nvmlDeviceGetHandleByIndex(0), ids)
        keep("fields", {str(a.fieldId): [a.nvmlReturn, a.valueType, a.value.ullVal] for a in answers})
        assert any(a.nvmlReturn == pynvml.NVML_SUCCESS for a in answers)
    finally:
        pynvml.nvmlShutdown()
