"""`--until-decided`: what is planned, where the scoring stops, and what the table makes of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from precision_explorer.errors import UsageError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models.adapter import Item
from precision_explorer.plan.expand import UNTIL_DECIDED, _check_looks
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import canonical_hash
from precision_explorer.report.columns import verdict_cell
from precision_explorer.runner.local import Executor
from precision_explorer.runner.session import Session
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.runner.until_decided import Looks
from precision_explorer.stats import influence, looks, tango, verdict_for_share
from precision_explorer.store import RunFolder
from precision_explorer.table import against, build
from precision_explorer.table.quality import Quality
from precision_explorer.table.sequential import (
    _wealth,
    decide,
    placed,
    sequential_columns,
)
from tests.test_records import CELL, make_cell
from tests.test_store import arrow
from tests.test_table import classified, make_run, modelled, ok
from tests.test_table_against import scored_again, with_more

PLANNED = 2063
STOP = {"quality_budget": 0.01, "reference": "fp32"}


def quality(rows, metric="accuracy"):
    return Quality.of(metric, {name: [row[name] for row in rows] for name in rows[0]})


# -- identity ---------------------------------------------------------------------------------


def test_the_cell_knows_the_budget_and_the_method_the_rule_alone():
    plain = make_cell(until_decided=None)
    rules = CELL["rules"] | {"until_decided": UNTIL_DECIDED}
    one = make_cell(rules=rules, until_decided=STOP)
    other = make_cell(rules=rules, until_decided=STOP | {"quality_budget": 0.02})
    assert len({plain.cell_id, one.cell_id, other.cell_id}) == 3
    assert one.method_id == other.method_id != plain.method_id


def test_records_from_before_the_option_keep_their_id_and_runs_their_name():
    plain = make_cell(until_decided=None, split=None)
    document = plain.model_dump(mode="json")
    assert document.pop("until_decided") is None
    assert document.pop("devices") is None
    assert document.pop("split") is None
    document["model"].pop("name")
    assert plain.cell_id == canonical_hash(document)
    assert make_spec({}).measuring_hash() == make_spec({"until_decided": False}).measuring_hash()
    assert make_spec({}).measuring_hash() != make_spec({"until_decided": True}).measuring_hash()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": [{"group": "a"}]}, "come in groups"),
        ({"corpus": [{"id": "d"}]}, "encoded again at every look"),
        ({"metric": "evaluate:agreement"}, "from all its examples at once"),
        ({"kind": "lm-eval"}, "from all its examples at once"),
        ({}, None),
    ],
)
def test_what_can_t_be_scored_a_few_at_a_time_is_refused(changes, words):
    given = {"examples": [{"group": None}], "corpus": [], "metric": "accuracy", "kind": "any"}
    given |= changes
    card = SimpleNamespace(name="passages", metrics=(given["metric"],), kind=given["kind"])
    task = SimpleNamespace(card=card, examples=given["examples"], corpus=given["corpus"])
    if words is None:
        _check_looks(task)
        return
    with pytest.raises(UsageError, match=rf"not for passages: .*{words}.*; leave it out"):
        _check_looks(task)


# -- scoring in looks -------------------------------------------------------------------------


class Worker:
    """Answers quality requests with rows that are right but for the ids in `wrong`."""

    def __init__(self, wrong=frozenset()):
        self.rows, self.asked = classified(wrong, PLANNED), []

    def __call__(self, request):
        examples = request["examples"]
        assert request["op"] == "quality"
        assert request["part"]
        self.asked.append(len(examples))
        indices = [int(e["id"][1:]) for e in examples]
        rows = [self.rows[i] for i in indices]
        made = {
            "metric": "accuracy",
            "scores": {"accuracy": 0.0},
            "seconds": 1.0,
            "examples": len(rows),
            "tokens": 10 * len(rows),
            "batches": 2,
            "batch_plan_hash": f"{indices[0]}",
            "cut_examples": 1,
            "unparsed": 2,
        }
        peak = 100 + indices[0]
        return {"quality": made, "peak_bytes": peak, "recompiles": None}, arrow(rows)


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.open()
    yield made
    made.close()


def planned(cell_id="one", n=PLANNED):
    names = ("accuracy",)
    card = SimpleNamespace(
        kind="text-classification", metrics=names, own_metrics=names, higher_is_better=True
    )
    task = SimpleNamespace(card=card, examples=[{"id": f"e{i}"} for i in range(n)])
    cell = SimpleNamespace(until_decided=STOP, seed=0)
    return SimpleNamespace(cell_id=cell_id, task=task, cell=cell)


def later():
    return time.monotonic() + 1000


def scored_reference(folder, wrong=frozenset(), n=PLANNED):
    folder.write_samples("ref", {"example": arrow(classified(wrong, PLANNED)[:n])})
    return SimpleNamespace(cell_id="ref")


def test_the_reference_is_scored_on_all_examples_look_by_look(folder):
    worker = Worker(wrong={1, 2})
    steps = Looks(folder, planned(), None)
    answer, rows = steps.score(worker, later())
    assert np.cumsum(worker.asked).tolist() == looks(PLANNED) == steps.ends
    found = answer["quality"]
    assert (found["examples"], found["tokens"]) == (PLANNED, 10 * PLANNED)
    assert (found["seconds"], found["batches"]) == (len(worker.asked), 2 * len(worker.asked))
    assert found["cut_examples"] == len(worker.asked)
    assert found["unparsed"] == 2 * len(worker.asked)
    assert math.isclose(found["scores"]["accuracy"], 1 - 2 / PLANNED)
    assert answer["peak_bytes"] == 100 + looks(PLANNED)[-2]
    assert answer["recompiles"] is None
    folder.write_samples("one", {"example": rows})
    assert folder.read_samples("one", "example")["id"] == [f"e{i}" for i in range(PLANNED)]


@pytest.mark.parametrize(("wrong", "n"), [(frozenset(), 480), (frozenset(range(32)), 32)])
def test_a_format_stops_at_the_look_at_which_its_verdict_is_clear(folder, wrong, n):
    worker = Worker(wrong)
    answer, _ = Looks(folder, planned(), scored_reference(folder)).score(worker, later())
    assert answer["quality"]["examples"] == sum(worker.asked) == n


def test_looks_of_an_interrupted_sweep_are_not_scored_again(folder):
    reference = scored_reference(folder)

    def interrupted(request):
        if len(first.asked) == 3:
            raise KeyboardInterrupt
        return first(request)

    first, again = Worker(), Worker()
    with pytest.raises(KeyboardInterrupt):
        Looks(folder, planned(), reference).score(interrupted, later())
    steps = Looks(folder, planned(), reference)
    resumed, _ = steps.score(again, later())
    assert steps.resumed
    assert (sum(first.asked), sum(again.asked)) == (96, 480 - 96)
    fresh = Looks(folder, planned("other"), reference)
    assert fresh.score(Worker(), later())[0] == resumed
    assert not fresh.resumed


def test_no_look_begins_after_the_time_for_them(folder):
    worker = Worker()
    answer, _ = Looks(folder, planned(), scored_reference(folder)).score(worker, 0.0)
    assert answer["quality"]["examples"] == 32


def test_a_format_is_asked_no_more_than_its_reference_was(folder):
    worker = Worker()
    steps = Looks(folder, planned(), scored_reference(folder, n=128))
    steps.score(worker, later())
    assert sum(worker.asked) == 128 == steps.ends[-1]


def test_a_loss_within_the_noise_floor_ends_no_scoring(folder):
    """The reference in other batches loses 40 examples of its own: 32 flips are not beyond that on
    the first 32 examples, 64 are on the first 64."""
    rows = {"example": arrow(classified(set(), PLANNED))}
    folder.write_samples("ref", rows)
    reference = SimpleNamespace(cell_id="ref")
    plain, _ = Looks(folder, planned("plain"), reference).score(Worker(set(range(64))), later())
    assert plain["quality"]["examples"] == 32
    folder.write_samples("ref", rows | {"repeat": arrow(classified(set(range(40)), PLANNED))})
    answer, _ = Looks(folder, planned(), reference).score(Worker(set(range(64))), later())
    assert answer["quality"]["examples"] == 64
    # A format that is within its budget stops as before.
    answer, _ = Looks(folder, planned("same"), reference).score(Worker(), later())
    assert answer["quality"]["examples"] == 480


def test_the_batches_of_each_look_are_recorded(folder):
    answer, _ = Looks(folder, planned(n=100), None).score(Worker(), later())
    assert answer["quality"]["look_batch_plans"] == ["0", "32", "64", "96"]


def test_shapes_to_compile_are_those_of_each_look_s_own_batches():
    lengths = [5 + 7 * k % 40 for k in range(100)]
    items = [Item(k, (1,) * n) for k, n in enumerate(lengths)]
    session = Session.__new__(Session)
    session.runtime, session.adapter = RUNTIMES["compile"], None
    plan = {"batch_plan": {"max_tokens": 200, "max_items": 8, "call_tokens": 0}}
    whole = session._batches(plan | {"looks": [32, 64, 100]}, items)
    expected = []
    for start, end in ((0, 32), (32, 64), (64, 100)):
        part = session._batches(plan, items[start:end])
        expected += [[start + k for k in batch] for batch in part]
    assert whole == expected
    assert sorted(k for batch in whole for k in batch) == list(range(100))
    # Items that belong to no example, such as documents to search, are scored with all others.
    documents = [Item(200, (1,) * 5)]
    assert sorted(k for b in session._batches(plan, items + documents) for k in b)[-1] == 100


def test_the_reference_is_a_finished_one_and_not_the_cell_itself():
    ref, task = SimpleNamespace(scheme=None), object()

    def one(fmt):
        cell = make_cell(format=fmt)
        return SimpleNamespace(cell=cell, cell_id=fmt, ref=ref, task=task, served=None)

    base, other = one("fp32"), one("bf16")
    status = {"fp32": "ok"}
    folder = SimpleNamespace(
        read_record=lambda i: SimpleNamespace(cell_id=i, status=status[i]),
        has_part=lambda i, name: False,
    )
    plan = SimpleNamespace(to_run=[base, other])
    executor = Executor(make_spec({}), plan, None, None, folder, None)
    assert executor._scored_reference(other) is base
    assert executor._scored_reference(base) is None
    status["fp32"] = "failed"
    assert executor._scored_reference(other) is None


def test_positions_beyond_the_last_look_are_clusters_of_their_own(monkeypatch):
    """A reference keeps the distributions of its first positions, whatever a format was asked."""
    seen = []
    monkeypatch.setattr(
        against, "divergence", lambda kl, same, clusters, seed: seen.extend(clusters)
    )
    rows = {"id": ["e0", "e50"], "kl": [0.1, 0.2], "same_top": [True, True]}
    entry = SimpleNamespace(
        quality=quality(classified(set(), 32)),
        folder=SimpleNamespace(read_samples=lambda cell_id, kind, sha256: rows),
        record=SimpleNamespace(
            cell_id="one", cell=SimpleNamespace(seed=0), known_samples=None,
            measurements=SimpleNamespace(positions=SimpleNamespace(reference="ref")),
        ),
    )  # fmt: skip
    base = SimpleNamespace(record=SimpleNamespace(cell_id="ref"))
    against._positions(entry, base)
    assert seen == [("id", "e0"), ("id", "e50")]


# -- the table --------------------------------------------------------------------------------


def test_columns_are_those_of_the_first_examples_and_hold_at_every_look():
    reference = quality(classified({3, 1500}, PLANNED))
    other = quality(classified(set(), 544))
    found = sequential_columns(reference, other, 0.01, PLANNED, 0)
    assert math.isclose(found["quality_delta"], 1 / 544)
    assert (found["flips"], found["verdict"]) == (1, "within")
    n = looks(PLANNED)[found["looks"] - 1]
    assert found["verdict_note"] == f"decided at {n} of 2,063 examples"
    # A fixed plan of 544 examples knows more of the side on which something was seen.
    assert found["quality_delta_ci_low"] < 0 < tango(0, 1, 544)[1] < found["quality_delta_ci_high"]
    assert found["p_value"] == pytest.approx(1.0)


def test_a_reader_s_budget_is_decided_again_from_the_samples():
    reference, other = quality(classified(set(), PLANNED)), quality(classified(set(), 480))
    assert sequential_columns(reference, other, 0.01, PLANNED, 0)["looks"] == 15
    wide = sequential_columns(reference, other, 0.05, PLANNED, 0)
    assert (wide["verdict"], wide["verdict_note"]) == ("within", "decided at 96 of 2,063 examples")
    narrow = sequential_columns(reference, other, 0.005, PLANNED, 0)
    assert narrow["verdict"] == "cannot-tell"
    assert narrow["verdict_note"].startswith("not decided at 480 of 2,063 examples, where")


def test_after_all_examples_the_fixed_verdict_at_98_percent_decides():
    # 8 of 400 flip against the format: Tango tells at 95 % that 0.5 points are exceeded, not at 98.
    wrong = set(range(0, 400, 67))
    assert verdict_for_share(len(wrong), 0, 400, 0.005).verdict == "outside"
    reference, other = quality(classified(set(), 400)), quality(classified(wrong, 400))
    found = sequential_columns(reference, other, 0.005, 400, 0)
    assert found["verdict"] == verdict_for_share(len(wrong), 0, 400, 0.005, 0.98).verdict
    assert sequential_columns(reference, other, 0.004, 400, 0)["verdict"] == "outside"
    assert sequential_columns(reference, other, 0.004, 401, 0)["verdict"] == "cannot-tell"


def test_other_examples_are_not_compared():
    rows = classified(set(), 40)
    shuffled = [rows[1], rows[0], *rows[2:]]
    assert sequential_columns(quality(rows), quality(shuffled), 0.01, PLANNED, 0) == {}


@pytest.mark.parametrize("metric", ["bits_per_byte", "word_perplexity", "token_perplexity"])
@pytest.mark.parametrize(("factor", "verdict"), [(1.0001, "within"), (1.2, "outside")])
def test_losses_are_decided_by_what_each_document_leaves_of_the_budget(metric, factor, verdict):
    reference, other = quality(modelled(n=100), metric), quality(modelled(factor, 100), metric)
    found = decide(reference, other, 0.05, 1000, 0)
    assert (found.verdict, found.n) == (verdict, 32)
    columns = sequential_columns(reference, other, 0.05, 1000, 0)
    assert columns["verdict_note"] == "decided at 32 of 1,000 examples"
    # Words of 30 nats make perplexities whose difference is known to no digit.
    least = 0 if metric == "bits_per_byte" else -math.inf
    assert least < columns["quality_delta_ci_low"] < columns["quality_delta"]
    assert columns["p_value"] < 0.05  # Every document's loss is higher.


@pytest.mark.parametrize("metric", ["word_perplexity", "token_perplexity"])
def test_a_perplexity_s_budget_is_one_of_the_perplexity_not_of_the_loss(metric):
    """1 % more loss at 30 nats a unit is 35 % more perplexity: outside a budget of 10 %."""
    reference, other = quality(modelled(n=100), metric), quality(modelled(1.01, 100), metric)
    assert decide(reference, other, 0.1, 1000, 0).verdict == "outside"
    loss = [replace(q, metric="bits_per_byte") for q in (reference, other)]
    assert decide(*loss, 0.1, 1000, 0).verdict == "within"


def test_a_metric_that_is_no_sum_is_decided_by_its_influence_values():
    reference = quality(classified(set(), 600), "macro_f1")
    other = quality(classified(set(range(0, 600, 4)), 600), "macro_f1")
    found = sequential_columns(reference, other, 0.01, PLANNED, 0)
    assert (found["verdict"], found["looks"] < 5) == ("outside", True)
    low, high = found["quality_delta_ci_low"], found["quality_delta_ci_high"]
    assert low < found["quality_delta"] < high < 0
    assert found["p_value"] < 0.001
    same = quality(classified(set(), 600), "macro_f1")
    found = sequential_columns(reference, same, 0.01, PLANNED, 0)
    assert (found["verdict"], found["quality_delta_ci_low"]) == ("within", None)


def test_the_influence_values_of_a_ratio_are_those_of_the_textbook():
    generator = np.random.default_rng(1)
    below = generator.lognormal(3, 1, 50)
    terms = np.stack([below * generator.normal(2, 0.1, 50), below], axis=1)
    ratio = terms[:, 0].sum() / terms[:, 1].sum()
    found = influence(terms, lambda sums: sums[..., 0] / sums[..., 1])
    expected = ratio + (terms[:, 0] - ratio * terms[:, 1]) / terms[:, 1].mean()
    assert np.allclose(found, expected, rtol=1e-4)
    assert np.isnan(influence(terms, lambda sums: sums[..., 0] * np.nan)).all()


def test_a_metric_that_is_not_a_number_yet_decides_nothing_and_has_no_interval():
    rows = classified(set(), 64)
    reference, other = quality(rows, "bits_per_byte"), quality(rows, "bits_per_byte")
    empty = {"loss": [0.0] * 64, "bytes": [0] * 64}
    both = [replace(q, columns={**q.columns, **empty}) for q in (reference, other)]
    found = sequential_columns(*both, 0.01, PLANNED, 0)
    assert (found["verdict"], found["quality_delta_ci_low"]) == ("cannot-tell", None)


def test_the_report_says_at_how_many_examples():
    row = {"verdict": "within", "verdict_note": "decided at 480 of 2,063 examples"}
    assert verdict_cell(None, row).text == "within: decided at 480 of 2,063 examples"


def decided(fmt, rows, plans=None, planned=400, metric="accuracy", again=None, **more):
    """A finished cell that was scored in looks, and the rows of its second pass, if any."""
    task = CELL["task"] | {"n": planned}
    rules = CELL["rules"] | {"until_decided": UNTIL_DECIDED}
    cell = ok(
        fmt, rows, metric=metric, cell={"task": task, "rules": rules, "until_decided": STOP}
    )  # fmt: skip
    document = cell[0].measurements.quality.model_dump() | {"look_batch_plans": plans} | more
    # Of other looks in all, so of another hash of them.
    document["batch_plan_hash"] = f"{len(rows):016}"
    cell = with_more(cell, {}, quality=document)
    return cell if again is None else scored_again(cell, again)


def formats(path, cells, metric="accuracy"):
    return {row["format"]: row for row in build([make_run(path, cells, metric=metric)]).rows}


def test_the_noise_floor_is_that_of_the_examples_that_were_asked(tmp_path):
    """All 40 flips of the reference's own lie behind the format's 64 examples."""
    again = classified(set(range(100, 140)), 400)
    reference = decided("fp32", classified(set(), 400), again=again)
    cells = [reference, decided("bf16", classified(set(range(32)), 64))]
    rows = formats(tmp_path / "r", cells)
    assert (rows["fp32"]["noise_floor_flips"], rows["bf16"]["noise_floor_flips"]) == (40, 0)
    assert rows["bf16"]["noise_floor_delta"] == 0
    assert (rows["bf16"]["flips"], rows["bf16"]["quality_delta"]) == (32, -0.5)
    assert (rows["bf16"]["verdict"], rows["bf16"]["different"]) == ("outside", "yes")


def test_a_loss_within_the_noise_floor_of_the_same_examples_is_not_told(tmp_path):
    reference = decided("fp32", classified(set(), 400), again=classified(set(range(32)), 400))
    row = formats(tmp_path / "r", [reference, decided("bf16", classified(set(range(32)), 64))])
    assert row["bf16"]["noise_floor_flips"] == 32
    assert (row["bf16"]["verdict"], row["bf16"]["different"]) == ("cannot-tell", "no")
    assert row["bf16"]["verdict_note"] == "not beyond the noise floor"


def test_a_reference_that_ran_out_of_time_has_a_noise_floor(tmp_path):
    """Its second pass scores every example, whatever the first one came to."""
    reference = decided("fp32", classified(set(), 96), again=classified({5, 6, 200}, 400))
    rows = formats(tmp_path / "r", [reference, decided("bf16", classified(set(), 32))])
    assert (rows["fp32"]["noise_floor_flips"], rows["bf16"]["noise_floor_flips"]) == (2, 2)


@pytest.mark.parametrize(
    ("reference", "own", "verdict"),
    [
        (["a", "b", "c"], ["a", "b"], "outside"),
        (["a", "b", "c"], ["a", "x"], None),
        (None, ["a", "x"], "outside"),
    ],
)
def test_looks_of_other_batches_than_the_reference_s_have_no_verdict(
    tmp_path, reference, own, verdict
):
    base = decided("fp32", classified(set(), 400), reference)
    rows = formats(tmp_path / "r", [base, decided("bf16", classified(set(range(32)), 64), own)])
    row = rows["bf16"]
    assert row["verdict"] == verdict
    assert (row["cautions"] == "other-batch-plan") == (verdict is None)
    if verdict is None:
        assert row["verdict_note"] == "scored in other batches than the reference"
        assert row["different"] is None


def translated(n, hit):
    """Example rows of BLEU: answers of ten words, all of whose n-grams match where `hit` says."""
    right = [[10, 10, 10, 9, 8, 7, 10, 9, 8, 7] if hit(i) else
             [10, 10, 2, 0, 0, 0, 10, 9, 8, 7] for i in range(n)]  # fmt: skip
    return [
        {"id": f"e{i}", "group": None, "score": None, "bleu_counts": r} for i, r in enumerate(right)
    ]


def test_a_metric_of_generated_text_is_decided_in_looks(tmp_path):
    reference = translated(400, lambda i: i % 4)
    cells = [
        decided("fp32", reference, metric="bleu", again=reference),
        decided("bf16", reference[:96], metric="bleu"),
        decided("fp16", translated(96, lambda i: i % 2), metric="bleu"),
    ]
    rows = formats(tmp_path / "r", cells, "bleu")
    assert rows["bf16"]["quality_delta"] == 0
    assert rows["fp16"]["quality_delta"] < -10
    assert (rows["bf16"]["verdict"], rows["fp16"]["verdict"]) == ("cannot-tell", "outside")
    assert rows["bf16"]["verdict_note"].startswith("not decided at 96 of 400 examples")
    assert rows["fp16"]["verdict_note"] == "decided at 32 of 400 examples"
    assert rows["fp16"]["quality_delta_ci_high"] < 0
    assert rows["fp16"]["different"] == "yes"


@pytest.mark.parametrize("hits", [0, 1])
def test_nothing_is_told_against_a_reference_score_of_0(tmp_path, hits):
    """With one hit its score is 0 in some resamples: nothing is a share of that."""

    def none(n):
        return translated(n, lambda i: False)

    blank = {"bleu_counts": [10, 10, 0, 0, 0, 0, 10, 9, 8, 7]}
    reference = [row | (blank if i >= hits else {}) for i, row in enumerate(none(40))]
    # The last look is at all planned examples, where the fixed verdict is asked.
    cells = [
        decided("fp32", reference, planned=40, metric="bleu"),
        decided("bf16", [row | blank for row in none(40)], planned=40, metric="bleu"),
    ]
    row = formats(tmp_path / "r", cells, "bleu")["bf16"]
    assert (row["verdict"], row["verdict_note"]) == (
        "cannot-tell",
        "not decided at 40 of 40 examples",
    )


def test_what_a_look_said_does_not_change_with_later_examples(monkeypatch):
    """Beyond some number of rows a rank correlation's terms hold the ranks among all rows."""
    monkeypatch.setattr("precision_explorer.tasks.correlation.EXACT_ROWS", 10)
    generator = np.random.default_rng(4)
    target = generator.normal(0, 1, 200)
    pair = []
    for spread in (0.5, 0.6):
        cosine = target + generator.normal(0, spread, 200)
        rows = [
            {"id": f"e{i}", "target": t, "cosine": c}
            for i, (t, c) in enumerate(zip(target.tolist(), cosine.tolist(), strict=True))
        ]
        pair.append(quality(rows, "spearman"))
    early = _wealth(*(q.first(64) for q in pair), 0.01, [32, 64])
    late = _wealth(*pair, 0.01, [32, 64, 200])
    assert np.any(np.abs(early) > 0.1)
    assert np.allclose([side[:2] for side in late], early)


