"""Tasks of lm-evaluation-harness, against the harness itself on the same model and data. Skipped
where it is not installed; `scripts/test.sh` installs it."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
import yaml
from tokenizers import processors

from precision_explorer.errors import TaskError, UsageError
from precision_explorer.measure import NullPhases
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.stats import wilson
from precision_explorer.table import build
from precision_explorer.table.aggregates import aggregates
from precision_explorer.table.quality import Quality
from precision_explorer.tasks import harness as harness_tasks
from precision_explorer.tasks import (
    harness_child,
    load_card,
    prepare_harness,
    scores,
    sufficient,
    zero_one_column,
)
from tests.test_models_causal_lm import BOTH, llama, one_thread, tokenizer  # noqa: F401

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
ASK = harness_tasks._ask
PLAN = {"max_tokens": 600, "max_items": 4}
WORDS = ["the", "film", "was", "good", "bad", "very", "quiet", "music", "nobody", "café", "naïve"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A process of its own takes seconds to import the library."""

    def ask(found):
        return harness_child.answer(found)

    monkeypatch.setattr(harness_tasks, "_ask", ask)


@pytest.fixture(scope="module", autouse=True)
def quiet_hub(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


def text(draw, words):
    return " ".join(draw.choice(WORDS) for _ in range(words))


def questions(n=24):
    draw = random.Random(0)
    return [
        {
            "question": f"Review {i}: {text(draw, 6)}. It is",
            "options": [" good", f" {text(draw, 3)}", f" bad {text(draw, 1)}", " café"],
            "answer": draw.randrange(4),
        }
        for i in range(n)
    ]


def texts(n=8):
    """The last ones are longer than the model's window."""
    draw = random.Random(1)
    return [{"text": text(draw, 4 + 20 * i)} for i in range(n)]


def write(folder, name, rows, **config):
    """A task file whose data lie beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    base = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(base | config))
    return path


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "exact_match", "brier_score")],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
}
GREEDY = {
    "output_type": "loglikelihood",
    "doc_to_text": "question",
    "doc_to_target": "{{options[answer]}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
GENERATION = {
    "output_type": "generate_until",
    "doc_to_text": "question",
    "doc_to_target": "{{options[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {"name": "first-word", "filter": [
            {"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
}  # fmt: skip


def harness(path, model, coder, limit=None):
    """(results, samples by document) of the harness's own evaluator and `hf` model."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    own = HFLM(pretrained=model, tokenizer=coder, batch_size=1)
    found = simple_evaluate(
        own, tasks=[str(path)], task_manager=TaskManager(include_defaults=False), limit=limit,
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    name = path.stem
    samples = {}
    for sample in found["samples"][name]:
        samples.setdefault(sample["doc_id"], sample)
    return found["results"][name], samples


def ours(path, model, coder, limit=None, plan=PLAN):
    """(prepared task, adapter, rows) of the same task through this project."""
    (task,) = prepare_harness(f"lm-eval:{path}", limit, 0, False)
    request = {"card": task.card.asked(), "examples": task.examples, "batch_plan": plan}
    adapter = make_adapter(model, coder, "cpu", request)
    return task, adapter, run(adapter, plan)


def run(adapter, plan=PLAN):
    items = adapter.items()
    answers = [None] * len(items)
    with torch.inference_mode():
        lengths = [len(i.ids) for i in items]
        for batch in plan_batches(lengths, plan["max_tokens"], plan["max_items"]):
            for k, answer in zip(batch, adapter.score([items[k] for k in batch]), strict=True):
                answers[k] = answer
    return adapter.rows(items, answers)


def own_kind(made, examples, **more):
    """Scores and rows of one of this project's own kinds on the same data."""
    return run(made(*more.pop("model"), "cpu", examples, {"max_length": 128}, **more))


def columns_of(rows):
    return {name: [row.get(name) for row in rows] for row in rows for name in row}


def check_scores(task, adapter, rows, results):
    """Every metric as the harness has it; and the same made again of the stored rows."""
    found = adapter.own_scores()
    for metric, value in found.items():
        key = metric.removeprefix("lm-eval:")
        assert value == pytest.approx(results[key if "," in key else f"{key},none"], rel=1e-4)
    assert set(found) == set(task.card.metrics)
    for metric in (m for m in found if "bleu" not in m):
        assert scores("lm-eval", [metric], rows)[metric] == pytest.approx(found[metric], rel=1e-9)
    return found


@pytest.fixture(scope="module")
def model():
    return llama(positions=128), tokenizer(**BOTH)


def test_choices_score_as_in_the_harness_and_as_by_our_own_kind(tmp_path, model):
    path = write(tmp_path, "choices", questions(), **CHOICE)
    results, samples = harness(path, *model)
    task, adapter, rows = ours(path, *model)
    found = check_scores(task, adapter, rows, results)
    assert 0 < found["lm-eval:acc"] < 1
    assert sorted(row["id"] for row in rows) == sorted(map(str, samples))
    for row in rows:
        sample = samples[int(row["id"])]
        exact = [float(r[0][0]) for r in sample["resps"]]
        assert row["choice_logprobs"] == pytest.approx(exact, abs=1e-3)
        assert row["acc"] == row["score"] == sample["acc"]
        assert row["prediction"] == str(exact.index(max(exact)))
        assert row["target"] == str(sample["target"])
    examples = [
        {"id": str(i), "prompt": q["question"], "choices": q["options"], "label": q["answer"]}
        for i, q in enumerate(questions())
    ]
    by_kind = own_kind(MultipleChoice, examples, model=model)
    both = {row["id"]: row for row in by_kind}
    for row in rows:
        assert both[row["id"]]["choice_logprobs"] == pytest.approx(row["choice_logprobs"], abs=1e-3)
    own = scores("multiple-choice", ["accuracy"], by_kind)["accuracy"]
    assert own == pytest.approx(results["acc,none"])


def with_bos(coder):
    """`coder` as Llama's is: it puts a BOS before every text."""
    pair = ("<bos>", coder.bos_token_id)
    coder.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[pair]
    )
    return coder


def test_prompts_begin_as_the_tokenizer_has_it(tmp_path):
    """The harness's prompts get the tokenizer's own BOS, so ours do."""
    model, coder = llama(positions=128), with_bos(tokenizer(**BOTH))
    assert coder("a")["input_ids"][0] == coder.bos_token_id
    some = questions()
    some[0]["question"] = "<bos>" + some[0]["question"]  # None is added to one that has it.
    path = write(tmp_path, "begun", some, **CHOICE)
    _, samples = harness(path, model, coder)
    examples = [
        {"id": str(i), "prompt": q["question"], "choices": q["options"], "label": q["answer"]}
        for i, q in enumerate(some)
    ]
    rows = {row["id"]: row for row in own_kind(MultipleChoice, examples, model=(model, coder))}
    for number, sample in samples.items():
        exact = [float(r[0][0]) for r in sample["resps"]]
        assert rows[str(number)]["choice_logprobs"] == pytest.approx(exact, abs=1e-3)


def test_requests_compute_whole_rows_whatever_the_quality_pass_shares(tmp_path, model, monkeypatch):
    plain = CHOICE | {"metric_list": [{"metric": "acc"}]}  # Nothing that asks for greedy tokens.
    _, adapter, _ = ours(write(tmp_path, "choices", questions(), **plain), *model)
    adapter.share(adapter.items(), 600, 8, 32)
    assert adapter.scorer.shares
    monkeypatch.setattr(adapter.scorer, "score", lambda batch: pytest.fail("rows were shared"))
    with torch.inference_mode():
        adapter.request(0, NullPhases())
        adapter.offline([0, 1])


def test_metrics_of_two_classes_score_as_in_the_harness(tmp_path, model):
    rows = [
        q | {"options": q["options"][:: 1 if i % 3 else -1][:2], "answer": q["answer"] % 2}
        for i, q in enumerate(questions())
    ]
    metrics = {"metric_list": [{"metric": m} for m in ("f1", "acc")]}
    path = write(tmp_path, "two", rows, **(CHOICE | metrics))
    results, _ = harness(path, *model)
    task, adapter, found = ours(path, *model)
    assert check_scores(task, adapter, found, results)["lm-eval:f1"] > 0


def test_whole_texts_score_as_in_the_harness_and_as_by_our_own_kind(tmp_path, model):
    path = write(tmp_path, "texts", texts(), **ROLLING)
    results, samples = harness(path, *model)
    task, adapter, rows = ours(path, *model)
    check_scores(task, adapter, rows, results)
    assert max(row["input_tokens"] for row in rows) > 256
    for row in rows:
        exact = float(samples[int(row["id"])]["resps"][0][0])
        assert -row["loss"] == pytest.approx(exact, abs=1e-3 * max(1, abs(exact) / 100))
    examples = [{"id": str(i), "text": row["text"]} for i, row in enumerate(texts())]
    by_kind = own_kind(LanguageModeling, examples, model=model, prompt_tokens=8, output_tokens=2)
    own = scores("language-modeling", ["word_perplexity", "bits_per_byte"], by_kind)
    for metric, value in own.items():
        assert value == pytest.approx(results[f"{metric},none"], rel=1e-5)


def test_greedy_continuations_score_as_in_the_harness(tmp_path, model):
    """Half the targets are what the model itself would say, so that accuracy is not 0."""
    rows = questions(12)
    coder = model[1]
    for row in rows[::2]:
        ids = torch.tensor([coder.encode(row["question"], add_special_tokens=False)])
        said = model[0](ids).logits[0, -1].argmax()
        row["options"][row["answer"]] = coder.decode(said)
    path = write(tmp_path, "greedy", rows, **GREEDY)
    results, samples = harness(path, *model)
    task, adapter, found = ours(path, *model)
    made = check_scores(task, adapter, found, results)
    assert 0 < made["lm-eval:acc"] < 1
    assert task.card.metrics[0] == "lm-eval:perplexity"
    for row in found:
        (value, greedy) = samples[int(row["id"])]["resps"][0][0]
        assert row["choice_logprobs"][0] == pytest.approx(float(value), abs=1e-3)
        assert row["acc"] == float(str(greedy) == "True")


def test_generated_answers_are_those_of_the_harness(tmp_path, model):
    path = write(tmp_path, "answers", questions(6), **GENERATION)
    results, samples = harness(path, *model)
    # One prompt at a time, as there: a batch's padding moves an untrained model's choices.
    task, adapter, rows = ours(path, *model, plan={"max_tokens": 1, "max_items": 1})
    check_scores(task, adapter, rows, results)
    assert task.card.metrics[0] == "lm-eval:exact_match,first-word"
    for row in rows:
        assert row["prediction"] == str(samples[int(row["id"])]["filtered_resps"][0])
    with torch.inference_mode():
        answer = adapter.request(0, NullPhases())
    assert 1 <= answer["output_tokens"] <= 6
    assert answer["ttft_s"] > 0


def test_few_shot_prompts_are_those_of_the_harness_under_any_limit(tmp_path, model):
    shots = {"num_fewshot": 2, "fewshot_split": "test"}
    path = write(tmp_path, "shots", questions(), **(CHOICE | shots))
    _, samples = harness(path, *model)
    for limit in (5, None):
        (task,) = prepare_harness(f"lm-eval:{path}", limit, 3, False)
        assert len(task.examples) == task.identity.n == (limit or 24)
        for example in task.examples:
            sample = samples[example["doc"]]
            for (_, arguments, _), exact in zip(
                example["requests"], sample["arguments"], strict=True
            ):
                assert list(arguments) == list(exact)
    assert example["requests"][0][1][0].count("Review") == 3


def test_a_limit_takes_the_first_of_one_order_and_keeps_the_task_s_method(tmp_path):
    path = write(tmp_path, "order", questions(), **CHOICE)
    whole, few, other = (
        prepare_harness(f"lm-eval:{path}", limit, seed, False)[0]
        for limit, seed in ((None, 0), (7, 0), (7, 1))
    )
    ids = [e["id"] for e in few.examples]
    assert ids == [e["id"] for e in whole.examples][:7]
    assert ids != [e["id"] for e in other.examples]
    assert whole.identity.data_hash == few.identity.data_hash
    assert whole.identity.card_hash == few.identity.card_hash
    changed = write(tmp_path, "order", questions(), **(CHOICE | {"description": "Choose. "}))
    (again,) = prepare_harness(f"lm-eval:{changed}", 7, 0, False)
    assert again.identity.card_hash != few.identity.card_hash


def test_nan_becomes_no_score(tmp_path, model):
    broken = llama(positions=128)
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    for name, rows, config in (
        ("nan-choice", questions(4), CHOICE),
        ("nan-text", texts(3), ROLLING),
        ("nan-answer", questions(2), GENERATION),
    ):
        path = write(tmp_path, name, rows, **config)
        _, _, found = ours(path, broken, model[1])
        assert [row["finite"] for row in found] == [None] * len(found), name
        assert all(row["score"] is None for row in found)


def test_data_that_changed_since_the_plan_are_refused(tmp_path, model):
    path = write(tmp_path, "changing", questions(4), **CHOICE)
    (task,) = prepare_harness(f"lm-eval:{path}", None, 0, False)
    rows = questions(4)
    rows[2]["question"] = "Another question. It is"
    write(tmp_path, "changing", rows, **CHOICE)
    request = {"card": task.card.asked(), "examples": task.examples, "batch_plan": PLAN}
    with pytest.raises(TaskError, match="document 2 of lm-eval:changing is another"):
        make_adapter(*model, "cpu", request)


def test_a_head_that_was_converted_is_not_tied_again(tmp_path):
    """The harness's own class ties weights when it is made."""
    tied = llama(positions=128)
    tied.config.tie_word_embeddings = True
    head = torch.nn.Parameter(torch.zeros_like(tied.lm_head.weight))
    tied.lm_head.weight = head
    ours(write(tmp_path, "tied", questions(2), **CHOICE), tied, tokenizer(**BOTH))
    assert tied.lm_head.weight is head


def refused(path, trusted=False):
    with pytest.raises(TaskError) as found:
        prepare_harness(f"lm-eval:{path}", None, 0, trusted)
    message = str(found.value)
    assert "\n" not in message
    return message


def test_a_file_that_would_run_python_is_refused_unless_allowed(tmp_path, model):
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('ran').touch()\n"
        "def shout(doc):\n    return doc['question'].upper()\n"
    )
    path = write(tmp_path, "own_code", questions(2), **CHOICE)
    plain = path.read_text()
    path.write_text(plain.replace("doc_to_text: question", "doc_to_text: !function own.shout"))
    assert "--trust-remote-code" in refused(path)
    included = tmp_path / "included.yaml"
    included.write_text("include: own_code.yaml\ntask: included\n")
    assert "!function" in refused(included)
    assert not (tmp_path / "ran").exists()
    (task,) = prepare_harness(f"lm-eval:{path}", None, 0, True)
    assert task.examples[0]["requests"][0][1][0].startswith("REVIEW")
    assert (tmp_path / "ran").exists()


