"""Workloads by name or from a YAML file, and what the command line changes in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from precision_explorer.errors import UsageError, near_names, unknown_name
from precision_explorer.option_files import read_options
from precision_explorer.paths import expand_user
from precision_explorer.units import seconds
from precision_explorer.workload.arrivals import ARRIVALS
from precision_explorer.workload.background import Neighbour
from precision_explorer.workload.lengths import LENGTHS, Lengths
from precision_explorer.workload.mix import MixPart
from precision_explorer.workload.presets import PRESETS
from precision_explorer.workload.rate_search import RateSearch
from precision_explorer.workload.workload import SEARCHING, TAILS, Workload

_KINDS: dict[str, type[BaseModel]] = {**ARRIVALS, **LENGTHS}
_MAPPINGS = {"model_type", "model_attributes_type", "dict_type"}
REPEATED = 0.25
"""Share of a long `--duration` that its disturbed windows may take again: more would make a machine
that is busy throughout take twice the time that was asked for, and tell no more."""
_EXAMPLES = {
    "arrivals": "{kind: poisson, load: 0.7}",
    "lengths": "{input: {kind: fixed, tokens: 128}}",
    "mix": "{name: short, weight: 3}",
}


def load_workload(name_or_path: str | Path | None) -> Workload:
    """A preset by name (None: ``single-stream``) or a YAML file with `Workload`'s fields; the path
    of a trace is relative to that file.

    UsageError in one line for an unknown name, an unreadable file, an unknown or invalid value.
    """
    if name_or_path is None:
        return PRESETS["single-stream"]
    text = str(name_or_path)
    if text in PRESETS:
        return PRESETS[text]
    path = expand_user(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        return _from_file(path)
    message = unknown_name("workload", text, PRESETS)
    raise UsageError(message if message.endswith("?") else f"{message}, or give a .yaml file")


def changed(
    workload: Workload,
    tails: str | None = None,
    duration_s: float | None = None,
    background: Sequence[str] | None = None,
    search: RateSearch | None = None,
) -> Workload:
    """The same workload with another `tails` or `background`; with its rate to be found by
    `search`, at the resolution of its own if it has one; and with a window of `duration_s` seconds,
    the budget raised by as much, and by what `repeats_s` says (of a search that is the budget
    itself). UsageError where it makes no sense."""
    if search is not None:
        workload = _searching(workload, search)
    changes: dict[str, Any] = {} if tails is None else {"tails": tails}
    if tails is not None and tails not in TAILS:
        raise UsageError(f"--tails: {unknown_name('tails', tails, TAILS)}")
    if tails is not None and workload.scenario != "server":
        raise UsageError(
            f"--tails: {workload.scenario} has none; they are for the scenario server, such as "
            "--workload poisson"
        )
    if duration_s is not None:
        changes |= _window(workload, duration_s)
    if background is not None:
        changes["background"] = tuple(background)
    values = {name: getattr(workload, name) for name in Workload.model_fields}
    try:
        asked = changes or search is not None
        return Workload.model_validate(values | changes) if asked else workload
    except ValidationError as error:
        raise UsageError(f"workload '{workload.name}': {_one_line(error)}") from error


def _searching(workload: Workload, search: RateSearch) -> Workload:
    if workload.arrivals is None:
        raise UsageError(
            f"--find-rate: in {workload.scenario} no requests come by a clock; it is for the "
            "scenario server, such as --workload poisson"
        )
    own = workload.search
    rules: dict[str, Any] = {} if own else SEARCHING | {"tails": None, "load_of": "reference"}
    if own:
        search = search.model_copy(update={"resolution": own.resolution})
    return workload.model_copy(update=rules | {"arrivals": workload.arrivals.searching(search)})


def repeats_s(workload: Workload, duration_s: float) -> float:
    """Seconds that measuring windows of `duration_s` again may take: where requests wait for one
    another, `REPEATED` of a time that is long enough to be watched in windows."""
    one = workload.model_copy(update={"rounds": 1})
    again = workload.scenario != "server" and one.soak_windows(duration_s) > 0
    return REPEATED * duration_s if again else 0.0


def _window(workload: Workload, duration_s: float) -> dict[str, float]:
    if workload.scenario == "offline":
        raise UsageError(
            "--duration is the window in which requests come, and offline has none; set "
            "offline_seconds in a workload file"
        )
    if workload.search is not None:
        return {"budget_seconds": duration_s}
    if duration_s <= workload.warmup_seconds:
        raise UsageError(
            f"--duration {seconds(duration_s)} is not longer than the warm-up "
            f"({seconds(workload.warmup_seconds)}); give a longer one"
        )
    name = "duration_seconds" if workload.scenario == "server" else "min_seconds"
    budget = workload.budget_seconds + duration_s + repeats_s(workload, duration_s)
    # One long window, in which a slow change shows, and not parts of it.
    return {"budget_seconds": budget, name: duration_s, "rounds": 1}


def _from_file(path: Path) -> Workload:
    values = read_options(path, "workload", "min_requests: 30")
    values.setdefault("name", path.stem)
    try:
        return Workload.model_validate(values, context={"folder": path.parent})
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    """pydantic's first finding, with the keys that lead to it; of a list, which one, from 1 on. A
    misspelt key goes before the one that it leaves missing."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    steps = [str(step + 1 if isinstance(step, int) else step) for step in first["loc"]]
    # A union's chosen kind is one of the steps, and no key of the file.
    where = ".".join(step for step in steps if step not in _KINDS)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = list(_model_at(steps[:-1]).model_fields)
        found = unknown_name("key", steps[-1], near_names(steps[-1], known) or known)
        above = where.rpartition(".")[0]
        return f"{above}: {found}" if above else found
    if first["type"] == "union_tag_invalid":
        known = list(LENGTHS if steps[-1] in Lengths.model_fields else ARRIVALS)
        return f"{where}: {unknown_name('kind', str(first['ctx']['tag']), known)}"
    if first["type"] == "union_tag_not_found":
        known = list(LENGTHS if steps[-1] in Lengths.model_fields else ARRIVALS)
        return f"{where}: its kind is missing; give one of {', '.join(known)}"
    if first["type"] in _MAPPINGS:
        return f"{where}: no mapping; write it as {_EXAMPLES.get(steps[0], 'key: value')}"
    if first["type"] == "missing":
        return f"{where} is missing; give it"
    if not where or where == "scenario":
        return message
    return f"{where}: {message}" if "; " in message else f"{where}: {message}; correct the value"


def _model_at(steps: list[str]) -> type[BaseModel]:
    """The model that the keys `steps` lead to."""
    for step in reversed(steps):
        if step in _KINDS:
            return _KINDS[step]
        if step == "lengths":
            return Lengths
        if step == "mix":
            return MixPart
        if step == "background":
            return Neighbour
        if step == "search":
            return RateSearch
    return Workload
