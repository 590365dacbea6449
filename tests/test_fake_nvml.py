"""The fake NVML library at the C ABI, seen through the unmodified `nvidia-ml-py`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pynvml
import pytest

from controller.errors import BadInput
from hil.fake_nvml import build
from hil.fake_nvml.state import FakeGpus, layout
from hil.plant.gpu_models import MODELS
from tests.nvml_kit import FakeNode, fake_node

pytestmark = pytest.mark.wire

CLIENT = """
import pynvml as n
n.nvmlInit()
print(n.nvmlSystemGetDriverVersion(), n.nvmlDeviceGetCount())
h = n.nvmlDeviceGetHandleByIndex(1)
print(n.nvmlDeviceGetName(h), n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetPciInfo(h).busId)
memory = n.nvmlDeviceGetSupportedMemoryClocks(h)[0]
clocks = n.nvmlDeviceGetSupportedGraphicsClocks(h, memory)
print(memory, len(clocks), clocks[0], clocks[-1])
print([p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(h)], n.nvmlDeviceGetGraphicsRunningProcesses(h))
n.nvmlDeviceSetPowerManagementLimit(h, 450_000)
n.nvmlDeviceSetGpuLockedClocks(h, 210, 1203)
print(n.nvmlDeviceGetEnforcedPowerLimit(h), n.nvmlDeviceGetMigMode(h), n.nvmlDeviceGetMemoryInfo(h).total)
n.nvmlShutdown()
"""


def test_a_separate_program_needs_nothing_but_the_environment(tmp_path: Path) -> None:
    with FakeGpus.create(tmp_path / "state", ["h100", "h100"]) as gpus:
        gpus.set_process(4321)
        env = os.environ | build.environment(tmp_path / "state")
        done = subprocess.run([sys.executable, "-c", CLIENT], env=env, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "0.0-hil 2",
            f"NVIDIA H100 80GB HBM3 {gpus.uuids()[1]} 00000000:11:00.0",
            "2619 110 1980 345",
            "[4321] []",
            f"450000 [0, 0] {80 << 30}",
        ]
        low, high = gpus.clock_lock_mhz()
        assert high[1] == 1200.0 and low[1] == 345.0, "rounded down to a clock the GPU has"
        assert np.isnan(high[0])
        assert gpus.power_limit_w().tolist() == [700.0, 450.0]
        clock_count, limit_count = gpus.write_counts()
        assert clock_count.tolist() == [0, 1] and limit_count.tolist() == [0, 1]
        clock_s, limit_s = gpus.write_times_s()
        assert clock_s[1] > limit_s[1] > 0.0 == clock_s[0]


def handle(index: int = 0) -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def test_field_values_answer_one_by_one(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        node.run(2.0)
        ids = [185, 186, 187, 188, 189, 190, 191, 192, 83, 74, 269, 270, 271, 82, 258, (186, 1), 9999]
        answers = pynvml.nvmlDeviceGetFieldValues(handle(), ids)
        assert [a.nvmlReturn for a in answers] == [0] * 15 + [3, 3]
        watts = {a.fieldId: a.value.uiVal / 1000 for a in answers[:8]}
        assert watts[185] == pytest.approx(984, abs=3) and watts[186] == pytest.approx(984, abs=3)
        assert [watts[i] for i in (187, 188, 189, 190)] == [200, 1000, 1000, 1000]
        assert answers[6].value.ullVal / 1e3 == pytest.approx(node.link.bank.energy_j[0], abs=0.01)


def test_models_differ_as_real_ones_do(tmp_path: Path) -> None:
    with fake_node(tmp_path, "v100") as node:
        node.run(0.5)
        answers = pynvml.nvmlDeviceGetFieldValues(handle(), [185, 186, 190])
        assert [a.nvmlReturn for a in answers] == [3, 0, 0], "a mean is kept from Ampere on, the present power by all"
        assert pynvml.nvmlDeviceGetPowerUsage(handle()) == answers[1].value.uiVal == pytest.approx(277e3, rel=0.01)
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceGetMigMode(handle())


def test_the_mean_is_a_second_long_on_h100_and_instantaneous_on_a100(tmp_path: Path) -> None:
    for model, is_mean in (("h100", True), ("a100", False)):
        with fake_node(tmp_path, model) as node:
            node.run(0.4)
            mean, instant = pynvml.nvmlDeviceGetFieldValues(handle(), [185, 186])
            assert (mean.nvmlReturn, instant.nvmlReturn) == (0 if is_mean else 3, 0), model
            usage = pynvml.nvmlDeviceGetPowerUsage(handle())
            assert usage == (mean if is_mean else instant).value.uiVal
            assert (usage < 0.7 * instant.value.uiVal) == is_mean, model


def test_limits_outside_the_range_and_wrong_versions_are_refused(tmp_path: Path) -> None:
    with fake_node(tmp_path):
        h = handle()
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceSetPowerManagementLimit(h, 100_000)
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceSetGpuLockedClocks(h, 1500, 900)
        with pytest.raises(pynvml.NVMLError):
            pynvml.nvmlDeviceGetMemoryInfo(h, version=0x03000028)
        pynvml.nvmlDeviceSetPowerManagementLimit_v2(h, pynvml.NVML_POWER_SCOPE_GPU, 100_000)
        assert pynvml.nvmlDeviceGetPowerManagementLimit(h) == 700_000, "v2 in the wheel hides the refusal"


def test_symbolic_clock_limits(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        h, base = handle(), float(MODELS["h100"].base_clock_mhz)
        tdp, free = pynvml.NVML_CLOCK_LIMIT_ID_TDP, pynvml.NVML_CLOCK_LIMIT_ID_UNLIMITED
        for pair, lock in (((free, tdp), (345.0, base)), ((tdp, free), (base, 1980.0)), ((tdp, tdp), (base, base))):
            pynvml.nvmlDeviceSetGpuLockedClocks(h, *pair)
            assert tuple(edge[0] for edge in node.gpus.clock_lock_mhz()) == lock
        for mixed in ((210, tdp), (tdp, 1980), (pynvml.NVML_CLOCK_LIMIT_ID_RANGE_START, tdp)):
            with pytest.raises(pynvml.NVMLError_InvalidArgument):
                pynvml.nvmlDeviceSetGpuLockedClocks(h, *mixed)
        pynvml.nvmlDeviceSetGpuLockedClocks(h, free, free)
        assert np.isnan(node.gpus.clock_lock_mhz()[1][0]), "unlimited at both ends is no lock"


def test_caps_written_by_a_client_move_the_plant(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        node.run(0.5)
        pynvml.nvmlDeviceSetGpuLockedClocks(handle(1), 210, 990)
        node.run(1.0)
        assert node.link.bank.clock_mhz.tolist() == [1980.0, 990.0]
        assert pynvml.nvmlDeviceGetClockInfo(handle(1), pynvml.NVML_CLOCK_SM) == 990
        assert pynvml.nvmlDeviceGetPowerUsage(handle(1)) < 0.6 * pynvml.nvmlDeviceGetPowerUsage(handle(0))


# ---------------------------------------------------------------------------------------------------------- faults


def test_permission_errors_loss_and_ignored_writes(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        h = handle()
        node.run(0.5)
        node.gpus.set_privileged(False)
        with pytest.raises(pynvml.NVMLError_NoPermission):
            pynvml.nvmlDeviceSetGpuLockedClocks(h, 210, 900)
        assert pynvml.nvmlDeviceGetPowerUsage(h) > 0, "reading needs no right"
        node.gpus.set_privileged(True)
        node.gpus.ignore_writes(0, clocks=True, limit=True)
        pynvml.nvmlDeviceSetPowerManagementLimit(h, 400_000)
        assert pynvml.nvmlDeviceGetPowerManagementLimit(h) == 700_000
        node.gpus.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_UNKNOWN, times=2, gpu=0)
        for _ in range(2):
            with pytest.raises(pynvml.NVMLError_Unknown):
                pynvml.nvmlDeviceGetPowerUsage(h)
        assert pynvml.nvmlDeviceGetPowerUsage(h) > 0
        assert node.gpus.call_count("nvmlDeviceGetPowerUsage", 0) == 4
        node.gpus.lose(0)
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            pynvml.nvmlDeviceGetName(h)
        node.gpus.lose(0, is_lost=False)
        assert pynvml.nvmlDeviceGetName(h) == "NVIDIA H100 80GB HBM3"


def test_removal_shifts_indices_but_not_uuids(tmp_path: Path) -> None:
    with fake_node(tmp_path, count=3) as node:
        pynvml.nvmlInit()
        uuids = node.gpus.uuids()
        node.gpus.remove(0)
        assert pynvml.nvmlDeviceGetCount() == 2
        assert [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in (0, 1)] == list(uuids[1:])
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID(uuids[0].encode())
        node.gpus.remove(0, is_absent=False)
        assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(2)) == uuids[0]


def test_a_hang_lasts_until_released_and_blocks_no_other_gpu(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        first, second = handle(0), handle(1)
        node.gpus.hang("nvmlDeviceGetPowerUsage", 600.0, gpu=0)
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(pynvml.nvmlDeviceGetPowerUsage(first)))
        thread.start()
        assert pynvml.nvmlDeviceGetPowerUsage(second) >= 0
        assert thread.is_alive() and not results
        node.gpus.hang("nvmlDeviceGetPowerUsage", 0.0, gpu=0)
        thread.join(timeout=30.0)
        assert len(results) == 1


def test_events_reach_a_waiting_program(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        h = handle()
        events = pynvml.nvmlEventSetCreate()
        pynvml.nvmlDeviceRegisterEvents(h, pynvml.nvmlEventTypeXidCriticalError, events)
        with pytest.raises(pynvml.NVMLError_Timeout):
            pynvml.nvmlEventSetWait_v2(events, 1)
        node.gpus.raise_event(0, data=79)
        event = pynvml.nvmlEventSetWait_v2(events, 1000)
        assert (event.eventType, event.eventData) == (pynvml.nvmlEventTypeXidCriticalError, 79)
        for xid in range(40):
            node.gpus.raise_event(0, data=xid)
        node.gpus.raise_event(0, data=0, kind=pynvml.nvmlEventMigConfigChange)
        seen = [int(pynvml.nvmlEventSetWait_v2(events, 1000).eventData) for _ in range(15)]
        assert seen == list(range(25, 40)), "in order; what the ring could not hold is lost, the newest never"
        with pytest.raises(pynvml.NVMLError_Timeout):
            pynvml.nvmlEventSetWait_v2(events, 1)
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceRegisterEvents(h, pynvml.nvmlEventTypeAll, events)
        pynvml.nvmlEventSetFree(events)


def test_structures_of_another_version_are_refused(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b300"):
        for kind, call in (
            (pynvml.c_nvmlPowerSmoothingState_v1_t, pynvml.nvmlDevicePowerSmoothingSetState),
            (pynvml.c_nvmlPowerSmoothingProfile_v1_t, pynvml.nvmlDevicePowerSmoothingActivatePresetProfile),
            (
                pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t,
                pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles,
            ),
            (
                pynvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t,
                pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles,
            ),
        ):
            good = kind()
            call(handle(), pynvml.byref(good))
            good.version = good.version + (1 << 24)
            with pytest.raises(pynvml.NVMLError_ArgumentVersionMismatch):
                call(handle(), pynvml.byref(good))


def test_power_smoothing_is_set_in_watts_and_read_in_milliwatts(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b300") as node:
        h = handle()
        for param, value in ((0, 60.0), (1, 2500.0), (2, 800.0)):
            profile = pynvml.c_nvmlPowerSmoothingProfile_v1_t()
            profile.profileId, profile.paramId, profile.value = 1, param, value
            pynvml.nvmlDevicePowerSmoothingUpdatePresetProfileParam(h, pynvml.byref(profile))
        profile.profileId = 1
        pynvml.nvmlDevicePowerSmoothingActivatePresetProfile(h, pynvml.byref(profile))
        state = pynvml.c_nvmlPowerSmoothingState_v1_t()
        state.state = 1
        pynvml.nvmlDevicePowerSmoothingSetState(h, pynvml.byref(state))
        answers = pynvml.nvmlDeviceGetFieldValues(h, [251, 264, (260, 1), (261, 1), (262, 1)])
        assert [a.value.ullVal for a in answers] == [1, 1, 60, 2_500_000, 800_000]
        floor_w, up, down, hold_s = node.gpus.smoothing()
        assert (floor_w[0], up[0], down[0], hold_s[1]) == (660.0, 2500.0, 800.0, 0.0)
        assert (floor_w[1], up[1]) == (0.0, np.inf)


# ----------------------------------------------------------------------------------------------- state, build, CLI


# Called by gpustat 1.1.1, nvitop 1.7.2 and zeus 0.16.0 on simulated V100, H100 and B200 (`make tools` runs them).
CALLED_BY_TOOLS = """
Architecture C2cModeInfoV ComputeMode ComputeRunningProcesses_v3 ConfComputeMemSizeInfo Count_v2 DecoderUtilization
DisplayActive DriverModel_v2 EncoderUtilization EnforcedPowerLimit FanSpeed FieldValues GraphicsRunningProcesses_v3
HandleByIndex_v2 Index MemoryInfo_v2 MigMode Name PciInfo_v3 PerformanceState PersistenceMode
PowerManagementDefaultLimit PowerManagementLimit PowerManagementLimitConstraints PowerUsage ProcessUtilization
SupportedGraphicsClocks SupportedMemoryClocks Temperature TemperatureV TotalEccErrors TotalEnergyConsumption UUID
UtilizationRates
"""
CALLED_BESIDE = (
    "nvmlInitWithFlags nvmlShutdown nvmlSystemGetCudaDriverVersion nvmlSystemGetDriverVersion"
    " nvmlDeviceIsMigDeviceHandle nvmlDeviceResetGpuLockedClocks nvmlDeviceSetGpuLockedClocks"
    " nvmlDeviceSetPowerManagementLimit"
)


def test_every_function_that_common_tools_call_is_there() -> None:
    library = ctypes.CDLL(str(build.library_dir() / build.LIBRARY_NAME))
    names = [f"nvmlDeviceGet{name}" for name in CALLED_BY_TOOLS.split()] + CALLED_BESIDE.split()
    assert len(names) == 43 and [name for name in names if not hasattr(library, name)] == []


def test_the_library_refuses_a_state_it_does_not_understand(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        node.gpus.header["layout_version"] = 99
        with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
            pynvml.nvmlInit()
        (tmp_path / "junk").write_bytes(b"x" * 100)
        with pytest.raises(BadInput, match="not a state file"):
            FakeGpus.open(tmp_path / "junk")
        with pytest.raises(BadInput, match="1 to 64 GPUs"):
            FakeGpus.create(tmp_path / "many", ["h100"] * 65)


def test_python_and_c_agree_on_every_byte() -> None:
    shape = layout()
    offsets = [offset for _, offset, *_ in (shape.gpu.fields or {}).values()]
    assert len(offsets) > 60 and all(offset % 8 == 0 for offset in offsets), "C packs 8-byte fields without padding"
    assert len(shape.functions) == len(set(shape.functions)) <= shape.gpu["error_code"].shape[0]


def test_without_a_compiler_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BadInput, match="no C compiler found"):
        build.library_dir()


def test_the_cache_is_keyed_and_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = build.library_dir()
    stamp = (first / build.LIBRARY_NAME).stat().st_mtime_ns
    assert build.library_dir() == first and (first / build.LIBRARY_NAME).stat().st_mtime_ns == stamp
    assert [p.name for p in first.parent.iterdir()] == [first.name], "no scratch folder is left"


def rampart(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controller.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_hil_gpus_runs_a_program_and_passes_its_status_on() -> None:
    script = "import pynvml, sys; pynvml.nvmlInit(); sys.exit(40 + pynvml.nvmlDeviceGetCount())"
    assert (
        rampart("hil", "gpus", "--count", "3", "--model", "a100", "--", sys.executable, "-c", script).returncode == 43
    )
    bad = rampart("hil", "gpus", "--model", "h900", "--", "true")
    assert bad.returncode == 2 and "h900" in bad.stderr and len(bad.stderr.splitlines()) == 1


def test_the_seed_gives_the_same_uuids(tmp_path: Path) -> None:
    made = [FakeGpus.create(tmp_path / str(k), ["h100"] * 2, seed=s).uuids() for k, s in enumerate((5, 5, 6))]
    assert made[0] == made[1] != made[2]


def test_steps_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def powers() -> list[int]:
        node: FakeNode
        with fake_node(tmp_path) as node:
            node.run(1.0, activity=0.7)
            return [int(w) for w in node.gpus.gpus["power_mean_milliwatt"]]

    assert powers() == powers()
