"""Prefixes that rows share: computed once, with the same log-likelihoods as rows computed whole."""

import copy
import math

import pyarrow
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models.adapter import Item, plan_batches
from precision_explorer.models.causal_forward import CausalForward, token_logprobs
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.prefixes import (
    common_prefix,
    find_header,
    find_stems,
    plan_shared,
)
from precision_explorer.models.scoring import Scorer
from precision_explorer.plan.batches import batch_plan
from precision_explorer.runner.comparing import HeardPasses
from precision_explorer.runner.session import Session
from tests.test_models_causal_lm import BOTH, bloom, gpt2, language, llama, tokenizer

HEADER = (
    "Choose how it goes on.\n\nThe film was good. It was: very good\n\n"
    "Nobody asked what the weather will be. It was: quiet\n\n"
)
PROMPTS = [
    "The film was good and the music was very good, but nobody knows why. It was:",
    "Nobody asked. It was: ",
    "A quiet evening, and then the film was bad for a very long time indeed. It was:",
    "Review of the weather tomorrow, positive or negative, that is the question. It was:",
    "Why. It was:",
]
CHOICES = [" good", " very good indeed and more of it", " bad", " very quiet", "?"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def examples(header="", prompts=PROMPTS, choices=CHOICES):
    return [
        {"id": f"e{i}", "prompt": header + p, "choices": choices, "label": 0}
        for i, p in enumerate(prompts)
    ]


def choice(model, found, max_length=400, special=BOTH):
    return MultipleChoice(model, tokenizer(**special), "cpu", found, {"max_length": max_length})


class Counted:
    """The tokens that go through a model, padding included, call by call."""

    def __init__(self, model):
        self.shapes = []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model, args, given):
        self.shapes.append(tuple(given["input_ids"].shape))

    @property
    def tokens(self):
        return sum(rows * length for rows, length in self.shapes)


def answers(adapter, batches, items, score):
    found = [None] * len(items)
    with torch.inference_mode():
        for batch in batches:
            for index, answer in zip(batch, score([items[i] for i in batch]), strict=True):
                found[index] = answer
    return found


def both_ways(adapter, max_tokens=600, max_items=8):
    """(items, answers of whole rows, answers with prefixes shared, tokens of each)."""
    items = adapter.items()
    plain = plan_batches([len(i.ids) for i in items], max_tokens, max_items, 32)
    seen = Counted(adapter.model)
    whole = answers(adapter, plain, items, adapter.score)
    before = seen.tokens
    batches = adapter.share(items, max_tokens, max_items, 32)
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    shared = answers(adapter, batches, items, adapter.score)
    return items, whole, shared, before, seen.tokens - before


def assert_same(whole, shared, tolerance=1e-5):
    for a, b in zip(whole, shared, strict=True):
        assert a.keys() == b.keys()
        for slot, value in a.items():
            assert b[slot] == pytest.approx(value, abs=tolerance, rel=1e-6)


# -- equality with rows computed whole ---------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("header", ["", HEADER])
def test_shared_prefixes_change_no_log_likelihood_and_spare_tokens(make, header):
    adapter = choice(make(), examples(header))
    _, whole, shared, plain_tokens, tokens = both_ways(adapter)
    assert_same(whole, shared)
    assert adapter.sharing == {"header": len(adapter.scorer.header)}
    assert bool(adapter.scorer.header) == bool(header)
    assert tokens < plain_tokens * (0.4 if header else 0.75)


@pytest.mark.parametrize("max_length", [40, 70, 90])
def test_inputs_that_are_cut_are_scored_as_without_sharing(max_length):
    adapter = choice(llama(), examples(HEADER), max_length)
    items, whole, shared, *_ = both_ways(adapter)
    assert any(item.cut for item in items)
    assert_same(whole, shared)
    with torch.inference_mode():
        rows = adapter.rows(items, shared)
    assert [row["cut"] for row in rows] == [
        any(i.cut for i in items if i.example == k) for k in range(len(rows))
    ]


