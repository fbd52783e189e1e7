"""Metrics from stored answers: built-in ones again, further ones added, those of the `evaluate`
library in a process of their own, and how the tables show them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from precision_explorer.cli import main
from precision_explorer.errors import TaskError, UsageError
from precision_explorer.records import AddedScore, AddedScores, sealed
from precision_explorer.report import to_csv, to_html, write_all
from precision_explorer.runner import evaluate_job, scoring
from precision_explorer.runner import rescore as rescoring
from precision_explorer.runner.answers import Answers, answers_of, label_codes
from precision_explorer.runner.evaluate_job import _key, _units, numbers_in
from precision_explorer.runner.jobs import JobFailed
from precision_explorer.runner.rescore import rescore
from precision_explorer.runner.scoring import add_scores
from precision_explorer.stats import resample_counts
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import build
from precision_explorer.table.quality import DRAWS
from precision_explorer.tasks import (
    KINDS,
    GenerationRules,
    answer_columns,
    check_allowed,
    external_label,
    external_metric,
    load_card,
    scores,
)
from precision_explorer.tasks.metrics import sufficient
from tests import command
from tests.test_records import CELL
from tests.test_store import arrow
from tests.test_table import (
    INT8_WRONG,
    REF_WRONG,
    classified,
    make_run,
    modelled,
    ok,
    rows_of,
)

MODULE = Path(__file__).parent / "metrics" / "agreement"


def f1(wrong: set[int]) -> float:
    """macro F1 of `classified(wrong)`, by scikit-learn."""
    from sklearn.metrics import f1_score

    rows = classified(wrong)
    pairs = [[row[name] for row in rows] for name in ("target", "prediction")]
    return float(f1_score(*pairs, average="macro"))


@pytest.fixture
def run(tmp_path):
    """fp32 at 0.8 and int8-dynamic at 0.775, scored by accuracy alone."""
    cells = [
        ok("fp32", classified(REF_WRONG)),
        ok("int8-dynamic", classified(INT8_WRONG), quality=0.775),
    ]
    path = make_run(tmp_path / "run", cells)
    write_all(build([path]), path)
    return path


def records(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((path / "cells").iterdir())}


def call(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


# -- built-in metrics ------------------------------------------------------------------------------


def test_scores_come_out_as_they_are_stored(run, capsys):
    before = records(run)
    assert call("rescore", run) == 0
    out, err = capsys.readouterr()
    assert out.count(" same ") == 2
    assert "2 scores computed from stored predictions, 0 differ" in err
    assert records(run) == before
    assert not (run / "scores").exists()


def test_a_further_metric_is_added_beside_the_records(run, capsys):
    before = records(run)
    assert call("rescore", run, "--metric", "macro_f1") == 0
    assert capsys.readouterr().out.count(" added ") == 2
    assert records(run) == before
    rows = rows_of(build([run], {"metric": "macro_f1"}))
    assert rows["fp32"]["quality"] == pytest.approx(f1(REF_WRONG))
    assert rows["int8-dynamic"]["quality_delta"] == pytest.approx(f1(INT8_WRONG) - f1(REF_WRONG))
    plain = rows_of(build([run]))["fp32"]
    assert plain["quality_metric"] == "accuracy"
    assert plain["scores"] == f"accuracy=0.8;macro_f1={f1(REF_WRONG)!r}"


def test_the_run_s_own_tables_name_the_new_root_and_the_added_score(run):
    root = RunFolder(run).manifest_root()
    call("rescore", run, "--metric", "macro_f1")
    assert RunFolder(run).manifest_root() != root
    written = (run / "tradeoffs.csv").read_text()
    assert RunFolder(run).manifest_root() in written
    assert "macro_f1=" in written
    assert written == to_csv(build([run]))
    assert "Other scores" in (run / "report.html").read_text()


def test_a_score_that_its_predictions_do_not_give_is_named(run, capsys):
    path = sorted((run / "cells").iterdir())[0]
    document = json.loads(path.read_text())
    document["measurements"]["quality"]["scores"]["accuracy"] += 1e-4
    document.pop("sha256", None)
    path.write_bytes(sealed(document))
    assert call("rescore", run) == 5
    out, err = capsys.readouterr()
    assert out.count(" differs ") == 1
    assert "1 differ from what is stored" in err


def test_a_cell_whose_samples_are_damaged_costs_only_itself(run, capsys):
    sorted((run / "samples").iterdir())[0].write_bytes(b"no parquet")
    folder, _ = read_run(run)
    found = rescore(run, (), None, (), lambda event: None)
    assert [one.value is None for one in found].count(True) == 1
    assert "damaged" in str(next(one.problem for one in found if one.value is None))
    assert folder.manifest_root()


ANSWERS = ("a red fox ran", "the red fox ran away", "", "two foxes")
REFERENCES = ("a red fox ran home", "the red fox ran", "one fox", "two foxes")


def rows_of_kind(kind: str) -> list[dict[str, Any]]:
    """Four example rows with every column that a metric of `kind` is made of."""
    rows = []
    for i in range(4):
        numbers = {name: float((i + k) % 3) / 2 for k, name in enumerate(
            ("token_f1", "ndcg_at_10", "recall_at_10", "score_norm", "score")
        )}  # fmt: skip
        row = numbers | {
            "id": f"e{i}", "group": None, "loss": 1.5 + i, "tokens": 3 + i, "words": 2, "bytes": 9,
            "right": i, "predicted": i + 1, "true": i + 2, "cosine": [0.3, 0.1, 0.9, 0.5][i],
            "target": i % 2, "prediction": i // 2,
        }  # fmt: skip
        if kind == "similarity":
            row |= {"target": float(i)}
        if KINDS[kind].answers:
            row |= {"target": REFERENCES[i], "prediction": ANSWERS[i], "unparsed": 0}
            row |= {"references": [REFERENCES[i]]}
        rows.append(row)
    if KINDS[kind].answers:
        names = [m for m in KINDS[kind].metrics if m != "exact_match"]
        found = answer_columns(names, ANSWERS, [[r] for r in REFERENCES], GenerationRules())
        rows = [row | {n: values[i] for n, values in found.items()} for i, row in enumerate(rows)]
    return rows


def with_every_score(made: Any, values: dict[str, float]) -> Any:
    record, rows = made
    document = record.model_dump()
    document["measurements"]["quality"]["scores"] = values
    return type(record).model_validate(document), rows


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].metrics])
def test_metrics_of_every_kind_come_out_of_the_stored_samples(tmp_path, kind):
    """Bit for bit, and one that was stored wrongly is found."""
    rows, names = rows_of_kind(kind), KINDS[kind].metrics
    values = scores(kind, names, rows)
    assert set(values) == set(names)
    task = {"task": CELL["task"] | {"kind": kind}}
    cells = [
        with_every_score(ok("fp32", rows, cell=task, metric=names[0]), values),
        with_every_score(ok("bf16", rows, cell=task), {n: v + 0.01 for n, v in values.items()}),
    ]
    found = rescore(make_run(tmp_path / "run", cells, metric=names[0]), (), None, (), print)
    by_format = {f: {o.metric: o for o in found if o.record.cell.format == f}
                 for f in ("fp32", "bf16")}  # fmt: skip
    assert {n: o.value for n, o in by_format["fp32"].items()} == values
    assert not any(one.differs for one in by_format["fp32"].values())
    assert all(by_format["bf16"][name].differs for name in names)


def harness_run(tmp_path: Path) -> Path:
    """A task of lm-evaluation-harness whose third metric is no mean of its documents' scores."""

    def made(fmt: str, wrong: set[int]) -> Any:
        rows = [
            {"id": str(i), "group": None, "score": float(i not in wrong), "finite": True,
             "acc": float(i not in wrong), "acc_norm": float(i not in {*wrong, 5}),
             "word_perplexity (exp ratio)": [10.0 + i, 4.0]}
            for i in range(40)
        ]  # fmt: skip
        names = ("acc", "acc_norm", "word_perplexity")
        columns = {n: [row[n] for row in rows] for n in rows[0]}
        values = {}
        for name in names:
            terms, finish = sufficient(f"lm-eval:{name}", columns)
            values[f"lm-eval:{name}"] = float(finish(terms.sum(0)))
        cell = {"task": CELL["task"] | {"kind": "lm-eval"}}
        one = ok(fmt, rows, cell=cell, metric="lm-eval:acc")
        return with_every_score(one, values | {"lm-eval:bleu": 12.0, "lm-eval:own": 0.5})

    cells = [made("fp32", {1}), made("bf16", {1, 2, 3})]
    return make_run(tmp_path / "run", cells, metric="lm-eval:acc")


