"""Language models: choices, windows and greedy tokens against straightforward code that runs each
case alone, and against the definitions of lm-evaluation-harness written down again."""

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice, rolling_windows
from precision_explorer.models.loading import load, prepare
from precision_explorer.tasks import load_card
from precision_explorer.tasks import prepare as prepare_task

CORPUS = [
    "The film was good and the film was bad, but the music was very good indeed.",
    "Review: a quiet evening. Sentiment: positive or negative, that is the question.",
    "Nobody knows what the weather will be tomorrow; nobody asked.",
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer(**special):
    """A byte-level BPE of 320 tokens: words are cut into several, and any text can be encoded."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


BOTH = {"bos_token": "<bos>", "eos_token": "<eos>"}


def llama(positions=512, seed=0, layers=2):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=positions, initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(seed=0):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=320, n_positions=512, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bloom(seed=0):
    torch.manual_seed(seed)
    config = transformers.BloomConfig(
        vocab_size=320, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    return transformers.BloomForCausalLM(config).eval()


def logprobs_alone(model, ids):
    """(len(ids), vocabulary) log-probabilities from full logits of one row."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def score(found, max_tokens=600, max_items=4):
    items = found.items()
    answers = [None] * len(items)
    with torch.inference_mode():
        for batch in plan_batches([len(i.ids) for i in items], max_tokens, max_items):
            for index, answer in zip(batch, found.score([items[i] for i in batch]), strict=True):
                answers[index] = answer
    return items, found.rows(items, answers)


# -- multiple choice ---------------------------------------------------------------------------


def choice_examples():
    prompts = [
        "The film was good. Sentiment:",
        "Nobody asked. Sentiment: ",
        "The weather\nwill be   ",
        "Review: the music was very good indeed, nobody knows why. It is",
    ]
    choices = [" positive", " bad", " very good indeed and more", " café"]
    # An untrained model prefers short choices: in turn, so that the best is not always the same.
    return [
        {"id": f"e{i}", "prompt": p, "choices": choices[i:] + choices[:i], "label": 0}
        for i, p in enumerate(prompts)
    ]


def choice_alone(model, coder, prompt, choice, max_length=10_000):
    """log P(choice | prompt), whether the row was cut, and the choice's number of tokens; spaces at
    the prompt's end go to the choice."""

    def encode(text):
        return coder(text, add_special_tokens=False)["input_ids"]

    while prompt and prompt[-1].isspace():
        prompt, choice = prompt[:-1], prompt[-1] + choice
    whole, context = encode(prompt + choice), encode(prompt)
    count = len(whole) - len(context)
    fed = whole[:-1][-max_length:]
    table = logprobs_alone(model, fed)[-count:]
    total = sum(float(row[token]) for row, token in zip(table, whole[-count:], strict=True))
    return total, len(fed) < len(whole) - 1, count


def check_choices(model, coder, examples, max_length, tolerance):
    found = MultipleChoice(model, coder, "cpu", examples, {"max_length": max_length})
    items, rows = score(found)
    counts, cuts = set(), []
    for example, row in zip(examples, rows, strict=True):
        alone = [
            choice_alone(model, coder, example["prompt"], choice, max_length)
            for choice in example["choices"]
        ]
        exact = [total for total, _, _ in alone]
        counts |= {count for _, _, count in alone}
        cuts.append(row["cut"])
        assert row["id"] == example["id"]
        assert row["choice_logprobs"] == pytest.approx(exact, abs=tolerance)
        best = exact.index(max(exact))
        assert row["prediction"] == best
        assert row["target"] == example["label"]
        assert row["score"] == float(best == example["label"])
        assert row["loss"] == pytest.approx(-exact[example["label"]], abs=tolerance)
        lengths = [len(choice.encode()) for choice in example["choices"]]
        per_byte = [total / length for total, length in zip(exact, lengths, strict=True)]
        assert row["score_norm"] == float(per_byte.index(max(per_byte)) == example["label"])
        assert row["cut"] == any(cut for _, cut, _ in alone)
    return found, items, rows, counts, cuts


@pytest.mark.parametrize("make", [llama, gpt2])
def test_choices_of_several_tokens_agree_with_each_run_alone(make):
    found, items, rows, counts, cuts = check_choices(
        make(), tokenizer(**BOTH), choice_examples(), 256, 1e-4
    )
    assert len(counts) >= 3
    assert not any(cuts)
    assert len({row["prediction"] for row in rows}) > 1
    with torch.inference_mode():
        answers = [found.request(i, NullPhases())["answer"] for i in range(len(rows))]
        assert found.offline([0, 2, 1]) == {}
    assert answers == [str(row["prediction"]) for row in rows]
    totals = [0] * len(rows)
    for item in items:
        totals[item.example] += len(item.ids)
    assert [row["input_tokens"] for row in rows] == totals


@pytest.mark.parametrize("max_length", [17, 20, 24])
def test_long_prompts_are_cut_from_the_left_and_it_is_said(max_length):
    _, items, _, _, cuts = check_choices(
        llama(), tokenizer(**BOTH), choice_examples(), max_length, 1e-4
    )
    assert any(cuts)
    assert max(len(item.ids) for item in items) == max_length


def test_the_models_positions_bound_the_length():
    coder, examples = tokenizer(**BOTH), choice_examples()
    by_card = MultipleChoice(llama(), coder, "cpu", examples, {"max_length": 16})
    by_model = MultipleChoice(llama(positions=16), coder, "cpu", examples, {"max_length": 256})
    assert by_model.items() == by_card.items()
    assert max(len(item.ids) for item in by_model.items()) == 16


def test_choices_of_one_token_share_their_prompts_row():
    coder = tokenizer(**BOTH)
    example = {"id": "a", "prompt": "The film", "choices": ["?", "!", " film was good"], "label": 0}
    found = MultipleChoice(llama(), coder, "cpu", [example], {"max_length": 99})
    shared, longer = found.items()
    assert sorted(slot for slot, _, _ in shared.targets) == [0, 1]
    assert {slot for slot, _, _ in longer.targets} == {2}
    check_choices(llama(), coder, [example], 99, 1e-4)


@pytest.mark.parametrize("special", [BOTH, {"eos_token": "<eos>"}])
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_bos_or_else_eos(special, prompt):
    coder, model = tokenizer(**special), llama()
    prefix = 0 if "bos_token" in special else 1
    example = {"id": "a", "prompt": prompt, "choices": ["good", " bad music"], "label": 0}
    _, (row,) = score(MultipleChoice(model, coder, "cpu", [example], {"max_length": 99}))
    for found, choice in zip(row["choice_logprobs"], example["choices"], strict=True):
        tokens = coder(prompt + choice, add_special_tokens=False)["input_ids"]
        table = logprobs_alone(model, [prefix, *tokens[:-1]])
        exact = sum(float(r[t]) for r, t in zip(table, tokens, strict=True))
        assert found == pytest.approx(exact, abs=1e-4)


def test_a_choice_that_begins_with_the_prefix_is_not_given_it_twice():
    coder, model = tokenizer(**BOTH), llama()
    example = {"id": "a", "prompt": "", "choices": ["<bos>good", "<bos>bad"], "label": 0}
    _, (row,) = score(MultipleChoice(model, coder, "cpu", [example], {"max_length": 99}))
    tokens = coder("good", add_special_tokens=False)["input_ids"]
    table = logprobs_alone(model, [0, *tokens[:-1]])
    exact = sum(float(r[t]) for r, t in zip(table, tokens, strict=True))
    assert row["choice_logprobs"][0] == pytest.approx(exact, abs=1e-4)


def test_a_choice_that_fits_no_window_is_refused_in_one_line():
    example = {"id": "e7", "prompt": "The film", "choices": ["!", " very good indeed"], "label": 0}
    found = MultipleChoice(llama(), tokenizer(**BOTH), "cpu", [example], {"max_length": 2})
    with pytest.raises(TaskError, match=r"example e7.*max_length") as caught:
        found.items()
    assert "\n" not in str(caught.value)


def test_a_choice_that_melts_into_its_prompt_is_refused():
    coder = tokenizer(**BOTH)
    assert len(coder("fil", add_special_tokens=False)["input_ids"]) == 1
    example = {"id": "e7", "prompt": "f", "choices": ["il", "or"], "label": 0}
    found = MultipleChoice(llama(), coder, "cpu", [example], {"max_length": 99})
    with pytest.raises(TaskError, match=r"example e7, choice 'il'"):
        found.items()


def test_a_choice_that_is_not_finite_is_no_prediction():
    found = MultipleChoice(
        llama(), tokenizer(**BOTH), "cpu", choice_examples()[:1], {"max_length": 99}
    )
    items = found.items()
    answers = [{slot: math.nan for slot, _, _ in item.targets} for item in items]
    (row,) = found.rows(items, answers)
    empty = ("prediction", "score", "score_norm", "loss", "choice_logprobs")
    assert [row[k] for k in empty] == [None] * 5


@pytest.mark.smollm2
def test_smollm2_agrees_with_plain_code_on_12_examples(smollm2):
    kind = "multiple-choice"
    model, coder = load(smollm2, kind, torch.float32, "cpu", False), prepare(smollm2, kind, False)
    task = prepare_task(load_card("sentiment-choice"), limit=12, seed=0)
    *_, rows, counts, cuts = check_choices(model, coder, task.examples, 256, 1e-3)
    assert counts == {1}
    assert not any(cuts)
    assert sum(row["score"] for row in rows) >= 8


# -- rolling windows ---------------------------------------------------------------------------


def harness_windows(tokens, prefix, max_seq_len, context_len=1):
    """`get_rolling_token_windows`, each window then cut by `make_disjoint_window`, as (context,
    continuation): the first window predicts all it holds, from `prefix`; the others are filled from
    the left with tokens that were predicted before, at least `context_len` of them."""
    windows = []
    end = min(max_seq_len, len(tokens))
    if end:
        windows.append(([prefix, *tokens[: end - 1]], tokens[:end]))
    while end < len(tokens):
        count = min(len(tokens) - end, max_seq_len - context_len + 1)
        end += count
        windows.append((tokens[end - max_seq_len - 1 : end - 1], tokens[end - count : end]))
    return [(a[: len(a) - (len(b) - 1)], b) for a, b in windows]


@given(st.integers(0, 90), st.integers(1, 40))
def test_windows_are_the_harness_s(length, size):
    tokens = list(range(100, 100 + length))
    found = list(rolling_windows(tokens, 7, size))
    # The harness feeds context and continuation but for its last token.
    expected = [(a + b[:-1], b) for a, b in harness_windows(tokens, 7, size)]
    assert found == expected


@given(st.integers(1, 90), st.integers(1, 40))
def test_each_token_is_scored_once_after_the_token_before_it(length, size):
    tokens = list(range(100, 100 + length))
    seen = []
    for inputs, targets in rolling_windows(tokens, 7, size):
        assert 1 <= len(targets) <= len(inputs) <= size
        seen += targets
        before = [7, *tokens]
        for k, target in enumerate(targets):
            assert inputs[len(inputs) - len(targets) + k] == before[target - 100]
    assert seen == tokens


def test_a_last_window_looks_back_as_far_as_it_holds():
    (_, first), (inputs, targets) = rolling_windows(list(range(10)), 99, 6)
    assert first == [0, 1, 2, 3, 4, 5]
    assert targets == [6, 7, 8, 9]
    # max_length - k + 1 = 3 tokens before them, and all but the last of them.
    assert inputs == [3, 4, 5, 6, 7, 8]


# -- language modeling -------------------------------------------------------------------------

TEXTS = [CORPUS[0], CORPUS[1] * 3, "Nobody.", CORPUS[2] + " " + CORPUS[0]]


def language(model, coder, max_length=24, prompt=10, output=8, texts=TEXTS):
    examples = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    card = {"max_length": max_length}
    return LanguageModeling(
        model, coder, "cpu", examples, card, prompt_tokens=prompt, output_tokens=output
    )


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("special", "prefix"), [(BOTH, 0), ({"eos_token": "<eos>"}, 1)])
def test_a_documents_loss_is_that_of_a_plain_loop(make, special, prefix):
    model, coder = make(), tokenizer(**special)
    items, rows = score(language(model, coder))
    for text, row in zip(TEXTS, rows, strict=True):
        ids = coder(text, add_special_tokens=False)["input_ids"]
        total, count = 0.0, 0
        for context, continuation in harness_windows(ids, prefix, 24):
            table = logprobs_alone(model, context + continuation[:-1])[-len(continuation) :]
            for step, token in zip(table, continuation, strict=True):
                total -= float(step[token])
                count += 1
        assert count == row["tokens"] == len(ids)
        assert row["loss"] == pytest.approx(total, abs=1e-3)
        assert row["bytes"] == len(text.encode())
        assert row["words"] == len(text.split())
    assert any(len(item.targets) < len(item.ids) for item in items)
    assert max(len(item.ids) for item in items) == 24