def test_cut_inputs_take_the_header_from_none_of_the_others():
    long = [PROMPTS[0] * 12, *PROMPTS[1:]]
    adapter = choice(llama(), examples(HEADER, long), 300)
    items, whole, shared, *_ = both_ways(adapter)
    assert 0 < sum(item.cut for item in items) < len(items)
    assert len(adapter.scorer.header) > 20
    assert_same(whole, shared)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompts_share_their_prefix_token_only(prompt):
    adapter = choice(llama(), examples(prompts=[prompt, prompt]))
    _, whole, shared, *_ = both_ways(adapter)
    assert_same(whole, shared)


def test_rows_that_fill_the_models_positions_are_shared_too():
    # Row and padding together would be longer than gpt2's table of positions.
    prompts = ["a" * 460, "b" * 430]
    adapter = choice(gpt2(), examples(prompts=prompts), 512)
    _, whole, shared, *_ = both_ways(adapter, 4000, 16)
    assert_same(whole, shared)


def test_windows_of_text_are_planned_and_scored_as_before():
    adapter = language(llama(), tokenizer(**BOTH))
    items = adapter.items()
    plain = plan_batches([len(i.ids) for i in items], 100, 4, 32)
    with torch.inference_mode():
        whole = [adapter.score([items[i] for i in batch]) for batch in plain]
        assert adapter.share(items, 100, 4, 32) == plain
        assert [adapter.score([items[i] for i in batch]) for batch in plain] == whole


@pytest.mark.parametrize(
    ("window", "shares"), [(16, False), (4096, True)], ids=["within reach", "out of reach"]
)
def test_a_sliding_window_is_shared_only_where_it_can_not_slide(window, shares):
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        initializer_range=0.3, sliding_window=window,
    )  # fmt: skip
    adapter = choice(transformers.MistralForCausalLM(config).eval(), examples(HEADER))
    _, whole, shared, *_ = both_ways(adapter)
    assert (adapter.sharing is not None) == shares
    assert_same(whole, shared)


def test_models_that_can_not_go_on_after_a_cache_run_whole_rows():
    # Bloom takes no positions; a recurrent model has no such cache.
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3
    )
    for model in (bloom(), transformers.MambaForCausalLM(config).eval()):
        adapter = choice(model, examples(HEADER))
        _, whole, shared, before, after = both_ways(adapter)
        assert adapter.sharing is None
        assert before == after
        assert shared == whole


def test_rope_that_moves_with_the_length_is_not_cut_in_parts():
    def with_rope(**rope):
        model = llama()
        model.config.rope_parameters = {"rope_theta": 10000.0, **rope}
        return CausalForward(model, "cpu", 0).can_go_on(64)

    assert with_rope(rope_type="default")
    assert not with_rope(rope_type="dynamic", factor=2.0)
    assert not with_rope(rope_type="longrope")


def test_requests_compute_whole_rows_whatever_the_quality_pass_shares():
    adapter = choice(llama(), examples(HEADER))
    adapter.share(adapter.items(), 600, 8, 32)
    seen = Counted(adapter.model)
    with torch.inference_mode():
        adapter.offline([0, 1])
    (rows, length) = seen.shapes[0]
    assert len(seen.shapes) == 1
    assert (rows, length) == (8, max(len(i.ids) for i in adapter.items() if i.example < 2))


def test_nan_stays_with_the_rows_that_gave_it():
    # One token's embedding is NaN: what follows it is, and nothing else.
    model = llama()
    adapter = choice(model, examples(prompts=PROMPTS[:3]))
    poisoned = adapter.encode(" quiet")[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[poisoned] = math.nan
    _, whole, shared, *_ = both_ways(adapter)
    bad = [sorted(k for k, v in a.items() if math.isnan(v)) for a in whole]
    assert bad == [sorted(k for k, v in a.items() if math.isnan(v)) for a in shared]
    assert any(bad)
    assert not all(bad)


def test_the_headers_cache_is_made_once_and_given_back():
    adapter = choice(llama(), examples(HEADER))
    items = adapter.items()
    batches = adapter.share(items, 150, 4, 32)
    assert len(batches) > 2
    seen = Counted(adapter.model)
    first = answers(adapter, batches, items, adapter.score)
    assert seen.shapes.count((1, len(adapter.scorer.header))) == 1
    adapter.release()
    assert adapter.scorer._past is None
    assert answers(adapter, batches, items, adapter.score) == first


# -- the plan ----------------------------------------------------------------------------------

token_rows = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8)


