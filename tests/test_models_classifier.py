"""The adapter of classifiers against plain transformers code, example by example."""

import math

import pytest
import torch
import transformers

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models import resolve
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.reference import DEMO
from precision_explorer.models.text_classifier import TextClassifier
from precision_explorer.tasks import check_labels, load_card
from precision_explorer.tasks import prepare as prepare_task

KIND = "text-classification"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def demo():
    return load(DEMO, KIND, torch.float32, "cpu", False), prepare(DEMO, KIND, False)


@pytest.fixture(scope="module")
def task():
    return prepare_task(load_card("sentiment"), limit=40, seed=0)


def adapter(demo, examples, label_ids=None, max_length=128, **more):
    model, tokenizer = demo
    card = {"max_length": max_length}
    labels = label_ids or {"negative": 0, "positive": 1}
    return TextClassifier(model, tokenizer, "cpu", examples, card, labels)


def scored(found, max_tokens=512, max_items=8):
    """Rows of all examples, in planned batches."""
    items = found.items()
    answers = [None] * len(items)
    with torch.inference_mode():
        for batch in plan_batches([len(i.ids) for i in items], max_tokens, max_items):
            for index, answer in zip(batch, found.score([items[i] for i in batch]), strict=True):
                answers[index] = answer
    return items, answers, found.rows(items, answers)


def test_40_examples_agree_with_plain_code(demo, task):
    label_ids = check_labels(task.card, task.examples, resolve("demo").id2label)
    _, answers, rows = scored(adapter(demo, task.examples, label_ids))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(DEMO).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    assert len(rows) == 40
    for example, logits, row in zip(task.examples, answers, rows, strict=True):
        encoded = tokenizer(example["text"], return_tensors="pt", truncation=True, max_length=128)
        with torch.inference_mode():
            exact = model(**encoded).logits[0]
        torch.testing.assert_close(torch.tensor(logits), exact, rtol=0, atol=1e-4)
        assert row["id"] == example["id"]
        assert row["target"] == example["label"]
        assert row["prediction"] == model.config.id2label[int(exact.argmax())]
        assert row["score"] == float(row["prediction"] == example["label"])
        target = label_ids[example["label"]]
        logprobs = exact.double().log_softmax(-1)
        assert row["loss"] == pytest.approx(-float(logprobs[target]), abs=1e-4)
        assert row["logprobs"] == pytest.approx(logprobs.tolist(), abs=1e-4)
        assert row["input_tokens"] == encoded["input_ids"].shape[1]
        assert row["cut"] is False
    assert 0.7 < sum(row["score"] for row in rows) / 40 < 1


def test_serving_gives_the_same_answers_as_scoring(demo, task):
    found = adapter(demo, task.examples[:8])
    _, _, rows = scored(found)
    predictions = [row["prediction"] for row in rows]
    phases = Phases()
    with torch.inference_mode():
        assert [found.request(i, NullPhases())["answer"] for i in range(8)] == predictions
        assert found.offline(range(8))["answers"] == predictions
        found.request(0, phases)
    assert set(phases.take()) == {"tokenize", "copy", "forward", "post"}


def test_long_inputs_are_cut_and_counted(demo):
    examples = [
        {"id": "a", "text": "good " * 300, "label": "positive"},
        {"id": "b", "text": "good", "label": "positive"},
    ]
    items, _, rows = scored(adapter(demo, examples, max_length=16))
    assert [len(item.ids) for item in items] == [16, 3]
    assert [row["cut"] for row in rows] == [True, False]
    # The model has 128 positions, whatever the card says.
    items, _, rows = scored(adapter(demo, examples, max_length=5000))
    assert [len(item.ids) for item in items] == [128, 3]
    exact = [{"id": "a", "text": "good " * 126, "label": "positive"}]
    items, _, rows = scored(adapter(demo, exact, max_length=5000))
    assert (len(items[0].ids), rows[0]["cut"]) == (128, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_prediction(demo, task, bad):
    found = adapter(demo, task.examples[:2])
    items = found.items()
    good, spoilt = found.rows(items, [[0.0, 1.0], [bad, 0.0]])
    assert good["prediction"] == "positive"
    assert [spoilt[k] for k in ("prediction", "score", "loss", "logprobs")] == [None] * 4


# -- other models ------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "num_labels": 3,
}  # fmt: skip


class Words:
    """A tokenizer of one token per word: `word<number>` is that number."""

    model_max_length = int(1e30)

    def __init__(self, pad=None, eos=None):
        self.pad_token_id, self.eos_token_id = pad, eos

    def __call__(self, texts, truncation, max_length=None, verbose=True):
        rows = [[int(word[4:]) for word in text.split()] for text in texts]
        return {"input_ids": [row[:max_length] if truncation else row for row in rows]}


def examples_of(*rows):
    return [
        {"id": str(i), "text": " ".join(f"word{t}" for t in row), "label": "0"}
        for i, row in enumerate(rows)
    ]


def alone_and_together(model, tokenizer, rows, max_length=100):
    found = TextClassifier(
        model.eval(), tokenizer, "cpu", examples_of(*rows), {"max_length": max_length}, {"0": 0}
    )
    items = found.items()
    with torch.inference_mode():
        together = torch.tensor(found.score(items))
        alone = torch.cat([model(torch.tensor([item.ids])).logits for item in items])
    return together, alone


@pytest.mark.parametrize(
    ("config_pad", "tokenizer"),
    [(7, Words(pad=3)), (7, Words()), (None, Words(pad=9)), (None, Words(eos=4)), (0, Words())],
)
def test_decoders_are_read_at_the_last_token_of_each_row(config_pad, tokenizer):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, pad_token_id=config_pad)
    model = transformers.LlamaForSequenceClassification(config)
    rows = [[11, 12, 13, 14, 15, 16], [21, 22], [31, 32, 33]]
    together, alone = alone_and_together(model, tokenizer, rows)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_robertas_positions_begin_behind_the_padding():
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=20, pad_token_id=1)
    model = transformers.RobertaForSequenceClassification(config)
    rows = [list(range(2, 40)), [5, 6, 7]]
    tokenizer = Words(pad=1)
    together, alone = alone_and_together(model, tokenizer, rows)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    found = TextClassifier(
        model, tokenizer, "cpu", examples_of(*rows), {"max_length": 100}, {"0": 0}
    )
    assert [(len(item.ids), item.cut) for item in found.items()] == [(18, True), (3, False)]
