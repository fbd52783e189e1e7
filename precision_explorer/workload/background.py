"""Background work: what else the machine does while each format is measured a second time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from precision_explorer.errors import unknown_name
from precision_explorer.paths import expand_user
from precision_explorer.workload.declared import Declared

Kind = Literal["cpu", "copy", "model"]
BACKGROUNDS: tuple[str, ...] = get_args(Kind)
_EXAMPLE = "write it as cpu:1,copy or model:demo"
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


class Neighbour(Declared):
    """One kind of work beside the measurement, in `processes` of its own; as text ``cpu:2``,
    ``copy`` or ``model:PATH``.

    `cpu`: products of matrices that a core's own cache holds. `copy`: copies of an array that no
    cache holds, to the device's memory and back. `model`: a model in float32 that serves requests,
    the next when the last is done. `revision` pins the model; where it lies (`path`) is no part of
    a workload's rules.
    """

    kind: Kind
    processes: int = Field(default=1, ge=1)
    model: str | None = None
    revision: str | None = None
    path: str | None = Field(default=None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, values: Any, info: ValidationInfo) -> Any:
        """A model's folder is as seen from that of the workload file."""
        if not isinstance(values, str):
            return values
        found = _parsed(values)
        folder, path = (info.context or {}).get("folder"), found.get("path")
        if folder is None or path is None or "/" not in path:
            return found
        beside = folder / expand_user(path)
        return found | ({"path": str(beside)} if beside.is_dir() else {})

    def __str__(self) -> str:
        if self.kind == "model":
            return f"model:{self.model or self.path}"
        return f"{self.kind}:{self.processes}"


def _parsed(text: str) -> dict[str, Any]:
    kind, colon, rest = text.strip().partition(":")
    if kind not in BACKGROUNDS:
        raise ValueError(f"{unknown_name('background', kind, BACKGROUNDS)}; {_EXAMPLE}")
    if kind == "model":
        if not rest:
            raise ValueError("model names none; write it as model:demo or model:path/to/model")
        return {"kind": kind, "path": rest}
    if colon and not _NUMBER.fullmatch(rest):
        raise ValueError(f"{text} is no number of processes; write it as {kind}:1")
    return {"kind": kind, "processes": int(rest) if colon else 1}


def as_list(value: Any) -> Any:
    """A comma-separated text as a list; what is no text or list is refused."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"background names no work; {_EXAMPLE}, or leave it out")
    return value


def check_once(background: Sequence[Neighbour]) -> None:
    """ValueError where one kind (of models: one model) is named twice."""
    seen = set()
    for one in background:
        same = one.kind if one.kind != "model" else str(one)
        if same in seen:
            more = f"; write {one.kind}:2" if one.kind != "model" else ""
            raise ValueError(f"background names {same} twice{more}, or leave one out")
        seen.add(same)


def names_of(background: Sequence[Neighbour]) -> str:
    """``cpu:1,copy:1,model:demo``."""
    return ",".join(map(str, background))
