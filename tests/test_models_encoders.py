"""The adapters of encoders and vision models against plain transformers code on their weights."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models import check_head, check_inputs, has_head, resolve
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.extractive_qa import ANSWER_TOKENS
from precision_explorer.models.image_classifier import decoded
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.sentence_encoder import pooled, pooling_of
from precision_explorer.tasks import KINDS
from precision_explorer.tasks.images import inline
from tests import tiny_models

CARD = {"max_length": 40, "stride": 8}
KINDS_HERE = (
    "token-classification", "extractive-qa", "similarity", "retrieval", "image-classification",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "token-classification": tiny_models.tagger(root / "tagger"),
        "extractive-qa": tiny_models.answerer(root / "answerer"),
        "similarity": tiny_models.encoder(root / "encoder"),
        "retrieval": tiny_models.encoder(root / "retriever", "cls_token"),
        "image-classification": tiny_models.vision(root / "vision"),
    }


def adapter(folders, kind: str, examples: list[dict[str, Any]], **more: Any) -> Any:
    path = folders[kind]
    model, made = load(path, kind, torch.float32, "cpu", False), prepare(path, kind, False)
    request = {"card": CARD | {"kind": kind} | more.pop("card", {}), "examples": examples} | more
    return make_adapter(model, made, "cpu", request)


def scored(found: Any, max_items: int = 3) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Items, answers and rows, in planned batches."""
    items = found.items()
    answers: list[Any] = [None] * len(items)
    with torch.inference_mode():
        for batch in plan_batches([len(i.ids) for i in items], 200, max_items):
            for index, answer in zip(batch, found.score([items[i] for i in batch]), strict=True):
                answers[index] = answer
        return items, answers, found.rows(items, answers)


def served(found: Any, count: int) -> tuple[list[str], list[Any]]:
    phases = Phases()
    with torch.inference_mode():
        single = [found.request(i, NullPhases())["answer"] for i in range(count)]
        together = found.offline(range(count))["answers"]
        found.request(0, phases)
    assert {"tokenize", "forward", "post"} <= set(phases.take())
    return single, together


# Tags

TAGGED = [
    {"id": "a", "text": ["Anna", "is", "in", "Rome"], "label": ["B-PER", "O", "O", "B-LOC"]},
    {"id": "b", "text": ["bob", "x"], "label": ["B-PER", "I-PER"]},
    {"id": "c", "text": ["no", "entity", "in", "here"], "label": ["O", "O", "O", "O"]},
]
TAG_IDS = {name: i for i, name in enumerate(tiny_models.TAGS)}


def test_a_word_s_tag_is_that_of_its_first_token(folders):
    found = adapter(folders, "token-classification", TAGGED, label_ids=TAG_IDS)
    _, _, rows = scored(found)
    model = transformers.BertForTokenClassification.from_pretrained(found.model.name_or_path).eval()
    for example, row in zip(TAGGED, rows, strict=True):
        ids, first = [2], []
        for word in example["text"]:
            first.append(len(ids))
            ids += found.tokenizer(word, add_special_tokens=False)["input_ids"]
        ids.append(3)
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0, first].double().log_softmax(-1)
        assert row["prediction"] == [tiny_models.TAGS[i] for i in logprobs.argmax(-1)]
        assert row["target"] == example["label"]
        exact = -sum(float(logprobs[i, TAG_IDS[t]]) for i, t in enumerate(example["label"]))
        assert row["loss"] == pytest.approx(exact, abs=1e-3)
        assert (row["input_tokens"], row["cut"]) == (len(ids), False)
    single, together = served(found, 3)
    assert [answer.split() for answer in single] == together == [r["prediction"] for r in rows]


def test_words_that_are_cut_are_outside_of_entities(folders):
    words = ["anna"] * 20
    example = {"id": "a", "text": words, "label": ["B-PER"] * 20}
    found = adapter(folders, "token-classification", [example], label_ids=TAG_IDS)
    _, _, (row,) = scored(found)
    assert (row["input_tokens"], row["cut"]) == (40, True)
    assert len(row["prediction"]) == 20
    # [CLS] and 38 tokens of four-letter words: the tenth word has its first token, no later one.
    assert row["prediction"][10:] == ["O"] * 10
    fits = {"id": "b", "text": ["an"] * 19, "label": ["O"] * 19}
    _, _, (row,) = scored(adapter(folders, "token-classification", [fits], label_ids=TAG_IDS))
    assert (row["input_tokens"], row["cut"]) == (40, False)


