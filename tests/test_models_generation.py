"""Generated answers: batches against each prompt alone and against transformers' own greedy tokens,
where outputs end, and what is not finite."""

import pytest
import torch
import transformers

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.formats.apply import apply_format
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models import compiled as compiled_module
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.generation import Generation
from precision_explorer.models.greedy import LOOK
from precision_explorer.models.seq2seq import Seq2Seq
from tests.test_models_causal_lm import BOTH, bloom, gpt2, llama, tokenizer

PROMPTS = [
    "The film was good. Sentiment:",
    "Nobody",
    "The weather will be",
    "Review: the music was very good indeed, nobody knows why. It is",
    "Question: what is it?",
]
PAD = BOTH | {"pad_token": "<pad>"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def card(metrics=("exact_match",), max_length=64, **rules):
    return {
        "kind": "generation",
        "metrics": list(metrics),
        "max_length": max_length,
        "generation": {"max_new_tokens": 20, **rules},
    }


def examples(prompts=PROMPTS, references=("x",)):
    return [
        {"id": f"e{i}", "prompt": prompt, "references": list(references)}
        for i, prompt in enumerate(prompts)
    ]


def answer(found, max_tokens=400, max_items=4):
    """(items, generated, rows) of the quality pass."""
    items = found.items()
    answers = [None] * len(items)
    with torch.inference_mode():
        for batch in plan_batches([i.size for i in items], max_tokens, max_items):
            for index, one in zip(batch, found.score([items[i] for i in batch]), strict=True):
                answers[index] = one
    return items, answers, found.rows(items, answers)


def alone(model, ids, count, ends):
    """transformers' greedy tokens after one prompt, the end token left out."""
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, max_new_tokens=count, eos_token_id=ends, pad_token_id=2,
        )[0, len(ids) :].tolist()  # fmt: skip
    return made[:-1] if made and made[-1] in ends else made


def often_used(model, coder, count=20):
    """A token that the model generates after a few others, for some prompts: a good end token."""
    ids = [coder(p, add_special_tokens=False)["input_ids"] for p in PROMPTS]
    made = [alone(model, one, count, [319]) for one in ids]
    return made[0][6]


CAUSAL = [llama, gpt2, bloom]


@pytest.mark.parametrize("make", CAUSAL)
@pytest.mark.parametrize("special", [BOTH, PAD])
def test_batched_answers_are_those_of_each_prompt_alone(make, special):
    model, coder = make(), tokenizer(**special)
    found = Generation(model, coder, "cpu", examples(), card(), 4)
    found.ends = [often_used(model, coder)]
    items, answers, rows = answer(found)
    expected = [alone(model, list(item.ids), 20, found.ends) for item in items]
    assert [a.tokens for a in answers] == expected
    assert len({len(item.ids) for item in items}) > 1
    ended = [len(tokens) < 20 for tokens in expected]
    assert any(ended)
    assert [a.ended for a in answers] == ended
    assert [row["output_tokens"] for row in rows] == [
        len(t) + e for t, e in zip(expected, ended, strict=True)
    ]
    assert [row["finish_reason"] for row in rows] == ["stop" if e else "length" for e in ended]
    assert [row["prediction"] for row in rows] == [
        coder.decode(t, skip_special_tokens=True).strip() for t in expected
    ]


def test_the_models_own_end_tokens_end_an_answer():
    model, coder = llama(), tokenizer(**BOTH)
    end = often_used(model, coder)
    model.generation_config.eos_token_id = [end, 7]
    found = Generation(model, coder, "cpu", examples(), card(), 4)
    assert {end, 7, 1} <= set(found.ends)
    _, answers, _ = answer(found)
    assert answers[0].ended
    assert end not in answers[0].tokens


def test_an_answer_ends_before_a_stop_text_and_its_tokens_are_counted_up_to_it():
    model, coder = llama(), tokenizer(**BOTH)
    plain = Generation(model, coder, "cpu", examples(), card(), 4)
    _, whole, _ = answer(plain)
    text = coder.decode(whole[0].tokens)
    # Two characters from the middle that stand nowhere before.
    at = next(k for k in range(8, len(text)) if text.find(text[k : k + 2]) == k)
    stop = text[at : at + 2]
    found = Generation(model, coder, "cpu", examples(), card(stop=[stop]), 4)
    _, _, rows = answer(found)
    assert rows[0]["output"] == text[:at]
    assert rows[0]["finish_reason"] == "stop"
    assert stop in coder.decode(whole[0].tokens[: rows[0]["output_tokens"]])
    assert stop not in coder.decode(whole[0].tokens[: rows[0]["output_tokens"] - 1])
    others = [coder.decode(w.tokens).partition(stop)[0] for w in whole]
    assert [row["output"] for row in rows] == others


