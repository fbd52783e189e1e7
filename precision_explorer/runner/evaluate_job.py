"""Metrics of the `evaluate` library, computed from stored answers in a process of their own: its
import takes seconds and half a gigabyte, and a module is somebody's Python. No torch here."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from precision_explorer.errors import StoreError, TaskError
from precision_explorer.paths import without_paths
from precision_explorer.records import AddedScore, canonical_hash
from precision_explorer.runner.answers import Answers, answers_of
from precision_explorer.runner.scoring import add_scores, fetches
from precision_explorer.stats import cluster_labels, resample_counts
from precision_explorer.store import RunFolder
from precision_explorer.table.quality import DRAWS

# With fewer resamples there is no interval: each end of 95 % by percentiles would rest on two
# values or fewer. Then the seconds that they may take for one cell and metric.
_LEAST_DRAWS = 100
_DRAW_SECONDS = 20.0


def run(request: dict[str, Any], progress: Any) -> tuple[dict[str, Any], bytes]:
    """{"cells": {cell_id: {label: score}}}, a score as in `records.AddedScore`; each is stored in
    the run's folder as soon as it is there.

    `request`: ``run`` (folder), ``metrics`` (label, source, local, key, module, direction each),
    ``cells`` (cell_id, kind, seed, places of its metrics in ``metrics``), ``online``. A metric that
    can't be loaded or computed is answered as an error, one line.
    """
    folder = RunFolder(Path(request["run"]).absolute())
    with tempfile.TemporaryDirectory(prefix="precision-explorer-") as scratch:
        _set_up(scratch, request)
        loaded = [_load(m, scratch) for m in request["metrics"]]
        todo = [(cell, loaded[place]) for cell in request["cells"] for place in cell["metrics"]]
        found: dict[str, dict[str, Any]] = {}
        for done, (cell, metric) in enumerate(todo):
            progress("evaluate", done, len(todo))
            score = _score(folder, cell, metric)
            found.setdefault(cell["cell_id"], {})[metric["label"]] = score
            # At once: what is done stays, whatever becomes of this process.
            made = {metric["label"]: AddedScore.model_validate(score)}
            add_scores(folder, cell["cell_id"], made)
        progress("evaluate", len(todo), len(todo))
        # The library's temporary files lie in `scratch`.
        os.chdir("/")
    return {"cells": found}, b""


def _set_up(scratch: str, request: dict[str, Any]) -> None:
    """What the library reads when it is imported. The working folder is an empty one, since it
    takes a folder there for a metric of the same name."""
    for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[name] = "0" if fetches(request) else "1"
    os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"
    if all(m["local"] for m in request["metrics"]):
        # No module of the user's cache is taken for one that was given, and none is left there.
        os.environ["HF_MODULES_CACHE"] = str(Path(scratch) / "modules")
    empty = Path(scratch) / "empty"
    empty.mkdir()
    os.chdir(empty)


def _load(metric: dict[str, Any], scratch: str) -> dict[str, Any]:
    """`metric` with its ``loaded`` module and ``version``, or with an ``error``."""
    with _without_models():
        import evaluate

    found = metric | {"version": f"evaluate {evaluate.__version__}", "error": None}
    try:
        module = evaluate.load(metric["source"], keep_in_memory=True, cache_dir=scratch)
    except Exception as error:
        return found | {"error": _why_not_loaded(metric, error)}
    return found | {"loaded": module, "module": metric["module"] or _source_hash(module)}


@contextlib.contextmanager
def _without_models() -> Iterator[None]:
    """The library imports transformers, and so torch, for its evaluators, which are of no use here:
    three quarters of its import. A metric that is made of a model imports it all the same, later.
    """
    hidden = [name for name in ("transformers", "accelerate") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _why_not_loaded(metric: dict[str, Any], error: Exception) -> str:
    if isinstance(error, ImportError) or metric["local"]:
        return f"{metric['label']} can't be loaded ({_line(error)}); correct or install it"
    return (
        f"{metric['label']} can't be fetched and is not in the cache ({_line(error)}); run it "
        "where the hub can be reached and HF_HUB_OFFLINE is not set, or give the path of a local "
        "module"
    )


def _source_hash(module: Any) -> str:
    """16 hex digits of the script that was fetched."""
    script = inspect.getsourcefile(type(module))
    return canonical_hash(Path(script).read_text(encoding="utf8") if script else "")


def _score(folder: RunFolder, cell: dict[str, Any], metric: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "value": None,
        "by": metric["version"],
        "module": metric["module"],
        "higher_is_better": metric["direction"],
        "error": metric["error"],
    }
    if metric["error"] is not None:
        return answer
    try:
        record = folder.read_record(cell["cell_id"])
        known = None if record is None else record.known_samples
        columns = folder.read_samples(cell["cell_id"], "example", known)
        answers = answers_of(cell["kind"], columns)
        found = _computed(metric, answers, columns.get("group"), cell["seed"])
        repeat = folder.read_samples(cell["cell_id"], "repeat", known)
        if repeat["id"] and repeat["id"] == columns["id"]:
            found["again"] = _again(metric, cell["kind"], repeat)
        return answer | found
    except (TaskError, StoreError) as error:
        return answer | {"error": str(error)}
    except Exception as error:
        text = f"{metric['label']} failed on these answers ({_line(error)})"
        return answer | {"error": text}


def _computed(
    metric: dict[str, Any], answers: Answers, groups: Sequence[Any] | None, seed: int
) -> dict[str, Any]:
    """The score and its values on resampled examples."""
    module = metric["loaded"]
    predictions, references = answers.fitting(module.features)
    results = numbers_in(module.compute(predictions=predictions, references=references))
    key = _key(metric, results)
    # Most of a call is the library's encoding of its inputs, which are in their types already: what
    # the module itself computes is called for resamples, if it gives the same score.
    direct = _tried(module._compute, predictions, references) == results
    call = module._compute if direct else module.compute

    def score(picked: Sequence[int]) -> float:
        drawn = [predictions[i] for i in picked], [references[i] for i in picked]
        return numbers_in(call(predictions=drawn[0], references=drawn[1]))[key]

    draws = _draws(score, _units(groups, len(predictions)), seed)
    return {
        "value": results[key],
        "results": results,
        "draws": draws,
        "draws_of": DRAWS if draws else 0,
        "seed": seed,
    }


def _again(metric: dict[str, Any], kind: str, repeat: dict[str, list[Any]]) -> float | None:
    """The score of the reference's second pass; None where there is none of it."""
    try:
        predictions, references = answers_of(kind, repeat).fitting(metric["loaded"].features)
        results = _tried(metric["loaded"].compute, predictions, references)
        return results[_key(metric, results)] if results else None
    except TaskError:
        return None


