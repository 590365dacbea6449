"""A profile joined to a device: which registers to read now, what they say, and where each control lies.

On every new connection a SunSpec map is discovered again, because what answered before may have been replaced. Values
that a device marks as absent are None. The first complete read must be plausible, or the device is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.ports import Clock
from controller.types import Quality
from drivers.errors import DeviceFault, InvalidValue, NotSupported, WrongDevice
from drivers.identity import Identity, IdentityBook
from drivers.modbus import ModbusDevice
from drivers.profile import REQUIRED, ROLES, Control, DeviceProfile, Place, Point, WordOrder
from drivers.registers import SUNSPEC_ABSENT, Codec, Field, Term
from drivers.sunspec import ModelAt, discover, layout

DEVICE_SILENT_S = 3.0  # a device heartbeat counts once a second; three missed mean its controller stands still
GAP_MAX = 64  # registers read along between two blocks: 128 bytes cost less than another request and its answer


@dataclass(frozen=True, slots=True)
class ControlPlace:
    """Where a control is written, and the scale factor that holds for it."""

    address: int
    codec: Codec
    scale_address: int | None
    factor: float


@dataclass(frozen=True, slots=True)
class _Where:
    """A value located on this device: span of registers, its codec and scale."""

    address: int
    codec: Codec
    scale_address: int | None
    factor: float
    absent: frozenset[int]

    @property
    def first(self) -> int:
        return self.address if self.scale_address is None else min(self.address, self.scale_address)

    @property
    def end(self) -> int:
        end = self.address + self.codec.words
        return end if self.scale_address is None else max(end, self.scale_address + 1)


class _Block:
    """One read and the fields in it."""

    __slots__ = ("count", "due_s", "fields", "function", "is_optional", "period_s", "start")

    def __init__(self, *, function: int, start: int, count: int, period_s: float) -> None:
        self.function = function
        self.start = start
        self.count = count
        self.period_s = period_s
        self.fields: tuple[Field, ...] = ()
        self.is_optional = False
        self.due_s = float("-inf")


@dataclass(frozen=True, slots=True)
class _Span:
    """One request, and the blocks it serves."""

    function: int
    start: int
    end: int
    blocks: tuple[_Block, ...]


class DeviceMap:
    """Reads a device by role. `values` holds the newest of each point, `power_t_s` when power arrived."""

    def __init__(
        self,
        profile: DeviceProfile,
        device: ModbusDevice,
        clock: Clock,
        *,
        is_reading_all: bool = False,
        identity: Identity | None = None,
    ) -> None:
        self.identity = identity if identity is not None else IdentityBook().of(device.name)
        self.profile = profile
        self.device = device  # from `prepare` on: on the connection that everything was located on
        self._any_connection = device
        self.values: dict[str, float | None] = dict.fromkeys(profile.points)
        self.power_t_s = float("-inf")
        self.models: tuple[ModelAt, ...] = ()
        self.controls: dict[str, ControlPlace] = {}
        self.point_places: dict[str, ControlPlace] = {}  # of points at one place, for reading one of them back
        self._clock = clock
        self._heartbeat: float | None = None
        self._heartbeat_t_s = float("-inf")
        self._is_reading_all = is_reading_all
        self._blocks: tuple[_Block, ...] = ()
        self._spans_of: dict[tuple[int, ...], tuple[_Span, ...]] = {}  # by which blocks are due
        self._is_joining = True
        self._is_proven = False
        self._first_role = "output_w" if "output_w" in profile.points else "power_w"

    async def read(self) -> None:
        """Read what is due. Raises DriverError; WrongDevice when the device does not fit the profile."""
        await self.prepare()
        now_s = self._clock.now_s()
        due = tuple(k for k, block in enumerate(self._blocks) if now_s >= block.due_s)
        spans = self._spans_of.get(due)
        if spans is None:
            spans = self._spans_of[due] = self._joined([self._blocks[k] for k in due])
        for span in spans:
            await self._read_span(span, now_s)
        if not self._is_proven:
            self._prove()

    async def prepare(self) -> None:
        """Locate everything, once per connection."""
        self.identity.require()
        if self.device.is_standing:
            return
        device = await self._any_connection.on_this_connection()
        self._is_proven = False
        if self.profile.sunspec is not None:
            self.models = await discover(device, self.profile.sunspec.bases)
            if self.profile.controls:  # what is only read is located anew, and must be plausible again
                self.identity.see_models(self.profile.id, self.models)
            self._require_models()
        self._locate()
        device.allow(addresses_of(self.controls.values()))
        self.device = device

    def meaning(self, name: str) -> str | None:
        """The meaning of an enumerated point, None where it is absent or not listed."""
        value = self.values.get(name)
        return None if value is None else self.profile.points[name].enum.get(int(value))

    def implausible(self) -> list[str]:
        """Points whose value is outside what its profile calls plausible."""
        odd = []
        for name, point in self.profile.points.items():
            value = self.values[name]
            low = float("-inf") if point.min is None else point.min
            high = float("inf") if point.max is None else point.max
            if value is not None and not low <= value <= high:
                odd.append(f"{name} reads {value:.6g} {point.unit}, plausible is {low:g}..{high:g}")
        return odd

    def quality(self) -> Quality:
        """Of what was read last: SUSPECT where implausible, STALE once the device's own heartbeat stands still."""
        if self.implausible():
            return Quality.SUSPECT
        heartbeat = self.values.get("device_heartbeat")
        if heartbeat is None:
            return Quality.GOOD
        now_s = self._clock.now_s()
        if heartbeat != self._heartbeat:
            self._heartbeat, self._heartbeat_t_s = heartbeat, now_s
        return Quality.STALE if now_s - self._heartbeat_t_s > DEVICE_SILENT_S else Quality.GOOD

    # ---------------------------------------------------------------------------------------------- private

    def _joined(self, due: Sequence[_Block]) -> tuple[_Span, ...]:
        """The requests that read `due`, those with the first role first: neighbours within the device's reach as one.

        A gap is read along on a SunSpec map only, where every register answers; elsewhere it may be an error.
        """
        gap = GAP_MAX if self.profile.sunspec is not None else 0
        spans: list[_Span] = []
        for block in sorted(due, key=lambda block: (block.function, block.start)):
            if spans and self._is_joining and spans[-1].function == block.function and block.function in (3, 4):
                last = spans[-1]
                end = max(last.end, block.start + block.count)
                if block.start - last.end <= gap and end - last.start <= self.device.registers_per_read_max:
                    spans[-1] = _Span(last.function, last.start, end, (*last.blocks, block))
                    continue
            spans.append(_Span(block.function, block.start, block.start + block.count, (block,)))
        first = {id(block) for block in self._blocks[:1]}
        return tuple(sorted(spans, key=lambda span: all(id(block) not in first for block in span.blocks)))

    async def _read_span(self, span: _Span, now_s: float) -> None:
        if len(span.blocks) == 1:
            data = await self._read_block(span.blocks[0])
            if data is not None:
                self._take(span.blocks[0], data, now_s)
            return
        try:
            data = await self.device.read_registers(span.function, span.start, span.end - span.start)
        except (NotSupported, InvalidValue, DeviceFault):  # one of them is not there: each for itself from now on
            self._is_joining = False
            self._spans_of.clear()
            for block in span.blocks:
                await self._read_span(_Span(block.function, block.start, block.start + block.count, (block,)), now_s)
            return
        for block in span.blocks:
            at = 2 * (block.start - span.start)
            self._take(block, data[at : at + 2 * block.count], now_s)

    def _take(self, block: _Block, data: bytes, now_s: float) -> None:
        if block.period_s > 0:
            block.due_s = now_s + block.period_s
        for field in block.fields:
            self.values[field.name] = field.value(data)
            if field.name == self._first_role:
                self.power_t_s = self._clock.now_s()

    async def _read_block(self, block: _Block) -> bytes | None:
        try:
            if block.function in (1, 2):
                bits = await self.device.read_bits(block.function, block.start, block.count)
                return b"".join(int(bit).to_bytes(2, "big") for bit in bits)
            return await self.device.read_registers(block.function, block.start, block.count)
        except NotSupported:
            if not block.is_optional:
                raise
            block.due_s = float("inf")  # this device lacks what is nice to have; asked again on the next connection
            return None

    def _prove(self) -> None:
        odd = self.implausible()
        if odd:
            raise WrongDevice(self.device.name, f"{odd[0]}: wrong device, profile or word order ({self.profile.id})")
        self._is_proven = True

    def _require_models(self) -> None:
        assert self.profile.sunspec is not None
        found = {model.model_id for model in self.models}
        for alias, wanted in self.profile.sunspec.require.items():
            if not found & set(wanted):
                names = " or ".join(str(model_id) for model_id in wanted)
                have = ", ".join(str(model_id) for model_id in sorted(found))
                raise WrongDevice(self.device.name, f"no SunSpec model {names} ({alias}); it has {have}")

    def _locate(self) -> None:
        self.values = dict.fromkeys(self.profile.points)
        wanted = frozenset(self.profile.points) if self._is_reading_all else self._used_points()
        places = {name: self._where(point) for name, point in self.profile.points.items() if name in wanted}
        for name in sorted(REQUIRED[self.profile.kind]):
            if not places.get(name):
                raise WrongDevice(self.device.name, f"the device lacks {name} ({self.profile.id})")
        blocks = self._discovered_blocks(places) if self.profile.sunspec is not None else self._fixed_blocks(places)
        blocks.sort(key=lambda block: all(field.name != self._first_role for field in block.fields))
        self._blocks = tuple(block for block in blocks if block.fields)
        self._spans_of.clear()
        self._is_joining = True
        self.point_places = {name: _single(where[0]) for name, where in places.items() if len(where) == 1}
        located = {name: self._where(control) for name, control in self.profile.controls.items()}
        self.controls = {name: _single(where[0]) for name, where in located.items() if where}

    def _used_points(self) -> frozenset[str]:
        dispatches = (self.profile.software, self.profile.device)
        timers = {dispatch.timer for dispatch in dispatches if dispatch is not None and dispatch.timer is not None}
        return (ROLES[self.profile.kind] | timers) & set(self.profile.points)

    def _where(self, place: Place) -> tuple[_Where, ...]:
        """Every summand of a place on this device; empty where the device does not have it."""
        factor = place.scale * place.sign
        if self.profile.sunspec is None:
            absent = frozenset(place.not_available) if isinstance(place, Point) else frozenset[int]()
            codec = _codec(place, self.profile.word_order)
            return tuple(_Where(address, codec, None, factor, absent) for address in place.addresses)
        if place.model is not None:
            return self._in_vendor_model(place, factor)
        for alternative in place.alternatives:
            alias, _, name = alternative.partition(".")
            model = self._model_of(alias)
            if model is not None and (at := _standard(model, name, factor)) is not None:
                return (at,)
        return ()

    def _in_vendor_model(self, place: Place, factor: float) -> tuple[_Where, ...]:
        assert place.offset is not None
        model = next((m for m in self.models if m.model_id == place.model), None)
        codec = _codec(place, WordOrder.BIG)
        if model is None or place.offset + codec.words > model.length + 2:
            return ()
        scale = None if place.scale_offset is None else model.address + place.scale_offset
        absent = _absent(codec.kind, isinstance(place, Control))
        return (_Where(model.address + place.offset, codec, scale, factor, absent),)

    def _model_of(self, alias: str) -> ModelAt | None:
        assert self.profile.sunspec is not None
        wanted = self.profile.sunspec.require.get(alias) or self.profile.sunspec.optional.get(alias, ())
        by_id = {model.model_id: model for model in reversed(self.models)}
        return next((by_id[model_id] for model_id in wanted if model_id in by_id), None)

    def _fixed_blocks(self, places: dict[str, tuple[_Where, ...]]) -> list[_Block]:
        blocks = []
        for given in self.profile.blocks:
            block = _Block(function=given.function, start=given.start, count=given.count, period_s=given.period_s)
            names = [
                name
                for name, where in places.items()
                if self.profile.function_of(self.profile.points[name]) == given.function
                and given.start <= where[0].address < given.start + given.count
            ]
            self._fill(block, {name: places[name] for name in names})
            blocks.append(block)
        return blocks

    def _discovered_blocks(self, places: dict[str, tuple[_Where, ...]]) -> list[_Block]:
        """Points of one model and period are read in one frame, with their scale factors, as far as frames reach."""
        groups: dict[tuple[int, float], list[str]] = {}
        for name, where in places.items():
            if where:
                model = next(m for m in self.models if m.address <= where[0].address < m.address + m.length + 2)
                groups.setdefault((model.address, self.profile.points[name].period_s), []).append(name)
        blocks = []
        for (_, period_s), names in sorted(groups.items()):
            start = min(places[name][0].first for name in names)
            end = max(places[name][0].end for name in names)
            block = _Block(function=3, start=start, count=end - start, period_s=period_s)
            self._fill(block, {name: places[name] for name in names})
            blocks.append(block)
        return blocks

    def _fill(self, block: _Block, places: dict[str, tuple[_Where, ...]]) -> None:
        block.fields = tuple(
            Field(
                name=name,
                terms=tuple(
                    Term(
                        codec=at.codec,
                        at=2 * (at.address - block.start),
                        scale_at=None if at.scale_address is None else 2 * (at.scale_address - block.start),
                    )
                    for at in where
                ),
                factor=where[0].factor,
                absent=where[0].absent,
            )
            for name, where in places.items()
        )
        block.is_optional = not set(places) & REQUIRED[self.profile.kind]


def _single(at: _Where) -> ControlPlace:
    return ControlPlace(at.address, at.codec, at.scale_address, at.factor)


def _codec(place: Place, order: WordOrder) -> Codec:
    assert place.type is not None
    return Codec("uint16" if place.type == "bit" else place.type, order)


def _standard(model: ModelAt, name: str, factor: float) -> _Where | None:
    try:
        point = layout(model.model_id)[name]
    except KeyError:
        return None
    codec = Codec(point.kind, WordOrder.BIG)
    if point.offset + codec.words > model.length + 2:
        return None  # an older revision of the model that ends before this point
    scale = None if point.scale_offset is None else model.address + point.scale_offset
    return _Where(
        model.address + point.offset, codec, scale, factor * 10.0**point.scale_exponent, _absent(point.kind, False)
    )


def _absent(kind: str, is_control: bool) -> frozenset[int]:
    return frozenset() if is_control or kind not in SUNSPEC_ABSENT else frozenset({SUNSPEC_ABSENT[kind]})


def addresses_of(places: Iterable[ControlPlace]) -> set[int]:
    """Every register the places cover."""
    return {place.address + word for place in places for word in range(place.codec.words)}
