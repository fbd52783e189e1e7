"""Requests of several tasks in one workload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_explorer.errors import PrecisionExplorerError, UsageError
from precision_explorer.plan import SweepSpec
from precision_explorer.runner.mix_tasks import OWNER, mixed_examples, with_tasks
from precision_explorer.runner.offered import check_served
from precision_explorer.store import read_run
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Workload, load_workload, plan_schedule

CARD = """
name: {name}
version: 1
kind: text-classification
data: {{path: {name}.jsonl}}
columns: {{text: text, label: label}}
metrics: [accuracy]
licence: CC0-1.0
source: made for this test
"""
ARRIVALS = "arrivals: {kind: poisson, rate_per_s: 10}"
WORKLOAD = f"""
scenario: server
{ARRIVALS}
duration_seconds: 3
warmup_seconds: 0.2
warmup_requests: 1
rounds: 1
offline_seconds: 0.1
offline_min_batches: 1
energy_seconds: 0
mix:
  - {{name: own, weight: 1}}
  - {{name: other, weight: 1, task: other/task.yaml}}
"""


@pytest.fixture
def workload_file(tmp_path) -> Path:
    """A workload that mixes in the task beside it."""
    card(tmp_path / "other", "chatter", ["so what", "nothing much"])
    file = tmp_path / "both.yaml"
    file.write_text(WORKLOAD)
    return file


def card(folder: Path, name: str, texts: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"text": text, "label": "positive"}) for text in texts]
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    file = folder / "task.yaml"
    file.write_text(CARD.format(name=name))
    return file


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.model_validate({"model": ["demo"], "task": ["sentiment"]} | changes)


def made(workload: Workload, **changes: Any) -> Any:
    asked = spec(**changes)
    return with_tasks(workload, asked, lambda name: prepare(load_card(name), None, 0))


def mixed_in(file: Path, **changes: Any) -> list[dict[str, Any]]:
    _, tasks = made(load_workload(file), **changes)
    return mixed_examples(tasks, [prepare(load_card("sentiment"), 5, 0)])


def test_each_part_takes_the_examples_of_its_task():
    workload = Workload.model_validate(
        {
            "scenario": "server",
            "arrivals": {"kind": "constant", "rate_per_s": 10},
            "mix": [
                {"name": "own", "weight": 1, "group": "g"},
                {"name": "other", "weight": 1, "task": "chatter"},
            ],
        }
    )
    groups, owners = ["g", None, "g", "g"], [None, None, "chatter", "chatter"]
    plan = plan_schedule(workload, 4, 0, groups=groups, owners=owners)
    assert set(plan.items[plan.parts == 0]) == {0}
    assert set(plan.items[plan.parts == 1]) == {2, 3}


def test_rules_name_the_task_and_hold_its_hash_and_no_path(workload_file):
    found, tasks = made(load_workload(workload_file))
    rules = found.rules()["mix"]
    assert [part.get("task") for part in rules] == [None, "chatter"]
    assert str(workload_file.parent) not in json.dumps(rules)
    # The worker reads the rules again.
    assert Workload.model_validate(found.rules()).rules() == found.rules()
    assert [task.card.name for task in tasks] == ["chatter"]
    card(workload_file.parent / "other", "chatter", ["so what", "nothing at all"])
    again, _ = made(load_workload(workload_file))
    assert again.rules()["mix"][1]["task_hash"] != rules[1]["task_hash"]


def test_other_examples_than_the_file_s_hash_says_are_refused(workload_file):
    workload_file.write_text(WORKLOAD.replace("task.yaml", "task.yaml, task_hash: beef"))
    with pytest.raises(UsageError, match="not those of task_hash beef"):
        made(load_workload(workload_file))


def test_without_other_tasks_nothing_changes():
    plain = load_workload("poisson")
    assert made(plain) == (plain, [])


def test_examples_know_their_task(workload_file):
    examples = mixed_in(workload_file)
    assert sorted(e["text"] for e in examples) == ["nothing much", "so what"]
    assert {e[OWNER] for e in examples} == {"chatter"}
    assert all(e["id"].startswith("chatter:") for e in examples)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("other/task.yaml", {"runtime": ["compile"]}, "use --runtime eager"),
        ("lm-eval:piqa", {}, "can't be mixed in"),
        ("sentiment", {}, "the sweep's own task"),
        ("news-perplexity", {}, "mix tasks of one kind"),
        ("news-retrieval", {}, "has a corpus"),
        ("no-such-task", {}, "no-such-task"),
    ],
)
def test_what_can_not_be_mixed_is_said_in_one_line(workload_file, part, changes, words):
    workload_file.write_text(WORKLOAD.replace("other/task.yaml", part))
    with pytest.raises(PrecisionExplorerError, match=words) as raised:
        mixed_in(workload_file, **changes)
    assert "\n" not in str(raised.value)


def test_a_group_that_the_other_task_lacks_is_told_before_anything_runs(workload_file):
    workload_file.write_text(WORKLOAD.replace("task.yaml", "task.yaml, group: none"))
    found, tasks = made(load_workload(workload_file))
    own = prepare(load_card("sentiment"), 5, 0)
    with pytest.raises(UsageError, match="no example is of the group 'none' of 'other'"):
        check_served(found, [own], ["eager"], 0, mixed_examples(tasks, [own]))


def test_a_sweep_serves_both_and_scores_its_own(workload_file, tmp_path):
    folder = tmp_path / "run"
    asked = ["--formats", "fp32", "--limit", "12", "--workload", workload_file, "--out", folder]
    command = ["sweep", *asked, "--device", "cpu", "--threads", "1", "--batch-size", "1", "--audit"]
    done = subprocess.run(
        [sys.executable, "-m", "precision_explorer", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, _ = read_run(folder)
    (cell,) = folder.glob("cells/*.json")
    measured = found.read_record(cell.stem).measurements
    assert measured.quality.examples == 12
    # Audited with requests of both, and the answers of its own.
    checks = {check.name: check for check in measured.audit.checks}
    assert checks["answers"].outcome == "passed", checks["answers"]
    assert checks["other-seed"].figures["queries"] >= 16, checks["other-seed"]
    requests = found.read_samples(cell.stem, "request")
    window = [k for k, at in enumerate(requests["scheduled_s"]) if at is not None]
    parts = {(requests["part"][k], requests["id"][k].split(":")[0] == "chatter") for k in window}
    assert parts == {("own", False), ("other", True)}
    assert str(workload_file.parent) not in (folder / "sweep.json").read_text()
