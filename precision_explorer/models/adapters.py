"""Which adapter answers which kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from precision_explorer.models.adapter import Adapter
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.extractive_qa import ExtractiveQA
from precision_explorer.models.generation import Generation
from precision_explorer.models.image_classifier import ImageClassifier
from precision_explorer.models.sentence_encoder import Retrieval, Similarity
from precision_explorer.models.seq2seq import Seq2Seq
from precision_explorer.models.text_classifier import TextClassifier
from precision_explorer.models.token_classifier import TokenClassifier

Json = dict[str, Any]
Make = Callable[[nn.Module, Any, str, Json], Adapter]
"""(model, tokenizer or processor, device, request) -> adapter. The request holds ``card`` (kind,
metrics, max_length), ``examples``, ``corpus``, ``label_ids`` and ``workload``; see
`runner.local`."""


def _text_classifier(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    examples, card = request["examples"], request["card"]
    return TextClassifier(model, tokenizer, device, examples, card, request["label_ids"])


def _multiple_choice(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    return MultipleChoice(model, tokenizer, device, request["examples"], request["card"])


def _language_modeling(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    workload = request["workload"]
    return LanguageModeling(
        model,
        tokenizer,
        device,
        request["examples"],
        request["card"],
        prompt_tokens=workload["prompt_tokens"],
        output_tokens=workload["output_tokens"],
    )


def _token_classifier(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    examples, card = request["examples"], request["card"]
    return TokenClassifier(model, tokenizer, device, examples, card, request["label_ids"])


def _extractive_qa(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    return ExtractiveQA(model, tokenizer, device, request["examples"], request["card"])


def _similarity(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    return Similarity(model, tokenizer, device, request["examples"], request["card"])


def _retrieval(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    examples, corpus = request["examples"], request.get("corpus", [])
    return Retrieval(model, tokenizer, device, examples, request["card"], corpus)


def _image_classifier(model: nn.Module, processor: Any, device: str, request: Json) -> Adapter:
    return ImageClassifier(model, processor, device, request["examples"], request["label_ids"])


def _generation(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    count = request["workload"]["output_tokens"]
    return Generation(model, tokenizer, device, request["examples"], request["card"], count)


def _seq2seq(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    count = request["workload"]["output_tokens"]
    return Seq2Seq(model, tokenizer, device, request["examples"], request["card"], count)


def _lm_eval(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    from precision_explorer.models.harness import HarnessTask

    examples, card = request["examples"], request["card"]
    return HarnessTask(model, tokenizer, device, examples, card, request.get("batch_plan"))


ADAPTERS: dict[str, Make] = {
    "text-classification": _text_classifier,
    "multiple-choice": _multiple_choice,
    "language-modeling": _language_modeling,
    "token-classification": _token_classifier,
    "extractive-qa": _extractive_qa,
    "similarity": _similarity,
    "retrieval": _retrieval,
    "image-classification": _image_classifier,
    "generation": _generation,
    "summarization": _seq2seq,
    "translation": _seq2seq,
    "lm-eval": _lm_eval,
}


def make_adapter(model: nn.Module, tokenizer: Any, device: str, request: Json) -> Adapter:
    """The adapter of the card's kind of task for `model`."""
    return ADAPTERS[request["card"]["kind"]](model, tokenizer, device, request)