@given(token_rows)
def test_the_common_prefix_is_that_of_a_plain_loop(rows):
    count = 0
    while all(len(r) > count for r in rows) and len({r[count] for r in rows}) == 1:
        count += 1
    assert common_prefix(rows) == count


def item(example, ids, first, cut=False):
    return Item(example, tuple(ids), ((0, first, 9),), cut)


def test_a_header_ends_before_the_first_scored_position():
    assert find_header([item(0, range(10), 9), item(1, range(10), 4)]) == (0, 1, 2, 3)
    assert find_header([item(0, range(10), 0), item(1, range(10), 4)]) == ()
    assert find_header([item(0, range(10), 9)]) == ()


def test_a_header_is_shared_only_where_it_spares_an_eighth():
    def rows(own):
        return [item(k, [*range(10), *[k] * own], 9 + own) for k in range(20)]

    assert find_header(rows(60)) == tuple(range(10))
    assert find_header(rows(80)) == ()


def test_rows_of_one_example_are_one_stem_where_they_begin_alike():
    begin = list(range(20))
    found = [item(0, [*begin, 50, 51], 19), item(0, [*begin, 60], 19), item(1, [*begin, 70], 19)]
    stems = find_stems(found, (), 8)
    assert [(s.items, s.length, s.tails) for s in stems] == [((0, 1), 20, (2, 1)), ((2,), 21, (0,))]
    # What the header holds already is no gain.
    assert [s.items for s in find_stems(found, begin, 8)] == [(0,), (1,), (2,)]
    # No more rows than a batch takes.
    assert [s.items for s in find_stems(found, (), 1)] == [(0,), (1,), (2,)]


examples_of_rows = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(0, 12), min_size=1, max_size=7)),
    min_size=1,
    max_size=12,
)


@given(examples_of_rows, st.integers(0, 30), st.integers(1, 300), st.integers(1, 9))
def test_the_plan_holds_each_item_once_within_its_bounds(found, header, max_tokens, max_items):
    items = []
    for index, (length, tails) in enumerate(found):
        begin = [*range(header), *[100 + index] * length]
        for tail in tails:
            ids = [*begin, *range(200, 200 + tail)]
            items.append(item(index, ids, len(begin) - 1))
    head = find_header(items)
    batches = plan_shared(items, head, max_tokens, max_items, 32)
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    assert batches == plan_shared(items, head, max_tokens, max_items, 32)
    # As planned; rows of one example that meet in a batch may be put together anew there.
    planned = find_stems(items, head, max_items)
    for batch in batches:
        stems = [stem for stem in planned if set(stem.items) & set(batch)]
        assert sorted(i for stem in stems for i in stem.items) == sorted(batch)
        if len(stems) == 1:
            continue
        assert max(len(stems), sum(tail > 0 for s in stems for tail in s.tails)) <= max_items
        padded = len(stems) * (max(s.length for s in stems) - len(head))
        assert max(padded, sum(sum(s.tails) for s in stems)) <= max_tokens


def test_tails_of_like_length_are_run_together():
    choices = [" a", " b", " a very long one, and more of it and more", " c very long and more."]
    adapter = choice(llama(), examples(choices=choices))
    items = adapter.items()
    with torch.inference_mode():
        adapter.share(items, 4000, 99, 8)
        seen = Counted(adapter.model)
        adapter.score(items)
    stems, *tails = seen.shapes
    assert stems[0] == len(PROMPTS)
    assert len(tails) >= 2
    longest = max(length for _, length in tails)
    assert sum(rows for rows, _ in tails) * longest > 1.3 * sum(r * n for r, n in tails)


# -- only the logits that are asked for --------------------------------------------------------