def test_decoding_ends_soon_after_all_rows_have_ended(monkeypatch):
    model, coder = llama(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(max_new_tokens=200), 4)
    found.ends = list(range(320))
    calls, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: calls.append(1) or forward(**given))
    found._keeps = True
    _, answers, _ = answer(found)
    assert all(a.tokens == [] and a.ended for a in answers)
    batches = len(plan_batches([i.size for i in found.items()], 400, 4))
    assert len(calls) == batches * LOOK


def test_a_prompt_that_is_too_long_keeps_its_end_and_room_is_left_for_the_answer():
    model, coder = llama(positions=48), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(max_length=500), 4)
    assert found.max_length == 28
    items, _, rows = answer(found)
    whole = coder(PROMPTS[3], add_special_tokens=False)["input_ids"]
    assert len(whole) > 28
    assert items[3].ids == tuple(whole[-28:])
    assert [item.size for item in items] == [len(item.ids) + 20 for item in items]
    assert rows[3]["cut"]
    assert not rows[1]["cut"]
    with pytest.raises(TaskError, match="leave no room") as caught:
        Generation(llama(positions=16), coder, "cpu", examples(), card(), 4)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_are_no_answer():
    model, coder = llama(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(), 4)
    forward, steps = model.forward, []

    def broken(**given):
        out = forward(**given)
        steps.append(1)
        if len(steps) == 3:
            # One number of one row, in the third step of the first batch.
            out.logits[1, -1, 5] = float("nan")
        return out

    model.forward = broken
    found._keeps = True
    _, answers, rows = answer(found)
    assert [a.finite for a in answers].count(False) == 1
    bad = next(row for row, a in zip(rows, answers, strict=True) if not a.finite)
    empty = ("output_tokens", "prediction", "output")
    assert [bad[name] for name in empty] == [None] * 3
    assert bad["score"] == 0.0


def test_masked_tokens_are_finite_and_infinite_ones_are_not():
    from precision_explorer.models.greedy import is_finite

    logits = torch.zeros(4, 6)
    logits[0, 2] = -torch.inf
    logits[1, 2] = torch.inf
    logits[2] = -torch.inf
    logits[3, 1] = torch.nan
    assert is_finite(logits).tolist() == [True, False, False, False]


