"""The energy counter as a clock: what it tells of a sample's time, and what must not be taken for lateness."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from controller.estimate_counter import CounterClock
from controller.estimate_delay import MeterDelay

TICK_S = 0.1
POWER_W = 57.6e6
WH_PER_S = POWER_W / 3_600.0


def on_time(_: float) -> float:
    return 0.0


def run(
    late_s: Callable[[float], float],
    until_s: float,
    *,
    is_silent: Callable[[float], bool] = lambda _: False,
    shown_w: Callable[[float], float] = lambda _: POWER_W,
    step_wh: float = 0.0,
    believed_w: float = POWER_W,
    refresh_s: float = 0.0,
) -> list[tuple[float, float]]:
    """(time, how late it was said to be) of every tick of a site that draws the same all the time."""
    clock = CounterClock(error_w=3e6)
    found = []
    for k in range(1, round(until_s / TICK_S) + 1):
        t_s = k * TICK_S
        if not is_silent(t_s):
            count_wh = 5e6 + WH_PER_S * (t_s - late_s(t_s))
            count_wh = math.floor(count_wh / step_wh) * step_wh if step_wh else count_wh
            clock.read(t_s, count_wh, power_w=shown_w(t_s), refresh_s=refresh_s)
        clock.believed(t_s, believed_w, margin_w=0.5e6)
        found.append((t_s, clock.late_s))
    return found


def test_a_count_that_was_read_before_tells_how_late_the_first_late_sample_is() -> None:
    assert run(lambda t: 2.4 if t >= 9.95 else 0.0, 10.0)[-1][1] == pytest.approx(2.4, abs=0.05)


@pytest.mark.parametrize("late_s", [0.3, 2.4, 6.0])
def test_it_goes_on_telling_and_tells_the_end(late_s: float) -> None:
    for t_s, said_s in run(lambda t: late_s if 9.95 <= t < 24.95 else 0.0, 40.0):
        assert said_s == pytest.approx(late_s if 9.95 <= t_s < 24.95 else 0.0, abs=0.05)


def test_it_tells_a_change() -> None:
    found = run(lambda t: 0.0 if t < 9.95 else 3.0 if t < 14.95 else 1.0, 20.0)
    assert found[-1][1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("began_s", [9.95, 10.05])
@pytest.mark.parametrize("late_s", [0.25, 0.3, 0.4])
def test_a_count_that_had_stood_says_at_most_how_late_and_the_next_new_one_how_late(
    late_s: float, began_s: float
) -> None:
    """A register that is renewed every 0.2 s: the first late sample is older by as long as its value had stood.

    Taken at that word for as long as it is late, it was 0.2 s late for good once it was in time again.
    """

    def age_s(t_s: float) -> float:
        is_late = began_s <= t_s < began_s + 3.0
        return t_s - 0.2 * math.floor((t_s - (late_s if is_late else 0.0) + 1e-6) / 0.2)

    for t_s, said_s in run(age_s, 20.0):
        if began_s + 0.4 <= t_s < began_s + 3.0:
            assert said_s == pytest.approx(late_s, abs=0.11)
        elif not began_s <= t_s < began_s + 3.2:
            assert said_s == 0.0


@pytest.mark.parametrize(("refresh_s", "said_s"), [(0.02, 0.16), (0.2, 0.0)])
def test_a_count_may_be_older_than_another_by_as_long_as_values_stand(refresh_s: float, said_s: float) -> None:
    """After a silence the loop reads at another phase of the meter's refresh: its age is reckoned with elsewhere."""
    found = run(lambda t: 0.16 if t >= 9.95 else 0.0, 20.0, refresh_s=refresh_s)
    assert found[-1][1] == pytest.approx(said_s, abs=0.01)
    assert run(lambda t: 0.3 if t >= 9.95 else 0.0, 20.0, refresh_s=refresh_s)[-1][1] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("low_w", [-30e6, 2e6])
def test_power_that_falls_before_it_is_believed_is_no_late_meter(low_w: float) -> None:
    """Once in six seconds import falls for a second, to export too; a sample every 0.2 s, and belief 0.3 s behind."""

    def true_w(t_s: float) -> float:
        return low_w if t_s > 5.0 and t_s % 6.0 < 1.0 else POWER_W

    clock, count_wh = CounterClock(error_w=3e6), 5e6
    for k in range(1, 600):
        t_s = k * TICK_S
        count_wh += max(true_w(t_s), 0.0) * TICK_S / 3_600.0
        if k % 2 == 0:
            clock.read(t_s, count_wh, power_w=true_w(t_s))
        clock.believed(t_s + 0.2, true_w(t_s - 0.3), margin_w=0.5e6)
        assert clock.late_s == 0.0


def test_garbled_powers_do_not_hide_that_it_is_in_time_again() -> None:
    """4.2 GW would explain any count."""
    garbled = run(
        lambda t: 2.4 if 9.95 <= t < 14.95 else 0.0, 20.0, shown_w=lambda t: 4.2e9 if 12.0 < t < 16.0 else POWER_W
    )
    assert garbled[-70][1] > 2.0 and garbled[-1][1] == 0.0