def test_of_the_harness_what_is_no_mean_stands_as_it_is_and_is_no_failure(tmp_path, capsys):
    run = harness_run(tmp_path)
    assert call("rescore", run) == 0
    out, err = capsys.readouterr()
    assert out.count(" same ") == 6
    assert "6 scores computed from stored predictions, 0 differ" in err
    assert "4 can't be, and stand as they are" in err
    folder, sweep = read_run(run)
    record = folder.read_record(sweep["plan"]["cells"][0]["cell_id"])
    assert record is not None
    quality = record.measurements.quality.model_copy(update={"scores": {"lm-eval:acc": 0.5}})
    measurements = record.measurements.model_copy(update={"quality": quality})
    folder.write_record(record.model_copy(update={"measurements": measurements}))
    assert call("rescore", run) == 5


def test_a_report_counts_in_another_metric_of_the_harness(tmp_path, capsys):
    run = harness_run(tmp_path)
    assert call("report", run, "--metric", "lm-eval:acc_norm") == 0
    row = rows_of(build([run], {"metric": "lm-eval:acc_norm"}))["bf16"]
    assert (row["quality_metric"], row["quality"]) == ("lm-eval:acc_norm", 36 / 40)
    assert (row["quality_delta"], row["flips"]) == (pytest.approx(-2 / 40), 2)
    capsys.readouterr()
    # Nobody said which end of it is better.
    assert call("report", run, "--metric", "lm-eval:own") == 1
    assert "unknown metric of lm-eval" in capsys.readouterr().err