def test_a_chat_prompt_is_a_users_turn():
    model, coder = llama(), tokenizer(**BOTH)
    with pytest.raises(ModelError, match="no chat template") as caught:
        Generation(model, coder, "cpu", examples(), card(chat=True), 4).items()
    assert "\n" not in str(caught.value)
    coder.chat_template = (
        "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    items = Generation(model, coder, "cpu", examples(), card(chat=True), 4).items()
    assert coder.decode(items[1].ids) == "<bos>user: Nobody\nassistant:"
    assert items[1].ids[0] == 0


def test_the_declared_rule_takes_the_answer_out_of_the_output():
    model, coder = llama(), tokenizer(**BOTH)
    _, _, rows = answer(Generation(model, coder, "cpu", examples(), card(), 4))
    letter = rows[0]["output"].strip()[0]
    import re

    rules = {"extract": {"pattern": re.escape(letter) + "(.)", "take": "first"}}
    wanted = rows[0]["output"].strip()[1].strip()
    found = Generation(model, coder, "cpu", examples(references=[wanted]), card(**rules), 4)
    _, _, read = answer(found)
    assert read[0]["prediction"] == wanted
    assert read[0]["score"] == 1.0
    assert [row["unparsed"] for row in read] == [row["prediction"] is None for row in read]
    nothing = card(extract={"pattern": "QQQQ(.)"})
    _, _, none = answer(Generation(model, coder, "cpu", examples(), nothing, 4))
    assert [(r["prediction"], r["score"], r["unparsed"]) for r in none] == [(None, 0.0, True)] * 5


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_request_is_the_prompt_and_a_fixed_number_of_tokens(make):
    model, coder = make(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(max_new_tokens=3), 6)
    assert found.new_tokens == 6
    phases = Phases()
    with torch.inference_mode():
        one = found.request(0, phases)
        many = found.offline([0, 1, 3])
    ids = coder(PROMPTS[0], add_special_tokens=False)["input_ids"]
    assert one["answer"] == coder.decode(alone(model, ids, 6, [319]))
    assert one["output_tokens"] == 6
    assert many == {"output_tokens": 18}
    assert 0 < one["ttft_s"] < 60
    assert 0 < one["tpot_s"] < 60
    assert set(phases.take()) == {"tokenize", "copy", "prefill", "decode", "post"}


def test_scores_are_the_logits_of_the_first_token():
    model, coder = llama(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(), 4)
    items = found.items()
    with torch.inference_mode():
        scores = found.scores(items)
        for row, item in zip(scores, items, strict=True):
            one = model(torch.tensor([item.ids])).logits[0, -1]
            torch.testing.assert_close(row, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [llama, gpt2, bloom])
def test_along_given_answers_the_scores_are_those_after_every_token_and_at_the_end(make):
    model, coder = make(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(), 4)
    outputs = {"e0": " very good", "e2": "", "e4": " nobody knows what the weather will be"}
    items = found.along(outputs)
    assert [found.examples[item.example]["id"] for item in items] == list(outputs)
    with torch.inference_mode():
        scores = found.scores(items)
        expected = []
        for item in items:
            prompt = found.prompt_ids(item.example)
            text = outputs[found.examples[item.example]["id"]]
            ids = prompt + coder(text, add_special_tokens=False)["input_ids"]
            assert list(item.ids) == ids
            follow = [token for _, _, token in item.targets]
            assert follow == [*ids[len(prompt) :], found.ends[0]]
            expected.append(model(torch.tensor([ids])).logits[0, len(prompt) - 1 :])
    torch.testing.assert_close(scores, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_an_answer_that_tokenises_to_more_is_cut_to_what_the_model_has_room_for():
    found = Generation(llama(), tokenizer(**BOTH), "cpu", examples(), card(), 4)
    (item,) = found.along({"e1": "nobody knows " * 30})
    assert len(item.ids) == len(found.prompt_ids(1)) + 20


# -- encoder-decoders ----------------------------------------------------------------------------


def t5(seed=0):
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=320, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2,
        decoder_start_token_id=2, pad_token_id=2, eos_token_id=1, initializer_factor=20.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def bart(seed=0):
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=320, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, init_std=0.5,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config).eval()


def sequence_card(**given):
    return card(**given) | {"kind": "summarization"}


def translated_alone(model, ids, count):
    """Greedy tokens by whole passes, without a cache: the plain definition."""
    made = [model.config.decoder_start_token_id]
    with torch.inference_mode():
        for _ in range(count):
            out = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([made]))
            made.append(int(out.logits[0, -1].argmax()))
    return made[1:]


@pytest.mark.parametrize("make", [t5, bart])
def test_batched_sequences_are_those_of_each_source_alone(make):
    model, coder = make(), tokenizer(**PAD)
    found = Seq2Seq(model, coder, "cpu", examples(), sequence_card(metrics=["rouge1"]), 4)
    items = found.items()
    expected = [translated_alone(model, list(item.ids), 20) for item in items]
    assert len({tuple(tokens) for tokens in expected}) > 1
    end = next((t for tokens in expected for t in tokens[5:]), None)
    model.generation_config.eos_token_id, found.ends = end, [end]
    _, answers, rows = answer(found)
    cut = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in expected]
    assert [a.tokens for a in answers] == cut
    assert any(a.ended for a in answers)
    assert all(a.finite for a in answers)
    assert all(0.0 <= row["rouge1"] <= 1.0 for row in rows)


def test_a_sequence_whose_logits_are_not_finite_is_no_answer():
    model, coder = t5(), tokenizer(**PAD)
    found = Seq2Seq(model, coder, "cpu", examples(), sequence_card(), 4)
    forward, steps = model.forward, []

    def broken(*args, **given):
        out = forward(*args, **given)
        steps.append(1)
        if len(steps) == 2:
            out.logits[0, -1] = float("nan")
        return out

    model.forward = broken
    _, answers, rows = answer(found)
    assert [a.finite for a in answers].count(False) == 1
    assert [row["output_tokens"] for row in rows].count(None) == 1


