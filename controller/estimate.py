"""What the site draws, from whatever can be trusted: load, its split, its age, and how far all of it may be off.

Load is PCC power plus battery power of the same instant; the battery's history is moved to the meter's time stamp
first. A lost or implausible meter is replaced within one tick by sub-meters or node reports, and ignorance costs
margin, never a guess in our favour. Faults are stated as flags, row by row of the fault catalogue; what they lead to
is decided elsewhere. Pure: times come with the readings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum, unique

from controller.estimate_bank import BankHistory
from controller.estimate_battery import BatteryAccount
from controller.estimate_bridge import NodeBridge
from controller.estimate_checks import METERS_DIFFER_FRAC, MeterCheck, MeterView
from controller.estimate_delay import KEPT_S, MeterDelay
from controller.estimate_nodes import NodeBook
from controller.estimate_stamp import SampleClock
from controller.estimate_still import Standstill
from controller.estimate_subs import SubMeters
from controller.estimate_trust import OLD_S, MeterRole, MeterTrust
from controller.settings import SiteSettings
from controller.types import (
    BatterySample,
    Following,
    LoadBankSample,
    MeterFlag,
    MeterSample,
    NodeId,
    NodeReport,
    Quality,
    Reading,
    frozen,
    replace,
)

HISTORY_S = KEPT_S  # of battery power: what a late meter is held against
DELAY_MEMORY_S = 10.0
GROWTH_FRAC_PER_S = 0.3  # of the registered peak: the margin of a held value grows by this (measured starts: 0.2/s)
ROOM_FRAC = 0.98  # of its limits: a battery beyond it follows no more
HELD_TICKS = 2  # a held value serves this many ticks before another source must


@unique
class LoadSource(StrEnum):
    """Where the load comes from, best first."""

    METER = "meter"
    SUB_METERS = "sub_meters"
    NODES = "nodes"
    HELD = "held"  # the last value, before there is any or for an instant
    LOST = "lost"  # the last value and a growing margin: nobody measures


UNMEASURED = frozenset({LoadSource.HELD, LoadSource.LOST})


@frozen
class Estimate:
    """The load at `t_s` and all that decides how far to trust it. Powers in W; `margin_w` is one-sided, upwards.

    `grid_w` is what the meter shows at `t_s`, or would show. `is_fresh` says that `load_w` is new since the last tick.
    `delay_s` is the age of a sample when it is used (the usual one of the meter's), `lag_s` the battery's first-order
    lag as measured (or declared, until its commands have moved enough). `is_revised`: what was said of the load until
    now was not true, and nothing that was made of it holds.
    """

    t_s: float
    load_w: float
    margin_w: float
    pcc_w: float | None
    grid_w: float
    battery_w: float
    gpu_w: float
    gpu_w_max: float
    other_w: float
    quality: Quality
    source: LoadSource
    is_fresh: bool
    delay_s: float
    lag_s: float
    t_eff_s: float
    flags: frozenset[MeterFlag]
    is_revised: bool = False
    ballast_w: float = 0.0  # of `load_w`, what a load bank drew at `t_s`
    battery: Reading[BatterySample] | None = None  # as it is believed: its own word, or what it was told
    is_battery_misread: bool = False  # what it was told counts, and is not what it says
    dead_s: float = 0.0  # that the battery lets pass before it acts on an order
    refresh_s: float = 0.0  # for how long the site meter's values stand, as seen or declared
    late_nodes: tuple[NodeId, ...] = ()  # whose reports come later than they use to

    @property
    def own_load_w(self) -> float:
        """What the site draws for its own ends."""
        return self.load_w - self.ballast_w


class LoadEstimator:
    """One per site; `step` once per tick, `commanded` after every battery write."""

    def __init__(self, site: SiteSettings) -> None:
        self._site = site
        self._battery = BatteryAccount(site, kept_s=HISTORY_S)
        self._delay_s = site.meter.delay_s if site.meter is not None else 0.0
        self._meter = MeterCheck(site)
        update_s = site.meter.update_s if site.meter is not None else 0.0
        self._clock = SampleClock(update_s, tick_s=site.tracker_period_s, scale_w=site.registered_peak_w)
        self._still = Standstill(site)
        self._late = MeterDelay(scale_w=site.registered_peak_w)
        self._late_s, self._load_delay_s = 0.0, self._delay_s
        self._is_revised = False
        self._trust = MeterTrust(site)
        self._subs = SubMeters(site)
        self._held_w: float | None = None  # what a battery that follows by itself keeps on the meter
        self._book = NodeBook(gpu_peak_w=site.gpu_peak_w, scale_w=site.registered_peak_w)
        self._nodes = self._book.power
        self._source = LoadSource.HELD  # as of the last tick
        self._load_w = site.other_load_w + site.gpu_idle_w
        self._load_s = -math.inf
        self._good_s = -math.inf
        self._other_w = site.other_load_w
        self._last_power_w = math.nan
        self._bridge = NodeBridge(scale_w=site.registered_peak_w, other_w=site.other_load_w)
        self._bank = BankHistory()
        self._ballast_w = 0.0
        self._last_s = -math.inf

    def commanded(self, t_s: float, *, reference_w: float, following: Following) -> None:
        """A set-point was acknowledged; under software following the battery's answer to it tells its lag."""
        self._battery.commanded(t_s, reference_w=reference_w, following=following)

    @property
    def is_meter_sane(self) -> bool:
        """What the site meter says now is a number of the right size, locked out or not."""
        return self._meter.is_sane

    def unlock(self) -> None:
        """An operator's reset: meters locked out for their unit are believed again, until they say it again."""
        for check in (self._meter, *self._subs.checks):
            check.unlock()

    def step(
        self,
        now_s: float,
        *,
        pcc: Reading[MeterSample] | None,
        battery: Reading[BatterySample] | None,
        nodes: Sequence[Reading[NodeReport]],
        meters: Mapping[str, Reading[MeterSample]],
        load_bank: Reading[LoadBankSample] | None = None,
        is_another_battery: bool = False,
        younger_s: float = 0.0,
    ) -> Estimate:
        """The estimate at `now_s` from everything that was read.

        `is_another_battery`: another device than was armed answers in its place. `younger_s`: how much less node
        reports wait to be read than where the meter serves.
        """
        self._battery.take(now_s, battery, is_another=is_another_battery)
        if pcc is not None:
            self._still.take(pcc)
            late_s = 0.0 if self._late.is_echoed else self._late_s  # an echo is of the stamps, and coarse
            pcc = self._clock.stamped(pcc, battery_at=self._battery.at, late_s=late_s, is_still=self._still.is_new)
        self._bank.take(load_bank)
        self._take_nodes(now_s, nodes, younger_s=younger_s)
        view = MeterView(
            now_s=now_s,
            battery_w=self._battery.newest_w,
            gpu_w=self._nodes.gpu_w if self._nodes.is_known else None,
            others_w=None,
        )
        if meters:
            view = replace(view, others_w=self._subs.take(view, meters=meters, pcc=pcc))
        flags = set(self._meter.check(pcc, view, held_s=self._clock.held_s)) if pcc is not None else set()
        if MeterFlag.METER_STUCK in flags:
            self._still.stuck()
        if self._clock.is_slower:
            flags.add(MeterFlag.METER_REFRESH)
        self._last_s = now_s
        late_s = self._lateness(pcc)
        is_held = self._late.is_echoed and late_s <= self._clock.refresh_s  # as old as values may be: used, not told of
        if late_s and not is_held:
            flags |= {MeterFlag.METER_LATE, MeterFlag.METER_MISSING} if late_s > OLD_S else {MeterFlag.METER_LATE}
        role = self._trust.role(
            now_s,
            frozenset(flags),
            is_usable=pcc is not None and self._meter.is_usable,
            is_still=self._still.is_new,
            served_s=self._good_s,
            late=self._late,
            nodes=self._bridge if self._nodes.is_known else None,
        )
        if pcc is not None and role is MeterRole.LOAD:
            then = replace(pcc, t_mono_s=pcc.t_mono_s - late_s) if late_s else pcc
            found = self._from_meter(now_s, then, view, frozenset(flags))
        else:
            if pcc is not None and role is MeterRole.CORRECTION:
                self._correct_nodes(pcc.t_mono_s - late_s)
            found = self._without_meter(now_s, view, frozenset(flags), had_meter=pcc is not None)
        self._late.believed(now_s, found.grid_w, margin_w=found.margin_w)
        return found

    # ------------------------------------------------------------------------------------------------------ private

    def _correct_nodes(self, t_s: float) -> None:
        own_w = self._meter.power_w + self._battery.at(t_s) - self._bank.at_w(t_s)
        self._bridge.metered(t_s, own_w, is_repeated=False)

    def _lateness(self, pcc: Reading[MeterSample] | None) -> float:
        """How much older than stamped the meter's samples are, this one heard."""
        if self._site.following is Following.DEVICE:
            return 0.0  # power on the meter does not hang on what the meter says
        if pcc is not None and pcc.quality is not Quality.MISSING and math.isfinite(pcc.value.power_w):
            sample, t_s = pcc.value, pcc.t_mono_s
            self._late.counted(t_s, sample.import_wh, power_w=sample.power_w, refresh_s=self._clock.refresh_s)
            if self._battery.knows(t_s):
                self._late.sampled(t_s, sample.power_w, battery_w=self._battery.at(t_s))
        late_s = self._late.late_s
        self._is_revised = bool(late_s) and not self._late_s and self._late.has_misled
        if self._is_revised:
            self._bridge.misled()
        self._late_s = late_s
        return late_s

    def _from_meter(
        self, now_s: float, pcc: Reading[MeterSample], view: MeterView, flags: frozenset[MeterFlag]
    ) -> Estimate:
        t_s = pcc.t_mono_s
        is_news = MeterFlag.METER_SPIKE not in flags and not self._still.is_new  # an ignored sample is none
        is_fresh = t_s > self._load_s and is_news
        power_w = self._meter.power_w
        if view.others_w is not None and MeterFlag.METERS_DISAGREE in flags:
            power_w = max(power_w, view.others_w)  # the higher import is the careful one
        if is_fresh:
            self._learn_delay(now_s - t_s - self._late_s, elapsed_s=t_s - self._load_s)
            if self._battery.metered(t_s, power_w):
                self._is_revised = True
                self._late.forget_moves()
                self._bridge.misled()
            self._load_w = power_w + self._battery.at(t_s)
            self._load_s, self._ballast_w = t_s, self._bank.at_w(t_s)
            own_w = self._load_w - self._ballast_w
            self._bridge.metered(t_s, own_w, is_repeated=power_w == self._last_power_w)
            self._last_power_w = power_w
        self._good_s = now_s
        if self._nodes.is_known:
            own_w = self._load_w - self._ballast_w
            self._other_w = min(max(own_w - self._nodes.gpu_w, 0.0), self._site.other_load_w_max)
        margin_w = 0.0
        if MeterFlag.METER_DRIFT in flags or MeterFlag.METERS_DISAGREE in flags:
            margin_w = METERS_DIFFER_FRAC * abs(power_w)
        return self._made(
            now_s, margin_w=margin_w, pcc_w=power_w, source=LoadSource.METER, is_fresh=is_fresh, flags=flags
        )

    def _without_meter(
        self, now_s: float, view: MeterView, flags: frozenset[MeterFlag], *, had_meter: bool
    ) -> Estimate:
        """Sub-meters where they may, else node reports (both add to the load directly), else the last value.

        The margin of a value that is only held grows with its age.
        """
        held_s = now_s - self._good_s
        self._bridge.lost()
        if view.others_w is not None and self._subs.may_stand_in:
            t_s, sum_w = self._subs.t_s, self._subs.sum_w
            is_fresh = t_s > self._load_s
            self._load_w, self._load_s, self._ballast_w = sum_w + self._battery.at(t_s), t_s, self._bank.at_w(t_s)
            margin_w = METERS_DIFFER_FRAC * abs(sum_w)
            return self._made(
                now_s, margin_w=margin_w, pcc_w=None, source=LoadSource.SUB_METERS, is_fresh=is_fresh, flags=flags
            )
        brief = had_meter and held_s <= (HELD_TICKS - 0.5) * self._site.tracker_period_s
        if self._nodes.is_known and not brief:
            known_s, load_w = self._bridge.load()
            is_fresh = known_s > self._load_s or not math.isfinite(self._load_s)
            self._load_s = max(self._load_s, known_s)
            self._ballast_w = self._bank.at_w(self._load_s)
            self._load_w = load_w + self._ballast_w
            margin_w = self._bridge.margin_w(now_s, load_w) + self._nodes.gpu_w_max - self._nodes.gpu_w
            return self._made(
                now_s, margin_w=margin_w, pcc_w=None, source=LoadSource.NODES, is_fresh=is_fresh, flags=flags
            )
        growth_w = GROWTH_FRAC_PER_S * self._site.registered_peak_w * max(held_s, 0.0)
        ceiling_w = self._site.gpu_peak_w + self._site.other_load_w_max
        margin_w = max(0.0, min(growth_w, ceiling_w - self._load_w))
        if self._nodes.is_known:  # a margin that is gone a tick later would still have moved every cap
            margin_w = min(margin_w, self._bridge.margin_w(now_s, self._load_w))
        source = LoadSource.LOST if math.isfinite(self._load_s) and not brief else LoadSource.HELD
        return self._made(now_s, margin_w=margin_w, pcc_w=None, source=source, is_fresh=False, flags=flags)

    def _made(
        self,
        now_s: float,
        *,
        margin_w: float,
        pcc_w: float | None,
        source: LoadSource,
        is_fresh: bool,
        flags: frozenset[MeterFlag],
    ) -> Estimate:
        self._source, nodes = source, self._nodes
        battery = self._battery.believed()
        self._find_held(pcc_w, battery)
        is_measured = source not in UNMEASURED
        quality = Quality.SUSPECT if is_measured else Quality.MISSING
        if source is LoadSource.METER and not flags & DOUBTS:
            quality = Quality.GOOD
        gpu_w = nodes.gpu_w if nodes.gpu_count else max(0.0, self._load_w - self._ballast_w - self._other_w)
        lag_s, dead_s = self._battery.lag_s, self._battery.dead_s
        period_s = self._site.tracker_period_s
        is_device = self._site.following is Following.DEVICE
        if source is LoadSource.NODES:
            self._load_delay_s = max(now_s - self._load_s, 0.0)
        elif is_measured:  # a value that is held was taken when another was its age
            self._load_delay_s = self._delay_s + self._late_s
        delay_s = self._load_delay_s
        return Estimate(
            t_s=self._load_s,
            load_w=self._load_w,
            margin_w=margin_w + self._battery.margin_w,
            pcc_w=pcc_w,
            grid_w=pcc_w if pcc_w is not None else self._grid_w(),
            battery_w=self._battery.newest_w,
            gpu_w=gpu_w,
            gpu_w_max=max(gpu_w, nodes.gpu_w_max),
            other_w=self._other_w,
            quality=quality,
            source=source,
            is_fresh=is_fresh,
            delay_s=delay_s,
            lag_s=lag_s,
            t_eff_s=lag_s if is_device else delay_s + period_s + lag_s,
            dead_s=dead_s,
            flags=flags,
            is_revised=self._is_revised,
            ballast_w=self._ballast_w,
            battery=battery,
            is_battery_misread=self._battery.is_misread,
            refresh_s=self._clock.refresh_s,
            late_nodes=self._book.late.told,
        )

    def _grid_w(self) -> float:
        """What the meter would show: load less battery, but where a battery follows by itself, what it holds."""
        return self._held_w if self._held_w is not None else self._load_w - self._battery.at(self._load_s)

    def _find_held(self, pcc_w: float | None, battery: Reading[BatterySample] | None) -> None:
        """The target of a battery that follows by itself and has room; while it is silent, what was last metered.

        One that tripped still says what it was told last, and holds nothing.
        """
        if self._site.following is not Following.DEVICE:
            return
        if battery is None or battery.quality is Quality.MISSING or not math.isfinite(battery.value.power_w):
            self._held_w = pcc_w if pcc_w is not None else self._held_w
            return
        sample = battery.value
        has_room = -ROOM_FRAC * sample.charge_w_max < sample.power_w < ROOM_FRAC * sample.discharge_w_max
        self._held_w = sample.reference_w if sample.is_following and has_room and sample.takes_orders else None

    def _take_nodes(self, now_s: float, nodes: Sequence[Reading[NodeReport]], *, younger_s: float) -> None:
        """Hold a new sum of the reports against the meter."""
        metered_w = self._load_w - self._ballast_w if self._source is LoadSource.METER else None
        is_served = self._source is LoadSource.NODES
        if not self._book.take(now_s, nodes, metered_w=metered_w, is_served=is_served):
            return
        found = self._nodes = self._book.power
        if not found.is_known:
            return
        is_proven = not self._trust.is_doubted
        is_learning = is_proven and not self._late.is_in_doubt and not self._battery.is_doubtful
        self._bridge.reported(
            now_s,
            mean_w=found.gpu_w,
            sample_w=found.sample_w,
            other_w=found.other_w,
            returned=self._book.returned,
            is_learning=is_learning,
            younger_s=younger_s,
        )
        if self._bridge.is_taught and not found.missing_count:
            means = self._bridge.means
            self._late.reported(
                now_s,
                load_w=means.load_w,
                delay_s=self._bridge.means_delay_s,
                is_usual=is_proven,
                battery_stood_s=self._battery.stood_s,
            )
            self._battery.reported(now_s, load_w=means.load_w, delay_s=self._bridge.means_delay_s)

    def _learn_delay(self, age_s: float, *, elapsed_s: float) -> None:
        gain = 1.0 - math.exp(-min(max(elapsed_s, 0.0), DELAY_MEMORY_S) / DELAY_MEMORY_S)
        self._delay_s += gain * (max(age_s, 0.0) - self._delay_s)


DOUBTS = frozenset({MeterFlag.METERS_DISAGREE, MeterFlag.METER_SIGN_SUSPECT, MeterFlag.METER_DRIFT})
