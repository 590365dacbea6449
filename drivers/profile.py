"""What a device profile is: one YAML that says where a Modbus device keeps what, and the only registers we may write.

A profile names its quantities by role (`power_w`, `soc_frac`, ...), so that one driver per capability serves every
make. Addresses are those of the wire (from 0). A point lies at fixed registers (`address`), at a SunSpec point
(`sunspec: alias.Point`), or at an offset of a vendor's SunSpec model (`model` and `offset`). Powers come out in W with
the sign of the whole program: grid import positive, battery discharge positive, draw of a load bank positive.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.errors import BadInput

Address = Annotated[int, Field(ge=0, le=0xFFFF)]
RegisterType = Literal[
    "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bit", "enum16", "sunssf"
]
WORDS: dict[str, int] = {
    "int16": 1,
    "uint16": 1,
    "enum16": 1,
    "bitfield16": 1,
    "acc16": 1,
    "sunssf": 1,
    "count": 1,
    "int32": 2,
    "uint32": 2,
    "enum32": 2,
    "bitfield32": 2,
    "acc32": 2,
    "float32": 2,
    "int64": 4,
    "uint64": 4,
    "acc64": 4,
    "float64": 4,
    "bit": 1,
}


@unique
class Kind(StrEnum):
    METER = "meter"
    BATTERY = "battery"
    UPS = "ups"
    LOAD_BANK = "load_bank"


@unique
class WordOrder(StrEnum):
    BIG = "big"  # high word first
    LITTLE = "little"


REQUIRED: dict[Kind, frozenset[str]] = {
    Kind.METER: frozenset({"power_w"}),
    Kind.BATTERY: frozenset({"power_w", "soc_frac"}),
    Kind.UPS: frozenset({"output_w"}),
    Kind.LOAD_BANK: frozenset({"power_w"}),
}
ROLES: dict[Kind, frozenset[str]] = {
    Kind.METER: frozenset({"power_w", "frequency_hz", "voltage_v", "import_wh", "export_wh"}),
    Kind.BATTERY: frozenset(
        {
            "power_w",
            "soc_frac",
            "charge_w_max",
            "discharge_w_max",
            "rating_w",
            "state",
            "is_remote",
            "is_permitted",
            "setpoint_w",
            "setpoint_s_left",
            "target_w",
            "target_s_left",
            "is_following",
            "device_heartbeat",
            "temperature_c",
        }
    ),
    Kind.UPS: frozenset(
        {"output_w", "source", "is_on_battery", "is_on_bypass", "minutes_left", "load_frac", "rating_w"}
    ),
    Kind.LOAD_BANK: frozenset(
        {
            "power_w",
            "power_w_max",
            "rating_w",
            "state",
            "is_remote",
            "setpoint_w",
            "setpoint_s_left",
            "energy_wh_left",
            "device_heartbeat",
            "temperature_c",
        }
    ),
}
MEANINGS: dict[str, frozenset[str]] = {
    "state": frozenset({"off", "standby", "running", "fault"}),
    "is_remote": frozenset({"yes", "no"}),
    "is_permitted": frozenset({"yes", "no"}),
    "is_following": frozenset({"yes", "no"}),
    "source": frozenset({"normal", "bypass", "battery", "none"}),
}


class _Doc(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Place(_Doc):
    """Where a value lies. Several addresses are added up; of several SunSpec points the first that exists is used."""

    address: Address | tuple[Address, ...] | None = None
    function: Literal[1, 2, 3, 4] | None = None
    sunspec: str | tuple[str, ...] | None = None
    model: int | None = None
    offset: int | None = None
    scale_offset: int | None = None
    type: RegisterType | None = None
    scale: float = 1.0
    sign: Literal[1, -1] = 1
    unit: str = ""

    @model_validator(mode="after")
    def _one_place(self) -> Place:
        given = [self.address is not None, self.sunspec is not None, self.model is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of address, sunspec, model")
        if self.sunspec is None and self.type is None:
            raise ValueError("type: required with address or model")
        if self.model is not None and self.offset is None:
            raise ValueError("offset: required with model")
        if self.scale == 0:
            raise ValueError("scale: must not be 0")
        return self

    @property
    def addresses(self) -> tuple[int, ...]:
        if self.address is None:
            return ()
        return self.address if isinstance(self.address, tuple) else (self.address,)

    @property
    def alternatives(self) -> tuple[str, ...]:
        if self.sunspec is None:
            return ()
        return self.sunspec if isinstance(self.sunspec, tuple) else (self.sunspec,)


class Point(Place):
    """A value to read. `not_available` are raw values that mean `no value`; min and max are what is plausible."""

    not_available: tuple[int, ...] = ()
    min: float | None = None
    max: float | None = None
    enum: dict[int, str] = Field(default_factory=dict)
    period_s: Annotated[float, Field(ge=0, le=3600)] = 0.0  # 0: with every read


@unique
class Source(StrEnum):
    """What a control carries."""

    CONSTANT = "constant"
    REFERENCE_W = "reference_w"
    CHARGE_W = "charge_w"  # max(0, -reference)
    DISCHARGE_W = "discharge_w"  # max(0, reference)
    DIRECTION = "direction"  # one of `choices`: charge, discharge, idle
    RAMP_W_PER_S = "ramp_w_per_s"
    RAMP_PERCENT_PER_S = "ramp_percent_per_s"  # of the battery's rating
    EXPIRY_RAMP_W_PER_S = "expiry_ramp_w_per_s"
    TTL_S = "ttl_s"
    HEARTBEAT = "heartbeat"


class Control(Place):
    """A register we may write, what goes into it, and its bounds in the unit of `source`."""

    source: Source
    value: float | None = None
    choices: dict[Literal["charge", "discharge", "idle"], int] = Field(default_factory=dict)
    rounding: Literal["nearest", "up", "down"] = "nearest"
    clamp: bool = False  # True: bounds saturate (a slope); False: a value beyond them is refused
    min: float | None = None
    max: float | None = None
    is_read_back: bool = True

    @model_validator(mode="after")
    def _complete(self) -> Control:
        if (self.source is Source.CONSTANT) != (self.value is not None):
            raise ValueError("value: required with source constant, and only there")
        if (self.source is Source.DIRECTION) != (len(self.choices) == 3):
            raise ValueError("choices: charge, discharge and idle required with source direction, and only there")
        if len(self.addresses) > 1:
            raise ValueError("address: a control has one")
        return self


class Dispatch(_Doc):
    """How commands are written: all of `arm` in order first; later what changed, then all of `renew`.

    `timer` is the point that counts down what is left of a command; `expiry_s` the time after which the device lets go
    by itself where that cannot be set.
    """

    arm: tuple[str, ...]
    renew: tuple[str, ...]
    timer: str | None = None
    expiry_s: Annotated[float, Field(gt=0)] | None = None


class Heartbeat(_Doc):
    """A control that must keep counting."""

    control: str
    period_s: Annotated[float, Field(gt=0)]


class Block(_Doc):
    """One read: `function`, first register and count, and how often (0: with every read)."""

    function: Literal[1, 2, 3, 4]
    start: Address
    count: Annotated[int, Field(ge=1, le=2000)]
    period_s: Annotated[float, Field(ge=0, le=3600)] = 0.0


class SunSpecMap(_Doc):
    """Which models a SunSpec device must have, and may have: alias -> model ids, the first present is used."""

    bases: tuple[Address, ...] = (40000, 0, 50000)
    require: dict[str, tuple[int, ...]]
    optional: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class DeviceProfile(_Doc):
    """One make and model of device."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    kind: Kind
    vendor: str
    model: str
    source: str
    doubts: tuple[str, ...] = ()  # what has not been seen on a device; shown by every tool that uses the profile
    unit_id: Annotated[int, Field(ge=0, le=255)] = 1
    word_order: WordOrder = WordOrder.BIG
    function: Literal[3, 4] = 3
    write_function: Literal[6, 16] = 16
    registers_per_read_max: Annotated[int, Field(ge=1, le=125)] = 125
    sockets_max: Annotated[int, Field(ge=1)] = 1
    request_gap_s: Annotated[float, Field(ge=0, le=1)] = 0.0
    update_s: Annotated[float, Field(gt=0, le=60)]
    latency_s: Annotated[float, Field(ge=0, le=60)]
    sunspec: SunSpecMap | None = None
    blocks: tuple[Block, ...] = ()
    points: dict[str, Point]
    controls: dict[str, Control] = Field(default_factory=dict)
    software: Dispatch | None = None
    device: Dispatch | None = None
    heartbeat: Heartbeat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DeviceProfile:
        missing = sorted(REQUIRED[self.kind] - set(self.points))
        if missing:
            raise ValueError(f"points: a {self.kind} needs {', '.join(missing)}")
        if (self.sunspec is None) != bool(self.blocks):
            raise ValueError("give blocks for a fixed map, sunspec for a discovered one, not both")
        for name, point in self.points.items():
            self._check_point(name, point)
        for name, control in self.controls.items():
            self._check_place(f"controls.{name}", control)
        for block in self.blocks:
            if block.function in (3, 4) and block.count > self.registers_per_read_max:
                raise ValueError(f"blocks: {block.count} registers at {block.start} exceed registers_per_read_max")
        self._check_dispatch()
        return self

    def function_of(self, place: Place) -> int:
        """The read function of a place on a fixed map; SunSpec lives in holding registers."""
        if self.sunspec is not None:
            return 3
        if place.function is not None:
            return place.function
        return 2 if place.type == "bit" else self.function

    def _check_point(self, name: str, point: Point) -> None:
        meanings = MEANINGS.get(name)
        if meanings is not None and not point.enum:
            raise ValueError(f"points.{name}: enum required")
        if meanings is not None and not set(point.enum.values()) <= meanings:
            raise ValueError(f"points.{name}.enum: meanings are {', '.join(sorted(meanings))}")
        self._check_place(f"points.{name}", point)
        function = self.function_of(point)
        words = WORDS[point.type] if point.type else 0
        for address in point.addresses:
            holders = [b for b in self.blocks if b.function == function and _covers(b, address, words)]
            if len(holders) != 1:
                raise ValueError(f"points.{name}: register {address} lies in {len(holders)} blocks, expected 1")

    def _check_place(self, where: str, place: Place) -> None:
        if self.sunspec is None:
            if place.address is None:
                raise ValueError(f"{where}: a fixed map needs address")
            return
        if place.address is not None:
            raise ValueError(f"{where}: a SunSpec map needs sunspec or model")
        aliases = set(self.sunspec.require) | set(self.sunspec.optional)
        for alternative in place.alternatives:
            alias, _, name = alternative.partition(".")
            if alias not in aliases or not name:
                raise ValueError(f"{where}: {alternative!r} is not alias.Point with alias in {', '.join(aliases)}")

    def _check_dispatch(self) -> None:
        used: set[str] = {self.heartbeat.control} if self.heartbeat else set()
        for dispatch in (self.software, self.device):
            if dispatch is not None:
                used |= set(dispatch.arm) | set(dispatch.renew)
                if not set(dispatch.renew) <= set(dispatch.arm):
                    raise ValueError("renew: every control must be in arm too")
                if dispatch.timer is not None and dispatch.timer not in self.points:
                    raise ValueError(f"timer: {dispatch.timer!r} is no point")
        if used != set(self.controls):
            odd = ", ".join(sorted(used ^ set(self.controls)))
            raise ValueError(f"controls and their use in arm, renew and heartbeat differ: {odd}")
        if used and self.kind not in (Kind.BATTERY, Kind.LOAD_BANK):
            raise ValueError("controls: only a battery or a load bank is written to")
        if self.device is not None and self.kind is not Kind.BATTERY:
            raise ValueError("device: only a battery follows load by itself")


def parse_profile(raw: object, *, origin: str) -> DeviceProfile:
    """A profile from parsed YAML; BadInput names `origin`, the key and what is allowed."""
    try:
        return DeviceProfile.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = faults[0]
        key = ".".join(str(step) for step in first["loc"]) or "profile"
        message = "required, not given" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise BadInput(f"{origin}: {key}: {message}{more}") from None


def _covers(block: Block, address: int, words: int) -> bool:
    return block.start <= address and address + words <= block.start + block.count