def test_metrics_that_were_not_measured_are_computed_from_samples(tmp_path):
    """A language model's: the loss of each text and what it is divided by are stored."""
    cell = {"task": CELL["task"] | {"kind": "language-modeling"}}
    rows = modelled()
    terms, finish = sufficient("bits_per_byte", {n: [r[n] for r in rows] for n in rows[0]})
    value = float(finish(terms.sum(0)))
    made = ok("fp32", rows, cell=cell, metric="bits_per_byte", quality=value)
    path = make_run(tmp_path / "run", [made], metric="bits_per_byte")
    found = rescore(path, ("word_perplexity",), None, (), lambda event: None)
    assert {one.metric: one.differs for one in found} == {
        "bits_per_byte": False,
        "word_perplexity": False,
    }
    added = RunFolder(path).read_scores(made[0].cell_id)
    assert added is not None
    total, words = sum(r["loss"] for r in rows), sum(r["words"] for r in rows)
    assert added.metrics["word_perplexity"].value == pytest.approx(np.exp(total / words))


def test_a_metric_of_generated_texts_is_made_from_the_stored_answers(tmp_path):
    """No samples hold its column: its values on resamples are stored, and give the verdict."""
    cell = {"task": CELL["task"] | {"kind": "generation"}}

    def rows(wrong: set[int]) -> list[dict[str, Any]]:
        return [
            {"id": f"e{i}", "group": None, "target": "red fox", "references": ["red fox"],
             "prediction": None if i == 0 else "red cat" if i in wrong else "red fox",
             "score": float(i not in wrong and i > 0), "loss": None, "unparsed": 0,
             "output_tokens": 2}
            for i in range(40)
        ]  # fmt: skip

    def made(fmt: str, wrong: set[int], quality: float) -> Any:
        return ok(fmt, rows(wrong), cell=cell, metric="exact_match", quality=quality)

    cells = [made("fp32", {1}, 38 / 40), made("bf16", {1, 2, 3}, 36 / 40)]
    path = make_run(tmp_path / "run", cells, metric="exact_match")
    found = rescore(path, ("token_f1",), None, (), lambda event: None)
    assert not any(one.differs for one in found)
    values = {one.record.cell.format: one.value for one in found if one.metric == "token_f1"}
    # "red cat" against "red fox" shares one word of two: F1 is a half; no answer is worth nothing.
    assert values == pytest.approx({"fp32": 38.5 / 40, "bf16": 37.5 / 40})
    row = rows_of(build([path], {"metric": "token_f1", "quality_budget": 0.5}))["bf16"]
    assert row["quality_delta"] == pytest.approx(-1 / 40)
    assert row["quality_ci_low"] < row["quality"] < row["quality_ci_high"]
    assert (row["verdict"], row["quality_budget_unit"]) == ("within", "points")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("macro_f2", "did you mean macro_f1"),
        ("bits_per_byte", "unknown metric of text-classification"),
        ("evaluate:", "names no metric"),
        ("evaluate:./nowhere", "no metric module at"),
        ("evaluate:f1", "--allow-metric f1"),
    ],
)
def test_a_metric_that_can_not_be_had_is_one_line(run, capsys, metric, words):
    assert call("rescore", run, "--metric", metric) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_report_in_a_metric_that_was_never_computed_says_how_to(run, capsys):
    assert call("report", run, "--metric", "evaluate:agreement") == 1
    assert "precision-explorer rescore RUN --metric" in capsys.readouterr().err
    assert call("report", run, "--metric", "bits_per_byte") == 1
    assert "unknown metric of text-classification" in capsys.readouterr().err


