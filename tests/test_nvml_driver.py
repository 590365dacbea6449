"""The NVML driver against the fake library: readings, caps, and every way a GPU lets one down."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pynvml
import pytest

from controller.ports import DriverError, GpuNode
from controller.types import GpuCap, GpuId, Quality, SmoothingProfile
from drivers import errors
from drivers.nvml import LIMIT_AFTER_CLOCK_S, NvmlGpu
from drivers.nvml_calls import _KINDS, as_driver_error
from drivers.nvml_smoothing import PowerSmoothing
from tests.nvml_kit import FakeNode, fake_node, library
from tests.test_deadline import once_free

pytestmark = pytest.mark.wire
ROOT = Path(__file__).resolve().parent.parent


async def opened(
    node: FakeNode, *, driver_versions: str = r"^0\.0-hil$", call_deadline_s: float = 5.0
) -> list[NvmlGpu]:
    """The node's GPUs in the order of the plant."""
    gpus = await library(node.clock, driver_versions=driver_versions, call_deadline_s=call_deadline_s).open()
    by_id = {g.spec.gpu_id: g for g in gpus}
    assert list(by_id) == sorted(by_id), "sorted by UUID"
    return [by_id[GpuId(u)] for u in node.gpus.uuids()]


async def test_it_is_the_port_the_agent_expects(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu: GpuNode = (await opened(node))[0]
        assert gpu.spec.clock_mhz_max == 1980 and gpu.spec.power_limit_w_min == 200.0
        node.run(3.0)
        reading = await gpu.read()
        seen = reading.value
        assert reading.quality is Quality.GOOD and reading.t_mono_s == node.clock.now_s()
        assert seen.power_w == pytest.approx(688.0, abs=2) and seen.instant_w == pytest.approx(688.0, abs=2)
        assert (seen.clock_mhz, seen.clock_cap_mhz) == (1980.0, None)
        assert (seen.power_limit_w, seen.requested_limit_w) == (700.0, 700.0)
        assert seen.temperature_c is not None and seen.energy_j == pytest.approx(node.link.bank.energy_j[0], abs=0.01)


async def test_a_limit_that_something_below_enforces_is_told_beside_the_one_asked_for(tmp_path: Path) -> None:
    """A module's or a thermal cap: the limit in force counts, and nobody passes for a foreign writer."""
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.gpus.override_limit(0, 400.0)
        seen = (await gpu.read()).value
        assert (seen.power_limit_w, seen.requested_limit_w) == (400.0, 700.0)
        node.gpus.override_limit(0, None)
        assert (await gpu.read()).value.power_limit_w == 700.0


async def test_one_field_call_per_read(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        for _ in range(4):
            await gpu.read()
        assert node.gpus.call_count("nvmlDeviceGetFieldValues", 0) == 4
        assert node.gpus.call_count("nvmlDeviceGetPowerUsage", 0) == 0
        assert node.gpus.call_count("nvmlDeviceGetTemperature", 0) == 1


@pytest.mark.parametrize("model", ["a100", "v100"])
async def test_where_the_gpu_has_no_mean_the_energy_counter_gives_one(tmp_path: Path, model: str) -> None:
    """Instantaneous readings of a load that alternates every 0.5 s scatter; the mean over a second does not."""
    with fake_node(tmp_path, model) as node:
        gpu = (await opened(node))[0]
        instants, means = [], []
        for k in range(60):
            node.run(0.1, activity=1.0 if (k // 5) % 2 else 0.2)
            seen = (await gpu.read()).value
            if k > 20:
                instants.append(seen.instant_w)
                means.append(seen.power_w)
        bank = node.link.bank
        truth_w = sum(bank.demand_w(bank.clock_mhz, np.full(2, a))[0] for a in (1.0, 0.2)) / 2
        assert max(instants) - min(instants) > 0.5 * truth_w
        assert means == pytest.approx([truth_w] * len(means), rel=0.05)


async def test_a_cap_is_applied_read_back_and_given_back(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[1]
        node.gpus.foreign_write(1, limit_w=650.0)
        saved = await gpu.originals()
        assert (saved.power_limit_w, saved.power_limit_w_default, saved.locked_clock_mhz) == (650.0, 700.0, None)
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 500.0))
        node.run(1.0)
        seen = (await gpu.read()).value
        assert (seen.clock_cap_mhz, seen.power_limit_w, seen.clock_mhz) == (1200.0, 500.0, 1200.0)
        await gpu.restore(saved)
        node.run(1.0)
        seen = (await gpu.read()).value
        assert (seen.clock_cap_mhz, seen.power_limit_w) == (None, 650.0)
        assert 1800.0 < seen.clock_mhz < 1980.0, "free but for the limit that was there before us"
        assert node.gpus.power_limit_w().tolist() == [700.0, 650.0], "the other GPU was never touched"


async def test_a_limit_that_comes_down_waits_for_its_clock(tmp_path: Path) -> None:
    """Written on power the clock has not brought down yet, a limit makes the GPU cut below it; upwards none waits."""
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        began_s = node.clock.now_s()
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 500.0))
        assert node.clock.now_s() - began_s == pytest.approx(LIMIT_AFTER_CLOCK_S)
        began_s = node.clock.now_s()
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 450.0))
        assert node.clock.now_s() == began_s, "the clock took hold long ago"
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1300, 600.0))
        assert node.clock.now_s() == began_s


