"""A recorded power series as a workload can replay it: whole in memory, from 0 s, at least two samples.

Columns, units, empty cells and faults of the file are judged by the reader that `rampart audit` uses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from controller.config.record import open_record
from controller.errors import BadInput
from controller.types import FloatArray, frozen

SAMPLES_MAX = 20_000_000  # a day at 200 Hz; a plant replays minutes to hours


@frozen
class Trace:
    """A power series: strictly rising times from 0 s, finite watts."""

    name: str
    t_s: FloatArray
    power_w: FloatArray

    @property
    def duration_s(self) -> float:
        return float(self.t_s[-1])


def read_trace(path: Path) -> Trace:
    """The power series in `path`; BadInput names file, line and value."""
    times: list[FloatArray] = []
    powers: list[FloatArray] = []
    count = 0
    for block in open_record(path).blocks():
        count += block.t_s.size
        if count > SAMPLES_MAX:
            raise BadInput(f"{path}: more than {SAMPLES_MAX} samples; cut the record to what is to be replayed")
        times.append(block.t_s)
        powers.append(block.power_w)
    t_s, power_w = np.concatenate(times), np.concatenate(powers)
    if t_s.size < 2:
        raise BadInput(f"{path}: a trace needs at least two samples, found {t_s.size}")
    if float(power_w.min()) < 0.0:
        at_s = float(t_s[int(power_w.argmin())])
        raise BadInput(f"{path}: power {power_w.min():g} W at {at_s:g} s: a load draws power, it does not give it")
    return Trace(name=path.name, t_s=t_s - t_s[0], power_w=power_w)
