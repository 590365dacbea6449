"""What only some GPUs have, against the fake library: events, workload profiles, MIG, modules."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pynvml
import pytest
from typer.testing import CliRunner, Result

from controller.cli.main import app
from controller.errors import BadInput
from controller.types import GpuCap, GpuId, SmoothingProfile
from drivers import errors
from drivers.nvml import NvmlGpu
from drivers.nvml_calls import GpuCalls
from drivers.nvml_events import gpu_events
from drivers.nvml_smoothing import PowerSmoothing
from drivers.nvml_survey import survey
from drivers.nvml_workload import WorkloadProfiles
from hil import bench_gpus
from tests.conftest import ROOT
from tests.modbus_kit import until
from tests.nvml_kit import FakeNode, fake_node, library

pytestmark = pytest.mark.wire


async def opened(node: FakeNode, **options: str) -> list[NvmlGpu]:
    gpus = {g.spec.gpu_id: g for g in await library(node.clock, **options).open()}
    return [gpus[GpuId(u)] for u in node.gpus.uuids()]


# ------------------------------------------------------------------------------------------------------------ events


async def test_an_xid_is_told_with_its_gpu_though_the_gpu_is_gone(tmp_path: Path) -> None:
    """Xid 79 is the last word of a GPU that fell off the bus: its name can no longer be asked for."""
    with fake_node(tmp_path, count=3) as node:
        await opened(node)
        ids = [GpuId(u) for u in node.gpus.uuids()]
        events = gpu_events(ids)
        first = asyncio.ensure_future(anext(events))
        await until(lambda: node.gpus.call_count("nvmlDeviceRegisterEvents", 2) == 2)
        node.gpus.lose(1)
        node.gpus.raise_event(1, data=79)
        event = await first
        assert (event.gpu_id, event.kind, event.code) == (ids[1], "xid", 79) and "fallen off the bus" in event.text
        node.gpus.raise_event(2, data=0, kind=pynvml.nvmlEventMigConfigChange)
        node.gpus.raise_event(2, data=9999)
        told = [await anext(events), await anext(events)]
        assert [(e.gpu_id, e.code, e.text) for e in told] == [
            (ids[2], None, "MIG configuration changed"),
            (ids[2], 9999, "Xid 9999"),
        ]
        await events.aclose()  # type: ignore[attr-defined]


async def test_a_gpu_that_hangs_keeps_nobody_from_hearing_why(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        gpus = await opened(node)
        events = gpu_events([g.spec.gpu_id for g in gpus])
        first = asyncio.ensure_future(anext(events))
        await until(lambda: node.gpus.call_count("nvmlDeviceRegisterEvents", 1) == 2)
        node.gpus.hang("nvmlDeviceGetFieldValues", 600.0, gpu=0)
        stuck = asyncio.ensure_future(gpus[0].read())
        await asyncio.sleep(0)
        node.gpus.raise_event(0, data=119)
        assert (await asyncio.wait_for(first, 10.0)).code == 119
        assert not stuck.done()
        node.gpus.hang("nvmlDeviceGetFieldValues", 0.0)
        await stuck
        await events.aclose()  # type: ignore[attr-defined]


async def test_gpus_without_events_say_so(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        await opened(node)
        node.gpus.fail("nvmlDeviceRegisterEvents", pynvml.NVML_ERROR_NOT_SUPPORTED)
        with pytest.raises(errors.NotSupported, match="no GPU of this node"):
            await anext(gpu_events([GpuId(u) for u in node.gpus.uuids()]))


# ------------------------------------------------------------------------------------------------- workload profiles


async def test_workload_profiles_are_asked_for_and_what_is_in_force_is_read(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        profiles = WorkloadProfiles((await opened(node))[0])
        offered = {p.name: p for p in await profiles.profiles()}
        assert "llm_training" in offered and offered["max_p"].conflicts >= {"max_q"}
        state = await profiles.request(["max_q", "max_p", "llm_training"])
        assert state.requested == {"max_q", "max_p", "llm_training"}
        assert state.enforced == {"max_p", "llm_training"}, "of two that exclude each other the GPU keeps one"
        assert (await profiles.request(["memory_bound"])).requested == {"memory_bound"}, (
            "asked for is replaced, not added"
        )
        writes = node.gpus.call_count("nvmlDeviceSetWorkloadPowerProfiles", 0)
        await profiles.request(["memory_bound"])
        assert node.gpus.call_count("nvmlDeviceSetWorkloadPowerProfiles", 0) == writes, "only changes are written"
        assert (await profiles.request([])).enforced == frozenset()
        with pytest.raises(errors.InvalidValue, match="'turbo': this GPU offers balanced"):
            await profiles.request(["turbo"])


async def test_a_driver_without_the_newer_call_is_driven_by_the_older_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The symbol is missing from the library, as in drivers before R580."""
    with fake_node(tmp_path, "b200") as node:
        gpu = (await opened(node))[0]

        def missing(*arguments: object) -> None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

        monkeypatch.setattr(pynvml, "nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1", missing)
        profiles = WorkloadProfiles(gpu)
        await profiles.request(["max_q", "training"])
        assert (await profiles.request(["training", "hpc"])).requested == {"training", "hpc"}


