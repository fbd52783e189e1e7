"""`reproduce`: a stored run's plan run again into a new folder, and held against it. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from precision_explorer.errors import StoreError, UsageError
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.plan import SweepSpec
from precision_explorer.plan.spec import OF_PLACES
from precision_explorer.records import CellRecord, TaskIdentity
from precision_explorer.runner.sweep import Prepared
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import Table, build
from precision_explorer.table.methods import apart

# What pins a model that is no commit of a hub.
_LOCAL = ("files:", "synthetic:")
# Of the method, what was asked for. What a release decides (rules, batches, what it declares) is
# told like versions of libraries.
_ASKED = ("model", "task", "workload", "seed")
_KEY = ("model_revision", "task", "format", "runtime")

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Pair:
    """One cell of the stored run and the same of the new one, each figure (stored, new); None where
    it was not measured. `examples`: how many were answered in either; `differing`: how many of them
    otherwise, by what the cell predicts, or by its loss where it predicts nothing, or in one alone;
    None where only one of the two answered anything."""

    format: str
    runtime: str
    task: str
    status: tuple[str, str | None]
    metric: str | None
    quality: tuple[float | None, float | None]
    examples: int | None
    differing: int | None
    latency_p50_s: tuple[float | None, float | None]
    throughput_per_s: tuple[float | None, float | None]

    @property
    def same(self) -> bool:
        """Whether the new cell ended as the stored one, with the same answers where it has any."""
        return self.status[0] == self.status[1] and self.examples is not None and not self.differing


def stored_spec(run: Path, given: dict[str, Any]) -> SweepSpec:
    """The spec of the run at `run`, with what is `given` in place of its own; batches as large as
    its were, and models of a hub at its commit.

    What the run's folder says is trusted with no code: `trust_remote_code`, `allow_pickle` and
    `allow_metric` count as given here. UsageError for what the folder does not keep and was not
    given (recipes, addresses of servers, calibration texts), StoreError where it is no run.
    """
    _, sweep = read_run(run)
    left: tuple[str, ...] = ("allow_metric", "out")
    if sweep["spec"].get("executor", "local") != "local":
        left += ("executor", *OF_PLACES)  # Its cluster is not this machine.
    stored = {k: v for k, v in sweep["spec"].items() if k not in left}
    if "cores" in left and stored.get("threads") is None:
        # As many as the places had cores, which are part of the cells' identity.
        stored["threads"] = sweep["environment"]["threads"]
    remote = bool(stored.pop("trust_remote_code", False))
    if remote and not given.get("trust_remote_code"):
        raise UsageError(
            f"{run} ran the model folder's own code; look at that code, and if you trust it give "
            "--trust-remote-code"
        )
    if stored.pop("allow_pickle", False) and not given.get("allow_pickle"):
        raise UsageError(
            f"{run} read a model's pickled weights; if you trust who made them give --allow-pickle"
        )
    document = stored | _pinned(sweep, given) | given
    _check_kept(run, document, stored, given)
    try:
        return SweepSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"{run}/sweep.json holds a spec that this release can't run ({name}: {first['msg']})"
        ) from error


def _pinned(sweep: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What the options left open, as it was found: the size of batches, and a hub's commit."""
    pinned: dict[str, Any] = {}
    budgets = {method["batch_plan"].get("max_tokens") for method in sweep["methods"].values()}
    if len(budgets) == 1 and None not in budgets:
        pinned["batch_tokens"] = budgets.pop()
    revisions = {model["revision"] for model in sweep["models"]}
    if len(revisions) == 1 and "model" not in given:
        (revision,) = revisions
        if not revision.startswith(_LOCAL):
            pinned["revision"] = revision
    return pinned


def _check_kept(
    run: Path, document: dict[str, Any], stored: dict[str, Any], given: dict[str, Any]
) -> None:
    if "endpoint" in document.get("runtime", ()):
        raise UsageError(f"{run} asked servers, whose addresses no run keeps; sweep them again")
    unknown = [name for name in document["formats"] if name not in CATALOG]
    if "formats" not in given and unknown:
        raise UsageError(
            f"{run} holds {', '.join(unknown)}, whose recipe no run keeps; name the other formats, "
            "or the recipe as mixed:FILE, by --formats"
        )
    if stored.get("calibration") and "calibration" not in given:
        raise UsageError(
            f"{run} was calibrated on {stored['calibration']}, which no run keeps; give it by "
            "--calibration"
        )


def check_target(run: Path, target: Path) -> None:
    """UsageError where `target` holds a record of the run at `run` itself, which would stand for a
    new measurement."""
    for path in sorted((run / "cells").glob("*.json")):
        there = target / "cells" / path.name
        if there.is_file() and there.read_bytes() == path.read_bytes():
            raise UsageError(
                f"{target} holds records of {run} itself, which measure nothing anew; give another "
                "--out"
            )


def check_inputs(run: Path, prepared: Prepared) -> list[str]:
    """What differs here from the stored run but does not stand against running it again, a sentence
    each: device, libraries, what this release measures otherwise. UsageError in one line where
    models, data or workload are not those of the run."""
    folder, sweep = read_run(run)
    recorded = {model["revision"]: model["name"] for model in sweep["models"]}
    for ref in prepared.refs:
        if ref.identity.revision not in recorded:
            raise UsageError(
                f"the model {ref.name} is at {ref.identity.revision} here, the run's at "
                f"{' or '.join(recorded)}; give the run's model by --model"
            )
    tasks = {record.cell.task.name: record.cell.task for record in _records(folder, sweep)}
    for task in prepared.tasks:
        _check_task(tasks.get(task.card.name), task.identity)
    return [*_environments(sweep, prepared), *_check_methods(sweep, prepared)]