def numbers_in(result: Any) -> dict[str, float]:
    """The finite numbers that a metric returned, by name; TaskError where it returned none."""
    items = result.items() if isinstance(result, dict) else ()
    found = {}
    for name, value in items:
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # A list of one value per example, or text.
        if math.isfinite(number):
            found[str(name)] = number
    if not found:
        raise TaskError("the metric returned no finite number for these answers")
    return found


def _key(metric: dict[str, Any], results: dict[str, float]) -> str:
    """Which of its numbers is the score."""
    name = metric["label"].partition(":")[2].partition("#")[0].rsplit("/", 1)[-1]
    wanted = metric["key"] or (name if name in results else None)
    if wanted is None and len(results) == 1:
        return next(iter(results))
    if wanted not in results:
        raise TaskError(
            f"{metric['label']} returns {', '.join(results)}; name one of them, as in "
            f"{metric['label'].partition('#')[0]}#{next(iter(results))}"
        )
    return wanted


def _units(groups: Sequence[Any] | None, n: int) -> list[list[int]]:
    """What is resampled: single examples, or whole groups in sorted order of their labels, as
    `stats.group_sums` has them."""
    labels = cluster_labels(groups)
    if labels is None:
        return [[i] for i in range(n)]
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(int(label), []).append(i)
    return [members[label] for label in sorted(members)]


def _tried(call: Callable[..., Any], predictions: Any, references: Any) -> dict[str, float]:
    try:
        return numbers_in(call(predictions=predictions, references=references))
    except Exception:
        return {}


def _draws(
    score: Callable[[Sequence[int]], float], units: list[list[int]], seed: int
) -> list[float]:
    """The score on the first resamples of `units`, as many of `DRAWS` as there is time for; none
    where one of them has no score."""
    values: list[float] = []
    began = time.perf_counter()
    for counts in resample_counts(len(units), DRAWS, seed):
        took = time.perf_counter() - began
        hopeless = len(values) == 1 and took * _LEAST_DRAWS > _DRAW_SECONDS
        if hopeless or took > _DRAW_SECONDS:
            break
        picked = [i for unit, count in zip(units, counts, strict=True) for i in unit * int(count)]
        try:
            values.append(score(picked))
        except (TaskError, KeyError):
            return []
    return values if len(values) >= _LEAST_DRAWS else []


def _line(error: Exception) -> str:
    """An error of somebody's code in one short line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_paths(f"{type(error).__name__}: {lines[0][:200]}")
