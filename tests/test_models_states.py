"""Distributions from passes that were made anyway: those of a pass of their own, without one; and a
pass wherever they would not be."""

from __future__ import annotations

import pytest
import torch

from precision_explorer.models.adapter import Item
from precision_explorer.models.distributions import compare, first_items, keep
from precision_explorer.models.states import Heard, Passes
from tests.test_models_causal_lm import gpt2, llama
from tests.test_models_distributions import capped, choices, documents, plan, shaken


def scored(model, adapter, items, shares=False):
    """What was heard while `items` were scored."""
    heard = Heard(model, items)
    batches = adapter.share(items, 64, 4, 16) if shares else plan(items)
    with torch.inference_mode(), heard.listening(adapter.scorer):
        for batch in batches:
            adapter.score([items[i] for i in batch])
    return heard


def calls(model):
    """A list that grows with each forward pass of `model`."""
    made = []
    model.register_forward_pre_hook(lambda module, arguments: made.append(1))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("adapt", "shares"), [(documents, False), (choices, True)])
def test_what_was_heard_is_what_a_pass_of_its_own_gives(make, adapt, shares, dtype):
    model = make().to(dtype)
    adapter = adapt(model)
    items = first_items(adapter.items())
    heard = scored(model, adapter, items, shares)
    assert heard.holds(items)
    made = calls(model)
    own = adapt(model)  # Items are made anew for each request.
    again = first_items(own.items())
    with torch.inference_mode():
        states, scores = heard.states(again), heard.scores(again)
        assert not made
        close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 1}
        torch.testing.assert_close(states, Passes(model, own).states(again), **close)
        torch.testing.assert_close(scores, own.scores(again), **close)
    assert made


def test_comparing_what_was_heard_runs_no_model(tmp_path):
    reference, other = llama(), shaken(llama())
    reference.save_pretrained(tmp_path)
    items = documents(reference).items()
    heard = [scored(model, documents(model), items) for model in (reference, other)]
    made = calls(reference), calls(other)
    with torch.inference_mode():
        kept = keep(reference, heard[0], items, plan, tmp_path)
        rows = compare(heard[1], items, plan(items), kept.rows, kept.head, tmp_path, "cpu")
    assert made == ([], [])
    with torch.inference_mode():
        passes = [Passes(m, documents(m)) for m in (reference, other)]
        by_pass = keep(reference, passes[0], items, plan, tmp_path)
        expected = compare(
            passes[1], items, plan(items), by_pass.rows, by_pass.head, tmp_path, "cpu"
        )
    assert kept.head == by_pass.head
    assert [r["kl"] for r in rows] == pytest.approx([r["kl"] for r in expected], rel=1e-4)
    assert [r["same_top"] for r in rows] == [r["same_top"] for r in expected]
    assert max(r["kl"] for r in rows) > 0.01


def test_logits_that_are_more_than_the_head_makes_are_not_heard():
    """Capped logits; and arithmetic that is changed around the whole model."""
    model = capped()
    items = documents(model).items()
    assert not scored(model, documents(model), items).is_whole
    model = llama()
    inner = model.forward

    def lower(*arguments, **named):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(*arguments, **named)

    lower.__wrapped__ = inner
    model.forward = lower
    assert not scored(model, documents(model), items).is_whole


def test_what_was_not_scored_is_not_held():
    model = llama()
    items = documents(model).items()
    heard = scored(model, documents(model), items[:2])
    assert heard.holds(items[:2])
    assert not heard.holds(items)
    part = Heard(model, items)
    adapter = documents(model)
    with torch.inference_mode(), part.listening(adapter.scorer):
        adapter.score(items[:1])
    assert not part.is_whole
    assert adapter.scorer.heard is None
    assert not model.lm_head._forward_pre_hooks
    assert not Heard(model, [Item(0, (1, 2))]).is_whole
