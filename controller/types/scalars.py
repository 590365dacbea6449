"""Arrays and identifiers that every other noun is made of."""

from __future__ import annotations

from typing import NewType

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
QualityArray = NDArray[np.int8]
BoolArray = NDArray[np.bool_]
NodeId = NewType("NodeId", str)
GpuId = NewType("GpuId", str)  # NVML UUID: indices move after a hot swap, UUIDs do not
ClassId = NewType("ClassId", str)
LimitId = NewType("LimitId", str)