def test_the_models_positions_bound_the_window():
    items = language(llama(positions=16), tokenizer(**BOTH), max_length=1024).items()
    assert max(len(item.ids) for item in items) == 16


def test_a_document_of_more_than_one_chunk_of_positions_is_summed_whole():
    model, coder = llama(), tokenizer(**BOTH)
    text = " ".join(CORPUS * 4)
    _, (row,) = score(language(model, coder, max_length=500, texts=[text]))
    ids = coder(text, add_special_tokens=False)["input_ids"]
    assert 256 < len(ids) < 500
    table = logprobs_alone(model, [0, *ids[:-1]])
    exact = -sum(float(r[t]) for r, t in zip(table, ids, strict=True))
    assert row["loss"] == pytest.approx(exact, abs=1e-3)


def test_a_loss_that_is_not_finite_is_missing():
    found = language(llama(), tokenizer(**BOTH), texts=["Nobody."])
    items = found.items()
    (row,) = found.rows(items, [{0: math.nan} for _ in items])
    assert row["loss"] is None


def test_a_tokenizer_without_bos_and_eos_is_refused_in_one_line():
    with pytest.raises(ModelError, match="neither a BOS nor an EOS") as caught:
        language(llama(), tokenizer()).items()
    assert "\n" not in str(caught.value)


