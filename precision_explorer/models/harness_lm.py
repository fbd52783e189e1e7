"""lm-evaluation-harness's `hf` model around one that is loaded already.

Imports lm_eval, which is an extra: only `models.harness` imports this module, when it is needed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token
from torch import nn
from transformers import LogitsProcessorList

from precision_explorer.errors import TaskError

Pair = tuple[list[int], list[int]]


class LoadedLM(HFLM):
    """The harness's own tokenisation, windows and generation on `model`.

    Log-likelihoods are not computed here: `encode` says which tokens stand for a request, and the
    adapter scores them in the frozen batches.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, device: str) -> None:
        # Not HFLM's own, which would tie the weights of the model again: a head that was converted
        # would become the embedding.
        TemplateLM.__init__(self)
        self._model, self._config = model, model.config
        self._device = torch.device(device)
        self.backend = "causal"
        self.AUTO_MODEL_CLASS = transformers.AutoModelForCausalLM
        # A copy, since the harness gives it a padding token where it has none.
        self.tokenizer = configure_pad_token(copy.copy(tokenizer), model_config=model.config)
        self.vocab_size = self.tokenizer.vocab_size
        self.truncation, self.logits_cache = False, True
        self.think_end_token = self.enable_thinking = self.add_bos_token = None
        self.chat_template_args: dict[str, Any] = {}
        self._max_length: int | None = None
        self.custom_prefix_token_id = None
        self.softmax_dtype = self.mixed_precision_dtype = None
        self.batch_size_per_gpu, self.batch_schedule, self.max_batch_size = 1, 1, 1
        self.batch_sizes: dict[int, int] = {}
        self._rank, self._world_size = 0, 1
        self.revision, self.peft, self.delta = "main", None, None
        self._pairs: list[Pair] = []
        self._watch = _Watch()

    def limit(self, most: int) -> int:
        """Take inputs of at most `most` tokens, or of as many as the model takes; returns that."""
        found = min(most, int(self.max_length))
        self._max_length = found
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Take note of the tokens that the harness would score."""
        self._pairs += [(list(context), list(tokens)) for _, context, tokens in requests]
        return [(0.0, False)] * len(requests)

    def encode(self, kind: str, arguments: Sequence[Any], where: str) -> list[Pair]:
        """(context, continuation) tokens of a ``loglikelihood`` request, or of each window of a
        ``loglikelihood_rolling``. TaskError where there is no token to score or too many."""
        self._pairs = []
        try:
            getattr(self, kind)([instance(kind, arguments)], disable_tqdm=True)
        except IndexError:
            self._pairs = [([0], [])]
        if not self._pairs or not all(tokens for _, tokens in self._pairs):
            raise TaskError(
                f"{where}: the model's tokenizer makes no token of the text to be scored; leave it "
                "out"
            )
        longest = max(len(tokens) for _, tokens in self._pairs)
        if longest > self.max_length:
            raise TaskError(
                f"{where}: {longest} tokens are to be scored at once, more than the "
                f"{self.max_length} that the model takes; choose a model with a longer window"
            )
        return self._pairs

    def generate(
        self, batch: Sequence[Sequence[Any]], streamer: Any = None
    ) -> list[tuple[str, bool]]:
        """(text, whether every logit behind it was a number) for each of the arguments (context,
        generation options) in `batch`."""
        self.batch_size_per_gpu = len(batch)
        found = []
        # Rows in a call of one, so that the numbers seen are this row's: the harness sorts a batch.
        # A batch that is all finite, as almost all are, needs no such care.
        self._watch.begin(streamer)
        texts = self.generate_until([instance("generate_until", a) for a in batch], True)
        if self._watch.finite():
            return [(text, True) for text in texts]
        for arguments in batch:
            self._watch.begin(None)
            text = self.generate_until([instance("generate_until", arguments)], True)[0]
            found.append((text, self._watch.finite()))
        return found

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        options["logits_processor"] = LogitsProcessorList([self._watch])
        if self._watch.streamer is not None:
            options["streamer"] = self._watch.streamer
        return super()._model_generate(context, max_length, stop, **options)


class _Watch:
    """A logits processor that changes nothing and notes NaN and infinity."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, streamer: Any) -> None:
        self.streamer = streamer
        self._bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Tokens that are ruled out stand at -inf; a row needs one number, and no NaN or +inf.
        broken = scores.isnan().any() | scores.isposinf().any()
        bad = broken | ~scores.isfinite().any(-1).all()
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def finite(self) -> bool:
        """Whether all logits since `begin` could be used."""
        return self._bad is None or not bool(self._bad)


class FirstToken:
    """A streamer that notes when the first token came, and how many did."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.tokens = -1  # The prompt is put first.

    def put(self, value: torch.Tensor) -> None:
        value.cpu()
        self.tokens += 1
        if self.tokens == 1:
            self.first = time.perf_counter()

    def end(self) -> None:
        return None


def instance(kind: str, arguments: Sequence[Any]) -> Instance:
    """A request of the harness."""
    return Instance(kind, {}, copy.deepcopy(tuple(arguments)), 0, (None, 0, 1))