def test_a_report_in_another_metric_says_so_and_leaves_the_run_s_own_files(run, capsys):
    before = (run / "tradeoffs.csv").read_bytes()
    assert call("report", run, "--metric", "macro_f1") == 0
    out, err = capsys.readouterr()
    assert "quality in macro_f1" in " ".join(out.split())
    assert "nothing was written" in err
    assert (run / "tradeoffs.csv").read_bytes() == before


def test_made_scores_hold_the_reference_s_second_pass_and_their_clusters(tmp_path):
    """Examples without a group are clusters by themselves, in the draws as in the tables."""
    rows = rows_of_kind("generation")
    for row, group in zip(rows, ("b", None, "a", "b"), strict=True):
        row |= {"group": group, "score": 0.0}
        for name in ("token_f1", "rouge1"):
            row.pop(name)
    again = [row | {"prediction": "red"} for row in rows]
    cell = {"task": CELL["task"] | {"kind": "generation"}}
    record, arrows = ok("fp32", rows, cell=cell, metric="exact_match", quality=0.0)
    made = record, arrows | {"repeat": arrow(again)}
    path = make_run(tmp_path / "run", [made], metric="exact_match")
    rescore(path, ("token_f1",), None, (), print)
    stored = RunFolder(path).read_scores(record.cell_id)
    assert stored is not None
    score = stored.metrics["token_f1"]
    # Articles don't count: "red" is one of the four words of the first reference and one of the
    # three of the second: F1 = 2 (1 x 1/4) / (1 + 1/4) and 2 (1 x 1/3) / (1 + 1/3).
    assert score.again == pytest.approx((2 / 5 + 2 / 4) / 4)
    counts = resample_counts(3, 1000, 0)
    whole = rows_of_kind("generation")
    values = [row["token_f1"] for row in whole]
    # a, b with its two examples, and the one without a group.
    tops, sizes = np.array([values[2], values[0] + values[3], values[1]]), np.array([1, 2, 1])
    assert score.draws == pytest.approx(list((counts @ tops) / (counts @ sizes)))


# -- metrics of the evaluate library ---------------------------------------------------------------


def request_for(run: Path, *metrics: str) -> dict[str, Any]:
    _, sweep = read_run(run)
    cells = [
        {"cell_id": cell["cell_id"], "kind": "text-classification", "seed": 0, "metrics": [0]}
        for cell in sweep["plan"]["cells"]
    ]
    return {"run": str(run), "metrics": [{"label": m} for m in metrics], "cells": cells}


class Interrupted(Exception):
    """What ends a process in the middle of its work."""


def test_what_was_scored_before_a_timeout_stays(run, monkeypatch):
    request, asked = request_for(run, "evaluate:x"), []

    def score(folder: Any, cell: dict[str, Any], metric: dict[str, Any]) -> dict[str, Any]:
        asked.append(cell["cell_id"])
        if len(asked) == 2:
            raise Interrupted
        return added(0.7).model_dump()

    monkeypatch.setattr(evaluate_job, "_set_up", lambda scratch, request: None)
    monkeypatch.setattr(evaluate_job, "_load", lambda metric, scratch: metric)
    monkeypatch.setattr(evaluate_job, "_score", score)
    with pytest.raises(Interrupted):
        evaluate_job.run(request, lambda *progress: None)
    first, second = (RunFolder(run).read_scores(cell_id) for cell_id in asked)
    assert first is not None
    assert first.metrics["evaluate:x"].value == 0.7
    assert second is None


def fails(*arguments: Any) -> Any:
    raise JobFailed("evaluate: it took longer than 7,200 s")