# -- greedy tokens -----------------------------------------------------------------------------


def generated(model, ids, mask, count):
    """transformers' own greedy tokens, never stopped by an end token."""
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        tokens = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=2
        )
    return tokens[:, ids.shape[1] :].tolist()


def watched(found):
    """What `_greedy` answers, seen on its way."""
    seen, original = [], found._greedy

    def watch(*arguments):
        answer = original(*arguments)
        seen.append(answer[1])
        return answer

    found._greedy = watch
    return seen


@pytest.mark.parametrize("make", [llama, gpt2, bloom])
def test_a_request_is_answered_with_the_greedy_tokens(make):
    model, coder = make(), tokenizer(**BOTH)
    found = language(model, coder)
    seen, phases = watched(found), Phases()
    for index, text in enumerate(TEXTS):
        ids = torch.tensor([coder(text, add_special_tokens=False)["input_ids"][:10]])
        expected = generated(model, ids, torch.ones_like(ids), 8)
        with torch.inference_mode():
            answer = found.request(index, phases)
        assert seen.pop() == expected
        assert answer["answer"] == coder.decode(expected[0])
        assert answer["output_tokens"] == 8
        assert 0 < answer["ttft_s"] < 60
        assert 0 < answer["tpot_s"] < 60
    assert set(phases.take()) == {"tokenize", "copy", "prefill", "decode", "post"}