async def test_only_changes_are_written(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        for _ in range(3):
            await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 500.0))
        clock_count, limit_count = node.gpus.write_counts()
        assert (clock_count[0], limit_count[0]) == (1, 1)
        await gpu.write(GpuCap(gpu.spec.gpu_id, None, None))
        assert node.gpus.power_limit_w()[0] == 700.0, "a limit no longer wanted goes back to what it was"


async def test_another_tool_is_noticed_and_overwritten(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 500.0))
        node.gpus.foreign_write(0, limit_w=690.0)
        node.run(1.0)
        seen = (await gpu.read()).value
        assert seen.requested_limit_w == 690.0 and gpu.foreign_write_count == 1
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 500.0))
        assert node.gpus.power_limit_w()[0] == 500.0


async def test_a_lock_that_does_not_hold_is_no_longer_claimed(tmp_path: Path) -> None:
    """The setter answers success and the clock stays high: the cap reads None, so the agent applies it again."""
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.gpus.ignore_writes(0, clocks=True, limit=False)
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        node.run(0.1)
        assert (await gpu.read()).value.clock_cap_mhz == 1200.0, "too early to judge"
        node.run(1.0)
        assert (await gpu.read()).value.clock_cap_mhz is None
        node.gpus.ignore_writes(0, clocks=False, limit=False)
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        node.run(1.0)
        seen = (await gpu.read()).value
        assert (seen.clock_cap_mhz, seen.clock_mhz) == (1200.0, 1200.0)