def test_on_the_front_a_row_stands_by_its_difference_not_by_its_own_examples():
    """The first 100 examples are easy: a format that equals the reference there is no better."""
    reference = quality(classified(set(range(100, 400)), 400))
    other = quality(classified(set(), 100))
    value, draws = placed(reference, other, 0.25, 0.0, 0, 200)
    assert value == 0.25
    assert abs(draws.mean() - 0.25) < 0.01


def test_value_rests_on_all_examples_too(tmp_path):
    """The same easy examples: a format that equals the reference on them and is as fast gives as
    many right answers per dollar as it, not four times as many."""
    cells = [
        decided("fp32", classified(set(range(100, 400)), 400), scores={"accuracy": 0.25}),
        decided("bf16", classified(set(), 100), scores={"accuracy": 1.0}),
    ]
    rows = formats(tmp_path / "r", cells)
    assert (rows["fp32"]["quality"], rows["bf16"]["quality"]) == (0.25, 1.0)
    assert rows["fp32"]["value_per_usd"] > 0
    assert rows["bf16"]["value_per_usd"] == pytest.approx(rows["fp32"]["value_per_usd"])


# -- a whole sweep ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory, quick_workload):
    folder = tmp_path_factory.mktemp("decided") / "run"
    spec = make_spec(
        {
            "formats": "fp32,int8-weight-only", "until_decided": True, "limit": 160, "threads": 1,
            "quality_budget": "20%", "device": "cpu", "workload": str(quick_workload),
            "out": str(folder),
        }
    )  # fmt: skip
    events = []
    _, tally = run_sweep(prepare_sweep(spec, events.append), events.append)
    assert (tally.ran, tally.failed) == (2, 0)
    return folder, spec