def test_a_score_from_before_is_not_taken_for_one_of_a_job_that_failed(run, monkeypatch, capsys):
    folder, sweep = read_run(run)
    for cell in sweep["plan"]["cells"]:
        add_scores(folder, cell["cell_id"], {"evaluate:agreement": added()})
    monkeypatch.setattr(scoring, "run_job", fails)
    assert call("rescore", run, "--metric", f"evaluate:{MODULE}") == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "not computed" in out
    assert "7,200 s" in out


def test_a_metric_of_evaluate_goes_to_the_tasks_that_hold_pairs(tmp_path, monkeypatch, capsys):
    language = CELL["task"] | {"name": "texts", "kind": "language-modeling"}
    rows = modelled()
    columns = {n: [r[n] for r in rows] for n in rows[0]}
    terms, finish = sufficient("bits_per_byte", columns)
    value = float(finish(terms.sum(0)))
    model = ok("fp32", rows, cell={"task": language}, metric="bits_per_byte", quality=value)
    both = make_run(tmp_path / "both", [ok("fp32", classified(REF_WRONG)), model])
    sent: list[dict[str, Any]] = []

    def job(name: str, request: dict[str, Any], *rest: Any) -> Any:
        sent.extend(request["cells"])
        for cell in request["cells"]:
            score = {"evaluate:agreement": added(0.8)}
            add_scores(RunFolder(both), cell["cell_id"], score)
        made = {cell["cell_id"]: {} for cell in request["cells"]}
        return {"cells": made}, b""

    monkeypatch.setattr(scoring, "run_job", job)
    assert call("rescore", both, "--metric", f"evaluate:{MODULE}") == 0
    assert [cell["kind"] for cell in sent] == ["text-classification"]
    alone = make_run(tmp_path / "alone", [model], metric="bits_per_byte")
    capsys.readouterr()
    assert call("rescore", alone, "--metric", f"evaluate:{MODULE}") == 1
    assert "language-modeling stores none" in capsys.readouterr().err


def test_the_reference_s_second_pass_is_scored_too(tmp_path):
    """Its noise floor in a metric of somebody's Python."""

    def compute(predictions: list[int], references: list[int]) -> dict[str, float]:
        same = [a == b for a, b in zip(predictions, references, strict=True)]
        return {"x": sum(same) / len(same)}

    module = SimpleNamespace(
        features=takes(Value("int32"), Value("int32")), compute=compute, _compute=compute
    )
    metric = {"label": "evaluate:x", "key": None, "module": None, "version": "x", "error": None,
              "direction": True, "loaded": module}  # fmt: skip
    record, rows = ok("fp32", classified(REF_WRONG))
    plain = ok("bf16", classified(REF_WRONG))
    made = record, rows | {"repeat": arrow(classified({1, 2}))}
    folder = RunFolder(make_run(tmp_path / "run", [made, plain]))
    for cell_id, again in ((record.cell_id, 38 / 40), (plain[0].cell_id, None)):
        cell = {"cell_id": cell_id, "kind": "text-classification", "seed": 0}
        found = evaluate_job._score(folder, cell, metric)
        assert (found["value"], found.get("again")) == (0.8, again)


def test_how_many_resamples_there_are_stands_once():
    """Scores and tables are drawn as pairs, so it must be the same number."""
    for module in (evaluate_job, rescoring):
        assert module.DRAWS == DRAWS
        assert "DRAWS =" not in Path(str(module.__file__)).read_text().replace("_DRAWS =", "")


@pytest.mark.slow
def test_a_local_module_scores_in_a_process_of_its_own(run):
    """One process, which imports the library: in this one it would cost seconds and half a GB."""
    code = (
        "import sys\n"
        "from precision_explorer.cli import main\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        main(['rescore', {str(run)!r}, '--metric', 'evaluate:{MODULE}', '--metric',"
        f" 'evaluate:{MODULE}#mean_reference', '--higher-is-better'])\n"
        "    except SystemExit as end:\n"
        "        print('code', end.code, 'evaluate' in sys.modules, 'torch' in sys.modules)\n"
    )
    script = run.parent / "call.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "code 0 False False" in done.stdout, done.stderr
    folder, sweep = read_run(run)
    found = {}
    for cell in sweep["plan"]["cells"]:
        record = folder.read_record(cell["cell_id"])
        added = folder.read_scores(cell["cell_id"])
        assert record is not None
        assert added is not None
        found[record.cell.format] = added.metrics
    score = found["fp32"]["evaluate:agreement"]
    assert score.value == pytest.approx(0.8)
    assert score.results == pytest.approx({"agreement": 0.8, "mean_reference": 0.5})
    assert score.by.startswith("evaluate 0.")
    assert score.module == external_metric(f"evaluate:{MODULE}", Path()).hash
    assert score.higher_is_better is True
    # negative is 0 and positive 1, and every second target is positive.
    assert found["fp32"]["evaluate:agreement#mean_reference"].value == pytest.approx(0.5)
    # The draws are those of the built-in metric on the same resamples.
    right = np.array([float(i not in REF_WRONG) for i in range(40)])
    assert score.draws == pytest.approx(list(resample_counts(40, 1000, 0) @ right / 40))
    check_the_table_of(run)