async def test_workload_profiles_that_do_not_take_or_do_not_exist_are_errors(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        profiles = WorkloadProfiles((await opened(node))[0])
        node.gpus.set_privileged(False)
        with pytest.raises(errors.PermissionDenied):
            await profiles.request(["max_q"])
    with fake_node(tmp_path, "h100") as node, pytest.raises(errors.NotSupported):
        await WorkloadProfiles((await opened(node))[0]).read()


# ------------------------------------------------------------------------------------------------------ MIG, module


async def test_a_gpu_in_mig_mode_is_driven_whole(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        node.gpus.set_mig(0)
        node.run(2.0)
        gpu = (await opened(node))[0]
        assert gpu.identity.is_mig
        await gpu.write(GpuCap(gpu.spec.gpu_id, 990, 500.0))
        node.run(1.5)
        seen = (await gpu.read()).value
        assert seen.clock_mhz == 990.0 and seen.power_w < 400.0
        found = survey(driver_versions=".*", tries_write=False)
        notes = {g.uuid: " ".join(g.notes) for g in found.gpus}
        assert found.is_good and "MIG is on" in notes[gpu.spec.gpu_id] and "MIG" not in notes[node.gpus.uuids()[1]]


async def test_power_is_the_gpus_where_a_module_has_more(tmp_path: Path) -> None:
    with fake_node(tmp_path) as node:
        node.gpus.set_module(0, 180.0)
        node.run(2.0)
        gpus = await opened(node)
        assert (await gpus[0].read()).value.instant_w == pytest.approx(688.0, abs=2)
        assert gpus[0].calls.module_power_w() == pytest.approx(868.0, abs=2)
        assert gpus[1].calls.module_power_w() is None
        notes = " ".join(survey(driver_versions=".*", tries_write=False).gpus[0].notes)
        assert "the module draws 868 W" in notes


# --------------------------------------------------------------------------------------------- old drivers, threads


async def test_a_driver_older_than_field_values_is_read_by_the_older_calls(tmp_path: Path) -> None:
    with fake_node(tmp_path, "v100") as node:
        node.gpus.fail("nvmlDeviceGetFieldValues", pynvml.NVML_ERROR_NOT_SUPPORTED)
        gpu = (await opened(node))[0]
        node.run(1.0)
        seen = (await gpu.read()).value
        assert seen.instant_w == pytest.approx(277.0, abs=2) and seen.energy_j is None
        assert (seen.power_limit_w, seen.requested_limit_w) == (300.0, 300.0)
        assert gpu.calls.module_power_w() is None


def test_one_thread_serves_all_events(tmp_path: Path) -> None:
    """However many GPUs: waiting for events costs one thread, and it ends soon after nobody listens."""

    async def listen() -> int:
        with fake_node(tmp_path, count=8) as node:
            GpuCalls(node.gpus.uuids()[0])
            await opened(node)
            before = threading.active_count()
            events = gpu_events([GpuId(u) for u in node.gpus.uuids()])
            first = asyncio.ensure_future(anext(events))
            await until(lambda: node.gpus.call_count("nvmlDeviceRegisterEvents", 7) == 2)
            more = threading.active_count() - before
            node.gpus.raise_event(0, data=13)
            await first
            await events.aclose()  # type: ignore[attr-defined]
            return more

    assert asyncio.run(listen()) == 1


def test_the_doctor_names_what_a_blackwell_gpu_has(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        node.gpus.gpus["smoothing_is_enabled"][0] = 1
        node.gpus.gpus["workload_profiles"][0, 0] = 1 << pynvml.NVML_POWER_PROFILE_LLM_TRAINING
        node.run(0.5)
        found = survey(driver_versions=".*", tries_write=False)
        facts, notes = found.gpus[0].facts, " ".join(found.gpus[0].notes)
        assert facts["smoothing_floor_frac"] == 0.5 and facts["workload_enforced"] == "llm_training"
        assert "power smoothing is on" in notes and "100% of its circuit's life" in notes
        assert "workload profiles llm_training were asked for, llm_training in force" in notes
        assert found.can["use workload power profiles"] == "2 of 2 GPUs have them"
        assert found.can["hear of GPU errors (Xid) at once"] == "yes, 2 of 2 GPUs"
        json.dumps(facts)


def test_the_cost_of_reading_is_measured_beside_the_bare_calls() -> None:
    cost = bench_gpus.run(gpus=2, hz=20.0, seconds=1.0)
    assert cost.gpus == 2 and cost.achieved_hz > 5.0
    assert cost.cpu_frac > cost.bare_cpu_frac > 0.0 and cost.bare_read_ms > 0.8, "three calls of 0.3 ms each"
    assert {"gpus", "gpu_cpu_frac", "gpu_bare_cpu_frac"} <= cost.as_dict().keys()


# ----------------------------------------------------------------------------------------------------------- commands


def node_command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["node", *arguments])


def test_a_person_sets_smoothing_and_workload_profiles_on_every_gpu(tmp_path: Path) -> None:
    config = ("-c", str(ROOT / "configs" / "node.example.yaml"))
    with fake_node(tmp_path, "b200") as node:
        done = node_command("smoothing", *config, "--floor", "0.6", "--up", "2500", "--down", "400", "--json")
        assert done.exit_code == 0, done.output
        states = json.loads(done.stdout)
        assert list(states) == sorted(node.gpus.uuids())
        for state in states.values():
            assert state["is_enabled"] and state["profile"]["down_w_per_s"] == 400.0
        assert node.gpus.smoothing()[0].tolist() == [600.0, 600.0]
        off = node_command("smoothing", *config, "--off", "--gpu", node.gpus.uuids()[0])
        assert off.exit_code == 0 and "off, preset 4: floor 60%" in off.stdout and len(off.stdout.splitlines()) == 1
        assert node.gpus.smoothing()[0].tolist() == [0.0, 600.0]
        asked = node_command("workload", *config, "--ask", "max_q", "--ask", "max_p")
        assert asked.exit_code == 0 and "asked for max_p, max_q; in force max_p;" in asked.stdout
        cleared = node_command("workload", *config, "--clear")
        assert "asked for none; in force none" in cleared.stdout


def test_without_a_file_that_accepts_the_driver_nothing_is_written(tmp_path: Path) -> None:
    """Showing needs no file; writing to a simulated driver does."""
    with fake_node(tmp_path, "b200") as node:
        assert node_command("smoothing").exit_code == 0
        refused = node_command("smoothing", "--off")
        assert refused.exit_code == 1 and "does not match driver_versions" in refused.stdout
        assert node_command("workload", "--ask", "max_q").exit_code == 1
        setters = ("nvmlDeviceSetPowerSmoothing", "nvmlDeviceSetWorkloadPowerProfiles")
        assert [node.gpus.call_count(setter, 0) for setter in setters] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smoothing", "--floor", "0.5"], "go together"),
        (["smoothing", "--floor", "0.5", "--up", "1", "--down", "1", "--off"], "not with --off"),
        (["workload", "--ask", "max_q", "--clear"], "exclude each other"),
        (["workload", "--gpu", "GPU-0"], "--gpu: 'GPU-0': this node has GPU-"),
        (["smoothing"], "no GPU of this node has power smoothing"),
    ],
)
def test_what_a_person_cannot_have_is_bad_input(tmp_path: Path, arguments: list[str], says: str) -> None:
    with fake_node(tmp_path, "b200" if arguments != ["smoothing"] else "h100"):
        result = node_command(*arguments)
    assert isinstance(result.exception, BadInput) and says in str(result.exception)


async def test_smoothing_out_of_range_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with fake_node(tmp_path, "b200") as node:
        circuit = PowerSmoothing((await opened(node))[0])
        good = SmoothingProfile(0.5, 1000.0, 1000.0, 0.5)
        for index, bad in (
            (5, good),
            (0, replace(good, floor_frac=0.91)),
            (0, replace(good, down_w_per_s=0.0)),
            (0, replace(good, up_w_per_s=float("inf"))),
        ):
            with pytest.raises(errors.InvalidValue):
                await circuit.write(index, bad)
        assert node.gpus.call_count("nvmlDeviceSetPowerSmoothing", 0) == 0