def _records(folder: RunFolder, sweep: dict[str, Any]) -> Iterator[CellRecord]:
    found = (folder.read_record(cell["cell_id"]) for cell in sweep["plan"]["cells"])
    return (record for record in found if record is not None)


def _check_task(stored: TaskIdentity | None, here: TaskIdentity) -> None:
    if stored is None:
        raise UsageError(f"the run holds no cell of the task {here.name}; give its task by --task")
    words = {"version": "version", "card_hash": "card", "data_hash": "data",
             "item_ids_hash": "examples", "n": "number of examples"}  # fmt: skip
    for name, word in words.items():
        was, now = getattr(stored, name), getattr(here, name)
        if was != now:
            raise UsageError(
                f"the {word} of the task {here.name} is {now} here, the run's is {was}; give the "
                "run's task by --task"
            )


def _environments(sweep: dict[str, Any], prepared: Prepared) -> Iterator[str]:
    was, now = sweep["environment"], prepared.environment
    if was["device_name"] != now.device_name or was["threads"] != now.threads:
        yield (
            f"device: {was['device_name']}, {was['threads']} threads then, {now.device_name}, "
            f"{now.threads} threads here"
        )
    old, new = was["libraries"], now.libraries
    changed = [
        f"{name} {old.get(name, 'none')} then, {new.get(name, 'none')} here"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    if changed:
        yield f"libraries: {'; '.join(changed)}"


def _check_methods(sweep: dict[str, Any], prepared: Prepared) -> Iterator[str]:
    """Sentences on methods that only the release makes otherwise; UsageError for others."""
    for planned in prepared.plan.cells:
        method, name = planned.cell.method(), planned.cell.method_id
        if name in sweep["methods"]:
            continue
        for stored, old in sweep["methods"].items():
            if (old["model"], old["task"]["name"]) != (method["model"], method["task"]["name"]):
                continue
            words = apart({stored: old, name: method})
            if any(not _agree(old[part], method[part]) for part in _ASKED):
                raise UsageError(
                    f"the method here is another: {words} Give what the run had, as by --workload"
                )
            yield words
            break


def _agree(old: Any, new: Any) -> bool:
    """Whether two parts of methods are the same in all that both releases knew."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_agree(old[name], new[name]) for name in {*old} & {*new})
    return bool(old == new)


def pairs(run: Path, again: Path) -> list[Pair]:
    """Each planned cell of the run beside the same of the new one, by model revision, task, format
    and runtime; without those of formats that were left out."""
    old, new = build([run]), build([again])
    folders = {"old": RunFolder(run), "new": RunFolder(again)}
    ids = {side: _cell_ids(folder) for side, folder in folders.items()}
    made, formats = _by_key(new), read_run(again)[1]["spec"]["formats"]
    found = []
    for key, row in _by_key(old).items():
        if key not in made and row["format"] not in formats:
            continue
        other = made.get(key, dict.fromkeys(row))
        answers = [_answers(folders[s], ids[s].get(key)) for s in ("old", "new")]
        examples, differing = _differing(*answers)
        found.append(
            Pair(
                format=row["format"],
                runtime=row["runtime"],
                task=row["task"],
                status=(row["status"], other["status"]),
                metric=row["quality_metric"],
                quality=(row["quality"], other["quality"]),
                examples=examples,
                differing=differing,
                latency_p50_s=(row["latency_p50_s"], other["latency_p50_s"]),
                throughput_per_s=(row["throughput_per_s"], other["throughput_per_s"]),
            )
        )
    return found


def _by_key(table: Table) -> dict[Key, dict[str, Any]]:
    return {tuple(row[name] for name in _KEY): row for row in table.rows}


def _cell_ids(folder: RunFolder) -> dict[Key, str]:
    """The finished cells of a run."""
    _, sweep = read_run(folder.path)
    return {
        (r.cell.model.revision, r.cell.task.name, r.cell.format, r.cell.runtime): r.cell_id
        for r in _records(folder, sweep)
        if r.status == "ok" and r.measurements.quality
    }


def _answers(folder: RunFolder, cell_id: str | None) -> dict[str, Any] | None:
    """{example: what was answered}; None of a cell that answered nothing."""
    if cell_id is None:
        return None
    record = folder.read_record(cell_id)
    known = None if record is None else record.known_samples
    columns = folder.read_samples(cell_id, "example", known)
    for name in ("prediction", "loss", "score"):
        values = columns.get(name)
        if values and any(value is not None for value in values):
            return dict(zip(columns["id"], values, strict=True))
    return None


def _differing(
    old: dict[str, Any] | None, new: dict[str, Any] | None
) -> tuple[int | None, int | None]:
    """(examples answered in either, of which otherwise or in one alone); 0 and 0 where neither
    answered any, None where one did."""
    if (old is None) != (new is None):
        return None, None
    one, two = old or {}, new or {}
    either = {*one, *two}
    missing = object()
    return len(either), sum(one.get(e, missing) != two.get(e, missing) for e in either)