@pytest.mark.slow
def test_a_sweep_computes_the_card_s_metric_after_its_cells(tmp_path, quick_workload):
    """As the quality of the table, and again only when the module has changed."""
    rows = [{"text": f"a {w} film {i}", "label": w} for i in range(8) for w in ("good", "bad")]
    names = {"good": "positive", "bad": "negative"}
    lines = [json.dumps(row | {"label": names[str(row["label"])]}) for row in rows]
    metrics = ["evaluate:./agreement.py"]
    card = write_card(tmp_path / "card", metrics=metrics, higher_is_better=True)
    (card.parent / "data.jsonl").write_text("\n".join(lines))
    script = card.parent / "agreement.py"
    script.write_text((MODULE / "agreement.py").read_text())

    def sweep() -> command.Done:
        return command.run(
            "sweep", "--task", card, "--formats", "fp32,bf16", "--device", "cpu", "--threads", 1,
            "--workload", quick_workload, "--out", tmp_path / "run",
        )  # fmt: skip

    done = sweep()
    assert done.returncode == 0, done.stderr
    assert "computing evaluate:agreement" in done.stderr
    row = rows_of(build([tmp_path / "run"]))["bf16"]
    assert row["quality_metric"] == "evaluate:agreement"
    scores = dict(pair.split("=") for pair in row["scores"].split(";"))
    assert float(scores["accuracy"]) == row["quality"] == float(scores["evaluate:agreement"])
    assert row["verdict"] in ("within", "outside", "cannot-tell")
    again = sweep()
    assert "2 already there" in again.stderr
    assert "computing" not in again.stderr
    # Models' libraries are not imported for it, and can be.
    alone = (
        "\n\ndef share():\n    import importlib.util\n    import sys\n"
        "    there = importlib.util.find_spec('transformers') is not None\n"
        "    return 0.25 if there and 'torch' not in sys.modules else 0.5\n"
    )
    script.write_text(script.read_text().replace("sum(same) / len(same)", "share()") + alone)
    changed = sweep()
    assert "2 already there" in changed.stderr
    assert rows_of(build([tmp_path / "run"]))["bf16"]["quality"] == 0.25
    script.write_text("raise ValueError('no luck')")
    failed = sweep()
    assert failed.returncode == 3
    assert "not computed: evaluate:agreement can't be loaded (ValueError: no luck)" in failed.stderr
    row = rows_of(build([tmp_path / "run"]))["bf16"]
    assert row["quality"] is None
    assert "no luck" in row["verdict_note"]


def check_the_table_of(run: Path) -> None:
    """Interval, difference and verdict from the stored draws; paths are in no file."""
    rows = rows_of(build([run], {"metric": "evaluate:agreement", "quality_budget": 0.5}))
    row = rows["int8-dynamic"]
    assert (row["quality_metric"], row["quality"]) == ("evaluate:agreement", 0.775)
    assert row["quality_ci_low"] < 0.775 < row["quality_ci_high"]
    assert row["quality_delta"] == pytest.approx(-0.025)
    assert row["quality_delta_ci_low"] < -0.025 < row["quality_delta_ci_high"]
    assert (row["flips"], row["verdict"]) == (3, "within")
    assert row["quality_budget_unit"] == "relative"
    stored = "".join(p.read_text() for p in (run / "scores").iterdir())
    assert str(MODULE.parent) not in stored


def added(value: float | None = 0.8, **changes: Any) -> AddedScore:
    return AddedScore(**({"value": value, "by": "evaluate 0.4.6"} | changes))


def with_scores(run: Path, scores: dict[str, AddedScore]) -> Path:
    folder, sweep = read_run(run)
    for cell in sweep["plan"]["cells"]:
        record = folder.read_record(cell["cell_id"])
        assert record is not None
        add_scores(folder, record.cell_id, {"evaluate:x": scores[record.cell.format]})
    return run