def test_a_counter_that_was_reset_tells_nothing() -> None:
    clock = CounterClock(error_w=3e6)
    for k in range(100):
        clock.read(k * TICK_S, 5e6 + WH_PER_S * k * TICK_S, power_w=POWER_W)
    for k in range(100, 110):
        clock.read(k * TICK_S, WH_PER_S * (k - 99) * TICK_S, power_w=POWER_W)
        clock.believed(k * TICK_S, POWER_W, margin_w=0.0)
        assert clock.late_s == 0.0


@pytest.mark.parametrize("silent_s", [3.0, 8.5, 20.0])
def test_late_after_a_silence(silent_s: float) -> None:
    """The count is too low for the time that passed, the first sample's already."""
    found = run(
        lambda t: 2.5 if t >= 10.0 + silent_s else 0.0,
        20.0 + silent_s,
        is_silent=lambda t: 10.0 <= t < 9.95 + silent_s,
    )
    assert all(said_s == 0.0 for t_s, said_s in found if t_s < 9.95 + silent_s)
    assert all(said_s == pytest.approx(2.5, abs=0.1) for t_s, said_s in found if t_s > 10.05 + silent_s)


def test_in_time_after_a_silence_however_wrong_what_was_believed() -> None:
    """By as much as nodes may be wrong of load they do not see."""
    found = run(on_time, 40.0, is_silent=lambda t: 10.0 <= t < 30.0, believed_w=POWER_W + 3e6)
    assert all(said_s == 0.0 for _, said_s in found)


def test_what_was_believed_wrongly_is_not_late_once_the_meter_is_in_time() -> None:
    """A silence, 2 % believed too much, and late after it: all counts since stand 0.3 s too late on the line."""
    found = run(
        lambda t: 1.5 if 23.95 <= t < 29.95 else 0.0,
        40.0,
        is_silent=lambda t: 10.0 <= t < 23.95,
        believed_w=1.02 * POWER_W,
    )
    assert all(said_s == pytest.approx(1.8, abs=0.1) for t_s, said_s in found if 24.05 < t_s < 29.95)
    assert all(said_s == 0.0 for t_s, said_s in found if t_s > 30.05)


def test_a_count_that_stands_while_energy_is_drawn_is_an_old_one() -> None:
    found = dict(run(lambda t: max(t - 10.0, 0.0), 15.0))
    assert found[10.0] == 0.0
    assert found[max(found)] == pytest.approx(5.0, abs=0.4)


@pytest.mark.parametrize("step_wh", [1_000.0, 100e3])
def test_a_counter_in_coarse_steps_is_no_late_meter(step_wh: float) -> None:
    """A count that stands for up to 6 s and then jumps: nothing is behind."""
    assert all(said_s == 0.0 for _, said_s in run(on_time, 60.0, step_wh=step_wh))


@pytest.mark.parametrize("renewed_s", [0.5, 1.0, 3.0])
def test_a_register_that_is_renewed_now_and_then_is_no_late_meter(renewed_s: float) -> None:
    """Or that is read more seldom than power; by night it counts half as much in that time as by day."""
    clock, count_wh, shown_wh = CounterClock(error_w=3e6), 5e6, 5e6
    for k in range(600):
        power_w = 0.5 * POWER_W if k < 300 else POWER_W
        count_wh += power_w * TICK_S / 3_600.0
        shown_wh = count_wh if k % round(renewed_s / TICK_S) == 0 else shown_wh
        clock.read(k * TICK_S, shown_wh, power_w=power_w)
        clock.believed(k * TICK_S, power_w, margin_w=0.0)
        assert clock.late_s == 0.0


@pytest.mark.parametrize(("late_s", "step_wh"), [(0.0, 0.0), (2.4, 0.0), (0.0, 100e3)])
def test_a_declared_delay_is_none_of_it(late_s: float, step_wh: float) -> None:
    """Samples are stamped 1 s before they are read, and what is believed is of now; a coarse counter stands for 6 s."""
    clock = CounterClock(error_w=3e6)
    for k in range(1, 300):
        t_s = k * TICK_S - 1.0
        old_s = late_s if t_s > 9.95 else 0.0
        count_wh = 5e6 + WH_PER_S * (t_s - old_s)
        clock.read(t_s, math.floor(count_wh / step_wh) * step_wh if step_wh else count_wh, power_w=POWER_W)
        clock.believed(k * TICK_S, POWER_W, margin_w=0.0)
        assert clock.late_s == pytest.approx(old_s, abs=0.05)


def test_a_counter_that_runs_backwards_while_the_site_exports_is_no_late_meter() -> None:
    """Net counters do; four seconds of export bring back counts that were read before."""
    watch = MeterDelay(scale_w=100e6)
    count_wh = 1e6
    for k in range(200):
        power_w = -20e6 if 100 <= k < 140 else 50e6
        count_wh += power_w * TICK_S / 3600.0
        watch.counted(k * TICK_S, count_wh, power_w=power_w)
        watch.believed(k * TICK_S, power_w, margin_w=0.0)
        assert watch.late_s == 0.0