async def test_a_limit_that_is_accepted_and_not_applied_is_an_error(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.gpus.ignore_writes(0, clocks=False, limit=True)
        with pytest.raises(errors.NotApplied, match=r"power limit 500 W: requested reads 700"):
            await gpu.write(GpuCap(gpu.spec.gpu_id, None, 500.0))


async def test_values_out_of_range_never_reach_the_gpu(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        for cap in (GpuCap(gpu.spec.gpu_id, 100, None), GpuCap(gpu.spec.gpu_id, None, 900.0)):
            with pytest.raises(errors.InvalidValue, match="allowed"):
                await gpu.write(cap)
        assert node.gpus.call_count("nvmlDeviceSetGpuLockedClocks", 0) == 0
        assert node.gpus.call_count("nvmlDeviceSetPowerManagementLimit", 0) == 0


async def test_without_permission_reading_goes_on(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.gpus.set_privileged(False)
        with pytest.raises(errors.PermissionDenied, match="CAP_SYS_ADMIN"):
            await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        assert (await gpu.read()).value.clock_cap_mhz is None


async def test_a_driver_that_is_not_accepted_is_only_read(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node, driver_versions=r"^(?!0\.)\d+\."))[0]
        await gpu.read()
        with pytest.raises(errors.WrongDevice, match=r"driver 0.0-hil does not match"):
            await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        assert node.gpus.write_counts()[0].tolist() == [0, 0]


async def test_a_hung_gpu_blocks_nobody(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        hung, healthy = await opened(node, call_deadline_s=0.05)
        node.gpus.hang("nvmlDeviceGetFieldValues", 600.0, gpu=0)
        with pytest.raises(errors.DeviceTimeout):
            await hung.read()
        with pytest.raises(errors.DeviceBusy):
            await hung.read()
        assert (await healthy.read()).quality is not Quality.MISSING
        node.gpus.hang("nvmlDeviceGetFieldValues", 0.0, gpu=0)
        assert (await once_free(hung.read)).value.power_limit_w == 700.0


STUCK = """
import asyncio
from controller.clock import MonotonicClock
from drivers.errors import DeviceTimeout
from hil.fake_nvml.state import FakeGpus
from tests.nvml_kit import library
import os

async def main():
    gpus = await library(MonotonicClock(), call_deadline_s=0.1).open()
    FakeGpus.open(os.environ["RAMPART_FAKE_NVML_STATE"]).hang("nvmlDeviceGetFieldValues", 3600.0)
    try:
        await gpus[0].read()
    except DeviceTimeout:
        print("left")

asyncio.run(main())
"""


def test_a_process_can_end_while_a_call_hangs() -> None:
    """A wedged driver must not keep a stopping agent alive: SIGKILL would be next, and can wedge the GPU for good."""
    command = [sys.executable, "-m", "controller.cli.main", "hil", "gpus", "--count", "1", "--"]
    done = subprocess.run([*command, sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("left\n", 0), done.stderr


async def test_a_lost_gpu_is_gone_and_its_caps_are_forgotten_when_it_returns(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        node.gpus.lose(0)
        with pytest.raises(errors.DeviceGone):
            await gpu.read()
        node.gpus.reset(0)
        node.gpus.lose(0, is_lost=False)
        assert (await gpu.read()).value.clock_cap_mhz is None
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        assert node.gpus.clock_lock_mhz()[1][0] == 1200.0, "written again, though it is what we wrote before"


async def test_a_reset_shows_in_the_energy_counter(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.run(1.0, activity=0.0)
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, None))
        assert (await gpu.read()).value.clock_cap_mhz == 1200.0
        node.gpus.reset(0)
        node.link.bank.energy_j[:] = 0.0
        node.run(0.1, activity=0.0)
        assert (await gpu.read()).value.clock_cap_mhz is None


async def test_caps_stay_with_their_gpu_when_indices_move(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        node.gpus.reorder([1, 0])
        await gpu.write(GpuCap(gpu.spec.gpu_id, None, 400.0))
        assert node.gpus.power_limit_w().tolist() == [400.0, 700.0]


@pytest.mark.parametrize(("model", "worst"), [("h100", 0.6), ("a100", 0.5)])
async def test_a_sensor_that_contradicts_its_energy_counter_is_suspect(
    tmp_path: Path, model: str, worst: float
) -> None:
    """With a mean of its own and, where only single samples are to be had, with a wider tolerance too."""
    with fake_node(tmp_path, model) as node:
        gpu = (await opened(node))[0]
        for gain, expected in ((1.0, Quality.GOOD), (worst, Quality.SUSPECT)):
            node.link.sensors._gain = gain
            for _ in range(120):
                node.run(0.1)
                reading = await gpu.read()
            assert reading.quality is expected, gain


async def test_a_sensor_that_reads_nothing_is_suspect(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        assert (await gpu.read()).quality is Quality.SUSPECT, "no GPU draws 0 W"
        node.run(1.5)
        assert (await gpu.read()).quality is Quality.GOOD


async def test_one_bad_gpu_does_not_keep_the_others_from_opening(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        node.gpus.lose(0)
        nvml = library(node.clock)
        assert len(await nvml.open()) == 1
        assert isinstance(nvml.failed[0], errors.DeviceGone)
        node.gpus.lose(0, is_lost=False)
        assert len(await nvml.open()) == 2 and not nvml.failed
        await nvml.close()


async def test_gpus_that_appear_later_are_opened_and_a_driver_that_lost_its_state_is_initialised(
    tmp_path: Path,
) -> None:
    with fake_node(tmp_path, count=3) as node:
        node.gpus.remove(0)
        node.gpus.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_UNKNOWN, gpu=1)
        nvml = library(node.clock)
        first = await nvml.open()
        assert [g.spec.gpu_id for g in first] == [node.gpus.uuids()[2]]
        known = frozenset(g.spec.gpu_id for g in first)
        assert await nvml.open_more(known) == [] and isinstance(nvml.failed[0], errors.DeviceFault)
        node.gpus.fail("nvmlDeviceGetName", 0, gpu=1)
        node.gpus.remove(0, is_absent=False)
        assert {g.spec.gpu_id for g in await nvml.open_more(known)} == set(node.gpus.uuids()[:2])
        assert not nvml.failed
        pynvml.nvmlShutdown()
        with pytest.raises(errors.DriverUnavailable):
            await first[0].read()
        node.gpus.set_init_error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        with pytest.raises(errors.DriverUnavailable, match="not loaded"):
            await nvml.open_more(known)
        node.gpus.set_init_error(0)
        await nvml.open_more(known)
        assert (await first[0].read()).value.power_limit_w == 700.0
        await nvml.close()


async def test_a_driver_that_does_not_start_can_be_tried_again(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        nvml = library(node.clock)
        node.gpus.set_init_error(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
        with pytest.raises(errors.DriverUnavailable, match="upgraded under the loaded module"):
            await nvml.open()
        node.gpus.set_init_error(0)
        assert len(await nvml.open()) == 2
        await nvml.close()


async def test_restore_puts_a_limit_of_another_gpu_back_to_the_default(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpu = (await opened(node))[0]
        saved = dataclasses.replace(await gpu.originals(), power_limit_w=5000.0, requested_limit_w=5000.0)
        await gpu.write(GpuCap(gpu.spec.gpu_id, 1200, 300.0))
        await gpu.restore(saved)
        assert node.gpus.power_limit_w()[0] == 700.0


async def test_power_smoothing_is_set_and_read_in_the_same_units(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        smoothing = PowerSmoothing((await opened(node))[0])
        profile = SmoothingProfile(floor_frac=0.6, up_w_per_s=2500.0, down_w_per_s=400.0, hysteresis_s=0.5)
        state = await smoothing.write(2, profile)
        assert state.is_enabled and state.active_profile == 2 and state.profile == profile
        assert (state.floor_frac_max, state.lifetime_frac) == (0.9, 1.0)
        node.run(2.0)
        node.run(3.0, activity=0.1)
        assert node.link.bank.power_w[0] == pytest.approx(600.0), "the GPU holds its floor while the job communicates"
        assert node.link.bank.power_w[1] < 300.0
        await smoothing.disable()
        assert not (await smoothing.read()).is_enabled
        with pytest.raises(errors.InvalidValue):
            await smoothing.write(0, dataclasses.replace(profile, floor_frac=0.95))


async def test_gpus_without_smoothing_say_so(tmp_path: Path) -> None:
    with fake_node(tmp_path, "h100") as node, pytest.raises(errors.NotSupported, match="no power smoothing"):
        await PowerSmoothing((await opened(node))[0]).read()


def test_every_nvml_code_has_its_kind() -> None:
    """A new release of the bindings that adds a code fails here, so that someone decides what it means."""
    codes = {v: k for k, v in vars(pynvml).items() if k.startswith("NVML_ERROR_") and isinstance(v, int)}
    assert {n for c, n in codes.items() if c not in _KINDS} == set()
    for code in (*codes, 123456):
        error = as_driver_error("gpu", "read", code)
        assert isinstance(error, DriverError) and type(error) is not DriverError and error.device == "gpu"
        assert hash(error) is not None, "unlike NVMLError, ours can be put in a set"


# ------------------------------------------------------------------------------------------------------------ doctor


def doctor(*arguments: str, model: str = "h100") -> subprocess.CompletedProcess[str]:
    rampart = [sys.executable, "-m", "controller.cli.main"]
    inside = [*rampart, "node", "doctor", *arguments]
    command = [*rampart, "hil", "gpus", "--count", "2", "--model", model, "--", *inside]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_doctor_says_what_could_be_done_here() -> None:
    good = doctor("-c", "configs/node.example.yaml", "--try-write", "--json")
    assert good.returncode == 0, good.stderr
    found = json.loads(good.stdout)
    assert found["is_good"] and found["can"]["lock clocks and set power limits"] == "yes, proven on 2 of 2 GPUs"
    refused = doctor()
    assert refused.returncode == 1 and "does not match driver_versions" in refused.stdout


def test_doctor_without_a_driver_is_one_line_and_status_2() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a real NVIDIA driver")
    command = [sys.executable, "-m", "controller.cli.main", "node", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "libnvidia-ml.so.1" in done.stderr and len(done.stderr.splitlines()) == 1
