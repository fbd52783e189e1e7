"""Greedy decoding in continuous batches: transformers' own, driven step by step.

transformers runs it in a thread of its own, which would compete with the serving loop for the
interpreter; its batch processor is called here instead, so that requests join between two steps and
the moment of each token is the caller's to read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.measure.continuous import Step
from precision_explorer.measure.throughput import is_out_of_memory
from precision_explorer.models.dispatch import is_spread
from precision_explorer.models.greedy import GreedyServing
from precision_explorer.models.tensors import is_split

# Small, so that the cache is hardly larger than its requests; no kernel here reads whole pages.
_PAGE_TOKENS = 32
STEP_TOKENS = 2048
"""The most tokens that one step computes: a longer prompt is divided over steps, between which the
others go on. It bounds the attention mask, which has a row for each of them and a column for each
token of the cache."""
# What is tried before a model is called able: prompts, tokens of each, tokens made after them.
_TRIAL = (3, 16, 4)


class ContinuousBatches:
    """Requests of up to `max_batch` at once, each of at most `longest` tokens with its answer;
    `close` must be called.

    The cache holds as many such requests and no more (transformers would take a share of all free
    memory), so that none is put off once it was begun. Prompts are computed whole, though another
    one may begin alike: a task's examples come again and again here, as no user's do. Attention is
    computed by the model's own implementation, the same for every format.

    Raises what transformers raises for a model that it can't serve so, and MemoryError.
    """

    def __init__(self, model: nn.Module, max_batch: int, longest: int) -> None:
        self._model: Any = model
        self._attention = self._model.config._attn_implementation
        self._left: dict[int, int] = {}
        self._next = 0
        self.tokens: dict[int, list[int]] = {}
        """Of each request that was finished and not asked for yet."""
        try:
            self._manager = self._model.init_continuous_batching(
                generation_config=_generation(),
                continuous_batching_config=_config(max_batch, longest),
            )
            self._manager.warmup()  # Makes the processor; without graphs nothing is run.
            self._processor = self._manager.batch_processor
        except BaseException:
            self._restore()
            raise

    def join(self, ids: Sequence[int], count: int) -> int:
        """Take one more request, of `count` tokens after the prompt `ids`; its ticket. It is in the
        next step, as far as `STEP_TOKENS` reach."""
        ticket, self._next = self._next, self._next + 1
        self._left[ticket] = count
        self._manager.add_request(
            list(ids), request_id=str(ticket), max_new_tokens=count, eos_token_id=-1
        )
        return ticket

    def step(self) -> Step:
        """One pass of the model, over the next tokens of all requests."""
        if not self._processor.prepare_next_batch():
            raise ModelError("continuous batching found no request to go on with; report it")
        self._processor._generation_step(self._model)
        batch = self._processor.inputs_and_outputs.requests_in_batch
        served = [int(one.state.request_id) for one in batch]
        made = [int(one.state.request_id) for one in batch if one.has_new_token]
        self._processor.update_batch()
        for ticket in made:
            self._left[ticket] -= 1
        finished = [ticket for ticket in made if not self._left[ticket]]
        for ticket in finished:
            del self._left[ticket]
            result = self._manager.get_result()
            self.tokens[int(result.request_id)] = result.generated_tokens
        return Step(served, made, finished)

    def close(self) -> None:
        """Free the cache; the model is again as it was."""
        self._restore()
        del self._processor, self._manager

    def _restore(self) -> None:
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)


@contextlib.contextmanager
def continuous_batches(
    model: nn.Module, max_batch: int, longest: int
) -> Iterator[ContinuousBatches]:
    """`ContinuousBatches`, closed at the end."""
    batches = ContinuousBatches(model, max_batch, longest)
    try:
        yield batches
    finally:
        batches.close()


def _generation() -> Any:
    """Greedy, whatever the model's own settings: no penalties, and no token ends an answer."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)


def _config(max_batch: int, longest: int) -> Any:
    from transformers import ContinuousBatchingConfig

    # One more for layers of unlike kinds, which take pages in larger pieces.
    pages = -(-longest // _PAGE_TOKENS) + 1
    values = {
        "page_size": _PAGE_TOKENS,
        "num_blocks": max_batch * pages,
        "max_batch_tokens": max(max_batch, min(max_batch * longest, STEP_TOKENS)),
        "max_requests_per_batch": max_batch,
        "max_blocks_per_request": 0,
        "allow_block_sharing": False,
        "use_async_batching": False,
        "use_cuda_graph": False,
        "auto_switch_to_flash": False,
        "safety_margin": 0.0,
        "seed": 0,
    }
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    if "page_size" not in known:  # Its name before; other settings came later, too (seen in 5.17).
        values["block_size"] = values["page_size"]
    return ContinuousBatchingConfig(**{n: v for n, v in values.items() if n in known})


# -- whether a model can -----------------------------------------------------------------------


def why_not(adapter: Any) -> str | None:
    """Why transformers can't serve the adapter's model in continuous batches, in words; None where
    it can: then a few requests came to the tokens that they come to alone."""
    if not isinstance(adapter, GreedyServing):
        return "transformers batches no model of this kind continuously"
    if getattr(adapter.model.forward, "pads", False):
        return "the runtime has compiled the model for static batches"
    if is_spread(adapter.model):
        return "the model is spread over several devices, and its pages would all be on one"
    if is_split(adapter.model):
        return "the model's tensors are split, and only static batches are told to all devices"
    if not hasattr(adapter.model, "init_continuous_batching"):
        return f"{type(adapter.model).__name__} has no continuous batching in transformers"
    try:
        same = _same_tokens(adapter)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        words = str(error).strip().splitlines() or ["no message"]
        return f"transformers' continuous batching fails ({type(error).__name__}: {words[0]})"
    if same < 0.5:
        return "transformers' continuous batching came to other tokens than the model alone"
    return None


def _same_tokens(adapter: GreedyServing) -> float:
    """Share of the tokens of a few requests, of which the others join the first, that are those of
    each alone. In few bits the order of sums decides between tokens that are all but equal, so it
    need not be 1."""
    most, length, count = _TRIAL
    known = len(adapter.examples)
    prompts = [adapter.prompt_ids(k % known)[: length - k] for k in range(most)]
    with continuous_batches(adapter.model, most, length + count) as batches:
        tickets = [batches.join(prompts[0], count)]
        batches.step()
        tickets += [batches.join(prompt, count) for prompt in prompts[1:]]
        while len(batches.tokens) < most:
            batches.step()
        made = [token for ticket in tickets for token in batches.tokens[ticket]]
    alone = [token for prompt in prompts for token in adapter.greedy_tokens(prompt, count)]
    return sum(a == b for a, b in zip(made, alone, strict=True)) / len(alone)