def test_a_turned_sign_does_not_make_the_counter_forget() -> None:
    """Power reads negative and the count goes on growing: that is no export, and lateness shows through it."""
    found = run(
        lambda t: 2.8 if t >= 11.95 else 0.0,
        16.0,
        shown_w=lambda t: -POWER_W if 10.0 <= t < 13.0 else POWER_W,
    )
    assert all(said_s == pytest.approx(2.8 if t_s >= 11.95 else 0.0, abs=0.05) for t_s, said_s in found)


def test_a_register_that_is_renewed_once_a_second_tells_all_the_same() -> None:
    """From the first late count on, and steadily while counts stand."""
    clock = CounterClock(error_w=3e6)
    for k in range(600):
        t_s = k * TICK_S
        old_s = 2.4 if 20.0 <= t_s < 40.0 else 0.0
        shown_s = math.floor((t_s + 1e-9) / 1.0) * 1.0 - old_s
        clock.read(t_s, 5e6 + WH_PER_S * shown_s, power_w=POWER_W)
        clock.believed(t_s, POWER_W, margin_w=0.5e6)
        assert clock.late_s == pytest.approx(old_s, abs=0.15)


@pytest.mark.parametrize("from_s", [0.15, 0.25])
def test_a_count_from_before_the_first_that_was_read_tells(from_s: float) -> None:
    """Late from the second or third sample on: no count like it was read, but none is so little below a reset."""
    found = run(lambda t: 3.7 if from_s <= t < 12.0 else 0.0, 20.0)
    assert all(said_s == pytest.approx(3.7 if from_s <= t_s < 12.0 else 0.0, abs=0.05) for t_s, said_s in found)


def test_a_young_counter_that_reads_nothing_began_anew() -> None:
    """Five seconds old and set back: nothing is late, now or later, although it read as little then."""
    clock = CounterClock(error_w=3e6)
    for k in range(200):
        t_s = k * TICK_S
        clock.read(t_s, WH_PER_S * (t_s if k < 50 else t_s - 5.0), power_w=POWER_W)
        clock.believed(t_s, POWER_W, margin_w=0.5e6)
        assert clock.late_s == 0.0


def test_a_first_count_that_stands_for_long_tells_with_the_next() -> None:
    """A meter that hangs for 3.7 s from the first sample on and goes on from there: steps are too small for that."""
    found = run(lambda t: min(t - TICK_S, 3.7), 10.0)
    assert all(said_s == 0.0 for t_s, said_s in found if t_s < 3.75)
    assert all(said_s == pytest.approx(3.7, abs=0.15) for t_s, said_s in found if t_s > 3.85)


def test_the_age_of_the_first_count_is_not_known() -> None:
    """It is of before the start, and nothing was counted for a while; nor do counts come to the millisecond."""
    clock = CounterClock(error_w=3e6)
    for k in range(600):
        t_s = k * TICK_S
        renewed_s = max(math.floor(t_s + 0.05 * math.sin(7.0 * math.floor(t_s))), 0.4)
        clock.read(t_s, 1e6 + WH_PER_S * renewed_s, power_w=POWER_W)
        clock.believed(t_s, POWER_W, margin_w=0.5e6)
        assert clock.late_s == 0.0


@pytest.mark.parametrize("night", [1.0, 0.3])
def test_a_coarse_counter_stands_for_longer_by_night_and_tells_nothing_after_a_silence(night: float) -> None:
    """Steps of 100 kWh; power falls to a third, and then nothing is read for 5 s."""
    clock, count_wh = CounterClock(error_w=1e5), 5e6
    for k in range(1200):
        power_w = POWER_W * (night if k >= 600 else 1.0)
        count_wh += power_w * TICK_S / 3_600.0
        if not 900 <= k < 950:
            clock.read(k * TICK_S, math.floor(count_wh / 100e3) * 100e3, power_w=power_w)
        clock.believed(k * TICK_S, power_w, margin_w=0.0)
        assert clock.late_s == 0.0


def test_a_register_that_is_not_renewed_by_the_clock_is_no_late_meter() -> None:
    """As a rule after a second, every eighth time after 1.4 s."""
    clock, due = CounterClock(error_w=1e5), [0.0]
    for n in range(50):
        due.append(due[-1] + (1.4 if n % 8 == 7 else 1.0))
    for k in range(500):
        t_s = k * TICK_S
        shown_s = max(t for t in due if t <= t_s + 1e-9)
        clock.read(t_s, 5e6 + WH_PER_S * shown_s, power_w=POWER_W)
        clock.believed(t_s, POWER_W, margin_w=0.0)
        assert clock.late_s == 0.0


def test_where_nothing_is_drawn_a_counter_that_stands_says_nothing() -> None:
    clock = CounterClock(error_w=3e6)
    for k in range(300):
        clock.read(k * TICK_S, 1e6 + min(k, 50) * 1_000.0, power_w=0.0)
        clock.believed(k * TICK_S, POWER_W if k < 50 else 0.0, margin_w=0.0)
        assert clock.late_s == 0.0
