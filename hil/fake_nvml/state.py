"""The plant's side of the memory it shares with the fake NVML library.

The layout is parsed from `src/state.h` and `src/functions.h`, so C and Python cannot disagree. Every field is eight
bytes and read or written whole; arrays over GPUs are strided views of the map, cheap enough for 100 Hz.
"""

from __future__ import annotations

import mmap
import re
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.errors import BadInput
from controller.types import FloatArray, IntArray, frozen
from hil.fake_nvml.build import SOURCE_DIR
from hil.plant.gpu_models import GpuModel, model

NVML_DRIVER_VERSION = "0.0-hil"
CUDA_VERSION = 13010
MILLI = 1000.0
NS_PER_S = 1_000_000_000
FOREVER = (1 << 64) - 1
XID_EVENT = 0x8
EVENT_RING = 16  # as in state.h
TYPES = {"u64": "<u8", "i64": "<i8", "f64": "<f8"}

# How long calls take on real GPUs: getters some tenths of a millisecond; a clock lock about 10 ms (our assumption).
GETTER_LATENCY_S = 0.0003
CLOCK_CALL_S = 0.010

# Preset 0 of power smoothing as it leaves the factory (our assumption): % floor, W/s up, W/s down, hysteresis in ms.
SMOOTHING_PRESET = (50.0, 1000.0, 1000.0, 500.0, 0.0, 0.0, 0.0, 0.0)


@frozen
class Layout:
    """What the C headers say."""

    header: np.dtype[Any]
    gpu: np.dtype[Any]
    functions: tuple[str, ...]
    magic: int
    version: int
    gpu_max: int


@cache
def layout() -> Layout:
    """Parse the headers."""
    text = (SOURCE_DIR / "state.h").read_text(encoding="utf-8")
    functions = (SOURCE_DIR / "functions.h").read_text(encoding="utf-8")

    def constant(name: str) -> int:
        found = re.search(rf"#define {name} (0x[0-9a-f]+|\d+)", text)
        assert found is not None, name
        return int(found[1], 0)

    def record(name: str) -> np.dtype[Any]:
        body = re.search(rf"#define {name}\(X\)(.*?[^\\])\n\n", text, re.DOTALL)
        assert body is not None, name
        fields: list[Any] = []
        for kind, field, count in re.findall(r"X\((\w+), (\w+), (\d+)\)", body[1]):
            n = int(count)
            fields.append((field, f"S{n}") if kind == "char" else (field, TYPES[kind], (n,) if n > 1 else ()))
        return np.dtype(fields)

    return Layout(
        header=record("HEADER_FIELDS"),
        gpu=record("GPU_FIELDS"),
        functions=tuple(re.findall(r"X\((nvml\w+)\)", functions)),
        magic=constant("STATE_MAGIC"),
        version=constant("LAYOUT_VERSION"),
        gpu_max=constant("GPU_MAX"),
    )


