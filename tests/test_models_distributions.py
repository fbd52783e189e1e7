"""Kept next-token distributions: exact as states, bounded and said to be rounded otherwise."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import transformers

from precision_explorer.errors import InvalidNumerics, ModelError
from precision_explorer.models import distributions
from precision_explorer.models.adapter import Item, other_batches, plan_batches
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.distributions import (
    compare,
    first_items,
    fitting,
    items_hash,
    keep,
    narrower,
)
from precision_explorer.models.states import Passes, positions_of
from tests.test_models_causal_lm import BOTH, bloom, choice_examples, gpt2, llama, tokenizer

TEXTS = [
    "Nobody asked.",
    "The film was good and the film was bad, but the music was very good indeed.",
    "What will the weather be tomorrow? " * 4,
]


def documents(model):
    examples = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    return LanguageModeling(
        model, tokenizer(**BOTH), "cpu", examples, {"max_length": 24},
        prompt_tokens=4, output_tokens=2,
    )  # fmt: skip


def choices(model):
    return MultipleChoice(model, tokenizer(**BOTH), "cpu", choice_examples(), {"max_length": 60})


def plan(items):
    return plan_batches([len(item.ids) for item in items], 64, 4)


def shaken(model, size=0.02):
    """A format's stand-in: the same model with every weight moved a little."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    return model


def phi():
    """A model whose head has a bias."""
    torch.manual_seed(0)
    config = transformers.PhiConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def capped():
    """A model that caps its logits, so that its states alone don't give them."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        initializer_range=0.5, final_logit_softcapping=3.0,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def by_hand(make, adapter, items):
    """KL and top token per position from both models' whole logits, item by item."""
    found = []
    models = make(), shaken(make())
    with torch.no_grad():
        for item in items:
            ids = torch.tensor([item.ids])
            p, q = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in models)
            for k in positions_of(item):
                kl = float((p[k].exp() * (p[k] - q[k])).sum())
                found.append((item.example, kl, bool(p[k].argmax() == q[k].argmax())))
    return found


@pytest.mark.parametrize("make", [llama, gpt2, bloom, phi])
@pytest.mark.parametrize("adapt", [documents, choices])
def test_states_give_the_exact_divergence_of_every_position(make, adapt, tmp_path):
    reference, other = make(), shaken(make())
    reference.save_pretrained(tmp_path)
    adapter = adapt(reference)
    items = first_items(adapter.items())
    with torch.inference_mode():
        kept = keep(reference, Passes(reference, adapter), items, plan, tmp_path)
        assert kept.head is not None
        assert kept.why is None
        assert kept.error < 1e-4
        assert kept.rows.dtype == np.float32
        assert kept.rows.shape == (sum(len(positions_of(i)) for i in items), 32)
        rows = compare(
            Passes(other, adapt(other)), items, plan(items), kept.rows, kept.head, tmp_path, "cpu"
        )
    expected = by_hand(make, adapter, items)
    assert [(r["example"], r["same_top"]) for r in rows] == [(e, s) for e, _, s in expected]
    assert [r["kl"] for r in rows] == pytest.approx(
        [kl for _, kl, _ in expected], rel=1e-4, abs=1e-9
    )
    assert max(r["kl"] for r in rows) > 0.01
    assert not all(r["same_top"] for r in rows)


