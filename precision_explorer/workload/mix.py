"""Several kinds of requests in one workload, each with its share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, model_validator

from precision_explorer.paths import expand_user
from precision_explorer.workload.declared import Declared
from precision_explorer.workload.lengths import Lengths


class MixPart(Declared):
    """One kind of request: its share is `weight` over the sum of all weights.

    It takes the examples of `task` (None: of the task that the cell scores) whose `group` is the
    one named (None: all examples), with `lengths` of its own (None: the workload's). `task` is a
    card's name or path, and the card's name once `task_hash`, which identifies its examples, is
    filled in.
    """

    name: str = Field(min_length=1, max_length=64)
    weight: float = Field(gt=0)
    task: str | None = Field(default=None, min_length=1)
    task_hash: str | None = None
    group: str | None = None
    lengths: Lengths | None = None

    @model_validator(mode="before")
    @classmethod
    def _located(cls, values: Any, info: ValidationInfo) -> Any:
        """A card's path as seen from the workload file's folder."""
        folder, given = (info.context or {}).get("folder"), None
        if isinstance(values, dict):
            given = values.get("task")
        if folder is None or not isinstance(given, str):
            return values
        path = Path(folder) / expand_user(given)
        # False also for what is too long for a path.
        there = os.path.exists(path)  # noqa: PTH110
        return values | {"task": str(path)} if there else values
