"""Tasks of lm-evaluation-harness: ``lm-eval:NAME``, or ``lm-eval:path/to/task.yaml``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from precision_explorer import scrub
from precision_explorer.errors import TaskError, UsageError
from precision_explorer.paths import expand_user
from precision_explorer.records import TaskIdentity, canonical_hash, metric_info
from precision_explorer.records.metrics import LM_EVAL
from precision_explorer.tasks.cards import DataSource, TaskCard
from precision_explorer.tasks.data import PreparedTask
from precision_explorer.tasks.harness_metrics import metric_name

KIND = "lm-eval"
_EXTRA = 'pip install "precision-explorer[lm-eval]"'


class HarnessCard(TaskCard):
    """What takes a card's place for a task of the harness. `spec` says how a worker builds the task
    (`harness_library.build`); the longest input is the model's own."""

    name: str
    data: DataSource | None = None  # type: ignore[assignment]
    columns: dict[str, str] = Field(default_factory=dict)
    max_length: int = 1 << 30
    spec: dict[str, Any]
    output_type: str
    groups: list[dict[str, Any]] = Field(default_factory=list)
    """Groups with a score of their own that it was asked for with: ``name``, ``tasks`` and
    ``metrics`` (``metric``, ``by_size``), all by the names that they have here."""

    # These three stand in place of the rules for cards that people write.
    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        return kind

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: list[str], info: ValidationInfo) -> list[str]:
        return metrics

    @model_validator(mode="after")
    def _consistent(self) -> HarnessCard:
        return self

    @property
    def decodes(self) -> bool:
        """Whether its answers are generated token by token."""
        return self.output_type == "generate_until"

    def asked(self) -> dict[str, Any]:
        """What a worker must know of the card."""
        names = {"kind": self.kind, "metrics": list(self.metrics), "max_length": self.max_length}
        return names | {"spec": self.spec, "higher_is_better": self.higher_is_better}


def is_harness(name: str) -> bool:
    """Whether `name` asks for a task of lm-evaluation-harness."""
    return name.startswith(LM_EVAL)


def prepare_harness(
    name: str, limit: int | None, seed: int, trust_remote_code: bool
) -> list[PreparedTask]:
    """The tasks that `name` (with its ``lm-eval:``) stands for: one, or all members of a group or
    tag, each with the first `limit` of its documents in one seeded order.

    Asks the library in a process of its own. UsageError where it is not installed; TaskError, one
    line, for an unknown name, a file that would run Python without `trust_remote_code`, or data
    that can't be had.
    """
    asked = name.removeprefix(LM_EVAL)
    if not asked:
        raise UsageError("lm-eval: names no task; write it as lm-eval:NAME or lm-eval:task.yaml")
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(f"{name} needs lm-evaluation-harness; install it with {_EXTRA}")
    request: dict[str, Any] = {
        "limit": limit,
        "seed": seed,
        "trusted": trust_remote_code,
        "folder": str(Path.cwd()),
    }
    if asked.endswith((".yaml", ".yml")):
        path = expand_user(asked).absolute()
        if not path.is_file():
            raise TaskError(f"no lm-eval task at {path}; correct the path")
        request["path"] = str(path)
    else:
        request["name"] = asked
    found = _ask(request)
    tasks = [_prepared(task) for task in found["tasks"]]
    groups = [_group(group, tasks) for group in found["groups"]]
    return [_with_groups(task, groups) for task in tasks]


def _with_groups(task: PreparedTask, groups: list[dict[str, Any]]) -> PreparedTask:
    own = [group for group in groups if task.card.name in group["tasks"]]
    return replace(task, card=task.card.model_copy(update={"groups": own})) if own else task


def _group(found: dict[str, Any], tasks: list[PreparedTask]) -> dict[str, Any]:
    """A group by the names of its tasks and metrics here; a metric whose filters the group leaves
    open is made under each that a task has, in their order."""
    names = [LM_EVAL + name for name in found["tasks"]]
    there = dict.fromkeys(m for t in tasks if t.card.name in names for m in t.card.metrics)
    metrics = []
    for one in found["metrics"]:
        filters = one["filters"]
        wanted = (
            [m for m in there if m.partition(",")[0] == LM_EVAL + one["metric"]]
            if filters is None
            else [metric_name(one["metric"], name) for name in filters]
        )
        metrics += [{"metric": m, "by_size": one["by_size"]} for m in wanted if m in there]
    return {"name": LM_EVAL + found["name"], "tasks": names, "metrics": metrics}


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="precision-explorer-") as folder:
        answer = Path(folder) / "answer.json"
        quiet = {
            "PYTHONWARNINGS": "ignore",
            "TQDM_DISABLE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        quiet |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "precision_explorer.tasks.harness_child"],
            input=json.dumps(request | {"answer": str(answer)}),
            capture_output=True,
            text=True,
            check=False,
            env=scrub.scrubbed(os.environ, keep=scrub.FETCHING) | quiet,
        )
        if not answer.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise TaskError(f"lm-evaluation-harness gave no answer ({last[:300]}); see if it works")
        found = json.loads(answer.read_text(encoding="utf8"))
    if "error" in found:
        raise TaskError(found["error"])
    return found


def _prepared(found: dict[str, Any]) -> PreparedTask:
    names = [metric_name(m["metric"], m["filter"]) for m in found["metrics"]]
    if not names:
        raise TaskError(f"lm-eval:{found['name']} declares no metric; choose another task")
    examples = found["examples"]
    # Its name may hold a path that a user gave to the file, or a group's.
    name = LM_EVAL + found["name"]
    library = importlib.metadata.version("lm_eval")
    info = metric_info(names[0])
    card = HarnessCard(
        name=name,
        version=_whole(found["version"]),
        kind=KIND,
        metrics=names,
        # Where the registry knows the direction, it stays the registry's.
        higher_is_better=found["metrics"][0]["higher_is_better"] if info is None else None,
        spec=found["spec"],
        output_type=found["output_type"],
        source=f"lm-evaluation-harness {library}, data {found['source'] or 'of its own'}",
    )
    rules = {name: found[name] for name in ("version", "config", "output_type")}
    identity = TaskIdentity(
        name=name,
        version=card.version,
        kind=KIND,
        card_hash=canonical_hash(rules | {"metrics": names, "lm_eval": library}),
        data_hash=found["data"],
        item_ids_hash=canonical_hash([e["id"] for e in examples]),
        n=len(examples),
    )
    return PreparedTask(card, identity, examples)


def _whole(version: Any) -> int:
    """A task's version as a whole number, at least 1; all of it is in the card's hash."""
    try:
        return max(int(float(version)), 1)
    except (TypeError, ValueError):
        return 1