@pytest.mark.parametrize("make", [llama, gpt2, bloom])
@pytest.mark.parametrize("special", [BOTH, BOTH | {"pad_token": "<pad>"}])
def test_a_batch_padded_on_the_left_gives_each_rows_greedy_tokens(make, special):
    model, coder = make(), tokenizer(**special)
    found = language(model, coder)
    seen = watched(found)
    with torch.inference_mode():
        assert found.offline([0, 2, 3]) == {"output_tokens": 24}
    rows = [coder(TEXTS[i], add_special_tokens=False)["input_ids"][:10] for i in (0, 2, 3)]
    longest = max(map(len, rows))
    assert min(map(len, rows)) < longest
    ids = torch.tensor([[2] * (longest - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
    assert seen.pop() == generated(model, ids, mask, 8)
    alone = [torch.tensor([row]) for row in rows]
    assert generated(model, ids, mask, 8) == [
        generated(model, one, torch.ones_like(one), 8)[0] for one in alone
    ]


def test_one_output_token_has_no_time_per_further_token():
    found = language(llama(), tokenizer(**BOTH), output=1)
    with torch.inference_mode():
        assert found.request(0, NullPhases())["tpot_s"] is None


def test_serving_asks_for_no_renamed_argument(recwarn):
    found = language(llama(), tokenizer(**BOTH))
    with torch.inference_mode():
        found.request(0, NullPhases())
    assert not [w for w in recwarn if "deprecated" in str(w.message).lower()]