class Head(torch.nn.Module):
    """Counts the positions that the head is applied to."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.positions = inner, 0

    def forward(self, hidden):
        self.positions += hidden.numel() // hidden.shape[-1]
        return self.inner(hidden)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_head_is_applied_to_the_scored_positions_alone(make):
    model = make()
    model.lm_head = Head(copy.deepcopy(model.lm_head))
    adapter = choice(model, examples())
    items = adapter.items()
    with torch.inference_mode():
        adapter.score(items)
    scored = sum(len({t[1] for t in i.targets}) for i in items)
    assert model.lm_head.positions == scored
    # Rows differ in length, so that a union of positions would be several times as many.
    union = len({t[1] for i in items for t in i.targets}) * len(items)
    assert union > 3 * scored


def test_logits_are_those_of_the_places_in_order_with_and_without_a_mask_of_places():
    model = llama()
    rows, places = [[5, 6, 7, 8], [9, 10], [11, 12, 13]], [(0, 1), (0, 3), (1, 1), (2, 0), (2, 2)]
    with torch.inference_mode():
        exact = torch.stack([model(torch.tensor([rows[r]])).logits[0, p] for r, p in places])
        forward = CausalForward(model, "cpu", 0)
        assert forward._masks
        for masks, keeps in ((True, True), (False, True), (False, False)):
            forward._masks, forward.keeps = masks, keeps
            found, past = forward.logits(rows, places)
            assert past is None
            torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)


def test_log_probabilities_are_taken_in_float32_in_chunks():
    torch.manual_seed(0)
    logits = (torch.randn(60, 50_000) * 9).to(torch.bfloat16)
    index, tokens = [59, 0, 3, 3], [4, 49_999, 0, 7]
    exact = logits.double().log_softmax(-1)[index, tokens]
    found = token_logprobs(logits, index, tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-6)


def test_the_answers_leave_the_device_in_one_transfer(monkeypatch):
    adapter = choice(llama(), examples(HEADER))
    items = adapter.items()
    adapter.share(items, 600, 8, 32)
    moved = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: (moved.append(len(t)), original(t))[1])
    monkeypatch.setattr(torch.Tensor, "item", None)
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    with torch.inference_mode():
        adapter.score(items[:6])
    assert moved == [sum(len(i.targets) for i in items[:6])]


def test_a_scorer_shares_nothing_until_it_is_asked_to():
    adapter = choice(llama(), examples(HEADER))
    seen = Counted(adapter.model)
    items = adapter.items()
    with torch.inference_mode():
        Scorer(adapter.scorer.forward).score(items[:5])
    assert seen.shapes == [(5, max(len(i.ids) for i in items[:5]))]
    assert isinstance(language(llama(), tokenizer(**BOTH)), LanguageModeling)


# -- in a session ------------------------------------------------------------------------------


class Nothing:
    """A meter of memory that measures none."""

    def begin(self):
        pass

    def end(self):
        return 0

    def extras(self):
        return {}


def quality(model, runtime):
    """(the answer of a session's quality pass, its rows)."""
    session = object.__new__(Session)
    session.model, session.tokenizer, session.device = model, tokenizer(**BOTH), "cpu"
    session.memory, session.progress = Nothing(), lambda *done: None
    session.runtime, session.compiled, session.heard = RUNTIMES[runtime], None, HeardPasses()
    card = {"kind": "multiple-choice", "metrics": ["accuracy"], "max_length": 400}
    request = {"card": card, "examples": examples(HEADER), "batch_plan": batch_plan("cpu")}
    answer, arrow = session.quality(request)
    assert session.adapter.scorer._past is None
    return answer["quality"], pyarrow.ipc.open_stream(arrow).read_all().to_pylist()


def test_a_sessions_plan_is_the_same_for_all_formats_and_plain_where_it_compiles():
    whole, plain_rows = quality(llama(), "compile")
    shared, rows = quality(llama(), "eager")
    narrow, _ = quality(llama().to(torch.bfloat16), "eager")
    assert shared["batch_plan_hash"] == narrow["batch_plan_hash"] != whole["batch_plan_hash"]
    assert shared["tokens"] == whole["tokens"]
    for row, plain in zip(rows, plain_rows, strict=True):
        assert row["choice_logprobs"] == pytest.approx(plain["choice_logprobs"], abs=1e-5)
        assert row["choice_logprobs"] != plain["choice_logprobs"]