def test_a_sweep_scores_what_the_verdict_takes(swept):
    folder, _ = swept
    rows = {row["format"]: row for row in build([folder]).rows}
    assert (rows["fp32"]["quality_n"], rows["fp32"]["looks"]) == (160, None)
    row = rows["int8-weight-only"]
    assert row["quality_n"] < 160
    assert row["verdict"] == "within"
    assert row["verdict_note"] == f"decided at {row['quality_n']} of 160 examples"
    assert row["method_id"] == rows["fp32"]["method_id"]
    assert row["pareto"] in ("yes", "no")
    table = build([folder])
    assert any("until their verdict was clear" in line for line in table.context.caveats)
    assert any("until the format's verdict is clear" in line for line in table.context.method)


@pytest.mark.slow
def test_scores_do_not_depend_on_where_the_scoring_stops(swept):
    """The format's rows are those that it has in a sweep that goes on to the end."""
    folder, spec = swept
    other = folder.with_name("tight")
    tight = spec.model_copy(update={"quality_budget": 0.001, "out": str(other)})
    _, tally = run_sweep(prepare_sweep(tight, lambda event: None), lambda event: None)
    assert tally.ran == 2
    whole, part = (_losses(path) for path in (other, folder))
    assert len(part) < len(whole) == 160
    assert whole[: len(part)] == part


def _losses(path):
    run = RunFolder(path)
    cells = run.read_sweep_or_none()["plan"]["cells"]
    cell_id = next(c["cell_id"] for c in cells if c["format"] == "int8-weight-only")
    rows = run.read_samples(cell_id, "example")
    return list(zip(rows["id"], rows["loss"], strict=True))