def test_a_tag_that_the_model_lacks_has_no_loss_and_can_still_be_right(folders):
    example = {"id": "a", "text": ["bob"], "label": ["B-ELF"]}
    found = adapter(folders, "token-classification", [example], label_ids={})
    _, _, (row,) = scored(found)
    assert row["loss"] == 0.0
    assert row["true"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_tags_of_what_is_not_finite_are_none(folders, bad):
    found = adapter(folders, "token-classification", TAGGED[:1], label_ids=TAG_IDS)
    with torch.no_grad():
        found.model.classifier.bias[2] = bad
    _, _, (row,) = scored(found)
    assert [row[k] for k in ("prediction", "score", "right", "loss")] == [None] * 4


# Answers

CONTEXT = "anna is in rome and bob is in oslo. eve went to bonn, and dora is at home today."
ASKED = [
    {"id": "a", "text": "who?", "context": CONTEXT, "references": ["anna"]},
    {"id": "b", "text": " where is bob?", "context": "bob is here", "references": ["here"]},
]


def best_by_hand(found: Any, example: dict[str, Any]) -> tuple[float, str]:
    """Every span of every window, one after the other."""
    model, tokenizer = found.model, found.tokenizer
    question = tokenizer(example["text"].lstrip(), add_special_tokens=False)["input_ids"]
    whole = tokenizer(example["context"], add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = whole["input_ids"], whole["offset_mapping"]
    room = CARD["max_length"] - len(question) - 3
    best, begin = (-math.inf, ""), 0
    while True:
        part = ids[begin : begin + room]
        row = [2, *question, 3, *part, 3]
        types = [0] * (len(question) + 2) + [1] * (len(part) + 1)
        with torch.inference_mode():
            out = model(torch.tensor([row]), token_type_ids=torch.tensor([types]))
        first = len(question) + 2
        for i in range(len(part)):
            for j in range(i, min(i + ANSWER_TOKENS, len(part))):
                value = float(out.start_logits[0, first + i] + out.end_logits[0, first + j])
                span = offsets[begin + i][0], offsets[begin + j][1]
                if value > best[0]:
                    best = (value, example["context"][slice(*span)])
        if begin + room >= len(ids):
            return best
        begin += room - CARD["stride"]


def test_the_answer_is_the_best_span_of_all_windows(folders):
    found = adapter(folders, "extractive-qa", ASKED)
    items, _, rows = scored(found)
    assert len(items) > 3
    assert [row["windows"] for row in rows] == [len(items) - 1, 1]
    for example, row in zip(ASKED, rows, strict=True):
        value, text = best_by_hand(found, example)
        assert row["prediction"] == text
        assert row["span_score"] == pytest.approx(value, abs=1e-4)
        assert row["target"] == example["references"]
        assert text in example["context"]
    single, together = served(found, 2)
    assert single == together == [row["prediction"] for row in rows]


def test_items_of_one_adapter_serve_another(folders):
    """As numerics does, which runs two models on the same items."""
    items = adapter(folders, "extractive-qa", ASKED).items()
    first, second = (adapter(folders, "extractive-qa", ASKED) for _ in range(2))
    with torch.inference_mode():
        assert first.score(items[:2]) == second.score(items[:2])
        scores = first.scores(items[:2])
    assert scores.shape == (4, 40)
    assert (scores[0, :2] == -1e4).all()


def test_a_question_that_fills_the_window_is_told(folders):
    example = ASKED[0] | {"text": "who is it that is in rome now, and why?"}
    with pytest.raises(TaskError, match="example a: the question leaves"):
        adapter(folders, "extractive-qa", [example]).items()


def test_answers_of_what_is_not_finite_are_none(folders):
    found = adapter(folders, "extractive-qa", ASKED)
    with torch.no_grad():
        found.model.qa_outputs.bias[0] = math.nan
    _, _, rows = scored(found)
    for row in rows:
        assert [row[k] for k in ("prediction", "score", "token_f1", "span_score")] == [None] * 4


# Embeddings

PAIRS = [
    {"id": "a", "text": "a cat sat", "pair": "the dog ran far away", "label": 1.0},
    {"id": "b", "text": "rome", "pair": "rome", "label": 5.0},
]


def embedding(found: Any, text: str, how: str) -> torch.Tensor:
    encoded = found.tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        hidden = found.model(**encoded).last_hidden_state[0].double()
    vector = hidden[0] if how == "cls" else hidden.mean(0)
    return vector / vector.norm()


def test_similarity_is_the_cosine_of_the_mean_tokens(folders):
    found = adapter(folders, "similarity", PAIRS)
    assert found.pooling == "mean"
    _, _, rows = scored(found)
    for example, row in zip(PAIRS, rows, strict=True):
        first, second = (embedding(found, example[k], "mean") for k in ("text", "pair"))
        assert row["cosine"] == row["prediction"] == pytest.approx(float(first @ second), abs=1e-5)
        assert row["target"] == example["label"]
    assert rows[1]["cosine"] == pytest.approx(1.0, abs=1e-6)
    single, together = served(found, 2)
    assert [float(x) for x in single] == pytest.approx([r["cosine"] for r in rows], abs=1e-5)
    assert together == pytest.approx([r["cosine"] for r in rows], abs=1e-5)


def test_documents_are_ranked_by_cosine(folders):
    corpus = [{"id": f"d{i}", "text": text} for i, text in enumerate(
        ["rome is old", "a cat sat", "the dog ran far", "oslo", "x y z", "home today"]
    )]  # fmt: skip
    queries = [
        {"id": "a", "text": "cat", "relevant": {"d1": 1.0}},
        {"id": "b", "text": "rome is old", "relevant": {"d0": 2.0, "d3": 1.0}},
    ]
    found = adapter(folders, "retrieval", queries, corpus=corpus)
    assert found.pooling == "cls"
    items, _, rows = scored(found)
    assert len(items) == 8
    documents = torch.stack([embedding(found, d["text"], "cls") for d in corpus])
    for query, row in zip(queries, rows, strict=True):
        cosines = documents @ embedding(found, query["text"], "cls")
        assert row["prediction"] == [f"d{i}" for i in cosines.argsort(descending=True)]
    assert rows[1]["prediction"][0] == "d0"
    assert rows[1]["target"] == ["d0", "d3"]
    single, together = served(found, 2)
    assert [answer.split() for answer in single] == together == [r["prediction"] for r in rows]
    # A process that did not score embeds the documents itself, to the same end.
    fresh = adapter(folders, "retrieval", queries, corpus=corpus)
    assert served(fresh, 2) == (single, together)
    assert torch.allclose(fresh.index(), found.index(), atol=1e-5)


def test_a_document_that_is_not_finite_spoils_every_query(folders):
    queries = [{"id": "a", "text": "cat", "relevant": {"d0": 1.0}}]
    found = adapter(folders, "retrieval", queries, corpus=[{"id": "d0", "text": "rome"}])
    items = found.items()
    with torch.inference_mode():
        answers = found.score(items)
    answers[1] = np.full_like(answers[1], np.nan)
    (row,) = found.rows(items, answers)
    assert [row[k] for k in ("prediction", "score", "ndcg_at_10")] == [None] * 3


def test_poolings_leave_the_padding_out():
    hidden = torch.tensor([[[1.0, 4.0], [3.0, 2.0], [math.nan, math.nan]]])
    mask = torch.tensor([[1, 1, 0]])
    expected = {"mean": [2.0, 3.0], "cls": [1.0, 4.0], "max": [3.0, 4.0], "lasttoken": [3.0, 2.0]}
    for how, vector in expected.items():
        assert pooled(hidden, mask, how).tolist() == [vector]


def test_poolings_are_read_as_sentence_transformers_stores_them(tmp_path):
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    stored = tmp_path / "1_Pooling" / "config.json"
    stored.write_text('{"pooling_mode_cls_token": false, "pooling_mode_max_tokens": true}')
    assert pooling_of(tmp_path) == "max"
    stored.write_text('{"pooling_mode": "lasttoken"}')
    assert pooling_of(tmp_path) == "lasttoken"
    stored.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}')
    with pytest.raises(ModelError, match="none of mean"):
        pooling_of(tmp_path)
    stored.write_text('{"pooling_mode": "mean"}')
    parts = '[{"type": "sentence_transformers.models.Transformer"}, {"type": "x.models.Dense"}]'
    (tmp_path / "modules.json").write_text(parts)
    with pytest.raises(ModelError, match=r"x\.models\.Dense"):
        pooling_of(tmp_path)


def test_an_encoder_without_its_pooler_is_whole(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tiny_models.encoder(tmp_path / "encoder")
    weights = load_file(path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    model = load(path, "similarity", torch.float32, "cpu", False)
    assert model.pooler is None
    del kept["embeddings.word_embeddings.weight"]
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="word_embeddings"):
        load(path, "similarity", torch.float32, "cpu", False)


# Images

PIXELS = [[(x * 30 + y) % 256 for x in range(8)] for y in range(8)]


def test_images_are_classified_as_by_plain_code(folders):
    examples = [
        {"id": "a", "image": PIXELS, "label": 2},
        {"id": "b", "image": [[255] * 8] * 8, "label": "LABEL_1"},
    ]
    labels = {"2": 2, "LABEL_1": 1}
    found = adapter(folders, "image-classification", examples, label_ids=labels)
    items, answers, rows = scored(found)
    assert [len(item.ids) for item in items] == [5, 5]  # 2 x 2 patches, and the class token.
    for example, logits, row in zip(examples, answers, rows, strict=True):
        grey = torch.tensor(example["image"]).float() / 255
        pixels = ((grey - 0.5) / 0.5).expand(1, 3, 8, 8)
        with torch.inference_mode():
            exact = found.model(pixel_values=pixels).logits[0]
        torch.testing.assert_close(torch.tensor(logits), exact, rtol=0, atol=1e-4)
        assert row["prediction"] == f"LABEL_{int(exact.argmax())}"
        target = labels[str(example["label"])]
        assert row["loss"] == pytest.approx(-float(exact.log_softmax(-1)[target]), abs=1e-4)
    single, together = served(found, 2)
    assert single == together == [row["prediction"] for row in rows]


def test_pixels_files_and_bytes_give_the_same_image(tmp_path):
    from PIL import Image

    image = decoded({"id": "a", "image": PIXELS}, 3)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert image.getpixel((1, 2)) == (32, 32, 32)
    out = io.BytesIO()
    Image.fromarray(np.asarray(PIXELS, dtype=np.uint8)).save(out, "PNG")
    (tmp_path / "one.png").write_bytes(out.getvalue())
    for same in (str(tmp_path / "one.png"), inline(out.getvalue())):
        assert decoded({"id": "a", "image": same}, 3).tobytes() == image.tobytes()
    assert decoded({"id": "a", "image": PIXELS}, 1).mode == "L"
    with pytest.raises(TaskError, match="example a: its image can't be decoded"):
        decoded({"id": "a", "image": inline(b"no image")}, 3)


# Compiled for few shapes


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_padding_to_few_shapes_changes_no_answer(folders, monkeypatch, kind):
    """The compiler itself left out: what is padded on the way in is cut off on the way out."""
    from precision_explorer.formats.runtimes import RUNTIMES
    from precision_explorer.models.compiled import CompiledModel

    asked: dict[str, Any] = {
        "token-classification": {"examples": TAGGED, "label_ids": TAG_IDS},
        "extractive-qa": {"examples": ASKED},
        "similarity": {"examples": PAIRS},
        "retrieval": {
            "examples": [{"id": "a", "text": "cat", "relevant": {"d1": 1.0}}],
            "corpus": [{"id": f"d{i}", "text": text} for i, text in enumerate(["rome", "a cat"])],
        },
        "image-classification": {
            "examples": [{"id": str(i), "image": PIXELS, "label": i} for i in range(3)],
            "label_ids": {str(i): i for i in range(3)},
        },
    }
    found = adapter(folders, kind, **asked[kind])
    _, _, eager = scored(found)
    shapes = []

    def remembered(forward: Any, *rest: Any) -> Any:
        def call(**inputs: Any) -> Any:
            first = inputs.get("input_ids", inputs.get("pixel_values"))
            shapes.append(tuple(first.shape))
            return forward(**inputs)

        return call

    monkeypatch.setattr("precision_explorer.models.compiled.compiled", remembered)
    fixed = RUNTIMES["compile-fixed"]
    CompiledModel(found.model, fixed, "cpu", pad=found.pad, longest=found.max_length)
    _, _, padded = scored(found)
    assert all(rows in (1, 2, 4) for rows, *_ in shapes)
    proof = KINDS[kind].proof
    assert [r[proof] for r in padded] == pytest.approx([r[proof] for r in eager], abs=1e-4)
    if kind != "similarity":
        assert [r["prediction"] for r in padded] == [r["prediction"] for r in eager]
    assert served(found, len(found.examples))


# What fits what


def test_heads_are_told_apart(folders):
    kinds = ["token-classification", "extractive-qa", "similarity", "image-classification"]
    for kind in kinds:
        ref = resolve(str(folders[kind]))
        assert [k for k in kinds if has_head(ref, k)] == [kind]
        check_inputs(ref)
    with pytest.raises(ModelError, match="no head for extractive-qa"):
        check_head(resolve(str(folders["similarity"])), "extractive-qa")


def test_a_causal_model_is_no_sentence_encoder(folders, tmp_path):
    import dataclasses

    ref = resolve(str(folders["similarity"]))
    for name, fits in (("GPT2LMHeadModel", False), ("T5EncoderModel", False), ("MPNetModel", True)):
        other = dataclasses.replace(ref, config=ref.config | {"architectures": [name]})
        assert has_head(other, "similarity") is fits


def test_vision_models_need_an_image_processor_and_no_tokenizer(tmp_path):
    path = tiny_models.vision(tmp_path / "vision")
    check_inputs(resolve(str(path)))
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no image processor"):
        check_inputs(resolve(str(path)))


def test_the_pooling_is_part_of_what_pins_a_model(tmp_path):
    path = tiny_models.encoder(tmp_path / "encoder", "mean_tokens")
    before = resolve(str(path)).identity.revision
    stored = path / "1_Pooling" / "config.json"
    stored.write_text(stored.read_text().replace("mean_tokens", "max_tokens"))
    assert resolve(str(path)).identity.revision != before
