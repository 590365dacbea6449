"""From the meter to node reports: what is learnt of them, no bump on the way, and a margin that grows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from controller.estimate_bridge import MARGIN_FRAC, WINDOW_S, NodeBridge

PEAK_W, OTHER_W, LATE_S = 100e6, 9e6, 0.12


def square_w(t_s: float) -> float:
    """A ripple of 2 MW, period 4 s."""
    return 60e6 + (1e6 if math.floor(t_s / 2.0) % 2 else -1e6)


def report_w(load: Callable[[float], float], now_s: float) -> float:
    """GPUs report means of a second, a little late."""
    times = np.linspace(now_s - LATE_S - WINDOW_S, now_s - LATE_S, 201)
    return float(np.mean([load(float(t)) for t in times])) - OTHER_W


def taught(load: Callable[[float], float], *, until_s: float) -> NodeBridge:
    """A bridge that has seen meter and reports of `load` side by side; the meter is gone at `until_s`."""
    bridge = NodeBridge(scale_w=PEAK_W, other_w=0.0)
    for k in range(1, round(until_s * 10) + 1):
        t_s = k / 10
        bridge.metered(t_s, load(t_s), is_repeated=False)
        bridge.reported(t_s, gpu_w=report_w(load, t_s), other_w=0.0)
    return bridge


def test_delay_and_what_is_left_out_are_learnt() -> None:
    bridge = taught(square_w, until_s=60.0)
    assert bridge.is_taught
    assert bridge.delay_s == pytest.approx(LATE_S + WINDOW_S / 2.0, abs=0.1)
    assert bridge.left_out_w == pytest.approx(OTHER_W, abs=0.1e6)


def test_before_anything_is_learnt_the_declared_other_load_counts_once() -> None:
    bridge = NodeBridge(scale_w=PEAK_W, other_w=10e6)
    bridge.reported(1.0, gpu_w=50e6, other_w=4e6)
    assert bridge.load()[1] == pytest.approx(60e6)
    bridge.reported(2.0, gpu_w=50e6, other_w=12e6)
    assert bridge.load()[1] == pytest.approx(62e6)


def test_a_meter_that_leaves_before_anything_is_learnt_leaves_its_last_word() -> None:
    """What the reports leave out is what the meter said beside them: declarations are off by megawatts for long."""
    bridge = NodeBridge(scale_w=PEAK_W, other_w=10e6)
    bridge.metered(0.1, 63e6, is_repeated=False)
    for k in range(2, 200):
        bridge.reported(k / 10, gpu_w=50e6 if k < 100 else 40e6, other_w=0.0)
        assert bridge.load()[1] == pytest.approx(63e6 if k < 100 else 53e6)


def test_the_meter_leaves_without_a_bump() -> None:
    """Constant load, reports that suddenly leave out more: nothing jumps, the difference comes in over seconds."""
    bridge = taught(lambda _: 60e6, until_s=40.0)
    seen = []
    for k in range(401, 500):
        bridge.reported(k / 10, gpu_w=60e6 - OTHER_W, other_w=0.0)
        seen.append(bridge.load()[1])
    assert max(abs(w - 60e6) for w in seen) < 0.05e6


def test_an_edge_just_after_the_loss_shows_before_the_reports_mean_has_it() -> None:
    """Load falls 2 MW as the meter goes: 0.5 s later the estimate knows most of it, a mean of a second does not."""

    def load(t_s: float) -> float:
        return square_w(t_s) if t_s <= 60.0 else 57e6

    bridge = taught(load, until_s=60.0)
    bridge.reported(60.5, gpu_w=report_w(load, 60.5), other_w=0.0)
    true_s, load_w = bridge.load()
    assert 60.0 < true_s < 60.5
    assert abs(load_w - 57e6) < 0.5 * abs(report_w(load, 60.5) + OTHER_W - 57e6)


def test_time_never_goes_back_when_the_meter_goes() -> None:
    bridge = taught(square_w, until_s=60.0)
    times = []
    for k in range(601, 640):
        bridge.reported(k / 10, gpu_w=report_w(square_w, k / 10), other_w=0.0)
        times.append(bridge.load()[0])
    assert times == sorted(times) and times[-1] == pytest.approx(63.9 - bridge.delay_s)


def test_the_margin_grows_from_little_to_a_tenth() -> None:
    bridge = taught(square_w, until_s=60.0)
    margins = [bridge.margin_w(60.0 + s, 60e6) for s in (0.0, 10.0, 50.0, 500.0)]
    assert margins == sorted(margins) and margins[0] < 0.03 * 60e6
    assert margins[-1] == pytest.approx(MARGIN_FRAC * 60e6)


def test_what_a_stuck_meter_repeats_is_not_learnt() -> None:
    """Load falls while the meter stands: what stands last is from before it stood, and goes when it is called lost."""
    bridge = taught(lambda _: 60e6, until_s=40.0)
    for k in range(401, 420):
        bridge.metered(k / 10, 60e6 + 1e6 * (k - 400), is_repeated=True)  # load by the battery's moves alone
    bridge.lost()
    bridge.reported(40.3, gpu_w=60e6 - OTHER_W, other_w=0.0)
    assert bridge.load() == (pytest.approx(40.0), pytest.approx(60e6))