def test_without_draws_there_is_no_interval_and_no_verdict(run):
    scores = {
        "fp32": added(higher_is_better=True),
        "int8-dynamic": added(0.7, higher_is_better=True),
    }
    table = build([with_scores(run, scores)], {"metric": "evaluate:x"})
    row = rows_of(table)["int8-dynamic"]
    assert row["quality_delta"] == pytest.approx(-0.1)
    for name in ("quality_ci_low", "quality_delta_ci_low", "p_value", "verdict"):
        assert row[name] is None
    assert "[no interval]" in to_html(table)


def test_without_a_direction_nothing_is_judged_by_the_metric(run):
    draws = {"draws": [0.7, 0.8] * 50, "draws_of": 1000}
    scores = {"fp32": added(**draws), "int8-dynamic": added(0.7, **draws)}
    table = build([with_scores(run, scores)], {"metric": "evaluate:x"})
    row = rows_of(table)["int8-dynamic"]
    assert row["verdict"] is None
    assert row["quality_delta_ci_low"] is not None
    assert "quality" not in table.context.objectives[0]
    assert "direction not known" in to_html(table)


def test_a_metric_that_failed_says_why_in_the_row(run):
    scores = {"fp32": added(), "int8-dynamic": added(None, error="it failed on these answers")}
    row = rows_of(build([with_scores(run, scores)], {"metric": "evaluate:x"}))["int8-dynamic"]
    assert (row["quality"], row["verdict_note"]) == (None, "it failed on these answers")
    assert row["latency_p50_s"] is not None


def test_scores_of_other_samples_are_not_taken(run):
    folder, sweep = read_run(run)
    cell_id = sweep["plan"]["cells"][0]["cell_id"]
    folder.write_scores(cell_id, AddedScores(samples="0" * 64, metrics={"evaluate:x": added()}))
    assert folder.read_scores(cell_id) is None


# -- cards -----------------------------------------------------------------------------------------


def write_card(folder: Path, **changes: Any) -> Path:
    card = {
        "name": "own",
        "version": 1,
        "kind": "text-classification",
        "data": {"path": "data.jsonl"},
        "columns": {"text": "text", "label": "label"},
        "metrics": ["accuracy", "evaluate:./exact.py"],
    }
    folder.mkdir(exist_ok=True)
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(card | changes))
    return path


def test_a_card_s_metrics_are_those_of_the_library_and_its_own(tmp_path):
    from precision_explorer.tasks import card_hash

    path = write_card(tmp_path)
    loaded = load_card(str(path))
    assert loaded.card.own_metrics == ["accuracy"]
    (tmp_path / "exact.py").write_text("pass")
    (found,) = loaded.external_metrics()
    assert (found.label, found.local) == ("evaluate:exact", True)
    # What is computed afterwards is no reason to measure again.
    alone = load_card(str(write_card(tmp_path, metrics=["accuracy"]))).card
    assert card_hash(loaded.card) == card_hash(alone)
    only = write_card(tmp_path, metrics=["evaluate:./exact.py"], higher_is_better=False)
    assert load_card(str(only)).card.own_metrics == ["accuracy"]
    assert load_card(str(only)).card.metric == "evaluate:exact"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (["evaluate:f1"], "add higher_is_better"),
        (["accuracy", "evaluate:"], "names no metric"),
        (["accuracy", "evaluate:f1", "evaluate:f1"], "stands twice"),
        (["accuracy", "evaluate:./a/x.py", "evaluate:./b/x.py"], "stands twice"),
    ],
)
def test_a_card_with_a_wrong_metric_is_refused(tmp_path, metrics, words):
    with pytest.raises(TaskError, match=words):
        load_card(str(write_card(tmp_path, metrics=metrics)))


def test_a_module_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TaskError, match="no metric module at"):
        load_card(str(write_card(tmp_path))).external_metrics()


def test_only_local_modules_run_unless_a_name_is_allowed(tmp_path):
    named = external_metric("evaluate:user/f1", tmp_path)
    assert not named.local
    with pytest.raises(UsageError, match="--allow-metric user/f1"):
        check_allowed([named], ["f1"])
    check_allowed([named, external_metric(f"evaluate:{MODULE}", tmp_path)], ["user/f1"])
    # A folder of the same name is no reason to take it for a path.
    (tmp_path / "f1").mkdir()
    (tmp_path / "f1" / "f1.py").write_text("raise SystemExit")
    assert not external_metric("evaluate:f1", tmp_path).local


