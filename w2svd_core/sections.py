"""What a group of settings is made of. Settings of one paper stand in its own file in `objectives/`, the others in
`settings.py`; nothing here knows torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 10_000_000
MAX_SEED = 2**32 - 1


def setting(
    default: object,
    meaning: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    rule: str = "",
) -> Any:
    """A field with its default, meaning, unit and inclusive range; `rule` says what a range cannot."""
    extra: dict[str, Any] = {"unit": unit, "rule": rule}
    return Field(default=default, description=meaning, ge=ge, le=le, json_schema_extra=extra)


class Section(BaseModel):
    """A group of settings: unknown keys, wrong types, NaN and infinity are refused; it is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Optimizer(Section):
    """AdamW."""

    lr: float = setting(1e-4, "learning rate", ge=0, le=0.1)
    beta1: float = setting(0.0, "decay of AdamW's first moment", ge=0, le=0.9999)
    beta2: float = setting(0.999, "decay of AdamW's second moment", ge=0, le=0.99999)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", ge=0, le=1)
