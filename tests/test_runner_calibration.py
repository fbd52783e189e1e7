"""A calibrated format in a sweep: who sees which texts, which cells share a model, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from precision_explorer.cli import main
from precision_explorer.errors import TaskError, UsageError
from precision_explorer.formats import Support
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import CellRecord
from precision_explorer.runner import sweep
from precision_explorer.runner.requests import load_request, task_request
from precision_explorer.runner.session import Session
from precision_explorer.runner.sessions import sessions
from precision_explorer.runner.sweep import (
    Prepared,
    prepare_sweep,
    run_sweep,
    sweep_document,
)

RECIPE = {"kernel": "torch", "library": "torch", "compute_dtype": "float32"}
STATIC = RECIPE | {"kernel": "int-mm", "smoothing_alpha": 0.5}
TEST = [("a good film", "positive"), ("a bad film", "negative"), ("so dull", "negative")]
FRESH = [("well done, I liked it", "positive"), ("what a waste of time", "negative")]


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    """The device's answer, without its dry runs."""

    def answer(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
        return {
            name: Support(name, "native", "a unit", STATIC if name == "int8-static" else RECIPE)
            for name in formats
        }

    monkeypatch.setattr(sweep, "probe", answer)


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    return path


def card(folder: Path, calibration: list[tuple[str, str]] | None, **changes: Any) -> str:
    document = {
        "name": folder.name,
        "version": 1,
        "kind": "text-classification",
        "data": {"path": "test.jsonl"},
        "columns": {"text": "text", "label": "label"},
        "metrics": ["accuracy"],
    }
    write(folder / "test.jsonl", TEST)
    if calibration is not None:
        write(folder / "calibration.jsonl", calibration)
        document["calibration"] = {"path": "calibration.jsonl"}
    (folder / "task.yaml").write_text(yaml.safe_dump(document | changes))
    return str(folder)


def prepared(tasks: list[str], **more: Any) -> Prepared:
    given = {"task": tasks, "formats": "fp32,int8-static", "device": "cpu", "threads": 1} | more
    return prepare_sweep(make_spec(given), lambda event: None)


def cells(found: Prepared) -> dict[tuple[str, str], Any]:
    return {(c.task.card.name, c.cell.format): c for c in found.plan.cells}


def test_a_sweep_measures_what_is_calibrated_and_skips_what_can_t_be(tmp_path, quick_workload):
    tasks = [card(tmp_path / "with", FRESH), card(tmp_path / "without", None)]
    out = str(tmp_path / "run")
    found = prepared(tasks, out=out, workload=str(quick_workload), batch_size="1")
    phases = []
    folder, tally = run_sweep(found, lambda e: phases.append(e.data.get("phase")))
    assert (tally.ran, tally.skipped, tally.failed) == (3, 1, 0)
    records: dict[Any, CellRecord] = {
        name: folder.read_record(cell.cell_id) for name, cell in cells(found).items()
    }
    skipped = records["without", "int8-static"]
    assert skipped.status == "skipped"
    assert "task without has no calibration set; add to its card" in skipped.skip_reason
    ran = records["with", "int8-static"]
    assert ran.applied.converted_share > 0.99
    assert "calibrated on 2 texts" in ran.applied.reason
    assert "none of them in the test data" in ran.applied.reason
    assert ran.cell.recipe["calibration"] in ran.applied.reason
    assert "calibrated" not in records["with", "fp32"].applied.reason
    assert "calibrate" in phases
    fp32 = records["with", "fp32"].measurements.quality.scores
    assert ran.measurements.quality.scores["accuracy"] == fp32["accuracy"]


def test_a_set_that_overlaps_is_one_line_and_nothing_runs(tmp_path, capsys):
    task = card(tmp_path / "mine", [*FRESH, ("So,  DULL!", "negative")])
    out = tmp_path / "run"
    arguments = ["--task", task, "--formats", "fp32,int8-static", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main(["sweep", *arguments, "--limit", "1", "--out", str(out)])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "1 of the 3 calibration examples (id 2) stand in the test data of task mine" in error
    assert not out.exists()
    # A sweep in which nothing calibrates does not read it.
    assert prepared([task], formats="fp32").plan.to_run


def test_another_calibration_makes_another_cell_of_the_calibrated_format_alone(tmp_path):
    tasks = [card(tmp_path / "mine", FRESH)]
    first = cells(prepared(tasks))
    other = cells(prepared([card(tmp_path / "mine", [*FRESH, ("one more", "positive")])]))
    none = cells(prepared([card(tmp_path / "mine", None)]))
    fp32, static = ("mine", "fp32"), ("mine", "int8-static")
    assert first[fp32].cell_id == other[fp32].cell_id == none[fp32].cell_id
    assert len({c[static].cell_id for c in (first, other, none)}) == 3
    assert len({c.cell.method_id for found in (first, other, none) for c in found.values()}) == 1


def test_the_option_goes_before_the_card_and_no_path_is_passed_on(tmp_path):
    tasks = [card(tmp_path / "with", FRESH), card(tmp_path / "without", None)]
    file = write(tmp_path / "files" / "own.jsonl", [("quite another text", "positive")])
    found = prepared(tasks, calibration=str(file))
    for name in ("with", "without"):
        planned = cells(found)[name, "int8-static"]
        assert planned.skip is None
        assert planned.task.calibration.texts == ["quite another text"]
    document = sweep_document(found, "run")
    assert document["spec"]["calibration"] == "own.jsonl"
    assert str(tmp_path) not in json.dumps(document)
    with pytest.raises(TaskError, match="correct --calibration"):
        prepared(tasks, calibration=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="no format of this sweep calibrates; add int8-static"):
        prepared(tasks, calibration=str(file), formats="fp32")


def test_cells_of_other_calibrations_or_cuts_share_no_model(tmp_path):
    tasks = [
        card(tmp_path / "a", FRESH),
        card(tmp_path / "b", [*FRESH, ("one more", "positive")]),
        # The same texts, cut elsewhere.
        card(tmp_path / "c", FRESH, max_length=8),
    ]
    groups = [
        [(c.task.card.name, c.cell.format) for c in group]
        for group in sessions(prepared(tasks).plan.to_run)
    ]
    assert [("a", "fp32"), ("b", "fp32"), ("c", "fp32")] in groups
    static = [group for group in groups if group[0][1] == "int8-static"]
    assert static == [[("a", "int8-static")], [("b", "int8-static")], [("c", "int8-static")]]


def test_only_the_calibrated_format_s_worker_gets_the_texts(tmp_path):
    found = prepared([card(tmp_path / "mine", FRESH)])
    fp32, static = (load_request(c, found.spec, found.facts, "log") for c in found.plan.cells)
    assert fp32["calibration"] is None
    sent = static["calibration"]
    assert sorted(e["text"] for e in sent["examples"]) == sorted(text for text, _ in FRESH)
    assert sent["card"]["max_length"] == 1024
    # The cell's own request still holds the test examples.
    asked = task_request(found.plan.cells[1], "log")["examples"]
    assert sorted(e["text"] for e in asked) == sorted(text for text, _ in TEST)


def test_texts_are_run_one_at_a_time_so_that_padding_sets_no_range():
    batches: list[Any] = []
    adapter = SimpleNamespace(items=lambda: ["a", "b", "c"], scores=batches.append)
    asked: list[Any] = []
    session = SimpleNamespace(
        request={"calibration": {"examples": ["x"]}},
        _adapter=lambda request: asked.append(request) or adapter,
        progress=lambda *arguments: None,
    )
    Session._calibrate(session)  # type: ignore[arg-type]
    assert batches == [["a"], ["b"], ["c"]]
    assert asked == [{"examples": ["x"]}]