def test_a_changed_module_is_another_one(tmp_path):
    script = tmp_path / "m" / "m.py"
    script.parent.mkdir()
    script.write_text("a = 1")
    before = external_metric("evaluate:./m", tmp_path).hash
    (script.parent / "helper.py").write_text("b = 2")
    assert external_metric("evaluate:./m", tmp_path).hash != before
    assert external_label("evaluate:./m/m.py#em") == "evaluate:m#em"


# -- answers for a module --------------------------------------------------------------------------


class Value:
    """As the library declares a feature."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class Sequence:
    dtype = "list"

    def __init__(self, feature: Value) -> None:
        self.feature = feature


def takes(predictions: Any, references: Any) -> dict[str, Any]:
    return {"predictions": predictions, "references": references}


def test_label_names_become_the_model_s_label_ids():
    """The log-probabilities are in their order, whatever the alphabet says."""
    columns = {
        "target": ["yes", "no", "yes"],
        "prediction": ["yes", "no", "no"],
        "logprobs": [[-0.1, -2.0], [-3.0, -0.2], [-1.0, -0.5]],
        "loss": [0.1, 0.2, 1.0],
    }
    assert label_codes(columns) == {"yes": 0, "no": 1}
    found = answers_of("text-classification", columns)
    assert found.fitting(takes(Value("int32"), Value("int32"))) == ([0, 1, 1], [0, 1, 0])
    assert found.fitting(takes(Value("string"), Value("string")))[0] == ["yes", "no", "no"]
    without = {name: columns[name] for name in ("target", "prediction")}
    assert label_codes(without) == {"no": 0, "yes": 1}


def test_answers_take_the_form_that_a_module_asks_for():
    found = Answers([1, 0], [1, 1], {})
    assert found.fitting(takes(Value("float32"), Sequence(Value("int64")))) == (
        [1.0, 0.0],
        [[1], [1]],
    )
    several = Answers(["a"], [["a", "b"]], {})
    either = [
        takes(Value("string"), Value("string")),
        takes(Value("string"), Sequence(Value("string"))),
    ]
    assert several.fitting(either) == (["a"], [["a", "b"]])
    with pytest.raises(TaskError, match="an example has 2 values"):
        several.fitting(either[0])
    with pytest.raises(TaskError, match="it takes sources"):
        found.fitting(takes(Value("int32"), Value("int32")) | {"sources": Value("string")})
    with pytest.raises(TaskError, match="does not fit"):
        Answers(["text"], ["other"], {}).fitting(takes(Value("int32"), Value("int32")))


def test_a_kind_without_predictions_has_none_to_score():
    columns = {"id": ["a"], "target": [None], "prediction": [None], "loss": [1.0]}
    with pytest.raises(TaskError, match="language-modeling stores no such pair"):
        answers_of("language-modeling", columns)


def test_an_output_without_an_answer_is_an_empty_one():
    columns = {
        "target": ["4"],
        "references": [["4", "four"]],
        "prediction": [None],
        "unparsed": [1],
    }
    assert answers_of("generation", columns).predictions == [""]
    assert answers_of("generation", columns).references == [["4", "four"]]


def test_which_number_of_a_module_is_its_score():
    metric = {"label": "evaluate:rouge", "key": None}
    assert _key(metric, {"other": 1.0}) == "other"
    assert _key(metric, {"rouge": 1.0, "b": 2.0}) == "rouge"
    with pytest.raises(TaskError, match="evaluate:rouge#rouge1"):
        _key(metric, {"rouge1": 1.0, "rouge2": 2.0})
    assert _key(metric | {"key": "rouge2"}, {"rouge1": 1.0, "rouge2": 2.0}) == "rouge2"


def test_only_finite_numbers_are_scores():
    assert numbers_in({"a": np.float64(0.5), "each": [1, 2], "b": float("nan"), "t": "x"}) == {
        "a": 0.5
    }
    with pytest.raises(TaskError, match="no finite number"):
        numbers_in({"b": float("nan")})


def test_groups_are_resampled_whole_in_the_order_of_their_labels():
    assert _units(["b", "a", "b"], 3) == [[1], [0, 2]]
    assert _units([None, None], 2) == [[0], [1]]
    assert _units(["b", None, "a", "b", None], 5) == [[2], [0, 3], [1], [4]]
