"""Reads the priors of GPU models (`configs/gpus/*.yaml`): how power and work follow the clock, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from controller.config.load import Document, data_root, load_document
from controller.gpu_model import GpuCurve


class GpuDoc(Document):
    """One model's curve; `pattern` is looked for in the driver's name of the card."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    pattern: Annotated[str, Field(min_length=3)]
    linear: Annotated[float, Field(ge=0, le=1)]
    exponent: Annotated[float, Field(ge=1, le=6)]
    work_exponent: Annotated[float, Field(gt=0, le=1.5)]
    source: Annotated[str, Field(min_length=1)]


@lru_cache(maxsize=1)
def load_curves() -> Mapping[str, GpuCurve]:
    """All shipped curves by name."""
    docs = [load_document(path, GpuDoc) for path in sorted((data_root() / "configs" / "gpus").glob("*.yaml"))]
    return {doc.name: GpuCurve(**doc.model_dump()) for doc in docs}
