"""What all declared parts of a workload have in common: frozen, strict, finite."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Declared(BaseModel):
    """Values that someone declared in a file: unknown keys, infinity and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: Any) -> Any:
        # YAML's `yes` and `on` are truth values, which would else count as 1.
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            listed = value if isinstance(value, (list, tuple)) else [value]
            wrong = next((one for one in listed if isinstance(one, bool)), None)
            if wrong is not None and field is not None and field.annotation is not bool:
                raise ValueError(f"{name}: {str(wrong).lower()} is no number; correct the value")
        return values