def test_templates_of_a_file_reach_no_python(tmp_path):
    ran = tmp_path / "ran"
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(ran) + "') }}"
    path = write(tmp_path, "reaching", questions(2), **(CHOICE | {"doc_to_text": reach}))
    refused(path)
    assert not ran.exists()


def test_metrics_that_would_be_fetched_are_refused(tmp_path):
    other = write(tmp_path, "other", questions(2), **(GENERATION | {"metric_list": [
        {"metric": "squad", "aggregation": "mean", "higher_is_better": True}]}))  # fmt: skip
    assert "'squad' is none of lm-eval's own" in refused(other)


def test_errors_in_one_line(tmp_path, monkeypatch):
    assert "no lm-eval task at" in refused(tmp_path / "missing.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("task: [")
    assert "no valid YAML" in refused(bad)
    missing = write(tmp_path, "column", questions(2), **(CHOICE | {"doc_to_target": "{{label}}"}))
    assert "lm-eval:column.yaml can't be made" in refused(missing)
    card = tmp_path / "task.yaml"
    card.write_text(
        "name: a\nversion: 1\nkind: lm-eval\ndata: {path: a}\ncolumns: {}\nmetrics: [x]"
    )
    with pytest.raises(TaskError, match="kind lm-eval has no cards"):
        load_card(str(card))
    with pytest.raises(UsageError, match="names no task"):
        prepare_harness("lm-eval:", None, 0, False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "precision-explorer\[lm-eval\]"'):
        prepare_harness("lm-eval:arc_easy", None, 0, False)


def test_groups_and_unknown_names(tmp_path, monkeypatch):
    from precision_explorer.tasks import harness_library

    names = {
        "one": {"kind": "TASK", "path": "one.yaml", "tags": []},
        "two": {"kind": "TASK", "path": "two.yaml", "tags": []},
        "both": {"kind": "TAG", "path": None, "tags": ["one", "two"]},
        "all": {"kind": "GROUP", "path": "all.yaml", "tags": []},
    }
    (tmp_path / "all.yaml").write_text(
        "group: all\nnum_fewshot: 3\ntask:\n- both\n- {task: two, num_fewshot: 5}\n"
    )
    monkeypatch.setattr(harness_library, "known_names", lambda: names)
    monkeypatch.setattr(harness_library, "_root", lambda: tmp_path)
    assert harness_library.task_specs("one") == [{"name": "one", "overrides": {}}]
    assert [s["name"] for s in harness_library.task_specs("both")] == ["one", "two"]
    assert harness_library.task_specs("all") == [
        {"name": "one", "overrides": {"num_fewshot": 3}},
        {"name": "two", "overrides": {"num_fewshot": 5}},
    ]
    with pytest.raises(TaskError, match=r"unknown lm-eval task 'twoo'; did you mean two\?"):
        harness_library.task_specs("twoo")


GROUP = """
group: all
task:
- one
- two
aggregate_metric_list:
- {metric: acc, weight_by_size: true}
- {metric: acc_norm, weight_by_size: false, filter_list: none}
- {metric: nothing}
"""


def grouped(folder, monkeypatch):
    """A registered group of two tasks of 24 and 9 questions."""
    from precision_explorer.tasks import harness_library

    write(folder, "one", questions(), **CHOICE)
    write(folder, "two", questions(33)[24:], **CHOICE)
    (folder / "all.yaml").write_text(GROUP)
    names = {
        "one": {"kind": "TASK", "path": "one.yaml", "tags": []},
        "two": {"kind": "TASK", "path": "two.yaml", "tags": []},
        "all": {"kind": "GROUP", "path": "all.yaml", "tags": []},
        "both": {"kind": "TAG", "path": None, "tags": ["one", "two"]},
    }
    monkeypatch.setattr(harness_library, "known_names", lambda: names)
    monkeypatch.setattr(harness_library, "_root", lambda: folder)


def entry_of(task, fmt, scores, rows):
    """What a table makes an aggregate of: one cell of one format."""
    cell = SimpleNamespace(
        model=SimpleNamespace(name="tiny", revision="r"), device_name="CPU", runtime="eager",
        format=fmt, task=task.identity, seed=0,
    )  # fmt: skip
    quality = SimpleNamespace(scores=scores, examples=len(rows))
    record = SimpleNamespace(
        cell=cell, status="ok", cell_id=f"{task.card.name}-{fmt}",
        known_samples=None, measurements=SimpleNamespace(quality=quality),
    )  # fmt: skip
    row = {"model": "tiny", "model_revision": "r", "device": "CPU", "format": fmt}
    return SimpleNamespace(
        record=record, row=row | {"runtime": "eager"}, reader=READER,
        folder=SimpleNamespace(read_samples=lambda cell_id, kind, sha256: columns_of(rows)),
    )  # fmt: skip


READER = {"reference": "fp32", "quality_budget": 0.01}


def test_a_group_s_score_is_the_harness_s(tmp_path, model, monkeypatch):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    grouped(tmp_path, monkeypatch)
    found = simple_evaluate(
        HFLM(pretrained=model[0], tokenizer=model[1], batch_size=1), tasks=["all"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["groups"]["all"]  # fmt: skip
    tasks = prepare_harness("lm-eval:all", None, 0, False)
    (group,) = tasks[0].card.groups
    assert tasks[1].card.groups == [group]
    assert group == {
        "name": "lm-eval:all", "tasks": ["lm-eval:one", "lm-eval:two"],
        "metrics": [{"metric": "lm-eval:acc", "by_size": True},
                    {"metric": "lm-eval:acc_norm", "by_size": False}],
    }  # fmt: skip
    entries = []
    for task in tasks:
        request = {"card": task.card.asked(), "examples": task.examples, "batch_plan": PLAN}
        adapter = make_adapter(*model, "cpu", request)
        rows = run(adapter)
        entries.append(entry_of(task, "fp32", adapter.own_scores(), rows))
        worse = [row | {"acc": 0.0} if k < 3 else row for k, row in enumerate(rows)]
        scored = adapter.own_scores() | {"lm-eval:acc": sum(r["acc"] for r in worse) / len(rows)}
        entries.append(entry_of(task, "bf16", scored, worse))
    made = {(a.metric, a.format): a for a in aggregates([group], entries)}
    for metric in ("acc", "acc_norm"):
        assert made[f"lm-eval:{metric}", "fp32"].value == pytest.approx(found[f"{metric},none"])
    sizes = [24, 9]
    worse = made["lm-eval:acc", "bf16"]
    by_task = [scored_by(e, "lm-eval:acc") - scored_by(r, "lm-eval:acc")
               for r, e in zip(entries[::2], entries[1::2], strict=True)]  # fmt: skip
    assert worse.delta == pytest.approx(
        sum(n * d for n, d in zip(sizes, by_task, strict=True)) / 33
    )
    assert worse.delta == pytest.approx(worse.value - made["lm-eval:acc", "fp32"].value)
    assert worse.low < worse.delta < worse.high
    same = made["lm-eval:acc_norm", "bf16"]
    # Nothing differs, which 33 examples don't prove.
    assert same.low < same.delta == 0 < same.high
    assert (worse.tasks, worse.examples) == (2, 33)
    # A format that lacks a task of the group has no score over it.
    assert [a.format for a in aggregates([group], entries[:3]) if a.metric == "lm-eval:acc"] == [
        "fp32"
    ]


def scored_by(entry, metric):
    return entry.record.measurements.quality.scores[metric]


def test_tags_and_groups_without_a_rule_have_no_score(tmp_path, monkeypatch):
    grouped(tmp_path, monkeypatch)
    assert all(not t.card.groups for t in prepare_harness("lm-eval:both", 2, 0, False))
    plain = GROUP.partition("aggregate_metric_list")[0]
    (tmp_path / "all.yaml").write_text(plain)
    assert all(not t.card.groups for t in prepare_harness("lm-eval:all", 2, 0, False))


def test_a_metric_of_fractions_is_no_share_of_zeros_and_ones():
    rows = {"id": ["a", "b"], "acc": [1.0, 0.5]}
    assert zero_one_column("lm-eval:acc", rows) is None
    assert zero_one_column("lm-eval:acc", {"acc": [1.0, 0.0]}) == "acc"
    assert zero_one_column("lm-eval:acc", {"acc": [1.0, 0.0]}, rows) is None
    terms, finish = sufficient("lm-eval:acc", rows | {"acc": [1.0, None]})
    assert finish(terms.sum(0)) == 1.0
    with pytest.raises(TaskError, match="no mean of its examples"):
        sufficient("lm-eval:bleu", rows)


def test_the_library_is_asked_in_a_process_of_its_own(tmp_path, monkeypatch):
    """A proxy that leads nowhere would make every word to the hub fail; what the task asks of it
    is told in one line."""
    path = write(tmp_path, "local", questions(2), **CHOICE)
    monkeypatch.setattr(harness_tasks, "_ask", ASK)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len(prepare_harness(f"lm-eval:{path}", None, 0, False)[0].examples) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path.write_text(path.read_text().replace("dataset_path: json", "dataset_path: nobody/nothing"))
    assert "can't reach the hub for the data of lm-eval:local.yaml" in refused(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model as a folder, and the same with NaN in its head."""
    found = []
    for name in ("small", "broken"):
        made = llama(positions=128)
        if name == "broken":
            with torch.no_grad():
                made.lm_head.weight[5] = math.nan
        folder = tmp_path_factory.mktemp("models") / name
        made.save_pretrained(folder)
        tokenizer(**BOTH).save_pretrained(folder)
        found.append(str(folder))
    return found


@pytest.mark.slow
def test_a_sweep_scores_documents_in_each_format(tmp_path, folders, quick_workload):
    first = write(tmp_path, "swept", questions(10), **CHOICE)
    second = write(tmp_path, "corpus", questions(4), **(GENERATION | {
        "metric_list": [{"metric": "bleu"}, {"metric": "exact_match"}]}))  # fmt: skip
    options = {
        "model": folders[:1], "task": (f"lm-eval:{first}", f"lm-eval:{second}"), "device": "cpu",
        "formats": ("fp32", "bf16"), "limit": 8, "workload": str(quick_workload),
        "out": str(tmp_path / "run"), "batch_size": (1,), "threads": 1,
    }  # fmt: skip
    prepared = prepare_sweep(make_spec(options), lambda event: None)
    assert len(prepared.plan.cells) == 4
    folder, _ = run_sweep(prepared, lambda event: None)
    rows = {(r["model"], r["task"], r["format"]): r for r in build([folder.path]).rows}
    for form in ("fp32", "bf16"):
        # No mean: a value, and nothing about its spread.
        corpus = rows["small", "lm-eval:corpus", form]
        assert corpus["quality_metric"] == "lm-eval:bleu,first-word"
        assert corpus["quality"] >= 0
        assert corpus["quality_ci_low"] is corpus["verdict"] is None
        assert corpus["ttft_s"] > 0
    reference, other = (rows["small", "lm-eval:swept", form] for form in ("fp32", "bf16"))
    _, samples = harness(first, llama(positions=128), tokenizer(**BOTH))
    (cell,) = [
        c.cell_id for c in prepared.plan.cells
        if (c.ref.name, c.task.card.name, c.cell.format) == ("small", "lm-eval:swept", "fp32")
    ]  # fmt: skip
    stored = folder.read_samples(cell, "example")
    assert len(stored["id"]) == 8
    assert stored["acc"] == stored["score"] == [samples[int(i)]["acc"] for i in stored["id"]]
    assert reference["quality"] == pytest.approx(sum(stored["acc"]) / 8)
    assert reference["quality_ci_low"] == pytest.approx(wilson(int(sum(stored["acc"])), 8)[0])
    assert other["flips"] is not None
    assert other["verdict"] == "cannot-tell"
    assert other["kl_mean"] > 0


@pytest.mark.slow
def test_a_model_of_nan_gets_no_score(tmp_path, folders, quick_workload):
    path = write(tmp_path, "nothing", questions(4), **CHOICE)
    options = {
        "model": folders[1:], "task": (f"lm-eval:{path}",), "device": "cpu", "formats": ("fp32",),
        "workload": str(quick_workload), "out": str(tmp_path / "run"), "threads": 1,
    }  # fmt: skip
    folder, _ = run_sweep(prepare_sweep(make_spec(options), lambda event: None), lambda event: None)
    (row,) = build([folder.path]).rows
    assert row["status"] == "invalid_numerics"
    assert row["quality"] is None


def test_the_task_says_which_way_a_metric_of_its_own_is_better():
    columns = {"id": ["a"], "wer": [0.2]}
    assert Quality.of("lm-eval:wer", columns, False).higher_is_better is False
    assert Quality.of("lm-eval:wer", columns, None).higher_is_better is True
    assert Quality.of("lm-eval:acc", columns, False).higher_is_better is True


def test_tasks_that_generate_are_not_compiled(tmp_path, folders):
    path = write(tmp_path, "compiled", questions(2), **GENERATION)
    options = {"model": folders[:1], "task": (f"lm-eval:{path}",), "runtime": ("compile",)}
    with pytest.raises(UsageError, match="--runtime eager only"):
        prepare_sweep(make_spec(options), lambda event: None)