@pytest.mark.parametrize("make", [t5, bart])
def test_a_source_is_served_with_a_fixed_number_of_tokens(make):
    model, coder = make(), tokenizer(**PAD)
    model.generation_config.eos_token_id = translated_alone(
        model, coder(PROMPTS[0])["input_ids"], 3
    )[1]
    found = Seq2Seq(model, coder, "cpu", examples(), sequence_card(), 5)
    with torch.inference_mode():
        one = found.request(0, Phases())
        assert found.offline([0, 1, 2]) == {"output_tokens": 15}
        assert found.scores(found.items()).shape == (5, 320)
    assert one["output_tokens"] == 5
    assert 0 < one["ttft_s"] < 60
    assert 0 < one["tpot_s"] < 60


def test_a_sequence_ends_before_a_stop_text():
    model, coder = t5(), tokenizer(**PAD)
    _, _, rows = answer(Seq2Seq(model, coder, "cpu", examples(), sequence_card(), 4))
    text = rows[0]["output"]
    stop = text[3:5]
    found = Seq2Seq(model, coder, "cpu", examples(), sequence_card(stop=[stop]), 4)
    _, _, cut = answer(found)
    assert [row["output"] for row in cut] == [row["output"].partition(stop)[0] for row in rows]
    assert cut[0]["finish_reason"] == "stop"


def test_a_long_source_is_cut_on_the_right_and_it_is_said():
    model, coder = t5(), tokenizer(**PAD)
    found = Seq2Seq(model, coder, "cpu", examples(), sequence_card(max_length=12), 4)
    items, _, rows = answer(found)
    assert max(len(item.ids) for item in items) == 12
    assert [row["cut"] for row in rows] == [len(coder(p)["input_ids"]) > 12 for p in PROMPTS]
    assert any(row["cut"] for row in rows)


@pytest.mark.parametrize(
    ("format_id", "kernel", "library"),
    [("int8-dynamic", "fbgemm-per-token", "torch"), ("nf4", "bitsandbytes", "bitsandbytes")],
)
def test_t5_which_looks_at_its_weights_types_stays_whole_in_a_format(format_id, kernel, library):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=320, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2,
        decoder_start_token_id=2, pad_token_id=2, eos_token_id=1,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    given = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 1]]),
        "decoder_input_ids": torch.tensor([[2, 4]]),
    }
    with torch.inference_mode():
        exact = model(**given).logits.flatten()
    recipe = {"compute_dtype": "float32", "kernel": kernel, "library": library}
    done = apply_format(model, format_id, recipe, "unverified", "tried")
    with torch.inference_mode():
        found = model(**given).logits.flatten()
    assert float(torch.nn.functional.cosine_similarity(found, exact, 0)) > 0.97
    left = {layer.name.rpartition(".")[2] for layer in done.applied.left_behind}
    assert left == ({"wo"} if format_id == "nf4" else set())


def test_no_phase_is_needed():
    model, coder = llama(), tokenizer(**BOTH)
    found = Generation(model, coder, "cpu", examples(), card(), 1)
    with torch.inference_mode():
        assert found.request(1, NullPhases())["tpot_s"] is None


@pytest.mark.parametrize("make", [llama, gpt2])
def test_padded_to_fixed_shapes_every_answer_is_the_eager_model_s(make, monkeypatch):
    """As under the runtime `compile-fixed`, with a compiler that changes nothing."""
    shapes = set()

    def same(function, runtime, kind):
        def call(**inputs):
            names = ("input_ids", "attention_mask")
            shapes.add(tuple(tuple(inputs[name].shape) for name in names))
            return function(**inputs)

        return call

    monkeypatch.setattr(compiled_module, "compiled", same)
    model, coder = make(), tokenizer(**PAD)

    def made():
        found = Generation(model, coder, "cpu", examples(), card(max_length=40), 4)
        found.ends = [end]
        return found

    end = often_used(model, coder)
    _, exact, _ = answer(made(), max_items=3)
    adapter = made()
    compiled_module.CompiledModel(
        model, RUNTIMES["compile-fixed"], "cpu", pad=adapter.pad, longest=adapter.max_length,
        new_tokens=adapter.new_tokens,
    )  # fmt: skip
    _, found, _ = answer(made(), max_items=3)
    assert found == exact
    assert any(one.ended for one in found)
    # Of each number of rows and length of prompt one shape of prefill and one of decoding.
    assert shapes == {
        ((rows, length), (rows, padded + 20))
        for rows, padded in {(shape[0][0], shape[1][1] - 20) for shape in shapes}
        for length in (padded, 1)
    }