def test_the_reference_against_itself_in_other_batches_is_next_to_nothing(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    items = adapter.items()
    with torch.inference_mode():
        kept = keep(model, Passes(model, adapter), items, plan, tmp_path)
        again = other_batches(items, plan(items), 0)
        rows = compare(Passes(model, adapter), items, again, kept.rows, kept.head, tmp_path, "cpu")
    assert 0 <= max(r["kl"] for r in rows) < 1e-9
    assert all(r["same_top"] for r in rows)


def test_after_keeping_the_model_answers_as_before(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    items = adapter.items()
    with torch.inference_mode():
        before = adapter.scores(items[:1])
        keep(model, Passes(model, adapter), items, plan, tmp_path)
        assert torch.equal(adapter.scores(items[:1]), before)


@pytest.mark.parametrize(
    ("make", "saved", "why"),
    [
        (capped, True, "don't give back"),
        (llama, False, "stands in no safetensors file"),
    ],
)
def test_a_head_that_is_not_plain_falls_back_to_rounded_log_probabilities(
    make, saved, why, tmp_path
):
    reference, other = make(), shaken(make())
    if saved:
        reference.save_pretrained(tmp_path)
    adapter = documents(reference)
    items = adapter.items()
    with torch.inference_mode():
        kept = keep(reference, Passes(reference, adapter), items, plan, tmp_path)
        assert kept.head is None
        assert why in kept.why
        assert kept.rows.dtype == np.float16
        assert kept.rows.shape[1] == 320
        rows = compare(
            Passes(other, documents(other)), items, plan(items), kept.rows, None, tmp_path, "cpu"
        )
    expected = [kl for _, kl, _ in by_hand(make, adapter, items)]
    # A log-probability of -8 is rounded by 0.002 at most, up or down.
    assert [r["kl"] for r in rows] == pytest.approx(expected, rel=0.02, abs=2e-3)


def test_rounded_log_probabilities_are_kept_within_their_bound(tmp_path, monkeypatch):
    model = capped()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    items = adapter.items()
    counts = [len(positions_of(i)) for i in items]
    monkeypatch.setattr(distributions, "MOST_BYTES", 2 * 320 * (counts[0] + counts[1] + 1))
    with torch.inference_mode():
        kept = keep(model, Passes(model, adapter), items, plan, tmp_path)
    assert kept.items == items[:2]
    assert len(kept.rows) == counts[0] + counts[1]


def test_nan_is_no_distribution(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    items = adapter.items()
    with torch.inference_mode():
        kept = keep(model, Passes(model, adapter), items, plan, tmp_path)
        model.model.norm.weight.fill_(float("nan"))
        with pytest.raises(InvalidNumerics, match="not finite"):
            compare(
                Passes(model, adapter), items, plan(items), kept.rows, kept.head, tmp_path, "cpu"
            )
        with pytest.raises(InvalidNumerics, match="NaN"):
            keep(model, Passes(model, adapter), items, plan, tmp_path)


def test_other_examples_are_not_paired(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    items = adapter.items()
    with torch.inference_mode():
        kept = keep(model, Passes(model, adapter), items, plan, tmp_path)
        with pytest.raises(ModelError, match="kept positions"):
            compare(
                Passes(model, adapter),
                items[1:],
                plan(items[1:]),
                kept.rows,
                kept.head,
                tmp_path,
                "cpu",
            )
    assert items_hash(items) != items_hash(items[1:])


def item(example, positions, length=9):
    return Item(example, tuple(range(length)), tuple((0, p, 1) for p in positions))


def test_the_first_items_that_hold_enough_positions_are_taken_whole():
    items = [item(0, [1, 2, 2]), item(1, []), item(2, [4, 5, 6]), item(3, [1])]
    assert first_items(items, 3) == [items[0], items[2]]
    assert first_items(items, 99) == [items[0], items[2], items[3]]
    assert [i.example for i in fitting(items, 10, 2)] == [0, 1, 2, 3]


def test_batches_are_cut_where_their_logits_would_be_too_large():
    items = [item(k, range(5)) for k in range(4)]
    vocabulary = 256_000_000 // 4 // 10
    assert narrower([[0, 1, 2], [3]], items, vocabulary) == [[0, 1], [2], [3]]
    assert narrower([[0, 1]], items, vocabulary * 10) == [[0], [1]]


def test_the_second_plan_changes_the_rows_of_the_batches_and_the_order():
    lengths = [7] * 12 + [30] * 3 + [200, 190]
    frozen = plan_batches(lengths, 64, 8)
    items = [item(example, [1], length) for example, length in enumerate(lengths)]
    second = other_batches(items, frozen, seed=1)
    rows = {i: len(b) for b in frozen for i in b}
    again = {i: len(b) for b in second for i in b}
    assert sorted(again) == list(range(len(lengths)))
    # All but what a last, short batch may leave.
    assert sum(again[i] != rows[i] for i in range(len(lengths))) >= len(lengths) - 3
    assert again[15] == again[16] == 2  # They were alone.
    assert [i for b in second for i in b] != [i for b in frozen for i in b]
    assert second == other_batches(items, frozen, seed=1)
    # No batch takes more than twice its longest item, or half of what the plan allowed.
    assert all(len(b) * max(lengths[i] for i in b) <= max(64, 2 * 200) for b in second)


def test_the_rows_of_one_example_stay_together_in_the_second_plan():
    """So that what they begin with is still computed once."""
    items = [item(k // 4, [1], 20 + k % 4) for k in range(32)]
    second = other_batches(items, [list(range(16)), list(range(16, 32))], seed=2)
    assert [len(b) for b in second] == [8] * 4
    for batch in second:
        assert len({items[i].example for i in batch}) == 2
    assert [items[b[0]].example for b in second] != [0, 2, 4, 6]


def test_a_compiled_model_hands_its_states_on_eagerly(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    adapter = documents(model)
    entered = []

    @contextlib.contextmanager
    def eagerly():
        entered.append(True)
        yield

    with torch.inference_mode():
        keep(model, Passes(model, adapter, eagerly), adapter.items(), plan, tmp_path)
    assert entered