class FakeGpus:
    """The GPUs of one simulated node as every program on it sees them; all arrays have shape (n,).

    Create or open a state file, hand its path to child processes (`build.environment`), close it when done. Faults are
    set here; what clients asked for is read here. `gpus` is the raw record array.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        shape = layout()
        self._memory: mmap.mmap | None = memory
        self.header: NDArray[Any] = np.frombuffer(memory, dtype=shape.header, count=1)
        count = int(self.header["gpu_count"][0])
        self.gpus: NDArray[Any] = np.frombuffer(memory, dtype=shape.gpu, count=count, offset=shape.header.itemsize)
        self._module_w = np.zeros(count)  # what the module draws beside its GPU

    @classmethod
    def create(cls, path: Path | str, models: Sequence[GpuModel | str], *, seed: int = 0) -> FakeGpus:
        """A new state file at `path` with one GPU per entry of `models`, at factory settings. Same seed, same UUIDs."""
        shape = layout()
        known = [model(m) if isinstance(m, str) else m for m in models]
        if not 1 <= len(known) <= shape.gpu_max:
            raise BadInput(f"count: {len(known)}: a simulated node has 1 to {shape.gpu_max} GPUs")
        path = Path(path)
        size = shape.header.itemsize + len(known) * shape.gpu.itemsize
        header = np.zeros(1, dtype=shape.header)
        header["magic"], header["layout_version"] = shape.magic, shape.version
        header["gpu_count"], header["header_size"], header["gpu_size"] = (
            len(known),
            shape.header.itemsize,
            shape.gpu.itemsize,
        )
        header["driver_version"] = NVML_DRIVER_VERSION.encode()
        header["cuda_version"], header["is_privileged"], header["is_serialised"] = CUDA_VERSION, 1, 1
        scratch = path.with_name(path.name + ".new")
        try:
            scratch.write_bytes(header.tobytes() + bytes(size - shape.header.itemsize))
            scratch.replace(path)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror or error}") from None
        made = cls.open(path)
        rng = np.random.default_rng(seed)
        for index, gpu in enumerate(known):
            made._identify(index, gpu, rng.bytes(16))
            made.set_latency("*", GETTER_LATENCY_S, gpu=index)
            for setter in ("nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"):
                made.set_latency(setter, CLOCK_CALL_S, gpu=index)
            made.set_latency("nvmlDeviceSetPowerManagementLimit", gpu.limit_call_s, gpu=index)
        return made

    @classmethod
    def open(cls, path: Path | str) -> FakeGpus:
        """An existing state file; BadInput when it is not one of this version."""
        path, shape = Path(path), layout()
        try:
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: cannot map the simulated GPUs: {error}") from None
        if memory.size() >= shape.header.itemsize:
            header = np.frombuffer(memory, dtype=shape.header, count=1)
            good = header["magic"][0] == shape.magic and header["layout_version"][0] == shape.version
            if good and header["gpu_size"][0] == shape.gpu.itemsize:
                return cls(path, memory)
        raise BadInput(f"{path}: not a state file of the simulated GPUs of this version")

    def __enter__(self) -> FakeGpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the map. The file stays for whoever still uses it; removing it is its creator's business."""
        self.header = self.gpus = np.zeros(0)
        self._memory = None

    # ----------------------------------------------------------------------------------------- what clients asked for

    @property
    def count(self) -> int:
        return len(self.gpus)

    def uuids(self) -> tuple[str, ...]:
        return tuple(u.decode() for u in self.gpus["uuid"])

    def power_limit_w(self) -> FloatArray:
        """Enforced limits: what clients requested, or the override below it."""
        requested = self.gpus["limit_requested_milliwatt"]
        override = self.gpus["limit_override_milliwatt"]
        enforced: FloatArray = np.where((override > 0) & (override < requested), override, requested) / MILLI
        return enforced

    def clock_lock_mhz(self) -> tuple[FloatArray, FloatArray]:
        """Low and high locked clocks; NaN where not locked. Application clocks bound the high one too."""
        packed = self.gpus["locked_clocks"]
        low = np.where(packed == 0, np.nan, (packed >> np.uint64(32)).astype(np.float64))
        high = np.where(packed == 0, np.nan, (packed & np.uint64(0xFFFFFFFF)).astype(np.float64))
        application = self.gpus["application_clock_mhz"].astype(np.float64)
        bounded = np.fmin(high, np.where(application > 0, application, np.nan))
        return np.fmin(low, bounded), bounded

    def write_counts(self) -> tuple[IntArray, IntArray]:
        """How often clients wrote clock locks and power limits; never falls."""
        return self.gpus["clock_write_count"].astype(np.int64), self.gpus["limit_write_count"].astype(np.int64)

    def write_times_s(self) -> tuple[FloatArray, FloatArray]:
        """Monotonic seconds at which the last clock lock and power limit took effect; 0 for never."""
        return self.gpus["clock_write_ns"] / NS_PER_S, self.gpus["limit_write_ns"] / NS_PER_S

    def smoothing(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Floor in W, slopes up and down in W/s and hold in s of hardware power smoothing; off is 0 and infinity."""
        on = self.gpus["smoothing_is_enabled"] != 0
        rows = self.gpus["smoothing_params"].reshape(self.count, 5, 8)
        active = rows[np.arange(self.count), self.gpus["smoothing_profile"].astype(np.int64)]
        floor_w = np.where(on, active[:, 0] / 100.0 * self.gpus["limit_max_milliwatt"] / MILLI, 0.0)
        up = np.where(on & (active[:, 1] > 0), active[:, 1], np.inf)
        down = np.where(on & (active[:, 2] > 0), active[:, 2], np.inf)
        return floor_w, up, down, np.where(on, active[:, 3] / MILLI, 0.0)

    def call_count(self, function: str, gpu: int) -> int:
        """How often clients called a function on a GPU."""
        return int(self.gpus["call_count"][gpu, self._function(function)])

    # -------------------------------------------------------------------------------------------- what sensors report

    def publish(
        self,
        *,
        t_mono_ns: int,
        instant_w: FloatArray,
        mean_w: FloatArray,
        energy_j: FloatArray,
        clock_mhz: FloatArray,
        util_frac: FloatArray,
        temperature_c: FloatArray,
        event_reasons: IntArray,
        throttle_s: FloatArray,
    ) -> None:
        """Write what NVML shows. A NaN power is shown as 0 W, which is what a dead sensor reports."""
        gpus = self.gpus
        gpus["power_instant_milliwatt"] = np.nan_to_num(instant_w, nan=0.0) * MILLI
        gpus["power_mean_milliwatt"] = np.nan_to_num(mean_w, nan=0.0) * MILLI
        gpus["power_module_milliwatt"] = (np.nan_to_num(instant_w, nan=0.0) + self._module_w) * MILLI
        gpus["energy_millijoule"] = energy_j * MILLI
        gpus["sm_clock_mhz"] = clock_mhz
        gpus["gpu_util_percent"] = np.clip(util_frac, 0.0, 1.0) * 100.0
        gpus["memory_util_percent"] = np.clip(util_frac, 0.0, 1.0) * 40.0
        gpus["temperature_c"] = temperature_c
        gpus["memory_temperature_c"] = temperature_c + 8.0
        gpus["event_reasons"] = event_reasons
        gpus["throttle_power_ns"] = throttle_s * NS_PER_S
        gpus["sample_mono_ns"] = t_mono_ns

    def set_process(self, pid: int, *, memory_frac: float = 0.8) -> None:
        """Show one compute process on every GPU; 0 shows none."""
        used = self.gpus["memory_total"] * memory_frac if pid else np.zeros(self.count)
        self.gpus["process_memory"] = self.gpus["memory_used"] = used
        self.gpus["process_pid"] = pid

    def raise_event(self, gpu: int, *, data: int, kind: int = XID_EVENT) -> None:
        """An event for programs that wait on an event set; by default an Xid with number `data`. Sixteen can wait."""
        place = int(self.gpus["event_count"][gpu]) % EVENT_RING
        self.gpus["event_type"][gpu, place], self.gpus["event_data"][gpu, place] = kind, data
        self.gpus["event_count"][gpu] += 1

    def set_module(self, gpu: int, beside_w: float | None) -> None:
        """Make it part of a module (a CPU with its GPU) that draws `beside_w` more than the GPU; None: a GPU alone."""
        self.gpus["has_module_power"][gpu] = beside_w is not None
        self._module_w[gpu] = beside_w or 0.0

    def set_mig(self, gpu: int, *, is_on: bool = True) -> None:
        """Slice the GPU into instances, or not; power and clocks stay those of the whole GPU."""
        self.gpus["mig_mode"][gpu] = is_on

    # ----------------------------------------------------------------------------------------------------------- faults

    def set_privileged(self, is_privileged: bool) -> None:
        """Whether clients hold the right to change settings (CAP_SYS_ADMIN on a real node)."""
        self.header["is_privileged"] = is_privileged

    def set_init_error(self, code: int) -> None:
        """What the next nvmlInit answers, e.g. 18 for a driver that was upgraded under a running module; 0 clears."""
        self.header["init_error"] = code

    def set_latency(self, function: str, seconds: float, *, gpu: int | None = None) -> None:
        """How long a function takes ("*": every one), on one GPU or on all."""
        self.gpus["latency_ns"][self._rows(gpu), self._columns(function)] = int(seconds * NS_PER_S)

    def hang(self, function: str, seconds: float, *, gpu: int | None = None) -> None:
        """Let every call of a function hang for `seconds`, or until this is set to 0 while it hangs."""
        self.gpus["hang_ns"][self._rows(gpu), self._columns(function)] = int(seconds * NS_PER_S)

    def fail(self, function: str, code: int, *, times: int | None = None, gpu: int | None = None) -> None:
        """Let a function answer `code` the next `times` times, or until cleared with code 0."""
        self.gpus["error_left"][self._rows(gpu), self._columns(function)] = FOREVER if times is None else times
        self.gpus["error_code"][self._rows(gpu), self._columns(function)] = code

    def lose(self, gpu: int, *, is_lost: bool = True) -> None:
        """The GPU falls off the bus (its handles answer GPU_IS_LOST), or comes back."""
        self.gpus["is_lost"][gpu] = is_lost

    def remove(self, gpu: int, *, is_absent: bool = True) -> None:
        """The GPU is no longer enumerated and those behind it move up, or it returns at the end."""
        self.gpus["is_absent"][gpu] = is_absent
        order = sorted(range(self.count), key=lambda g: (bool(self.gpus["is_absent"][g]), int(self.gpus["index"][g])))
        self.reorder(order)

    def reorder(self, order: Sequence[int]) -> None:
        """Renumber: position i of the driver's list is GPU `order[i]`."""
        for position, gpu in enumerate(order):
            self.gpus["index"][gpu] = position

    def deny_setters(self, gpu: int, *, denies: bool = True) -> None:
        self.gpus["denies_setters"][gpu] = denies

    def ignore_writes(self, gpu: int, *, clocks: bool, limit: bool) -> None:
        """Setters answer success and change nothing."""
        self.gpus["ignores_clocks"][gpu], self.gpus["ignores_limit"][gpu] = clocks, limit

    def override_limit(self, gpu: int, limit_w: float | None) -> None:
        """Something below the client (module, thermal) enforces a lower limit than requested; None ends it."""
        self.gpus["limit_override_milliwatt"][gpu] = 0 if limit_w is None else int(limit_w * MILLI)

    def foreign_write(
        self, gpu: int, *, limit_w: float | None = None, clocks_mhz: tuple[int, int] | None = None
    ) -> None:
        """Another tool on the node changes the settings."""
        if limit_w is not None:
            self.gpus["limit_requested_milliwatt"][gpu] = int(limit_w * MILLI)
        if clocks_mhz is not None:
            self.gpus["locked_clocks"][gpu] = clocks_mhz[0] << 32 | clocks_mhz[1]

    def reset(self, gpu: int) -> None:
        """What a GPU reset or driver reload does to settings: all back to the factory's."""
        self.gpus["limit_requested_milliwatt"][gpu] = self.gpus["limit_default_milliwatt"][gpu]
        self.gpus["locked_clocks"][gpu] = self.gpus["application_clock_mhz"][gpu] = 0
        self.gpus["smoothing_is_enabled"][gpu] = 0

    # ---------------------------------------------------------------------------------------------------------- private

    def _identify(self, index: int, gpu: GpuModel, random: bytes) -> None:
        row = self.gpus[index]
        row["name"] = gpu.name.encode()
        row["uuid"] = f"GPU-{uuid.UUID(bytes=random, version=4)}".encode()
        row["pci_bus_id"] = f"00000000:{0x10 + index:02X}:00.0".encode()
        row["serial"] = f"{1_650_000_000_000 + int.from_bytes(random[:4], 'little')}".encode()
        row["index"], row["architecture"] = index, gpu.architecture
        row["compute_major"], row["compute_minor"] = gpu.compute_capability
        row["pci_device_id"], row["core_count"], row["memory_total"] = (
            gpu.pci_device_id,
            gpu.core_count,
            gpu.memory_bytes,
        )
        row["base_clock_mhz"], row["memory_clock_mhz"] = gpu.base_clock_mhz, gpu.memory_clock_mhz
        clocks = gpu.clocks_mhz()[::-1]
        row["clock_count"] = len(clocks)
        row["clocks_mhz"][: len(clocks)] = clocks
        row["limit_min_milliwatt"], row["limit_max_milliwatt"] = gpu.limit_w_min * MILLI, gpu.limit_w_max * MILLI
        row["limit_default_milliwatt"] = row["limit_requested_milliwatt"] = gpu.limit_w_default * MILLI
        row["has_mean_power"] = gpu.has_mean_power
        row["has_mig"], row["has_power_smoothing"] = gpu.has_mig, gpu.has_power_smoothing
        row["smoothing_params"] = np.tile(SMOOTHING_PRESET, 5)
        row["smoothing_lifetime_percent"], row["persistence_mode"] = 100, 1
        row["sm_clock_mhz"], row["temperature_c"] = gpu.clock_mhz_max, 30

    def _function(self, name: str) -> int:
        functions = layout().functions
        assert name in functions, f"{name} has no fault table; known: {', '.join(functions)}"
        return functions.index(name)

    def _columns(self, name: str) -> slice | int:
        return slice(0, len(layout().functions)) if name == "*" else self._function(name)

    def _rows(self, gpu: int | None) -> slice | int:
        return slice(None) if gpu is None else gpu
